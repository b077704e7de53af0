// SPDX-License-Identifier: MIT
// What a kernel sees: one work item of one (batch element, kv head), and the table it is called by.
//
// Plain data, and functions of internal linkage: this header is compiled with every ISA's flags.
// Query heads that share a kv head are folded into rows: row = token * group + head, head < group.
#pragma once

#include <cstdint>

#include "kernels/element.h"

#define CPUATTN_NOINLINE __attribute__((noinline))
#define CPUATTN_LAMBDA __attribute__((always_inline))
#define CPUATTN_UNROLL _Pragma("GCC unroll 16")

namespace cpuattn {

// A strided plane of one kv head; steps in bytes. data == nullptr means "not given".
struct KvPlane {
  const char* data;
  int64_t row_step;
  int64_t col_step;
  DType dtype;
};

namespace {

// Whether a plane's strides suit the kernels. Otherwise they copy it block by block: columns that
// are not adjacent, rows that are not aligned, and rows a multiple of 4 KiB apart, which would all
// compete for the same few lines of the cache.
CPUATTN_INLINE bool has_plain_rows(const KvPlane& plane) {
  const int64_t size = item_size(plane.dtype);
  return plane.col_step == size && plane.row_step % size == 0 && plane.row_step % 4096 != 0 &&
         reinterpret_cast<uintptr_t>(plane.data) % static_cast<uintptr_t>(size) == 0;
}

}  // namespace

// A strided volume addressed by (token, head in group, column); steps in bytes.
struct RowPlane {
  char* data;
  int64_t token_step;
  int64_t head_step;
  int64_t col_step;
  DType dtype;
};

// A strided list of integers, 4 or 8 bytes each; step in bytes.
struct IntegerList {
  const char* data;
  int64_t step;
  int item_size;
};
CPUATTN_INLINE int64_t integer_at(const IntegerList& list, int64_t i) {
  const char* p = list.data + i * list.step;
  if (list.item_size == 4) {
    int32_t value;
    __builtin_memcpy(&value, p, 4);
    return value;
  }
  int64_t value;
  __builtin_memcpy(&value, p, 8);
  return value;
}

// A number per head of the group; step in bytes. data == nullptr means "not given".
struct HeadList {
  const char* data;
  int64_t step;
  DType dtype;
};

struct Dropout {
  bool active;                                     // random draws or a mask are in use
  bool keep_nothing;                               // dropout_p rounds to 1
  bool threefry;                                   // JAX's draws instead of Philox
  uint32_t threshold;                              // a weight is kept when its draw is >= threshold
  uint32_t key[2];                                 // of the generator: the seed
  uint32_t batch;                                  // Philox: counter word 3
  uint32_t head;                                   // counter word 2 of the group's first head
  uint64_t first, head_step, row_step;             // Threefry: index of the group's first weight
  bool shared_heads, shared_rows, shared_columns;  // axes that share one draw
  RowPlane keep;                                   // the caller's own mask, instead of draws
};

// One block of rows against one chunk of keys. Every pointer is resolved for its batch element.
struct WorkItem {
  int64_t group;  // query heads that share the kv head
  int64_t head_dim, head_dim_v;
  int64_t kv_len;              // of the whole problem; no column outside is ever touched
  int64_t row_begin, row_end;  // rows of this item
  int64_t kv_begin, kv_end;    // keys of this item: a chunk when keys are split

  RowPlane query, out, mask, bias, weights, lse;
  KvPlane key, value;
  IntegerList q_segments, kv_segments;

  // Key j is inside the band of token i: [i + offset - left, i + offset + right], [0, kv_length).
  int64_t q_length, kv_length;
  int64_t offset;
  int64_t band_left, band_right;  // kOpen leaves a side unbounded

  double query_factor;    // of the scores: scale * log2(e), or scale / softcap
  double softcap_factor;  // softcap * log2(e), or 0 without softcap
  HeadList alibi_slopes, sinks;
  Dropout dropout;
  double weight_factor;  // 1 / (1 - dropout_p)

  int planes;  // bfloat16 products: terms into which a number is split

  bool weights_after_dropout;
  bool start_from_sinks;  // this chunk carries the sinks
  bool partial;           // write the unnormalised state instead of out

  // Results by row of the item, in the numbers that the kernel computes with (float, or double for
  // float64): maximum in log2 units, sum of exp2(score - maximum), and, for a partial item, the
  // unnormalised output (rows, head_dim_v), contiguous.
  void* row_max;
  void* row_sum;
  void* partial_out;

  char* scratch;

  // Asked once per kv block, where it is given; true: nobody wants the results any more.
  bool (*cancelled)(void* context);
  void* cancelled_context;
};

namespace {

CPUATTN_INLINE bool is_cancelled(const WorkItem& item) {
  return item.cancelled != nullptr && item.cancelled(item.cancelled_context);
}

}  // namespace

constexpr int64_t kOpen = INT64_MAX;

// Sizes that decide a kernel's blocks and scratch.
struct KernelShape {
  int64_t row_block;  // rows of the largest item
  int64_t head_dim, head_dim_v;
  int planes;
};

// One algorithm of one ISA.
struct Kernel {
  int row_tile;      // rows are best given in multiples of this
  int64_t kv_block;  // keys of one online-softmax step
  int64_t (*scratch_bytes)(const KernelShape&);
  void (*run)(const WorkItem&);
};

// Everything an ISA exports.
struct KernelTable {
  const char* isa;
  int lanes;
  int max_planes;   // > 1: a matrix unit, for which a number may be split into that many terms
  Kernel prefill;   // lanes hold query rows
  int decode_rows;  // up to this many rows `decode` is the faster kernel; 0: there is none
  Kernel decode;    // lanes hold head_dim
};

}  // namespace cpuattn
