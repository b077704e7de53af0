// SPDX-License-Identifier: MIT
// A tile of query rows, one per lane: opened with its ranges and its query, closed into the output.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

constexpr int kTileRows = kTileVecs * kLanes;
static_assert(kTileRows <= 64, "a visibility word holds one bit per row of a tile");
constexpr int64_t kRangeStep = 16;  // ranges of a vector of rows are widened to this many keys

// One tile of query rows and its running state, all with rows in the lanes.
struct RowTile {
  int64_t first_row;
  int rows, vecs;  // valid rows; vectors of lanes
  int64_t width;   // vecs * kLanes: the stride of query_t, output_t and the score tile
  Unit* query_t;   // (units of head_dim, width); scaled where units fold the scale
  Real* output_t;  // (head_dim_v, width), unnormalised
  Real row_max[kTileRows];
  Real row_sum[kTileRows];
  Row of[kTileRows];  // token and head of each row
  KeyRange range[kTileRows];
  // By vector of rows: columns that some row sees (widened), columns that every row sees.
  KeyRange some[kTileVecs], every[kTileVecs];
  uint32_t started;  // bit v: vector v of output_t holds something
};

// Rows of query_t and output_t, in whatever multiple the products want.
CPUATTN_INLINE int64_t query_rows(const KernelShape& shape) {
  return shape.planes * units(shape.head_dim);
}
CPUATTN_INLINE int64_t output_rows(const KernelShape& shape) {
  return round_up(shape.head_dim_v, kUnitGroup);
}

// Units from one plane of query_t to the next.
CPUATTN_INLINE int64_t query_plane(const WorkItem& item, const RowTile& tile) {
  return units(item.head_dim) * tile.width;
}
// The rows of one vector of a tile in a caller's array.
CPUATTN_INLINE LaneRows lane_rows(const RowPlane& plane, const RowTile& tile, int vec) {
  LaneRows rows;
  rows.valid = static_cast<int>(smaller(kLanes, tile.rows - vec * kLanes));
  rows.dtype = plane.dtype;
  rows.col_step = plane.col_step;
  for (int i = 0; i < rows.valid; ++i) rows.row[i] = row_address(plane, tile.of[vec * kLanes + i]);
  return rows;
}

// Fetches the tile's part of a caller's array: a transpose touches too many lines at once to wait
// for each of them.
CPUATTN_INLINE void fetch_tile(const RowPlane& plane, int64_t columns, const RowTile& tile) {
  const int64_t step = larger(plane.col_step, 64);
  for (int i = 0; i < tile.rows; ++i) {
    const char* row = row_address(plane, tile.of[i]);
    for (int64_t b = 0; b < columns * plane.col_step; b += step) prefetch_l2(row + b);
  }
}

CPUATTN_INLINE void pack_query(const WorkItem& item, RowTile& tile) {
  const Vec factor = broadcast(query_factor(item));
  for (int vec = 0; vec < tile.vecs; ++vec) {
    const LaneRows rows = lane_rows(item.query, tile, vec);
    const auto put = [&](int p, int64_t unit, Vec units_of_rows) CPUATTN_LAMBDA {
      Unit* out = tile.query_t + p * query_plane(item, tile) + unit * tile.width;
      store(reinterpret_cast<Real*>(out) + vec * kLanes, units_of_rows);
    };
    int64_t column = 0;
    Vec block[kLanes];
    if (kDepth > 1 && planes_of(item) == 1 && query_factor(item) == 1) {  // units as they are
      for (; rows.is_square_of_units(item.head_dim - column); column += kLanes * kDepth) {
        load_square(rows.row, column / kDepth, block);
        for (int i = 0; i < kLanes; ++i) put(0, column / kDepth + i, block[i]);
      }
    }
    for (; column < units(item.head_dim) * kDepth; column += kLanes) {
      const int64_t count = smaller(kLanes, units(item.head_dim) * kDepth - column);
      load_transposed(rows, column, item.head_dim - column, block);
      const auto pack = [&](int i) CPUATTN_LAMBDA {
        Vec rest[kDepth];
        for (int j = 0; j < kDepth; ++j) {
          rest[j] = mul(block[i + j], factor);
        }
        join_terms(rest, planes_of(item),
                   [&](int p, Vec v) CPUATTN_LAMBDA { put(p, (column + i) / kDepth, v); });
      };
      if (count == kLanes) {
        CPUATTN_UNROLL
        for (int i = 0; i < kLanes; i += kDepth) pack(i);
      } else {
        for (int i = 0; i < count; i += kDepth) pack(i);
      }
    }
  }
}

// What some and every row of one vector see, out of the rows' own ranges.
CPUATTN_INLINE void bound_vector(const WorkItem& item, RowTile& tile, int vec) {
  KeyRange some{item.kv_end, item.kv_begin};
  KeyRange every{item.kv_begin, item.kv_end};
  const int last = static_cast<int>(smaller(tile.rows, (vec + 1) * kLanes));
  for (int i = vec * kLanes; i < last; ++i) {
    const KeyRange range = tile.range[i];
    every.begin = larger(every.begin, range.begin);
    every.end = smaller(every.end, range.end);
    if (range.begin == range.end) continue;
    some.begin = smaller(some.begin, range.begin);
    some.end = larger(some.end, range.end);
  }
  tile.some[vec] = some;
  tile.every[vec] = every;
}

CPUATTN_INLINE void find_ranges(const WorkItem& item, RowTile& tile) {
  const bool banded = item.band_left != kOpen || item.band_right != kOpen;
  if (!banded && tile.of[tile.rows - 1].token < item.q_length) {  // every row sees the same keys
    const KeyRange range = key_range(item, tile.of[0].token);
    for (int i = 0; i < tile.rows; ++i) tile.range[i] = range;
    for (int vec = 0; vec < tile.vecs; ++vec) tile.some[vec] = tile.every[vec] = range;
    return;
  }
  for (int i = 0; i < tile.rows; ++i) tile.range[i] = key_range(item, tile.of[i].token);
  KeyRange all{item.kv_end, item.kv_begin};
  for (int vec = 0; vec < tile.vecs; ++vec) {
    bound_vector(item, tile, vec);
    all.begin = smaller(all.begin, tile.some[vec].begin);
    all.end = larger(all.end, tile.some[vec].end);
  }
  for (int vec = 0; vec < tile.vecs; ++vec) {  // widen, so that runs are worth their while
    KeyRange& some = tile.some[vec];
    if (some.begin >= some.end) continue;
    some.begin = some.begin / kRangeStep * kRangeStep;  // a whole unit begins there
    if (kDepth == 1) some.begin = larger(all.begin, some.begin);
    some.end = smaller(all.end, (some.end + kRangeStep - 1) / kRangeStep * kRangeStep);
  }
}

CPUATTN_NOINLINE void open_tile(const WorkItem& item, int64_t first_row, RowTile& tile) {
  tile.first_row = first_row;
  tile.rows = static_cast<int>(smaller(kTileRows, item.row_end - first_row));
  tile.vecs = (tile.rows + kLanes - 1) / kLanes;
  tile.width = static_cast<int64_t>(tile.vecs) * kLanes;
  tile.started = 0;
  divide_rows(item, first_row, tile.rows, tile.of);
  if (tile.rows == kTileRows) {  // a short one is mostly part of a small problem, in cache
    fetch_tile(item.query, item.head_dim, tile);
    fetch_tile(item.out, item.head_dim_v, tile);
  }
  find_ranges(item, tile);
  pack_query(item, tile);
  for (int i = 0; i < tile.rows; ++i) {
    start_row(item, tile.of[i], tile.row_max[i], tile.row_sum[i]);
  }
  for (int i = tile.rows; i < tile.width; ++i) {
    tile.row_max[i] = kNegInf;
    tile.row_sum[i] = 0;
  }
}

// Where the rows of one vector go, and by what they are multiplied: out, normalised, or the
// partial output as it is.
struct Destination {
  LaneRows rows;
  Vec factor;
};
CPUATTN_INLINE Destination destination(const WorkItem& item, const RowTile& tile, int vec) {
  Destination to;
  to.rows = lane_rows(item.out, tile, vec);
  if (item.partial) {
    const int64_t first = tile.first_row - item.row_begin + vec * kLanes;
    Real* row = static_cast<Real*>(item.partial_out) + first * item.head_dim_v;
    for (int i = 0; i < to.rows.valid; ++i) {
      to.rows.row[i] = reinterpret_cast<char*>(row + i * item.head_dim_v);
    }
    to.rows.dtype = kRealType;
    to.rows.col_step = sizeof(Real);
    to.factor = broadcast(1);
  } else {
    const Vec sum = load(tile.row_sum + vec * kLanes);
    const Vec kept = broadcast(static_cast<Real>(item.weight_factor));
    to.factor = select(equal(sum, zero()), zero(), div(kept, sum));
  }
  return to;
}

// Writes the tile's results and reports whether every element is finite.
CPUATTN_NOINLINE bool close_tile(const WorkItem& item, const RowTile& tile) {
  const int64_t first = tile.first_row - item.row_begin;
  for (int i = 0; i < tile.rows; ++i) {
    static_cast<Real*>(item.row_max)[first + i] = tile.row_max[i];
    static_cast<Real*>(item.row_sum)[first + i] = tile.row_sum[i];
  }
  Vec finite = zero();
  for (int vec = 0; vec < tile.vecs; ++vec) {
    const Destination to = destination(item, tile, vec);
    const bool started = (tile.started >> vec & 1u) != 0;
    const auto output = [&](int64_t column) CPUATTN_LAMBDA {
      return mul(load(tile.output_t + column * tile.width + vec * kLanes), to.factor);
    };
    int64_t column = 0;
    Vec block[kLanes];
    if (kDepth > 1 && started) {
      for (; to.rows.is_square_of_units(item.head_dim_v - column); column += kLanes * kDepth) {
        for (int i = 0; i < kLanes; ++i) {
          Vec parts[kDepth];
          for (int j = 0; j < kDepth; ++j) {
            parts[j] = output(column + i * kDepth + j);
            finite = fma(parts[j], zero(), finite);
          }
          block[i] = join(parts);
        }
        store_square(block, to.rows.row, column / kDepth);
      }
    }
    for (; column < item.head_dim_v; column += kLanes) {
      const int64_t count = item.head_dim_v - column;
      if (started && count >= kLanes) {
        CPUATTN_UNROLL
        for (int i = 0; i < kLanes; ++i) block[i] = output(column + i);
      } else {
        for (int i = 0; i < kLanes; ++i) {
          block[i] = started && i < count ? output(column + i) : zero();
        }
      }
      store_transposed(block, to.rows, column, count, finite);
    }
  }
  return reduce_add(finite) == 0;
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
