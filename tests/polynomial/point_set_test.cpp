#include "fastrope/polynomial/point_set.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

template <class Real>
class PointSetTest : public ::testing::Test {};
using Reals = ::testing::Types<float, double>;
TYPED_TEST_SUITE(PointSetTest, Reals);

template <class Real>
Rows<Real> gaussian(Inputs& inputs, Index n, Index d) {
  return Rows<Real>::NullaryExpr(n, d, [&] { return static_cast<Real>(inputs.normal()); });
}

/// The whole of two matrices.
template <class Real>
PointSet<Real> both(const Rows<Real>& a, const Rows<Real>& b) {
  return {rows_in(a, {0, a.rows()}), rows_in(b, {0, b.rows()})};
}

TYPED_TEST(PointSetTest, SamplesAreRowsOfTheSetWithItsOutliers) {
  using Real = TypeParam;
  Inputs inputs(4);
  for (const Index n : {1, 7, 100, 5000}) {
    Rows<Real> a = gaussian<Real>(inputs, n, 3);
    const Rows<Real> b = gaussian<Real>(inputs, 11, 3);
    a(n / 2, 1) = 1000;
    const Rows<Real> some = sample(both(a, b), 3, 50);
    EXPECT_LE(some.rows(), 56);
    EXPECT_GE(some.rows(), std::min<Index>(n + 11, 25));  // rows are left out by whole strides
    EXPECT_EQ(some.col(1).maxCoeff(), 1000);
    for (Index i = 0; i < some.rows(); ++i)
      EXPECT_TRUE((a.rowwise() - some.row(i)).rowwise().norm().minCoeff() == 0 ||
                  (b.rowwise() - some.row(i)).rowwise().norm().minCoeff() == 0);
  }
}

TYPED_TEST(PointSetTest, MeanAndMomentsAreThoseOfAllRows) {
  using Real = TypeParam;
  Inputs inputs(1);
  for (const Index n : {1, 255, 256, 257, 700}) {
    const Rows<Real> a = gaussian<Real>(inputs, n, 5), b = gaussian<Real>(inputs, 3, 5);
    Rows<double> all(n + 3, 5);
    all << a.template cast<double>(), b.template cast<double>();
    const Point<double> centre = all.colwise().mean();
    const double tolerance = 50 * static_cast<double>(std::numeric_limits<Real>::epsilon());
    const Rows<Real> rows = all.template cast<Real>();
    EXPECT_LE((mean(rows).template cast<double>() - centre).norm(), tolerance);
    const Rows<double> centred = all.rowwise() - centre;
    const Eigen::MatrixXd moments = centred.transpose() * centred / static_cast<double>(n + 3);
    const Point<Real> rounded = centre.template cast<Real>();
    EXPECT_LE((second_moments(rows, rounded) - moments).norm(), tolerance * moments.norm());
  }
  EXPECT_EQ(mean(Rows<Real>(0, 2)), Point<Real>::Zero(2));
  EXPECT_LE(reach(PointSet<Real>{}, Point<Real>(Point<Real>::Zero(2))), 1e-18);  // squares may underflow
}

// In long double, of the rows and axes as they are given: at least the truth, and hardly more.
TYPED_TEST(PointSetTest, ReachesBoundEveryRow) {
  using Real = TypeParam;
  Inputs inputs(2);
  const double epsilon = std::numeric_limits<Real>::epsilon();
  for (int trial = 0; trial < 60; ++trial) {
    const Index d = inputs.integer(1, 40), n = inputs.integer(1, 600);
    const double offset = trial % 3 == 0 ? 100 : 0;
    Rows<Real> x = gaussian<Real>(inputs, n, d);
    x.array() += static_cast<Real>(offset);
    const Point<Real> centre = gaussian<Real>(inputs, 1, d);
    const Rows<Real> axes = gaussian<Real>(inputs, d, d);
    const Rows<long double> centred =
        x.template cast<long double>().rowwise() - Point<long double>(centre.template cast<long double>());
    const Rows<long double> projected = centred * axes.template cast<long double>().transpose();
    const PointSet<Real> set{rows_in(x, {0, n / 2}), rows_in(x, {n / 2, n})};
    const double of_all = reach(set, centre);
    const auto truth = static_cast<double>(centred.rowwise().norm().maxCoeff());
    EXPECT_GE(of_all, truth);
    EXPECT_LE(of_all, truth * (1 + 2 * static_cast<double>(d + 4) * epsilon));
    const std::vector<double> reaches = projected_reaches(set, centre, of_all, axes);
    const double allowed = 2 * static_cast<double>(d + 4) * epsilon * of_all * axes.norm();
    for (Index l = 0; l < d; ++l) {
      const auto exact = static_cast<double>(projected.rightCols(d - l).rowwise().norm().maxCoeff());
      EXPECT_GE(reaches[static_cast<std::size_t>(l)], exact);
      EXPECT_LE(reaches[static_cast<std::size_t>(l)], exact + allowed);
    }
  }
}

TYPED_TEST(PointSetTest, BallIsNearlyTheSmallest) {
  using Real = TypeParam;
  Inputs inputs(3);
  // Points on a sphere around a known centre, unevenly: the ball is the sphere, the mean is far off.
  for (const Index d : {2, 8, 32}) {
    Rows<Real> x = gaussian<Real>(inputs, 4000, d);
    for (Index i = 0; i < x.rows(); ++i) {
      if (i % 50 != 0) x(i, 0) = std::abs(x(i, 0)) * 3;
      x.row(i) /= x.row(i).norm();
    }
    x.rowwise() += Point<Real>::Constant(d, Real{2});
    const PointSet<Real> set{rows_in(x, {0, x.rows()})};
    const Point<Real> start = mean(x);
    const double of_ball = reach(set, ball_centre(x, start));
    EXPECT_LT(of_ball, 1.03);
    EXPECT_GT(reach(set, start), 1.15);
  }
  // A skewed cloud: most rows near the origin, few far out along one axis.
  Rows<Real> x = gaussian<Real>(inputs, 1000, 4);
  for (Index i = 0; i < x.rows(); i += 100) x(i, 1) += 20;
  const PointSet<Real> set{rows_in(x, {0, x.rows()})};
  const Point<Real> start = mean(x);
  EXPECT_LT(reach(set, ball_centre(x, start)), 0.65 * reach(set, start));
}

TYPED_TEST(PointSetTest, BallOfFewPoints) {
  using Real = TypeParam;
  Rows<Real> x(2, 2);
  x << 1, 5, 3, 5;
  const PointSet<Real> set{rows_in(x, {0, 2})};
  EXPECT_LE(reach(set, ball_centre(x, Point<Real>(x.row(0)))), 1.02);
  const Rows<Real> one = x.topRows(1);
  EXPECT_LE(reach<Real>({rows_in(one, {0, 1})}, ball_centre(one, Point<Real>(x.row(1)))), 1e-2);
}

}  // namespace
}  // namespace fastrope_test
