#include "fastrope/plan/index_set.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

TEST(ChooseLimits, KeepTheBudgetAndNeverExceedTheSimplex) {
  Inputs inputs(1);
  for (int trial = 0; trial < 300; ++trial) {
    const double radius = inputs.uniform(0.1, 6), decay = inputs.uniform(0.05, 1);
    const TailBound bound(ExpPolynomial::minimax(radius, static_cast<int>(inputs.integer(0, 9))));
    std::vector<double> couplings{radius};
    while (static_cast<std::int64_t>(couplings.size()) < 1 + trial % 12)
      couplings.push_back(couplings.back() * decay);
    const auto losses = tail_losses(bound, couplings, couplings.size());
    const double budget = std::pow(10.0, inputs.uniform(-6, -1));
    const std::vector<int> limits = choose_limits(losses, budget);
    ASSERT_EQ(limits.size(), couplings.size());
    EXPECT_LE(tail_error(limits, losses), budget);
    for (std::size_t l = 0; l < limits.size(); ++l) {
      EXPECT_LE(limits[l], l == 0 ? bound.degree() : limits[l - 1]);
      EXPECT_GE(limits[l], 0);
    }
    EXPECT_LE(rank_of(limits), rank_of(simplex_limits(static_cast<Index>(limits.size()), bound.degree())));
  }
}

// Small enough to try all limits.
TEST(ChooseLimits, IsCloseToTheBest) {
  const TailBound bound(ExpPolynomial::minimax(2, 6));
  for (const double decay : {0.2, 0.5, 0.8})
    for (const double budget : {1e-2, 1e-3, 1e-4}) {
      const std::vector<double> couplings{2, 2 * decay, 2 * decay * decay, 2 * std::pow(decay, 3)};
      const auto losses = tail_losses(bound, couplings, couplings.size());
      double best = rank_of(simplex_limits(4, 6));
      for (int a = 0; a <= 6; ++a)
        for (int b = 0; b <= a; ++b)
          for (int c = 0; c <= b; ++c)
            for (int e = 0; e <= c; ++e) {
              const std::vector<int> limits{a, b, c, e};
              if (tail_error(limits, losses) <= budget) best = std::min(best, rank_of(limits));
            }
      EXPECT_LE(rank_of(choose_limits(losses, budget)), 1.15 * best) << decay << ' ' << budget;
    }
}

TEST(ChooseLimits, LeavesOutWhatIsZero) {
  const TailBound bound(ExpPolynomial::minimax(1, 4));
  const auto losses = tail_losses(bound, std::vector{1.0, 0.0, 0.0}, 3);
  EXPECT_EQ(choose_limits(losses, 1e-9), (std::vector{4, 0, 0}));
  EXPECT_TRUE(choose_limits({}, 1e-3).empty());
}

}  // namespace
}  // namespace fastrope_test
