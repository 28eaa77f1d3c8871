// Mask: the lags (query position - key position) that may be attended to, as one inclusive range.
#pragma once

#include <algorithm>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Keys at lags first..last, inclusive, are allowed; the others have weight zero.
struct Mask {
  /// Beyond every lag: positions are limited to 2^40 in absolute value.
  static constexpr Position kUnlimited = Position{1} << 42;

  Position first = -kUnlimited;
  Position last = kUnlimited;

  static constexpr Mask full() { return {}; }
  /// No key later than the query.
  static constexpr Mask causal() { return lags(0, kUnlimited); }
  /// The query's own position and the w - 1 before it. Throws Error where w < 1: no key would be left, and no
  /// model means that.
  static constexpr Mask sliding_window(Position w) {
    if (w < 1) detail::fail("Mask::sliding_window(", w, ") holds no key: a window has 1 position or more");
    return lags(0, w - 1);
  }
  /// Any range; lags(-right, left) is a window that looks both ways. Throws Error where first > last.
  static constexpr Mask lags(Position first, Position last) {
    if (first > last)
      detail::fail("a mask of the lags ", first, " to ", last,
                   " holds no key: its first lag is above its last");
    return {std::clamp(first, -kUnlimited, kUnlimited), std::clamp(last, -kUnlimited, kUnlimited)};
  }

  constexpr bool allows(Position lag) const { return first <= lag && lag <= last; }
  friend constexpr bool operator==(const Mask&, const Mask&) = default;
};

}  // namespace fastrope::inline FASTROPE_TARGET
