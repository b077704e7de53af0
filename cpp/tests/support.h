// SPDX-License-Identifier: MIT
// What the tests compute with: arrays that end where readable memory ends, and random numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/element.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#define CPUATTN_TEST_GUARD 1
#endif

namespace cpuattn {
namespace {

// `size` bytes whose last one is followed by a page that faults on any access (on POSIX). Filled
// with 0xff, which reads as NaN. Pages are used again by later arrays: one thread makes them.
class GuardedArray {
 public:
  explicit GuardedArray(int64_t size) : size_(static_cast<size_t>(size)), pages_(take(size_)) {
    data_ = pages_.end - size_;
    std::memset(data_, 0xff, size_);
  }
  GuardedArray(const GuardedArray&) = delete;
  GuardedArray& operator=(const GuardedArray&) = delete;
  ~GuardedArray() { unused().push_back(pages_); }

  char* data() const { return data_; }
  char* end() const { return data_ + size_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  // Readable memory up to a page that is not.
  struct Pages {
    size_t size = 0;
    char* end = nullptr;
  };

  static std::vector<Pages>& unused() {
    static std::vector<Pages> list;
    return list;
  }

  static Pages take(size_t size) {
    std::vector<Pages>& list = unused();
    const auto fits = [&](const Pages& pages) { return pages.size >= size; };
    const auto found = std::find_if(list.rbegin(), list.rend(), fits);
    if (found == list.rend()) return map(size);
    const Pages pages = *found;
    *found = list.back();
    list.pop_back();
    return pages;
  }

  static Pages map(size_t size) {
#ifdef CPUATTN_TEST_GUARD
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t readable = (size + page - 1) / page * page;
    void* base =
        mmap(nullptr, readable + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) out_of_memory();
    char* const end = static_cast<char*>(base) + readable;
    if (mprotect(end, page, PROT_NONE) != 0) out_of_memory();
    return {readable, end};
#else
    const size_t readable = (size + 63) / 64 * 64;
    char* const base = static_cast<char*>(std::malloc(readable + 64));
    if (base == nullptr) out_of_memory();
    return {readable, base + (64 - reinterpret_cast<uintptr_t>(base) % 64) % 64 + readable};
#endif
  }

  [[noreturn]] static void out_of_memory() {
    std::printf("cannot map memory for a test\n");
    std::exit(1);
  }

  size_t size_;
  Pages pages_;
  char* data_;
};

constexpr DType kFloatDtypes[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16,
                                  DType::kBFloat16};

// NumPy's name, but for kOther one of the dtypes that nothing takes.
inline const char* name_of(DType dtype) {
  constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16",
                                   "bool",    "int32",   "int64",   "complex64"};
  return names[static_cast<int>(dtype)];
}

// SplitMix64 (Steele, Lea and Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool chance(int percent) { return below(100) < percent; }
  float uniform(float low, float high) {
    return low + (high - low) * static_cast<float>(next() >> 40) * 0x1p-24f;
  }
  double uniform(double low, double high) {
    return low + (high - low) * static_cast<double>(next() >> 11) * 0x1p-53;
  }

 private:
  uint64_t state_;
};

// CPUATTN_TEST_SAMPLE=n runs about one in n of the problems, for emulated CPUs.
inline uint64_t test_sample() {
  static const char* const text = std::getenv("CPUATTN_TEST_SAMPLE");
  static const uint64_t every = text != nullptr ? std::strtoull(text, nullptr, 10) : 1;
  return every;
}
inline bool sampled(uint64_t seed) {
  return test_sample() <= 1 || (seed * 0x9e3779b97f4a7c15u >> 33) % test_sample() == 0;
}

// CPUATTN_TEST_SEED, or `seed` where that is not set.
inline uint64_t test_seed(uint64_t seed) {
  const char* text = std::getenv("CPUATTN_TEST_SEED");
  return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 0) : seed;
}

}  // namespace
}  // namespace cpuattn
