// SPDX-License-Identifier: MIT
// Threads live here and nowhere else: one parallel run a call, tasks claimed dynamically.
//
// Two backends, chosen by CMake's CPUATTN_THREADS: parallel_pool.cpp (default) and
// parallel_openmp.cpp. docs/design.md says why the pool is the default.
#pragma once

#include <cstdint>

#include "core/stop.h"

namespace cpuattn {

using Task = void (*)(void* context, int64_t index);

// Calls task(context, index) once for every index in [0, count), claimed in increasing order by up
// to `threads` threads, the caller being one. Returns when all are done, or when those that have
// begun are and a stop is requested; while it waits for other threads it asks `stop` now and then.
// Runs on the caller alone when threads is 1 or another run is under way.
//
// False where the process was forked in the meantime (by what `stop` asks): the other threads of
// the run, and what they had begun, stayed behind.
bool parallel_run(int64_t count, int threads, Task task, void* context, Stop& stop);

// False where parallel_run is serial whatever it is asked: no backend, or a forked child of OpenMP.
bool can_run_parallel();

// "pool", "openmp" or "none".
const char* thread_backend();

}  // namespace cpuattn
