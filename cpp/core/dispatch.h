// SPDX-License-Identifier: MIT
// One table lookup: which compiled ISA runs.
#pragma once

#include <cstdint>

#include "core/error.h"
#include "kernels/work_item.h"

namespace cpuattn {

struct IsaEntry {
  const char* name;
  uint32_t required;         // CpuFeature bits
  const KernelTable* table;  // nullptr: not compiled
};

// Every ISA that the project knows, best first.
struct IsaList {
  const IsaEntry* begin_;
  const IsaEntry* end_;
  const IsaEntry* begin() const { return begin_; }
  const IsaEntry* end() const { return end_; }
};
IsaList all_isas();
bool usable(const IsaEntry& entry);

// The active table: the best usable one, or what CPUATTN_ISA or force_isa names. nullptr with an
// error when that name is unknown or unusable here.
const KernelTable* active_table(Error& error);

// Forces an ISA by name for this process; nullptr returns to the default choice.
bool force_isa(const char* name, Error& error);

}  // namespace cpuattn
