// SPDX-License-Identifier: MIT
#include "core/thread_count.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <thread>

#include "core/cgroup.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace cpuattn {
namespace {

std::atomic<int> default_threads{0};

constexpr long kMostThreads = 4096;

int positive_environment(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return 0;
  return static_cast<int>(std::clamp(std::strtol(text, nullptr, 10), 0L, kMostThreads));
}

int affinity_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
#if defined(__wasi__)
  return 1;  // its C++ library has no std::thread
#else
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#endif
}

struct Choice {
  int threads;
  const char* source;
};

Choice choose(int requested) {
  if (requested > 0) return {requested, "num_threads"};
  const int set = default_threads.load(std::memory_order_relaxed);
  if (set > 0) return {set, "set_num_threads"};
  // The environment and the quota are read once; affinity may change while the process runs.
  static const Choice environment = [] {
    int threads = positive_environment("CPUATTN_NUM_THREADS");
    if (threads > 0) return Choice{threads, "CPUATTN_NUM_THREADS"};
    threads = positive_environment("OMP_NUM_THREADS");
    return Choice{threads, "OMP_NUM_THREADS"};
  }();
  if (environment.threads > 0) return environment;
  static const double quota = cgroup_cpus();
  const int cpus = affinity_cpus();
  if (quota > 0 && quota < cpus) return {static_cast<int>(std::ceil(quota)), "cgroup quota"};
  return {cpus, "cpu affinity"};
}

}  // namespace

int thread_count(int requested) { return choose(requested).threads; }
const char* thread_count_source(int requested) { return choose(requested).source; }
void set_default_threads(int threads) { default_threads.store(threads, std::memory_order_relaxed); }

}  // namespace cpuattn
