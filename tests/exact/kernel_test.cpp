// Polynomial kernels on the exact path against the oracle: tiles and decode, masks, positions, grouped heads,
// rows whose denominator vanishes, and what has no meaning without an exponential.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/exact/attend_partial.hpp"
#include "fastrope/exact/batch.hpp"
#include "fastrope/exact/exact_call.hpp"
#include "support/attention_case.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

/// Of a weight, relative to what its terms add up to in size. Arithmetic is of float for bfloat16 too:
/// products of bfloat16 pairs would round terms that may cancel.
template <class T>
constexpr double kKernelTolerance = std::is_same_v<T, double> ? 1e-12 : 4e-6;
/// Of a result, relative to its size, where it is stored in fewer bits.
template <class T>
constexpr double kStored = std::is_same_v<T, bfloat16> ? 0x1p-8 : 0;

/// Runs in memory full of NaN.
template <class T>
void attend_exactly(const AttentionCase& c, AttentionInputs<T>& in) {
  using Real = ArithmeticOf<T>;
  const Problem problem(c.shapes, c.options());
  std::vector<std::byte> memory(exact_workspace_bytes<Real>(problem));
  std::memset(memory.data(), 0xff, memory.size());
  using View = TensorView<const T>;
  run_exact<OperandOf<Real, View, View, View>>(
      problem, {in.q.view(), in.k.view(), in.v.view(), in.out.view()}, memory);
}

/// sum_p |c_p| (1 + |x|)^p: bounds the terms of P(x), and what an error e < 1 of x does to it by this times
/// e.
KernelFunction size_of(const Kernel& kernel) {
  std::vector<double> c;
  for (const double coefficient : kernel.coefficients()) c.push_back(std::abs(coefficient));
  return [terms = polynomial_kernel(std::move(c))](double x) { return terms(1 + std::abs(x)); };
}

template <class T>
class KernelAttention : public testing::Test {
 protected:
  /// Every row is off by at most the tolerance times sum_j size_of(x_ij) / |sum_j P(x_ij)|, |v| < 1.
  static void expect_exact(const AttentionCase& c, std::uint64_t seed) {
    AttentionInputs<T> in(c.shapes, seed);
    attend_exactly(c, in);
    expect_near(c, in, seed);
  }
  static void expect_near(const AttentionCase& c, const AttentionInputs<T>& in, std::uint64_t seed) {
    const Reference expected = in.reference(c);
    const Reference size =
        reference_attention(in.q.view(), in.k.view(), in.v.view(), c.options(), {}, size_of(c.base.kernel));
    for (Index h = 0; h < c.shapes.heads; ++h)
      for (Index i = 0; i < c.shapes.n_q; ++i) {
        const bool empty = std::isinf(expected.lse(0, h, i));
        const double condition = empty ? 0 : std::exp(size.lse(0, h, i) - expected.lse(0, h, i));
        for (Index col = 0; col < c.shapes.d_v; ++col)
          ASSERT_LE(distance(static_cast<double>(in.out(h, i, col)), expected.out(h, i, col)),
                    kKernelTolerance<T> * condition * (1 + kStored<T>)+kStored<T> *
                        std::abs(expected.out(h, i, col)))
              << c << ", head " << h << ", row " << i << ", seed " << seed;
      }
  }
};

using Elements = testing::Types<float, double, bfloat16>;
TYPED_TEST_SUITE(KernelAttention, Elements);

const std::vector<Kernel>& kernels() {
  static const std::vector<Kernel> kernels = {
      Kernel::taylor(2),
      Kernel::taylor(6),
      Kernel::power(2),
      Kernel::power(4),
      Kernel::polynomial({1, 2, 1}),
      Kernel::polynomial({3}),
      Kernel::polynomial({2, 1, 0, 0.125}, KernelSign::any),
  };
  return kernels;
}

TYPED_TEST(KernelAttention, EveryMaskAndLength) {
  std::uint64_t seed = 1;
  for (const Kernel& kernel : kernels()) {
    for (const auto& [n_q, n_k] :
         {std::pair{130, 130}, {60, 200}, {200, 60}, {1, 150}, {3, 70}, {0, 5}, {5, 0}}) {
      for (const Mask mask : {Mask::full(), Mask::causal(), Mask::sliding_window(1), Mask::sliding_window(40),
                              Mask::lags(-9, 5), Mask::lags(30, 70), Mask::lags(500, 600)}) {
        AttentionCase c{.shapes = {2, 1, n_q, n_k, 6, 9}};
        c.base.kernel = kernel;
        c.base.mask = mask;
        this->expect_exact(c, seed++);
      }
    }
  }
}

TYPED_TEST(KernelAttention, EveryWidthAndGrouping) {
  std::uint64_t seed = 1000;
  for (const Index n_q : {1, 2, 50})
    for (const Index d : {0, 1, 7, 16, 33, 64})
      for (const Index d_v : {1, 5, 16, 17, 80})
        for (const auto& [heads, kv_heads] : {std::pair{1, 1}, {4, 2}, {7, 1}}) {
          AttentionCase c{.shapes = {heads, kv_heads, n_q, 67, d, d_v}};
          c.base.kernel = Kernel::taylor(4);
          c.base.mask = Mask::causal();
          this->expect_exact(c, seed++);
        }
}

TYPED_TEST(KernelAttention, RopePositionsScalesAndWeights) {
  Inputs random(2);
  for (const Kernel& kernel : kernels()) {
    for (const auto& [n_q, n_k] : {std::pair{70, 70}, {2, 130}, {130, 20}}) {
      AttentionCase c{.shapes = {4, 2, n_q, n_k, 12, 7}};
      c.base.kernel = kernel;
      c.base.mask = Mask::causal();
      c.base.rope = Rope{.base = 100, .rotary_dim = 8};
      this->expect_exact(c, 3);
      c.base.rope->pairing = RopePairing::half_split;
      c.base.scale = -0.2;
      this->expect_exact(c, 4);
      c.text = ", shuffled positions";
      c.key_positions = shuffled_positions(random, n_k, 200);
      c.query_positions = shuffled_positions(random, n_q, 190 + n_k / 2);
      this->expect_exact(c, 5);
      c.text = ", relative weights";
      c.base.rope.reset();
      c.base.weights = random_weights(random, 12, 9, 400);
      this->expect_exact(c, 6);
    }
  }
}

TYPED_TEST(KernelAttention, DecodeOfManySplits) {
  for (const Kernel& kernel : kernels())
    for (const Mask mask : {Mask::full(), Mask::sliding_window(300), Mask::lags(1500, 1600)})
      for (const auto& [n_q, group] : {std::pair{1, 1}, {1, 4}, {3, 2}}) {
        AttentionCase c{.shapes = {2 * group, 2, n_q, 3000, 12, 9}};
        c.base.kernel = kernel;
        c.base.mask = mask;
        c.base.rope = Rope{};
        this->expect_exact(c, 7);
      }
}

TYPED_TEST(KernelAttention, MaskedKeysAreNotSeenWhateverTheyHold) {
  // Keys that dense_mask hides from all queries: their values and scores are not finite.
  for (const Index n_q : {1, 40}) {
    AttentionCase c{.shapes = {2, 1, n_q, 90, 8, 5}};
    c.base.kernel = Kernel::polynomial({1, 2, 1});
    c.base.mask = Mask::causal();
    const auto allowed = std::make_unique<bool[]>(static_cast<std::size_t>(2 * n_q * 90));
    AttentionInputs<TypeParam> in(c.shapes, 8);
    for (Index e = 0; e < 2 * n_q * 90; ++e) allowed[static_cast<std::size_t>(e)] = e % 3 != 0;
    for (Index j = 0; j < 90; j += 3) {
      in.k(0, j, 0) = std::numeric_limits<TypeParam>::quiet_NaN();
      in.k(0, j, 1) = std::numeric_limits<TypeParam>::infinity();
      in.v(0, j, 2) = j % 2 == 0 ? std::numeric_limits<TypeParam>::infinity()
                                 : std::numeric_limits<TypeParam>::quiet_NaN();
    }
    c.base.dense_mask = {allowed.get(), 2, n_q, 90, n_q * 90, 90};
    attend_exactly(c, in);
    this->expect_near(c, in, 8);
  }
}

/// A logit of -infinity is no masked key: the quotient of infinite sums is NaN.
TYPED_TEST(KernelAttention, AnInfiniteKeyMakesTheRowsThatMeetItNaN) {
  for (const Index n_q : {1, 30, 60}) {
    AttentionCase c{.shapes = {1, 1, n_q, 300, 4, 3}};
    c.base.kernel = Kernel::power(2);
    c.base.mask = Mask::causal();
    AttentionInputs<TypeParam> in(c.shapes, 10);
    for (TypeParam& x : in.q.values) x = static_cast<TypeParam>(std::abs(static_cast<double>(x)) + 0.1);
    const Index seen_by = n_q - 1;  // the last query alone
    in.k(0, 299, 0) = TypeParam(-std::numeric_limits<float>::infinity());
    attend_exactly(c, in);
    for (Index i = 0; i < n_q; ++i)
      for (Index col = 0; col < 3; ++col)
        EXPECT_EQ(std::isnan(static_cast<double>(in.out(0, i, col))), i == seen_by) << c << ", row " << i;
  }
}

TYPED_TEST(KernelAttention, ARowWhoseDenominatorVanishesIsZeros) {
  for (const Index n_q : {1, 60}) {
    AttentionCase c{.shapes = {1, 1, n_q, 64, 4, 3}};
    const auto expect_zeros = [&](AttentionInputs<TypeParam>& in) {
      attend_exactly(c, in);
      for (const TypeParam x : in.out.values) EXPECT_EQ(static_cast<double>(x), 0) << c;
    };
    AttentionInputs<TypeParam> in(c.shapes, 9);
    // All weights 0.
    c.base.kernel = Kernel::power(2);
    c.base.scale = 0.0;
    expect_zeros(in);
    // So small that they vanish.
    c.base.scale = 1e-20;
    c.base.kernel = Kernel::power(32);
    expect_zeros(in);
    // So small that their sum is subnormal.
    using Real = fastrope::ArithmeticOf<TypeParam>;
    c.base.scale = std::sqrt(1e-4 * std::numeric_limits<Real>::min());
    c.base.kernel = Kernel::power(2);
    expect_zeros(in);
    // Weights that cancel: each key beside its negative.
    c.base.scale = 1.0;
    c.base.kernel = Kernel::power(1, KernelSign::any);
    for (TypeParam& x : in.q.values) x = static_cast<TypeParam>(2);
    for (Index j = 0; j < 64; ++j)
      for (Index col = 0; col < 4; ++col) in.k(0, j, col) = static_cast<TypeParam>(j % 2 == 0 ? 1 : -1);
    expect_zeros(in);
  }
}

TYPED_TEST(KernelAttention, ASplitWhoseWeightsCancelStillCounts) {
  // Key 0 has the weight 4. Those of the second split, 38 times 1 and -1, add up to 0, but its values do not.
  AttentionCase c{.shapes = {1, 1, 1, 1100, 1, 1}};
  c.base.kernel = Kernel::power(1, KernelSign::any);
  AttentionInputs<TypeParam> in(c.shapes, 10);
  in.q(0, 0, 0) = static_cast<TypeParam>(1);
  for (Index j = 0; j < 1100; ++j) {
    in.k(0, j, 0) = static_cast<TypeParam>(j == 0 ? 4 : j < 1024 ? 0 : j % 2 == 0 ? 1 : -1);
    in.v(0, j, 0) = static_cast<TypeParam>(j % 2 == 0 ? 0.5 : 0.25);
  }
  attend_exactly(c, in);
  EXPECT_EQ(in.out(0, 0, 0), static_cast<TypeParam>((4 * 0.5 + 38 * 0.25) / 4));
}

TYPED_TEST(KernelAttention, ConstantFactorsFallOut) {
  AttentionCase c{.shapes = {1, 1, 50, 70, 8, 4}};
  AttentionInputs<TypeParam> in(c.shapes, 11);
  c.base.kernel = Kernel::polynomial({1, 1, 0.5});
  attend_exactly(c, in);
  const Tensor<TypeParam> out = in.out;
  c.base.kernel = Kernel::polynomial({0x1p40, 0x1p40, 0x1p39});
  attend_exactly(c, in);
  EXPECT_EQ(max_abs_difference(in.out.view(), out.view()), 0);
}

TYPED_TEST(KernelAttention, ABatchIsAsEachSequenceAlone) {
  if constexpr (!std::is_same_v<TypeParam, bfloat16>) {
    AttentionCase shared{.shapes = {4, 2, 0, 0, 12, 9}};
    shared.base.kernel = Kernel::taylor(4);
    shared.base.mask = Mask::causal();
    shared.base.rope = Rope{};
    std::vector<AttentionCase> cases;
    std::vector<AttentionInputs<TypeParam>> inputs;
    for (const auto& [n_q, n_k] : {std::pair{70, 70}, {1, 1500}, {48, 300}, {0, 40}, {3, 0}}) {
      cases.push_back(shared);
      cases.back().shapes.n_q = n_q;
      cases.back().shapes.n_k = n_k;
      inputs.emplace_back(cases.back().shapes, 12);
    }
    std::vector<SequenceViews<TypeParam>> batch;
    for (auto& in : inputs) batch.push_back({in.q.view(), in.k.view(), in.v.view(), in.out.view()});
    attend_batch(batch, shared.options());
    for (std::size_t s = 0; s < cases.size(); ++s) {
      const Tensor<TypeParam> out = inputs[s].out;
      this->expect_near(cases[s], inputs[s], 12);
      attend_exactly(cases[s], inputs[s]);
      EXPECT_EQ(inputs[s].out.values, out.values) << cases[s];
    }
  }
}

TEST(KernelPartial, ThereIsNoLse) {
  AttentionCase c{.shapes = {2, 1, 3, 4, 8, 5}};
  AttentionInputs<float> in(c.shapes, 13);
  Tensor<float> lse(1, 2, 3);
  c.base.kernel = Kernel::taylor(2);
  try {
    attend_partial(in.q.view(), in.k.view(), in.v.view(), in.out.view(), lse.view().head(0), c.options());
    ADD_FAILURE() << "no Error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("polynomial of degree 2"));
  }
}

}  // namespace
}  // namespace fastrope_test
