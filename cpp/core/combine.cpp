// SPDX-License-Identifier: MIT
#include "core/combine.h"

#include <cmath>
#include <limits>

namespace cpuattn {

PartialState state_at(float* floats, int64_t rows) {
  return {floats, floats + rows, floats + 2 * rows};
}

void merge(const PartialState& into, const PartialState& other, int64_t rows, int64_t head_dim_v) {
  for (int64_t r = 0; r < rows; ++r) {
    const float a = into.row_max[r];
    const float b = other.row_max[r];
    // NaN maxima (NaN sinks) must survive; std::fmax would drop them.
    const float top = a > b || a != a ? a : b;
    const float base = top == -std::numeric_limits<float>::infinity() ? 0.0f : top;
    const float scale_a = std::exp2(a - base);
    const float scale_b = std::exp2(b - base);
    into.row_max[r] = top;
    into.row_sum[r] = into.row_sum[r] * scale_a + other.row_sum[r] * scale_b;
    float* out = into.output + r * head_dim_v;
    const float* in = other.output + r * head_dim_v;
    for (int64_t c = 0; c < head_dim_v; ++c) out[c] = out[c] * scale_a + in[c] * scale_b;
  }
}

}  // namespace cpuattn
