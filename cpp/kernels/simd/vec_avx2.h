// SPDX-License-Identifier: MIT
// Vectors of eight floats for AVX2 with FMA and F16C. The contract is in vec_scalar.h.
//
// Register budget of the product micro-kernel: 6 x 2 accumulators + 2 operands + 1 broadcast = 15
// of 16. It does 12 FMA (6 cycles on two ports) for 8 loads (4 cycles).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/simd/bytes_avx2.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

using Real = float;
constexpr DType kRealType = DType::kFloat32;

constexpr int kLanes = 8;
constexpr int kMicroRows = 6;
constexpr int kMicroVecs = 2;
constexpr int kTileVecs = 4;
constexpr int kDotRows = 2;
constexpr int kDecodeRows = 8;

using Vec = __m256;
using Mask = __m256;

CPUATTN_INLINE Vec zero() { return _mm256_setzero_ps(); }
CPUATTN_INLINE Vec broadcast(float x) { return _mm256_set1_ps(x); }
CPUATTN_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
CPUATTN_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
CPUATTN_INLINE Vec load_first(const float* p, int n) {
  return _mm256_maskload_ps(p, first_lanes(n));
}
CPUATTN_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
CPUATTN_INLINE void store_first(float* p, int n, Vec v) {
  _mm256_maskstore_ps(p, first_lanes(n), v);
}

using Half = __m128i;
CPUATTN_INLINE Half load_half(const char* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
CPUATTN_INLINE Half load_half_first(const char* p, int n) {
  uint16_t t[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    t[i] = 0;
    if (i < n) __builtin_memcpy(t + i, p + 2 * i, 2);
  }
  return load_half(reinterpret_cast<const char*>(t));
}
CPUATTN_INLINE void store_half(char* p, Half h) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), h);
}
CPUATTN_INLINE Vec widen_float16(Half h) { return _mm256_cvtph_ps(h); }
CPUATTN_INLINE Half narrow_float16(Vec v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
CPUATTN_INLINE Vec widen_bfloat16(Half h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
CPUATTN_INLINE Half narrow_bfloat16(Vec v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
}

CPUATTN_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
CPUATTN_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
CPUATTN_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
CPUATTN_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
CPUATTN_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
CPUATTN_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
CPUATTN_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
CPUATTN_INLINE Vec sign_or(Vec a, Vec b) {
  return _mm256_or_ps(a, _mm256_and_ps(b, _mm256_set1_ps(-0.0f)));
}

CPUATTN_INLINE Mask equal(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
CPUATTN_INLINE Mask less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
CPUATTN_INLINE Mask mask_from_bits(uint32_t bits) {
  const __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i picked = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane_bit);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(picked, lane_bit));
}
CPUATTN_INLINE Vec select(Mask m, Vec a, Vec b) { return _mm256_blendv_ps(b, a, m); }
CPUATTN_INLINE bool any(Mask m) { return _mm256_movemask_ps(m) != 0; }

// The magic-number form of vec_scalar.h: the clamp at -127 makes -inf come out as exactly +0.
constexpr float kExponentMagic = 12583039.0f;
CPUATTN_INLINE Vec split_exp2(Vec x, Vec& n) {
  const Vec magic = _mm256_set1_ps(kExponentMagic);
  const Vec clamped = _mm256_max_ps(_mm256_set1_ps(-127.0f), x);  // NaN: second operand, kept
  n = _mm256_add_ps(clamped, magic);
  return _mm256_sub_ps(clamped, _mm256_sub_ps(n, magic));
}
CPUATTN_INLINE Vec scale_exp2(Vec p, Vec n) {
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}

CPUATTN_INLINE float reduce_add(Vec v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
CPUATTN_INLINE float reduce_max(Vec v) {
  const Mask number = _mm256_cmp_ps(v, v, _CMP_ORD_Q);
  if (!any(number)) return _mm256_cvtss_f32(v);
  v = select(number, v, broadcast(-__builtin_inff()));
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
CPUATTN_INLINE void store_sums4(float* p, Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const Vec cd = add(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  const Vec abcd = add(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}

// 4 x 4 blocks inside each 128-bit lane.
CPUATTN_INLINE void transpose_quads(Vec (&v)[4]) {
  const Vec low01 = _mm256_unpacklo_ps(v[0], v[1]);
  const Vec high01 = _mm256_unpackhi_ps(v[0], v[1]);
  const Vec low23 = _mm256_unpacklo_ps(v[2], v[3]);
  const Vec high23 = _mm256_unpackhi_ps(v[2], v[3]);
  v[0] = _mm256_shuffle_ps(low01, low23, 0x44);
  v[1] = _mm256_shuffle_ps(low01, low23, 0xee);
  v[2] = _mm256_shuffle_ps(high01, high23, 0x44);
  v[3] = _mm256_shuffle_ps(high01, high23, 0xee);
}

// Rows i and i + 4 are put into the two 128-bit lanes while loading.
CPUATTN_INLINE void load_square(const char* const* rows, int64_t column, Vec (&v)[kLanes]) {
  for (int q = 0; q < 2; ++q) {
    const auto quarter = [&](int row) CPUATTN_LAMBDA {
      return _mm_loadu_ps(reinterpret_cast<const float*>(rows[row]) + column + 4 * q);
    };
    Vec part[4];
    for (int i = 0; i < 4; ++i) {
      part[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(quarter(i)), quarter(i + 4), 1);
    }
    transpose_quads(part);
    for (int i = 0; i < 4; ++i) v[4 * q + i] = part[i];
  }
}
CPUATTN_INLINE void store_square(const Vec (&v)[kLanes], char* const* rows, int64_t column) {
  for (int q = 0; q < 2; ++q) {
    Vec part[4];
    for (int i = 0; i < 4; ++i) part[i] = v[4 * q + i];
    transpose_quads(part);
    for (int i = 0; i < 4; ++i) {
      const auto at = [&](int row) CPUATTN_LAMBDA {
        return reinterpret_cast<float*>(rows[row]) + column + 4 * q;
      };
      _mm_storeu_ps(at(i), _mm256_castps256_ps128(part[i]));
      _mm_storeu_ps(at(i + 4), _mm256_extractf128_ps(part[i], 1));
    }
  }
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
