// SPDX-License-Identifier: MIT
// The C interface of cpuattn/cpuattn.h: a struct of the caller's becomes Arguments, checked by the
// same code and with the same texts as a call from Python.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "core/attention.h"
#include "core/dispatch.h"
#include "core/error.h"
#include "core/problem.h"
#include "core/schedule.h"
#include "cpuattn/cpuattn.h"

// Memory for calls like one that a plan was made for: this header, then what `slots` points into.
struct cpuattn_plan {
  cpuattn::ScratchSlots slots;
  const cpuattn::Isa* isa;
  void* heap;  // what cpuattn_plan_destroy gives back, if it was not the caller's
  std::atomic<bool> runs;
};

namespace cpuattn {
namespace {

using Kind = Error::Kind;

constexpr int64_t kAlignment = 64;
constexpr int kMaxDims = kMaxBatchDims + 2;
constexpr int kArrays = 16;

thread_local char last_error[sizeof(Error::text)] = "";

cpuattn_status report(const Error& error) {
  std::memcpy(last_error, error.text, sizeof last_error);
  switch (error.kind) {
    case Kind::kType:
      return CPUATTN_ERROR_TYPE;
    case Kind::kRuntime:
      return CPUATTN_ERROR_RUNTIME;
    case Kind::kMemory:
      return CPUATTN_ERROR_MEMORY;
    case Kind::kNotImplemented:
      return CPUATTN_ERROR_UNSUPPORTED;
    case Kind::kCancelled:
      return CPUATTN_ERROR_CANCELLED;
    default:
      return CPUATTN_ERROR_VALUE;
  }
}

// Fields that the caller's header did not know keep 0; ones that this library does not know must
// be 0.
bool read_struct(const cpuattn_problem* given, cpuattn_problem& problem, Error& error) {
  if (given == nullptr) return fail(error, Kind::kValue, "problem: must be given; got NULL");
  constexpr size_t kFirstVersion = offsetof(cpuattn_problem, executor) + sizeof(void*);
  if (given->size < kFirstVersion) {
    return fail(error, Kind::kValue, "problem: size must be sizeof(cpuattn_problem) %zu; got %zu",
                sizeof problem, given->size);
  }
  std::memset(&problem, 0, sizeof problem);
  std::memcpy(&problem, given, std::min(given->size, sizeof problem));
  const char* bytes = reinterpret_cast<const char*>(given);
  for (size_t i = sizeof problem; i < given->size; ++i) {
    if (bytes[i] == 0) continue;
    return fail(error, Kind::kNotImplemented,
                "problem: an option is newer than this library, cpuattn " CPUATTN_VERSION);
  }
  return true;
}

const char* dtype_name(int32_t dtype) {
  constexpr const char* kNames[] = {"float32", "float64", "float16", "bfloat16",
                                    "bool",    "int32",   "int64"};
  return dtype >= CPUATTN_FLOAT32 && dtype <= CPUATTN_INT64 ? kNames[dtype] : "an unknown dtype";
}

// Adds |a| * b to sum; false where 2^63 is exceeded.
bool add_product(int64_t a, int64_t b, int64_t& sum) {
  if (a == INT64_MIN) return false;
  a = a < 0 ? -a : a;
  if (a != 0 && b > (INT64_MAX - sum) / a) return false;
  sum += a * b;
  return true;
}

// Reads the arrays of a problem; keeps the strides of those that came without.
class ArrayReader {
 public:
  explicit ArrayReader(Error& error) : error_(error) {}

  bool read(const char* name, const cpuattn_array& given, Array& array, bool output = false) {
    array.name = name;
    if (given.data == nullptr && given.shape == nullptr) return true;
    if (given.ndim < 0 || given.ndim > kMaxDims) {
      return fail(error_, Kind::kValue, "%s: ndim must be between 0 and %d; got %d", name, kMaxDims,
                  given.ndim);
    }
    if (given.ndim > 0 && given.shape == nullptr) {
      return fail(error_, Kind::kValue, "%s: shape must be given; got NULL", name);
    }
    array.data = given.data != nullptr ? static_cast<char*>(given.data) : nothing_;
    array.ndim = given.ndim;
    array.shape = given.ndim > 0 ? given.shape : &kOne;
    array.dtype_name = dtype_name(given.dtype);
    array.dtype = given.dtype >= CPUATTN_FLOAT32 && given.dtype <= CPUATTN_INT64
                      ? static_cast<DType>(given.dtype)
                      : DType::kOther;
    array.writeable = output;
    array.strides = given.strides != nullptr ? given.strides : dense_strides(array);
    return array.strides != nullptr && check_extent(array);
  }

 private:
  static constexpr int64_t kOne = 1;

  bool too_large(const Array& array) {
    return fail(error_, Kind::kValue, "%s: must span less than 2**%d bytes of memory", array.name,
                8 * static_cast<int>(sizeof(void*)) - 1);
  }

  const int64_t* dense_strides(const Array& array) {
    int64_t* strides = strides_[used_++];
    int64_t step = item_size(array.dtype);
    for (int i = array.ndim - 1; i >= 0; --i) {
      strides[i] = step;
      int64_t next = 0;
      if (!add_product(step, std::max<int64_t>(array.shape[i], 1), next)) {
        too_large(array);
        return nullptr;
      }
      step = next;
    }
    return strides;
  }

  bool check_extent(const Array& array) {
    bool empty = false;
    for (int i = 0; i < array.ndim; ++i) {
      if (array.shape[i] < 0) {
        return fail(error_, Kind::kValue, "%s: sizes must not be negative; got %lld on axis %d",
                    array.name, static_cast<long long>(array.shape[i]), i);
      }
      empty = empty || array.shape[i] == 0;
    }
    if (empty) return true;
    if (array.data == nothing_) {
      return fail(error_, Kind::kValue, "%s: data must be given; got NULL", array.name);
    }
    int64_t before = 0;  // bytes on both sides of data
    int64_t after = item_size(array.dtype);
    for (int i = 0; i < array.ndim; ++i) {
      int64_t& side = array.strides[i] < 0 ? before : after;
      if (!add_product(array.strides[i], array.shape[i] - 1, side)) return too_large(array);
    }
    const uint64_t address = reinterpret_cast<uintptr_t>(array.data);
    if (static_cast<uint64_t>(before) > address ||
        static_cast<uint64_t>(after) > UINTPTR_MAX - address || after > PTRDIFF_MAX - before) {
      return too_large(array);
    }
    return true;
  }

  static inline char nothing_[1] = {};  // stands in for the data of arrays of size 0

  Error& error_;
  int64_t strides_[kArrays][kMaxDims];
  int used_ = 0;
};

// Bytes [begin, end) within which all elements of an array lie.
struct Extent {
  const char* begin = nullptr;
  const char* end = nullptr;

  explicit Extent(const Array& array) {
    const int64_t* sizes = array.shape;
    if (!array || std::find(sizes, sizes + array.ndim, 0) != sizes + array.ndim) return;
    begin = end = array.data;
    for (int i = 0; i < array.ndim; ++i) {
      const int64_t reach = array.strides[i] * (array.shape[i] - 1);
      (reach < 0 ? begin : end) += reach;
    }
    end += item_size(array.dtype);
  }
  bool meets(const Extent& other) const { return begin < other.end && other.begin < end; }
};

bool check_overlaps(const Arguments& args, Error& error) {
  const Array* inputs[] = {&args.query,         &args.key,           &args.value,
                           &args.mask,          &args.bias,          &args.dropout_mask,
                           &args.alibi_slopes,  &args.sinks,         &args.q_lengths,
                           &args.kv_lengths,    &args.q_segment_ids, &args.kv_segment_ids,
                           &args.causal_offsets};
  const Array* outputs[] = {&args.out, &args.lse, &args.weights};
  for (const Array* out : outputs) {
    const Extent written(*out);
    const auto refuse = [&](const Array& other) {
      return fail(error, Kind::kValue, "%s: must not share memory with %s", out->name, other.name);
    };
    for (const Array* input : inputs) {
      if (written.meets(Extent(*input))) return refuse(*input);
    }
    for (const Array* other : outputs) {
      if (other != out && written.meets(Extent(*other))) return refuse(*other);
    }
  }
  return true;
}

bool check_choice(const char* name, int32_t value, int32_t largest, Error& error) {
  if (value >= 0 && value <= largest) return true;
  return fail(error, Kind::kValue, "%s: must be between 0 and %d; got %d", name, largest, value);
}

bool read_choices(const cpuattn_problem& in, Arguments& args, Error& error) {
  if (!check_choice("layout", in.layout, CPUATTN_BSHD, error) ||
      !check_choice("causal", in.causal, CPUATTN_CAUSAL_OFFSET, error) ||
      !check_choice("dropout_broadcast", in.dropout_broadcast, 15, error) ||
      !check_choice("dropout_generator", in.dropout_generator, CPUATTN_DRAW_THREEFRY, error) ||
      !check_choice("fully_masked", in.fully_masked, CPUATTN_MASKED_NAN, error) ||
      !check_choice("precision", in.precision, CPUATTN_MEDIUM, error) ||
      !check_choice("num_threads", in.num_threads, 4096, error)) {
    return false;
  }
  args.layout = static_cast<Layout>(in.layout);
  args.causal = in.causal != CPUATTN_CAUSAL_NONE;
  args.diagonal = in.causal == CPUATTN_CAUSAL_TOP_LEFT ? Diagonal::kTopLeft
                  : in.causal == CPUATTN_CAUSAL_OFFSET ? Diagonal::kOffset
                                                       : Diagonal::kBottomRight;
  args.offset = in.causal_offset;
  args.window_left = in.window_left;
  args.window_right = in.window_right;
  args.has_scale = in.has_scale != 0;
  args.scale = in.scale;
  args.has_softcap = in.softcap != 0.0;
  args.softcap = in.softcap;
  args.dropout_p = in.dropout_p;
  args.has_seed = true;
  args.dropout_seed = in.dropout_seed;
  args.dropout_broadcast = static_cast<uint8_t>(in.dropout_broadcast);
  args.dropout_generator = static_cast<DropoutGenerator>(in.dropout_generator);
  args.fully_masked = static_cast<FullyMasked>(in.fully_masked);
  args.precision = static_cast<Precision>(in.precision);
  args.return_weights = !args.weights              ? ReturnWeights::kNo
                        : in.weights_after_dropout ? ReturnWeights::kAfterDropout
                                                   : ReturnWeights::kBeforeDropout;
  return true;
}

bool read_arrays(const cpuattn_problem& in, ArrayReader& reader, Arguments& args, Error& error) {
  for (const auto& [name, array] :
       {std::pair{"query", &in.query}, {"key", &in.key}, {"value", &in.value}, {"out", &in.out}}) {
    if (array->data != nullptr || array->shape != nullptr) continue;
    return fail(error, Kind::kValue, "%s: must be given", name);
  }
  return reader.read("query", in.query, args.query) && reader.read("key", in.key, args.key) &&
         reader.read("value", in.value, args.value) && reader.read("out", in.out, args.out, true) &&
         reader.read("lse", in.lse, args.lse, true) &&
         reader.read("weights", in.weights, args.weights, true) &&
         reader.read("mask", in.mask, args.mask) && reader.read("bias", in.bias, args.bias) &&
         reader.read("dropout_mask", in.dropout_mask, args.dropout_mask) &&
         reader.read("alibi_slopes", in.alibi_slopes, args.alibi_slopes) &&
         reader.read("sinks", in.sinks, args.sinks) &&
         reader.read("q_lengths", in.q_lengths, args.q_lengths) &&
         reader.read("kv_lengths", in.kv_lengths, args.kv_lengths) &&
         reader.read("causal_offsets", in.causal_offsets, args.causal_offsets) &&
         reader.read("q_segment_ids", in.q_segment_ids, args.q_segment_ids) &&
         reader.read("kv_segment_ids", in.kv_segment_ids, args.kv_segment_ids);
}

// A checked problem and what else the struct said.
struct Call {
  AttentionProblem problem;
  int num_threads = 0;
  const cpuattn_executor* executor = nullptr;
  int32_t (*cancelled)(void* context) = nullptr;
  void* cancelled_context = nullptr;

  bool read(const cpuattn_problem* given, Error& error) {
    cpuattn_problem in;
    Arguments args;
    ArrayReader reader(error);
    if (!read_struct(given, in, error) || !read_arrays(in, reader, args, error) ||
        !read_choices(in, args, error) || !build_sizes(args, problem, error) ||
        !build_problem(args, problem, error) || !check_overlaps(args, error)) {
      return false;
    }
    num_threads = in.num_threads;
    executor = in.executor;
    cancelled = in.cancelled;
    cancelled_context = in.cancelled_context;
    return true;
  }

  bool parallel() const { return executor != nullptr || can_run_parallel(); }

  // Reads this struct while the call runs.
  Execution execution(const ScratchSlots* slots) {
    Execution how;
    how.slots = slots;
    if (executor != nullptr) {
      how.run = executor->run;
      how.pool = executor->pool;
    }
    if (cancelled != nullptr) {
      how.cancelled = [](void* call) {
        const Call& asked = *static_cast<Call*>(call);
        return asked.cancelled(asked.cancelled_context) != 0;
      };
      how.cancelled_context = this;
    }
    return how;
  }
};

int64_t whole_lines(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// What a plan holds, for every problem that is not larger.
struct Needs {
  int64_t item = 0, call = 0;
  int threads = 1;

  int64_t flags() const { return whole_lines(threads); }
  int64_t bytes() const {
    return kAlignment + whole_lines(sizeof(cpuattn_plan)) + flags() + threads * item + call;
  }
};

// Scratch depends on how many tiles of rows an item has and in how many chunks its keys are cut;
// neither is monotonous in the sizes, so the sizes at which they change are all asked for.
Needs needs_of(const Call& call, const Isa& isa) {
  constexpr int64_t kSteps = 64;
  Needs needs;
  AttentionProblem p = call.problem;
  const int64_t q_len = p.q_len;
  const int64_t kv_len = p.kv_len;
  const int64_t batch = p.batch;
  // A problem too small for several threads has larger items.
  const auto ask = [&] {
    for (const bool parallel : {call.parallel(), false}) {
      const Plan plan = make_plan(p, isa, call.num_threads, parallel);
      needs.item = std::max(needs.item, whole_lines(plan.item_scratch));
      needs.call = std::max(needs.call, whole_lines(plan.call_scratch));
      needs.threads = std::max(needs.threads, plan.threads);
    }
  };
  const int64_t row_step = std::max<int64_t>(1, q_len / kSteps);
  const int64_t kv_step = std::max<int64_t>(1, kv_len / 32);
  for (p.batch = batch;; p.batch /= 2) {
    for (p.kv_len = kv_len;; p.kv_len -= kv_step) {
      for (p.q_len = q_len; p.q_len > kSteps; p.q_len -= row_step) ask();
      for (; p.q_len >= 0; --p.q_len) ask();
      if (p.kv_len < kv_step) break;
    }
    if (p.batch <= 1) break;
  }
  return needs;
}

cpuattn_plan* place(void* memory, const Needs& needs, const Isa& isa) {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  char* at = static_cast<char*>(memory) + (kAlignment - address % kAlignment) % kAlignment;
  auto* plan = new (at) cpuattn_plan{};
  at += whole_lines(sizeof(cpuattn_plan));
  plan->isa = &isa;
  plan->slots.count = needs.threads;
  plan->slots.bytes = needs.item;
  plan->slots.taken = reinterpret_cast<std::atomic<bool>*>(at);
  for (int i = 0; i < needs.threads; ++i) new (&plan->slots.taken[i]) std::atomic<bool>(false);
  at += needs.flags();
  plan->slots.base = at;
  plan->slots.call = at + needs.threads * needs.item;
  plan->slots.call_bytes = needs.call;
  return plan;
}

// Holds a plan while it runs.
struct OneRun {
  explicit OneRun(cpuattn_plan& plan)
      : runs(plan.runs), alone(!runs.exchange(true, std::memory_order_acquire)) {}
  ~OneRun() {
    if (alone) runs.store(false, std::memory_order_release);
  }
  OneRun(const OneRun&) = delete;
  OneRun& operator=(const OneRun&) = delete;

  std::atomic<bool>& runs;
  const bool alone;
};

bool out_of_memory(const Needs& needs, Error& error) {
  return fail(error, Kind::kMemory, "out of memory for scratch: %lld bytes",
              static_cast<long long>(needs.bytes()));
}

bool measure(const cpuattn_problem* largest, Needs& needs, const Isa*& isa, Error& error) {
  Call call;
  isa = active_isa(error);
  if (isa == nullptr || !call.read(largest, error)) return false;
  needs = needs_of(call, *isa);
  const bool fits = static_cast<uint64_t>(needs.bytes()) <= SIZE_MAX;  // 32-bit
  return fits || out_of_memory(needs, error);
}

}  // namespace
}  // namespace cpuattn

using namespace cpuattn;

cpuattn_status cpuattn_attention(const cpuattn_problem* problem) {
  Error error;
  Call call;
  const Isa* isa = active_isa(error);
  if (isa == nullptr || !call.read(problem, error)) return report(error);
  const Plan plan = make_plan(call.problem, *isa, call.num_threads, call.parallel());
  if (!run_attention(call.problem, plan, error, call.execution(nullptr))) return report(error);
  return CPUATTN_OK;
}

cpuattn_status cpuattn_plan_bytes(const cpuattn_problem* largest, size_t* bytes) {
  Error error;
  Needs needs;
  const Isa* isa = nullptr;
  if (!measure(largest, needs, isa, error)) return report(error);
  *bytes = static_cast<size_t>(needs.bytes());
  return CPUATTN_OK;
}

cpuattn_status cpuattn_plan_place(const cpuattn_problem* largest, void* memory, size_t bytes,
                                  cpuattn_plan** plan) {
  Error error;
  Needs needs;
  const Isa* isa = nullptr;
  if (!measure(largest, needs, isa, error)) return report(error);
  if (memory == nullptr || bytes < static_cast<size_t>(needs.bytes())) {
    fail(error, Kind::kMemory, "bytes: must be at least %lld; got %zu",
         static_cast<long long>(needs.bytes()), memory == nullptr ? size_t{0} : bytes);
    return report(error);
  }
  *plan = place(memory, needs, *isa);
  return CPUATTN_OK;
}

cpuattn_status cpuattn_plan_create(const cpuattn_problem* largest, cpuattn_plan** plan) {
  Error error;
  Needs needs;
  const Isa* isa = nullptr;
  if (!measure(largest, needs, isa, error)) return report(error);
  void* memory = std::malloc(static_cast<size_t>(needs.bytes()));
  if (memory == nullptr) {
    out_of_memory(needs, error);
    return report(error);
  }
  *plan = place(memory, needs, *isa);
  (*plan)->heap = memory;
  return CPUATTN_OK;
}

void cpuattn_plan_destroy(cpuattn_plan* plan) {
  if (plan != nullptr) std::free(plan->heap);
}

cpuattn_status cpuattn_plan_run(cpuattn_plan* plan, const cpuattn_problem* problem) {
  Error error;
  Call call;
  if (plan == nullptr) {
    fail(error, Kind::kValue, "plan: must be given; got NULL");
    return report(error);
  }
  if (!call.read(problem, error)) return report(error);
  const OneRun run(*plan);
  if (!run.alone) {
    fail(error, Kind::kValue, "plan: must run once at a time; got a second run during the first");
    return report(error);
  }
  const ScratchSlots& slots = plan->slots;
  Plan schedule = make_plan(call.problem, *plan->isa, slots.count, call.parallel());
  if (schedule.item_scratch > slots.bytes) {
    fail(error, Kind::kMemory,
         "plan: must be made for the largest problem; got one that needs %lld bytes of scratch per "
         "thread, more than the plan's %lld",
         static_cast<long long>(schedule.item_scratch), static_cast<long long>(slots.bytes));
    return report(error);
  }
  if (schedule.call_scratch > slots.call_bytes) make_chunks_serial(schedule);
  if (!run_attention(call.problem, schedule, error, call.execution(&slots))) return report(error);
  return CPUATTN_OK;
}

const char* cpuattn_last_error(void) { return last_error; }

const char* cpuattn_version(void) { return CPUATTN_VERSION; }

const char* cpuattn_isa(void) {
  Error error;
  const Isa* isa = active_isa(error);
  if (isa != nullptr) return isa->name;
  report(error);
  return nullptr;
}

cpuattn_status cpuattn_set_isa(const char* name) {
  Error error;
  return force_isa(name, error) ? CPUATTN_OK : report(error);
}
