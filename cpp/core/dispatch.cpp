// SPDX-License-Identifier: MIT
#include "core/dispatch.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "core/cpu_features.h"

// CMake defines CPUATTN_HAS_<isa> as 1 for the rows of cmake/isa.cmake that were compiled.
#define CPUATTN_DECLARE(isa)       \
  namespace cpuattn::isa {         \
  extern const KernelTable kTable; \
  }
#ifdef CPUATTN_HAS_avx512
CPUATTN_DECLARE(avx512)
#define CPUATTN_TABLE_avx512 &avx512::kTable
#else
#define CPUATTN_TABLE_avx512 nullptr
#endif
#ifdef CPUATTN_HAS_avx2
CPUATTN_DECLARE(avx2)
#define CPUATTN_TABLE_avx2 &avx2::kTable
#else
#define CPUATTN_TABLE_avx2 nullptr
#endif
#ifdef CPUATTN_HAS_neon
CPUATTN_DECLARE(neon)
#define CPUATTN_TABLE_neon &neon::kTable
#else
#define CPUATTN_TABLE_neon nullptr
#endif
CPUATTN_DECLARE(scalar)

namespace cpuattn {
namespace {

constexpr uint32_t kNeedsAvx2 = kFeatureAvx2 | kFeatureFma | kFeatureYmmState;
constexpr uint32_t kNeedsAvx512 = kNeedsAvx2 | kFeatureAvx512f | kFeatureAvx512bw |
                                  kFeatureAvx512dq | kFeatureAvx512vl | kFeatureZmmState;

const IsaEntry kEntries[] = {
    {"avx512", kNeedsAvx512, CPUATTN_TABLE_avx512},
    {"avx2", kNeedsAvx2, CPUATTN_TABLE_avx2},
    {"neon", kFeatureNeon, CPUATTN_TABLE_neon},
    {"scalar", 0, &scalar::kTable},
};

std::atomic<const KernelTable*> active{nullptr};

const KernelTable* best_table() {
  for (const IsaEntry& entry : all_isas()) {
    if (usable(entry)) return entry.table;
  }
  return &scalar::kTable;
}

const KernelTable* named_table(const char* name, Error& error) {
  char names[128] = "";
  for (const IsaEntry& entry : all_isas()) {
    if (!usable(entry)) continue;
    if (std::strcmp(entry.name, name) == 0) return entry.table;
    const size_t used = std::strlen(names);
    std::snprintf(names + used, sizeof names - used, "%s%s", used > 0 ? ", " : "", entry.name);
  }
  fail(error, Error::Kind::kRuntime, "CPUATTN_ISA: must be one of %s on this machine; got %.64s",
       names, name);
  return nullptr;
}

}  // namespace

IsaList all_isas() { return {std::begin(kEntries), std::end(kEntries)}; }

bool usable(const IsaEntry& entry) {
  static const uint32_t features = cpu_features();
  return entry.table != nullptr && (entry.required & ~features) == 0;
}

const KernelTable* active_table(Error& error) {
  const KernelTable* table = active.load(std::memory_order_acquire);
  if (table != nullptr) return table;
  const char* name = std::getenv("CPUATTN_ISA");
  table = name != nullptr && *name != '\0' ? named_table(name, error) : best_table();
  if (table != nullptr) active.store(table, std::memory_order_release);
  return table;
}

bool force_isa(const char* name, Error& error) {
  const KernelTable* table = nullptr;
  if (name != nullptr) {
    table = named_table(name, error);
    if (table == nullptr) return false;
  }
  active.store(table, std::memory_order_release);
  return true;
}

}  // namespace cpuattn
