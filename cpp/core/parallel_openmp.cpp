// SPDX-License-Identifier: MIT
// parallel_run on OpenMP, or serial when the compiler has none.
#include <algorithm>
#include <atomic>

#include "core/parallel.h"

#ifdef _OPENMP
#include <omp.h>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#endif

namespace cpuattn {

#ifdef _OPENMP
namespace {

std::atomic<bool> forked{false};

#if defined(__unix__) || defined(__APPLE__)
// libgomp's threads do not survive fork(): a parallel region in the child would wait for ever.
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
#endif

}  // namespace

bool can_run_parallel() {
  return !forked.load(std::memory_order_relaxed) && omp_in_parallel() == 0;
}
const char* thread_backend() { return "openmp"; }

void parallel_run(int64_t count, int threads, Task task, void* context) {
  const int team = can_run_parallel() ? static_cast<int>(std::min<int64_t>(threads, count)) : 1;
  std::atomic<int64_t> next{0};
  const auto claim = [&] {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
  };
  if (team <= 1) return claim();
#pragma omp parallel num_threads(team)
  claim();
}

#else

bool can_run_parallel() { return false; }
const char* thread_backend() { return "none"; }

void parallel_run(int64_t count, int, Task task, void* context) {
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

#endif

}  // namespace cpuattn
