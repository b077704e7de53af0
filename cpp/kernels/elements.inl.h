// SPDX-License-Identifier: MIT
// Vectors of array elements: any float dtype in, Real lanes to compute with, any float dtype out.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

CPUATTN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
CPUATTN_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
CPUATTN_INLINE int64_t whole_vectors(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// How adjacent elements of one dtype become lanes.
struct AsReal {
  static constexpr int64_t kSize = sizeof(Real);
  static CPUATTN_INLINE Vec whole(const char* p) { return load(reinterpret_cast<const Real*>(p)); }
  static CPUATTN_INLINE Vec first(const char* p, int n) {
    return load_first(reinterpret_cast<const Real*>(p), n);
  }
};
struct AsFloat16 {
  static constexpr int64_t kSize = 2;
  static CPUATTN_INLINE Vec whole(const char* p) { return widen_float16(load_half(p)); }
  static CPUATTN_INLINE Vec first(const char* p, int n) {
    return widen_float16(load_half_first(p, n));
  }
};
struct AsBFloat16 {
  static constexpr int64_t kSize = 2;
  static CPUATTN_INLINE Vec whole(const char* p) { return widen_bfloat16(load_half(p)); }
  static CPUATTN_INLINE Vec first(const char* p, int n) {
    return widen_bfloat16(load_half_first(p, n));
  }
};

// Calls body(As...{}) for the dtype of a caller's array. Only kernels of floats see 16-bit ones.
template <class Body>
CPUATTN_INLINE void with_elements(DType dtype, Body body) {
  if constexpr (!kDouble && is_built(DType::kFloat16)) {
    if (dtype == DType::kFloat16) return body(AsFloat16{});
  }
  if constexpr (!kDouble && is_built(DType::kBFloat16)) {
    if (dtype == DType::kBFloat16) return body(AsBFloat16{});
  }
  body(AsReal{});
}

// The first `count` of up to kLanes elements `step` bytes apart, or none where it is negative;
// lanes past them are 0.
CPUATTN_INLINE Vec load_elements(const char* p, DType dtype, int64_t step, int64_t count) {
  const int n = static_cast<int>(larger(smaller(count, kLanes), 0));
  if (step == item_size(dtype) && (dtype == kRealType || (!kDouble && is_half(dtype)))) {
    Vec v;
    with_elements(dtype,
                  [&](auto as) CPUATTN_LAMBDA { v = n == kLanes ? as.whole(p) : as.first(p, n); });
    return v;
  }
  Real t[kLanes] = {};
  for (int i = 0; i < n; ++i) t[i] = load_element<Real>(p + i * step, dtype);
  return load(t);
}

CPUATTN_INLINE void store_elements(char* p, DType dtype, int64_t step, int count, Vec v) {
  if (step == item_size(dtype)) {
    if (dtype == kRealType) {
      Real* out = reinterpret_cast<Real*>(p);
      return count == kLanes ? store(out, v) : store_first(out, count, v);
    }
    if (count == kLanes && is_half(dtype)) {
      return store_half(p, dtype == DType::kFloat16 ? narrow_float16(v) : narrow_bfloat16(v));
    }
  }
  Real t[kLanes];
  store(t, v);
  for (int i = 0; i < count; ++i) store_element(p + i * step, dtype, t[i]);
}

// Rows of a caller's array that fill one vector of lanes.
struct LaneRows {
  char* row[kLanes];
  int valid;  // lanes past it are 0, or not stored
  DType dtype;
  int64_t col_step;

  CPUATTN_INLINE bool is_square(int64_t count) const {
    return valid == kLanes && count >= kLanes && dtype == kRealType && col_step == sizeof(Real);
  }
  // The same of units: then a row of units is moved as a row of Real.
  CPUATTN_INLINE bool is_square_of_units(int64_t count) const {
    return valid == kLanes && count >= kLanes * kDepth && dtype == kUnitType &&
           col_step == item_size(kUnitType);
  }
};

// out[i] = column + i of the rows, lanes = rows. Columns past `count` are not read. Whatever is not
// a whole square of adjacent columns goes through one.
CPUATTN_INLINE void load_transposed(const LaneRows& rows, int64_t column, int64_t count,
                                    Vec (&out)[kLanes]) {
  if (rows.is_square(count)) return load_square(rows.row, column, out);
  Real square[kLanes][kLanes] = {};
  const char* square_rows[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    square_rows[i] = reinterpret_cast<const char*>(square[i]);
    if (i >= rows.valid) continue;
    const char* p = rows.row[i] + column * rows.col_step;
    store(square[i], load_elements(p, rows.dtype, rows.col_step, count));
  }
  load_square(square_rows, 0, out);
}

// Stores `count` columns of the rows; `finite` becomes NaN where a lane holds Inf or NaN.
CPUATTN_INLINE void store_transposed(const Vec (&block)[kLanes], const LaneRows& rows,
                                     int64_t column, int64_t count, Vec& finite) {
  if (rows.is_square(count)) {
    CPUATTN_UNROLL
    for (int i = 0; i < kLanes; ++i) finite = fma(block[i], zero(), finite);
    return store_square(block, rows.row, column);
  }
  Real square[kLanes][kLanes];
  char* square_rows[kLanes];
  for (int i = 0; i < kLanes; ++i) square_rows[i] = reinterpret_cast<char*>(square[i]);
  store_square(block, square_rows, 0);
  for (int i = 0; i < rows.valid; ++i) {
    const Vec row = load(square[i]);
    finite = fma(row, zero(), finite);
    store_elements(rows.row[i] + column * rows.col_step, rows.dtype, rows.col_step,
                   static_cast<int>(smaller(count, kLanes)), row);
  }
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
