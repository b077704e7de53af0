// SPDX-License-Identifier: MIT
// Strided arrays of any dtype that end where memory ends.
#pragma once

#include <algorithm>
#include <memory>

#include "kernels/work_item.h"
#include "support.h"

namespace cpuattn {
namespace {

// (tokens, heads, columns) elements of one dtype at any steps.
class Volume {
 public:
  enum Shared : unsigned { kToken = 1, kHead = 2, kColumn = 4 };  // axes of step 0

  Volume() = default;
  Volume(Random& random, int64_t tokens, int64_t heads, int64_t columns, DType dtype, bool strided,
         bool unaligned, unsigned shared)
      : dtype_(dtype) {
    const int64_t item_bytes = item_size(dtype);
    const int64_t size[3] = {tokens, heads, columns};
    int order[3] = {2, 1, 0};  // innermost first
    int64_t gap = 0;
    if (strided) {
      std::swap(order[random.below(3)], order[random.below(3)]);
      gap = random.chance(30) ? 4096 : item_bytes * random.below(3);
    }
    int64_t low = 0;
    int64_t extent = item_bytes;
    int64_t step = item_bytes;
    for (const int axis : order) {
      if ((shared >> axis & 1) != 0) continue;
      const bool backward = strided && random.chance(20);
      step_[axis] = backward ? -step : step;
      const int64_t span = std::max<int64_t>(size[axis] - 1, 0) * step;
      extent += span;
      if (backward) low += span;
      step = std::max<int64_t>(size[axis], 1) * step + gap;
      if (gap == 4096) step = (step + 4095) / 4096 * 4096;
    }
    const bool empty = tokens * heads * columns == 0;
    extent += unaligned ? 1 : 0;
    memory_ = std::make_unique<GuardedArray>(empty ? 0 : extent);
    data_ = memory_->data() + (empty ? 0 : low);
  }

  char* at(int64_t token, int64_t head, int64_t column) const {
    return data_ + token * step_[0] + head * step_[1] + column * step_[2];
  }
  double number(int64_t token, int64_t head, int64_t column) const {
    return load_element<double>(at(token, head, column), dtype_);
  }
  void set(int64_t token, int64_t head, int64_t column, double x) const {
    store_element(at(token, head, column), dtype_, x);
  }
  bool given() const { return memory_ != nullptr; }
  RowPlane rows() const { return {data_, step_[0], step_[1], step_[2], dtype_}; }
  KvPlane keys() const { return {data_, step_[0], step_[2], dtype_}; }
  HeadList heads() const { return {data_, step_[1], dtype_}; }

 private:
  std::unique_ptr<GuardedArray> memory_;
  char* data_ = nullptr;
  DType dtype_ = DType::kFloat32;
  int64_t step_[3] = {0, 0, 0};
};

}  // namespace
}  // namespace cpuattn
