// SPDX-License-Identifier: MIT
// The hot loop on AMX: both matrix products of attention in tiles of 16 x 16.
//
//   C[m][lanes] = sum_k A[m][k] * B[k][lanes]      k counts units, pairs of bfloat16
//
//   for m0 in steps of 32:                 rows of C: keys (scores) or value columns (output)
//     for n0 in steps of 32:               columns of C: query rows
//       for each pair of planes, k in steps of 16 units:
//         load 2 tiles of A and 2 of B, 4 tile products; meanwhile some work beside
//
// A is read row by row: keys where they lie, values transposed. B is what the other units take as
// well: a unit of head_dim, or of keys, of all query rows side by side.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

constexpr int kUnitGroup = kTileSide;     // head_dim and keys are padded to 32 elements
constexpr int kKeyGroup = kTileSide;      // keys are read sixteen at a time
constexpr int kMaxPlanes = 3;             // terms of a number
constexpr bool kOverlaps = true;          // the vector unit is idle meanwhile
constexpr bool kTransposesValues = true;  // values lie as (column, units of keys)
// Outputs are multiplied only when a maximum has grown by a factor of 2^8: tiles then accumulate in
// place. Weights are up to 2^8 instead of 1, which costs no digit.
constexpr Real kStaleMax = 8;

// The operands of M x N tiles of C: tile numbers 0 to 3 are C, 4 and 5 A, 6 and 7 B.
struct TileOperands {
  const Unit* a;
  int64_t a_stride;
  const Unit* b;
  int64_t b_stride;
  int64_t depth;
};

template <int M, int N, class Beside>
CPUATTN_INLINE void accumulate_tiles(const TileOperands& o, const Planes& planes, int64_t blocks,
                                     const Beside& beside) {
  constexpr int64_t kUnitBytes = sizeof(Unit);
  const auto sum_planes = [&](const Unit* a, const Unit* b) CPUATTN_LAMBDA {
    for (int64_t k = 0; k < o.depth; k += kTileSide) {
      const Unit* b_k = b + k * o.b_stride;
      tile_load<4>(a + k, o.a_stride * kUnitBytes);
      tile_load<6>(b_k, o.b_stride * kUnitBytes);
      tile_product<0, 4, 6>();
      if constexpr (N == 2) {
        tile_load<7>(b_k + kTileSide, o.b_stride * kUnitBytes);
        tile_product<1, 4, 7>();
      }
      if constexpr (M == 2) {
        tile_load<5>(a + kTileSide * o.a_stride + k, o.a_stride * kUnitBytes);
        tile_product<2, 5, 6>();
        if constexpr (N == 2) tile_product<3, 5, 7>();
      }
      beside(blocks * o.depth / kTileSide);
    }
  };
  for (int order = planes.count - 1; order >= 0; --order) {  // small terms first
    for (int i = 0; i <= order; ++i) sum_planes(o.a + i * planes.a, o.b + (order - i) * planes.b);
  }
}

// C of M x N tiles in memory, rows `stride` numbers apart.
template <int M, int N>
CPUATTN_INLINE void load_sums(const Real* p, int64_t stride) {
  const int64_t step = stride * static_cast<int64_t>(sizeof(Real));
  tile_load<0>(p, step);
  if constexpr (N == 2) tile_load<1>(p + kTileSide, step);
  if constexpr (M == 2) tile_load<2>(p + kTileSide * stride, step);
  if constexpr (M == 2 && N == 2) tile_load<3>(p + kTileSide * stride + kTileSide, step);
}
template <int M, int N>
CPUATTN_INLINE void store_sums(Real* p, int64_t stride) {
  const int64_t step = stride * static_cast<int64_t>(sizeof(Real));
  tile_store<0>(p, step);
  if constexpr (N == 2) tile_store<1>(p + kTileSide, step);
  if constexpr (M == 2) tile_store<2>(p + kTileSide * stride, step);
  if constexpr (M == 2 && N == 2) tile_store<3>(p + kTileSide * stride + kTileSide, step);
}
CPUATTN_INLINE void zero_sums() {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
}

// How many blocks for_tiles makes.
template <int N>
constexpr int64_t block_count(int64_t rows) {
  return (rows + 2 * kTileSide - 1) / (2 * kTileSide) * ((N + 1) / 2);
}

// Calls body(m, n, Count<M>, Count<N>) for blocks of up to 2 x 2 tiles over `rows` rows.
template <int N, class Body>
CPUATTN_INLINE void for_tiles(int64_t rows, Body body) {
  for_groups<2>(0, (rows + kTileSide - 1) / kTileSide, [&](int64_t m, auto m_size) CPUATTN_LAMBDA {
    for_groups<2>(0, N, [&](int64_t n, auto n_size) CPUATTN_LAMBDA {
      body(m * kTileSide, n * kTileSide, m_size, n_size);
    });
  });
}

// scores[key][lanes] = keys[key] . query[:][lanes], for N vectors of query rows and `head_dim`
// units. Where `visible` is given, bit `lane` of visible[key] says whether the score stands or is
// -inf. Up to 15 more keys are read, and as many more rows of scores written.
template <int N, class Beside>
CPUATTN_NOINLINE void score_columns(const Unit* keys, int64_t key_stride, int64_t count,
                                    const Unit* query_t, int64_t head_dim, int64_t tile_rows,
                                    const uint64_t* visible, int first_lane, Real* scores,
                                    const Planes& planes, const Ahead&, const Beside& beside) {
  for_tiles<N>(count, [&](int64_t m, int64_t n, auto m_size, auto n_size) CPUATTN_LAMBDA {
    constexpr int kRows = decltype(m_size)::value, kColumns = decltype(n_size)::value;
    zero_sums();
    accumulate_tiles<kRows, kColumns>(
        {keys + m * key_stride, key_stride, query_t + n, tile_rows, head_dim}, planes,
        block_count<N>(count), beside);
    store_sums<kRows, kColumns>(scores + m * tile_rows + n, tile_rows);
  });
  if (visible == nullptr) return;
  for (int64_t key = 0; key < count; ++key) {
    const uint64_t bits = visible[key] >> first_lane;
    for (int n = 0; n < N; ++n) {
      Real* p = scores + key * tile_rows + n * kLanes;
      const Mask keep = mask_from_bits(static_cast<uint32_t>(bits >> (n * kLanes)));
      store(p, select(keep, load(p), broadcast(kNegInf)));
    }
  }
}

// output[column][lanes] = output * rescale + sum_key values[column][key] * weights[key][lanes],
// `count` units of keys. rescale == nullptr overwrites: the first block of these rows.
template <int N, class Beside>
CPUATTN_NOINLINE void output_columns(const Unit* values, int64_t value_stride, int64_t count,
                                     const Unit* weights, int64_t head_dim_v, int64_t tile_rows,
                                     const Real* rescale, Real* output, const Planes& planes,
                                     const Ahead&, const Beside& beside) {
  for (int n = 0; n < N && rescale != nullptr; ++n) {
    const Vec factor = load(rescale + n * kLanes);
    if (!any(less(factor, broadcast(1)))) continue;
    for (int64_t column = 0; column < head_dim_v; ++column) {
      Real* p = output + column * tile_rows + n * kLanes;
      store(p, mul(load(p), factor));
    }
  }
  for_tiles<N>(head_dim_v, [&](int64_t m, int64_t n, auto m_size, auto n_size) CPUATTN_LAMBDA {
    constexpr int kRows = decltype(m_size)::value, kColumns = decltype(n_size)::value;
    Real* out = output + m * tile_rows + n;
    if (rescale != nullptr) {
      load_sums<kRows, kColumns>(out, tile_rows);
    } else {
      zero_sums();
    }
    accumulate_tiles<kRows, kColumns>(
        {values + m * value_stride, value_stride, weights + n, tile_rows, count}, planes,
        block_count<N>(head_dim_v), beside);
    store_sums<kRows, kColumns>(out, tile_rows);
  });
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
