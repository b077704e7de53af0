// SPDX-License-Identifier: MIT
// Which kernel runs, on which blocks, on how many threads: arithmetic on the problem's sizes.
//
// What decides the bits of a result (kernel, tiles, kv blocks, kv chunks) depends on the shape of
// one batch element and on the ISA only; batch size and threads decide nothing but who does what.
#pragma once

#include <cstdint>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/problem.h"
#include "kernels/work_item.h"

namespace cpuattn {

struct Plan {
  const Isa* isa = nullptr;
  const KernelTable* table = nullptr;
  const Kernel* kernel = nullptr;
  int planes = 1;  // terms of a number in products of bfloat16
  bool is_decode = false;

  int64_t groups = 0;            // batch * num_kv_heads: sets of rows that share keys and values
  int64_t row_block = 0;         // rows of one item
  int64_t row_blocks = 0;        // items along the rows of a group
  int64_t chunk = 0;             // keys of one chunk
  int64_t chunks = 0;            // > 1: keys are split, partial results are merged in chunk order
  bool parallel_chunks = false;  // each chunk is a task of its own, else one task walks them all
  int64_t tasks = 0;
  int threads = 1;

  int64_t kernel_scratch = 0;  // bytes of the kernel, per thread
  int64_t state_bytes = 0;     // of one item's state: maximum, sum, [partial output]
  int64_t item_scratch = 0;    // bytes per thread, all in all
  int64_t call_scratch = 0;    // bytes per call: the partial states of parallel chunks
  double microseconds = 0.0;   // estimated work on one thread
};

// What the plan's products multiply: "float32", "float64", "bfloat16", "bfloat16 x3".
const char* products(const AttentionProblem& problem, const Plan& plan);

// `parallel`: whether tasks may run at the same time; true for threads of the caller's.
Plan make_plan(const AttentionProblem& problem, const Isa& isa, int requested_threads,
               bool parallel = can_run_parallel());

// Merges the chunks of an item on the thread that computes them: the same bits, no call_scratch.
void make_chunks_serial(Plan& plan);

}  // namespace cpuattn
