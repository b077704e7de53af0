// SPDX-License-Identifier: MIT
// Vectors of four floats for arm64 NEON. The contract is in vec_scalar.h.
//
// Register budget of the product micro-kernel: 6 x 4 accumulators + 4 operands + 1 broadcast = 29
// of 32. It does 24 FMA for 10 loads (ld1r broadcasts included).
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/simd/bytes_neon.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

using Real = float;
constexpr DType kRealType = DType::kFloat32;

constexpr int kLanes = 4;
constexpr int kMicroRows = 6;
constexpr int kMicroVecs = 4;
constexpr int kTileVecs = 8;
constexpr int kDotRows = 4;
constexpr int kDecodeRows = 4;

using Vec = float32x4_t;
using Mask = uint32x4_t;

CPUATTN_INLINE Vec zero() { return vdupq_n_f32(0.0f); }
CPUATTN_INLINE Vec broadcast(float x) { return vdupq_n_f32(x); }
CPUATTN_INLINE Vec load(const float* p) { return vld1q_f32(p); }
// A float at any address, since rows of a caller's arrays need not be aligned, that any type may
// have written.
struct __attribute__((packed, may_alias)) LooseFloat {
  float x;
};
CPUATTN_INLINE Vec load_first(const float* p, int n) {
  float t[kLanes] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int i = 0; i < n; ++i) t[i] = reinterpret_cast<const LooseFloat*>(p + i)->x;
  return vld1q_f32(t);
}
CPUATTN_INLINE void store(float* p, Vec v) { vst1q_f32(p, v); }
CPUATTN_INLINE void store_first(float* p, int n, Vec v) {
  float t[kLanes];
  vst1q_f32(t, v);
  for (int i = 0; i < n; ++i) reinterpret_cast<LooseFloat*>(p + i)->x = t[i];
}

using Half = uint16x4_t;
CPUATTN_INLINE Half load_half(const char* p) {
  Half h;
  __builtin_memcpy(&h, p, sizeof h);
  return h;
}
CPUATTN_INLINE Half load_half_first(const char* p, int n) {
  uint16_t t[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    t[i] = 0;
    if (i < n) __builtin_memcpy(t + i, p + 2 * i, 2);
  }
  return vld1_u16(t);
}
CPUATTN_INLINE void store_half(char* p, Half h) { __builtin_memcpy(p, &h, sizeof h); }
CPUATTN_INLINE Vec widen_float16(Half h) { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }
CPUATTN_INLINE Half narrow_float16(Vec v) { return vreinterpret_u16_f16(vcvt_f16_f32(v)); }
CPUATTN_INLINE Vec widen_bfloat16(Half h) { return vreinterpretq_f32_u32(vshll_n_u16(h, 16)); }
CPUATTN_INLINE Half narrow_bfloat16(Vec v) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t up = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), up, quiet), 16);
}

CPUATTN_INLINE Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
CPUATTN_INLINE Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
CPUATTN_INLINE Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
CPUATTN_INLINE Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
CPUATTN_INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
CPUATTN_INLINE Vec select(Mask m, Vec a, Vec b) { return vbslq_f32(m, a, b); }
CPUATTN_INLINE Vec max(Vec a, Vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
CPUATTN_INLINE Vec abs(Vec a) { return vabsq_f32(a); }
CPUATTN_INLINE Vec sign_or(Vec a, Vec b) {
  const uint32x4_t sign = vandq_u32(vreinterpretq_u32_f32(b), vdupq_n_u32(0x80000000u));
  return vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(a), sign));
}

CPUATTN_INLINE Mask equal(Vec a, Vec b) { return vceqq_f32(a, b); }
CPUATTN_INLINE Mask less(Vec a, Vec b) { return vcltq_f32(a, b); }
CPUATTN_INLINE Mask mask_from_bits(uint32_t bits) {
  const uint32x4_t lane_bit = {1u, 2u, 4u, 8u};
  return vtstq_u32(vdupq_n_u32(bits), lane_bit);
}
CPUATTN_INLINE bool any(Mask m) { return vmaxvq_u32(m) != 0; }

// The magic-number form of vec_scalar.h: the clamp at -127 makes -inf come out as exactly +0.
// FMAX keeps NaN by itself.
constexpr float kExponentMagic = 12583039.0f;
CPUATTN_INLINE Vec split_exp2(Vec x, Vec& n) {
  const Vec magic = vdupq_n_f32(kExponentMagic);
  const Vec clamped = vmaxq_f32(vdupq_n_f32(-127.0f), x);
  n = vaddq_f32(clamped, magic);
  return vsubq_f32(clamped, vsubq_f32(n, magic));
}
CPUATTN_INLINE Vec scale_exp2(Vec p, Vec n) {
  return vmulq_f32(p, vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(n), 23)));
}

CPUATTN_INLINE float reduce_add(Vec v) { return vaddvq_f32(v); }
CPUATTN_INLINE float reduce_max(Vec v) {
  return any(vceqq_f32(v, v)) ? vmaxnmvq_f32(v) : vgetq_lane_f32(v, 0);
}
CPUATTN_INLINE void store_sums4(float* p, Vec a, Vec b, Vec c, Vec d) {
  vst1q_f32(p, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}
CPUATTN_INLINE void transpose_quads(Vec (&v)[4]) {
  const float32x4x2_t ab = vtrnq_f32(v[0], v[1]);
  const float32x4x2_t cd = vtrnq_f32(v[2], v[3]);
  v[0] = vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0]));
  v[1] = vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1]));
  v[2] = vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0]));
  v[3] = vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1]));
}
CPUATTN_INLINE void load_square(const char* const* rows, int64_t column, Vec (&v)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    v[i] = vld1q_f32(reinterpret_cast<const float*>(rows[i]) + column);
  }
  transpose_quads(v);
}
CPUATTN_INLINE void store_square(const Vec (&v)[kLanes], char* const* rows, int64_t column) {
  Vec part[4] = {v[0], v[1], v[2], v[3]};
  transpose_quads(part);
  for (int i = 0; i < kLanes; ++i) {
    vst1q_f32(reinterpret_cast<float*>(rows[i]) + column, part[i]);
  }
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
