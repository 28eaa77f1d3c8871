#include "fastrope/plan/axes.hpp"

#include <gtest/gtest.h>

#include "fastrope/plan/factorisations.hpp"
#include "support/inputs.hpp"
#include "support/row_matrix.hpp"

namespace fastrope_test {
namespace {

using fastrope::identity;
using fastrope::Matrix;
using fastrope::product;
using fastrope::trace;
using fastrope::transposed;

/// Moments of full rank, or of `rank` directions only.
Matrix moments(Inputs& inputs, Index d, Index rank) {
  const Matrix x = matrix_of(gaussian_rows<double>(inputs, d, rank));
  return product(x, transposed(x));
}

/// a + factor b.
Matrix sum_of(Matrix a, double factor, const Matrix& b) {
  for (Index i = 0; i < a.rows; ++i)
    for (Index j = 0; j < a.cols; ++j) a(i, j) += factor * b(i, j);
  return a;
}

/// |a - b|.
double apart(const Matrix& a, const Matrix& b) { return norm(sum_of(a, -1, b)); }

/// m without what is beside the diagonal.
Matrix diagonal_of(const Matrix& m) {
  Matrix diagonal(m.rows, m.cols);
  for (Index i = 0; i < m.rows; ++i) diagonal(i, i) = m(i, i);
  return diagonal;
}

/// a m a^T.
Matrix in_axes(const Matrix& a, const Matrix& m) { return product(product(a, m), transposed(a)); }

TEST(PrincipalAxes, AreOrthogonalWithTheLargestMomentsFirst) {
  Inputs inputs(1);
  for (const Index d : {1, 3, 8}) {
    const Matrix q = moments(inputs, d, d), k = moments(inputs, d, 2);
    const fastrope::Axes axes = fastrope::principal_axes(q, k, fastrope::factorisations());
    EXPECT_EQ(axes.queries.values, axes.keys.values);
    EXPECT_LE(apart(product(axes.keys, transposed(axes.keys)), identity(d)), 1e-13);
    const Matrix both = sum_of(sum_of(Matrix(d, d), 1 / trace(q), q), 1 / trace(k), k);
    const Matrix sum = in_axes(axes.keys, both);
    for (Index i = 1; i < d; ++i) EXPECT_GE(sum(i - 1, i - 1), sum(i, i));
    EXPECT_LE(apart(sum, diagonal_of(sum)), 1e-13);
  }
}

TEST(BalancedAxes, MakeBothMomentsTheSameDiagonal) {
  Inputs inputs(2);
  for (const Index d : {1, 3, 8}) {
    const Matrix ridge = identity(d);
    Matrix q = sum_of(moments(inputs, d, d), 1, ridge), k = sum_of(moments(inputs, d, d), 1, ridge);
    const fastrope::Axes axes = fastrope::balanced_axes(q, k, fastrope::factorisations());
    EXPECT_LE(apart(product(transposed(axes.queries), axes.keys), ridge), 1e-12);
    q = sum_of(q, 1e-3 * trace(q) / static_cast<double>(d), ridge);
    k = sum_of(k, 1e-3 * trace(k) / static_cast<double>(d), ridge);
    const Matrix of_queries = in_axes(axes.queries, q), of_keys = in_axes(axes.keys, k);
    EXPECT_LE(apart(of_queries, of_keys), 1e-12 * norm(of_keys));
    EXPECT_LE(apart(of_keys, diagonal_of(of_keys)), 1e-12 * norm(of_keys));
    for (Index i = 1; i < d; ++i) EXPECT_GE(of_keys(i - 1, i - 1), of_keys(i, i));
  }
}

TEST(Axes, ExistForSingularMoments) {
  Inputs inputs(3);
  const fastrope::Factorisations by = fastrope::factorisations();
  const Matrix zero(4, 4), low = moments(inputs, 4, 1), full = moments(inputs, 4, 4);
  for (const Matrix& q : {zero, low, full})
    for (const Matrix& k : {zero, low, full})
      for (const fastrope::Axes& axes :
           {fastrope::principal_axes(q, k, by), fastrope::balanced_axes(q, k, by)})
        EXPECT_LE(apart(product(transposed(axes.queries), axes.keys), identity(4)), 1e-10);
}

TEST(Axes, OfTheRowsOwnAreTheIdentity) {
  const fastrope::Axes own = fastrope::identity_axes(5);
  EXPECT_EQ(apart(own.queries, identity(5)), 0);
  EXPECT_EQ(apart(own.keys, identity(5)), 0);
}

}  // namespace
}  // namespace fastrope_test
