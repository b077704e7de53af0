// SPDX-License-Identifier: MIT
#include "core/combine.h"

#include <cmath>
#include <limits>

namespace cpuattn {

template <class Real>
void merge(const PartialState<Real>& into, const PartialState<Real>& other, int64_t rows,
           int64_t head_dim_v) {
  for (int64_t r = 0; r < rows; ++r) {
    const Real a = into.row_max[r];
    const Real b = other.row_max[r];
    // NaN maxima (NaN sinks) must survive; std::fmax would drop them.
    const Real top = a > b || a != a ? a : b;
    const Real base = top == -std::numeric_limits<Real>::infinity() ? 0.0f : top;
    const Real scale_a = std::exp2(a - base);
    const Real scale_b = std::exp2(b - base);
    into.row_max[r] = top;
    into.row_sum[r] = into.row_sum[r] * scale_a + other.row_sum[r] * scale_b;
    Real* out = into.output + r * head_dim_v;
    const Real* in = other.output + r * head_dim_v;
    for (int64_t c = 0; c < head_dim_v; ++c) out[c] = out[c] * scale_a + in[c] * scale_b;
  }
}

template void merge(const PartialState<float>&, const PartialState<float>&, int64_t, int64_t);
template void merge(const PartialState<double>&, const PartialState<double>&, int64_t, int64_t);

}  // namespace cpuattn
