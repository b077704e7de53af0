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
#include "support.h"

namespace cpuattn {
namespace {

// A C-contiguous float array of 3 or 4 axes.
struct Tensor {
  const char* name;
  std::vector<int64_t> shape, strides;
  std::vector<float> floats;

  Tensor(const char* array_name, std::initializer_list<int64_t> sizes)
      : name(array_name), shape(sizes), strides(sizes) {
    int64_t step = 4;
    for (size_t i = shape.size(); i-- > 0;) {
      strides[i] = step;
      step *= shape[i];
    }
    floats.assign(static_cast<size_t>(step / 4), 0.0f);
  }
  Array array() {
    Array a;
    a.name = name;
    a.data = reinterpret_cast<char*>(floats.data());
    a.ndim = static_cast<int>(shape.size());
    a.shape = shape.data();
    a.strides = strides.data();
    a.dtype = DType::kFloat32;
    a.dtype_name = "float32";
    a.writeable = true;
    return a;
  }
};

struct Inputs {
  int64_t batch, num_heads, num_kv_heads, q_len, kv_len, head_dim;
  Tensor query, key, value, out, lse;
  Arguments args;

  Inputs(uint64_t seed, const std::vector<int64_t>& s)
      : batch(s[0]),
        num_heads(s[1]),
        num_kv_heads(s[2]),
        q_len(s[3]),
        kv_len(s[4]),
        head_dim(s[5]),
        query("query", {batch, num_heads, q_len, head_dim}),
        key("key", {batch, num_kv_heads, kv_len, head_dim}),
        value("value", {batch, num_kv_heads, kv_len, head_dim}),
        out("out", {batch, num_heads, q_len, head_dim}),
        lse("lse", {batch, num_heads, q_len}) {
    Random random(seed);
    for (Tensor* tensor : {&query, &key, &value}) {
      for (float& x : tensor->floats) x = random.uniform(-2.0f, 2.0f);
    }
    args.query = query.array();
    args.key = key.array();
    args.value = value.array();
    args.out = out.array();
    args.lse = lse.array();
  }
  Inputs(const Inputs&) = delete;
  Inputs& operator=(const Inputs&) = delete;

  // Fills out and lse; returns false with a message printed.
  bool run(const KernelTable& table, int threads) {
    AttentionProblem p;
    Error error;
    std::fill(out.floats.begin(), out.floats.end(), 77.0f);
    std::fill(lse.floats.begin(), lse.floats.end(), 77.0f);
    if (build_sizes(args, p, error) && build_problem(args, p, error) &&
        run_attention(p, make_plan(p, table, threads), error)) {
      return true;
    }
    std::printf("FAILED: %s\n", error.text);
    return false;
  }
  std::vector<float> results() const {
    std::vector<float> all = out.floats;
    all.insert(all.end(), lse.floats.begin(), lse.floats.end());
    return all;
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  bool same = a.size() == b.size();
  for (size_t i = 0; i < a.size() && same; ++i) same = same_number(a[i], b[i]);
  return same;
}

// batch, num_heads, num_kv_heads, q_len, kv_len, head_dim: prefill, split decode, both with groups.
const std::vector<std::vector<int64_t>> kShapes = {
    {2, 4, 4, 130, 200, 40}, {3, 8, 2, 65, 129, 64},  {1, 4, 1, 1, 9000, 64},
    {2, 8, 2, 1, 4500, 40},  {1, 6, 2, 20, 5000, 32},
};

template <class Body>
void for_usable(Body body) {
  for (const IsaEntry& entry : all_isas()) {
    if (usable(entry)) body(*entry.table);
  }
}

void test_threads(Report& report) {
  report.subject("any number of threads gives the same bits");
  for_usable([&](const KernelTable& table) {
    for (const std::vector<int64_t>& shape : kShapes) {
      for (const bool causal : {false, true}) {
        Inputs inputs(test_seed(20), shape);
        inputs.args.causal = causal;
        report.expect(inputs.run(table, 1), "%s", table.isa);
        const std::vector<float> alone = inputs.results();
        for (const int threads : {2, 3, 7}) {
          report.expect(inputs.run(table, threads) && same_bits(alone, inputs.results()),
                        "%s: q_len %lld kv_len %lld, %d threads", table.isa,
                        static_cast<long long>(shape[3]), static_cast<long long>(shape[4]),
                        threads);
        }
      }
    }
  });
}

void test_batch(Report& report) {
  report.subject("a batch gives the same bits whole and one element at a time");
  for_usable([&](const KernelTable& table) {
    for (std::vector<int64_t> shape : kShapes) {
      shape[0] = 3;
      Inputs whole(test_seed(21), shape);
      report.expect(whole.run(table, 2), "%s", table.isa);
      shape[0] = 1;
      for (int64_t b = 0; b < 3; ++b) {
        Inputs one(test_seed(22), shape);
        const auto part = [b](const Tensor& from, Tensor& to) {
          std::copy_n(from.floats.begin() + b * static_cast<int64_t>(to.floats.size()),
                      to.floats.size(), to.floats.begin());
        };
        part(whole.query, one.query);
        part(whole.key, one.key);
        part(whole.value, one.value);
        report.expect(one.run(table, 1), "%s", table.isa);
        const std::vector<float> got = one.out.floats;
        part(whole.out, one.out);
        report.expect(same_bits(got, one.out.floats), "%s: element %lld, q_len %lld", table.isa,
                      static_cast<long long>(b), static_cast<long long>(shape[3]));
      }
    }
  });
}

void test_callers(Report& report) {
  report.subject("several callers at once, each with threads of its own");
  for_usable([&](const KernelTable& table) {
    for (const std::vector<int64_t>& shape : kShapes) {
      Inputs alone(test_seed(23), shape);
      report.expect(alone.run(table, 1), "%s", table.isa);
      constexpr int kCallers = 4;
      bool same[kCallers] = {};
      std::vector<std::thread> callers;
      for (int i = 0; i < kCallers; ++i) {
        callers.emplace_back([&, i] {
          Inputs mine(test_seed(23), shape);
          same[i] = true;
          for (int round = 0; round < 3; ++round) {
            same[i] =
                same[i] && mine.run(table, 1 + i % 3) && same_bits(alone.results(), mine.results());
          }
        });
      }
      for (std::thread& caller : callers) caller.join();
      for (int i = 0; i < kCallers; ++i) report.expect(same[i], "%s: caller %d", table.isa, i);
    }
  });
}

// One row in double precision.
void check_row(Report& report, const Inputs& in, const char* isa, int64_t head, int64_t row) {
  const int64_t kv_head = head / (in.num_heads / in.num_kv_heads);
  const double scale = 1.0 / std::sqrt(static_cast<double>(in.head_dim));
  const float* query = in.query.floats.data() + (head * in.q_len + row) * in.head_dim;
  const float* key = in.key.floats.data() + kv_head * in.kv_len * in.head_dim;
  const float* value = in.value.floats.data() + kv_head * in.kv_len * in.head_dim;
  std::vector<double> out(static_cast<size_t>(in.head_dim), 0.0);
  double sum = 0.0;
  for (int64_t j = 0; j < in.kv_len; ++j) {
    double score = 0.0;
    for (int64_t c = 0; c < in.head_dim; ++c) {
      score += static_cast<double>(query[c]) * static_cast<double>(key[j * in.head_dim + c]);
    }
    const double weight = std::exp(score * scale);
    sum += weight;
    for (int64_t c = 0; c < in.head_dim; ++c) {
      out[static_cast<size_t>(c)] += weight * static_cast<double>(value[j * in.head_dim + c]);
    }
  }
  const int64_t at = head * in.q_len + row;
  double worst = 0.0;
  for (int64_t c = 0; c < in.head_dim; ++c) {
    const float got = in.out.floats[static_cast<size_t>(at * in.head_dim + c)];
    const double want = out[static_cast<size_t>(c)] / sum;
    worst = std::max(worst, std::abs(static_cast<double>(got) - want));
  }
  const double lse = static_cast<double>(in.lse.floats[static_cast<size_t>(at)]);
  report.expect(worst < 5.0e-6 && std::abs(lse - std::log(sum)) < 5.0e-6 * (1.0 + std::abs(lse)),
                "%s: q_len %lld kv_len %lld head %lld row %lld: error %g, lse %g for %g", isa,
                static_cast<long long>(in.q_len), static_cast<long long>(in.kv_len),
                static_cast<long long>(head), static_cast<long long>(row), worst, lse,
                std::log(sum));
}

void test_values(Report& report) {
  report.subject("out and lse against double precision, keys split and not");
  for_usable([&](const KernelTable& table) {
    for (const std::vector<int64_t>& shape : kShapes) {
      Inputs inputs(test_seed(24), shape);
      report.expect(inputs.run(table, 2), "%s", table.isa);
      for (int64_t head = 0; head < inputs.num_heads; ++head) {
        check_row(report, inputs, table.isa, head, 0);
        check_row(report, inputs, table.isa, head, inputs.q_len - 1);
      }
    }
  });
}

void test_fully_masked(Report& report) {
  report.subject("rows without a visible key: zero, mean, nan; lse -inf");
  for_usable([&](const KernelTable& table) {
    for (const int64_t kv_len : {int64_t{10}, int64_t{4000}}) {
      Inputs inputs(test_seed(25), {1, 2, 1, 3, kv_len, 8});
      inputs.args.causal = true;
      inputs.args.diagonal = Diagonal::kOffset;
      inputs.args.offset = -2;  // only row 2 sees a key, which is key 0
      double mean = 0.0;
      for (int64_t j = 0; j < kv_len; ++j) {
        mean += static_cast<double>(inputs.value.floats[static_cast<size_t>(j * 8)]);
      }
      mean /= static_cast<double>(kv_len);
      for (const FullyMasked mode : {FullyMasked::kZero, FullyMasked::kMean, FullyMasked::kNan}) {
        inputs.args.fully_masked = mode;
        report.expect(inputs.run(table, 1), "%s", table.isa);
        const float first = inputs.out.floats[0];
        const bool right = mode == FullyMasked::kZero ? first == 0.0f
                           : mode == FullyMasked::kNan
                               ? std::isnan(first)
                               : std::abs(static_cast<double>(first) - mean) < 1.0e-6;
        report.expect(right, "%s kv_len %lld mode %d: got %g", table.isa,
                      static_cast<long long>(kv_len), static_cast<int>(mode),
                      static_cast<double>(first));
        report.expect(inputs.lse.floats[0] == -std::numeric_limits<float>::infinity(), "%s lse",
                      table.isa);
        report.expect(inputs.out.floats[16] == inputs.value.floats[0], "%s: a single key is exact",
                      table.isa);
      }
    }
  });
}

}  // namespace
}  // namespace cpuattn

int main() {
  cpuattn::Report report;
  cpuattn::test_values(report);
  cpuattn::test_threads(report);
  cpuattn::test_batch(report);
  cpuattn::test_callers(report);
  cpuattn::test_fully_masked(report);
  return report.finish();
}
