// Index arithmetic shared by every header.
//
// Sizes, strides and offsets are signed 64-bit (`Index`), so that differences such as lags need no casts and
// products such as heads * n * d do not wrap at 2^31 elements.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Sizes, strides and row numbers.
using Index = std::ptrdiff_t;

/// Token positions and their differences, lags.
using Position = std::int64_t;

/// A half-open range [begin, end); empty when end <= begin.
struct Range {
  Index begin = 0;
  Index end = 0;

  constexpr Index size() const { return std::max<Index>(0, end - begin); }
  constexpr bool empty() const { return end <= begin; }
  friend constexpr bool operator==(const Range&, const Range&) = default;
};

constexpr Range intersect(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

/// The smallest range that holds both; what is empty does not count.
constexpr Range hull(Range a, Range b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

/// a b, or the greatest Index where that is beyond it. Requires a, b >= 0.
constexpr Index saturating_product(Index a, Index b) {
  constexpr Index kMost = std::numeric_limits<Index>::max();
  return b != 0 && a > kMost / b ? kMost : a * b;
}

/// a + b, or the greatest Index where that is beyond it. Requires a, b >= 0.
constexpr Index saturating_sum(Index a, Index b) {
  constexpr Index kMost = std::numeric_limits<Index>::max();
  return a > kMost - b ? kMost : a + b;
}

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
constexpr Index round_up(Index a, Index multiple) { return ceil_div(a, multiple) * multiple; }
constexpr Index round_down(Index a, Index multiple) { return a / multiple * multiple; }

}  // namespace fastrope::inline FASTROPE_TARGET
