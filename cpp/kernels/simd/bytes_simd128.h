// SPDX-License-Identifier: MIT
// The operations of the vector contract that know no Real.
#pragma once

#include <wasm_simd128.h>

#include <cstdint>

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

CPUATTN_INLINE uint64_t nonzero_bits64(const uint8_t* p) {
  uint64_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    const v128_t set = wasm_i8x16_ne(wasm_v128_load(p + 16 * i), wasm_i8x16_const_splat(0));
    bits |= static_cast<uint64_t>(wasm_i8x16_bitmask(set)) << (16 * i);
  }
  return bits;
}
CPUATTN_INLINE void prefetch_l1(const void*) {}  // WebAssembly has none
CPUATTN_INLINE void prefetch_l2(const void*) {}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
