// The oracle against cases small enough to work out by hand: one per term of the definition.
#include "support/reference.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "support/inputs.hpp"
#include "support/norms.hpp"

namespace {

using fastrope::LagBias;
using fastrope::Mask;
using fastrope::Options;
using fastrope::RelativeWeights;
using fastrope::Rope;
using fastrope::RopePairing;
using fastrope_test::BiasFunction;
using fastrope_test::converted;
using fastrope_test::Index;
using fastrope_test::Inputs;
using fastrope_test::KernelFunction;
using fastrope_test::MatrixView;
using fastrope_test::max_abs;
using fastrope_test::max_abs_difference;
using fastrope_test::polynomial_kernel;
using fastrope_test::Position;
using fastrope_test::Reference;
using fastrope_test::reference_attention;
using fastrope_test::Tensor;
using fastrope_test::TensorView;
using fastrope_test::token_major;

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// A [heads, rows, cols] tensor of given values.
Tensor<double> tensor(Index heads, Index rows, Index cols, std::vector<double> values) {
  Tensor<double> t(heads, rows, cols);
  t.values = std::move(values);
  return t;
}

/// One query of length 1 against two keys, 0 and ln 3, with values 0 and 1: weights 1/4 and 3/4.
class TwoKeys : public testing::Test {
 protected:
  Reference attend(const Options& options, const BiasFunction& bias = {}, const KernelFunction& kernel = {}) {
    return reference_attention(q.view(), k.view(), v.view(), options, bias, kernel);
  }
  static void expect(const Reference& result, double out, double sum) {
    EXPECT_NEAR(result.out(0, 0, 0), out, 4 * kEpsilon);
    EXPECT_NEAR(result.lse(0, 0, 0), std::log(sum), 4 * kEpsilon);
  }

  Tensor<double> q = tensor(1, 1, 1, {1});
  Tensor<double> k = tensor(1, 2, 1, {0, std::log(3.0)});
  Tensor<double> v = tensor(1, 2, 1, {0, 1});
};

TEST_F(TwoKeys, Softmax) { expect(attend({}), 0.75, 4); }

TEST_F(TwoKeys, Scale) { expect(attend({.scale = 2.0}), 0.9, 10); }

TEST_F(TwoKeys, Softcap) {
  const double capped = std::exp(0.5 * std::tanh(std::log(3.0) / 0.5));
  expect(attend({.softcap = 0.5}), capped / (1 + capped), 1 + capped);
}

TEST_F(TwoKeys, BiasByLag) {  // the query is at position 1, so the keys' lags are 1 and 0
  const Options options{.bias = LagBias::alibi({std::log(2.0)})};
  expect(attend(options, [](Index, Position lag) { return -std::log(2.0) * static_cast<double>(lag); }),
         6.0 / 7, 3.5);
  EXPECT_THROW(attend(options), std::logic_error);
}

TEST_F(TwoKeys, Mask) {
  expect(attend({.mask = Mask::sliding_window(1)}), 1, 3);
  expect(attend({.mask = Mask::lags(1, 9)}), 0, 1);
  const Reference none = attend({.mask = Mask::lags(5, 9)});
  EXPECT_EQ(none.out(0, 0, 0), 0);
  EXPECT_EQ(none.lse(0, 0, 0), -kInfinity);
}

TEST_F(TwoKeys, MaskedKeysAreNotRead) {
  k(0, 0, 0) = v(0, 0, 0) = std::numeric_limits<double>::quiet_NaN();
  expect(attend({.mask = Mask::sliding_window(1)}), 1, 3);
  EXPECT_TRUE(std::isnan(attend({}).out(0, 0, 0)));
}

TEST_F(TwoKeys, Positions) {  // keys at 7 and 3, the query at 5: only the second is in the past
  const std::vector<Position> queries{5}, keys{7, 3};
  expect(attend({.mask = Mask::causal(), .query_positions = queries, .key_positions = keys}), 1, 3);
}

TEST_F(TwoKeys, SinkJoinsTheDenominator) {
  const std::vector<float> sinks{0};
  expect(attend({.sinks = sinks}), 0.6, 5);
}

TEST_F(TwoKeys, DenseBias) {
  std::vector<float> dense{0, -std::numeric_limits<float>::infinity()};
  const fastrope::TensorView<const float> view{dense.data(), 1, 1, 2, 0, 0};
  expect(attend({.dense_bias = view}), 0, 1);
  dense = {1, 1};
  expect(attend({.dense_bias = view}), 0.75, 4 * std::exp(1.0));
}

TEST_F(TwoKeys, DenseMask) {
  const bool allowed[] = {false, true};
  expect(attend({.dense_mask = {allowed, 1, 1, 2, 0, 0}}), 1, 3);
}

TEST_F(TwoKeys, PolynomialKernel) {
  const double x = std::log(3.0), weight = 1 + x + 0.5 * x * x;
  expect(attend({}, {}, polynomial_kernel({1, 1, 0.5})), weight / (1 + weight), 1 + weight);
  expect(attend({.kernel = fastrope::Kernel::taylor(2)}), weight / (1 + weight), 1 + weight);
}

TEST_F(TwoKeys, HugeLogitsDoNotOverflow) {
  const Reference result = attend({.scale = 1e6});
  EXPECT_EQ(result.out(0, 0, 0), 1);
  EXPECT_EQ(result.lse(0, 0, 0), 1e6 * std::log(3.0));
}

TEST(Reference, QueryHeadsShareKeyHeads) {
  Inputs inputs(61);
  const auto q = inputs.gaussian<double>(6, 3, 4), k = inputs.gaussian<double>(2, 5, 4);
  const auto v = inputs.gaussian<double>(2, 5, 3);
  const Reference all = reference_attention(q.view(), k.view(), v.view(), {});
  for (Index h = 0; h < 6; ++h) {
    const MatrixView<const double> one_q = q.view().head(h), one_k = k.view().head(h / 3);
    const Reference one =
        reference_attention(TensorView<const double>(one_q), TensorView<const double>(one_k),
                            TensorView<const double>(v.view().head(h / 3)), {});
    EXPECT_EQ(
        max_abs_difference(TensorView<const double>(std::as_const(all.out).view().head(h)), one.out.view()),
        0);
  }
}

TEST(Reference, RopeTurnsByTheLag) {
  // One pair of columns of frequency 1, the query along the first. A key along the first at lag 2 gives cos
  // 2, one along the second at lag 1 gives sin 1, and the key at the query's own position is 0.
  for (const RopePairing pairing : {RopePairing::interleaved, RopePairing::half_split}) {
    const auto q = tensor(1, 1, 2, {1, 0}), k = tensor(1, 3, 2, {1, 0, 0, 1, 0, 0});
    const auto v = tensor(1, 3, 1, {1, 0, 0});
    const Options options{.rope = Rope{.pairing = pairing}, .scale = 1.0};
    const double weights[] = {std::exp(std::cos(2.0)), std::exp(std::sin(1.0)), 1};
    const Reference result = reference_attention(q.view(), k.view(), v.view(), options);
    EXPECT_NEAR(result.lse(0, 0, 0), std::log(weights[0] + weights[1] + weights[2]), 4 * kEpsilon);
    EXPECT_NEAR(result.out(0, 0, 0), weights[0] / (weights[0] + weights[1] + weights[2]), 4 * kEpsilon);
    const Reference applied = reference_attention(
        q.view(), k.view(), v.view(), {.rope = Rope{}, .rope_already_applied = true, .scale = 1.0});
    EXPECT_NEAR(applied.lse(0, 0, 0), std::log(std::exp(1.0) + 2), 4 * kEpsilon);
  }
}

TEST(Reference, WeightsAreABilinearForm) {
  // One entry W(lag)[0, 1] = lag + 1: the logit is q_0 (lag + 1) k_1.
  const auto q = tensor(1, 1, 2, {2, 100}), k = tensor(1, 2, 2, {100, 0.5, 100, -1});
  const auto v = tensor(1, 2, 1, {1, 0});
  const RelativeWeights weights({{0, 1}}, 0, {1, 2});
  const Reference result =
      reference_attention(q.view(), k.view(), v.view(), {.weights = weights, .scale = 1.0});
  EXPECT_NEAR(result.lse(0, 0, 0), std::log(std::exp(2.0) + std::exp(-2.0)), 4 * kEpsilon);
  EXPECT_NEAR(result.out(0, 0, 0), 1 / (1 + std::exp(-4.0)), 4 * kEpsilon);
}

TEST(Reference, ReadsNarrowAndStridedInputs) {
  Inputs inputs(62);
  const auto q = inputs.gaussian<fastrope::bfloat16>(2, 3, 4),
             k = inputs.gaussian<fastrope::bfloat16>(2, 5, 4);
  const auto v = inputs.gaussian<fastrope::float16>(2, 5, 3);
  const Reference narrow = reference_attention(q.view(), k.view(), v.view(), {});
  const auto wide_q = converted<double>(q.view()), wide_k = converted<double>(k.view());
  const auto wide_v = converted<double>(v.view());
  const Reference wide = reference_attention(wide_q.view(), wide_k.view(), wide_v.view(), {});
  EXPECT_EQ(max_abs_difference(narrow.out.view(), wide.out.view()), 0);
  const auto strided_q = token_major(wide_q), strided_v = token_major(wide_v);
  EXPECT_EQ(strided_q.view().row_stride, 8);
  const Reference strided = reference_attention(strided_q.view(), wide_k.view(), strided_v.view(), {});
  EXPECT_EQ(max_abs_difference(strided.out.view(), wide.out.view()), 0);
}

TEST(Reference, EmptyInputsGiveEmptyResults) {
  const Tensor<double> no_keys(1, 0, 2), no_values(1, 0, 3), q(1, 2, 2);
  const Reference result = reference_attention(q.view(), no_keys.view(), no_values.view(), {});
  EXPECT_EQ(max_abs(result.out.view()), 0);
  EXPECT_EQ(result.lse(0, 0, 1), -kInfinity);
  const Tensor<double> nothing;
  EXPECT_EQ(reference_attention(nothing.view(), nothing.view(), nothing.view(), {}).out.values.size(), 0U);
}

TEST(Norms, SeeNaNAsInfinitelyFar) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto a = tensor(1, 1, 3, {1, -5, kInfinity}), b = tensor(1, 1, 3, {1, nan, kInfinity});
  EXPECT_EQ(max_abs_difference(a.view(), a.view()), 0);
  EXPECT_EQ(max_abs_difference(a.view(), b.view()), kInfinity);
  EXPECT_EQ(max_abs_difference(b.view(), b.view()), kInfinity);
  const auto c = tensor(1, 1, 3, {1.5, -4, kInfinity});
  EXPECT_EQ(max_abs_difference(a.view(), c.view()), 1);
}

TEST(Inputs, HaveTheNormsTheyPromise) {
  Inputs inputs(63);
  const auto norm = [](const Tensor<double>& x, Index h, Index i) {
    double squares = 0;
    for (Index c = 0; c < x.cols; ++c) squares += x(h, i, c) * x(h, i, c);
    return std::sqrt(squares);
  };
  const auto sphere = inputs.sphere<double>(2, 50, 16, 3), tailed = inputs.heavy_tailed<double>(2, 50, 16, 3);
  double largest = 0;
  for (Index h = 0; h < 2; ++h) {
    for (Index i = 0; i < 50; ++i) {
      EXPECT_NEAR(norm(sphere, h, i), 3, 64 * kEpsilon);
      EXPECT_GE(norm(tailed, h, i), 3 * (1 - 64 * kEpsilon));
      largest = std::max(largest, norm(tailed, h, i));
    }
  }
  EXPECT_GT(largest, 15);
  const auto common = inputs.common_mean<double>(1, 2000, 4, 7, 0.5);
  Tensor<double> mean(1, 1, 4);
  for (Index i = 0; i < 2000; ++i)
    for (Index c = 0; c < 4; ++c) mean(0, 0, c) += common(0, i, c) / 2000;
  EXPECT_NEAR(norm(mean, 0, 0), 7, 0.1);
  // The same seed gives the same numbers in every element type.
  EXPECT_EQ(Inputs(1).gaussian<float>(1, 1, 1).values[0],
            static_cast<float>(Inputs(1).gaussian<double>(1, 1, 1).values[0]));
}

}  // namespace
