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

namespace fastrope_test {
namespace {

using namespace fastrope;

template <class Real>
bool finite(const RowBounds<Real>& bounds) {
  return std::all_of(bounds.norms().begin(), bounds.norms().end(), [](double x) { return std::isfinite(x); });
}

template <class Real>
class RowBoundsTest : public testing::Test {
 protected:
  static constexpr Index kRows = RowBounds<Real>::kRows;
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();

  static Rows<Real> gaussian(Inputs& inputs, Index n, Index d, double sigma = 1) {
    return Rows<Real>::NullaryExpr(n, d, [&] { return static_cast<Real>(sigma * inputs.normal()); });
  }

  static RowBounds<Real> bounds_of(const Rows<Real>& x, const Measure<Real>& measure = {}) {
    RowBounds<Real> bounds(measure);
    bounds.extend(source_of(x));
    return bounds;
  }

  /// What is measured, of exact arithmetic: A (x - point) if there are axes.
  static Rows<long double> measured(const Rows<Real>& x, const Measure<Real>& measure) {
    Rows<long double> rows = x.template cast<long double>();
    if (measure.point.size() > 0)
      rows.rowwise() -= Point<long double>(measure.point.template cast<long double>());
    if (measure.axes.size() > 0) rows = (rows * measure.axes.template cast<long double>().transpose()).eval();
    return rows;
  }

  /// [blocks]: the longest of a block of rows, of their columns from `cut` on.
  static std::vector<long double> longest(const Rows<long double>& rows, Index cut = 0) {
    std::vector<long double> blocks(static_cast<std::size_t>(ceil_div(rows.rows(), kRows)));
    for (Index i = 0; i < rows.rows(); ++i) {
      long double square = 0;
      for (Index c = cut; c < rows.cols(); ++c) square += rows(i, c) * rows(i, c);
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
        const Rows<Real> x = this->gaussian(inputs, n, d, size);
        const RowBounds<Real> bounds = this->bounds_of(x);
        EXPECT_TRUE(finite(bounds));
        EXPECT_EQ(bounds.rows(), n);
        EXPECT_EQ(bounds.cuts(), 1);
        this->expect_bounds(bounds.norms(), this->longest(x.template cast<long double>()), d);
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
      const Rows<Real> x = this->gaussian(inputs, 70, d, size);
      const RowBounds<Real> bounds = this->bounds_of(x);
      EXPECT_TRUE(finite(bounds));
      this->expect_bounds(bounds.norms(), this->longest(x.template cast<long double>()), d);
    }
}

TYPED_TEST(RowBoundsTest, NormsThatOverflowAreInfinite) {
  using Real = TypeParam;
  constexpr Real kMost = std::numeric_limits<Real>::max();
  for (const Real size : {kMost, kMost / 4, std::sqrt(kMost) * 2}) {
    Rows<Real> x = Rows<Real>::Ones(130, 3);
    x(70, 1) = -size;
    const RowBounds<Real> bounds = this->bounds_of(x);
    EXPECT_FALSE(finite(bounds));
    EXPECT_TRUE(std::isinf(bounds.norms()[1]));
    EXPECT_LT(bounds.norms()[0], 2);
    EXPECT_LT(bounds.norms()[2], 2);
  }
}

TYPED_TEST(RowBoundsTest, WhatIsNotFiniteIsSaidWhereverItStands) {
  using Real = TypeParam;
  Inputs inputs(3);
  const Point<Real> point = this->gaussian(inputs, 1, 5);
  const Rows<Real> axes = this->gaussian(inputs, 5, 5);
  for (const Real bad : {std::numeric_limits<Real>::quiet_NaN(), std::numeric_limits<Real>::infinity(),
                         -std::numeric_limits<Real>::infinity()})
    for (const Index n : {1, 64, 130})
      for (const Index row : {Index{0}, n / 2, n - 1})
        for (const Index column : {0, 4}) {
          Rows<Real> x = this->gaussian(inputs, n, 5);
          EXPECT_TRUE(finite(this->bounds_of(x)));
          x(row, column) = bad;
          for (const Measure<Real>& measure : {Measure<Real>{}, {point}, {{}, axes}, {point, axes}}) {
            const RowBounds<Real> bounds = this->bounds_of(x, measure);
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
    Rows<Real> x = this->gaussian(inputs, n, d);
    if (trial % 3 == 0) x.array() += Real{100};
    Measure<Real> measure;
    if (trial % 4 < 3) measure.point = this->gaussian(inputs, 1, d, trial % 8 == 0 ? 100 : 1);
    if (trial % 5 < 4) measure.axes = this->gaussian(inputs, m, d);
    SCOPED_TRACE(testing::Message() << "trial " << trial << ": " << n << " rows of " << d << ", " << m
                                    << " axes");
    const RowBounds<Real> bounds = this->bounds_of(x, measure);
    EXPECT_TRUE(finite(bounds));
    this->expect_bounds(bounds.norms(), this->longest(x.template cast<long double>()), d);
    const auto distances = this->longest(this->measured(x, {measure.point}));
    this->expect_bounds(bounds.distances(), distances, d);
    if (measure.axes.size() == 0) {
      EXPECT_EQ(bounds.cuts(), 1);
      EXPECT_EQ(bounds.reaches().data(), bounds.distances().data());
      continue;
    }
    EXPECT_EQ(bounds.cuts(), m);
    ASSERT_EQ(bounds.reaches().size(), distances.size() * static_cast<std::size_t>(m));
    const Rows<long double> projected = this->measured(x, measure);
    const double size = this->largest(distances) * static_cast<double>(measure.axes.norm());
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
        const Point<Real> direction = this->gaussian(inputs, 1, d);
        Rows<Real> x(100, d);
        for (Index i = 0; i < 100; ++i)
          x.row(i) = direction * static_cast<Real>(size * inputs.uniform(-1, 1));
        Rows<Real> axes = this->gaussian(inputs, m, d);
        for (Index l = 0; l < m; ++l)
          axes.row(l) -= direction * (axes.row(l).dot(direction) / direction.squaredNorm());
        const RowBounds<Real> bounds = this->bounds_of(x, {{}, axes});
        const Rows<long double> projected = this->measured(x, {{}, axes});
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
    const Rows<Real> x = this->gaussian(inputs, n, d);
    Measure<Real> measure;
    if (trial % 2 == 0) measure.point = this->gaussian(inputs, 1, d);
    if (trial % 3 == 0) measure.axes = this->gaussian(inputs, m, d);
    const RowBounds<Real> at_once = this->bounds_of(x, measure);
    RowBounds<Real> in_steps(measure);
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
  const Point<Real> point = Point<Real>::Ones(2);
  const Rows<Real> axes = Rows<Real>::Identity(2, 2);
  for (const Measure<Real>& measure : {Measure<Real>{}, {point}, {{}, axes}, {point, axes}}) {
    const bool matters = measure.point.size() > 0 || measure.axes.size() > 0;
    EXPECT_EQ(measure.rotation_matters(), matters);
    RowBounds<Real> bounds(measure);
    int reads = 0;
    bounds.extend({100, 2, [&](Range rows, bool turned, Real* to) {
                     EXPECT_EQ(turned, matters);
                     std::fill_n(to, rows.size() * 2, Real{1});
                     ++reads;
                   }});
    EXPECT_EQ(reads, 2);
  }
}

TYPED_TEST(RowBoundsTest, OfNothing) {
  using Real = TypeParam;
  const RowBounds<Real> no_rows =
      this->bounds_of(Rows<Real>(0, 3), {Point<Real>::Ones(3), Rows<Real>::Identity(3, 3)});
  EXPECT_TRUE(no_rows.norms().empty() && no_rows.distances().empty() && no_rows.reaches().empty());
  EXPECT_TRUE(finite(no_rows));
  const RowBounds<Real> no_columns = this->bounds_of(Rows<Real>(70, 0));
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
