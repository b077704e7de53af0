// SPDX-License-Identifier: MIT
#include "core/workspace.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace cpuattn {
namespace {

constexpr std::align_val_t kAlignment{64};

// What a thread keeps between two uses.
struct Block {
  char* data = nullptr;
  int64_t size = 0;

  Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { ::operator delete(data, kAlignment); }
};

#ifdef __wasi__
Block blocks[2];  // one thread, and nothing to call destructors of its own objects
#else
thread_local Block blocks[2];
#endif

char* allocate(int64_t bytes) {
  if (static_cast<uint64_t>(bytes) > SIZE_MAX) return nullptr;  // 32-bit
  return static_cast<char*>(
      ::operator new(static_cast<std::size_t>(bytes), kAlignment, std::nothrow));
}

}  // namespace

Workspace::Workspace(Region region, int64_t bytes) : region_(region) {
  Block& kept = blocks[static_cast<int>(region)];
  data_ = std::exchange(kept.data, nullptr);
  size_ = std::exchange(kept.size, 0);
  bytes = std::max<int64_t>(bytes, 64);
  if (bytes <= size_) return;
  ::operator delete(data_, kAlignment);
  data_ = allocate(bytes);
  size_ = data_ != nullptr ? bytes : 0;
}

Workspace::~Workspace() {
  Block& kept = blocks[static_cast<int>(region_)];
  if (kept.size < size_) {
    std::swap(kept.data, data_);
    std::swap(kept.size, size_);
  }
  ::operator delete(data_, kAlignment);
}

}  // namespace cpuattn
