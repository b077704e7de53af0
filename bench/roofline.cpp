// SPDX-License-Identifier: MIT
// Measures the limits of this machine: float32 FMA rate and memory read rate.
// roofline.py compiles this file once per ISA (flags select it) and loads it by ctypes.
//
// FMA: kChains independent accumulators in registers, each one fused multiply-add per
// step; no memory operand. 2 instructions a cycle at a latency of 4 or 5 need 8 to 10
// chains; x86 before AVX-512 has 16 vector registers, AVX-512 and arm64 have 32.
// Read: every vector of the given ranges is loaded once per pass and folded into one of
// 8 accumulators by exclusive or (latency 1), so that only the loads can limit.
// Threads meet at a barrier before and after each pass; the calling thread takes the time.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#ifndef ROOFLINE_VECTOR_BYTES
#define ROOFLINE_VECTOR_BYTES 16
#endif

namespace {

constexpr int64_t kVectorBytes = ROOFLINE_VECTOR_BYTES;
constexpr int64_t kLanes = kVectorBytes / 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t kChains = 24;
#else
constexpr int64_t kChains = 12;
#endif
constexpr int64_t kAccumulators = 8;
constexpr int64_t kStep = kAccumulators * kVectorBytes;
constexpr int64_t kCacheLine = 64;

typedef float VecF32 __attribute__((vector_size(kVectorBytes)));
typedef uint32_t VecU32 __attribute__((vector_size(kVectorBytes)));
typedef uint32_t UnalignedU32 __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));

// Volatile: the compiler must not know what goes in, nor drop what comes out. (With known
// numbers it removes the chain that starts at its fixed point.)
volatile float half_source = 0.5F;
volatile float one_source = 1.0F;
volatile float float_sink;
volatile uint32_t integer_sink;

// Threads wait for each other: spin at first, give the core away later.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    const int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins > 4000) std::this_thread::yield();
    }
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<int> phase_{0};
};

// Runs work(thread) on every thread, `passes` times, and stores the seconds of each pass.
template <typename Work>
void time_passes(int threads, int passes, double* seconds, const Work& work) {
  Barrier barrier(threads);
  auto loop = [&](int thread) {
    for (int pass = 0; pass < passes; ++pass) {
      barrier.wait();
      const auto begin = std::chrono::steady_clock::now();
      work(thread);
      barrier.wait();
      const auto end = std::chrono::steady_clock::now();
      if (thread == 0) seconds[pass] = std::chrono::duration<double>(end - begin).count();
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(loop, thread);
  loop(0);
  for (std::thread& other : others) other.join();
}

void fma_steps(int64_t steps) {
  // x <- x * 0.5 + 1 tends to 2: no denormals, no overflow.
  const VecF32 half = VecF32{} + half_source;
  const VecF32 one = VecF32{} + one_source;
  VecF32 chains[kChains];
  for (int64_t i = 0; i < kChains; ++i) chains[i] = one + one_source * static_cast<float>(i);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 32
    for (int64_t i = 0; i < kChains; ++i) chains[i] = chains[i] * half + one;
  }
  VecF32 sum = chains[0];
  for (int64_t i = 1; i < kChains; ++i) sum += chains[i];
  float_sink = sum[0];
}

// Reads `streams` sub-ranges of [data, data + bytes) side by side.
template <int64_t streams>
uint32_t read_streams(const char* data, int64_t bytes, int64_t prefetch) {
  constexpr int64_t kPerStream = kAccumulators / streams;
  constexpr int64_t kStreamStep = kPerStream * kVectorBytes;
  VecU32 sums[kAccumulators] = {};
  const int64_t stream_bytes = bytes / streams / kStreamStep * kStreamStep;
  for (int64_t at = 0; at < stream_bytes; at += kStreamStep) {
#pragma GCC unroll 8
    for (int64_t stream = 0; stream < streams; ++stream) {
      const char* base = data + stream * stream_bytes + at;
      if (prefetch > 0) {
#pragma GCC unroll 8
        for (int64_t line = 0; line < kStreamStep; line += kCacheLine) {
          __builtin_prefetch(base + prefetch + line);
        }
      }
#pragma GCC unroll 8
      for (int64_t i = 0; i < kPerStream; ++i) {
        const char* from = base + i * kVectorBytes;
        sums[stream * kPerStream + i] ^= *reinterpret_cast<const UnalignedU32*>(from);
      }
    }
  }
  for (int64_t i = 1; i < kAccumulators; ++i) sums[0] ^= sums[i];
  uint32_t folded = sums[0][0] ^ sums[0][kLanes - 1];
  for (int64_t at = streams * stream_bytes; at + 4 <= bytes; at += 4) {
    uint32_t word;
    std::memcpy(&word, data + at, sizeof(word));
    folded ^= word;
  }
  return folded;
}

}  // namespace

extern "C" {

// Says whether this CPU can run code compiled for the named ISA. Only called in the
// baseline build.
int roofline_supports(const char* isa) {
#if defined(__x86_64__)
  if (std::strcmp(isa, "avx512") == 0) return __builtin_cpu_supports("avx512f");
  if (std::strcmp(isa, "avx2") == 0) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
#elif defined(__aarch64__)
  if (std::strcmp(isa, "neon") == 0) return 1;
#endif
  return std::strcmp(isa, "generic") == 0;
}

// Floating point operations of one step of one thread.
int64_t roofline_flops_per_step() { return 2 * kChains * kLanes; }

void roofline_fma(int threads, int passes, int64_t steps, double* seconds) {
  time_passes(threads, passes, seconds, [=](int) { fma_steps(steps); });
}

// Reads num_ranges ranges; each thread reads its own contiguous share of each range.
void roofline_read(int threads, int passes, int streams, int64_t prefetch,
                   const void* const* ranges, const int64_t* range_bytes, int num_ranges,
                   double* seconds) {
  time_passes(threads, passes, seconds, [=](int thread) {
    uint32_t folded = 0;
    for (int range = 0; range < num_ranges; ++range) {
      const int64_t share = range_bytes[range] / threads / kStep * kStep;
      const char* data = static_cast<const char*>(ranges[range]) + thread * share;
      const bool last = thread == threads - 1;
      const int64_t bytes = last ? range_bytes[range] - thread * share : share;
      folded ^= streams == 1   ? read_streams<1>(data, bytes, prefetch)
                : streams == 2 ? read_streams<2>(data, bytes, prefetch)
                               : read_streams<4>(data, bytes, prefetch);
    }
    integer_sink = folded;
  });
}

}  // extern "C"
