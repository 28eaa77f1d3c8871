// Recent gates: those of a recurrence's recent tokens, which have filled no block yet.
//
// Sums begin at the end of the state, so that none is of more than a block of tokens. What is in the state
// stands beside them with a level of its own, as if it were a key before the first of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/gate_sums.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The gates of one token for one state: g, without ALiBi's slope, and b.
struct TokenGates {
  float log = 0;
  float log_input = 0;
};

/// Those of one state's recent tokens.
class RecentGates {
 public:
  RecentGates(Index most, double slope) : slope_(slope), tokens_(static_cast<std::size_t>(most)) {
    levels_.resize(tokens_.size());
  }

  /// Token `slot` of the block; the first begins anew.
  void add(Index slot, const TokenGates& gates) {
    if (slot == 0) {
      sum_ = {};
      first_ = kState;
      size_ = 0;
    }
    const auto at = static_cast<std::size_t>(slot);
    tokens_[at] = gates;
    const double log = static_cast<double>(gates.log) - slope_, input = static_cast<double>(gates.log_input);
    levels_[at] = sum_.add(log, input);
    if (sum_.resets()) first_ = slot;
    for (const double x : {log, input})
      if (std::isfinite(x)) size_ += std::abs(x);
  }

  /// Of the first tokens, as they came: [most].
  TokenGates* tokens() { return tokens_.data(); }
  const TokenGates* tokens() const { return tokens_.data(); }
  double level(Index slot) const { return levels_[static_cast<std::size_t>(slot)]; }
  /// G after the last token, and the largest level.
  double sum() const { return sum_.sum(); }
  double top() const { return sum_.top(); }
  /// The first token that is still seen.
  Index first() const { return std::max<Index>(first_, 0); }
  /// Whether the state is.
  bool sees_state() const { return first_ == kState; }
  /// Whether the token that came last was a reset.
  bool resets() const { return sum_.resets(); }
  /// Of an exponent, beside a state's level.
  double rounding(double state_level) const {
    return gate_rounding(size_ + (std::isfinite(state_level) ? std::abs(state_level) : 0));
  }

 private:
  static constexpr Index kState = -1;

  double slope_;
  std::vector<TokenGates> tokens_;
  std::vector<double> levels_ = {};
  GateSum sum_ = {};
  Index first_ = kState;
  double size_ = 0;  // at least |G| and |b| of every token
};

}  // namespace fastrope::inline FASTROPE_TARGET
