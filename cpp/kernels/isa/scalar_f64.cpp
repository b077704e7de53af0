// SPDX-License-Identifier: MIT
// Portable kernels of float64.
#define CPUATTN_ISA scalar_f64
#define CPUATTN_REAL double

#include "kernels/work_item.h"
// clang-format off: the table is built on the vectors and their units
#include "kernels/simd/vec_scalar.h"
#include "kernels/simd/units_real.h"
#include "kernels/kernel_table.inl.h"
