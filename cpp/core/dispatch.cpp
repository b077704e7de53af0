// SPDX-License-Identifier: MIT
#include "core/dispatch.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "core/cpu_features.h"

// CMake defines CPUATTN_HAS_<table> as 1 for the rows of cmake/isa.cmake that were compiled.
#if CPUATTN_DTYPE_float64
#define CPUATTN_FLOAT64(isa) &isa##_f64::kTable
#else
#define CPUATTN_FLOAT64(isa) nullptr
#endif
#define CPUATTN_DECLARE(table)     \
  namespace cpuattn::table {       \
  extern const KernelTable kTable; \
  }
#ifdef CPUATTN_HAS_avx512
CPUATTN_DECLARE(avx512)
CPUATTN_DECLARE(avx512_f64)
#define CPUATTN_TABLES_avx512 &avx512::kTable, CPUATTN_FLOAT64(avx512)
#else
#define CPUATTN_TABLES_avx512 nullptr, nullptr
#endif
#ifdef CPUATTN_HAS_avx512_bf16
CPUATTN_DECLARE(avx512_bf16)
#define CPUATTN_TABLES_avx512_bf16 CPUATTN_TABLES_avx512, &avx512_bf16::kTable
#else
#define CPUATTN_TABLES_avx512_bf16 nullptr, nullptr, nullptr
#endif
#ifdef CPUATTN_HAS_amx_bf16
CPUATTN_DECLARE(amx_bf16)
#define CPUATTN_TABLES_amx_bf16 CPUATTN_TABLES_avx512, &amx_bf16::kTable
#else
#define CPUATTN_TABLES_amx_bf16 nullptr, nullptr, nullptr
#endif
#ifdef CPUATTN_HAS_avx2
CPUATTN_DECLARE(avx2)
CPUATTN_DECLARE(avx2_f64)
#define CPUATTN_TABLES_avx2 &avx2::kTable, CPUATTN_FLOAT64(avx2)
#else
#define CPUATTN_TABLES_avx2 nullptr, nullptr
#endif
#ifdef CPUATTN_HAS_neon
CPUATTN_DECLARE(neon)
CPUATTN_DECLARE(neon_f64)
#define CPUATTN_TABLES_neon &neon::kTable, CPUATTN_FLOAT64(neon)
#else
#define CPUATTN_TABLES_neon nullptr, nullptr
#endif
#ifdef CPUATTN_HAS_neon_bf16
CPUATTN_DECLARE(neon_bf16)
#define CPUATTN_TABLES_neon_bf16 CPUATTN_TABLES_neon, &neon_bf16::kTable
#else
#define CPUATTN_TABLES_neon_bf16 nullptr, nullptr, nullptr
#endif
#ifdef CPUATTN_HAS_simd128
CPUATTN_DECLARE(simd128)
CPUATTN_DECLARE(simd128_f64)
#define CPUATTN_TABLES_simd128 &simd128::kTable, CPUATTN_FLOAT64(simd128)
#else
#define CPUATTN_TABLES_simd128 nullptr, nullptr
#endif
CPUATTN_DECLARE(scalar)
CPUATTN_DECLARE(scalar_f64)

namespace cpuattn {
namespace {

constexpr uint32_t kNeedsAvx2 = kFeatureAvx2 | kFeatureFma | kFeatureF16c | kFeatureYmmState;
constexpr uint32_t kNeedsAvx512 = kNeedsAvx2 | kFeatureAvx512f | kFeatureAvx512bw |
                                  kFeatureAvx512dq | kFeatureAvx512vl | kFeatureZmmState;

// The vector side of the AMX kernels converts by AVX512_BF16.
constexpr uint32_t kNeedsAmx =
    kFeatureAvx512Bf16 | kFeatureAmxTile | kFeatureAmxBf16 | kFeatureTileState;

const Isa kIsas[] = {
    {"amx_bf16", kNeedsAvx512 | kNeedsAmx, 0, CPUATTN_TABLES_amx_bf16},
    // VDPBF16PS does twice the products of FMA on AMD, and half of them on Intel.
    {"avx512_bf16", kNeedsAvx512 | kFeatureAvx512Bf16, kFeatureAmd, CPUATTN_TABLES_avx512_bf16},
    {"avx512", kNeedsAvx512, 0, CPUATTN_TABLES_avx512, nullptr},
    {"avx2", kNeedsAvx2, 0, CPUATTN_TABLES_avx2, nullptr},
    {"neon_bf16", kFeatureNeon | kFeatureBf16, 0, CPUATTN_TABLES_neon_bf16},
    {"neon", kFeatureNeon, 0, CPUATTN_TABLES_neon, nullptr},
    {"simd128", 0, 0, CPUATTN_TABLES_simd128, nullptr},
    {"scalar", 0, 0, &scalar::kTable, CPUATTN_FLOAT64(scalar), nullptr},
};

std::atomic<const Isa*> active{nullptr};

bool has_features(uint32_t bits) {
  static const uint32_t features = cpu_features();
  return (bits & ~features) == 0;
}

const Isa* best_isa() {
  for (const Isa& isa : all_isas()) {
    if (usable(isa) && has_features(isa.preferred)) return &isa;
  }
  return std::end(kIsas) - 1;
}

const Isa* named_isa(const char* name, Error& error) {
  char names[128] = "";
  for (const Isa& isa : all_isas()) {
    if (!usable(isa)) continue;
    if (std::strcmp(isa.name, name) == 0) return &isa;
    const size_t used = std::strlen(names);
    std::snprintf(names + used, sizeof names - used, "%s%s", used > 0 ? ", " : "", isa.name);
  }
  fail(error, Error::Kind::kRuntime, "CPUATTN_ISA: must be one of %s on this machine; got %.64s",
       names, name);
  return nullptr;
}

}  // namespace

IsaList all_isas() { return {std::begin(kIsas), std::end(kIsas)}; }

bool usable(const Isa& isa) { return isa.float32 != nullptr && has_features(isa.required); }

const Isa* active_isa(Error& error) {
  const Isa* isa = active.load(std::memory_order_acquire);
  if (isa != nullptr) return isa;
  const char* name = std::getenv("CPUATTN_ISA");
  isa = name != nullptr && *name != '\0' ? named_isa(name, error) : best_isa();
  if (isa != nullptr) active.store(isa, std::memory_order_release);
  return isa;
}

bool force_isa(const char* name, Error& error) {
  const Isa* isa = nullptr;
  if (name != nullptr) {
    isa = named_isa(name, error);
    if (isa == nullptr) return false;
  }
  active.store(isa, std::memory_order_release);
  return true;
}

}  // namespace cpuattn
