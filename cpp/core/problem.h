// SPDX-License-Identifier: MIT
// The problem: every array as a strided view, every option as a number. Built and checked once.
//
// `Arguments` is what a front end hands over (arrays as they came, options as given);
// `build_problem` checks all of it before any element is read and fills `AttentionProblem`, the
// only thing that is passed down from there.
#pragma once

#include <cstdint>

#include "core/error.h"
#include "kernels/element.h"

namespace cpuattn {

constexpr int kMaxBatchDims = 62;  // NumPy arrays have at most 64 axes

// Limits of sizes, which arrays that repeat their elements (stride 0) can reach: within them no
// count, no number of bytes and no sum of positions exceeds 64 bits.
constexpr int kLengthBits = 40;  // q_len, kv_len: at most 2^40
constexpr int kWidthBits = 32;   // numbers of heads, head_dim, head_dim_v
constexpr int kRowsBits = 56;    // query rows all in all

// An array as the caller gave it. data == nullptr together with shape == nullptr: not given.
struct Array {
  const char* name = nullptr;
  char* data = nullptr;
  int ndim = 0;
  const int64_t* shape = nullptr;
  const int64_t* strides = nullptr;  // bytes
  DType dtype = DType::kOther;
  const char* dtype_name = "";
  bool writeable = false;

  explicit operator bool() const { return shape != nullptr; }
};

enum class Layout : uint8_t { kBhsd, kBshd };
enum class Diagonal : uint8_t { kBottomRight, kTopLeft, kOffset };
enum class FullyMasked : uint8_t { kZero, kMean, kNan };
enum class Precision : uint8_t { kHighest, kHigh, kMedium };
enum class DropoutGenerator : uint8_t { kPhilox, kThreefry };
enum class ReturnWeights : uint8_t { kNo, kBeforeDropout, kAfterDropout };

enum BroadcastAxis : uint8_t {  // bits of Arguments::dropout_broadcast
  kAxisBatch = 1,
  kAxisHeads = 2,
  kAxisQLen = 4,
  kAxisKvLen = 8
};

struct Arguments {
  Layout layout = Layout::kBhsd;
  Array query, key, value;
  Array mask, bias, alibi_slopes, sinks;
  Array q_lengths, kv_lengths, q_segment_ids, kv_segment_ids, causal_offsets;
  Array dropout_mask;
  Array out, lse, weights;  // outputs; lse and weights are made by the front end
  bool causal = false;
  Diagonal diagonal = Diagonal::kBottomRight;
  int64_t offset = 0;  // for kOffset without causal_offsets
  int64_t window_left = -1, window_right = -1;
  bool has_scale = false, has_softcap = false, has_seed = false;
  double scale = 0.0, softcap = 0.0, dropout_p = 0.0;
  uint64_t dropout_seed = 0;
  uint8_t dropout_broadcast = 0;
  DropoutGenerator dropout_generator = DropoutGenerator::kPhilox;
  FullyMasked fully_masked = FullyMasked::kZero;
  Precision precision = Precision::kHighest;
  ReturnWeights return_weights = ReturnWeights::kNo;
};

// Element (batch b, head, row, col) lies at data + sum_i b_i * batch_step[i] + head * head_step +
// row * row_step + col * col_step; steps in bytes, 0 on broadcast axes. data == nullptr: absent.
struct View {
  char* data = nullptr;
  int64_t head_step = 0, row_step = 0, col_step = 0;
  DType dtype = DType::kOther;
  int64_t batch_step[kMaxBatchDims];  // the first batch_dims are set

  explicit operator bool() const { return data != nullptr; }
};

struct AttentionProblem {
  int batch_dims = 0;
  int64_t batch_shape[kMaxBatchDims];
  int64_t batch = 1;  // product of batch_shape
  int64_t num_heads = 0, num_kv_heads = 0, q_len = 0, kv_len = 0, head_dim = 0, head_dim_v = 0;

  View query, key, value;
  View mask, bias, alibi_slopes, sinks;
  View q_lengths, kv_lengths, q_segment_ids, kv_segment_ids, causal_offsets;
  View dropout_mask;
  View out, lse, weights;

  bool causal = false;
  Diagonal diagonal = Diagonal::kBottomRight;
  int64_t offset = 0, window_left = -1, window_right = -1;
  double scale = 1.0, softcap = 0.0;  // softcap 0: none
  double dropout_p = 0.0;
  uint64_t dropout_seed = 0;
  uint8_t dropout_broadcast = 0;
  DropoutGenerator dropout_generator = DropoutGenerator::kPhilox;
  FullyMasked fully_masked = FullyMasked::kZero;
  Precision precision = Precision::kHighest;
  ReturnWeights return_weights = ReturnWeights::kNo;

  int64_t group() const { return num_kv_heads > 0 ? num_heads / num_kv_heads : 0; }
  int64_t rows() const { return group() * q_len; }  // query rows that share one kv head
};

// Bytes from view.data to batch element `batch` (flat C-order index).
int64_t batch_offset(const AttentionProblem& problem, const View& view, int64_t batch);

// The number that a per-batch integer view (lengths, offsets) holds for batch element `batch`.
int64_t integer_in_batch(const AttentionProblem& problem, const View& view, int64_t batch);

// Sizes of the result, needed before `out` can be made: checks query, key and value only.
bool build_sizes(const Arguments& args, AttentionProblem& problem, Error& error);

// Checks everything else and fills the views. build_sizes must have succeeded.
bool build_problem(const Arguments& args, AttentionProblem& problem, Error& error);

}  // namespace cpuattn
