// What choices need to know of points, against plain loops.
#include "fastrope/measure/points.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/inputs.hpp"
#include "support/row_matrix.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

constexpr double kEps = std::numeric_limits<double>::epsilon();

Points random_points(Inputs& inputs, Index n, Index d) {
  return points_of(gaussian_rows<double>(inputs, n, d));
}

Point random_point(Inputs& inputs, Index d) { return point_of(gaussian_rows<double>(inputs, 1, d)); }

double distance_from(const Points& points, Index i, const Point& centre) {
  double square = 0;
  for (Index c = 0; c < points.rows; ++c) {
    const double x = points(c, i) - centre[static_cast<std::size_t>(c)];
    square += x * x;
  }
  return std::sqrt(square);
}

TEST(Points, NormIsTheLengthOfAPoint) {
  EXPECT_EQ(norm(Point{3, -4}), 5);
  EXPECT_EQ(norm(Point{}), 0);
  EXPECT_EQ(norm(Point{0, 0, -2}), 2);
}

TEST(Points, CentredAreMeasuredFromTheCentre) {
  Inputs inputs(1);
  for (const Index n : {0, 1, 9, 16})
    for (const Index d : {1, 3, 8}) {
      const Points x = random_points(inputs, n, d);
      const Point centre = random_point(inputs, d);
      const Points y = centred(x, centre);
      ASSERT_EQ(y.rows, d);
      ASSERT_EQ(y.cols, n);
      for (Index c = 0; c < d; ++c) {
        for (Index i = 0; i < n; ++i) EXPECT_EQ(y(c, i), x(c, i) - centre[static_cast<std::size_t>(c)]);
        for (Index i = n; i < y.stride; ++i) EXPECT_EQ(y.row(c)[i], 0) << "that is no point";
      }
    }
}

TEST(Points, FarthestNamesThePoint) {
  Inputs inputs(2);
  for (const Index n : {1, 2, 7, 63, 200})
    for (const Index d : {1, 5, 12}) {
      const Points x = random_points(inputs, n, d);
      const Point centre = random_point(inputs, d);
      double most = 0;
      for (Index i = 0; i < n; ++i) most = std::max(most, distance_from(x, i, centre));
      Index point = -1;
      const double distance = farthest(x, centre, point);
      EXPECT_NEAR(distance, most, 8 * kEps * most) << n << " points of " << d;
      ASSERT_GE(point, 0);
      ASSERT_LT(point, n);
      EXPECT_NEAR(distance_from(x, point, centre), distance, 8 * kEps * distance);
    }
}

TEST(Points, FarthestIsNoneBesideThePoints) {
  // A centre far from the origin, where what fills up the last vector lies.
  for (const Index n : {1, 3, 5}) {
    Points x(2, n);
    for (Index i = 0; i < n; ++i) x(0, i) = x(1, i) = 1000 + static_cast<double>(i);
    Index point = -1;
    EXPECT_NEAR(farthest(x, Point{1000, 1000}, point), std::sqrt(2.0) * static_cast<double>(n - 1), 1e-12);
    EXPECT_EQ(point, n - 1);
  }
  Index point = -1;
  EXPECT_EQ(farthest(Points(5, 0), Point(5, 1.0), point), 0);
  EXPECT_EQ(point, 0);
}

TEST(Points, MeanIsThatOfAllPoints) {
  Inputs inputs(3);
  for (const Index n : {1, 255, 256, 257, 700}) {
    const Points x = random_points(inputs, n, 5);
    const Point found = mean(x);
    ASSERT_EQ(found.size(), 5u);
    for (Index c = 0; c < 5; ++c) {
      long double sum = 0;
      for (Index i = 0; i < n; ++i) sum += x(c, i);
      EXPECT_NEAR(found[static_cast<std::size_t>(c)], static_cast<double>(sum / n), 20 * kEps)
          << n << " points";
    }
  }
  EXPECT_EQ(mean(Points(2, 0)), Point(2, 0.0));
}

TEST(Points, SecondMomentsAreThoseOfAllPoints) {
  Inputs inputs(4);
  for (const Index n : {1, 255, 256, 257, 700}) {
    const Points x = random_points(inputs, n, 5);
    const Point centre = mean(x);
    Matrix exact(5, 5);
    for (Index a = 0; a < 5; ++a)
      for (Index b = 0; b < 5; ++b) {
        long double sum = 0;
        for (Index i = 0; i < n; ++i)
          sum += static_cast<long double>(x(a, i) - centre[static_cast<std::size_t>(a)]) *
                 (x(b, i) - centre[static_cast<std::size_t>(b)]);
        exact(a, b) = static_cast<double>(sum / n);
      }
    // Points that are their own mean have rounding alone.
    const double size = n == 1 ? 1 : norm(exact);
    const Matrix found = second_moments(centred(x, centre));
    EXPECT_LE(farthest_apart(found, exact), 50 * kEps * size) << n << " points";
  }
  EXPECT_EQ(farthest_apart(second_moments(Points(3, 0)), Matrix(3, 3)), 0);
}

TEST(Points, SecondMomentsAreSymmetricToTheLastBit) {
  Inputs inputs(5);
  for (const Index d : {1, 5, 64, 67}) {
    const Matrix moments = second_moments(centred(random_points(inputs, 501, d), random_point(inputs, d)));
    EXPECT_EQ(farthest_apart(moments, transposed(moments)), 0) << d;
  }
}

TEST(Points, LongestTailsAreThoseOfProjections) {
  Inputs inputs(6);
  for (const Index n : {1, 2, 63, 130})
    for (const Index d : {1, 3, 8})
      for (const Index cuts : {Index{1}, (d + 1) / 2, d}) {
        SCOPED_TRACE(testing::Message() << n << " points of " << d << ", " << cuts << " axes");
        const Points x = random_points(inputs, n, d);
        const Point centre = random_point(inputs, d);
        const Matrix axes = matrix_of(gaussian_rows<double>(inputs, cuts, d));
        const std::vector<double> tails = longest_tails(centred(x, centre), axes);
        ASSERT_EQ(static_cast<Index>(tails.size()), cuts);
        for (Index l = 0; l < cuts; ++l) {
          double most = 0;
          for (Index i = 0; i < n; ++i) {
            double square = 0;
            for (Index a = l; a < cuts; ++a) {
              double coordinate = 0;
              for (Index c = 0; c < d; ++c)
                coordinate += axes(a, c) * (x(c, i) - centre[static_cast<std::size_t>(c)]);
              square += coordinate * coordinate;
            }
            most = std::max(most, std::sqrt(square));
          }
          EXPECT_NEAR(tails[static_cast<std::size_t>(l)], most, 40 * kEps * tails.front()) << "cut " << l;
        }
        for (std::size_t l = 1; l < tails.size(); ++l) EXPECT_LE(tails[l], tails[l - 1]);
      }
}

}  // namespace
}  // namespace fastrope_test
