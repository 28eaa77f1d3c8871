// Softmax weights as matrices that are never formed, against their entries written out.
#include "fastrope/spectral/weight_matrix.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/spectral_heads.hpp"

namespace fastrope_test {
namespace {

using fastrope::Mask;
using fastrope::Options;
using fastrope::WeightMatrix;

/// Softmax of each row over the pairs that the mask allows.
Eigen::MatrixXd written_weights(const Tensor<double>& q, const Tensor<double>& k, const Scheme& scheme) {
  Eigen::MatrixXd weights = written_logits(q, k, scheme);
  const Index first = k.rows - q.rows;
  for (Index i = 0; i < q.rows; ++i) {
    double sum = 0;
    for (Index j = 0; j < k.rows; ++j) {
      const Position lag = first + i - j;
      const bool allowed = lag >= scheme.options.mask.first && lag <= scheme.options.mask.last;
      weights(i, j) = allowed ? std::exp(weights(i, j)) : 0;
      sum += weights(i, j);
    }
    if (sum > 0) weights.row(i) /= sum;
  }
  return weights;
}

TEST(WeightMatrix, IsItsEntriesForEverySchemeMaskAndShape) {
  for (const auto& [n_q, n_k] : {std::pair<Index, Index>{80, 80}, {37, 150}, {90, 41}, {1, 1}})
    for (const Mask mask : {Mask::full(), Mask::causal(), Mask::sliding_window(5), Mask::lags(-3, 8)})
      for (Scheme scheme : schemes(8)) {
        SCOPED_TRACE(scheme.name + " " + std::to_string(n_q) + " x " + std::to_string(n_k));
        Inputs inputs(1);
        const auto q = inputs.gaussian<double>(1, n_q, 8), k = inputs.gaussian<double>(1, n_k, 8);
        if (scheme.name != "table") scheme.options.mask = mask;
        const Eigen::MatrixXd entries = written_weights(q, k, scheme);
        const WeightMatrix p(head_of(q), head_of(k), scheme.options);
        EXPECT_LE((fastrope::dense(p) - entries).cwiseAbs().maxCoeff(), 1e-12);
        const Eigen::VectorXd x = random_vector(inputs, n_k), y = random_vector(inputs, n_q);
        EXPECT_LE((p.apply(x) - entries * x).norm(), 1e-12 * x.norm());
        EXPECT_LE((p.apply_transpose(y) - entries.transpose() * y).norm(),
                  1e-12 * y.norm() * static_cast<double>(n_q));
      }
}

TEST(WeightMatrix, TakesKeysInAnyOrder) {
  Inputs inputs(2);
  const auto q = inputs.gaussian<double>(1, 4, 6), k = inputs.gaussian<double>(1, 4, 6);
  const std::vector<Position> at = {3, 0, 2, 1};
  const WeightMatrix shuffled(
      head_of(q), head_of(k),
      {.rope = fastrope::Rope{}, .mask = Mask::causal(), .query_positions = at, .key_positions = at});
  Tensor<double> sorted_q = q, sorted_k = k;
  for (Index i = 0; i < 4; ++i)
    for (Index c = 0; c < 6; ++c) {
      sorted_q(0, at[static_cast<std::size_t>(i)], c) = q(0, i, c);
      sorted_k(0, at[static_cast<std::size_t>(i)], c) = k(0, i, c);
    }
  const Eigen::MatrixXd sorted =
      written_weights(sorted_q, sorted_k, {"rope", {.rope = fastrope::Rope{}, .mask = Mask::causal()}});
  const Eigen::MatrixXd found = fastrope::dense(shuffled);
  const Eigen::VectorXd x = random_vector(inputs, 4);
  for (Index i = 0; i < 4; ++i)
    for (Index j = 0; j < 4; ++j)
      EXPECT_NEAR(found(i, j), sorted(at[static_cast<std::size_t>(i)], at[static_cast<std::size_t>(j)]),
                  1e-14);
  EXPECT_LE((shuffled.apply(x) - found * x).norm(), 1e-13);
  EXPECT_LE((shuffled.apply_transpose(x) - found.transpose() * x).norm(), 1e-13);
}

// A bias is mirrored, not written out for every lag between the positions.
TEST(WeightMatrix, TakesPositionsThatAreFarApart) {
  Inputs inputs(4);
  const auto q = inputs.gaussian<double>(1, 2, 4);
  const std::vector<Position> at = {0, Position{1} << 40};
  const WeightMatrix p(
      head_of(q), head_of(q),
      {.bias = fastrope::LagBias::alibi(std::vector{1e-12}), .query_positions = at, .key_positions = at});
  const Eigen::MatrixXd entries = fastrope::dense(p);
  const Eigen::VectorXd x = random_vector(inputs, 2);
  EXPECT_NEAR(entries.row(0).sum(), 1, 1e-14);
  EXPECT_LE((p.apply_transpose(x) - entries.transpose() * x).norm(), 1e-14 * x.norm());
}

TEST(WeightMatrix, RefusesWhatIsNoSoftmaxOfFactors) {
  Inputs inputs(3);
  const auto q = inputs.gaussian<double>(1, 5, 4);
  const auto with = [&](const Options& options) {
    return [&, options] { WeightMatrix(head_of(q), head_of(q), options); };
  };
  const auto error = [](const char* text) {
    return testing::ThrowsMessage<fastrope::Error>(testing::HasSubstr(text));
  };
  EXPECT_THAT(with({.weights = fastrope::RelativeWeights::rope(fastrope::Rope{}, 4, -5, 5)}),
              error("general weights"));
  EXPECT_THAT(with({.kernel = fastrope::Kernel::taylor(2)}), error("degree 2"));
  EXPECT_THAT(with({.softcap = 3}), error("softcap 3"));
}

}  // namespace
}  // namespace fastrope_test
