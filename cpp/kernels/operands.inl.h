// SPDX-License-Identifier: MIT
// What every form of the two products shares: how ranges are cut, and what an operand is made of.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

// Calls body(first, Count<n>) with the one n in 1..kMax that equals count (none when count is 0).
template <int kMax, class Body>
CPUATTN_INLINE void with_count(int64_t first, int count, Body body) {
  if constexpr (kMax > 0) {
    if (count == kMax) {
      body(first, Count<kMax>{});
    } else {
      with_count<kMax - 1>(first, count, body);
    }
  }
}

// Covers [begin, end) by groups of kGroup and one smaller rest: body(first, Count<size>).
template <int kGroup, class Body>
CPUATTN_INLINE void for_groups(int64_t begin, int64_t end, Body body) {
  for (; begin + kGroup <= end; begin += kGroup) body(begin, Count<kGroup>{});
  with_count<kGroup - 1>(begin, static_cast<int>(end - begin), body);
}

// A strided operand: unit (m, k) lies at data[m * row_step + k * step].
struct StridedOperand {
  const Unit* data;
  int64_t row_step;
  int64_t step;
};

// A number may be the sum of several terms, each in a plane of its own: plane p of the operands
// lies p * a and p * b units further. Products of planes i and j with i + j < count are summed.
struct Planes {
  int count;
  int64_t a, b;
};

// Work that a product on a matrix unit does for the vector unit on the way: called some times with
// that number of times.
struct Nothing {
  void operator()(int64_t) const {}
};
// How much of `count`, in whole units, each of so many steps takes.
CPUATTN_INLINE int64_t share_of(int64_t count, int64_t steps) {
  return ((count + steps - 1) / steps + kDepth - 1) / kDepth * kDepth;
}

// Rows that are read later, fetched bit by bit while a product runs; columns == 0 fetches nothing.
// The products read keys and values by scalars, too slowly for the hardware to run ahead of them.
struct Ahead {
  const Unit* rows;
  int64_t stride;
  int64_t columns;
};

CPUATTN_INLINE void fetch_rows(const Ahead& ahead, int64_t begin, int64_t end) {
  if (ahead.columns == 0) return;
  for (int64_t row = begin; row < end; ++row) {
    const Unit* p = ahead.rows + row * ahead.stride;
    for (int64_t c = 0; c < ahead.columns; c += 16) prefetch_l2(p + c);
  }
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
