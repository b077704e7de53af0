// SPDX-License-Identifier: MIT
// parallel_run on OpenMP, or serial when the compiler has none.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

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

// How often a caller that waits for its team yields before it sleeps: most wait for microseconds.
constexpr int kYields = 1000;

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

// The region ends at a barrier, where nobody asks `stop`: the caller waits before it. A region that
// it forks in does not end in the child.
bool parallel_run(int64_t count, int threads, Task task, void* context, Stop& stop) {
  const int team = can_run_parallel() ? static_cast<int>(std::min<int64_t>(threads, count)) : 1;
  std::atomic<int64_t> next{0};
  std::atomic<int> computing{0};
  const auto claim = [&] {
    for (int64_t i;
         !stop.requested() && (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      task(context, i);
    }
  };
  if (team <= 1) {
    claim();
    return true;
  }
#pragma omp parallel num_threads(team)
  {
    computing.fetch_add(1, std::memory_order_relaxed);
    claim();
    computing.fetch_sub(1, std::memory_order_release);
    const bool asks = stop.may_ask() && omp_get_thread_num() == 0;
    for (int turn = 0; asks && computing.load(std::memory_order_acquire) > 0; ++turn) {
      if (turn < kYields) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        stop.ask();
      }
    }
  }
  return true;
}

#else

bool can_run_parallel() { return false; }
const char* thread_backend() { return "none"; }

bool parallel_run(int64_t count, int, Task task, void* context, Stop& stop) {
  for (int64_t i = 0; i < count && !stop.requested(); ++i) task(context, i);
  return true;
}

#endif

}  // namespace cpuattn
