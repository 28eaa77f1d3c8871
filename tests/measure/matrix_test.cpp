// Matrices of any size against plain loops.
#include "fastrope/measure/matrix.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/inputs.hpp"
#include "support/row_matrix.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

constexpr double kRoundoff = std::numeric_limits<double>::epsilon() / 2;

Matrix random_matrix(Inputs& inputs, Index rows, Index cols) {
  return matrix_of(gaussian_rows<double>(inputs, rows, cols));
}

/// Whatever is computed with whole vectors finds zeros behind the columns.
void expect_padded_with_zeros(const Matrix& m) {
  ASSERT_EQ(m.stride, round_up(m.cols, simd::kLanes<double>));
  ASSERT_EQ(static_cast<Index>(m.values.size()), m.rows * m.stride);
  for (Index i = 0; i < m.rows; ++i)
    for (Index j = m.cols; j < m.stride; ++j) EXPECT_EQ(m.row(i)[j], 0);
}

TEST(Matrix, BeginsAsZerosInRowsOfWholeVectors) {
  for (const Index rows : {0, 1, 5})
    for (const Index cols : {0, 1, 3, 8, 17}) {
      Matrix m(rows, cols);
      EXPECT_EQ(m.empty(), rows == 0 || cols == 0);
      expect_padded_with_zeros(m);
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j) {
          EXPECT_EQ(m(i, j), 0);
          m(i, j) = static_cast<double>(100 * i + j);
        }
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j) {
          EXPECT_EQ(m(i, j), static_cast<double>(100 * i + j));
          EXPECT_EQ(&m(i, j), m.row(i) + j);
        }
      expect_padded_with_zeros(m);
    }
  EXPECT_TRUE(Matrix().empty());
}

TEST(Matrix, OfTheIdentity) {
  for (const Index n : {0, 1, 5}) {
    const Matrix one = identity(n);
    ASSERT_EQ(one.rows, n);
    ASSERT_EQ(one.cols, n);
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j) EXPECT_EQ(one(i, j), i == j);
    EXPECT_EQ(trace(one), static_cast<double>(n));
    EXPECT_EQ(squared_norm(one), static_cast<double>(n));
  }
}

TEST(Matrix, TransposedHasRowsForColumns) {
  Inputs inputs(1);
  for (const Index rows : {0, 1, 4, 7})
    for (const Index cols : {0, 1, 3, 16}) {
      const Matrix m = random_matrix(inputs, rows, cols), t = transposed(m);
      ASSERT_EQ(t.rows, cols);
      ASSERT_EQ(t.cols, rows);
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j) EXPECT_EQ(t(j, i), m(i, j));
      expect_padded_with_zeros(t);
    }
}

TEST(Matrix, NormAndTraceAreThoseOfAllElements) {
  Inputs inputs(2);
  for (const Index rows : {0, 1, 3, 9})
    for (const Index cols : {0, 1, 2, 9, 11}) {
      const Matrix m = random_matrix(inputs, rows, cols);
      long double square = 0, diagonal = 0;
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j) {
          square += static_cast<long double>(m(i, j)) * m(i, j);
          if (i == j) diagonal += m(i, j);
        }
      const double terms = static_cast<double>(rows * cols + 2);
      EXPECT_NEAR(squared_norm(m), static_cast<double>(square),
                  terms * kRoundoff * static_cast<double>(square));
      EXPECT_EQ(norm(m), std::sqrt(squared_norm(m)));
      EXPECT_NEAR(trace(m), static_cast<double>(diagonal), terms * kRoundoff * norm(m) * 4);
    }
}

TEST(Matrix, AddScaledAddsWholeVectors) {
  Inputs inputs(3);
  constexpr Index count = 3 * simd::kLanes<double>;
  std::vector<double> x, y;
  for (Index i = 0; i < count; ++i) {
    x.push_back(inputs.normal());
    y.push_back(inputs.normal());
  }
  std::vector<double> sum = y;
  sum.push_back(77);
  add_scaled(-1.5, x.data(), count, sum.data());
  for (std::size_t i = 0; i < x.size(); ++i)
    EXPECT_NEAR(sum[i], y[i] - 1.5 * x[i], 2 * kRoundoff * (std::abs(y[i]) + 1.5 * std::abs(x[i])));
  EXPECT_EQ(sum.back(), 77);
}

TEST(Matrix, ProductsOfAnySize) {
  Inputs inputs(4);
  for (const Index rows : {0, 1, 2, 3, 4, 5, 17})
    for (const Index inner : {0, 1, 3, 8, 65})
      for (const Index cols : {0, 1, 4, 7, 16, 33}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << inner << " x " << cols);
        const Matrix a = random_matrix(inputs, rows, inner), b = random_matrix(inputs, inner, cols),
                     c = product(a, b);
        ASSERT_EQ(c.rows, rows);
        ASSERT_EQ(c.cols, cols);
        expect_padded_with_zeros(c);
        for (Index i = 0; i < rows; ++i)
          for (Index j = 0; j < cols; ++j) {
            long double sum = 0, size = 0;
            for (Index k = 0; k < inner; ++k) {
              sum += static_cast<long double>(a(i, k)) * b(k, j);
              size += std::abs(static_cast<long double>(a(i, k)) * b(k, j));
            }
            EXPECT_NEAR(c(i, j), static_cast<double>(sum),
                        static_cast<double>(inner + 1) * kRoundoff * static_cast<double>(size));
          }
      }
}

TEST(Matrix, ProductWithTheIdentityIsTheMatrix) {
  Inputs inputs(5);
  const Matrix m = random_matrix(inputs, 7, 13);
  EXPECT_EQ(farthest_apart(product(identity(7), m), m), 0);
  EXPECT_EQ(farthest_apart(product(m, identity(13)), m), 0);
}

TEST(Matrix, ProductOfAMatrixWithItselfIsSymmetricToTheLastBit) {
  Inputs inputs(6);
  for (const Index n : {1, 2, 5, 17, 64, 67})
    for (const Index d : {1, 3, 16, 31, 64}) {
      const Matrix x = random_matrix(inputs, d, n), square = product(x, transposed(x));
      EXPECT_EQ(farthest_apart(square, transposed(square)), 0) << d << " x " << n;
    }
}

TEST(Matrix, ProductsOfWhatIsNotFiniteAreNotFinite) {
  Inputs inputs(7);
  for (const double bad : {NAN, INFINITY}) {
    Matrix a = random_matrix(inputs, 6, 5);
    const Matrix b = random_matrix(inputs, 5, 3);
    a(4, 2) = bad;
    const Matrix c = product(a, b);
    for (Index i = 0; i < 6; ++i)
      for (Index j = 0; j < 3; ++j) EXPECT_EQ(std::isfinite(c(i, j)), i != 4) << i << ", " << j;
  }
}

}  // namespace
}  // namespace fastrope_test
