// Projections of keys and queries against the same products in double, and the identity they rest on.
#include "fastrope/polynomial/projection.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using fastrope::kLog2E;
using fastrope::Projection;
using fastrope::simd::kLanes;

/// sum_c axis[c] (x[c] - shift[c]) and the size of its summands.
struct Product {
  double sum = 0;
  double size = 0;
};

template <class Real>
class ProjectionTest : public testing::Test {
 protected:
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
  /// Of exp2_nonpositive, relative.
  static constexpr double kExponential = sizeof(Real) == 4 ? 3.5e-7 : 4e-16;
  static constexpr Real kUntouched = 77;

  std::vector<double> numbers(Index count, double sigma) {
    std::vector<double> list;
    for (Index i = 0; i < count; ++i) list.push_back(sigma * inputs_.normal());
    return list;
  }

  Projection random_projection(Index d, Index variables) {
    return {.key_shift = numbers(d, 1),
            .query_shift = numbers(d, 1),
            .key_axes = numbers(variables * d, 1),
            .query_axes = numbers(variables * d, 1)};
  }

  /// axes [l] (column i of panel [d, stride] times factor - shift).
  static Product product(const std::vector<double>& axes, Index l, const std::vector<Real>& panel,
                         Index stride, Index i, double factor, const std::vector<double>& shift) {
    Product p;
    for (std::size_t c = 0; c < shift.size(); ++c) {
      const double axis = axes[static_cast<std::size_t>(l) * shift.size() + c];
      const double x =
          factor *
          static_cast<double>(panel[c * static_cast<std::size_t>(stride) + static_cast<std::size_t>(i)]);
      p.sum += axis * (x - shift[c]);
      p.size += std::abs(axis) * (std::abs(x) + std::abs(shift[c]));
    }
    return p;
  }

  /// One rounding of each axis, shift, difference and factor, d of the sum.
  static double roundings(Index d) { return static_cast<double>(d) + 4; }

  void expect_keys(Index d, Index variables, Index width, Index count, double scale) {
    SCOPED_TRACE(testing::Message() << "d " << d << ", " << variables << " variables, " << count
                                    << " keys of " << width << ", scale " << scale);
    Projection p = random_projection(d, variables);
    const auto panel = inputs_.gaussian<Real>(1, d, width).values;
    std::vector<Product> logs;  // of the weights
    for (Index i = 0; i < width; ++i)
      logs.push_back(product(p.query_shift, 0, panel, width, i, 1, p.key_shift));
    for (const Product& log : logs) p.weight_max = std::max(p.weight_max, scale * log.sum);
    p.weight_max += 0.125;

    const Index stride = width + 3;
    std::vector<Real> y(static_cast<std::size_t>(variables * stride), kUntouched), scratch = panel;
    std::vector<Real> weight(static_cast<std::size_t>(width), std::numeric_limits<Real>::quiet_NaN());
    fastrope::project_keys(p, scale, width, count, scratch.data(), y.data(), stride, weight.data());
    for (Index i = 0; i < width; ++i) {
      for (Index l = 0; l < variables; ++l) {
        const Product expected = product(p.key_axes, l, panel, width, i, 1, p.key_shift);
        ASSERT_NEAR(static_cast<double>(y[static_cast<std::size_t>(l * stride + i)]), expected.sum,
                    roundings(d) * kEpsilon * expected.size)
            << "variable " << l << " of key " << i;
      }
      const Product& log = logs[static_cast<std::size_t>(i)];
      const double expected = i < count ? std::exp(scale * log.sum - p.weight_max) : 0;
      const double exponent = std::abs(scale) * log.size + p.weight_max;
      const double tolerance = kExponential + roundings(d) * kEpsilon * exponent;
      // Below the normal numbers a weight may be 0.
      ASSERT_NEAR(static_cast<double>(weight[static_cast<std::size_t>(i)]), expected,
                  tolerance * expected + (i < count ? std::numeric_limits<Real>::min() : 0))
          << "weight of key " << i;
    }
    for (Index l = 0; l < variables; ++l)
      for (Index i = width; i < stride; ++i)
        EXPECT_EQ(y[static_cast<std::size_t>(l * stride + i)], kUntouched);
  }

  void expect_queries(Index d, Index variables, Index width, double scale, double unit) {
    SCOPED_TRACE(testing::Message() << "d " << d << ", " << variables << " variables, " << width
                                    << " queries, scale " << scale << ", unit " << unit);
    Projection p = random_projection(d, variables);
    p.weight_max = inputs_.uniform(0, 5);
    const Index stride = width + 5;  // columns of the panel that are other queries
    const auto panel = inputs_.gaussian<Real>(1, d, stride, unit * scale).values;
    std::vector<double> shift = p.query_shift;
    for (double& nu : shift) nu *= scale;
    std::vector<Real> shifted(static_cast<std::size_t>(d * width)),
        row_factor(static_cast<std::size_t>(width));
    std::vector<Real> x(static_cast<std::size_t>(variables * width) + 1, kUntouched);
    fastrope::project_queries(p, scale, unit, width, panel.data(), stride, shifted.data(), x.data(),
                              row_factor.data());
    const std::vector<double> nothing(static_cast<std::size_t>(d));
    for (Index i = 0; i < width; ++i) {
      for (Index l = 0; l < variables; ++l) {
        const Product expected = product(p.query_axes, l, panel, stride, i, 1 / unit, shift);
        ASSERT_NEAR(static_cast<double>(x[static_cast<std::size_t>(l * width + i)]), expected.sum,
                    roundings(d) * kEpsilon * expected.size)
            << "variable " << l << " of query " << i;
      }
      const Product expected = product(p.key_shift, 0, panel, stride, i, 1, nothing);
      ASSERT_NEAR(static_cast<double>(row_factor[static_cast<std::size_t>(i)]),
                  expected.sum + unit * p.weight_max,
                  roundings(d) * kEpsilon * (expected.size + unit * p.weight_max))
          << "query " << i;
    }
    EXPECT_EQ(x.back(), kUntouched);
  }

  Inputs inputs_{1};
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(ProjectionTest, Reals);

TYPED_TEST(ProjectionTest, KeysAreShiftedWeighedAndTurned) {
  constexpr Index kStep = kLanes<TypeParam>;
  for (const Index d : {1, 2, 7, 16, 33})
    for (const Index variables : {Index{0}, Index{1}, d / 2, d})
      for (const Index width : {kStep, 2 * kStep, 5 * kStep})
        for (const Index count : {width, width - 1, Index{1}, Index{0}}) {
          this->expect_keys(d, variables, width, count, 0.1);
          this->expect_keys(d, variables, width, count, -0.7);
          if (this->HasFatalFailure()) return;
        }
}

TYPED_TEST(ProjectionTest, QueriesAreShiftedAndTurnedAndKnowTheirRowsFactor) {
  constexpr Index kStep = kLanes<TypeParam>;
  for (const Index d : {1, 2, 7, 16, 33})
    for (const Index variables : {Index{0}, Index{1}, d / 2, d})
      for (const Index width : {kStep, 3 * kStep})
        for (const double scale : {0.1, -0.7}) {
          this->expect_queries(d, variables, width, scale, 1);
          this->expect_queries(d, variables, width, scale, kLog2E);
          if (this->HasFatalFailure()) return;
        }
}

TYPED_TEST(ProjectionTest, WeightsTooSmallForTheirTypeVanish) {
  using Real = TypeParam;
  constexpr Index kStep = kLanes<Real>;
  const Projection p{.key_shift = {0}, .query_shift = {1}, .weight_max = 1e6};
  std::vector<Real> panel(static_cast<std::size_t>(kStep), Real{2}), weight(panel.size());
  fastrope::project_keys<Real>(p, 1, kStep, kStep, panel.data(), nullptr, kStep, weight.data());
  for (const Real w : weight) EXPECT_EQ(w, 0);
}

TYPED_TEST(ProjectionTest, TheLogitIsTheSumOfItsParts) {
  // s q.k = row's factor + key's log weight + x.y, with axes that are each other's inverses.
  using Real = TypeParam;
  constexpr Index kStep = kLanes<Real>, d = 6;
  for (const double scale : {0.4, -0.3})
    for (const double unit : {1.0, kLog2E}) {
      Projection p = this->random_projection(d, 0);
      const Projection axes = Projection::identity(d, 3);
      p.query_axes = axes.query_axes;
      p.key_axes = axes.key_axes;
      p.weight_max = 5;
      const auto keys = this->inputs_.template gaussian<Real>(1, d, kStep, 0.5).values;
      auto queries = this->inputs_.template gaussian<Real>(1, d, kStep).values;
      auto scratch = keys;
      std::vector<Real> y(keys.size()), x(keys.size()), shifted(keys.size());
      std::vector<Real> weight(static_cast<std::size_t>(kStep)), row_factor = weight;
      fastrope::project_keys(p, scale, kStep, kStep, scratch.data(), y.data(), kStep, weight.data());
      std::vector<Real> panel = queries;
      for (Real& q : panel) q = static_cast<Real>(unit * scale * static_cast<double>(q));
      fastrope::project_queries(p, scale, unit, kStep, panel.data(), kStep, shifted.data(), x.data(),
                                row_factor.data());
      for (std::size_t i = 0; i < weight.size(); ++i)
        for (std::size_t j = 0; j < weight.size(); ++j) {
          double logit = 0, dot = 0, size = 2 * p.weight_max + 2;
          for (std::size_t c = 0; c < d; ++c) {
            const double q = static_cast<double>(queries[c * weight.size() + i]),
                         k = static_cast<double>(keys[c * weight.size() + j]);
            logit += scale * q * k;
            dot +=
                static_cast<double>(x[c * weight.size() + i]) * static_cast<double>(y[c * weight.size() + j]);
            size += 2 * std::abs(scale) * (std::abs(q) + std::abs(p.query_shift[c])) *
                    (std::abs(k) + std::abs(p.key_shift[c]));
          }
          const double parts =
              static_cast<double>(row_factor[i]) / unit + std::log(static_cast<double>(weight[j])) + dot;
          EXPECT_NEAR(parts, logit, 2 * this->roundings(d) * this->kEpsilon * size);
        }
    }
}

TYPED_TEST(ProjectionTest, NoneIsTheIdentity) {
  using Real = TypeParam;
  Inputs random(5);
  const Index d = 7, width = 4 * kLanes<Real>, count = width - 3;
  const auto panel = random.gaussian<Real>(1, d, width).values;
  const auto project = [&](const Projection& p) {
    const auto rows = [&](Index n) {
      return std::vector<Real>(static_cast<std::size_t>(n * width), Real{9});
    };
    std::vector<Real> y = rows(d), x = rows(d), weight = rows(1), factor = rows(1), scratch = panel;
    fastrope::project_keys(p, 0.3, width, count, scratch.data(), y.data(), width, weight.data());
    fastrope::project_queries(p, 0.3, 1.5, width, panel.data(), width, scratch.data(), x.data(),
                              factor.data());
    return std::vector{y, x, weight, factor};
  };
  EXPECT_EQ(project(Projection::none(d)), project(Projection::identity(d, 1)));
}

TEST(Projection, TheIdentityHasNoShiftsAndBalancesTheSides) {
  const Projection p = Projection::identity(3, 4);
  EXPECT_EQ(p.key_shift, std::vector<double>(3));
  EXPECT_EQ(p.query_shift, std::vector<double>(3));
  EXPECT_EQ(p.query_axes, (std::vector<double>{4, 0, 0, 0, 4, 0, 0, 0, 4}));
  EXPECT_EQ(p.key_axes, (std::vector<double>{0.25, 0, 0, 0, 0.25, 0, 0, 0, 0.25}));
  EXPECT_EQ(p.weight_max, 0);
  EXPECT_EQ(p.variables(), 3);
  EXPECT_EQ(Projection::identity(0, 1).variables(), 0);
  EXPECT_EQ(Projection{}.variables(), 0);
}

}  // namespace
}  // namespace fastrope_test
