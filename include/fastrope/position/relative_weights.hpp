// RelativeWeights: the paper's general family of relative positions, logit = scale * q^T W(lag) k, where
// every W(lag) is zero outside one sparse support S of index pairs (a, b).
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/numbers.hpp"
#include "fastrope/core/shared_array.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/position/mask.hpp"
#include "fastrope/position/rope.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// W(lag)[a_s, b_s] for each support entry s = (a_s, b_s) and each lag of a range.
class RelativeWeights {
 public:
  /// One entry of the support: row a of W (a column of q) and column b of W (a column of k).
  struct Entry {
    Index a = 0;
    Index b = 0;
    friend bool operator==(const Entry&, const Entry&) = default;
  };

  /// values: [|S|, lags], values[s * lags + (lag - first_lag)]. Throws Error if sizes clash, an entry
  /// repeats, or a lag is beyond Mask::kUnlimited, which no positions have.
  RelativeWeights(std::vector<Entry> support, Position first_lag, Numbers values)
      : support_(std::move(support)), first_(first_lag), values_(std::move(values.values)) {
    const auto entries = static_cast<Index>(support_.size());
    if (entries == 0 || values_.empty() || static_cast<Index>(values_.size()) % entries != 0)
      detail::fail("RelativeWeights: ", values_.size(), " values are not [|S| = ", entries, ", lags]");
    lags_ = static_cast<Index>(values_.size()) / entries;
    require_lags(first_, lags_);
    for (double v : values_)
      if (!std::isfinite(v)) detail::fail("RelativeWeights: the weight ", v, " is not finite");
    for (std::size_t s = 0; s < support_.size(); ++s)
      for (std::size_t t = 0; t < s; ++t)
        if (support_[s] == support_[t])
          detail::fail("RelativeWeights: the support names (", support_[s].a, ", ", support_[s].b, ") twice");
  }

  /// The same from a function weight(lag, s) evaluated at lags first_lag..last_lag.
  RelativeWeights(const std::vector<Entry>& support, Position first_lag, Position last_lag,
                  const std::function<double(Position lag, Index s)>& weight)
      : RelativeWeights(support, first_lag,
                        tabulate(static_cast<Index>(support.size()), first_lag, last_lag, weight)) {}

  /// RoPE written as such a family: W(lag) = R(lag)^T, |S| = 2 * rotary_dim + (d - rotary_dim). All sections
  /// turn by the one lag.
  static RelativeWeights rope(const Rope& rope, Index d, Position first_lag, Position last_lag) {
    const RopeFrequencies f = rope_frequencies(rope, d);
    if (const Position most = f.max_position(); first_lag < -most || last_lag > most)
      detail::fail("RelativeWeights::rope: the lags ", first_lag, " to ", last_lag, " are not within +-",
                   most, ", up to which phases are held");
    const double gain = f.attention_factor * f.attention_factor;
    std::vector<Entry> support;
    for (Index m = 0; m < f.pairs(); ++m) {
      const Index a = f.first_column(m), b = f.second_column(m);
      for (Entry entry : {Entry{a, a}, Entry{b, b}, Entry{a, b}, Entry{b, a}}) support.push_back(entry);
    }
    for (Index c = 0; c < d; ++c)
      if (!f.turns_column(c)) support.push_back({c, c});
    return {support, first_lag, last_lag, [&](Position lag, Index s) {
              if (s >= 4 * f.pairs()) return 1.0;
              const double angle = static_cast<double>(lag) * f.theta[s / 4];
              const double values[] = {std::cos(angle), std::cos(angle), std::sin(angle), -std::sin(angle)};
              return gain * values[s % 4];
            }};
  }

  std::span<const Entry> support() const { return {support_.data(), support_.size()}; }
  Position first_lag() const { return first_; }
  Position last_lag() const { return first_ + lags_ - 1; }

  /// W(lag)[a_s, b_s]. Requires first_lag() <= lag <= last_lag().
  double operator()(Position lag, Index s) const { return values_[s * lags_ + lag - first_]; }

  /// The first entry r with W_s = sign W_r at every lag.
  struct Equal {
    Index entry;
    int sign;
  };
  Equal first_equal(Index s) const {
    const auto row = [&](Index r) {
      return std::span(values_.data() + r * lags_, static_cast<std::size_t>(lags_));
    };
    for (Index r = 0; r < s; ++r) {
      if (std::ranges::equal(row(r), row(s))) return {r, 1};
      if (std::ranges::equal(row(r), row(s), [](double x, double y) { return x == -y; })) return {r, -1};
    }
    return {s, 1};
  }

  /// Throws Error unless the support lies in d x d and every lag in [first, last] has weights.
  void require_covers(Index d, Position first, Position last) const {
    for (Entry e : support_)
      if (e.a < 0 || e.a >= d || e.b < 0 || e.b >= d)
        detail::fail("RelativeWeights: support entry (", e.a, ", ", e.b, ") is outside d x d, d = ", d);
    if (first <= last && (first < first_lag() || last > last_lag()))
      detail::fail("RelativeWeights covers lags ", first_lag(), "..", last_lag(), ", the call needs ", first,
                   "..", last);
  }

 private:
  static void require_lags(Position first, Index lags) {
    if (first < -Mask::kUnlimited || first > Mask::kUnlimited - lags + 1)
      detail::fail("RelativeWeights: ", lags, " lags from ", first, " on are not within +-2^42");
  }

  static std::vector<double> tabulate(Index entries, Position first, Position last,
                                      const std::function<double(Position, Index)>& weight) {
    if (first > last) detail::fail("RelativeWeights: the first lag, ", first, ", is above the last, ", last);
    if (first < -Mask::kUnlimited || last > Mask::kUnlimited)
      detail::fail("RelativeWeights: the lags ", first, " to ", last, " are not within +-2^42");
    std::vector<double> values;
    for (Index s = 0; s < entries; ++s)
      for (Position lag = first; lag <= last; ++lag) values.push_back(weight(lag, s));
    return values;
  }

  SharedArray<Entry> support_;
  Position first_ = 0;
  Index lags_ = 0;
  SharedArray<double> values_;  // [|S|, lags]
};

}  // namespace fastrope::inline FASTROPE_TARGET
