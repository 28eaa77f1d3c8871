#include "fastrope/plan/shift.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

template <class Real>
class ShiftTest : public testing::Test {
 protected:
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();

  static Rows<Real> gaussian(Inputs& inputs, Index n, Index d) {
    return Rows<Real>::NullaryExpr(n, d, [&] { return static_cast<Real>(inputs.normal()); });
  }

  /// max |x - point|, in double.
  static double reach(const Rows<Real>& x, const Point<Real>& point) {
    return (x.template cast<double>().rowwise() - point.template cast<double>()).rowwise().norm().maxCoeff();
  }

  /// Of a search that never thinks it has enough.
  static Point<Real> ball(const Rows<Real>& x, const Point<Real>& start) {
    return ball_centre(x, start, std::numeric_limits<double>::infinity());
  }

  /// n rows about `centre`, each with its mirror image, so that no centre is better.
  static Rows<Real> symmetric(Inputs& inputs, Index n, const Point<Real>& centre) {
    Rows<Real> x(2 * n, centre.cols());
    x.topRows(n) = gaussian(inputs, n, centre.cols());
    x.bottomRows(n) = -x.topRows(n);
    x.rowwise() += centre;
    return x;
  }

  /// Most rows near the origin, few far out along one axis.
  static Rows<Real> skewed(Inputs& inputs) {
    Rows<Real> x = gaussian(inputs, 1000, 4);
    for (Index i = 0; i < x.rows(); i += 100) x(i, 1) += 20;
    return x;
  }
};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(ShiftTest, Reals);

TYPED_TEST(ShiftTest, MeanIsThatOfAllRows) {
  using Real = TypeParam;
  Inputs inputs(1);
  for (const Index n : {1, 255, 256, 257, 700}) {
    const Rows<Real> x = this->gaussian(inputs, n, 5);
    const Point<double> exact = x.template cast<double>().colwise().mean();
    EXPECT_LE((mean(x).template cast<double>() - exact).norm(), 50 * this->kEpsilon) << n << " rows";
  }
  EXPECT_EQ(mean(Rows<Real>(0, 2)), Point<Real>::Zero(2));
}

TYPED_TEST(ShiftTest, FarthestNamesTheRow) {
  using Real = TypeParam;
  Inputs inputs(2);
  for (const Index n : {1, 2, 63, 200}) {
    const Rows<Real> x = this->gaussian(inputs, n, 5);
    const Point<Real> centre = this->gaussian(inputs, 1, 5);
    Index row = -1;
    const double distance = farthest(x, centre, row);
    EXPECT_NEAR(distance, this->reach(x, centre), 8 * this->kEpsilon * distance);
    const Rows<Real> named = x.row(row);
    EXPECT_NEAR(this->reach(named, centre), distance, 8 * this->kEpsilon * distance);
  }
  Index row = -1;
  EXPECT_EQ(farthest(Rows<Real>(0, 5), Point<Real>(Point<Real>::Ones(5)), row), 0);
  EXPECT_EQ(row, 0);
}

TYPED_TEST(ShiftTest, BallIsNearlyTheSmallest) {
  using Real = TypeParam;
  Inputs inputs(3);
  // Points on a sphere around a known centre, unevenly: the ball is the sphere, the mean is far off.
  for (const Index d : {2, 8, 32}) {
    Rows<Real> x = this->gaussian(inputs, 4000, d);
    for (Index i = 0; i < x.rows(); ++i) {
      if (i % 50 != 0) x(i, 0) = std::abs(x(i, 0)) * 3;
      x.row(i) /= x.row(i).norm();
    }
    x.rowwise() += Point<Real>::Constant(d, Real{2});
    const Point<Real> start = mean(x);
    EXPECT_LT(this->reach(x, this->ball(x, start)), 1.03);
    EXPECT_GT(this->reach(x, start), 1.15);
  }
  const Rows<Real> x = this->skewed(inputs);
  const Point<Real> start = mean(x);
  EXPECT_LT(this->reach(x, this->ball(x, start)), 0.65 * this->reach(x, start));
}

TYPED_TEST(ShiftTest, BallIsSearchedUntilNoneIsSmallerThanEnough) {
  using Real = TypeParam;
  Inputs inputs(6);
  Rows<Real> x = this->gaussian(inputs, 2000, 6);
  for (Index i = 0; i < x.rows(); ++i) {
    if (i % 50 != 0) x(i, 0) = std::abs(x(i, 0)) * 3;
    x.row(i) /= x.row(i).norm();
  }
  const Point<Real> start = mean(x);
  // The smallest ball has radius 1: nothing shows that none is smaller than more.
  EXPECT_EQ(ball_centre(x, start, 1.001), this->ball(x, start));
  const double halfway = this->reach(x, ball_centre(x, start, 0.9));
  EXPECT_GT(halfway, this->reach(x, this->ball(x, start)));
  EXPECT_LE(halfway, this->reach(x, start));
  EXPECT_EQ(ball_centre(x, start, 0.1), start);
}

TYPED_TEST(ShiftTest, BallOfFewPoints) {
  using Real = TypeParam;
  Rows<Real> x(2, 2);
  x << 1, 5, 3, 5;
  EXPECT_LE(this->reach(x, this->ball(x, Point<Real>(x.row(0)))), 1.02);
  const Rows<Real> one = x.topRows(1);
  EXPECT_LE(this->reach(one, this->ball(one, Point<Real>(x.row(1)))), 1e-2);
}

TYPED_TEST(ShiftTest, BallIsFoundFarFromTheOrigin) {
  // Its steps are dot products, which must not be of rows as long as their offset.
  using Real = TypeParam;
  Inputs inputs(4);
  Rows<Real> x = this->skewed(inputs);
  const double near = this->reach(x, this->ball(x, mean(x)));
  x.rowwise() += Point<Real>::Constant(4, Real{3000});
  EXPECT_LT(this->reach(x, this->ball(x, mean(x))), 1.02 * near);
}

TYPED_TEST(ShiftTest, IsTheOriginTheMeanOrTheBall) {
  using Real = TypeParam;
  Inputs inputs(5);
  const Point<Real> origin = Point<Real>::Zero(4);
  const auto expect = [&](const Rows<Real>& x, Centre centre, const Point<Real>& point) {
    const Shift<Real> shift = choose_shift(x, true);
    EXPECT_EQ(shift.centre, centre) << name_of(shift.centre);
    EXPECT_EQ(shift.point, point);
    EXPECT_NEAR(shift.reach, this->reach(x, shift.point), 8 * this->kEpsilon * shift.reach);
    EXPECT_LE(shift.reach, this->reach(x, origin) * (1 + 8 * this->kEpsilon));
    const Shift<Real> fixed = choose_shift(x, false);
    EXPECT_EQ(fixed.centre, Centre::none);
    EXPECT_EQ(fixed.point, origin);
    EXPECT_NEAR(fixed.reach, this->reach(x, origin), 8 * this->kEpsilon * fixed.reach);
  };
  expect(this->symmetric(inputs, 300, origin), Centre::none, origin);
  const Rows<Real> offset = this->symmetric(inputs, 300, Point<Real>::Constant(4, Real{8}));
  expect(offset, Centre::mean, mean(offset));
  const Rows<Real> skewed = this->skewed(inputs);
  expect(skewed, Centre::ball, this->ball(skewed, mean(skewed)));
  // A shift that is hardly nearer is not worth its rounding.
  expect(this->symmetric(inputs, 300, Point<Real>::Constant(4, Real{1} / 512)), Centre::none, origin);
}

TYPED_TEST(ShiftTest, OfNoRowsIsTheOrigin) {
  using Real = TypeParam;
  for (const bool may_move : {false, true}) {
    const Shift<Real> shift = choose_shift(Rows<Real>(0, 3), may_move);
    EXPECT_EQ(shift.centre, Centre::none);
    EXPECT_EQ(shift.point, Point<Real>::Zero(3));
    EXPECT_EQ(shift.reach, 0);
  }
}

}  // namespace
}  // namespace fastrope_test
