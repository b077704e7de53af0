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
  Unit* key;     // (kv_block, units of head_dim)
  Unit* value;   // (units of kv_block, head_dim_v), or (kv_block, units of head_dim_v)
  int* flagged;  // (kv_block)
};

// A weight: 2^x as exactly as its unit holds it.
CPUATTN_INLINE Vec weight_of(Vec x) { return kDepth == 1 ? exp2(x) : exp2_short(x); }

CPUATTN_INLINE int64_t units(int64_t elements) { return (elements + kDepth - 1) / kDepth; }

CPUATTN_INLINE Rows rows_at(const Unit* data, int64_t stride) {
  return {reinterpret_cast<const char*>(data), stride * static_cast<int64_t>(sizeof(Unit)),
          kUnitType};
}

// Whether the rows of a plane are rows of units where they lie.
CPUATTN_INLINE bool holds_units(const KvPlane& plane, int64_t columns) {
  return plane.dtype == kUnitType && has_plain_rows(plane) && columns % kDepth == 0 &&
         plane.row_step % static_cast<int64_t>(sizeof(Unit)) == 0;
}

// Copies rows as rows of units. Whole vectors are written: a row's end spills into the next row,
// which is written later, and the last into the slack of the scratch.
CPUATTN_NOINLINE void copy_rows(const KvPlane& plane, int64_t begin, int64_t end, int64_t columns,
                                Unit* out) {
  for (int64_t row = begin; row < end; ++row, out += units(columns)) {
    const char* p = plane.data + row * plane.row_step;
    for (int64_t c = 0; c < columns; c += kLanes) {
      store_row_units(out + c / kDepth, load_elements(p + c * plane.col_step, plane.dtype,
                                                      plane.col_step, columns - c));
    }
  }
}

// Copies values for the product over keys: the kDepth keys of a unit side by side, 0 for missing
// ones. Spills like copy_rows.
CPUATTN_NOINLINE void gather_values(const KvPlane& plane, int64_t begin, int64_t end,
                                    int64_t columns, Unit* out) {
  const bool adjacent = plane.dtype == kUnitType && plane.col_step == item_size(kUnitType);
  for (int64_t key = begin; key < end; key += kDepth, out += columns) {
    const char* p = plane.data + key * plane.row_step;
    for (int64_t c = 0; c < columns; c += kLanes) {
      Real* units_of_keys = reinterpret_cast<Real*>(out + c);
      if (adjacent && key + kDepth <= end && columns - c >= kLanes) {
        store(units_of_keys, join_rows(p + c * plane.col_step, plane.row_step));
        continue;
      }
      Vec keys[kDepth];
      for (int i = 0; i < kDepth; ++i) {
        keys[i] = key + i < end ? load_elements(p + i * plane.row_step + c * plane.col_step,
                                                plane.dtype, plane.col_step, columns - c)
                                : zero();
      }
      store(units_of_keys, join(keys));
    }
  }
}

CPUATTN_INLINE bool all_finite(const KvPlane& plane, int64_t row, int64_t columns) {
  const char* p = plane.data + row * plane.row_step;
  Vec sum = zero();  // NaN as soon as one element times 0 is NaN
  for (int64_t c = 0; c < columns; c += kLanes) {
    const Vec v = load_elements(p + c * plane.col_step, plane.dtype, plane.col_step, columns - c);
    sum = fma(v, zero(), sum);
  }
  return reduce_add(sum) == 0;
}

// Notes which value rows are not finite and zeroes them in the copy, where element (key, column)
// lies at key / key_group * row_step + column * col_step + key % key_group elements.
struct CopyLayout {
  int64_t key_group, row_step, col_step;
};
CPUATTN_NOINLINE void flag_values(const WorkItem& item, const CopyLayout& at, Unit* copy,
                                  KvBlock& block) {
  constexpr int64_t kSize = sizeof(Unit) / kDepth;
  char* elements = reinterpret_cast<char*>(copy);
  for (int64_t key = 0; key < block.end - block.begin; ++key) {
    if (all_finite(item.value, block.begin + key, item.head_dim_v)) continue;
    block.flagged[block.flagged_count++] = static_cast<int>(key);
    char* row = elements + (key / at.key_group * at.row_step + key % at.key_group) * kSize;
    for (int64_t c = 0; c < item.head_dim_v; ++c) {
      __builtin_memset(row + c * at.col_step * kSize, 0, kSize);
    }
  }
}

// Keys and values as the products over head_dim and over keys want them.
CPUATTN_NOINLINE KvBlock open_kv_block(const WorkItem& item, int64_t begin, int64_t end,
                                       const KvScratch& scratch, bool careful) {
  KvBlock block{begin, end, {}, {}, false, 0, scratch.flagged};
  if (holds_units(item.key, item.head_dim)) {
    block.key = {item.key.data + begin * item.key.row_step, item.key.row_step, kUnitType};
    block.in_place = true;
  } else {
    copy_rows(item.key, begin, end, item.head_dim, scratch.key);
    block.key = rows_at(scratch.key, units(item.head_dim));
  }
  if (kDepth == 1 && !careful && holds_units(item.value, item.head_dim_v)) {
    block.value = {item.value.data + begin * item.value.row_step, item.value.row_step, kUnitType};
    return block;
  }
  block.in_place = false;
  gather_values(item.value, begin, end, item.head_dim_v, scratch.value);
  block.value = rows_at(scratch.value, item.head_dim_v);
  if (careful) {
    flag_values(item, {kDepth, item.head_dim_v * kDepth, kDepth}, scratch.value, block);
  }
  return block;
}

CPUATTN_INLINE Rows open_rows(const KvPlane& plane, int64_t begin, int64_t end, int64_t columns,
                              Unit* scratch) {
  const bool readable = kDepth == 1 ? has_plain_rows(plane) : holds_units(plane, columns);
  if (readable) return {plane.data + begin * plane.row_step, plane.row_step, plane.dtype};
  copy_rows(plane, begin, end, columns, scratch);
  return rows_at(scratch, units(columns));
}

// Keys and values as rows along head_dim: for numbers of any dtype, for pairs of bfloat16.
CPUATTN_NOINLINE KvBlock open_kv_rows(const WorkItem& item, int64_t begin, int64_t end,
                                      const KvScratch& scratch, bool careful) {
  KvBlock block{begin, end, {}, {}, true, 0, scratch.flagged};
  block.key = open_rows(item.key, begin, end, item.head_dim, scratch.key);
  if (careful) {
    copy_rows(item.value, begin, end, item.head_dim_v, scratch.value);
    block.value = rows_at(scratch.value, units(item.head_dim_v));
    flag_values(item, {1, units(item.head_dim_v) * kDepth, 1}, scratch.value, block);
  } else {
    block.value = open_rows(item.value, begin, end, item.head_dim_v, scratch.value);
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

CPUATTN_INLINE KvScratch take_kv_scratch(Arena& arena, int64_t kv_block, int64_t head_dim,
                                         int64_t head_dim_v) {
  const int64_t slack = kLanes;
  return {arena.take<Unit>(kv_block * units(head_dim) + slack),
          arena.take<Unit>(kv_block * units(head_dim_v) + slack), arena.take<int>(kv_block)};
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
