// SPDX-License-Identifier: MIT
// Python's signal handlers during a long call, so that Ctrl-C ends it.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <chrono>
#include <thread>

namespace cpuattn {

// Whether this is the thread that runs signal handlers. Every other one may never get the GIL back,
// because the interpreter is shutting down.
bool on_main_thread();

// Gives the GIL up from release() to restore(). In between, when it is asked, the main thread takes
// the GIL now and then and lets Python run the handlers of signals that have come.
class SignalWatch {
 public:
  // An exception is set: a handler raised it.
  bool raised() const { return raised_; }

  void release() { state_ = PyEval_SaveThread(); }
  void restore() { PyEval_RestoreThread(state_); }

  // Whether a handler has raised; a Stop::Question about a SignalWatch, for any thread.
  static bool ask(void* watch);

 private:
  using Clock = std::chrono::steady_clock;

  bool handle_signals();

  const std::thread::id owner_ = std::this_thread::get_id();
  bool raised_ = false;
  PyThreadState* state_ = nullptr;
  Clock::time_point looked_ = Clock::now(), handled_ = looked_;
  int stride_ = 1, left_ = 1;  // questions per look at the clock, and until the next one
};

}  // namespace cpuattn
