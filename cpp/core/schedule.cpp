// SPDX-License-Identifier: MIT
#include "core/schedule.h"

#include <algorithm>

#include "core/thread_count.h"

namespace cpuattn {
namespace {

// The query and output of an item stay in L2 beside a kv block.
constexpr int64_t kItemBytes = 128 * 1024;
constexpr int64_t kMaxTilesPerItem = 4;
// Where keys and values are copied into another type, more rows share the copy of a block.
constexpr int64_t kCopyingItemBytes = 512 * 1024;
constexpr int64_t kCopyingTilesPerItem = 16;
// Keys are split only where few rows would leave threads idle, in chunks of about this many keys.
constexpr int64_t kChunkKeys = 1024;
constexpr int64_t kSplitRows = 128;
// Waking a second thread pays off above this much work.
constexpr double kParallelMicroseconds = 30.0;

// Bytes of the numbers that the kernel computes with.
int64_t real_size(const AttentionProblem& p) {
  return p.query.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A rough model: two FMA a cycle at 3 GHz, all arrays streamed at 20 GB/s.
double estimate_microseconds(const AttentionProblem& p, const Plan& plan) {
  const double pairs = static_cast<double>(p.rows()) * static_cast<double>(p.kv_len) *
                       (p.causal && p.q_len > 1 ? 0.5 : 1.0);
  const double width = static_cast<double>(p.head_dim + p.head_dim_v) + 8.0;
  const double groups = static_cast<double>(plan.groups);
  const double flops = 2.0 * groups * pairs * width;
  const double rows = static_cast<double>(p.rows()) * static_cast<double>(item_size(p.out.dtype)) +
                      static_cast<double>(p.kv_len) * static_cast<double>(item_size(p.key.dtype));
  const double bytes = groups * rows * width;
  return std::max(flops / (plan.table->lanes * 4 * 3.0e3), bytes / 20.0e3);
}

// Terms of bfloat16 that hold what inputs and precision ask for; 0 where they cannot or should not.
int wanted_planes(const AttentionProblem& p, int max_planes) {
  const bool bfloat16 = p.query.dtype == DType::kBFloat16 && p.key.dtype == DType::kBFloat16;
  if (bfloat16 || p.precision == Precision::kMedium) return 1;
  // Three products of two terms: exact for float16, and what "high" means for float32. Six of three
  // terms would be exact for float32 and are slower than FMA (docs/design.md).
  const bool float16 = p.query.dtype == DType::kFloat16 && p.key.dtype == DType::kFloat16;
  return max_planes > 1 && (float16 || p.precision == Precision::kHigh) ? 2 : 0;
}

// A tile product takes 16 columns and 32 elements of depth, at some 14 times the rate of FMA.
bool padding_pays(const AttentionProblem& p, int planes) {
  constexpr int64_t kAdvantage = 10;
  const int64_t products = planes * (planes + 1) / 2;
  const int64_t padded = divide_up(p.head_dim, 32) * 32 + divide_up(p.head_dim_v, 16) * 16;
  return padded * products <= kAdvantage * (p.head_dim + p.head_dim_v);
}

void choose_table(const AttentionProblem& p, Plan& plan) {
  plan.table = p.query.dtype == DType::kFloat64 ? plan.isa->float64 : plan.isa->float32;
  const KernelTable* table = plan.isa->bfloat16;
  if (table == nullptr || p.query.dtype == DType::kFloat64) return;
  const int planes = wanted_planes(p, table->max_planes);
  const bool few = p.rows() <= plan.table->decode_rows && !p.weights;
  // A few rows do not pay for making bfloat16 out of a wider cache.
  if (planes == 0 || (few && (table->decode_rows == 0 || p.key.dtype != DType::kBFloat16))) return;
  if (table->max_planes > 1 && !padding_pays(p, planes)) return;
  plan.table = table;
  plan.planes = planes;
}

void choose_kernel(const AttentionProblem& p, Plan& plan) {
  choose_table(p, plan);
  plan.is_decode = p.rows() <= plan.table->decode_rows && !p.weights;
  plan.kernel = plan.is_decode ? &plan.table->decode : &plan.table->prefill;
}

void choose_chunks(const AttentionProblem& p, Plan& plan) {
  const int64_t rows = p.rows();
  const int64_t grid = plan.kernel->kv_block;
  plan.chunk = std::max<int64_t>(p.kv_len, 1);
  if (rows <= kSplitRows && p.kv_len >= 2 * kChunkKeys && !p.weights) {
    const int64_t most = std::clamp<int64_t>(256 / std::max<int64_t>(rows, 1), 4, 32);
    const int64_t keys = std::max(kChunkKeys, divide_up(p.kv_len, most));
    plan.chunk = divide_up(keys, grid) * grid;
  }
  plan.chunks = divide_up(std::max<int64_t>(p.kv_len, 1), plan.chunk);
}

// Items of several row tiles share each kv block; fewer tiles where threads would lack tasks.
void choose_row_blocks(const AttentionProblem& p, Plan& plan) {
  const int64_t rows = std::max<int64_t>(p.rows(), 1);
  const int64_t tile = plan.is_decode ? rows : plan.kernel->row_tile;
  const int64_t tiles = divide_up(rows, tile);
  const int64_t tile_bytes = tile * real_size(p) * std::max<int64_t>(p.head_dim + p.head_dim_v, 1);
  const bool copies = plan.table == plan.isa->bfloat16 || item_size(p.key.dtype) != real_size(p);
  int64_t per_item =
      copies ? std::clamp<int64_t>(kCopyingItemBytes / tile_bytes, 1, kCopyingTilesPerItem)
             : std::clamp<int64_t>(kItemBytes / tile_bytes, 1, kMaxTilesPerItem);
  while (per_item > 1 && plan.groups * divide_up(tiles, per_item) < 3 * plan.threads) --per_item;
  plan.row_blocks = divide_up(tiles, per_item);
  plan.row_block = std::min(divide_up(tiles, plan.row_blocks) * tile, divide_up(rows, tile) * tile);
  plan.row_blocks = divide_up(rows, plan.row_block);
}

void size_scratch(const AttentionProblem& p, Plan& plan) {
  const int64_t block_rows = std::min(plan.row_block, std::max<int64_t>(p.rows(), 1));
  const KernelShape shape{block_rows, p.head_dim, p.head_dim_v, plan.planes};
  plan.kernel_scratch = plan.kernel->scratch_bytes(shape);
  plan.state_bytes = real_size(p) * block_rows * (2 + (plan.chunks > 1 ? p.head_dim_v : 0));
  // Item scratch: the kernel's, one state to fill, one to merge into, one row for mean values.
  plan.item_scratch =
      plan.kernel_scratch + 2 * plan.state_bytes + real_size(p) * p.head_dim_v + 256;
  if (plan.parallel_chunks) {
    const int64_t items = plan.groups * plan.row_blocks;
    plan.call_scratch = items * plan.chunks * plan.state_bytes + 8 * items;
  }
}

}  // namespace

const char* products(const AttentionProblem& p, const Plan& plan) {
  if (p.query.dtype == DType::kFloat64) return "float64";
  if (plan.table != plan.isa->bfloat16) return "float32";
  return plan.planes == 1 ? "bfloat16" : "bfloat16 x3";
}

Plan make_plan(const AttentionProblem& p, const Isa& isa, int requested_threads, bool parallel) {
  Plan plan;
  plan.isa = &isa;
  plan.groups = p.batch * p.num_kv_heads;
  choose_kernel(p, plan);
  choose_chunks(p, plan);
  plan.microseconds = estimate_microseconds(p, plan);
  const bool pays = plan.microseconds >= kParallelMicroseconds;
  plan.threads = pays && parallel ? thread_count(requested_threads) : 1;
  choose_row_blocks(p, plan);
  const int64_t items = p.rows() > 0 ? plan.groups * plan.row_blocks : 0;
  plan.parallel_chunks = plan.chunks > 1 && plan.threads > 1 && items < 4 * plan.threads;
  plan.tasks = items * (plan.parallel_chunks ? plan.chunks : 1);
  plan.threads = static_cast<int>(std::clamp<int64_t>(plan.tasks, 1, plan.threads));
  size_scratch(p, plan);
  return plan;
}

void make_chunks_serial(Plan& plan) {
  if (!plan.parallel_chunks) return;
  plan.parallel_chunks = false;
  plan.call_scratch = 0;
  plan.tasks = plan.groups * plan.row_blocks;
  plan.threads = static_cast<int>(std::clamp<int64_t>(plan.tasks, 1, plan.threads));
}

}  // namespace cpuattn
