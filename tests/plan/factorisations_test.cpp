// Factors multiplied again, and what they promise of themselves.
#include "fastrope/plan/factorisations.hpp"

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

constexpr Index kSizes[] = {0, 1, 2, 3, 4, 5, 8, 17, 64};

/// Rounding of n-fold sums, some times over.
double rounding(Index n) { return 16 * static_cast<double>(n + 1) * std::numeric_limits<double>::epsilon(); }

Matrix random_symmetric(Inputs& inputs, Index n) {
  Matrix m(n, n);
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j <= i; ++j) m(i, j) = m(j, i) = inputs.normal();
  return m;
}

/// V^T diag(values) V.
Matrix composed(const SymmetricEigen& e) {
  Matrix scaled = e.vectors;
  for (Index l = 0; l < scaled.rows; ++l)
    for (Index c = 0; c < scaled.cols; ++c) scaled(l, c) *= e.values[static_cast<std::size_t>(l)];
  return product(transposed(e.vectors), scaled);
}

/// The eigenvalues and vectors of m keep their promises.
SymmetricEigen expect_eigen(const Matrix& m) {
  SymmetricEigen e = factorisations().symmetric_eigen(m);
  EXPECT_EQ(static_cast<Index>(e.values.size()), m.rows);
  EXPECT_EQ(e.vectors.rows, m.rows);
  EXPECT_EQ(e.vectors.cols, m.rows);
  EXPECT_TRUE(std::is_sorted(e.values.rbegin(), e.values.rend())) << "the largest is not first";
  EXPECT_LE(farthest_apart(product(e.vectors, transposed(e.vectors)), identity(m.rows)), rounding(m.rows));
  EXPECT_LE(farthest_apart(composed(e), m), rounding(m.rows) * norm(m));
  for (Index i = 0; i < m.rows; ++i)
    for (Index j = m.rows; j < e.vectors.stride; ++j) EXPECT_EQ(e.vectors.row(i)[j], 0);
  return e;
}

TEST(SymmetricEigen, OfRandomMatricesOfAnySize) {
  Inputs inputs(1);
  for (const Index n : kSizes)
    for (int turn = 0; turn < 5; ++turn) {
      SCOPED_TRACE(testing::Message() << "n " << n << ", turn " << turn);
      expect_eigen(random_symmetric(inputs, n));
    }
}

TEST(SymmetricEigen, OfValuesByHand) {
  Matrix one(1, 1);
  one(0, 0) = -3;
  const SymmetricEigen of_one = expect_eigen(one);
  EXPECT_EQ(of_one.values.front(), -3);
  EXPECT_EQ(std::abs(of_one.vectors(0, 0)), 1);
  Matrix two(2, 2);
  two(0, 0) = two(1, 1) = 2;
  two(0, 1) = two(1, 0) = 1;
  const SymmetricEigen of_two = expect_eigen(two);
  EXPECT_NEAR(of_two.values[0], 3, 1e-15);
  EXPECT_NEAR(of_two.values[1], 1, 1e-15);
  EXPECT_NEAR(of_two.vectors(0, 0), of_two.vectors(0, 1), 1e-15);
  EXPECT_NEAR(of_two.vectors(1, 0), -of_two.vectors(1, 1), 1e-15);
}

TEST(SymmetricEigen, FindsTheValuesThatAMatrixIsMadeOf) {
  // Over many orders of magnitude, some of them repeated, some negative.
  Inputs inputs(2);
  for (const Index n : {2, 3, 17, 64})
    for (const double decay : {0.9, 0.5, 0.1}) {
      SCOPED_TRACE(testing::Message() << "n " << n << ", decay " << decay);
      SymmetricEigen made = factorisations().symmetric_eigen(random_symmetric(inputs, n));
      for (Index l = 0; l < n; ++l)
        made.values[static_cast<std::size_t>(l)] =
            std::pow(decay, static_cast<double>(l / 2)) * (l % 3 == 2 ? -1 : 1);
      const SymmetricEigen found = expect_eigen(composed(made));
      std::sort(made.values.rbegin(), made.values.rend());
      for (std::size_t l = 0; l < found.values.size(); ++l)
        EXPECT_NEAR(found.values[l], made.values[l], 4 * rounding(n)) << l;
    }
}

TEST(SymmetricEigen, OfRepeatedValues) {
  for (const Index n : kSizes) {
    SCOPED_TRACE(testing::Message() << "n " << n);
    for (const double value : expect_eigen(identity(n)).values) EXPECT_NEAR(value, 1, rounding(n));
    Matrix ones(n, n);  // n and n - 1 zeros
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j) ones(i, j) = 1;
    const SymmetricEigen e = expect_eigen(ones);
    for (Index l = 0; l < n; ++l)
      EXPECT_NEAR(e.values[static_cast<std::size_t>(l)], l == 0 ? static_cast<double>(n) : 0.0,
                  rounding(n) * static_cast<double>(n));
  }
}

TEST(SymmetricEigen, OfTheZeroMatrix) {
  for (const Index n : kSizes) {
    SCOPED_TRACE(testing::Message() << "n " << n);
    for (const double value : expect_eigen(Matrix(n, n)).values) EXPECT_EQ(value, 0);
  }
}

TEST(SymmetricEigen, OfWhatIsDiagonalOrTridiagonalAlready) {
  Inputs inputs(3);
  for (const Index n : kSizes) {
    SCOPED_TRACE(testing::Message() << "n " << n);
    Matrix m(n, n);
    std::vector<double> diagonal;
    for (Index i = 0; i < n; ++i) diagonal.push_back(m(i, i) = inputs.normal());
    std::sort(diagonal.rbegin(), diagonal.rend());
    const SymmetricEigen e = expect_eigen(m);
    for (std::size_t l = 0; l < diagonal.size(); ++l)
      EXPECT_NEAR(e.values[l], diagonal[l], rounding(n) * norm(m));
    for (Index i = 0; i + 1 < n; ++i) m(i, i + 1) = m(i + 1, i) = inputs.normal();
    expect_eigen(m);
    for (Index i = 0; i + 1 < n; i += 2) m(i, i + 1) = m(i + 1, i) = 0;
    expect_eigen(m);
  }
}

TEST(SymmetricEigen, OfWhatFallsApart) {
  // Blocks that know nothing of each other, and a last column that is all that stands beside the diagonal.
  Inputs inputs(4);
  for (const Index n : {4, 9, 17}) {
    SCOPED_TRACE(testing::Message() << "n " << n);
    Matrix blocks = random_symmetric(inputs, n), arrow(n, n);
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j)
        if (i / 2 != j / 2) blocks(i, j) = 0;
    expect_eigen(blocks);
    for (Index i = 0; i < n; ++i) {
      arrow(i, i) = inputs.normal();
      if (i + 1 < n) arrow(i, n - 1) = arrow(n - 1, i) = inputs.normal();
    }
    expect_eigen(arrow);
  }
}

TEST(SymmetricEigen, OfAnySizeOfElements) {
  Inputs inputs(5);
  const Matrix m = random_symmetric(inputs, 17);
  const std::vector<double> values = expect_eigen(m).values;
  for (const double size : {1e-100, 1e-30, 1e30, 1e100}) {
    Matrix scaled = m;
    for (double& x : scaled.values) x *= size;
    const SymmetricEigen e = expect_eigen(scaled);
    for (std::size_t l = 0; l < values.size(); ++l)
      EXPECT_NEAR(e.values[l] / size, values[l], rounding(17) * norm(m)) << size;
  }
}

TEST(SymmetricEigen, OfWhatIsNotFiniteEnds) {
  for (const double bad : {NAN, INFINITY})
    for (const Index n : {1, 3, 17}) {
      Matrix m = identity(n);
      m(0, n - 1) = m(n - 1, 0) = bad;
      EXPECT_EQ(static_cast<Index>(factorisations().symmetric_eigen(m).values.size()), n);
    }
}

TEST(Cholesky, FactorsAreLowerTriangularAndMultiplyToTheMatrix) {
  Inputs inputs(6);
  for (const Index n : kSizes)
    for (const double ridge : {1.0, 1e-3, 1e-8}) {
      SCOPED_TRACE(testing::Message() << "n " << n << ", ridge " << ridge);
      const Matrix x = matrix_of(gaussian_rows<double>(inputs, n, n));
      Matrix m = product(x, transposed(x));
      for (Index i = 0; i < n; ++i) m(i, i) += ridge * trace(m);
      const Matrix l = factorisations().cholesky(m);
      ASSERT_EQ(l.rows, n);
      ASSERT_EQ(l.cols, n);
      for (Index i = 0; i < n; ++i) {
        EXPECT_GT(l(i, i), 0);
        for (Index j = i + 1; j < l.stride; ++j) EXPECT_EQ(l.row(i)[j], 0);
      }
      EXPECT_LE(farthest_apart(product(l, transposed(l)), m), rounding(n) * norm(m));
    }
}

TEST(Cholesky, ByHand) {
  Matrix m(3, 3);
  const double numbers[3][3] = {{4, 12, -16}, {12, 37, -43}, {-16, -43, 98}},
               factor[3][3] = {{2, 0, 0}, {6, 1, 0}, {-8, 5, 3}};
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 3; ++j) m(i, j) = numbers[i][j];
  const Matrix l = factorisations().cholesky(m);
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 3; ++j) EXPECT_NEAR(l(i, j), factor[i][j], 1e-13) << i << ", " << j;
}

}  // namespace
}  // namespace fastrope_test
