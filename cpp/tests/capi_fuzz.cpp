// SPDX-License-Identifier: MIT
// Random problems for the C interface: sizes, strides, dtypes and options, right and wrong ones.
// Every array is an allocation of exactly its extent, so that AddressSanitizer sees each byte too
// far.
//
// LLVMFuzzerTestOneInput is libFuzzer's entry. Without libFuzzer, main() runs files (a corpus), or
// random inputs: capi_fuzz [--runs N] [--seed N] [--seconds N] [file ...].
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpuattn/cpuattn.h"

namespace {

int64_t computed = 0;
int64_t refused = 0;

// Decisions, read off the input; zeros after its end.
class Choices {
 public:
  Choices(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}

  uint8_t byte() { return data_ < end_ ? *data_++ : uint8_t{0}; }
  int64_t below(int64_t n) { return n <= 1 ? 0 : (byte() * 256 + byte()) % n; }
  bool chance(int percent) { return byte() % 100 >= 100 - percent; }
  template <class T>
  T one_of(std::initializer_list<T> list) {
    return list.begin()[below(static_cast<int64_t>(list.size()))];
  }

 private:
  const uint8_t* data_;
  const uint8_t* end_;
};

[[noreturn]] void complain(const char* what) {
  std::fprintf(stderr, "capi_fuzz: %s (last error: %s)\n", what, cpuattn_last_error());
  std::abort();
}

const cpuattn_executor kBackwards{[](void*, int64_t count, cpuattn_task task, void* context) {
                                    while (count > 0) task(context, --count);
                                  },
                                  nullptr};

int64_t size_of(int32_t dtype) {
  constexpr int64_t kSizes[] = {4, 8, 2, 2, 1, 4, 8};
  return dtype >= 0 && dtype < 7 ? kSizes[dtype] : 4;
}

// An array with random strides in an allocation that ends where the array ends.
class FuzzArray {
 public:
  FuzzArray(Choices& choices, std::vector<int64_t> shape, int32_t dtype, bool output)
      : shape_(std::move(shape)), strides_(shape_.size()), dtype_(dtype) {
    int64_t step = size_of(dtype) + (chance_of_gap(choices) ? choices.below(9) : 0);
    int64_t low = 0;
    int64_t high = size_of(dtype);
    std::vector<size_t> order(shape_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = order.size() - 1 - i;
    if (order.size() > 1 && choices.chance(20)) {
      std::swap(order[0],
                order[static_cast<size_t>(choices.below(static_cast<int64_t>(order.size())))]);
    }
    for (const size_t axis : order) {
      const int64_t reach = std::max<int64_t>(shape_[axis] - 1, 0);
      int64_t stride = step;
      if (!output && choices.chance(4)) stride = 0;
      if (choices.chance(8)) stride = -stride;
      strides_[axis] = stride;
      (stride < 0 ? low : high) += stride * reach;
      step = step * std::max<int64_t>(shape_[axis], 1) +
             (chance_of_gap(choices) ? choices.below(17) : 0);
    }
    const int64_t shift = choices.below(16);  // any alignment
    const bool empty = std::find(shape_.begin(), shape_.end(), 0) != shape_.end();
    const auto bytes = static_cast<size_t>(empty ? 0 : high - low);
    memory_ = std::make_unique<char[]>(bytes + static_cast<size_t>(shift));
    data_ = memory_.get() + shift + (empty ? 0 : -low);
    char* first = memory_.get() + shift;
    // Any bits are a number: NaN, Inf and denormals too; mostly tame ones.
    const int kind = choices.byte() % 8;
    size_t filled = std::min<size_t>(bytes, 21);
    for (size_t i = 0; i < filled; ++i) {
      first[i] = static_cast<char>(kind == 0 ? choices.byte() : kind < 3 ? 0 : 0x3c + (i % 7 == 0));
    }
    for (size_t count = 0; filled < bytes; filled += count) {
      count = std::min(filled, bytes - filled);
      std::memcpy(first + filled, first, count);
    }
  }

  cpuattn_array view(bool dense) const {
    return {data_, shape_.data(), dense ? nullptr : strides_.data(),
            static_cast<int32_t>(shape_.size()), dtype_};
  }
  std::vector<int64_t>& shape() { return shape_; }
  std::vector<int64_t>& strides() { return strides_; }

 private:
  static bool chance_of_gap(Choices& choices) { return choices.chance(15); }

  std::vector<int64_t> shape_, strides_;
  int32_t dtype_;
  std::unique_ptr<char[]> memory_;
  char* data_ = nullptr;
};

class FuzzProblem {
 public:
  explicit FuzzProblem(Choices& choices) : choices_(choices) {
    choose_sizes();
    choose_tensors();
    choose_modifiers();
    choose_options();
    if (choices.chance(20)) spoil();
  }

  cpuattn_problem problem = cpuattn_problem_default();

 private:
  // The last `count` axes of a shape that broadcasts to `full`.
  std::vector<int64_t> broadcast(std::vector<int64_t> full, size_t keep) {
    const auto count =
        static_cast<size_t>(choices_.below(static_cast<int64_t>(full.size() - keep) + 1));
    full.erase(full.begin(), full.begin() + static_cast<std::ptrdiff_t>(count));
    for (size_t i = 0; i + keep < full.size(); ++i) {
      if (choices_.chance(25)) full[i] = 1;
    }
    return full;
  }

  cpuattn_array add(std::vector<int64_t> shape, int32_t dtype, bool output = false) {
    arrays_.emplace_back(choices_, std::move(shape), dtype, output);
    return arrays_.back().view(false);
  }

  void choose_sizes() {
    const int64_t large = choices_.chance(5) ? 2100 : 0;
    for (int64_t i = choices_.below(3); i > 0; --i) batch_.push_back(choices_.below(4));
    kv_heads_ = choices_.chance(5) ? 0 : 1 + choices_.below(3);
    heads_ = kv_heads_ * (1 + choices_.below(4));
    q_len_ = choices_.chance(30) ? choices_.below(90) : choices_.below(12);
    kv_len_ = choices_.below(choices_.chance(30) ? 200 : 40) + large;
    head_dim_ = choices_.one_of<int64_t>({0, 1, 3, 8, 16, 17, 32, 40, 64, 80});
    head_dim_v_ = choices_.chance(70) ? head_dim_ : choices_.below(40);
    make_cheap();
  }

  // Many runs find more than long ones: large problems have small rows, and few of them.
  void make_cheap() {
    constexpr int64_t kMultiplications = 50'000;
    int64_t pairs = heads_ * kv_len_;
    for (const int64_t size : batch_) pairs *= size;
    const int64_t widest = kMultiplications / std::max<int64_t>(pairs, 1) + 1;
    head_dim_ = std::min(head_dim_, widest);
    head_dim_v_ = std::min(head_dim_v_, widest);
    const int64_t row = pairs * std::max(head_dim_, head_dim_v_);
    q_len_ = std::min(q_len_, kMultiplications / std::max<int64_t>(row, 1) + 1);
  }

  std::vector<int64_t> tensor(int64_t heads, int64_t length, int64_t columns) const {
    std::vector<int64_t> shape = batch_;
    const bool bshd = problem.layout == CPUATTN_BSHD;
    shape.push_back(bshd ? length : heads);
    shape.push_back(bshd ? heads : length);
    shape.push_back(columns);
    return shape;
  }

  void choose_tensors() {
    problem.layout = choices_.chance(30) ? CPUATTN_BSHD : CPUATTN_BHSD;
    const auto dtype = static_cast<int32_t>(choices_.below(4));
    const bool cache = dtype == CPUATTN_FLOAT32 && choices_.chance(25);
    const int32_t kv = cache ? choices_.one_of({CPUATTN_FLOAT16, CPUATTN_BFLOAT16}) : dtype;
    problem.query = add(tensor(heads_, q_len_, head_dim_), dtype);
    problem.key = add(tensor(kv_heads_, kv_len_, head_dim_), kv);
    problem.value = add(tensor(kv_heads_, kv_len_, head_dim_v_), kv);
    problem.out = add(tensor(heads_, q_len_, head_dim_v_), dtype, true);
    scores_ = batch_;
    scores_.insert(scores_.end(), {heads_, q_len_, kv_len_});
    const std::vector<int64_t> rows(scores_.begin(), scores_.end() - 1);
    if (choices_.chance(30)) problem.lse = add(rows, float_dtype(), true);
    if (choices_.chance(15)) problem.weights = add(scores_, dtype, true);
  }

  int32_t float_dtype() { return static_cast<int32_t>(choices_.below(4)); }
  int32_t integer_dtype() { return choices_.one_of({CPUATTN_INT32, CPUATTN_INT64}); }

  void choose_modifiers() {
    if (choices_.chance(30)) problem.mask = add(broadcast(scores_, 0), CPUATTN_BOOL);
    if (choices_.chance(30)) problem.bias = add(broadcast(scores_, 0), float_dtype());
    if (choices_.chance(10)) problem.dropout_mask = add(broadcast(scores_, 0), CPUATTN_BOOL);
    std::vector<int64_t> heads = batch_;
    heads.push_back(heads_);
    if (choices_.chance(15)) problem.alibi_slopes = add(broadcast(heads, 1), float_dtype());
    if (choices_.chance(15)) problem.sinks = add({heads_}, float_dtype());
    if (choices_.chance(15)) problem.q_lengths = integers(broadcast(batch_, 0), q_len_ + 1);
    if (choices_.chance(20)) problem.kv_lengths = integers(broadcast(batch_, 0), kv_len_ + 1);
    if (choices_.chance(10)) problem.causal_offsets = integers(broadcast(batch_, 0), kv_len_ + 1);
    if (choices_.chance(12)) {
      std::vector<int64_t> ids = batch_;
      ids.push_back(q_len_);
      problem.q_segment_ids = integers(broadcast(ids, 1), 3);
      ids.back() = kv_len_;
      problem.kv_segment_ids = integers(broadcast(ids, 1), 3);
    }
  }

  // Numbers in range, now and then any.
  cpuattn_array integers(const std::vector<int64_t>& shape, int64_t end) {
    const int32_t dtype = integer_dtype();
    const cpuattn_array view = add(shape, dtype);
    const auto count = static_cast<int64_t>(shape.size());
    std::vector<int64_t> index(shape.size(), 0);
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return view;
    for (;;) {
      char* at = static_cast<char*>(view.data);
      for (size_t i = 0; i < shape.size(); ++i) at += index[i] * view.strides[i];
      const int64_t value =
          choices_.chance(2) ? INT64_C(-1) << choices_.below(64) : choices_.below(end);
      const auto narrow = static_cast<int32_t>(value);
      std::memcpy(at, dtype == CPUATTN_INT32 ? static_cast<const void*>(&narrow) : &value,
                  dtype == CPUATTN_INT32 ? 4 : 8);
      int64_t axis = count - 1;
      while (axis >= 0 && ++index[static_cast<size_t>(axis)] == shape[static_cast<size_t>(axis)]) {
        index[static_cast<size_t>(axis--)] = 0;
      }
      if (axis < 0) return view;
    }
  }

  void choose_options() {
    problem.causal = static_cast<int32_t>(choices_.chance(50) ? choices_.below(4) : 0);
    problem.causal_offset = choices_.chance(90) ? choices_.below(50) - 25 : INT64_MIN;
    if (choices_.chance(20))
      problem.window_left = choices_.chance(95) ? choices_.below(60) : INT64_MAX;
    if (choices_.chance(20))
      problem.window_right = choices_.chance(95) ? choices_.below(60) : INT64_MAX;
    problem.has_scale = choices_.chance(30) ? 1 : 0;
    problem.scale = choices_.one_of({0.0, -1.0, 1.0, 1e30, static_cast<double>(NAN)});
    problem.softcap = choices_.chance(15) ? choices_.one_of({1.0, 30.0, 1e-300}) : 0;
    problem.dropout_p = choices_.chance(20) ? choices_.one_of({0.1, 0.999999999, 1.0}) : 0;
    problem.dropout_seed = static_cast<uint64_t>(choices_.below(65536));
    problem.dropout_broadcast = static_cast<int32_t>(choices_.below(16));
    problem.dropout_generator = static_cast<int32_t>(choices_.below(2));
    problem.fully_masked = static_cast<int32_t>(choices_.below(3));
    problem.precision = static_cast<int32_t>(choices_.below(3));
    problem.weights_after_dropout = static_cast<int32_t>(choices_.below(2));
    problem.num_threads = static_cast<int32_t>(1 + choices_.below(3));
  }

  // Makes one thing wrong.
  void spoil() {
    cpuattn_array* const all[] = {&problem.query, &problem.key,   &problem.value,
                                  &problem.out,   &problem.mask,  &problem.bias,
                                  &problem.lse,   &problem.sinks, &problem.kv_lengths};
    cpuattn_array& array = *all[choices_.below(9)];
    const int64_t wild = choices_.one_of<int64_t>(
        {-1, 0, 1, 7, INT64_C(1) << 31, INT64_C(1) << 32, INT64_C(1) << 62, INT64_MAX, INT64_MIN});
    switch (choices_.below(8)) {
      case 0:
        change(array, 0, wild);
        array.ndim = static_cast<int32_t>(choices_.below(70)) - 2;
        break;
      case 1:
      case 2:
        change(array, choices_.below(4), wild);
        break;
      case 3:  // a wider type would be a lie about memory, which nobody can see
        if (const auto dtype = static_cast<int32_t>(choices_.below(12) - 2);
            size_of(dtype) <= size_of(array.dtype)) {
          array.dtype = dtype;
        }
        break;
      case 4:
        array.data = nullptr;
        break;
      case 5:
        array.shape = nullptr;
        break;
      case 6:
        problem.size = static_cast<size_t>(choices_.below(1000));
        break;
      default:
        (choices_.chance(50) ? problem.causal : problem.fully_masked) = static_cast<int32_t>(wild);
    }
  }

  // Gives an array another size on one axis, in a shape of its own.
  void change(cpuattn_array& array, int64_t axis, int64_t size) {
    auto& shape = shapes_.emplace_back(70, int64_t{2});
    if (array.shape != nullptr && array.ndim > 0 && array.ndim < 8) {
      std::copy_n(array.shape, std::min<int32_t>(array.ndim, 3), shape.begin());
    }
    shape[static_cast<size_t>(axis)] = size;
    array.shape = shape.data();
    auto& strides = shapes_.emplace_back(70, int64_t{0});
    array.strides = strides.data();  // 0: whatever the size, nothing lies outside
  }

  Choices& choices_;
  std::vector<int64_t> batch_, scores_;
  int64_t heads_ = 0, kv_heads_ = 0, q_len_ = 0, kv_len_ = 0, head_dim_ = 0, head_dim_v_ = 0;
  std::deque<FuzzArray> arrays_;
  std::deque<std::vector<int64_t>> shapes_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Choices choices(data, size);
  FuzzProblem fuzz(choices);
  if (choices.chance(20)) fuzz.problem.executor = &kBackwards;
  if (choices.chance(10)) {
    std::atomic<int64_t> questions{choices.below(20)};
    fuzz.problem.cancelled = [](void* left) -> int32_t {
      return static_cast<std::atomic<int64_t>*>(left)->fetch_sub(1) <= 0 ? 1 : 0;
    };
    fuzz.problem.cancelled_context = &questions;
    const cpuattn_status ended = cpuattn_attention(&fuzz.problem);
    if ((ended == CPUATTN_ERROR_CANCELLED) && questions.load() >= 0) complain("cancelled unasked");
    if (ended == CPUATTN_OK && questions.load() < 0) complain("not cancelled");
    fuzz.problem.cancelled = nullptr;
  }
  const cpuattn_status status = cpuattn_attention(&fuzz.problem);
  ++(status == CPUATTN_OK ? computed : refused);
  if (status != CPUATTN_OK) {
    if (cpuattn_last_error()[0] == '\0') complain("an error without a text");
    return 0;
  }
  if (!choices.chance(10)) return 0;
  cpuattn_plan* plan = nullptr;
  if (cpuattn_plan_create(&fuzz.problem, &plan) != CPUATTN_OK) complain("no plan");
  if (cpuattn_plan_run(plan, &fuzz.problem) != CPUATTN_OK) complain("the plan does not run");
  cpuattn_plan_destroy(plan);
  size_t bytes = 0;
  if (cpuattn_plan_bytes(&fuzz.problem, &bytes) != CPUATTN_OK) complain("no size of a plan");
  const std::unique_ptr<char[]> memory(new char[bytes]);
  if (cpuattn_plan_place(&fuzz.problem, memory.get(), bytes - 1, &plan) != CPUATTN_ERROR_MEMORY) {
    complain("a plan in too little memory");
  }
  if (cpuattn_plan_place(&fuzz.problem, memory.get(), bytes, &plan) != CPUATTN_OK ||
      cpuattn_plan_run(plan, &fuzz.problem) != CPUATTN_OK) {
    complain("the placed plan does not run");
  }
  return 0;
}

#ifndef CPUATTN_LIBFUZZER
int main(int argc, char** argv) {
  int64_t runs = 20000;
  uint64_t seed = 0;
  double seconds = 1e9;
  int64_t files = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name.rfind("--", 0) == 0 && i + 1 < argc) {
      const double value = std::atof(argv[++i]);
      if (name == "--runs") runs = static_cast<int64_t>(value);
      if (name == "--seed") seed = static_cast<uint64_t>(value);
      if (name == "--seconds") seconds = value;
      continue;
    }
    std::ifstream file(name, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    ++files;
  }
  std::mt19937_64 random(seed);
  const auto start = std::chrono::steady_clock::now();
  int64_t run = 0;
  for (; run < runs; ++run) {
    uint8_t bytes[512];
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(bytes, random() % sizeof bytes);
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    if (spent.count() > seconds) break;
  }
  std::printf("%s: %lld files, %lld random inputs from seed %llu; %lld computed, %lld refused\n",
              cpuattn_isa(), static_cast<long long>(files), static_cast<long long>(run),
              static_cast<unsigned long long>(seed), static_cast<long long>(computed),
              static_cast<long long>(refused));
  return 0;
}
#endif
