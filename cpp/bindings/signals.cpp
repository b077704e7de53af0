// SPDX-License-Identifier: MIT
#include "bindings/signals.h"

#include <algorithm>

namespace cpuattn {
namespace {

// How often signals are handled: often enough for a person, too rarely to be felt in a call, even
// where another thread holds the GIL for its 5 ms.
constexpr std::chrono::milliseconds kHandleEvery{50};
// Questions that come faster than this share a look at the clock, up to so many. Few: the next ones
// may come slowly.
constexpr std::chrono::milliseconds kLookEvery{1};
constexpr int kMostPerLook = 16;

}  // namespace

bool on_main_thread() {
  PyObject* threading = PyImport_ImportModule("threading");
  PyObject* main =
      threading != nullptr ? PyObject_CallMethod(threading, "main_thread", nullptr) : nullptr;
  PyObject* ident = main != nullptr ? PyObject_GetAttrString(main, "ident") : nullptr;
  const bool same = ident != nullptr && PyLong_Check(ident) &&
                    PyLong_AsUnsignedLong(ident) == PyThread_get_thread_ident();
  Py_XDECREF(threading);
  Py_XDECREF(main);
  Py_XDECREF(ident);
  PyErr_Clear();
  return same;
}

bool SignalWatch::ask(void* watch) {
  auto& self = *static_cast<SignalWatch*>(watch);
  return std::this_thread::get_id() == self.owner_ && --self.left_ <= 0 && self.handle_signals();
}

bool SignalWatch::handle_signals() {
  const Clock::time_point now = Clock::now();
  stride_ = now - looked_ < kLookEvery ? std::min(2 * stride_, kMostPerLook) : 1;
  left_ = stride_;
  looked_ = now;
  if (now - handled_ < kHandleEvery) return false;
  restore();
  raised_ = PyErr_CheckSignals() != 0;
  release();
  looked_ = handled_ = Clock::now();
  return raised_;
}

}  // namespace cpuattn
