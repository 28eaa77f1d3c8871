// Row kernels: what decoding does with keys and values where they lie, for each type that they are stored as:
// scores of rows of keys, one kernel a type of K, and weighted sums of rows of values, one a type of V.
//
// Decoding is bound by memory: while a kernel works on some rows it fetches others, of any type, that the
// next one will need.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>

#include "fastrope/core/columns.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/exact/integer_rows.hpp"
#include "fastrope/exact/rows_ahead.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Query rows to be scored. Real numbers: row stride `stride`, zero past d up to whole vectors. Integers:
/// [rows, d / 32], or null where only the numbers are to be used.
template <class Real>
struct DecodeQueries {
  Index rows;
  Index d;
  const Real* numbers;
  Index stride;
  const IntegerQuery* integers = nullptr;
};

namespace detail {

/// scores(r, j) = sum_c queries(r, c) keys[j][c] for kKeys keys of T and kQueries rows.
/// queries: rows of stride `query_stride`, zero past d up to whole vectors; scores: row stride kDecodeBlock.
/// The same columns of `ahead` are fetched meanwhile.
template <class Real, int kQueries, int kKeys, class T>
HWY_INLINE void dot_block(Index d, const Real* queries, Index query_stride, const std::byte* const* keys,
                          RowsAhead ahead, Real* scores) {
  using namespace simd;
  using Read = Columns<Real, T>;
  constexpr Index kStep = kLanes<Real>;
  Vec<Real> sum[kQueries][kKeys];
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) sum[r][j] = zero<Real>();
  Index fetched = 0;  // bytes of the rows ahead
  const auto step = [&](Index c, auto&& load_key) HWY_ATTR {
    Vec<Real> key[kKeys];
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) {
      key[j] = load_key(j);
      if (ahead.begins_line(fetched)) prefetch(ahead.rows[j], fetched);
    }
    fetched += ahead.step;
#pragma GCC unroll 8
    for (int r = 0; r < kQueries; ++r) {
      const Vec<Real> query = load(queries + r * query_stride + c);
#pragma GCC unroll 8
      for (int j = 0; j < kKeys; ++j) sum[r][j] = fma(query, key[j], sum[r][j]);
    }
  };
  Index c = 0;
  for (; c + Read::kVecs * kStep <= d; c += Read::kVecs * kStep) {
    Read columns[kKeys];
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) columns[j] = Read(keys[j], c);
#pragma GCC unroll 8
    for (Index i = 0; i < Read::kVecs; ++i) step(c + i * kStep, [&](int j) { return columns[j][i]; });
  }
  if (c < d) step(c, [&](int j) { return Read(keys[j], c).first(d - c); });
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; j += 4)
      reduce_add4<Real>(sum[r][j], sum[r][j + 1], sum[r][j + 2], sum[r][j + 3],
                        scores + r * kDecodeBlock + j);
}

/// Vectors of columns that are summed at once, and how many of them share weights: the scales of blocks of
/// values are multiplied into the weights, which are fewer.
template <class Real>
inline constexpr int kSumVecs = simd::kRegisters >= 32 ? 4 : 2;
template <class Real, class T>
inline constexpr int kWeightVecs = kElementsOf<T> == 1 ? kSumVecs<Real>
                                                       : static_cast<int>(simd::Columns<Real, T>::kVecs);

/// output(r, c) += sum_j weights(r, j) values[j][c] for kQueries rows and kVecs vectors of columns from c on,
/// of which the last may be `tail` > 0 elements. weights: [rows, kDecodeBlock] of every kWeightVecs vectors,
/// `part` apart, which blocks' scales are in. The same columns of `ahead` are fetched
/// meanwhile.
template <class Real, int kQueries, int kVecs, class T>
HWY_INLINE void add_weighted_rows(const Real* weights, Index part, const std::byte* const* values,
                                  RowsAhead ahead, Index count, Index c, Index tail, Real* output,
                                  Index output_stride) {
  using namespace simd;
  using Read = Columns<Real, T>;
  constexpr Index kStep = kLanes<Real>;
  Vec<Real> sum[kQueries][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) sum[r][v] = load(output + r * output_stride + c + v * kStep);
  const Index fetched = c / kStep * ahead.step;
  for (Index j = 0; j < count; ++j) {
    Vec<Real> row[kVecs];
    Read columns;
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      if constexpr (kElementsOf<T> == 1)
        columns = Read(values[j], c + v * kStep);
      else if (v % Read::kVecs == 0)
        columns = Read(values[j], c + v * kStep, set(Real{1}));
      row[v] = v + 1 == kVecs && tail > 0 ? columns.first(tail) : columns[v % Read::kVecs];
      if (ahead.begins_line(v * ahead.step)) prefetch(ahead.rows[j], fetched + v * ahead.step);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kQueries; ++r) {
      Vec<Real> weight;
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        if (v % kWeightVecs<Real, T> == 0)
          weight = set(weights[v / kWeightVecs<Real, T> * part + r * kDecodeBlock + j]);
        sum[r][v] = fma(weight, row[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) store<Real>(sum[r][v], output + r * output_stride + c + v * kStep);
}

/// [blocks, kQueries, kDecodeBlock]: weights(r, j) times the scale of row j's block, for each that holds some
/// of kVecs vectors of columns from c on.
template <class Real, class T, int kQueries, int kVecs>
class ScaledWeights {
 public:
  static constexpr Index kPart = kQueries * kDecodeBlock;

  ScaledWeights(const Real* weights, const std::byte* const* values, Index count, Index c) {
    for (Index b = 0; b < kBlocks; ++b) {
      std::array<float16, kDecodeBlock> stored{};
      for (Index j = 0; j < count; ++j)
        stored[static_cast<std::size_t>(j)] = simd::block_at<T>(values[j], c + b * T::kElements).scale;
      alignas(64) Real scales[kDecodeBlock];
      simd::convert(stored.data(), kDecodeBlock, scales);
      for (Index r = 0; r < kQueries; ++r)
        simd::multiply_elements(weights + r * kDecodeBlock, scales, count,
                                scaled_ + b * kPart + r * kDecodeBlock);
    }
  }
  const Real* data() const { return scaled_; }

 private:
  static constexpr Index kBlocks = std::max<Index>(1, kVecs* simd::kLanes<Real> / T::kElements);
  alignas(64) Real scaled_[kBlocks * kPart];
};

/// tile(std::integral_constant<int, n>{}, r) for consecutive tiles of n = 4, 2 or 1 of `rows` rows from r on.
template <class Tile>
HWY_INLINE void for_query_tiles(Index rows, Tile&& tile) {
  Index r = 0;
  for (; r + 4 <= rows; r += 4) tile(std::integral_constant<int, 4>{}, r);
  if (r + 2 <= rows) {
    tile(std::integral_constant<int, 2>{}, r);
    r += 2;
  }
  if (r < rows) tile(std::integral_constant<int, 1>{}, r);
}

/// dot_block for all query rows and `count` keys, rounded up to fours.
template <class Real, class T>
void score_numbers(const DecodeQueries<Real>& q, const std::byte* const* keys, RowsAhead ahead, Index count,
                   Real* scores) {
  for (Index j = 0; j < count; j += 4)
    for_query_tiles(q.rows, [&](auto together, Index r) {
      constexpr int kQueries = together;
      dot_block<Real, kQueries, 4, T>(q.d, q.numbers + r * q.stride, q.stride, keys + j, ahead.from(j),
                                      scores + r * kDecodeBlock + j);
    });
}

/// scores [rows, kDecodeBlock] of `count` keys of T, rounded up to whole vectors at most; keys and rows ahead
/// are kDecodeBlock.
template <class Real, class T>
void score_rows(const DecodeQueries<Real>& q, const std::byte* const* keys, RowsAhead ahead, Index count,
                Real* scores) {
#if FASTROPE_INTEGER_PRODUCTS
  if constexpr (kScoresIntegers<Real, T>) {
    if (q.integers != nullptr) {
      for (Index j = 0; j < count; j += kSideBySide)
        if (!score_integers<T>(q.rows, q.d, q.integers, keys + j, ahead.from(j), scores + j))
          score_numbers<Real, T>(q, keys + j, ahead.from(j), kSideBySide, scores + j);
      return;
    }
  }
#endif
  score_numbers<Real, T>(q, keys, ahead, count, scores);
}

/// add_weighted_rows for all `rows` rows of weights and all d_v columns.
template <class Real, class T>
void sum_rows(Index rows, Index d_v, const Real* weights, const std::byte* const* values, RowsAhead ahead,
              Index count, Real* output, Index output_stride) {
  constexpr Index kStep = simd::kLanes<Real>;
  constexpr int kVecs = kSumVecs<Real>;
  for (Index c = 0; c < d_v;) {
    const bool wide = c + kVecs * kStep <= d_v;
    for_query_tiles(rows, [&](auto together, Index r) {
      constexpr int kQueries = together;
      const auto add = [&](auto vectors) {
        constexpr int kWide = vectors;
        const Index tail = kWide == 1 && c + kStep > d_v ? d_v - c : 0;
        const Real* of_rows = weights + r * kDecodeBlock;
        Real* to = output + r * output_stride;
        if constexpr (kElementsOf<T> == 1) {
          add_weighted_rows<Real, kQueries, kWide, T>(of_rows, 0, values, ahead, count, c, tail, to,
                                                      output_stride);
        } else {
          const ScaledWeights<Real, T, kQueries, kWide> scaled(of_rows, values, count, c);
          add_weighted_rows<Real, kQueries, kWide, T>(scaled.data(), scaled.kPart, values, ahead, count, c,
                                                      tail, to, output_stride);
        }
      };
      wide ? add(std::integral_constant<int, kVecs>{}) : add(std::integral_constant<int, 1>{});
    });
    c += wide ? kVecs * kStep : kStep;
  }
}

/// The element type of what as_rows takes.
template <class X>
using RowsElement = std::remove_cvref_t<decltype(*as_rows(std::declval<X&>()).data)>;

/// What row kernels meet: that, or numbers of Real where scales make these of it.
template <class Real, class X>
struct KernelElement {
  using type = RowsElement<X>;
};
template <class Real, class View>
struct KernelElement<Real, ScaledView<View>> {
  using type = Real;
};

}  // namespace detail

/// Keys, with the kernel of their type for queries of Real.
template <class Real>
struct KeyRows : StoredRows {
  decltype(&detail::score_rows<Real, Real>) score;
  bool takes_integers;  ///< scores are faster with them

  template <RowsLike X>
  KeyRows(const X& x)
      : StoredRows(as_rows(x)),
        score(&detail::score_rows<Real, typename detail::KernelElement<Real, X>::type>),
        takes_integers(detail::kScoresIntegers<Real, typename detail::KernelElement<Real, X>::type>) {}
};

/// Values, with the kernel of their type for weights of Real.
template <class Real>
struct ValueRows : StoredRows {
  decltype(&detail::sum_rows<Real, Real>) sum;

  template <RowsLike X>
  ValueRows(const X& x)
      : StoredRows(as_rows(x)), sum(&detail::sum_rows<Real, typename detail::KernelElement<Real, X>::type>) {}
};

/// The tensors of an exact call. q: [heads, n_q, d], k: [kv_heads, n_k, d], v: [kv_heads, n_k, d_v],
/// out: [heads, n_q, d_v]; lse: [heads, n_q], or without data.
template <class Real>
struct ExactTensors {
  StoredRows q;
  KeyRows<Real> k;
  ValueRows<Real> v;
  OutputRows out;
  MatrixView<Real> lse = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET
