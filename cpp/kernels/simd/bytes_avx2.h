// SPDX-License-Identifier: MIT
// The operations of the vector contract that know no Real.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

CPUATTN_INLINE uint32_t zero_bits32(const uint8_t* p) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return static_cast<uint32_t>(
      _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256())));
}
CPUATTN_INLINE uint64_t nonzero_bits64(const uint8_t* p) {
  return ~(zero_bits32(p) | static_cast<uint64_t>(zero_bits32(p + 32)) << 32);
}
CPUATTN_INLINE void prefetch_l1(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}
CPUATTN_INLINE void prefetch_l2(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
