// SPDX-License-Identifier: MIT
// What the products multiply, by the contract in simd/units_real.h: units of one number, or pairs
// of bfloat16.
#include "isa_test.h"
// clang-format off: units are built on the vectors that isa_test.h includes
#include CPUATTN_UNITS_HEADER
// clang-format on

#include <cmath>
#include <initializer_list>

#include "check.h"
#include "half_values.h"
#include "support.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

constexpr int kElements = kLanes * kDepth;
constexpr int64_t kUnitBytes = sizeof(Unit);
constexpr int64_t kElementBytes = kUnitBytes / kDepth;

struct Lanes {
  Real at[kLanes];
};
Lanes lanes_of(Vec v) {
  Lanes r;
  store(r.at, v);
  return r;
}
Vec iota(int first, int step) {
  Lanes r;
  for (int i = 0; i < kLanes; ++i) r.at[i] = static_cast<Real>(first + i * step);
  return load(r.at);
}

// Elements of units, as many as fit before the end of memory.
struct Elements {
  GuardedArray array;

  explicit Elements(int count) : array(count * kElementBytes) {}
  Elements(int count, int first, int step) : Elements(count) {
    for (int i = 0; i < count; ++i) set(i, static_cast<Real>(first + i * step));
  }
  void set(int i, Real x) const { store_element(array.data() + i * kElementBytes, kUnitType, x); }
  Real at(int i) const { return load_element<Real>(array.data() + i * kElementBytes, kUnitType); }
  const Unit* units() const { return array.as<Unit>(); }
  // Bits that a Vec holds.
  void take(Vec v) const { store(array.as<Real>(), v); }
};

void test_multiply_add(Report& report) {
  report.subject("multiply_add sums the products of the elements of each unit");
  const Elements a(kElements, -7, 1);
  const Elements b(kElements, 5, -2);
  const Lanes got =
      lanes_of(multiply_add(load_units(a.units()), load_units(b.units()), iota(100, 10)));
  const Lanes one =
      lanes_of(multiply_add(spread_unit(a.units()), load_units(b.units()), iota(100, 10)));
  const Lanes same = lanes_of(multiply_add(no_units(), load_units(b.units()), iota(100, 10)));
  for (int i = 0; i < kLanes; ++i) {
    Real want = static_cast<Real>(100 + 10 * i);
    Real want_one = want;
    report.expect(same.at[i] == want, "no_units lane %d", i);
    for (int j = 0; j < kDepth; ++j) {
      want += a.at(i * kDepth + j) * b.at(i * kDepth + j);
      want_one += a.at(j) * b.at(i * kDepth + j);
    }
    report.expect(got.at[i] == want, "lane %d: %g", i, static_cast<double>(got.at[i]));
    report.expect(one.at[i] == want_one, "spread_unit lane %d: %g", i,
                  static_cast<double>(one.at[i]));
  }
}

void test_load(Report& report) {
  report.subject("load_units_first for every n touches nothing beyond n; others are 0");
  const Elements b(kElements, 1, 1);
  for (int n = 0; n <= kLanes; ++n) {
    const Elements a(n * kDepth, 2, 1);
    const Lanes got =
        lanes_of(multiply_add(load_units_first(a.units(), n), load_units(b.units()), zero()));
    for (int i = 0; i < kLanes; ++i) {
      Real want = 0;
      for (int j = 0; j < kDepth && i < n; ++j) {
        want += a.at(i * kDepth + j) * b.at(i * kDepth + j);
      }
      report.expect(got.at[i] == want, "n %d lane %d: %g", n, i, static_cast<double>(got.at[i]));
    }
  }
}

void test_join(Report& report) {
  report.subject("join and join_rows put the elements of a unit side by side");
  Vec v[kDepth];
  for (int j = 0; j < kDepth; ++j) v[j] = iota(50 * j, 3);
  const Elements joined(kElements);
  joined.take(join(v));
  const Elements rows(kElements + kLanes + 1, 0, 1);  // rows are kLanes + 1 elements apart
  const int64_t step = (kLanes + 1) * kElementBytes;
  const Elements joined_rows(kElements);
  joined_rows.take(
      join_rows(rows.array.end() - (kDepth - 1) * step - kLanes * kElementBytes, step));
  const int first = kElements + 1 - (kDepth - 1) * (kLanes + 1);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kDepth; ++j) {
      report.expect(joined.at(i * kDepth + j) == static_cast<Real>(50 * j + 3 * i),
                    "join: unit %d element %d", i, j);
      report.expect(joined_rows.at(i * kDepth + j) == rows.at(first + j * (kLanes + 1) + i),
                    "join_rows: unit %d element %d: %g", i, j,
                    static_cast<double>(joined_rows.at(i * kDepth + j)));
    }
  }
}

void test_store_row(Report& report) {
  report.subject("store_row_units stores the lanes side by side, up to the end of memory");
  const Elements row(kLanes);
  store_row_units(reinterpret_cast<Unit*>(row.array.data()), iota(-4, 2));
  for (int i = 0; i < kLanes; ++i) {
    report.expect(row.at(i) == static_cast<Real>(2 * i - 4), "lane %d", i);
  }
}

// Denormals aside, which the machine's own conversions flush.
void test_rounding(Report& report) {
  if (kUnitType != DType::kBFloat16) return;
  report.subject("store_row_units and join round to nearest, ties to even; NaN stays NaN");
  const auto check = [&](float x) {
    if (std::abs(x) < 0x1p-126f) return;
    const Real number = static_cast<Real>(x);
    const Elements row(kLanes);
    const Elements joined(kElements);
    Vec v[kDepth];
    for (int j = 0; j < kDepth; ++j) v[j] = broadcast(number);
    store_row_units(reinterpret_cast<Unit*>(row.array.data()), broadcast(number));
    joined.take(join(v));
    const Real want = static_cast<Real>(float_of_bfloat16(bfloat16_of_float(x)));
    report.expect(same_number(row.at(kLanes - 1), want) && same_number(joined.at(1), want),
                  "%a: got %a and %a", static_cast<double>(x),
                  static_cast<double>(row.at(kLanes - 1)), static_cast<double>(joined.at(1)));
  };
  for_half_boundaries(kBFloat16, check);
  for_float_samples(100003, check);
}

void test_interleave(Report& report) {
  if constexpr (kDepth == 2) {
    report.subject("interleave and in_order: two rows times a unit, column by column");
    const Elements even(kElements, 3, 1);
    const Elements odd(kElements, -20, 2);
    const Elements weights(2, 5, -7);
    Operand pairs[2];
    interleave(load_units(even.units()), load_units(odd.units()), pairs);
    Vec sums[kDepth];
    for (int i = 0; i < 2; ++i) {
      sums[i] = multiply_add(spread_unit(weights.units()), pairs[i], broadcast(1));
    }
    in_order(sums);
    for (int c = 0; c < kElements; ++c) {
      const Real got = lanes_of(sums[c / kLanes]).at[c % kLanes];
      const Real want = 1 + weights.at(0) * even.at(c) + weights.at(1) * odd.at(c);
      report.expect(got == want, "column %d: %g, expected %g", c, static_cast<double>(got),
                    static_cast<double>(want));
    }
  }
}

}  // namespace
}  // namespace CPUATTN_ISA

int run_isa_tests() {
  Report report;
  CPUATTN_ISA::test_multiply_add(report);
  CPUATTN_ISA::test_load(report);
  CPUATTN_ISA::test_join(report);
  CPUATTN_ISA::test_store_row(report);
  CPUATTN_ISA::test_rounding(report);
  CPUATTN_ISA::test_interleave(report);
  return report.finish();
}

}  // namespace cpuattn
