// SPDX-License-Identifier: MIT
// Vectors of four floats for WebAssembly's simd128. The contract is in vec_scalar.h.
//
// There is no FMA: products are rounded, then added, as in vec_scalar.h. Register budget of the
// product micro-kernel where the engine has 16: 4 x 2 accumulators + 2 operands + 1 broadcast + 1
// product = 12.
#pragma once

#include <wasm_simd128.h>

#include <cstddef>
#include <cstdint>

#include "kernels/simd/bytes_simd128.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

using Real = float;
constexpr DType kRealType = DType::kFloat32;

constexpr int kLanes = 4;
constexpr int kMicroRows = 4;
constexpr int kMicroVecs = 2;
constexpr int kTileVecs = 8;
constexpr int kDotRows = 4;
constexpr int kDecodeRows = 4;

using Vec = v128_t;
using Mask = v128_t;

CPUATTN_INLINE Vec zero() { return wasm_f32x4_const_splat(0.0f); }
CPUATTN_INLINE Vec broadcast(float x) { return wasm_f32x4_splat(x); }
CPUATTN_INLINE Vec load(const float* p) { return wasm_v128_load(p); }
CPUATTN_INLINE Vec load_first(const float* p, int n) {
  float t[kLanes] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int i = 0; i < n; ++i) __builtin_memcpy(t + i, p + i, sizeof t[i]);
  return wasm_v128_load(t);
}
CPUATTN_INLINE void store(float* p, Vec v) { wasm_v128_store(p, v); }
CPUATTN_INLINE void store_first(float* p, int n, Vec v) {
  float t[kLanes];
  wasm_v128_store(t, v);
  for (int i = 0; i < n; ++i) __builtin_memcpy(p + i, t + i, sizeof t[i]);
}

CPUATTN_INLINE Vec add(Vec a, Vec b) { return wasm_f32x4_add(a, b); }
CPUATTN_INLINE Vec sub(Vec a, Vec b) { return wasm_f32x4_sub(a, b); }
CPUATTN_INLINE Vec mul(Vec a, Vec b) { return wasm_f32x4_mul(a, b); }
CPUATTN_INLINE Vec div(Vec a, Vec b) { return wasm_f32x4_div(a, b); }
CPUATTN_INLINE Vec fma(Vec a, Vec b, Vec c) { return add(mul(a, b), c); }
CPUATTN_INLINE Vec select(Mask m, Vec a, Vec b) { return wasm_v128_bitselect(a, b, m); }
// pmax(b, a) is b < a ? a : b.
CPUATTN_INLINE Vec max(Vec a, Vec b) { return wasm_f32x4_pmax(b, a); }
CPUATTN_INLINE Vec abs(Vec a) { return wasm_f32x4_abs(a); }
CPUATTN_INLINE Vec sign_or(Vec a, Vec b) {
  return wasm_v128_or(a, wasm_v128_and(b, wasm_f32x4_const_splat(-0.0f)));
}

CPUATTN_INLINE Mask equal(Vec a, Vec b) { return wasm_f32x4_eq(a, b); }
CPUATTN_INLINE Mask less(Vec a, Vec b) { return wasm_f32x4_lt(a, b); }
CPUATTN_INLINE Mask mask_from_bits(uint32_t bits) {
  const v128_t lane_bit = wasm_i32x4_const(1, 2, 4, 8);
  return wasm_i32x4_eq(wasm_v128_and(wasm_u32x4_splat(bits), lane_bit), lane_bit);
}
CPUATTN_INLINE bool any(Mask m) { return wasm_v128_any_true(m); }

// The magic-number form of vec_scalar.h: the clamp at -127 makes -inf come out as exactly +0.
constexpr float kExponentMagic = 12583039.0f;
CPUATTN_INLINE Vec split_exp2(Vec x, Vec& n) {
  const Vec magic = broadcast(kExponentMagic);
  const Vec clamped = max(broadcast(-127.0f), x);  // keeps NaN: max returns its second
  n = add(clamped, magic);
  return sub(clamped, sub(n, magic));
}
CPUATTN_INLINE Vec scale_exp2(Vec p, Vec n) { return mul(p, wasm_i32x4_shl(n, 23)); }

CPUATTN_INLINE float reduce_add(Vec v) {
  const Vec pairs = add(v, wasm_i32x4_shuffle(v, v, 2, 3, 0, 1));
  return wasm_f32x4_extract_lane(pairs, 0) + wasm_f32x4_extract_lane(pairs, 1);
}
CPUATTN_INLINE float reduce_max(Vec v) {
  float t[kLanes];
  store(t, v);
  float r = t[0];
  for (int i = 1; i < kLanes; ++i) r = t[i] > r || r != r ? t[i] : r;
  return r;
}
CPUATTN_INLINE void transpose_quads(Vec (&v)[4]) {
  const Vec ab_low = wasm_i32x4_shuffle(v[0], v[1], 0, 4, 1, 5);
  const Vec ab_high = wasm_i32x4_shuffle(v[0], v[1], 2, 6, 3, 7);
  const Vec cd_low = wasm_i32x4_shuffle(v[2], v[3], 0, 4, 1, 5);
  const Vec cd_high = wasm_i32x4_shuffle(v[2], v[3], 2, 6, 3, 7);
  v[0] = wasm_i64x2_shuffle(ab_low, cd_low, 0, 2);
  v[1] = wasm_i64x2_shuffle(ab_low, cd_low, 1, 3);
  v[2] = wasm_i64x2_shuffle(ab_high, cd_high, 0, 2);
  v[3] = wasm_i64x2_shuffle(ab_high, cd_high, 1, 3);
}
CPUATTN_INLINE void store_sums4(float* p, Vec a, Vec b, Vec c, Vec d) {
  Vec v[4] = {a, b, c, d};
  transpose_quads(v);
  store(p, add(add(v[0], v[2]), add(v[1], v[3])));
}
CPUATTN_INLINE void load_square(const char* const* rows, int64_t column, Vec (&v)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) v[i] = load(reinterpret_cast<const float*>(rows[i]) + column);
  transpose_quads(v);
}
CPUATTN_INLINE void store_square(const Vec (&v)[kLanes], char* const* rows, int64_t column) {
  Vec part[4] = {v[0], v[1], v[2], v[3]};
  transpose_quads(part);
  for (int i = 0; i < kLanes; ++i) store(reinterpret_cast<float*>(rows[i]) + column, part[i]);
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn

#include "kernels/simd/half_by_element.h"
