// SPDX-License-Identifier: MIT
// The one thing an ISA exports. Include after a simd/vec_*.h and the units that the
// products multiply.
#pragma once

#ifndef CPUATTN_GEMM
#define CPUATTN_GEMM "kernels/tile_gemm.inl.h"
#endif

#include "kernels/vmath.inl.h"
// clang-format off: each file builds on the ones before it
#include "kernels/elements.inl.h"
#include "kernels/operands.inl.h"
#include CPUATTN_GEMM
#include "kernels/score_mods.inl.h"
#include "kernels/kv_block.inl.h"
#include "kernels/row_tile.inl.h"
#include "kernels/runs.inl.h"
#include "kernels/prefill.inl.h"
#ifndef CPUATTN_PREFILL_ONLY
#include "kernels/decode.inl.h"
#endif
// clang-format on

namespace cpuattn {
namespace CPUATTN_ISA {

#define CPUATTN_STRING(name) #name
#define CPUATTN_NAME_OF(name) CPUATTN_STRING(name)

extern const KernelTable kTable;
const KernelTable kTable = {
    CPUATTN_NAME_OF(CPUATTN_ISA),
    kLanes,
    kMaxPlanes,
    {kTileRows, kPrefillKeys, prefill_scratch_bytes, prefill},
#ifdef CPUATTN_PREFILL_ONLY
    0,
    {},
#else
    kDecodeRows,
    {1, kDecodeKeys, decode_scratch_bytes, decode},
#endif
};

}  // namespace CPUATTN_ISA
}  // namespace cpuattn
