// SPDX-License-Identifier: MIT
// The state of a set of rows after some keys, and how two states become one.
#pragma once

#include <cstdint>

namespace cpuattn {

// For each row: the maximum score in log2 units, the sum of 2^(score - maximum), and the value
// rows weighted by the same powers. A row that saw no key has maximum -inf, sum 0, output 0.
// Real is what the kernel computes with: float, or double for float64.
template <class Real>
struct PartialState {
  Real* row_max;
  Real* row_sum;
  Real* output;  // (rows, head_dim_v)

  // A state laid over 2 * rows + rows * head_dim_v numbers.
  PartialState(char* base, int64_t rows)
      : row_max(reinterpret_cast<Real*>(base)), row_sum(row_max + rows), output(row_sum + rows) {}
};

// `into` takes in `other`, whose keys come after. Merging by log-sum-exp is exact algebra; the
// order is fixed (chunk order), so the bits do not depend on which thread computed what.
template <class Real>
void merge(const PartialState<Real>& into, const PartialState<Real>& other, int64_t rows,
           int64_t head_dim_v);

}  // namespace cpuattn
