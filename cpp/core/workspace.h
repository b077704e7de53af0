// SPDX-License-Identifier: MIT
// Scratch memory of the calling thread: grown when needed, kept, reused. No allocation once warm.
#pragma once

#include <cstdint>

namespace cpuattn {

// What the memory is for: an item, or the call that a thread runs items of.
enum class Region { kItem, kCall };

// Holds the calling thread's memory of one region, to be ended by the same thread. Another one that
// begins meanwhile (a call out of a function of the caller's) finds memory of its own.
class Workspace {
 public:
  // At least `bytes` bytes, 64-byte aligned; data() is nullptr when memory is exhausted.
  Workspace(Region region, int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  char* data() const { return data_; }

 private:
  const Region region_;
  char* data_;
  int64_t size_;
};

}  // namespace cpuattn
