// SPDX-License-Identifier: MIT
// CPUID and XGETBV by hand: compiled without any ISA flag, so it runs on every CPU of the family.
#include "core/cpu_features.h"

#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64)
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#define CPUATTN_X86 1
#endif

namespace cpuattn {

#ifdef CPUATTN_X86
namespace {

struct Registers {
  uint32_t eax, ebx, ecx, edx;
};

Registers cpuid(uint32_t leaf) {
  Registers r{};
#if defined(_MSC_VER) && !defined(__clang__)
  int out[4];
  __cpuidex(out, static_cast<int>(leaf), 0);
  r = {static_cast<uint32_t>(out[0]), static_cast<uint32_t>(out[1]), static_cast<uint32_t>(out[2]),
       static_cast<uint32_t>(out[3])};
#else
  __get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
  return r;
}

// Which register states the operating system saves (XCR0); 0 where XGETBV does not exist.
uint64_t saved_state(const Registers& leaf1) {
  if ((leaf1.ecx >> 27 & 1u) == 0) return 0;  // OSXSAVE
#if defined(_MSC_VER) && !defined(__clang__)
  return _xgetbv(0);
#else
  uint32_t eax, edx;
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return eax | static_cast<uint64_t>(edx) << 32;
#endif
}

}  // namespace

uint32_t cpu_features() {
  const Registers leaf1 = cpuid(1);
  const Registers leaf7 = cpuid(0).eax >= 7 ? cpuid(7) : Registers{};
  const uint64_t state = saved_state(leaf1);
  uint32_t features = 0;
  const auto set = [&](bool present, CpuFeature bit) {
    if (present) features |= bit;
  };
  set((leaf1.ecx >> 12 & 1u) != 0, kFeatureFma);
  set((leaf1.ecx >> 29 & 1u) != 0, kFeatureF16c);
  set((leaf7.ebx >> 5 & 1u) != 0, kFeatureAvx2);
  set((leaf7.ebx >> 16 & 1u) != 0, kFeatureAvx512f);
  set((leaf7.ebx >> 17 & 1u) != 0, kFeatureAvx512dq);
  set((leaf7.ebx >> 30 & 1u) != 0, kFeatureAvx512bw);
  set((leaf7.ebx >> 31 & 1u) != 0, kFeatureAvx512vl);
  set((state & 0x06) == 0x06, kFeatureYmmState);
  set((state & 0xe6) == 0xe6, kFeatureZmmState);
  return features;
}

#elif defined(__aarch64__) || defined(_M_ARM64)

uint32_t cpu_features() { return kFeatureNeon; }  // part of every arm64

#else

uint32_t cpu_features() { return 0; }

#endif

}  // namespace cpuattn
