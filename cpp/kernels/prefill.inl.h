// SPDX-License-Identifier: MIT
// Blocked attention with query rows in the lanes: the kernel for many rows.
//
//   S^T = K Q^T      O^T = V^T P^T      (FlashAttention-2, Dao 2023, Alg. 1, transposed)
//
//   for each kv block:                                   keys and values stay in L2
//     for each row tile (kTileVecs * kLanes query rows): query^T and output^T stay in L1 / L2
//       for each run of keys that the tile sees:
//         scores^T = keys . query^T                      score_columns, the hot loop
//         bias, softcap, ALiBi, visibility               only where present
//         online softmax, vertical over keys             no horizontal operation anywhere
//         output^T = output^T * rescale + values^T . weights^T   output_columns, the hot loop
//
// Only the query (once) and the output (once) are transposed; keys and values are read in their
// own layout by scalar broadcasts, so any head_dim and any number of keys is exact without padding.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

constexpr int64_t kPrefillKeys = 128;  // keys of one step: two visibility words
// Wide heads get blocks of half as many keys: the scratch for copied keys and values stays small.
CPUATTN_INLINE int64_t keys_per_block(int64_t head_dim, int64_t head_dim_v) {
  return head_dim + head_dim_v > 512 ? kPrefillKeys / 2 : kPrefillKeys;
}
// Units from one plane of the weights to the next.
CPUATTN_INLINE int64_t weight_plane(const RowTile& tile) {
  return units(kPrefillKeys) * tile.width;
}

struct PrefillScratch {
  RowTile* tiles;
  Real* scores;       // (kv_block, tile rows), then weights
  Unit* packed;       // weights as units, where they are not packed in place
  uint64_t* visible;  // (kv_block + kWordKeys): a word of row bits per key
  KvScratch kv;
};

CPUATTN_INLINE PrefillScratch take_prefill_scratch(Arena& arena, const KernelShape& shape) {
  const int64_t tiles = (shape.row_block + kTileRows - 1) / kTileRows;
  PrefillScratch s;
  s.tiles = arena.take<RowTile>(tiles);
  for (int64_t t = 0; t < tiles; ++t) {
    Unit* query_t = arena.take<Unit>(query_rows(shape) * kTileRows);
    Real* output_t = arena.take<Real>(output_rows(shape) * kTileRows);
    if (s.tiles != nullptr) {
      s.tiles[t].query_t = query_t;
      s.tiles[t].output_t = output_t;
    }
  }
  s.scores = arena.take<Real>(kPrefillKeys * kTileRows);
  s.packed = arena.take<Unit>(kDepth > 1 ? shape.planes * units(kPrefillKeys) * kTileRows : 0);
  s.visible = arena.take<uint64_t>(kPrefillKeys + kWordKeys);
  s.kv = take_kv_scratch(arena, keys_per_block(shape.head_dim, shape.head_dim_v), shape);
  return s;
}

int64_t prefill_scratch_bytes(const KernelShape& shape) {
  Arena counter{nullptr, 0};
  take_prefill_scratch(counter, shape);
  return counter.used;
}

CPUATTN_NOINLINE void apply_factor(const WorkItem& item, const RowTile& tile, const Run& run,
                                   Real* scores) {
  const Vec factor = broadcast(score_factor(item));
  for (int64_t key = 0; key < run.end - run.begin; ++key) {
    for (int vec = run.first_vec; vec < run.last_vec; ++vec) {
      Real* p = scores + key * tile.width + vec * kLanes;
      store(p, mul(load(p), factor));
    }
  }
}

CPUATTN_NOINLINE void apply_softcap(const WorkItem& item, const RowTile& tile, const Run& run,
                                    Real* scores) {
  for (int64_t key = 0; key < run.end - run.begin; ++key) {
    for (int vec = run.first_vec; vec < run.last_vec; ++vec) {
      Real* p = scores + key * tile.width + vec * kLanes;
      store(p, mul(tanh(load(p)), broadcast(static_cast<Real>(item.softcap_factor))));
    }
  }
}

CPUATTN_NOINLINE void apply_bias(const WorkItem& item, const RowTile& tile, const Run& run,
                                 Real* scores) {
  const bool one_row = item.bias.token_step == 0 && item.bias.head_step == 0;
  for (int vec = run.first_vec; vec < run.last_vec; ++vec) {
    const LaneRows rows = lane_rows(item.bias, tile, vec);
    for (int64_t key = run.begin; key < run.end; key += kLanes) {
      const int64_t count = smaller(kLanes, run.end - key);
      Vec block[kLanes];
      if (one_row) {  // the same bias for every row: a scalar per key
        for (int64_t i = 0; i < count; ++i) {
          const char* p = item.bias.data + (key + i) * item.bias.col_step;
          block[i] = broadcast(load_element<Real>(p, item.bias.dtype));
        }
      } else {
        load_transposed(rows, key, count, block);
        for (int i = 0; i < rows.valid; ++i) {
          prefetch_l2(rows.row[i] + (key + kPrefillKeys) * item.bias.col_step);
        }
      }
      Real* p = scores + (key - run.begin) * tile.width + vec * kLanes;
      for (int64_t i = 0; i < count; ++i) {
        store(p + i * tile.width, add_bias(load(p + i * tile.width), block[i]));
      }
    }
  }
}

CPUATTN_NOINLINE void apply_alibi(const WorkItem& item, const RowTile& tile, const Run& run,
                                  Real* scores) {
  for (int vec = run.first_vec; vec < run.last_vec; ++vec) {
    Real slopes[kLanes] = {};
    Real distances[kLanes] = {};  // from the first key of the run to the row's diagonal
    for (int i = 0; i < kLanes && vec * kLanes + i < tile.rows; ++i) {
      const Row row = tile.of[vec * kLanes + i];
      slopes[i] = of_head(item.alibi_slopes, row) * -kLog2e;
      distances[i] = static_cast<Real>(row.token + item.offset - run.begin);
    }
    const Vec slope = load(slopes);
    Vec distance = load(distances);
    for (int64_t key = 0; key < run.end - run.begin; ++key) {
      Real* p = scores + key * tile.width + vec * kLanes;
      store(p, fma(slope, abs(distance), load(p)));
      distance = sub(distance, broadcast(1));
    }
  }
}

CPUATTN_NOINLINE void apply_visibility(const RowTile& tile, const Run& run, Real* scores) {
  for (int64_t key = 0; key < run.end - run.begin; ++key) {
    for (int vec = run.first_vec; vec < run.last_vec; ++vec) {
      Real* p = scores + key * tile.width + vec * kLanes;
      const uint64_t bits = run.visible[key] >> (vec * kLanes);
      store(p, select(mask_from_bits(static_cast<uint32_t>(bits)), load(p), broadcast(kNegInf)));
    }
  }
}

// scores^T of one run, -inf where a row does not see a key; in log2 units after pending_factor.
// The product may call `beside`, work for the vector unit, while the matrix unit is busy.
template <class Beside>
CPUATTN_INLINE void score_run(const WorkItem& item, const RowTile& tile, const KvBlock& block,
                              const Run& run, const PrefillScratch& scratch, bool fetch,
                              const Beside& beside) {
  Real* scores = scratch.scores;
  const Planes planes{planes_of(item), key_plane(scratch.kv, item.head_dim),
                      query_plane(item, tile)};
  const int64_t stride = block.key.step / static_cast<int64_t>(sizeof(Unit));
  const Unit* keys =
      reinterpret_cast<const Unit*>(block.key.data) + (run.begin - block.begin) * stride;
  const Ahead ahead{keys + keys_per_block(item.head_dim, item.head_dim_v) * stride, stride,
                    fetch ? units(item.head_dim) : 0};
  const bool changed = changes_scores(item);
  const uint64_t* visible = changed ? nullptr : run.visible;
  for_groups<kMicroVecs>(run.first_vec, run.last_vec, [&](int64_t vec, auto size) CPUATTN_LAMBDA {
    const int64_t lane = vec * kLanes;
    score_columns<decltype(size)::value>(
        keys, stride, run.end - run.begin, tile.query_t + lane, units(item.head_dim), tile.width,
        visible, static_cast<int>(lane), scores + lane, planes, ahead, beside);
  });
  if (!changed) return;
  if (!kFoldsScale) apply_factor(item, tile, run, scores);
  if (item.softcap_factor != 0) apply_softcap(item, tile, run, scores);
  if (item.bias.data != nullptr) apply_bias(item, tile, run, scores);
  if (item.alibi_slopes.data != nullptr) apply_alibi(item, tile, run, scores);
  if (run.visible != nullptr) apply_visibility(tile, run, scores);
}

// Zeroes what follows `count` weights, up to a whole group of units, in `vecs` vectors of rows.
CPUATTN_INLINE void clear_units(Real* first, int64_t width, int64_t count, int vecs) {
  for (int64_t unit = (count + kDepth - 1) / kDepth; unit < units(count); ++unit, first += width) {
    for (int n = 0; n < vecs; ++n) store(first + n * kLanes, zero());
  }
}

// Online softmax (Milakov and Gimelshein 2018) of N vectors of rows, vertical over the keys: scores
// become weights 2^(score * factor - max), `rescale` is what older sums and outputs shrink by. The
// maxima are found at once, the weights as `weigh` is called, the sums by `finish`. kMark writes -0
// for a key that the row does not see, to tell it from a weight that underflowed. kPack writes
// units, in place: none is written before its keys were read.
template <int N, bool kFull, bool kMark, bool kPack>
struct ColumnSoftmax {
  Real* scores;
  int64_t count, width;
  Real *row_sum, *rescale;
  Vec scale, minus_base[N], sum[N];
  int64_t next = 0;

  CPUATTN_INLINE ColumnSoftmax(Real* s, int64_t keys, int64_t stride, Real factor, Real* row_max,
                               Real* sums, Real* shrink)
      : scores(s), count(keys), width(stride), row_sum(sums), rescale(shrink) {
    scale = broadcast(factor);
    Vec top[N];
    for (int n = 0; n < N; ++n) top[n] = broadcast(kNegInf);
    for (int64_t key = 0; key < count; ++key) {
      // A NaN score does not raise the maximum (second operand), it reaches the sum below.
      for (int n = 0; n < N; ++n) top[n] = max(load(scores + key * width + n * kLanes), top[n]);
    }
    for (int n = 0; n < N; ++n) {
      const Vec old = load(row_max + n * kLanes);
      const Vec highest = max(mul(top[n], scale), old);
      const Vec limit = add(old, broadcast(kStaleMax));
      top[n] = kStaleMax > 0 ? select(less(limit, highest), highest, old) : highest;
      store(row_max + n * kLanes, top[n]);
      // A row that has seen nothing yet keeps a base of 0: -inf - (-inf) would be NaN.
      const Vec base = select(equal(top[n], broadcast(kNegInf)), zero(), top[n]);
      minus_base[n] = sub(zero(), base);
      store(rescale + n * kLanes, exp2(sub(old, base)));
      sum[n] = zero();
    }
  }

  // The weights of the next `keys` keys.
  CPUATTN_INLINE void weigh(int64_t keys) {
    Vec total[N];
    for (int n = 0; n < N; ++n) total[n] = sum[n];
    const auto weight_at = [&](int64_t key, int n) CPUATTN_LAMBDA {
      const Vec score = load(scores + key * width + n * kLanes);
      Vec weight = weight_of<kFull>(fma(score, scale, minus_base[n]));
      if constexpr (kMark) {
        weight = select(equal(score, broadcast(kNegInf)), broadcast(kHidden), weight);
      }
      total[n] = add(total[n], weight);
      return weight;
    };
    const int64_t end = smaller(next + keys, count);
    for_groups<kPack ? kDepth : 1>(next, end, [&](int64_t key, auto size) CPUATTN_LAMBDA {
      for (int n = 0; n < N; ++n) {
        if constexpr (kPack) {
          Vec parts[kDepth];
          for (int i = 0; i < kDepth; ++i) {
            parts[i] = i < decltype(size)::value ? weight_at(key + i, n) : zero();
          }
          store(scores + key / kDepth * width + n * kLanes, join(parts));
        } else {
          store(scores + key * width + n * kLanes, weight_at(key, n));
        }
      }
    });
    next = end;
    for (int n = 0; n < N; ++n) sum[n] = total[n];
  }

  CPUATTN_INLINE void finish() {
    weigh(count - next);
    if constexpr (kPack) {
      clear_units(scores + (count + kDepth - 1) / kDepth * width, width, count, N);
    }
    for (int n = 0; n < N; ++n) {
      Real* p = row_sum + n * kLanes;
      store(p, fma(load(p), load(rescale + n * kLanes), sum[n]));
    }
  }
};

template <int N, bool kFull, bool kMark, bool kPack>
CPUATTN_NOINLINE void softmax_columns(Real* scores, int64_t count, int64_t width, Real factor,
                                      Real* row_max, Real* row_sum, Real* rescale) {
  ColumnSoftmax<N, kFull, kMark, kPack>(scores, count, width, factor, row_max, row_sum, rescale)
      .finish();
}

template <int N, bool kFull>
CPUATTN_INLINE auto softmax_for(bool pack, bool mark) {
  return pack   ? softmax_columns<N, kFull, false, true>
         : mark ? softmax_columns<N, kFull, true, false>
                : softmax_columns<N, kFull, false, false>;
}

// Weights as units, for what softmax_columns could not pack.
CPUATTN_NOINLINE void pack_weights(const RowTile& tile, const Run& run, int planes,
                                   const Real* weights, Unit* packed) {
  const int64_t count = run.end - run.begin;
  const auto at = [&](int p, int64_t key, int64_t lane) CPUATTN_LAMBDA {
    Unit* row = packed + p * weight_plane(tile) + (key + kDepth - 1) / kDepth * tile.width;
    return reinterpret_cast<Real*>(row + lane);
  };
  for (int64_t lane = run.first_vec * kLanes; lane < run.last_vec * kLanes; lane += kLanes) {
    for_groups<kDepth>(0, count, [&](int64_t key, auto size) CPUATTN_LAMBDA {
      Vec rest[kDepth];
      for (int i = 0; i < kDepth; ++i) {
        const bool exists = i < decltype(size)::value;
        rest[i] = exists ? load(weights + (key + i) * tile.width + lane) : zero();
      }
      join_terms(rest, planes, [&](int p, Vec v) CPUATTN_LAMBDA { store(at(p, key, lane), v); });
    });
    for (int p = 0; p < planes; ++p) clear_units(at(p, count, lane), tile.width, count, 1);
  }
}

// Zeroes dropped weights of the tile; the sign survives, so a marked -0 stays marked.
CPUATTN_NOINLINE void drop_weights(const WorkItem& item, const RowTile& tile, const Run& run,
                                   Real* weights) {
  const Dropout& d = item.dropout;
  const int64_t first = run.first_vec * kLanes;
  const int count = static_cast<int>(smaller(tile.rows, run.last_vec * kLanes) - first);
  const int64_t keys = run.end - run.begin;
  if (d.keep.data != nullptr || d.keep_nothing) {
    for (int64_t i = 0; i < count; ++i) {
      const char* keep =
          d.keep_nothing ? nullptr
                         : row_address(d.keep, tile.of[first + i]) + run.begin * d.keep.col_step;
      for (int64_t key = 0; key < keys; ++key) {
        const bool kept = keep != nullptr && keep[key * d.keep.col_step] != 0;
        weights[key * tile.width + first + i] *= kept ? 1 : 0;
      }
    }
    return;
  }
  Draws draws;
  int64_t drawn = -1;
  for (int64_t key = 0; key < keys; ++key) {
    const int64_t column = d.shared_columns ? 0 : run.begin + key;
    if (column / 4 != drawn) {
      drawn = column / 4;
      draw(item, tile.of + first, count, drawn, draws);
    }
    Real* p = weights + key * tile.width + first;
    const uint32_t* word = draws.word[column % 4];
    for (int i = 0; i < count; ++i) p[i] *= word[i] >= d.threshold ? 1 : 0;
  }
}

// Adds the value rows that are not finite, for the rows that do see them, element by element.
CPUATTN_NOINLINE void add_flagged(const WorkItem& item, const RowTile& tile, const KvBlock& block,
                                  const Run& run, const Real* weights) {
  for (int f = 0; f < block.flagged_count; ++f) {
    const int64_t key = block.begin + block.flagged[f];
    if (key < run.begin || key >= run.end) continue;
    const char* value = item.value.data + key * item.value.row_step;
    for (int lane = run.first_vec * kLanes; lane < run.last_vec * kLanes; ++lane) {
      const Real weight = weights[(key - run.begin) * tile.width + lane];
      if (__builtin_signbit(weight)) continue;
      for (int64_t c = 0; c < item.head_dim_v; ++c) {
        tile.output_t[c * tile.width + lane] +=
            weight * load_element<Real>(value + c * item.value.col_step, item.value.dtype);
      }
    }
  }
}

// output^T takes in one run. Vectors that hold nothing yet are overwritten or cleared first.
template <class Beside>
CPUATTN_INLINE void output_run(const WorkItem& item, RowTile& tile, const KvBlock& block,
                               const Run& run, const Unit* weights, const Real* rescale,
                               const KvScratch& scratch, bool fetch, const Beside& beside) {
  const Planes planes{planes_of(item), value_plane(scratch, item.head_dim_v), weight_plane(tile)};
  const uint32_t mine = ((1u << run.last_vec) - 1u) & ~((1u << run.first_vec) - 1u);
  const bool fresh = (tile.started & mine) == 0;
  for (int vec = run.first_vec; vec < run.last_vec && !fresh; ++vec) {
    if ((tile.started >> vec & 1u) != 0) continue;
    Real* p = tile.output_t + vec * kLanes;
    for (int64_t c = 0; c < item.head_dim_v; ++c) store(p + c * tile.width, zero());
  }
  tile.started |= mine;
  const int64_t stride = block.value.step / static_cast<int64_t>(sizeof(Unit));
  const Unit* values = reinterpret_cast<const Unit*>(block.value.data) +
                       (run.begin - block.begin) / kDepth * (kTransposesValues ? 1 : stride);
  const Ahead ahead{values + keys_per_block(item.head_dim, item.head_dim_v) * stride, stride,
                    fetch ? item.head_dim_v : 0};
  for_groups<kMicroVecs>(run.first_vec, run.last_vec, [&](int64_t vec, auto size) CPUATTN_LAMBDA {
    const int64_t lane = vec * kLanes;
    output_columns<decltype(size)::value>(
        values, stride, units(run.end - run.begin), weights + lane, item.head_dim_v, tile.width,
        fresh ? nullptr : rescale + lane, tile.output_t + lane, planes, ahead, beside);
  });
}

// A run against two halves of a tile, for a matrix unit: while it multiplies for one half, the
// vector unit exponentiates the other.
CPUATTN_NOINLINE void attend_halves(const WorkItem& item, RowTile& tile, const KvBlock& block,
                                    const Run& run, const PrefillScratch& scratch) {
  constexpr int N = kTileVecs / 2;
  using Softmax = ColumnSoftmax<N, kDepth == 1, false, true>;
  Run halves[2] = {run, run};
  halves[0].last_vec = halves[1].first_vec = N;
  Real rescale[kTileRows];
  const int64_t count = run.end - run.begin;
  const auto softmax = [&](int half) CPUATTN_LAMBDA {
    const int64_t lane = half * N * kLanes;
    return Softmax(scratch.scores + lane, count, tile.width, pending_factor(item),
                   tile.row_max + lane, tile.row_sum + lane, rescale + lane);
  };
  const auto score = [&](int half, const auto& beside) CPUATTN_LAMBDA {
    score_run(item, tile, block, halves[half], scratch, false, beside);
  };
  const auto output = [&](int half, const auto& beside) CPUATTN_LAMBDA {
    output_run(item, tile, block, halves[half], reinterpret_cast<const Unit*>(scratch.scores),
               rescale, scratch.kv, false, beside);
  };
  score(0, Nothing{});
  Softmax first = softmax(0);
  score(1, [&](int64_t steps) CPUATTN_LAMBDA { first.weigh(share_of(count, steps)); });
  first.finish();
  Softmax second = softmax(1);
  output(0, [&](int64_t steps) CPUATTN_LAMBDA { second.weigh(share_of(count, steps)); });
  second.finish();
  output(1, Nothing{});
}

// One step of the recurrence: the tile's state takes in one run of keys.
CPUATTN_INLINE void attend_run(const WorkItem& item, RowTile& tile, const KvBlock& block,
                               const Run& run, const PrefillScratch& scratch) {
  const bool mark = block.flagged_count > 0;
  const bool pack = !mark && !item.dropout.active && planes_of(item) == 1;
  if (kOverlaps && pack && run.last_vec - run.first_vec == kTileVecs) {
    return attend_halves(item, tile, block, run, scratch);
  }
  const bool fetch = block.in_place && tile.first_row == item.row_begin;
  Real* scores = scratch.scores;
  score_run(item, tile, block, run, scratch, fetch, Nothing{});
  Real rescale[kTileRows];
  const Real factor = pending_factor(item);
  for_groups<kMicroVecs>(run.first_vec, run.last_vec, [&](int64_t vec, auto size) CPUATTN_LAMBDA {
    constexpr int N = decltype(size)::value;
    constexpr bool kNumbers = kDepth == 1;          // weights are stored as they are
    constexpr bool kTerms = kNumbers || kOverlaps;  // or may be, in several terms
    const int64_t lane = vec * kLanes;
    const auto softmax = planes_of(item) > 1 ? softmax_for<N, kTerms>(pack, mark)
                                             : softmax_for<N, kNumbers>(pack, mark);
    softmax(scores + lane, run.end - run.begin, tile.width, factor, tile.row_max + lane,
            tile.row_sum + lane, rescale + lane);
  });
  if (item.dropout.active) drop_weights(item, tile, run, scores);
  const bool packed = pack || kDepth == 1;
  if (!packed) pack_weights(tile, run, planes_of(item), scores, scratch.packed);
  const Unit* weights = packed ? reinterpret_cast<const Unit*>(scores) : scratch.packed;
  output_run(item, tile, block, run, weights, rescale, scratch.kv, fetch, Nothing{});
  if (mark) add_flagged(item, tile, block, run, scores);
}

// Writes the weights of one run: the scores again, against the final maximum and sum.
CPUATTN_NOINLINE void write_weights(const WorkItem& item, const RowTile& tile, const Run& run,
                                    Real* scores) {
  const int64_t count = run.end - run.begin;
  const Vec factor = broadcast(pending_factor(item));
  for (int vec = run.first_vec; vec < run.last_vec; ++vec) {
    const Vec sum = load(tile.row_sum + vec * kLanes);
    const Vec top = load(tile.row_max + vec * kLanes);
    const Vec base = select(equal(top, broadcast(kNegInf)), zero(), top);
    for (int64_t key = 0; key < count; ++key) {
      Real* p = scores + key * tile.width + vec * kLanes;
      store(p, div(exp2(fma(load(p), factor, sub(zero(), base))), sum));
    }
  }
  const bool dropped = item.weights_after_dropout && item.dropout.active;
  if (dropped) drop_weights(item, tile, run, scores);
  const Real kept = dropped ? static_cast<Real>(item.weight_factor) : 1;
  for (int lane = run.first_vec * kLanes; lane < run.last_vec * kLanes && lane < tile.rows;
       ++lane) {
    if (tile.row_sum[lane] == 0) continue;
    char* row = row_address(item.weights, tile.of[lane]);
    for (int64_t key = 0; key < count; ++key) {
      const Real weight = scores[key * tile.width + lane] * kept;
      store_element(row + (run.begin + key) * item.weights.col_step, item.weights.dtype, weight);
    }
  }
}

// ---------------------------------------------------------------- the item

// Asks between two blocks, where tiles hold nothing: the caller's function may use its own.
CPUATTN_INLINE bool ends_early(const WorkItem& item) {
  if (item.cancelled == nullptr) return false;
  const bool cancelled = is_cancelled(item);
#ifdef CPUATTN_SESSION
  CPUATTN_SESSION::configure();
#endif
  return cancelled;
}

template <class Body>
CPUATTN_INLINE void for_kv_blocks(const WorkItem& item, const PrefillScratch& scratch,
                                  int64_t tiles, bool careful, Body body) {
  int64_t begin = item.kv_end;
  int64_t end = item.kv_begin;
  for (int64_t t = 0; t < tiles; ++t) {
    for (int vec = 0; vec < scratch.tiles[t].vecs; ++vec) {
      const KeyRange some = scratch.tiles[t].some[vec];
      if (some.begin >= some.end) continue;
      begin = smaller(begin, some.begin);
      end = larger(end, some.end);
    }
  }
  const int64_t keys = keys_per_block(item.head_dim, item.head_dim_v);
  begin -= (begin - item.kv_begin) % keys;  // blocks lie on a grid that no row moves
  for (; begin < end && !ends_early(item); begin += keys) {
    const KvBlock block =
        open_kv_block(item, begin, smaller(begin + keys, end), scratch.kv, careful);
    for (int64_t t = 0; t < tiles; ++t) body(scratch.tiles[t], block);
  }
}

// One pass over all keys; returns whether the output is finite.
CPUATTN_INLINE bool prefill_pass(const WorkItem& item, const PrefillScratch& scratch, int64_t tiles,
                                 bool careful) {
  for (int64_t t = 0; t < tiles; ++t) {
    open_tile(item, item.row_begin + t * kTileRows, scratch.tiles[t]);
  }
  for_kv_blocks(item, scratch, tiles, careful, [&](RowTile& tile, const KvBlock& block) {
    for_runs(item, tile, block, scratch.visible,
             [&](const Run& run) { attend_run(item, tile, block, run, scratch); });
  });
  bool finite = true;
  for (int64_t t = 0; t < tiles; ++t) finite = close_tile(item, scratch.tiles[t]) && finite;
  return finite;
}

void prefill(const WorkItem& item) {
#ifdef CPUATTN_SESSION
  const CPUATTN_SESSION session;
#endif
  Arena arena{item.scratch, 0};
  const PrefillScratch scratch = take_prefill_scratch(
      arena, {item.row_end - item.row_begin, item.head_dim, item.head_dim_v, planes_of(item)});
  const int64_t tiles = (item.row_end - item.row_begin + kTileRows - 1) / kTileRows;
  // 0 * NaN is NaN: a hidden key's value row can leak through a weight of 0. It shows in the
  // output, so the fast pass needs no test in its loops and the rare item is done again with care.
  if (!prefill_pass(item, scratch, tiles, false) && may_hide_keys(item)) {
    prefill_pass(item, scratch, tiles, true);
  }
  if (item.weights.data != nullptr) {
    for_kv_blocks(item, scratch, tiles, false, [&](RowTile& tile, const KvBlock& block) {
      for_runs(item, tile, block, scratch.visible, [&](const Run& run) {
        score_run(item, tile, block, run, scratch, false, Nothing{});
        write_weights(item, tile, run, scratch.scores);
      });
    });
  }
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
