// SPDX-License-Identifier: MIT
// Whether a call is to end early: a function of the caller's, and its answer for every thread.
#pragma once

#include <atomic>

namespace cpuattn {

class Stop {
 public:
  using Question = bool (*)(void* context);

  Stop(Question question, void* context) : question_(question), context_(context) {}

  bool may_ask() const { return question_ != nullptr; }
  bool requested() const { return requested_.load(std::memory_order_relaxed); }
  void request() { requested_.store(true, std::memory_order_relaxed); }

  // Asks the caller, unless it is known already.
  bool ask() {
    if (requested()) return true;
    if (question_ == nullptr || !question_(context_)) return false;
    request();
    return true;
  }

 private:
  std::atomic<bool> requested_{false};
  const Question question_;
  void* const context_;
};

}  // namespace cpuattn
