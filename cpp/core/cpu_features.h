// SPDX-License-Identifier: MIT
// What this CPU and its operating system allow, as a set of bits.
#pragma once

#include <cstdint>

namespace cpuattn {

enum CpuFeature : uint32_t {
  kFeatureAvx2 = 1u << 0,
  kFeatureFma = 1u << 1,
  kFeatureAvx512f = 1u << 2,
  kFeatureAvx512bw = 1u << 3,
  kFeatureAvx512dq = 1u << 4,
  kFeatureAvx512vl = 1u << 5,
  kFeatureYmmState = 1u << 6,  // the operating system saves ymm registers
  kFeatureZmmState = 1u << 7,  // ... and zmm and mask registers
  kFeatureNeon = 1u << 8,
  kFeatureF16c = 1u << 9,
  kFeatureBf16 = 1u << 10,  // of arm64: FEAT_BF16
  kFeatureAvx512Bf16 = 1u << 11,
  kFeatureAmxTile = 1u << 12,
  kFeatureAmxBf16 = 1u << 13,
  kFeatureTileState = 1u << 14,  // the operating system saves tiles and lets this process use them
  kFeatureAmd = 1u << 15,        // AMD or Hygon: vdpbf16ps runs at full rate
};

struct FeatureName {
  CpuFeature bit;
  const char* name;
};
constexpr FeatureName kFeatureNames[] = {
    {kFeatureAvx2, "avx2"},         {kFeatureFma, "fma"},
    {kFeatureAvx512f, "avx512f"},   {kFeatureAvx512bw, "avx512bw"},
    {kFeatureAvx512dq, "avx512dq"}, {kFeatureAvx512vl, "avx512vl"},
    {kFeatureYmmState, "os-ymm"},   {kFeatureZmmState, "os-zmm"},
    {kFeatureNeon, "neon"},         {kFeatureF16c, "f16c"},
    {kFeatureBf16, "bf16"},         {kFeatureAvx512Bf16, "avx512_bf16"},
    {kFeatureAmxTile, "amx-tile"},  {kFeatureAmxBf16, "amx-bf16"},
    {kFeatureTileState, "os-tile"}, {kFeatureAmd, "amd"},
};

uint32_t cpu_features();

}  // namespace cpuattn
