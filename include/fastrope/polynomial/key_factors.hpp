// Key factors: what far keys are weighed by beside their features, e^level(j): a function of the lag by its
// slope, or gates by what they leave of a key.
//
// Levels are only ever compared: of the keys of a block with the heaviest among them, and of blocks with the
// anchor, the heaviest key of the state, so that every factor is at most 1.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/gate_sums.hpp"

namespace fastrope::inline FASTROPE_TARGET {

class KeyFactors {
 public:
  /// The key that stands for all tokens before these.
  static constexpr Index kCarried = -1;

  /// e^(slope j).
  explicit KeyFactors(double slope) : slope_(slope) {}
  /// Those of a row of gates; carried: the level of the tokens before, -infinity where there are none.
  KeyFactors(const GateSums& gates, Index row, double carried)
      : gates_(&gates), row_(row), carried_(carried) {}

  /// Whether keys are weighed at all.
  bool weigh() const { return slope_ != 0 || gates_ != nullptr; }
  const GateSums* gates() const { return gates_; }

  /// ln of what key a weighs more than key b.
  double between(Index a, Index b) const {
    if (gates_ == nullptr) return slope_ * static_cast<double>(a - b);
    const double level = level_of(a);
    return std::isinf(level) ? level : level - level_of(b);
  }
  /// Of gates.
  double level_of(Index j) const { return j == kCarried ? carried_ : gates_->levels(row_)[j]; }

  /// The first of `keys`, the last of which have n before their end, that queries after them see.
  Index first_seen(Range keys) const {
    return gates_ == nullptr ? keys.begin : std::clamp(gates_->start(row_, keys.end), keys.begin, keys.end);
  }
  /// The heaviest of those; keys.begin where there is none. Cost: O(1) for a slope, else of the keys.
  Index heaviest(Range keys) const {
    if (gates_ == nullptr) return slope_ > 0 ? keys.end - 1 : keys.begin;
    const double* levels = gates_->levels(row_);
    const Index first = std::min(first_seen(keys), keys.end - 1);
    return std::max_element(levels + first, levels + keys.end) - levels;
  }
  /// Whether a query after the first n keys sees what one after the first `before` saw.
  bool keeps(Index before, Index n) const {
    return gates_ == nullptr || gates_->resets(row_, before) == gates_->resets(row_, n);
  }
  /// Of the anchor, from the end of the first n keys on: what the next tokens take for `carried`.
  double carried_from(Index anchor, Index n) const { return level_of(anchor) + gates_->sum(row_, n); }

 private:
  double slope_ = 0;
  const GateSums* gates_ = nullptr;
  Index row_ = 0;
  double carried_ = -std::numeric_limits<double>::infinity();
};

}  // namespace fastrope::inline FASTROPE_TARGET
