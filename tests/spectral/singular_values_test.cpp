// Extreme singular values and eigenvalues against dense factorisations and closed forms.
#include "fastrope/spectral/singular_values.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#include <Eigen/SVD>
#include <limits>
#include <numbers>

#include "fastrope/spectral/logit_matrix.hpp"
#include "fastrope/spectral/weight_matrix.hpp"
#include "support/spectral_heads.hpp"

namespace fastrope_test {
namespace {

using fastrope::Extremes;
using fastrope::HadamardSum;
using fastrope::HadamardTerm;
using fastrope::Mask;
using testing::HasSubstr;
using testing::ThrowsMessage;

/// A Toeplitz matrix as a HadamardSum.
HadamardSum toeplitz(Index n_rows, Index n_cols, const std::vector<double>& generator) {
  return {n_rows, n_cols, {{RowMatrix::Ones(n_rows, 1), RowMatrix::Ones(n_cols, 1), generator}}};
}

void expect_extremes(const Extremes& found, const Eigen::VectorXd& all, double accuracy) {
  ASSERT_LE(found.values.size(), all.size());
  for (Index i = 0; i < found.values.size(); ++i) {
    EXPECT_NEAR(found.values(i), all(i), accuracy * all(0)) << "value " << i;
    EXPECT_LE(std::abs(found.values(i) - all(i)), found.residuals(i) + 1e-13 * all(0)) << "value " << i;
  }
}

TEST(SingularValues, AreThoseOfTheDenseMatrixForEverySchemeAndMask) {
  for (const auto& [n_q, n_k] : {std::pair<Index, Index>{128, 128}, {60, 200}})
    for (const Mask mask : {Mask::full(), Mask::causal()})
      for (Scheme scheme : schemes(16)) {
        SCOPED_TRACE(scheme.name);
        Inputs inputs(1);
        const auto q = inputs.gaussian<double>(1, n_q, 16), k = inputs.gaussian<double>(1, n_k, 16);
        if (scheme.name != "table") scheme.options.mask = mask;
        const HadamardSum logits = fastrope::logit_matrix(head_of(q), head_of(k), scheme.options);
        expect_extremes(fastrope::singular_values(logits, 8),
                        Eigen::JacobiSVD<Eigen::MatrixXd>(written_logits(q, k, scheme)).singularValues(),
                        1e-11);
        const fastrope::WeightMatrix weights(head_of(q), head_of(k), scheme.options);
        expect_extremes(fastrope::singular_values(weights, 8), fastrope::all_singular_values(weights), 1e-11);
      }
}

// sigma_1 = 1 / (2 sin(pi / (4 n + 2))), and the others with odd multiples of that angle.
TEST(SingularValues, OfTheCausalMatrixOfOnesHaveAClosedForm) {
  for (const Index n : {1, 2, 3, 50, 4096}) {
    SCOPED_TRACE(n);
    std::vector<double> generator(static_cast<std::size_t>(2 * n - 1), 0.0);
    std::fill(generator.begin() + n - 1, generator.end(), 1.0);
    const Index count = std::min<Index>(n, 5);
    Eigen::VectorXd closed(count);
    for (Index i = 0; i < count; ++i)
      closed(i) =
          1 /
          (2 * std::sin(std::numbers::pi * static_cast<double>(2 * i + 1) / static_cast<double>(4 * n + 2)));
    expect_extremes(fastrope::singular_values(toeplitz(n, n, generator), count), closed, 1e-11);
  }
}

TEST(SingularValues, BeyondTheRankAreZeroToLastDigitsOfTheFirst) {
  Inputs inputs(2);
  const auto q = inputs.gaussian<double>(1, 90, 4), k = inputs.gaussian<double>(1, 70, 4);
  const HadamardSum logits = fastrope::logit_matrix(head_of(q), head_of(k), {.rope = fastrope::Rope{}});
  const Extremes found = fastrope::singular_values(logits, 7);
  expect_extremes(found, fastrope::all_singular_values(logits), 1e-13);
  EXPECT_GT(found.values(3), 1e-3 * found.values(0));
  EXPECT_LE(found.values(4), 1e-13 * found.values(0));
  const HadamardSum zero(20, 30, {{RowMatrix::Zero(20, 2), RowMatrix::Ones(30, 2), {}}});
  EXPECT_EQ(fastrope::singular_values(zero, 3).values, Eigen::VectorXd::Zero(3));
}

// Where one search finds one copy of each.
TEST(SingularValues, AreFoundAsOftenAsTheyAreRepeated) {
  constexpr Index kRows = 60;
  const RowMatrix identity = RowMatrix::Identity(kRows, kRows);
  Eigen::VectorXd values(kRows);
  for (Index i = 0; i < kRows; ++i) values(i) = i < 6 ? 5 : i < 9 ? 4.5 : 4 - 0.03 * static_cast<double>(i);
  const HadamardSum m(kRows, kRows, {{values.asDiagonal() * identity, identity, {}}});
  expect_extremes(fastrope::singular_values(m, 12), values, 1e-11);
  expect_extremes(fastrope::largest_eigenvalues(m, 12), values, 1e-11);
  // Weights that are nearly 0 and 1: singular values are the roots of how often a key is chosen.
  Inputs inputs(7);
  const auto q = inputs.gaussian<double>(1, 100, 6), k = inputs.gaussian<double>(1, 100, 6);
  const fastrope::WeightMatrix choice(head_of(q), head_of(k), {.scale = 1e5});
  Eigen::VectorXd counts = fastrope::dense(choice).colwise().sum().transpose();
  std::sort(counts.begin(), counts.end(), std::greater<>());
  // Logits of this size leave weights 1e-10 of digits.
  EXPECT_LE(
      (fastrope::singular_values(choice, 30).values - counts.cwiseSqrt().head(30)).cwiseAbs().maxCoeff(),
      1e-6);
  EXPECT_LE((fastrope::all_singular_values(choice) - counts.cwiseSqrt()).cwiseAbs().maxCoeff(), 1e-6);
}

TEST(SingularValues, DoNotDependOnTheSizeOfTheMatrix) {
  Inputs inputs(3);
  const auto q = inputs.gaussian<double>(1, 64, 8);
  const Extremes one =
      fastrope::singular_values(fastrope::logit_matrix(head_of(q), head_of(q), {.scale = 1.0}), 4);
  const auto largest_of = [&](double scale) {
    const HadamardSum gram = fastrope::logit_matrix(head_of(q), head_of(q), {.scale = scale});
    return std::pair{fastrope::eigenvalues(gram, 3), fastrope::largest_eigenvalues(gram, 3)};
  };
  for (const double scale : {1e-170, 1e-25, 1e25}) {
    const auto [general, symmetric] = largest_of(scale);
    EXPECT_LE((general.values / scale - one.values.head(3)).norm(), 1e-10 * one.values(0));
    EXPECT_LE((symmetric.values / scale - one.values.head(3)).norm(), 1e-10 * one.values(0));

    const Extremes other =
        fastrope::singular_values(fastrope::logit_matrix(head_of(q), head_of(q), {.scale = scale}), 4);
    EXPECT_LE((other.values / scale - one.values).norm(), 1e-12 * one.values(0));
    const double residual = other.residuals.maxCoeff() / scale;  // rounding, of the matrix's size
    EXPECT_LE(residual, 1e-9 * one.values(0));
    EXPECT_GE(residual, 1e-20 * one.values(0));
  }
}

// Without a mask the matrix is A B', and its singular values are those of R_a R_b', of two QR factorisations.
TEST(SingularValues, OfLongSequencesAreThoseOfTheFactors) {
  constexpr Index kRows = 65536, kColumns = 16;
  Inputs inputs(4);
  const auto q = inputs.gaussian<double>(1, kRows, kColumns),
             k = inputs.common_mean<double>(1, kRows, kColumns, 3, 1);
  const fastrope::Options options{.rope = fastrope::Rope{}, .scale = 1.0};
  const Extremes found =
      fastrope::singular_values(fastrope::logit_matrix(head_of(q), head_of(k), options), 11);
  Tensor<double> turned_q = q, turned_k = k;
  const auto factor = [&](Tensor<double>& x) {
    reference_rotate(
        *options.rope, [](Index i) { return i; }, x);
    const Eigen::MatrixXd rows = Eigen::Map<const RowMatrix>(x.values.data(), kRows, kColumns);
    return Eigen::MatrixXd(Eigen::HouseholderQR<Eigen::MatrixXd>(rows)
                               .matrixQR()
                               .topRows(kColumns)
                               .triangularView<Eigen::Upper>());
  };
  const Eigen::MatrixXd r_q = factor(turned_q), r_k = factor(turned_k);
  expect_extremes(found, Eigen::JacobiSVD<Eigen::MatrixXd>(r_q * r_k.transpose()).singularValues(), 1e-9);
}

TEST(Eigenvalues, OfSymmetricMatricesAreThoseOfTheDenseMatrix) {
  Inputs inputs(5);
  const auto q = inputs.gaussian<double>(1, 100, 8);
  // A Gram matrix times ALiBi's kernel, entry by entry.
  std::vector<double> generator;
  for (Index lag = -99; lag < 100; ++lag)
    generator.push_back(std::exp(-0.1 * static_cast<double>(std::abs(lag))));
  const RowMatrix rows = Eigen::Map<const RowMatrix>(q.values.data(), 100, 8);
  const HadamardSum product(100, 100, {{rows, rows, generator}});
  const Eigen::VectorXd all =
      Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(fastrope::dense(product)).eigenvalues().reverse();
  expect_extremes(fastrope::largest_eigenvalues(product, 6), all, 1e-11);
}

TEST(Eigenvalues, OfSoftmaxWeightsBeginWithOne) {
  Inputs inputs(6);
  const auto q = inputs.gaussian<double>(1, 150, 8), k = inputs.gaussian<double>(1, 150, 8);
  const fastrope::WeightMatrix p(head_of(q), head_of(k), {.rope = fastrope::Rope{}});
  const auto [found, residuals] = fastrope::eigenvalues(p, 4);
  EXPECT_NEAR(std::abs(found(0) - 1.0), 0, 1e-12);
  EXPECT_LE(residuals.maxCoeff(), 1e-10);
  Eigen::VectorXd sizes = Eigen::EigenSolver<Eigen::MatrixXd>(fastrope::dense(p)).eigenvalues().cwiseAbs();
  std::sort(sizes.begin(), sizes.end(), std::greater<>());
  for (Index i = 0; i < 4; ++i) EXPECT_NEAR(std::abs(found(i)), sizes(i), 1e-10);
}

TEST(SingularValues, RefuseWhatIsNotThere) {
  const HadamardSum m = toeplitz(5, 7, {0, 0, 1, 2, 3, 4, 5, 6, 7, 0, 0});
  const auto error = [](const char* text) { return ThrowsMessage<fastrope::Error>(HasSubstr(text)); };
  EXPECT_THAT([&] { fastrope::singular_values(m, 0); }, error("not 0"));
  EXPECT_THAT([&] { fastrope::singular_values(m, 6); }, error("5 x 7 matrix has 1 to 5"));
  EXPECT_THAT([&] { fastrope::largest_eigenvalues(m, 1); }, error("5 x 7"));
  EXPECT_THAT([&] { fastrope::eigenvalues(m, 1); }, error("5 x 7"));
  EXPECT_THAT(
      [&] {
        fastrope::largest_eigenvalues(toeplitz(3, 3, {1, 2, 3, 4, 5}), 1);
      },
      error("not symmetric"));
  const double infinite = std::numeric_limits<double>::infinity();
  const HadamardSum bad(3, 3, {{RowMatrix::Constant(3, 1, infinite), RowMatrix::Ones(3, 1), {}}});
  EXPECT_THAT([&] { fastrope::singular_values(bad, 1); }, error("not finite"));
  EXPECT_THAT([&] { fastrope::eigenvalues(bad, 1); }, error("not finite"));
  EXPECT_THAT([&] { fastrope::all_singular_values(bad); }, error("not finite"));
  const HadamardSum zero(4, 4, {{RowMatrix::Zero(4, 1), RowMatrix::Ones(4, 1), {}}});
  EXPECT_EQ(fastrope::eigenvalues(zero, 2).values, Eigen::VectorXcd::Zero(2));
  EXPECT_THAT([&] { fastrope::all_singular_values(toeplitz(600, 600, std::vector<double>(1199, 1.0))); },
              error("600 x 600"));
}

}  // namespace
}  // namespace fastrope_test
