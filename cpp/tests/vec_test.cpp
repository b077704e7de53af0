// SPDX-License-Identifier: MIT
// Every operation of the contract in simd/vec_scalar.h against plain scalar code, on one ISA.
#include <cfloat>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "check.h"
#include "isa_test.h"
#include "support.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kDenormal = std::numeric_limits<float>::denorm_min();

const float kOperands[] = {
    0.0f,     -0.0f,   1.0f,       -1.0f,     0.5f,       -2.75f,   1.0e10f,    -3.0e-10f, FLT_MAX,
    -FLT_MAX, FLT_MIN, -FLT_MIN,   kDenormal, -kDenormal, 1.0e-40f, -2.0e-39f,  kInf,      -kInf,
    kNan,     -kNan,   1.0000001f, 3.0f,      1.0e20f,    -1.0e20f, 16777215.0f};
constexpr int kOperandCount = sizeof kOperands / sizeof kOperands[0];

struct Lanes {
  float at[kLanes];
};

Lanes lanes_of(Vec v) {
  Lanes r;
  store(r.at, v);
  return r;
}

Lanes truth_of(Mask m) { return lanes_of(select(m, broadcast(1.0f), zero())); }

Vec iota(float first) {
  Lanes r;
  for (int i = 0; i < kLanes; ++i) r.at[i] = first + static_cast<float>(i);
  return load(r.at);
}

// All pairs of operands, kLanes at a time: expected(a, b) must be in the lane of op(a, b).
template <class Op, class Expected>
void check_pairs(Report& report, const char* name, Op op, Expected expected, bool exact_nan) {
  report.subject(name);
  constexpr int pairs = kOperandCount * kOperandCount;
  for (int first = 0; first < pairs; first += kLanes) {
    Lanes a, b;
    for (int i = 0; i < kLanes; ++i) {
      a.at[i] = kOperands[(first + i) % pairs / kOperandCount];
      b.at[i] = kOperands[(first + i) % kOperandCount];
    }
    const Lanes got = lanes_of(op(load(a.at), load(b.at)));
    for (int i = 0; i < kLanes; ++i) {
      const float want = expected(a.at[i], b.at[i]);
      const bool same =
          exact_nan ? bits_of(want) == bits_of(got.at[i]) : same_number(want, got.at[i]);
      report.expect(same, "(%a, %a): got %a, expected %a", static_cast<double>(a.at[i]),
                    static_cast<double>(b.at[i]), static_cast<double>(got.at[i]),
                    static_cast<double>(want));
    }
  }
}

void test_arithmetic(Report& report) {
  check_pairs(
      report, "add", [](Vec a, Vec b) { return add(a, b); }, [](float a, float b) { return a + b; },
      false);
  check_pairs(
      report, "sub", [](Vec a, Vec b) { return sub(a, b); }, [](float a, float b) { return a - b; },
      false);
  check_pairs(
      report, "mul", [](Vec a, Vec b) { return mul(a, b); }, [](float a, float b) { return a * b; },
      false);
  check_pairs(
      report, "div", [](Vec a, Vec b) { return div(a, b); }, [](float a, float b) { return a / b; },
      false);
  check_pairs(
      report, "max returns its second operand for NaN and for equal zeros",
      [](Vec a, Vec b) { return max(a, b); }, [](float a, float b) { return a > b ? a : b; }, true);
  check_pairs(
      report, "abs", [](Vec a, Vec) { return abs(a); },
      [](float a, float) { return float_of(bits_of(a) & 0x7fffffffu); }, true);
  check_pairs(
      report, "sign_or", [](Vec a, Vec b) { return sign_or(a, b); },
      [](float a, float b) { return float_of(bits_of(a) | (bits_of(b) & 0x80000000u)); }, true);
}

void test_fma(Report& report) {
  report.subject("fma");
  const bool fused = std::strcmp(kTestedIsa, "scalar") != 0;
  for (const float a : kOperands) {
    for (const float b : kOperands) {
      for (int first = 0; first < kOperandCount; first += kLanes) {
        Lanes c;
        for (int i = 0; i < kLanes; ++i) c.at[i] = kOperands[(first + i) % kOperandCount];
        const Lanes got = lanes_of(fma(broadcast(a), broadcast(b), load(c.at)));
        for (int i = 0; i < kLanes; ++i) {
          const float want = fused ? std::fma(a, b, c.at[i]) : a * b + c.at[i];
          report.expect(same_number(want, got.at[i]), "(%a, %a, %a): got %a, expected %a",
                        static_cast<double>(a), static_cast<double>(b),
                        static_cast<double>(c.at[i]), static_cast<double>(got.at[i]),
                        static_cast<double>(want));
        }
      }
    }
  }
}

void test_comparisons(Report& report) {
  check_pairs(
      report, "equal, by select", [](Vec a, Vec b) { return select(equal(a, b), a, broadcast(7)); },
      [](float a, float b) { return a == b ? a : 7.0f; }, true);
  check_pairs(
      report, "less, by select", [](Vec a, Vec b) { return select(less(a, b), b, a); },
      [](float a, float b) { return a < b ? b : a; }, true);
}

void test_masks(Report& report) {
  report.subject("mask_from_bits, select, any for every pattern");
  constexpr uint32_t patterns = uint32_t{1} << kLanes;
  for (uint32_t pattern = 0; pattern < patterns; ++pattern) {
    for (const uint32_t above : {uint32_t{0}, ~(patterns - 1)}) {  // must be ignored
      const Mask mask = mask_from_bits(pattern | above);
      const Lanes got = truth_of(mask);
      bool right = any(mask) == (pattern != 0);
      for (int i = 0; i < kLanes; ++i) right = right && (got.at[i] == 1.0f) == (pattern >> i & 1);
      report.expect(right, "bits %#x", pattern | above);
    }
  }
}

void test_constants(Report& report) {
  report.subject("zero, broadcast, constants");
  const Lanes zeros = lanes_of(zero());
  for (int i = 0; i < kLanes; ++i) report.expect(bits_of(zeros.at[i]) == 0, "zero lane %d", i);
  for (const float x : kOperands) {
    const Lanes got = lanes_of(broadcast(x));
    for (int i = 0; i < kLanes; ++i) {
      report.expect(bits_of(got.at[i]) == bits_of(x), "broadcast %a", static_cast<double>(x));
    }
  }
  report.expect(kTileVecs * kLanes <= 64, "a tile has %d rows", kTileVecs * kLanes);
  report.expect(kMicroRows > 0 && kMicroVecs > 0 && kDotRows > 0 && kDecodeRows > 0, "counts");
}

void test_load_store(Report& report) {
  report.subject("load and store at every alignment of a float, up to the end of the page");
  GuardedArray array(2 * kLanes * static_cast<int64_t>(sizeof(float)));
  float* p = array.floats();
  for (int offset = 0; offset <= kLanes; ++offset) {
    for (int i = 0; i < 2 * kLanes; ++i) p[i] = static_cast<float>(i);
    const Lanes got = lanes_of(load(p + offset));
    for (int i = 0; i < kLanes; ++i) {
      report.expect(got.at[i] == static_cast<float>(offset + i), "load at %d lane %d", offset, i);
    }
    store(p + offset, iota(100.0f));
    for (int i = 0; i < 2 * kLanes; ++i) {
      const bool inside = i >= offset && i < offset + kLanes;
      const float want = static_cast<float>(inside ? 100 + i - offset : i);
      report.expect(p[i] == want, "store at %d element %d", offset, i);
    }
  }
}

void test_first_lanes(Report& report) {
  report.subject("load_first and store_first for every n touch nothing beyond n");
  for (int n = 0; n <= kLanes; ++n) {
    // The n floats end where memory ends: any access beyond faults.
    GuardedArray array(n * static_cast<int64_t>(sizeof(float)));
    for (int i = 0; i < n; ++i) array.floats()[i] = static_cast<float>(i + 1);
    const Lanes got = lanes_of(load_first(array.floats(), n));
    for (int i = 0; i < kLanes; ++i) {
      const float want = i < n ? static_cast<float>(i + 1) : 0.0f;
      report.expect(bits_of(got.at[i]) == bits_of(want), "load_first n %d lane %d", n, i);
    }
    store_first(array.floats(), n, iota(50.0f));
    for (int i = 0; i < n; ++i) {
      report.expect(array.floats()[i] == static_cast<float>(50 + i), "store_first n %d", n);
    }
    float around[3 * kLanes];
    std::memset(around, 0x5a, sizeof around);
    store_first(around + kLanes, n, iota(50.0f));
    for (int i = 0; i < 3 * kLanes; ++i) {
      const bool inside = i >= kLanes && i < kLanes + n;
      const uint32_t want = inside ? bits_of(static_cast<float>(50 + i - kLanes)) : 0x5a5a5a5au;
      report.expect(bits_of(around[i]) == want, "store_first n %d element %d", n, i - kLanes);
    }
  }
}

void test_split_exp2(Report& report) {
  report.subject("split_exp2 and scale_exp2: x = n + f, |f| <= 1/2");
  for (int step = 0; step < 126 * 64; step += kLanes) {
    Lanes x;
    for (int i = 0; i < kLanes; ++i) x.at[i] = -static_cast<float>(step + i) / 64.0f;
    Vec n;
    const Lanes f = lanes_of(split_exp2(load(x.at), n));
    const Lanes power = lanes_of(scale_exp2(broadcast(1.0f), n));
    for (int i = 0; i < kLanes; ++i) {
      const double want = std::exp2(static_cast<double>(x.at[i]) - static_cast<double>(f.at[i]));
      report.expect(std::abs(f.at[i]) <= 0.5f && static_cast<double>(power.at[i]) == want,
                    "x %a: f %a, 2^n %a", static_cast<double>(x.at[i]),
                    static_cast<double>(f.at[i]), static_cast<double>(power.at[i]));
    }
  }
  for (const float x : {-kInf, kNan, -kNan, float_of(0x7fc00001u), float_of(0xffffffffu)}) {
    Vec n;
    const Vec f = split_exp2(broadcast(x), n);
    const Lanes got = lanes_of(scale_exp2(add(f, broadcast(1.0f)), n));
    for (int i = 0; i < kLanes; ++i) {
      report.expect(same_number(got.at[i], x != x ? kNan : 0.0f), "x %a: got %a",
                    static_cast<double>(x), static_cast<double>(got.at[i]));
    }
  }
}

void test_reduce_add(Report& report) {
  report.subject("reduce_add and store_sums4");
  constexpr float triangle = static_cast<float>(kLanes * (kLanes - 1) / 2);
  report.expect(reduce_add(iota(0.0f)) == triangle, "sum of lane numbers");
  report.expect(reduce_add(iota(-5.0f)) == triangle - 5.0f * kLanes, "sum from -5");
  GuardedArray sums(4 * static_cast<int64_t>(sizeof(float)));
  float* p = sums.floats();
  store_sums4(p, iota(0.0f), iota(10.0f), iota(-20.0f), broadcast(0.25f));
  const float want[4] = {triangle, triangle + 10 * kLanes, triangle - 20 * kLanes, 0.25f * kLanes};
  for (int i = 0; i < 4; ++i) report.expect(p[i] == want[i], "store_sums4 sum %d", i);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (const float x : {kInf, -kInf, kNan, 1.0e6f}) {
      Lanes one = {};
      one.at[lane] = x;
      report.expect(same_number(reduce_add(load(one.at)), x), "reduce_add lane %d", lane);
      Vec v[4] = {zero(), zero(), zero(), zero()};
      for (int which = 0; which < 4; ++which) {
        v[which] = load(one.at);
        store_sums4(p, v[0], v[1], v[2], v[3]);
        v[which] = zero();
        for (int i = 0; i < 4; ++i) {
          report.expect(same_number(p[i], i == which ? x : 0.0f), "store_sums4 %d of %d lane %d", i,
                        which, lane);
        }
      }
    }
  }
}

void test_reduce_max(Report& report) {
  report.subject("reduce_max ignores any set of NaN lanes but the full one");
  for (uint32_t nan_lanes = 0; nan_lanes < uint32_t{1} << kLanes; ++nan_lanes) {
    for (const bool infinite : {false, true}) {
      Lanes v;
      float want = kNan;
      for (int i = 0; i < kLanes; ++i) {
        const float x = infinite ? -kInf : static_cast<float>((i * 5 + 3) % kLanes) - 20.0f;
        const bool is_nan = (nan_lanes >> i & 1) != 0;
        v.at[i] = is_nan ? kNan : x;
        if (!is_nan && (want != want || x > want)) want = x;
      }
      const float got = reduce_max(load(v.at));
      report.expect(same_number(got, want), "NaN lanes %#x: got %a, expected %a", nan_lanes,
                    static_cast<double>(got), static_cast<double>(want));
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (const float x : {kInf, FLT_MAX, kDenormal}) {
      Lanes v;
      for (int i = 0; i < kLanes; ++i) v.at[i] = i == lane ? x : -1.0f;
      report.expect(reduce_max(load(v.at)) == x, "lane %d holds %a", lane, static_cast<double>(x));
    }
  }
}

// Rows at different distances and alignments; the last one ends where memory ends.
void test_squares(Report& report) {
  report.subject("load_square and store_square transpose kLanes rows of kLanes columns");
  constexpr int64_t row_floats = kLanes + 3;
  for (int64_t column = 0; column <= 3; ++column) {
    GuardedArray array(kLanes * row_floats * static_cast<int64_t>(sizeof(float)));
    char* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int64_t slot = (i * 5 + 2) % kLanes;  // not in the order of memory
      rows[i] = array.end() - ((slot + 1) * row_floats - 3 + column) * 4;
      for (int j = 0; j < kLanes; ++j) {
        reinterpret_cast<float*>(rows[i])[column + j] = static_cast<float>(100 * i + j);
      }
    }
    Vec v[kLanes];
    load_square(rows, column, v);
    for (int j = 0; j < kLanes; ++j) {
      const Lanes got = lanes_of(v[j]);
      for (int i = 0; i < kLanes; ++i) {
        report.expect(got.at[i] == static_cast<float>(100 * i + j), "column %d lane %d: %g", j, i,
                      static_cast<double>(got.at[i]));
      }
    }
    for (int j = 0; j < kLanes; ++j) v[j] = iota(static_cast<float>(1000 * j));
    std::memset(array.data(), 0x5a, static_cast<size_t>(array.end() - array.data()));
    store_square(v, rows, column);
    int written = 0;
    for (int i = 0; i < kLanes; ++i) {
      for (int j = 0; j < kLanes; ++j) {
        const float got = reinterpret_cast<float*>(rows[i])[column + j];
        report.expect(got == static_cast<float>(1000 * j + i), "row %d column %d: %g", i, j,
                      static_cast<double>(got));
      }
    }
    for (int64_t i = 0; i < kLanes * row_floats; ++i) {
      written += bits_of(array.floats()[i]) != 0x5a5a5a5au ? 1 : 0;
    }
    report.expect(written == kLanes * kLanes, "%d floats written", written);
  }
}

void test_nonzero_bits(Report& report) {
  report.subject("nonzero_bits64");
  GuardedArray array(64);
  uint8_t* p = reinterpret_cast<uint8_t*>(array.data());
  std::memset(p, 0, 64);
  report.expect(nonzero_bits64(p) == 0, "all 0");
  std::memset(p, 1, 64);
  report.expect(nonzero_bits64(p) == ~uint64_t{0}, "all 1");
  std::memset(p, 0, 64);
  for (int i = 0; i < 64; ++i) {
    for (int value = 1; value < 256; ++value) {
      p[i] = static_cast<uint8_t>(value);
      report.expect(nonzero_bits64(p) == uint64_t{1} << i, "byte %d is %d", i, value);
    }
    p[i] = 0;
  }
  Random random(test_seed(1));
  for (int round = 0; round < 200; ++round) {
    const uint64_t want = random.next();
    for (int i = 0; i < 64; ++i) {
      p[i] = (want >> i & 1) != 0 ? static_cast<uint8_t>(random.between(1, 255)) : uint8_t{0};
    }
    report.expect(nonzero_bits64(p) == want, "pattern %#llx",
                  static_cast<unsigned long long>(want));
  }
}

void test_prefetch(Report& report) {
  report.subject("prefetch never faults");
  GuardedArray array(64);
  prefetch(array.data());
  prefetch(array.end());
  prefetch(nullptr);
  report.expect(true, "unreached");
}

}  // namespace
}  // namespace CPUATTN_ISA

int run_isa_tests() {
  Report report;
  CPUATTN_ISA::test_constants(report);
  CPUATTN_ISA::test_load_store(report);
  CPUATTN_ISA::test_first_lanes(report);
  CPUATTN_ISA::test_arithmetic(report);
  CPUATTN_ISA::test_fma(report);
  CPUATTN_ISA::test_comparisons(report);
  CPUATTN_ISA::test_masks(report);
  CPUATTN_ISA::test_split_exp2(report);
  CPUATTN_ISA::test_reduce_add(report);
  CPUATTN_ISA::test_reduce_max(report);
  CPUATTN_ISA::test_squares(report);
  CPUATTN_ISA::test_nonzero_bits(report);
  CPUATTN_ISA::test_prefetch(report);
  return report.finish();
}

}  // namespace cpuattn
