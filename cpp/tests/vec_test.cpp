// SPDX-License-Identifier: MIT
// Every operation of the contract in simd/vec_scalar.h against plain scalar code, on one ISA.
#include <cmath>
#include <initializer_list>
#include <limits>

#include "check.h"
#include "half_values.h"
#include "isa_test.h"
#include "support.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

// Exact in Real too, so that both headers see the same numbers where it matters.
const Real kOperands[] = {0,
                          -Real{0},
                          1,
                          -1,
                          0.5,
                          -2.75,
                          1.0e10,
                          -0x1p-32,
                          kLargest,
                          -kLargest,
                          kSmallestNormal,
                          -kSmallestNormal,
                          kDenormal,
                          -kDenormal,
                          7000 * kDenormal,
                          kSmallestNormal / -3,
                          kInf,
                          -kInf,
                          kNan,
                          -kNan,
                          1 + RealLimits::epsilon(),
                          3,
                          0x1p66,
                          -0x1p66,
                          2 / RealLimits::epsilon() - 1};
constexpr int kOperandCount = sizeof kOperands / sizeof kOperands[0];

// Memory filled with 0x5a.
constexpr auto kUnwritten = static_cast<RealBits>(0x5a5a5a5a5a5a5a5au);

struct Lanes {
  Real at[kLanes];
};

Lanes lanes_of(Vec v) {
  Lanes r;
  store(r.at, v);
  return r;
}

Lanes truth_of(Mask m) { return lanes_of(select(m, broadcast(1), zero())); }

Vec iota(Real first) {
  Lanes r;
  for (int i = 0; i < kLanes; ++i) r.at[i] = first + static_cast<Real>(i);
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
      const Real want = expected(a.at[i], b.at[i]);
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
      report, "add", [](Vec a, Vec b) { return add(a, b); }, [](Real a, Real b) { return a + b; },
      false);
  check_pairs(
      report, "sub", [](Vec a, Vec b) { return sub(a, b); }, [](Real a, Real b) { return a - b; },
      false);
  check_pairs(
      report, "mul", [](Vec a, Vec b) { return mul(a, b); }, [](Real a, Real b) { return a * b; },
      false);
  check_pairs(
      report, "div", [](Vec a, Vec b) { return div(a, b); }, [](Real a, Real b) { return a / b; },
      false);
  check_pairs(
      report, "max returns its second operand for NaN and for equal zeros",
      [](Vec a, Vec b) { return max(a, b); }, [](Real a, Real b) { return a > b ? a : b; }, true);
  check_pairs(
      report, "abs", [](Vec a, Vec) { return abs(a); },
      [](Real a, Real) { return number_of(bits_of(a) & ~kSignBit); }, true);
  check_pairs(
      report, "sign_or", [](Vec a, Vec b) { return sign_or(a, b); },
      [](Real a, Real b) { return number_of(bits_of(a) | (bits_of(b) & kSignBit)); }, true);
}

void test_fma(Report& report) {
  report.subject("fma");
  for (const Real a : kOperands) {
    for (const Real b : kOperands) {
      for (int first = 0; first < kOperandCount; first += kLanes) {
        Lanes c;
        for (int i = 0; i < kLanes; ++i) c.at[i] = kOperands[(first + i) % kOperandCount];
        const Lanes got = lanes_of(fma(broadcast(a), broadcast(b), load(c.at)));
        for (int i = 0; i < kLanes; ++i) {
          const Real want = kFused ? std::fma(a, b, c.at[i]) : a * b + c.at[i];
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
      [](Real a, Real b) { return a == b ? a : 7; }, true);
  check_pairs(
      report, "less, by select", [](Vec a, Vec b) { return select(less(a, b), b, a); },
      [](Real a, Real b) { return a < b ? b : a; }, true);
}

void test_masks(Report& report) {
  report.subject("mask_from_bits, select, any for every pattern");
  constexpr uint32_t patterns = uint32_t{1} << kLanes;
  for (uint32_t pattern = 0; pattern < patterns; ++pattern) {
    for (const uint32_t above : {uint32_t{0}, ~(patterns - 1)}) {  // must be ignored
      const Mask mask = mask_from_bits(pattern | above);
      const Lanes got = truth_of(mask);
      bool right = any(mask) == (pattern != 0);
      for (int i = 0; i < kLanes; ++i) right = right && (got.at[i] == 1) == (pattern >> i & 1);
      report.expect(right, "bits %#x", pattern | above);
    }
  }
}

void test_constants(Report& report) {
  report.subject("zero, broadcast, constants");
  const Lanes zeros = lanes_of(zero());
  for (int i = 0; i < kLanes; ++i) report.expect(bits_of(zeros.at[i]) == 0, "zero lane %d", i);
  for (const Real x : kOperands) {
    const Lanes got = lanes_of(broadcast(x));
    for (int i = 0; i < kLanes; ++i) {
      report.expect(bits_of(got.at[i]) == bits_of(x), "broadcast %a", static_cast<double>(x));
    }
  }
  report.expect(kTileVecs * kLanes <= 64, "a tile has %d rows", kTileVecs * kLanes);
  report.expect(kMicroRows > 0 && kMicroVecs > 0 && kDotRows > 0 && kDecodeRows > 0, "counts");
}

void test_load_store(Report& report) {
  report.subject("load and store at every alignment of a number, up to the end of the page");
  GuardedArray array(2 * kLanes * static_cast<int64_t>(sizeof(Real)));
  Real* p = array.as<Real>();
  for (int offset = 0; offset <= kLanes; ++offset) {
    for (int i = 0; i < 2 * kLanes; ++i) p[i] = static_cast<Real>(i);
    const Lanes got = lanes_of(load(p + offset));
    for (int i = 0; i < kLanes; ++i) {
      report.expect(got.at[i] == static_cast<Real>(offset + i), "load at %d lane %d", offset, i);
    }
    store(p + offset, iota(100));
    for (int i = 0; i < 2 * kLanes; ++i) {
      const bool inside = i >= offset && i < offset + kLanes;
      const Real want = static_cast<Real>(inside ? 100 + i - offset : i);
      report.expect(p[i] == want, "store at %d element %d", offset, i);
    }
  }
}

void test_first_lanes(Report& report) {
  report.subject("load_first and store_first for every n touch nothing beyond n");
  for (int n = 0; n <= kLanes; ++n) {
    // The n numbers end where memory ends: any access beyond faults.
    GuardedArray array(n * static_cast<int64_t>(sizeof(Real)));
    for (int i = 0; i < n; ++i) array.as<Real>()[i] = static_cast<Real>(i + 1);
    const Lanes got = lanes_of(load_first(array.as<Real>(), n));
    for (int i = 0; i < kLanes; ++i) {
      const Real want = i < n ? static_cast<Real>(i + 1) : 0;
      report.expect(bits_of(got.at[i]) == bits_of(want), "load_first n %d lane %d", n, i);
    }
    store_first(array.as<Real>(), n, iota(50));
    for (int i = 0; i < n; ++i) {
      report.expect(array.as<Real>()[i] == static_cast<Real>(50 + i), "store_first n %d", n);
    }
    Real around[3 * kLanes];
    std::memset(around, 0x5a, sizeof around);
    store_first(around + kLanes, n, iota(50));
    for (int i = 0; i < 3 * kLanes; ++i) {
      const bool inside = i >= kLanes && i < kLanes + n;
      const RealBits want = inside ? bits_of(static_cast<Real>(50 + i - kLanes)) : kUnwritten;
      report.expect(bits_of(around[i]) == want, "store_first n %d element %d", n, i - kLanes);
    }
  }
}

void test_split_exp2(Report& report) {
  report.subject("split_exp2 and scale_exp2: x = n + f, |f| <= 1/2");
  for (int step = 0; step < -kLowestNormalExponent * 64; step += kLanes) {
    Lanes x;
    for (int i = 0; i < kLanes; ++i) x.at[i] = -static_cast<Real>(step + i) / 64;
    Vec n;
    const Lanes f = lanes_of(split_exp2(load(x.at), n));
    const Lanes power = lanes_of(scale_exp2(broadcast(1), n));
    for (int i = 0; i < kLanes; ++i) {
      const auto whole = static_cast<int>(x.at[i] - f.at[i]);
      const bool right = std::abs(f.at[i]) <= Real{0.5} &&
                         static_cast<Real>(whole) + f.at[i] == x.at[i] &&
                         power.at[i] == std::ldexp(Real{1}, whole);
      report.expect(right, "x %a: f %a, 2^n %a", static_cast<double>(x.at[i]),
                    static_cast<double>(f.at[i]), static_cast<double>(power.at[i]));
    }
  }
  for (const Real x : {-kInf, kNan, -kNan, number_of(kQuietNan | 1), number_of(~RealBits{0})}) {
    Vec n;
    const Vec f = split_exp2(broadcast(x), n);
    const Lanes got = lanes_of(scale_exp2(add(f, broadcast(1)), n));
    for (int i = 0; i < kLanes; ++i) {
      report.expect(same_number(got.at[i], x != x ? kNan : 0), "x %a: got %a",
                    static_cast<double>(x), static_cast<double>(got.at[i]));
    }
  }
}

void test_reduce_add(Report& report) {
  report.subject("reduce_add and store_sums4");
  constexpr Real triangle = static_cast<Real>(kLanes * (kLanes - 1) / 2);
  report.expect(reduce_add(iota(0)) == triangle, "sum of lane numbers");
  report.expect(reduce_add(iota(-5)) == triangle - 5 * kLanes, "sum from -5");
  GuardedArray sums(4 * static_cast<int64_t>(sizeof(Real)));
  Real* p = sums.as<Real>();
  store_sums4(p, iota(0), iota(10), iota(-20), broadcast(0.25));
  const Real want[4] = {triangle, triangle + 10 * kLanes, triangle - 20 * kLanes, 0.25 * kLanes};
  for (int i = 0; i < 4; ++i) report.expect(p[i] == want[i], "store_sums4 sum %d", i);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (const Real x : {kInf, -kInf, kNan, Real{1.0e6}}) {
      Lanes one = {};
      one.at[lane] = x;
      report.expect(same_number(reduce_add(load(one.at)), x), "reduce_add lane %d", lane);
      Vec v[4] = {zero(), zero(), zero(), zero()};
      for (int which = 0; which < 4; ++which) {
        v[which] = load(one.at);
        store_sums4(p, v[0], v[1], v[2], v[3]);
        v[which] = zero();
        for (int i = 0; i < 4; ++i) {
          report.expect(same_number(p[i], i == which ? x : 0), "store_sums4 %d of %d lane %d", i,
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
      Real want = kNan;
      for (int i = 0; i < kLanes; ++i) {
        const Real x = infinite ? -kInf : static_cast<Real>((i * 5 + 3) % kLanes) - 20;
        const bool is_nan = (nan_lanes >> i & 1) != 0;
        v.at[i] = is_nan ? kNan : x;
        if (!is_nan && (want != want || x > want)) want = x;
      }
      const Real got = reduce_max(load(v.at));
      report.expect(same_number(got, want), "NaN lanes %#x: got %a, expected %a", nan_lanes,
                    static_cast<double>(got), static_cast<double>(want));
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (const Real x : {kInf, kLargest, kDenormal}) {
      Lanes v;
      for (int i = 0; i < kLanes; ++i) v.at[i] = i == lane ? x : -1;
      report.expect(reduce_max(load(v.at)) == x, "lane %d holds %a", lane, static_cast<double>(x));
    }
  }
}

// Rows at different distances and alignments; the last one ends where memory ends.
void test_squares(Report& report) {
  report.subject("load_square and store_square transpose kLanes rows of kLanes columns");
  constexpr int64_t row_numbers = kLanes + 3;
  for (int64_t column = 0; column <= 3; ++column) {
    GuardedArray array(kLanes * row_numbers * static_cast<int64_t>(sizeof(Real)));
    char* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int64_t slot = (i * 5 + 2) % kLanes;  // not in the order of memory
      rows[i] = array.end() -
                ((slot + 1) * row_numbers - 3 + column) * static_cast<int64_t>(sizeof(Real));
      for (int j = 0; j < kLanes; ++j) {
        reinterpret_cast<Real*>(rows[i])[column + j] = static_cast<Real>(100 * i + j);
      }
    }
    Vec v[kLanes];
    load_square(rows, column, v);
    for (int j = 0; j < kLanes; ++j) {
      const Lanes got = lanes_of(v[j]);
      for (int i = 0; i < kLanes; ++i) {
        report.expect(got.at[i] == static_cast<Real>(100 * i + j), "column %d lane %d: %g", j, i,
                      static_cast<double>(got.at[i]));
      }
    }
    for (int j = 0; j < kLanes; ++j) v[j] = iota(static_cast<Real>(1000 * j));
    std::memset(array.data(), 0x5a, static_cast<size_t>(array.end() - array.data()));
    store_square(v, rows, column);
    int written = 0;
    for (int i = 0; i < kLanes; ++i) {
      for (int j = 0; j < kLanes; ++j) {
        const Real got = reinterpret_cast<Real*>(rows[i])[column + j];
        report.expect(got == static_cast<Real>(1000 * j + i), "row %d column %d: %g", i, j,
                      static_cast<double>(got));
      }
    }
    for (int64_t i = 0; i < kLanes * row_numbers; ++i) {
      written += bits_of(array.as<Real>()[i]) != kUnwritten ? 1 : 0;
    }
    report.expect(written == kLanes * kLanes, "%d numbers written", written);
  }
}

// ---------------------------------------------------------------- 16-bit floats

// A 16-bit format by the vector operations and by the scalar ones.
struct HalfOperations {
  HalfFormat format;
  Vec (*widen)(Half);
  Half (*narrow)(Vec);
  float (*widen_one)(uint16_t);
  uint16_t (*narrow_one)(float);
};
const HalfOperations kHalfOperations[] = {
    {kFloat16, [](Half h) { return widen_float16(h); }, [](Vec v) { return narrow_float16(v); },
     [](uint16_t h) { return float_of_float16(h); }, [](float x) { return float16_of_float(x); }},
    {kBFloat16, [](Half h) { return widen_bfloat16(h); }, [](Vec v) { return narrow_bfloat16(v); },
     [](uint16_t h) { return float_of_bfloat16(h); }, [](float x) { return bfloat16_of_float(x); }},
};

void test_widen(Report& report, const HalfOperations& half) {
  report.subject(half.format.dtype == DType::kFloat16 ? "widen_float16 of every half"
                                                      : "widen_bfloat16 of every half");
  for (int first = 0; first <= 0xffff; first += kLanes) {
    uint16_t bits[kLanes];
    for (int i = 0; i < kLanes; ++i) bits[i] = static_cast<uint16_t>(first + i);
    const Lanes got = lanes_of(half.widen(load_half(reinterpret_cast<const char*>(bits))));
    for (int i = 0; i < kLanes; ++i) {
      const Real want = static_cast<Real>(half.widen_one(bits[i]));
      report.expect(bits_of(got.at[i]) == bits_of(want), "%#x: got %a, expected %a", bits[i],
                    static_cast<double>(got.at[i]), static_cast<double>(want));
      report.expect((want != want) == half_is_nan(half.format, bits[i]), "%#x: NaN", bits[i]);
    }
  }
}

void test_narrow(Report& report, const HalfOperations& half) {
  report.subject(half.format.dtype == DType::kFloat16
                     ? "narrow_float16 rounds like float16_of_float, NaN stays quiet NaN"
                     : "narrow_bfloat16 rounds like bfloat16_of_float, NaN stays quiet NaN");
  float pending[kLanes] = {};
  int64_t count = 0;
  const auto check = [&](float x) {
    pending[count++ % kLanes] = x;
    if (count % kLanes != 0) return;
    Lanes lanes;
    for (int i = 0; i < kLanes; ++i) lanes.at[i] = static_cast<Real>(pending[i]);
    uint16_t got[kLanes];
    store_half(reinterpret_cast<char*>(got), half.narrow(load(lanes.at)));
    for (int i = 0; i < kLanes; ++i) {
      const auto want = half.narrow_one(static_cast<float>(lanes.at[i]));
      report.expect(got[i] == want, "%a: got %#x, expected %#x", static_cast<double>(pending[i]),
                    got[i], want);
    }
  };
  for_half_boundaries(half.format, check);
  for_float_samples(251, check);
  for (int i = 0; i < kLanes; ++i) check(0.0f);  // what is still pending
}

void test_load_half(Report& report) {
  report.subject("load_half, load_half_first for every n, and store_half touch nothing else");
  constexpr int64_t size = kLanes * 2;
  const auto value = [](int i) { return static_cast<uint16_t>(0x3c00 + 0x11 * i); };
  const auto check = [&](Half h, int n) {
    uint16_t got[kLanes];
    store_half(reinterpret_cast<char*>(got), h);
    for (int i = 0; i < kLanes; ++i) {
      report.expect(got[i] == (i < n ? value(i) : 0), "n %d lane %d: %#x", n, i, got[i]);
    }
  };
  for (const int64_t odd : {0, 1}) {  // bytes between the last element and the end of the page
    for (int n = 0; n <= kLanes; ++n) {
      GuardedArray array(2 * n + odd);
      for (int i = 0; i < n; ++i) {
        const uint16_t x = value(i);
        std::memcpy(array.data() + 2 * i, &x, 2);
      }
      check(load_half_first(array.data(), n), n);
      if (n == kLanes) check(load_half(array.data()), n);
    }
    GuardedArray array(3 * size + odd);
    uint16_t from[kLanes];
    for (int i = 0; i < kLanes; ++i) from[i] = value(i);
    std::memset(array.data(), 0x5a, static_cast<size_t>(array.end() - array.data()));
    store_half(array.data() + size, load_half(reinterpret_cast<const char*>(from)));
    report.expect(std::memcmp(array.data() + size, from, sizeof from) == 0, "stored");
    for (const char* p = array.data(); p != array.end(); ++p) {
      const bool inside = p >= array.data() + size && p < array.data() + 2 * size;
      report.expect(inside || *p == 0x5a, "byte %d", static_cast<int>(p - array.data()));
    }
    GuardedArray last(size + odd);
    store_half(last.data(), load_half(reinterpret_cast<const char*>(from)));
    report.expect(std::memcmp(last.data(), from, sizeof from) == 0, "stored at the end");
  }
}

// ---------------------------------------------------------------- bytes

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
  prefetch_l1(array.data());
  prefetch_l2(array.data());
  prefetch_l1(array.end());
  prefetch_l2(array.end());
  prefetch_l1(nullptr);
  prefetch_l2(nullptr);
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
  for (const auto& half : CPUATTN_ISA::kHalfOperations) {
    CPUATTN_ISA::test_widen(report, half);
    CPUATTN_ISA::test_narrow(report, half);
  }
  CPUATTN_ISA::test_load_half(report);
  CPUATTN_ISA::test_nonzero_bits(report);
  CPUATTN_ISA::test_prefetch(report);
  return report.finish();
}

}  // namespace cpuattn
