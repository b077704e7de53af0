// SPDX-License-Identifier: MIT
// CPUID and XGETBV by hand: compiled without any ISA flag, so it runs on every CPU of the family.
#include "core/cpu_features.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#define CPUATTN_X86 1
#endif
#include <cstring>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__APPLE__) && defined(__aarch64__)
#include <sys/sysctl.h>
#endif

#ifdef CPUATTN_EMULATE_AMX
#include "tests/amx_emulator.h"
#endif

namespace cpuattn {

#ifdef CPUATTN_X86
namespace {

struct Registers {
  uint32_t eax, ebx, ecx, edx;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r{};
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

// Which register states the operating system saves (XCR0); 0 where XGETBV does not exist.
uint64_t saved_state(const Registers& leaf1) {
  if ((leaf1.ecx >> 27 & 1u) == 0) return 0;  // OSXSAVE
  uint32_t eax, edx;
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return eax | static_cast<uint64_t>(edx) << 32;
}

bool made_by_amd(const Registers& leaf0) {
  const uint32_t vendor[] = {leaf0.ebx, leaf0.edx, leaf0.ecx};
  return std::memcmp(vendor, "AuthenticAMD", sizeof vendor) == 0 ||
         std::memcmp(vendor, "HygonGenuine", sizeof vendor) == 0;
}

// Linux gives the 8 KiB of tiles to a process that asked for them, and from then on demands
// alternate signal stacks that hold them (Documentation/arch/x86/xstate.rst).
bool tiles_granted() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return true;
#endif
}

constexpr uint64_t kTileXcr0 = 3u << 17;  // tile configuration and tile data

}  // namespace

uint32_t cpu_features() {
  const Registers leaf0 = cpuid(0);
  const Registers leaf1 = cpuid(1);
  const Registers leaf7 = leaf0.eax >= 7 ? cpuid(7) : Registers{};
  const Registers leaf7_1 = leaf7.eax >= 1 ? cpuid(7, 1) : Registers{};
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
  set((leaf7_1.eax >> 5 & 1u) != 0, kFeatureAvx512Bf16);
  set((leaf7.edx >> 24 & 1u) != 0, kFeatureAmxTile);
  set((leaf7.edx >> 22 & 1u) != 0, kFeatureAmxBf16);
  set((state & 0x06) == 0x06, kFeatureYmmState);
  set((state & 0xe6) == 0xe6, kFeatureZmmState);
  const bool tiles_saved = (state & kTileXcr0) == kTileXcr0 && (features & kFeatureAmxTile) != 0;
  set(tiles_saved && tiles_granted(), kFeatureTileState);
  set(made_by_amd(leaf0), kFeatureAmd);
#ifdef CPUATTN_EMULATE_AMX
  constexpr uint32_t kEmulatorNeeds =
      kFeatureAvx512f | kFeatureAvx512bw | kFeatureAvx512dq | kFeatureAvx512vl | kFeatureZmmState;
  // Where tiles are saved AMX does not trap, and is not emulated.
  if (!tiles_saved && (features & kEmulatorNeeds) == kEmulatorNeeds) {
    install_amx_emulator();
    features |= kFeatureAmxTile | kFeatureAmxBf16 | kFeatureTileState;
  }
#endif
  return features;
}

#elif defined(__aarch64__)

namespace {

bool has_bf16() {
#if defined(__linux__)
  constexpr unsigned long kHwcap2Bf16 = 1u << 14;  // newer than the headers of some distributions
  return (getauxval(AT_HWCAP2) & kHwcap2Bf16) != 0;
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &value, &size, nullptr, 0) == 0 && value != 0;
#else
  return false;
#endif
}

}  // namespace

uint32_t cpu_features() {
  return kFeatureNeon | (has_bf16() ? kFeatureBf16 : 0u);  // NEON is part of every arm64
}

#else

uint32_t cpu_features() { return 0; }

#endif

}  // namespace cpuattn
