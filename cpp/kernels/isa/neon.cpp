// SPDX-License-Identifier: MIT
// arm64 NEON kernels: four lanes.
#define CPUATTN_ISA neon

#include "kernels/work_item.h"
// clang-format off: the table is built on the vectors and their units
#include "kernels/simd/vec_neon.h"
#include "kernels/simd/units_real.h"
#include "kernels/kernel_table.inl.h"
