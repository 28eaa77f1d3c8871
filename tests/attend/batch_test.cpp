// A batch with a tolerance gives every sequence, bit for bit, what its own plan gives it, whichever of them
// are approximated and whatever the threads.
#include "fastrope/attend/batch.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fastrope/fastrope.hpp>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/attention_case.hpp"
#include "support/error_of.hpp"
#include "support/executors.hpp"
#include "support/norms.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::AllOf;
using testing::HasSubstr;

AttentionCase planned_case() {
  AttentionCase c{.shapes = {4, 2, 0, 0, 8, 5}};
  c.base.mask = Mask::causal();
  c.base.rope = Rope{};
  c.base.rope->sections = {2, 1, 1};
  c.base.tolerance = 1e-2;
  return c;
}

/// Sequences, each as a case of its own, with the plan of the batch.
template <class T>
struct PlannedSequences {
  using Real = ArithmeticOf<T>;

  AttentionCase shared;
  std::vector<AttentionCase> cases = {};
  std::vector<AttentionInputs<T>> inputs = {};
  std::vector<Tensor<Real>> sums = {};  // [1, heads, n_q]

  /// Queries `size` times as long as those of logits of deviation 1.
  AttentionCase& add(Index n_q, Index n_k, double size) {
    AttentionCase& c = cases.emplace_back(shared);
    c.shapes.n_q = n_q;
    c.shapes.n_k = n_k;
    AttentionInputs<T>& in = inputs.emplace_back(c.shapes, 100 + inputs.size());
    for (T& x : in.q.values) x = static_cast<T>(size * static_cast<double>(x));
    sums.emplace_back(1, c.shapes.heads, n_q);
    return c;
  }

  /// Options of all. Valid while the batch lives.
  Options options() const { return shared.options(); }
  std::vector<SequenceOptions> own() const {
    std::vector<SequenceOptions> own;
    for (const AttentionCase& c : cases) {
      const Options o = c.options();
      own.push_back({o.query_positions, o.key_positions, o.query_section_positions, o.key_section_positions,
                     o.key_ranges, o.dense_bias, o.dense_mask});
    }
    return own;
  }
  std::vector<SequenceViews<T>> views() {
    std::vector<SequenceViews<T>> views;
    for (AttentionInputs<T>& in : inputs)
      views.push_back({in.q.view(), in.k.view(), in.v.view(), in.out.view()});
    return views;
  }
  MatrixView<Real> lse(std::size_t s) {
    return {sums[s].values.data(), sums[s].rows, sums[s].cols, sums[s].cols};
  }

  MixedBatchPlan<Real> plan(const Executor& executor = Executor::serial()) {
    Options of_all = options();
    of_all.executor = executor;
    return make_batch_plan(views(), of_all, own());
  }
  /// The outputs of a run in memory that begins as NaN.
  std::vector<std::vector<T>> run(const MixedBatchPlan<Real>& plan) {
    for (AttentionInputs<T>& in : inputs)
      std::fill(in.out.values.begin(), in.out.values.end(), static_cast<T>(NAN));
    std::vector<std::byte> workspace(plan.workspace_bytes(), std::byte{0xff});
    EXPECT_EQ(plan.run(views(), workspace), RunStatus::ok);
    std::vector<std::vector<T>> outs;
    for (const AttentionInputs<T>& in : inputs) outs.push_back(in.out.values);
    return outs;
  }

  /// Sequences that some head of is approximated, once every one was held against its own plan, and against
  /// the oracle for what was promised.
  std::size_t expect_as_alone() {
    const MixedBatchPlan<Real> of_all = plan();
    const auto outs = run(of_all);
    EXPECT_EQ(of_all.size(), cases.size());
    std::size_t approximated = 0;
    for (std::size_t s = 0; s < cases.size(); ++s) {
      AttentionInputs<T>& in = inputs[s];
      const auto alone = make_plan(in.q.view(), in.k.view(), in.v.view(), cases[s].options());
      EXPECT_EQ(of_all.report(s).to_json(), alone.to_json()) << "sequence " << s;
      EXPECT_LE(alone.workspace_bytes(), of_all.workspace_bytes()) << "sequence " << s;
      std::vector<std::byte> workspace(alone.workspace_bytes());
      EXPECT_EQ(alone.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok);
      EXPECT_EQ(outs[s], in.out.values) << "sequence " << s << ": " << cases[s];
      const bool exact = std::ranges::all_of(alone.report().heads,
                                             [](const HeadReport& head) { return head.path == Path::exact; });
      if (!exact || cases[s].shapes.n_q < 100) expect_promise(s, alone.report());
      approximated += exact ? 0 : 1;
    }
    return approximated;
  }

  void expect_promise(std::size_t s, const Report& report) {
    const AttentionInputs<T>& in = inputs[s];
    const Reference reference = in.reference(cases[s]);
    const Shapes& shapes = cases[s].shapes;
    for (Index h = 0; h < shapes.heads; ++h) {
      const double bound = report.heads[static_cast<std::size_t>(h)].error_bound;
      if (!std::isfinite(bound)) continue;
      double largest = 0, error = 0;
      const Index kv = h / (shapes.heads / shapes.kv_heads);
      for (Index c = 0; c < shapes.d_v; ++c) {
        for (Index j = 0; j < shapes.n_k; ++j)
          largest = std::max(largest, std::abs(static_cast<double>(in.v(kv, j, c))));
        for (Index i = 0; i < shapes.n_q; ++i)
          error = std::max(error, distance(static_cast<double>(in.out(h, i, c)), reference.out(h, i, c)));
      }
      EXPECT_LE(error, bound * largest + 1e-12) << "sequence " << s << ", head " << h << ": " << cases[s];
    }
  }
};

/// Prompts that are worth approximating and such that are not, short ones, tokens, and some that rest.
template <class T>
PlannedSequences<T> mixed_sequences(const AttentionCase& shared) {
  Inputs random(1);
  PlannedSequences<T> batch{shared};
  batch.add(1, 700, 1);
  batch.add(1000, 1000, 0.02);  // bounded
  batch.add(500, 500, 20);
  batch.add(0, 40, 1);
  batch.add(3, 0, 1);
  AttentionCase& elsewhere = batch.add(900, 1200, 0.02);
  for (Position p = 70; p < 1270; ++p) elsewhere.key_positions.push_back(p);
  for (Position p = 370; p < 1270; ++p) elsewhere.query_positions.push_back(p);
  AttentionCase& ring = batch.add(2, 300, 1);
  ring.key_positions = shuffled_positions(random, 300, 900);
  ring.query_positions = {1200, 1198};
  AttentionCase& documents = batch.add(60, 60, 1);
  documents.ranges = RowRanges::documents(std::array<Index, 3>{20, 30, 10});
  batch.add(0, 0, 1);
  set_dense(batch.add(40, 90, 1), random, true, true, 4);
  static const auto two_of_three = [] {
    std::array<bool, 900> mask;
    for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = i % 3 != 0;
    return mask;
  }();
  batch.add(30, 30, 1).base.dense_mask = {two_of_three.data(), 4, 30, 30, 0, 30};
  AttentionCase& image = batch.add(50, 80, 1);
  if (shared.base.rope) {
    for (Index i = 0; i < 3 * 50; ++i) image.query_section_positions.push_back(random.integer(0, 90));
    for (Index j = 0; j < 3 * 80; ++j) image.key_section_positions.push_back(random.integer(0, 90));
  }
  return batch;
}

template <class Real>
class MixedBatchTest : public testing::Test {};

using BatchReals = testing::Types<float, double>;
TYPED_TEST_SUITE(MixedBatchTest, BatchReals);

TYPED_TEST(MixedBatchTest, EverySequenceIsAsAlone) {
  Inputs random(2);
  std::vector<AttentionCase> cases(4, planned_case());
  cases[1].base.rope.reset();
  set_alibi(cases[1], random);
  set_sinks(cases[2], random);  // rules approximations out
  cases[3].base.tolerance = 0;
  for (const AttentionCase& c : cases) {
    const std::size_t approximated = mixed_sequences<TypeParam>(c).expect_as_alone();
    EXPECT_EQ(approximated, c.base.tolerance > 0 && c.sinks.empty() ? 2 : 0) << c;
  }
}

TYPED_TEST(MixedBatchTest, ThreadsDoNotChangeABit) {
  PlannedSequences<TypeParam> batch = mixed_sequences<TypeParam>(planned_case());
  const auto expected = batch.run(batch.plan());
  for (const Index n : {2, 3}) {
    EXPECT_EQ(batch.run(batch.plan(threads(n))), expected) << n << " threads";
    const auto plan = batch.plan(threads(n));
    EXPECT_EQ(batch.run(plan), expected) << n << " threads, again";
  }
}

TYPED_TEST(MixedBatchTest, PolynomialKernels) {
  AttentionCase c = planned_case();
  c.base.kernel = Kernel::taylor(2);
  PlannedSequences<TypeParam> batch{c};
  batch.add(1, 40, 1);
  batch.add(1000, 1000, 0.1);
  batch.add(20, 30, 1);
  EXPECT_EQ(batch.expect_as_alone(), 1);
}

TEST(MixedBatchPlan, ProductsOfBfloat16WhereTheirBoundLeavesRoom) {
  AttentionCase c = planned_case();
  c.base.tolerance = 0.1;
  PlannedSequences<bfloat16> batch{c};
  batch.add(1500, 1500, 0.5);
  batch.add(1, 300, 0.1);
  batch.add(1500, 1500, 40);  // bound beyond the tolerance
  batch.add(1400, 1500, 0.5);
  EXPECT_EQ(batch.expect_as_alone(), 0);
  const auto plan = batch.plan();
  for (const std::size_t s : {0, 1, 2, 3})
    EXPECT_EQ(plan.report(s).heads[0].reason.find("products of bfloat16") != std::string::npos,
              pairs_pay() && s % 3 == 0)
        << "sequence " << s << ": " << plan.report(s).heads[0].reason;
}

TEST(MixedBatchPlan, WaitsForItsThreadsAsOftenAsOneExactCallDoes) {
  for (const Index sequences : {1, 64}) {
    int rounds = 0;
    PlannedSequences<float> batch{planned_case()};
    for (Index s = 0; s < sequences; ++s) batch.add(1, 40, 1);
    const auto plan = batch.plan(Executor(2, [&](Index tasks, TaskRef task) {
      ++rounds;
      for (Index i = 0; i < tasks; ++i) task(i, 0);
    }));
    rounds = 0;
    batch.run(plan);
    EXPECT_EQ(rounds, 3) << sequences << " sequences";  // load, attend, finish
  }
}

TEST(MixedBatchPlan, WhereSumsAreWantedASequenceIsExact) {
  PlannedSequences<float> batch{planned_case()};
  batch.add(1000, 1000, 0.02);
  batch.add(1000, 1000, 0.02);
  batch.add(1, 300, 1);
  auto views = batch.views();
  views[1].lse = batch.lse(1);
  const auto plan = make_batch_plan(views, batch.options());
  EXPECT_EQ(plan.report(0).heads[0].path, Path::polynomial);
  EXPECT_EQ(plan.report(1).heads[0].path, Path::exact);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const auto refused = [&](RunStatus expected) {
    EXPECT_EQ(plan.run(views, workspace), expected);
    for (const auto& in : batch.inputs)
      for (const float x : in.out.values) ASSERT_TRUE(std::isnan(x));
  };
  views[0].lse = batch.lse(0);
  refused(RunStatus::lse_unavailable);
  views[0].lse = {};
  views[2].lse = batch.lse(2);  // a token, which is exact in any case
  ASSERT_EQ(plan.run(views, workspace), RunStatus::ok);
  for (const std::size_t s : {1, 2}) {
    AttentionInputs<float>& in = batch.inputs[s];
    Tensor<float> out = in.out, sums = batch.sums[s];
    Options exact = batch.options();
    exact.tolerance = 0;
    attend_partial(in.q.view(), in.k.view(), in.v.view(), out.view(),
                   MatrixView<float>{sums.values.data(), sums.rows, sums.cols, sums.cols}, exact);
    EXPECT_EQ(in.out.values, out.values) << "sequence " << s;
    EXPECT_EQ(batch.sums[s].values, sums.values) << "sequence " << s;
  }
}

TEST(MixedBatchPlan, RunRefusesWhatItWasNotMadeFor) {
  PlannedSequences<float> batch{planned_case()};
  batch.add(1000, 1000, 0.02);
  batch.add(4, 30, 1);
  const auto plan = batch.plan();
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const auto expect = [&](RunStatus expected, const std::vector<SequenceViews<float>>& views,
                          std::span<std::byte> memory) {
    EXPECT_EQ(plan.run(views, memory), expected);
    for (const auto& in : batch.inputs)
      for (const float x : in.out.values) ASSERT_TRUE(std::isnan(x));
  };
  auto views = batch.views();
  expect(RunStatus::workspace_too_small, views, std::span(workspace).first(workspace.size() - 1));
  views.push_back(views.back());
  expect(RunStatus::shape_mismatch, views, workspace);
  views = batch.views();
  views.pop_back();
  expect(RunStatus::shape_mismatch, views, workspace);
  views = batch.views();
  --views[1].k.rows;
  --views[1].v.rows;
  expect(RunStatus::shape_mismatch, views, workspace);
  views = batch.views();
  views[1].out.data = nullptr;
  expect(RunStatus::shape_mismatch, views, workspace);
  EXPECT_EQ(plan.run(batch.views(), workspace), RunStatus::ok);
}

TEST(MixedBatchPlan, OfNothing) {
  const std::vector<SequenceViews<float>> none;
  const auto plan = make_batch_plan(none, {.tolerance = 1e-2});
  EXPECT_EQ(plan.size(), 0);
  EXPECT_EQ(plan.run(none, {}), RunStatus::ok);
}

TEST(MixedBatchPlan, ErrorsNameTheSequence) {
  PlannedSequences<float> batch{planned_case()};
  batch.add(4, 20, 1);
  batch.add(1, 30, 1);
  const auto error = [&](const Options& options, const std::vector<SequenceOptions>& own = {}) {
    return error_of([&] { make_batch_plan(batch.views(), options, own); });
  };
  EXPECT_EQ(error(batch.options()), "no Error");
  Options options = batch.options();
  const std::vector<Position> positions(29, 1);
  EXPECT_THAT(error(options, {{}, {.keys = positions}}),
              HasSubstr("sequence 1: key_positions has 29 entries for 30 rows"));
  EXPECT_THAT(error(options, {{}}), HasSubstr("options are given for 1 of 2 sequences"));
  options.key_positions = positions;
  EXPECT_THAT(error(options), HasSubstr("are of one call"));
  options = batch.options();
  options.tolerance = -1;
  EXPECT_THAT(error(options), HasSubstr("tolerance must be finite and not negative, got -1"));
  options = batch.options();
  options.path = Path::polynomial;
  options.scale = 30;
  EXPECT_THAT(error(options),
              AllOf(HasSubstr("sequence 1: head 0"), HasSubstr("cannot meet the tolerance 0.01")));

  auto views = batch.views();
  views[1].lse = batch.lse(1);
  options = batch.options();
  options.path = Path::polynomial;
  options.scale = 0.001;
  EXPECT_THAT(error_of([&] { make_batch_plan(views, options); }),
              HasSubstr("sequence 1: lse is wanted, which path polynomial does not give"));
  views = batch.views();
  views[1].v.rows = 29;
  EXPECT_THAT(error_of([&] { make_batch_plan(views, batch.options()); }),
              HasSubstr("sequence 1: v has n_k = 29 rows, k has n_k = 30"));
  views = batch.views();
  views[1].v.cols = 4;
  EXPECT_THAT(error_of([&] { make_batch_plan(views, batch.options()); }),
              HasSubstr("sequence 1: heads 4, kv_heads 2, d 8, d_v 4; sequence 0 has"));
}

}  // namespace
}  // namespace fastrope_test
