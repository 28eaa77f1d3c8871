// The bounds that every certificate rests on: no entry, weight or family exceeds them, and they are not loose
// beyond what norms can tell.
#include "fastrope/dispatch/entry_bounds.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/attention_case.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

EntryBounds look(const AttentionCase& c, const AttentionInputs<double>& in) {
  return entry_bounds(Problem(c.shapes, c.options()), TensorView<const double>(in.q.view()),
                      TensorView<const double>(in.k.view()), TensorView<const double>(in.v.view()));
}

double dot(const double* a, const double* b, Index n) {
  double sum = 0;
  for (Index c = 0; c < n; ++c) sum += a[c] * b[c];
  return sum;
}

TEST(EntryBounds, DescribeTheRotatedRows) {
  AttentionCase c{.shapes = {4, 2, 90, 150, 8, 3}};
  c.base.rope = Rope{};
  AttentionInputs<double> in(c.shapes, 1);
  const EntryBounds bounds = look(c, in);
  ASSERT_EQ(bounds.queries.size(), 4u);
  ASSERT_EQ(bounds.keys.size(), 2u);
  const auto expect = [](const std::vector<RowBounds>& bounds_of_heads, const Tensor<double>& x) {
    for (Index h = 0; h < x.heads; ++h) {
      const RowBounds& b = bounds_of_heads[static_cast<std::size_t>(h)];
      std::vector<double> mean(8), column(8);
      double norm = 0, centred_norm = 0;
      for (Index i = 0; i < x.rows; ++i)
        for (Index m = 0; m < 8; ++m) {
          mean[static_cast<std::size_t>(m)] += x(h, i, m) / static_cast<double>(x.rows);
          column[static_cast<std::size_t>(m)] =
              std::max(column[static_cast<std::size_t>(m)], std::abs(x(h, i, m)));
        }
      for (Index i = 0; i < x.rows; ++i) {
        double centred = 0;
        for (Index m = 0; m < 8; ++m) centred += std::pow(x(h, i, m) - mean[static_cast<std::size_t>(m)], 2);
        centred_norm = std::max(centred_norm, std::sqrt(centred));
        norm = std::max(norm, std::sqrt(dot(&x(h, i, 0), &x(h, i, 0), 8)));
      }
      EXPECT_TRUE(b.finite);
      EXPECT_NEAR(b.norm, norm, 1e-13 * norm);
      EXPECT_NEAR(b.centred_norm, centred_norm, 1e-13 * norm);
      for (std::size_t m = 0; m < 8; ++m) {
        EXPECT_NEAR(b.mean[m], mean[m], 1e-13 * norm);
        EXPECT_NEAR(b.column[m], column[m], 1e-13 * norm);
      }
    }
  };
  reference_rotate(
      *c.base.rope, [](Index i) { return 60 + i; }, in.q);
  reference_rotate(
      *c.base.rope, [](Index j) { return j; }, in.k);
  expect(bounds.queries, in.q);
  expect(bounds.keys, in.k);
}

TEST(EntryBounds, SayWhatIsNotFinite) {
  const AttentionCase c{.shapes = {4, 2, 9, 15, 8, 3}};
  for (const double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY), 1e200}) {
    AttentionInputs<double> in(c.shapes, 2);
    in.q(1, 8, 7) = bad;
    in.k(1, 14, 0) = bad;
    in.v(0, 0, 2) = bad;
    const EntryBounds bounds = look(c, in);
    for (std::size_t h = 0; h < 4; ++h) EXPECT_EQ(bounds.queries[h].finite, h != 1);
    EXPECT_TRUE(bounds.keys[0].finite);
    EXPECT_FALSE(bounds.keys[1].finite);
    EXPECT_EQ(bounds.finite_values[0], std::isfinite(bad));
    EXPECT_TRUE(bounds.finite_values[1]);
  }
}

TEST(BestShift, BoundsEveryEntryAndEveryWeight) {
  Inputs random(3);
  for (const double mean : {0.0, 0.5, 4.0}) {
    for (const double scale : {0.3, -0.3, 1e-5}) {
      AttentionCase c{.shapes = {1, 1, 120, 140, 6, 2}};
      AttentionInputs<double> in(c.shapes, random);
      in.q = random.common_mean<double>(1, 120, 6, mean, 0.6);
      in.k = random.common_mean<double>(1, 140, 6, mean, 0.6);
      const EntryBounds bounds = look(c, in);
      for (const bool may_weigh_keys : {false, true}) {
        const Shift s = best_shift(bounds.queries[0], bounds.keys[0], scale, may_weigh_keys, kEpsilon);
        double largest = 0, raw = 0, weight = -INFINITY;
        for (Index i = 0; i < 120; ++i)
          for (Index j = 0; j < 140; ++j) {
            std::vector<double> q(6), k(6);
            for (std::size_t m = 0; m < 6; ++m) {
              q[m] = in.q(0, i, static_cast<Index>(m)) - s.query_shift[m];
              k[m] = in.k(0, j, static_cast<Index>(m)) - s.key_shift[m];
            }
            largest = std::max(largest, std::abs(scale * dot(q.data(), k.data(), 6)));
            raw = std::max(raw, std::abs(scale * dot(&in.q(0, i, 0), &in.k(0, j, 0), 6)));
            weight = std::max(weight, scale * dot(s.query_shift.data(), k.data(), 6));
          }
        EXPECT_LE(largest, s.radius);
        EXPECT_LE(s.radius, 6 * largest);
        EXPECT_LE(weight, s.weight_max);
        if (mean > 1 && may_weigh_keys) {
          EXPECT_LT(s.radius, raw / 1.5);
        }
        if (!may_weigh_keys) {
          EXPECT_EQ(s.weight_max, 0);
          for (double nu : s.query_shift) EXPECT_EQ(nu, 0);
        }
      }
    }
  }
}

TEST(WeightedBounds, BoundEveryEntryAndTheFeatures) {
  Inputs random(4);
  for (int repeat = 0; repeat < 20; ++repeat) {
    AttentionCase c{.shapes = {1, 1, 40, 50, 5, 2}};
    c.base.weights = random_weights(random, 5, random.integer(1, 25), 60);
    c.base.mask = repeat % 2 == 0 ? Mask::full() : Mask::causal();
    AttentionInputs<double> in(c.shapes, random);
    const Problem problem(c.shapes, c.options());
    const EntryBounds bounds = look(c, in);
    const WeightedBounds b = weighted_bounds(bounds.queries[0], bounds.keys[0], problem, kEpsilon);
    const auto support = c.base.weights->support();
    double largest = 0, features = 0;
    for (Index i = 0; i < 40; ++i)
      for (Index j = 0; j < 50; ++j) {
        const Position lag = 10 + i - j;
        if (!c.base.mask.allows(lag)) continue;
        double x = 0, query = 0, key = 0;
        for (std::size_t s = 0; s < support.size(); ++s) {
          const double q = in.q(0, i, support[s].a), k = in.k(0, j, support[s].b);
          const double w = (*c.base.weights)(lag, static_cast<Index>(s));
          x += q * w * k;
          query += q * q;
          key += w * k * w * k;
        }
        largest = std::max(largest, std::abs(problem.scale * x));
        features = std::max(features, problem.scale * std::sqrt(query * key));
      }
    EXPECT_LE(largest, b.radius);
    EXPECT_LE(features, b.feature_radius);
  }
}

}  // namespace
}  // namespace fastrope_test
