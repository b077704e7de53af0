// SPDX-License-Identifier: MIT
// The innermost product of tile_gemm.inl.h for arm64 FEAT_BF16, by BFMMLA: 16 products an
// instruction.
//
//   C[2][2] += A[2][4] * B[2][4]^T      a square: two rows of A, two lanes of B, two units of depth
//
// Units lie as for every other ISA. Two units of two rows of A come together in a register while
// they are loaded, vectors of B are zipped, and the squares of C are sorted into vectors after the
// last unit.
//
// Register budget: 3 x 8 squares of C + 3 of A + 2 of B and 2 to load them = 31 of 32. It does 24
// BFMMLA for 14 loads, 8 zips and 3 inserts; the same products would be 48 BFDOT.
// BFMMLA rounds like a chain of two BFDOT (simd/pairs_neon.h).
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

// Units (0, 0), (0, 1), (1, 0), (1, 1) of an operand; with kUnits == 1, 0 instead of (., 1).
template <int kUnits>
CPUATTN_INLINE Operand square_of_units(const Unit* p, int64_t row_step, int64_t step) {
  const auto two = [](const Unit* q) CPUATTN_LAMBDA {
    uint32x2_t units;
    __builtin_memcpy(&units, q, sizeof units);
    return units;
  };
  uint32x4_t square;
  // Keys have adjacent units along the depth, values across it: known where this is inlined.
  if (kUnits == 2 && __builtin_constant_p(step) && step == 1) {
    square = vcombine_u32(two(p), two(p + row_step));
  } else if (kUnits == 2 && __builtin_constant_p(row_step) && row_step == 1) {
    const uint32x2_t none = vdup_n_u32(0);
    square = vzip1q_u32(vcombine_u32(two(p), none), vcombine_u32(two(p + step), none));
  } else {
    constexpr bool kBoth = kUnits == 2;
    const uint32_t bits[4] = {p[0].bits, kBoth ? p[step].bits : 0, p[row_step].bits,
                              kBoth ? p[row_step + step].bits : 0};
    square = vld1q_u32(bits);
  }
  return vreinterpretq_bf16_u32(square);
}

// c[m][n] += kUnits units, of rows 2 m and 2 m + 1 and of the lanes of vector n, low and high.
template <int kUnits, int M, int kPairs, int N>
CPUATTN_INLINE void add_squares(StridedOperand a, const Unit* b, int64_t b_stride,
                                Vec (&c)[kPairs][N][2]) {
  Operand rows[kPairs];
  for (int m = 0; m < M / 2; ++m) {
    rows[m] = square_of_units<kUnits>(a.data + 2 * m * a.row_step, a.row_step, a.step);
  }
  if constexpr (M % 2 != 0) {  // the last row twice
    rows[M / 2] = square_of_units<kUnits>(a.data + (M - 1) * a.row_step, 0, a.step);
  }
  for (int n = 0; n < N; ++n) {
    const uint32x4_t even = vreinterpretq_u32_bf16(load_units(b + n * kLanes));
    const uint32x4_t odd =
        vreinterpretq_u32_bf16(kUnits == 2 ? load_units(b + b_stride + n * kLanes) : no_units());
    const Operand low = vreinterpretq_bf16_u32(vzip1q_u32(even, odd));
    const Operand high = vreinterpretq_bf16_u32(vzip2q_u32(even, odd));
    for (int m = 0; m < kPairs; ++m) {
      c[m][n][0] = vbfmmlaq_f32(c[m][n][0], rows[m], low);
      c[m][n][1] = vbfmmlaq_f32(c[m][n][1], rows[m], high);
    }
  }
}

template <int M, int N>
CPUATTN_INLINE void accumulate(StridedOperand a, const Unit* b, int64_t b_stride, int64_t depth,
                               Vec (&acc)[M][N]) {
  constexpr int kPairs = (M + 1) / 2;
  Vec c[kPairs][N][2];
  for (int m = 0; m < kPairs; ++m) {
    for (int n = 0; n < N; ++n) c[m][n][0] = c[m][n][1] = zero();
  }
  for (; depth >= 2; depth -= 2, a.data += 2 * a.step, b += 2 * b_stride) {
    add_squares<2, M>(a, b, b_stride, c);
  }
  if (depth > 0) add_squares<1, M>(a, b, b_stride, c);
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      const float64x2_t low = vreinterpretq_f64_f32(c[m / 2][n][0]);
      const float64x2_t high = vreinterpretq_f64_f32(c[m / 2][n][1]);
      acc[m][n] = vreinterpretq_f32_f64(m % 2 == 0 ? vzip1q_f64(low, high) : vzip2q_f64(low, high));
    }
  }
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
