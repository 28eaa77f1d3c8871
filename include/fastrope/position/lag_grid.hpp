// LagGrid: where the queries and keys of a call stand, and which pairs the mask allows.
//
// Keys are seen in ascending order of position (softmax attention does not care in which order keys come), so
// that the keys a query may attend to are always one range [begin, end). Ring caches and other shuffled key
// orders are a permutation, `source(j)`, that is applied while keys are packed and nowhere else.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <span>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/position/mask.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Positions p_i of n_q queries, t_j of n_k keys in ascending order, and the mask over the lags p_i - t_j.
class LagGrid {
 public:
  /// Positions beyond this, and so more rows, are refused, so that lags and mask arithmetic cannot overflow.
  static constexpr Position kMaxPosition = Position{1} << 40;

  /// Empty spans mean the defaults: keys at 0..n_k-1, queries where the last n_q keys stand (n_k-n_q..n_k-1
  /// for default keys, whatever their number). Throws Error if a span has another length, a position is
  /// beyond kMaxPosition, n_q > n_k queries have no positions beside keys that have, or the mask's first lag
  /// is above its last.
  LagGrid(Index n_q, Index n_k, std::span<const Position> query_positions,
          std::span<const Position> key_positions, Mask mask)
      : n_q_(n_q),
        n_k_(n_k),
        mask_(Mask::lags(mask.first, mask.last)),
        queries_(query_positions.begin(), query_positions.end()) {
    if (n_q < 0 || n_q > kMaxPosition || n_k < 0 || n_k > kMaxPosition)
      detail::fail("n_q = ", n_q, " and n_k = ", n_k, " must not be negative or beyond 2^40");
    check("query_positions", query_positions, n_q);
    check("key_positions", key_positions, n_k);
    set_keys(key_positions);
    if (query_positions.empty() && !key_positions.empty()) {
      if (n_q > n_k)
        detail::fail("key_positions are given for ", n_k, " keys: ", n_q,
                     " queries need query_positions too");
      for (Index j = n_k - n_q; j < n_k; ++j) queries_.push_back(key_position(j));
    }
    first_query_ = n_k - n_q;
    if (!queries_.empty() && is_consecutive(queries_)) {
      first_query_ = queries_.front();
      queries_.clear();
    }
  }

  Index n_q() const { return n_q_; }
  Index n_k() const { return n_k_; }
  const Mask& mask() const { return mask_; }

  Position query_position(Index i) const { return queries_.empty() ? first_query_ + i : queries_[i]; }
  /// Position of the j-th key in ascending order.
  Position key_position(Index j) const { return keys_.empty() ? first_key_ + j : keys_[j]; }
  Position lag(Index i, Index j) const { return query_position(i) - key_position(j); }

  /// max |position| of queries and keys; 0 without any.
  Position farthest_position() const {
    Position farthest = 0;
    const auto see = [&](Position p) { farthest = std::max(farthest, std::abs(p)); };
    for (Position p : queries_) see(p);
    if (queries_.empty() && n_q_ > 0) see(query_position(0)), see(query_position(n_q_ - 1));
    if (n_k_ > 0) see(key_position(0)), see(key_position(n_k_ - 1));
    return farthest;
  }

  /// Whether source(j) = j.
  bool in_order() const { return order_.empty(); }
  /// The row of k and v that holds the j-th key in ascending order.
  Index source(Index j) const { return order_.empty() ? j : order_[j]; }

  /// lag(i, j) = i - j + offset(): what depends on the lag is a Toeplitz matrix.
  bool consecutive() const { return queries_.empty() && keys_.empty(); }
  /// Requires consecutive().
  Position offset() const { return first_query_ - first_key_; }

  /// The keys that query i may attend to.
  Range keys_of(Index i) const {
    const Position p = query_position(i);
    return {lower_bound(p - mask_.last), lower_bound(p - mask_.first + 1)};
  }

  /// The smallest range that holds the keys of every query in `rows`.
  Range keys_of(Range rows) const {
    Range all;
    for (Index i = rows.begin; i < rows.end; ++i) all = hull(all, keys_of(i));
    return all;
  }

  /// Queries stand in ascending order, so begin and end of keys_of(i) never decrease.
  bool ascending_queries() const { return std::is_sorted(queries_.begin(), queries_.end()); }

  /// Pairs (i, j) that the mask allows, i in `rows`. Cost: O(1) where consecutive().
  double pairs_of(Range rows) const {
    double pairs = 0;
    if (!consecutive()) {
      for (Index i = rows.begin; i < rows.end; ++i) pairs += static_cast<double>(keys_of(i).size());
    } else {
      pairs = sum_of_bounds(rows, offset() - mask_.first + 1) - sum_of_bounds(rows, offset() - mask_.last);
    }
    return pairs;
  }
  double allowed_pairs() const { return pairs_of({0, n_q_}); }

  /// The least and greatest lag among allowed pairs; first > last when there are none.
  struct Lags {
    Position first = 0;
    Position last = -1;
  };
  Lags allowed_lags() const {
    Lags lags{2 * Mask::kUnlimited, -2 * Mask::kUnlimited};
    for (Index i = 0; i < n_q_; ++i) {
      const Range keys = keys_of(i);
      if (keys.empty()) continue;
      lags = {std::min(lags.first, lag(i, keys.end - 1)), std::max(lags.last, lag(i, keys.begin))};
    }
    return lags;
  }

 private:
  static void check(const char* name, std::span<const Position> positions, Index n) {
    if (!positions.empty() && static_cast<Index>(positions.size()) != n)
      detail::fail(name, " has ", positions.size(), " entries for ", n, " rows");
    for (Position p : positions)
      if (p > kMaxPosition || p < -kMaxPosition) detail::fail(name, ": ", p, " is beyond +-2^40");
  }

  void set_keys(std::span<const Position> positions) {
    if (positions.empty()) return;
    order_.resize(positions.size());
    std::iota(order_.begin(), order_.end(), Index{0});
    std::stable_sort(order_.begin(), order_.end(),
                     [&](Index a, Index b) { return positions[a] < positions[b]; });
    for (Index j : order_) keys_.push_back(positions[j]);
    if (std::is_sorted(order_.begin(), order_.end())) order_.clear();
    if (is_consecutive(keys_)) {
      first_key_ = keys_.front();
      keys_.clear();
    }
  }

  static bool is_consecutive(std::span<const Position> positions) {
    return std::adjacent_find(positions.begin(), positions.end(),
                              [](Position a, Position b) { return b != a + 1; }) == positions.end();
  }

  /// sum over i in rows of i + shift, cut off at 0 and n_k.
  double sum_of_bounds(Range rows, Position shift) const {
    const Index low = std::clamp<Position>(-shift, rows.begin, rows.end),
                high = std::clamp<Position>(n_k_ - shift, rows.begin, rows.end);
    const auto real = [](Position x) { return static_cast<double>(x); };
    return real(high - low) * (real(low + high - 1) / 2 + real(shift)) + real(rows.end - high) * real(n_k_);
  }

  /// The number of keys at positions below t.
  Index lower_bound(Position t) const {
    if (keys_.empty()) return std::clamp<Position>(t - first_key_, 0, n_k_);
    return std::lower_bound(keys_.begin(), keys_.end(), t) - keys_.begin();
  }

  Index n_q_;
  Index n_k_;
  Mask mask_;
  Position first_query_ = 0;       // where queries_ is empty
  Position first_key_ = 0;         // where keys_ is empty
  std::vector<Position> queries_;  // empty when consecutive
  std::vector<Position> keys_;     // ascending; empty when consecutive
  std::vector<Index> order_;       // empty when keys already ascend
};

}  // namespace fastrope::inline FASTROPE_TARGET
