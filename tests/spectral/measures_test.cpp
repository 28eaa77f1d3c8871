// Measures of spectra against closed forms, and the inequality that Hadamard products obey.
#include "fastrope/spectral/measures.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <Eigen/Eigenvalues>
#include <Eigen/SVD>

#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using fastrope::measures;
using fastrope::SpectralMeasures;

TEST(Measures, OfFlatAndGeometricSpectraAreClosedForms) {
  const SpectralMeasures flat = measures(Eigen::VectorXd::Constant(7, 3.0), 7, 9);
  EXPECT_EQ(flat.sigma_1, 3);
  EXPECT_EQ(flat.rank, 7);
  EXPECT_EQ(flat.condition, 1);
  EXPECT_DOUBLE_EQ(flat.stable_rank, 7);
  EXPECT_NEAR(flat.entropy_rank, 7, 1e-12);

  Eigen::VectorXd halves(40);
  for (Index i = 0; i < 40; ++i) halves(i) = std::ldexp(5.0, static_cast<int>(-2 * i));
  const SpectralMeasures geometric = measures(halves, 40, 40);
  EXPECT_EQ(geometric.rank, 24);  // 4^-i > 40 epsilon = 2^-46.7
  EXPECT_EQ(geometric.condition, std::ldexp(1.0, 46));
  EXPECT_NEAR(geometric.stable_rank, 16.0 / 15, 1e-12);
  EXPECT_NEAR(geometric.entropy_rank, 4 / 3.0 * std::pow(4, 1 / 3.0), 1e-9);  // entropy log(4/3) + log(4)/3

  EXPECT_EQ(measures(Eigen::VectorXd::Zero(3), 3, 3).rank, 0);
  EXPECT_EQ(fastrope::contraction(geometric, flat), 5.0 / 3);
  EXPECT_THAT([] { measures(Eigen::Vector2d(1, -1), 2, 2); },
              testing::ThrowsMessage<fastrope::Error>(testing::HasSubstr("-1 is no singular value")));
}

// Bapat and Sunder: G o T for positive semidefinite T with unit diagonal.
TEST(Majorisation, HoldsForAThousandToeplitzMatricesAndFailsWithoutUnitDiagonal) {
  Inputs inputs(1);
  int strict = 0;
  for (int trial = 0; trial < 1000; ++trial) {
    const Index n = inputs.integer(2, 24);
    // A positive measure of up to 5 frequencies, its moments over their sum.
    Eigen::VectorXd t = Eigen::VectorXd::Zero(n);
    for (Index m = inputs.integer(1, 5); m > 0; --m) {
      const double mass = inputs.uniform(0.1, 1), theta = inputs.uniform(0, 3.1);
      for (Index lag = 0; lag < n; ++lag) t(lag) += mass * std::cos(theta * static_cast<double>(lag));
    }
    t /= t(0);
    Eigen::MatrixXd g(n, n), product(n, n);
    for (double& value : g.reshaped()) value = inputs.normal();
    const bool symmetric = trial % 2 == 0;
    if (symmetric) g = (g + g.transpose()).eval();
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j) product(i, j) = g(i, j) * t(std::abs(i - j));
    const auto sigma = [](const Eigen::MatrixXd& m) {
      return Eigen::JacobiSVD<Eigen::MatrixXd>(m).singularValues().eval();
    };
    EXPECT_LE(fastrope::majorisation_excess(sigma(product), sigma(g)), 1e-12 * g.norm()) << trial;
    strict += fastrope::majorisation_excess(sigma(g), sigma(product)) > 1e-3 * g.norm();
    if (symmetric) {
      // Eigenvalues may be negative: moved up, sums of equal traces compare in the same way.
      const auto lambda = [&](const Eigen::MatrixXd& m) {
        return (Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(m).eigenvalues().array() + g.norm())
            .matrix()
            .eval();
      };
      EXPECT_LE(fastrope::majorisation_excess(lambda(product), lambda(g)), 1e-12 * g.norm()) << trial;
      EXPECT_NEAR(product.trace(), g.trace(), 1e-12 * g.norm());
    }
    EXPECT_GT(fastrope::majorisation_excess(1.5 * sigma(g), sigma(g)), 0.1 * g.norm());
  }
  EXPECT_GT(strict, 900);
}

TEST(Majorisation, RefusesWhatAreNoSingularValues) {
  const Eigen::Vector2d good(1, 2), bad(1, std::nan("")), negative(1, -2);
  EXPECT_THROW(fastrope::majorisation_excess(bad, good), fastrope::Error);
  EXPECT_THROW(fastrope::majorisation_excess(good, bad), fastrope::Error);
  EXPECT_THROW(fastrope::majorisation_excess(good, negative), fastrope::Error);
}

TEST(Majorisation, CountsMissingValuesAsZero) {
  EXPECT_EQ(fastrope::majorisation_excess(Eigen::Vector2d(1, 2), Eigen::Vector3d(2, 1, 3)), -1);
  EXPECT_EQ(fastrope::majorisation_excess(Eigen::Vector3d(2, 1, 3), Eigen::Vector2d(1, 2)), 3);
}

}  // namespace
}  // namespace fastrope_test
