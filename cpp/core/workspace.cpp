// SPDX-License-Identifier: MIT
#include "core/workspace.h"

#include <cstddef>
#include <cstdint>
#include <new>

namespace cpuattn {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Block {
  char* data = nullptr;
  int64_t size = 0;

  Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { release(); }

  void release() {
    if (data != nullptr) ::operator delete(data, kAlignment);
    data = nullptr;
    size = 0;
  }

  char* at_least(int64_t bytes) {
    if (bytes <= size) return data;
    release();
    if (static_cast<uint64_t>(bytes) > SIZE_MAX) return nullptr;  // 32-bit
    data = static_cast<char*>(
        ::operator new(static_cast<std::size_t>(bytes), kAlignment, std::nothrow));
    if (data != nullptr) size = bytes;
    return data;
  }
};

#ifdef __wasi__
Block blocks[2];  // one thread, and nothing to call destructors of its own objects
#else
thread_local Block blocks[2];
#endif

}  // namespace

char* workspace(Region region, int64_t bytes) {
  return blocks[static_cast<int>(region)].at_least(bytes > 64 ? bytes : 64);
}

}  // namespace cpuattn
