// The exact path through the public call against the double-precision oracle: a grid over shapes, a grid over
// options, and seeded combinations of everything.
#include "fastrope/exact/attention.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"

namespace fastrope_test {
namespace {

using fastrope::attend;
using fastrope::Mask;
using fastrope::Rope;
using fastrope::RopePairing;

/// Error allowed relative to max|V|, for logits of deviation 1. bfloat16 rounds q, k and weights to 2^-9, so
/// that logits are off by a deviation of about 2^-9.3; this is eight of those and the weights and the output.
template <class T>
constexpr double kAttentionTolerance = std::is_same_v<T, fastrope::bfloat16> ? 0x1p-6
                                       : std::is_same_v<T, float>            ? 4e-6
                                                                             : 1e-12;

template <class Real>
class ExactAttentionTest : public testing::Test {
 protected:
  /// |out - reference| <= allowance * tolerance * max|V|, and every element is written.
  static void expect_exact(const AttentionCase& c, std::uint64_t seed, double allowance = 1) {
    AttentionInputs<Real> in(c.shapes, seed);
    const fastrope::Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    for (const fastrope::HeadReport& head : report.heads) EXPECT_EQ(head.path, fastrope::Path::exact) << c;
    const double size = max_abs(in.v.view());
    const double error = max_abs_difference(in.out.view(), in.reference(c).out.view());
    EXPECT_LE(error, allowance * kAttentionTolerance<Real> * size) << c << ", seed " << seed;
  }
};

using Elements = testing::Types<float, double, fastrope::bfloat16>;
TYPED_TEST_SUITE(ExactAttentionTest, Elements);

TYPED_TEST(ExactAttentionTest, EveryWidthOfKeysAndValues) {
  std::uint64_t seed = 1;
  for (const Index d : {1, 2, 6, 8, 36, 52, 64, 80, 128}) {
    for (const Index d_v : {1, 3, 8, 16, 17, 64, 80}) {
      AttentionCase c{.shapes = {2, 1, 50, 67, d, d_v}};
      c.base.mask = Mask::causal();
      if (d > 1) c.base.rope = Rope{};
      this->expect_exact(c, seed++);
    }
  }
}

TYPED_TEST(ExactAttentionTest, EveryNumberOfQueriesAndKeys) {
  std::uint64_t seed = 1000;
  for (const Index n_q : {0, 1, 2, 47, 48, 49, 63, 64, 65, 127, 300}) {
    for (const Index n_k : {0, 1, 2, 31, 48, 49, 63, 64, 65, 127, 257, 300}) {
      for (const Mask mask : {Mask::full(), Mask::causal(), Mask::sliding_window(20)}) {
        AttentionCase c{.shapes = {1, 1, n_q, n_k, 8, 3}};
        c.base.mask = mask;
        c.base.rope = Rope{.base = 100};
        this->expect_exact(c, seed++);
      }
    }
  }
}

TYPED_TEST(ExactAttentionTest, EveryGroupingOfHeads) {
  for (const auto& [heads, kv_heads] : {std::pair{1, 1}, {2, 1}, {2, 2}, {6, 3}, {6, 2}, {7, 1}, {8, 4}}) {
    AttentionCase c{.shapes = {heads, kv_heads, 33, 70, 16, 16}};
    this->expect_exact(c, static_cast<std::uint64_t>(heads * 10 + kv_heads));
  }
  this->expect_exact({.shapes = {0, 0, 5, 5, 8, 8}}, 1);
  this->expect_exact({.shapes = {0, 3, 5, 5, 8, 8}}, 1);
  this->expect_exact({.shapes = {2, 1, 5, 5, 0, 8}}, 1);  // logits 0: the mean of the values
  this->expect_exact({.shapes = {2, 1, 5, 5, 8, 0}}, 1);
}

TYPED_TEST(ExactAttentionTest, EveryMask) {
  std::uint64_t seed = 2000;
  for (const auto& [n_q, n_k] : {std::pair{130, 130}, {60, 200}, {200, 60}, {1, 150}}) {
    for (const Mask mask :
         {Mask::full(), Mask::causal(), Mask::sliding_window(1), Mask::sliding_window(7),
          Mask::sliding_window(64), Mask::sliding_window(1000), Mask::lags(-2000, -1500), Mask::lags(-9, 5),
          Mask::lags(-70, -3), Mask::lags(3, 70), Mask::lags(40, 40), Mask::lags(-1000, 0),
          Mask::lags(1000, 2000), Mask::lags(-Mask::kUnlimited, -20)}) {
      AttentionCase c{.shapes = {2, 2, n_q, n_k, 6, 9}};
      c.base.mask = mask;
      this->expect_exact(c, seed++);
    }
  }
}

TYPED_TEST(ExactAttentionTest, EveryBias) {
  Inputs random(3);
  for (const Mask mask : {Mask::full(), Mask::causal(), Mask::lags(-20, 30)}) {
    for (const auto& lengths : {std::pair{110, 110}, {30, 150}, {150, 30}}) {
      const auto expect = [&](auto&& set) {
        AttentionCase c{.shapes = {4, 2, lengths.first, lengths.second, 12, 8}};
        c.base.mask = mask;
        set(c);
        this->expect_exact(c, 4);
      };
      expect([&](AttentionCase& c) { set_alibi(c, random); });
      expect([&](AttentionCase& c) { set_t5(c, random, /*bidirectional=*/true); });
      expect([&](AttentionCase& c) { set_t5(c, random, /*bidirectional=*/false); });
      expect([&](AttentionCase& c) { set_table(c, random, 4, 150); });
      expect([&](AttentionCase& c) { set_table(c, random, 1, 150); });
      expect([&](AttentionCase& c) { set_dense(c, random, true, true, 5); });
      expect([&](AttentionCase& c) { set_dense(c, random, false, true, 5); });
      expect([&](AttentionCase& c) { set_dense(c, random, true, false, 5); });
      expect([&](AttentionCase& c) { set_dense(c, random, false, false, 1); });  // all -infinity
      expect([&](AttentionCase& c) { set_sinks(c, random); });
      expect([&](AttentionCase& c) { c.base.softcap = 1.5; });
      expect([&](AttentionCase& c) { c.base.softcap = 50; });
      expect([&](AttentionCase& c) { c.base.weights = random_weights(random, 12, 9, 150); });
    }
  }
}

TYPED_TEST(ExactAttentionTest, EveryRotation) {
  using namespace fastrope;
  const std::vector<Rope> ropes = {
      {},
      {.base = 500000},
      {.pairing = RopePairing::half_split},
      {.rotary_dim = 2},
      {.pairing = RopePairing::half_split, .rotary_dim = 6},
      {.scaling = LinearScaling{4}},
      {.scaling = NtkScaling{8}},
      {.scaling = YarnScaling{.factor = 4, .original_context = 64}},
      {.scaling = Llama3Scaling{.original_context = 128}},
      {.pairing = RopePairing::half_split, .scaling = FactorScaling{{1, 2, 3, 4, 5, 6}, 1.1}}};
  Inputs random(5);
  for (const Rope& rope : ropes) {
    for (const auto& [n_q, n_k] : {std::pair{70, 70}, {20, 130}, {130, 20}}) {
      AttentionCase c{.shapes = {2, 1, n_q, n_k, 12, 8}, .text = ", rope"};
      c.base.rope = rope;
      c.base.mask = Mask::causal();
      this->expect_exact(c, 6);
      c.base.rope_already_applied = true;
      this->expect_exact(c, 7);
      c.base.rope_already_applied = false;
      c.text += ", shuffled positions";
      c.key_positions = shuffled_positions(random, n_k, 200);
      c.query_positions = shuffled_positions(random, n_q, 190 + n_k / 2);
      this->expect_exact(c, 8);
    }
  }
}

TYPED_TEST(ExactAttentionTest, ARingCacheIsReadInTheOrderOfItsPositions) {
  // Slot j of a cache of 100 holds position 200 + j - 100 * (j >= 37): the newest token is in slot 36.
  AttentionCase c{.shapes = {4, 2, 3, 100, 16, 16}, .text = ", ring cache"};
  for (Position j = 0; j < 100; ++j) c.key_positions.push_back(j < 37 ? 200 + j : 100 + j);
  c.query_positions = {234, 235, 236};
  c.base.rope = Rope{};
  for (const Mask mask : {Mask::causal(), Mask::sliding_window(40), Mask::full()}) {
    c.base.mask = mask;
    this->expect_exact(c, 9);
  }
  Inputs random(10);
  set_dense(c, random, true, true, 4);  // the dense bias stays in the order of the slots
  this->expect_exact(c, 11);
}

TYPED_TEST(ExactAttentionTest, StridedViews) {
  AttentionCase c{.shapes = {4, 2, 40, 75, 10, 7}, .text = ", [n, heads, d]"};
  c.base.rope = Rope{};
  AttentionInputs<TypeParam> in(c.shapes, 12);
  const auto q = token_major(in.q), k = token_major(in.k), v = token_major(in.v);
  auto out = token_major(in.out);
  attend(q.view(), k.view(), v.view(), out.view(), c.options());
  attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
  EXPECT_EQ(max_abs_difference(out.view(), in.out.view()), 0);
  EXPECT_LE(max_abs_difference(out.view(), in.reference(c).out.view()), kAttentionTolerance<TypeParam>);
}

TYPED_TEST(ExactAttentionTest, ZeroStridesRepeatWhatIsOnlyRead) {
  // One key head, given as four by a stride of 0, and one query row as many.
  AttentionCase c{.shapes = {4, 4, 9, 33, 8, 8}};
  AttentionInputs<TypeParam> in({1, 1, 1, 33, 8, 8}, 13);
  const TensorView<const TypeParam> q{in.q.values.data(), 4, 9, 8, 0, 0};
  const TensorView<const TypeParam> k{in.k.values.data(), 4, 33, 8, 0, 8};
  const TensorView<const TypeParam> v{in.v.values.data(), 4, 33, 8, 0, 8};
  Tensor<TypeParam> out(4, 9, 8);
  attend(q, k, v, out.view(), c.options());
  const Reference reference = reference_attention(q, k, v, c.options());
  EXPECT_LE(max_abs_difference(out.view(), reference.out.view()), kAttentionTolerance<TypeParam>);
}

TYPED_TEST(ExactAttentionTest, LargeLogitsLoseDigitsInProportion) {
  // A logit of size x is off by about epsilon x, and its weight with it.
  for (const double scale : {10.0, 100.0, -10.0}) {
    AttentionCase c{.shapes = {1, 1, 60, 90, 16, 8}};
    c.base.scale = scale / 4;
    this->expect_exact(c, 14, std::abs(scale));
  }
}

TYPED_TEST(ExactAttentionTest, ScalesThatCancel) {
  for (const double exponent : {-12.0, 0.0, 12.0}) {
    AttentionCase c{.shapes = {1, 1, 60, 90, 16, 8}};
    c.base.scale = std::pow(2.0, -2 * exponent) / 4;
    AttentionInputs<TypeParam> in(c.shapes, 15);
    for (TypeParam& x : in.q.values)
      x = static_cast<TypeParam>(std::pow(2.0, exponent) * static_cast<double>(x));
    for (TypeParam& x : in.k.values)
      x = static_cast<TypeParam>(std::pow(2.0, exponent) * static_cast<double>(x));
    attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    EXPECT_LE(max_abs_difference(in.out.view(), in.reference(c).out.view()), kAttentionTolerance<TypeParam>);
  }
}

/// Any combination of shapes and options, from the seed.
AttentionCase random_case(std::uint64_t seed, bool many_heads = false) {
  using namespace fastrope;
  Inputs random(seed);
  const auto pick = [&](std::vector<Index> of) {
    return of[static_cast<std::size_t>(random.integer(0, static_cast<Index>(of.size()) - 1))];
  };
  const auto one_in = [&](Index n) { return random.integer(1, n) == 1; };
  const Index kv_heads = random.integer(1, 3);
  AttentionCase c{.shapes = {kv_heads * random.integer(1, 3), kv_heads, random.integer(0, 130),
                             random.integer(0, 150), pick({1, 2, 3, 6, 8, 20, 36}), pick({1, 5, 8, 16, 33})}};
  if (many_heads) {
    c.shapes.n_q = pick({1, 1, 2, 3, 9});
    c.shapes.heads = kv_heads * random.integer(17, 300 / c.shapes.n_q);
    c.shapes.n_k = random.integer(0, 250);
  }
  const Shapes& s = c.shapes;
  constexpr Position kReach = 320;  // no lag is larger

  switch (random.integer(0, 4)) {
    case 0:
      c.base.mask = Mask::causal();
      break;
    case 1:
      c.base.mask = Mask::sliding_window(random.integer(1, 90));
      break;
    case 2: {
      const auto [first, last] = std::minmax({random.integer(-60, 60), random.integer(-60, 200)});
      c.base.mask = Mask::lags(first, last);
      break;
    }
    default:
      break;
  }
  if (one_in(3)) {
    c.key_positions = shuffled_positions(random, s.n_k, 500);
    if (one_in(2)) std::sort(c.key_positions.begin(), c.key_positions.end());
    c.query_positions = shuffled_positions(random, s.n_q, 450 + random.integer(0, 100));
    if (one_in(2)) std::sort(c.query_positions.begin(), c.query_positions.end());
    c.text += ", explicit positions";
  }
  if (one_in(4)) {
    c.base.weights = random_weights(random, s.d, 6, kReach);
    c.text += ", relative weights";
  } else if (s.d >= 2 && one_in(2)) {
    c.base.rope = Rope{};
    c.base.rope->base = random.uniform(10, 10000);
    c.base.rope->pairing = one_in(2) ? RopePairing::half_split : RopePairing::interleaved;
    c.base.rope->rotary_dim = 2 * random.integer(1, s.d / 2);
    if (one_in(4)) c.base.rope->scaling = LinearScaling{2};
    c.text += ", rope";
  }
  switch (random.integer(0, 6)) {
    case 0:
      set_alibi(c, random);
      break;
    case 1:
      set_t5(c, random, one_in(2));
      break;
    case 2:
      set_table(c, random, one_in(2) ? 1 : s.heads, kReach);
      break;
    default:
      break;
  }
  if (one_in(4)) c.base.softcap = random.uniform(1, 30);
  if (one_in(4)) set_sinks(c, random);
  if (one_in(4)) set_dense(c, random, one_in(2), one_in(2), 6);
  if (one_in(4)) c.base.scale = random.uniform(-0.5, 0.5);
  return c;
}

TYPED_TEST(ExactAttentionTest, RandomCombinations) {
  for (std::uint64_t seed = 0; seed < 400; ++seed) this->expect_exact(random_case(seed), seed);
}

/// Few queries and many heads on a key head: row kernels, products of blocks, and more rows than a group.
TYPED_TEST(ExactAttentionTest, ManyHeadsOnAKeyHead) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) this->expect_exact(random_case(seed, true), seed);
  for (const Index heads : {31, 32, 33, 48, 49, 255, 256, 257, 384, 600})
    this->expect_exact({.shapes = {heads, 1, 1, 70, 8, 9}}, 7);
}

/// Values that are not finite reach the rows that see them, and no others.
TYPED_TEST(ExactAttentionTest, ManyHeadsWithValuesThatAreNotFinite) {
  for (const Index n_q : {1, 2, 20}) {
    AttentionCase c{.shapes = {40, 1, n_q, 1200, 8, 5}};
    c.base.mask = Mask::causal();
    AttentionInputs<TypeParam> in(c.shapes, 3);
    in.v(0, 1199, 2) = TypeParam(std::numeric_limits<float>::infinity());
    in.v(0, 1198, 3) = TypeParam(std::numeric_limits<float>::quiet_NaN());
    attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    for (Index h = 0; h < 40; ++h)
      for (Index i = 0; i < n_q; ++i) {
        const Index last = 1200 - n_q + i;  // that it sees
        for (Index col = 0; col < 5; ++col)
          EXPECT_EQ(std::isfinite(static_cast<double>(in.out(h, i, col))),
                    !((col == 2 && last >= 1199) || (col == 3 && last >= 1198)))
              << c << ", head " << h << ", row " << i << ", column " << col;
      }
  }
}

template <class Real>
class LongSums : public testing::Test {};
using Arithmetics = testing::Types<float, double>;
TYPED_TEST_SUITE(LongSums, Arithmetics);

TYPED_TEST(LongSums, OfManyKeysRoundAsThoseOfFewDo) {
  // All values and weights are the same, so that every rounding of a sum goes the same way: in one chain of
  // floats the result would be off by 1e-3, its logarithm by as much.
  const Index n = 131072;
  for (const Index n_q : {1, 40, 300}) {  // row kernels, products of blocks, tiles
    Tensor<TypeParam> q(1, n_q, 1), k(1, n, 1), v(1, n, 1), out(1, n_q, 1), lse(1, 1, n_q);
    for (TypeParam& x : q.values) x = TypeParam(0.3);
    for (TypeParam& x : k.values) x = TypeParam(0.7);
    for (TypeParam& x : v.values) x = TypeParam(0.1);
    attend_partial(q.view(), k.view(), v.view(), out.view(), MatrixView<TypeParam>(lse.values.data(), 1, n_q),
                   {});
    constexpr double kEpsilon = std::numeric_limits<TypeParam>::epsilon();
    for (Index i = 0; i < n_q; ++i) {
      EXPECT_NEAR(out(0, i, 0) / static_cast<double>(TypeParam(0.1)), 1, 60 * kEpsilon) << i;
      const double logit = static_cast<double>(TypeParam(0.3)) * static_cast<double>(TypeParam(0.7));
      EXPECT_NEAR(lse(0, 0, i), logit + std::log(static_cast<double>(n)), 60 * kEpsilon) << i;
    }
  }
}

}  // namespace
}  // namespace fastrope_test
