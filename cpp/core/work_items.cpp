// SPDX-License-Identifier: MIT
#include "core/work_items.h"

#include <algorithm>
#include <cmath>

namespace cpuattn {
namespace {

constexpr double kLog2e = 1.4426950408889634;

// The part of a view that belongs to one batch element and kv head.
struct Resolver {
  const AttentionProblem& p;
  int64_t batch, kv_head;

  char* at(const View& view, int64_t head) const {
    return view.data + batch_offset(p, view, batch) + head * view.head_step;
  }
  RowPlane rows(const View& view) const {
    if (!view) return {nullptr, 0, 0, 0, view.dtype};
    return {at(view, kv_head * p.group()), view.row_step, view.head_step, view.col_step,
            view.dtype};
  }
  KvPlane keys(const View& view) const {
    return {at(view, kv_head), view.row_step, view.col_step, view.dtype};
  }
  HeadList heads(const View& view) const {
    if (!view) return {nullptr, 0, view.dtype};
    return {at(view, kv_head * p.group()), view.head_step, view.dtype};
  }
  IntegerList list(const View& view, int64_t step) const {
    if (!view) return {nullptr, 0, 0};
    return {at(view, 0), step, static_cast<int>(item_size(view.dtype))};
  }
};

// Lengths, the diagonal and the band around it.
void resolve_band(const Resolver& from, WorkItem& item) {
  const AttentionProblem& p = from.p;
  item.q_length = p.q_lengths ? integer_in_batch(p, p.q_lengths, from.batch) : INT64_MAX;
  item.kv_length = p.kv_lengths ? integer_in_batch(p, p.kv_lengths, from.batch) : p.kv_len;
  switch (p.diagonal) {
    case Diagonal::kTopLeft:
      item.offset = 0;
      break;
    case Diagonal::kBottomRight:
      item.offset = item.kv_length - std::min(item.q_length, p.q_len);
      break;
    case Diagonal::kOffset:
      constexpr int64_t kFar = int64_t{1} << 60;
      item.offset = p.causal_offsets
                        ? std::clamp(integer_in_batch(p, p.causal_offsets, from.batch), -kFar, kFar)
                        : p.offset;
      break;
  }
  item.band_left = p.window_left >= 0 ? p.window_left : kOpen;
  item.band_right = p.window_right >= 0 ? p.window_right : kOpen;
  if (p.causal) item.band_right = std::min<int64_t>(item.band_right, 0);
}

// Draws of 32 bits from this on keep their weight; 2^32 keeps none. JAX compares 23 bits, as a
// float32 below 1, with the float32 nearest to 1 - dropout_p.
double drop_threshold(const AttentionProblem& p) {
  if (p.dropout_generator == DropoutGenerator::kPhilox) {
    return std::nearbyint(p.dropout_p * 4294967296.0);
  }
  const double keep = static_cast<float>(1.0 - p.dropout_p);
  return 4294967296.0 - 512.0 * std::ceil(keep * 8388608.0);
}

void resolve_dropout(const Resolver& from, WorkItem& item) {
  const AttentionProblem& p = from.p;
  Dropout& d = item.dropout;
  d = {};
  item.weight_factor = 1.0;
  if (p.dropout_p == 0.0 && !p.dropout_mask) return;
  const double threshold = drop_threshold(p);
  d.active = true;
  d.keep_nothing = p.dropout_p == 1.0 || (!p.dropout_mask && threshold > 4294967295.0);
  d.threefry = p.dropout_generator == DropoutGenerator::kThreefry;
  d.threshold = d.keep_nothing ? 0 : static_cast<uint32_t>(threshold);
  d.key[0] = static_cast<uint32_t>(p.dropout_seed);
  d.key[1] = static_cast<uint32_t>(p.dropout_seed >> 32);
  d.batch = (p.dropout_broadcast & kAxisBatch) != 0 ? 0 : static_cast<uint32_t>(from.batch);
  d.head = static_cast<uint32_t>(from.kv_head * p.group());
  d.shared_heads = (p.dropout_broadcast & kAxisHeads) != 0;
  d.shared_rows = (p.dropout_broadcast & kAxisQLen) != 0;
  d.shared_columns = (p.dropout_broadcast & kAxisKvLen) != 0;
  // JAX's index is 64 bits, and begins again after them.
  const auto columns = static_cast<uint64_t>(d.shared_columns ? 1 : p.kv_len);
  const auto rows = static_cast<uint64_t>(d.shared_rows ? 1 : p.q_len);
  const auto heads = static_cast<uint64_t>(d.shared_heads ? 1 : p.num_heads);
  d.row_step = d.shared_rows ? 0 : columns;
  d.head_step = d.shared_heads ? 0 : rows * columns;
  d.first = d.batch * (heads * rows * columns) + d.head * d.head_step;
  d.keep = from.rows(p.dropout_mask);
  item.weight_factor = d.keep_nothing ? 0.0 : 1.0 / (1.0 - p.dropout_p);
}

}  // namespace

WorkItem make_work_item(const AttentionProblem& p, const Plan& plan, int64_t index) {
  const int64_t group_index = index / plan.row_blocks;
  const int64_t row_block = plan.row_blocks - 1 - index % plan.row_blocks;
  const Resolver from{p, group_index / p.num_kv_heads, group_index % p.num_kv_heads};
  WorkItem item;
  item.group = p.group();
  item.head_dim = p.head_dim;
  item.head_dim_v = p.head_dim_v;
  item.kv_len = p.kv_len;
  item.row_begin = row_block * plan.row_block;
  item.row_end = std::min(item.row_begin + plan.row_block, p.rows());
  item.query = from.rows(p.query);
  item.out = from.rows(p.out);
  item.mask = from.rows(p.mask);
  item.bias = from.rows(p.bias);
  item.weights = from.rows(p.weights);
  item.lse = from.rows(p.lse);
  item.key = from.keys(p.key);
  item.value = from.keys(p.value);
  item.q_segments = from.list(p.q_segment_ids, p.q_segment_ids.row_step);
  item.kv_segments = from.list(p.kv_segment_ids, p.kv_segment_ids.col_step);
  resolve_band(from, item);
  const bool capped = p.softcap > 0.0;
  item.query_factor = capped ? p.scale / p.softcap : p.scale * kLog2e;
  item.softcap_factor = capped ? p.softcap * kLog2e : 0.0;
  item.alibi_slopes = from.heads(p.alibi_slopes);
  item.sinks = from.heads(p.sinks);
  item.planes = plan.planes;
  item.weights_after_dropout = p.return_weights == ReturnWeights::kAfterDropout;
  resolve_dropout(from, item);
  item.cancelled = nullptr;
  item.cancelled_context = nullptr;
  return item;
}

char* plane_row(const RowPlane& plane, const WorkItem& item, int64_t row) {
  return plane.data + (row / item.group) * plane.token_step + (row % item.group) * plane.head_step;
}

}  // namespace cpuattn
