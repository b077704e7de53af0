// SPDX-License-Identifier: MIT
// What the two matrix products multiply, and its contract: here one number at a time, exactly.
//
// A product sums over head_dim or over keys. It takes kDepth elements of that dimension at a time,
// a Unit; an Operand is kLanes units. simd/pairs_*.h are the other units.
//
//   Unit, Operand, kDepth
//   kUnitType                      DType of an element
//   kFoldsScale                    whether the query is multiplied by the scores' factor when it is
//                                  packed; otherwise the softmax does it
//   load_units(p) load_units_first(p, n)     kLanes units; only the first n are touched, others 0
//   spread_unit(p) no_units()      one unit in every lane; 0
//   multiply_add(a, b, c)          c + the sum of a * b over the elements of each unit
//   join(v) join_rows(p, step)     kLanes units, as the bits of a Vec: kDepth vectors of numbers,
//   or
//                                  kDepth rows of elements, side by side
//   store_row_units(p, v)          one vector, its lanes adjacent
//   interleave(even, odd, out) in_order(v)   for pairs: see simd/pairs_avx512.h
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

using Unit = Real;
using Operand = Vec;
constexpr DType kUnitType = kRealType;
constexpr int kDepth = 1;
constexpr bool kFoldsScale = true;

CPUATTN_INLINE Operand load_units(const Unit* p) { return load(p); }
CPUATTN_INLINE Operand load_units_first(const Unit* p, int n) { return load_first(p, n); }
CPUATTN_INLINE Operand spread_unit(const Unit* p) { return broadcast(*p); }
CPUATTN_INLINE Operand no_units() { return zero(); }
CPUATTN_INLINE Vec multiply_add(Operand a, Operand b, Vec c) { return fma(a, b, c); }
CPUATTN_INLINE Vec join(const Vec (&v)[kDepth]) { return v[0]; }
CPUATTN_INLINE Vec join_rows(const char* p, int64_t) {
  return load(reinterpret_cast<const Real*>(p));
}
CPUATTN_INLINE void store_row_units(Unit* p, Vec v) { store(p, v); }
CPUATTN_INLINE void interleave(Operand, Operand, Operand (&)[2]) {}
CPUATTN_INLINE void in_order(Vec (&)[kDepth]) {}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
