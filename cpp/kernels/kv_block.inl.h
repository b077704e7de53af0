// SPDX-License-Identifier: MIT
// Keys and values of one block, read where they lie or copied into scratch.
//
// A copy is made when the strides do not suit the kernels (see has_plain_rows), when a kernel wants
// Real numbers and the array holds 16-bit ones, and once more, with `careful`, when a masked key
// may hold NaN or Inf in its value row.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

// Rows of adjacent elements.
struct Rows {
  const char* data;
  int64_t step;  // bytes
  DType dtype;
};

struct KvBlock {
  int64_t begin, end;
  Rows key, value;
  bool in_place;      // neither was copied
  int flagged_count;  // careful: keys whose value row is not finite ...
  int* flagged;       // ... relative to begin; their rows read as 0 in `value`
};

struct KvScratch {
  Unit* key;     // rows of units of head_dim
  Unit* value;   // rows of units, along head_dim_v or along the keys
  int* flagged;  // (kv_block)
  int64_t keys;  // capacity
};

CPUATTN_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
CPUATTN_INLINE int64_t units(int64_t elements) {
  return round_up(round_up(elements, kDepth) / kDepth, kUnitGroup);
}

// A weight: 2^x as exactly as what it is stored in.
template <bool kFull>
CPUATTN_INLINE Vec weight_of(Vec x) {
  return kFull ? exp2(x) : exp2_short(x);
}

// A number is split into terms only where there is a matrix unit.
CPUATTN_INLINE int planes_of(const WorkItem& item) { return kMaxPlanes == 1 ? 1 : item.planes; }

// No finite number becomes an infinite bfloat16.
CPUATTN_INLINE Vec bounded(Vec v) {
  const Vec limit = broadcast(static_cast<Real>(kLargestBFloat16));
  const Vec largest = select(equal(abs(v), broadcast(-kNegInf)), v, sign_or(limit, v));
  return select(less(limit, abs(v)), largest, v);
}

// Splits off the next term of a number. Inf is 1 + Inf: times terms of either sign it stays Inf.
CPUATTN_INLINE Vec take_term(Vec& rest) {
  const Vec one = sign_or(broadcast(1), rest);
  const Vec head = select(equal(abs(rest), broadcast(-kNegInf)), one, bounded(rest));
  const Vec term = widen_bfloat16(narrow_bfloat16(head));
  rest = sub(rest, term);
  return term;
}

// kDepth vectors of numbers become one vector of units in each plane.
template <class Put>
CPUATTN_INLINE void join_terms(Vec (&rest)[kDepth], int planes, Put put) {
  for (int p = 0; p + 1 < planes; ++p) {
    Vec terms[kDepth];
    for (int i = 0; i < kDepth; ++i) terms[i] = take_term(rest[i]);
    put(p, join(terms));
  }
  if (kDepth > 1 && planes == 1) {
    for (int i = 0; i < kDepth; ++i) rest[i] = bounded(rest[i]);
  }
  put(planes - 1, join(rest));
}

CPUATTN_INLINE Rows rows_at(const Unit* data, int64_t stride) {
  return {reinterpret_cast<const char*>(data), stride * static_cast<int64_t>(sizeof(Unit)),
          kUnitType};
}

// Whether the rows of a plane are rows of units where they lie.
CPUATTN_INLINE bool holds_units(const KvPlane& plane, int64_t columns) {
  return plane.dtype == kUnitType && has_plain_rows(plane) &&
         columns % (kDepth * kUnitGroup) == 0 &&
         plane.row_step % static_cast<int64_t>(sizeof(Unit)) == 0;
}

// Where the copies of a block lie: units from one plane, and from one row of values, to the next.
CPUATTN_INLINE int64_t key_plane(const KvScratch& s, int64_t head_dim) {
  return s.keys * units(head_dim);
}
CPUATTN_INLINE int64_t value_stride(const KvScratch& s, int64_t head_dim_v) {
  return kTransposesValues ? units(s.keys) + kUnitGroup : head_dim_v;
}
CPUATTN_INLINE int64_t value_plane(const KvScratch& s, int64_t head_dim_v) {
  const int64_t rows = kTransposesValues ? round_up(head_dim_v, kUnitGroup) : units(s.keys);
  return rows * value_stride(s, head_dim_v);
}

CPUATTN_INLINE Vec load_columns(const KvPlane& plane, int64_t row, int64_t column,
                                int64_t columns) {
  if (column >= columns) return zero();
  return load_elements(plane.data + row * plane.row_step + column * plane.col_step, plane.dtype,
                       plane.col_step, columns - column);
}

// Copies rows as rows of units. Whole vectors are written: a row's end spills into the next row,
// which is written later, and the last into the slack of the scratch.
CPUATTN_NOINLINE void copy_rows(const KvPlane& plane, int64_t begin, int64_t end, int64_t columns,
                                int planes, const KvScratch& s, Unit* out) {
  for (int64_t row = begin; row < end; ++row, out += units(columns)) {
    for (int64_t c = 0; c < units(columns) * kDepth; c += kLanes) {
      Vec rest = load_columns(plane, row, c, columns);
      if (kDepth > 1 && planes == 1) rest = bounded(rest);
      for (int p = 0; p + 1 < planes; ++p) {
        store_row_units(out + p * key_plane(s, columns) + c / kDepth, take_term(rest));
      }
      store_row_units(out + (planes - 1) * key_plane(s, columns) + c / kDepth, rest);
    }
  }
}

// One vector of columns of the kDepth keys of a unit, side by side, in each plane; 0 for missing
// keys.
template <class Put>
CPUATTN_INLINE void join_keys(const KvPlane& plane, int64_t key, int64_t end, int64_t column,
                              int64_t columns, int planes, Put put) {
  const bool whole = key + kDepth <= end && column + kLanes <= columns && planes == 1;
  if (whole && plane.dtype == kUnitType && plane.col_step == item_size(kUnitType)) {
    const char* p = plane.data + key * plane.row_step + column * plane.col_step;
    return put(0, join_rows(p, plane.row_step));
  }
  Vec rest[kDepth];
  for (int i = 0; i < kDepth; ++i) {
    rest[i] = key + i < end ? load_columns(plane, key + i, column, columns) : zero();
  }
  join_terms(rest, planes, put);
}

// Copies values for the product over keys, as (units of keys, columns). Spills like copy_rows.
CPUATTN_NOINLINE void gather_values(const KvPlane& plane, int64_t begin, int64_t end,
                                    int64_t columns, const KvScratch& s) {
  Unit* out = s.value;
  for (int64_t key = begin; key < end; key += kDepth, out += columns) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      join_keys(plane, key, end, c, columns, 1, [&](int, Vec keys) CPUATTN_LAMBDA {
        store(reinterpret_cast<Real*>(out + c), keys);
      });
    }
  }
}

// The same as (columns, units of keys), with zeros past the last key for a whole group.
[[maybe_unused]] CPUATTN_NOINLINE void transpose_values(const KvPlane& plane, int64_t begin,
                                                        int64_t end, int64_t columns, int planes,
                                                        const KvScratch& s) {
  const int64_t stride = value_stride(s, columns);
  for (int64_t c = 0; c < columns; c += kLanes) {
    char* rows[kMaxPlanes][kLanes];
    for (int p = 0; p < planes; ++p) {
      Unit* first = s.value + p * value_plane(s, columns) + c * stride;
      for (int i = 0; i < kLanes; ++i) rows[p][i] = reinterpret_cast<char*>(first + i * stride);
    }
    for (int64_t unit = 0; unit < units(end - begin) + kUnitGroup; unit += kLanes) {
      Vec block[kMaxPlanes][kLanes];
      for (int i = 0; i < kLanes; ++i) {
        join_keys(plane, begin + (unit + i) * kDepth, end, c, columns, planes,
                  [&](int p, Vec keys) CPUATTN_LAMBDA { block[p][i] = keys; });
      }
      for (int p = 0; p < planes; ++p) store_square(block[p], rows[p], unit);
    }
  }
}

CPUATTN_INLINE bool all_finite(const KvPlane& plane, int64_t row, int64_t columns) {
  Vec sum = zero();  // NaN as soon as one element times 0 is NaN
  for (int64_t c = 0; c < columns; c += kLanes) {
    sum = fma(load_columns(plane, row, c, columns), zero(), sum);
  }
  return reduce_add(sum) == 0;
}

// Notes which value rows are not finite and zeroes them in the copy, where element (key, column)
// lies at key / key_group * row_step + column * col_step + key % key_group elements.
struct CopyLayout {
  int64_t key_group, row_step, col_step;
};
CPUATTN_NOINLINE void flag_values(const WorkItem& item, const CopyLayout& at, const KvScratch& s,
                                  KvBlock& block) {
  constexpr int64_t kSize = sizeof(Unit) / kDepth;
  const int64_t plane = value_plane(s, item.head_dim_v) * static_cast<int64_t>(sizeof(Unit));
  for (int64_t key = 0; key < block.end - block.begin; ++key) {
    if (all_finite(item.value, block.begin + key, item.head_dim_v)) continue;
    block.flagged[block.flagged_count++] = static_cast<int>(key);
    char* row = reinterpret_cast<char*>(s.value) +
                (key / at.key_group * at.row_step + key % at.key_group) * kSize;
    for (int p = 0; p < planes_of(item); ++p, row += plane) {
      for (int64_t c = 0; c < item.head_dim_v; ++c) {
        __builtin_memset(row + c * at.col_step * kSize, 0, kSize);
      }
    }
  }
}

// Keys and values as the products over head_dim and over keys want them.
CPUATTN_NOINLINE KvBlock open_kv_block(const WorkItem& item, int64_t begin, int64_t end,
                                       const KvScratch& scratch, bool careful) {
  KvBlock block{begin, end, {}, {}, false, 0, scratch.flagged};
  const bool readable = begin + round_up(end - begin, kKeyGroup) <= item.kv_len;
  if (planes_of(item) == 1 && readable && holds_units(item.key, item.head_dim)) {
    block.key = {item.key.data + begin * item.key.row_step, item.key.row_step, kUnitType};
    block.in_place = true;
  } else {
    copy_rows(item.key, begin, end, item.head_dim, planes_of(item), scratch, scratch.key);
    block.key = rows_at(scratch.key, units(item.head_dim));
  }
  if (kDepth == 1 && !careful && holds_units(item.value, item.head_dim_v)) {
    block.value = {item.value.data + begin * item.value.row_step, item.value.row_step, kUnitType};
    return block;
  }
  block.in_place = false;
  const int64_t stride = value_stride(scratch, item.head_dim_v);
  block.value = rows_at(scratch.value, stride);
  if constexpr (kTransposesValues) {
    transpose_values(item.value, begin, end, item.head_dim_v, planes_of(item), scratch);
    if (careful) flag_values(item, {kOpen, 0, stride * kDepth}, scratch, block);
  } else {
    gather_values(item.value, begin, end, item.head_dim_v, scratch);
    if (careful) flag_values(item, {kDepth, stride * kDepth, kDepth}, scratch, block);
  }
  return block;
}

// Bump allocation inside the item's scratch; every array starts on its own cache line. With
// base == nullptr it only counts, which is how a kernel states its need.
struct Arena {
  char* base;
  int64_t used;

  template <class T>
  CPUATTN_INLINE T* take(int64_t count) {
    T* p = base != nullptr ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return p;
  }
};

CPUATTN_INLINE KvScratch take_kv_scratch(Arena& arena, int64_t keys, const KernelShape& shape) {
  KvScratch s;
  const int64_t slack = kLanes;
  const int64_t value_rows = kTransposesValues ? 0 : keys * units(shape.head_dim_v);
  s.keys = keys;
  s.key = arena.take<Unit>(shape.planes * key_plane(s, shape.head_dim) + slack);
  s.value =
      arena.take<Unit>(larger(shape.planes * value_plane(s, shape.head_dim_v), value_rows) + slack);
  s.flagged = arena.take<int>(keys);
  return s;
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
