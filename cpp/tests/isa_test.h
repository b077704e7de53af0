// SPDX-License-Identifier: MIT
// What a test that is compiled once per ISA offers to isa_main.cpp, which checks the CPU first.
#pragma once

namespace cpuattn {

extern const char* const kTestedIsa;

// Runs the tests; returns the exit status.
int run_isa_tests();

}  // namespace cpuattn

// Included by the tests themselves, with CPUATTN_ISA and CPUATTN_VEC_HEADER set by CMake.
#ifdef CPUATTN_VEC_HEADER
#include "kernels/work_item.h"
// clang-format off: vectors need the macros of work_item.h
#include CPUATTN_VEC_HEADER
// clang-format on

#define CPUATTN_TEST_STRING(name) #name
#define CPUATTN_TEST_NAME_OF(name) CPUATTN_TEST_STRING(name)

namespace cpuattn {

const char* const kTestedIsa = CPUATTN_TEST_NAME_OF(CPUATTN_ISA);

}  // namespace cpuattn
#endif
