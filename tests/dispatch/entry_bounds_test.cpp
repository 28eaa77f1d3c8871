// The look at the data: rows as planning sees them, and bounds that no row, value or family exceeds.
#include "fastrope/dispatch/entry_bounds.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "fastrope/core/paged_view.hpp"
#include "support/attention_case.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

template <class T, class KV>
GroupRows<ArithmeticOf<T>> look(const AttentionCase& c, const AttentionInputs<T, KV>& in, Index kv) {
  return group_rows<ArithmeticOf<T>>(Problem(c.shapes, c.options()), kv, TensorView<const T>(in.q.view()),
                                     TensorView<const KV>(in.k.view()), TensorView<const KV>(in.v.view()));
}

/// Rows are head h of x in the given order, and norm bounds the longest, hardly loosely.
template <class Real, class T>
void expect_rows(const Rows<Real>& rows, const RowBounds& bounds, const Tensor<T>& x, Index h,
                 const std::vector<Index>& order) {
  ASSERT_EQ(rows.rows(), x.rows);
  ASSERT_EQ(rows.cols(), x.cols);
  constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
  double largest = 0;
  for (Index i = 0; i < x.rows; ++i) {
    double square = 0;
    for (Index m = 0; m < x.cols; ++m) {
      const double expected = static_cast<double>(x(h, order[static_cast<std::size_t>(i)], m));
      square += expected * expected;
      // Phases of up to 200 radians, to 7 roundings of a double.
      EXPECT_NEAR(static_cast<double>(rows(i, m)), expected,
                  4 * (kEpsilon + 200 * std::numeric_limits<double>::epsilon()));
    }
    largest = std::max(largest, std::sqrt(square));
    EXPECT_LE(static_cast<double>(rows.row(i).template cast<double>().norm()), bounds.norm);
  }
  EXPECT_TRUE(bounds.finite);
  EXPECT_NEAR(bounds.norm, largest, 4 * static_cast<double>(x.cols + 4) * kEpsilon * largest);
}

std::vector<Index> in_order(Index n) {
  std::vector<Index> order(static_cast<std::size_t>(n));
  for (Index i = 0; i < n; ++i) order[static_cast<std::size_t>(i)] = i;
  return order;
}

TEST(GroupRows, AreRotatedRows) {
  const auto expect = [](auto real) {
    using Real = decltype(real);
    AttentionCase c{.shapes = {4, 2, 90, 150, 8, 3}};
    c.base.rope = Rope{};
    AttentionInputs<Real> in(c.shapes, 1);
    Tensor<double> q = converted<double>(in.q.view()), k = converted<double>(in.k.view());
    reference_rotate(
        *c.base.rope, [](Index i) { return 60 + i; }, q);
    reference_rotate(
        *c.base.rope, [](Index j) { return j; }, k);
    for (Index kv = 0; kv < 2; ++kv) {
      const GroupRows<Real> rows = look(c, in, kv);
      ASSERT_EQ(rows.queries.size(), 2u);
      for (std::size_t g = 0; g < 2; ++g)
        expect_rows(rows.queries[g], rows.query_bounds[g], q, 2 * kv + static_cast<Index>(g), in_order(90));
      expect_rows(rows.keys, rows.key_bounds, k, kv, in_order(150));
    }
  };
  expect(0.0f);
  expect(0.0);
}

TEST(GroupRows, AreInOrderOfPositionAndOfAnyStorage) {
  const auto expect = [](auto q_type, auto kv_type, std::optional<Rope> rope) {
    using T = decltype(q_type);
    using KV = decltype(kv_type);
    AttentionCase c{.shapes = {1, 1, 30, 70, 6, 3}};
    c.base.rope = rope;
    Inputs random(2);
    c.key_positions = shuffled_positions(random, 70, 11);
    c.query_positions = shuffled_positions(random, 30, 50);
    AttentionInputs<T, KV> in(c.shapes, random);
    std::vector<Index> order(70);
    for (Index j = 0; j < 70; ++j)
      order[static_cast<std::size_t>(c.key_positions[static_cast<std::size_t>(j)] - 11)] = j;
    Tensor<double> q = converted<double>(in.q.view()), k = converted<double>(in.k.view());
    if (rope) {
      reference_rotate(
          *rope, [&](Index i) { return c.query_positions[static_cast<std::size_t>(i)]; }, q);
      reference_rotate(
          *rope, [&](Index j) { return c.key_positions[static_cast<std::size_t>(j)]; }, k);
    }
    const auto rows = look(c, in, 0);
    expect_rows(rows.queries[0], rows.query_bounds[0], q, 0, in_order(30));
    expect_rows(rows.keys, rows.key_bounds, k, 0, order);
  };
  for (const auto& rope : {std::optional<Rope>{}, {Rope{}}, {Rope{.rotary_dim = 4}}}) {
    expect(0.0, 0.0, rope);
    expect(0.0f, bfloat16{}, rope);
    expect(float16{}, float16{}, rope);
  }
}

TEST(GroupRows, OfPagesAreThoseOfTheSameRowsWithoutGaps) {
  constexpr Index kPageRows = 8;
  AttentionCase c{.shapes = {2, 1, 20, 29, 4, 3}};
  c.base.rope = Rope{};
  const AttentionInputs<float> in(c.shapes, 5);
  const std::vector<std::int32_t> pages = {3, 0, 5, 1};  // of six
  const auto paged = [&](const Tensor<float>& x, std::vector<float>& memory) {
    memory.assign(static_cast<std::size_t>(6 * kPageRows * x.cols), NAN);
    for (Index j = 0; j < x.rows; ++j)
      for (Index m = 0; m < x.cols; ++m) {
        const Index row = pages[static_cast<std::size_t>(j / kPageRows)] * kPageRows + j % kPageRows;
        memory[static_cast<std::size_t>(row * x.cols + m)] = x(0, j, m);
      }
    const Index page = kPageRows * x.cols;
    return PagedView<const float>{memory.data(), 1, x.rows, x.cols, kPageRows, pages, page, page, x.cols};
  };
  std::vector<float> key_memory, value_memory;
  const auto k = paged(in.k, key_memory), v = paged(in.v, value_memory);
  const GroupRows<float> expected = look(c, in, 0);
  const auto rows =
      group_rows<float>(Problem(c.shapes, c.options()), 0, TensorView<const float>(in.q.view()), k, v);
  EXPECT_EQ(rows.keys, expected.keys);
  EXPECT_EQ(rows.queries, expected.queries);
  EXPECT_EQ(rows.key_bounds.norm, expected.key_bounds.norm);
  EXPECT_EQ(rows.values.spread, expected.values.spread);
  EXPECT_TRUE(rows.key_bounds.finite && rows.values.finite);  // what no row of a page holds is not looked at
}

TEST(RotateRows, NormsAreBoundsAtAnySizeAndHardlyLoose) {
  const auto expect = [](auto real, double smallest, double largest) {
    using Real = decltype(real);
    constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
    Inputs random(6);
    for (const Index d : {1, 2, 3, 17, 64, 300}) {
      for (const Index n : {1, 63, 64, 65, 130}) {
        for (const double size : {smallest, 1e-3, 1.0, 1e3, largest}) {
          const Tensor<Real> x = random.gaussian<Real>(1, n, d, size);
          Rows<Real> rows;
          const RowBounds bounds = rotate_rows(
              Rotation{}, n, d, [&](Index i) { return &x(0, i, 0); }, [](Index i) { return i; }, rows);
          long double exact = 0;
          for (Index i = 0; i < n; ++i) {
            long double square = 0;
            for (Index m = 0; m < d; ++m) {
              EXPECT_EQ(rows(i, m), x(0, i, m));
              square += static_cast<long double>(x(0, i, m)) * x(0, i, m);
            }
            exact = std::max(exact, std::sqrt(square));
          }
          EXPECT_TRUE(bounds.finite);
          EXPECT_GE(bounds.norm, exact) << n << " rows of " << d << ", size " << size;
          EXPECT_LE(bounds.norm, exact * (1 + 2 * static_cast<double>(d + 4) * kEpsilon));
        }
      }
    }
  };
  // Squares do not overflow.
  expect(0.0f, 1e-15, 1e15);
  expect(0.0, 1e-130, 1e130);
}

TEST(RotateRows, NormsAreBoundsWhereSquaresUnderflow) {
  Inputs random(17);
  for (const double size : {1e-19, 1e-21, 1e-23, 1e-25, 1e-37}) {
    const Tensor<float> x = random.gaussian<float>(1, 10, 6, size);
    Rows<float> rows;
    const RowBounds bounds = rotate_rows(
        Rotation{}, 10, 6, [&](Index i) { return &x(0, i, 0); }, [](Index i) { return i; }, rows);
    EXPECT_GE(bounds.norm, rows.cast<double>().rowwise().norm().maxCoeff()) << size;
  }
}

TEST(GroupRows, SayWhatIsNotFinite) {
  const auto expect = [](auto q_type, auto kv_type, double overflow) {
    using T = decltype(q_type);
    using KV = decltype(kv_type);
    for (const bool turned : {false, true}) {
      AttentionCase c{.shapes = {4, 2, 9, 15, 8, 3}};
      if (turned) c.base.rope = Rope{};
      for (const double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY),
                               static_cast<double>(-INFINITY), overflow, -overflow}) {
        AttentionInputs<T, KV> in(c.shapes, 2);
        in.q(1, 8, 7) = static_cast<T>(bad);
        in.k(1, 14, 0) = static_cast<KV>(bad);
        in.v(0, 0, 2) = static_cast<KV>(bad);
        const auto first = look(c, in, 0), second = look(c, in, 1);
        EXPECT_TRUE(first.query_bounds[0].finite);
        EXPECT_FALSE(first.query_bounds[1].finite) << bad;
        EXPECT_TRUE(second.query_bounds[0].finite);
        EXPECT_TRUE(second.query_bounds[1].finite);
        EXPECT_TRUE(first.key_bounds.finite);
        EXPECT_FALSE(second.key_bounds.finite) << bad;
        EXPECT_EQ(first.values.finite, std::isfinite(bad));  // values have no norms to overflow
        EXPECT_TRUE(second.values.finite);
      }
    }
  };
  expect(0.0, 0.0, 1e200);
  expect(0.0f, 0.0f, 1e20);
  expect(0.0f, bfloat16{}, 1e20);
}

TEST(ValueBounds, SpreadIsHalfTheLargestRangeOverTheLargestElement) {
  const auto spread = [](std::vector<double> values, Index cols) {
    const auto rows = static_cast<Index>(values.size()) / cols;
    return value_bounds(MatrixView<const double>{values.data(), rows, cols, cols}, rows, cols).spread;
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

TEST(ValueBounds, HoldForWhatSixteenBitsStoreAndBetweenStrides) {
  Inputs random(7);
  const Tensor<bfloat16> v = random.gaussian<bfloat16>(2, 9, 4);
  const Tensor<bfloat16> strided = token_major(v);
  const Tensor<double> numbers = converted<double>(v.view());
  for (Index h = 0; h < 2; ++h) {
    const double expected = value_bounds(numbers.view().head(h), 9, 4).spread;
    EXPECT_EQ(value_bounds(v.view().head(h), 9, 4).spread, expected);
    EXPECT_EQ(value_bounds(strided.view().head(h), 9, 4).spread, expected);
  }
}

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
      const auto rows = look(c, in, 0);
      const auto support = c.base.weights->support();
      for (Index h = 0; h < 2; ++h) {
        const WeightedBounds b = weighted_bounds(rows, static_cast<std::size_t>(h), problem);
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
    return weighted_bounds(look(c, in, 0), 0, Problem(c.shapes, c.options()));
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
    return weighted_bounds(look(c, in, 0), 0, Problem(c.shapes, c.options())).radius;
  };
  EXPECT_GT(radius(Mask::causal()), 0);
  EXPECT_DOUBLE_EQ(radius(Mask::full()), 100 * radius(Mask::causal()));
  EXPECT_DOUBLE_EQ(radius(Mask::lags(-1, 5)), 100 * radius(Mask::causal()));
}

}  // namespace
}  // namespace fastrope_test
