// SPDX-License-Identifier: MIT
// The Python module: `attention` and `explain` as vectorcall functions, the rest through nanobind.
//
// A call is: sort and read the arguments, make the outputs, build (check) the problem, plan, run.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <new>
#include <optional>
#include <string>

#include "bindings/arguments.h"
#include "bindings/dlpack.h"
#include "bindings/docs.h"
#include "bindings/numpy_view.h"
#include "bindings/signals.h"
#include "core/attention.h"
#include "core/cgroup.h"
#include "core/cpu_features.h"
#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/thread_count.h"
#include "cpuattn/version.h"

namespace nb = nanobind;

namespace cpuattn {
namespace {

// Calls with less work than this keep the GIL: giving it up and back costs about as much.
constexpr double kReleaseMicroseconds = 10.0;
// Calls with less work than this end soon enough, on any ISA, for signals to wait for them.
constexpr double kWatchMicroseconds = 1000.0;

// The context variable of `threads()`, once it has been used. It stays: without the GIL another
// thread may be reading it.
std::atomic<PyObject*> threads_variable{nullptr};

PyObject* raise(const Error& error) {
  PyObject* type = PyExc_ValueError;
  switch (error.kind) {
    case Error::Kind::kType:
      type = PyExc_TypeError;
      break;
    case Error::Kind::kRuntime:
      type = PyExc_RuntimeError;
      break;
    case Error::Kind::kMemory:
      type = PyExc_MemoryError;
      break;
    case Error::Kind::kNotImplemented:
      type = PyExc_NotImplementedError;
      break;
    default:
      break;
  }
  PyErr_SetString(type, error.text);
  return nullptr;
}

// What a result lives in: NumPy's memory, a tensor's, or none, where a plan needs its shape alone.
enum class Home { kNone, kNumpy, kTensor };

struct Result {
  PyObject* object = nullptr;
  bool is_tensor = false;  // made by new_tensor()
  int64_t shape[kMaxBatchDims + 3];
  int64_t strides[kMaxBatchDims + 3];
};

// The three results, as references that are given up when something fails.
struct Results {
  Result out, lse, weights;
  bool abandoned = false;  // the interpreter is gone: give nothing up

  Results() = default;
  Results(const Results&) = delete;
  Results& operator=(const Results&) = delete;
  ~Results() {
    if (abandoned) return;
    Py_XDECREF(out.object);
    Py_XDECREF(lse.object);
    Py_XDECREF(weights.object);
  }

  // Hands the tensors among the results to the library of `query`.
  bool convert(PyObject* query) {
    for (Result* result : {&out, &lse, &weights}) {
      if (!result->is_tensor) continue;
      PyObject* converted = in_kind(result->object, query);
      if (converted == nullptr) return false;
      Py_DECREF(result->object);
      result->object = converted;
    }
    return true;
  }

  // What `attention` returns.
  PyObject* release() {
    if (lse.object == nullptr && weights.object == nullptr) {
      PyObject* result = out.object;
      out.object = nullptr;
      return result;
    }
    if (weights.object == nullptr) return PyTuple_Pack(2, out.object, lse.object);
    if (lse.object == nullptr) return PyTuple_Pack(2, out.object, weights.object);
    return PyTuple_Pack(3, out.object, lse.object, weights.object);
  }
};

// The trailing axes of a result.
struct Tail {
  int dims;
  int64_t sizes[3];
};

bool too_large(const Array& array) {
  PyObject* shape = PyTuple_New(array.ndim);
  for (int i = 0; i < array.ndim && shape != nullptr; ++i) {
    PyObject* size = PyLong_FromLongLong(array.shape[i]);
    if (size == nullptr || PyTuple_SetItem(shape, i, size) != 0) Py_CLEAR(shape);
  }
  if (shape == nullptr) return false;
  PyErr_Format(PyExc_ValueError, "%s: must span less than 2**63 bytes of memory; got shape %R",
               array.name, shape);
  Py_DECREF(shape);
  return false;
}

// Makes a C-contiguous result of shape (batch..., tail...) and of array.dtype, and describes it.
bool new_result(const AttentionProblem& p, Home home, const Tail& tail, Result& result,
                Array& array) {
  static char nowhere;
  std::copy_n(p.batch_shape, p.batch_dims, result.shape);
  std::copy_n(tail.sizes, tail.dims, result.shape + p.batch_dims);
  array.data = &nowhere;
  array.ndim = p.batch_dims + tail.dims;
  array.shape = result.shape;
  array.dtype_name = dtype_name(array.dtype);
  array.writeable = true;
  const int64_t bytes = set_c_strides(array, result.strides);
  if (bytes < 0) return too_large(array);
  if (home == Home::kNone) return true;
  result.is_tensor = home == Home::kTensor;
  result.object = result.is_tensor ? new_tensor(array, bytes) : new_ndarray(array);
  return result.object != nullptr;
}

bool make_results(CallArguments& call, Home home, const AttentionProblem& p, Results& results) {
  Arguments& args = call.core;
  const DType dtype = args.query.dtype;
  if (call.object[kOut] != nullptr) {
    results.out.object = Py_NewRef(call.object[kOut]);
  } else {
    const bool bhsd = args.layout == Layout::kBhsd;
    const Tail tail{3, {bhsd ? p.num_heads : p.q_len, bhsd ? p.q_len : p.num_heads, p.head_dim_v}};
    args.out.name = "out";
    args.out.dtype = dtype;
    if (!new_result(p, home, tail, results.out, args.out)) return false;
  }
  if (call.return_lse) {
    args.lse.name = "lse";
    args.lse.dtype = dtype == DType::kFloat64 ? dtype : DType::kFloat32;
    if (!new_result(p, home, {2, {p.num_heads, p.q_len}}, results.lse, args.lse)) return false;
  }
  if (args.return_weights == ReturnWeights::kNo) return true;
  args.weights.name = "weights";
  args.weights.dtype = dtype;
  return new_result(p, home, {3, {p.num_heads, p.q_len, p.kv_len}}, results.weights, args.weights);
}

bool check_out_overlaps(const CallArguments& call) {
  if (call.object[kOut] == nullptr) return true;
  const Arguments& args = call.core;
  for (const Array* input :
       {&args.query, &args.key, &args.value, &args.mask, &args.bias, &args.dropout_mask}) {
    if (*input && !check_overlap(args.out, *input)) return false;
  }
  return true;
}

// num_threads of the call, or of the innermost `with threads(n)`; 0 for the default.
bool requested_threads(const CallArguments& call, int& threads) {
  threads = call.num_threads;
  PyObject* variable = threads_variable.load(std::memory_order_acquire);
  if (threads > 0 || variable == nullptr) return true;
  PyObject* value = PyObject_CallMethod(variable, "get", nullptr);
  if (value == nullptr) return false;
  if (value != Py_None) threads = static_cast<int>(PyLong_AsLong(value));
  Py_DECREF(value);
  return true;
}

// Everything up to the computation itself.
bool prepare(CallArguments& call, Home home, Results& results, AttentionProblem& problem,
             Plan& plan) {
  Error error;
  const Isa* isa = active_isa(error);
  int threads = 0;
  if (isa == nullptr || !build_sizes(call.core, problem, error)) {
    raise(error);
    return false;
  }
  if (!make_results(call, home, problem, results)) return false;
  if (!build_problem(call.core, problem, error)) {
    raise(error);
    return false;
  }
  if (!check_out_overlaps(call) || !requested_threads(call, threads)) return false;
  plan = make_plan(problem, *isa, threads);
  return true;
}

// Computes without the GIL. Taking it back may never return when the interpreter shuts down under
// a daemon thread (CPython ends the thread): then no reference may be given up any more.
bool run_released(const AttentionProblem& problem, const Plan& plan, Error& error,
                  CallArguments& call, Results& results) {
  PyThreadState* state = PyEval_SaveThread();
  const bool ok = run_attention(problem, plan, error);
  call.abandoned = results.abandoned = true;
  PyEval_RestoreThread(state);
  call.abandoned = results.abandoned = false;
  return ok;
}

// The same on the main thread, where signals end the call by what their handlers raise.
bool run_watched(const AttentionProblem& problem, const Plan& plan, Error& error,
                 SignalWatch& watch) {
  Execution how;
  how.cancelled = SignalWatch::ask;
  how.cancelled_context = &watch;
  watch.release();
  const bool ok = run_attention(problem, plan, error, how);
  watch.restore();
  return ok;
}

// False with a Python error set.
bool run(const AttentionProblem& problem, const Plan& plan, CallArguments& call, Results& results) {
  Error error;
  if (plan.microseconds < kReleaseMicroseconds) {
    if (run_attention(problem, plan, error)) return true;
  } else if (plan.microseconds < kWatchMicroseconds || !on_main_thread()) {
    if (run_released(problem, plan, error, call, results)) return true;
  } else {
    SignalWatch watch;
    if (run_watched(problem, plan, error, watch)) return true;
    if (watch.raised()) return false;
  }
  raise(error);
  return false;
}

PyObject* attention(PyObject* const* args, Py_ssize_t positional, PyObject* names) {
  CallArguments call;
  if (!call.sort("attention", args, positional, names) || !call.read()) return nullptr;
  Results results;
  AttentionProblem problem;
  Plan plan;
  PyObject* query = call.object[kQuery];
  const Home home = is_ndarray(query) ? Home::kNumpy : Home::kTensor;
  if (!prepare(call, home, results, problem, plan)) return nullptr;
  if (!run(problem, plan, call, results)) return nullptr;
  return results.convert(query) ? results.release() : nullptr;
}

// Why blocks of keys or values are copied into scratch; nullptr where they are read in place.
const char* copy_reason(const AttentionProblem& p, const Plan& plan, const View& view,
                        bool is_value) {
  const bool bfloat16 = plan.table == plan.isa->bfloat16;
  if (bfloat16 && plan.planes > 1) return "its elements are split into bfloat16 terms";
  if (bfloat16 && view.dtype != DType::kBFloat16) return "its elements become bfloat16";
  if (bfloat16 && is_value && !plan.is_decode) return "the keys of a product go side by side";
  if (!bfloat16 && !plan.is_decode && is_half(view.dtype)) {
    return "its 16-bit elements become float32";
  }
  if (has_plain_rows({view.data, view.row_step, view.col_step, view.dtype})) {
    const int64_t multiple = !bfloat16 ? 1 : plan.table->max_planes > 1 ? 32 : 2;
    const bool whole = (is_value ? p.head_dim_v : p.head_dim) % multiple == 0;
    return whole ? nullptr : "its rows are padded to whole products";
  }
  if (view.col_step != item_size(view.dtype)) return "its columns are not adjacent";
  return view.row_step % 4096 == 0 ? "its rows are a multiple of 4096 bytes apart"
                                   : "its rows are not aligned";
}

void note_copy(const char* name, const AttentionProblem& p, const Plan& plan, bool is_value,
               nb::list& copies) {
  const char* why = copy_reason(p, plan, is_value ? p.value : p.key, is_value);
  if (why == nullptr || p.kv_len == 0) return;
  const int64_t size = plan.table == plan.isa->bfloat16   ? 2 * plan.planes
                       : p.query.dtype == DType::kFloat64 ? 8
                                                          : 4;
  const int64_t columns = is_value ? p.head_dim_v : p.head_dim;
  copies.append(nb::str("{}: {}; blocks of {} bytes are copied into scratch")
                    .format(name, why, plan.kernel->kv_block * columns * size));
}

nb::dict explanation(const AttentionProblem& p, const Plan& plan, int requested) {
  nb::dict d;
  d["isa"] = plan.isa->name;
  d["kernel"] = plan.is_decode ? "decode" : "prefill";
  d["products"] = products(p, plan);
  d["lanes"] = plan.table->lanes;
  d["row_tile"] = plan.kernel->row_tile;
  d["row_block"] = plan.row_block;
  d["kv_block"] = plan.kernel->kv_block;
  d["kv_splits"] = plan.chunks;
  d["items"] = plan.tasks;
  d["threads"] = plan.threads;
  d["threads_from"] = plan.threads > 1 ? thread_count_source(requested) : "serial";
  d["workspace_bytes"] = plan.item_scratch;
  d["shared_workspace_bytes"] = plan.call_scratch;
  d["estimated_microseconds"] = plan.microseconds;
  nb::list copies;
  note_copy("key", p, plan, false, copies);
  note_copy("value", p, plan, true, copies);
  d["copies"] = copies;
  nb::list notes;
  notes.append(
      nb::str(plan.is_decode
                  ? "{} rows share each kv head, at most {}: lanes hold head_dim"
                  : "{} rows share each kv head, more than {} or weights are wanted: lanes "
                    "hold query rows")
          .format(p.rows(), plan.table->decode_rows > 0 ? plan.table->decode_rows
                                                        : plan.isa->float32->decode_rows));
  if (plan.chunks > 1) {
    notes.append(nb::str("keys are split in chunks of {}, merged in order{}")
                     .format(plan.chunk, plan.parallel_chunks ? ", each a task of its own" : ""));
  }
  if (!can_run_parallel()) notes.append("serial: no threads here (built without, or forked)");
  if (p.weights) notes.append("weights cost a second pass over the keys");
  d["notes"] = notes;
  return d;
}

PyObject* explain(PyObject* const* args, Py_ssize_t positional, PyObject* names) {
  CallArguments call;
  if (!call.sort("explain", args, positional, names) || !call.read()) return nullptr;
  Results results;
  AttentionProblem problem;
  Plan plan;
  if (!prepare(call, Home::kNone, results, problem, plan)) return nullptr;
  int threads = 0;
  if (!requested_threads(call, threads)) return nullptr;
  return explanation(problem, plan, threads).release().ptr();
}

nb::list isa_table() {
  nb::list rows;
  for (const Isa& entry : all_isas()) {
    nb::dict row;
    std::string reason;
    if (entry.float32 == nullptr) {
      reason = "not compiled into this build";
    } else {
      for (const FeatureName& feature : kFeatureNames) {
        if ((entry.required & ~cpu_features() & feature.bit) == 0) continue;
        reason += reason.empty() ? "this CPU or system lacks " : ", ";
        reason += feature.name;
      }
    }
    row["name"] = entry.name;
    row["compiled"] = entry.float32 != nullptr;
    row["usable"] = usable(entry);
    row["reason"] = reason;
    rows.append(row);
  }
  return rows;
}

nb::list feature_list() {
  nb::list names;
  for (const FeatureName& feature : kFeatureNames) {
    if ((cpu_features() & feature.bit) != 0) names.append(feature.name);
  }
  return names;
}

void set_isa(const std::optional<std::string>& name) {
  Error error;
  if (!force_isa(name ? name->c_str() : nullptr, error)) throw std::runtime_error(error.text);
}

std::string isa_name() {
  Error error;
  const Isa* isa = active_isa(error);
  if (isa == nullptr) throw std::runtime_error(error.text);
  return isa->name;
}

// What the interpreter, which is C, calls: no C++ exception leaves it.
template <PyObject* (*kFunction)(PyObject* const*, Py_ssize_t, PyObject*)>
PyObject* called(PyObject*, PyObject* const* args, Py_ssize_t positional, PyObject* names) {
  try {
    return kFunction(args, positional, names);
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <PyObject* (*kFunction)(PyObject* const*, Py_ssize_t, PyObject*)>
PyCFunction as_c_function() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(called<kFunction>));
}

PyMethodDef vectorcall_methods[] = {
    {"attention", as_c_function<attention>(), METH_FASTCALL | METH_KEYWORDS, kAttentionDoc},
    {"explain", as_c_function<explain>(), METH_FASTCALL | METH_KEYWORDS, kExplainDoc},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace cpuattn

NB_MODULE(_core, m) {
  using namespace cpuattn;
  if (!import_numpy() || !intern_names() ||
      PyModule_AddFunctions(m.ptr(), vectorcall_methods) != 0) {
    throw nb::python_error();
  }
  m.attr("__version__") = CPUATTN_VERSION;
  m.def("isa_table", isa_table, "Every known ISA: name, compiled, usable, reason.");
  m.def("features", feature_list, "CPU features that dispatch looks at and that are present.");
  m.def("isa", isa_name, "Name of the active ISA.");
  m.def("set_isa", set_isa, nb::arg("name").none(), "Force an ISA by name; None undoes it.");
  m.def("set_num_threads", set_default_threads, nb::arg("threads"),
        "Default number of threads; 0 returns to the environment.");
  m.def("num_threads", [] { return thread_count(0); }, "Number of threads of a large call.");
  m.def(
      "num_threads_source", [] { return std::string(thread_count_source(0)); },
      "Where num_threads comes from.");
  m.def(
      "cgroup_cpus",
      []() -> std::optional<double> {
        const double quota = cgroup_cpus();
        return quota > 0 ? std::optional(quota) : std::nullopt;
      },
      "CPUs that the control group's quota allows; None without one.");
  m.def("can_run_parallel", can_run_parallel, "False where every call is serial.");
  m.def("thread_backend", [] { return std::string(thread_backend()); }, "pool, openmp or none.");
  m.def(
      "use_threads_variable",
      [](nb::object variable) {
        PyObject* none = nullptr;
        if (threads_variable.compare_exchange_strong(none, variable.ptr())) variable.release();
      },
      nb::arg("variable"),
      "Context variable that overrides the default number of threads, for good.");
}
