// Ranges of values: outward of the truth, hardly more, and the same however rows came.
#include "fastrope/measure/value_bounds.hpp"

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

TEST(ValueBounds, SpreadIsHalfTheLargestRangeOverTheLargestElement) {
  const auto spread = [](std::vector<double> values, Index cols) {
    const auto count = static_cast<Index>(values.size()) / cols;
    RowMatrix<double> x(count, cols);
    for (Index i = 0; i < count * cols; ++i) x(i / cols, i % cols) = values[static_cast<std::size_t>(i)];
    ValueBounds bounds;
    bounds.extend(source_of(x));
    EXPECT_TRUE(bounds.finite());
    return bounds.spread();
  };
  EXPECT_DOUBLE_EQ(spread({1, -1}, 1), 1);
  EXPECT_DOUBLE_EQ(spread({0, 4}, 1), 0.5);
  EXPECT_DOUBLE_EQ(spread({3, 4, 3, 3}, 1), 0.125);
  EXPECT_DOUBLE_EQ(spread({3, 0, 4, 1}, 2), 0.125);           // columns 3, 4 and 0, 1
  EXPECT_DOUBLE_EQ(spread({-8, 2, -8, -2, -8, 0}, 2), 0.25);  // the range in one column, the size in another
  EXPECT_DOUBLE_EQ(spread({0, 0}, 1), 1);
  EXPECT_DOUBLE_EQ(spread({7, 7, 7}, 1), 0);
  EXPECT_DOUBLE_EQ(spread({-3, -4}, 1), 0.125);
  EXPECT_DOUBLE_EQ(spread({1e-200, 3e-200}, 1), 1.0 / 3);
  // Outward: no smaller than the exact quotient.
  Inputs random(3);
  for (int repeat = 0; repeat < 100; ++repeat) {
    const double low = random.uniform(-1, 0), high = random.uniform(0, 1);
    const long double exact = (static_cast<long double>(high) - low) / (2 * std::max(high, -low));
    EXPECT_GE(static_cast<long double>(spread({low, high}, 1)), exact);
  }
}

TEST(ValueBounds, AreTheSameInAnySteps) {
  const auto expect = [](auto real) {
    using Real = decltype(real);
    Inputs random(10);
    for (int trial = 0; trial < 50; ++trial) {
      const Index n = random.integer(0, 300), d = random.integer(1, 5);
      RowMatrix<Real> x = gaussian_rows<Real>(random, n, d);
      if (trial % 4 == 0 && n > 0) x(random.integer(0, n - 1), random.integer(0, d - 1)) = NAN;
      ValueBounds at_once, in_steps;
      at_once.extend(source_of(x));
      std::vector<Index> reads;
      for (Index count = 0;; count = std::min(n, count + random.integer(0, 100))) {
        in_steps.extend(counted(x, count, reads));
        if (count == n) break;
      }
      EXPECT_EQ(in_steps.finite(), at_once.finite());
      EXPECT_EQ(at_once.finite(),
                std::all_of(x.values.begin(), x.values.end(), [](Real y) { return std::isfinite(y); }));
      if (at_once.finite()) {
        EXPECT_EQ(in_steps.spread(), at_once.spread());
      }
      for (const Index times : reads) EXPECT_EQ(times, 1);
    }
  };
  expect(0.0f);
  expect(0.0);
}

TEST(ValueBounds, OfASampleAreThoseOfItsRows) {
  const auto expect = [](auto real) {
    using Real = decltype(real);
    Inputs random(4);
    for (int trial = 0; trial < 30; ++trial) {
      RowMatrix<Real> x = gaussian_rows<Real>(random, random.integer(1, 90), random.integer(1, 5));
      x.move(random.uniform(-2, 2));
      if (trial % 4 == 0) x(random.integer(0, x.rows - 1), random.integer(0, x.cols - 1)) = INFINITY;
      ValueBounds of_rows, of_points;
      of_rows.extend(source_of(x));
      of_points.add(points_of(x));
      EXPECT_EQ(of_points.finite(), trial % 4 != 0);
      EXPECT_EQ(of_points.finite(), of_rows.finite());
      if (of_rows.finite()) {
        EXPECT_EQ(of_points.spread(), of_rows.spread());
      }
    }
  };
  expect(0.0f);
  expect(0.0);
}

TEST(ValueBounds, WhatIsNotFiniteIsSaidWhereverItStands) {
  const auto expect = [](auto real) {
    using Real = decltype(real);
    for (const Real bad : {std::numeric_limits<Real>::quiet_NaN(), std::numeric_limits<Real>::infinity(),
                           -std::numeric_limits<Real>::infinity()})
      for (const Index n : {1, 64, 65, 130})
        for (const Index row : {Index{0}, n / 2, n - 1})
          for (const Index column : {0, 2}) {
            RowMatrix<Real> x(n, 3, Real{1});
            x(row, column) = bad;
            ValueBounds bounds;
            bounds.extend(source_of(x));
            EXPECT_FALSE(bounds.finite()) << bad << " in row " << row << " of " << n;
          }
    // The largest numbers are numbers.
    RowMatrix<Real> x(70, 2, std::numeric_limits<Real>::max());
    x(3, 1) = -x(3, 1);
    ValueBounds bounds;
    bounds.extend(source_of(x));
    EXPECT_TRUE(bounds.finite());
    EXPECT_EQ(bounds.spread(), 1);
  };
  expect(0.0f);
  expect(0.0);
}

TEST(ValueBounds, OfNothing) {
  ValueBounds bounds;
  EXPECT_TRUE(bounds.finite());
  EXPECT_EQ(bounds.spread(), 1);
  const RowMatrix<float> none(0, 3);
  for (int twice = 0; twice < 2; ++twice) bounds.extend(source_of(none));
  bounds.add(Points(3, 0));
  EXPECT_TRUE(bounds.finite());
  EXPECT_EQ(bounds.spread(), 1);
}

}  // namespace
}  // namespace fastrope_test
