// A batch gives every sequence, bit for bit, what it gets alone, whatever the other sequences, the threads
// and the order of the tasks.
#include "fastrope/exact/batch.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fastrope/fastrope.hpp>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/attention_case.hpp"
#include "support/error_of.hpp"
#include "support/executors.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::AllOf;
using testing::HasSubstr;

template <class Real>
constexpr double kBatchTolerance = std::is_same_v<Real, float> ? 4e-6 : 1e-12;

/// (n_q, n_k): prompts, chunks over a cache, single tokens, caches of two splits, nothing to do.
const std::vector<std::pair<Index, Index>> kMixed = {{70, 70},   {1, 200}, {48, 300}, {0, 40},
                                                     {1, 1},     {3, 0},   {2, 1500}, {1, 64},
                                                     {200, 200}, {5, 33},  {0, 0},    {9, 1100}};

/// The sequences of a batch, each as a case of its own. `shared` has the heads and options of all.
template <class Real>
struct Batch {
  std::vector<AttentionCase> cases;
  std::vector<AttentionInputs<Real>> inputs;

  Batch(const AttentionCase& shared, const std::vector<std::pair<Index, Index>>& lengths) {
    for (const auto& [n_q, n_k] : lengths) {
      cases.push_back(shared);
      cases.back().shapes.n_q = n_q;
      cases.back().shapes.n_k = n_k;
      inputs.emplace_back(cases.back().shapes, 100 + inputs.size());
    }
  }

  std::vector<Shapes> shapes() const {
    std::vector<Shapes> shapes;
    for (const AttentionCase& c : cases) shapes.push_back(c.shapes);
    return shapes;
  }
  std::vector<SequencePositions> positions() const {
    std::vector<SequencePositions> positions;
    for (const AttentionCase& c : cases) positions.push_back({c.query_positions, c.key_positions});
    return positions;
  }
  Options options() const {
    Options options = cases.front().options();
    options.query_positions = options.key_positions = {};
    return options;
  }
  /// Valid while the batch lives.
  std::vector<SequenceViews<Real>> views() {
    std::vector<SequenceViews<Real>> views;
    for (AttentionInputs<Real>& in : inputs)
      views.push_back({in.q.view(), in.k.view(), in.v.view(), in.out.view()});
    return views;
  }
  std::vector<std::vector<Real>> attend(const Executor& executor = Executor::serial()) {
    Options shared = options();
    shared.executor = executor;
    for (AttentionInputs<Real>& in : inputs) std::fill(in.out.values.begin(), in.out.values.end(), Real(NAN));
    attend_batch(views(), shared, positions());
    std::vector<std::vector<Real>> outs;
    for (const AttentionInputs<Real>& in : inputs) outs.push_back(in.out.values);
    return outs;
  }

  void expect_as_alone() {
    attend();
    for (std::size_t s = 0; s < cases.size(); ++s) {
      const AttentionInputs<Real>& in = inputs[s];
      AttentionCase alone = cases[s];
      alone.base.path = Path::exact;
      Tensor<Real> out = in.out;
      std::fill(out.values.begin(), out.values.end(), Real(NAN));
      fastrope::attend(in.q.view(), in.k.view(), in.v.view(), out.view(), alone.options());
      EXPECT_EQ(in.out.values, out.values) << "sequence " << s << ": " << cases[s];
      EXPECT_LE(max_abs_difference(in.out.view(), in.reference(cases[s]).out.view()), kBatchTolerance<Real>)
          << "sequence " << s << ": " << cases[s];
    }
  }
};

AttentionCase shared_case() {
  AttentionCase c{.shapes = {4, 2, 0, 0, 12, 9}};
  c.base.mask = Mask::causal();
  c.base.rope = Rope{};
  return c;
}

/// What real caches bring: rings whose oldest slot was overwritten last, and queries that stand apart.
template <class Real>
void set_ring_positions(Batch<Real>& batch, Inputs& random) {
  for (std::size_t s = 0; s < batch.cases.size(); s += 2) {
    AttentionCase& c = batch.cases[s];
    const Index n_q = c.shapes.n_q, n_k = c.shapes.n_k;
    const Position last = 5000 + 100 * static_cast<Position>(s);
    c.key_positions.resize(static_cast<std::size_t>(n_k));
    for (Position p = last - n_k; p < last; ++p) c.key_positions[static_cast<std::size_t>(p % n_k)] = p;
    c.query_positions = shuffled_positions(random, n_q, last - n_q / 2);
    c.text += ", ring";
  }
}

/// Tasks one by one in a random order, each by a random worker.
Executor scrambled(Index workers, std::uint64_t seed) {
  return {workers, [workers, seed](Index tasks, TaskRef task) {
            Inputs random(seed + static_cast<std::uint64_t>(tasks));
            for (const Position i : shuffled_positions(random, tasks, 0))
              task(i, random.integer(0, workers - 1));
          }};
}

template <class Real>
class BatchTest : public testing::Test {};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(BatchTest, Reals);

TYPED_TEST(BatchTest, EverySequenceIsAsAlone) {
  Inputs random(1);
  std::vector<AttentionCase> cases(7, shared_case());
  cases[1].base.mask = Mask::sliding_window(50);
  set_sinks(cases[1], random);
  cases[2].base.mask = Mask::lags(-5, 40);
  set_alibi(cases[2], random);
  set_t5(cases[3], random, true);
  cases[3].base.rope.reset();
  cases[4].base.softcap = 2;
  cases[4].base.rope->pairing = RopePairing::half_split;
  cases[4].base.rope->rotary_dim = 8;
  cases[4].base.scale = 0.4;
  set_sinks(cases[5], random);
  set_t5(cases[5], random, false);
  cases[5].base.softcap = 3;
  cases[5].shapes.kv_heads = 4;
  cases[6].base.rope.reset();
  cases[6].base.weights = random_weights(random, 12, 4, 1500);
  for (const AttentionCase& c : cases) Batch<TypeParam>(c, kMixed).expect_as_alone();
}

TYPED_TEST(BatchTest, EverySequenceIsAsAloneInRingCaches) {
  Inputs random(2);
  for (const bool modified : {false, true}) {
    AttentionCase c = shared_case();
    c.base.mask = Mask::sliding_window(130);
    if (modified) {
      set_alibi(c, random);
      set_sinks(c, random);
    }
    Batch<TypeParam> batch(c, kMixed);
    set_ring_positions(batch, random);
    batch.expect_as_alone();
  }
}

TYPED_TEST(BatchTest, TokensThatBeginElsewhereDoNotTurnByTheTableOfTheOthers) {
  Batch<TypeParam> batch(shared_case(), {{3, 200}, {3, 200}, {70, 90}});
  AttentionCase& c = batch.cases[1];
  for (Position p = 7; p < 207; ++p) c.key_positions.push_back(p);
  c.query_positions = {204, 205, 206};
  batch.expect_as_alone();
}

TYPED_TEST(BatchTest, ThreadsAndTheOrderOfTasksDoNotChangeABit) {
  Inputs random(3);
  AttentionCase c = shared_case();
  set_t5(c, random, false);
  Batch<TypeParam> batch(c, kMixed);
  set_ring_positions(batch, random);
  const auto expected = batch.attend();
  for (const Index n : {1, 2, 3}) {
    EXPECT_EQ(batch.attend(threads(n)), expected) << n << " threads";
    EXPECT_EQ(batch.attend(scrambled(n, 4)), expected) << n << " workers, tasks in random order";
#ifdef _OPENMP
    EXPECT_EQ(batch.attend(Executor::openmp(n)), expected) << n << " OpenMP threads";
#endif
  }
}

TYPED_TEST(BatchTest, TheOrderOfSequencesDoesNotChangeABit) {
  auto lengths = kMixed;
  Batch<TypeParam> batch(shared_case(), lengths);
  auto expected = batch.attend();
  std::reverse(batch.cases.begin(), batch.cases.end());
  std::reverse(batch.inputs.begin(), batch.inputs.end());
  std::reverse(expected.begin(), expected.end());
  EXPECT_EQ(batch.attend(), expected);
}

TYPED_TEST(BatchTest, LogSumsAreThoseOfASequenceAlone) {
  Inputs random(7);
  AttentionCase c = shared_case();
  set_alibi(c, random);
  set_sinks(c, random);
  Batch<TypeParam> batch(c, kMixed);
  set_ring_positions(batch, random);
  const auto expected = batch.attend();
  auto views = batch.views();
  std::vector<std::vector<TypeParam>> sums;
  for (auto& view : views) {
    const Index n_q = view.q.rows;
    sums.emplace_back(static_cast<std::size_t>(4 * n_q), TypeParam(NAN));
    if (view.k.rows != 300) view.lse = {sums.back().data(), 4, n_q, n_q};  // one goes without
  }
  attend_batch(views, batch.options(), batch.positions());
  for (std::size_t s = 0; s < views.size(); ++s) {
    const AttentionInputs<TypeParam>& in = batch.inputs[s];
    EXPECT_EQ(in.out.values, expected[s]) << "sequence " << s;
    if (views[s].lse.data == nullptr) continue;
    std::vector<TypeParam> alone(sums[s].size());
    Tensor<TypeParam> out = in.out;
    attend_partial(in.q.view(), in.k.view(), in.v.view(), out.view(),
                   MatrixView<TypeParam>{alone.data(), 4, views[s].q.rows}, batch.cases[s].options());
    EXPECT_EQ(sums[s], alone) << "sequence " << s;
  }
}

TEST(BatchPlan, WaitsForItsThreadsAsOftenAsOneCallDoes) {
  for (const Index sequences : {1, 64}) {
    int rounds = 0;
    AttentionCase c = shared_case();
    Batch<float> batch(c, std::vector<std::pair<Index, Index>>(static_cast<std::size_t>(sequences), {1, 40}));
    batch.attend(Executor(2, [&](Index tasks, TaskRef task) {
      ++rounds;
      EXPECT_GE(tasks, sequences);
      for (Index i = 0; i < tasks; ++i) task(i, 0);
    }));
    EXPECT_EQ(rounds, 3) << sequences << " sequences";  // load, attend, finish
  }
}

TEST(BatchPlan, BeginsWithTheLongestTasks) {
  int rounds = 0;
  Batch<float> batch(shared_case(), {{1, 900}, {20, 300}, {60, 450}, {100, 100}});
  const auto look = [&] {
    for (std::size_t s = 0; s < batch.inputs.size(); ++s) {
      const std::vector<float>& out = batch.inputs[s].out.values;
      const bool written =
          std::any_of(out.begin(), out.end(), [](float x) { return std::isfinite(x) && x != 0; });
      EXPECT_EQ(written, s == 2) << "sequence " << s;
    }
  };
  batch.attend(Executor(2, [&](Index tasks, TaskRef task) {
    const bool attends = ++rounds == 2;  // after loading
    for (Index i = 0; i < tasks; ++i) {
      task(i, 0);
      if (attends && i == 0) look();
    }
  }));
  EXPECT_GE(rounds, 2);
}

TEST(BatchPlan, OneWorkerPacksOneKeyHeadAfterTheOther) {
  const auto bytes = [](Index kv_heads, Index workers) {
    Options options;
    options.executor = scrambled(workers, 0);
    const std::vector<Shapes> prompt{{8, kv_heads, 500, 4000, 64, 64}};
    return BatchPlan(prompt, options).workspace_bytes(prompt);
  };
  constexpr std::size_t kPacked = 4000 * (64 + 64) * sizeof(float);  // of a key head
  EXPECT_LT(bytes(8, 1), bytes(1, 1) + kPacked / 8);
  EXPECT_GT(bytes(8, 2), bytes(1, 2) + 7 * kPacked);
}

TEST(BatchPlan, OneScratchForAWorkerWhateverTheNumberOfSequences) {
  const auto bytes = [](Index sequences, Index workers) {
    Options options = shared_case().options();
    options.executor = scrambled(workers, 0);
    std::vector<Shapes> shapes;
    for (Index s = 0; s < sequences; ++s) {
      shapes.push_back({4, 2, 1, 64, 12, 9});
      shapes.push_back({4, 2, 70, 64, 12, 9});
    }
    return BatchPlan(shapes, options).workspace_bytes();
  };
  EXPECT_GT(bytes(1, 64), bytes(1, 1));
  EXPECT_EQ(bytes(9, 64) - bytes(9, 1), bytes(1, 64) - bytes(1, 1));
}

TEST(BatchPlan, RunsAgainWithTheSameBitsInMemoryOfAnyContent) {
  Batch<float> batch(shared_case(), kMixed);
  const auto expected = batch.attend();
  const BatchPlan plan(batch.shapes(), batch.options());
  const auto copy = plan;
  for (const std::byte content : {std::byte{0x00}, std::byte{0xff}}) {
    std::vector<std::byte> workspace(plan.workspace_bytes() + 64, content);
    const auto memory = std::span(workspace).subspan(3, plan.workspace_bytes());
    ASSERT_EQ(copy.run(batch.views(), memory), RunStatus::ok);
    for (std::size_t s = 0; s < expected.size(); ++s) EXPECT_EQ(batch.inputs[s].out.values, expected[s]);
    for (const auto outside : {std::span(workspace).first(3), std::span(workspace).last(61)})
      for (const std::byte b : outside) EXPECT_EQ(b, content);
  }
}

TEST(BatchPlan, RunRefusesWhatItWasNotMadeFor) {
  Batch<float> batch(shared_case(), {{4, 20}, {1, 30}, {50, 50}});
  const BatchPlan plan(batch.shapes(), batch.options());
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const auto expect = [&](RunStatus expected, const std::vector<SequenceViews<float>>& views,
                          std::span<std::byte> memory) {
    EXPECT_EQ(plan.run(views, memory), expected);
    for (const auto& in : batch.inputs)
      for (float x : in.out.values) ASSERT_TRUE(std::isnan(x));
  };
  auto views = batch.views();
  expect(RunStatus::workspace_too_small, views,
         std::span(workspace).first(plan.workspace_bytes(batch.shapes()) / 2));
  expect(RunStatus::workspace_too_small, views, std::span(workspace).first(9));
  views.push_back(views.back());
  expect(RunStatus::shape_mismatch, views, workspace);
  views = batch.views();
  std::swap(views[0], views[1]);
  expect(RunStatus::shape_mismatch, views, workspace);
  views = batch.views();
  --views[2].k.rows;
  expect(RunStatus::shape_mismatch, views, workspace);
  views = batch.views();
  views[1].out.data = nullptr;
  expect(RunStatus::shape_mismatch, views, workspace);
  views = batch.views();
  std::vector<float> sums(4 * 50);
  views[2].lse = {sums.data(), 4, 49, 50};
  expect(RunStatus::shape_mismatch, views, workspace);
  views[2].lse = {sums.data(), 4, 50, 49};
  expect(RunStatus::shape_mismatch, views, workspace);
  EXPECT_EQ(plan.run(batch.views(), workspace), RunStatus::ok);
}

/// A step with the first sequences of a plan for the most that they may have: what each gets alone, in just
/// the memory that was asked for.
template <class Real>
void expect_as_alone(const BatchPlan<Real>& plan, Batch<Real>& step) {
  const AttentionCase& c = step.cases.front();
  const auto shapes = step.shapes();
  const std::size_t bytes = plan.workspace_bytes(shapes);
  EXPECT_LE(bytes, plan.workspace_bytes());
  std::vector<std::byte> workspace(bytes + 64, std::byte{0xff});
  auto views = step.views();
  std::vector<std::vector<Real>> sums;
  for (auto& view : views) {
    sums.emplace_back(static_cast<std::size_t>(c.shapes.heads * view.q.rows), Real(NAN));
    view.lse = {sums.back().data(), c.shapes.heads, view.q.rows};
  }
  ASSERT_EQ(plan.run(views, std::span(workspace).first(bytes)), RunStatus::ok);
  for (const std::byte b : std::span(workspace).last(64)) EXPECT_EQ(b, std::byte{0xff});
  for (std::size_t s = 0; s < views.size(); ++s) {
    const AttentionInputs<Real>& in = step.inputs[s];
    Tensor<Real> out = in.out;
    std::vector<Real> alone(sums[s].size());
    attend_partial(in.q.view(), in.k.view(), in.v.view(), out.view(),
                   MatrixView<Real>{alone.data(), c.shapes.heads, views[s].q.rows}, step.cases[s].options());
    EXPECT_EQ(in.out.values, out.values) << "sequence " << s << ": " << step.cases[s];
    EXPECT_EQ(sums[s], alone) << "sequence " << s << ": " << step.cases[s];
  }
}

template <class Real>
void expect_step_as_alone(const BatchPlan<Real>& plan, const AttentionCase& c,
                          const std::vector<std::pair<Index, Index>>& lengths) {
  Batch<Real> step(c, lengths);
  expect_as_alone(plan, step);
}

TYPED_TEST(BatchTest, APlanOfTheMostTakesEveryStep) {
  Inputs random(8);
  std::vector<AttentionCase> cases(4, shared_case());
  cases[1].base.mask = Mask::sliding_window(90);
  set_alibi(cases[1], random);
  cases[2].base.rope.reset();
  cases[2].base.weights = random_weights(random, 12, 4, 1500);
  cases[3].shapes.kv_heads = 1;
  set_sinks(cases[3], random);
  for (const AttentionCase& c : cases) {
    Options options = c.options();
    options.executor = threads(2);
    const Shapes prompt{4, c.shapes.kv_heads, 60, 700, 12, 9}, token{4, c.shapes.kv_heads, 1, 1300, 12, 9};
    const BatchPlan<TypeParam> plan(std::vector{prompt, token, prompt, prompt, token}, options);
    for (std::size_t s = 0; s < plan.size(); ++s) EXPECT_TRUE(plan.has_capacity(s));
    expect_step_as_alone(plan, c, {{60, 700}, {1, 1300}, {60, 700}, {60, 700}, {1, 1300}});
    expect_step_as_alone(plan, c, {{60, 60}, {1, 1}, {0, 700}, {1, 63}, {1, 1299}});
    expect_step_as_alone(plan, c, {{0, 0}, {0, 900}, {2, 512}, {59, 470}});
    expect_step_as_alone(plan, c, {{0, 0}, {0, 900}});
    for (int i = 0; i < 10; ++i) {
      std::vector<std::pair<Index, Index>> lengths;
      for (const Shapes& most : {prompt, token, prompt})
        lengths.push_back({random.integer(0, most.n_q), random.integer(0, most.n_k)});
      expect_step_as_alone(plan, c, lengths);
    }
  }
}

/// Rings, queries apart from the keys and documents, rewritten before each step, in just the memory that was
/// asked for.
TYPED_TEST(BatchTest, PositionsAndRangesAreReadInEveryStep) {
  Inputs random(12);
  for (const Mask mask : {Mask::causal(), Mask::sliding_window(50)})
    for (const Index kv_heads : {2, 1}) {
      AttentionCase c = shared_case();
      c.base.mask = mask;
      c.shapes.kv_heads = kv_heads;
      set_alibi(c, random);
      Options options = c.options();
      options.executor = threads(2);
      std::vector<Position> ring(700), queries(60, 0);
      std::vector<Range> documents(60, {0, 700});
      const std::vector<Shapes> most(3, {4, kv_heads, 60, 700, 12, 9});
      const BatchPlan<TypeParam> plan(
          most, options,
          std::vector<SequenceOptions>{
              {.queries = queries, .keys = ring}, {.key_ranges = {documents, 1}}, {}});
      for (int i = 0; i < 20; ++i) {
        std::vector<std::pair<Index, Index>> lengths;
        for (int s = 0; s < 3; ++s) lengths.push_back({random.integer(0, 60), random.integer(1, 700)});
        if (i % 3 == 0) lengths[0].first = lengths[1].first = 1;
        Batch<TypeParam> step(c, lengths);
        const auto [n_q, n_k] = lengths[0];
        const Position last = n_k + random.integer(0, 2000);
        for (Position p = last - n_k; p < last; ++p) ring[static_cast<std::size_t>(p % n_k)] = p;
        for (Index q = 0; q < n_q; ++q) queries[static_cast<std::size_t>(q)] = last - random.integer(0, 90);
        step.cases[0].key_positions.assign(ring.begin(), ring.begin() + n_k);
        step.cases[0].query_positions.assign(queries.begin(), queries.begin() + n_q);
        for (Index q = 0; q < lengths[1].first; ++q) {
          const Index begin = random.integer(0, lengths[1].second);
          documents[static_cast<std::size_t>(q)] = {begin, random.integer(begin, lengths[1].second)};
        }
        step.cases[1].ranges.ranges.assign(documents.begin(), documents.begin() + lengths[1].first);
        expect_as_alone(plan, step);
      }
    }
}

TEST(BatchPlan, StepsWhosePlacesAreNotAsTheyMustBeAreRefused) {
  Batch<float> batch(shared_case(), {{4, 20}, {2, 30}});
  std::vector<Range> ranges(2, {0, 30});
  const BatchPlan<float> plan(batch.shapes(), batch.options(),
                              std::vector<SequenceOptions>{{}, {.key_ranges = {ranges, 1}}});
  std::vector<std::byte> workspace(plan.workspace_bytes());
  ranges[1].end = 31;
  EXPECT_EQ(plan.run(batch.views(), workspace), RunStatus::places_refused);
  for (const auto& in : batch.inputs)
    for (const float x : in.out.values) ASSERT_TRUE(std::isnan(x));
  ranges[1].end = 29;
  EXPECT_EQ(plan.run(batch.views(), workspace), RunStatus::ok);
}

TEST(BatchPlan, ItsWorkspaceIsThatOfTheLargestStep) {
  Inputs random(9);
  for (int i = 0; i < 30; ++i) {
    Options options;
    options.mask = random.integer(0, 2) == 0 ? Mask::causal() : Mask::sliding_window(random.integer(1, 3000));
    if (random.integer(0, 1) == 0) options.rope = Rope{};
    options.executor = threads(random.integer(1, 9));
    const Index kv_heads = random.integer(1, 2), group = random.integer(0, 2) == 0 ? 40 : 2;
    std::vector<Shapes> shapes(3, {kv_heads * group, kv_heads, 1, 1, 16, 16});
    for (Shapes& s : shapes) {
      s.n_q = random.integer(1, 300);
      s.n_k = random.integer(1, 6000);
    }
    shapes.push_back(shapes.back());
    const BatchPlan plan(shapes, options);
    EXPECT_LE(plan.workspace_bytes(shapes), plan.workspace_bytes());
    for (int j = 0; j < 40; ++j) {
      std::vector<Shapes> step = shapes;
      for (Shapes& s : step) {
        s.n_q = random.integer(0, s.n_q);
        s.n_k = random.integer(0, s.n_k);
      }
      EXPECT_LE(plan.workspace_bytes(step), plan.workspace_bytes());
    }
  }
}

TEST(BatchPlan, AStepNeedsWhatItsOwnSizesTake) {
  // Slots for prompts of a length that no memory could hold all at once.
  const std::vector<Shapes> slots(64, {32, 8, 2048, Index{1} << 31, 128, 128});
  Options options;
  options.mask = Mask::causal();
  const BatchPlan plan(slots, options);
  std::vector<Shapes> step(64, {32, 8, 0, 5000, 128, 128});
  const std::size_t idle = plan.workspace_bytes(step);
  step[9].n_q = 1;
  const std::size_t token = plan.workspace_bytes(step);
  EXPECT_LT(token, idle + (1 << 20));
  EXPECT_GT(token, idle);
  EXPECT_GT(plan.workspace_bytes(), std::size_t{1} << 40);
  EXPECT_EQ(plan.workspace_bytes(std::vector<Shapes>{}), 0u);
}

TEST(BatchPlan, SequencesWithDenseMasksTakeTheirSizesOnly) {
  Batch<float> batch(shared_case(), {{4, 20}, {4, 20}, {4, 20}, {4, 20}});
  const std::vector<Position> positions(20, 7);
  const std::vector<Range> ranges(4, {0, 19});
  std::array<bool, 20> seen;
  seen.fill(true);
  std::vector<SequenceOptions> own(4);
  own[1].keys = positions;
  own[2].key_ranges = {ranges, 1};
  own[3].dense_mask = {seen.data(), 4, 4, 20, 0, 0};
  Options options = batch.options();
  options.mask = Mask::full();
  options.rope.reset();
  const BatchPlan plan(batch.shapes(), options, own);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  for (std::size_t s = 0; s < 4; ++s) {
    auto views = batch.views();
    --views[s].k.rows;
    --views[s].v.rows;
    EXPECT_EQ(plan.has_capacity(s), s != 3);
    EXPECT_EQ(plan.run(views, workspace), plan.has_capacity(s) ? RunStatus::ok : RunStatus::shape_mismatch);
  }
}

TEST(BatchPlan, RunReportsAnExecutorThatThrows) {
  Batch<float> batch(shared_case(), kMixed);
  Options options = batch.options();
  options.executor = Executor(1, [](Index, TaskRef) { throw std::runtime_error("no threads left"); });
  const BatchPlan plan(batch.shapes(), options);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  EXPECT_EQ(plan.run(batch.views(), workspace), RunStatus::executor_failed);
  EXPECT_THROW(attend_batch(batch.views(), options), Error);
}

TEST(BatchPlan, SequencesWriteToPlacesOfTheirOwn) {
  Batch<float> batch(shared_case(), {{4, 20}, {0, 30}, {4, 50}, {0, 9}});
  auto views = batch.views();
  views[3].out.data = views[1].out.data = views[0].out.data;  // of no rows
  attend_batch(views, batch.options());
  views[2].out = views[0].out;
  EXPECT_EQ(error_of([&] { attend_batch(views, batch.options()); }), "sequences 0 and 2 have the same out");
  views[2].out.row_stride = 3;
  EXPECT_THAT(error_of([&] { attend_batch(views, batch.options()); }),
              AllOf(HasSubstr("sequence 2: out is"), HasSubstr("row_stride 3")));
  views = batch.views();
  std::vector<float> sums(16);
  for (auto& view : views) view.lse = {sums.data(), 4, view.q.rows};
  EXPECT_EQ(error_of([&] { attend_batch(views, batch.options()); }), "sequences 0 and 2 have the same lse");
  views[2].lse.rows = 3;
  EXPECT_EQ(error_of([&] { attend_batch(views, batch.options()); }),
            "sequence 2: lse is [3, 4], the result is [heads = 4, n_q = 4]");
}

TEST(BatchPlan, NothingToDoIsValid) {
  const std::vector<SequenceViews<float>> none;
  attend_batch(none, Options{});
  for (const Shapes& s : {Shapes{0, 0, 3, 5, 4, 4}, Shapes{2, 1, 3, 5, 4, 0}, Shapes{2, 1, 3, 5, 0, 4},
                          Shapes{2, 1, 0, 0, 4, 4}}) {
    AttentionCase c{.shapes = s};
    Batch<float>(c, {{s.n_q, s.n_k}, {s.n_q, s.n_k}}).expect_as_alone();
  }
}

TEST(BatchPlan, ErrorsNameTheSequenceAndTheValues) {
  const std::vector<Shapes> shapes = {{4, 2, 1, 20, 8, 5}, {4, 2, 30, 30, 8, 5}, {4, 2, 7, 50, 8, 5}};
  const auto plan_error = [](const std::vector<Shapes>& s, const Options& options,
                             const std::vector<SequencePositions>& positions = {}) {
    return error_of([&] { BatchPlan<float>(s, options, positions); });
  };
  EXPECT_EQ(plan_error(shapes, {}), "no Error");
  auto clash = shapes;
  clash[2].kv_heads = 4;
  EXPECT_THAT(plan_error(clash, {}),
              HasSubstr("sequence 2: heads 4, kv_heads 4, d 8, d_v 5; sequence 0 has"));
  clash = shapes;
  clash[1].n_q = -3;
  EXPECT_THAT(plan_error(clash, {}), HasSubstr("sequence 1: q has a negative size: [4, -3, 8]"));

  const std::vector<Position> some = {1, 2, 3};
  EXPECT_THAT(plan_error(shapes, {}, {{}, {}, {some, {}}}),
              HasSubstr("sequence 2: query_positions has 3 entries for 7 rows"));
  EXPECT_THAT(plan_error(shapes, {}, {{}, {{}, some}, {}}),
              HasSubstr("sequence 1: key_positions has 3 entries for 30 rows"));
  EXPECT_THAT(plan_error(shapes, {}, {{}, {}}), HasSubstr("options are given for 2 of 3 sequences"));

  Options table;
  table.bias = LagBias::table(std::vector<double>(60, 0.5), 1, -29);
  EXPECT_THAT(plan_error(shapes, table),
              HasSubstr("sequence 2: the bias table covers lags -29..30, the call"));

  Options options;
  options.path = Path::exact;
  options.tolerance = 1e-3;
  EXPECT_EQ(plan_error(shapes, options), "no Error");
  options.path = Path::polynomial;
  EXPECT_THAT(plan_error(shapes, options), HasSubstr("path polynomial does not serve batches"));
  options.path = Path::toeplitz;
  EXPECT_THAT(plan_error(shapes, options), HasSubstr("path toeplitz does not serve batches"));
  options = {};
  options.key_positions = some;
  EXPECT_THAT(plan_error(shapes, options), HasSubstr("give a batch's beside its shapes"));
  options = {};
  const float zero = 0;
  options.dense_bias = {&zero, 4, 1, 20, 0, 0};
  EXPECT_THAT(plan_error(shapes, options), HasSubstr("a batch cannot share them"));
  options = {};
  const bool yes = true;
  options.dense_mask = {&yes, 4, 1, 20, 0, 0};
  EXPECT_THAT(plan_error(shapes, options), HasSubstr("a batch cannot share them"));
  options = {};
  options.softcap = -1;
  EXPECT_THAT(plan_error(shapes, options), HasSubstr("got -1"));

  Batch<float> batch(shared_case(), {{4, 20}, {1, 30}, {50, 50}});
  const auto call_error = [&](const auto& views) {
    return error_of([&] { attend_batch(views, batch.options()); });
  };
  auto views = batch.views();
  EXPECT_EQ(call_error(views), "no Error");
  views[1].v.rows = 29;
  EXPECT_THAT(call_error(views), HasSubstr("sequence 1: v has n_k = 29 rows, k has n_k = 30"));
  views = batch.views();
  views[2].out.row_stride = 0;
  EXPECT_THAT(call_error(views),
              HasSubstr("sequence 2: out is [4, 50, 9] with head_stride 450 and row_stride 0"));
}

/// Tokens of all sequences one after the other, [tokens, heads, d], as engines keep them.
TEST(AttendBatch, TakesRowsOfConcatenatedTokens) {
  Inputs random(5);
  const std::vector<Index> offsets = {0, 70, 71, 71, 174, 175};
  const Index tokens = offsets.back(), cache = 25;
  const auto q = token_major(random.gaussian<float>(4, tokens, 12));
  const auto k = token_major(random.gaussian<float>(2, tokens + 5 * cache, 12));
  const auto v = token_major(random.gaussian<float>(2, tokens + 5 * cache, 9));
  auto out = token_major(random.gaussian<float>(4, tokens, 9));
  std::vector<SequenceViews<float>> batch;
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
    const Range queries{offsets[s], offsets[s + 1]};
    const Index first = offsets[s] + cache * static_cast<Index>(s);
    const Range keys{first, first + cache + queries.size()};  // those in the cache, then its own
    batch.push_back(
        {rows(q.view(), queries), rows(k.view(), keys), rows(v.view(), keys), rows(out.view(), queries)});
  }
  const Options options = shared_case().options();
  attend_batch(batch, options);
  for (const auto& s : batch) {
    const auto reference = reference_attention(s.q, s.k, s.v, options);
    EXPECT_LE(max_abs_difference(s.out, reference.out.view()), 4 * kBatchTolerance<float>) << s.q.rows;
  }
}

TEST(AttendBatch, WithAToleranceProductsAreNotOfBfloat16) {
  using Short = TensorView<const bfloat16>;
  Inputs random(10);
  const auto q = random.gaussian<bfloat16>(4, 70, 12), k = random.gaussian<bfloat16>(2, 90, 12),
             v = random.gaussian<bfloat16>(2, 90, 9);
  Tensor<float> wide(4, 70, 12), of_short(4, 70, 9), of_wide(4, 70, 9);
  for (Index h = 0; h < 4; ++h)
    for (Index i = 0; i < 70; ++i)
      for (Index c = 0; c < 12; ++c) wide(h, i, c) = static_cast<float>(q(h, i, c));
  Options options = shared_case().options();
  options.tolerance = 1e-4;
  attend_batch(std::vector<SequenceViews<bfloat16, Short, Short, float>>{{q.view(), k.view(), v.view(),
                                                                          of_short.view()}},
               options);
  attend_batch(std::vector<SequenceViews<float, Short>>{{wide.view(), k.view(), v.view(), of_wide.view()}},
               options);
  EXPECT_EQ(of_short.values, of_wide.values);
}

/// A pool of pages [pages, heads, page_rows, cols] that all sequences share.
template <class T>
struct Pool {
  static constexpr Index kPages = 60, kPageRows = 16;
  Index heads, cols;
  std::vector<T> memory;

  Pool(Inputs& random, Index heads_, Index cols_)
      : heads(heads_), cols(cols_), memory(random.gaussian<T>(kPages * heads, kPageRows, cols).values) {}

  PagedView<const T> view(std::span<const std::int32_t> pages, Index n) const {
    return {memory.data(),    heads, n, cols, kPageRows, pages, heads * kPageRows * cols,
            kPageRows * cols, cols};
  }
  /// The same rows without gaps.
  Tensor<T> gathered(std::span<const std::int32_t> pages, Index n) const {
    Tensor<T> x(heads, n, cols);
    const auto paged = view(pages, n);
    for (Index h = 0; h < heads; ++h)
      for (Index j = 0; j < n; ++j) std::copy_n(paged.head(h).row(j), cols, x.view().head(h).row(j));
    return x;
  }
};

template <class Q, class T>
struct Stored {
  using Query = Q;
  using Element = T;
};
template <class Types>
class PagedBatchTest : public testing::Test {};
using Storage = testing::Types<Stored<float, float>, Stored<float, bfloat16>, Stored<bfloat16, bfloat16>>;
TYPED_TEST_SUITE(PagedBatchTest, Storage);

TYPED_TEST(PagedBatchTest, SequencesShareAPool) {
  using Query = typename TypeParam::Query;
  using Element = typename TypeParam::Element;
  Inputs random(6);
  const Pool<Element> k(random, 2, 12), v(random, 2, 9);
  // Pages 0 and 1 are a prefix of all; the last page of each is not full.
  const std::vector<std::vector<std::int32_t>> tables = {
      {0, 1, 50, 7, 33}, {0, 1, 12}, {0, 1}, {0, 1, 59, 58, 3, 57, 4, 5, 6}, {0}};
  const std::vector<std::pair<Index, Index>> lengths = {{70, 79}, {1, 33}, {5, 32}, {20, 140}, {1, 1}};
  std::vector<Tensor<Query>> q, out;
  std::vector<SequenceViews<Query, PagedView<const Element>>> batch;
  for (const auto& [n_q, n_k] : lengths) {
    q.push_back(random.gaussian<Query>(4, n_q, 12));
    out.emplace_back(4, n_q, 9);
  }
  for (std::size_t s = 0; s < q.size(); ++s)
    batch.push_back({q[s].view(), k.view(tables[s], lengths[s].second), v.view(tables[s], lengths[s].second),
                     out[s].view()});
  Options options = shared_case().options();
  options.executor = threads(2);
  attend_batch(batch, options);
  for (std::size_t s = 0; s < q.size(); ++s) {
    Tensor<Query> alone(4, lengths[s].first, 9);
    const auto keys = k.gathered(tables[s], lengths[s].second),
               values = v.gathered(tables[s], lengths[s].second);
    attend(q[s].view(), keys.view(), values.view(), alone.view(), options);
    EXPECT_EQ(out[s].values, alone.values) << "sequence " << s;
  }
  batch[3].v.pages = tables[1];
  EXPECT_THAT(error_of([&] { attend_batch(batch, options); }),
              HasSubstr("sequence 3: v names 3 pages of 16 rows, its 140 rows need 9"));
}

}  // namespace
}  // namespace fastrope_test
