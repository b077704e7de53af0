// SPDX-License-Identifier: MIT
// The kinds of array elements, and one element at a time to and from a number.
//
// Functions of internal linkage: this header is compiled with every ISA's flags. Vectors of
// elements are converted by simd/vec_*.h, to the same bits.
#pragma once

#include <cstdint>

#define CPUATTN_INLINE inline __attribute__((always_inline))

namespace cpuattn {

enum class DType : uint8_t {
  kFloat32,
  kFloat64,
  kFloat16,
  kBFloat16,
  kBool,
  kInt32,
  kInt64,
  kOther
};

namespace {

CPUATTN_INLINE int64_t item_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kBool:
      return 1;
    default:
      return 4;
  }
}

// Whether this build has an element type (cmake/dtypes.cmake).
#ifndef CPUATTN_DTYPE_float16
#define CPUATTN_DTYPE_float16 1
#define CPUATTN_DTYPE_bfloat16 1
#define CPUATTN_DTYPE_float64 1
#endif
CPUATTN_INLINE constexpr bool is_built(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return CPUATTN_DTYPE_float16;
    case DType::kBFloat16:
      return CPUATTN_DTYPE_bfloat16;
    case DType::kFloat64:
      return CPUATTN_DTYPE_float64;
    default:
      return true;
  }
}

constexpr double kLargestBFloat16 = 0x1.fep127;

CPUATTN_INLINE bool is_float(DType dtype) { return dtype <= DType::kBFloat16; }
CPUATTN_INLINE bool is_half(DType dtype) {
  return dtype == DType::kFloat16 || dtype == DType::kBFloat16;
}

CPUATTN_INLINE uint32_t float_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
CPUATTN_INLINE float bits_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// Both narrowings round to nearest, ties to even, overflow to infinity and keep NaN (quiet).
CPUATTN_INLINE float float_of_bfloat16(uint16_t half) {
  return bits_float(static_cast<uint32_t>(half) << 16);
}
CPUATTN_INLINE uint16_t bfloat16_of_float(float x) {
  const uint32_t bits = float_bits(x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// A half's exponent and mantissa, put where a float's are, are a number 2^112 too small.
CPUATTN_INLINE float float_of_float16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  const float scaled = bits_float(magnitude) * 0x1p112f;
  if ((half & 0x7c00u) != 0x7c00u) return bits_float(sign | float_bits(scaled));
  const uint32_t quiet = (half & 0x3ffu) != 0 ? 0x400000u : 0;
  return bits_float(sign | 0x7f800000u | quiet | magnitude);
}
CPUATTN_INLINE uint16_t float16_of_float(float x) {
  const uint32_t sign = float_bits(x) >> 16 & 0x8000u;
  const uint32_t magnitude = float_bits(x) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {  // NaN
    return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  }
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (magnitude < 0x38800000u) {  // a subnormal half: the addition rounds at 2^-24
    const float shifted = bits_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_bits(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u;
  return static_cast<uint16_t>(sign | rounded >> 13);
}

// The element at any address as a number of the kernel's type, and back.
template <class Real>
CPUATTN_INLINE Real load_element(const char* p, DType dtype) {
  switch (dtype) {
    case DType::kFloat64: {
      double x;
      __builtin_memcpy(&x, p, sizeof x);
      return static_cast<Real>(x);
    }
    case DType::kFloat16:
    case DType::kBFloat16: {
      uint16_t half;
      __builtin_memcpy(&half, p, sizeof half);
      return static_cast<Real>(dtype == DType::kFloat16 ? float_of_float16(half)
                                                        : float_of_bfloat16(half));
    }
    default: {
      float x;
      __builtin_memcpy(&x, p, sizeof x);
      return static_cast<Real>(x);
    }
  }
}
template <class Real>
CPUATTN_INLINE void store_element(char* p, DType dtype, Real x) {
  switch (dtype) {
    case DType::kFloat64: {
      const double y = static_cast<double>(x);
      __builtin_memcpy(p, &y, sizeof y);
      return;
    }
    case DType::kFloat16:
    case DType::kBFloat16: {
      const float y = static_cast<float>(x);
      const uint16_t half = dtype == DType::kFloat16 ? float16_of_float(y) : bfloat16_of_float(y);
      __builtin_memcpy(p, &half, sizeof half);
      return;
    }
    default: {
      const float y = static_cast<float>(x);
      __builtin_memcpy(p, &y, sizeof y);
    }
  }
}

}  // namespace
}  // namespace cpuattn
