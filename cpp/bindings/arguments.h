// SPDX-License-Identifier: MIT
// From a Python call to core Arguments: names, types and values of every keyword.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <forward_list>
#include <string>

#include "bindings/dlpack.h"
#include "core/problem.h"

namespace cpuattn {

// The parameters of `attention`, in signature order.
enum Parameter {
  kQuery,
  kKey,
  kValue,
  kLayout,
  kMask,
  kBias,
  kCausal,
  kWindow,
  kScale,
  kSoftcap,
  kAlibiSlopes,
  kSinks,
  kQLengths,
  kKvLengths,
  kQSegmentIds,
  kKvSegmentIds,
  kDropoutP,
  kDropoutSeed,
  kDropoutMask,
  kDropoutBroadcast,
  kDropoutGenerator,
  kFullyMasked,
  kPrecision,
  kReturnLse,
  kReturnWeights,
  kOut,
  kNumThreads,
  kParameterCount
};
constexpr int kPositional = 3;  // query, key, value; the rest is keyword-only
extern const char* const kParameterNames[kParameterCount];

// Interns the names; false with a Python error set on failure.
bool intern_names();

// One call's arguments: borrowed objects by parameter (nullptr: not given or None).
struct CallArguments {
  PyObject* object[kParameterCount] = {};
  Arguments core;
  bool return_lse = false;
  int num_threads = 0;
  bool abandoned = false;  // the interpreter is gone: give nothing up

  CallArguments() = default;
  CallArguments(const CallArguments&) = delete;
  CallArguments& operator=(const CallArguments&) = delete;
  ~CallArguments();

  // Sorts positional and keyword arguments of a vectorcall into `object`.
  bool sort(const char* function, PyObject* const* args, Py_ssize_t positional,
            PyObject* keyword_names);
  // Reads every argument but query, key and value's contents. False with a Python error set.
  bool read();

 private:
  bool read_array(Parameter parameter, Array& array);
  bool read_small_array(Parameter parameter, Array& array, bool integers);
  bool read_causal();
  bool read_window();
  bool read_dropout();
  bool read_results();

  std::forward_list<std::string> dtype_names_;  // of unusual dtypes, for error texts
  PyObject* owned_[kParameterCount] = {};       // arrays made from Python sequences
  std::forward_list<Tensor> tensors_;           // arrays of other libraries
};

}  // namespace cpuattn
