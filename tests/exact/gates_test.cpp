// Gates and normalisers on the exact path against the oracle: softmax and polynomial kernels, tiles and
// decode, masks, positions, grouped heads, resets, long sequences, batches, and what does not go together.
#include "fastrope/exact/gate_sums.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/exact/attend_partial.hpp"
#include "fastrope/exact/batch.hpp"
#include "fastrope/exact/exact_call.hpp"
#include "fastrope/exact/weights.hpp"
#include "support/attention_case.hpp"
#include "support/error_of.hpp"
#include "support/gated_rows.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::AllOf;
using testing::HasSubstr;

/// Runs in memory full of NaN; lse: [heads, n_q] or without data.
template <class T>
void attend_gated(const AttentionCase& c, AttentionInputs<T>& in, MatrixView<ArithmeticOf<T>> lse = {}) {
  using Real = ArithmeticOf<T>;
  const Problem problem(c.shapes, c.options());
  std::vector<std::byte> memory(exact_workspace_bytes<Real>(problem));
  std::memset(memory.data(), 0xff, memory.size());
  using View = TensorView<const T>;
  run_exact<OperandOf<Real, View, View, View>>(
      problem, {in.q.view(), in.k.view(), in.v.view(), in.out.view(), lse}, memory);
}

template <class T>
void expect_gated(const AttentionCase& c, std::uint64_t seed) {
  AttentionInputs<T> in(c.shapes, seed);
  attend_gated(c, in);
  expect_gated_rows(c, in);
}

template <class T>
class GatedAttention : public testing::Test {};
using Elements = testing::Types<float, double, bfloat16>;
TYPED_TEST_SUITE(GatedAttention, Elements);

const std::vector<Kernel>& gated_kernels() {
  static const std::vector<Kernel> kernels = {Kernel::softmax(), Kernel::power(2), Kernel::taylor(2),
                                              Kernel::power(1, KernelSign::any)};
  return kernels;
}

TYPED_TEST(GatedAttention, EveryMaskLengthAndStrength) {
  Inputs random(1);
  for (const Kernel& kernel : gated_kernels())
    for (const auto& [n_q, n_k] :
         {std::pair{130, 130}, {60, 200}, {200, 60}, {1, 150}, {1, 1}, {3, 70}, {0, 5}, {5, 0}})
      for (const Mask mask :
           {Mask::causal(), Mask::sliding_window(1), Mask::sliding_window(40), Mask::lags(3, 70)})
        for (const double weakest : {1.0, 12.0})
          for (const Index resets_of : {0, 30}) {
            AttentionCase c{.shapes = {2, 1, n_q, n_k, 6, 9}};
            c.base.kernel = kernel;
            c.base.mask = mask;
            set_gates(c, random, 1, weakest, resets_of);
            expect_gated<TypeParam>(c, 7);
            if (this->HasFatalFailure()) return;
          }
}

TYPED_TEST(GatedAttention, GroupedHeadsAndInputGates) {
  Inputs random(2);
  for (const Kernel& kernel : gated_kernels())
    for (const Index n_q : {1, 2, 90})
      for (const auto& [heads, kv_heads] : {std::pair{1, 1}, {4, 2}, {7, 1}})
        for (const bool of_queries : {false, true})
          for (const double size : {0.0, 3.0, 60.0}) {
            AttentionCase c{.shapes = {heads, kv_heads, n_q, 111, 16, 5}};
            c.base.kernel = kernel;
            c.base.mask = Mask::causal();
            c.base.rope = Rope{.base = 100};
            set_gates(c, random, of_queries ? heads : kv_heads, 6, 40);
            if (size > 0) set_input_gates(c, random, kv_heads, size);
            expect_gated<TypeParam>(c, 8);
            if (this->HasFatalFailure()) return;
          }
}

TYPED_TEST(GatedAttention, Normalisers) {
  Inputs random(3);
  for (const Kernel& kernel :
       {Kernel::power(2), Kernel::taylor(2), Kernel::power(4), Kernel::power(1, KernelSign::any)})
    for (const Normaliser& normaliser :
         {Normaliser::row_sum(1e-12), Normaliser::row_sum(1), Normaliser::at_least(1), Normaliser::none()})
      for (const Index n_q : {1, 80})
        for (const double size : {0.0, 5.0}) {
          AttentionCase c{.shapes = {2, 2, n_q, 80, 8, 3}};
          c.base.kernel = kernel;
          c.base.mask = Mask::causal();
          c.base.normaliser = normaliser;
          expect_gated<TypeParam>(c, 9);
          set_gates(c, random, 2, 4);
          if (size > 0) set_input_gates(c, random, 2, size);
          expect_gated<TypeParam>(c, 10);
          if (this->HasFatalFailure()) return;
        }
}

TYPED_TEST(GatedAttention, PositionsOfKeysAndQueries) {
  Inputs random(4);
  for (const Kernel& kernel : gated_kernels())
    for (const auto& [n_q, n_k] : {std::pair{70, 70}, {2, 130}}) {
      AttentionCase c{.shapes = {2, 1, n_q, n_k, 8, 7}};
      c.base.kernel = kernel;
      c.base.mask = Mask::causal();
      c.base.softcap = kernel.is_softmax() ? 3 : 0;
      if (kernel.is_softmax()) set_sinks(c, random);
      set_gates(c, random, 2, 5, 50);
      c.key_positions = shuffled_positions(random, n_k, 200);
      c.query_positions = shuffled_positions(random, n_q, 190 + n_k / 2);
      expect_gated<TypeParam>(c, 11);
      if (this->HasFatalFailure()) return;
    }
}

TYPED_TEST(GatedAttention, AlibiIsAConstantGate) {
  Inputs random(5);
  for (const Index n_q : {1, 90}) {
    AttentionCase c{.shapes = {4, 2, n_q, 90, 8, 3}};
    c.base.kernel = Kernel::power(2);
    c.base.mask = Mask::causal();
    c.base.normaliser = Normaliser::row_sum(0.5);
    set_alibi(c, random);
    expect_gated<TypeParam>(c, 12);
    set_gates(c, random, 2, 5);
    expect_gated<TypeParam>(c, 13);
  }
}

TEST(Gates, ThePapersVectors) {
  const std::vector<float> q = {1, 0, 1, 1, 0, 2, 1, -1}, k = {1, 1, 2, 0, -1, 1, 1, 2}, v = {1, 2, 4, 8};
  struct Row {
    Kernel kernel;
    Normaliser normaliser;
    std::vector<double> out;
  };
  const Kernel power = Kernel::power(2), linear = Kernel::power(1, KernelSign::any);
  for (const auto& [kernel, normaliser, expected] :
       {Row{power, Normaliser::row_sum(), {1, 5. / 3, 17. / 5, 9. / 2}},
        Row{linear, Normaliser::none(), {1, 5, 17. / 2, -11}},
        Row{linear, Normaliser::at_least(1), {1, 5. / 3, 17. / 5, -22. / 3}},
        Row{Kernel::taylor(2), Normaliser::row_sum(), {1, 5. / 3, 89. / 27, 69. / 19}},
        Row{power, Normaliser::row_sum(1), {1. / 2, 10. / 7, 17. / 6, 18. / 5}}}) {
    AttentionCase c{.shapes = {1, 1, 4, 4, 2, 1}};
    c.base.kernel = kernel;
    c.base.normaliser = normaliser;
    c.base.mask = Mask::causal();
    c.base.scale = 1;
    c.log_gates.assign(4, static_cast<float>(std::log(0.5)));
    AttentionInputs<float> in(c.shapes, 1);
    in.q.values = q, in.k.values = k, in.v.values = v;
    attend_gated(c, in);
    for (Index i = 0; i < 4; ++i)
      EXPECT_NEAR(in.out(0, i, 0), expected[static_cast<std::size_t>(i)], 1e-6 * std::abs(expected[3]))
          << "degree " << kernel.degree() << ", row " << i;
    expect_gated_rows(c, in);
  }
  AttentionCase fox{.shapes = {1, 1, 4, 4, 2, 1}};
  fox.base.mask = Mask::causal();
  fox.log_gates.assign(4, static_cast<float>(std::log(0.5)));
  AttentionInputs<float> in(fox.shapes, 1);
  in.q.values.assign(8, 0), in.k.values = k, in.v.values = v;
  attend_gated(fox, in);
  for (Index i = 0; i < 4; ++i)
    EXPECT_NEAR(in.out(0, i, 0), (std::vector{1., 5. / 3, 3., 17. / 3})[static_cast<std::size_t>(i)], 5e-6);
}

TEST(Gates, AHundredThousandTokensKeepTheirDifferences) {
  // The weights of the last keys hang on differences of sums that are 10^5 times as large.
  for (const Kernel& kernel : gated_kernels())
    for (const Index n_q : {1, 12}) {
      AttentionCase c{.shapes = {1, 1, n_q, 100000, 4, 2}};
      c.base.kernel = kernel;
      c.base.mask = Mask::causal();
      Inputs random(6);
      set_gates(c, random, 1, 7);
      c.log_gates[50000] = -1e6F;
      expect_gated<float>(c, 14);
    }
}

TEST(Gates, ARowAfterAResetSeesNothingBefore) {
  for (const Kernel& kernel : gated_kernels()) {
    AttentionCase c{.shapes = {2, 2, 60, 60, 5, 4}};
    c.base.kernel = kernel;
    c.base.mask = Mask::causal();
    c.log_gates.assign(120, 0);
    for (const std::size_t t : {20UL, 43UL, 80UL, 103UL}) c.log_gates[t] = -INFINITY;
    AttentionInputs<float> in(c.shapes, 15);
    attend_gated(c, in);
    const Tensor<float> gated = in.out;
    const std::vector<Index> lengths = {20, 23, 17};
    c.log_gates.clear();
    c.ranges = RowRanges::documents(lengths);
    attend_gated(c, in);
    EXPECT_LE(max_abs_difference(gated.view(), in.out.view()), 1e-5);
    EXPECT_EQ(gated(0, 20, 0), in.v(0, 20, 0));
    // Not even what is no number.
    in.v(0, 3, 0) = NAN;
    c.ranges = {};
    c.log_gates.assign(120, 0);
    c.log_gates[20] = -INFINITY;
    attend_gated(c, in);
    EXPECT_TRUE(std::isnan(in.out(0, 10, 0)));
    EXPECT_EQ(in.out(0, 20, 0), in.v(0, 20, 0));
  }
}

TEST(Gates, SumsAreTheWholeOnes) {
  for (const Kernel& kernel : gated_kernels())
    for (const Index n_q : {1, 70}) {
      AttentionCase c{.shapes = {2, 1, n_q, 70, 5, 4}};
      c.base.kernel = kernel;
      c.base.mask = Mask::causal();
      Inputs random(16);
      set_gates(c, random, 2, 6);
      set_input_gates(c, random, 1, 4);
      AttentionInputs<double> in(c.shapes, 17);
      std::vector<double> lse(static_cast<std::size_t>(2 * n_q));
      attend_gated<double>(c, in, {lse.data(), 2, n_q});
      const Reference expected = in.reference(c);
      for (Index h = 0; h < 2; ++h)
        for (Index i = 0; i < n_q; ++i) {
          const double sum = lse[static_cast<std::size_t>(h * n_q + i)];
          EXPECT_NEAR(kernel.is_softmax() ? sum : std::log(std::abs(sum)), expected.lse(0, h, i), 1e-9);
        }
    }
}

TEST(Gates, WeightsOfSoftmaxHaveThem) {
  AttentionCase c{.shapes = {2, 1, 40, 40, 5, 40}};
  c.base.mask = Mask::causal();
  Inputs random(18);
  set_gates(c, random, 2, 6, 20);
  AttentionInputs<double> in(c.shapes, 19);
  // With the identity as values, rows are their weights.
  for (double& x : in.v.values) x = 0;
  for (Index j = 0; j < 40; ++j) in.v(0, j, j) = 1;
  const std::vector<Index> heads = {0, 1};
  Tensor<double> weights(2, 40, 40);
  attention_weights(in.q.view(), in.k.view(), heads, weights.view(), c.options());
  const Reference expected = in.reference(c);
  EXPECT_LE(max_abs_difference(weights.view(), expected.out.view()), 1e-12);
  std::vector<double> mass(80);
  key_mass(in.q.view(), in.k.view(), {expected.lse.values.data(), 2, 40}, {mass.data(), 2, 40}, c.options());
  for (Index h = 0; h < 2; ++h)
    for (Index j = 0; j < 40; ++j) {
      double sum = 0;
      for (Index i = 0; i < 40; ++i) sum += expected.out(h, i, j);
      EXPECT_NEAR(mass[static_cast<std::size_t>(h * 40 + j)], sum, 1e-12);
    }
  c.base.kernel = Kernel::power(2);
  EXPECT_THAT(
      error_of([&] { attention_weights(in.q.view(), in.k.view(), heads, weights.view(), c.options()); }),
      HasSubstr("without gates"));
}

TEST(Gates, SequencesOfABatchHaveTheirOwn) {
  for (const Kernel& kernel : gated_kernels()) {
    const std::vector<Shapes> shapes = {{2, 1, 50, 50, 8, 4}, {2, 1, 1, 90, 8, 4}, {2, 1, 3, 20, 8, 4}};
    Options options;
    options.kernel = kernel;
    options.mask = Mask::causal();
    Inputs random(20);
    std::vector<AttentionCase> cases;
    std::vector<AttentionInputs<float>> in;
    for (const Shapes& s : shapes) {
      cases.push_back({.shapes = s, .base = options});
      if (s.n_k != 20) set_gates(cases.back(), random, 1, 6);
      in.emplace_back(s, 21 + static_cast<std::uint64_t>(s.n_k));
    }
    std::vector<SequenceViews<float>> batch;
    std::vector<SequenceOptions> own;
    for (std::size_t s = 0; s < shapes.size(); ++s) {
      batch.push_back({in[s].q.view(), in[s].k.view(), in[s].v.view(), in[s].out.view()});
      own.push_back({.log_gates = cases[s].options().log_gates});
    }
    attend_batch(batch, options, own);
    for (std::size_t s = 0; s < shapes.size(); ++s) {
      const std::vector<float> together = in[s].out.values;
      attend_gated(cases[s], in[s]);
      EXPECT_EQ(together, in[s].out.values) << s;
    }
    // A plan's caches grow, and gates are read when it is run.
    const BatchPlan plan(shapes, options, own);
    std::vector<std::byte> memory(plan.workspace_bytes());
    ASSERT_TRUE(plan.has_capacity(1));
    cases[1].log_gates[40] = -3;
    auto cut = batch;
    cut[1].k = rows(batch[1].k, {0, 60});
    cut[1].v = rows(batch[1].v, {0, 60});
    ASSERT_EQ(plan.run(cut, memory), RunStatus::ok);
    const std::vector<float> grown = in[1].out.values;
    AttentionCase alone{.shapes = {2, 1, 1, 60, 8, 4}, .base = options};
    alone.log_gates.assign(cases[1].log_gates.begin(), cases[1].log_gates.begin() + 60);
    const Problem problem(alone.shapes, alone.options());
    std::vector<std::byte> scratch(exact_workspace_bytes<float>(problem));
    run_exact<float>(problem, {cut[1].q, cut[1].k, cut[1].v, in[1].out.view()}, scratch);
    EXPECT_EQ(grown, in[1].out.values);
  }
}

TEST(Gates, WhatClashesIsNamed) {
  AttentionCase c{.shapes = {4, 2, 6, 6, 3, 3}};
  c.base.mask = Mask::causal();
  const auto refusal = [&](auto&& change) {
    AttentionCase other = c;
    other.log_gates.assign(12, -1);
    change(other);
    return error_of([&] { Problem(other.shapes, other.options()); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "no Error");
  EXPECT_THAT(refusal([](auto& other) { other.log_gates.assign(18, -1); }),
              AllOf(HasSubstr("[3, 6]"), HasSubstr("kv_heads = 2 or heads = 4, n_k = 6")));
  EXPECT_THAT(refusal([](auto& other) { other.base.mask = Mask::full(); }), HasSubstr("only those >= 0"));
  EXPECT_THAT(refusal([](auto& other) { other.base.mask = Mask::lags(-1, 4); }), HasSubstr("-1 to 4"));
  EXPECT_THAT(refusal([](auto& other) { other.base.bias = LagBias::alibi({0.5}); }),
              HasSubstr("do not go with a lag bias"));
  EXPECT_THAT(refusal([](auto& other) { other.base.normaliser = Normaliser::at_least(2); }),
              AllOf(HasSubstr("softmax divides by the sum"), HasSubstr("2")));
  EXPECT_THAT(refusal([](auto& other) { other.dense.assign(6, 0); }), HasSubstr("dense_bias"));
  EXPECT_THAT(refusal([](auto& other) { other.ranges = RowRanges::chunks(6, 2); }), HasSubstr("key_ranges"));
  EXPECT_THAT(refusal([](auto& other) {
                other.base.kernel = Kernel::power(2);
                other.base.bias = LagBias::alibi({-0.5});
              }),
              HasSubstr("-0.5"));
  EXPECT_THAT(error_of([] { Normaliser::row_sum(-1); }), HasSubstr("-1"));
  EXPECT_THAT(error_of([] { Normaliser::at_least(0); }), HasSubstr("got 0"));
  c.log_gates.assign(12, -1);
  AttentionInputs<float> in(c.shapes, 1);
  std::vector<float> lse(24);
  EXPECT_THAT(
      error_of([&] {
        attend_partial(in.q.view(), in.k.view(), in.v.view(), in.out.view(), {lse.data(), 4, 6}, c.options());
      }),
      HasSubstr("attend_partial has no gates"));
  EXPECT_THAT(error_of([&] {
                attend_batch(
                    std::vector<SequenceViews<float>>{{in.q.view(), in.k.view(), in.v.view(), in.out.view()}},
                    c.options());
              }),
              HasSubstr("SequenceOptions"));
  c.log_gates[7] = 0.25F;
  EXPECT_THAT(error_of([&] { Problem(c.shapes, c.options()).gates.require_values(); }),
              HasSubstr("log_gates(1, 1) is 0.25"));
  c.log_gates[7] = NAN;
  EXPECT_THAT(error_of([&] { Problem(c.shapes, c.options()).gates.require_values(); }), HasSubstr("nan"));
}

}  // namespace
}  // namespace fastrope_test
