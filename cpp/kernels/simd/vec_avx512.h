// SPDX-License-Identifier: MIT
// Vectors of sixteen floats for AVX-512 F, BW, DQ and VL. The contract is in vec_scalar.h.
//
// Register budget of the product micro-kernel: 6 x 4 accumulators + 4 operands + 1 broadcast = 29
// of 32. It does 24 FMA (12 cycles on two ports) for 10 loads, so loads never limit it.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/simd/bytes_avx512.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

using Real = float;
constexpr DType kRealType = DType::kFloat32;

constexpr int kLanes = 16;
constexpr int kMicroRows = 6;
constexpr int kMicroVecs = 4;
constexpr int kTileVecs = 4;
constexpr int kDotRows = 4;
constexpr int kDecodeRows = 16;

using Vec = __m512;
using Mask = __mmask16;

CPUATTN_INLINE Vec zero() { return _mm512_setzero_ps(); }
CPUATTN_INLINE Vec broadcast(float x) { return _mm512_set1_ps(x); }
CPUATTN_INLINE Mask first_lanes(int n) { return static_cast<Mask>((1u << n) - 1u); }
CPUATTN_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
CPUATTN_INLINE Vec load_first(const float* p, int n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
CPUATTN_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
CPUATTN_INLINE void store_first(float* p, int n, Vec v) {
  _mm512_mask_storeu_ps(p, first_lanes(n), v);
}

using Half = __m256i;
CPUATTN_INLINE Half load_half(const char* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
CPUATTN_INLINE Half load_half_first(const char* p, int n) {
  return _mm256_maskz_loadu_epi16(first_lanes(n), p);
}
CPUATTN_INLINE void store_half(char* p, Half h) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h);
}
CPUATTN_INLINE Vec widen_float16(Half h) { return _mm512_cvtph_ps(h); }
CPUATTN_INLINE Half narrow_float16(Vec v) {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
CPUATTN_INLINE Vec widen_bfloat16(Half h) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
CPUATTN_INLINE Half narrow_bfloat16(Vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, quiet), 16));
}

CPUATTN_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
CPUATTN_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
CPUATTN_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
CPUATTN_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
CPUATTN_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
CPUATTN_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
CPUATTN_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
CPUATTN_INLINE Vec sign_or(Vec a, Vec b) {
  return _mm512_or_ps(a, _mm512_and_ps(b, _mm512_set1_ps(-0.0f)));
}

CPUATTN_INLINE Mask equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
CPUATTN_INLINE Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
CPUATTN_INLINE Mask mask_from_bits(uint32_t bits) { return static_cast<Mask>(bits); }
CPUATTN_INLINE Vec select(Mask m, Vec a, Vec b) { return _mm512_mask_blend_ps(m, b, a); }
CPUATTN_INLINE bool any(Mask m) { return m != 0; }

// scalef takes 2^n for any n, gradual underflow included, so nothing needs a clamp; reduce gives 0,
// not NaN, for -inf.
CPUATTN_INLINE Vec split_exp2(Vec x, Vec& n) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  n = _mm512_roundscale_ps(x, kNearest);
  return _mm512_reduce_ps(x, kNearest);
}
CPUATTN_INLINE Vec scale_exp2(Vec p, Vec n) { return _mm512_scalef_ps(p, n); }

CPUATTN_INLINE float reduce_add(Vec v) { return _mm512_reduce_add_ps(v); }
CPUATTN_INLINE float reduce_max(Vec v) {
  const Mask number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
  return number ? _mm512_mask_reduce_max_ps(number, v) : _mm512_cvtss_f32(v);
}
CPUATTN_INLINE void store_sums4(float* p, Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const Vec cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const Vec abcd = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

// 4 x 4 blocks inside each 128-bit lane.
CPUATTN_INLINE void transpose_quads(Vec (&v)[4]) {
  const Vec low01 = _mm512_unpacklo_ps(v[0], v[1]);
  const Vec high01 = _mm512_unpackhi_ps(v[0], v[1]);
  const Vec low23 = _mm512_unpacklo_ps(v[2], v[3]);
  const Vec high23 = _mm512_unpackhi_ps(v[2], v[3]);
  v[0] = _mm512_shuffle_ps(low01, low23, 0x44);
  v[1] = _mm512_shuffle_ps(low01, low23, 0xee);
  v[2] = _mm512_shuffle_ps(high01, high23, 0x44);
  v[3] = _mm512_shuffle_ps(high01, high23, 0xee);
}

// Masked 128-bit broadcasts put row 4 * lane + i into 128-bit lane `lane` while loading, which
// costs no shuffle: half of the shuffles of a transpose in registers, and no spills.
CPUATTN_INLINE void load_square(const char* const* rows, int64_t column, Vec (&v)[kLanes]) {
  const auto quarter = [&](int row, int64_t c) CPUATTN_LAMBDA {
    return _mm_loadu_ps(reinterpret_cast<const float*>(rows[row]) + c);
  };
  for (int q = 0; q < 4; ++q) {
    const int64_t c = column + 4 * q;
    Vec part[4];
    for (int i = 0; i < 4; ++i) {
      part[i] = _mm512_castps128_ps512(quarter(i, c));
      part[i] = _mm512_mask_broadcast_f32x4(part[i], 0x00f0, quarter(i + 4, c));
      part[i] = _mm512_mask_broadcast_f32x4(part[i], 0x0f00, quarter(i + 8, c));
      part[i] = _mm512_mask_broadcast_f32x4(part[i], 0xf000, quarter(i + 12, c));
    }
    transpose_quads(part);
    for (int i = 0; i < 4; ++i) v[4 * q + i] = part[i];
  }
}
CPUATTN_INLINE void store_square(const Vec (&v)[kLanes], char* const* rows, int64_t column) {
  for (int q = 0; q < 4; ++q) {
    Vec part[4];
    for (int i = 0; i < 4; ++i) part[i] = v[4 * q + i];
    transpose_quads(part);
    for (int i = 0; i < 4; ++i) {
      const auto at = [&](int row) CPUATTN_LAMBDA {
        return reinterpret_cast<float*>(rows[row]) + column + 4 * q;
      };
      _mm_storeu_ps(at(i), _mm512_castps512_ps128(part[i]));
      _mm_storeu_ps(at(i + 4), _mm512_extractf32x4_ps(part[i], 1));
      _mm_storeu_ps(at(i + 8), _mm512_extractf32x4_ps(part[i], 2));
      _mm_storeu_ps(at(i + 12), _mm512_extractf32x4_ps(part[i], 3));
    }
  }
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
