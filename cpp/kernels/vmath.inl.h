// SPDX-License-Identifier: MIT
// exp2 and tanh on vectors, built on the operations of simd/vec_*.h.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

constexpr float kLog2e = 1.44269504088896340736f;
constexpr float kNegInf = -__builtin_inff();

// 2^x for x <= 0 up to rounding: 2^x = 2^n * p(f), |f| <= 1/2, p minimax of degree 6 with p(0) = 1
// exactly, so that a row with a single key returns its value exactly. Relative error below 1.2
// ulp (cpp/tests/vmath_test.cpp). -inf gives exactly +0 and NaN stays NaN, with no comparison.
CPUATTN_INLINE Vec exp2(Vec x) {
  Vec n;
  const Vec f = split_exp2(x, n);
  Vec p = fma(broadcast(0.000153533619f), f, broadcast(0.00133988744f));
  p = fma(p, f, broadcast(0.00961843736f));
  p = fma(p, f, broadcast(0.0555033247f));
  p = fma(p, f, broadcast(0.240226479f));
  p = fma(p, f, broadcast(0.693147203f));
  p = fma(p, f, broadcast(1.0f));
  return scale_exp2(p, n);
}

// tanh(x): an odd polynomial where cancellation would hurt (|x| < 0.625, Cephes coefficients),
// 1 - 2 / (exp(2|x|) + 1) elsewhere, written with exp(-2|x|) <= 1 so that nothing overflows.
CPUATTN_INLINE Vec tanh(Vec x) {
  const Vec magnitude = abs(x);
  const Vec e = exp2(mul(magnitude, broadcast(-2.0f * kLog2e)));
  const Vec far = sign_or(div(sub(broadcast(1.0f), e), add(broadcast(1.0f), e)), x);
  const Vec z = mul(x, x);
  Vec p = fma(broadcast(-5.70498872745e-3f), z, broadcast(2.06390887954e-2f));
  p = fma(p, z, broadcast(-5.37397155531e-2f));
  p = fma(p, z, broadcast(1.33314422036e-1f));
  p = fma(p, z, broadcast(-3.33332819422e-1f));
  const Vec near = fma(mul(p, z), x, x);
  return select(less(magnitude, broadcast(0.625f)), near, far);
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
