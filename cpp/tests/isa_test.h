// SPDX-License-Identifier: MIT
// What a test that is compiled once per vector header offers to isa_main.cpp, which checks the CPU
// first.
#pragma once

namespace cpuattn {

extern const char* const kNeededIsa;  // of core/dispatch.h

// Runs the tests; returns the exit status.
int run_isa_tests();

}  // namespace cpuattn

// Included by the tests themselves, with CPUATTN_ISA, CPUATTN_NEEDED_ISA, CPUATTN_VEC_HEADER and
// CPUATTN_UNITS_HEADER set by CMake. CPUATTN_ISA is the namespace: avx2, and avx2_f64 for vectors
// of doubles.
#ifdef CPUATTN_VEC_HEADER
#include "kernels/work_item.h"
// clang-format off: vectors need the macros of work_item.h
#include CPUATTN_VEC_HEADER
// clang-format on

#include <cstring>
#include <limits>

#include "check.h"

#define CPUATTN_TEST_STRING(name) #name
#define CPUATTN_TEST_NAME_OF(name) CPUATTN_TEST_STRING(name)

namespace cpuattn {

const char* const kNeededIsa = CPUATTN_TEST_NAME_OF(CPUATTN_NEEDED_ISA);

// Whether fma() rounds once.
const bool kFused =
    std::strcmp(kNeededIsa, "scalar") != 0 && std::strcmp(kNeededIsa, "simd128") != 0;

namespace CPUATTN_ISA {
namespace {

using RealLimits = std::numeric_limits<Real>;
constexpr Real kInf = RealLimits::infinity();
constexpr Real kNan = RealLimits::quiet_NaN();
constexpr Real kLargest = RealLimits::max();
constexpr Real kSmallestNormal = RealLimits::min();
constexpr Real kDenormal = RealLimits::denorm_min();
constexpr int kLowestNormalExponent = RealLimits::min_exponent - 1;  // -126, -1022

using RealBits = decltype(bits_of(Real{}));
constexpr RealBits kSignBit = RealBits{1} << (8 * sizeof(RealBits) - 1);
constexpr RealBits kQuietNan = (kSignBit - 1) & ~((RealBits{1} << (RealLimits::digits - 2)) - 1);

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
#endif
