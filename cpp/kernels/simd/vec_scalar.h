// SPDX-License-Identifier: MIT
// Portable vectors of four numbers, and the contract that every simd/vec_*.h fulfills.
//
// A vector header defines, inside its ISA's namespace, the types and the operations below; the
// kernels use nothing else. `Vec` holds kLanes numbers of type Real (float, or double in the
// headers of *_f64), `Mask` one truth value a lane.
//
//   Real, kRealType            float or double, and its DType
//   kLanes                     numbers in a Vec
//   kMicroRows, kMicroVecs     the product micro-kernel holds kMicroRows x kMicroVecs accumulators
//   kTileVecs                  vectors of query rows in a tile: kTileVecs * kLanes <= 64 rows
//   kDotRows                   query rows that share a key load when lanes hold head_dim
//   kDecodeRows                up to this many rows the decode kernel is the faster one
//
//   zero() broadcast(x) load(p) load_first(p, n) store(p, v) store_first(p, n, v)
//       unaligned; the *_first forms touch only the first n <= kLanes numbers, others read as 0
//   Half load_half(p) load_half_first(p, n) store_half(p, h)      kLanes 16-bit floats, as bits
//   widen_float16(h) widen_bfloat16(h) narrow_float16(v) narrow_bfloat16(v)
//       to and from Vec; narrowing rounds to nearest, ties to even
//   add sub mul fma(a, b, c) = a * b + c      one rounding where the machine has FMA
//   max(a, b)                  returns b where either is NaN
//   abs(a)  sign_or(a, b)      |a|;  a with the sign bit of b ORed in
//   div(a, b)
//   split_exp2(x, n)           f in [-1/2, 1/2] with x = n + f; n is opaque
//   scale_exp2(p, n)           p * 2^n; +0 for x = -inf, NaN for NaN
//   equal(a, b) less(a, b)     lane masks, false for NaN
//   mask_from_bits(bits)       lane i is true when bit i is set; bits above kLanes are ignored
//   select(m, a, b)            m ? a : b
//   any(m)
//   reduce_add(v) reduce_max(v)     (reduce_max ignores NaN unless all lanes are NaN)
//   store_sums4(p, a, b, c, d)      p[0..3] = the four lane sums
//   load_square(rows, c, v)    v[i] = column c + i of kLanes rows (addresses), lanes = rows
//   store_square(v, rows, c)   the inverse
//   nonzero_bits64(p)          bit i is set where byte p[i] is not 0, for 64 bytes
//   prefetch_l1(p)             into L1, never faults
//   prefetch_l2(p)             into L2, never faults
#pragma once

#include <cstddef>
#include <cstdint>

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

#ifndef CPUATTN_REAL
#define CPUATTN_REAL float
#endif
using Real = CPUATTN_REAL;
constexpr DType kRealType = sizeof(Real) == 4 ? DType::kFloat32 : DType::kFloat64;

constexpr int kLanes = 4;
constexpr int kMicroRows = 4;
constexpr int kMicroVecs = 2;
constexpr int kTileVecs = 8;
constexpr int kDotRows = 2;
constexpr int kDecodeRows = 4;

struct Vec {
  Real lane[kLanes];
};
struct Mask {
  bool lane[kLanes];
};

// Applies a function of the lane number to every lane.
template <class F>
CPUATTN_INLINE Vec lanes(F f) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = f(i);
  return r;
}

template <class T>
struct BitsOf {
  using Type = uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr T kLowestExponent = -127;
};
template <>
struct BitsOf<double> {
  using Type = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr double kLowestExponent = -1023;
};
using Bits = BitsOf<Real>::Type;
constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);

CPUATTN_INLINE Bits to_bits(Real x) {
  Bits u;
  __builtin_memcpy(&u, &x, sizeof u);
  return u;
}
CPUATTN_INLINE Real from_bits(Bits u) {
  Real x;
  __builtin_memcpy(&x, &u, sizeof x);
  return x;
}

CPUATTN_INLINE Vec broadcast(Real x) {
  return lanes([=](int) { return x; });
}
CPUATTN_INLINE Vec zero() { return broadcast(0); }
// A number at any address, since rows of a caller's arrays need not be aligned, that any type may
// have written.
struct __attribute__((packed, may_alias)) LooseReal {
  Real x;
};
CPUATTN_INLINE Real load_one(const Real* p) { return reinterpret_cast<const LooseReal*>(p)->x; }
CPUATTN_INLINE void store_one(Real* p, Real x) { reinterpret_cast<LooseReal*>(p)->x = x; }

CPUATTN_INLINE Vec load(const Real* p) {
  return lanes([=](int i) { return load_one(p + i); });
}
CPUATTN_INLINE Vec load_first(const Real* p, int n) {
  return lanes([=](int i) { return i < n ? load_one(p + i) : 0; });
}
CPUATTN_INLINE void store(Real* p, Vec v) {
  for (int i = 0; i < kLanes; ++i) store_one(p + i, v.lane[i]);
}
CPUATTN_INLINE void store_first(Real* p, int n, Vec v) {
  for (int i = 0; i < n; ++i) store_one(p + i, v.lane[i]);
}

CPUATTN_INLINE Vec add(Vec a, Vec b) {
  return lanes([&](int i) { return a.lane[i] + b.lane[i]; });
}
CPUATTN_INLINE Vec sub(Vec a, Vec b) {
  return lanes([&](int i) { return a.lane[i] - b.lane[i]; });
}
CPUATTN_INLINE Vec mul(Vec a, Vec b) {
  return lanes([&](int i) { return a.lane[i] * b.lane[i]; });
}
CPUATTN_INLINE Vec div(Vec a, Vec b) {
  return lanes([&](int i) { return a.lane[i] / b.lane[i]; });
}
CPUATTN_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return lanes([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
CPUATTN_INLINE Vec max(Vec a, Vec b) {
  return lanes([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
CPUATTN_INLINE Vec abs(Vec a) {
  return lanes([&](int i) { return from_bits(to_bits(a.lane[i]) & ~kSign); });
}
CPUATTN_INLINE Vec sign_or(Vec a, Vec b) {
  return lanes([&](int i) { return from_bits(to_bits(a.lane[i]) | (to_bits(b.lane[i]) & kSign)); });
}

CPUATTN_INLINE Mask equal(Vec a, Vec b) {
  Mask m;
  for (int i = 0; i < kLanes; ++i) m.lane[i] = a.lane[i] == b.lane[i];
  return m;
}
CPUATTN_INLINE Mask less(Vec a, Vec b) {
  Mask m;
  for (int i = 0; i < kLanes; ++i) m.lane[i] = a.lane[i] < b.lane[i];
  return m;
}
CPUATTN_INLINE Mask mask_from_bits(uint32_t bits) {
  Mask m;
  for (int i = 0; i < kLanes; ++i) m.lane[i] = ((bits >> i) & 1u) != 0;
  return m;
}
CPUATTN_INLINE Vec select(Mask m, Vec a, Vec b) {
  return lanes([&](int i) { return m.lane[i] ? a.lane[i] : b.lane[i]; });
}
CPUATTN_INLINE bool any(Mask m) { return m.lane[0] || m.lane[1] || m.lane[2] || m.lane[3]; }

// Adding 1.5 * 2^23 + 127 rounds x to an integer that sits, biased like an exponent, in the low
// mantissa bits; shifted into place it is 2^n. The clamp at -127 makes that exactly +0 for -inf.
// (For double: 2^52 and 1023.)
constexpr int kMantissa = BitsOf<Real>::kMantissa;
constexpr Real kLowestExponent = BitsOf<Real>::kLowestExponent;
constexpr Real kExponentMagic = static_cast<Real>(Bits{3} << (kMantissa - 1)) - kLowestExponent;
CPUATTN_INLINE Vec split_exp2(Vec x, Vec& n) {
  const Vec clamped = max(broadcast(kLowestExponent), x);  // keeps NaN: max returns its second
  n = add(clamped, broadcast(kExponentMagic));
  return sub(clamped, sub(n, broadcast(kExponentMagic)));
}
CPUATTN_INLINE Vec scale_exp2(Vec p, Vec n) {
  return lanes([&](int i) { return p.lane[i] * from_bits(to_bits(n.lane[i]) << kMantissa); });
}

CPUATTN_INLINE Real reduce_add(Vec v) { return (v.lane[0] + v.lane[2]) + (v.lane[1] + v.lane[3]); }
CPUATTN_INLINE Real reduce_max(Vec v) {
  Real r = v.lane[0];
  for (int i = 1; i < kLanes; ++i) r = v.lane[i] > r || r != r ? v.lane[i] : r;
  return r;
}
CPUATTN_INLINE void store_sums4(Real* p, Vec a, Vec b, Vec c, Vec d) {
  p[0] = reduce_add(a);
  p[1] = reduce_add(b);
  p[2] = reduce_add(c);
  p[3] = reduce_add(d);
}
CPUATTN_INLINE void load_square(const char* const* rows, int64_t column, Vec (&v)[kLanes]) {
  for (int row = 0; row < kLanes; ++row) {
    const Real* p = reinterpret_cast<const Real*>(rows[row]) + column;
    for (int i = 0; i < kLanes; ++i) v[i].lane[row] = load_one(p + i);
  }
}
CPUATTN_INLINE void store_square(const Vec (&v)[kLanes], char* const* rows, int64_t column) {
  for (int row = 0; row < kLanes; ++row) {
    Real* p = reinterpret_cast<Real*>(rows[row]) + column;
    for (int i = 0; i < kLanes; ++i) store_one(p + i, v[i].lane[row]);
  }
}
CPUATTN_INLINE uint64_t nonzero_bits64(const uint8_t* p) {
  uint64_t bits = 0;
  for (int i = 0; i < 64; ++i) bits |= static_cast<uint64_t>(p[i] != 0) << i;
  return bits;
}
CPUATTN_INLINE void prefetch_l1(const void* p) { __builtin_prefetch(p, 0, 3); }
CPUATTN_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn

#include "kernels/simd/half_by_element.h"
