// SPDX-License-Identifier: MIT
// The story of a call: every task makes a work item (or all chunks of one), runs the kernel on it,
// merges partial states where keys are split, and finishes the rows (lse, fully masked rows).
#include "core/attention.h"

#include <algorithm>
#include <atomic>
#include <optional>

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
  const ScratchSlots* slots;
  Stop stop;
  char* states = nullptr;                       // parallel chunks: one state per item and chunk
  std::atomic<int64_t>* chunks_done = nullptr;  // parallel chunks: per item
  std::atomic<bool> out_of_memory{false};
  std::atomic<int64_t> tasks_run{0};  // counted where an executor of the caller's runs them

  WorkItem item(int64_t index) {
    WorkItem made = make_work_item(problem, plan, index);
    if (stop.may_ask()) {
      made.cancelled = [](void* asked) { return static_cast<Stop*>(asked)->ask(); };
      made.cancelled_context = &stop;
    }
    return made;
  }
};

// One thread's scratch, cut into its parts.
struct Scratch {
  char* kernel;
  char* states[2];
  char* mean;

  Scratch(char* base, const Plan& plan)
      : kernel(base),
        states{base + plan.kernel_scratch, base + plan.kernel_scratch + plan.state_bytes},
        mean(states[1] + plan.state_bytes) {}
};

// Writes the normalised output of a merged state.
template <class Real>
void write_output(const WorkItem& item, const PartialState<Real>& state) {
  const int64_t rows = item.row_end - item.row_begin;
  for (int64_t r = 0; r < rows; ++r) {
    const Real sum = state.row_sum[r];
    const Real factor = sum == 0 ? 0 : static_cast<Real>(item.weight_factor) / sum;
    char* out = plane_row(item.out, item, item.row_begin + r);
    for (int64_t c = 0; c < item.head_dim_v; ++c) {
      store_element(out + c * item.out.col_step, item.out.dtype,
                    state.output[r * item.head_dim_v + c] * factor);
    }
  }
}

template <class Real>
void run_chunk(const Call& call, WorkItem& item, int64_t chunk, const PartialState<Real>& state,
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
template <class Real>
void run_whole_item(Call& call, int64_t index, const Scratch& scratch) {
  const Plan& plan = call.plan;
  WorkItem item = call.item(index);
  const int64_t rows = item.row_end - item.row_begin;
  const PartialState<Real> total(scratch.states[0], rows);
  const PartialState<Real> next(scratch.states[1], rows);
  clear_weights(call.problem, item);
  run_chunk(call, item, 0, total, scratch.kernel);
  for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
    run_chunk(call, item, chunk, next, scratch.kernel);
    merge(total, next, rows, item.head_dim_v);
  }
  if (plan.chunks > 1) write_output(item, total);
  finish_rows(call.problem, item, total, reinterpret_cast<Real*>(scratch.mean));
}

// One chunk of one item; whoever finishes an item's last chunk merges them in order.
template <class Real>
void run_one_chunk(Call& call, int64_t task, const Scratch& scratch) {
  const Plan& plan = call.plan;
  const int64_t index = task / plan.chunks;
  const int64_t chunk = task % plan.chunks;
  WorkItem item = call.item(index);
  const int64_t rows = item.row_end - item.row_begin;
  char* states = call.states + index * plan.chunks * plan.state_bytes;
  run_chunk(call, item, chunk, PartialState<Real>(states + chunk * plan.state_bytes, rows),
            scratch.kernel);
  if (call.stop.requested()) return;
  if (call.chunks_done[index].fetch_add(1, std::memory_order_acq_rel) + 1 < plan.chunks) return;
  const PartialState<Real> total(states, rows);
  for (int64_t c = 1; c < plan.chunks; ++c) {
    merge(total, PartialState<Real>(states + c * plan.state_bytes, rows), rows, item.head_dim_v);
  }
  write_output(item, total);
  finish_rows(call.problem, item, total, reinterpret_cast<Real*>(scratch.mean));
}

// Scratch for one task: a slot of the caller's, or the thread's own memory.
struct ItemMemory {
  explicit ItemMemory(const Call& call) : slots(call.slots) {
    if (slots == nullptr) own.emplace(Region::kItem, call.plan.item_scratch);
    base = slots != nullptr ? slots->claim() : own->data();
  }
  ~ItemMemory() {
    if (slots != nullptr) slots->release(base);
  }
  ItemMemory(const ItemMemory&) = delete;
  ItemMemory& operator=(const ItemMemory&) = delete;

  const ScratchSlots* slots;
  std::optional<Workspace> own;
  char* base;
};

template <class Real>
void run_task(void* context, int64_t task) {
  Call& call = *static_cast<Call*>(context);
  if (call.stop.ask()) return;
  const ItemMemory memory(call);
  if (memory.base == nullptr) {
    call.out_of_memory.store(true, std::memory_order_relaxed);
    call.stop.request();
    return;
  }
  const Scratch scratch(memory.base, call.plan);
  if (call.plan.parallel_chunks) {
    run_one_chunk<Real>(call, task, scratch);
  } else {
    run_whole_item<Real>(call, task, scratch);
  }
}

template <class Real>
void run_counted_task(void* context, int64_t task) {
  run_task<Real>(context, task);
  static_cast<Call*>(context)->tasks_run.fetch_add(1, std::memory_order_relaxed);
}

// Runs all tasks; how many were run is only known afterwards where the caller's executor does it.
bool run_tasks(Call& call, const Execution& execution, Error& error) {
  const Plan& plan = call.plan;
  const bool wide = call.problem.query.dtype == DType::kFloat64;
  if (execution.run == nullptr || plan.threads == 1) {
    const Task task = wide ? run_task<double> : run_task<float>;
    if (parallel_run(plan.tasks, plan.threads, task, &call, call.stop)) return true;
    return fail(error, Error::Kind::kRuntime,
                "fork: the call was begun in the parent process, with threads that this one lacks");
  }
  const Task task = wide ? run_counted_task<double> : run_counted_task<float>;
  execution.run(execution.pool, plan.tasks, task, &call);
  const int64_t tasks_run = call.tasks_run.load(std::memory_order_relaxed);
  if (tasks_run == plan.tasks || call.stop.requested()) return true;
  return fail(error, Error::Kind::kValue,
              "executor: must run every task once before it returns; got %lld of %lld",
              static_cast<long long>(tasks_run), static_cast<long long>(plan.tasks));
}

}  // namespace

// There are as many slots as threads, so a free one is found at once unless the caller runs more
// tasks at a time than it said.
char* ScratchSlots::claim() const {
  for (int i = 0;; i = (i + 1) % count) {
    if (!taken[i].exchange(true, std::memory_order_acquire)) return base + i * bytes;
  }
}

void ScratchSlots::release(char* slot) const {
  taken[(slot - base) / bytes].store(false, std::memory_order_release);
}

bool run_attention(const AttentionProblem& problem, const Plan& plan, Error& error,
                   const Execution& execution) {
  Call call{problem, plan, execution.slots, Stop(execution.cancelled, execution.cancelled_context)};
  std::optional<Workspace> own;
  if (plan.parallel_chunks) {
    if (call.slots == nullptr) own.emplace(Region::kCall, plan.call_scratch);
    char* base = call.slots != nullptr ? call.slots->call : own->data();
    if (base == nullptr) {
      return fail(error, Error::Kind::kMemory, "out of memory for scratch: %lld bytes",
                  static_cast<long long>(plan.call_scratch));
    }
    const int64_t items = plan.groups * plan.row_blocks;
    call.chunks_done = reinterpret_cast<std::atomic<int64_t>*>(base);
    for (int64_t i = 0; i < items; ++i) new (&call.chunks_done[i]) std::atomic<int64_t>(0);
    call.states = base + 8 * items;
  }
  if (!run_tasks(call, execution, error)) return false;
  if (call.out_of_memory.load(std::memory_order_relaxed)) {
    return fail(error, Error::Kind::kMemory, "out of memory for scratch: %lld bytes per thread",
                static_cast<long long>(plan.item_scratch));
  }
  if (call.stop.requested()) {
    return fail(error, Error::Kind::kCancelled, "cancelled: the results are incomplete");
  }
  return true;
}

}  // namespace cpuattn
