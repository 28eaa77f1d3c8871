// PathCosts: what the paths of one problem cost, in the arithmetic that it will run in.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/plan/arithmetic.hpp"
#include "fastrope/plan/cost_model.hpp"
#include "fastrope/plan/path_work.hpp"
#include "fastrope/plan/work.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// path_work.hpp's counts, of one head unless more are given, and their seconds on one core. The problem and
/// the rates must outlive it.
class PathCosts {
 public:
  PathCosts(const Problem& problem, const CostModel& rates, Arithmetic arithmetic)
      : problem_(problem),
        rates_(rates),
        arithmetic_(arithmetic),
        exact_(with_real(arithmetic_,
                         [&](auto real) { return exact_work<typename decltype(real)::type>(problem); })) {}

  Arithmetic arithmetic() const { return arithmetic_; }
  double seconds(const Work& work) const {
    return with_real(arithmetic_,
                     [&](auto real) { return rates_.seconds<typename decltype(real)::type>(work); });
  }

  const Work& exact() const { return exact_; }
  Work tiles(double pairs, double rows) const {
    return with_real(arithmetic_, [&](auto real) {
      return tile_work<typename decltype(real)::type>(problem_, pairs, rows);
    });
  }
  Work toeplitz(double rank, double generators) const {
    return with_real(arithmetic_, [&](auto real) {
      return toeplitz_work<typename decltype(real)::type>(problem_, rank, generators);
    });
  }
  Work polynomial(double rank, Index heads, const std::vector<FarPairs>& chunks) const {
    return with_real(arithmetic_, [&](auto real) {
      return polynomial_work<typename decltype(real)::type>(problem_, rank, heads, chunks);
    });
  }
  /// CostModel::best_chunks.
  template <class MakeChunks>
  std::vector<FarPairs> best_chunks(double rank, Index heads, MakeChunks&& make_chunks) const {
    return with_real(arithmetic_, [&](auto real) {
      return rates_.best_chunks<typename decltype(real)::type>(problem_, rank, heads, make_chunks);
    });
  }

 private:
  const Problem& problem_;
  const CostModel& rates_;
  Arithmetic arithmetic_;
  Work exact_;
};

/// The largest rank for which `seconds(rank)`, which grows with the rank, is below `budget`, within 1/64: the
/// largest number if all that may be attempted are, 0 if none is; infinity for a budget without end.
template <class Seconds>
double most_rank(double budget, Seconds&& seconds) {
  Index low = 0, high = kMaxRank + 1;  // low is affordable, high is not
  if (budget == std::numeric_limits<double>::infinity()) return budget;
  if (seconds(static_cast<double>(kMaxRank)) < budget) return std::numeric_limits<double>::max();
  while (high - low > std::max<Index>(1, low / 64)) {
    const Index middle = low + (high - low) / 2;
    (seconds(static_cast<double>(middle)) < budget ? low : high) = middle;
  }
  return static_cast<double>(low);
}

}  // namespace fastrope::inline FASTROPE_TARGET
