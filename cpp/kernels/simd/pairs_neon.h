// SPDX-License-Identifier: MIT
// Pairs of bfloat16 for arm64 FEAT_BF16: 8 products an instruction, summed in float32. The contract
// is in units_real.h.
//
// BFDOT rounds the sum of the two products and then the sum with `c`, both to odd (an inexact
// result gets an odd last bit: off by less than one unit, without drift), treats denormals as zero
// and flushes denormal sums. With FPCR.EBF, which the library does not set, both round as FPCR
// says.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

struct __attribute__((packed, may_alias)) Unit {
  uint32_t bits;
};
using Operand = bfloat16x8_t;
constexpr DType kUnitType = DType::kBFloat16;
constexpr int kDepth = 2;
constexpr bool kFoldsScale = false;

CPUATTN_INLINE Operand load_units(const Unit* p) {
  Operand units;
  __builtin_memcpy(&units, p, sizeof units);
  return units;
}
CPUATTN_INLINE Operand load_units_first(const Unit* p, int n) {
  uint32_t t[kLanes] = {};
  for (int i = 0; i < n; ++i) t[i] = p[i].bits;
  return vreinterpretq_bf16_u32(vld1q_u32(t));
}
CPUATTN_INLINE Operand spread_unit(const Unit* p) {
  return vreinterpretq_bf16_u32(vdupq_n_u32(p->bits));
}
CPUATTN_INLINE Operand no_units() { return vreinterpretq_bf16_u32(vdupq_n_u32(0)); }
CPUATTN_INLINE Vec multiply_add(Operand a, Operand b, Vec c) { return vbfdotq_f32(c, a, b); }
// The first four halves of two registers, side by side.
CPUATTN_INLINE Vec join_halves(uint16x8_t even, uint16x8_t odd) {
  return vreinterpretq_f32_u16(vzip1q_u16(even, odd));
}
// Rounds to nearest, ties to even.
CPUATTN_INLINE uint16x8_t narrow_units(Vec v) {
  return vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(v));
}
CPUATTN_INLINE Vec join(const Vec (&v)[kDepth]) {
  return join_halves(narrow_units(v[0]), narrow_units(v[1]));
}
CPUATTN_INLINE Vec join_rows(const char* p, int64_t step) {
  const uint16x4_t none = vdup_n_u16(0);
  return join_halves(vcombine_u16(load_half(p), none), vcombine_u16(load_half(p + step), none));
}
CPUATTN_INLINE void store_row_units(Unit* p, Vec v) {
  store_half(reinterpret_cast<char*>(p), vget_low_u16(narrow_units(v)));
}

// Two rows into units of both: first the low, then the high columns.
CPUATTN_INLINE void interleave(Operand even, Operand odd, Operand (&pairs)[kDepth]) {
  const uint16x8_t a = vreinterpretq_u16_bf16(even);
  const uint16x8_t b = vreinterpretq_u16_bf16(odd);
  pairs[0] = vreinterpretq_bf16_u16(vzip1q_u16(a, b));
  pairs[1] = vreinterpretq_bf16_u16(vzip2q_u16(a, b));
}
CPUATTN_INLINE void in_order(Vec (&)[kDepth]) {}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
