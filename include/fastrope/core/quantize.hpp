// quantize and dequantize: floats to what keys and values may be kept as, and back.
//
//     std::vector<fastrope::Q8_0> blocks(n * d / 32);
//     fastrope::quantize(floats, blocks);
//     attend(q, fastrope::contiguous(blocks.data(), kv_heads, n, d), ..);
// Rows are quantised one after the other, of whole blocks each. Cost: a pass over the numbers. Nothing is
// allocated.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "fastrope/core/columns.hpp"
#include "fastrope/core/error.hpp"
#include "fastrope/core/float8.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/quantised.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

template <class T>
void require_as_many(std::span<const float> x, std::span<const T> to) {
  if (std::ssize(x) != std::ssize(to) * kElementsOf<T>)
    fail("there are ", x.size(), " floats for ", to.size(), " elements of ", kElementsOf<T>);
}

/// The number of most size in a block [32], the first of several. Throws Error where one is not finite.
inline float largest_of_block(const float* x, Index first) {
  using namespace simd;
  constexpr Index kCount = Q8_0::kElements, kStep = kLanes<float>;
  Vec<float> most = zero<float>(), zeros = zero<float>();  // x * 0 is 0 for finite x and NaN otherwise
  for (Index j = 0; j < kCount; j += kStep) {
    const Vec<float> some = load(x + j);
    most = max(max(some, neg(some)), most);
    zeros = fma(some, zero<float>(), zeros);
  }
  if (reduce_add<float>(zeros) != 0)
    for (Index j = 0; j < kCount; ++j)
      if (!std::isfinite(x[j])) fail("number ", first + j, " is ", x[j], ": blocks hold finite ones");
  const float size = reduce_max<float>(most);
  return *std::find_if(x, x + kCount, [size](float y) { return std::abs(y) == size; });
}

/// A scale within the range of float16, as it is stored, and its inverse; 0 where that is 0.
struct BlockScale {
  float16 stored;
  float inverse;

  explicit BlockScale(float scale) {
    const float most = static_cast<float>(std::numeric_limits<float16>::max());
    const float within = std::clamp(scale, -most, most);
    stored = within;
    inverse = static_cast<float>(stored) == 0 ? 0 : 1 / within;
  }
};

/// n[j] = x[j] factor + offset for j < 32, within [lowest, highest] and towards 0. Signed: -offset where x
/// factor is negative.
template <bool kSigned>
void integers_of_block(const float* x, float factor, float offset, float lowest, float highest,
                       std::int32_t* n) {
  using namespace simd;
  for (Index j = 0; j < Q8_0::kElements; j += kLanes<float>) {
    const Vec<float> scaled = mul(load(x + j), set(factor));
    const Vec<float> moved = add(scaled, kSigned ? copy_sign(set(offset), scaled) : set(offset));
    store_integers(clamp(moved, set(lowest), set(highest)), n + j);
  }
}

}  // namespace detail

/// scale = max|x| / 127, values = x / scale to the nearest integer, halves away from 0, by the scale before
/// it is rounded to float16: the bytes of ggml's reference (quantize_row_q8_0_ref). Numbers are off by half a
/// scale and 2^-11 of their size. Where max|x| > 127 65504, numbers beyond that become the largest; where
/// max|x| / 127 rounds to 0 in float16, all become 0. Throws Error for a number that is not finite, and
/// unless x has 32 numbers for each block.
inline void quantize(std::span<const float> x, std::span<Q8_0> to) {
  detail::require_as_many<Q8_0>(x, to);
  const float* from = x.data();
  for (Q8_0& block : to) {
    const detail::BlockScale scale(std::abs(detail::largest_of_block(from, from - x.data())) / 127);
    alignas(64) std::int32_t n[Q8_0::kElements];
    constexpr float kBelowHalf = 0x1.fffffep-2F;  // with 0.5, 0.5 - 2^-25 would become 1
    detail::integers_of_block<true>(from, scale.inverse, kBelowHalf, -127, 127, n);
    block.scale = scale.stored;
    std::copy_n(n, Q8_0::kElements, block.values);
    from += Q8_0::kElements;
  }
}

/// scale = m / -8, m the number of most size, the first of several; n = min(15, floor(x / scale + 8.5)), by
/// the scale before it is rounded to float16: the bytes of ggml's reference (quantize_row_q4_0_ref). Numbers
/// are off by half a scale, those near -m by up to a whole one, and by 2^-11 of their size. The rest is as
/// for Q8_0.
inline void quantize(std::span<const float> x, std::span<Q4_0> to) {
  detail::require_as_many<Q4_0>(x, to);
  constexpr Index kHalf = Q4_0::kElements / 2;
  const float* from = x.data();
  for (Q4_0& block : to) {
    const detail::BlockScale scale(detail::largest_of_block(from, from - x.data()) / -8);
    alignas(64) std::int32_t n[Q4_0::kElements];
    detail::integers_of_block<false>(from, scale.inverse, 8.5F, 0, 15, n);
    block.scale = scale.stored;
    for (Index j = 0; j < kHalf; ++j) block.nibbles[j] = static_cast<std::uint8_t>(n[j] | n[j + kHalf] << 4);
    from += Q4_0::kElements;
  }
}

/// Each to the nearest, ties to even, up to the largest; NaN stays NaN. Throws Error for different lengths.
inline void quantize(std::span<const float> x, std::span<float8_e4m3> to) {
  detail::require_as_many<float8_e4m3>(x, to);
  std::copy(x.begin(), x.end(), to.begin());
}
inline void quantize(std::span<const float> x, std::span<float8_e5m2> to) {
  detail::require_as_many<float8_e5m2>(x, to);
  std::copy(x.begin(), x.end(), to.begin());
}

namespace detail {

/// x inverse to the nearest integer, ties to even. Requires |x inverse| <= 127.
inline std::int8_t nearest_int8(float x, float inverse) {
  // The unit of a float of this size is 1, and its last bits are those of the number that is added.
  return static_cast<std::int8_t>(std::bit_cast<std::int32_t>(x * inverse + 0x1.8p23F));
}

/// What takes numbers of at most this size to integers; 0 where the scale is below the normal range.
inline float inverse_of_largest(float most) {
  return most / 127 >= std::numeric_limits<float>::min() ? 127 / most : 0;
}

inline void require_finite(float most, const char* of, std::size_t number) {
  if (!std::isfinite(most))
    fail("the largest number of ", of, " ", number, " is ", most, ": scales are finite");
}

/// |x| or what was larger; NaN from when one was met.
inline float larger_size(float most, float x) {
  return std::isnan(x) || std::abs(x) > most ? std::abs(x) : most;
}

inline void require_scaled(std::size_t numbers, std::size_t to, std::size_t scales) {
  if (to != numbers || (numbers > 0 && (scales == 0 || numbers % scales != 0)))
    fail("there are ", numbers, " floats for ", to, " integers of ", scales, " scales");
}

}  // namespace detail

/// Rows of x, as many as scales, to integers with a scale each: scale = max|x| / 127 of a row, integers x /
/// scale to the nearest, ties to even. Numbers are off by half a scale; where that is below the normal range,
/// rows become 0. Throws Error for a number that is not finite, and for sizes that do not go together.
inline void quantize_rows(std::span<const float> x, std::span<std::int8_t> to, std::span<float> scales) {
  detail::require_scaled(x.size(), to.size(), scales.size());
  const std::size_t cols = x.empty() ? 0 : x.size() / scales.size();
  for (std::size_t r = 0; r < scales.size(); ++r) {
    const auto row = x.subspan(r * cols, cols);
    float most = 0;
    for (const float number : row) most = detail::larger_size(most, number);
    detail::require_finite(most, "row", r);
    const float inverse = detail::inverse_of_largest(most);
    scales[r] = most / 127;
    for (std::size_t c = 0; c < cols; ++c) to[r * cols + c] = detail::nearest_int8(row[c], inverse);
  }
}
/// The same with a scale for each column of x, [x.size() / scales.size(), scales.size()].
inline void quantize_columns(std::span<const float> x, std::span<std::int8_t> to, std::span<float> scales) {
  detail::require_scaled(x.size(), to.size(), scales.size());
  const std::size_t cols = scales.size();
  std::fill(scales.begin(), scales.end(), 0.0F);
  for (std::size_t at = 0; at < x.size(); at += cols)
    for (std::size_t c = 0; c < cols; ++c) scales[c] = detail::larger_size(scales[c], x[at + c]);
  for (std::size_t c = 0; c < cols; ++c) detail::require_finite(scales[c], "column", c);
  for (std::size_t at = 0; at < x.size(); at += cols)
    for (std::size_t c = 0; c < cols; ++c)
      to[at + c] = detail::nearest_int8(x[at + c], detail::inverse_of_largest(scales[c]));
  for (float& scale : scales) scale /= 127;
}

namespace detail {

template <class T>
void dequantize(std::span<const T> x, std::span<float> to) {
  require_as_many<T>(to, x);
  simd::convert_row<T>(reinterpret_cast<const std::byte*>(x.data()), std::ssize(to), to.data());
}

}  // namespace detail

/// The numbers that are stored, exactly. Throws Error unless `to` has as many.
inline void dequantize(std::span<const Q8_0> x, std::span<float> to) { detail::dequantize(x, to); }
inline void dequantize(std::span<const Q4_0> x, std::span<float> to) { detail::dequantize(x, to); }
inline void dequantize(std::span<const float8_e4m3> x, std::span<float> to) { detail::dequantize(x, to); }
inline void dequantize(std::span<const float8_e5m2> x, std::span<float> to) { detail::dequantize(x, to); }

/// The numbers that attention in float sees. Throws Error for sizes that do not go together.
inline void dequantize_rows(std::span<const std::int8_t> x, std::span<const float> scales,
                            std::span<float> to) {
  detail::require_scaled(to.size(), x.size(), scales.size());
  for (std::size_t i = 0; i < x.size(); ++i) to[i] = x[i] * scales[i / (x.size() / scales.size())];
}
inline void dequantize_columns(std::span<const std::int8_t> x, std::span<const float> scales,
                               std::span<float> to) {
  detail::require_scaled(to.size(), x.size(), scales.size());
  for (std::size_t i = 0; i < x.size(); ++i) to[i] = x[i] * scales[i % scales.size()];
}

}  // namespace fastrope::inline FASTROPE_TARGET
