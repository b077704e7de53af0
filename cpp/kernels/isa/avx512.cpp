// SPDX-License-Identifier: MIT
// AVX-512 F, BW, DQ, VL kernels: sixteen lanes.
#define CPUATTN_ISA avx512

#include "kernels/work_item.h"
// clang-format off: the table is built on the vectors and their units
#include "kernels/simd/vec_avx512.h"
#include "kernels/simd/units_real.h"
#include "kernels/kernel_table.inl.h"
