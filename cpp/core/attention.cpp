// SPDX-License-Identifier: MIT
// The story of a call: every task makes a work item (or all chunks of one), runs the kernel on it,
// merges partial states where keys are split, and finishes the rows (lse, fully masked rows).
#include "core/attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/combine.h"
#include "core/finish.h"
#include "core/parallel.h"
#include "core/work_items.h"
#include "core/workspace.h"

namespace cpuattn {
namespace {

struct Call {
  const AttentionProblem& problem;
  const Plan& plan;
  float* states = nullptr;                      // parallel chunks: one state per item and chunk
  std::atomic<int64_t>* chunks_done = nullptr;  // parallel chunks: per item
  std::atomic<bool> out_of_memory{false};
};

// One thread's scratch, cut into its parts.
struct Scratch {
  char* kernel;
  float* states[2];
  float* mean;

  Scratch(char* base, const Plan& plan) : kernel(base) {
    states[0] = reinterpret_cast<float*>(base + plan.kernel_scratch);
    states[1] = states[0] + plan.state_floats;
    mean = states[1] + plan.state_floats;
  }
};

// Writes the normalised output of a merged state.
void write_output(const WorkItem& item, const PartialState& state) {
  const int64_t rows = item.row_end - item.row_begin;
  for (int64_t r = 0; r < rows; ++r) {
    const float factor = state.row_sum[r] == 0.0f ? 0.0f : item.weight_factor / state.row_sum[r];
    char* out = plane_row(item.out, item, item.row_begin + r);
    for (int64_t c = 0; c < item.head_dim_v; ++c) {
      const float x = state.output[r * item.head_dim_v + c] * factor;
      std::memcpy(out + c * item.out.col_step, &x, sizeof x);
    }
  }
}

void run_chunk(const Call& call, WorkItem& item, int64_t chunk, const PartialState& state,
               char* kernel_scratch) {
  item.kv_begin = chunk * call.plan.chunk;
  item.kv_end = std::min(item.kv_begin + call.plan.chunk, call.problem.kv_len);
  item.start_from_sinks = chunk == 0;
  item.partial = call.plan.chunks > 1;
  item.row_max = state.row_max;
  item.row_sum = state.row_sum;
  item.partial_out = state.output;
  item.scratch = kernel_scratch;
  call.plan.kernel->run(item);
}

// All keys of one item on this thread.
void run_whole_item(const Call& call, int64_t index, const Scratch& scratch) {
  const Plan& plan = call.plan;
  WorkItem item = make_work_item(call.problem, plan, index);
  const int64_t rows = item.row_end - item.row_begin;
  const PartialState total = state_at(scratch.states[0], rows);
  const PartialState next = state_at(scratch.states[1], rows);
  clear_weights(call.problem, item);
  run_chunk(call, item, 0, total, scratch.kernel);
  for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
    run_chunk(call, item, chunk, next, scratch.kernel);
    merge(total, next, rows, item.head_dim_v);
  }
  if (plan.chunks > 1) write_output(item, total);
  finish_rows(call.problem, item, total, scratch.mean);
}

// One chunk of one item; whoever finishes an item's last chunk merges them in order.
void run_one_chunk(Call& call, int64_t task, const Scratch& scratch) {
  const Plan& plan = call.plan;
  const int64_t index = task / plan.chunks;
  const int64_t chunk = task % plan.chunks;
  WorkItem item = make_work_item(call.problem, plan, index);
  const int64_t rows = item.row_end - item.row_begin;
  float* states = call.states + index * plan.chunks * plan.state_floats;
  run_chunk(call, item, chunk, state_at(states + chunk * plan.state_floats, rows), scratch.kernel);
  if (call.chunks_done[index].fetch_add(1, std::memory_order_acq_rel) + 1 < plan.chunks) return;
  const PartialState total = state_at(states, rows);
  for (int64_t c = 1; c < plan.chunks; ++c) {
    merge(total, state_at(states + c * plan.state_floats, rows), rows, item.head_dim_v);
  }
  write_output(item, total);
  finish_rows(call.problem, item, total, scratch.mean);
}

void run_task(void* context, int64_t task) {
  Call& call = *static_cast<Call*>(context);
  char* base = workspace(Region::kItem, call.plan.item_scratch);
  if (base == nullptr) {
    call.out_of_memory.store(true, std::memory_order_relaxed);
    return;
  }
  const Scratch scratch(base, call.plan);
  if (call.plan.parallel_chunks) {
    run_one_chunk(call, task, scratch);
  } else {
    run_whole_item(call, task, scratch);
  }
}

}  // namespace

bool run_attention(const AttentionProblem& problem, const Plan& plan, Error& error) {
  Call call{problem, plan};
  if (plan.parallel_chunks) {
    char* base = workspace(Region::kCall, plan.call_scratch);
    if (base == nullptr) return fail(error, Error::Kind::kMemory, "out of memory for scratch");
    const int64_t items = plan.groups * plan.row_blocks;
    call.chunks_done = reinterpret_cast<std::atomic<int64_t>*>(base);
    for (int64_t i = 0; i < items; ++i) new (&call.chunks_done[i]) std::atomic<int64_t>(0);
    call.states = reinterpret_cast<float*>(base + 8 * items);
  }
  parallel_run(plan.tasks, plan.threads, run_task, &call);
  if (call.out_of_memory.load(std::memory_order_relaxed)) {
    return fail(error, Error::Kind::kMemory, "out of memory for scratch: %lld bytes per thread",
                static_cast<long long>(plan.item_scratch));
  }
  return true;
}

}  // namespace cpuattn
