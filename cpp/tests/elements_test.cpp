// SPDX-License-Identifier: MIT
// Vectors of elements.inl.h out of and into arrays of every float dtype, on one ISA: any step, any
// address, any count, nothing beyond.
#include "isa_test.h"
// clang-format off: each file builds on the ones before it
#include CPUATTN_UNITS_HEADER
#include "kernels/vmath.inl.h"
#include "kernels/elements.inl.h"
// clang-format on

#include <initializer_list>

#include "check.h"
#include "support.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

// Small integers, which every dtype holds.
Real number_at(int64_t row, int64_t column) {
  return static_cast<Real>((row * 37 + column * 5) % 251 - 125);
}

// Steps in bytes: adjacent, one for all, apart, backward, never aligned.
struct Steps {
  int64_t at[5];
  explicit Steps(DType dtype)
      : at{item_size(dtype), 0, 3 * item_size(dtype), -item_size(dtype), item_size(dtype) + 1} {}
};

// Elements of which the last one ends where memory ends, less `gap` bytes.
struct Line {
  GuardedArray array;
  char* first;
  DType dtype;
  int64_t step;

  Line(DType line_dtype, int64_t line_step, int64_t count, int64_t gap)
      : array((count - 1) * (line_step < 0 ? -line_step : line_step) + item_size(line_dtype) + gap),
        first(step_back(array.end() - gap - item_size(line_dtype), line_step, count)),
        dtype(line_dtype),
        step(line_step) {}
  static char* step_back(char* last, int64_t step, int64_t count) {
    return step < 0 ? last : last - (count - 1) * step;
  }
  char* at(int64_t i) const { return first + i * step; }
  void fill(int64_t count) const {
    for (int64_t i = count - 1; i >= 0; --i) store_element(at(i), dtype, number_at(0, i));
  }
};

void test_load_elements(Report& report) {
  report.subject("load_elements of every dtype, step and count");
  for (const DType dtype : kFloatDtypes) {
    for (const int64_t step : Steps(dtype).at) {
      for (const int64_t gap : {0, 1}) {
        for (int64_t count = 1; count <= kLanes + 1; ++count) {
          const int64_t lanes = smaller(count, kLanes);
          const Line line(dtype, step, lanes, gap);
          line.fill(lanes);
          Real got[kLanes];
          store(got, load_elements(line.at(0), dtype, step, count));
          for (int64_t i = 0; i < kLanes; ++i) {
            const Real want = i < lanes ? number_at(0, step == 0 ? 0 : i) : 0;
            report.expect(bits_of(got[i]) == bits_of(want), "%s step %lld count %lld lane %lld: %g",
                          name_of(dtype), static_cast<long long>(step),
                          static_cast<long long>(count), static_cast<long long>(i),
                          static_cast<double>(got[i]));
          }
        }
      }
    }
  }
}

void test_store_elements(Report& report) {
  report.subject("store_elements rounds and places like store_element, and writes nothing else");
  Random random(test_seed(8));
  for (const DType dtype : kFloatDtypes) {
    for (const int64_t step : Steps(dtype).at) {
      if (step == 0) continue;
      for (const int64_t gap : {0, 1}) {
        for (int count = 1; count <= kLanes; ++count) {
          const Line got(dtype, step, count, gap);
          const Line want(dtype, step, count, gap);
          Real numbers[kLanes];
          for (Real& x : numbers) x = static_cast<Real>(random.uniform(-3.0, 3.0));
          store_elements(got.at(0), dtype, step, count, load(numbers));
          for (int i = 0; i < count; ++i) store_element(want.at(i), dtype, numbers[i]);
          const auto bytes = static_cast<size_t>(got.array.end() - got.array.data());
          report.expect(std::memcmp(got.array.data(), want.array.data(), bytes) == 0,
                        "%s step %lld count %d", name_of(dtype), static_cast<long long>(step),
                        count);
        }
      }
    }
  }
}

// Rows of elements one after the other, the last valid one up to the end of memory.
struct Square {
  GuardedArray array;
  LaneRows rows;

  Square(DType dtype, int64_t step, int valid, int64_t columns, int64_t gap)
      : array(valid * row_bytes(dtype, step, columns) + gap) {
    rows.valid = valid;
    rows.dtype = dtype;
    rows.col_step = step;
    const int64_t bytes = row_bytes(dtype, step, columns);
    const int64_t back = step < 0 ? (columns - 1) * -step : 0;
    for (int i = 0; i < kLanes; ++i) {
      rows.row[i] = i < valid ? array.data() + (i * 3 + 1) % valid * bytes + back : nullptr;
    }
    if (valid % 3 != 0) return;
    for (int i = 0; i < valid; ++i) rows.row[i] = array.data() + i * bytes + back;
  }
  static int64_t row_bytes(DType dtype, int64_t step, int64_t columns) {
    return (columns - 1) * (step < 0 ? -step : step) + item_size(dtype);
  }
};

// Calls body(dtype, step, valid, count) for all of them.
template <class Body>
void for_squares(Body body) {
  for (const DType dtype : kFloatDtypes) {
    for (const int64_t step : Steps(dtype).at) {
      for (int valid = 1; valid <= kLanes; ++valid) {
        for (int64_t count = 1; count <= kLanes + 1; ++count) body(dtype, step, valid, count);
      }
    }
  }
}

void test_load_transposed(Report& report) {
  report.subject("load_transposed of every dtype, step, number of rows and columns, in bounds");
  constexpr int64_t first = 2;  // the column that becomes out[0]
  for_squares([&](DType dtype, int64_t step, int valid, int64_t count) {
    const int64_t columns = smaller(count, kLanes);
    const Square square(dtype, step, valid, first + columns, count % 2);
    for (int i = 0; i < valid; ++i) {
      for (int64_t c = first + columns - 1; c >= 0; --c) {
        store_element(square.rows.row[i] + c * step, dtype, number_at(i, c));
      }
    }
    Vec out[kLanes];
    load_transposed(square.rows, first, count, out);
    for (int64_t c = 0; c < columns; ++c) {
      Real got[kLanes];
      store(got, out[c]);
      for (int i = 0; i < kLanes; ++i) {
        const Real want = i < valid ? number_at(i, step == 0 ? 0 : first + c) : 0;
        report.expect(got[i] == want, "%s step %lld rows %d columns %lld: column %lld row %d: %g",
                      name_of(dtype), static_cast<long long>(step), valid,
                      static_cast<long long>(count), static_cast<long long>(c), i,
                      static_cast<double>(got[i]));
      }
    }
  });
}

void test_store_transposed(Report& report) {
  report.subject("store_transposed of every dtype, step, number of rows and columns, in bounds");
  constexpr int64_t first = 2;
  for_squares([&](DType dtype, int64_t step, int valid, int64_t count) {
    if (step == 0) return;
    const int64_t columns = smaller(count, kLanes);
    const Square got(dtype, step, valid, first + columns, count % 2);
    const Square want(dtype, step, valid, first + columns, count % 2);
    Vec block[kLanes];
    for (int c = 0; c < kLanes; ++c) {
      Real lanes[kLanes];
      for (int i = 0; i < kLanes; ++i) lanes[i] = number_at(i, c) + static_cast<Real>(0.3125);
      block[c] = load(lanes);
    }
    Vec finite = zero();
    store_transposed(block, got.rows, first, count, finite);
    for (int i = 0; i < valid; ++i) {
      for (int64_t c = 0; c < columns; ++c) {
        store_element(want.rows.row[i] + (first + c) * step, dtype,
                      number_at(i, c) + static_cast<Real>(0.3125));
      }
    }
    const auto bytes = static_cast<size_t>(got.array.end() - got.array.data());
    report.expect(std::memcmp(got.array.data(), want.array.data(), bytes) == 0,
                  "%s step %lld rows %d columns %lld", name_of(dtype), static_cast<long long>(step),
                  valid, static_cast<long long>(count));
    report.expect(reduce_add(finite) == 0, "%s: all are finite", name_of(dtype));
  });
}

void test_finite(Report& report) {
  report.subject("store_transposed reports Inf and NaN in any stored element");
  for (const DType dtype : kFloatDtypes) {
    for (const int valid : {1, kLanes}) {
      for (int64_t at = 0; at < kLanes * valid; ++at) {
        const Square square(dtype, item_size(dtype), valid, kLanes, 0);
        Vec block[kLanes];
        for (int c = 0; c < kLanes; ++c) {
          Real lanes[kLanes] = {};
          if (c == at / valid) lanes[at % valid] = at % 2 == 0 ? kInf : kNan;
          block[c] = load(lanes);
        }
        Vec finite = zero();
        store_transposed(block, square.rows, 0, kLanes, finite);
        const Real sum = reduce_add(finite);
        report.expect(sum != sum, "%s: %lld of %d rows", name_of(dtype), static_cast<long long>(at),
                      valid);
      }
    }
  }
}

void test_with_elements(Report& report) {
  report.subject("with_elements reads whole and partial vectors as the dtype says");
  for (const DType dtype : {kRealType, DType::kFloat16, DType::kBFloat16}) {
    if (kDouble && dtype != kRealType) continue;  // kernels of float64 read no other keys
    for (int count = 1; count <= kLanes; ++count) {
      const Line line(dtype, item_size(dtype), count, 0);
      line.fill(count);
      Real got[kLanes];
      with_elements(dtype, [&](auto as) {
        report.expect(as.kSize == item_size(dtype), "size of %s", name_of(dtype));
        store(got, count == kLanes ? as.whole(line.at(0)) : as.first(line.at(0), count));
      });
      for (int i = 0; i < kLanes; ++i) {
        report.expect(got[i] == (i < count ? number_at(0, i) : 0), "%s count %d lane %d",
                      name_of(dtype), count, i);
      }
    }
  }
}

}  // namespace
}  // namespace CPUATTN_ISA

int run_isa_tests() {
  Report report;
  CPUATTN_ISA::test_load_elements(report);
  CPUATTN_ISA::test_store_elements(report);
  CPUATTN_ISA::test_load_transposed(report);
  CPUATTN_ISA::test_store_transposed(report);
  CPUATTN_ISA::test_finite(report);
  CPUATTN_ISA::test_with_elements(report);
  return report.finish();
}

}  // namespace cpuattn
