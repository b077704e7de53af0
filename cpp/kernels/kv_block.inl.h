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
  Real* key;     // (kv_block, head_dim)
  Real* value;   // (kv_block, head_dim_v)
  int* flagged;  // (kv_block)
};

// Which elements a kernel reads where they lie.
enum class InPlace { kReal, kEveryDtype };

CPUATTN_NOINLINE void copy_rows(const KvPlane& plane, int64_t begin, int64_t end, int64_t columns,
                                Real* out) {
  for (int64_t row = begin; row < end; ++row, out += columns) {
    const char* p = plane.data + row * plane.row_step;
    for (int64_t c = 0; c < columns; c += kLanes) {
      const Vec v = load_elements(p + c * plane.col_step, plane.dtype, plane.col_step, columns - c);
      if (columns - c >= kLanes) {
        store(out + c, v);
      } else {
        store_first(out + c, static_cast<int>(columns - c), v);
      }
    }
  }
}

CPUATTN_INLINE Rows open_rows(const KvPlane& plane, int64_t begin, int64_t end, int64_t columns,
                              InPlace in_place, Real* scratch) {
  if (has_plain_rows(plane) && (plane.dtype == kRealType || in_place == InPlace::kEveryDtype)) {
    return {plane.data + begin * plane.row_step, plane.row_step, plane.dtype};
  }
  copy_rows(plane, begin, end, columns, scratch);
  return {reinterpret_cast<const char*>(scratch), columns * static_cast<int64_t>(sizeof(Real)),
          kRealType};
}

CPUATTN_INLINE bool all_finite(const Real* p, int64_t count) {
  Real sum = 0;  // NaN as soon as one element times 0 is NaN
  for (int64_t i = 0; i < count; ++i) sum += p[i] * 0;
  return sum == 0;
}

// Zeroes the copied value rows that are not finite and notes which they are.
CPUATTN_INLINE void flag_values(const WorkItem& item, const KvScratch& scratch, KvBlock& block) {
  for (int64_t key = 0; key < block.end - block.begin; ++key) {
    Real* row = scratch.value + key * item.head_dim_v;
    if (all_finite(row, item.head_dim_v)) continue;
    scratch.flagged[block.flagged_count++] = static_cast<int>(key);
    for (int64_t c = 0; c < item.head_dim_v; ++c) row[c] = 0;
  }
}

CPUATTN_NOINLINE KvBlock open_kv_block(const WorkItem& item, int64_t begin, int64_t end,
                                       InPlace in_place, const KvScratch& scratch, bool careful) {
  KvBlock block{begin, end, {}, {}, false, 0, scratch.flagged};
  block.key = open_rows(item.key, begin, end, item.head_dim, in_place, scratch.key);
  if (careful) {
    copy_rows(item.value, begin, end, item.head_dim_v, scratch.value);
    block.value = {reinterpret_cast<const char*>(scratch.value),
                   item.head_dim_v * static_cast<int64_t>(sizeof(Real)), kRealType};
    flag_values(item, scratch, block);
  } else {
    block.value = open_rows(item.value, begin, end, item.head_dim_v, in_place, scratch.value);
  }
  block.in_place = block.key.data != reinterpret_cast<const char*>(scratch.key) &&
                   block.value.data != reinterpret_cast<const char*>(scratch.value);
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
  return {arena.take<Real>(kv_block * head_dim), arena.take<Real>(kv_block * head_dim_v),
          arena.take<int>(kv_block)};
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
