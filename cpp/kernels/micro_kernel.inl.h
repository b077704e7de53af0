// SPDX-License-Identifier: MIT
// The innermost product of tile_gemm.inl.h: M rows by N vectors, one unit of depth at a time.
// Another one is simd/squares_neon.h.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

// acc[m][n] = sum_k a(m, k) * b[k][n], k < depth; vector n of unit k lies at b + k * b_stride.
template <int M, int N>
CPUATTN_INLINE void accumulate(StridedOperand a, const Unit* b, int64_t b_stride, int64_t depth,
                               Vec (&acc)[M][N]) {
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) acc[m][n] = zero();
  }
  const Unit* __restrict a_k = a.data;
  const Unit* __restrict b_k = b;
  for (int64_t k = 0; k < depth; ++k, a_k += a.step, b_k += b_stride) {
    Operand b_vec[N];
    for (int n = 0; n < N; ++n) b_vec[n] = load_units(b_k + n * kLanes);
    for (int m = 0; m < M; ++m) {
      const Operand a_vec = spread_unit(a_k + m * a.row_step);
      for (int n = 0; n < N; ++n) acc[m][n] = multiply_add(a_vec, b_vec[n], acc[m][n]);
    }
  }
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
