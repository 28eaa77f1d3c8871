// The choice of an index set: limits with nearly the smallest rank whose tail a certificate can afford.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/plan/certificate.hpp"
#include "fastrope/polynomial/monomials.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// The limits in which each cut loses at most `loss`.
inline std::vector<int> limits_within(std::span<const std::vector<double>> losses, double loss) {
  std::vector<int> limits;
  int limit = losses.empty() ? 0 : static_cast<int>(losses[0].size()) - 1;
  for (const std::vector<double>& of_cut : losses) {
    while (limit > 0 && of_cut[static_cast<std::size_t>(limit - 1)] <= loss) --limit;
    limits.push_back(limit);
  }
  return limits;
}

}  // namespace detail

/// Nonincreasing limits, at most the degree, with tail_error(limits, losses) <= budget. The rank is never
/// above the simplex's; it need not be the smallest possible.
///
/// All cuts are first allowed the same loss, as large as the budget lets it be; then single limits are
/// lowered, the best first, while the budget lasts.
/// losses: [variables][degree + 1], of tail_losses. Cost: O(variables^2 degree) a step, at most 8 steps.
inline std::vector<int> choose_limits(std::span<const std::vector<double>> losses, double budget) {
  constexpr int kHalvings = 40, kSteps = 8;
  if (losses.empty()) return {};
  std::vector<int> best =
      simplex_limits(static_cast<Index>(losses.size()), static_cast<int>(losses[0].size()) - 1);
  double best_rank = rank_of(best);
  const auto improve = [&](std::vector<int> limits) {
    if (!(tail_error(limits, losses) <= budget)) return false;
    const double rank = rank_of(limits);
    if (rank < best_rank) {
      best = std::move(limits);
      best_rank = rank;
    }
    return true;
  };
  double low = std::log2(budget) - kHalvings, high = std::log2(budget);
  for (int i = 0; i < kHalvings / 2; ++i) {
    const double middle = (low + high) / 2;
    (improve(detail::limits_within(losses, std::exp2(middle))) ? low : high) = middle;
  }
  for (int step = 0; step < kSteps; ++step) {
    // A copy, as improve() writes to best.
    const std::vector<int> start = best;  // NOLINT(performance-unnecessary-copy-initialization)
    const double start_rank = best_rank;
    for (std::size_t l = 0; l < start.size(); ++l) {
      if (start[l] == 0) break;
      std::vector<int> lowered = start;
      for (std::size_t m = l; m < lowered.size(); ++m) lowered[m] = std::min(lowered[m], start[l] - 1);
      improve(std::move(lowered));
    }
    if (best_rank == start_rank) break;
  }
  return best;
}

}  // namespace fastrope::inline FASTROPE_TARGET
