// SPDX-License-Identifier: MIT
// Attention of a few query rows against a long cache, with head_dim in the lanes.
//
//   for each kv block of kDecodeKeys keys:
//     for 4 keys x up to kDotRows rows: scores[row][key] = query[row] . key      score_rows
//     bias, softcap, ALiBi, visibility                                          only where present
//     online softmax of each row, lanes = keys
//     for kDotRows rows x 4 vectors of head_dim_v: output[row] += weight * value output_rows
//
// The rows are all query heads of a kv head (and all tokens), so every key and value is read from
// memory once. The limit is the read rate of the cache: 2 * kDotRows FLOP for each 4 bytes.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

constexpr int64_t kDecodeKeys = kWordKeys;  // one visibility word a block
constexpr int kDotKeys = 4;                 // keys whose sums are folded together
constexpr int kOutputVecs = 4;              // vectors of output held in registers per row
constexpr int64_t kPrefetchBytes = 2048;    // how far ahead of the key and value streams

struct DecodeState {
  int64_t rows;
  int64_t query_stride, output_stride;  // head_dim, head_dim_v rounded up to whole vectors
  float* query;    // (rows, query_stride), scaled, zero padded
  float* output;   // (rows, output_stride), unnormalised
  float* scores;   // (rows, kDecodeKeys)
  float* rescale;  // (rows)
  Row* of;  // token and head of each row
  KeyRange* range;
  uint64_t* visible;  // (rows): a word of key bits per row
  KvScratch kv;
};

CPUATTN_INLINE int64_t whole_vectors(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

CPUATTN_INLINE DecodeState take_decode_state(Arena& arena, const KernelShape& shape) {
  DecodeState s;
  s.rows = shape.row_block;
  s.query_stride = whole_vectors(shape.head_dim);
  s.output_stride = whole_vectors(shape.head_dim_v);
  s.query = arena.take<float>(s.rows * s.query_stride);
  s.output = arena.take<float>(s.rows * s.output_stride);
  s.scores = arena.take<float>(s.rows * kDecodeKeys);
  s.rescale = arena.take<float>(s.rows);
  s.of = arena.take<Row>(s.rows);
  s.range = arena.take<KeyRange>(s.rows);
  s.visible = arena.take<uint64_t>(s.rows);
  s.kv = take_kv_scratch(arena, kDecodeKeys, shape.head_dim, shape.head_dim_v);
  return s;
}

int64_t decode_scratch_bytes(const KernelShape& shape) {
  Arena counter{nullptr, 0};
  take_decode_state(counter, shape);
  return counter.used;
}

CPUATTN_INLINE Vec load_strided(const char* p, int64_t step, int64_t count) {
  if (step == sizeof(float)) {
    const float* from = reinterpret_cast<const float*>(p);
    return count >= kLanes ? load(from) : load_first(from, static_cast<int>(count));
  }
  float t[kLanes] = {};
  for (int64_t i = 0; i < count && i < kLanes; ++i) t[i] = float_at(p + i * step);
  return load(t);
}

CPUATTN_INLINE void open_rows(const WorkItem& item, DecodeState& s) {
  const Vec factor = broadcast(item.query_factor);
  divide_rows(item, item.row_begin, s.rows, s.of);
  for (int64_t r = 0; r < s.rows; ++r) {
    s.range[r] = key_range(item, s.of[r].token);
    const char* p = row_address(item.query, s.of[r]);
    for (int64_t c = 0; c < s.query_stride; c += kLanes) {
      const Vec q = load_strided(p + c * item.query.col_step, item.query.col_step, item.head_dim - c);
      store(s.query + r * s.query_stride + c, mul(q, factor));
    }
    for (int64_t c = 0; c < s.output_stride; c += kLanes) {
      store(s.output + r * s.output_stride + c, zero());
    }
    start_row(item, s.of[r], item.row_max[r], item.row_sum[r]);
  }
}

// Fills s.visible for the block; kAll when no row needs its word.
CPUATTN_INLINE Sight look_rows(const WorkItem& item, const DecodeState& s, int64_t begin,
                               int64_t end) {
  const uint64_t full = low_bits(end - begin);
  uint64_t any_word = 0;
  uint64_t all_words = full;
  for (int64_t r = 0; r < s.rows; ++r) {
    s.visible[r] = row_word(item, s.of[r], s.range[r], begin, end - begin);
    any_word |= s.visible[r];
    all_words &= s.visible[r];
  }
  return any_word == 0 ? Sight::kNone : all_words == full ? Sight::kAll : Sight::kSome;
}

// scores[row][key .. key + 3] for R rows. Keys past the end repeat the last one.
template <int R>
CPUATTN_INLINE void score_four_keys(const float* const (&keys)[kDotKeys], const float* query,
                                    int64_t query_stride, int64_t head_dim, float* scores) {
  Vec acc[R][kDotKeys];
  for (int r = 0; r < R; ++r) {
    for (int k = 0; k < kDotKeys; ++k) acc[r][k] = zero();
  }
  int64_t c = 0;
  for (; c + kLanes <= head_dim; c += kLanes) {
    Vec key[kDotKeys];
    for (int k = 0; k < kDotKeys; ++k) {
      key[k] = load(keys[k] + c);
      prefetch(reinterpret_cast<const char*>(keys[k] + c) + kPrefetchBytes);
    }
    for (int r = 0; r < R; ++r) {
      const Vec q = load(query + r * query_stride + c);
      for (int k = 0; k < kDotKeys; ++k) acc[r][k] = fma(q, key[k], acc[r][k]);
    }
  }
  if (c < head_dim) {
    const int count = static_cast<int>(head_dim - c);
    Vec key[kDotKeys];
    for (int k = 0; k < kDotKeys; ++k) key[k] = load_first(keys[k] + c, count);
    for (int r = 0; r < R; ++r) {
      const Vec q = load(query + r * query_stride + c);
      for (int k = 0; k < kDotKeys; ++k) acc[r][k] = fma(q, key[k], acc[r][k]);
    }
  }
  for (int r = 0; r < R; ++r) {
    store_sums4(scores + r * kDecodeKeys, acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
  }
}

CPUATTN_NOINLINE void score_rows(const WorkItem& item, const DecodeState& s, const KvBlock& block) {
  const int64_t count = block.end - block.begin;
  for (int64_t key = 0; key < count; key += kDotKeys) {
    const float* keys[kDotKeys];
    for (int k = 0; k < kDotKeys; ++k) {
      keys[k] = block.key + smaller(key + k, count - 1) * block.key_stride;
    }
    for_groups<kDotRows>(0, s.rows, [&](int64_t r, auto size) CPUATTN_LAMBDA {
      score_four_keys<decltype(size)::value>(keys, s.query + r * s.query_stride, s.query_stride,
                                             item.head_dim, s.scores + r * kDecodeKeys + key);
    });
  }
}

// Bias, softcap and ALiBi of one row, then -inf where it does not see the key.
CPUATTN_NOINLINE void modify_row(const WorkItem& item, const DecodeState& s, int64_t r,
                                 const KvBlock& block, bool partial) {
  const Row row = s.of[r];
  const int64_t count = block.end - block.begin;
  float* scores = s.scores + r * kDecodeKeys;
  for (int64_t key = 0; key < count; key += kLanes) {
    Vec score = load(scores + key);
    if (item.softcap_factor != 0.0f) score = mul(tanh(score), broadcast(item.softcap_factor));
    if (item.bias.data != nullptr) {
      const char* p = row_address(item.bias, row) + (block.begin + key) * item.bias.col_step;
      score = add_bias(score, load_strided(p, item.bias.col_step, count - key));
    }
    if (item.alibi_slopes != nullptr) {
      const float diagonal =
          static_cast<float>(row.token + item.offset - (block.begin + key));
      float distance[kLanes];
      for (int i = 0; i < kLanes; ++i) distance[i] = diagonal - static_cast<float>(i);
      score = fma(broadcast(alibi_slope(item, row) * -kLog2e), abs(load(distance)), score);
    }
    if (partial) {
      const uint64_t bits = s.visible[r] >> key;
      score = select(mask_from_bits(static_cast<uint32_t>(bits)), score, broadcast(kNegInf));
    }
    store(scores + key, score);
  }
}

// Keys past the block's end get -inf, so that the row can be treated in whole vectors.
CPUATTN_INLINE void pad_row(float* scores, int64_t count) {
  for (int64_t key = count; key < whole_vectors(count); ++key) scores[key] = kNegInf;
}

// Online softmax of one row, lanes = keys. See softmax_columns for the conventions.
CPUATTN_INLINE void softmax_row(float* scores, int64_t count, bool mark, float* row_max,
                                float* row_sum, float* rescale) {
  Vec top = load(scores);
  for (int64_t key = kLanes; key < count; key += kLanes) top = max(load(scores + key), top);
  const float old = *row_max;
  const float block_max = reduce_max(top);
  const float row_top = block_max > old ? block_max : old;
  const float base = row_top == kNegInf ? 0.0f : row_top;
  Vec sum = zero();
  for (int64_t key = 0; key < count; key += kLanes) {
    const Vec score = load(scores + key);
    Vec weight = exp2(sub(score, broadcast(base)));
    if (mark) weight = select(equal(score, broadcast(kNegInf)), broadcast(-0.0f), weight);
    sum = add(sum, weight);
    store(scores + key, weight);
  }
  float shrink[kLanes];
  store(shrink, exp2(broadcast(old - base)));
  *row_max = row_top;
  *row_sum = *row_sum * shrink[0] + reduce_add(sum);
  *rescale = shrink[0];
}

CPUATTN_NOINLINE void drop_row(const WorkItem& item, const DecodeState& s, int64_t r,
                               const KvBlock& block) {
  const Dropout& d = item.dropout;
  float* weights = s.scores + r * kDecodeKeys;
  PhiloxState draws;
  int64_t drawn = -1;
  for (int64_t key = block.begin; key < block.end; ++key) {
    bool kept = !d.keep_nothing;
    if (kept && d.keep.data != nullptr) {
      kept = row_address(d.keep, s.of[r])[key * d.keep.col_step] != 0;
    } else if (kept) {
      const int64_t column = d.shared_columns ? 0 : key;
      if (column / 4 != drawn) {
        drawn = column / 4;
        draw(item, s.of + r, 1, drawn, draws);
      }
      kept = draws.word[column % 4][0] >= d.threshold;
    }
    weights[key - block.begin] *= kept ? 1.0f : 0.0f;
  }
}

// output[row][column ..] of R rows and V vectors takes in the block; the last may be partial.
template <int R, int V>
CPUATTN_INLINE void output_strip(const float* values, int64_t value_stride, int64_t count,
                                 int last_lanes, const float* weights, const float* rescale,
                                 float* output, int64_t output_stride) {
  Vec acc[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) acc[r][v] = zero();
  }
  const auto take = [&](const float* row, int64_t key, auto last) CPUATTN_LAMBDA {
    Vec value[V];
    for (int v = 0; v < V; ++v) value[v] = v + 1 < V ? load(row + v * kLanes) : last(row + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec weight = broadcast(weights[r * kDecodeKeys + key]);
      for (int v = 0; v < V; ++v) acc[r][v] = fma(weight, value[v], acc[r][v]);
    }
  };
  if (last_lanes == kLanes) {
    for (int64_t key = 0; key < count; ++key) {
      const float* row = values + key * value_stride;
      for (int v = 0; v < V; ++v) {
        prefetch(reinterpret_cast<const char*>(row + v * kLanes) + kPrefetchBytes);
      }
      take(row, key, [](const float* p) CPUATTN_LAMBDA { return load(p); });
    }
  } else {
    for (int64_t key = 0; key < count; ++key) {
      take(values + key * value_stride, key,
           [=](const float* p) CPUATTN_LAMBDA { return load_first(p, last_lanes); });
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      float* p = output + r * output_stride + v * kLanes;
      store(p, fma(load(p), broadcast(rescale[r]), acc[r][v]));
    }
  }
}

CPUATTN_NOINLINE void output_rows(const WorkItem& item, const DecodeState& s, const KvBlock& block) {
  const int64_t vecs = s.output_stride / kLanes;
  const int tail = static_cast<int>(item.head_dim_v - (vecs - 1) * kLanes);
  for_groups<kOutputVecs>(0, vecs, [&](int64_t vec, auto vec_count) CPUATTN_LAMBDA {
    constexpr int V = decltype(vec_count)::value;
    const int last_lanes = vec + V == vecs ? tail : kLanes;
    for_groups<kDotRows>(0, s.rows, [&](int64_t r, auto size) CPUATTN_LAMBDA {
      output_strip<decltype(size)::value, V>(
          block.value + vec * kLanes, block.value_stride, block.end - block.begin, last_lanes,
          s.scores + r * kDecodeKeys, s.rescale + r, s.output + r * s.output_stride + vec * kLanes,
          s.output_stride);
    });
  });
}

// Adds the value rows that are not finite, for the rows that do see them.
CPUATTN_NOINLINE void add_flagged_rows(const WorkItem& item, const DecodeState& s,
                                       const KvBlock& block) {
  for (int f = 0; f < block.flagged_count; ++f) {
    const char* value =
        item.value.data + (block.begin + block.flagged[f]) * item.value.row_step;
    for (int64_t r = 0; r < s.rows; ++r) {
      const float weight = s.scores[r * kDecodeKeys + block.flagged[f]];
      if (__builtin_signbitf(weight)) continue;
      for (int64_t c = 0; c < item.head_dim_v; ++c) {
        s.output[r * s.output_stride + c] += weight * float_at(value + c * item.value.col_step);
      }
    }
  }
}

CPUATTN_INLINE void attend_block(const WorkItem& item, const DecodeState& s, const KvBlock& block,
                                 bool partial) {
  const int64_t count = block.end - block.begin;
  const bool modified = partial || changes_scores(item);
  score_rows(item, s, block);
  for (int64_t r = 0; r < s.rows; ++r) {
    float* scores = s.scores + r * kDecodeKeys;
    if (modified) modify_row(item, s, r, block, partial);
    pad_row(scores, count);
    softmax_row(scores, count, block.flagged_count > 0, item.row_max + r, item.row_sum + r,
                s.rescale + r);
    if (item.dropout.active) drop_row(item, s, r, block);
  }
  output_rows(item, s, block);
  if (block.flagged_count > 0) add_flagged_rows(item, s, block);
}

// Writes out (normalised) or the partial output, and reports whether every element is finite.
CPUATTN_INLINE bool close_rows(const WorkItem& item, const DecodeState& s) {
  Vec finite = zero();
  for (int64_t r = 0; r < s.rows; ++r) {
    char* row = row_address(item.out, s.of[r]);
    int64_t col_step = item.out.col_step;
    float factor = item.row_sum[r] == 0.0f ? 0.0f : item.weight_factor / item.row_sum[r];
    if (item.partial) {
      row = reinterpret_cast<char*>(item.partial_out + r * item.head_dim_v);
      col_step = sizeof(float);
      factor = 1.0f;
    }
    for (int64_t c = 0; c < item.head_dim_v; c += kLanes) {
      const Vec v = mul(load(s.output + r * s.output_stride + c), broadcast(factor));
      finite = fma(v, zero(), finite);
      store_row(row, c, col_step, static_cast<int>(smaller(kLanes, item.head_dim_v - c)), v);
    }
  }
  return reduce_add(finite) == 0.0f;
}

CPUATTN_INLINE bool decode_pass(const WorkItem& item, DecodeState& s, bool careful) {
  open_rows(item, s);
  KeyRange all{item.kv_end, item.kv_begin};
  bool every_row = !has_bits(item);
  for (int64_t r = 0; r < s.rows; ++r) {
    every_row = every_row && s.range[r].begin == s.range[0].begin && s.range[r].end == s.range[0].end;
    if (s.range[r].begin == s.range[r].end) continue;
    all.begin = smaller(all.begin, s.range[r].begin);
    all.end = larger(all.end, s.range[r].end);
  }
  for (int64_t begin = all.begin; begin < all.end; begin += kDecodeKeys) {
    const int64_t end = smaller(begin + kDecodeKeys, all.end);
    const Sight sight = every_row ? Sight::kAll : look_rows(item, s, begin, end);
    if (sight == Sight::kNone) continue;
    const KvBlock block = open_kv_block(item, begin, end, s.kv, careful);
    attend_block(item, s, block, sight == Sight::kSome);
  }
  return close_rows(item, s);
}

void decode(const WorkItem& item) {
  Arena arena{item.scratch, 0};
  DecodeState s =
      take_decode_state(arena, {item.row_end - item.row_begin, item.head_dim, item.head_dim_v});
  if (!decode_pass(item, s, false) && may_hide_keys(item)) decode_pass(item, s, true);
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
