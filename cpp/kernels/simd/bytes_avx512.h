// SPDX-License-Identifier: MIT
// The operations of the vector contract that know no Real.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

CPUATTN_INLINE uint64_t nonzero_bits64(const uint8_t* p) {
  const __m512i bytes = _mm512_loadu_si512(p);
  return _mm512_test_epi8_mask(bytes, bytes);
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
