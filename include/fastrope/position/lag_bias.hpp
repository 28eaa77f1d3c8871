// LagBias: an additive bias on the logits that depends on the lag alone, b(lag), for each query head.
//
// ALiBi, T5's buckets and learned tables have one normal form: a table over the lags [first, last], constant
// beyond its ends, minus a slope times |lag|. So does every combination of them that the paths below ever
// see.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/numbers.hpp"
#include "fastrope/core/shared_array.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/position/mask.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// [heads]: the slopes that ALiBi's authors give to n = `heads` heads. Where n is a power of two,
///     2^(-max_bias h / n),  h = 1 .. n;
/// else those of the largest power of two below n, then every second of twice as many, from the first on.
/// max_bias is ggml's; the paper's is 8. Throws Error for a negative number of heads and for a max_bias that
/// is not finite.
inline std::vector<double> alibi_slopes(Index heads, double max_bias = 8) {
  if (heads < 0 || !std::isfinite(max_bias))
    detail::fail("alibi_slopes: ", heads, " heads, max_bias ", max_bias);
  std::vector<double> slopes;
  const auto count = static_cast<Index>(std::bit_floor(static_cast<std::size_t>(heads)));
  const auto slope = [max_bias](Index h, Index n) {
    return std::exp2(-max_bias * static_cast<double>(h) / static_cast<double>(n));
  };
  for (Index h = 1; h <= count; ++h) slopes.push_back(slope(h, count));
  for (Index h = 1; std::ssize(slopes) < heads; h += 2) slopes.push_back(slope(h, 2 * count));
  return slopes;
}

/// b(lag) = table[clamp(lag)] - slope |lag|, natural-log units, added to the scaled logit.
class LagBias {
 public:
  /// No bias.
  static LagBias none() { return {}; }

  /// -slopes[h] * |lag| (Press et al. 2021); one slope a query head, or one for all.
  static LagBias alibi(Numbers slopes) {
    LagBias bias;
    bias.heads_ = slopes.size();
    if (bias.heads_ == 0) detail::fail("LagBias::alibi: no slopes");
    for (double slope : slopes.values)
      if (!std::isfinite(slope)) detail::fail("LagBias::alibi: slope ", slope, " is not finite");
    bias.slopes_ = std::move(slopes.values);
    return bias;
  }

  /// T5's relative position buckets: half of them one lag each, the other half growing logarithmically up to
  /// max_distance, all farther lags in the last. Bidirectional: the upper half of the buckets serves keys
  /// after the query; otherwise those share bucket 0. table: [buckets, heads], T5's own layout, row_stride =
  /// heads. Boundaries are where real arithmetic has them.
  static LagBias t5(const Numbers& table, Index heads, bool bidirectional, Index max_distance = 128) {
    if (heads < 1 || table.size() == 0 || table.size() % heads != 0)
      detail::fail("LagBias::t5: a table of ", table.size(), " values is not [buckets, heads = ", heads, "]");
    const Index buckets = table.size() / heads;
    const Index one_way = bidirectional ? buckets / 2 : buckets;
    if (one_way < 2 || (bidirectional && buckets % 2 != 0) || max_distance <= one_way / 2 ||
        max_distance > Mask::kUnlimited / (2 * heads))
      detail::fail("LagBias::t5: ", buckets, " buckets ", bidirectional ? "(both ways)" : "(one way)", " of ",
                   heads, " heads do not fit max_distance = ", max_distance);
    const Position first = bidirectional ? -max_distance : 0;
    const Index lags = max_distance - first + 1;
    std::vector<double> values(static_cast<std::size_t>(heads * lags));
    std::vector<Index> bucket_of_lag(static_cast<std::size_t>(lags));
    for (Position lag = first; lag <= max_distance; ++lag) {
      const Index bucket =
          t5_bucket(std::abs(lag), one_way, max_distance) + (bidirectional && lag < 0 ? one_way : 0);
      bucket_of_lag[lag - first] = bucket;
      for (Index h = 0; h < heads; ++h) values[h * lags + lag - first] = table.values[bucket * heads + h];
    }
    LagBias bias = of_table("LagBias::t5", std::move(values), heads, first, true);
    bias.buckets_ = buckets;
    bias.bucket_of_lag_ = std::move(bucket_of_lag);
    return bias;
  }

  /// values[h * lags + (lag - first_lag)] for lags first_lag .. first_lag + lags - 1, [heads, lags] (heads
  /// may be 1: all the same). Lags outside are an error when a call needs them, and lags beyond
  /// Mask::kUnlimited, which no positions have, at once.
  static LagBias table(Numbers values, Index heads, Position first_lag) {
    return of_table("LagBias::table", std::move(values.values), heads, first_lag, false);
  }
  /// The same, and lags outside have the bias of the nearest end.
  static LagBias clamped_table(Numbers values, Index heads, Position first_lag) {
    return of_table("LagBias::clamped_table", std::move(values.values), heads, first_lag, true);
  }

  bool empty() const { return heads_ == 0; }
  /// What it is made of: slopes [heads] or none, and values [heads, lags] from first_lag() on or none, of a
  /// table that is constant beyond its ends where it is clamped.
  std::span<const double> slopes() const& { return {slopes_.data(), slopes_.size()}; }
  std::span<const double> slopes() const&& = delete;  // would dangle
  std::span<const double> values() const& { return {values_.data(), values_.size()}; }
  std::span<const double> values() const&& = delete;
  Index heads() const { return heads_; }
  Position first_lag() const { return first_; }
  bool is_clamped() const { return clamped_; }
  /// How many numbers it was made of: slopes, the values of a table or, [buckets, heads], of T5's.
  Index parameters() const {
    if (buckets_ > 0) return buckets_ * heads_;
    return static_cast<Index>(values_.empty() ? slopes_.size() : values_.size());
  }
  /// [lags]: T5's bucket of each lag from first_lag() on; empty for what else it is made of.
  std::span<const Index> bucket_of_lag() const& { return {bucket_of_lag_.data(), bucket_of_lag_.size()}; }
  std::span<const Index> bucket_of_lag() const&& = delete;

  /// b(-lag): what keys see that attend to queries.
  LagBias mirrored() const {
    LagBias bias = *this;
    bias.first_ = -last_;
    bias.last_ = -first_;
    const auto lags = static_cast<std::ptrdiff_t>(last_ - first_ + 1);
    std::vector<double> values(values_.begin(), values_.end());
    for (auto row = values.begin(); row != values.end(); row += lags) std::reverse(row, row + lags);
    bias.values_ = std::move(values);
    bias.bucket_of_lag_ = std::vector<Index>(std::make_reverse_iterator(bucket_of_lag_.end()),
                                             std::make_reverse_iterator(bucket_of_lag_.begin()));
    return bias;
  }

  /// b(lag) of a query head. Requires: not empty, covers({lag, lag}).
  double operator()(Index head, Position lag) const {
    const Index h = heads_ == 1 ? 0 : head;
    double b = 0;
    if (!values_.empty()) b = values_[h * (last_ - first_ + 1) + std::clamp(lag, first_, last_) - first_];
    if (!slopes_.empty()) b -= slopes_[h] * static_cast<double>(std::abs(lag));
    return b;
  }

  /// out[m] = factor (b(lag - m) - reference) for m < count: b along a row of keys, rounded once, or the
  /// lowest number of Real where that is lower. Requires: not empty; where the table does not cover a lag,
  /// its nearest value stands.
  template <class Real>
  void fill(Index head, Position lag, Index count, double reference, double factor, Real* out) const {
    const Index h = heads_ == 1 ? 0 : head;
    const double slope = slopes_.empty() ? 0 : slopes_[h];
    const double* row = values_.data() + h * (last_ - first_ + 1);
    for (Index m = 0; m < count; ++m) {
      const double table = values_.empty() ? 0 : row[std::clamp(lag - m, first_, last_) - first_];
      const double b = factor * (table - slope * static_cast<double>(std::abs(lag - m)) - reference);
      out[m] = static_cast<Real>(std::max(b, static_cast<double>(std::numeric_limits<Real>::lowest())));
    }
  }

  /// slopes(), kept alive by what holds them.
  const SharedArray<double>& shared_slopes() const { return slopes_; }
  /// Whether it is more than a slope.
  bool is_table() const { return !values_.empty(); }

  /// The largest and smallest b(lag) of a query head for lags in [first, last], which has a lag. Requires:
  /// not empty, covers(first, last). Cost: O(1) without a table, else O(lags of the table).
  double largest(Index head, Position first, Position last) const {
    return extreme(head, first, last, [](double a, double b) { return std::max(a, b); });
  }
  double smallest(Index head, Position first, Position last) const {
    return extreme(head, first, last, [](double a, double b) { return std::min(a, b); });
  }

  /// Throws Error unless there is a bias for each of `heads` heads and every lag in [first, last].
  void require_covers(Index heads, Position first, Position last) const {
    if (empty() || heads == 0) return;
    if (heads_ != 1 && heads_ != heads) detail::fail("the lag bias is for ", heads_, " heads, q has ", heads);
    if (!values_.empty() && !clamped_ && first <= last && (first < first_ || last > last_))
      detail::fail("the bias table covers lags ", first_, "..", last_, ", the call needs ", first, "..",
                   last);
  }

 private:
  /// -slope |lag| is extreme at the ends or at 0; a table may be anywhere, but is constant beyond its ends.
  template <class More>
  double extreme(Index head, Position first, Position last, More&& more) const {
    double most = more((*this)(head, first), (*this)(head, last));
    if (first <= 0 && 0 <= last) most = more(most, (*this)(head, 0));
    if (is_table())
      for (Position lag = std::max(first, first_); lag <= std::min(last, last_); ++lag)
        most = more(most, (*this)(head, lag));
    return most;
  }

  static LagBias of_table(const char* name, std::vector<double> values, Index heads, Position first_lag,
                          bool clamped) {
    const auto count = static_cast<Index>(values.size());
    if (heads < 1 || count == 0 || count % heads != 0)
      detail::fail(name, ": ", count, " values are not [heads = ", heads, ", lags]");
    const Index lags = count / heads;
    if (first_lag < -Mask::kUnlimited || first_lag > Mask::kUnlimited - lags + 1)
      detail::fail(name, ": ", lags, " lags from ", first_lag, " on are not within +-2^42");
    LagBias bias;
    bias.heads_ = heads;
    bias.first_ = first_lag;
    bias.last_ = first_lag + lags - 1;
    bias.clamped_ = clamped;
    bias.values_ = std::move(values);
    bias.require_finite(name);
    return bias;
  }

  static Index t5_bucket(Position distance, Index one_way, Index max_distance) {
    const Index exact = one_way / 2;
    if (distance < exact) return distance;
    const double ratio = std::log(static_cast<double>(distance) / static_cast<double>(exact)) /
                         std::log(static_cast<double>(max_distance) / static_cast<double>(exact));
    const double above = ratio * static_cast<double>(one_way - exact);
    // A boundary that real arithmetic puts on an integer must not fall below it by rounding.
    return std::min(exact + static_cast<Index>(above + 1e-9), one_way - 1);
  }

  void require_finite(const char* name) const {
    for (double v : values_)
      if (!std::isfinite(v))
        detail::fail(name, ": the bias ", v, " is not finite (use a Mask to exclude lags)");
  }

  Index heads_ = 0;
  SharedArray<double> slopes_ = {};  // [heads] or empty
  Position first_ = 0;               // table's lags
  Position last_ = -1;
  bool clamped_ = false;                   // constant beyond the table's ends, else undefined there
  SharedArray<double> values_ = {};        // [heads, last - first + 1] or empty
  Index buckets_ = 0;                      // of T5
  SharedArray<Index> bucket_of_lag_ = {};  // [last - first + 1] of T5 or empty
};

}  // namespace fastrope::inline FASTROPE_TARGET
