#include "fastrope/plan/axes.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using Eigen::MatrixXd;

/// Moments of full rank, or of `rank` directions only.
MatrixXd moments(Inputs& inputs, Eigen::Index d, Eigen::Index rank) {
  const MatrixXd x = MatrixXd::NullaryExpr(d, rank, [&] { return inputs.normal(); });
  return x * x.transpose();
}

template <class Real>
class SecondMoments : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(SecondMoments, Reals);

TYPED_TEST(SecondMoments, AreThoseOfAllRows) {
  using Real = TypeParam;
  using fastrope::Point;
  using fastrope::Rows;
  Inputs inputs(4);
  for (const Eigen::Index n : {1, 255, 256, 257, 700}) {
    const Rows<Real> x = Rows<Real>::NullaryExpr(n, 5, [&] { return static_cast<Real>(inputs.normal()); });
    const Point<Real> centre = x.colwise().mean();
    const MatrixXd centred = x.template cast<double>().rowwise() - centre.template cast<double>();
    const MatrixXd exact = centred.transpose() * centred / static_cast<double>(n);
    // Rows that are their own mean have rounding alone.
    const double size = n == 1 ? 1 : exact.norm();
    EXPECT_LE((fastrope::second_moments(x, centre) - exact).norm(),
              50 * static_cast<double>(std::numeric_limits<Real>::epsilon()) * size)
        << n << " rows";
  }
  const Rows<Real> many = Rows<Real>::Random(500, 64);
  const MatrixXd symmetric = fastrope::second_moments(many, Point<Real>(Point<Real>::Zero(64)));
  EXPECT_EQ(symmetric, symmetric.transpose());
  EXPECT_EQ(fastrope::second_moments(Rows<Real>(0, 3), Point<Real>(Point<Real>::Ones(3))),
            MatrixXd::Zero(3, 3));
}

TEST(PrincipalAxes, AreOrthogonalWithTheLargestMomentsFirst) {
  Inputs inputs(1);
  for (const Eigen::Index d : {1, 3, 8}) {
    const MatrixXd q = moments(inputs, d, d), k = moments(inputs, d, 2);
    const fastrope::Axes axes = fastrope::principal_axes(q, k);
    EXPECT_EQ(axes.queries, axes.keys);
    EXPECT_LE((axes.keys * axes.keys.transpose() - MatrixXd::Identity(d, d)).norm(), 1e-13);
    const MatrixXd sum = axes.keys * (q / q.trace() + k / k.trace()) * axes.keys.transpose();
    for (Eigen::Index i = 1; i < d; ++i) EXPECT_GE(sum(i - 1, i - 1), sum(i, i));
    EXPECT_LE((sum - MatrixXd(sum.diagonal().asDiagonal())).norm(), 1e-13);
  }
}

TEST(BalancedAxes, MakeBothMomentsTheSameDiagonal) {
  Inputs inputs(2);
  for (const Eigen::Index d : {1, 3, 8}) {
    const MatrixXd ridge = MatrixXd::Identity(d, d);
    MatrixXd q = moments(inputs, d, d) + ridge, k = moments(inputs, d, d) + ridge;
    const fastrope::Axes axes = fastrope::balanced_axes(q, k);
    EXPECT_LE((axes.queries.transpose() * axes.keys - ridge).norm(), 1e-12);
    q += 1e-3 * q.trace() / static_cast<double>(d) * ridge;
    k += 1e-3 * k.trace() / static_cast<double>(d) * ridge;
    const MatrixXd of_queries = axes.queries * q * axes.queries.transpose();
    const MatrixXd of_keys = axes.keys * k * axes.keys.transpose();
    EXPECT_LE((of_queries - of_keys).norm(), 1e-12 * of_keys.norm());
    EXPECT_LE((of_keys - MatrixXd(of_keys.diagonal().asDiagonal())).norm(), 1e-12 * of_keys.norm());
    for (Eigen::Index i = 1; i < d; ++i) EXPECT_GE(of_keys(i - 1, i - 1), of_keys(i, i));
  }
}

TEST(Axes, ExistForSingularMoments) {
  Inputs inputs(3);
  const MatrixXd zero = MatrixXd::Zero(4, 4), low = moments(inputs, 4, 1), full = moments(inputs, 4, 4);
  for (const MatrixXd& q : {zero, low, full})
    for (const MatrixXd& k : {zero, low, full})
      for (const fastrope::Axes& axes : {fastrope::principal_axes(q, k), fastrope::balanced_axes(q, k)})
        EXPECT_LE((axes.queries.transpose() * axes.keys - MatrixXd::Identity(4, 4)).norm(), 1e-10);
}

}  // namespace
}  // namespace fastrope_test
