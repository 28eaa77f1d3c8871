// Runs of Plan, BatchPlan, MixedBatchPlan and WeightsPlan allocate nothing: a program of its own, since it
// replaces operator new.
#include <gtest/gtest.h>

#include <vector>

#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"
#include "support/counted_new.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

template <class Real>
void expect_no_allocation(const AttentionCase& c) {
  AttentionInputs<Real> in(c.shapes, 1);
  const auto plan = make_plan(in.q.view(), in.k.view(), in.v.view(), c.options());
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const long before = allocations;
  const RunStatus status = plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace);
  EXPECT_EQ(allocations - before, 0) << c;
  EXPECT_EQ(status, RunStatus::ok);
  std::vector<Index> repaired(static_cast<std::size_t>(c.shapes.heads));
  std::vector<double> bounds(static_cast<std::size_t>(c.shapes.heads * c.shapes.n_q));
  const long before_details = allocations;
  EXPECT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace, {repaired, bounds}),
            RunStatus::ok);
  EXPECT_EQ(allocations - before_details, 0) << c << ", with details";
  for (const HeadReport& head : plan.report().heads) EXPECT_EQ(head.path, c.base.path) << c;
}

TEST(Allocation, IsCounted) {
  const long before = allocations;
  std::vector<int> one(1);
  EXPECT_EQ(allocations - before, 1) << one.size();
}

TEST(Allocation, RunHasNone) {
  Inputs random(2);
  for (const Path path : {Path::exact, Path::polynomial, Path::toeplitz}) {
    AttentionCase c{.shapes = {4, 2, 100, 150, 6, 5}};
    c.base.path = path;
    c.base.tolerance = 1e-2;
    c.base.scale = 0.02;
    c.base.mask = Mask::causal();
    c.base.rope = Rope{};
    expect_no_allocation<float>(c);
    expect_no_allocation<double>(c);
    if (path != Path::polynomial) {
      AttentionCase t5 = c;
      set_t5(t5, random, true);
      expect_no_allocation<float>(t5);
      AttentionCase weights = c;
      weights.base.rope.reset();
      weights.base.weights = random_weights(random, 6, 4, 150);
      expect_no_allocation<float>(weights);
    }
    if (path != Path::toeplitz) {
      c.key_positions = shuffled_positions(random, 150, 7);
      expect_no_allocation<float>(c);
    }
  }
}

TEST(Allocation, RunHasNoneWithAPolynomialKernel) {
  for (const Path path : {Path::exact, Path::polynomial}) {
    AttentionCase c{.shapes = {4, 2, 100, 150, 6, 5}};
    c.base.path = path;
    c.base.mask = Mask::causal();
    c.base.rope = Rope{};
    for (const Kernel& kernel : {Kernel::taylor(2), Kernel::power(4), Kernel::polynomial({1.0})}) {
      c.base.kernel = kernel;
      expect_no_allocation<float>(c);
      expect_no_allocation<double>(c);
    }
    c.base.mask = Mask::full();
    expect_no_allocation<float>(c);
    Inputs random(7);
    c.key_positions = shuffled_positions(random, 150, 7);
    c.base.mask = Mask::causal();
    expect_no_allocation<float>(c);
  }
}

TEST(Allocation, RunHasNoneWithEveryModifierAndNonFiniteValues) {
  Inputs random(3);
  AttentionCase c{.shapes = {4, 2, 100, 150, 6, 5}};
  c.base.path = Path::exact;
  c.base.softcap = 3;
  set_alibi(c, random);
  set_sinks(c, random);
  set_dense(c, random, true, true, 4);
  c.query_positions = shuffled_positions(random, 100, 40);
  expect_no_allocation<float>(c);
  AttentionInputs<float> in(c.shapes, 4);
  in.v(0, 3, 2) = NAN;
  const auto plan = make_plan(in.q.view(), in.k.view(), in.v.view(), c.options());
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const long before = allocations;
  EXPECT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok);
  EXPECT_EQ(allocations - before, 0);
}

/// A cache that grows by a token a step, with everything that a problem may own.
TEST(Allocation, TenThousandStepsOfAGrowingCacheHaveNone) {
  Inputs random(7);
  AttentionCase c{.shapes = {4, 2, 1, 10'000, 6, 5}};
  c.base.mask = Mask::sliding_window(100);
  c.base.rope = Rope{};
  set_t5(c, random, true);
  set_sinks(c, random);
  c.base.executor = Executor(1, [pool = std::vector<int>(3)](Index count, TaskRef task) {
    for (Index i = 0; i < count; ++i) task(i, static_cast<Index>(pool[0]));
  });
  AttentionInputs<float> in(c.shapes, 8);
  const auto plan = make_plan<float>(c.shapes, c.options());
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const auto rows = [](const Tensor<float>& x, Index n) {
    return TensorView<const float>{x.values.data(), x.heads, n, x.cols, x.head_stride, x.row_stride};
  };
  const long before = allocations;
  bool ok = true;
  for (Index n = 1; n <= 10'000; ++n)
    ok = ok && plan.run(in.q.view(), rows(in.k, n), rows(in.v, n), in.out.view(), workspace) == RunStatus::ok;
  EXPECT_EQ(allocations - before, 0);
  EXPECT_TRUE(ok);
}

/// Slots of a batch whose caches grow, begin anew and rest; now and then one takes a chunk.
TEST(Allocation, TenThousandStepsOfABatchOfGrowingCachesHaveNone) {
  Inputs random(9);
  AttentionCase c{.shapes = {4, 2, 20, 2'000, 6, 5}};
  c.base.mask = Mask::sliding_window(100);
  c.base.rope = Rope{};
  set_t5(c, random, true);
  set_sinks(c, random);
  AttentionInputs<float> in(c.shapes, 8);
  const BatchPlan<float> plan(std::vector<Shapes>(5, c.shapes), c.options());
  std::vector<std::byte> workspace(plan.workspace_bytes());
  Tensor<float> out(4, 5 * 20, 5);
  std::vector<float> sums(5 * 4 * 20);
  const auto rows = [](const Tensor<float>& x, Index n) {
    return TensorView<const float>{x.values.data(), x.heads, n, x.cols, x.head_stride, x.row_stride};
  };
  std::vector<SequenceViews<float>> views(5);
  std::vector<Shapes> step(5, c.shapes);
  const long before = allocations;
  bool ok = true;
  for (Index n = 1; n <= 10'000; ++n) {
    for (Index s = 0; s < 5; ++s) {
      const Index n_k = (n + 400 * s) % 2'000 + 1, n_q = n_k % 97 == s ? 20 : n_k % 13 == s ? 0 : 1;
      step[s].n_q = n_q;
      step[s].n_k = n_k;
      views[s] = {rows(in.q, n_q),
                  rows(in.k, n_k),
                  rows(in.v, n_k),
                  fastrope::rows(out.view(), {20 * s, 20 * s + n_q}),
                  {&sums[80 * s], 4, n_q, n_q}};
    }
    ok = ok && plan.workspace_bytes(step) <= workspace.size() && plan.run(views, workspace) == RunStatus::ok;
  }
  EXPECT_EQ(allocations - before, 0);
  EXPECT_TRUE(ok);
}

/// Slots of a batch that decode: a ring whose oldest slot is overwritten, image tokens that turn by three
/// positions, and a document in a cache of several.
TEST(Allocation, TenThousandStepsWithPositionsAndRangesHaveNone) {
  constexpr Index kRing = 400, kMost = 2'000, kSections = 3;
  AttentionCase c{.shapes = {4, 2, 1, kMost, 6, 5}};
  c.base.mask = Mask::causal();
  c.base.rope = Rope{.sections = {1, 1, 1}};
  AttentionInputs<float> in(c.shapes, 8);
  std::vector<Position> ring(kRing), query(1), key_sections(kSections * kMost), query_sections(kSections);
  std::vector<Range> document(1);
  Shapes of_ring = c.shapes;
  of_ring.n_k = kRing;
  const BatchPlan<float> plan(
      std::vector<Shapes>{of_ring, c.shapes, c.shapes}, c.options(),
      std::vector<SequenceOptions>{{.queries = query, .keys = ring},
                                   {.query_sections = {query_sections.data(), kSections, 1},
                                    .key_sections = {key_sections.data(), kSections, kMost}},
                                   {.key_ranges = {document, 1}}});
  for (std::size_t s = 0; s < 3; ++s) EXPECT_TRUE(plan.has_capacity(s));
  std::vector<std::byte> workspace(plan.workspace_bytes());
  Tensor<float> out(4, 3, 5);
  std::vector<SequenceViews<float>> views(3);
  const auto cut = [](const Tensor<float>& x, Index n) { return rows(x.view(), {0, n}); };
  const auto step = [&](Index n) {
    const Index token = n - 1, in_ring = std::min(n, kRing), n_k = token % kMost + 1;
    ring[static_cast<std::size_t>(token % kRing)] = query[0] = token;
    for (Index section = 0; section < kSections; ++section)
      query_sections[static_cast<std::size_t>(section)] =
          key_sections[static_cast<std::size_t>(section * kMost + n_k - 1)] = token / (section + 1);
    document[0] = {n_k / 300 * 300, n_k};
    const auto view = [&](Index s, Index keys) -> SequenceViews<float> {
      return {in.q.view(), cut(in.k, keys), cut(in.v, keys), rows(out.view(), {s, s + 1})};
    };
    views[0] = view(0, in_ring);
    views[1] = view(1, n_k);
    views[2] = view(2, n_k);
    return plan.run(views, workspace);
  };
  const auto expect_as_fresh = [&](Index n) {
    const Tensor<float> of_plan = out;
    std::vector<Shapes> shapes;
    for (const auto& view : views) shapes.push_back({4, 2, 1, view.k.rows, 6, 5});
    const Index n_k = shapes[1].n_k;
    attend_batch(
        views, c.options(),
        std::vector<SequenceOptions>{
            {.queries = query, .keys = std::span(ring).first(static_cast<std::size_t>(shapes[0].n_k))},
            {.query_sections = {query_sections.data(), kSections, 1},
             .key_sections = {key_sections.data(), kSections, n_k, kMost}},
            {.key_ranges = {document, 1}}});
    EXPECT_EQ(out.values, of_plan.values) << "step " << n;
  };
  long of_runs = 0;
  bool ok = true;
  for (Index n = 1; n <= 10'000; ++n) {
    const long before = allocations;
    ok = ok && step(n) == RunStatus::ok;
    of_runs += allocations - before;
    if (n % 499 == 1) expect_as_fresh(n);
  }
  EXPECT_EQ(of_runs, 0);
  EXPECT_TRUE(ok);
}

TEST(Allocation, RunOfABatchHasNone) {
  Inputs random(5);
  AttentionCase c{.shapes = {4, 2, 100, 150, 6, 5}};
  c.base.rope = Rope{};
  c.base.mask = Mask::causal();
  set_alibi(c, random);
  set_sinks(c, random);
  const std::vector<Shapes> shapes = {{4, 2, 100, 150, 6, 5}, {4, 2, 1, 3000, 6, 5}, {4, 2, 0, 7, 6, 5}};
  const std::vector<Position> ring = shuffled_positions(random, 3000, 8);
  const std::vector<Position> query = {3007};
  const BatchPlan plan(shapes, c.options(), std::vector<SequencePositions>{{}, {query, ring}, {}});
  std::vector<AttentionInputs<float>> inputs;
  for (const Shapes& s : shapes) inputs.emplace_back(s, 6);
  std::vector<SequenceViews<float>> views;
  for (auto& in : inputs) views.push_back({in.q.view(), in.k.view(), in.v.view(), in.out.view()});
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const long before = allocations;
  const RunStatus status = plan.run(views, workspace);
  EXPECT_EQ(allocations - before, 0);
  EXPECT_EQ(status, RunStatus::ok);
}

TEST(Allocation, RunOfABatchWithAToleranceHasNone) {
  Inputs random(11);
  AttentionCase c{.shapes = {4, 2, 0, 0, 6, 5}};
  c.base.rope = Rope{};
  c.base.mask = Mask::causal();
  c.base.tolerance = 1e-2;
  c.base.scale = 0.01;
  std::vector<AttentionInputs<float>> inputs;
  for (const Shapes& s :
       std::vector<Shapes>{{4, 2, 1500, 1500, 6, 5}, {4, 2, 1, 300, 6, 5}, {4, 2, 0, 7, 6, 5}})
    inputs.emplace_back(s, 12);
  std::vector<SequenceViews<float>> views;
  for (auto& in : inputs) views.push_back({in.q.view(), in.k.view(), in.v.view(), in.out.view()});
  const std::vector<Position> ring = shuffled_positions(random, 300, 8);
  const std::vector<Position> query = {307};
  const auto plan = make_batch_plan(views, c.options(), std::vector<SequenceOptions>{{}, {query, ring}, {}});
  EXPECT_EQ(plan.report(0).heads[0].path, Path::polynomial);
  EXPECT_EQ(plan.report(1).heads[0].path, Path::exact);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const long before = allocations;
  const RunStatus status = plan.run(views, workspace);
  EXPECT_EQ(allocations - before, 0);
  EXPECT_EQ(status, RunStatus::ok);
}

TEST(Allocation, RunOfWeightsHasNone) {
  Inputs random(9);
  for (const Index n_q : {1, 70}) {
    AttentionCase c{.shapes = {4, 2, n_q, 150, 6, 0}};
    c.base.rope = Rope{};
    c.base.mask = Mask::causal();
    set_alibi(c, random);
    set_sinks(c, random);
    const AttentionInputs<float> in(c.shapes, 10);
    const WeightsPlan plan(c.shapes, c.options());
    std::vector<std::byte> workspace(plan.workspace_bytes());
    const std::vector<float> lse(static_cast<std::size_t>(4 * n_q), 1);
    std::vector<double> mass(2 * 149);
    Tensor<float> weights(1, n_q, 149);
    const std::vector<Index> heads = {2};
    const auto k = rows(in.k.view(), {0, 149});  // fewer than the plan's
    const long before = allocations;
    const RunStatus of_mass =
        plan.key_mass(in.q.view(), k, {lse.data(), 4, n_q}, {mass.data(), 2, 149}, workspace);
    const RunStatus of_weights = plan.attention_weights(in.q.view(), k, heads, weights.view(), workspace);
    EXPECT_EQ(allocations - before, 0);
    EXPECT_EQ(of_mass, RunStatus::ok);
    EXPECT_EQ(of_weights, RunStatus::ok);
  }
}

}  // namespace
}  // namespace fastrope_test
