// SPDX-License-Identifier: MIT
// The whole operator from C++: the same bits for any number of threads, any batch and several
// callers at once; split keys; rows that see no key.
#include "core/attention.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <thread>
#include <vector>

#include "check.h"
#include "core/dispatch.h"
#include "core/schedule.h"
#include "half_values.h"
#include "support.h"

namespace cpuattn {
namespace {

// A C-contiguous array of 3 or 4 axes and any float dtype.
struct Tensor {
  const char* name;
  DType dtype;
  std::vector<int64_t> shape, strides;
  std::vector<char> bytes;

  Tensor(const char* array_name, DType array_dtype, std::initializer_list<int64_t> sizes)
      : name(array_name), dtype(array_dtype), shape(sizes), strides(sizes) {
    int64_t step = item_size(dtype);
    for (size_t i = shape.size(); i-- > 0;) {
      strides[i] = step;
      step *= shape[i];
    }
    bytes.assign(static_cast<size_t>(step), 0);
  }
  int64_t count() const { return static_cast<int64_t>(bytes.size()) / item_size(dtype); }
  double number(int64_t i) const {
    return load_element<double>(bytes.data() + i * item_size(dtype), dtype);
  }
  void set(int64_t i, double x) { store_element(bytes.data() + i * item_size(dtype), dtype, x); }
  void fill(double x) {
    for (int64_t i = 0; i < count(); ++i) set(i, x);
  }
  Array array() {
    Array a;
    a.name = name;
    a.data = bytes.data();
    a.ndim = static_cast<int>(shape.size());
    a.shape = shape.data();
    a.strides = strides.data();
    a.dtype = dtype;
    a.dtype_name = name_of(dtype);
    a.writeable = true;
    return a;
  }
};

// What a query and its keys and values may be, and how exact their products.
struct DTypes {
  DType query, kv;
  Precision precision = Precision::kHighest;
};
constexpr DTypes kPlain{DType::kFloat32, DType::kFloat32};
constexpr DTypes kDTypes[] = {kPlain,
                              {DType::kFloat64, DType::kFloat64},
                              {DType::kFloat16, DType::kFloat16},
                              {DType::kBFloat16, DType::kBFloat16},
                              {DType::kFloat32, DType::kFloat16},
                              {DType::kFloat32, DType::kBFloat16},
                              {DType::kFloat32, DType::kFloat32, Precision::kHigh},
                              {DType::kFloat32, DType::kFloat32, Precision::kMedium}};

struct Inputs {
  int64_t batch, num_heads, num_kv_heads, q_len, kv_len, head_dim;
  Tensor query, key, value, out, lse;
  Arguments args;
  const char* multiplied = "";

  Inputs(uint64_t seed, const DTypes& dtypes, const std::vector<int64_t>& s)
      : batch(s[0]),
        num_heads(s[1]),
        num_kv_heads(s[2]),
        q_len(s[3]),
        kv_len(s[4]),
        head_dim(s[5]),
        query("query", dtypes.query, {batch, num_heads, q_len, head_dim}),
        key("key", dtypes.kv, {batch, num_kv_heads, kv_len, head_dim}),
        value("value", dtypes.kv, {batch, num_kv_heads, kv_len, head_dim}),
        out("out", dtypes.query, {batch, num_heads, q_len, head_dim}),
        lse("lse", real(dtypes), {batch, num_heads, q_len}) {
    Random random(seed);
    for (Tensor* tensor : {&query, &key, &value}) {
      for (int64_t i = 0; i < tensor->count(); ++i) tensor->set(i, random.uniform(-2.0, 2.0));
    }
    args.query = query.array();
    args.key = key.array();
    args.value = value.array();
    args.out = out.array();
    args.lse = lse.array();
    args.precision = dtypes.precision;
  }
  Inputs(const Inputs&) = delete;
  Inputs& operator=(const Inputs&) = delete;

  static DType real(const DTypes& dtypes) {
    return dtypes.query == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  }
  // Fills out, lse and multiplied; returns false with a message printed.
  bool run(const Isa& isa, int threads) {
    AttentionProblem p;
    Error error;
    out.fill(77.0);
    lse.fill(77.0);
    if (build_sizes(args, p, error) && build_problem(args, p, error)) {
      const Plan plan = make_plan(p, isa, threads);
      multiplied = products(p, plan);
      if (run_attention(p, plan, error)) return true;
    }
    std::printf("FAILED: %s\n", error.text);
    return false;
  }
  std::vector<char> results() const {
    std::vector<char> all = out.bytes;
    all.insert(all.end(), lse.bytes.begin(), lse.bytes.end());
    return all;
  }
};

// "avx2, query float32 key float16, q_len 1 kv_len 9000".
struct Text {
  char text[160];
  Text(const Isa& isa, const Inputs& in) {
    std::snprintf(text, sizeof text, "%s, query %s key %s, q_len %lld kv_len %lld", isa.name,
                  name_of(in.query.dtype), name_of(in.key.dtype), static_cast<long long>(in.q_len),
                  static_cast<long long>(in.kv_len));
  }
};

// batch, num_heads, num_kv_heads, q_len, kv_len, head_dim: prefill, split decode, both with groups.
const std::vector<std::vector<int64_t>> kShapes = {
    {2, 4, 4, 130, 200, 40}, {3, 8, 2, 65, 129, 64},  {1, 4, 1, 1, 9000, 64},
    {2, 8, 2, 1, 4500, 40},  {1, 6, 2, 20, 5000, 32},
};

template <class Body>
void for_usable(Body body) {
  for (const Isa& isa : all_isas()) {
    if (usable(isa)) body(isa);
  }
}

// Each dtype and shape on each ISA; in a sample each dtype has one shape, another on the next ISA.
template <class Body>
void for_cases(Body body) {
  const size_t shapes = kShapes.size();
  size_t turn = 0;
  for_usable([&](const Isa& isa) {
    for (const DTypes& dtypes : kDTypes) {
      for (size_t i = 0; i < shapes; ++i) {
        if (test_sample() <= 1 || i == turn % shapes) body(isa, dtypes, kShapes[i]);
      }
      ++turn;
    }
  });
}

void test_threads(Report& report) {
  report.subject("any number of threads gives the same bits, in every dtype");
  for_cases([&](const Isa& isa, const DTypes& dtypes, const std::vector<int64_t>& shape) {
    for (const bool causal : {false, true}) {
      Inputs inputs(test_seed(20), dtypes, shape);
      inputs.args.causal = causal;
      const Text text(isa, inputs);
      report.expect(inputs.run(isa, 1), "%s", text.text);
      const std::vector<char> alone = inputs.results();
      for (const int threads : {2, 3, 7}) {
        report.expect(inputs.run(isa, threads) && alone == inputs.results(), "%s, %d threads",
                      text.text, threads);
      }
    }
  });
}

void test_batch(Report& report) {
  report.subject("a batch gives the same bits whole and one element at a time");
  for_cases([&](const Isa& isa, const DTypes& dtypes, std::vector<int64_t> shape) {
    shape[0] = 3;
    Inputs whole(test_seed(21), dtypes, shape);
    const Text text(isa, whole);
    report.expect(whole.run(isa, 2), "%s", text.text);
    shape[0] = 1;
    for (int64_t b = 0; b < 3; ++b) {
      Inputs one(test_seed(22), dtypes, shape);
      const auto part = [b](const Tensor& from, Tensor& to) {
        const size_t size = to.bytes.size();
        std::copy_n(from.bytes.data() + static_cast<size_t>(b) * size, size, to.bytes.data());
      };
      part(whole.query, one.query);
      part(whole.key, one.key);
      part(whole.value, one.value);
      report.expect(one.run(isa, 1), "%s", text.text);
      const std::vector<char> got = one.out.bytes;
      part(whole.out, one.out);
      report.expect(got == one.out.bytes, "%s: element %lld", text.text, static_cast<long long>(b));
    }
  });
}

#ifndef __wasi__  // has no threads
void test_callers(Report& report) {
  report.subject("several callers at once, each with threads of its own");
  for_usable([&](const Isa& isa) {
    for (const std::vector<int64_t>& shape : kShapes) {
      Inputs alone(test_seed(23), kPlain, shape);
      report.expect(alone.run(isa, 1), "%s", isa.name);
      constexpr int kCallers = 4;
      bool same[kCallers] = {};
      std::vector<std::thread> callers;
      for (int i = 0; i < kCallers; ++i) {
        callers.emplace_back([&, i] {
          Inputs mine(test_seed(23), kPlain, shape);
          same[i] = true;
          for (int round = 0; round < 3; ++round) {
            same[i] = same[i] && mine.run(isa, 1 + i % 3) && alone.results() == mine.results();
          }
        });
      }
      for (std::thread& caller : callers) caller.join();
      for (int i = 0; i < kCallers; ++i) report.expect(same[i], "%s: caller %d", isa.name, i);
    }
  });
}
#endif

// How far results of about 1 may be off before they are rounded to 16 bits. Sums of products of
// float32 that were rounded to bfloat16 are what they are.
double tolerance(const Inputs& in) {
  const bool rounded = in.query.dtype == DType::kFloat32 && in.key.dtype == DType::kFloat32;
  if (std::strcmp(in.multiplied, "float64") == 0) return 1.0e-14;
  if (std::strcmp(in.multiplied, "bfloat16 x3") == 0) return rounded ? 1.0e-3 : 1.0e-4;
  if (std::strcmp(in.multiplied, "bfloat16") == 0) return rounded ? 0.1 : 1.0e-3;
  return 5.0e-6;
}

// One row in double precision.
void check_row(Report& report, const Inputs& in, const Text& text, int64_t head, int64_t row) {
  const int64_t kv_head = head / (in.num_heads / in.num_kv_heads);
  const double scale = 1.0 / std::sqrt(static_cast<double>(in.head_dim));
  const int64_t query = (head * in.q_len + row) * in.head_dim;
  const int64_t keys = kv_head * in.kv_len * in.head_dim;
  std::vector<double> out(static_cast<size_t>(in.head_dim), 0.0);
  double sum = 0.0;
  for (int64_t j = 0; j < in.kv_len; ++j) {
    double score = 0.0;
    for (int64_t c = 0; c < in.head_dim; ++c) {
      score += in.query.number(query + c) * in.key.number(keys + j * in.head_dim + c);
    }
    const double weight = std::exp(score * scale);
    sum += weight;
    for (int64_t c = 0; c < in.head_dim; ++c) {
      out[static_cast<size_t>(c)] += weight * in.value.number(keys + j * in.head_dim + c);
    }
  }
  const int64_t at = head * in.q_len + row;
  double worst = 0.0;
  for (int64_t c = 0; c < in.head_dim; ++c) {
    const double want = out[static_cast<size_t>(c)] / sum;
    const double error = std::abs(in.out.number(at * in.head_dim + c) - want);
    worst = std::max(worst, error - half_a_unit(in.out.dtype, want));
  }
  const double lse = in.lse.number(at);
  const double lse_error = std::abs(lse - std::log(sum)) / (1.0 + std::abs(lse));
  report.expect(worst < tolerance(in) && lse_error < tolerance(in),
                "%s, head %lld row %lld: error %g, lse %.17g for %.17g", text.text,
                static_cast<long long>(head), static_cast<long long>(row), worst, lse,
                std::log(sum));
}

void test_values(Report& report) {
  report.subject("out and lse against double precision in every dtype, keys split and not");
  for_cases([&](const Isa& isa, const DTypes& dtypes, const std::vector<int64_t>& shape) {
    Inputs inputs(test_seed(24), dtypes, shape);
    const Text text(isa, inputs);
    report.expect(inputs.run(isa, 2), "%s", text.text);
    for (int64_t head = 0; head < inputs.num_heads; ++head) {
      check_row(report, inputs, text, head, 0);
      check_row(report, inputs, text, head, inputs.q_len - 1);
    }
  });
}

// What a row that sees no key holds, where it would be `mean`.
bool is_filled(FullyMasked mode, double got, double mean, DType dtype) {
  if (mode == FullyMasked::kZero) return got == 0.0;
  if (mode == FullyMasked::kNan) return std::isnan(got);
  const double rounding = dtype == DType::kFloat64 ? 0x1p-50 : 0x1p-24;
  return std::abs(got - mean) <= rounding + half_a_unit(dtype, mean);
}

// Rows 0 and 1 see no key, row 2 sees key 0.
void check_fully_masked(Report& report, const Isa& isa, const DTypes& dtypes, int64_t kv_len) {
  Inputs inputs(test_seed(25), dtypes, {1, 2, 1, 3, kv_len, 8});
  Tensor weights("weights", dtypes.query, {1, 2, 3, kv_len});
  inputs.args.causal = true;
  inputs.args.diagonal = Diagonal::kOffset;
  inputs.args.offset = -2;
  const Text text(isa, inputs);
  double mean = 0.0;
  for (int64_t j = 0; j < kv_len; ++j) mean += inputs.value.number(j * 8);
  mean /= static_cast<double>(kv_len);
  for (const FullyMasked mode : {FullyMasked::kZero, FullyMasked::kMean, FullyMasked::kNan}) {
    inputs.args.fully_masked = mode;
    for (const bool with_weights : {false, true}) {  // with them keys are not split
      inputs.args.weights = with_weights ? weights.array() : Array{};
      weights.fill(77.0);
      report.expect(inputs.run(isa, 1), "%s", text.text);
      report.expect(is_filled(mode, inputs.out.number(0), mean, dtypes.query),
                    "%s, mode %d: got %g", text.text, static_cast<int>(mode), inputs.out.number(0));
      report.expect(inputs.lse.number(0) == -std::numeric_limits<double>::infinity(), "%s: lse",
                    text.text);
      const double value = inputs.value.number(0);
      const double lost = dtypes.precision == Precision::kMedium ? 0x1p-8
                          : dtypes.precision == Precision::kHigh ? 0x1p-16
                                                                 : 0.0;
      report.expect(std::abs(inputs.out.number(16) - value) <= lost * std::abs(value),
                    "%s: a single key is exact", text.text);
      if (!with_weights) continue;
      const double weight = 1.0 / static_cast<double>(kv_len);
      report.expect(is_filled(mode, weights.number(kv_len + 3), weight, dtypes.query),
                    "%s, mode %d: weight %g", text.text, static_cast<int>(mode),
                    weights.number(kv_len + 3));
      report.expect(weights.number(2 * kv_len) == 1.0 && weights.number(2 * kv_len + 1) == 0.0,
                    "%s: weights of a single key", text.text);
    }
  }
}

void test_fully_masked(Report& report) {
  report.subject("rows without a visible key: zero, mean, nan in out and weights; lse -inf");
  for_usable([&](const Isa& isa) {
    for (const DTypes& dtypes : kDTypes) {
      check_fully_masked(report, isa, dtypes, 10);
      check_fully_masked(report, isa, dtypes, 4000);
    }
  });
}

// A chunk of keys is merged in the numbers that the kernel computes with: a state of 16 bits would
// show in float32 out of a 16-bit cache, one of float32 in float64.
void test_split(Report& report) {
  report.subject("keys are split in every dtype");
  for_usable([&](const Isa& isa) {
    for (const DTypes& dtypes : kDTypes) {
      Inputs inputs(test_seed(26), dtypes, {1, 4, 1, 1, 9000, 64});
      AttentionProblem p;
      Error error;
      report.expect(build_sizes(inputs.args, p, error) && build_problem(inputs.args, p, error),
                    "%s", error.text);
      const Plan one = make_plan(p, isa, 1);
      const Plan many = make_plan(p, isa, 4);
      report.expect(one.chunks > 1 && one.chunks == many.chunks && !one.parallel_chunks,
                    "%s: %lld chunks", Text(isa, inputs).text, static_cast<long long>(one.chunks));
      report.expect(one.state_bytes == 4 * (2 + 64) * item_size(Inputs::real(dtypes)),
                    "%s: states of %lld bytes", Text(isa, inputs).text,
                    static_cast<long long>(one.state_bytes));
    }
  });
}

}  // namespace
}  // namespace cpuattn

int main() {
  cpuattn::Report report;
  cpuattn::test_values(report);
  cpuattn::test_split(report);
  cpuattn::test_threads(report);
  cpuattn::test_batch(report);
  cpuattn::test_callers(report);
  cpuattn::test_fully_masked(report);
  return report.finish();
}
