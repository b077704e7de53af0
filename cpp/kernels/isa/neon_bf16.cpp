// SPDX-License-Identifier: MIT
// arm64 NEON kernels with FEAT_BF16: four lanes, products of bfloat16 pairs.
#define CPUATTN_ISA neon_bf16
#define CPUATTN_MICRO_KERNEL "kernels/simd/squares_neon.h"

#include "kernels/work_item.h"
// clang-format off: the table is built on the vectors and their units
#include "kernels/simd/vec_neon.h"
#include "kernels/simd/pairs_neon.h"
#include "kernels/kernel_table.inl.h"
