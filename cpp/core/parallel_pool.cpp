// SPDX-License-Identifier: MIT
// parallel_run on a pool of our own: workers spin for some microseconds, then sleep.
//
// A worker that wakes up late finds the run closed and is not waited for, so a busy machine delays
// a call by no more than the tasks that were really taken. Workers are never ended: they sleep
// until the process exits. A forked child has none of them and starts a pool of its own.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
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
// How often a caller that waits for workers asks whether it is to stop.
constexpr std::chrono::milliseconds kAskEvery{20};

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

class Pool {
 public:
  // The whole life of a run, of which there is one at a time; false if the process was forked in
  // it.
  bool run(int64_t count, int team, Task task, void* context, Stop& stop) {
    hire(team - 1);
    task_ = task;
    context_ = context;
    count_ = count;
    stop_ = &stop;
    next_.store(0, std::memory_order_relaxed);
    seats_.store(team - 1, std::memory_order_relaxed);
    inside_.store(0, std::memory_order_release);  // opens the run: the fields above are visible
    runs_.fetch_add(1, std::memory_order_release);
    runs_.notify_all();
    claim();
    return close();
  }

  // A caller that finds the pool taken computes alone; it may be the very thread that took it.
  bool take() { return !taken_.exchange(true, std::memory_order_acquire); }
  void give_back() { taken_.store(false, std::memory_order_release); }

 private:
  static constexpr uint32_t kClosed = 1u << 31;

  void claim() {
    for (int64_t i;
         !stop_->requested() && (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) {
      task_(context_, i);
    }
  }

  // Forbids further workers to come in, and waits for those inside.
  bool close() {
    const auto empty = [this] { return inside_.load(std::memory_order_acquire) == kClosed; };
    inside_.fetch_or(kClosed, std::memory_order_acq_rel);
    for (int spin = 0; spin < kSpins && !empty(); ++spin) pause();
    while (!empty()) {
      if (was_forked()) return false;
      std::unique_lock<std::mutex> lock(mutex_);
      if (all_left_.wait_for(lock, kAskEvery, empty)) break;
      lock.unlock();
      stop_->ask();
    }
    return true;
  }

  bool was_forked() const;

  bool enter() {
    uint32_t inside = inside_.load(std::memory_order_acquire);
    while ((inside & kClosed) == 0) {
      if (inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acquire)) return true;
    }
    return false;
  }

  void leave() {
    if (inside_.fetch_sub(1, std::memory_order_release) != (kClosed | 1u)) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
    }  // the caller has looked, or will
    all_left_.notify_one();
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
      } catch (const std::exception&) {  // no thread, or no memory for one
        return;
      }
    }
  }

  int workers_ = 0;
  Task task_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  Stop* stop_ = nullptr;
  std::atomic<bool> taken_{false};
  std::atomic<int64_t> next_{0};
  std::atomic<int> seats_{0};              // how many workers this run still wants
  std::atomic<uint32_t> inside_{kClosed};  // workers in the run, and whether it is closed
  std::atomic<uint32_t> runs_{0};          // counts runs; workers sleep on it
  std::mutex mutex_;
  std::condition_variable all_left_;  // a closed run
};

// Never destroyed: workers may still sleep on it while the process ends. Null: no memory for one.
std::atomic<Pool*> pool{new (std::nothrow) Pool};

bool Pool::was_forked() const { return pool.load(std::memory_order_relaxed) != this; }

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int registered = pthread_atfork(
    nullptr, nullptr, [] { pool.store(new (std::nothrow) Pool, std::memory_order_relaxed); });
#endif

}  // namespace

bool can_run_parallel() { return true; }
const char* thread_backend() { return "pool"; }

bool parallel_run(int64_t count, int threads, Task task, void* context, Stop& stop) {
  const int team = static_cast<int>(std::min<int64_t>(threads, count));
  if (team > 1) {
    Pool* const shared = pool.load(std::memory_order_relaxed);
    if (shared != nullptr && shared->take()) {
      const bool complete = shared->run(count, team, task, context, stop);
      shared->give_back();
      return complete;
    }
  }
  for (int64_t i = 0; i < count && !stop.requested(); ++i) task(context, i);
  return true;
}

}  // namespace cpuattn
