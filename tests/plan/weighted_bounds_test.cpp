// Bounds that no entry of a general family exceeds.
#include "fastrope/plan/weighted_bounds.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/attention_case.hpp"
#include "support/look_at.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

TEST(WeightedBounds, BoundEveryEntryAndTheFeatures) {
  const auto expect = [](auto real) {
    using Real = decltype(real);
    Inputs random(4);
    for (int repeat = 0; repeat < 24; ++repeat) {
      AttentionCase c{.shapes = {2, 1, 40, 50, 5, 2}};
      c.base.weights = random_weights(random, 5, random.integer(1, 25), 60);
      c.base.mask = repeat % 2 == 0 ? Mask::full() : repeat % 4 == 1 ? Mask::causal() : Mask::lags(-3, 7);
      c.base.scale = repeat % 3 == 0 ? -0.7 : 0.2;
      AttentionInputs<Real> in(c.shapes, random);
      for (Index i = 0; i < 40; ++i)
        for (Index m = 0; m < 5; ++m) in.q(1, i, m) *= Real{4};
      const Problem problem(c.shapes, c.options());
      auto look = look_at(problem, in, 0);
      const auto support = c.base.weights->support();
      for (Index h = 0; h < 2; ++h) {
        const WeightedBounds b = weighted_bounds(look, h, problem, std::numeric_limits<Real>::epsilon());
        double largest = 0, features = 0;
        for (Index i = 0; i < 40; ++i)
          for (Index j = 0; j < 50; ++j) {
            const Position lag = 10 + i - j;
            if (!c.base.mask.allows(lag)) continue;
            double x = 0, query = 0, key = 0;
            for (std::size_t s = 0; s < support.size(); ++s) {
              const double q = static_cast<double>(in.q(h, i, support[s].a)),
                           k = static_cast<double>(in.k(0, j, support[s].b));
              const double w = (*c.base.weights)(lag, static_cast<Index>(s));
              x += q * w * k;
              query += q * q;
              key += w * k * w * k;
            }
            largest = std::max(largest, std::abs(problem.scale * x));
            features = std::max(features, std::abs(problem.scale) * std::sqrt(query * key));
          }
        EXPECT_LE(largest, b.radius) << "head " << h << ", " << support.size() << " entries";
        EXPECT_LE(features, b.feature_radius) << "head " << h << ", " << support.size() << " entries";
      }
    }
  };
  expect(0.0f);
  expect(0.0);
}

TEST(WeightedBounds, AreTheLesserOfTwo) {
  // Rows of one direction each, +-2 in q and +-3 in k, so that both bounds can be told from the weights.
  AttentionCase c{.shapes = {1, 1, 4, 4, 4, 1}};
  c.base.scale = -0.5;
  AttentionInputs<double> in(c.shapes, 8);
  for (Index i = 0; i < 4; ++i)
    for (Index m = 0; m < 4; ++m) {
      in.q(0, i, m) = i == m ? 2 : 0;
      in.k(0, i, m) = i == m ? -3 : 0;
    }
  const auto bounds = [&](const std::vector<RelativeWeights::Entry>& support, auto&& weight) {
    c.base.weights = RelativeWeights(support, -3, 3, weight);
    const Problem problem(c.shapes, c.options());
    auto look = look_at(problem, in, 0);
    return weighted_bounds(look, 0, problem, std::numeric_limits<double>::epsilon());
  };
  // To a few epsilon outward: norms of 4 columns and 16 epsilon of allowance.
  const auto expect_just_above = [](double bound, double exact) {
    EXPECT_GE(bound, exact);
    EXPECT_LE(bound, exact * (1 + 64 * std::numeric_limits<double>::epsilon()));
  };
  const auto one = [](Position, Index) { return 1.0; };
  // W = diag(1): by entries 4 x 2 x 3, by norms 2 x 3.
  const std::vector<RelativeWeights::Entry> diagonal = {{0, 0}, {1, 1}, {2, 2}, {3, 3}};
  const WeightedBounds identity = bounds(diagonal, one);
  expect_just_above(identity.radius, 0.5 * 2 * 3);
  expect_just_above(identity.feature_radius, 0.5 * 4 * 6);  // columns' maxima, four of each
  // q^ and k^ of about one size, the scale among the queries'.
  EXPECT_DOUBLE_EQ(identity.balance * identity.balance * 0.5 * 4, 6);
  // One entry: both say 2 x |w| x 3, of the largest |w|.
  const auto slope = [](Position lag, Index) { return 0.125 * static_cast<double>(lag); };
  expect_just_above(bounds({{1, 2}}, slope).radius, 0.5 * 2 * 0.375 * 3);
  // A full row of W, (1, 1, 1, 1): |W|_1 = 1 and |W|_inf = 4, so by norms 2 x 2 x 3, by entries 4 x 2 x 3.
  expect_just_above(bounds({{0, 0}, {0, 1}, {0, 2}, {0, 3}}, one).radius, 0.5 * 2 * 2 * 3);
  // Queries along the first axis alone, keys along the second: the entries see that they never meet.
  for (Index i = 0; i < 4; ++i)
    for (Index m = 0; m < 4; ++m) {
      in.q(0, i, m) = m == 0 ? 2 : 0;
      in.k(0, i, m) = m == 1 ? 3 : 0;
    }
  EXPECT_EQ(bounds(diagonal, one).radius, 0);
}

TEST(WeightedBounds, CountOnlyLagsThatTheMaskAllows) {
  AttentionCase c{.shapes = {1, 1, 20, 20, 2, 1}};
  std::vector<double> weights(39, 1.0);  // lags -19..19
  for (std::size_t m = 0; m < 19; ++m) weights[m] = 100;
  c.base.weights = RelativeWeights({{0, 1}}, -19, weights);
  const AttentionInputs<double> in(c.shapes, 9);
  const auto radius = [&](const Mask& mask) {
    c.base.mask = mask;
    const Problem problem(c.shapes, c.options());
    auto look = look_at(problem, in, 0);
    return weighted_bounds(look, 0, problem, std::numeric_limits<double>::epsilon()).radius;
  };
  EXPECT_GT(radius(Mask::causal()), 0);
  EXPECT_DOUBLE_EQ(radius(Mask::full()), 100 * radius(Mask::causal()));
  EXPECT_DOUBLE_EQ(radius(Mask::lags(-1, 5)), 100 * radius(Mask::causal()));
}

}  // namespace
}  // namespace fastrope_test
