// Bounds of blocks of rows: at least the truth, in long double, hardly more, and the same however rows came.
#include "fastrope/measure/row_bounds.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "support/inputs.hpp"
#include "support/row_matrix.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

bool finite(const RowBounds& bounds) {
  return std::all_of(bounds.norms().begin(), bounds.norms().end(), [](double x) { return std::isfinite(x); });
}

template <class Real>
class RowBoundsTest : public testing::Test {
 protected:
  static constexpr Index kRows = kRowBlock;
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();

  static RowMatrix<Real> gaussian(Inputs& inputs, Index n, Index d, double sigma = 1) {
    return gaussian_rows<Real>(inputs, n, d, sigma);
  }

  static RowBounds bounds_of(const RowMatrix<Real>& x, const Measure& measure = {}) {
    RowBounds bounds(measure);
    bounds.extend(source_of(x));
    return bounds;
  }

  /// What is measured, of exact arithmetic: A (x - point) if there are axes.
  static RowMatrix<long double> measured(const RowMatrix<Real>& x, const Measure& measure = {}) {
    RowMatrix<long double> from_point(x.rows, x.cols);
    for (Index i = 0; i < x.rows; ++i)
      for (Index c = 0; c < x.cols; ++c)
        from_point(i, c) = static_cast<long double>(x(i, c)) -
                           (measure.point.empty() ? 0.0 : measure.point[static_cast<std::size_t>(c)]);
    if (measure.axes.empty()) return from_point;
    RowMatrix<long double> projected(x.rows, measure.axes.rows);
    for (Index i = 0; i < x.rows; ++i)
      for (Index l = 0; l < measure.axes.rows; ++l)
        for (Index c = 0; c < x.cols; ++c) projected(i, l) += measure.axes(l, c) * from_point(i, c);
    return projected;
  }

  /// [blocks]: the longest of a block of rows, of their columns from `cut` on.
  static std::vector<long double> longest(const RowMatrix<long double>& rows, Index cut = 0) {
    std::vector<long double> blocks(static_cast<std::size_t>(ceil_div(rows.rows, kRows)));
    for (Index i = 0; i < rows.rows; ++i) {
      long double square = 0;
      for (Index c = cut; c < rows.cols; ++c) square += rows(i, c) * rows(i, c);
      long double& of_block = blocks[static_cast<std::size_t>(i / kRows)];
      of_block = std::max(of_block, std::sqrt(square));
    }
    return blocks;
  }

  /// At least the truth, and hardly more: d roundings of the truth or of `size`, and what squares that
  /// underflow can hide.
  static void expect_bounds(std::span<const double> bounds, const std::vector<long double>& truth, Index d,
                            double size = 0) {
    ASSERT_EQ(bounds.size(), truth.size());
    const double some = static_cast<double>(d + 4),
                 hidden = std::sqrt(some * std::numeric_limits<Real>::min());
    for (std::size_t b = 0; b < truth.size(); ++b) {
      const auto exact = static_cast<double>(truth[b]);
      EXPECT_GE(bounds[b], truth[b]) << "block " << b;
      EXPECT_LE(bounds[b], std::hypot(exact, 2 * hidden) + 2 * some * kEpsilon * std::max(exact, size))
          << "block " << b;
    }
  }

  static double largest(const std::vector<long double>& x) {
    return x.empty() ? 0.0 : static_cast<double>(*std::max_element(x.begin(), x.end()));
  }
};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(RowBoundsTest, Reals);

TYPED_TEST(RowBoundsTest, NormsBoundRowsOfAnySize) {
  // Sizes whose squares neither overflow nor underflow.
  using Real = TypeParam;
  const bool is_float = std::is_same_v<Real, float>;
  Inputs inputs(1);
  for (const Index d : {1, 2, 3, 17, 64, 300, 1024})
    for (const Index n : {1, 63, 64, 65, 130})
      for (const double size : {is_float ? 1e-15 : 1e-130, 1e-3, 1.0, 1e3, is_float ? 1e15 : 1e130}) {
        SCOPED_TRACE(testing::Message() << n << " rows of " << d << ", size " << size);
        const RowMatrix<Real> x = this->gaussian(inputs, n, d, size);
        const RowBounds bounds = this->bounds_of(x);
        EXPECT_TRUE(finite(bounds));
        EXPECT_EQ(bounds.rows(), n);
        EXPECT_EQ(bounds.cuts(), 1);
        this->expect_bounds(bounds.norms(), this->longest(this->measured(x)), d);
        EXPECT_TRUE(std::equal(bounds.norms().begin(), bounds.norms().end(), bounds.distances().begin()));
        EXPECT_EQ(bounds.reaches().data(), bounds.distances().data());
      }
}

TYPED_TEST(RowBoundsTest, NormsBoundRowsWhoseSquaresUnderflow) {
  using Real = TypeParam;
  Inputs inputs(17);
  const std::vector<double> sizes = std::is_same_v<Real, float>
                                        ? std::vector<double>{1e-19, 1e-21, 1e-23, 1e-25, 1e-37, 1e-44}
                                        : std::vector<double>{1e-154, 1e-158, 1e-162, 1e-170, 1e-307};
  for (const double size : sizes)
    for (const Index d : {1, 6, 100}) {
      SCOPED_TRACE(testing::Message() << "size " << size << ", d " << d);
      const RowMatrix<Real> x = this->gaussian(inputs, 70, d, size);
      const RowBounds bounds = this->bounds_of(x);
      EXPECT_TRUE(finite(bounds));
      this->expect_bounds(bounds.norms(), this->longest(this->measured(x)), d);
    }
}

TYPED_TEST(RowBoundsTest, NormsThatOverflowAreInfinite) {
  using Real = TypeParam;
  constexpr Real kMost = std::numeric_limits<Real>::max();
  for (const Real size : {kMost, kMost / 4, std::sqrt(kMost) * 2}) {
    RowMatrix<Real> x(130, 3, Real{1});
    x(70, 1) = -size;
    const RowBounds bounds = this->bounds_of(x);
    EXPECT_FALSE(finite(bounds));
    EXPECT_TRUE(std::isinf(bounds.norms()[1]));
    EXPECT_LT(bounds.norms()[0], 2);
    EXPECT_LT(bounds.norms()[2], 2);
  }
}

TYPED_TEST(RowBoundsTest, WhatIsNotFiniteIsSaidWhereverItStands) {
  using Real = TypeParam;
  Inputs inputs(3);
  const Point point = point_of(this->gaussian(inputs, 1, 5));
  const Matrix axes = matrix_of(this->gaussian(inputs, 5, 5));
  for (const Real bad : {std::numeric_limits<Real>::quiet_NaN(), std::numeric_limits<Real>::infinity(),
                         -std::numeric_limits<Real>::infinity()})
    for (const Index n : {1, 64, 130})
      for (const Index row : {Index{0}, n / 2, n - 1})
        for (const Index column : {0, 4}) {
          RowMatrix<Real> x = this->gaussian(inputs, n, 5);
          EXPECT_TRUE(finite(this->bounds_of(x)));
          x(row, column) = bad;
          for (const Measure& measure : {Measure{}, {point}, {{}, axes}, {point, axes}}) {
            const RowBounds bounds = this->bounds_of(x, measure);
            EXPECT_FALSE(finite(bounds)) << bad << " in row " << row << " of " << n;
            for (std::size_t b = 0; b < bounds.norms().size(); ++b) {
              const bool here = static_cast<Index>(b) == row / this->kRows;
              EXPECT_EQ(std::isinf(bounds.norms()[b]), here) << bad << ", block " << b;
              EXPECT_EQ(std::isinf(bounds.distances()[b]), here) << bad << ", block " << b;
            }
          }
        }
}

TYPED_TEST(RowBoundsTest, DistancesAndReachesBoundEveryRow) {
  // Near the origin and far from it, from a point among the rows and elsewhere.
  using Real = TypeParam;
  Inputs inputs(2);
  for (int trial = 0; trial < 120; ++trial) {
    const Index d = inputs.integer(1, 40), n = inputs.integer(1, 400), m = inputs.integer(1, d);
    RowMatrix<Real> x = this->gaussian(inputs, n, d);
    if (trial % 3 == 0) x.move(100);
    Measure measure;
    if (trial % 4 < 3) measure.point = point_of(this->gaussian(inputs, 1, d, trial % 8 == 0 ? 100 : 1));
    if (trial % 5 < 4) measure.axes = matrix_of(this->gaussian(inputs, m, d));
    SCOPED_TRACE(testing::Message() << "trial " << trial << ": " << n << " rows of " << d << ", " << m
                                    << " axes");
    const RowBounds bounds = this->bounds_of(x, measure);
    EXPECT_TRUE(finite(bounds));
    this->expect_bounds(bounds.norms(), this->longest(this->measured(x)), d);
    const auto distances = this->longest(this->measured(x, {measure.point}));
    this->expect_bounds(bounds.distances(), distances, d);
    if (measure.axes.empty()) {
      EXPECT_EQ(bounds.cuts(), 1);
      EXPECT_EQ(bounds.reaches().data(), bounds.distances().data());
      continue;
    }
    EXPECT_EQ(bounds.cuts(), m);
    ASSERT_EQ(bounds.reaches().size(), distances.size() * static_cast<std::size_t>(m));
    const RowMatrix<long double> projected = this->measured(x, measure);
    const double size = this->largest(distances) * norm(measure.axes);
    for (Index l = 0; l < m; ++l) {
      std::vector<double> of_cut;
      for (std::size_t b = 0; b < distances.size(); ++b)
        of_cut.push_back(bounds.reaches()[b * static_cast<std::size_t>(m) + static_cast<std::size_t>(l)]);
      this->expect_bounds(of_cut, this->longest(projected, l), d, size);
    }
  }
}

TYPED_TEST(RowBoundsTest, ReachesHoldWhereProductsCancelOrUnderflow) {
  // Rows along one direction, axes that hardly see it: nearly all of a product is rounding.
  using Real = TypeParam;
  const double tiny = std::is_same_v<Real, float> ? 1e-22 : 1e-160;
  Inputs inputs(4);
  for (const double size : {1e3, 1.0, tiny})
    for (const Index d : {2, 8, 64, 256})
      for (int trial = 0; trial < 5; ++trial) {
        const Index m = std::min<Index>(d, 8);
        const RowMatrix<Real> direction = this->gaussian(inputs, 1, d);
        RowMatrix<Real> x(100, d);
        for (Index i = 0; i < 100; ++i) {
          x.set_row(i, direction);
          x.scale_row(i, size * inputs.uniform(-1, 1));
        }
        RowMatrix<Real> seen = this->gaussian(inputs, m, d);
        for (Index l = 0; l < m; ++l) {
          Real dot = 0, square = 0;
          for (Index c = 0; c < d; ++c) {
            dot += seen(l, c) * direction(0, c);
            square += direction(0, c) * direction(0, c);
          }
          for (Index c = 0; c < d; ++c) seen(l, c) -= direction(0, c) * (dot / square);
        }
        const Measure measure{.axes = matrix_of(seen)};
        const RowBounds bounds = this->bounds_of(x, measure);
        const RowMatrix<long double> projected = this->measured(x, measure);
        for (Index l = 0; l < m; ++l) {
          const auto truth = this->longest(projected, l);
          for (std::size_t b = 0; b < truth.size(); ++b)
            EXPECT_GE(bounds.reaches()[b * static_cast<std::size_t>(m) + static_cast<std::size_t>(l)],
                      truth[b])
                << "size " << size << ", d " << d << ", cut " << l;
        }
      }
}

TYPED_TEST(RowBoundsTest, AreTheSameInAnySteps) {
  // Bit for bit; rows are read when they are new or their block was not full.
  using Real = TypeParam;
  Inputs inputs(5);
  for (int trial = 0; trial < 60; ++trial) {
    const Index d = inputs.integer(1, 30), n = inputs.integer(0, 500), m = inputs.integer(1, d);
    const RowMatrix<Real> x = this->gaussian(inputs, n, d);
    Measure measure;
    if (trial % 2 == 0) measure.point = point_of(this->gaussian(inputs, 1, d));
    if (trial % 3 == 0) measure.axes = matrix_of(this->gaussian(inputs, m, d));
    const RowBounds at_once = this->bounds_of(x, measure);
    RowBounds in_steps(measure);
    RowSource<Real> source = source_of(x);
    std::vector<Index> reads(static_cast<std::size_t>(n)), expected(static_cast<std::size_t>(n));
    source.read = [&, read = source.read](Range rows, bool turned, Real* to) {
      for (Index i = rows.begin; i < rows.end; ++i) ++reads[static_cast<std::size_t>(i)];
      read(rows, turned, to);
    };
    for (source.count = 0;;
         source.count = std::min(n, source.count + inputs.integer(0, trial % 5 == 0 ? 3 : 150))) {
      for (Index i = round_down(in_steps.rows(), this->kRows); i < source.count; ++i)
        ++expected[static_cast<std::size_t>(i)];
      in_steps.extend(source);
      EXPECT_EQ(in_steps.rows(), source.count);
      EXPECT_EQ(static_cast<Index>(in_steps.norms().size()), ceil_div(source.count, this->kRows));
      if (source.count == n) break;
    }
    EXPECT_EQ(reads, expected) << "trial " << trial;
    const auto same = [](std::span<const double> a, std::span<const double> b) {
      return std::equal(a.begin(), a.end(), b.begin(), b.end());
    };
    EXPECT_TRUE(same(in_steps.norms(), at_once.norms())) << "trial " << trial;
    EXPECT_TRUE(same(in_steps.distances(), at_once.distances())) << "trial " << trial;
    EXPECT_TRUE(same(in_steps.reaches(), at_once.reaches())) << "trial " << trial;
  }
}

TYPED_TEST(RowBoundsTest, RowsAreTurnedWhereDirectionsMatter) {
  using Real = TypeParam;
  const Point point(2, 1.0);
  const Matrix axes = identity(2);
  for (const Measure& measure : {Measure{}, {point}, {{}, axes}, {point, axes}}) {
    const bool matters = !measure.point.empty() || !measure.axes.empty();
    EXPECT_EQ(measure.rotation_matters(), matters);
    RowBounds bounds(measure);
    int reads = 0;
    bounds.extend(RowSource<Real>{100, 2, [&](Range rows, bool turned, Real* to) {
                                    EXPECT_EQ(turned, matters);
                                    std::fill_n(to, rows.size() * 2, Real{1});
                                    ++reads;
                                  }});
    EXPECT_EQ(reads, 2);
  }
}

TYPED_TEST(RowBoundsTest, OfNothing) {
  using Real = TypeParam;
  const RowBounds no_rows = this->bounds_of(RowMatrix<Real>(0, 3), {Point(3, 1.0), identity(3)});
  EXPECT_TRUE(no_rows.norms().empty() && no_rows.distances().empty() && no_rows.reaches().empty());
  EXPECT_TRUE(finite(no_rows));
  const RowBounds no_columns = this->bounds_of(RowMatrix<Real>(70, 0));
  EXPECT_TRUE(finite(no_columns));
  ASSERT_EQ(no_columns.norms().size(), 2u);
  for (const auto& list : {no_columns.norms(), no_columns.distances(), no_columns.reaches()})
    for (const double bound : list) {
      EXPECT_GE(bound, 0);
      EXPECT_LE(bound, 1e-18);  // squares may underflow
    }
}

}  // namespace
}  // namespace fastrope_test
