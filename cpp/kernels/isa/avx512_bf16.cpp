// SPDX-License-Identifier: MIT
// AVX512_BF16 kernels: sixteen lanes, products of bfloat16 pairs.
#define CPUATTN_ISA avx512_bf16

#include "kernels/work_item.h"
// clang-format off: the table is built on the vectors and their units
#include "kernels/simd/vec_avx512.h"
#include "kernels/simd/pairs_avx512.h"
#include "kernels/kernel_table.inl.h"
