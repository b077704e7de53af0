// SPDX-License-Identifier: MIT
// The 16-bit floats by arithmetic on their fields, and the float32 numbers that try their rounding.
// Independent of kernels/element.h, which is tested by this.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "check.h"
#include "kernels/element.h"

namespace cpuattn {
namespace {

struct HalfFormat {
  DType dtype;
  int mantissa_bits;
  int lowest_exponent;  // of normal numbers
  uint16_t infinity;
};
constexpr HalfFormat kFloat16{DType::kFloat16, 10, -14, 0x7c00};
constexpr HalfFormat kBFloat16{DType::kBFloat16, 7, -126, 0x7f80};

// The magnitude of a half; for infinity, the number where overflow would leave off.
inline double half_magnitude(const HalfFormat& format, uint16_t half) {
  const int magnitude = half & 0x7fff;
  const int exponent = magnitude >> format.mantissa_bits;
  const int mantissa = magnitude & ((1 << format.mantissa_bits) - 1);
  const int one = 1 << format.mantissa_bits;
  const int unit = format.lowest_exponent - format.mantissa_bits;
  return exponent == 0 ? std::ldexp(mantissa, unit)
                       : std::ldexp(one + mantissa, unit + exponent - 1);
}

inline bool half_is_nan(const HalfFormat& format, uint16_t half) {
  return (half & 0x7fff) > format.infinity;
}

// The half nearest to x, which is not NaN; of two the even one.
inline uint16_t nearest_half(const HalfFormat& format, double x) {
  const double magnitude = std::abs(x);
  const auto sign = static_cast<uint16_t>(std::signbit(x) ? 0x8000 : 0);
  int below = 0;
  int above = format.infinity;
  while (above - below > 1) {
    const int middle = (below + above) / 2;
    (half_magnitude(format, static_cast<uint16_t>(middle)) <= magnitude ? below : above) = middle;
  }
  const double to_below = magnitude - half_magnitude(format, static_cast<uint16_t>(below));
  const double to_above = half_magnitude(format, static_cast<uint16_t>(above)) - magnitude;
  const bool up = to_above < to_below || (to_above == to_below && below % 2 != 0);
  return static_cast<uint16_t>(sign | (up ? above : below));
}

// How far rounding to the dtype may move x; 0 where it is not one of 16 bits.
inline double half_a_unit(DType dtype, double x) {
  if (!is_half(dtype)) return 0.0;
  const HalfFormat& format = dtype == DType::kFloat16 ? kFloat16 : kBFloat16;
  const int exponent = x == 0.0 ? format.lowest_exponent : std::ilogb(x);
  return std::ldexp(1.0, std::max(exponent, format.lowest_exponent) - format.mantissa_bits - 1);
}

// Calls body(float) with every float32 where rounding to the format changes, and its neighbors.
template <class Body>
void for_half_boundaries(const HalfFormat& format, Body body) {
  for (uint16_t half = 0; half < format.infinity; ++half) {
    const double middle =
        (half_magnitude(format, half) + half_magnitude(format, static_cast<uint16_t>(half + 1))) /
        2;
    const uint32_t bits = bits_of(static_cast<float>(middle));
    for (const uint32_t near : {bits - 1, bits, bits + 1}) {
      body(number_of(near));
      body(-number_of(near));
    }
  }
}

// Calls body(float) with a bit pattern in `step`, of all of them: NaN and subnormals included.
template <class Body>
void for_float_samples(uint32_t step, Body body) {
  uint64_t bits = 0;
  for (; bits <= UINT32_MAX; bits += step) body(number_of(static_cast<uint32_t>(bits)));
  for (const uint32_t last : {0x7f800000u, 0xff800000u, 0x7fffffffu, 0xffffffffu, 0x7f800001u}) {
    body(number_of(last));
  }
}

}  // namespace
}  // namespace cpuattn
