// SPDX-License-Identifier: MIT
// The harness of the C++ tests: subjects, counted checks, and a last line with the totals.
//
// Everything has internal linkage: tests of one ISA are compiled with that ISA's flags.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>

namespace cpuattn {
namespace {

constexpr int kSkipped = 77;  // exit status that CMakeLists.txt gives to ctest as "skipped"

class Report {
 public:
  // What the following checks are about; printed with their number once they are done.
  // nullptr: nothing yet.
  void subject(const char* text) {
    close_subject();
    subject_ = text;
  }

  // Counts one check. The message, printf-style, is printed for the first failures of a subject.
#if defined(__GNUC__)
  __attribute__((format(printf, 3, 4)))
#endif
  bool expect(bool ok, const char* format, ...) {
    if (ok) {
      ++passed_;
      return true;
    }
    ++failed_;
    if (++failed_here_ > kMaxMessages) return false;
    std::printf("FAILED %s: ", subject_ != nullptr ? subject_ : "");
    va_list args;
    va_start(args, format);
    std::vprintf(format, args);
    va_end(args);
    std::printf("\n");
    return false;
  }

  // Prints the totals; returns the exit status.
  int finish() {
    close_subject();
    std::printf("%lld passed, %lld failed\n", static_cast<long long>(passed_),
                static_cast<long long>(failed_));
    return failed_ == 0 && passed_ > 0 ? 0 : 1;
  }

 private:
  static constexpr int kMaxMessages = 10;

  void close_subject() {
    if (subject_ != nullptr) {
      std::printf("%s: %lld checks, %d failed\n", subject_,
                  static_cast<long long>(passed_ + failed_ - before_), failed_here_);
    }
    std::fflush(stdout);
    before_ = passed_ + failed_;
    failed_here_ = 0;
  }

  const char* subject_ = nullptr;
  int64_t passed_ = 0, failed_ = 0, before_ = 0;
  int failed_here_ = 0;
};

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline uint64_t bits_of(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float number_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline double number_of(uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Equal bit for bit, except that one NaN is as good as another.
template <class Real>
bool same_number(Real a, Real b) {
  return bits_of(a) == bits_of(b) || (a != a && b != b);
}

}  // namespace
}  // namespace cpuattn
