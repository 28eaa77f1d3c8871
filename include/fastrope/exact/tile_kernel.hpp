// The register-tiled product C += A B that every path's inner loops are made of.
//
// Scores are (queries x columns)(columns x keys), outputs (weights)(values), and the polynomial path's state
// is (features)(values): always a few rows of A, read element by element and broadcast, against vectors of B.
// A tile of kRows x kVecs accumulators stays in registers over the whole depth; each step loads kVecs vectors
// of B and broadcasts kRows elements of A for kRows * kVecs fused multiply-adds.
//
// Operands are made of words. Of T = float or double, a word is an element; of T = bfloat16, it is two
// neighbours along the depth, in the 32 bits of a float, whose two products are added at once.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/matrix_tiles.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Words of a row of d elements, padded to what the tiles want.
template <class T>
constexpr Index words_of(Index d) {
  return std::is_same_v<T, bfloat16> ? round_up(d, 2 * MatrixTiles::kCols) / 2 : d;
}
/// Elements of a word.
template <class T>
inline constexpr Index kWordSize = std::is_same_v<T, bfloat16> ? 2 : 1;

/// Element `half` < kWordSize of a word.
template <class T>
ArithmeticOf<T> element_of(ArithmeticOf<T> word, [[maybe_unused]] Index half) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    const auto bits = std::bit_cast<std::uint32_t>(word);
    return std::bit_cast<float>(half == 0 ? bits << 16 : bits & 0xffff0000u);
  } else {
    return word;
  }
}
/// A row x of d elements becomes words_of<T>(d) words in place, rounded to T and padded with zeros; there
/// must be room for all elements of those.
template <class T>
void make_words([[maybe_unused]] Index d, [[maybe_unused]] ArithmeticOf<T>* x) {
#if FASTROPE_BFLOAT16_PRODUCTS
  if constexpr (std::is_same_v<T, bfloat16>) {
    const Index words = words_of<T>(d);
    std::fill(x + d, x + 2 * words, 0.0f);
    for (Index w = 0; w < words; w += simd::kLanes<float>) simd::store_nearest_pairs(x + 2 * w, x + w);
  }
#endif
}

/// A read with two strides: word (i, k) is data[i * row_stride + k * depth_stride].
template <class Real>
struct BroadcastOperand {
  const Real* data;
  Index row_stride;
  Index depth_stride;

  BroadcastOperand rows_from(Index i) const { return {data + i * row_stride, row_stride, depth_stride}; }
  BroadcastOperand depth_from(Index k) const { return {data + k * depth_stride, row_stride, depth_stride}; }
};

/// Vectors in the widest tile, and so in a panel of keys: the tile, one row of B and one element of A fit the
/// registers.
inline constexpr int kTileVecs = simd::kRegisters >= 32 ? 4 : 2;

template <class Real>
inline constexpr Index kTileCols = kTileVecs* simd::kLanes<Real>;

/// Rows of a tile of `vecs` vectors: enough accumulators to hide the latency of a fused multiply-add.
constexpr int tile_rows(int vecs) {
  constexpr int rows32[] = {12, 12, 8, 6};
  constexpr int rows16[] = {12, 6};
  return simd::kRegisters >= 32 ? rows32[vecs - 1] : rows16[vecs - 1];
}

/// Words along the depth whose products are summed from zero before what is there already is added, so that
/// no sum is a chain of more roundings than that and one for each chain (rounding.hpp).
inline constexpr Index kChain = 64;

/// Row counts given to multiply are multiples of this, which every tile height divides.
inline constexpr Index kRowMultiple = simd::kRegisters >= 32 ? 24 : 12;
/// The same for operands of type T.
template <class T>
inline constexpr Index kRowMultipleOf = std::is_same_v<T, bfloat16> ? 2 * kRowMultiple : kRowMultiple;

namespace detail {

template <class T, class V>
HWY_INLINE V multiply_add(V a, V b, V sum) {
#if FASTROPE_BFLOAT16_PRODUCTS
  if constexpr (std::is_same_v<T, bfloat16>) return simd::fma_pairs(a, b, sum);
#endif
  return simd::fma(a, b, sum);
}

/// C [kRows, kVecs vectors] = A [kRows, depth] B [depth, kVecs vectors], a sum from zero to which C is added
/// if it accumulates.
template <class T, int kRows, int kVecs, int kGroup, class Real>
HWY_INLINE void tile(Index depth, BroadcastOperand<Real> a, const Real* HWY_RESTRICT b, Index b_stride,
                     bool accumulate, Real* HWY_RESTRICT c, Index c_stride) {
  using namespace simd;
  constexpr Index kStep = kLanes<Real>;
  Vec<Real> sum[kRows][kVecs];
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sum[i][v] = zero<Real>();
  for (Index k = 0; k < depth; ++k) {
    Vec<Real> row[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) row[v] = load(b + k * b_stride + v * kStep);
    const Real* column = a.data + k * a.depth_stride;
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i) {
      const Vec<Real> word = repeat<kGroup>(column + i * a.row_stride);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sum[i][v] = multiply_add<T>(word, row[v], sum[i][v]);
    }
  }
  if (accumulate)
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sum[i][v] = add(load(c + i * c_stride + v * kStep), sum[i][v]);
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store<Real>(sum[i][v], c + i * c_stride + v * kStep);
}

/// One loop for sums that begin and sums that go on: the tile is the code that takes longest to compile.
template <class T, int kVecs, int kGroup, class Real>
void tile_column(Index rows, Index depth, BroadcastOperand<Real> a, const Real* b, Index b_stride,
                 bool accumulate, Real* c, Index c_stride) {
#if FASTROPE_MATRIX_TILES
  if constexpr (std::is_same_v<T, bfloat16>)
    if (MatrixTiles::allowed())
      return multiply_matrix_tiles<kVecs>(rows, depth, a.data, a.row_stride, b, b_stride, accumulate, c,
                                          c_stride);
#endif
  constexpr int kRows = tile_rows(kVecs);
  Index k = 0;
  do {  // once where the depth is 0
    for (Index i = 0; i < rows; i += kRows)
      tile<T, kRows, kVecs, kGroup>(std::min(kChain, depth - k), a.depth_from(k).rows_from(i),
                                    b + k * b_stride, b_stride, accumulate || k > 0, c + i * c_stride,
                                    c_stride);
  } while ((k += kChain) < depth);
}

}  // namespace detail

/// C [rows, cols] = A [rows, depth] B [depth, cols], plus C where kAccumulate; depth in words of T.
/// Requires: rows a multiple of kRowMultipleOf<T>, or in A and C room up to the next, since tiles are
/// computed whole; cols a multiple of the vector length (pad B's columns). For bfloat16 that multiple, and
/// A's words along the depth contiguous, depth a multiple of 16, a living MatrixTiles.
///
/// kGroup > 1: a step of the depth is kGroup neighbours, contiguous and aligned in A, side by side for each
/// column in B [depth, cols / kGroup, kGroup], so that few columns fill vectors; cols counts B's elements in
/// a row, and the kGroup lanes of a column of C are parts of its sum (simd::add_groups).
template <bool kAccumulate, class T, int kGroup = 1, class Real = ArithmeticOf<T>>
void multiply(Index rows, Index cols, Index depth, BroadcastOperand<Real> a, const Real* b, Index b_stride,
              Real* c, Index c_stride) {
  constexpr Index kStep = simd::kLanes<Real>;
  const Index vectors = cols / kStep;
  const Index columns = ceil_div(vectors, kTileVecs);
  // Columns of tiles as equal as can be: 5 vectors are 3 + 2, not 4 + 1, since narrow tiles load more than
  // they compute.
  for (Index t = 0, done = 0; t < columns; ++t) {
    const Index width = (vectors - done) / (columns - t);
    const Real* b_t = b + done * kStep;
    Real* c_t = c + done * kStep;
    switch (width) {
      case 1:
        detail::tile_column<T, 1, kGroup>(rows, depth, a, b_t, b_stride, kAccumulate, c_t, c_stride);
        break;
      case 2:
        detail::tile_column<T, 2, kGroup>(rows, depth, a, b_t, b_stride, kAccumulate, c_t, c_stride);
        break;
      default:
        if constexpr (kTileVecs > 2) {
          if (width == 3)
            detail::tile_column<T, 3, kGroup>(rows, depth, a, b_t, b_stride, kAccumulate, c_t, c_stride);
          else
            detail::tile_column<T, 4, kGroup>(rows, depth, a, b_t, b_stride, kAccumulate, c_t, c_stride);
        }
    }
    done += width;
  }
}

}  // namespace fastrope::inline FASTROPE_TARGET
