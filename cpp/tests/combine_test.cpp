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

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A PartialState that owns its memory.
struct State {
  int64_t rows, columns;
  std::vector<float> floats;

  State(int64_t row_count, int64_t column_count)
      : rows(row_count),
        columns(column_count),
        floats(static_cast<size_t>(row_count * (2 + column_count)), 0.0f) {
    std::fill_n(view().row_max, rows, -kInf);
  }
  PartialState view() { return state_at(floats.data(), rows); }
  float max(int64_t row = 0) { return view().row_max[row]; }
  float sum(int64_t row = 0) { return view().row_sum[row]; }
  float out(int64_t column, int64_t row = 0) { return view().output[row * columns + column]; }
};

State merged(State into, State other) {
  merge(into.view(), other.view(), into.rows, into.columns);
  return into;
}

bool same_state(const State& a, const State& b) {
  bool same = a.floats.size() == b.floats.size();
  for (size_t i = 0; i < a.floats.size() && same; ++i) same = same_number(a.floats[i], b.floats[i]);
  return same;
}

// Scores (log2 units) and values of one row.
struct Keys {
  std::vector<float> scores;
  std::vector<float> values;  // (keys, columns)
  int64_t columns;

  Keys(Random& random, int64_t count, int64_t column_count, float reach) : columns(column_count) {
    for (int64_t i = 0; i < count; ++i) scores.push_back(random.uniform(-reach, reach));
    for (int64_t i = 0; i < count * columns; ++i) values.push_back(random.uniform(-1.0f, 1.0f));
  }
  int64_t count() const { return static_cast<int64_t>(scores.size()); }

  // The state of keys [begin, end), as a kernel leaves it.
  State state(int64_t begin, int64_t end) const {
    State s(1, columns);
    float top = -kInf;
    for (int64_t i = begin; i < end; ++i) top = std::max(top, scores[static_cast<size_t>(i)]);
    s.view().row_max[0] = top;
    if (top == -kInf) return s;
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
    s.view().row_sum[0] = static_cast<float>(sum);
    for (int64_t c = 0; c < columns; ++c) {
      s.view().output[c] = static_cast<float>(out[static_cast<size_t>(c)]);
    }
    return s;
  }
};

bool close_state(State& got, State& want, double tolerance) {
  bool close = got.max() == want.max();
  close = close && std::abs(static_cast<double>(got.sum() - want.sum())) <=
                       tolerance * static_cast<double>(want.sum());
  for (int64_t c = 0; c < got.columns && close; ++c) {
    close = std::abs(static_cast<double>(got.out(c) - want.out(c))) <=
            tolerance * static_cast<double>(want.sum());
  }
  return close;
}

void test_one_pass(Report& report) {
  report.subject("chunks merged in order equal one pass over all keys");
  Random random(test_seed(10));
  for (int round = 0; round < 300; ++round) {
    const Keys keys(random, random.between(1, 200), random.between(0, 9), 40.0f);
    State total = keys.state(0, 0);
    for (int64_t begin = 0; begin < keys.count();) {
      const int64_t end = std::min(keys.count(), begin + random.between(1, 60));
      total = merged(total, keys.state(begin, end));
      begin = end;
    }
    State want = keys.state(0, keys.count());
    report.expect(close_state(total, want, 2.0e-6), "round %d: sum %g, expected %g", round,
                  static_cast<double>(total.sum()), static_cast<double>(want.sum()));
  }
}

void test_associativity(Report& report) {
  report.subject("(a + b) + c equals a + (b + c) up to rounding; the order of merging is fixed");
  Random random(test_seed(11));
  for (int round = 0; round < 300; ++round) {
    const Keys keys(random, 90, 5, round % 2 == 0 ? 3.0f : 60.0f);
    const State a = keys.state(0, 20);
    const State b = keys.state(20, 50);
    const State c = keys.state(50, 90);
    State left = merged(merged(a, b), c);
    State right = merged(a, merged(b, c));
    report.expect(close_state(left, right, 1.0e-6), "round %d", round);
    report.expect(same_state(left, merged(merged(a, b), c)), "round %d repeated", round);
    State swapped = merged(b, a);
    State straight = merged(a, b);
    report.expect(close_state(swapped, straight, 1.0e-6), "round %d swapped", round);
  }
}

void test_empty(Report& report) {
  report.subject("an empty state is neutral on either side, bit for bit");
  Random random(test_seed(12));
  const State empty(1, 7);
  for (int round = 0; round < 50; ++round) {
    const State some = Keys(random, 30, 7, 50.0f).state(0, 30);
    report.expect(same_state(merged(some, empty), some), "round %d right", round);
    report.expect(same_state(merged(empty, some), some), "round %d left", round);
  }
  report.subject("all -inf: empty states merge to an empty state, without NaN");
  report.expect(same_state(merged(empty, empty), empty), "empty + empty");
  report.expect(same_state(merged(merged(empty, empty), merged(empty, empty)), empty), "four");
}

State single(float max, float sum, float out) {
  State s(1, 1);
  s.view().row_max[0] = max;
  s.view().row_sum[0] = sum;
  s.view().output[0] = out;
  return s;
}

void test_nan(Report& report) {
  report.subject("NaN in either state comes out");
  const State good = single(1.0f, 2.0f, 3.0f);
  const State empty = single(-kInf, 0.0f, 0.0f);
  const State scores[] = {single(-kInf, kNan, kNan), single(4.0f, kNan, kNan),
                          single(-4.0f, kNan, kNan), single(kNan, 1.0f, 0.0f)};
  for (const State& bad : scores) {
    for (const State& other : {good, empty, bad}) {
      State first = merged(bad, other);
      State second = merged(other, bad);
      report.expect(std::isnan(first.sum()), "sum, first: %g", static_cast<double>(first.sum()));
      report.expect(std::isnan(second.sum()), "sum, second: %g", static_cast<double>(second.sum()));
      report.expect(std::isnan(first.out(0)), "out, first: %g", static_cast<double>(first.out(0)));
      report.expect(std::isnan(second.out(0)), "out, second: %g",
                    static_cast<double>(second.out(0)));
    }
  }
  State sink = merged(single(kNan, 1.0f, 0.0f), good);
  report.expect(std::isnan(sink.max()), "maximum: %g", static_cast<double>(sink.max()));
  const State value = single(1.0f, 2.0f, kNan);  // NaN in a value row, not in a score
  State first = merged(value, good);
  State second = merged(good, value);
  report.expect(std::isnan(first.out(0)) && first.sum() == 4.0f, "NaN value, first");
  report.expect(std::isnan(second.out(0)) && second.sum() == 4.0f, "NaN value, second");
}

void test_extremes(Report& report) {
  report.subject("maxima far apart neither overflow nor disturb the larger one");
  const State high = single(1.0e4f, 2.0f, 3.0f);
  const State low = single(-1.0e4f, 5.0f, 7.0f);
  report.expect(same_state(merged(high, low), high), "high + low");
  report.expect(same_state(merged(low, high), high), "low + high");
  const float far = 3.0e38f;
  report.expect(same_state(merged(single(far, 1, 1), single(-far, 1, 1)), single(far, 1, 1)),
                "difference beyond the largest float");
  State equal = merged(high, high);
  report.expect(equal.max() == 1.0e4f && equal.sum() == 4.0f && equal.out(0) == 6.0f, "equal");
  State step = merged(single(3.0f, 1.0f, 1.0f), single(5.0f, 1.0f, 2.0f));
  report.expect(step.max() == 5.0f && step.sum() == 1.25f && step.out(0) == 2.25f, "2^-2");
}

void test_rows(Report& report) {
  report.subject("rows are merged independently");
  Random random(test_seed(13));
  constexpr int64_t rows = 5;
  State a(rows, 3);
  State b(rows, 3);
  std::vector<State> singles;
  for (int64_t row = 0; row < rows; ++row) {
    const Keys keys(random, 40, 3, 10.0f);
    const int64_t cut = row == 2 ? 0 : 17;  // one row has nothing in the first chunk
    State parts[2] = {keys.state(0, cut), keys.state(cut, 40)};
    State* wholes[2] = {&a, &b};
    for (int i = 0; i < 2; ++i) {
      wholes[i]->view().row_max[row] = parts[i].max();
      wholes[i]->view().row_sum[row] = parts[i].sum();
      std::copy_n(parts[i].view().output, 3, wholes[i]->view().output + row * 3);
    }
    singles.push_back(merged(parts[0], parts[1]));
  }
  State all = merged(a, b);
  for (int64_t row = 0; row < rows; ++row) {
    State& want = singles[static_cast<size_t>(row)];
    bool same = all.max(row) == want.max() && all.sum(row) == want.sum();
    for (int64_t c = 0; c < 3; ++c) same = same && all.out(c, row) == want.out(c);
    report.expect(same, "row %lld", static_cast<long long>(row));
  }
  report.subject("state_at lays a state over 2 * rows + rows * head_dim_v floats");
  float floats[2 * 4 + 4 * 3];
  const PartialState laid = state_at(floats, 4);
  report.expect(laid.row_max == floats && laid.row_sum == floats + 4 && laid.output == floats + 8,
                "4 rows");
}

}  // namespace
}  // namespace cpuattn

int main() {
  cpuattn::Report report;
  cpuattn::test_one_pass(report);
  cpuattn::test_associativity(report);
  cpuattn::test_empty(report);
  cpuattn::test_nan(report);
  cpuattn::test_extremes(report);
  cpuattn::test_rows(report);
  return report.finish();
}
