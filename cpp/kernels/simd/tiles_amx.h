// SPDX-License-Identifier: MIT
// AMX tiles: 16 rows of 64 bytes, and their bfloat16 product. Pairs of bfloat16 are the units.
//
//   C[m][n] += sum_k A[m][k] . B[k][n]      16 x 16 float32 += 16 x 16 units times 16 x 16 units
//
// TDPBF16PS treats denormals as zero, flushes denormal sums and rounds to nearest, whatever MXCSR
// says. Written as assembly: the compilers' own wrappers do not tell that tiles read memory.
#pragma once

#include "kernels/simd/pairs_avx512.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

constexpr int kTileSide = 16;

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Tiles are configured while one of these lives: all eight full.
struct TileSession {
  TileSession() { configure(); }
  ~TileSession() { __asm__ volatile("tilerelease" ::: "memory"); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;

  static void configure() {
    TileConfig config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = 64;
      config.rows[i] = kTileSide;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
};

template <int kTile>
CPUATTN_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// Rows are `step` bytes apart.
template <int kTile>
CPUATTN_INLINE void tile_load(const void* p, int64_t step) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(step), "i"(kTile) : "memory");
}
template <int kTile>
CPUATTN_INLINE void tile_store(void* p, int64_t step) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(step), "i"(kTile) : "memory");
}
template <int kC, int kA, int kB>
CPUATTN_INLINE void tile_product() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
