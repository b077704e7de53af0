// SPDX-License-Identifier: MIT
#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace cpuattn {
namespace {

std::atomic<bool> forked{false};
std::atomic<int> default_threads{0};

#if defined(__unix__) || defined(__APPLE__)
// libgomp's pool does not survive fork(): a parallel region in the child would wait for ever.
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
#endif

int positive_environment(const char* name) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::max(0, std::atoi(text)) : 0;
}

int affinity_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// CPUs that the cgroup's bandwidth quota allows, rounded up; 0 when unlimited or unknown.
int cgroup_cpus() {
  double quota = 0.0;
  double period = 0.0;
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {  // cgroup v2
    if (std::fscanf(file, "%lf %lf", &quota, &period) != 2) quota = 0.0;
    std::fclose(file);
  } else {  // cgroup v1
    const auto read = [](const char* path) {
      double value = 0.0;
      if (std::FILE* f = std::fopen(path, "r")) {
        if (std::fscanf(f, "%lf", &value) != 1) value = 0.0;
        std::fclose(f);
      }
      return value;
    };
    quota = read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    period = read("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  }
  if (quota <= 0.0 || period <= 0.0) return 0;
  return std::max(1, static_cast<int>(quota / period + 0.999));
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
  static const int quota = cgroup_cpus();
  const int cpus = affinity_cpus();
  if (quota > 0 && quota < cpus) return {quota, "cgroup quota"};
  return {cpus, "cpu affinity"};
}

}  // namespace

int thread_count(int requested) { return choose(requested).threads; }
const char* thread_count_source(int requested) { return choose(requested).source; }
void set_default_threads(int threads) { default_threads.store(threads, std::memory_order_relaxed); }
bool in_forked_child() { return forked.load(std::memory_order_relaxed); }

void parallel_run(int64_t count, int threads, void (*task)(void*, int64_t), void* context) {
#ifdef _OPENMP
  if (threads > 1 && count > 1 && !in_forked_child() && !omp_in_parallel()) {
    std::atomic<int64_t> next{0};
    const int team = static_cast<int>(std::min<int64_t>(threads, count));
#pragma omp parallel num_threads(team)
    {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
    }
    return;
  }
#endif
  (void)threads;
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

}  // namespace cpuattn
