// SPDX-License-Identifier: MIT
// Vectors of four doubles for AVX2 with FMA. The contract is in vec_scalar.h, the register budget
// that of vec_avx2.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/simd/bytes_avx2.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

using Real = double;
constexpr DType kRealType = DType::kFloat64;

constexpr int kLanes = 4;
constexpr int kMicroRows = 6;
constexpr int kMicroVecs = 2;
constexpr int kTileVecs = 8;
constexpr int kDotRows = 2;
constexpr int kDecodeRows = 4;

using Vec = __m256d;
using Mask = __m256d;

CPUATTN_INLINE Vec zero() { return _mm256_setzero_pd(); }
CPUATTN_INLINE Vec broadcast(double x) { return _mm256_set1_pd(x); }
CPUATTN_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
CPUATTN_INLINE Vec load(const double* p) { return _mm256_loadu_pd(p); }
CPUATTN_INLINE Vec load_first(const double* p, int n) {
  return _mm256_maskload_pd(p, first_lanes(n));
}
CPUATTN_INLINE void store(double* p, Vec v) { _mm256_storeu_pd(p, v); }
CPUATTN_INLINE void store_first(double* p, int n, Vec v) {
  _mm256_maskstore_pd(p, first_lanes(n), v);
}

CPUATTN_INLINE Vec add(Vec a, Vec b) { return _mm256_add_pd(a, b); }
CPUATTN_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_pd(a, b); }
CPUATTN_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_pd(a, b); }
CPUATTN_INLINE Vec div(Vec a, Vec b) { return _mm256_div_pd(a, b); }
CPUATTN_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_pd(a, b, c); }
CPUATTN_INLINE Vec max(Vec a, Vec b) { return _mm256_max_pd(a, b); }
CPUATTN_INLINE Vec abs(Vec a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
CPUATTN_INLINE Vec sign_or(Vec a, Vec b) {
  return _mm256_or_pd(a, _mm256_and_pd(b, _mm256_set1_pd(-0.0)));
}

CPUATTN_INLINE Mask equal(Vec a, Vec b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
CPUATTN_INLINE Mask less(Vec a, Vec b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
CPUATTN_INLINE Mask mask_from_bits(uint32_t bits) {
  const __m256i lane_bit = _mm256_setr_epi64x(1, 2, 4, 8);
  const __m256i picked = _mm256_and_si256(_mm256_set1_epi64x(bits), lane_bit);
  return _mm256_castsi256_pd(_mm256_cmpeq_epi64(picked, lane_bit));
}
CPUATTN_INLINE Vec select(Mask m, Vec a, Vec b) { return _mm256_blendv_pd(b, a, m); }
CPUATTN_INLINE bool any(Mask m) { return _mm256_movemask_pd(m) != 0; }

// The magic-number form of vec_scalar.h: the clamp at -1023 makes -inf come out as exactly +0.
constexpr double kExponentMagic = 6755399441056767.0;  // 1.5 * 2^52 + 1023
CPUATTN_INLINE Vec split_exp2(Vec x, Vec& n) {
  const Vec magic = _mm256_set1_pd(kExponentMagic);
  const Vec clamped = _mm256_max_pd(_mm256_set1_pd(-1023.0), x);  // NaN: second operand, kept
  n = _mm256_add_pd(clamped, magic);
  return _mm256_sub_pd(clamped, _mm256_sub_pd(n, magic));
}
CPUATTN_INLINE Vec scale_exp2(Vec p, Vec n) {
  return _mm256_mul_pd(p, _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(n), 52)));
}

CPUATTN_INLINE double reduce_add(Vec v) {
  const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
}
CPUATTN_INLINE double reduce_max(Vec v) {
  const Mask number = _mm256_cmp_pd(v, v, _CMP_ORD_Q);
  if (!any(number)) return _mm256_cvtsd_f64(v);
  v = select(number, v, broadcast(-__builtin_inf()));
  const __m128d x = _mm_max_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_max_sd(x, _mm_unpackhi_pd(x, x)));
}
CPUATTN_INLINE void store_sums4(double* p, Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = _mm256_hadd_pd(a, b);
  const Vec cd = _mm256_hadd_pd(c, d);
  const Vec low = _mm256_permute2f128_pd(ab, cd, 0x20);
  const Vec high = _mm256_permute2f128_pd(ab, cd, 0x31);
  store(p, add(low, high));
}

// Rows i and i + 2 are put into the two 128-bit lanes while loading.
CPUATTN_INLINE void load_square(const char* const* rows, int64_t column, Vec (&v)[kLanes]) {
  for (int q = 0; q < 2; ++q) {
    const auto pair = [&](int row) CPUATTN_LAMBDA {
      return _mm_loadu_pd(reinterpret_cast<const double*>(rows[row]) + column + 2 * q);
    };
    const Vec even = _mm256_insertf128_pd(_mm256_castpd128_pd256(pair(0)), pair(2), 1);
    const Vec odd = _mm256_insertf128_pd(_mm256_castpd128_pd256(pair(1)), pair(3), 1);
    v[2 * q] = _mm256_unpacklo_pd(even, odd);
    v[2 * q + 1] = _mm256_unpackhi_pd(even, odd);
  }
}
CPUATTN_INLINE void store_square(const Vec (&v)[kLanes], char* const* rows, int64_t column) {
  for (int q = 0; q < 2; ++q) {
    const auto at = [&](int row) CPUATTN_LAMBDA {
      return reinterpret_cast<double*>(rows[row]) + column + 2 * q;
    };
    const Vec even = _mm256_unpacklo_pd(v[2 * q], v[2 * q + 1]);
    const Vec odd = _mm256_unpackhi_pd(v[2 * q], v[2 * q + 1]);
    _mm_storeu_pd(at(0), _mm256_castpd256_pd128(even));
    _mm_storeu_pd(at(1), _mm256_castpd256_pd128(odd));
    _mm_storeu_pd(at(2), _mm256_extractf128_pd(even, 1));
    _mm_storeu_pd(at(3), _mm256_extractf128_pd(odd, 1));
  }
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn

#include "kernels/simd/half_by_element.h"
