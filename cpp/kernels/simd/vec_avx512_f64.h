// SPDX-License-Identifier: MIT
// Vectors of eight doubles for AVX-512 F, BW, DQ and VL. The contract is in vec_scalar.h, the
// register budget that of vec_avx512.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/simd/bytes_avx512.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

using Real = double;
constexpr DType kRealType = DType::kFloat64;

constexpr int kLanes = 8;
constexpr int kMicroRows = 6;
constexpr int kMicroVecs = 4;
constexpr int kTileVecs = 4;
constexpr int kDotRows = 4;
constexpr int kDecodeRows = 8;

using Vec = __m512d;
using Mask = __mmask8;

CPUATTN_INLINE Vec zero() { return _mm512_setzero_pd(); }
CPUATTN_INLINE Vec broadcast(double x) { return _mm512_set1_pd(x); }
CPUATTN_INLINE Mask first_lanes(int n) { return static_cast<Mask>((1u << n) - 1u); }
CPUATTN_INLINE Vec load(const double* p) { return _mm512_loadu_pd(p); }
CPUATTN_INLINE Vec load_first(const double* p, int n) {
  return _mm512_maskz_loadu_pd(first_lanes(n), p);
}
CPUATTN_INLINE void store(double* p, Vec v) { _mm512_storeu_pd(p, v); }
CPUATTN_INLINE void store_first(double* p, int n, Vec v) {
  _mm512_mask_storeu_pd(p, first_lanes(n), v);
}

CPUATTN_INLINE Vec add(Vec a, Vec b) { return _mm512_add_pd(a, b); }
CPUATTN_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_pd(a, b); }
CPUATTN_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_pd(a, b); }
CPUATTN_INLINE Vec div(Vec a, Vec b) { return _mm512_div_pd(a, b); }
CPUATTN_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_pd(a, b, c); }
CPUATTN_INLINE Vec max(Vec a, Vec b) { return _mm512_max_pd(a, b); }
CPUATTN_INLINE Vec abs(Vec a) { return _mm512_abs_pd(a); }
CPUATTN_INLINE Vec sign_or(Vec a, Vec b) {
  return _mm512_or_pd(a, _mm512_and_pd(b, _mm512_set1_pd(-0.0)));
}

CPUATTN_INLINE Mask equal(Vec a, Vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
CPUATTN_INLINE Mask less(Vec a, Vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
CPUATTN_INLINE Mask mask_from_bits(uint32_t bits) { return static_cast<Mask>(bits); }
CPUATTN_INLINE Vec select(Mask m, Vec a, Vec b) { return _mm512_mask_blend_pd(m, b, a); }
CPUATTN_INLINE bool any(Mask m) { return m != 0; }

// scalef takes 2^n for any n, gradual underflow included, so nothing needs a clamp; reduce gives 0,
// not NaN, for -inf.
CPUATTN_INLINE Vec split_exp2(Vec x, Vec& n) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  n = _mm512_roundscale_pd(x, kNearest);
  return _mm512_reduce_pd(x, kNearest);
}
CPUATTN_INLINE Vec scale_exp2(Vec p, Vec n) { return _mm512_scalef_pd(p, n); }

CPUATTN_INLINE double reduce_add(Vec v) { return _mm512_reduce_add_pd(v); }
CPUATTN_INLINE double reduce_max(Vec v) {
  const Mask number = _mm512_cmp_pd_mask(v, v, _CMP_ORD_Q);
  return number ? _mm512_mask_reduce_max_pd(number, v) : _mm512_cvtsd_f64(v);
}
CPUATTN_INLINE void store_sums4(double* p, Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = add(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
  const Vec cd = add(_mm512_unpacklo_pd(c, d), _mm512_unpackhi_pd(c, d));
  const __m256d ab4 = _mm256_add_pd(_mm512_castpd512_pd256(ab), _mm512_extractf64x4_pd(ab, 1));
  const __m256d cd4 = _mm256_add_pd(_mm512_castpd512_pd256(cd), _mm512_extractf64x4_pd(cd, 1));
  const __m256d low = _mm256_permute2f128_pd(ab4, cd4, 0x20);
  const __m256d high = _mm256_permute2f128_pd(ab4, cd4, 0x31);
  _mm256_storeu_pd(p, _mm256_add_pd(low, high));
}

// Rows i, i + 2, i + 4, i + 6 into the four 128-bit lanes while loading, then 2 x 2 blocks.
CPUATTN_INLINE void load_square(const char* const* rows, int64_t column, Vec (&v)[kLanes]) {
  const auto pair = [&](int row, int64_t c) CPUATTN_LAMBDA {
    return _mm_loadu_pd(reinterpret_cast<const double*>(rows[row]) + c);
  };
  for (int64_t q = 0; q < kLanes; q += 2) {
    Vec part[2];
    for (int i = 0; i < 2; ++i) {
      part[i] = _mm512_castpd128_pd512(pair(i, column + q));
      part[i] = _mm512_mask_broadcast_f64x2(part[i], 0x0c, pair(i + 2, column + q));
      part[i] = _mm512_mask_broadcast_f64x2(part[i], 0x30, pair(i + 4, column + q));
      part[i] = _mm512_mask_broadcast_f64x2(part[i], 0xc0, pair(i + 6, column + q));
    }
    v[q] = _mm512_unpacklo_pd(part[0], part[1]);
    v[q + 1] = _mm512_unpackhi_pd(part[0], part[1]);
  }
}
CPUATTN_INLINE void store_square(const Vec (&v)[kLanes], char* const* rows, int64_t column) {
  for (int64_t q = 0; q < kLanes; q += 2) {
    const Vec part[2] = {_mm512_unpacklo_pd(v[q], v[q + 1]), _mm512_unpackhi_pd(v[q], v[q + 1])};
    for (int i = 0; i < 2; ++i) {
      const auto at = [&](int row) CPUATTN_LAMBDA {
        return reinterpret_cast<double*>(rows[row]) + column + q;
      };
      _mm_storeu_pd(at(i), _mm512_castpd512_pd128(part[i]));
      _mm_storeu_pd(at(i + 2), _mm512_extractf64x2_pd(part[i], 1));
      _mm_storeu_pd(at(i + 4), _mm512_extractf64x2_pd(part[i], 2));
      _mm_storeu_pd(at(i + 6), _mm512_extractf64x2_pd(part[i], 3));
    }
  }
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn

#include "kernels/simd/half_by_element.h"
