// Lag tails: the lags at both ends of the allowed ones over which a bias is a straight line, so that its
// factor e^b(lag) is an exponential, which separates into a factor of the row and one of the key.
//
// ALiBi has two tails that meet at lag 0, T5's buckets are constant beyond the last one, a window without
// bias is a single tail. Keys in a tail of a whole chunk of rows need no transforms: they are the polynomial
// path's far field, with a running state (polynomial/attention.hpp), and those between are its near field.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// b(lag) = level - slope lag for all lags from the inner one to the outer one, within `miss`.
struct LagTail {
  Position inner = 0;
  FarFactor factor = {};
  double miss = 0;
};

/// The tails of one head's bias over the lags [first, last] that the mask allows. Not both need exist.
struct LagTails {
  LagGrid::Lags allowed = {};
  std::optional<LagTail> past = {};   ///< from inner up to allowed.last
  std::optional<LagTail> later = {};  ///< from allowed.first up to inner, below past's
};

namespace detail {

/// The longest tail that begins at lag `outer` and goes towards `end` (exclusive), by `step` = 1 or -1: lines
/// through b(outer) that miss no value by more than its own rounding.
template <class Bias>
LagTail find_tail(const Bias& bias, Position outer, Position end, Position step) {
  double least = -std::numeric_limits<double>::infinity(), most = -least;  // slopes, per step inwards
  const double at_outer = bias(outer);
  LagTail tail{.inner = outer};
  for (Position lag = outer + step; lag != end; lag += step) {
    const double value = bias(lag), distance = static_cast<double>(std::abs(lag - outer));
    const double rounding =
        8 * std::numeric_limits<double>::epsilon() * std::max({1.0, std::abs(value), std::abs(at_outer)});
    const double low = std::max(least, (value - at_outer - rounding) / distance),
                 high = std::min(most, (value - at_outer + rounding) / distance);
    if (!(low <= high)) break;
    least = low;
    most = high;
    tail.inner = lag;
    tail.miss = std::max(tail.miss, rounding);
  }
  if (tail.inner != outer && !(least <= 0 && most >= 0))
    tail.factor.slope = (least + most) / 2 * static_cast<double>(-step);
  tail.factor.level = at_outer + tail.factor.slope * static_cast<double>(outer);
  return tail;
}

}  // namespace detail

/// Requires consecutive positions. A tail is left out if its factors grow from the rows outwards, as what
/// keys leave behind in a state would grow too, or if its bias is so large that it says "masked" or loses
/// digits. Cost: O(lags).
inline LagTails find_lag_tails(const Problem& problem, Index head) {
  constexpr double kMostGrowth = 0.1, kLargest = 1e6;
  LagTails tails{.allowed = problem.grid.allowed_lags()};
  const auto [first, last] = tails.allowed;
  if (first > last) return tails;
  const auto bias = [&](Position lag) { return problem.bias.empty() ? 0.0 : problem.bias(head, lag); };
  const double range = static_cast<double>(last - first);
  const auto keeps = [&](Position outer, const LagTail& tail, double slope_outwards) {
    return slope_outwards * range <= kMostGrowth && std::abs(bias(outer)) <= kLargest &&
           std::abs(bias(tail.inner)) <= kLargest;
  };
  const LagTail past = detail::find_tail(bias, last, first - 1, -1);
  if (keeps(last, past, -past.factor.slope)) tails.past = past;
  if (const Position end = tails.past ? past.inner : last + 1; end > first) {
    const LagTail later = detail::find_tail(bias, first, end, 1);
    if (keeps(first, later, later.factor.slope)) tails.later = later;
  }
  return tails;
}

/// Chunks of `rows` rows, their far keys those in the tails of every row, whole blocks of keys or as far as
/// keys go.
template <class Real>
std::vector<FarPairs> tail_chunks(const Problem& problem, const LagTails& tails, Index rows) {
  const LagGrid& grid = problem.grid;
  const Index n_k = grid.n_k();
  // The keys at lags from `least` to `most` of all rows of a chunk.
  const auto keys_at = [&](Range chunk, Position least, Position most) {
    const Position first = chunk.end - 1 + grid.offset() - most,
                   end = chunk.begin + grid.offset() - least + 1;
    const Range keys{first <= 0 ? 0 : round_up(first, kKeyBlock<Real>),
                     end >= n_k ? n_k : round_down(std::max<Position>(end, 0), kKeyBlock<Real>)};
    return keys.empty() ? Range{} : keys;
  };
  std::vector<FarPairs> chunks;
  for (Index i = 0; i < grid.n_q(); i += rows) {
    FarPairs pairs{.rows = {i, std::min(i + rows, grid.n_q())}, .far = 0};
    if (tails.past) {
      const Range keys = keys_at(pairs.rows, tails.past->inner, tails.allowed.last);
      pairs.first = keys.begin;
      pairs.far = keys.end;
    }
    if (tails.later) pairs.later = keys_at(pairs.rows, tails.allowed.first, tails.later->inner);
    FarPairs* const before = chunks.empty() ? nullptr : &chunks.back();
    if (before && before->first == pairs.first && before->far == pairs.far && before->later == pairs.later)
      before->rows.end = pairs.rows.end;
    else
      chunks.push_back(pairs);
  }
  return chunks;
}

}  // namespace fastrope::inline FASTROPE_TARGET
