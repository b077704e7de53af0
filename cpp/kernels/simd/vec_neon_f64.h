// SPDX-License-Identifier: MIT
// Vectors of two doubles for arm64 NEON. The contract is in vec_scalar.h, the register budget that
// of vec_neon.h.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/simd/bytes_neon.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

using Real = double;
constexpr DType kRealType = DType::kFloat64;

constexpr int kLanes = 2;
constexpr int kMicroRows = 6;
constexpr int kMicroVecs = 4;
constexpr int kTileVecs = 8;
constexpr int kDotRows = 4;
constexpr int kDecodeRows = 2;

using Vec = float64x2_t;
using Mask = uint64x2_t;

CPUATTN_INLINE Vec zero() { return vdupq_n_f64(0.0); }
CPUATTN_INLINE Vec broadcast(double x) { return vdupq_n_f64(x); }
CPUATTN_INLINE Vec load(const double* p) { return vld1q_f64(p); }
CPUATTN_INLINE Vec load_first(const double* p, int n) {
  return n == 0 ? zero() : n == 1 ? vcombine_f64(vld1_f64(p), vdup_n_f64(0.0)) : load(p);
}
CPUATTN_INLINE void store(double* p, Vec v) { vst1q_f64(p, v); }
CPUATTN_INLINE void store_first(double* p, int n, Vec v) {
  if (n == 1) vst1_f64(p, vget_low_f64(v));
  if (n == 2) store(p, v);
}

CPUATTN_INLINE Vec add(Vec a, Vec b) { return vaddq_f64(a, b); }
CPUATTN_INLINE Vec sub(Vec a, Vec b) { return vsubq_f64(a, b); }
CPUATTN_INLINE Vec mul(Vec a, Vec b) { return vmulq_f64(a, b); }
CPUATTN_INLINE Vec div(Vec a, Vec b) { return vdivq_f64(a, b); }
CPUATTN_INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f64(c, a, b); }
CPUATTN_INLINE Vec select(Mask m, Vec a, Vec b) { return vbslq_f64(m, a, b); }
CPUATTN_INLINE Vec max(Vec a, Vec b) { return vbslq_f64(vcgtq_f64(a, b), a, b); }
CPUATTN_INLINE Vec abs(Vec a) { return vabsq_f64(a); }
CPUATTN_INLINE Vec sign_or(Vec a, Vec b) {
  const uint64x2_t sign = vandq_u64(vreinterpretq_u64_f64(b), vdupq_n_u64(uint64_t{1} << 63));
  return vreinterpretq_f64_u64(vorrq_u64(vreinterpretq_u64_f64(a), sign));
}

CPUATTN_INLINE Mask equal(Vec a, Vec b) { return vceqq_f64(a, b); }
CPUATTN_INLINE Mask less(Vec a, Vec b) { return vcltq_f64(a, b); }
CPUATTN_INLINE Mask mask_from_bits(uint32_t bits) {
  const uint64x2_t lane_bit = {1u, 2u};
  return vtstq_u64(vdupq_n_u64(bits), lane_bit);
}
CPUATTN_INLINE bool any(Mask m) { return (vgetq_lane_u64(m, 0) | vgetq_lane_u64(m, 1)) != 0; }

// The magic-number form of vec_scalar.h: the clamp at -1023 makes -inf come out as exactly +0.
// FMAX keeps NaN by itself.
constexpr double kExponentMagic = 6755399441056767.0;  // 1.5 * 2^52 + 1023
CPUATTN_INLINE Vec split_exp2(Vec x, Vec& n) {
  const Vec magic = vdupq_n_f64(kExponentMagic);
  const Vec clamped = vmaxq_f64(vdupq_n_f64(-1023.0), x);
  n = vaddq_f64(clamped, magic);
  return vsubq_f64(clamped, vsubq_f64(n, magic));
}
CPUATTN_INLINE Vec scale_exp2(Vec p, Vec n) {
  return vmulq_f64(p, vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(n), 52)));
}

CPUATTN_INLINE double reduce_add(Vec v) { return vaddvq_f64(v); }
CPUATTN_INLINE double reduce_max(Vec v) {
  return any(vceqq_f64(v, v)) ? vmaxnmvq_f64(v) : vgetq_lane_f64(v, 0);
}
CPUATTN_INLINE void store_sums4(double* p, Vec a, Vec b, Vec c, Vec d) {
  store(p, vpaddq_f64(a, b));
  store(p + 2, vpaddq_f64(c, d));
}
CPUATTN_INLINE void load_square(const char* const* rows, int64_t column, Vec (&v)[kLanes]) {
  const Vec a = load(reinterpret_cast<const double*>(rows[0]) + column);
  const Vec b = load(reinterpret_cast<const double*>(rows[1]) + column);
  v[0] = vtrn1q_f64(a, b);
  v[1] = vtrn2q_f64(a, b);
}
CPUATTN_INLINE void store_square(const Vec (&v)[kLanes], char* const* rows, int64_t column) {
  store(reinterpret_cast<double*>(rows[0]) + column, vtrn1q_f64(v[0], v[1]));
  store(reinterpret_cast<double*>(rows[1]) + column, vtrn2q_f64(v[0], v[1]));
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn

#include "kernels/simd/half_by_element.h"
