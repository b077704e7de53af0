// SPDX-License-Identifier: MIT
// The prefill and decode kernels of one table (the argument) on single work items, against double
// precision: shapes that straddle tiles and blocks, every option, every dtype, NaN and Inf where it
// must not go.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "check.h"
#include "core/dispatch.h"
#include "half_values.h"
#include "kernel_problem.h"
#include "support.h"

namespace cpuattn {
namespace {

// A kernel, and what its products multiply.
struct Which {
  const char* name;
  const Kernel* kernel;
  DType multiplies;
  int planes;

  bool is_decode() const { return std::strcmp(name, "decode") == 0; }
};

struct Context {
  Report& report;
  const Which& which;
  const Sizes& sizes;
  const DTypes& dtypes;
  uint32_t options;
  uint64_t seed;

  // Prefixed to every message, so that a failure can be run again.
  void fail(const char* what, int64_t row, int64_t index, double got, double want) const {
    report.expect(false,
                  "%s, group %lld q_len %lld kv_len %lld head_dim %lld head_dim_v %lld query %s kv "
                  "%s bias %s heads %s options %#x seed %#llx: %s of row %lld at %lld: got %.17g, "
                  "expected %.17g",
                  which.name, static_cast<long long>(sizes.group),
                  static_cast<long long>(sizes.q_len), static_cast<long long>(sizes.kv_len),
                  static_cast<long long>(sizes.head_dim), static_cast<long long>(sizes.head_dim_v),
                  name_of(dtypes.query), name_of(dtypes.kv), name_of(dtypes.bias),
                  name_of(dtypes.heads), options, static_cast<unsigned long long>(seed), what,
                  static_cast<long long>(row), static_cast<long long>(index), got, want);
  }
};

// ---------------------------------------------------------------- how close is close enough

// What may differ, relative to what a score or an output is the sum of: kRoundings of the kernel's
// own numbers, besides those to terms of bfloat16 where it multiplies these. A result of 16 bits
// may be half a unit of its last place further off, and numbers as small as kTiny do not count.
constexpr double kRoundings = 8.0;
constexpr double kRoundings64 = 12.0;  // float64: the expected results have errors as well
constexpr double kShortExp2 = 4.0e-6;  // of kernels/vmath.inl.h, for weights of one term
constexpr double kTiny = 1.0e-30;
double largest_error = 0.0;  // of all results so far, of what is allowed

// What a number loses that becomes `planes` terms of bfloat16.
double lost(DType dtype, int planes) {
  if (dtype == DType::kBFloat16 || (dtype == DType::kFloat16 && planes > 1)) return 0.0;
  return std::ldexp(1.0, -8 * planes);
}

// What the terms of a row's scores lose. Products of the last terms are left out.
double lost_of_scores(const Which& which, const DTypes& dtypes) {
  if (which.multiplies != DType::kBFloat16) return 0.0;
  const bool left_out = which.planes > 1 && dtypes.query != DType::kBFloat16;
  return lost(dtypes.query, which.planes) + lost(dtypes.kv, which.planes) +
         (left_out ? std::ldexp(1.0, -8 * which.planes) : 0.0);
}

struct Allowed {
  double own;     // of the kernel's own numbers
  double weight;  // of a weight
  double factor;  // of a weight times a value
};
Allowed allowed(const Which& which, const DTypes& dtypes, const ExpectedRow& want) {
  const double own =
      which.multiplies == DType::kFloat64 ? kRoundings64 * 0x1p-53 : kRoundings * 0x1p-24;
  if (which.multiplies != DType::kBFloat16) {
    const double weight = own * (1.0 + want.reach);
    return {own, weight, weight};
  }
  // The score of the row's largest key may err as well.
  const double score = (own + lost_of_scores(which, dtypes)) * want.reach;
  const double weight = own + (which.planes > 1 ? 0.0 : kShortExp2) + std::expm1(2 * score);
  const double split = (which.planes > 1 ? 2 : 1) * lost(DType::kFloat32, which.planes);
  return {own, weight, weight + split + lost(dtypes.kv, which.planes)};
}

bool close(double got, double want, double tolerance, DType dtype) {
  if (std::isnan(want)) return std::isnan(got);
  if (std::isinf(want)) return got == want || std::isnan(got);  // Inf * a weight, twice
  const double rest = std::abs(got - want) - half_a_unit(dtype, std::abs(want) + tolerance) - kTiny;
  if (rest > 0.0) largest_error = std::max(largest_error, rest / tolerance);
  return rest <= tolerance;
}

bool check_state(const Context& context, const KernelProblem& problem, const ExpectedRow& want,
                 int64_t row) {
  const double max = problem.row_max[static_cast<size_t>(row)];
  const double sum = problem.row_sum[static_cast<size_t>(row)];
  if (want.sum == 0.0) {
    if (sum == 0.0 && max == want.max) return true;
    context.fail("empty state", row, 0, sum, 0.0);
    return false;
  }
  const double lse = want.max + std::log2(want.sum);
  const double got = max + std::log2(sum);
  const Allowed of = allowed(context.which, context.dtypes, want);
  const double tolerance = 1.5 * of.weight + of.own * std::abs(lse);
  if (close(got, lse, tolerance, problem.real())) return true;
  context.fail("log2-sum-exp", row, 0, got, lse);
  return false;
}

bool check_row(const Context& context, const KernelProblem& problem, int64_t row) {
  const ExpectedRow want = problem.expected(row);
  if (!check_state(context, problem, want, row)) return false;
  // A partial state is relative to the kernel's own maximum.
  const double max = problem.row_max[static_cast<size_t>(row)];
  const double scale = problem.has(kPartial) && want.sum > 0.0 ? std::exp2(want.max - max) : 1.0;
  const Allowed of = allowed(context.which, context.dtypes, want);
  for (size_t c = 0; c < want.out.size(); ++c) {
    const double got = problem.out(row, static_cast<int64_t>(c));
    const double out = want.out[c] * scale;
    const double tolerance = of.factor * want.bound[c] * scale;
    if (close(got, out, tolerance, problem.out_dtype())) continue;
    context.fail("out", row, static_cast<int64_t>(c), got, out);
    return false;
  }
  if (!problem.has(kWeights) || std::isnan(want.sum)) return true;
  for (size_t key = 0; key < want.weights.size(); ++key) {
    const double got = problem.weight(row, static_cast<int64_t>(key));
    const double tolerance = of.weight * want.weights[key];
    if (close(got, want.weights[key], tolerance, problem.out_dtype())) continue;
    context.fail("weight", row, static_cast<int64_t>(key), got, want.weights[key]);
    return false;
  }
  return true;
}

// Runs one random problem; one check in all.
void check_problem(Report& report, const Which& which, const Sizes& sizes, const DTypes& dtypes,
                   uint32_t options, uint64_t seed) {
  if (!sampled(seed)) return;
  // A score in the ten thousands that lost that much is any score.
  if (lost_of_scores(which, dtypes) > 0x1p-20) options &= ~uint32_t{kFarScores};
  Random random(seed);
  KernelProblem problem(random, sizes, dtypes, options);
  problem.run(*which.kernel, 0, problem.rows());
  const Context context{report, which, sizes, dtypes, options, seed};
  for (int64_t row = 0; row < problem.rows(); ++row) {
    if (!check_row(context, problem, row)) return;
  }
  report.expect(true, "unreached");
}

// ---------------------------------------------------------------- what is tried

// Query and keys as a table takes them together, its own dtype first.
struct Pair {
  DType query, kv;
};
std::vector<Pair> pairs_of(const Which& which) {
  using enum DType;
  if (which.multiplies == kFloat64) return {{kFloat64, kFloat64}};
  if (which.multiplies == kBFloat16) {
    return {
        {kBFloat16, kBFloat16}, {kFloat32, kFloat32}, {kFloat16, kFloat16}, {kFloat32, kBFloat16}};
  }
  return {{kFloat32, kFloat32},
          {kFloat16, kFloat16},
          {kBFloat16, kBFloat16},
          {kFloat32, kFloat16},
          {kFloat32, kBFloat16}};
}
DTypes plain_dtypes(const Which& which, const Pair& pair) {
  return {pair.query, pair.kv, pair.query, pair.query, which.planes};
}
// Bias, slopes and sinks of any dtype.
DTypes mixed_dtypes(Random& random, const Which& which, const Pair& pair) {
  return {pair.query, pair.kv, kFloatDtypes[random.below(4)], kFloatDtypes[random.below(4)],
          which.planes};
}
Pair any_pair(Random& random, const Which& which) {
  const std::vector<Pair> pairs = pairs_of(which);
  return pairs[static_cast<size_t>(random.below(static_cast<int64_t>(pairs.size())))];
}

constexpr int64_t kLengths[] = {1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 95, 96, 97, 127, 129, 193};
constexpr int64_t kHeadDims[] = {1, 3, 8, 15, 16, 17, 31, 40, 59, 64, 65, 80, 128, 129, 257, 576};

template <size_t kCount>
int64_t pick(Random& random, const int64_t (&from)[kCount]) {
  return from[random.below(kCount)];
}

// Few rows for the decode kernel, more for the other one.
Sizes random_sizes(Random& random, const Which& which) {
  Sizes sizes;
  const bool decode = which.is_decode();
  sizes.group = random.between(1, decode ? 5 : 8);
  sizes.q_len = decode ? random.between(1, 4) : (pick(random, kLengths) + 1) / 2;
  sizes.kv_len = random.chance(20) ? random.between(194, 420) : pick(random, kLengths);
  sizes.head_dim = random.between(1, 70);
  sizes.head_dim_v = random.between(1, 70);
  return sizes;
}

void test_lengths(Report& report, const Which& which) {
  report.subject("lengths that straddle tiles and blocks");
  uint64_t seed = test_seed(1000);
  for (const Pair& pair : pairs_of(which)) {
    const bool first = pair.kv == pairs_of(which)[0].kv;
    for (const int64_t kv_len : kLengths) {
      for (const int64_t q_len : kLengths) {
        if (which.is_decode() && q_len > 17) continue;
        if (!first && q_len > 17 && q_len % 32 != 1) continue;
        const DTypes dtypes = plain_dtypes(which, pair);
        check_problem(report, which, {1, q_len, kv_len, 16, 24}, dtypes, 0, ++seed);
        check_problem(report, which, {1, q_len, kv_len, 9, 5}, dtypes, kCausal, ++seed);
      }
    }
  }
}

void test_head_dims(Report& report, const Which& which) {
  report.subject("head_dim and head_dim_v from 0 to 576");
  uint64_t seed = test_seed(2000);
  for (const Pair& pair : pairs_of(which)) {
    const DTypes dtypes = plain_dtypes(which, pair);
    for (const int64_t head_dim : kHeadDims) {
      check_problem(report, which, {2, 3, 70, head_dim, head_dim}, dtypes, 0, ++seed);
      check_problem(report, which, {1, 2, 33, head_dim, 20}, dtypes, kMask | kStrided, ++seed);
      check_problem(report, which, {3, 1, 97, 20, head_dim}, dtypes, kCausal, ++seed);
    }
    check_problem(report, which, {2, 3, 10, 0, 8}, dtypes, 0, ++seed);
    check_problem(report, which, {2, 3, 10, 8, 0}, dtypes, 0, ++seed);
  }
  report.subject("hidden NaN where dot products are summed in parts");
  for (const Pair& pair : pairs_of(which)) {
    const DTypes dtypes = plain_dtypes(which, pair);
    for (int round = 0; round < 10; ++round) {
      check_problem(report, which, {2, 5, 70, 300, 20}, dtypes, kSegments | kHiddenNan, ++seed);
      check_problem(report, which, {1, 5, 70, 520, 20}, dtypes, kMask | kSomeNan, ++seed);
    }
  }
  report.subject("no keys at all");
  for (const Pair& pair : pairs_of(which)) {
    check_problem(report, which, {2, 3, 0, 8, 8}, plain_dtypes(which, pair), 0, ++seed);
    check_problem(report, which, {2, 3, 0, 8, 8}, plain_dtypes(which, pair), kSinks, ++seed);
  }
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
                                           "unaligned arrays",
                                           "scores and values far from 0"};
  for (uint32_t option = 0; option < kOptionCount; ++option) {
    uint32_t options = uint32_t{1} << option;
    if (options == kWeights && which.is_decode()) continue;
    if (options == kEmptyMask || options == kHiddenNan || options == kSomeNan) options |= kMask;
    report.subject(names[option]);
    Random random(test_seed(3000 + uint64_t{option}));
    for (const Pair& pair : pairs_of(which)) {
      for (int round = 0; round < (which.multiplies == DType::kFloat64 ? 50 : 20); ++round) {
        const Sizes sizes = random_sizes(random, which);
        const DTypes dtypes = mixed_dtypes(random, which, pair);
        check_problem(report, which, sizes, dtypes, options, random.next());
      }
    }
  }
}

void test_combinations(Report& report, const Which& which) {
  report.subject("random combinations of all options and dtypes");
  Random random(test_seed(4000));
  for (int round = 0; round < 800; ++round) {
    auto options = static_cast<uint32_t>(random.next() & random.next());
    options &= (1u << kOptionCount) - 1;
    if ((options & kPartial) != 0) options &= ~uint32_t{kWeights};
    if (which.is_decode()) options &= ~uint32_t{kWeights};
    if ((options & kEmptyMask) != 0) options |= kMask;
    const Sizes sizes = random_sizes(random, which);
    const DTypes dtypes = mixed_dtypes(random, which, any_pair(random, which));
    check_problem(report, which, sizes, dtypes, options, random.next());
  }
}

// Prefill items of any number of row tiles: each row's bits stay the same.
void test_row_blocks(Report& report, const Which& which) {
  report.subject("results do not depend on how rows are cut into items");
  Random random(test_seed(5000));
  const int64_t tile = which.kernel->row_tile;
  for (int round = 0; round < 60; ++round) {
    if (!sampled(static_cast<uint64_t>(round))) continue;
    Sizes sizes = random_sizes(random, which);
    sizes.q_len = 2 * tile + random.below(2 * tile);
    sizes.group = random.between(1, 2);
    const auto options = static_cast<uint32_t>(random.next() & random.next()) &
                         (kCausal | kWindow | kMask | kBias | kKvLength | kQLength | kHiddenNan |
                          kSomeNan | kEmptyMask | kSinks);
    const Pair pair = any_pair(random, which);
    KernelProblem problem(random, sizes, mixed_dtypes(random, which, pair), options);
    problem.run(*which.kernel, 0, problem.rows());
    std::vector<double> whole;
    for (int64_t row = 0; row < problem.rows(); ++row) {
      for (int64_t c = 0; c < sizes.head_dim_v; ++c) whole.push_back(problem.out(row, c));
    }
    const std::vector<double> sums = problem.row_sum;
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

void test_kernel(Report& report, const KernelTable& table, const Which& which) {
  report.subject(nullptr);
  std::printf("%s %s: row tile %d, kv block %lld, planes %d\n", table.isa, which.name,
              which.kernel->row_tile, static_cast<long long>(which.kernel->kv_block), which.planes);
  test_lengths(report, which);
  test_head_dims(report, which);
  test_options(report, which);
  test_combinations(report, which);
  if (!which.is_decode()) test_row_blocks(report, which);
  report.subject(nullptr);
  std::printf("%s %s: largest error %.2f of what is allowed\n", table.isa, which.name,
              largest_error);
  largest_error = 0.0;
}

int run_tests(const KernelTable& table, DType multiplies) {
  Report report;
  for (int planes = 1; planes <= table.max_planes; ++planes) {
    test_kernel(report, table, {"prefill", &table.prefill, multiplies, planes});
  }
  if (table.decode_rows > 0) {
    test_kernel(report, table, {"decode", &table.decode, multiplies, 1});
  }
  return report.finish();
}

}  // namespace
}  // namespace cpuattn

int main(int argc, char** argv) {
  const char* const name = argc > 1 ? argv[1] : "scalar";
  for (const cpuattn::Isa& isa : cpuattn::all_isas()) {
    if (!cpuattn::usable(isa)) continue;
    struct Entry {
      const cpuattn::KernelTable* table;
      cpuattn::DType multiplies;
    };
    for (const auto& [table, multiplies] : {Entry{isa.float32, cpuattn::DType::kFloat32},
                                            Entry{isa.float64, cpuattn::DType::kFloat64},
                                            Entry{isa.bfloat16, cpuattn::DType::kBFloat16}}) {
      if (table == nullptr || std::strcmp(table->isa, name) != 0) continue;
      return cpuattn::run_tests(*table, multiplies);
    }
  }
  std::printf("skipped: this CPU or operating system lacks %s\n", name);
  std::printf("0 passed, 0 failed\n");
  return cpuattn::kSkipped;
}
