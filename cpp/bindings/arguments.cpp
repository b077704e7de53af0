// SPDX-License-Identifier: MIT
#include "bindings/arguments.h"

#include <cstddef>
#include <cstring>

#include "bindings/numpy_view.h"

namespace cpuattn {

const char* const kParameterNames[kParameterCount] = {
    "query",
    "key",
    "value",
    "layout",
    "mask",
    "bias",
    "causal",
    "window",
    "scale",
    "softcap",
    "alibi_slopes",
    "sinks",
    "q_lengths",
    "kv_lengths",
    "q_segment_ids",
    "kv_segment_ids",
    "dropout_p",
    "dropout_seed",
    "dropout_mask",
    "dropout_broadcast",
    "dropout_generator",
    "fully_masked",
    "precision",
    "return_lse",
    "return_weights",
    "out",
    "num_threads",
};

namespace {

PyObject* interned[kParameterCount];

const char* type_name(PyObject* object) {
  thread_local std::string text;
  PyObject* name = PyObject_GetAttrString(reinterpret_cast<PyObject*>(Py_TYPE(object)), "__name__");
  PyObject* bytes = name != nullptr ? PyUnicode_AsUTF8String(name) : nullptr;
  text = bytes != nullptr ? PyBytes_AsString(bytes) : "object";
  Py_XDECREF(name);
  Py_XDECREF(bytes);
  return text.c_str();
}

bool type_error(Parameter parameter, const char* rule, PyObject* got) {
  PyErr_Format(PyExc_TypeError, "%s: must be %s; got %s", kParameterNames[parameter], rule,
               type_name(got));
  return false;
}

struct Choice {
  const char* name;
  int value;
};

// A string out of a fixed list.
template <size_t kCount>
bool read_choice(Parameter parameter, PyObject* object, const Choice (&choices)[kCount],
                 const char* rule, int& value) {
  if (!PyUnicode_Check(object)) return type_error(parameter, rule, object);
  for (const Choice& choice : choices) {
    if (PyUnicode_CompareWithASCIIString(object, choice.name) == 0) {
      value = choice.value;
      return true;
    }
  }
  PyErr_Format(PyExc_ValueError, "%s: must be %s; got %R", kParameterNames[parameter], rule,
               object);
  return false;
}

bool read_double(Parameter parameter, PyObject* object, double& value) {
  if (PyComplex_Check(object) || PyUnicode_Check(object)) {
    return type_error(parameter, "a real number", object);
  }
  value = PyFloat_AsDouble(object);
  if (value == -1.0 && PyErr_Occurred() != nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) return false;
    PyErr_Clear();
    return type_error(parameter, "a real number", object);
  }
  return true;
}

// An integer within [low, high]; __index__ objects count, floats do not.
bool read_integer(Parameter parameter, PyObject* object, const char* rule, int64_t low,
                  int64_t high, int64_t& value) {
  if (!PyIndex_Check(object)) return type_error(parameter, rule, object);
  PyObject* number = PyNumber_Index(object);
  if (number == nullptr) return false;
  int overflow = 0;
  value = PyLong_AsLongLongAndOverflow(number, &overflow);
  Py_DECREF(number);
  if (overflow == 0 && value >= low && value <= high) return true;
  PyErr_Format(PyExc_ValueError, "%s: must be %s; got %R", kParameterNames[parameter], rule,
               object);
  return false;
}

bool is_array_like(PyObject* object) { return is_ndarray(object) || speaks_dlpack(object); }

}  // namespace

bool intern_names() {
  for (int i = 0; i < kParameterCount; ++i) {
    interned[i] = PyUnicode_InternFromString(kParameterNames[i]);
    if (interned[i] == nullptr) return false;
  }
  return true;
}

CallArguments::~CallArguments() {
  if (abandoned) {
    for (Tensor& tensor : tensors_) tensor.abandon();
    return;
  }
  for (PyObject* array : owned_) Py_XDECREF(array);
}

bool CallArguments::sort(const char* function, PyObject* const* args, Py_ssize_t positional,
                         PyObject* keyword_names) {
  if (positional > kPositional) {
    PyErr_Format(PyExc_TypeError,
                 "%s() takes 3 positional arguments (query, key, value) but %zd were given",
                 function, positional);
    return false;
  }
  for (Py_ssize_t i = 0; i < positional; ++i) object[i] = args[i];
  const Py_ssize_t keywords = keyword_names != nullptr ? PyTuple_Size(keyword_names) : 0;
  for (Py_ssize_t i = 0; i < keywords; ++i) {
    PyObject* name = PyTuple_GetItem(keyword_names, i);
    int index = 0;
    while (index < kParameterCount && interned[index] != name) ++index;
    if (index == kParameterCount) {  // not the interned object: compare the text
      for (index = 0; index < kParameterCount; ++index) {
        if (PyUnicode_CompareWithASCIIString(name, kParameterNames[index]) == 0) break;
      }
    }
    if (index == kParameterCount) {
      PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument %R", function, name);
      return false;
    }
    if (index < positional) {
      PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument %R", function, name);
      return false;
    }
    object[index] = args[positional + i];
  }
  for (int i = 0; i < kPositional; ++i) {
    if (object[i] == nullptr) {
      PyErr_Format(PyExc_TypeError, "%s() missing required argument '%s'", function,
                   kParameterNames[i]);
      return false;
    }
  }
  for (int i = kPositional; i < kParameterCount; ++i) {
    if (object[i] == Py_None) object[i] = nullptr;
  }
  return true;
}

bool CallArguments::read_array(Parameter parameter, Array& array) {
  PyObject* given = object[parameter];
  if (given == nullptr) return true;
  if (is_ndarray(given)) {
    return view_ndarray(given, kParameterNames[parameter], dtype_names_, array);
  }
  if (!speaks_dlpack(given)) {
    return type_error(parameter, "a NumPy array or a CPU tensor that speaks DLPack", given);
  }
  tensors_.emplace_front();
  return tensors_.front().view(given, kParameterNames[parameter], dtype_names_, array);
}

bool CallArguments::read_small_array(Parameter parameter, Array& array, bool integers) {
  PyObject* given = object[parameter];
  if (given == nullptr || is_array_like(given)) return read_array(parameter, array);
  owned_[parameter] = small_array(given, kParameterNames[parameter], integers);
  if (owned_[parameter] == nullptr) return false;
  return view_ndarray(owned_[parameter], kParameterNames[parameter], dtype_names_, array);
}

bool CallArguments::read_causal() {
  PyObject* given = object[kCausal];
  if (given == nullptr || given == Py_False) return true;
  core.causal = true;
  if (given == Py_True) return true;
  if (PyUnicode_Check(given)) {
    static constexpr Choice choices[] = {
        {"top_left", static_cast<int>(Diagonal::kTopLeft)},
        {"bottom_right", static_cast<int>(Diagonal::kBottomRight)},
    };
    int value = 0;
    if (!read_choice(kCausal, given, choices,
                     "False, True, 'top_left', 'bottom_right', an integer or an integer array",
                     value)) {
      return false;
    }
    core.diagonal = static_cast<Diagonal>(value);
    return true;
  }
  core.diagonal = Diagonal::kOffset;
  if (PyLong_Check(given)) {
    return read_integer(kCausal, given, "an offset that fits 64 bits", INT64_MIN, INT64_MAX,
                        core.offset);
  }
  if (PyFloat_Check(given)) {
    return type_error(
        kCausal, "False, True, 'top_left', 'bottom_right', an integer or an integer array", given);
  }
  return read_small_array(kCausal, core.causal_offsets, true);
}

bool CallArguments::read_window() {
  PyObject* given = object[kWindow];
  if (given == nullptr) return true;
  static constexpr const char* rule = "a pair (left, right) of integers or None";
  if (!PyTuple_Check(given) && !PyList_Check(given)) return type_error(kWindow, rule, given);
  if (PySequence_Size(given) != 2) {
    PyErr_Format(PyExc_ValueError, "window: must be %s; got %R", rule, given);
    return false;
  }
  int64_t* const sides[] = {&core.window_left, &core.window_right};
  for (int i = 0; i < 2; ++i) {
    PyObject* side = PySequence_GetItem(given, i);
    const bool ok =
        side != nullptr &&
        (side == Py_None || read_integer(kWindow, side, rule, INT64_MIN, INT64_MAX, *sides[i]));
    Py_XDECREF(side);
    if (!ok) return false;
  }
  return true;
}

bool CallArguments::read_dropout() {
  if (object[kDropoutP] != nullptr && !read_double(kDropoutP, object[kDropoutP], core.dropout_p)) {
    return false;
  }
  if (PyObject* seed = object[kDropoutSeed]) {
    static constexpr const char* rule = "an integer from 0 to 2**64 - 1";
    if (!PyIndex_Check(seed)) return type_error(kDropoutSeed, rule, seed);
    PyObject* number = PyNumber_Index(seed);
    if (number == nullptr) return false;
    core.dropout_seed = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    if (PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      PyErr_Format(PyExc_ValueError, "dropout_seed: must be %s; got %R", rule, seed);
      return false;
    }
    core.has_seed = true;
  }
  if (PyObject* given = object[kDropoutGenerator]) {
    static constexpr Choice choices[] = {
        {"philox", static_cast<int>(DropoutGenerator::kPhilox)},
        {"threefry", static_cast<int>(DropoutGenerator::kThreefry)}};
    int value = 0;
    if (!read_choice(kDropoutGenerator, given, choices, "'philox' or 'threefry'", value)) {
      return false;
    }
    core.dropout_generator = static_cast<DropoutGenerator>(value);
  }
  PyObject* axes = object[kDropoutBroadcast];
  if (axes == nullptr) return true;
  static constexpr const char* rule = "a tuple of names out of 'batch', 'heads', 'q_len', 'kv_len'";
  if (!PyTuple_Check(axes) && !PyList_Check(axes)) return type_error(kDropoutBroadcast, rule, axes);
  static constexpr Choice choices[] = {
      {"batch", kAxisBatch}, {"heads", kAxisHeads}, {"q_len", kAxisQLen}, {"kv_len", kAxisKvLen}};
  for (Py_ssize_t i = 0; i < PySequence_Size(axes); ++i) {
    PyObject* axis = PySequence_GetItem(axes, i);
    int bit = 0;
    const bool ok = axis != nullptr && read_choice(kDropoutBroadcast, axis, choices, rule, bit);
    Py_XDECREF(axis);
    if (!ok) return false;
    core.dropout_broadcast = static_cast<uint8_t>(core.dropout_broadcast | bit);
  }
  return true;
}

bool CallArguments::read_results() {
  if (PyObject* given = object[kReturnLse]) {
    const int truth = PyObject_IsTrue(given);
    if (truth < 0) return false;
    return_lse = truth == 1;
  }
  if (PyObject* given = object[kReturnWeights]) {
    if (given == Py_True) {
      core.return_weights = ReturnWeights::kBeforeDropout;
    } else if (given != Py_False) {
      static constexpr Choice choices[] = {
          {"before_dropout", static_cast<int>(ReturnWeights::kBeforeDropout)},
          {"after_dropout", static_cast<int>(ReturnWeights::kAfterDropout)}};
      int value = 0;
      if (!read_choice(kReturnWeights, given, choices,
                       "False, True, 'before_dropout' or 'after_dropout'", value)) {
        return false;
      }
      core.return_weights = static_cast<ReturnWeights>(value);
    }
  }
  if (PyObject* given = object[kNumThreads]) {
    int64_t threads = 0;
    if (!read_integer(kNumThreads, given, "an integer from 1 to 4096", 1, 4096, threads))
      return false;
    num_threads = static_cast<int>(threads);
  }
  return true;
}

bool CallArguments::read() {
  int value = 0;
  if (PyObject* given = object[kLayout]) {
    static constexpr Choice choices[] = {{"bhsd", static_cast<int>(Layout::kBhsd)},
                                         {"bshd", static_cast<int>(Layout::kBshd)}};
    if (!read_choice(kLayout, given, choices, "'bhsd' or 'bshd'", value)) return false;
    core.layout = static_cast<Layout>(value);
  }
  if (PyObject* given = object[kFullyMasked]) {
    static constexpr Choice choices[] = {{"zero", static_cast<int>(FullyMasked::kZero)},
                                         {"mean", static_cast<int>(FullyMasked::kMean)},
                                         {"nan", static_cast<int>(FullyMasked::kNan)}};
    if (!read_choice(kFullyMasked, given, choices, "'zero', 'mean' or 'nan'", value)) return false;
    core.fully_masked = static_cast<FullyMasked>(value);
  }
  if (PyObject* given = object[kPrecision]) {
    static constexpr Choice choices[] = {{"highest", static_cast<int>(Precision::kHighest)},
                                         {"high", static_cast<int>(Precision::kHigh)},
                                         {"medium", static_cast<int>(Precision::kMedium)}};
    if (!read_choice(kPrecision, given, choices, "'highest', 'high' or 'medium'", value))
      return false;
    core.precision = static_cast<Precision>(value);
  }
  if (object[kScale] != nullptr) {
    core.has_scale = true;
    if (!read_double(kScale, object[kScale], core.scale)) return false;
  }
  if (object[kSoftcap] != nullptr) {
    core.has_softcap = true;
    if (!read_double(kSoftcap, object[kSoftcap], core.softcap)) return false;
  }
  return read_array(kQuery, core.query) && read_array(kKey, core.key) &&
         read_array(kValue, core.value) && read_array(kMask, core.mask) &&
         read_array(kBias, core.bias) && read_causal() && read_window() &&
         read_small_array(kAlibiSlopes, core.alibi_slopes, false) &&
         read_small_array(kSinks, core.sinks, false) &&
         read_small_array(kQLengths, core.q_lengths, true) &&
         read_small_array(kKvLengths, core.kv_lengths, true) &&
         read_small_array(kQSegmentIds, core.q_segment_ids, true) &&
         read_small_array(kKvSegmentIds, core.kv_segment_ids, true) && read_dropout() &&
         read_array(kDropoutMask, core.dropout_mask) && read_array(kOut, core.out) &&
         read_results();
}

}  // namespace cpuattn
