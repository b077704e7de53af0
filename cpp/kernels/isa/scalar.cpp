// SPDX-License-Identifier: MIT
// Portable kernels: any CPU the compiler targets.
#define CPUATTN_ISA scalar

#include "kernels/work_item.h"
// clang-format off: the table is built on the vectors and their units
#include "kernels/simd/vec_scalar.h"
#include "kernels/simd/units_real.h"
#include "kernels/kernel_table.inl.h"
