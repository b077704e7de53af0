// SPDX-License-Identifier: MIT
// Error bounds of exp2 and tanh on one ISA, against double precision, and their special values.
#include "isa_test.h"
// clang-format off: vmath is built on the vectors that isa_test.h includes
#include "kernels/vmath.inl.h"
// clang-format on

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "check.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kDenormal = std::numeric_limits<float>::denorm_min();

// Payloads whose low bits would shift into the exponent are among them.
constexpr uint32_t kNanBits[] = {0x7fc00000u, 0xffc00000u, 0x7fc00001u, 0x7fc000ffu,
                                 0x7fc001ffu, 0x7fffffffu, 0xffffffffu};

// Bounds in units of the last place of the exact result, with and without FMA.
constexpr double kExp2Bound = 1.2;
constexpr double kTanhBound = 2.0;

using Function = Vec (*)(Vec);
Vec exp2_of(Vec x) { return exp2(x); }
Vec tanh_of(Vec x) { return tanh(x); }

float value_at(Function function, float x) {
  float result[kLanes];
  store(result, function(broadcast(x)));
  return result[0];
}

double error_in_ulp(float got, double exact) {
  if (static_cast<double>(got) == exact) return 0.0;
  const double ulp = std::ldexp(1.0, std::max(std::ilogb(exact), -126) - 23);
  const double error = std::abs(static_cast<double>(got) - exact) / ulp;
  return error == error ? error : std::numeric_limits<double>::infinity();
}

// The largest error seen so far, over vectors of arguments.
struct Sweep {
  Function function;
  double (*exact)(double);
  double worst = 0.0;
  float worst_at = 0.0f;
  int64_t count = 0;
  float pending[kLanes] = {};

  void take(float x) {
    pending[count++ % kLanes] = x;
    if (count % kLanes != 0) return;
    float got[kLanes];
    store(got, function(load(pending)));
    for (int i = 0; i < kLanes; ++i) {
      const double error = error_in_ulp(got[i], exact(static_cast<double>(pending[i])));
      if (error > worst) {
        worst = error;
        worst_at = pending[i];
      }
    }
  }
};

// Evenly spaced arguments and evenly spaced bit patterns of [low, 0], and of [0, high].
void sweep_range(Sweep& sweep, float low, float high) {
  constexpr int kSteps = 1 << 20;
  for (int i = 0; i <= kSteps; ++i) {
    sweep.take(low + (high - low) * (static_cast<float>(i) / static_cast<float>(kSteps)));
  }
  for (uint32_t bits = bits_of(-0.0f); bits <= bits_of(low); bits += 1499) {
    sweep.take(float_of(bits));
  }
  for (uint32_t bits = 0; high > 0.0f && bits <= bits_of(high); bits += 1499) {
    sweep.take(float_of(bits));
  }
}

void test_exp2_error(Report& report) {
  report.subject("exp2 over [-126, 0]");
  Sweep sweep{exp2_of, [](double x) { return std::exp2(x); }};
  sweep_range(sweep, -126.0f, 0.0f);
  std::printf("exp2: largest error %.3f ulp at %a, over %lld arguments\n", sweep.worst,
              static_cast<double>(sweep.worst_at), static_cast<long long>(sweep.count));
  report.expect(sweep.worst <= kExp2Bound, "error %.3f ulp at %a, allowed %g", sweep.worst,
                static_cast<double>(sweep.worst_at), kExp2Bound);
}

void test_exp2_special(Report& report) {
  report.subject("exp2 of integers is exact");
  for (int n = -126; n <= 0; ++n) {
    const float got = value_at(exp2_of, static_cast<float>(n));
    report.expect(got == std::ldexp(1.0f, n), "2^%d: got %a", n, static_cast<double>(got));
  }
  report.expect(bits_of(value_at(exp2_of, -0.0f)) == bits_of(1.0f), "2^-0");
  report.subject("exp2(-inf) is +0 and NaN stays NaN");
  report.expect(bits_of(value_at(exp2_of, -kInf)) == 0, "-inf: got %a",
                static_cast<double>(value_at(exp2_of, -kInf)));
  for (const uint32_t bits : kNanBits) {
    const float got = value_at(exp2_of, float_of(bits));
    report.expect(got != got, "NaN %#x: got %a", bits, static_cast<double>(got));
  }
  report.subject("exp2 below -126 is right within the smallest normal number");
  for (float x = -126.0f; x > -160.0f; x -= 1.0f / 64.0f) {
    const float got = value_at(exp2_of, x);
    const double error = std::abs(static_cast<double>(got) - std::exp2(static_cast<double>(x)));
    report.expect(!std::signbit(got) && error <= static_cast<double>(FLT_MIN), "x %a: got %a",
                  static_cast<double>(x), static_cast<double>(got));
  }
  for (const float x : {-200.0f, -1000.0f, -1001.0f, -1.0e4f, -1.0e9f, -1.0e30f, -FLT_MAX}) {
    report.expect(bits_of(value_at(exp2_of, x)) == 0, "x %g: got %a", static_cast<double>(x),
                  static_cast<double>(value_at(exp2_of, x)));
  }
  report.subject("exp2 of tiny arguments is 1");
  for (const float x : {-kDenormal, -FLT_MIN, -1.0e-20f, -1.0e-9f}) {
    report.expect(value_at(exp2_of, x) == 1.0f, "x %a", static_cast<double>(x));
  }
}

void test_tanh(Report& report) {
  report.subject("tanh over [-20, 20]");
  Sweep sweep{tanh_of, [](double x) { return std::tanh(x); }};
  sweep_range(sweep, -20.0f, 20.0f);
  std::printf("tanh: largest error %.3f ulp at %a, over %lld arguments\n", sweep.worst,
              static_cast<double>(sweep.worst_at), static_cast<long long>(sweep.count));
  report.expect(sweep.worst <= kTanhBound, "error %.3f ulp at %a, allowed %g", sweep.worst,
                static_cast<double>(sweep.worst_at), kTanhBound);
  report.subject("tanh is odd, bounded by 1, 1 at infinity, exact near 0, NaN for NaN");
  for (const float x : {0.0f, kDenormal, FLT_MIN, 1.0e-10f, 0.1f, 0.625f, 0.6249999f, 3.0f, 9.5f,
                        20.0f, 100.0f, 1.0e10f, FLT_MAX, kInf}) {
    const float plus = value_at(tanh_of, x);
    const float minus = value_at(tanh_of, -x);
    report.expect(minus == -plus, "tanh(+-%a): %a and %a", static_cast<double>(x),
                  static_cast<double>(plus), static_cast<double>(minus));
    report.expect(plus >= 0.0f && plus <= 1.0f, "tanh(%a): got %a", static_cast<double>(x),
                  static_cast<double>(plus));
    if (x <= 1.0e-10f) report.expect(plus == x, "tanh(%a)", static_cast<double>(x));
    if (x >= 20.0f) report.expect(plus == 1.0f, "tanh(%a)", static_cast<double>(x));
  }
  for (const uint32_t bits : kNanBits) {
    const float got = value_at(tanh_of, float_of(bits));
    report.expect(got != got, "NaN %#x: got %a", bits, static_cast<double>(got));
  }
}

}  // namespace
}  // namespace CPUATTN_ISA

int run_isa_tests() {
  Report report;
  CPUATTN_ISA::test_exp2_error(report);
  CPUATTN_ISA::test_exp2_special(report);
  CPUATTN_ISA::test_tanh(report);
  return report.finish();
}

}  // namespace cpuattn
