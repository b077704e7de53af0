// SPDX-License-Identifier: MIT
// Attention of a few query rows against a long cache, with head_dim in the lanes.
//
//   for each kv block of kDecodeKeys keys:
//     online softmax of the block's scores, each row by itself, lanes = keys
//     in turns of kTurn keys, each four at a time:        stream_block, the hot loop
//       output[row] += weights[row][4] . values[4]          add_values, this block
//       scores[row][4] = query[row] . keys[4]               score_four_keys, the next block
//     bias, softcap, ALiBi, visibility of the next block, where present
//
// The rows are all query heads of a kv head (and all tokens), so every key and value is read from
// memory once. The value product of one block runs interleaved with the score product of the next:
// both streams advance a few KiB at a time, each fetched ahead, so that the loads never pause. The
// limit is the read rate, or 2 * rows FLOP for each 4 bytes.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

constexpr int64_t kDecodeKeys = kWordKeys;  // one visibility word a block
constexpr int64_t kFarBytes = 12288;        // how far ahead both streams are fetched into L2,
constexpr int64_t kNearBytes = 2048;        // and from there into L1
constexpr int64_t kTurn = 8;                // keys after which the two products take turns
constexpr int kQuad = 4;                    // keys, or units of values, treated together

// Scores, then weights, of one block, and what is known about its keys.
struct DecodeBlock {
  KvBlock kv;
  bool partial;       // some row does not see some key
  Real* scores;       // (rows, kDecodeKeys), then weights
  Unit* weights;      // (rows, kDecodeKeys) as units: the same memory where a unit is a number
  uint64_t* visible;  // (rows): a word of key bits per row
  KvScratch scratch;
};

struct DecodeState {
  int64_t rows;
  int64_t query_stride, output_stride;  // units of head_dim, head_dim_v, in whole vectors
  Unit* query;                          // (rows, query_stride), zero padded
  Real* output;                         // (rows, output_stride), unnormalised
  Real* block_sum;                      // (rows, output_stride): the current block's part of output
  Real* rescale;                        // (rows)
  Row* of;                              // token and head of each row
  KeyRange* range;
  DecodeBlock blocks[2];  // the current and the next
};

CPUATTN_INLINE DecodeState take_decode_state(Arena& arena, const KernelShape& shape) {
  DecodeState s;
  s.rows = shape.row_block;
  s.query_stride = whole_vectors(units(shape.head_dim));
  s.output_stride = whole_vectors(units(shape.head_dim_v)) * kDepth;
  s.query = arena.take<Unit>(s.rows * s.query_stride);
  s.output = arena.take<Real>(s.rows * s.output_stride);
  s.block_sum = arena.take<Real>(s.rows * s.output_stride);
  s.rescale = arena.take<Real>(s.rows);
  s.of = arena.take<Row>(s.rows);
  s.range = arena.take<KeyRange>(s.rows);
  for (DecodeBlock& block : s.blocks) {
    block.scores = arena.take<Real>(s.rows * kDecodeKeys);
    block.weights = kDepth == 1 ? reinterpret_cast<Unit*>(block.scores)
                                : arena.take<Unit>(s.rows * units(kDecodeKeys));
    block.visible = arena.take<uint64_t>(s.rows);
    block.scratch = take_kv_scratch(arena, kDecodeKeys, shape);
  }
  return s;
}

int64_t decode_scratch_bytes(const KernelShape& shape) {
  Arena counter{nullptr, 0};
  take_decode_state(counter, shape);
  return counter.used;
}

CPUATTN_INLINE Rows open_rows(const KvPlane& plane, int64_t begin, int64_t end, int64_t columns,
                              const KvScratch& s, Unit* copy) {
  const bool readable = kDepth == 1 ? has_plain_rows(plane) : holds_units(plane, columns);
  if (readable) return {plane.data + begin * plane.row_step, plane.row_step, plane.dtype};
  copy_rows(plane, begin, end, columns, 1, s, copy);
  return rows_at(copy, units(columns));
}

// Keys and values as rows along head_dim: for numbers of any dtype, for pairs of bfloat16.
CPUATTN_NOINLINE KvBlock open_kv_rows(const WorkItem& item, int64_t begin, int64_t end,
                                      const KvScratch& scratch, bool careful) {
  KvBlock block{begin, end, {}, {}, true, 0, scratch.flagged};
  block.key = open_rows(item.key, begin, end, item.head_dim, scratch, scratch.key);
  if (careful) {
    copy_rows(item.value, begin, end, item.head_dim_v, 1, scratch, scratch.value);
    block.value = rows_at(scratch.value, units(item.head_dim_v));
    flag_values(item, {1, units(item.head_dim_v) * kDepth, 1}, scratch, block);
  } else {
    block.value = open_rows(item.value, begin, end, item.head_dim_v, scratch, scratch.value);
  }
  return block;
}

CPUATTN_INLINE Real* row_max(const WorkItem& item) { return static_cast<Real*>(item.row_max); }
CPUATTN_INLINE Real* row_sum(const WorkItem& item) { return static_cast<Real*>(item.row_sum); }

CPUATTN_INLINE void open_queries(const WorkItem& item, DecodeState& s) {
  const Vec factor = broadcast(query_factor(item));
  divide_rows(item, item.row_begin, s.rows, s.of);
  for (int64_t r = 0; r < s.rows; ++r) {
    s.range[r] = key_range(item, s.of[r].token);
    const char* p = row_address(item.query, s.of[r]);
    for (int64_t c = 0; c < s.query_stride * kDepth; c += kLanes) {
      const Vec q = c < item.head_dim ? load_elements(p + c * item.query.col_step, item.query.dtype,
                                                      item.query.col_step, item.head_dim - c)
                                      : zero();
      store_row_units(s.query + r * s.query_stride + c / kDepth, mul(q, factor));
    }
    for (int64_t c = 0; c < s.output_stride; c += kLanes) {
      store(s.output + r * s.output_stride + c, zero());
    }
    start_row(item, s.of[r], row_max(item)[r], row_sum(item)[r]);
  }
}

// Fills the words of a block; kAll when no row needs its word.
CPUATTN_INLINE Sight look_rows(const WorkItem& item, const DecodeState& s, int64_t begin,
                               int64_t end, uint64_t* visible) {
  const uint64_t full = low_bits(end - begin);
  uint64_t any_word = 0;
  uint64_t all_words = full;
  for (int64_t r = 0; r < s.rows; ++r) {
    visible[r] = row_word(item, s.of[r], s.range[r], begin, end - begin);
    any_word |= visible[r];
    all_words &= visible[r];
  }
  return any_word == 0 ? Sight::kNone : all_words == full ? Sight::kAll : Sight::kSome;
}

// Rows of a block: of numbers in any dtype, or of units.
struct AsUnits {
  static constexpr int64_t kSize = sizeof(Unit);
  static CPUATTN_INLINE Operand whole(const char* p) {
    return load_units(reinterpret_cast<const Unit*>(p));
  }
  static CPUATTN_INLINE Operand first(const char* p, int n) {
    return load_units_first(reinterpret_cast<const Unit*>(p), n);
  }
};
template <class Body>
CPUATTN_INLINE void with_rows(const Rows& rows, Body body) {
  if constexpr (kDepth == 1) {
    with_elements(rows.dtype, body);
  } else {
    body(AsUnits{});
  }
}

CPUATTN_INLINE void fetch_ahead(const char* p) {
  prefetch_l2(p + kFarBytes);
  prefetch_l1(p + kNearBytes);
}

// Calls step(c, load) for each vector of rows of `length` elements, load being that of a whole
// vector or of what is left; before, fetch(c) once for each cache line.
template <class As, class Fetch, class Step>
CPUATTN_INLINE void for_vectors(int64_t length, Fetch fetch, Step step) {
  constexpr int64_t kLine = kLanes * As::kSize < 64 ? 64 / As::kSize : kLanes;
  constexpr int64_t kStride = kLine > 2 * kLanes ? kLanes : kLine;  // no more code than for two
  const auto load = [](const char* p) CPUATTN_LAMBDA { return As::whole(p); };
  const auto fetch_line = [&](int64_t c) CPUATTN_LAMBDA {
    if (kStride == kLine || c % kLine == 0) fetch(c);
  };
  int64_t c = 0;
  for (; c + kStride <= length; c += kStride) {
    fetch_line(c);
    for (int64_t i = 0; i < kStride; i += kLanes) step(c + i, load);
  }
  if (c == length) return;
  fetch_line(c);
  for (; c + kLanes <= length; c += kLanes) step(c, load);
  const int rest = static_cast<int>(length - c);
  if (rest > 0) step(c, [=](const char* p) CPUATTN_LAMBDA { return As::first(p, rest); });
}

// Keeps GCC from loading v again for each product that it is in.
template <class V>
CPUATTN_INLINE V in_register(V v) {
#if defined(__GNUC__) && !defined(__clang__) && defined(__AVX__)
  asm("" : "+v"(v));
#endif
  return v;
}

// scores[row][0 .. 3] of R rows and the four keys at `keys`, of which `count` exist (the last one
// stands in for the others), over head_dim units.
template <int R, class As>
CPUATTN_INLINE void score_four_keys(const char* keys, int64_t key_step, int64_t count,
                                    const Unit* query, int64_t query_stride, int64_t head_dim,
                                    Real* scores) {
  const char* key[kQuad];
  for (int k = 0; k < kQuad; ++k) key[k] = keys + smaller(k, count - 1) * key_step;
  Vec acc[R][kQuad];
  for (int r = 0; r < R; ++r) {
    for (int k = 0; k < kQuad; ++k) acc[r][k] = zero();
  }
  const auto fetch = [&](int64_t c) CPUATTN_LAMBDA {
    for (int k = 0; k < kQuad; ++k) fetch_ahead(key[k] + c * As::kSize);
  };
  const auto step = [&](int64_t c, auto load_key) CPUATTN_LAMBDA {
    Operand k_vec[kQuad];
    for (int k = 0; k < kQuad; ++k) k_vec[k] = in_register(load_key(key[k] + c * As::kSize));
    for (int r = 0; r < R; ++r) {
      const Operand q = load_units(query + r * query_stride + c);
      for (int k = 0; k < kQuad; ++k) acc[r][k] = multiply_add(q, k_vec[k], acc[r][k]);
    }
  };
  for_vectors<As>(head_dim, fetch, step);
  for (int r = 0; r < R; ++r) {
    store_sums4(scores + r * kDecodeKeys, acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
  }
}

// sums[row] (+)= weights[row][0 .. K - 1] . values[0 .. K - 1] of R rows; `first` overwrites.
template <int R, int K, class As>
CPUATTN_INLINE void add_numbers(const char* values, int64_t value_step, const Real* weights,
                                int64_t head_dim_v, Real* sums, int64_t stride, bool first) {
  Vec weight[R][K];
  for (int r = 0; r < R; ++r) {
    for (int k = 0; k < K; ++k) weight[r][k] = broadcast(weights[r * kDecodeKeys + k]);
  }
  const auto fetch = [&](int64_t c) CPUATTN_LAMBDA {
    for (int k = 0; k < K; ++k) fetch_ahead(values + k * value_step + c * As::kSize);
  };
  const auto all_steps = [&](auto overwrite) CPUATTN_LAMBDA {
    for_vectors<As>(head_dim_v, fetch, [&](int64_t c, auto load_value) CPUATTN_LAMBDA {
      Vec acc[R];
      for (int r = 0; r < R; ++r) {
        acc[r] = decltype(overwrite)::value != 0 ? zero() : load(sums + r * stride + c);
      }
      for (int k = 0; k < K; ++k) {
        const Vec v = in_register(load_value(values + k * value_step + c * As::kSize));
        for (int r = 0; r < R; ++r) acc[r] = fma(weight[r][k], v, acc[r]);
      }
      for (int r = 0; r < R; ++r) store(sums + r * stride + c, acc[r]);
    });
  };
  // Two loops: clang would ask in each step.
  first ? all_steps(Count<1>{}) : all_steps(Count<0>{});
}

// The same for units of several keys, which lie in different rows: they are brought side by side in
// registers, and the sums stay in the order that this leaves (in_order undoes it).
template <int R, int K>
CPUATTN_INLINE void add_pairs(const char* values, int64_t value_step, const Unit* weights,
                              int64_t head_dim_v, Real* sums, int64_t stride, bool first) {
  constexpr int kPairs = (K + 1) / 2;
  Operand weight[R][kPairs];
  for (int r = 0; r < R; ++r) {
    for (int k = 0; k < kPairs; ++k)
      weight[r][k] = spread_unit(weights + r * units(kDecodeKeys) + k);
  }
  const auto fetch = [&](int64_t c) CPUATTN_LAMBDA {
    for (int k = 0; k < K; ++k) fetch_ahead(values + k * value_step + c * AsUnits::kSize);
  };
  for_vectors<AsUnits>(head_dim_v, fetch, [&](int64_t c, auto load_row) CPUATTN_LAMBDA {
    Vec acc[R][2];
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < 2; ++i) {
        acc[r][i] = first ? zero() : load(sums + r * stride + 2 * c + i * kLanes);
      }
    }
    for (int k = 0; k < kPairs; ++k) {
      const char* p = values + 2 * k * value_step + c * AsUnits::kSize;
      const char* q = p + value_step;
      Operand pairs[2];
      interleave(load_row(p), 2 * k + 1 < K ? load_row(q) : no_units(), pairs);
      for (int r = 0; r < R; ++r) {
        for (int i = 0; i < 2; ++i) acc[r][i] = multiply_add(weight[r][k], pairs[i], acc[r][i]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < 2; ++i) store(sums + r * stride + 2 * c + i * kLanes, acc[r][i]);
    }
  });
}

// Scores of the keys [begin, end) of a block, four at a time.
template <class As>
CPUATTN_NOINLINE void score_keys(const WorkItem& item, const DecodeState& s,
                                 const DecodeBlock& block, int64_t begin, int64_t end) {
  const Rows& rows = block.kv.key;
  for_groups<kDotRows>(0, s.rows, [&](int64_t r, auto size) CPUATTN_LAMBDA {
    const Unit* query = s.query + r * s.query_stride;
    for (int64_t key = begin; key < end; key += kQuad) {
      score_four_keys<decltype(size)::value, As>(
          rows.data + key * rows.step, rows.step, block.kv.end - block.kv.begin - key, query,
          s.query_stride, units(item.head_dim), block.scores + r * kDecodeKeys + key);
    }
  });
}

// Takes the values [begin, end) of a block into s.block_sum, kQuad units at a time. Fewer are left
// only at the end of a row's keys: no key may stand in for them, its weight of 0 would turn an
// infinite value into NaN.
template <class As>
CPUATTN_NOINLINE void take_values(const WorkItem& item, const DecodeState& s,
                                  const DecodeBlock& block, int64_t begin, int64_t end) {
  const Rows& rows = block.kv.value;
  for_groups<kDotRows>(0, s.rows, [&](int64_t r, auto size) CPUATTN_LAMBDA {
    constexpr int R = decltype(size)::value;
    Real* sums = s.block_sum + r * s.output_stride;
    for_groups<kQuad * kDepth>(begin, end, [&](int64_t key, auto keys) CPUATTN_LAMBDA {
      const Unit* weights = block.weights + (r * kDecodeKeys + key) / kDepth;
      if constexpr (kDepth == 1) {
        add_numbers<R, decltype(keys)::value, As>(rows.data + key * rows.step, rows.step, weights,
                                                  item.head_dim_v, sums, s.output_stride, key == 0);
      } else {
        add_pairs<R, decltype(keys)::value>(rows.data + key * rows.step, rows.step, weights,
                                            units(item.head_dim_v), sums, s.output_stride,
                                            key == 0);
      }
    });
  });
}

// The hot loop: the value product of `current` and the score product of `next`, turn by turn;
// either may be null.
CPUATTN_NOINLINE void stream_block(const WorkItem& item, const DecodeState& s,
                                   const DecodeBlock* current, const DecodeBlock* next) {
  const int64_t current_keys = current != nullptr ? current->kv.end - current->kv.begin : 0;
  const int64_t next_keys = next != nullptr ? next->kv.end - next->kv.begin : 0;
  for (int64_t key = 0; key < current_keys || key < next_keys; key += kTurn) {
    if (key < current_keys) {
      with_rows(current->kv.value, [&](auto as) CPUATTN_LAMBDA {
        take_values<decltype(as)>(item, s, *current, key, smaller(key + kTurn, current_keys));
      });
    }
    if (key < next_keys) {
      with_rows(next->kv.key, [&](auto as) CPUATTN_LAMBDA {
        score_keys<decltype(as)>(item, s, *next, key, smaller(key + kTurn, next_keys));
      });
    }
  }
}

// Bias, softcap and ALiBi of one row, then -inf where it does not see the key.
CPUATTN_NOINLINE void modify_row(const WorkItem& item, const DecodeState& s,
                                 const DecodeBlock& block, int64_t r) {
  const Row row = s.of[r];
  const int64_t begin = block.kv.begin;
  const int64_t count = block.kv.end - begin;
  Real* scores = block.scores + r * kDecodeKeys;
  for (int64_t key = 0; key < count; key += kLanes) {
    Vec score = load(scores + key);
    if (!kFoldsScale) score = mul(score, broadcast(score_factor(item)));
    if (item.softcap_factor != 0) {
      score = mul(tanh(score), broadcast(static_cast<Real>(item.softcap_factor)));
    }
    if (item.bias.data != nullptr) {
      const char* p = row_address(item.bias, row) + (begin + key) * item.bias.col_step;
      score = add_bias(score, load_elements(p, item.bias.dtype, item.bias.col_step, count - key));
    }
    if (item.alibi_slopes.data != nullptr) {
      const Real diagonal = static_cast<Real>(row.token + item.offset - (begin + key));
      Real distance[kLanes];
      for (int i = 0; i < kLanes; ++i) distance[i] = diagonal - static_cast<Real>(i);
      score = fma(broadcast(of_head(item.alibi_slopes, row) * -kLog2e), abs(load(distance)), score);
    }
    if (block.partial) {
      const uint64_t bits = block.visible[r] >> key;
      score = select(mask_from_bits(static_cast<uint32_t>(bits)), score, broadcast(kNegInf));
    }
    store(scores + key, score);
  }
}

// Keys past the block's end get -inf, so that the row can be treated in whole vectors.
CPUATTN_INLINE void pad_row(Real* scores, int64_t count) {
  for (int64_t key = count; key < whole_vectors(count); ++key) scores[key] = kNegInf;
}

// Online softmax of one row, lanes = keys. See softmax_columns for the conventions.
CPUATTN_INLINE void softmax_row(Real* scores, int64_t count, Real factor, bool mark, Real* row_max,
                                Real* row_sum, Real* rescale) {
  Vec top = load(scores);
  for (int64_t key = kLanes; key < count; key += kLanes) top = max(load(scores + key), top);
  const Real old = *row_max;
  const Real block_max = reduce_max(top) * factor;
  const Real row_top = block_max > old ? block_max : old;
  const Real base = row_top == kNegInf ? 0 : row_top;
  Vec sum = zero();
  for (int64_t key = 0; key < count; key += kLanes) {
    const Vec score = load(scores + key);
    Vec weight = weight_of<kDepth == 1>(fma(score, broadcast(factor), broadcast(-base)));
    if (mark) weight = select(equal(score, broadcast(kNegInf)), broadcast(kHidden), weight);
    sum = add(sum, weight);
    store(scores + key, weight);
  }
  Real shrink[kLanes];
  store(shrink, exp2(broadcast(old - base)));
  *row_max = row_top;
  *row_sum = *row_sum * shrink[0] + reduce_add(sum);
  *rescale = shrink[0];
}

CPUATTN_NOINLINE void drop_row(const WorkItem& item, const DecodeState& s, const DecodeBlock& block,
                               int64_t r) {
  const Dropout& d = item.dropout;
  Real* weights = block.scores + r * kDecodeKeys;
  Draws draws;
  int64_t drawn = -1;
  for (int64_t key = block.kv.begin; key < block.kv.end; ++key) {
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
    weights[key - block.kv.begin] *= kept ? 1 : 0;
  }
}

// Adds the value rows that are not finite, for the rows that do see them.
CPUATTN_NOINLINE void add_flagged_rows(const WorkItem& item, const DecodeState& s,
                                       const DecodeBlock& block) {
  for (int f = 0; f < block.kv.flagged_count; ++f) {
    const int64_t key = block.kv.flagged[f];
    const char* value = item.value.data + (block.kv.begin + key) * item.value.row_step;
    for (int64_t r = 0; r < s.rows; ++r) {
      const Real weight = block.scores[r * kDecodeKeys + key];
      if (__builtin_signbit(weight)) continue;
      for (int64_t c = 0; c < item.head_dim_v; ++c) {
        s.output[r * s.output_stride + c] +=
            weight * load_element<Real>(value + c * item.value.col_step, item.value.dtype);
      }
    }
  }
}

// The block's scores become weights, and the output shrinks to the new maximum.
CPUATTN_INLINE void weigh_block(const WorkItem& item, const DecodeState& s,
                                const DecodeBlock& block) {
  const int64_t count = block.kv.end - block.kv.begin;
  const bool modified = block.partial || changes_scores(item);
  for (int64_t r = 0; r < s.rows; ++r) {
    Real* scores = block.scores + r * kDecodeKeys;
    if (modified) modify_row(item, s, block, r);
    pad_row(scores, count);
    softmax_row(scores, count, modified ? 1 : score_factor(item), block.kv.flagged_count > 0,
                row_max(item) + r, row_sum(item) + r, s.rescale + r);
    if (item.dropout.active) drop_row(item, s, block, r);
    if constexpr (kDepth > 1) {
      Unit* weights = block.weights + r * units(kDecodeKeys);
      if (count % kDepth != 0) scores[count] = 0;
      for (int64_t key = 0; key < count; key += kLanes) {
        store_row_units(weights + key / kDepth, load(scores + key));
      }
    }
  }
}

CPUATTN_INLINE void take_in_block(const WorkItem& item, const DecodeState& s,
                                  const DecodeBlock& block) {
  for (int64_t r = 0; r < s.rows; ++r) {
    const Vec rescale = broadcast(s.rescale[r]);
    for (int64_t c = 0; c < s.output_stride; c += kLanes * kDepth) {
      Real* p = s.output + r * s.output_stride + c;
      Vec sum[kDepth];
      for (int i = 0; i < kDepth; ++i) {
        sum[i] = load(s.block_sum + r * s.output_stride + c + i * kLanes);
      }
      in_order(sum);
      for (int i = 0; i < kDepth; ++i) {
        store(p + i * kLanes, fma(load(p + i * kLanes), rescale, sum[i]));
      }
    }
  }
  if (block.kv.flagged_count > 0) add_flagged_rows(item, s, block);
}

// Writes out (normalised) or the partial output, and reports whether every element is finite.
CPUATTN_INLINE bool close_rows(const WorkItem& item, const DecodeState& s) {
  Vec finite = zero();
  for (int64_t r = 0; r < s.rows; ++r) {
    char* row = row_address(item.out, s.of[r]);
    DType dtype = item.out.dtype;
    int64_t col_step = item.out.col_step;
    const Real sum = row_sum(item)[r];
    Real factor = sum == 0 ? 0 : static_cast<Real>(item.weight_factor) / sum;
    if (item.partial) {
      row = reinterpret_cast<char*>(static_cast<Real*>(item.partial_out) + r * item.head_dim_v);
      dtype = kRealType;
      col_step = sizeof(Real);
      factor = 1;
    }
    for (int64_t c = 0; c < item.head_dim_v; c += kLanes) {
      const Vec v = mul(load(s.output + r * s.output_stride + c), broadcast(factor));
      finite = fma(v, zero(), finite);
      store_elements(row + c * col_step, dtype, col_step,
                     static_cast<int>(smaller(kLanes, item.head_dim_v - c)), v);
    }
  }
  return reduce_add(finite) == 0;
}

// What the rows see together: `all` from the first to the last visible column.
struct RowsView {
  KeyRange all;
  bool same;  // every row sees exactly `all`
};
CPUATTN_INLINE RowsView view_rows(const WorkItem& item, const DecodeState& s) {
  RowsView view{{item.kv_end, item.kv_begin}, !has_bits(item)};
  for (int64_t r = 0; r < s.rows; ++r) {
    const KeyRange range = s.range[r];
    view.same = view.same && range.begin == s.range[0].begin && range.end == s.range[0].end;
    if (range.begin == range.end) continue;
    view.all.begin = smaller(view.all.begin, range.begin);
    view.all.end = larger(view.all.end, range.end);
  }
  return view;
}

// Opens the first block from `begin` on that some row sees; false when there is none, or nobody
// wants it.
CPUATTN_INLINE bool open_block(const WorkItem& item, const DecodeState& s, const RowsView& view,
                               int64_t begin, bool careful, DecodeBlock& block) {
  for (; begin < view.all.end && !is_cancelled(item); begin += kDecodeKeys) {
    const int64_t end = smaller(begin + kDecodeKeys, view.all.end);
    const Sight sight = view.same ? Sight::kAll : look_rows(item, s, begin, end, block.visible);
    if (sight == Sight::kNone) continue;
    block.partial = sight == Sight::kSome;
    block.kv = open_kv_rows(item, begin, end, block.scratch, careful);
    return true;
  }
  return false;
}

CPUATTN_INLINE bool decode_pass(const WorkItem& item, DecodeState& s, bool careful) {
  open_queries(item, s);
  const RowsView view = view_rows(item, s);
  DecodeBlock* current = &s.blocks[0];
  DecodeBlock* next = &s.blocks[1];
  if (open_block(item, s, view, view.all.begin, careful, *current)) {
    stream_block(item, s, nullptr, current);
    for (bool more = true; more;) {
      weigh_block(item, s, *current);
      more = open_block(item, s, view, current->kv.begin + kDecodeKeys, careful, *next);
      stream_block(item, s, current, more ? next : nullptr);
      take_in_block(item, s, *current);
      DecodeBlock* done = current;
      current = next;
      next = done;
    }
  }
  return close_rows(item, s);
}

void decode(const WorkItem& item) {
  Arena arena{item.scratch, 0};
  DecodeState s =
      take_decode_state(arena, {item.row_end - item.row_begin, item.head_dim, item.head_dim_v, 1});
  if (!decode_pass(item, s, false) && may_hide_keys(item)) decode_pass(item, s, true);
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
