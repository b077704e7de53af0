// SPDX-License-Identifier: MIT
// Threads live here and nowhere else: one parallel region a call, tasks claimed dynamically.
#pragma once

#include <cstdint>

namespace cpuattn {

// Calls task(context, index) for every index in [0, count), on up to `threads` threads, in
// increasing order of claim. Runs on the calling thread alone when threads is 1, inside another
// parallel region, and in a forked child (whose OpenMP runtime has no threads left).
void parallel_run(int64_t count, int threads, void (*task)(void* context, int64_t index),
                  void* context);

// Number of threads of a call: `requested` if positive, else set_default_threads, else
// CPUATTN_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs that affinity and the cgroup quota leave.
int thread_count(int requested);
void set_default_threads(int threads);  // 0 returns to the environment
const char* thread_count_source(int requested);

bool in_forked_child();

}  // namespace cpuattn
