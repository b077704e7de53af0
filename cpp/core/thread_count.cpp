// SPDX-License-Identifier: MIT
#include "core/thread_count.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace cpuattn {
namespace {

std::atomic<int> default_threads{0};

int positive_environment(const char* name) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::max(0, std::atoi(text)) : 0;
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

}  // namespace cpuattn
