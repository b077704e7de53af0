// SPDX-License-Identifier: MIT
// Error bounds of exp2 and tanh on one ISA, against a wider type, and their special values.
#include "isa_test.h"
// clang-format off: vmath is built on the vectors that isa_test.h includes
#include "kernels/vmath.inl.h"
// clang-format on

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "check.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

// What results are compared with.
using Exact = std::conditional_t<kDouble, long double, double>;

// Payloads whose low bits would shift into the exponent are among them.
constexpr RealBits kNanBits[] = {
    kQuietNan,         kQuietNan | kSignBit, kQuietNan | 1, kQuietNan | 0xff, kQuietNan | 0x1ff,
    kQuietNan | 0x7ff, kQuietNan | 0xfff,    ~kSignBit,     ~RealBits{0}};

// Bounds in units of the last place of the exact result. Measured over 2e8 arguments: exp2 0.946
// (double: 1.038) with FMA, 1.216 (1.313) without; tanh 1.904 (1.871) and 2.042 (1.936). Where
// long double is double, the C library's own rounding counts as well.
constexpr bool kIsExact = std::numeric_limits<Exact>::digits > RealLimits::digits;
constexpr double kReferenceError = kIsExact ? 0.0 : 1.0;
const double kExp2Bound = (kFused ? 1.05 : kDouble ? 1.35 : 1.25) + kReferenceError;
const double kTanhBound = 2.1 + kReferenceError;

using Function = Vec (*)(Vec);
Vec exp2_of(Vec x) { return exp2(x); }
Vec tanh_of(Vec x) { return tanh(x); }

Real value_at(Function function, Real x) {
  Real result[kLanes];
  store(result, function(broadcast(x)));
  return result[0];
}

double error_in_ulp(Real got, Exact exact) {
  if (static_cast<Exact>(got) == exact) return 0.0;
  const int exponent = std::max(std::ilogb(exact), kLowestNormalExponent);
  const Exact ulp = std::ldexp(Exact{1}, exponent - (RealLimits::digits - 1));
  const auto error = static_cast<double>(std::abs(static_cast<Exact>(got) - exact) / ulp);
  return error == error ? error : std::numeric_limits<double>::infinity();
}

// The largest error seen so far, over vectors of arguments.
struct Sweep {
  Function function;
  Exact (*exact)(Exact);
  double worst = 0.0;
  Real worst_at = 0;
  int64_t count = 0;
  Real pending[kLanes] = {};

  void take(Real x) {
    pending[count++ % kLanes] = x;
    if (count % kLanes != 0) return;
    Real got[kLanes];
    store(got, function(load(pending)));
    for (int i = 0; i < kLanes; ++i) {
      const double error = error_in_ulp(got[i], exact(static_cast<Exact>(pending[i])));
      if (error > worst) {
        worst = error;
        worst_at = pending[i];
      }
    }
  }
};

// Evenly spaced arguments and evenly spaced bit patterns of [low, 0], and of [0, high].
void sweep_range(Sweep& sweep, Real low, Real high) {
  constexpr int kSteps = 1000003;  // a prime: fractions of every length
  for (int i = 0; i <= kSteps; ++i) {
    sweep.take(low + (high - low) * (static_cast<Real>(i) / static_cast<Real>(kSteps)));
  }
  for (const Real end : {low, high}) {
    const RealBits first = bits_of(std::copysign(Real{0}, end));
    const RealBits step = (bits_of(end) - first) / 750000 | 1;
    if (end == 0) continue;
    for (RealBits bits = first; bits <= bits_of(end); bits += step) sweep.take(number_of(bits));
  }
}

void expect_within(Report& report, const char* name, const Sweep& sweep, double bound) {
  std::printf("%s: largest error %.3f ulp at %a, over %lld arguments\n", name, sweep.worst,
              static_cast<double>(sweep.worst_at), static_cast<long long>(sweep.count));
  report.expect(sweep.worst <= bound, "error %.3f ulp at %a, allowed %g", sweep.worst,
                static_cast<double>(sweep.worst_at), bound);
}

void test_exp2_error(Report& report) {
  constexpr auto lowest = static_cast<Real>(kLowestNormalExponent);
  report.subject("exp2 down to the smallest normal number");
  Sweep sweep{exp2_of, [](Exact x) { return std::exp2(x); }};
  sweep_range(sweep, lowest, 0);
  sweep_range(sweep, -2, 0);
  expect_within(report, "exp2", sweep, kExp2Bound);
}

void test_exp2_short(Report& report) {
  report.subject(
      "exp2_short: exact where exp2 is, otherwise as good as the weights of bfloat16 need");
  const auto short_of = [](Vec x) { return exp2_short(x); };
  double worst = 0.0;
  for (int step = 0; step <= 100 * 4096; ++step) {
    const Real x = -static_cast<Real>(step) / 4096;
    const auto exact = static_cast<double>(std::exp2(static_cast<Exact>(x)));
    const auto got = static_cast<double>(value_at(short_of, x));
    worst = std::max(worst, std::abs(got / exact - 1.0));
    if (step % 4096 == 0) report.expect(got == exact, "2^-%d", step / 4096);
  }
  std::printf("exp2_short: largest relative error %.3g\n", worst);
  report.expect(worst <= 3.0e-6, "error %g", worst);
  report.expect(bits_of(value_at(short_of, -kInf)) == 0, "-inf");
  report.expect(value_at(short_of, kNan) != value_at(short_of, kNan), "NaN");
}

void test_exp2_special(Report& report) {
  report.subject("exp2 of integers is exact");
  for (int n = kLowestNormalExponent; n <= 0; ++n) {
    const Real got = value_at(exp2_of, static_cast<Real>(n));
    report.expect(got == std::ldexp(Real{1}, n), "2^%d: got %a", n, static_cast<double>(got));
  }
  report.expect(bits_of(value_at(exp2_of, -Real{0})) == bits_of(Real{1}), "2^-0");
  report.subject("exp2(-inf) is +0 and NaN stays NaN");
  report.expect(bits_of(value_at(exp2_of, -kInf)) == 0, "-inf: got %a",
                static_cast<double>(value_at(exp2_of, -kInf)));
  for (const RealBits bits : kNanBits) {
    const Real got = value_at(exp2_of, number_of(bits));
    report.expect(got != got, "NaN %#llx: got %a", static_cast<unsigned long long>(bits),
                  static_cast<double>(got));
  }
  report.subject("exp2 below the normal numbers is right within the smallest of them");
  const auto lowest = static_cast<Real>(kLowestNormalExponent);
  for (Real x = lowest; x > lowest - 70; x -= Real{1} / 64) {
    const Real got = value_at(exp2_of, x);
    const Exact error = std::abs(static_cast<Exact>(got) - std::exp2(static_cast<Exact>(x)));
    report.expect(!std::signbit(got) && error <= static_cast<Exact>(kSmallestNormal),
                  "x %a: got %a", static_cast<double>(x), static_cast<double>(got));
  }
  // Nothing is left here, whatever is clamped on the way.
  for (const float x : {1.125f, 1.5f, 2.0f, 4.625f, 4.6875f, 6.625f, 6.6875f, 100.0f, 0x1p30f}) {
    const Real got = value_at(exp2_of, x * (lowest - RealLimits::digits));
    report.expect(bits_of(got) == 0, "x %a: got %a",
                  static_cast<double>(x * (lowest - RealLimits::digits)), static_cast<double>(got));
  }
  report.expect(bits_of(value_at(exp2_of, -kLargest)) == 0, "the lowest number");
  report.subject("exp2 of tiny arguments is 1");
  for (const Real x : {-kDenormal, -kSmallestNormal, -Real{0x1p-66}, -RealLimits::epsilon() / 8}) {
    report.expect(value_at(exp2_of, x) == 1, "x %a", static_cast<double>(x));
  }
}

void test_tanh(Report& report) {
  report.subject("tanh over [-20, 20]");
  Sweep sweep{tanh_of, [](Exact x) { return std::tanh(x); }};
  sweep_range(sweep, -20, 20);
  sweep_range(sweep, -1, 1);
  expect_within(report, "tanh", sweep, kTanhBound);
  report.subject("tanh is odd, bounded by 1, 1 at infinity, exact near 0, NaN for NaN");
  for (const Real x : {Real{0}, kDenormal, kSmallestNormal, Real{0x1p-33}, Real{0.125}, Real{0.625},
                       std::nextafter(Real{0.625}, Real{0}), Real{3}, Real{9.5}, Real{20},
                       Real{100}, Real{0x1p33}, kLargest, kInf}) {
    const Real plus = value_at(tanh_of, x);
    const Real minus = value_at(tanh_of, -x);
    report.expect(minus == -plus, "tanh(+-%a): %a and %a", static_cast<double>(x),
                  static_cast<double>(plus), static_cast<double>(minus));
    report.expect(plus >= 0 && plus <= 1, "tanh(%a): got %a", static_cast<double>(x),
                  static_cast<double>(plus));
    if (x <= Real{0x1p-33}) report.expect(plus == x, "tanh(%a)", static_cast<double>(x));
    if (x >= 20) report.expect(plus == 1, "tanh(%a)", static_cast<double>(x));
  }
  for (const RealBits bits : kNanBits) {
    const Real got = value_at(tanh_of, number_of(bits));
    report.expect(got != got, "NaN %#llx: got %a", static_cast<unsigned long long>(bits),
                  static_cast<double>(got));
  }
}

}  // namespace
}  // namespace CPUATTN_ISA

int run_isa_tests() {
  Report report;
  CPUATTN_ISA::test_exp2_error(report);
  CPUATTN_ISA::test_exp2_special(report);
  CPUATTN_ISA::test_exp2_short(report);
  CPUATTN_ISA::test_tanh(report);
  return report.finish();
}

}  // namespace cpuattn
