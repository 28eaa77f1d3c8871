// Costs of paths in either arithmetic, and the rank that a budget allows.
#include "fastrope/plan/path_costs.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "fastrope/problem/options.hpp"
#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMost = static_cast<double>(kMaxRank);

/// Finds the largest affordable rank, within 1/64 below it, of costs base + slope rank^power.
void expect_largest(double base, double slope, double power, double budget) {
  SCOPED_TRACE(testing::Message() << base << " + " << slope << " rank^" << power << " < " << budget);
  int calls = 0;
  const auto seconds = [&](double rank) {
    ++calls;
    EXPECT_EQ(rank, std::floor(rank));
    EXPECT_GE(rank, 1);
    EXPECT_LE(rank, kMost);
    return base + slope * std::pow(rank, power);
  };
  const double most = most_rank(budget, seconds);
  EXPECT_LE(calls, 64);
  double largest = 0;  // of them all, by a search of its own
  for (double step = std::exp2(std::floor(std::log2(kMost))); step >= 1; step /= 2)
    if (largest + step <= kMost && seconds(largest + step) < budget) largest += step;
  if (largest == kMost) {
    EXPECT_EQ(most, std::numeric_limits<double>::max());
    return;
  }
  EXPECT_LE(most, largest) << "is not affordable";
  EXPECT_GE(most, largest - std::max(0.0, largest / 64));
  if (largest < 128) {
    EXPECT_EQ(most, largest);
  }
}

TEST(MostRank, IsTheLargestThatTheBudgetAllows) {
  Inputs inputs(1);
  for (int trial = 0; trial < 2000; ++trial) {
    const double power = inputs.uniform(0.5, 2), base = trial % 2 == 0 ? 0 : inputs.uniform(0, 1);
    const double rank = std::exp(inputs.uniform(-1, std::log(kMost) + 1));
    expect_largest(base, 1e-3, power, base + 1e-3 * std::pow(rank, power));
  }
  for (const double rank : {1, 2, 3, 63, 64, 65, 127, 128, 129}) {
    expect_largest(0, 1, 1, rank);  // less than it
    expect_largest(0, 1, 1, rank + 0.5);
  }
  expect_largest(0, 1, 1, kMost);
  expect_largest(0, 1, 1, kMost + 0.5);
}

TEST(MostRank, IsNoneWithoutABudgetAndAnyWithOneForAll) {
  const auto seconds = [](double rank) { return 1 + rank; };
  for (const double budget : {-kInfinity, -1.0, 0.0, 1.0, 2.0}) EXPECT_EQ(most_rank(budget, seconds), 0);
  EXPECT_EQ(most_rank(2.5, seconds), 1);
  EXPECT_EQ(most_rank(kMost + 2, seconds), std::numeric_limits<double>::max());
  EXPECT_EQ(most_rank(kInfinity, seconds), kInfinity);
  // Steps, not a slope: nothing but whether a rank is affordable counts.
  EXPECT_EQ(most_rank(1, [](double rank) { return rank > 40 ? 2.0 : 0.0; }), 40);
}

void expect_same(const Work& a, const Work& b) {
  EXPECT_EQ(a.tile, b.tile);
  EXPECT_EQ(a.weigh, b.weigh);
  EXPECT_EQ(a.feature, b.feature);
  EXPECT_EQ(a.transform, b.transform);
  EXPECT_EQ(a.element, b.element);
  EXPECT_EQ(a.round, b.round);
}

template <class Real>
class PathCostsTest : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(PathCostsTest, Reals);

TYPED_TEST(PathCostsTest, AreThoseOfTheArithmetic) {
  using Real = TypeParam;
  const CostModel rates{.tile = 3e9, .round = 7e4};
  for (const Mask& mask : {Mask::full(), Mask::causal()})
    for (const auto& [n_q, n_k] : {std::pair<Index, Index>{1, 500}, {700, 700}, {333, 1001}}) {
      SCOPED_TRACE(testing::Message() << n_q << " rows, " << n_k << " keys");
      // Widths that are no whole vectors or panels of either arithmetic alike.
      const Problem problem({4, 2, n_q, n_k, 13, 5}, {.mask = mask});
      const PathCosts costs(problem, rates, kArithmeticOf<Real>);
      EXPECT_EQ(costs.arithmetic(), kArithmeticOf<Real>);
      const Work exact = exact_work<Real>(problem);
      expect_same(costs.exact(), exact);
      EXPECT_EQ(costs.seconds(exact), rates.template seconds<Real>(exact));
      expect_same(costs.tiles(1234.5, 17), tile_work<Real>(problem, 1234.5, 17));
      expect_same(costs.toeplitz(9, 2), toeplitz_work<Real>(problem, 9, 2));
      const auto make = [&](Index rows) { return far_chunks<Real>(problem, rows); };
      for (const double rank : {1.0, 30.0, 4000.0}) {
        const std::vector<FarPairs> chunks = costs.best_chunks(rank, 2, make);
        const std::vector<FarPairs> expected = rates.template best_chunks<Real>(problem, rank, 2, make);
        EXPECT_TRUE(std::equal(chunks.begin(), chunks.end(), expected.begin(), expected.end(),
                               [](const FarPairs& a, const FarPairs& b) {
                                 return a.rows == b.rows && a.far == b.far && a.first == b.first &&
                                        a.later == b.later;
                               }));
        expect_same(costs.polynomial(rank, 2, chunks), polynomial_work<Real>(problem, rank, 2, chunks));
      }
    }
}

TEST(PathCosts, OfDoubleAreAboutTwiceThoseOfFloat) {
  const Problem problem({1, 1, 640, 640, 64, 64}, {});
  const CostModel rates;
  const PathCosts narrow(problem, rates, Arithmetic::float32), wide(problem, rates, Arithmetic::float64);
  EXPECT_NEAR(wide.seconds(wide.exact()) / narrow.seconds(narrow.exact()), 2, 0.1);
}

}  // namespace
}  // namespace fastrope_test
