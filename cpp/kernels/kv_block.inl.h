// SPDX-License-Identifier: MIT
// Keys and values of one block, read where they lie or copied into scratch.
//
// A copy is made when the strides do not suit the kernels (columns not adjacent, rows not aligned
// to a float, rows a multiple of 4 KiB apart, which share one cache set) and once more, with
// `careful`, when a masked key may hold NaN or Inf in its value row.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

struct KvBlock {
  int64_t begin, end;
  const float* key;
  const float* value;
  int64_t key_stride, value_stride;  // floats
  bool in_place;                     // neither was copied
  int flagged_count;                 // careful: keys whose value row is not finite ...
  int* flagged;                      // ... relative to begin; their rows read as 0 in `value`
};

CPUATTN_NOINLINE void copy_rows(const KvPlane& plane, int64_t begin, int64_t end, int64_t columns,
                                float* out) {
  for (int64_t row = begin; row < end; ++row, out += columns) {
    const char* p = plane.data + row * plane.row_step;
    if (plane.col_step == sizeof(float)) {
      __builtin_memcpy(out, p, static_cast<size_t>(columns) * sizeof(float));
    } else {
      for (int64_t c = 0; c < columns; ++c) {
        __builtin_memcpy(out + c, p + c * plane.col_step, sizeof(float));
      }
    }
  }
}

CPUATTN_INLINE bool all_finite(const float* p, int64_t count) {
  float sum = 0.0f;  // NaN as soon as one element times 0 is NaN
  for (int64_t i = 0; i < count; ++i) sum += p[i] * 0.0f;
  return sum == 0.0f;
}

struct KvScratch {
  float* key;    // (kv_block, head_dim)
  float* value;  // (kv_block, head_dim_v)
  int* flagged;  // (kv_block)
};

CPUATTN_NOINLINE KvBlock open_kv_block(const WorkItem& item, int64_t begin, int64_t end,
                                       const KvScratch& scratch, bool careful) {
  KvBlock block{begin, end, nullptr, nullptr, 0, 0, false, 0, scratch.flagged};
  if (reads_in_place(item.key)) {
    block.key = reinterpret_cast<const float*>(item.key.data + begin * item.key.row_step);
    block.key_stride = item.key.row_step / static_cast<int64_t>(sizeof(float));
  } else {
    copy_rows(item.key, begin, end, item.head_dim, scratch.key);
    block.key = scratch.key;
    block.key_stride = item.head_dim;
  }
  if (reads_in_place(item.value) && !careful) {
    block.value = reinterpret_cast<const float*>(item.value.data + begin * item.value.row_step);
    block.value_stride = item.value.row_step / static_cast<int64_t>(sizeof(float));
    block.in_place = block.key != scratch.key;
    return block;
  }
  copy_rows(item.value, begin, end, item.head_dim_v, scratch.value);
  block.value = scratch.value;
  block.value_stride = item.head_dim_v;
  if (careful) {
    for (int64_t key = 0; key < end - begin; ++key) {
      float* row = scratch.value + key * item.head_dim_v;
      if (all_finite(row, item.head_dim_v)) continue;
      scratch.flagged[block.flagged_count++] = static_cast<int>(key);
      for (int64_t c = 0; c < item.head_dim_v; ++c) row[c] = 0.0f;
    }
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
  return {arena.take<float>(kv_block * head_dim), arena.take<float>(kv_block * head_dim_v),
          arena.take<int>(kv_block)};
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
