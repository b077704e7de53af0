// SPDX-License-Identifier: MIT
// The prefill and decode kernels of one ISA (the argument) on single work items, against double
// precision: shapes that straddle tiles and blocks, every option, NaN and Inf where it must not go.
#include <cmath>
#include <cstdio>
#include <cstring>

#include "check.h"
#include "core/dispatch.h"
#include "kernel_problem.h"
#include "support.h"

namespace cpuattn {
namespace {

struct Which {
  const char* name;
  const Kernel* kernel;
};

struct Context {
  Report& report;
  const Which& which;
  const Sizes& sizes;
  uint32_t options;
  uint64_t seed;

  // Prefixed to every message, so that a failure can be run again.
  void fail(const char* what, int64_t row, int64_t index, double got, double want) const {
    report.expect(false,
                  "%s, group %lld q_len %lld kv_len %lld head_dim %lld head_dim_v %lld options "
                  "%#x seed %#llx: %s of row %lld at %lld: got %.9g, expected %.9g",
                  which.name, static_cast<long long>(sizes.group),
                  static_cast<long long>(sizes.q_len), static_cast<long long>(sizes.kv_len),
                  static_cast<long long>(sizes.head_dim), static_cast<long long>(sizes.head_dim_v),
                  options, static_cast<unsigned long long>(seed), what, static_cast<long long>(row),
                  static_cast<long long>(index), got, want);
  }
};

bool close(double got, double want, double tolerance) {
  if (std::isnan(want)) return std::isnan(got);
  if (std::isinf(want)) return got == want || std::isnan(got);  // Inf * a weight, twice
  return std::abs(got - want) <= tolerance;
}

constexpr double kTolerance = 1.0e-5;

bool check_state(const Context& context, const KernelProblem& problem, const ExpectedRow& want,
                 int64_t row) {
  const auto max = static_cast<double>(problem.row_max[static_cast<size_t>(row)]);
  const auto sum = static_cast<double>(problem.row_sum[static_cast<size_t>(row)]);
  if (want.sum == 0.0) {
    if (sum == 0.0 && max == want.max) return true;
    context.fail("empty state", row, 0, sum, 0.0);
    return false;
  }
  const double lse = want.max + std::log2(want.sum);
  const double got = max + std::log2(sum);
  if (close(got, lse, kTolerance * (1.0 + std::abs(lse)))) return true;
  context.fail("log2-sum-exp", row, 0, got, lse);
  return false;
}

bool check_row(const Context& context, const KernelProblem& problem, int64_t row) {
  const ExpectedRow want = problem.expected(row);
  if (!check_state(context, problem, want, row)) return false;
  // A partial state is relative to the kernel's own maximum.
  const auto max = static_cast<double>(problem.row_max[static_cast<size_t>(row)]);
  const double scale = problem.has(kPartial) && want.sum > 0.0 ? std::exp2(want.max - max) : 1.0;
  for (size_t c = 0; c < want.out.size(); ++c) {
    const auto got = static_cast<double>(problem.out(row, static_cast<int64_t>(c)));
    if (close(got, want.out[c] * scale, kTolerance * (want.bound[c] * scale + 1.0e-3))) continue;
    context.fail("out", row, static_cast<int64_t>(c), got, want.out[c] * scale);
    return false;
  }
  if (!problem.has(kWeights) || std::isnan(want.sum)) return true;
  for (size_t key = 0; key < want.weights.size(); ++key) {
    const auto got = static_cast<double>(problem.weight(row, static_cast<int64_t>(key)));
    if (close(got, want.weights[key], kTolerance * (want.weights[key] + 1.0e-3))) continue;
    context.fail("weight", row, static_cast<int64_t>(key), got, want.weights[key]);
    return false;
  }
  return true;
}

// Runs one random problem; one check in all.
void check_problem(Report& report, const Which& which, const Sizes& sizes, uint32_t options,
                   uint64_t seed) {
  Random random(seed);
  KernelProblem problem(random, sizes, options);
  problem.run(*which.kernel, 0, problem.rows());
  const Context context{report, which, sizes, options, seed};
  for (int64_t row = 0; row < problem.rows(); ++row) {
    if (!check_row(context, problem, row)) return;
  }
  report.expect(true, "unreached");
}

// ---------------------------------------------------------------- what is tried

constexpr int64_t kLengths[] = {1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 95, 96, 97, 127, 129, 193};
constexpr int64_t kHeadDims[] = {1, 3, 8, 15, 16, 17, 31, 40, 59, 64, 65, 80, 128, 129, 257, 576};

template <size_t kCount>
int64_t pick(Random& random, const int64_t (&from)[kCount]) {
  return from[random.below(kCount)];
}

// Few rows for the decode kernel, more for the other one.
Sizes random_sizes(Random& random, const Which& which) {
  Sizes sizes;
  const bool decode = std::strcmp(which.name, "decode") == 0;
  sizes.group = random.between(1, decode ? 5 : 8);
  sizes.q_len = decode ? random.between(1, 4) : (pick(random, kLengths) + 1) / 2;
  sizes.kv_len = random.chance(20) ? random.between(194, 420) : pick(random, kLengths);
  sizes.head_dim = random.between(1, 70);
  sizes.head_dim_v = random.between(1, 70);
  return sizes;
}

void test_lengths(Report& report, const Which& which) {
  report.subject("lengths that straddle tiles and blocks");
  const bool decode = std::strcmp(which.name, "decode") == 0;
  uint64_t seed = test_seed(1000);
  for (const int64_t kv_len : kLengths) {
    for (const int64_t q_len : kLengths) {
      if (decode && q_len > 17) continue;
      check_problem(report, which, {1, q_len, kv_len, 16, 24}, 0, ++seed);
      check_problem(report, which, {1, q_len, kv_len, 9, 5}, kCausal, ++seed);
    }
  }
}

void test_head_dims(Report& report, const Which& which) {
  report.subject("head_dim and head_dim_v from 0 to 576");
  uint64_t seed = test_seed(2000);
  for (const int64_t head_dim : kHeadDims) {
    check_problem(report, which, {2, 3, 70, head_dim, head_dim}, 0, ++seed);
    check_problem(report, which, {1, 2, 33, head_dim, 20}, kMask | kStrided, ++seed);
    check_problem(report, which, {3, 1, 97, 20, head_dim}, kCausal, ++seed);
  }
  check_problem(report, which, {2, 3, 10, 0, 8}, 0, ++seed);
  check_problem(report, which, {2, 3, 10, 8, 0}, 0, ++seed);
  report.subject("hidden NaN where dot products are summed in parts");
  for (int round = 0; round < 10; ++round) {
    check_problem(report, which, {2, 5, 70, 300, 20}, kSegments | kHiddenNan, ++seed);
    check_problem(report, which, {1, 5, 70, 520, 20}, kMask | kSomeNan, ++seed);
  }
  report.subject("no keys at all");
  check_problem(report, which, {2, 3, 0, 8, 8}, 0, ++seed);
  check_problem(report, which, {2, 3, 0, 8, 8}, kSinks, ++seed);
}

void test_options(Report& report, const Which& which) {
  const char* const names[kOptionCount] = {"causal",
                                           "window",
                                           "mask",
                                           "bias",
                                           "softcap",
                                           "alibi",
                                           "sinks",
                                           "segments",
                                           "kv_length",
                                           "q_length",
                                           "dropout draws",
                                           "dropout mask",
                                           "weights",
                                           "partial state",
                                           "NaN in keys that no row sees",
                                           "NaN in keys that some rows see",
                                           "strides",
                                           "masks with empty runs and rows",
                                           "unaligned arrays"};
  for (uint32_t option = 0; option < kOptionCount; ++option) {
    uint32_t options = uint32_t{1} << option;
    if (options == kWeights && std::strcmp(which.name, "decode") == 0) continue;
    if (options == kEmptyMask || options == kHiddenNan || options == kSomeNan) options |= kMask;
    report.subject(names[option]);
    Random random(test_seed(3000 + uint64_t{option}));
    for (int round = 0; round < 40; ++round) {
      check_problem(report, which, random_sizes(random, which), options, random.next());
    }
  }
}

void test_combinations(Report& report, const Which& which) {
  report.subject("random combinations of all options");
  Random random(test_seed(4000));
  for (int round = 0; round < 400; ++round) {
    auto options = static_cast<uint32_t>(random.next() & random.next());
    options &= (1u << kOptionCount) - 1;
    if ((options & kPartial) != 0) options &= ~uint32_t{kWeights};
    if (std::strcmp(which.name, "decode") == 0) options &= ~uint32_t{kWeights};
    if ((options & kEmptyMask) != 0) options |= kMask;
    check_problem(report, which, random_sizes(random, which), options, random.next());
  }
}

// Prefill items of any number of row tiles: each row's bits stay the same.
void test_row_blocks(Report& report, const Which& which) {
  report.subject("results do not depend on how rows are cut into items");
  Random random(test_seed(5000));
  const int64_t tile = which.kernel->row_tile;
  for (int round = 0; round < 60; ++round) {
    Sizes sizes = random_sizes(random, which);
    sizes.q_len = 2 * tile + random.below(2 * tile);
    sizes.group = random.between(1, 2);
    const auto options = static_cast<uint32_t>(random.next() & random.next()) &
                         (kCausal | kWindow | kMask | kBias | kKvLength | kQLength | kHiddenNan |
                          kSomeNan | kEmptyMask | kSinks);
    KernelProblem problem(random, sizes, options);
    problem.run(*which.kernel, 0, problem.rows());
    std::vector<float> whole;
    for (int64_t row = 0; row < problem.rows(); ++row) {
      for (int64_t c = 0; c < sizes.head_dim_v; ++c) whole.push_back(problem.out(row, c));
    }
    const std::vector<float> sums = problem.row_sum;
    problem.clear_out();
    for (int64_t row = 0; row < problem.rows(); row += tile) {
      problem.run(*which.kernel, row, std::min(row + tile, problem.rows()));
    }
    bool same = true;
    for (int64_t row = 0; row < problem.rows(); ++row) {
      const auto r = static_cast<size_t>(row);
      same = same && same_number(sums[r], problem.row_sum[r]);
      for (int64_t c = 0; c < sizes.head_dim_v; ++c) {
        const auto i = static_cast<size_t>(row * sizes.head_dim_v + c);
        same = same && same_number(whole[i], problem.out(row, c));
      }
    }
    report.expect(same, "round %d, q_len %lld kv_len %lld group %lld options %#x", round,
                  static_cast<long long>(sizes.q_len), static_cast<long long>(sizes.kv_len),
                  static_cast<long long>(sizes.group), options);
  }
}

int run_tests(const KernelTable& table) {
  Report report;
  const Which both[] = {{"prefill", &table.prefill}, {"decode", &table.decode}};
  for (const Which& which : both) {
    report.subject(nullptr);
    std::printf("%s %s: row tile %d, kv block %lld\n", table.isa, which.name,
                which.kernel->row_tile, static_cast<long long>(which.kernel->kv_block));
    test_lengths(report, which);
    test_head_dims(report, which);
    test_options(report, which);
    test_combinations(report, which);
  }
  test_row_blocks(report, both[0]);
  return report.finish();
}

}  // namespace
}  // namespace cpuattn

int main(int argc, char** argv) {
  const char* const isa = argc > 1 ? argv[1] : "scalar";
  for (const cpuattn::IsaEntry& entry : cpuattn::all_isas()) {
    if (std::strcmp(entry.name, isa) == 0 && cpuattn::usable(entry)) {
      return cpuattn::run_tests(*entry.table);
    }
  }
  std::printf("skipped: this CPU or operating system lacks %s\n", isa);
  std::printf("0 passed, 0 failed\n");
  return cpuattn::kSkipped;
}
