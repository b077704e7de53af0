// SPDX-License-Identifier: MIT
// Runs a test that was compiled for one ISA, where the CPU has that ISA. Compiled without ISA
// flags.
#include <cstdio>
#include <cstring>

#include "check.h"
#include "core/dispatch.h"
#include "isa_test.h"

int main() {
  for (const cpuattn::Isa& isa : cpuattn::all_isas()) {
    if (std::strcmp(isa.name, cpuattn::kNeededIsa) == 0 && cpuattn::usable(isa)) {
      return cpuattn::run_isa_tests();
    }
  }
  std::printf("skipped: this CPU or operating system lacks %s\n", cpuattn::kNeededIsa);
  std::printf("0 passed, 0 failed\n");
  return cpuattn::kSkipped;
}
