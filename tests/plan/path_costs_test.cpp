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

TEST(MostRank, IsTheLargestThatTheBudgetAllows) {
  Inputs inputs(1);
  for (int trial = 0; trial < 2000; ++trial) {
    const double base = trial % 2 == 0 ? 0 : inputs.uniform(0, 1), slope = inputs.uniform(1e-3, 1);
    const auto seconds = [&](double rank) { return base + slope * rank; };
    const double rank = std::floor(std::exp(inputs.uniform(0, std::log(1e6))));
    SCOPED_TRACE(testing::Message() << base << " + " << slope << " rank, " << rank);
    EXPECT_EQ(most_rank(seconds(rank + 0.5), seconds(0), seconds(1)), rank);
    EXPECT_EQ(most_rank(seconds(rank - 0.5), seconds(0), seconds(1)), rank - 1);
  }
  for (const double rank : {1, 2, 3, 63, 64, 65, 127, 128, 129}) EXPECT_EQ(most_rank(rank, 0, 1), rank - 1);
  EXPECT_EQ(most_rank(kMost, 0, 1), kMost - 1);
}

TEST(MostRank, IsNoneWithoutABudgetAndAnyWithOneForAll) {
  for (const double budget : {-kInfinity, -1.0, 0.0, 1.0, 2.0}) EXPECT_EQ(most_rank(budget, 1, 2), 0);
  EXPECT_EQ(most_rank(2.5, 1, 2), 1);
  EXPECT_EQ(most_rank(kMost + 2, 1, 2), std::numeric_limits<double>::max());
  EXPECT_EQ(most_rank(kInfinity, 1, 2), kInfinity);
  // Of what costs nothing.
  EXPECT_EQ(most_rank(1, 1, 1), 0);
  EXPECT_EQ(most_rank(2, 1, 1), std::numeric_limits<double>::max());
}

TEST(MostRank, HoldsForFeaturesAndTransformsWhichCostInProportion) {
  const Problem problem({4, 2, 700, 1001, 13, 5}, {.mask = Mask::causal()});
  const CostModel rates;
  const PathCosts costs(problem, rates, Arithmetic::float32);
  const std::vector<FarPairs> chunks = far_chunks<float>(problem, 192);
  const auto features = [&](double rank) { return costs.seconds(costs.polynomial(rank, 2, chunks)); };
  const auto transforms = [&](double rank) { return costs.seconds(costs.toeplitz(rank, 1)); };
  for (const double rank : {1, 30, 4000}) {
    EXPECT_EQ(most_rank(features(rank + 0.5), features(0), features(1)), rank);
    EXPECT_EQ(most_rank(transforms(rank + 0.5), transforms(0), transforms(1)), rank);
  }
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
      const auto ways =
          CostModel::chunkings(problem, [&](Index rows) { return far_chunks<Real>(problem, rows); });
      for (const double rank : {1.0, 30.0, 4000.0}) {
        const std::vector<FarPairs> chunks = costs.best_chunks(rank, 2, ways);
        const std::vector<FarPairs> expected = rates.template best_chunks<Real>(problem, rank, 2, ways);
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
