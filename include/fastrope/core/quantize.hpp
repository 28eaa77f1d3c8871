// quantize and dequantize: floats to what keys and values may be kept as, and back.
//
//     std::vector<fastrope::Q8_0> blocks(n * d / 32);
//     fastrope::quantize(floats, blocks);
//     attend(q, fastrope::contiguous(blocks.data(), kv_heads, n, d), ..);
// Rows are quantised one after the other, of whole blocks each. Cost: a pass over the numbers. Nothing is
// allocated.
#pragma once

#include <algorithm>
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

}  // namespace fastrope::inline FASTROPE_TARGET
