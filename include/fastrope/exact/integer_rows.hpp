// Integer rows: scores of keys in blocks of integers, by products of integers.
//
// A query is three bytes a column beside the largest of a block's 32, and sums over a block are exact, so
// that scores are as near as those of floats. Keys are laid side by side, one a lane: a product serves that
// many scores, and none is summed across lanes. A block of a key costs three instructions to lay out and 1.9
// for each query on AVX-512; by floats these are six and two.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "fastrope/core/columns.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/integer_vectors.hpp"
#include "fastrope/core/quantised.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/rows_ahead.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// 32 columns of a query: scale (2^16 high[c] + 2^8 middle[c] + low[c]). With u = 2^-24, a column is off by
/// 1.01 u of the largest of them and u of itself.
struct IntegerQuery {
  static constexpr Index kColumns = 32;

  std::int8_t high[kColumns], middle[kColumns], low[kColumns];
  float scale;
  std::int32_t high_sum, middle_sum, low_sum;  ///< of all columns

  /// Without a value where a column is not finite, or all are so large or small that scales might not be.
  void assign(const float* x) {
    float most = 0, marks = 0;  // 0 times x is NaN where x is not finite
    for (Index c = 0; c < kColumns; ++c) {
      most = std::max(most, std::abs(x[c]));
      marks += 0 * x[c];
    }
    constexpr double kMost = (127 * 256 + 127) * 256 + 127;
    scale = static_cast<float>(most / kMost) + marks;
    if (most != 0 && !(most > 0x1p-60F && most < 0x1p60F)) scale = std::numeric_limits<float>::quiet_NaN();
    high_sum = middle_sum = low_sum = 0;
    if (!has_value()) return;
    const double inverse = most == 0 ? 0 : kMost / most;
    for (Index c = 0; c < kColumns; ++c) {
      const auto n = static_cast<std::int32_t>(std::lrint(x[c] * inverse));
      low[c] = static_cast<std::int8_t>(n);
      const std::int32_t rest = (n - low[c]) / 256;
      middle[c] = static_cast<std::int8_t>(rest);
      high[c] = static_cast<std::int8_t>((rest - middle[c]) / 256);
      high_sum += high[c];
      middle_sum += middle[c];
      low_sum += low[c];
    }
  }
  bool has_value() const { return !std::isnan(scale); }
};

namespace detail {

/// Whether scores of rows of T are computed by integers here.
template <class Real, class T>
inline constexpr bool kScoresIntegers = simd::kIntegerProducts&& std::is_same_v<Real, float> &&
                                        (std::is_same_v<T, Q8_0> || std::is_same_v<T, Q4_0>);

/// u times this times |q| |k| bounds what a score of d columns is off by: 1.01 sqrt(32) + 1 for the columns
/// of queries; a rounding of their scale, of its product with a key's and of a block's sum, 1.1 of the sum of
/// parts, and a sum over blocks.
constexpr Index integer_chain(Index d) { return 11 + ceil_div(d, IntegerQuery::kColumns); }

#if FASTROPE_INTEGER_PRODUCTS

/// Keys that are laid side by side.
inline constexpr Index kSideBySide = simd::kLanes<float>;

/// What makes the integers of a block unsigned.
template <class T>
inline constexpr std::int32_t kZero = std::is_same_v<T, Q8_0> ? 128 : 8;

/// columns[i]: integers 4 i .. 4 i + 3, plus kZero, of block b of each of kSideBySide keys.
template <class T>
HWY_INLINE void load_side_by_side(const std::byte* const* keys, Index b, simd::Integers* columns) {
  using namespace simd;
  const Index at = b * static_cast<Index>(sizeof(T)) + static_cast<Index>(sizeof(T::scale));
  if constexpr (std::is_same_v<T, Q8_0>) {
    transpose_bytes(keys, at, columns);
    transpose_bytes(keys, at + 16, columns + 4);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) columns[i] = to_unsigned_bytes(columns[i]);
  } else {
    Integers both[4];
    transpose_bytes(keys, at, both);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      columns[i] = low_nibbles(both[i]);
      columns[i + 4] = high_nibbles(both[i]);
    }
  }
}

/// The scales of some blocks of kSideBySide keys, of several blocks at once: what was stored in parts is slow
/// to load whole right away.
template <class T>
class SideBySideScales {
 public:
  static constexpr Index kBlocks = 8;

  void assign(const std::byte* const* keys, Index first, Index blocks) {
    for (Index m = 0; m < kSideBySide; ++m) {
      const T* row = reinterpret_cast<const T*>(keys[m]) + first;
      for (Index b = 0; b < blocks; ++b) std::memcpy(&bits_[b][m], &row[b].scale, sizeof(float16));
    }
  }
  simd::Vec<float> operator[](Index b) const {
    return simd::load_as<float>(reinterpret_cast<const float16*>(bits_[b]));
  }

 private:
  std::uint16_t bits_[kBlocks][kSideBySide];
};

/// scores(r, j) += what a block has for kRows rows: two, as each is a chain of products that wait for each
/// other. queries: of a row, `stride` apart.
template <class T, int kRows>
HWY_INLINE void add_block(const simd::Integers* columns, simd::Vec<float> scale, const IntegerQuery* queries,
                          Index stride, float* scores) {
  using namespace simd;
  Integers high[kRows], middle[kRows], low[kRows];
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
    const IntegerQuery& q = queries[r * stride];
    high[r] = set_integer(-kZero<T> * q.high_sum);
    middle[r] = set_integer(-kZero<T> * q.middle_sum);
    low[r] = set_integer(-kZero<T> * q.low_sum);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
      const IntegerQuery& q = queries[r * stride];
      high[r] = add_byte_products(high[r], columns[i], repeat_bytes(q.high + 4 * i));
      middle[r] = add_byte_products(middle[r], columns[i], repeat_bytes(q.middle + 4 * i));
      low[r] = add_byte_products(low[r], columns[i], repeat_bytes(q.low + 4 * i));
    }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
    float* sums = scores + r * kDecodeBlock;
    const Vec<float> scales = mul(scale, set(queries[r * stride].scale));
    store<float>(fma(scales, join_parts(high[r], middle[r], low[r]), load(sums)), sums);
  }
}

/// scores(r, j) for kSideBySide keys j of T and all rows of queries [rows, d / 32], row stride kDecodeBlock,
/// while the same columns of `ahead` are fetched. Returns false, with scores of no use, where a scale is not
/// finite.
template <class T>
bool score_integers(Index rows, Index d, const IntegerQuery* queries, const std::byte* const* keys,
                    RowsAhead ahead, float* scores) {
  using namespace simd;
  constexpr Index kSteps = T::kElements / kLanes<float>;
  const Index blocks = d / T::kElements;
  for (Index r = 0; r < rows; ++r) store<float>(zero<float>(), scores + r * kDecodeBlock);
  SideBySideScales<T> scales;
  Vec<float> marks = zero<float>();  // 0 times a scale is NaN where that is not finite
  for (Index b = 0; b < blocks; ++b) {
    const Index among = b % scales.kBlocks;
    if (among == 0) scales.assign(keys, b, std::min(scales.kBlocks, blocks - b));
    Integers columns[8];
    load_side_by_side<T>(keys, b, columns);
    for (Index at = b * kSteps * ahead.step; at < (b + 1) * kSteps * ahead.step; at += ahead.step)
      if (ahead.begins_line(at))
        for (Index m = 0; m < kSideBySide; ++m) prefetch(ahead.rows[m], at);
    const Vec<float> scale = scales[among];
    marks = fma(scale, zero<float>(), marks);
    Index r = 0;
    for (; r + 2 <= rows; r += 2)
      add_block<T, 2>(columns, scale, queries + r * blocks + b, blocks, scores + r * kDecodeBlock);
    if (r < rows)
      add_block<T, 1>(columns, scale, queries + r * blocks + b, blocks, scores + r * kDecodeBlock);
  }
  return reduce_add<float>(marks) == 0;
}

#endif

}  // namespace detail

}  // namespace fastrope::inline FASTROPE_TARGET
