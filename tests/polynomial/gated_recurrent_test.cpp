// Recurrences with gates and normalisers: the public models against the oracle, in prompts, parts and steps,
// gates of 10^5 tokens, states that are saved, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/polynomial/recurrent.hpp"
#include "support/attention_case.hpp"
#include "support/error_of.hpp"
#include "support/executors.hpp"
#include "support/gated_rows.hpp"
#include "support/kernel_oracle.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::AllOf;
using testing::HasSubstr;

/// A recurrence of a case, fed from its tensors, with the bounds of all rows so far.
template <class Real>
class GatedSequence {
 public:
  GatedSequence(const AttentionCase& c, AttentionInputs<Real>& in)
      : case_(c), in_(in), recurrence_(c.shapes.heads, c.shapes.kv_heads, c.shapes.d, c.shapes.d_v, of(c)) {}

  RecurrentAttention<Real>& recurrence() { return recurrence_; }

  /// The next tokens up to `end`, if there are any.
  void prefill(Index end) {
    const Index begin = recurrence_.tokens();
    end = std::max(begin, end);
    recurrence_.prefill(cut(in_.q, begin, end), cut(in_.k, begin, end), cut(in_.v, begin, end),
                        out(begin, end), gates(case_.log_gates, begin, end),
                        gates(case_.log_input_gates, begin, end));
    keep(begin);
  }
  void steps(Index end) {
    for (Index i = recurrence_.tokens(); i < end; ++i) {
      const auto log = column(case_.log_gates, i), input = column(case_.log_input_gates, i);
      ASSERT_EQ(recurrence_.step(cut(in_.q, i, i + 1), cut(in_.k, i, i + 1), cut(in_.v, i, i + 1),
                                 out(i, i + 1), log, input),
                RunStatus::ok);
      keep(i);
    }
  }
  double bound(Index h, Index i) const {
    return bounds_[static_cast<std::size_t>(h)][static_cast<std::size_t>(i)];
  }

 private:
  static Options of(const AttentionCase& c) {
    Options options = c.base;
    const Index n = c.shapes.n_k, rows = n == 0 ? 0 : std::ssize(c.log_gates) / n;
    if (rows > c.shapes.kv_heads) options.log_gates = {nullptr, rows, 0};
    return options;
  }
  TensorView<const Real> cut(const Tensor<Real>& x, Index begin, Index end) const {
    return rows(x.view(), Range{begin, end});
  }
  TensorView<Real> out(Index begin, Index end) { return rows(in_.out.view(), Range{begin, end}); }
  MatrixView<const float> gates(const std::vector<float>& x, Index begin, Index end) const {
    if (x.empty()) return {};
    const Index n = case_.shapes.n_k;
    return {x.data() + begin, std::ssize(x) / n, end - begin, n};
  }
  std::vector<float> column(const std::vector<float>& x, Index i) const {
    std::vector<float> of;
    for (Index at = i; at < std::ssize(x); at += case_.shapes.n_k)
      of.push_back(x[static_cast<std::size_t>(at)]);
    return of;
  }
  void keep(Index begin) {
    bounds_.resize(static_cast<std::size_t>(case_.shapes.heads));
    const auto now = recurrence_.row_bounds();
    for (Index h = 0; h < case_.shapes.heads; ++h) {
      auto& of = bounds_[static_cast<std::size_t>(h)];
      of.resize(static_cast<std::size_t>(begin));
      for (Index i = 0; i < now.cols; ++i) of.push_back(now(h, i));
    }
  }

  const AttentionCase& case_;
  AttentionInputs<Real>& in_;
  RecurrentAttention<Real> recurrence_;
  std::vector<std::vector<double>> bounds_ = {};  // [heads, tokens]
};

/// Every row is the oracle's within its bound, which is at most `most` in `share` of the rows.
template <class Real>
void expect_bounded(const AttentionCase& c, const AttentionInputs<Real>& in,
                    const GatedSequence<Real>& sequence, const Tensor<double>& expected, double most,
                    double share, const std::string& how) {
  BoundedRows rows;
  double largest = 0;
  for (Index h = 0; h < c.shapes.heads; ++h) {
    largest = largest_of(in.v.view().head(h / (c.shapes.heads / c.shapes.kv_heads)));
    for (Index i = 0; i < c.shapes.n_q; ++i)
      rows.add(h, i, in.out.view().head(h).row(i), expected.view().head(h).row(i), c.shapes.d_v, largest,
               sequence.bound(h, i));
  }
  EXPECT_EQ(rows.violated, 0) << c << how << ": " << rows.worst;
  EXPECT_GE(rows.share_within(most), share) << c << how;
}

/// A public model's attention (the heads of one layer, fewer and narrower).
struct Model {
  const char* name;
  Kernel kernel;
  double scale;  ///< 0: 1/sqrt(d)
  Normaliser normaliser;
  Index heads, kv_heads, d, d_v;
  Index gates;     ///< rows of them
  double weakest;  ///< gates up to log(1 - 2^-weakest)
  bool input = false;
  bool alibi = false;
  bool rope = false;
  double most = 1e-2;   ///< of the bounds of
  double share = 0.99;  ///< so many rows
};

std::vector<Model> models() {
  const Kernel power = Kernel::power(2), linear = Kernel::power(1, KernelSign::any);
  constexpr double kAny = std::numeric_limits<double>::infinity();
  return {
      {"PowerCoder", power, 0, Normaliser::row_sum(), 6, 1, 16, 16, 1, 10, false, false, true},
      {"Brumby", power, 0, Normaliser::row_sum(), 4, 2, 16, 16, 4, 10, false, false, true},
      {"strong gates", power, 0, Normaliser::row_sum(), 4, 2, 8, 5, 2, 1, false, false, false, 1e-2, 0.97},
      {"symmetric power", Kernel::power(4), 0, Normaliser::row_sum(), 2, 2, 8, 8, 0, 0, false, false, false,
       0.1, 0.95},
      {"Based", Kernel::taylor(2), 0.25, Normaliser::row_sum(1e-12), 2, 2, 16, 64, 0, 0},
      {"ReBased", power, 1, Normaliser::row_sum(1e-5), 2, 2, 8, 8, 0, 0},
      {"RetNet", linear, 0, Normaliser::none(), 4, 4, 16, 32, 0, 0, false, true, true, kAny, 0},
      {"lightning", linear, 1, Normaliser::none(), 4, 4, 16, 16, 0, 0, false, true, false, kAny, 0},
      {"Mamba-2", linear, 1, Normaliser::none(), 4, 1, 16, 32, 4, 6, false, false, false, kAny, 0},
      {"GLA", linear, 0, Normaliser::none(), 2, 2, 16, 16, 2, 9, false, false, false, kAny, 0},
      {"PolySketch", Kernel::power(4), 1, Normaliser::row_sum(1), 2, 2, 6, 6, 0, 0, false, false, false, 1e-2,
       0.95},
      {"mLSTM", linear, 0, Normaliser::at_least(1), 2, 2, 16, 16, 2, 9, true, false, false, kAny, 0},
  };
}

AttentionCase case_of_model(const Model& model, Index n, Inputs& random) {
  AttentionCase c{.shapes = {model.heads, model.kv_heads, n, n, model.d, model.d_v}};
  c.base.kernel = model.kernel;
  c.base.mask = Mask::causal();
  c.base.normaliser = model.normaliser;
  if (model.scale > 0) c.base.scale = model.scale;
  if (model.rope) c.base.rope = Rope{.pairing = RopePairing::half_split};
  c.text = std::string(", ") + model.name;
  if (model.alibi) set_alibi(c, random);
  if (model.gates > 0) set_gates(c, random, model.gates, model.weakest, 500);
  if (model.input) set_input_gates(c, random, model.gates, 4);
  return c;
}

TEST(GatedRecurrence, PublicModelsAreTheOracles) {
  Inputs random(1);
  for (const Model& model : models())
    for (const Index n : {1, 2, 255, 256, 300, 900}) {
      AttentionCase c = case_of_model(model, n, random);
      AttentionInputs<float> in(c.shapes, 2);
      const Tensor<double> expected = in.reference(c).out;
      const double share = n < 100 ? 0 : model.share;  // few rows may be few weights near 0
      GatedSequence<float> whole(c, in);
      whole.prefill(n);
      expect_bounded(c, in, whole, expected, model.most, share, ", a prompt");
      const Tensor<float> at_once = in.out;
      GatedSequence<float> stepped(c, in);
      stepped.steps(n);
      expect_bounded(c, in, stepped, expected, model.most, share, ", steps");
      GatedSequence<float> parts(c, in);
      parts.steps(std::min<Index>(n, 3));
      parts.prefill(n / 3);
      parts.prefill(n / 3);
      parts.steps(n / 2);
      parts.prefill(n);
      expect_bounded(c, in, parts, expected, model.most, share, ", parts");
      if (testing::Test::HasFailure()) return;
    }
}

TEST(GatedRecurrence, TwoThousandTokensInDouble) {
  Inputs random(3);
  for (const Model& model : models()) {
    AttentionCase c = case_of_model(model, 2000, random);
    c.shapes.heads = c.shapes.kv_heads = 1;
    c.base.bias = LagBias::none();
    c.bias = {};
    if (!c.log_gates.empty()) c.log_gates.resize(2000);
    if (!c.log_input_gates.empty()) c.log_input_gates.resize(2000);
    AttentionInputs<double> in(c.shapes, 4);
    const Tensor<double> expected = in.reference(c).out;
    GatedSequence<double> sequence(c, in);
    sequence.prefill(900);
    sequence.steps(1300);
    sequence.prefill(2000);
    EXPECT_LE(max_abs_difference(in.out.view(), expected.view()), 1e-9 * (1 + max_abs(expected.view()))) << c;
  }
}

TEST(GatedRecurrence, ThePapersVectorsByStepsAndPrompts) {
  const Kernel power = Kernel::power(2), linear = Kernel::power(1, KernelSign::any);
  struct Row {
    Kernel kernel;
    Normaliser normaliser;
    std::vector<double> out;
  };
  for (const auto& [kernel, normaliser, expected] :
       {Row{power, Normaliser::row_sum(), {1, 5. / 3, 17. / 5, 9. / 2}},
        Row{linear, Normaliser::none(), {1, 5, 17. / 2, -11}},
        Row{linear, Normaliser::at_least(1), {1, 5. / 3, 17. / 5, -22. / 3}},
        Row{Kernel::taylor(2), Normaliser::row_sum(), {1, 5. / 3, 89. / 27, 69. / 19}},
        Row{power, Normaliser::row_sum(1), {1. / 2, 10. / 7, 17. / 6, 18. / 5}}})
    for (const bool stepped : {false, true})
      for (const bool alibi : {false, true}) {
        AttentionCase c{.shapes = {1, 1, 4, 4, 2, 1}};
        c.base.kernel = kernel;
        c.base.normaliser = normaliser;
        c.base.mask = Mask::causal();
        c.base.scale = 1;
        if (alibi)
          c.base.bias = LagBias::alibi({std::log(2)});
        else
          c.log_gates.assign(4, static_cast<float>(std::log(0.5)));
        AttentionInputs<double> in(c.shapes, 5);
        in.q.values = {1, 0, 1, 1, 0, 2, 1, -1}, in.k.values = {1, 1, 2, 0, -1, 1, 1, 2};
        in.v.values = {1, 2, 4, 8};
        GatedSequence<double> sequence(c, in);
        stepped ? sequence.steps(4) : sequence.prefill(4);
        for (Index i = 0; i < 4; ++i)
          EXPECT_NEAR(in.out(0, i, 0), expected[static_cast<std::size_t>(i)], alibi ? 1e-13 : 1e-6)
              << "degree " << kernel.degree() << ", row " << i;
      }
}

TEST(GatedRecurrence, AHundredThousandTokens) {
  // Sums of gates reach -2 10^5, and yet the last rows are right: in parts, and by steps.
  const Index n = 100000;
  AttentionCase c{.shapes = {1, 1, n, n, 4, 3}};
  c.base.kernel = Kernel::taylor(2);
  c.base.mask = Mask::causal();
  Inputs random(6);
  set_gates(c, random, 1, 9);
  AttentionInputs<float> in(c.shapes, 7);
  GatedSequence<float> sequence(c, in);
  sequence.prefill(60000);
  sequence.steps(60700);
  sequence.prefill(99000);
  sequence.steps(n);
  for (const Index from : {60500, 99950}) {
    const Index count = 50;
    AttentionCase last = c;
    last.shapes.n_q = count;
    last.shapes.n_k = from + count;
    last.log_gates.resize(static_cast<std::size_t>(from + count));
    const Range rows_of{from, from + count}, keys{0, from + count};
    const Tensor<double> expected = reference_attention(rows(in.q.view(), rows_of), rows(in.k.view(), keys),
                                                        rows(in.v.view(), keys), last.options())
                                        .out;
    for (Index i = 0; i < count; ++i)
      for (Index m = 0; m < 3; ++m) {
        const double bound = sequence.bound(0, from + i);
        EXPECT_LE(bound, 1e-3);
        EXPECT_LE(std::abs(static_cast<double>(in.out(0, from + i, m)) - expected(0, i, m)), bound) << i;
      }
  }
}

TEST(GatedRecurrence, AResetLeavesNothing) {
  for (const Index at : {3, 256, 257, 500, 511, 512, 700}) {
    AttentionCase c{.shapes = {2, 1, 800, 800, 4, 3}};
    c.base.kernel = Kernel::taylor(2);
    c.base.mask = Mask::causal();
    c.log_gates.assign(800, -0.01F);
    c.log_gates[static_cast<std::size_t>(at)] = -INFINITY;
    AttentionInputs<float> in(c.shapes, 8);
    const Tensor<double> expected = in.reference(c).out;
    for (const bool stepped : {false, true}) {
      GatedSequence<float> sequence(c, in);
      stepped ? sequence.steps(800) : sequence.prefill(800);
      expect_bounded(c, in, sequence, expected, 1e-3, 1, stepped ? ", steps" : ", a prompt");
      EXPECT_EQ(in.out(0, at, 0), in.v(0, at, 0));
    }
    GatedSequence<float> parts(c, in);
    parts.prefill(at);
    parts.prefill(800);
    expect_bounded(c, in, parts, expected, 1e-3, 1, ", a part begins");
  }
}

TEST(GatedRecurrence, GatesMayBeginLater) {
  AttentionCase c{.shapes = {2, 2, 700, 700, 4, 3}};
  c.base.kernel = Kernel::taylor(2);
  c.base.mask = Mask::causal();
  AttentionInputs<float> in(c.shapes, 9);
  for (const Index from : {100, 300})
    for (const bool stepped : {false, true}) {
      c.log_gates.clear();
      GatedSequence<float> sequence(c, in);
      stepped ? sequence.steps(from) : sequence.prefill(from);
      c.log_gates.assign(1400, 0);
      for (Index h = 0; h < 2; ++h)
        std::fill_n(c.log_gates.begin() + h * 700 + from, 700 - from, -0.05F * static_cast<float>(h + 1));
      stepped ? sequence.prefill(700) : sequence.steps(700);
      expect_bounded(c, in, sequence, in.reference(c).out, 1e-3, 1, "");
    }
}

TEST(GatedRecurrence, ASavedPastGoesOnBitForBit) {
  Inputs random(10);
  for (const Model& model : models())
    for (const Index past : {0, 7, 256, 300}) {
      AttentionCase c = case_of_model(model, past + 300, random);
      AttentionInputs<float> in(c.shapes, 11);
      GatedSequence<float> sequence(c, in), other(c, in);
      sequence.prefill(past / 2);
      sequence.steps(past);
      std::vector<std::byte> bytes(sequence.recurrence().state_bytes());
      ASSERT_EQ(sequence.recurrence().save(bytes), RunStatus::ok);
      other.prefill(33);
      other.recurrence().load(bytes);
      sequence.steps(past + 280);
      sequence.prefill(past + 300);
      const Tensor<float> expected = in.out;
      other.steps(past + 280);
      other.prefill(past + 300);
      for (Index h = 0; h < model.heads; ++h)
        for (Index i = past; i < past + 300; ++i) {
          ASSERT_EQ(in.out(h, i, 0), expected(h, i, 0)) << c << ", row " << i;
          ASSERT_EQ(other.bound(h, i), sequence.bound(h, i)) << c << ", row " << i;
        }
    }
}

TEST(GatedRecurrence, ThreadsDoNotChangeABit) {
  Inputs random(12);
  for (const Model& model : models()) {
    AttentionCase c = case_of_model(model, 700, random), parallel = c;
    parallel.base.executor = threads(3);
    AttentionInputs<float> in(c.shapes, 13), other = in;
    GatedSequence<float> sequence(c, in), of_threads(parallel, other);
    sequence.prefill(600), sequence.steps(700);
    of_threads.prefill(600), of_threads.steps(700);
    EXPECT_EQ(in.out.values, other.out.values) << c;
  }
}

TEST(GatedRecurrence, WhatClashesIsNamedAndChangesNothing) {
  AttentionCase c{.shapes = {4, 2, 9, 9, 3, 2}};
  c.base.kernel = Kernel::power(2);
  c.base.mask = Mask::causal();
  AttentionInputs<float> in(c.shapes, 14);
  RecurrentAttention<float> recurrence(4, 2, 3, 2, c.base);
  const auto prefill = [&](const std::vector<float>& gates, Index rows) {
    return error_of([&] {
      recurrence.prefill(in.q.view(), in.k.view(), in.v.view(), in.out.view(),
                         {gates.data(), rows, std::ssize(gates) / rows});
    });
  };
  EXPECT_THAT(prefill(std::vector<float>(27, -1), 3), HasSubstr("[3, 9]"));
  EXPECT_THAT(prefill(std::vector<float>(16, -1), 2), HasSubstr("[2, 8]"));
  EXPECT_THAT(prefill(std::vector<float>(36, -1), 4), AllOf(HasSubstr("4 heads"), HasSubstr("2 states")));
  EXPECT_THAT(prefill(std::vector<float>(18, 0.5), 2), HasSubstr("log_gates(0, 0) is 0.5"));
  const auto step = [&](const std::vector<float>& gates) {
    const Range first{0, 1};
    return recurrence.step(rows(in.q.view(), first), rows(in.k.view(), first), rows(in.v.view(), first),
                           rows(in.out.view(), first), gates);
  };
  EXPECT_EQ(step({-1, 1}), RunStatus::gates_refused);
  EXPECT_EQ(step({-1, NAN}), RunStatus::gates_refused);
  EXPECT_EQ(step({-1, -1, -1}), RunStatus::shape_mismatch);
  EXPECT_EQ(step({-1, -1, -1, -1}), RunStatus::shape_mismatch);
  EXPECT_EQ(recurrence.tokens(), 0);
  EXPECT_EQ(step({-1, -1}), RunStatus::ok);
  EXPECT_EQ(step({}), RunStatus::ok);
  Options options = c.base;
  options.log_gates = {nullptr, 3, 0};
  EXPECT_THAT(error_of([&] { RecurrentAttention<float>(4, 2, 3, 2, options); }), HasSubstr("3 rows"));
  const std::vector<float> gates(2, -1);
  options.log_gates = {gates.data(), 2, 1};
  EXPECT_THAT(error_of([&] { RecurrentAttention<float>(4, 2, 3, 2, options); }),
              HasSubstr("come with its tokens"));
  // States of each query head are states of others.
  options.log_gates = {nullptr, 4, 0};
  RecurrentAttention<float> apart(4, 2, 3, 2, options);
  std::vector<std::byte> bytes(apart.state_bytes());
  ASSERT_EQ(apart.save(bytes), RunStatus::ok);
  EXPECT_THAT(error_of([&] { recurrence.load(bytes); }), HasSubstr("number of states"));
  options = c.base;
  options.normaliser = Normaliser::none();
  RecurrentAttention<float> undivided(4, 2, 3, 2, options);
  ASSERT_EQ(undivided.state_bytes(), recurrence.state_bytes());
  bytes.resize(undivided.state_bytes());
  ASSERT_EQ(undivided.save(bytes), RunStatus::ok);
  EXPECT_THAT(error_of([&] { recurrence.load(bytes); }), HasSubstr("normaliser"));
}

}  // namespace
}  // namespace fastrope_test
