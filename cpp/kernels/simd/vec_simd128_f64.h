// SPDX-License-Identifier: MIT
// Vectors of two doubles for WebAssembly's simd128. The contract is in vec_scalar.h, the register
// budget that of vec_simd128.h.
#pragma once

#include <wasm_simd128.h>

#include <cstddef>
#include <cstdint>

#include "kernels/simd/bytes_simd128.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

using Real = double;
constexpr DType kRealType = DType::kFloat64;

constexpr int kLanes = 2;
constexpr int kMicroRows = 4;
constexpr int kMicroVecs = 2;
constexpr int kTileVecs = 8;
constexpr int kDotRows = 4;
constexpr int kDecodeRows = 2;

using Vec = v128_t;
using Mask = v128_t;

CPUATTN_INLINE Vec zero() { return wasm_f64x2_const_splat(0.0); }
CPUATTN_INLINE Vec broadcast(double x) { return wasm_f64x2_splat(x); }
CPUATTN_INLINE Vec load(const double* p) { return wasm_v128_load(p); }
CPUATTN_INLINE Vec load_first(const double* p, int n) {
  return n == 0 ? zero() : n == 1 ? wasm_v128_load64_zero(p) : load(p);
}
CPUATTN_INLINE void store(double* p, Vec v) { wasm_v128_store(p, v); }
CPUATTN_INLINE void store_first(double* p, int n, Vec v) {
  if (n == 1) wasm_v128_store64_lane(p, v, 0);
  if (n == 2) store(p, v);
}

CPUATTN_INLINE Vec add(Vec a, Vec b) { return wasm_f64x2_add(a, b); }
CPUATTN_INLINE Vec sub(Vec a, Vec b) { return wasm_f64x2_sub(a, b); }
CPUATTN_INLINE Vec mul(Vec a, Vec b) { return wasm_f64x2_mul(a, b); }
CPUATTN_INLINE Vec div(Vec a, Vec b) { return wasm_f64x2_div(a, b); }
CPUATTN_INLINE Vec fma(Vec a, Vec b, Vec c) { return add(mul(a, b), c); }
CPUATTN_INLINE Vec select(Mask m, Vec a, Vec b) { return wasm_v128_bitselect(a, b, m); }
// pmax(b, a) is b < a ? a : b.
CPUATTN_INLINE Vec max(Vec a, Vec b) { return wasm_f64x2_pmax(b, a); }
CPUATTN_INLINE Vec abs(Vec a) { return wasm_f64x2_abs(a); }
CPUATTN_INLINE Vec sign_or(Vec a, Vec b) {
  return wasm_v128_or(a, wasm_v128_and(b, wasm_f64x2_const_splat(-0.0)));
}

CPUATTN_INLINE Mask equal(Vec a, Vec b) { return wasm_f64x2_eq(a, b); }
CPUATTN_INLINE Mask less(Vec a, Vec b) { return wasm_f64x2_lt(a, b); }
CPUATTN_INLINE Mask mask_from_bits(uint32_t bits) {
  const v128_t lane_bit = wasm_i64x2_const(1, 2);
  return wasm_i64x2_eq(wasm_v128_and(wasm_u64x2_splat(bits), lane_bit), lane_bit);
}
CPUATTN_INLINE bool any(Mask m) { return wasm_v128_any_true(m); }

// The magic-number form of vec_scalar.h: the clamp at -1023 makes -inf come out as exactly +0.
constexpr double kExponentMagic = 6755399441056767.0;  // 1.5 * 2^52 + 1023
CPUATTN_INLINE Vec split_exp2(Vec x, Vec& n) {
  const Vec magic = broadcast(kExponentMagic);
  const Vec clamped = max(broadcast(-1023.0), x);  // keeps NaN: max returns its second
  n = add(clamped, magic);
  return sub(clamped, sub(n, magic));
}
CPUATTN_INLINE Vec scale_exp2(Vec p, Vec n) { return mul(p, wasm_i64x2_shl(n, 52)); }

CPUATTN_INLINE double reduce_add(Vec v) {
  return wasm_f64x2_extract_lane(v, 0) + wasm_f64x2_extract_lane(v, 1);
}
CPUATTN_INLINE double reduce_max(Vec v) {
  const double a = wasm_f64x2_extract_lane(v, 0);
  const double b = wasm_f64x2_extract_lane(v, 1);
  return b > a || a != a ? b : a;
}
CPUATTN_INLINE void transpose_pair(Vec a, Vec b, Vec (&v)[kLanes]) {
  v[0] = wasm_i64x2_shuffle(a, b, 0, 2);
  v[1] = wasm_i64x2_shuffle(a, b, 1, 3);
}
CPUATTN_INLINE void store_sums4(double* p, Vec a, Vec b, Vec c, Vec d) {
  Vec v[2];
  transpose_pair(a, b, v);
  store(p, add(v[0], v[1]));
  transpose_pair(c, d, v);
  store(p + 2, add(v[0], v[1]));
}
CPUATTN_INLINE void load_square(const char* const* rows, int64_t column, Vec (&v)[kLanes]) {
  transpose_pair(load(reinterpret_cast<const double*>(rows[0]) + column),
                 load(reinterpret_cast<const double*>(rows[1]) + column), v);
}
CPUATTN_INLINE void store_square(const Vec (&v)[kLanes], char* const* rows, int64_t column) {
  Vec part[2];
  transpose_pair(v[0], v[1], part);
  for (int i = 0; i < kLanes; ++i) store(reinterpret_cast<double*>(rows[i]) + column, part[i]);
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn

#include "kernels/simd/half_by_element.h"
