// SPDX-License-Identifier: MIT
#include "core/finish.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "core/work_items.h"

namespace cpuattn {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kLn2 = 0.6931471805599453;

void fill(char* row, int64_t step, int64_t count, float x) {
  for (int64_t i = 0; i < count; ++i) std::memcpy(row + i * step, &x, sizeof x);
}

void mean_of_values(const WorkItem& item, float* mean) {
  for (int64_t c = 0; c < item.head_dim_v; ++c) {
    double sum = 0.0;
    for (int64_t key = 0; key < item.kv_len; ++key) {
      float v;
      std::memcpy(&v, item.value.data + key * item.value.row_step + c * item.value.col_step,
                  sizeof v);
      sum += static_cast<double>(v);
    }
    mean[c] = item.kv_len > 0 ? static_cast<float>(sum / static_cast<double>(item.kv_len)) : 0.0f;
  }
}

// A row that saw no key, where the kernel wrote zeros: what the caller asked for instead.
void fill_masked_row(const AttentionProblem& p, const WorkItem& item, int64_t row,
                     const float* mean) {
  char* out = plane_row(item.out, item, row);
  const bool is_mean = p.fully_masked == FullyMasked::kMean;
  for (int64_t c = 0; c < item.head_dim_v; ++c) {
    const float x = is_mean ? mean[c] : kNan;
    std::memcpy(out + c * item.out.col_step, &x, sizeof x);
  }
  if (item.weights.data == nullptr) return;
  const float weight = is_mean ? 1.0f / static_cast<float>(item.kv_len) : kNan;
  fill(plane_row(item.weights, item, row), item.weights.col_step, item.kv_len, weight);
}

float natural_lse(float row_max, float row_sum) {
  if (row_sum == 0.0f) return -kInfinity;
  return static_cast<float>(
      kLn2 * (static_cast<double>(row_max) + std::log2(static_cast<double>(row_sum))));
}

}  // namespace

void clear_weights(const AttentionProblem& p, const WorkItem& item) {
  if (!p.weights) return;
  for (int64_t row = item.row_begin; row < item.row_end; ++row) {
    fill(plane_row(item.weights, item, row), item.weights.col_step, item.kv_len, 0.0f);
  }
}

void finish_rows(const AttentionProblem& p, const WorkItem& item, const PartialState& state,
                 float* mean) {
  bool have_mean = false;
  for (int64_t row = item.row_begin; row < item.row_end; ++row) {
    const int64_t r = row - item.row_begin;
    const bool padding = row / item.group >= item.q_length;
    if (item.lse.data != nullptr) {
      const float lse = padding ? -kInfinity : natural_lse(state.row_max[r], state.row_sum[r]);
      std::memcpy(plane_row(item.lse, item, row), &lse, sizeof lse);
    }
    if (padding || state.row_sum[r] != 0.0f || p.fully_masked == FullyMasked::kZero) continue;
    if (p.fully_masked == FullyMasked::kMean && !have_mean) {
      mean_of_values(item, mean);
      have_mean = true;
    }
    fill_masked_row(p, item, row, mean);
  }
}

}  // namespace cpuattn
