// SPDX-License-Identifier: MIT
#include "core/finish.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/work_items.h"

namespace cpuattn {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kLn2 = 0.6931471805599453;

// Calls body(key) for every key, or until the call is cancelled.
template <class Body>
void for_keys(const WorkItem& item, Body body) {
  constexpr int64_t kKeys = 1 << 16;  // between two questions
  for (int64_t begin = 0; begin < item.kv_len && !is_cancelled(item); begin += kKeys) {
    const int64_t end = std::min(begin + kKeys, item.kv_len);
    for (int64_t key = begin; key < end; ++key) body(key);
  }
}

void fill_out(const WorkItem& item, int64_t row, double x) {
  char* out = plane_row(item.out, item, row);
  for (int64_t c = 0; c < item.head_dim_v; ++c) {
    store_element(out + c * item.out.col_step, item.out.dtype, x);
  }
}

void fill_weights(const WorkItem& item, int64_t row, double x) {
  char* weights = plane_row(item.weights, item, row);
  for_keys(item, [&](int64_t key) {
    store_element(weights + key * item.weights.col_step, item.weights.dtype, x);
  });
}

// Whether the row sees the key, its bias aside.
bool sees(const WorkItem& item, int64_t row, int64_t key) {
  const int64_t token = row / item.group;
  const int64_t past = token + item.offset - key;
  if (key >= item.kv_length) return false;
  if (item.band_left != kOpen && past > item.band_left) return false;
  if (item.band_right != kOpen && -past > item.band_right) return false;
  if (item.mask.data != nullptr && plane_row(item.mask, item, row)[key * item.mask.col_step] == 0) {
    return false;
  }
  return item.q_segments.data == nullptr ||
         integer_at(item.q_segments, token) == integer_at(item.kv_segments, key);
}

// The keys that other libraries attend to in a row that sees none: hidden scores are a large
// negative number there. All keys, unless a bias of -inf, which is less, emptied the row.
bool stands_in(const WorkItem& item, int64_t row, int64_t key) {
  return item.bias.data == nullptr || !sees(item, row, key);
}

int64_t count_stand_ins(const WorkItem& item, int64_t row) {
  int64_t count = 0;
  for_keys(item, [&](int64_t key) { count += stands_in(item, row, key) ? 1 : 0; });
  return count;
}

// 0 without keys, NaN where they are all visible.
template <class Real>
void mean_of_values(const WorkItem& item, int64_t row, Real* mean) {
  const KvPlane& value = item.value;
  const auto count = static_cast<double>(count_stand_ins(item, row));
  for (int64_t c = 0; c < item.head_dim_v; ++c) {
    double sum = 0.0;
    for_keys(item, [&](int64_t key) {
      const char* p = value.data + key * value.row_step + c * value.col_step;
      if (stands_in(item, row, key)) sum += load_element<double>(p, value.dtype);
    });
    mean[c] = static_cast<Real>(item.kv_len > 0 ? sum / count : 0.0);
  }
}

// A row that saw no key, where the kernel wrote zeros: what the caller asked for instead.
template <class Real>
void fill_masked_row(const AttentionProblem& p, const WorkItem& item, int64_t row,
                     const Real* mean) {
  const bool is_mean = p.fully_masked == FullyMasked::kMean;
  if (is_mean) {
    char* out = plane_row(item.out, item, row);
    for (int64_t c = 0; c < item.head_dim_v; ++c) {
      store_element(out + c * item.out.col_step, item.out.dtype, mean[c]);
    }
  } else {
    fill_out(item, row, kNan);
  }
  if (item.weights.data == nullptr) return;
  const int64_t count = is_mean ? count_stand_ins(item, row) : 0;
  fill_weights(item, row, count > 0 ? 1.0 / static_cast<double>(count) : kNan);
  if (count == 0 || count == item.kv_len) return;
  char* weights = plane_row(item.weights, item, row);
  for_keys(item, [&](int64_t key) {
    if (stands_in(item, row, key)) return;
    store_element(weights + key * item.weights.col_step, item.weights.dtype, 0.0);
  });
}

double natural_lse(double row_max, double row_sum) {
  return row_sum == 0.0 ? -kInfinity : kLn2 * (row_max + std::log2(row_sum));
}

}  // namespace

void clear_weights(const AttentionProblem& p, const WorkItem& item) {
  if (!p.weights) return;
  for (int64_t row = item.row_begin; row < item.row_end; ++row) {
    fill_weights(item, row, 0.0);
  }
}

template <class Real>
void finish_rows(const AttentionProblem& p, const WorkItem& item, const PartialState<Real>& state,
                 Real* mean) {
  bool have_mean = false;
  for (int64_t row = item.row_begin; row < item.row_end; ++row) {
    const int64_t r = row - item.row_begin;
    const bool padding = row / item.group >= item.q_length;
    if (item.lse.data != nullptr) {
      const double lse = padding ? -kInfinity
                                 : natural_lse(static_cast<double>(state.row_max[r]),
                                               static_cast<double>(state.row_sum[r]));
      store_element(plane_row(item.lse, item, row), item.lse.dtype, lse);
    }
    if (padding || state.row_sum[r] != 0 || p.fully_masked == FullyMasked::kZero) continue;
    if (p.fully_masked == FullyMasked::kMean && !have_mean) {
      mean_of_values(item, row, mean);
      have_mean = item.bias.data == nullptr;
    }
    fill_masked_row(p, item, row, mean);
  }
}

template void finish_rows(const AttentionProblem&, const WorkItem&, const PartialState<float>&,
                          float*);
template void finish_rows(const AttentionProblem&, const WorkItem&, const PartialState<double>&,
                          double*);

}  // namespace cpuattn
