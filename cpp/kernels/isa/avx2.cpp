// SPDX-License-Identifier: MIT
// AVX2, FMA and F16C kernels: eight lanes.
#define CPUATTN_ISA avx2

#include "kernels/work_item.h"
// clang-format off: the table is built on the vectors and their units
#include "kernels/simd/vec_avx2.h"
#include "kernels/simd/units_real.h"
#include "kernels/kernel_table.inl.h"
