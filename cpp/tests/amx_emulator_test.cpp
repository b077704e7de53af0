// SPDX-License-Identifier: MIT
// Each AMX instruction against plain loops, in every addressing form. Where the CPU has AMX, the
// same loops are held against the CPU; what only an emulator says is left out then.
#include <immintrin.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "core/cpu_features.h"
#include "support.h"

namespace cpuattn {
namespace {

// --- The instructions ----------------------------------------------------------------------------

struct alignas(64) Config {
  uint8_t bytes[64] = {1};  // palette 1, no tile

  Config& tile(int tile, int rows, int colsb) {
    bytes[16 + 2 * tile] = static_cast<uint8_t>(colsb);
    bytes[48 + tile] = static_cast<uint8_t>(rows);
    return *this;
  }
  bool operator==(const Config& other) const { return std::memcmp(bytes, other.bytes, 64) == 0; }
};

// GCC before 13 does not say that tileloadd and ldtilecfg read more memory than a word.
void written() { asm volatile("" ::: "memory"); }

void configure(const Config& config) {
  written();
  _tile_loadconfig(&config);
}

Config configuration() {
  Config config;
  _tile_storeconfig(&config);
  written();
  return config;
}

template <int kTile>
void load(const void* source, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(source), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
void load_t1(const void* source, int64_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(source), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
void store(void* target, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(target), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

template <int kC, int kA, int kB>
void multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

template <class Function>
void for_all_tiles(Function function) {
  [&]<int... kTiles>(std::integer_sequence<int, kTiles...>) {
    (function.template operator()<kTiles>(), ...);
  }(std::make_integer_sequence<int, 8>{});
}

void fill(Random& random, void* target, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    static_cast<uint8_t*>(target)[i] = static_cast<uint8_t>(random.next());
  }
}

// --- Configuration, loads and stores -------------------------------------------------------------

void test_configuration(Report& report) {
  report.subject("ldtilecfg, sttilecfg and tilerelease");
  const Config none = [] {
    Config config;
    config.bytes[0] = 0;
    return config;
  }();
  report.expect(configuration() == none, "a new thread has a configuration");
  const Config config = Config{}.tile(0, 16, 64).tile(3, 1, 4).tile(7, 9, 40);
  configure(config);
  report.expect(configuration() == config, "sttilecfg stores something else");
  _tile_release();
  report.expect(configuration() == none, "configured after tilerelease");

  uint8_t ones[1024], stored[1024];
  std::memset(ones, 1, sizeof ones);
  const auto survives = [&](void (*reset)(const Config&)) {
    configure(config);
    load<0>(ones, 64);
    reset(config);
    std::memset(stored, 2, sizeof stored);
    store<0>(stored, 64);
    for (const uint8_t byte : stored) {
      if (byte != 0) return true;
    }
    return false;
  };
  report.expect(!survives([](const Config& c) { configure(c); }), "ldtilecfg keeps tile data");
  report.expect(!survives([](const Config& c) { _tile_release(), configure(c); }),
                "tilerelease keeps tile data");
  configure(none);
  report.expect(configuration() == none, "palette 0 does not release");
}

// Loads tile kTile from strided rows and stores it to strided rows, with memory that faults behind
// the last byte.
template <int kTile>
void check_rows(Report& report, Random& random, int rows, int colsb) {
  for (const int64_t source_stride : {int64_t{colsb}, int64_t{72}, int64_t{4096}, int64_t{-64}}) {
    for (const int64_t target_stride : {int64_t{64}, int64_t{-100}}) {
      const auto size = [&](int64_t stride) { return (rows - 1) * std::abs(stride) + colsb; };
      const auto first = [&](const GuardedArray& array, int64_t stride) {
        return array.data() + (stride < 0 ? (1 - rows) * stride : 0);
      };
      const GuardedArray source(size(source_stride)), target(size(target_stride));
      fill(random, source.data(), size(source_stride));
      std::vector<char> want(target.data(), target.end());
      for (int row = 0; row < rows; ++row) {
        std::memcpy(
            want.data() + (first(target, target_stride) - target.data()) + row * target_stride,
            first(source, source_stride) + row * source_stride, static_cast<size_t>(colsb));
      }
      configure(Config{}.tile(kTile, rows, colsb));
      if (target_stride > 0) {
        load<kTile>(first(source, source_stride), source_stride);
      } else {
        load_t1<kTile>(first(source, source_stride), source_stride);
      }
      store<kTile>(first(target, target_stride), target_stride);
      report.expect(std::memcmp(target.data(), want.data(), want.size()) == 0,
                    "tmm%d, %d rows of %d bytes, stride %d to %d", kTile, rows, colsb,
                    static_cast<int>(source_stride), static_cast<int>(target_stride));
    }
  }
}

void test_rows(Report& report) {
  report.subject("tileloadd, tileloaddt1, tilestored: shapes, strides and tiles");
  Random random(test_seed(1));
  for_all_tiles([&]<int kTile>() {
    for (const int rows : {1, 7, 16}) {
      for (const int colsb : {4, 36, 64}) check_rows<kTile>(report, random, rows, colsb);
    }
  });
}

void test_eight_tiles(Report& report) {
  report.subject("eight tiles at once, tilezero of one after the other");
  Random random(test_seed(2));
  Config config;
  for (int tile = 0; tile < 8; ++tile) config.tile(tile, 16, 64);
  uint8_t source[8][1024], target[1024];
  fill(random, source, sizeof source);
  configure(config);
  for_all_tiles([&]<int kTile>() { load<kTile>(source[kTile], 64); });
  for (int zeros = 0; zeros <= 8; ++zeros) {
    for_all_tiles([&]<int kTile>() {
      if (zeros == kTile + 1) {
        zero<kTile>();
        std::memset(source[kTile], 0, 1024);
      }
    });
    for_all_tiles([&]<int kTile>() {
      store<kTile>(target, 64);
      report.expect(std::memcmp(target, source[kTile], 1024) == 0, "tmm%d, %d zeroed", kTile,
                    zeros);
    });
  }
}

// --- Addressing ----------------------------------------------------------------------------------

struct Form {
  const char* name;
  int64_t displacement, scale;
  void (*load)(const void* base, int64_t index);  // to tmm0; base is in rax, index in rcx
};

// With rsp as the base, the signal frame lies below the rows.
// clang-format off
const Form kForms[] = {
    {"(rax,rcx)", 0, 1, [](const void* base, int64_t index) {
       asm volatile("tileloadd (%%rax,%%rcx), %%tmm0"
                    :: "a"(base), "c"(index) : "memory"); }},
    {"-128(rdx,rax,2)", -128, 2, [](const void* base, int64_t index) {
       asm volatile("mov %%rax, %%rdx; mov %%rcx, %%rax; tileloadd -128(%%rdx,%%rax,2), %%tmm0; mov %%rdx, %%rax"
                    :: "a"(base), "c"(index) : "rdx", "memory"); }},
    {"127(rcx,rbx,4)", 127, 4, [](const void* base, int64_t index) {
       asm volatile("mov %%rcx, %%rbx; mov %%rax, %%rcx; tileloadd 127(%%rcx,%%rbx,4), %%tmm0; mov %%rbx, %%rcx"
                    :: "a"(base), "c"(index) : "rbx", "memory"); }},
    {"128(rsi,rdi,8)", 128, 8, [](const void* base, int64_t index) {
       asm volatile("mov %%rax, %%rsi; mov %%rcx, %%rdi; tileloadd 128(%%rsi,%%rdi,8), %%tmm0"
                    :: "a"(base), "c"(index) : "rsi", "rdi", "memory"); }},
    {"(rdi,rsi)", 0, 1, [](const void* base, int64_t index) {
       asm volatile("mov %%rax, %%rdi; mov %%rcx, %%rsi; tileloadd (%%rdi,%%rsi), %%tmm0"
                    :: "a"(base), "c"(index) : "rsi", "rdi", "memory"); }},
    {"(rbx,rdx)", 0, 1, [](const void* base, int64_t index) {
       asm volatile("mov %%rax, %%rbx; mov %%rcx, %%rdx; tileloadd (%%rbx,%%rdx), %%tmm0"
                    :: "a"(base), "c"(index) : "rbx", "rdx", "memory"); }},
    {"-5000(r8,r9)", -5000, 1, [](const void* base, int64_t index) {
       asm volatile("mov %%rax, %%r8; mov %%rcx, %%r9; tileloadd -5000(%%r8,%%r9), %%tmm0"
                    :: "a"(base), "c"(index) : "r8", "r9", "memory"); }},
    {"(r9,r8,8)", 0, 8, [](const void* base, int64_t index) {
       asm volatile("mov %%rax, %%r9; mov %%rcx, %%r8; tileloadd (%%r9,%%r8,8), %%tmm0"
                    :: "a"(base), "c"(index) : "r8", "r9", "memory"); }},
    {"4(r10,r11)", 4, 1, [](const void* base, int64_t index) {
       asm volatile("mov %%rax, %%r10; mov %%rcx, %%r11; tileloadd 4(%%r10,%%r11), %%tmm0"
                    :: "a"(base), "c"(index) : "r10", "r11", "memory"); }},
    {"(r11,r10,4)", 0, 4, [](const void* base, int64_t index) {
       asm volatile("mov %%rax, %%r11; mov %%rcx, %%r10; tileloadd (%%r11,%%r10,4), %%tmm0"
                    :: "a"(base), "c"(index) : "r10", "r11", "memory"); }},
    {"(r12,r13,2)", 0, 2, [](const void* base, int64_t index) {
       asm volatile("mov %%rax, %%r12; mov %%rcx, %%r13; tileloadd (%%r12,%%r13,2), %%tmm0"
                    :: "a"(base), "c"(index) : "r12", "r13", "memory"); }},
    {"(r13,r12,4)", 0, 4, [](const void* base, int64_t index) {
       asm volatile("mov %%rax, %%r13; mov %%rcx, %%r12; tileloadd (%%r13,%%r12,4), %%tmm0"
                    :: "a"(base), "c"(index) : "r12", "r13", "memory"); }},
    {"64(r15,r14)", 64, 1, [](const void* base, int64_t index) {
       asm volatile("mov %%rax, %%r15; mov %%rcx, %%r14; tileloadd 64(%%r15,%%r14), %%tmm0"
                    :: "a"(base), "c"(index) : "r14", "r15", "memory"); }},
    {"(r14,r15)", 0, 1, [](const void* base, int64_t index) {
       asm volatile("mov %%rax, %%r14; mov %%rcx, %%r15; tileloadd (%%r14,%%r15), %%tmm0"
                    :: "a"(base), "c"(index) : "r14", "r15", "memory"); }},
    {"(rbp,rcx)", 0, 1, [](const void* base, int64_t index) {
       asm volatile("mov %%rbp, %%r8; mov %%rax, %%rbp; tileloadd (%%rbp,%%rcx), %%tmm0; mov %%r8, %%rbp"
                    :: "a"(base), "c"(index) : "r8", "memory"); }},
    {"(rax,rbp,2)", 0, 2, [](const void* base, int64_t index) {
       asm volatile("mov %%rbp, %%r8; mov %%rcx, %%rbp; tileloadd (%%rax,%%rbp,2), %%tmm0; mov %%r8, %%rbp"
                    :: "a"(base), "c"(index) : "r8", "memory"); }},
    {"4096(rsp,rcx)", 4096, 1, [](const void* base, int64_t index) {
       asm volatile("mov %%rsp, %%r8; mov %%rax, %%rsp; tileloadd 4096(%%rsp,%%rcx), %%tmm0; mov %%r8, %%rsp"
                    :: "a"(base), "c"(index) : "r8", "memory"); }},
    {"(rax)", 0, 0, [](const void* base, int64_t index) {
       asm volatile("tileloadd (%%rax), %%tmm0"
                    :: "a"(base), "c"(index) : "memory"); }},
    {"cs cs (rax,rcx)", 0, 1, [](const void* base, int64_t index) {
       asm volatile(".byte 0x2e, 0x2e; tileloadd (%%rax,%%rcx), %%tmm0"
                    :: "a"(base), "c"(index) : "memory"); }},
};
// clang-format on

void test_addresses(Report& report) {
  report.subject("addresses of tileloadd");
  constexpr int64_t kSize = 1 << 17;
  Random random(test_seed(3));
  std::vector<uint8_t> memory(kSize);
  fill(random, memory.data(), kSize);
  const uint8_t* base = memory.data() + kSize / 2;
  for (const Form& form : kForms) {
    for (const int64_t index : {int64_t{64}, int64_t{-72}}) {
      uint8_t stored[16][64];
      configure(Config{}.tile(0, 16, 64));
      form.load(base, index);
      store<0>(stored, 64);
      bool same = true;
      for (int row = 0; row < 16; ++row) {
        same = same && std::memcmp(stored[row], base + form.displacement + row * index * form.scale,
                                   64) == 0;
      }
      report.expect(same, "%s with index %d", form.name, static_cast<int>(index));
    }
  }
}

void test_addresses_of_others(Report& report) {
  report.subject("addresses of ldtilecfg, sttilecfg and tilestored, and one without a base");
  static Config fixed = Config{}.tile(1, 2, 8);
  asm volatile("ldtilecfg %0" ::"m"(fixed) : "memory");
  report.expect(configuration() == fixed, "ldtilecfg at a fixed address");
  asm volatile(
      "ldtilecfg 2f(%%rip); jmp 3f; 2: .byte 1; .zero 15; .word 4; .zero 30; .byte 3; .zero 15; "
      "3:" ::
          : "memory");
  report.expect(configuration() == Config{}.tile(0, 3, 4), "ldtilecfg beside rip");

  Config configs[17];
  configs[2] = Config{}.tile(5, 6, 12);
  asm volatile("mov %0, %%r12; ldtilecfg 64(%%r12,%%rcx,4)" ::"a"(configs), "c"(int64_t{16})
               : "r12", "memory");
  report.expect(configuration() == configs[2], "ldtilecfg 64(r12,rcx,4)");
  asm volatile("mov %0, %%r13; sttilecfg (%%r13)" ::"a"(configs) : "r13", "memory");
  report.expect(configs[0] == configs[2], "sttilecfg (r13)");
  asm volatile("mov %0, %%r9; sttilecfg 1024(%%r9)" ::"a"(configs) : "r9", "memory");
  report.expect(configs[16] == configs[2], "sttilecfg 1024(r9)");

  Random random(test_seed(4));
  void* wanted = reinterpret_cast<void*>(0x20000000);
  void* page = mmap(wanted, 4096, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (!report.expect(page == wanted, "cannot map the page")) return;
  uint8_t rows[16][64];
  fill(random, page, 4096);
  configure(Config{}.tile(6, 16, 64));
  asm volatile("tileloadd 0x20000008(,%%rcx,8), %%tmm6" ::"c"(int64_t{16}) : "memory");
  asm volatile(
      "mov %0, %%r13; mov %1, %%r12; tilestored %%tmm6, -128(%%r13,%%r12,4)" ::"a"(rows[0] + 128),
      "c"(int64_t{16})
      : "r12", "r13", "memory");
  for (int row = 0; row < 16; ++row) {
    report.expect(std::memcmp(rows[row], static_cast<uint8_t*>(page) + 8 + row * 128, 64) == 0,
                  "row %d of 0x20000008(,rcx,8), stored to -128(r13,r12,4)", row);
  }
  munmap(page, 4096);
}

// --- Products ------------------------------------------------------------------------------------

struct Shape {
  int m, n, k;  // k counts pairs
};

struct Matrices {
  uint16_t a[16][32], b[16][32];  // rows of pairs; b: (k, n)
  float c[16][16];
};

float flushed(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }
float fma_flushed(float a, float b, float c) {
  return flushed(std::fma(flushed(a), flushed(b), flushed(c)));
}
float element(uint16_t bf16) { return number_of(static_cast<uint32_t>(bf16) << 16); }

// TDPBF16PS as the SDM words it.
float product(const Matrices& x, int m, int n, int pairs) {
  float even = 0.0f, odd = 0.0f;
  for (int k = 0; k < pairs; ++k) {
    even = fma_flushed(element(x.a[m][2 * k]), element(x.b[k][2 * n]), even);
    odd = fma_flushed(element(x.a[m][2 * k + 1]), element(x.b[k][2 * n + 1]), odd);
  }
  return flushed(flushed(x.c[m][n]) + flushed(even + odd));
}

template <int kC, int kA, int kB>
Matrices multiplied(const Matrices& x, const Shape& shape) {
  configure(Config{}
                .tile(kC, shape.m, 4 * shape.n)
                .tile(kA, shape.m, 4 * shape.k)
                .tile(kB, shape.k, 4 * shape.n));
  load<kA>(x.a, 64);
  load<kB>(x.b, 64);
  load<kC>(x.c, 64);
  multiply<kC, kA, kB>();
  Matrices stored;
  std::memset(stored.c, 0xff, sizeof stored.c);
  store<kC>(stored.c, 64);
  return stored;
}

// The first element, m * 16 + n, that is not what the loops say, or that should not be stored; -1:
// none.
int first_wrong(const Matrices& stored, const Matrices& x, const Shape& shape) {
  for (int i = 0; i < 256; ++i) {
    const int m = i / 16, n = i % 16;
    const bool inside = m < shape.m && n < shape.n;
    const float want = inside ? product(x, m, n, shape.k) : number_of(0xffffffffu);
    if (!same_number(stored.c[m][n], want)) return i;
  }
  return -1;
}

template <int kC, int kA, int kB>
void check_product(Report& report, const Matrices& x, const Shape& shape) {
  const Matrices stored = multiplied<kC, kA, kB>(x, shape);
  const int wrong = first_wrong(stored, x, shape);
  if (wrong < 0) {
    report.expect(true, "right");
    return;
  }
  const int m = wrong / 16, n = wrong % 16;
  report.expect(false, "(%d, %d, %d) in tmm%d, tmm%d, tmm%d: c[%d][%d] is %a, not %a", shape.m,
                shape.n, shape.k, kC, kA, kB, m, n, static_cast<double>(stored.c[m][n]),
                static_cast<double>(product(x, m, n, shape.k)));
}

uint16_t bf16_of(float x) { return static_cast<uint16_t>(bits_of(x) >> 16); }

void test_products(Report& report) {
  report.subject("tdpbf16ps");
  Random random(test_seed(5));
  Matrices x;
  for (auto* matrix : {&x.a, &x.b}) {
    for (auto& row : *matrix) {
      for (uint16_t& value : row) value = bf16_of(random.uniform(-2.0f, 2.0f));
    }
  }
  for (auto& row : x.c) {
    for (float& value : row) value = random.uniform(-2.0f, 2.0f);
  }
  for (const int m : {1, 7, 16}) {
    for (const int n : {1, 5, 16}) {
      for (const int k : {1, 3, 16}) {
        check_product<0, 1, 2>(report, x, {m, n, k});
        check_product<7, 3, 5>(report, x, {m, n, k});
        check_product<4, 6, 0>(report, x, {m, n, k});
        check_product<2, 7, 1>(report, x, {m, n, k});
      }
    }
  }
}

void test_special_numbers(Report& report) {
  report.subject("tdpbf16ps of denormals, infinities, NaN and any bits, in any rounding mode");
  Random random(test_seed(6));
  const auto number = [&] {
    const auto sign = static_cast<uint32_t>(random.below(2)) << 15;
    const auto fraction = static_cast<uint32_t>(random.below(128));
    if (random.chance(2)) return sign | 0x7f80u | (random.chance(30) ? fraction : 0u);
    if (random.chance(20)) return sign | (random.chance(80) ? fraction : 0u);
    // Products about the smallest normal numbers, sometimes about the largest.
    const int64_t exponent = random.chance(95) ? random.between(50, 70) : random.between(180, 200);
    return sign | static_cast<uint32_t>(exponent) << 7 | fraction;
  };
  const unsigned mxcsr = _mm_getcsr();
  for (int round = 0; round < 200; ++round) {
    Matrices x;
    for (auto* matrix : {&x.a, &x.b}) {
      for (auto& row : *matrix) {
        for (uint16_t& value : row) value = static_cast<uint16_t>(number());
      }
    }
    for (auto& row : x.c) {
      for (float& value : row) {
        const auto low = static_cast<uint32_t>(random.below(1 << 16));
        value = number_of(random.chance(50) ? low : (number() << 16 | low));
      }
    }
    const unsigned mode = mxcsr | static_cast<unsigned>(random.below(4)) << 13;
    const auto pairs = static_cast<int>(random.between(1, 16));
    _mm_setcsr(mode);
    const Matrices stored = multiplied<0, 1, 2>(x, {16, 16, pairs});
    const unsigned after = _mm_getcsr();
    _mm_setcsr(mxcsr);
    report.expect(after == mode, "mxcsr %x becomes %x", mode, after);
    const int wrong = first_wrong(stored, x, {16, 16, pairs});
    report.expect(wrong < 0, "round %d, rounding mode %x: element %d", round, mode >> 13, wrong);
  }
}

// c + a b of one row and one column, with the intrinsics.
float dot(float c, std::initializer_list<float> a, std::initializer_list<float> b) {
  const auto pairs = static_cast<int>(a.size() / 2);
  uint16_t row[32], column[16][2];
  for (int i = 0; i < 2 * pairs; ++i) {
    row[i] = bf16_of(a.begin()[i]);
    column[i / 2][i % 2] = bf16_of(b.begin()[i]);
  }
  configure(Config{}.tile(3, 1, 4).tile(1, 1, 4 * pairs).tile(6, pairs, 4));
  written();
  _tile_loadd(3, &c, 4);
  _tile_stream_loadd(1, row, 64);
  _tile_loadd(6, column, 4);
  _tile_dpbf16ps(3, 1, 6);
  _tile_stored(3, &c, 4);
  written();
  return c;
}

void test_order(Report& report) {
  report.subject("tdpbf16ps: order and rounding, worked out by hand");
  const auto expect = [&](const char* what, float got, float want) {
    report.expect(bits_of(got) == bits_of(want), "%s: %a, not %a", what, static_cast<double>(got),
                  static_cast<double>(want));
  };
  expect("3 * 5 + 2 * 7 + 1", dot(1, {3, 2}, {5, 7}), 30);
  expect("even + odd before c", dot(-0x1p24f, {0x1p24f, 1}, {1, 1}), 0);
  expect("even apart from odd", dot(0, {0x1p24f, 1, -0x1p24f, 1}, {1, 1, 1, 1}), 2);
  expect("in the order of k", dot(0, {0x1p24f, 0, 1, 0, -0x1p24f, 0}, {1, 1, 1, 1, 1, 1}), 0);
  expect("a product is not flushed before its sum",
         dot(0, {0x1.8p-126f, 0, 0x1p-70f, 0}, {1, 0, 0x1p-60f, 0}), 0x1.9p-126f);
  expect("a denormal sum is flushed", dot(0, {0x1.8p-126f, 0, -0x1p-126f, 0}, {1, 0, 1, 0}), 0);
  expect("a denormal factor is zero", dot(0, {0x1p-127f, 0}, {0x1p100f, 0}), 0);
  expect("a denormal c is zero", dot(0x1p-127f, {0x1p-126f, 0}, {1, 0}), 0x1p-126f);
  expect("ties to even", dot(1, {0x1p-24f, 0}, {1, 0}), 1);
  expect("infinity", dot(0, {FLT_MAX, FLT_MAX}, {2, 2}), HUGE_VALF);
  report.expect(std::isnan(dot(0, {HUGE_VALF, 0}, {0, 0})), "infinity * 0");
  report.expect(std::isnan(dot(HUGE_VALF, {HUGE_VALF, 0}, {-1, 0})), "infinity - infinity");
}

// --- Threads -------------------------------------------------------------------------------------

void test_threads(Report& report) {
  report.subject("every thread has its own tiles");
  configure(Config{}.tile(0, 16, 64));
  constexpr int kThreads = 4;
  std::atomic<int> waiting{kThreads};
  std::atomic<int> configured{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      if (configuration().bytes[0] != 0) ++configured;
      --waiting;
      while (waiting > 0) std::this_thread::yield();
      Matrices x;
      for (int i = 0; i < 512; ++i) {
        x.a[i / 32][i % 32] = x.b[i / 32][i % 32] = bf16_of(static_cast<float>(t + 1));
      }
      for (auto& row : x.c) std::fill(row, row + 16, static_cast<float>(t));
      const Shape shape{16 - t, 8 + t, 4 * (t + 1)};
      for (int i = 0; i < 500; ++i) {
        if (first_wrong(multiplied<0, 1, 2>(x, shape), x, shape) >= 0) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  report.expect(configured == 0, "%d new threads have a configuration", configured.load());
  report.expect(wrong == 0, "%d products are wrong", wrong.load());
  report.expect(configuration() == Config{}.tile(0, 16, 64), "threads changed the main thread");
}

// --- Faults --------------------------------------------------------------------------------------

constexpr int kForeignStatus = 42;
void on_foreign_signal(int, siginfo_t*, void*) { _exit(kForeignStatus); }

// Runs `body` in a child process; returns its wait status and what it wrote to stderr.
template <class Body>
std::pair<int, std::string> run_in_child(Body body) {
  int ends[2];
  if (pipe(ends) != 0) return {0, "no pipe"};
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    body();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[256];
  for (ssize_t size; (size = read(ends[0], buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(size));
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return {status, text};
}

void test_faults(Report& report) {
  report.subject("what hardware faults on ends the process, with a reason");
  const auto expect = [&](const char* want, const Config& config, auto body) {
    const auto [status, text] = run_in_child([&] { configure(config), body(); });
    report.expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "no abort; expected %s",
                  want);
    report.expect(text == std::string("AMX emulator: ") + want + "\n", "%s", text.c_str());
  };
  static uint8_t bytes[1024];
  Config none;
  none.bytes[0] = 0;
  const Config whole = Config{}.tile(0, 16, 64).tile(1, 16, 64).tile(2, 16, 64);
  const auto product = [] { multiply<0, 1, 2>(); };

  expect("tilezero tmm4 (0 rows x 0 bytes): no tile is configured", none, [] { zero<4>(); });
  expect("tilezero tmm4 (0 rows x 0 bytes): a tile is not configured", whole, [] { zero<4>(); });
  expect("tileloadd tmm3 (0 rows x 0 bytes): a tile is not configured", whole,
         [] { load<3>(bytes, 64); });
  expect("tileloaddt1 tmm3 (0 rows x 0 bytes): a tile is not configured", whole,
         [] { load_t1<3>(bytes, 64); });
  expect("tilestored tmm3 (0 rows x 0 bytes): no tile is configured", whole, [] {
    _tile_release();
    store<3>(bytes, 64);
  });
  expect("tileloadd tmm0 (16 rows x 62 bytes): the bytes of a row must be a multiple of 4",
         Config{}.tile(0, 16, 62), [] { load<0>(bytes, 64); });

  expect(
      "tdpbf16ps tmm0 (16 rows x 64 bytes), tmm1 (16 rows x 64 bytes), tmm2 (15 rows x 64 "
      "bytes): (m x 4n) += (m x 4k) (k x 4n) is needed",
      Config{whole}.tile(2, 15, 64), product);
  expect(
      "tdpbf16ps tmm0 (16 rows x 64 bytes), tmm1 (8 rows x 64 bytes), tmm2 (16 rows x 64 "
      "bytes): (m x 4n) += (m x 4k) (k x 4n) is needed",
      Config{whole}.tile(1, 8, 64), product);
  expect(
      "tdpbf16ps tmm0 (16 rows x 64 bytes), tmm1 (16 rows x 64 bytes), tmm2 (16 rows x 32 "
      "bytes): (m x 4n) += (m x 4k) (k x 4n) is needed",
      Config{whole}.tile(2, 16, 32), product);
  expect(
      "tdpbf16ps tmm0 (16 rows x 64 bytes), tmm1 (16 rows x 64 bytes), tmm1 (16 rows x 64 "
      "bytes): the tiles must differ",
      whole, [] { asm volatile(".byte 0xc4, 0xe2, 0x72, 0x5c, 0xc1"); });
  expect(
      "tdpbf16ps tmm0 (16 rows x 64 bytes), tmm1 (16 rows x 64 bytes), tmm5 (0 rows x 0 "
      "bytes): a tile is not configured",
      whole, [] { multiply<0, 1, 5>(); });

  const auto nothing = [] {};
  Config odd;
  odd.bytes[0] = 2;
  expect("ldtilecfg: the palette must be 0 or 1", odd, nothing);
  odd.bytes[0] = 1;
  odd.bytes[1] = 3;
  expect("ldtilecfg: start_row must be 0 (else not emulated)", odd, nothing);
  for (const int reserved : {2, 15, 32, 47, 56, 63}) {
    odd = whole;
    odd.bytes[reserved] = 1;
    expect("ldtilecfg: reserved bytes must be 0", odd, nothing);
  }
  expect("ldtilecfg tmm4 (17 rows x 64 bytes): at most 16 rows x 64 bytes",
         Config{whole}.tile(4, 17, 64), nothing);
  expect("ldtilecfg tmm4 (16 rows x 68 bytes): at most 16 rows x 64 bytes",
         Config{whole}.tile(4, 16, 68), nothing);
  expect("ldtilecfg tmm4 (0 rows x 64 bytes): rows and bytes: both 0 or neither",
         Config{whole}.tile(4, 0, 64), nothing);
}

void test_foreign_signals(Report& report) {
  report.subject("any other SIGILL reaches the handler that was there before");
  const auto expect = [&](const char* what, auto body) {
    const auto [status, text] = run_in_child(body);
    report.expect(WIFEXITED(status) && WEXITSTATUS(status) == kForeignStatus, "%s", what);
  };
  expect("ud2", [] { asm volatile("ud2"); });
  expect("raise", [] { raise(SIGILL); });
  expect("tdpbssd", [] { asm volatile(".byte 0xc4, 0xe2, 0x6b, 0x5e, 0xc1"); });
  expect("tmm8", [] { asm volatile(".byte 0xc4, 0x62, 0x7b, 0x49, 0xc0"); });
  expect("tilezero with VEX.vvvv", [] { asm volatile(".byte 0xc4, 0xe2, 0x73, 0x49, 0xc0"); });
  expect("tilezero with VEX.W", [] { asm volatile(".byte 0xc4, 0xe2, 0xfb, 0x49, 0xc0"); });
}

}  // namespace
}  // namespace cpuattn

int main() {
  struct sigaction action = {};
  action.sa_sigaction = cpuattn::on_foreign_signal;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
  constexpr uint32_t kNeeded =
      cpuattn::kFeatureAmxTile | cpuattn::kFeatureAmxBf16 | cpuattn::kFeatureTileState;
  if ((cpuattn::cpu_features() & kNeeded) != kNeeded) {
    std::printf("skipped: no AMX, and the emulator needs AVX-512\n0 passed, 0 failed\n");
    return cpuattn::kSkipped;
  }
  sigaction(SIGILL, nullptr, &action);
  const bool emulated = action.sa_sigaction != cpuattn::on_foreign_signal;

  cpuattn::Report report;
  cpuattn::test_configuration(report);
  cpuattn::test_rows(report);
  cpuattn::test_eight_tiles(report);
  cpuattn::test_addresses(report);
  cpuattn::test_addresses_of_others(report);
  cpuattn::test_products(report);
  cpuattn::test_special_numbers(report);
  cpuattn::test_order(report);
  cpuattn::test_threads(report);
  if (emulated) {
    cpuattn::test_faults(report);
    cpuattn::test_foreign_signals(report);
  }
  return report.finish();
}
