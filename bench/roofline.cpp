// SPDX-License-Identifier: MIT
// Measures the limits of this machine: rates of the products and memory read rate.
// roofline.py compiles this file once per ISA (flags select it) and loads it by ctypes.
//
// Products: kChains independent accumulators in registers, each one instruction per step;
// no memory operand. float32 and float64: fused multiply-add. 2 instructions a cycle at a
// latency of 4 or 5 need 8 to 10 chains; x86 before AVX-512 has 16 vector registers,
// AVX-512 and arm64 have 32. bfloat16: VDPBF16PS, 2 products a lane; BFMMLA on arm64, 4 a lane;
// or TDPBF16PS on AMX, 16 x 16 x 32 products: 4 of the 8 tiles accumulate, a latency of 52 at
// one each 16 cycles.
// Read: every vector of the given ranges is loaded once per pass and folded into one of
// 8 accumulators by exclusive or (latency 1), so that only the loads can limit.
// Threads meet at a barrier before and after each pass; the calling thread takes the time.

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

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
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t kChains = 24;
#else
constexpr int64_t kChains = 12;
#endif
constexpr int64_t kAccumulators = 8;
constexpr int64_t kStep = kAccumulators * kVectorBytes;
constexpr int64_t kCacheLine = 64;
constexpr int64_t kNear = 1024;  // how far ahead lines go on from L2 into L1
constexpr int kIntoL1 = 3, kIntoL2 = 2;

typedef float VecF32 __attribute__((vector_size(kVectorBytes)));
typedef double VecF64 __attribute__((vector_size(kVectorBytes)));
typedef uint32_t VecU32 __attribute__((vector_size(kVectorBytes)));
typedef uint32_t UnalignedU32 __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));

// Volatile: the compiler must not know what goes in, nor drop what comes out. (With known
// numbers it removes the chain that starts at its fixed point.)
volatile float half_source = 0.5F;
volatile float one_source = 1.0F;
volatile double float_sink;
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

// One rate to measure: what roofline.py calls it, the work of a step, the step.
struct Products {
  const char* element;
  int64_t flops_per_step;
  void (*run)(int64_t steps);
};

template <typename Vec, typename Element>
void fma_steps(int64_t steps) {
  // x <- x * 0.5 + 1 tends to 2: no denormals, no overflow.
  const Vec half = Vec{} + static_cast<Element>(half_source);
  const Vec one = Vec{} + static_cast<Element>(one_source);
  Vec chains[kChains];
  for (int64_t i = 0; i < kChains; ++i) chains[i] = one * static_cast<Element>(i + 1);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 32
    for (int64_t i = 0; i < kChains; ++i) chains[i] = chains[i] * half + one;
  }
  Vec sum = chains[0];
  for (int64_t i = 1; i < kChains; ++i) sum += chains[i];
  float_sink = sum[0];
}

#if defined(__AMX_BF16__)

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileRowBytes = 64;
constexpr int64_t kTileProducts = 4 * kTileRows * 16 * 32;

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

void bfloat16_steps(int64_t steps) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = kTileRowBytes;
    config.rows[tile] = kTileRows;
  }
  alignas(64) uint16_t values[kTileRows * 32];
  // Every other product is negative, so that the sums stay small.
  for (int i = 0; i < kTileRows * 32; ++i) values[i] = i % 2 == 0 ? 0x3F80 : 0xBF00;
  alignas(64) float sums[kTileRows * 16];
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, values, kTileRowBytes);
  _tile_loadd(5, values, kTileRowBytes);
  _tile_loadd(6, values, kTileRowBytes);
  _tile_loadd(7, values, kTileRowBytes);
  for (int64_t step = 0; step < steps; ++step) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, kTileRowBytes);
  _tile_release();
  float_sink = sums[0];
}

#elif defined(__AVX512BF16__)

constexpr int64_t kTileProducts = kChains * 32;

void bfloat16_steps(int64_t steps) {
  // 1 * 0.5 - 1 * 0.5 in every lane: the sums stay as they are.
  const auto ones = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3F803F80));
  const auto halves = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3F00BF00));
  __m512 chains[kChains];
  for (int64_t i = 0; i < kChains; ++i) chains[i] = _mm512_set1_ps(one_source);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 32
    for (int64_t i = 0; i < kChains; ++i) chains[i] = _mm512_dpbf16_ps(chains[i], ones, halves);
  }
  __m512 sum = chains[0];
  for (int64_t i = 1; i < kChains; ++i) sum += chains[i];
  float_sink = sum[0];
}

#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)

constexpr int64_t kTileProducts = kChains * 16;

void bfloat16_steps(int64_t steps) {
  // Rows of 1 and columns of 1, 1, -1, -1: the sums stay as they are. The bits are volatile
  // because GCC 12 writes a constant of bfloat16 as one of float16.
  volatile uint64_t one_bits = 0x3F803F803F803F80;
  volatile uint64_t sign_bits = 0xBF80BF803F803F80;
  const bfloat16x8_t ones = vreinterpretq_bf16_u64(vdupq_n_u64(one_bits));
  const bfloat16x8_t signs = vreinterpretq_bf16_u64(vdupq_n_u64(sign_bits));
  float32x4_t chains[kChains];
  for (int64_t i = 0; i < kChains; ++i) chains[i] = vdupq_n_f32(one_source);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 32
    for (int64_t i = 0; i < kChains; ++i) chains[i] = vbfmmlaq_f32(chains[i], ones, signs);
  }
  float32x4_t sum = chains[0];
  for (int64_t i = 1; i < kChains; ++i) sum = vaddq_f32(sum, chains[i]);
  float_sink = vgetq_lane_f32(sum, 0);
}

#endif

constexpr Products kProducts[] = {
    {"float32", 2 * kChains * kVectorBytes / 4, fma_steps<VecF32, float>},
    {"float64", 2 * kChains * kVectorBytes / 8, fma_steps<VecF64, double>},
#if defined(__AMX_BF16__) || defined(__AVX512BF16__) || \
    defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    {"bfloat16", 2 * kTileProducts, bfloat16_steps},
#endif
};

const Products* find_products(const char* element) {
  for (const Products& products : kProducts) {
    if (std::strcmp(products.element, element) == 0) return &products;
  }
  return nullptr;
}

#if defined(__x86_64__)

// Bits of CPUID leaf 7: AMX-BF16 and AMX-TILE in EDX of subleaf 0, AVX512_BF16 in EAX of 1.
bool has_avx512_bf16() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 5 & 1U) != 0;
}

// The kernel gives tile registers to whoever asks, if the CPU and the kernel have them.
bool has_amx_bf16() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> 22 & 1U) != 0 &&
         (edx >> 24 & 1U) != 0 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

#endif

// Reads `streams` sub-ranges of [data, data + bytes) side by side, fetched into L2 `prefetch` bytes
// ahead (0: not at all).
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
          __builtin_prefetch(base + prefetch + line, 0, kIntoL2);
          __builtin_prefetch(base + kNear + line, 0, kIntoL1);
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
  uint32_t folded = sums[0][0] ^ sums[0][kVectorBytes / 4 - 1];
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
  if (std::strcmp(isa, "avx512_bf16") == 0) {
    return __builtin_cpu_supports("avx512f") && has_avx512_bf16();
  }
  if (std::strcmp(isa, "amx_bf16") == 0) {
    return __builtin_cpu_supports("avx512f") && has_amx_bf16();
  }
#elif defined(__aarch64__)
  constexpr unsigned long kBf16 = 1UL << 14;  // HWCAP2_BF16
  if (std::strcmp(isa, "neon") == 0) return 1;
  if (std::strcmp(isa, "neon_bf16") == 0) return (getauxval(AT_HWCAP2) & kBf16) != 0;
#endif
  return std::strcmp(isa, "generic") == 0;
}

// Floating point operations of one step of one thread, 0 if this build has no such products.
int64_t roofline_flops_per_step(const char* element) {
  const Products* products = find_products(element);
  return products == nullptr ? 0 : products->flops_per_step;
}

void roofline_products(const char* element, int threads, int passes, int64_t steps,
                       double* seconds) {
  const Products* products = find_products(element);
  time_passes(threads, passes, seconds, [=](int) { products->run(steps); });
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
