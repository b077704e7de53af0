// SPDX-License-Identifier: MIT
#include "core/workspace.h"

#include <cstddef>
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
    data = static_cast<char*>(
        ::operator new(static_cast<std::size_t>(bytes), kAlignment, std::nothrow));
    if (data != nullptr) size = bytes;
    return data;
  }
};

thread_local Block blocks[2];

}  // namespace

char* workspace(Region region, int64_t bytes) {
  return blocks[static_cast<int>(region)].at_least(bytes > 64 ? bytes : 64);
}

}  // namespace cpuattn
