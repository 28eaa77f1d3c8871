// Logits as matrices that are never formed, against their entries written out.
#include "fastrope/spectral/logit_matrix.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <Eigen/SVD>

#include "support/spectral_heads.hpp"

namespace fastrope_test {
namespace {

using fastrope::HadamardSum;
using fastrope::LagBias;
using fastrope::Mask;
using fastrope::Options;
using fastrope::Rope;
using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr double kTiny = 1e-11;

/// Rows, products and the norm of a matrix are those of its entries.
void expect_is(const HadamardSum& m, const Eigen::MatrixXd& entries, const std::string& name) {
  SCOPED_TRACE(name);
  ASSERT_EQ(m.n_rows(), entries.rows());
  ASSERT_EQ(m.n_cols(), entries.cols());
  const double size = entries.norm() + 1;
  EXPECT_LE((fastrope::dense(m) - entries).norm(), kTiny * size);
  EXPECT_NEAR(fastrope::frobenius_norm(m), entries.norm(), kTiny * size);
  const fastrope::Range some{entries.rows() / 3, entries.rows() / 2};
  EXPECT_LE((m.rows(some) - entries.middleRows(some.begin, some.size())).norm(), kTiny * size);
  Inputs inputs(2);
  const Eigen::VectorXd x = random_vector(inputs, entries.cols()), y = random_vector(inputs, entries.rows());
  EXPECT_LE((m.apply(x) - entries * x).norm(), kTiny * size * x.norm());
  EXPECT_LE((m.apply_transpose(y) - entries.transpose() * y).norm(), kTiny * size * y.norm());
}

TEST(LogitMatrix, IsItsEntriesForEverySchemeMaskAndShape) {
  for (const auto& [n_q, n_k] : {std::pair<Index, Index>{100, 100}, {37, 150}, {90, 41}, {1, 1}, {1, 60}})
    for (const Mask mask : {Mask::full(), Mask::causal(), Mask::sliding_window(5), Mask::lags(-3, 8)})
      for (Scheme scheme : schemes(8)) {
        Inputs inputs(1);
        const auto q = inputs.gaussian<double>(1, n_q, 8), k = inputs.gaussian<double>(1, n_k, 8);
        if (scheme.name != "table") scheme.options.mask = mask;
        expect_is(fastrope::logit_matrix(head_of(q), head_of(k), scheme.options),
                  written_logits(q, k, scheme),
                  scheme.name + " " + std::to_string(n_q) + " x " + std::to_string(n_k));
      }
}

TEST(LogitMatrix, OfGeneralWeightsThatSayRopeIsThatOfRope) {
  Inputs inputs(3);
  const auto q = inputs.gaussian<double>(1, 40, 8), k = inputs.gaussian<double>(1, 60, 8);
  for (const Mask mask : {Mask::full(), Mask::causal()}) {
    Options options{.mask = mask, .weights = fastrope::RelativeWeights::rope(Rope{}, 8, -60, 60)};
    expect_is(fastrope::logit_matrix(head_of(q), head_of(k), options),
              written_logits(q, k, {"rope", {.rope = Rope{}, .mask = mask}}), "weights");
  }
}

TEST(LogitMatrix, TakesPositionsInAnyOrderWhereNothingDependsOnTheLag) {
  Inputs inputs(4);
  const auto q = inputs.gaussian<double>(1, 3, 4), k = inputs.gaussian<double>(1, 3, 4);
  const std::vector<Position> at = {7, 2, 5};
  Options options{.rope = Rope{}, .query_positions = at, .key_positions = at};
  Tensor<double> turned_q = q, turned_k = k;
  for (Tensor<double>* x : {&turned_q, &turned_k})
    reference_rotate(
        *options.rope, [&](Index i) { return at[static_cast<std::size_t>(i)]; }, *x);
  Eigen::MatrixXd entries(3, 3);
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 3; ++j) {
      entries(i, j) = 0;
      for (Index c = 0; c < 4; ++c) entries(i, j) += turned_q(0, i, c) * turned_k(0, j, c) / 2;
    }
  expect_is(fastrope::logit_matrix(head_of(q), head_of(k), options), entries, "positions");
}

TEST(LogitMatrix, TurnsSectionsByPositionsOfTheirOwn) {
  Inputs inputs(6);
  const auto q = inputs.gaussian<double>(1, 3, 4), k = inputs.gaussian<double>(1, 5, 4);
  const std::vector<Position> queries = {7, 2, 5, 1, 1, 3}, keys = {0, 9, 8, 1, 2, 4, 4, 4, 5, 6},
                              order = {3, 0, 2, 1, 4};
  Options options{.rope = Rope{.sections = {1, 1}},
                  .key_positions = order,
                  .query_section_positions = {queries.data(), 2, 3},
                  .key_section_positions = {keys.data(), 2, 5}};
  Tensor<double> turned_q = q, turned_k = k;
  reference_rotate(
      *options.rope, [&](Index i, Index s) { return options.query_section_positions(s, i); }, turned_q);
  reference_rotate(
      *options.rope, [&](Index j, Index s) { return options.key_section_positions(s, j); }, turned_k);
  Eigen::MatrixXd entries = Eigen::MatrixXd::Zero(3, 5);
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 5; ++j)
      for (Index c = 0; c < 4; ++c) entries(i, j) += turned_q(0, i, c) * turned_k(0, j, c) / 2;
  expect_is(fastrope::logit_matrix(head_of(q), head_of(k), options), entries, "sections");
  options.key_positions = {};
  EXPECT_THAT([&] { fastrope::frequency_matrix(head_of(q), head_of(k), options, 0); },
              testing::ThrowsMessage<fastrope::Error>(testing::HasSubstr("more than one lag")));
}

TEST(LogitMatrix, IsTheSumOfItsFrequencies) {
  Inputs inputs(5);
  const auto q = inputs.gaussian<double>(1, 50, 6), k = inputs.gaussian<double>(1, 70, 6);
  for (const auto pairing : {fastrope::RopePairing::interleaved, fastrope::RopePairing::half_split}) {
    const Scheme scheme{
        "rope",
        {.rope = Rope{.base = 50,
                      .pairing = pairing,
                      .scaling = fastrope::YarnScaling{.factor = 4, .original_context = 64}}}};
    Eigen::MatrixXd sum = Eigen::MatrixXd::Zero(50, 70);
    for (Index m = 0; m < 3; ++m) {
      // Alone, a pair is a head of two columns, whose frequency is that of its linear scaling.
      const HadamardSum part = fastrope::frequency_matrix(head_of(q), head_of(k), scheme.options, m);
      const ReferenceFrequencies f = reference_frequencies(*scheme.options.rope, 6);
      Tensor<double> q_pair(1, 50, 2), k_pair(1, 70, 2);
      const bool interleaved = pairing == fastrope::RopePairing::interleaved;
      for (const auto& [from, to] : {std::pair{&q, &q_pair}, {&k, &k_pair}})
        for (Index i = 0; i < to->rows; ++i)
          for (Index c = 0; c < 2; ++c)
            (*to)(0, i, c) = f.gain * (*from)(0, i, interleaved ? 2 * m + c : m + 3 * c);
      const Scheme alone{
          "pair",
          {.rope = Rope{.scaling = fastrope::LinearScaling{1 / f.theta[static_cast<std::size_t>(m)]}},
           .scale = 1 / std::sqrt(6.0)}};
      expect_is(part, written_logits(q_pair, k_pair, alone), "frequency");
      sum += fastrope::dense(part);
    }
    EXPECT_LE((sum - written_logits(q, k, scheme)).norm(), kTiny * sum.norm());
  }
}

// E_theta o G = U G U* for complex G = z_q z_k*, here as real matrices of twice the size.
TEST(LogitMatrix, OfOneComplexFrequencyHasTheSingularValuesOfItsContent) {
  constexpr Index kRows = 60;
  Inputs inputs(6);
  Eigen::MatrixXd q_re(kRows, 5), q_im(kRows, 5), k_re(kRows, 5), k_im(kRows, 5);
  for (auto* x : {&q_re, &q_im, &k_re, &k_im})
    for (double& value : x->reshaped()) value = inputs.normal();
  const Eigen::MatrixXd real = q_re * k_re.transpose() + q_im * k_im.transpose(),
                        imaginary = q_im * k_re.transpose() - q_re * k_im.transpose();
  std::vector<double> cosine, sine;
  for (Index lag = -kRows + 1; lag < kRows; ++lag) {
    cosine.push_back(std::cos(0.37 * static_cast<double>(lag)));
    sine.push_back(std::sin(0.37 * static_cast<double>(lag)));
  }
  const RowMatrix same = RowMatrix::Identity(kRows, kRows);
  // T o G as a HadamardSum, with G = G I'.
  const auto product = [&](const std::vector<double>& t, const Eigen::MatrixXd& g) {
    return fastrope::dense(HadamardSum(kRows, kRows, {{g, same, t}}));
  };
  const auto twice = [&](const Eigen::MatrixXd& re, const Eigen::MatrixXd& im) {
    Eigen::MatrixXd m(2 * kRows, 2 * kRows);
    m << re, -im, im, re;
    return Eigen::JacobiSVD<Eigen::MatrixXd>(m).singularValues().eval();
  };
  const Eigen::VectorXd before = twice(real, imaginary),
                        after = twice(product(cosine, real) - product(sine, imaginary),
                                      product(sine, real) + product(cosine, imaginary));
  EXPECT_LE((before - after).cwiseAbs().maxCoeff(), 1e-12 * before(0));
}

TEST(LogitMatrix, TakesRowsThatArriveRotated) {
  Inputs inputs(9);
  const auto q = inputs.gaussian<double>(1, 20, 6), k = inputs.gaussian<double>(1, 30, 6);
  const Scheme scheme{"rope", {.rope = Rope{}, .mask = Mask::causal()}};
  Tensor<double> rotated_q = q, rotated_k = k;
  reference_rotate(
      Rope{}, [](Index i) { return 10 + i; }, rotated_q);
  reference_rotate(
      Rope{}, [](Index j) { return j; }, rotated_k);
  Options options = scheme.options;
  options.rope_already_applied = true;
  expect_is(fastrope::logit_matrix(head_of(rotated_q), head_of(rotated_k), options),
            written_logits(q, k, scheme), "rotated");
}

// Ones within a band are summed over a window, other factors are transformed: as if neither knew of the
// other.
TEST(HadamardSum, HasBandsOfOnesAtAnyLags) {
  constexpr Index kRows = 40, kCols = 30, kLags = kRows + kCols - 1;
  Inputs inputs(8);
  const auto rows = [&](Index n) {
    RowMatrix x(n, 3);
    for (double& value : x.reshaped()) value = inputs.normal();
    return x;
  };
  const RowMatrix u = rows(kRows), v = rows(kCols);
  for (const Index first : {Index{0}, Index{7}, kCols - 1, kLags - 1})
    for (const Index last : {first - 1, first, first + 11, kLags - 1}) {
      std::vector<double> ones(kLags, 0.0);
      for (Index g = first; g <= std::min(last, kLags - 1); ++g) ones[static_cast<std::size_t>(g)] = 1;
      std::vector<double> gap = ones;
      gap[3] = 1 - gap[3];  // ones that are no band, mostly
      for (const std::vector<double>& t : {ones, gap}) {
        Eigen::MatrixXd entries = u * v.transpose();
        for (Index i = 0; i < kRows; ++i)
          for (Index j = 0; j < kCols; ++j) entries(i, j) *= t[static_cast<std::size_t>(i - j + kCols - 1)];
        expect_is(HadamardSum(kRows, kCols, {{u, v, t}}), entries,
                  "lags " + std::to_string(first) + ".." + std::to_string(last));
      }
    }
}

TEST(LogitMatrix, RefusesWhatItCannotSay) {
  Inputs inputs(7);
  const auto q = inputs.gaussian<double>(1, 5, 4), k = inputs.gaussian<double>(1, 5, 4);
  const auto with = [&](const Options& options) {
    return [&, options] { fastrope::logit_matrix(head_of(q), head_of(k), options); };
  };
  const auto error = [](const char* text) { return ThrowsMessage<fastrope::Error>(HasSubstr(text)); };
  EXPECT_THAT(with({.softcap = 2}), error("softcap 2"));
  const std::vector<float> sinks = {0.5F};
  EXPECT_THAT(with({.sinks = sinks}), error("sink, 0.5"));
  const std::vector<float> dense(25);
  EXPECT_THAT(with({.dense_bias = fastrope::contiguous(dense.data(), 1, 5, 5)}), error("dense"));
  const std::vector<Position> gaps = {0, 1, 2, 3, 9};
  EXPECT_THAT(with({.mask = Mask::causal(), .key_positions = gaps}), error("consecutive"));
  // Consecutive, but the keys are not in order: no Toeplitz matrix either.
  const std::vector<Position> shuffled = {3, 0, 2, 1, 4};
  Options out_of_order{.rope = Rope{}, .key_positions = shuffled};
  EXPECT_NO_THROW(with(out_of_order)());
  EXPECT_THAT([&] { fastrope::frequency_matrix(head_of(q), head_of(k), out_of_order, 0); },
              error("in their order"));
  out_of_order.mask = Mask::causal();
  EXPECT_THAT(with(out_of_order), error("in their order"));
  EXPECT_THAT(with({.bias = LagBias::alibi(std::vector{0.1}), .key_positions = shuffled}),
              error("in their order"));
  EXPECT_THAT(
      [&] {
        fastrope::frequency_matrix(head_of(q), head_of(k), {.rope = Rope{}, .rope_already_applied = true}, 0);
      },
      error("arrive rotated"));
  EXPECT_THAT([&] { fastrope::logit_matrix(head_of(q), head_of(k), {}).apply(Eigen::VectorXd(4)); },
              error("not 4"));
  EXPECT_THAT([&] { fastrope::logit_matrix(head_of(q), head_of(k), {}).apply_transpose(Eigen::VectorXd(6)); },
              error("not 6"));
  EXPECT_THAT(with({.bias = LagBias::alibi(std::vector{0.1, 0.2})}), error("2 heads"));
  EXPECT_THAT(
      [&] {
        fastrope::logit_matrix({q.values.data(), 5, 4}, {k.values.data(), 5, 3}, {});
      },
      error("d = 3"));
  EXPECT_THAT(
      [&] {
        fastrope::logit_matrix({q.values.data(), 0, 4}, {k.values.data(), 5, 4}, {});
      },
      error("[0, 4]"));
  EXPECT_THAT([&] { fastrope::frequency_matrix(head_of(q), head_of(k), {.rope = Rope{}}, 2); },
              error("2 pairs"));
  EXPECT_THAT(
      [&] {
        fastrope::frequency_matrix(head_of(q), head_of(k), {.rope = Rope{}, .mask = Mask::causal()}, 0);
      },
      error("10 of 5 x 5"));
  EXPECT_THAT(
      [&] {
        HadamardSum(3, 4, {{RowMatrix::Ones(3, 2), RowMatrix::Ones(4, 1), {}}});
      },
      error("V [4, 1]"));
  EXPECT_THAT(
      [&] {
        HadamardSum(3, 4, {{RowMatrix::Ones(3, 1), RowMatrix::Ones(4, 1), {1, 2}}});
      },
      error("generator of 2"));
}

}  // namespace
}  // namespace fastrope_test
