// SPDX-License-Identifier: MIT
// AMX tiles and bfloat16 products on CPUs that have AVX-512 only: for tests of the AMX kernels, in
// builds with CPUATTN_EMULATE_AMX and no others.
#pragma once

namespace cpuattn {

// Takes SIGILL, which an AMX instruction raises on such a CPU: the instruction is decoded where it
// stands, done in software on tiles of the thread, and skipped. Any other SIGILL goes to the
// handler that was there before. What raises #UD or #GP on hardware too (a tile that is not
// configured, shapes that do not fit) is said on stderr and ends the process.
//
// Whoever takes SIGILL afterwards takes it from the emulator. Python's faulthandler does, so
// pytest needs `-p no:faulthandler`.
void install_amx_emulator();

}  // namespace cpuattn
