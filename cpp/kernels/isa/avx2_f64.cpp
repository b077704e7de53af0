// SPDX-License-Identifier: MIT
// AVX2 and FMA kernels of float64: four lanes.
#define CPUATTN_ISA avx2_f64

#include "kernels/work_item.h"
// clang-format off: the table is built on the vectors and their units
#include "kernels/simd/vec_avx2_f64.h"
#include "kernels/simd/units_real.h"
#include "kernels/kernel_table.inl.h"
