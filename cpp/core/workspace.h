// SPDX-License-Identifier: MIT
// Scratch memory of the calling thread: grown when needed, kept, reused. No allocation once warm.
#pragma once

#include <cstdint>

namespace cpuattn {

// Two independent regions, so that a thread that runs items inside its own call keeps both.
enum class Region { kItem, kCall };

// At least `bytes` bytes, 64-byte aligned, valid until this thread asks for the same region again.
// nullptr when memory is exhausted.
char* workspace(Region region, int64_t bytes);

}  // namespace cpuattn
