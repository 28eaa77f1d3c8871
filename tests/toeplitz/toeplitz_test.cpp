#include "fastrope/toeplitz/toeplitz.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

#include "fastrope/eigen.hpp"

namespace fastrope {
namespace {

template <class Real>
using RowMajor = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Dense = RowMajor<double>;

template <class Real>
RowMajor<Real> random_matrix(Index rows, Index cols, unsigned seed) {
  std::mt19937 random(seed);
  return RowMajor<Real>::NullaryExpr(rows, cols,
                                     [&] { return static_cast<Real>(std::normal_distribution()(random)); });
}

// The oracle is plain loops in double and shares nothing with the library.

template <class A, class B>
Dense product(const A& a, const B& b) {
  Dense c = Dense::Zero(a.rows(), b.cols());
  for (Index i = 0; i < a.rows(); ++i) {
    for (Index k = 0; k < a.cols(); ++k) {
      for (Index j = 0; j < b.cols(); ++j)
        c(i, j) += static_cast<double>(a(i, k)) * static_cast<double>(b(k, j));
    }
  }
  return c;
}

/// f(sum so far, |m(i, col)|) folded over i.
template <class M, class F>
double fold(const M& m, Index col, F&& f) {
  double sum = 0;
  for (Index i = 0; i < m.rows(); ++i) sum = f(sum, std::abs(static_cast<double>(m(i, col))));
  return sum;
}
double norm_1(const auto& m, Index col = 0) {
  return fold(m, col, [](double sum, double x) { return sum + x; });
}
double norm_2(const auto& m, Index col = 0) {
  return std::sqrt(fold(m, col, [](double sum, double x) { return sum + x * x; }));
}
double norm_max(const auto& m, Index col = 0) {
  return fold(m, col, [](double max, double x) { return std::max(max, x); });
}

/// max |a - b| in a column; NaN where one is.
double max_difference(const auto& a, const auto& b, Index col) {
  double max = 0;
  for (Index i = 0; i < a.rows(); ++i) {
    const double difference = std::abs(static_cast<double>(a(i, col)) - static_cast<double>(b(i, col)));
    if (!(difference <= max)) max = difference;
  }
  return max;
}

/// A random operator beside its dense matrix.
template <class Real>
struct Case {
  RowMajor<Real> generator;  // [n_rows + n_cols - 1, 1]
  ToeplitzOperator<Real> toeplitz;
  Dense dense;  // [n_rows, n_cols]

  Case(Index n_rows, Index n_cols, unsigned seed = 1)
      : Case(n_rows, n_cols, LagSupport::all(n_rows, n_cols), seed) {}
  Case(Index n_rows, Index n_cols, LagSupport support, unsigned seed = 1)
      : generator(random_generator(n_rows, n_cols, support, 1000 + seed)),
        toeplitz(n_rows, n_cols, values(generator)),
        dense(n_rows, n_cols) {
    for (Index i = 0; i < n_rows; ++i) {
      for (Index j = 0; j < n_cols; ++j) dense(i, j) = static_cast<double>(generator(i - j + n_cols - 1, 0));
    }
  }

  double bound() const { return promised_bound(generator); }

  static RowMajor<Real> random_generator(Index n_rows, Index n_cols, LagSupport support, unsigned seed) {
    RowMajor<Real> g = random_matrix<Real>(n_rows + n_cols - 1, 1, seed);
    g.topRows(support.first + n_cols - 1).setZero();
    g.bottomRows(n_rows - 1 - support.last).setZero();
    return g;
  }

  static std::span<const Real> values(const RowMajor<Real>& m) {
    return {m.data(), static_cast<std::size_t>(m.size())};
  }

  /// 10 eps (1 + log2 N) |generator|_2, the promised error of an entry for an input of norm 1: three
  /// transforms, each of a relative error of at most 3.4 eps log2 N in the 2-norm; see CirculantEmbedding.
  static double promised_bound(const RowMajor<Real>& generator) {
    const auto length = static_cast<double>(fft_length(generator.size()));
    return 10 * std::numeric_limits<Real>::epsilon() * (1 + std::log2(length)) * norm_2(generator);
  }
};

/// The largest error of a column of y = m x, in units of that column's promised error.
double worst_error(const auto& m, const auto& x, const auto& y, double bound) {
  const Dense exact = product(m, x);
  double worst = 0;
  for (Index c = 0; c < x.cols(); ++c) {
    worst = std::max(worst, max_difference(y, exact, c) / (bound * norm_2(x, c)));
  }
  return worst;
}

/// Threads made for each call: the plainest pool there is.
Executor threads(Index workers) {
  return {workers, [workers](Index count, TaskRef task) {
            std::atomic<Index> next = 0;
            std::vector<std::thread> pool;
            for (Index worker = 0; worker < workers; ++worker) {
              pool.emplace_back([&, worker] {
                for (Index i = next++; i < count; i = next++) task(i, worker);
              });
            }
            for (std::thread& thread : pool) thread.join();
          }};
}

template <class Real>
class Toeplitz : public testing::Test {
 protected:
  /// apply and apply_transpose against the dense products, for a number of channels.
  static void expect_dense(const Case<Real>& c, Index channels) {
    const Index rows = c.dense.rows(), cols = c.dense.cols();
    SCOPED_TRACE(testing::Message() << rows << " x " << cols << ", " << channels << " channels");
    const RowMajor<Real> x = random_matrix<Real>(cols, channels, 2),
                         x_t = random_matrix<Real>(rows, channels, 3);
    RowMajor<Real> y(rows, channels), y_t(cols, channels);
    c.toeplitz.apply(x, y);
    c.toeplitz.apply_transpose(x_t, y_t);
    ASSERT_LE(worst_error(c.dense, x, y, c.bound()), 1);
    ASSERT_LE(worst_error(c.dense.transpose(), x_t, y_t, c.bound()), 1);
  }
};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(Toeplitz, Reals);

TYPED_TEST(Toeplitz, GeneratorRunsFromTheUpperRightCornerToTheLowerLeft) {
  const std::vector<TypeParam> generator{1, 2, 3, 4};
  const ToeplitzOperator<TypeParam> toeplitz(2, 3, generator);
  const RowMajor<TypeParam> identity = RowMajor<TypeParam>::Identity(3, 3);
  RowMajor<TypeParam> y(2, 3), expected(2, 3);
  expected << 3, 2, 1,  //
      4, 3, 2;
  toeplitz.apply(identity, y);
  const auto near = testing::DoubleNear(40 * std::numeric_limits<TypeParam>::epsilon());  // 10 log2(16)
  EXPECT_THAT(y.reshaped(), testing::Pointwise(near, expected.reshaped()));
}

TYPED_TEST(Toeplitz, EqualsTheDenseProductForEverySmallShape) {
  for (Index rows = 1; rows <= 40; ++rows) {
    for (Index cols = 1; cols <= 40; ++cols) {
      const Case<TypeParam> c(rows, cols);
      for (Index channels = 1; channels <= 5; ++channels) this->expect_dense(c, channels);
    }
  }
}

TYPED_TEST(Toeplitz, EqualsTheDenseProductForPrimesAndPowersOfTwo) {
  std::vector<Index> sizes{1, 2, 64, 128, 256};
  for (Index n = 41; n < 300; ++n) {
    bool prime = true;
    for (Index p = 2; p * p <= n; ++p) prime = prime && n % p != 0;
    if (prime) sizes.push_back(n);
  }
  for (Index rows : sizes) {
    for (Index cols : sizes) this->expect_dense(Case<TypeParam>(rows, cols), 1 + (rows + cols) % 2);
  }
}

TYPED_TEST(Toeplitz, BandsEqualTheDenseProduct) {
  // One block or several, direct or not; bands that touch a corner, the diagonal or neither.
  for (const auto& [rows, cols] : {std::pair<Index, Index>{1, 1},
                                   {40, 40},
                                   {700, 700},
                                   {1100, 600},
                                   {600, 1100},
                                   {1500, 90},
                                   {90, 1500}}) {
    for (const Index width : {1, 2, 60, 170, 400}) {
      for (const Index first :
           {1 - cols, -cols / 2, -width, -width / 2, Index{0}, Index{3}, rows / 2, rows - width}) {
        const Index last = first + width - 1;
        if (first <= -cols || last >= rows) continue;
        const Case<TypeParam> c(rows, cols, LagSupport{first, last});
        EXPECT_EQ(c.toeplitz.support(), (LagSupport{first, last}));
        this->expect_dense(c, 2);
      }
    }
  }
}

TYPED_TEST(Toeplitz, GeneratorsOfZerosGiveZeros) {
  const ToeplitzOperator<TypeParam> zero(6, 4, std::vector<TypeParam>(9));
  const RowMajor<TypeParam> x = random_matrix<TypeParam>(4, 2, 1);
  RowMajor<TypeParam> y = RowMajor<TypeParam>::Constant(6, 2, 99),
                      y_t = RowMajor<TypeParam>::Constant(4, 2, 99);
  zero.apply(x, y);
  zero.apply_transpose(y, y_t);
  EXPECT_TRUE(y.isZero(0) && y_t.isZero(0));
}

TYPED_TEST(Toeplitz, EveryChannelMayHaveAGeneratorOfItsOwn) {
  for (const auto& [rows, cols] : {std::pair<Index, Index>{20, 20}, {300, 500}, {900, 900}}) {
    for (const Index channels : {1, 2, 19}) {
      // Some causal, so that supports differ.
      RowMajor<TypeParam> generators = random_matrix<TypeParam>(channels, rows + cols - 1, 4);
      for (Index c = 0; c < channels; c += 2) generators.row(c).head(cols - 1).setZero();
      const auto batch = ToeplitzOperator<TypeParam>::per_channel(rows, cols, generators);
      EXPECT_EQ(batch.channels(), channels > 1 ? channels : 0);
      const RowMajor<TypeParam> x = random_matrix<TypeParam>(cols, channels, 5),
                                u = random_matrix<TypeParam>(rows, 3, 6),
                                v = random_matrix<TypeParam>(cols, 3, 7),
                                x_t = random_matrix<TypeParam>(rows, channels, 8);
      RowMajor<TypeParam> y(rows, channels), h(rows, channels), y_t(cols, channels);
      batch.apply(x, y, threads(3));
      batch.apply_hadamard(u, v, x, h);
      batch.apply_transpose(x_t, y_t);
      for (Index c = 0; c < channels; ++c) {
        const RowMajor<TypeParam> g = generators.row(c).transpose();
        const ToeplitzOperator<TypeParam> one(rows, cols, Case<TypeParam>::values(g));
        const RowMajor<TypeParam> x_c = x.col(c), x_t_c = x_t.col(c);
        RowMajor<TypeParam> y_c(rows, 1), h_c(rows, 1), y_t_c(cols, 1);
        one.apply(x_c, y_c);
        one.apply_hadamard(u, v, x_c, h_c);
        one.apply_transpose(x_t_c, y_t_c);
        const double bound = Case<TypeParam>::promised_bound(g);
        EXPECT_LE(max_difference(y.col(c), y_c, 0), 2 * bound * norm_2(x, c));
        EXPECT_LE(max_difference(y_t.col(c), y_t_c, 0), 2 * bound * norm_2(x_t, c));
        double scale = 0;
        for (Index l = 0; l < 3; ++l) scale += norm_max(u, l) * norm_max(v, l);
        EXPECT_LE(max_difference(h.col(c), h_c, 0), 2 * bound * scale * norm_2(x, c));
      }
      if (channels == 1) continue;
      RowMajor<TypeParam> narrow(cols, channels - 1), out(rows, channels - 1);
      EXPECT_THAT([&] { batch.apply(narrow, out); },
                  testing::ThrowsMessage<Error>(testing::HasSubstr("generators")));
    }
  }
  EXPECT_THAT(
      [] { ToeplitzOperator<TypeParam>::per_channel(2, 2, MatrixView<const TypeParam>(nullptr, 0, 3)); },
      testing::ThrowsMessage<Error>(testing::HasSubstr("0 generators")));
}

TYPED_TEST(Toeplitz, RowsOfALongProductEqualTheirDotProducts) {
  const Index n = 50'000;
  const RowMajor<TypeParam> t = random_matrix<TypeParam>(2 * n - 1, 1, 1),
                            x = random_matrix<TypeParam>(n, 1, 2);
  RowMajor<TypeParam> y(n, 1);
  ToeplitzOperator<TypeParam>(n, n, Case<TypeParam>::values(t)).apply(x, y);

  for (Index i : {Index{0}, Index{1}, Index{31'007}, n - 1}) {
    double exact = 0;
    for (Index j = 0; j < n; ++j)
      exact += static_cast<double>(t(i - j + n - 1, 0)) * static_cast<double>(x(j, 0));
    EXPECT_NEAR(static_cast<double>(y(i, 0)), exact, Case<TypeParam>::promised_bound(t) * norm_2(x))
        << "row " << i;
  }
}

TYPED_TEST(Toeplitz, ReadsAndWritesStridedViews) {
  const TypeParam guard = 77;
  const Case<TypeParam> c(70, 130);
  const RowMajor<TypeParam> x = random_matrix<TypeParam>(130, 3, 2);
  RowMajor<TypeParam> wide_x = RowMajor<TypeParam>::Constant(130, 8, guard);
  RowMajor<TypeParam> wide_y = RowMajor<TypeParam>::Constant(70, 6, guard);
  wide_x.middleCols(4, 3) = x;
  c.toeplitz.apply(wide_x.middleCols(4, 3), wide_y.middleCols(1, 3));
  EXPECT_LE(worst_error(c.dense, x, wide_y.middleCols(1, 3), c.bound()), 1);
  EXPECT_TRUE((wide_y.leftCols(1).array() == guard).all() && (wide_y.rightCols(2).array() == guard).all());

  const RowMajor<TypeParam> row = x.topRows(1), repeated = row.replicate(130, 1);
  RowMajor<TypeParam> y(70, 3);
  c.toeplitz.apply(MatrixView<const TypeParam>(row.data(), 130, 3, /*row_stride=*/0), y);
  EXPECT_LE(worst_error(c.dense, repeated, y, c.bound()), 1);
}

TYPED_TEST(Toeplitz, ResultDoesNotDependOnWorkersOrOtherChannels) {
  const Case<TypeParam> c(65, 127);
  for (Index channels : {1, 7, 8, 9, 15, 16, 17, 33, 70}) {
    this->expect_dense(c, channels);
    const RowMajor<TypeParam> x = random_matrix<TypeParam>(127, channels, 2),
                              u = random_matrix<TypeParam>(65, 3, 3), v = random_matrix<TypeParam>(127, 3, 4);
    RowMajor<TypeParam> y(65, channels), y_threads(65, channels), y_one(65, 1);
    const auto expect_same = [&](const auto& product) {
      product(x, y, Executor::serial());
      for (Index workers : {2, 3, 8}) {
        product(x, y_threads, threads(workers));
        EXPECT_EQ(y_threads, y) << channels << " channels, " << workers << " workers";
      }
      product(x.rightCols(1), y_one, Executor::serial());
      EXPECT_EQ(y_one, y.rightCols(1)) << channels << " channels";
    };
    using In = MatrixView<const TypeParam>;
    using Out = MatrixView<TypeParam>;
    expect_same([&](In in, Out out, const Executor& e) { c.toeplitz.apply(in, out, e); });
    expect_same([&](In in, Out out, const Executor& e) { c.toeplitz.apply_hadamard(u, v, in, out, e); });
  }
}

TYPED_TEST(Toeplitz, HadamardEqualsTheDenseProduct) {
  const double eps = std::numeric_limits<TypeParam>::epsilon();
  for (const auto& [rows, cols] : {std::pair<Index, Index>{1, 1}, {1, 17}, {40, 40}, {33, 90}, {97, 64}}) {
    const Case<TypeParam> c(rows, cols);
    for (Index rank : {0, 1, 2, 3, 4, 5, 6, 7, 8, 64}) {
      const RowMajor<TypeParam> u = random_matrix<TypeParam>(rows, rank, 5),
                                v = random_matrix<TypeParam>(cols, rank, 6),
                                x = random_matrix<TypeParam>(cols, 3, 7);
      RowMajor<TypeParam> y = RowMajor<TypeParam>::Constant(rows, 3, 99);
      c.toeplitz.apply_hadamard(u, v, x, y);

      Dense hadamard = product(u, v.transpose());
      for (Index i = 0; i < rows; ++i) {
        for (Index j = 0; j < cols; ++j) hadamard(i, j) *= c.dense(i, j);
      }
      const Dense exact = product(hadamard, x);
      for (Index channel = 0; channel < 3; ++channel) {
        // A term is off by the bound of apply, and, being at most |U_l|_max |t|_2 |V_l o x|_2, by its own
        // rounding (2 eps for the scalings) and that of the sum (rank eps).
        double scale = 0;
        for (Index l = 0; l < rank; ++l) {
          Dense v_x(cols, 1);
          for (Index j = 0; j < cols; ++j) v_x(j, 0) = static_cast<double>(v(j, l) * x(j, channel));
          scale += norm_max(u, l) * norm_2(v_x);
        }
        const double rounding = static_cast<double>(rank + 2) * eps * norm_2(c.generator);
        ASSERT_LE(max_difference(y, exact, channel), scale * (c.bound() + rounding))
            << rows << " x " << cols << ", rank " << rank;
      }
    }
  }
}

TYPED_TEST(Toeplitz, IsLinear) {
  const Case<TypeParam> c(83, 59);
  const RowMajor<TypeParam> a = random_matrix<TypeParam>(59, 2, 2), b = random_matrix<TypeParam>(59, 2, 3);
  const RowMajor<TypeParam> sum = TypeParam(2) * a - TypeParam(0.5) * b;
  RowMajor<TypeParam> t_a(83, 2), t_b(83, 2), t_sum(83, 2);
  c.toeplitz.apply(a, t_a);
  c.toeplitz.apply(b, t_b);
  c.toeplitz.apply(sum, t_sum);
  const RowMajor<TypeParam> combined = TypeParam(2) * t_a - TypeParam(0.5) * t_b;
  for (Index channel = 0; channel < 2; ++channel) {
    // Each product is within its bound, and so is the rounding of the two sums by the factor 10 in it.
    const double norms = 2 * norm_2(a, channel) + 0.5 * norm_2(b, channel) + 2 * norm_2(sum, channel);
    EXPECT_LE(max_difference(t_sum, combined, channel), c.bound() * norms);
  }
}

TYPED_TEST(Toeplitz, TransposeIsTheAdjoint) {
  for (const auto& [rows, cols] : {std::pair<Index, Index>{7, 7}, {200, 31}, {31, 200}, {256, 255}}) {
    const Case<TypeParam> c(rows, cols);
    const RowMajor<TypeParam> x = random_matrix<TypeParam>(cols, 1, 2),
                              y = random_matrix<TypeParam>(rows, 1, 3);
    RowMajor<TypeParam> t_x(rows, 1), t_y(cols, 1);
    c.toeplitz.apply(x, t_x);
    c.toeplitz.apply_transpose(y, t_y);
    // |<dx, y>| <= |dx|_max |y|_1, and the dot products in double round far below that.
    const double tolerance = c.bound() * (norm_2(x) * norm_1(y) + norm_2(y) * norm_1(x));
    EXPECT_NEAR(product(t_x.transpose(), y)(0, 0), product(t_y.transpose(), x)(0, 0), tolerance)
        << rows << " x " << cols;
  }
}

TYPED_TEST(Toeplitz, EmptyShapesAreValid) {
  const std::vector<TypeParam> generator(4, TypeParam(1));
  RowMajor<TypeParam> none(0, 2), full = RowMajor<TypeParam>::Constant(5, 2, 99), u(5, 1), v(0, 1);
  u.setOnes();
  const ToeplitzOperator<TypeParam> no_cols(5, 0, generator), no_rows(0, 5, generator), nothing(0, 0, {});
  no_cols.apply(none, full);
  EXPECT_TRUE(full.isZero(0));
  full.setConstant(99);
  no_cols.apply_hadamard(u, v, none, full);
  EXPECT_TRUE(full.isZero(0));
  no_rows.apply(full, none);
  full.setConstant(99);
  no_rows.apply_transpose(none, full);
  EXPECT_TRUE(full.isZero(0));
  nothing.apply(none, none);
  const Case<TypeParam> c(5, 5);
  c.toeplitz.apply(MatrixView<const TypeParam>(nullptr, 5, 0), MatrixView<TypeParam>(nullptr, 5, 0));
}

TYPED_TEST(Toeplitz, ClashingShapesThrowAndNameTheValues) {
  using Operator = ToeplitzOperator<TypeParam>;
  const auto throws = [](const char* text) {
    return testing::ThrowsMessage<Error>(testing::HasSubstr(text));
  };
  const std::vector<TypeParam> five(5, TypeParam(1));
  EXPECT_THAT([&] { Operator(3, 4, five); }, throws("3 x 4 matrix needs a generator of 6 values, got 5"));
  EXPECT_THAT([&] { Operator(0, 0, five); }, throws("0 x 0 matrix needs a generator of 0 values, got 5"));
  EXPECT_THAT([&] { Operator(-2, 8, five); }, throws("-2 x 8"));
  EXPECT_THAT([&] { Operator(Index{1} << 59, 1, five); }, throws("got 5"));
  constexpr Index kMost = std::numeric_limits<Index>::max();
  EXPECT_THAT([&] { Operator(kMost, 7, five); }, throws("got 5"));  // kMost + 7 - 1 is 5 more than the least
  EXPECT_THAT([&] { Operator::per_channel(2, 4, MatrixView<const TypeParam>(nullptr, 3, 5)); },
              throws("null pointer with size 3 x 5"));

  const Operator toeplitz(2, 4, five);
  RowMajor<TypeParam> x(4, 3), y(2, 3), y_narrow(2, 2), u(2, 1), v(4, 1), v_wide(4, 2);
  EXPECT_THAT([&] { toeplitz.apply(y, x); }, throws("2 x 4, apply: x is 2 x 3 and y is 4 x 3"));
  EXPECT_THAT([&] { toeplitz.apply(x, y_narrow); }, throws("y is 2 x 2, but x must be 4 x c and y 2 x c"));
  EXPECT_THAT([&] { toeplitz.apply_transpose(x, y); }, throws("apply_transpose: x is 4 x 3"));
  EXPECT_THAT([&] { toeplitz.apply_hadamard(v, u, x, y); }, throws("u is 4 x 1 and v is 2 x 1"));
  EXPECT_THAT([&] { toeplitz.apply_hadamard(u, v_wide, x, y); }, throws("u is 2 x 1 and v is 4 x 2"));
  EXPECT_THAT([&] { toeplitz.apply_hadamard(u, v, y, y); }, throws("apply_hadamard: x is 2 x 3"));
  EXPECT_THAT([&] { toeplitz.apply(x, MatrixView<TypeParam>(y.data(), 2, 3, 0)); }, throws("row stride 0"));
  EXPECT_THAT([&] { toeplitz.apply(x, MatrixView<TypeParam>(y.data(), 2, 3, -2)); }, throws("row stride -2"));
  EXPECT_THAT(
      [&] {
        toeplitz.apply(MatrixView<const TypeParam>(x.data(), 4, -3), MatrixView<TypeParam>(y.data(), 2, -3));
      },
      throws("x is 4 x -3"));

  const MatrixView<TypeParam> null_x(nullptr, 4, 3), null_y(nullptr, 2, 3), null_u(nullptr, 2, 1),
      null_v(nullptr, 4, 1);
  EXPECT_THAT([&] { toeplitz.apply(null_x, y); }, throws("x is a null pointer with size 4 x 3"));
  EXPECT_THAT([&] { toeplitz.apply(x, null_y); }, throws("y is a null pointer with size 2 x 3"));
  EXPECT_THAT([&] { toeplitz.apply_hadamard(null_u, v, x, y); },
              throws("u is a null pointer with size 2 x 1"));
  EXPECT_THAT([&] { toeplitz.apply_hadamard(u, null_v, x, y); },
              throws("v is a null pointer with size 4 x 1"));
}

TYPED_TEST(Toeplitz, ANonFiniteValueSpoilsItsChannelAlone) {
  const Case<TypeParam> c(20, 30);
  RowMajor<TypeParam> x = random_matrix<TypeParam>(30, 3, 2), y(20, 3), spoilt(20, 3);
  c.toeplitz.apply(x, y);
  x(4, 1) = std::numeric_limits<TypeParam>::quiet_NaN();
  c.toeplitz.apply(x, spoilt);
  EXPECT_EQ(spoilt.col(0), y.col(0));
  EXPECT_TRUE(spoilt.col(1).array().isNaN().all());
  EXPECT_EQ(spoilt.col(2), y.col(2));
}

TYPED_TEST(Toeplitz, CopiesAreIndependentOfTheirSource) {
  auto source = std::make_unique<Case<TypeParam>>(30, 20);
  const Case<TypeParam> copy = *source;
  source.reset();
  this->expect_dense(copy, 3);
}

TYPED_TEST(Toeplitz, EightThreadsMakeAndApplyOperators) {
  std::vector<std::thread> threads;
  std::vector<double> worst(8);
  for (unsigned t = 0; t < 8; ++t) {
    threads.emplace_back([t, &worst] {
      for (Index step = 0; step < 12; ++step) {
        const Index n =
            400 + 40 * step + (t % 2 == 0 ? 0 : 7 * static_cast<Index>(t));  // some share a length
        const Case<TypeParam> c(n, n / 2, t);
        const RowMajor<TypeParam> x = random_matrix<TypeParam>(n / 2, 2, t);
        RowMajor<TypeParam> y(n, 2);
        c.toeplitz.apply(x, y);
        worst[t] = std::max(worst[t], worst_error(c.dense, x, y, c.bound()));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(worst, testing::Each(testing::Le(1)));
}

}  // namespace
}  // namespace fastrope
