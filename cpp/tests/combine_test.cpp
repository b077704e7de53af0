// SPDX-License-Identifier: MIT
// The algebra of partial softmax states: merging is softmax over the union of the keys.
#include "core/combine.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <vector>

#include "check.h"
#include "support.h"

namespace cpuattn {
namespace {

template <class Real>
constexpr Real kInf = std::numeric_limits<Real>::infinity();
template <class Real>
constexpr Real kNan = std::numeric_limits<Real>::quiet_NaN();
template <class Real>
constexpr double kEpsilon = static_cast<double>(std::numeric_limits<Real>::epsilon());

// A PartialState that owns its memory.
template <class Real>
struct State {
  int64_t rows, columns;
  std::vector<Real> numbers;

  State(int64_t row_count, int64_t column_count)
      : rows(row_count),
        columns(column_count),
        numbers(static_cast<size_t>(row_count * (2 + column_count)), 0.0) {
    std::fill_n(view().row_max, rows, -kInf<Real>);
  }
  PartialState<Real> view() { return {reinterpret_cast<char*>(numbers.data()), rows}; }
  Real max(int64_t row = 0) { return view().row_max[row]; }
  Real sum(int64_t row = 0) { return view().row_sum[row]; }
  Real out(int64_t column, int64_t row = 0) { return view().output[row * columns + column]; }
};

template <class Real>
State<Real> merged(State<Real> into, State<Real> other) {
  merge(into.view(), other.view(), into.rows, into.columns);
  return into;
}

template <class Real>
bool same_state(const State<Real>& a, const State<Real>& b) {
  bool same = a.numbers.size() == b.numbers.size();
  for (size_t i = 0; i < a.numbers.size() && same; ++i) {
    same = same_number(a.numbers[i], b.numbers[i]);
  }
  return same;
}

// Scores (log2 units) and values of one row.
template <class Real>
struct Keys {
  std::vector<Real> scores;
  std::vector<Real> values;  // (keys, columns)
  int64_t columns;

  Keys(Random& random, int64_t count, int64_t column_count, double reach) : columns(column_count) {
    for (int64_t i = 0; i < count; ++i) {
      scores.push_back(static_cast<Real>(random.uniform(-reach, reach)));
    }
    for (int64_t i = 0; i < count * columns; ++i) {
      values.push_back(static_cast<Real>(random.uniform(-1.0, 1.0)));
    }
  }
  int64_t count() const { return static_cast<int64_t>(scores.size()); }

  // The state of keys [begin, end), as a kernel leaves it.
  State<Real> state(int64_t begin, int64_t end) const {
    State<Real> s(1, columns);
    Real top = -kInf<Real>;
    for (int64_t i = begin; i < end; ++i) top = std::max(top, scores[static_cast<size_t>(i)]);
    s.view().row_max[0] = top;
    if (top == -kInf<Real>) return s;
    std::vector<double> out(static_cast<size_t>(columns), 0.0);
    double sum = 0.0;
    for (int64_t i = begin; i < end; ++i) {
      const auto x = static_cast<double>(scores[static_cast<size_t>(i)]);
      const double weight = std::exp2(x - static_cast<double>(top));
      sum += weight;
      for (int64_t c = 0; c < columns; ++c) {
        out[static_cast<size_t>(c)] +=
            weight * static_cast<double>(values[static_cast<size_t>(i * columns + c)]);
      }
    }
    s.view().row_sum[0] = static_cast<Real>(sum);
    for (int64_t c = 0; c < columns; ++c) {
      s.view().output[c] = static_cast<Real>(out[static_cast<size_t>(c)]);
    }
    return s;
  }
};

template <class Real>
bool close_state(State<Real>& got, State<Real>& want, double tolerance) {
  bool close = got.max() == want.max();
  close = close && std::abs(static_cast<double>(got.sum() - want.sum())) <=
                       tolerance * static_cast<double>(want.sum());
  for (int64_t c = 0; c < got.columns && close; ++c) {
    close = std::abs(static_cast<double>(got.out(c) - want.out(c))) <=
            tolerance * static_cast<double>(want.sum());
  }
  return close;
}

template <class Real>
void test_one_pass(Report& report) {
  report.subject("chunks merged in order equal one pass over all keys");
  Random random(test_seed(10));
  for (int round = 0; round < 300; ++round) {
    const Keys<Real> keys(random, random.between(1, 200), random.between(0, 9), 40.0);
    State<Real> total = keys.state(0, 0);
    for (int64_t begin = 0; begin < keys.count();) {
      const int64_t end = std::min(keys.count(), begin + random.between(1, 60));
      total = merged(total, keys.state(begin, end));
      begin = end;
    }
    State<Real> want = keys.state(0, keys.count());
    report.expect(close_state(total, want, 16 * kEpsilon<Real>), "round %d: sum %g, expected %g",
                  round, static_cast<double>(total.sum()), static_cast<double>(want.sum()));
  }
}

template <class Real>
void test_associativity(Report& report) {
  report.subject("(a + b) + c equals a + (b + c) up to rounding; the order of merging is fixed");
  Random random(test_seed(11));
  for (int round = 0; round < 300; ++round) {
    const Keys<Real> keys(random, 90, 5, round % 2 == 0 ? 3.0 : 60.0);
    const State<Real> a = keys.state(0, 20);
    const State<Real> b = keys.state(20, 50);
    const State<Real> c = keys.state(50, 90);
    State<Real> left = merged(merged(a, b), c);
    State<Real> right = merged(a, merged(b, c));
    report.expect(close_state(left, right, 8 * kEpsilon<Real>), "round %d", round);
    report.expect(same_state(left, merged(merged(a, b), c)), "round %d repeated", round);
    State<Real> swapped = merged(b, a);
    State<Real> straight = merged(a, b);
    report.expect(close_state(swapped, straight, 8 * kEpsilon<Real>), "round %d swapped", round);
  }
}

template <class Real>
void test_empty(Report& report) {
  report.subject("an empty state is neutral on either side, bit for bit");
  Random random(test_seed(12));
  const State<Real> empty(1, 7);
  for (int round = 0; round < 50; ++round) {
    const State<Real> some = Keys<Real>(random, 30, 7, 50.0).state(0, 30);
    report.expect(same_state(merged(some, empty), some), "round %d right", round);
    report.expect(same_state(merged(empty, some), some), "round %d left", round);
  }
  report.subject("all -inf: empty states merge to an empty state, without NaN");
  report.expect(same_state(merged(empty, empty), empty), "empty + empty");
  report.expect(same_state(merged(merged(empty, empty), merged(empty, empty)), empty), "four");
}

template <class Real>
State<Real> single(Real max, Real sum, Real out) {
  State<Real> s(1, 1);
  s.view().row_max[0] = max;
  s.view().row_sum[0] = sum;
  s.view().output[0] = out;
  return s;
}

template <class Real>
void test_nan(Report& report) {
  report.subject("NaN in either state comes out");
  const State<Real> good = single<Real>(1.0, 2.0, 3.0);
  const State<Real> empty = single<Real>(-kInf<Real>, 0.0, 0.0);
  const State<Real> scores[] = {
      single<Real>(-kInf<Real>, kNan<Real>, kNan<Real>), single<Real>(4.0, kNan<Real>, kNan<Real>),
      single<Real>(-4.0, kNan<Real>, kNan<Real>), single<Real>(kNan<Real>, 1.0, 0.0)};
  for (const State<Real>& bad : scores) {
    for (const State<Real>& other : {good, empty, bad}) {
      State<Real> first = merged(bad, other);
      State<Real> second = merged(other, bad);
      report.expect(std::isnan(first.sum()), "sum, first: %g", static_cast<double>(first.sum()));
      report.expect(std::isnan(second.sum()), "sum, second: %g", static_cast<double>(second.sum()));
      report.expect(std::isnan(first.out(0)), "out, first: %g", static_cast<double>(first.out(0)));
      report.expect(std::isnan(second.out(0)), "out, second: %g",
                    static_cast<double>(second.out(0)));
    }
  }
  State<Real> sink = merged(single<Real>(kNan<Real>, 1.0, 0.0), good);
  report.expect(std::isnan(sink.max()), "maximum: %g", static_cast<double>(sink.max()));
  const State<Real> value = single<Real>(1.0, 2.0, kNan<Real>);  // in a value row, not in a score
  State<Real> first = merged(value, good);
  State<Real> second = merged(good, value);
  report.expect(std::isnan(first.out(0)) && first.sum() == 4.0, "NaN value, first");
  report.expect(std::isnan(second.out(0)) && second.sum() == 4.0, "NaN value, second");
}

template <class Real>
void test_extremes(Report& report) {
  report.subject("maxima far apart neither overflow nor disturb the larger one");
  const State<Real> high = single<Real>(1.0e4, 2.0, 3.0);
  const State<Real> low = single<Real>(-1.0e4, 5.0, 7.0);
  report.expect(same_state(merged(high, low), high), "high + low");
  report.expect(same_state(merged(low, high), high), "low + high");
  const Real far = std::numeric_limits<Real>::max() / 10 * 9;
  report.expect(same_state(merged(single<Real>(far, 1, 1), single<Real>(-far, 1, 1)),
                           single<Real>(far, 1, 1)),
                "difference beyond the largest number");
  State<Real> equal = merged(high, high);
  report.expect(equal.max() == 1.0e4 && equal.sum() == 4.0 && equal.out(0) == 6.0, "equal");
  State<Real> step = merged(single<Real>(3.0, 1.0, 1.0), single<Real>(5.0, 1.0, 2.0));
  report.expect(step.max() == 5.0 && step.sum() == 1.25 && step.out(0) == 2.25, "2^-2");
}

template <class Real>
void test_rows(Report& report) {
  report.subject("rows are merged independently");
  Random random(test_seed(13));
  constexpr int64_t rows = 5;
  State<Real> a(rows, 3);
  State<Real> b(rows, 3);
  std::vector<State<Real>> singles;
  for (int64_t row = 0; row < rows; ++row) {
    const Keys<Real> keys(random, 40, 3, 10.0);
    const int64_t cut = row == 2 ? 0 : 17;  // one row has nothing in the first chunk
    State<Real> parts[2] = {keys.state(0, cut), keys.state(cut, 40)};
    State<Real>* wholes[2] = {&a, &b};
    for (int i = 0; i < 2; ++i) {
      wholes[i]->view().row_max[row] = parts[i].max();
      wholes[i]->view().row_sum[row] = parts[i].sum();
      std::copy_n(parts[i].view().output, 3, wholes[i]->view().output + row * 3);
    }
    singles.push_back(merged(parts[0], parts[1]));
  }
  State<Real> all = merged(a, b);
  for (int64_t row = 0; row < rows; ++row) {
    State<Real>& want = singles[static_cast<size_t>(row)];
    bool same = all.max(row) == want.max() && all.sum(row) == want.sum();
    for (int64_t c = 0; c < 3; ++c) same = same && all.out(c, row) == want.out(c);
    report.expect(same, "row %lld", static_cast<long long>(row));
  }
  report.subject("a state lies over 2 * rows + rows * head_dim_v numbers");
  Real numbers[2 * 4 + 4 * 3];
  const PartialState<Real> laid(reinterpret_cast<char*>(numbers), 4);
  report.expect(
      laid.row_max == numbers && laid.row_sum == numbers + 4 && laid.output == numbers + 8,
      "4 rows");
}

template <class Real>
void run_tests(Report& report) {
  test_one_pass<Real>(report);
  test_associativity<Real>(report);
  test_empty<Real>(report);
  test_nan<Real>(report);
  test_extremes<Real>(report);
  test_rows<Real>(report);
}

}  // namespace
}  // namespace cpuattn

int main() {
  cpuattn::Report report;
  std::printf("states of float32\n");
  cpuattn::run_tests<float>(report);
  report.subject(nullptr);
  std::printf("states of float64\n");
  cpuattn::run_tests<double>(report);
  return report.finish();
}
