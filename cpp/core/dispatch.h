// SPDX-License-Identifier: MIT
// One lookup: which compiled ISA runs.
#pragma once

#include <cstdint>

#include "core/error.h"
#include "kernels/work_item.h"

namespace cpuattn {

// The kernels of an ISA by what they multiply.
struct Isa {
  const char* name;
  uint32_t required;            // CpuFeature bits
  uint32_t preferred;           // without these it can be forced, but another is chosen
  const KernelTable* float32;   // 16-bit floats become float32; nullptr: not compiled
  const KernelTable* float64;   // nullptr: not compiled
  const KernelTable* bfloat16;  // products of bfloat16, sums in float32; nullptr: none
};

// Every ISA that the project knows, best first.
struct IsaList {
  const Isa* begin_;
  const Isa* end_;
  const Isa* begin() const { return begin_; }
  const Isa* end() const { return end_; }
};
IsaList all_isas();
bool usable(const Isa& entry);

// The active ISA: the best usable one, or what CPUATTN_ISA or force_isa names. nullptr with an
// error when that name is unknown or unusable here.
const Isa* active_isa(Error& error);

// Forces an ISA by name for this process; nullptr returns to the default choice.
bool force_isa(const char* name, Error& error);

}  // namespace cpuattn
