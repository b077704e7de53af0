// SPDX-License-Identifier: MIT
// WebAssembly simd128 kernels: four lanes.
#define CPUATTN_ISA simd128

#include "kernels/work_item.h"
// clang-format off: the table is built on the vectors and their units
#include "kernels/simd/vec_simd128.h"
#include "kernels/simd/units_real.h"
#include "kernels/kernel_table.inl.h"
