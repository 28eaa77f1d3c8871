// Dense biases and masks: of every element type, blocks that are masked throughout, and what is not a mask.
#include "fastrope/exact/dense_blocks.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fastrope/fastrope.hpp>
#include <limits>
#include <memory>
#include <vector>

#include "support/attention_case.hpp"
#include "support/error_of.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A bias of `heads` heads of which block rows and keys (of 48 by 64) are masked in a checkerboard.
template <class T>
std::vector<T> checkerboard(Index heads, Index n_q, Index n_k) {
  std::vector<T> bias;
  for (Index h = 0; h < heads; ++h)
    for (Index i = 0; i < n_q; ++i)
      for (Index j = 0; j < n_k; ++j)
        bias.push_back(static_cast<T>(
            (h + i / 48 + j / 64) % 2 == 0 ? -kInfinity : static_cast<float>((3 * i + 5 * j) % 16) / 4));
  return bias;
}

template <class T>
class DenseTypes : public testing::Test {};
using DenseElements = testing::Types<float, float16, bfloat16>;
TYPED_TEST_SUITE(DenseTypes, DenseElements);

TYPED_TEST(DenseTypes, BiasesOfEveryTypeAgreeWithTheOracle) {
  for (const Index n_q : {3, 100})
    for (const Index bias_heads : {1, 4}) {
      const Shapes shapes{4, 2, n_q, 333, 16, 8};
      const std::vector<TypeParam> bias = checkerboard<TypeParam>(bias_heads, n_q, 333);
      AttentionInputs<float> in(shapes, 3);
      for (const bool sloped : {false, true}) {
        AttentionCase c{.shapes = shapes};
        Inputs random(2);
        if (sloped) set_alibi(c, random);
        Options options = c.options();
        options.dense_bias = {bias.data(), 4, n_q, 333, bias_heads == 1 ? 0 : n_q * 333, 333};
        options.verify = 2;
        const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), options);
        EXPECT_LT(report.heads[0].observed_error, 1e-5);
        const Reference expected =
            reference_attention(in.q.view(), in.k.view(), in.v.view(), options, c.bias);
        for (std::size_t e = 0; e < in.out.values.size(); ++e)
          ASSERT_NEAR(static_cast<double>(in.out.values[e]), expected.out.values[e], 2e-5) << e;
      }
    }
}

TEST(DenseBlocks, KnowBlocksAndTheLargestBias) {
  const Index n_q = 100, n_k = 200;
  std::vector<float> bias = checkerboard<float>(1, n_q, n_k);
  bias[50 * 200 + 130] = 9;  // of a block that is seen
  Options options{.dense_bias = {bias.data(), 4, n_q, n_k, 0, n_k}};
  const Problem problem({4, 2, n_q, n_k, 8, 8}, options);
  std::vector<std::byte> memory(Workspace::bytes_of([&](Workspace& w) { DenseBlocks(problem, w); }));
  Workspace workspace(memory);
  const DenseBlocks blocks(problem, workspace);
  EXPECT_EQ(blocks.tasks(), 3) << "once for all heads";
  for (Index task = 0; task < blocks.tasks(); ++task) blocks.prepare(problem, task);
  for (Index h = 0; h < 4; ++h)
    for (Index i = 0; i < n_q; ++i)
      for (Index j = 0; j < n_k; ++j) {
        const bool seen = (i / 48 + j / 64) % 2 != 0;
        ASSERT_EQ(blocks.sees(h, {i, i + 1}, {j, j + 1}), seen);
        ASSERT_EQ(blocks.masks(h, {i, i + 1}, {j, j + 1}), !seen);
      }
  EXPECT_TRUE(blocks.sees(0, {40, 50}, {0, 10}));
  EXPECT_EQ(blocks.largest(3, 50), (50 / 48 + 130 / 64) % 2 != 0 ? 9 : 3.75);
}

TEST(DenseBlocks, ANaNIsNoMask) {
  for (const Index n_q : {2, 60}) {
    const Shapes shapes{2, 1, n_q, 300, 8, 8};
    std::vector<float> bias(static_cast<std::size_t>(n_q * 300), -kInfinity);
    for (Index j = 0; j < 64; ++j) bias[static_cast<std::size_t>(j)] = 0;
    for (Index j = 64; j < 128; ++j) bias[static_cast<std::size_t>(300 + j)] = std::nanf("");
    AttentionInputs<float> in(shapes, 5);
    attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(),
           {.dense_bias = {bias.data(), 2, n_q, 300, 0, 300}});
    EXPECT_TRUE(std::isfinite(in.out(0, 0, 0)));
    EXPECT_TRUE(std::isnan(in.out(0, 1, 0))) << "of a row whose only biases are no numbers";
  }
}

/// Masked blocks are not computed: values that are not finite there would be found one by one, keys not at
/// all.
TEST(DenseBlocks, MaskedBlocksOfOneRowForAllAreSkipped) {
  for (const Index n_q : {1, 200}) {
    const Shapes shapes{4, 2, n_q, 1000, 16, 16};
    const auto in_use = std::make_unique<bool[]>(1000);
    std::fill_n(in_use.get(), 130, true);
    AttentionInputs<float> in(shapes, 6), spoilt(shapes, 6);
    for (Index j = 130; j < 1000; ++j) spoilt.k(0, j, 0) = spoilt.v(1, j, 3) = std::nanf("");
    const Options options{.dense_mask = {in_use.get(), 4, n_q, 1000, 0, 0}};
    attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), options);
    attend(spoilt.q.view(), spoilt.k.view(), spoilt.v.view(), spoilt.out.view(), options);
    for (std::size_t e = 0; e < in.out.values.size(); ++e)
      ASSERT_NEAR(in.out.values[e], spoilt.out.values[e], 1e-6f);
  }
}

}  // namespace
}  // namespace fastrope_test
