// SPDX-License-Identifier: MIT
// A random attention problem of one kv head as a WorkItem, and its results in double precision.
//
// Arrays end where memory ends, so that a kernel that reads or writes past one faults.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/work_item.h"
#include "support.h"
#include "volume.h"

namespace cpuattn {
namespace {

enum Option : uint32_t {
  kCausal = 1u << 0,
  kWindow = 1u << 1,
  kMask = 1u << 2,
  kBias = 1u << 3,
  kSoftcap = 1u << 4,
  kAlibi = 1u << 5,
  kSinks = 1u << 6,
  kSegments = 1u << 7,
  kKvLength = 1u << 8,
  kQLength = 1u << 9,
  kDropoutDraws = 1u << 10,
  kDropoutMask = 1u << 11,
  kWeights = 1u << 12,    // prefill only
  kPartial = 1u << 13,    // a chunk of the keys, and its unnormalised state
  kHiddenNan = 1u << 14,  // keys that no row sees hold NaN and Inf
  kSomeNan = 1u << 15,    // keys that some row may see hold NaN and Inf
  kStrided = 1u << 16,    // random axis orders, gaps, negative and zero steps
  kEmptyMask = 1u << 17,  // the mask has long runs of one value and rows without any key
  kUnaligned = 1u << 18,  // no array is aligned to its numbers
  kFarScores = 1u << 19,  // scores in the ten thousands, values that just fit into float16
  kOptionCount = 20,
};

constexpr int64_t kChunkGrid = 64;  // chunks of keys begin at multiples of the kernels' kv_block

// Out and weights are of the query's dtype. Kernels of float64 take only that as query and kv, the
// others all but that.
struct DTypes {
  DType query, kv, bias, heads;  // heads: ALiBi slopes and sinks
  int planes = 1;                // of WorkItem
};

struct Sizes {
  int64_t group, q_len, kv_len, head_dim, head_dim_v;
};

// Philox4x32-10, written for one counter.
inline uint32_t philox_word(uint32_t key0, uint32_t key1, const uint32_t (&counter)[4], int word) {
  uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t next[4] = {
        static_cast<uint32_t>(b >> 32) ^ c[1] ^ key0, static_cast<uint32_t>(b),
        static_cast<uint32_t>(a >> 32) ^ c[3] ^ key1, static_cast<uint32_t>(a)};
    std::copy_n(next, 4, c);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c[word];
}

struct ExpectedRow {
  double max = -std::numeric_limits<double>::infinity();  // log2 units, sink included
  double sum = 0.0;                                       // of 2^(score - max), sink included
  std::vector<double> out;    // normalised, or unnormalised for a partial item
  std::vector<double> bound;  // sum of |weight * value|: what errors are relative to
  std::vector<double> weights;
  double reach = 0.0;  // the largest sum of |terms| of a score, natural units: what weights err by
};

class KernelProblem {
 public:
  KernelProblem(Random& random, const Sizes& sizes, const DTypes& dtypes, uint32_t options)
      : sizes_(sizes), dtypes_(dtypes), options_(options), random_(random) {
    make_arrays();
    make_band();
    if (has(kSegments)) make_segments();
    make_dropout();
    if (has(kHiddenNan) || has(kSomeNan)) poison();
    copy_keys();
    fill_item();
  }

  int64_t rows() const { return sizes_.group * sizes_.q_len; }
  bool has(Option option) const { return (options_ & option) != 0; }
  const WorkItem& item() const { return item_; }
  // What the kernel computes with.
  DType real() const {
    return dtypes_.query == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  }
  // What its results are rounded to.
  DType out_dtype() const { return has(kPartial) ? real() : dtypes_.query; }

  // Runs a kernel on rows [row_begin, row_end).
  void run(const Kernel& kernel, int64_t row_begin, int64_t row_end) {
    WorkItem item = item_;
    item.row_begin = row_begin;
    item.row_end = row_end;
    const int64_t count = row_end - row_begin;
    const int64_t size = item_size(real());
    const GuardedArray max(count * size);
    const GuardedArray sum(count * size);
    const GuardedArray partial(count * sizes_.head_dim_v * size);
    const int64_t bytes =
        kernel.scratch_bytes({count, sizes_.head_dim, sizes_.head_dim_v, dtypes_.planes});
    const GuardedArray scratch((bytes + 63) / 64 * 64);
    item.row_max = max.data();
    item.row_sum = sum.data();
    item.partial_out = partial.data();
    item.scratch = scratch.data();
    kernel.run(item);
    copy_reals(max, count, row_max.data() + row_begin);
    copy_reals(sum, count, row_sum.data() + row_begin);
    copy_reals(partial, has(kPartial) ? count * sizes_.head_dim_v : 0,
               partial_.data() + row_begin * sizes_.head_dim_v);
  }

  double out(int64_t row, int64_t column) const {
    if (has(kPartial)) return partial_[static_cast<size_t>(row * sizes_.head_dim_v + column)];
    return out_.number(row / sizes_.group, row % sizes_.group, column);
  }
  double weight(int64_t row, int64_t key) const {
    return weights_.number(row / sizes_.group, row % sizes_.group, key);
  }
  void clear_out() const {
    for (int64_t row = 0; row < rows(); ++row) {
      for (int64_t c = 0; c < sizes_.head_dim_v; ++c) {
        out_.set(row / sizes_.group, row % sizes_.group, c, 77.0);
      }
    }
  }

  bool visible(int64_t row, int64_t key) const {
    const int64_t token = row / sizes_.group;
    const int64_t head = row % sizes_.group;
    const int64_t diagonal = token + item_.offset;
    if (token >= item_.q_length || key >= item_.kv_length) return false;
    if (item_.band_left != kOpen && key < diagonal - item_.band_left) return false;
    if (item_.band_right != kOpen && key > diagonal + item_.band_right) return false;
    if (mask_.given() && *mask_.at(token, head, key) == 0) return false;
    if (has(kSegments) && q_ids_[static_cast<size_t>(token)] != kv_ids_[static_cast<size_t>(key)]) {
      return false;
    }
    return !bias_.given() || bias_.number(token, head, key) != -kInfinity;
  }

  ExpectedRow expected(int64_t row) const;

  std::vector<double> row_max, row_sum;

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  static constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

  void copy_reals(const GuardedArray& from, int64_t count, double* to) const {
    const int64_t size = item_size(real());
    for (int64_t i = 0; i < count; ++i) {
      to[i] = load_element<double>(from.data() + i * size, real());
    }
  }

  Volume volume(int64_t tokens, int64_t heads, int64_t columns, DType dtype, unsigned shared = 0) {
    return {random_, tokens, heads, columns, dtype, has(kStrided), has(kUnaligned), shared};
  }
  unsigned any_shared() { return has(kStrided) ? static_cast<unsigned>(random_.below(8)) : 0; }

  void fill(const Volume& v, int64_t tokens, int64_t heads, int64_t columns, double reach) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t c = 0; c < columns; ++c) v.set(t, h, c, random_.uniform(-reach, reach));
      }
    }
  }

  void make_arrays();
  void make_bias();
  void make_mask();
  void make_band();
  void make_segments();
  void make_dropout();
  void poison();
  void copy_keys();
  void fill_item();
  double score(int64_t row, int64_t key, double& reach) const;
  bool kept(int64_t row, int64_t key) const;

  Sizes sizes_;
  DTypes dtypes_;
  uint32_t options_;
  Random& random_;
  WorkItem item_{};
  Volume query_, key_, value_, out_, weights_, mask_, bias_, slopes_, sinks_, keep_;
  std::vector<double> keys_, values_, partial_;  // the first two: what key_ and value_ hold
  std::vector<int32_t> q_ids_;
  std::vector<int64_t> kv_ids_;
  double scale_ = 1.0, softcap_ = 0.0, dropout_p_ = 0.0;
};

inline void KernelProblem::make_arrays() {
  const auto [group, q_len, kv_len, head_dim, head_dim_v] = sizes_;
  query_ =
      volume(q_len, group, head_dim, dtypes_.query, has(kStrided) && random_.chance(10) ? 2 : 0);
  key_ = volume(kv_len, 1, head_dim, dtypes_.kv, has(kStrided) && random_.chance(10) ? 1 : 0);
  value_ = volume(kv_len, 1, head_dim_v, dtypes_.kv);
  out_ = volume(q_len, group, head_dim_v, dtypes_.query);
  partial_.assign(static_cast<size_t>(has(kPartial) ? rows() * head_dim_v : 0), kNan);
  fill(query_, q_len, group, head_dim, has(kFarScores) ? 250.0 : 2.5);
  fill(key_, kv_len, 1, head_dim, has(kFarScores) ? 250.0 : 2.5);
  // Dropout makes an output up to 1.6 times its values.
  fill(value_, kv_len, 1, head_dim_v, has(kFarScores) ? 40000.0 : 1.0);
  if (has(kWeights)) {
    weights_ = volume(q_len, group, kv_len, dtypes_.query);
    fill(weights_, q_len, group, kv_len, 0.0);
  }
  if (has(kMask)) make_mask();
  make_bias();
  row_max.assign(static_cast<size_t>(rows()), kNan);
  row_sum.assign(static_cast<size_t>(rows()), kNan);
  scale_ = 1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(head_dim, 1)));
  softcap_ = has(kSoftcap) ? 2.0 : 0.0;
}

inline void KernelProblem::make_bias() {
  const auto [group, q_len, kv_len, head_dim, head_dim_v] = sizes_;
  if (has(kBias)) {
    bias_ = volume(q_len, group, kv_len, dtypes_.bias, any_shared());
    fill(bias_, q_len, group, kv_len, 3.0);
    for (int64_t i = 0; i < q_len * kv_len / 10; ++i) {
      const int64_t token = random_.below(q_len);
      const int64_t head = random_.below(group);
      bias_.set(token, head, random_.below(kv_len), -kInfinity);
    }
  }
  if (has(kAlibi)) slopes_ = volume(1, group, 1, dtypes_.heads);
  if (has(kSinks)) sinks_ = volume(1, group, 1, dtypes_.heads);
  for (int64_t head = 0; head < group; ++head) {
    if (has(kAlibi)) slopes_.set(0, head, 0, random_.uniform(0.0, 0.1));
    if (!has(kSinks)) continue;
    sinks_.set(0, head, 0, random_.chance(20) ? -kInfinity : random_.uniform(-3.0, 3.0));
  }
}

inline void KernelProblem::make_mask() {
  const auto [group, q_len, kv_len, head_dim, head_dim_v] = sizes_;
  mask_ = volume(q_len, group, kv_len, DType::kBool, any_shared());
  for (int64_t token = 0; token < q_len; ++token) {
    for (int64_t head = 0; head < group; ++head) {
      int percent = 70;
      for (int64_t key = 0; key < kv_len; ++key) {
        if (has(kEmptyMask) && key % 32 == 0) percent = random_.chance(50) ? 0 : 100;
        *mask_.at(token, head, key) = random_.chance(percent) ? 1 : 0;
      }
      if (!has(kEmptyMask) || !random_.chance(20)) continue;
      for (int64_t key = 0; key < kv_len; ++key) *mask_.at(token, head, key) = 0;
    }
  }
}

inline void KernelProblem::make_band() {
  const int64_t kv_len = sizes_.kv_len;
  const int64_t q_len = sizes_.q_len;
  item_.q_length = has(kQLength) ? random_.between(0, q_len) : INT64_MAX;
  item_.kv_length = has(kKvLength) ? random_.between(0, kv_len) : kv_len;
  item_.offset = random_.chance(60) ? kv_len - q_len : random_.between(-q_len, kv_len);
  item_.band_left = kOpen;
  item_.band_right = kOpen;
  if (has(kWindow)) {
    if (random_.chance(70)) item_.band_left = random_.between(0, kv_len);
    if (random_.chance(70)) item_.band_right = random_.between(0, kv_len);
  }
  if (has(kCausal)) item_.band_right = 0;
  item_.kv_begin = 0;
  item_.kv_end = kv_len;
  item_.partial = has(kPartial);
  item_.start_from_sinks = true;
  if (has(kPartial) && kv_len > 0) {
    item_.kv_begin = random_.chance(40) ? 0 : random_.below(kv_len);
    item_.kv_begin = item_.kv_begin / kChunkGrid * kChunkGrid;
    item_.kv_end = random_.between(item_.kv_begin, kv_len);
    item_.start_from_sinks = item_.kv_begin == 0;
  }
}

inline void KernelProblem::make_segments() {
  int32_t id = 5;
  for (int64_t i = 0; i < sizes_.q_len; ++i) q_ids_.push_back(random_.chance(10) ? ++id : id);
  id = 5;
  for (int64_t i = 0; i < sizes_.kv_len; ++i) kv_ids_.push_back(random_.chance(5) ? ++id : id);
}

inline void KernelProblem::make_dropout() {
  item_.weight_factor = 1.0;
  if (!has(kDropoutDraws) && !has(kDropoutMask)) return;
  dropout_p_ = 0.375;
  Dropout& d = item_.dropout;
  d.active = true;
  d.threshold = static_cast<uint32_t>(dropout_p_ * 4294967296.0);
  d.key[0] = static_cast<uint32_t>(random_.next());
  d.key[1] = static_cast<uint32_t>(random_.next());
  d.batch = 2;
  d.head = 6;
  d.shared_heads = random_.chance(20);
  d.shared_rows = random_.chance(20);
  d.shared_columns = random_.chance(20);
  item_.weight_factor = 1.0 / (1.0 - dropout_p_);
  item_.weights_after_dropout = random_.chance(50);
  if (!has(kDropoutMask)) return;
  keep_ = volume(sizes_.q_len, sizes_.group, sizes_.kv_len, DType::kBool, any_shared());
  for (int64_t token = 0; token < sizes_.q_len; ++token) {
    for (int64_t head = 0; head < sizes_.group; ++head) {
      for (int64_t key = 0; key < sizes_.kv_len; ++key) {
        *keep_.at(token, head, key) = random_.chance(60) ? 1 : 0;
      }
    }
  }
}

// Puts NaN and Inf into some keys and values.
inline void KernelProblem::poison() {
  for (int64_t key = 0; key < sizes_.kv_len; ++key) {
    bool seen = false;
    for (int64_t row = 0; row < rows() && !seen; ++row) seen = visible(row, key);
    if (seen ? !has(kSomeNan) || !random_.chance(5) : !has(kHiddenNan)) continue;
    const int64_t kind = random_.below(3);
    const double bad = kind == 0 ? kNan : kind == 1 ? kInfinity : -kInfinity;
    if (sizes_.head_dim_v > 0) value_.set(key, 0, random_.below(sizes_.head_dim_v), bad);
    if (sizes_.head_dim > 0 && (!seen || random_.chance(30))) {
      key_.set(key, 0, random_.below(sizes_.head_dim), seen ? kNan : bad);
    }
  }
}

inline void KernelProblem::copy_keys() {
  for (int64_t key = 0; key < sizes_.kv_len; ++key) {
    for (int64_t c = 0; c < sizes_.head_dim; ++c) keys_.push_back(key_.number(key, 0, c));
    for (int64_t c = 0; c < sizes_.head_dim_v; ++c) values_.push_back(value_.number(key, 0, c));
  }
}

inline void KernelProblem::fill_item() {
  constexpr double log2e = 1.4426950408889634;
  item_.group = sizes_.group;
  item_.head_dim = sizes_.head_dim;
  item_.head_dim_v = sizes_.head_dim_v;
  item_.kv_len = sizes_.kv_len;
  item_.planes = dtypes_.planes;
  item_.query = query_.rows();
  item_.out = out_.rows();
  item_.key = key_.keys();
  item_.value = value_.keys();
  if (mask_.given()) item_.mask = mask_.rows();
  if (bias_.given()) item_.bias = bias_.rows();
  if (weights_.given()) item_.weights = weights_.rows();
  if (keep_.given()) item_.dropout.keep = keep_.rows();
  if (has(kSegments)) {
    item_.q_segments = {reinterpret_cast<const char*>(q_ids_.data()), 4, 4};
    item_.kv_segments = {reinterpret_cast<const char*>(kv_ids_.data()), 8, 8};
  }
  item_.query_factor = softcap_ > 0.0 ? scale_ / softcap_ : scale_ * log2e;
  item_.softcap_factor = softcap_ * log2e;
  if (has(kAlibi)) item_.alibi_slopes = slopes_.heads();
  if (has(kSinks)) item_.sinks = sinks_.heads();
}

// Natural units, of a visible key.
inline double KernelProblem::score(int64_t row, int64_t key, double& reach) const {
  const int64_t token = row / sizes_.group;
  const int64_t head = row % sizes_.group;
  const double* numbers = keys_.data() + key * sizes_.head_dim;
  double x = 0.0;
  double terms = 0.0;
  for (int64_t c = 0; c < sizes_.head_dim; ++c) {
    const double term = query_.number(token, head, c) * numbers[c];
    x += term;
    terms += std::abs(term);
  }
  x *= scale_;
  terms *= scale_;
  if (softcap_ > 0.0) {
    x = softcap_ * std::tanh(x / softcap_);
    terms += softcap_;
  }
  if (bias_.given()) {
    x += bias_.number(token, head, key);
    terms += std::abs(bias_.number(token, head, key));
  }
  if (has(kAlibi)) {
    const double distance =
        slopes_.number(0, head, 0) * static_cast<double>(std::abs(token + item_.offset - key));
    x -= distance;
    terms += distance;
  }
  if (std::isfinite(terms)) reach = std::max(reach, terms);
  return x;
}

inline bool KernelProblem::kept(int64_t row, int64_t key) const {
  const Dropout& d = item_.dropout;
  const int64_t token = row / sizes_.group;
  const int64_t head = row % sizes_.group;
  if (!d.active) return true;
  if (keep_.given()) return *keep_.at(token, head, key) != 0;
  const int64_t column = d.shared_columns ? 0 : key;
  const uint32_t counter[4] = {static_cast<uint32_t>(column / 4),
                               d.shared_rows ? 0 : static_cast<uint32_t>(token),
                               d.shared_heads ? 0 : d.head + static_cast<uint32_t>(head), d.batch};
  return philox_word(d.key[0], d.key[1], counter, static_cast<int>(column % 4)) >= d.threshold;
}

inline ExpectedRow KernelProblem::expected(int64_t row) const {
  constexpr double log2e = 1.4426950408889634;
  const auto columns = static_cast<size_t>(sizes_.head_dim_v);
  ExpectedRow want;
  want.out.assign(columns, 0.0);
  want.bound.assign(columns, 0.0);
  want.weights.assign(static_cast<size_t>(sizes_.kv_len), 0.0);
  std::vector<double> scores(static_cast<size_t>(sizes_.kv_len));
  if (has(kSinks) && item_.start_from_sinks) {
    want.max = sinks_.number(0, row % sizes_.group, 0) * log2e;
  }
  constexpr double none = -std::numeric_limits<double>::infinity();
  const double sink = want.max;
  bool scored = sink != none;
  if (std::isfinite(sink)) want.reach = std::abs(sink) / log2e;
  for (int64_t key = item_.kv_begin; key < item_.kv_end; ++key) {
    if (!visible(row, key)) continue;
    const double x = score(row, key, want.reach) * log2e;
    scores[static_cast<size_t>(key)] = x;
    want.max = std::max(want.max, x);
    scored = scored || x != none;  // NaN is a score
  }
  if (!scored) return want;  // a row whose scores are all -inf sees no key
  if (sink != none) want.sum = std::exp2(sink - want.max);
  for (int64_t key = item_.kv_begin; key < item_.kv_end; ++key) {
    if (!visible(row, key) || scores[static_cast<size_t>(key)] == none) continue;
    const double weight = std::exp2(scores[static_cast<size_t>(key)] - want.max);
    want.weights[static_cast<size_t>(key)] = weight;
    want.sum += weight;
    // A dropped weight is 0 times its value, so NaN and Inf still come through.
    const double factor = weight * (kept(row, key) ? 1.0 : 0.0);
    for (size_t c = 0; c < columns; ++c) {
      const double x = values_[static_cast<size_t>(key) * columns + c];
      want.out[c] += factor * x;
      want.bound[c] += std::abs(factor * x);
    }
  }
  if (want.sum == 0.0) return want;
  const double scale = item_.partial ? 1.0 : item_.weight_factor / want.sum;
  for (size_t c = 0; c < columns; ++c) {
    want.out[c] *= scale;
    want.bound[c] *= scale;
  }
  const bool after = item_.dropout.active && item_.weights_after_dropout;
  for (int64_t key = 0; key < sizes_.kv_len; ++key) {
    double& weight = want.weights[static_cast<size_t>(key)];
    weight /= want.sum;
    if (after) weight *= kept(row, key) ? item_.weight_factor : 0.0;
  }
  return want;
}

}  // namespace
}  // namespace cpuattn
