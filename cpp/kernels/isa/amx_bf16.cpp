// SPDX-License-Identifier: MIT
// AMX kernels: tiles of bfloat16 pairs beside vectors of sixteen lanes.
#define CPUATTN_ISA amx_bf16
#define CPUATTN_GEMM "kernels/amx_gemm.inl.h"
#define CPUATTN_SESSION TileSession
#define CPUATTN_PREFILL_ONLY

#include "kernels/work_item.h"
// clang-format off: the table is built on the vectors and their units
#include "kernels/simd/vec_avx512.h"
#include "kernels/simd/tiles_amx.h"
#include "kernels/kernel_table.inl.h"
