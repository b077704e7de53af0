// SPDX-License-Identifier: MIT
// Pairs of bfloat16 for AVX512_BF16: 32 products an instruction, summed in float32. The contract is
// in units_real.h.
//
// VDPBF16PS treats denormals as zero and flushes denormal sums, whatever MXCSR says.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

struct __attribute__((packed, may_alias)) Unit {
  int32_t bits;
};
using Operand = __m512bh;
constexpr DType kUnitType = DType::kBFloat16;
constexpr int kDepth = 2;
constexpr bool kFoldsScale = false;

CPUATTN_INLINE Operand load_units(const Unit* p) { return (Operand)_mm512_loadu_si512(p); }
CPUATTN_INLINE Operand load_units_first(const Unit* p, int n) {
  return (Operand)_mm512_maskz_loadu_epi32(first_lanes(n), p);
}
CPUATTN_INLINE Operand spread_unit(const Unit* p) { return (Operand)_mm512_set1_epi32(p->bits); }
CPUATTN_INLINE Operand no_units() { return (Operand)_mm512_setzero_si512(); }
CPUATTN_INLINE Vec multiply_add(Operand a, Operand b, Vec c) { return _mm512_dpbf16_ps(c, a, b); }
// The low and the high sixteen halves of a register, side by side.
CPUATTN_INLINE Vec join_halves(__m512i halves) {
  const __m512i order =
      _mm512_setr_epi32(0x00100000, 0x00110001, 0x00120002, 0x00130003, 0x00140004, 0x00150005,
                        0x00160006, 0x00170007, 0x00180008, 0x00190009, 0x001a000a, 0x001b000b,
                        0x001c000c, 0x001d000d, 0x001e000e, 0x001f000f);
  return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, halves));
}
// Rounds to nearest, ties to even.
CPUATTN_INLINE Vec join(const Vec (&v)[kDepth]) {
  return join_halves((__m512i)_mm512_cvtne2ps_pbh(v[1], v[0]));
}
CPUATTN_INLINE Vec join_rows(const char* p, int64_t step) {
  return join_halves(
      _mm512_inserti64x4(_mm512_castsi256_si512(load_half(p)), load_half(p + step), 1));
}
CPUATTN_INLINE void store_row_units(Unit* p, Vec v) {
  store_half(reinterpret_cast<char*>(p), (__m256i)_mm512_cvtneps_pbh(v));
}

// Two rows into units of both: within each 128-bit lane first the low, then the high columns.
CPUATTN_INLINE void interleave(Operand even, Operand odd, Operand (&pairs)[kDepth]) {
  asm("" : "+v"(even), "+v"(odd));  // or GCC loads each of them twice, mostly across cache lines
  pairs[0] = (Operand)_mm512_unpacklo_epi16((__m512i)even, (__m512i)odd);
  pairs[1] = (Operand)_mm512_unpackhi_epi16((__m512i)even, (__m512i)odd);
}
CPUATTN_INLINE void in_order(Vec (&v)[kDepth]) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i last =
      _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  const Vec low = _mm512_permutex2var_ps(v[0], first, v[1]);
  v[1] = _mm512_permutex2var_ps(v[0], last, v[1]);
  v[0] = low;
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
