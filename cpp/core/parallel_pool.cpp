// SPDX-License-Identifier: MIT
// parallel_run on a pool of our own: workers spin for some microseconds, then sleep.
//
// A worker that wakes up late finds the run closed and is not waited for, so a busy machine delays
// a call by no more than the tasks that were really taken. Workers are never ended: they sleep
// until the process exits. A forked child has none of them and starts a pool of its own.
#include <algorithm>
#include <atomic>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/parallel.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace cpuattn {
namespace {

// About 20 us: back-to-back calls find the workers awake, and an idle library burns nothing.
constexpr int kSpins = 1000;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

class Pool {
 public:
  // The whole life of a run. Called with `busy` held.
  void run(int64_t count, int team, Task task, void* context) {
    hire(team - 1);
    task_ = task;
    context_ = context;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    seats_.store(team - 1, std::memory_order_relaxed);
    inside_.store(0, std::memory_order_release);  // opens the run: the fields above are visible
    runs_.fetch_add(1, std::memory_order_release);
    runs_.notify_all();
    claim();
    close();
  }

  std::mutex busy;

 private:
  static constexpr uint32_t kClosed = 1u << 31;

  void claim() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) {
      task_(context_, i);
    }
  }

  // Forbids further workers to come in, and waits for those inside.
  void close() {
    uint32_t inside = inside_.fetch_or(kClosed, std::memory_order_acq_rel) | kClosed;
    for (int spin = 0; inside != kClosed; ++spin) {
      if (spin < kSpins) {
        pause();
      } else {
        inside_.wait(inside, std::memory_order_acquire);
      }
      inside = inside_.load(std::memory_order_acquire);
    }
  }

  bool enter() {
    uint32_t inside = inside_.load(std::memory_order_acquire);
    while ((inside & kClosed) == 0) {
      if (inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acquire)) return true;
    }
    return false;
  }

  void leave() {
    if (inside_.fetch_sub(1, std::memory_order_release) == (kClosed | 1u)) inside_.notify_one();
  }

  void work(uint32_t seen) {
    for (;;) {
      for (int spin = 0; spin < kSpins && runs_.load(std::memory_order_acquire) == seen; ++spin) {
        pause();
      }
      runs_.wait(seen, std::memory_order_acquire);
      seen = runs_.load(std::memory_order_acquire);
      if (seats_.fetch_sub(1, std::memory_order_relaxed) <= 0 || !enter()) continue;
      claim();
      leave();
    }
  }

  // Starts workers up to `wanted`; fewer if the system gives no more threads.
  void hire(int wanted) {
    for (; workers_ < wanted; ++workers_) {
      const uint32_t seen = runs_.load(std::memory_order_relaxed);
      try {
        std::thread([this, seen] { work(seen); }).detach();
      } catch (const std::system_error&) {
        return;
      }
    }
  }

  int workers_ = 0;
  Task task_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<int> seats_{0};              // how many workers this run still wants
  std::atomic<uint32_t> inside_{kClosed};  // workers in the run, and whether it is closed
  std::atomic<uint32_t> runs_{0};          // counts runs; workers sleep on it
};

// Never destroyed: workers may still sleep on it while the process ends.
std::atomic<Pool*> pool{new Pool};

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { pool.store(new Pool, std::memory_order_relaxed); });
#endif

}  // namespace

bool can_run_parallel() { return true; }
const char* thread_backend() { return "pool"; }

void parallel_run(int64_t count, int threads, Task task, void* context) {
  const int team = static_cast<int>(std::min<int64_t>(threads, count));
  if (team > 1) {
    Pool& shared = *pool.load(std::memory_order_relaxed);
    const std::unique_lock<std::mutex> lock(shared.busy, std::try_to_lock);
    if (lock.owns_lock()) return shared.run(count, team, task, context);
  }
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

}  // namespace cpuattn
