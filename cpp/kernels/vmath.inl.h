// SPDX-License-Identifier: MIT
// exp2 and tanh on vectors, built on the operations of simd/vec_*.h.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

constexpr bool kDouble = sizeof(Real) == sizeof(double);
constexpr Real kLog2e = static_cast<Real>(1.44269504088896340736);
constexpr Real kNegInf = -static_cast<Real>(__builtin_inf());
// A weight of 0 because the row does not see the key.
constexpr Real kHidden = static_cast<Real>(-0.0);
constexpr Real kLowest = kDouble ? static_cast<Real>(-__DBL_MAX__) : Real{-__FLT_MAX__};

// c[0] x^(n-1) + ... + c[n-1].
template <int kCount>
CPUATTN_INLINE Vec polynomial(Vec x, const double (&c)[kCount]) {
  Vec p = broadcast(static_cast<Real>(c[0]));
  CPUATTN_UNROLL
  for (int i = 1; i < kCount; ++i) p = fma(p, x, broadcast(static_cast<Real>(c[i])));
  return p;
}

// 2^x for x <= 0 up to rounding: 2^x = 2^n * p(f), |f| <= 1/2, p minimax with p(0) = 1 exactly, so
// that a row with a single key returns its value exactly. Degree 6 for float (relative error below
// 1.2 ulp, cpp/tests/vmath_test.cpp), 11 for double. -inf gives exactly +0 and NaN stays NaN, with
// no comparison.
CPUATTN_INLINE Vec exp2(Vec x) {
  Vec n;
  const Vec f = split_exp2(x, n);
  if constexpr (kDouble) {
    return scale_exp2(
        polynomial(f, {4.078071929588336665e-10, 7.07257041281442351e-9, 1.018064765923413889e-7,
                       1.321544267532982214e-6, 1.52527273851938682e-5, 1.540353044157213033e-4,
                       1.333355815343996475e-3, 9.61812910760700238e-3, 5.550410866479039455e-2,
                       2.402265069591009801e-1, 6.931471805599456968e-1, 1.0}),
        n);
  } else {
    return scale_exp2(polynomial(f, {0.000153533619, 0.00133988744, 0.00961843736, 0.0555033247,
                                     0.240226479, 0.693147203, 1.0}),
                      n);
  }
}

// The same of degree 4, relative error 2.8e-6: for weights that are rounded to bfloat16, of which
// it changes three in ten thousand, and those by one ulp.
CPUATTN_INLINE Vec exp2_short(Vec x) {
  Vec n;
  const Vec f = split_exp2(x, n);
  return scale_exp2(polynomial(f, {0.00958285309, 0.0559064246, 0.240240986, 0.693124193, 1.0}), n);
}

// tanh(x): Cephes' odd forms where cancellation would hurt (|x| < 0.625), elsewhere
// 1 - 2 / (exp(2|x|) + 1), written with exp(-2|x|) <= 1 so that nothing overflows.
CPUATTN_INLINE Vec tanh(Vec x) {
  const Vec magnitude = abs(x);
  const Vec e = exp2(mul(magnitude, broadcast(-2 * kLog2e)));
  const Vec far = sign_or(div(sub(broadcast(1), e), add(broadcast(1), e)), x);
  const Vec z = mul(x, x);
  Vec p;
  if constexpr (kDouble) {
    p = div(polynomial(z, {-9.64399179425052238628e-1, -9.92877231001918586564e1,
                           -1.61468768441708447952e3}),
            polynomial(z, {1.0, 1.12811678491632931402e2, 2.23548839060100448583e3,
                           4.84406305325125486048e3}));
  } else {
    p = polynomial(z, {-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1,
                       -3.33332819422e-1});
  }
  const Vec near = fma(mul(p, z), x, x);
  return select(less(magnitude, broadcast(static_cast<Real>(0.625))), near, far);
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
