// PathCosts: what the paths of one problem cost, in the arithmetic that it will run in.
#pragma once

#include <cmath>
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
  std::vector<FarPairs> best_chunks(double rank, Index heads,
                                    const std::vector<std::vector<FarPairs>>& ways) const {
    return with_real(arithmetic_, [&](auto real) {
      return rates_.best_chunks<typename decltype(real)::type>(problem_, rank, heads, ways);
    });
  }

 private:
  const Problem& problem_;
  const CostModel& rates_;
  Arithmetic arithmetic_;
  Work exact_;
};

/// The largest rank whose seconds, none + rank (one - none), are below `budget`: the largest number if all
/// that may be attempted are, 0 if none is; infinity for a budget without end.
inline double most_rank(double budget, double none, double one) {
  if (budget == std::numeric_limits<double>::infinity()) return budget;
  const double rank = std::ceil((budget - none) / (one - none)) - 1;
  if (rank >= static_cast<double>(kMaxRank)) return std::numeric_limits<double>::max();
  return rank > 0 ? rank : 0;
}

}  // namespace fastrope::inline FASTROPE_TARGET
