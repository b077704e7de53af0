// SPDX-License-Identifier: MIT
// arm64 NEON kernels of float64: two lanes.
#define CPUATTN_ISA neon_f64

#include "kernels/work_item.h"
// clang-format off: the table is built on the vectors and their units
#include "kernels/simd/vec_neon_f64.h"
#include "kernels/simd/units_real.h"
#include "kernels/kernel_table.inl.h"
