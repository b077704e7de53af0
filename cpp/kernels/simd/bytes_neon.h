// SPDX-License-Identifier: MIT
// The operations of the vector contract that know no Real.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

CPUATTN_INLINE uint64_t nonzero_bits64(const uint8_t* p) {
  const uint8x16_t lane_bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  uint64_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t bytes = vld1q_u8(p + 16 * i);
    const uint8x16_t set = vandq_u8(vtstq_u8(bytes, bytes), lane_bit);
    const uint64_t low = vaddv_u8(vget_low_u8(set));
    const uint64_t high = vaddv_u8(vget_high_u8(set));
    bits |= (low | high << 8) << (16 * i);
  }
  return bits;
}
CPUATTN_INLINE void prefetch_l1(const void* p) { __builtin_prefetch(p, 0, 3); }
CPUATTN_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
