// SPDX-License-Identifier: MIT
// The whole operator: plan, claim items, run the kernel, merge, finish.
#pragma once

#include <atomic>

#include "core/error.h"
#include "core/parallel.h"
#include "core/problem.h"
#include "core/schedule.h"
#include "core/stop.h"

namespace cpuattn {

// Scratch that a caller set aside: one slot for each thread that computes at the same time.
struct ScratchSlots {
  char* base = nullptr;  // (count, bytes), 64-byte aligned
  int64_t bytes = 0;
  int count = 0;
  std::atomic<bool>* taken = nullptr;  // (count)
  char* call = nullptr;                // for Plan::call_scratch
  int64_t call_bytes = 0;

  char* claim() const;
  void release(char* slot) const;
};

// Who runs the tasks of a call, and in what memory; else parallel_run, in each thread's own.
struct Execution {
  void (*run)(void* pool, int64_t count, Task task, void* context) = nullptr;
  void* pool = nullptr;
  const ScratchSlots* slots = nullptr;
  // Asked for every item and key block by the thread that computes it, and now and then by a caller
  // that waits for others; the call ends early once it is true. nullptr: not to be stopped.
  Stop::Question cancelled = nullptr;
  void* cancelled_context = nullptr;
};

// Computes `problem` as `plan` says. Fails when scratch memory cannot be had, when the call is
// cancelled, or when `run` leaves tasks out; what the outputs hold is then not specified.
bool run_attention(const AttentionProblem& problem, const Plan& plan, Error& error,
                   const Execution& execution = {});

}  // namespace cpuattn
