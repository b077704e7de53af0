// SPDX-License-Identifier: MIT
// The 16-bit operations of the vector contract one element at a time, for headers whose machine
// has none. Include after the header's own load and store.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

struct Half {
  uint16_t lane[kLanes];
};
CPUATTN_INLINE Half load_half_first(const char* p, int n) {
  Half h;
  for (int i = 0; i < kLanes; ++i) {
    h.lane[i] = 0;
    if (i < n) __builtin_memcpy(h.lane + i, p + 2 * i, 2);
  }
  return h;
}
CPUATTN_INLINE Half load_half(const char* p) { return load_half_first(p, kLanes); }
CPUATTN_INLINE void store_half(char* p, Half h) { __builtin_memcpy(p, h.lane, sizeof h.lane); }

template <class Widen>
CPUATTN_INLINE Vec widen_each(Half h, Widen widen) {
  Real t[kLanes];
  for (int i = 0; i < kLanes; ++i) t[i] = static_cast<Real>(widen(h.lane[i]));
  return load(t);
}
template <class Narrow>
CPUATTN_INLINE Half narrow_each(Vec v, Narrow narrow) {
  Real t[kLanes];
  store(t, v);
  Half h;
  for (int i = 0; i < kLanes; ++i) h.lane[i] = narrow(static_cast<float>(t[i]));
  return h;
}
CPUATTN_INLINE Vec widen_float16(Half h) { return widen_each(h, float_of_float16); }
CPUATTN_INLINE Vec widen_bfloat16(Half h) { return widen_each(h, float_of_bfloat16); }
CPUATTN_INLINE Half narrow_float16(Vec v) { return narrow_each(v, float16_of_float); }
CPUATTN_INLINE Half narrow_bfloat16(Vec v) { return narrow_each(v, bfloat16_of_float); }

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
