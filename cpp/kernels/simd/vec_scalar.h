// SPDX-License-Identifier: MIT
// Portable vectors of four floats, and the contract that every simd/vec_*.h fulfills.
//
// A vector header defines, inside its ISA's namespace, two types and the operations below; the
// kernels use nothing else. `Vec` holds kLanes floats, `Mask` one truth value a lane.
//
//   kLanes                     floats in a Vec
//   kMicroRows, kMicroVecs     the product micro-kernel holds kMicroRows x kMicroVecs accumulators
//   kTileVecs                  vectors of query rows in a tile: kTileVecs * kLanes <= 64 rows
//   kDotRows                   query rows that share a key load when lanes hold head_dim
//   kDecodeRows                up to this many rows the decode kernel is the faster one
//
//   zero() broadcast(x) load(p) load_first(p, n) store(p, v) store_first(p, n, v)
//       unaligned; the *_first forms touch only the first n <= kLanes floats, others read as 0
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
//   prefetch(p)                into L1, never faults
#pragma once

#include <cstddef>
#include <cstdint>

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

constexpr int kLanes = 4;
constexpr int kMicroRows = 4;
constexpr int kMicroVecs = 2;
constexpr int kTileVecs = 8;
constexpr int kDotRows = 2;
constexpr int kDecodeRows = 4;

struct Vec {
  float lane[kLanes];
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

CPUATTN_INLINE uint32_t to_bits(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}
CPUATTN_INLINE float from_bits(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

CPUATTN_INLINE Vec broadcast(float x) {
  return lanes([=](int) { return x; });
}
CPUATTN_INLINE Vec zero() { return broadcast(0.0f); }
// A float at any address, since rows of a caller's arrays need not be aligned, that any type may
// have written.
struct __attribute__((packed, may_alias)) LooseFloat {
  float x;
};
CPUATTN_INLINE float load_one(const float* p) { return reinterpret_cast<const LooseFloat*>(p)->x; }
CPUATTN_INLINE void store_one(float* p, float x) { reinterpret_cast<LooseFloat*>(p)->x = x; }

CPUATTN_INLINE Vec load(const float* p) {
  return lanes([=](int i) { return load_one(p + i); });
}
CPUATTN_INLINE Vec load_first(const float* p, int n) {
  return lanes([=](int i) { return i < n ? load_one(p + i) : 0.0f; });
}
CPUATTN_INLINE void store(float* p, Vec v) {
  for (int i = 0; i < kLanes; ++i) store_one(p + i, v.lane[i]);
}
CPUATTN_INLINE void store_first(float* p, int n, Vec v) {
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
  return lanes([&](int i) { return from_bits(to_bits(a.lane[i]) & 0x7fffffffu); });
}
CPUATTN_INLINE Vec sign_or(Vec a, Vec b) {
  return lanes(
      [&](int i) { return from_bits(to_bits(a.lane[i]) | (to_bits(b.lane[i]) & 0x80000000u)); });
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
constexpr float kExponentMagic = 12583039.0f;
CPUATTN_INLINE Vec split_exp2(Vec x, Vec& n) {
  const Vec clamped = max(broadcast(-127.0f), x);  // keeps NaN: max returns its second operand
  n = add(clamped, broadcast(kExponentMagic));
  return sub(clamped, sub(n, broadcast(kExponentMagic)));
}
CPUATTN_INLINE Vec scale_exp2(Vec p, Vec n) {
  return lanes([&](int i) { return p.lane[i] * from_bits(to_bits(n.lane[i]) << 23); });
}

CPUATTN_INLINE float reduce_add(Vec v) { return (v.lane[0] + v.lane[2]) + (v.lane[1] + v.lane[3]); }
CPUATTN_INLINE float reduce_max(Vec v) {
  float r = v.lane[0];
  for (int i = 1; i < kLanes; ++i) r = v.lane[i] > r || r != r ? v.lane[i] : r;
  return r;
}
CPUATTN_INLINE void store_sums4(float* p, Vec a, Vec b, Vec c, Vec d) {
  p[0] = reduce_add(a);
  p[1] = reduce_add(b);
  p[2] = reduce_add(c);
  p[3] = reduce_add(d);
}
CPUATTN_INLINE void load_square(const char* const* rows, int64_t column, Vec (&v)[kLanes]) {
  for (int row = 0; row < kLanes; ++row) {
    const float* p = reinterpret_cast<const float*>(rows[row]) + column;
    for (int i = 0; i < kLanes; ++i) v[i].lane[row] = load_one(p + i);
  }
}
CPUATTN_INLINE void store_square(const Vec (&v)[kLanes], char* const* rows, int64_t column) {
  for (int row = 0; row < kLanes; ++row) {
    float* p = reinterpret_cast<float*>(rows[row]) + column;
    for (int i = 0; i < kLanes; ++i) store_one(p + i, v[i].lane[row]);
  }
}
CPUATTN_INLINE uint64_t nonzero_bits64(const uint8_t* p) {
  uint64_t bits = 0;
  for (int i = 0; i < 64; ++i) bits |= static_cast<uint64_t>(p[i] != 0) << i;
  return bits;
}
CPUATTN_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
