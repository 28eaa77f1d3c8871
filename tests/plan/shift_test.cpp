#include "fastrope/plan/shift.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/inputs.hpp"
#include "support/row_matrix.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

RowMatrix<double> cloud(Inputs& inputs, Index n, Index d) { return gaussian_rows<double>(inputs, n, d); }

/// max |x - point|.
double reach(const RowMatrix<double>& x, const Point& point) {
  double most = 0;
  for (Index i = 0; i < x.rows; ++i) {
    double square = 0;
    for (Index c = 0; c < x.cols; ++c) square += std::pow(x(i, c) - point[static_cast<std::size_t>(c)], 2);
    most = std::max(most, std::sqrt(square));
  }
  return most;
}

Point mean_of(const RowMatrix<double>& x) { return mean(points_of(x)); }

/// Of a search that never thinks it has enough.
Point ball(const RowMatrix<double>& x, const Point& start) {
  return ball_centre(points_of(x), start, std::numeric_limits<double>::infinity());
}

/// n rows about a centre, each with its mirror image, so that no centre is better.
RowMatrix<double> symmetric(Inputs& inputs, Index n, double centre) {
  const RowMatrix<double> half = cloud(inputs, n, 4);
  RowMatrix<double> x(2 * n, 4);
  for (Index i = 0; i < n; ++i) {
    x.set_row(i, half.row(i));
    x.set_row(n + i, half.row(i));
    x.scale_row(n + i, -1);
  }
  x.move(centre);
  return x;
}

/// Most rows near the origin, few far out along one axis.
RowMatrix<double> skewed(Inputs& inputs) {
  RowMatrix<double> x = cloud(inputs, 1000, 4);
  for (Index i = 0; i < x.rows; i += 100) x(i, 1) += 20;
  return x;
}

/// Rows on the unit sphere, unevenly: the smallest ball is the sphere, the mean is far off.
RowMatrix<double> uneven_sphere(Inputs& inputs, Index n, Index d) {
  RowMatrix<double> x = cloud(inputs, n, d);
  for (Index i = 0; i < n; ++i) {
    if (i % 50 != 0) x(i, 0) = std::abs(x(i, 0)) * 3;
    x.scale_row(i, 1 / length(x, i));
  }
  return x;
}

TEST(ShiftTest, BallIsNearlyTheSmallest) {
  Inputs inputs(3);
  for (const Index d : {2, 8, 32}) {
    RowMatrix<double> x = uneven_sphere(inputs, 4000, d);
    x.move(2);
    const Point start = mean_of(x);
    EXPECT_LT(reach(x, ball(x, start)), 1.03);
    EXPECT_GT(reach(x, start), 1.15);
  }
  const RowMatrix<double> x = skewed(inputs);
  const Point start = mean_of(x);
  EXPECT_LT(reach(x, ball(x, start)), 0.65 * reach(x, start));
}

TEST(ShiftTest, BallIsSearchedUntilNoneIsSmallerThanEnough) {
  Inputs inputs(6);
  const RowMatrix<double> x = uneven_sphere(inputs, 2000, 6);
  const Points points = points_of(x);
  const Point start = mean_of(x);
  // The smallest ball has radius 1: nothing shows that none is smaller than more.
  EXPECT_EQ(ball_centre(points, start, 1.001), ball(x, start));
  const double halfway = reach(x, ball_centre(points, start, 0.9));
  EXPECT_GT(halfway, reach(x, ball(x, start)));
  EXPECT_LE(halfway, reach(x, start));
  EXPECT_EQ(ball_centre(points, start, 0.1), start);
}

TEST(ShiftTest, BallOfFewPoints) {
  RowMatrix<double> x(2, 2);
  x.values = {1, 5, 3, 5};
  EXPECT_LE(reach(x, ball(x, point_of(x, 0))), 1.02);
  const RowMatrix<double> one = x.top(1);
  EXPECT_LE(reach(one, ball(one, point_of(x, 1))), 1e-2);
}

TEST(ShiftTest, BallIsFoundFarFromTheOrigin) {
  // Its steps are dot products, which must not be of rows as long as their offset.
  Inputs inputs(4);
  RowMatrix<double> x = skewed(inputs);
  const double near = reach(x, ball(x, mean_of(x)));
  for (const double offset : {3e3, 1e12}) {
    RowMatrix<double> far = x;
    far.move(offset);
    EXPECT_LT(reach(far, ball(far, mean_of(far))), 1.02 * near);
  }
}

TEST(ShiftTest, IsTheOriginTheMeanOrTheBall) {
  Inputs inputs(5);
  const Point origin(4, 0.0);
  const auto expect = [&](const RowMatrix<double>& x, Centre centre, const Point& point) {
    const Shift shift = choose_shift(points_of(x), true);
    EXPECT_EQ(shift.centre, centre) << name_of(shift.centre);
    EXPECT_EQ(shift.point, point);
    EXPECT_NEAR(shift.reach, reach(x, shift.point), 8 * kEpsilon * shift.reach);
    EXPECT_LE(shift.reach, reach(x, origin) * (1 + 8 * kEpsilon));
    const Shift fixed = choose_shift(points_of(x), false);
    EXPECT_EQ(fixed.centre, Centre::none);
    EXPECT_EQ(fixed.point, origin);
    EXPECT_NEAR(fixed.reach, reach(x, origin), 8 * kEpsilon * fixed.reach);
  };
  expect(symmetric(inputs, 300, 0), Centre::none, origin);
  const RowMatrix<double> offset = symmetric(inputs, 300, 8);
  expect(offset, Centre::mean, mean_of(offset));
  const RowMatrix<double> of_skewed = skewed(inputs);
  expect(of_skewed, Centre::ball, ball(of_skewed, mean_of(of_skewed)));
  // A shift that is hardly nearer is not worth its rounding.
  expect(symmetric(inputs, 300, 1.0 / 512), Centre::none, origin);
}

TEST(ShiftTest, OfNoRowsIsTheOrigin) {
  for (const bool may_move : {false, true}) {
    const Shift shift = choose_shift(Points(3, 0), may_move);
    EXPECT_EQ(shift.centre, Centre::none);
    EXPECT_EQ(shift.point, Point(3, 0.0));
    EXPECT_EQ(shift.reach, 0);
  }
}

}  // namespace
}  // namespace fastrope_test
