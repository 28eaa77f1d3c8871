// Shares of the variance of logits against sums over all queries, keys and lags.
#include "fastrope/spectral/logit_variance.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "support/spectral_heads.hpp"

namespace fastrope_test {
namespace {

using fastrope::logit_variance;
using fastrope::Mask;
using fastrope::VarianceShares;

/// Every query and key at every lag, as often as pairs have it.
VarianceShares written_shares(const Tensor<double>& q, const Tensor<double>& k, const Scheme& scheme) {
  const fastrope::Options& o = scheme.options;
  const Index n_q = q.rows, n_k = k.rows, first = n_k - n_q;
  std::vector<double> pairs;
  std::vector<Position> lags;
  for (Position lag = first - n_k + 1; lag < first + n_q; ++lag) {
    double count = 0;
    for (Index i = 0; i < n_q; ++i) count += first + i - lag >= 0 && first + i - lag < n_k;
    if (lag < o.mask.first || lag > o.mask.last) continue;
    lags.push_back(lag);
    pairs.push_back(count);
  }
  double total = 0;
  for (double count : pairs) total += count;
  // x[lag](q, k)
  std::vector<Eigen::MatrixXd> x;
  for (Position lag : lags) {
    Scheme at{scheme.name,
              {.rope = o.rope, .scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(q.cols)))}};
    Eigen::MatrixXd logits(n_q, n_k);
    for (Index i = 0; i < n_q; ++i) {
      Tensor<double> one(1, 1, q.cols);
      for (Index c = 0; c < q.cols; ++c) one(0, 0, c) = q(0, i, c);
      if (o.rope)
        reference_rotate(
            *o.rope, [&](Index) { return lag; }, one);
      Tensor<double> keys = k;
      if (o.rope)
        reference_rotate(
            *o.rope, [](Index) { return 0; }, keys);
      logits.row(i) = written_logits(one, keys, {"", {.scale = at.options.scale}});
    }
    if (scheme.bias) logits.array() += scheme.bias(0, lag);
    x.push_back(logits);
  }
  double mean = 0, square = 0, position = 0;
  Eigen::MatrixXd content = Eigen::MatrixXd::Zero(n_q, n_k);
  for (std::size_t l = 0; l < lags.size(); ++l) {
    const double w = pairs[l] / total;
    mean += w * x[l].mean();
    square += w * x[l].squaredNorm() / static_cast<double>(n_q * n_k);
    position += w * x[l].mean() * x[l].mean();
    content += w * x[l];
  }
  const double variance = square - mean * mean;
  const double of_content = content.squaredNorm() / static_cast<double>(n_q * n_k) - mean * mean;
  position -= mean * mean;
  return {variance, position / variance, of_content / variance, 1 - (position + of_content) / variance};
}

TEST(LogitVariance, IsThatOfAllQueriesKeysAndLags) {
  for (const auto& [n_q, n_k] : {std::pair<Index, Index>{12, 12}, {7, 15}, {10, 4}})
    for (const Mask mask : {Mask::full(), Mask::causal(), Mask::lags(-2, 3)})
      for (Scheme scheme : schemes(8)) {
        if (scheme.name != "table") scheme.options.mask = mask;
        SCOPED_TRACE(scheme.name + " " + std::to_string(n_q) + " x " + std::to_string(n_k));
        Inputs inputs(1);
        const auto q = inputs.common_mean<double>(1, n_q, 8, 2, 1),
                   k = inputs.common_mean<double>(1, n_k, 8, 2, 1);
        const VarianceShares found = logit_variance(head_of(q), head_of(k), scheme.options),
                             expected = written_shares(q, k, scheme);
        EXPECT_NEAR(found.variance, expected.variance, 1e-11 * expected.variance);
        EXPECT_NEAR(found.position, expected.position, 1e-11);
        EXPECT_NEAR(found.content, expected.content, 1e-11);
        EXPECT_NEAR(found.mixed, expected.mixed, 1e-11);
        EXPECT_NEAR(found.position + found.content + found.mixed, 1, 1e-12);
      }
}

TEST(LogitVariance, OfGeneralWeightsThatSayRopeIsThatOfRope) {
  Inputs inputs(2);
  const auto q = inputs.common_mean<double>(1, 50, 6, 2, 1), k = inputs.common_mean<double>(1, 60, 6, 2, 1);
  const VarianceShares rope = logit_variance(head_of(q), head_of(k), {.rope = fastrope::Rope{}}),
                       weights = logit_variance(
                           head_of(q), head_of(k),
                           {.weights = fastrope::RelativeWeights::rope(fastrope::Rope{}, 6, -60, 60)});
  EXPECT_NEAR(rope.variance, weights.variance, 1e-12 * rope.variance);
  EXPECT_NEAR(rope.position, weights.position, 1e-12);
  EXPECT_NEAR(rope.content, weights.content, 1e-12);
}

TEST(LogitVariance, HasItsExtremes) {
  Inputs inputs(3);
  const auto q = inputs.gaussian<double>(1, 30, 4);
  EXPECT_EQ(logit_variance(head_of(q), head_of(q), {}).content, 1);
  Tensor<double> same(1, 30, 4);
  for (double& value : same.values) value = 1;
  EXPECT_NEAR(logit_variance(head_of(same), head_of(same), {.rope = fastrope::Rope{}}).position, 1, 1e-9);
  const VarianceShares none = logit_variance(head_of(same), head_of(same), {});
  EXPECT_EQ(none.variance, 0);
  EXPECT_EQ(none.content, 0);
}

TEST(LogitVariance, KeepsItsDigitsBesideALargeMean) {
  Inputs inputs(5);
  auto q = inputs.gaussian<double>(1, 40, 4);
  const auto k = inputs.gaussian<double>(1, 40, 4);
  std::vector<double> small, large;
  for (int lag = -39; lag < 40; ++lag) small.push_back(0.01 * lag), large.push_back(1e7 + 0.01 * lag);
  const VarianceShares one = logit_variance(head_of(q), head_of(k),
                                            {.bias = fastrope::LagBias::table(small, 1, -39)}),
                       other = logit_variance(head_of(q), head_of(k),
                                              {.bias = fastrope::LagBias::table(large, 1, -39)});
  EXPECT_GT(one.position, 0.001);
  EXPECT_NEAR(other.variance, one.variance, 1e-7 * one.variance);
  EXPECT_NEAR(other.position, one.position, 1e-7);
  q(0, 7, 2) = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(logit_variance(head_of(q), head_of(k), {}), fastrope::Error);
}

TEST(LogitVariance, RefusesWhatHasNoLags) {
  Inputs inputs(4);
  const auto q = inputs.gaussian<double>(1, 5, 4);
  const auto with = [&](const fastrope::Options& options) {
    return [&, options] { logit_variance(head_of(q), head_of(q), options); };
  };
  const auto error = [](const char* text) {
    return testing::ThrowsMessage<fastrope::Error>(testing::HasSubstr(text));
  };
  const std::vector<Position> gaps = {0, 1, 2, 3, 9};
  EXPECT_THAT(with({.key_positions = gaps}), error("consecutive"));
  EXPECT_THAT(with({.mask = Mask::lags(5, 6)}), error("none of 5 x 5"));
  EXPECT_THAT(with({.rope = fastrope::Rope{}, .rope_already_applied = true}), error("arrive turned"));
  fastrope::Options sections{.rope = fastrope::Rope{.sections = {1, 1}}};
  EXPECT_NO_THROW(with(sections)());
  const std::vector<Position> places(10, 3);
  sections.key_section_positions = {places.data(), 2, 5};
  EXPECT_THAT(with(sections), error("2 sections turn by positions of their own"));
}

}  // namespace
}  // namespace fastrope_test
