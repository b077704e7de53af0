// SPDX-License-Identifier: MIT
// The scalar conversions of kernels/element.h: every 16-bit float, and every place where rounding
// to one changes.
#include "kernels/element.h"

#include <cfloat>
#include <initializer_list>
#include <limits>

#include "check.h"
#include "half_values.h"
#include "support.h"

namespace cpuattn {
namespace {

float widen(const HalfFormat& format, uint16_t half) {
  return format.dtype == DType::kFloat16 ? float_of_float16(half) : float_of_bfloat16(half);
}
uint16_t narrow(const HalfFormat& format, float x) {
  return format.dtype == DType::kFloat16 ? float16_of_float(x) : bfloat16_of_float(x);
}

void test_widen(Report& report, const HalfFormat& format) {
  report.subject(format.dtype == DType::kFloat16 ? "float16 to float32, all of them"
                                                 : "bfloat16 to float32, all of them");
  for (uint32_t half = 0; half <= 0xffff; ++half) {
    const auto bits = static_cast<uint16_t>(half);
    const float got = widen(format, bits);
    if (half_is_nan(format, bits)) {
      const uint32_t payload = half << (23 - format.mantissa_bits) & 0x3fffffu;
      report.expect(got != got && (bits_of(got) & 0x3fffffu) == payload, "NaN %#x: got %#x", half,
                    bits_of(got));
      continue;
    }
    const bool infinite = (half & 0x7fff) == format.infinity;
    const float magnitude = infinite ? std::numeric_limits<float>::infinity()
                                     : static_cast<float>(half_magnitude(format, bits));
    const float want = half > 0x7fff ? -magnitude : magnitude;
    report.expect(bits_of(got) == bits_of(want), "%#x: got %a, expected %a", half,
                  static_cast<double>(got), static_cast<double>(want));
    report.expect(narrow(format, got) == bits, "%#x and back: %#x", half, narrow(format, got));
  }
}

void test_narrow(Report& report, const HalfFormat& format) {
  report.subject(format.dtype == DType::kFloat16 ? "float32 to float16: to nearest, ties to even"
                                                 : "float32 to bfloat16: to nearest, ties to even");
  const auto check = [&](float x) {
    const uint16_t got = narrow(format, x);
    if (x != x) {
      const auto quiet = static_cast<uint16_t>(format.infinity | 1 << (format.mantissa_bits - 1));
      report.expect((got & quiet) == quiet && half_is_nan(format, got) &&
                        (got & 0x8000) == (bits_of(x) >> 16 & 0x8000),
                    "NaN %#x: got %#x", bits_of(x), got);
      return;
    }
    const uint16_t want = nearest_half(format, static_cast<double>(x));
    report.expect(got == want, "%a: got %#x, expected %#x", static_cast<double>(x), got, want);
  };
  for_half_boundaries(format, check);
  for_float_samples(1021, check);
}

// Where a reader would look first.
void test_known(Report& report) {
  report.subject("numbers known by heart");
  constexpr float inf = std::numeric_limits<float>::infinity();
  struct Pair {
    float x;
    uint16_t half;
  };
  for (const auto& [x, half] :
       {Pair{1.0f, 0x3c00}, Pair{-2.0f, 0xc000}, Pair{65504.0f, 0x7bff}, Pair{65519.996f, 0x7bff},
        Pair{65520.0f, 0x7c00}, Pair{-65520.0f, 0xfc00}, Pair{FLT_MAX, 0x7c00}, Pair{inf, 0x7c00},
        Pair{0x1p-14f, 0x0400}, Pair{0x1p-24f, 0x0001}, Pair{0x1p-25f, 0x0000},
        Pair{0x1.000002p-25f, 0x0001}, Pair{-0x1p-25f, 0x8000}, Pair{-0.0f, 0x8000},
        Pair{0.1f, 0x2e66}, Pair{1.0f + 0x1p-11f, 0x3c00}, Pair{1.0f + 3 * 0x1p-11f, 0x3c02}}) {
    report.expect(float16_of_float(x) == half, "float16 of %a: %#x", static_cast<double>(x),
                  float16_of_float(x));
  }
  for (const auto& [x, half] :
       {Pair{1.0f, 0x3f80}, Pair{-2.0f, 0xc000}, Pair{0x1.fep127f, 0x7f7f}, Pair{FLT_MAX, 0x7f80},
        Pair{0x1.fefffep127f, 0x7f7f}, Pair{0x1.ffp127f, 0x7f80}, Pair{-inf, 0xff80},
        Pair{0.1f, 0x3dcd}, Pair{1.0f + 0x1p-8f, 0x3f80}, Pair{1.0f + 3 * 0x1p-8f, 0x3f82},
        Pair{0x1p-133f, 0x0001}, Pair{-0x1p-134f, 0x8000}}) {
    report.expect(bfloat16_of_float(x) == half, "bfloat16 of %a: %#x", static_cast<double>(x),
                  bfloat16_of_float(x));
  }
}

template <class Real>
void check_element(Report& report, DType dtype, Real x, Real stored) {
  char bytes[17];
  std::memset(bytes, 0x5a, sizeof bytes);
  const auto size = static_cast<size_t>(item_size(dtype));
  char* const p = bytes + 3;  // any address
  store_element(p, dtype, x);
  report.expect(same_number(load_element<Real>(p, dtype), stored), "%s: %a becomes %a",
                name_of(dtype), static_cast<double>(x),
                static_cast<double>(load_element<Real>(p, dtype)));
  for (size_t i = 0; i < sizeof bytes; ++i) {
    report.expect((i >= 3 && i < 3 + size) || bytes[i] == 0x5a, "%s: byte %d", name_of(dtype),
                  static_cast<int>(i));
  }
}

void test_elements(Report& report) {
  report.subject("load_element and store_element at any address, by dtype");
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  for (const DType dtype : kFloatDtypes) {
    for (const double x : {0.0, -0.0, 1.0, -2.5, 0x1p-14, 60.0, inf, -inf, nan}) {
      check_element(report, dtype, x, x);
      check_element(report, dtype, static_cast<float>(x), static_cast<float>(x));
    }
  }
  const double third = 1.0 / 3.0;
  check_element(report, DType::kFloat64, third, third);
  check_element(report, DType::kFloat32, third, static_cast<double>(1.0f / 3.0f));
  check_element(report, DType::kFloat16, third, half_magnitude(kFloat16, 0x3555));
  check_element(report, DType::kBFloat16, third, half_magnitude(kBFloat16, 0x3eab));
  check_element(report, DType::kFloat64, 1.0f / 3.0f, 1.0f / 3.0f);
  check_element(report, DType::kFloat16, 1.0f / 3.0f,
                static_cast<float>(half_magnitude(kFloat16, 0x3555)));
  check_element(report, DType::kFloat32, 1.0e300, inf);
  check_element(report, DType::kFloat16, -1.0e5, -inf);
  check_element(report, DType::kBFloat16, 1.0e5, half_magnitude(kBFloat16, 0x47c3));
}

void test_dtypes(Report& report) {
  report.subject("what a DType is");
  struct Known {
    DType dtype;
    int64_t size;
    bool floating, half;
  };
  for (const auto& [dtype, size, floating, half] :
       {Known{DType::kFloat32, 4, true, false}, Known{DType::kFloat64, 8, true, false},
        Known{DType::kFloat16, 2, true, true}, Known{DType::kBFloat16, 2, true, true},
        Known{DType::kBool, 1, false, false}, Known{DType::kInt32, 4, false, false},
        Known{DType::kInt64, 8, false, false}}) {
    report.expect(item_size(dtype) == size && is_float(dtype) == floating && is_half(dtype) == half,
                  "%s", name_of(dtype));
  }
  report.expect(!is_float(DType::kOther) && !is_half(DType::kOther), "kOther");
}

}  // namespace
}  // namespace cpuattn

int main() {
  cpuattn::Report report;
  for (const cpuattn::HalfFormat& format : {cpuattn::kFloat16, cpuattn::kBFloat16}) {
    cpuattn::test_widen(report, format);
    cpuattn::test_narrow(report, format);
  }
  cpuattn::test_known(report);
  cpuattn::test_elements(report);
  cpuattn::test_dtypes(report);
  return report.finish();
}
