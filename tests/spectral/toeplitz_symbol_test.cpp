// Symbols of Toeplitz matrices against closed forms and dense spectra.
#include "fastrope/spectral/toeplitz_symbol.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <Eigen/Eigenvalues>
#include <Eigen/SVD>
#include <complex>
#include <numbers>

#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using fastrope::NormBounds;
using fastrope::ToeplitzSymbol;
using testing::HasSubstr;
using testing::ThrowsMessage;

std::vector<double> generator_of(Index n_rows, Index n_cols, const std::function<double(Index lag)>& t) {
  std::vector<double> generator;
  for (Index lag = -n_cols + 1; lag < n_rows; ++lag) generator.push_back(t(lag));
  return generator;
}

Eigen::MatrixXd written(Index n_rows, Index n_cols, const std::vector<double>& generator) {
  Eigen::MatrixXd t(n_rows, n_cols);
  for (Index i = 0; i < n_rows; ++i)
    for (Index j = 0; j < n_cols; ++j) t(i, j) = generator[static_cast<std::size_t>(i - j + n_cols - 1)];
  return t;
}

std::vector<double> alibi(Index n, double slope) {
  return generator_of(n, n, [&](Index lag) { return std::exp(-slope * static_cast<double>(std::abs(lag))); });
}

// sinh m / (cosh m - cos theta), in [tanh(m / 2), coth(m / 2)].
TEST(ToeplitzSymbol, OfAlibiHasItsClosedFormAndRange) {
  constexpr Index kRows = 600;
  for (const double m : {0.1, 0.5, 2.0}) {
    const ToeplitzSymbol symbol(kRows, kRows, alibi(kRows, m));
    const Eigen::VectorXcd f = symbol.values(4096);
    for (Index j = 0; j < f.size(); ++j) {
      const double theta = 2 * std::numbers::pi * static_cast<double>(j) / 4096;
      EXPECT_NEAR(std::abs(f(j) - std::sinh(m) / (std::cosh(m) - std::cos(theta))), 0, 1e-12 / m);
    }
    EXPECT_NEAR(f.real().minCoeff(), std::tanh(m / 2), 1e-12);
    EXPECT_NEAR(f.real().maxCoeff(), 1 / std::tanh(m / 2), 1e-12 / m);
    const Eigen::VectorXd eigenvalues =
        Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(written(kRows, kRows, alibi(kRows, m)))
            .eigenvalues()
            .reverse();
    EXPECT_GE(eigenvalues.minCoeff(), std::tanh(m / 2));
    EXPECT_LE(eigenvalues.maxCoeff(), 1 / std::tanh(m / 2));
    // Szego: the estimate is off by O(1 / n) of the symbol's range at most.
    const Eigen::VectorXd estimate = symbol.szego_eigenvalues();
    EXPECT_LE((estimate - eigenvalues).cwiseAbs().maxCoeff(),
              1 / (m * static_cast<double>(kRows)) * estimate(0));
    EXPECT_NEAR(estimate.sum(), eigenvalues.sum(), 0.02 * eigenvalues.sum());
  }
}

TEST(ToeplitzSymbol, OfAShiftIsAWave) {
  const ToeplitzSymbol down(3, 3, std::vector<double>{0, 0, 0, 2, 0});  // t(1) = 2
  const Eigen::VectorXcd f = down.values(12);
  for (Index j = 0; j < f.size(); ++j) {
    const double theta = 2 * std::numbers::pi * static_cast<double>(j) / 12;
    EXPECT_NEAR(std::abs(f(j) - 2.0 * std::complex<double>(std::cos(theta), std::sin(theta))), 0, 1e-14);
  }
}

TEST(ToeplitzSymbol, BoundsTheNormFromBothSides) {
  Inputs inputs(1);
  for (const auto& [n_rows, n_cols] :
       {std::pair<Index, Index>{1, 1}, {1, 40}, {40, 1}, {64, 64}, {50, 90}, {90, 50}})
    for (int kind = 0; kind < 4; ++kind) {
      SCOPED_TRACE(testing::Message() << n_rows << " x " << n_cols << ", kind " << kind);
      const std::vector<double> generator = generator_of(n_rows, n_cols, [&](Index lag) {
        const double x = static_cast<double>(lag);
        return kind == 0   ? inputs.normal()
               : kind == 1 ? std::cos(0.7 * x)
               : kind == 2 ? std::exp(-0.2 * std::abs(x))
                           : double(lag >= 0);
      });
      const double norm =
          Eigen::JacobiSVD<Eigen::MatrixXd>(written(n_rows, n_cols, generator)).singularValues()(0);
      const NormBounds bounds = ToeplitzSymbol(n_rows, n_cols, generator).norm_bounds();
      EXPECT_LE(bounds.lower, norm * (1 + 1e-12));
      EXPECT_GE(bounds.upper, norm * (1 - 1e-12));
      EXPECT_GE(bounds.lower, 0.15 * norm);
    }
}

TEST(ToeplitzSymbol, SpreadsTheSingularValuesOfSkewedBands) {
  constexpr Index kRows = 200, kBand = 5;
  Inputs inputs(2);
  const std::vector<double> generator = generator_of(
      kRows, kRows, [&](Index lag) { return lag >= -2 && lag <= kBand ? inputs.normal() : 0.0; });
  const Eigen::VectorXd estimate = ToeplitzSymbol(kRows, kRows, generator).szego_singular_values(),
                        values = Eigen::JacobiSVD<Eigen::MatrixXd>(written(kRows, kRows, generator))
                                     .singularValues();
  for (Index i = 0; i < kRows; ++i) {
    // 2 diagonals above the main one and 5 below.
    const Index from = i - 2 * (kBand + 2), to = i + 2 * (kBand + 2);
    if (from >= 0) {
      EXPECT_LE(values(i), estimate(from) * (1 + 1e-9));
    }
    if (to < kRows) {
      EXPECT_GE(values(i), estimate(to) * (1 - 1e-9));
    }
  }
}

TEST(ToeplitzSymbol, RefusesSzegoWhereThereIsNoSymbol) {
  constexpr Index kRows = 256;
  const auto error = [](const char* text) { return ThrowsMessage<fastrope::Error>(HasSubstr(text)); };
  const ToeplitzSymbol rope(kRows, kRows, generator_of(kRows, kRows, [](Index lag) {
                              return std::cos(0.3 * static_cast<double>(lag));
                            }));
  EXPECT_THAT([&] { rope.szego_singular_values(); }, error("lags from 128 on hold 0.499"));
  EXPECT_THAT([&] { rope.szego_eigenvalues(); }, error("point masses"));
  const ToeplitzSymbol causal(kRows, kRows,
                              generator_of(kRows, kRows, [](Index lag) { return double(lag >= 0); }));
  EXPECT_THAT([&] { causal.szego_singular_values(); }, error("summable"));
  EXPECT_THAT([&] { causal.szego_eigenvalues(); }, error("not symmetric"));
  const ToeplitzSymbol wide(3, 5, std::vector<double>(7, 1.0));
  EXPECT_THAT([&] { wide.szego_singular_values(); }, error("3 x 5"));
  EXPECT_THAT([&] { wide.values(6); }, error("6 values"));
  EXPECT_THAT([&] { ToeplitzSymbol(3, 5, std::vector<double>(6, 1.0)); }, error("3 x 5"));
  EXPECT_THAT([&] { ToeplitzSymbol(1, 1, std::vector<double>{std::nan("")}); }, error("nan"));
}

}  // namespace
}  // namespace fastrope_test
