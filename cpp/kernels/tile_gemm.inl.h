// SPDX-License-Identifier: MIT
// The hot loop: one register-tiled product that serves both matrix products of attention.
//
//   C[m][lanes] = sum_k A[m][k] * B[k][lanes]          k counts units (simd/units_real.h)
//
//   for m0 in steps of micro_rows(N):           rows of C: keys (scores) or value columns (output)
//     for n0 in steps of kMicroVecs:            vectors of C: query rows sit in the lanes
//       for k:                                  head_dim (scores) or keys (output)
//         load N vectors of B, broadcast M units of A, M * N FMA into registers
//
// A is read where it lies (key or value rows, any row stride); B is contiguous in lanes. Every
// output is one chain of FMA in order of k, so its bits do not depend on the tile it falls in.
// The limit is two FMA a cycle; see the register budget in simd/vec_*.h.
#pragma once

#ifndef CPUATTN_MICRO_KERNEL
#define CPUATTN_MICRO_KERNEL "kernels/micro_kernel.inl.h"
#endif
#include CPUATTN_MICRO_KERNEL

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

// What the operands have to look like: see amx_gemm.inl.h for other answers.
constexpr int kUnitGroup = 1;              // units of a sum come in multiples of this
constexpr int kKeyGroup = 1;               // and keys
constexpr int kMaxPlanes = 1;              // terms of a number
constexpr bool kTransposesValues = false;  // values lie as (key, column)
constexpr bool kOverlaps = false;          // products leave the vector unit idle
constexpr Real kStaleMax = 0;              // by how much a score may exceed the maximum in use

// Longer dot products are summed in parts: one chain of thousands of additions loses digits.
constexpr int64_t kDepthBlock = 128;

// A single vector of rows needs twice the chains to cover the latency of FMA.
constexpr int micro_rows(int vecs) { return vecs == 1 ? 2 * kMicroRows : kMicroRows; }

// scores[key][lanes] = keys[key] . query[:][lanes], for N vectors of query rows and `head_dim`
// units. Where `visible` is given, bit `lane` of visible[key] says whether the score stands or is
// -inf.
template <int N, class Beside>
CPUATTN_NOINLINE void score_columns(const Unit* keys, int64_t key_stride, int64_t count,
                                    const Unit* query_t, int64_t head_dim, int64_t tile_rows,
                                    const uint64_t* visible, int first_lane, Real* scores,
                                    const Planes&, const Ahead& ahead, const Beside&) {
  for_groups<micro_rows(N)>(0, count, [&](int64_t key, auto size) CPUATTN_LAMBDA {
    constexpr int M = decltype(size)::value;
    Vec acc[M][N];
    Real* out = scores + key * tile_rows;
    fetch_rows(ahead, key, key + M);
    for (int64_t d = 0; d == 0 || d < head_dim; d += kDepthBlock) {
      const int64_t depth = head_dim - d < kDepthBlock ? head_dim - d : kDepthBlock;
      accumulate<M, N>({keys + key * key_stride + d, key_stride, 1}, query_t + d * tile_rows,
                       tile_rows, depth, acc);
      if (d > 0) {
        for (int m = 0; m < M; ++m) {
          for (int n = 0; n < N; ++n) {
            acc[m][n] = add(acc[m][n], load(out + m * tile_rows + n * kLanes));
          }
        }
      }
      if (visible != nullptr && d + depth == head_dim) {
        for (int m = 0; m < M; ++m) {
          const uint64_t bits = visible[key + m] >> first_lane;
          for (int n = 0; n < N; ++n) {
            const Mask keep = mask_from_bits(static_cast<uint32_t>(bits >> (n * kLanes)));
            acc[m][n] = select(keep, acc[m][n], broadcast(kNegInf));
          }
        }
      }
      for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) store(out + m * tile_rows + n * kLanes, acc[m][n]);
      }
    }
  });
}

// output[column][lanes] = output * rescale + sum_key values[key][column] * weights[key][lanes],
// `count` units of keys.
// Each block is summed from zero and added once: two-level summation keeps long rows accurate.
// rescale == nullptr overwrites: the first block of these rows.
template <int N, class Beside>
CPUATTN_NOINLINE void output_columns(const Unit* values, int64_t value_stride, int64_t count,
                                     const Unit* weights, int64_t head_dim_v, int64_t tile_rows,
                                     const Real* rescale, Real* output, const Planes&,
                                     const Ahead& ahead, const Beside&) {
  Vec factor[N];
  for (int n = 0; n < N; ++n) {
    factor[n] = rescale != nullptr ? load(rescale + n * kLanes) : zero();
  }
  for_groups<micro_rows(N)>(0, head_dim_v, [&](int64_t column, auto size) CPUATTN_LAMBDA {
    constexpr int M = decltype(size)::value;
    Vec acc[M][N];
    fetch_rows(ahead, column * count / head_dim_v, (column + M) * count / head_dim_v);
    accumulate<M, N>({values + column, 1, value_stride}, weights, tile_rows, count, acc);
    Real* out = output + column * tile_rows;
    for (int m = 0; m < M; ++m) {
      for (int n = 0; n < N; ++n) {
        Real* p = out + m * tile_rows + n * kLanes;
        store(p, rescale != nullptr ? fma(load(p), factor[n], acc[m][n]) : acc[m][n]);
      }
    }
  });
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
