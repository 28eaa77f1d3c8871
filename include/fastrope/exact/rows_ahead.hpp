// Rows ahead: what decoding fetches from memory while it computes.
#pragma once

#include <cstddef>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Keys whose scores decoding holds at once.
inline constexpr Index kDecodeBlock = 64;

/// Bytes that are fetched together.
inline constexpr Index kCacheLine = 64;

/// Rows to fetch: `step` bytes of each for a vector of columns, rounded up.
struct RowsAhead {
  const std::byte* const* rows;
  Index step;

  /// Whether to fetch a line at these bytes: once a line, so 16-bit rows at every second vector.
  HWY_INLINE bool begins_line(Index at) const { return at % kCacheLine < step; }
  /// The same from the m-th row on.
  RowsAhead from(Index m) const { return {rows + m, step}; }
};

}  // namespace fastrope::inline FASTROPE_TARGET
