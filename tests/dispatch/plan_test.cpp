// What the dispatcher chooses, what it says about it, and what it refuses.
#include "fastrope/dispatch/plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::HasSubstr;

template <class T, class KV>
auto plan_of(const AttentionCase& c, const AttentionInputs<T, KV>& in) {
  return make_plan(in.q.view(), in.k.view(), in.v.view(), c.options());
}

/// Long enough for a look at the data.
constexpr Index kLong = 3000;

/// n tokens, separable positions and entries up to `radius`: a head for the polynomial path where n is large.
AttentionCase small_entries(Index n, double tolerance) {
  AttentionCase c{.shapes = {2, 1, n, n, 4, 4}};
  c.base.rope = Rope{};
  c.base.tolerance = tolerance;
  c.base.scale = 1.0;
  return c;
}

template <class T = float>
AttentionInputs<T> on_spheres(const AttentionCase& c, double radius) {
  Inputs random(1);
  const Shapes& s = c.shapes;
  AttentionInputs<T> in(s, random);
  in.q = random.sphere<T>(s.heads, s.n_q, s.d, std::sqrt(radius));
  in.k = random.sphere<T>(s.kv_heads, s.n_k, s.d, std::sqrt(radius));
  return in;
}

TEST(Plan, BoundedHeadsWithSeparablePositionsTakeThePolynomialPath) {
  const AttentionCase c = small_entries(4096, 1e-2);
  const auto plan = plan_of(c, on_spheres(c, 0.5));
  for (const HeadReport& head : plan.report().heads) {
    EXPECT_EQ(head.path, Path::polynomial) << plan;
    EXPECT_GE(head.entry_bound, 0.49);
    EXPECT_LE(head.entry_bound, 0.52);
    EXPECT_EQ(head.rank, *simplex_rank(4, head.degree));
    EXPECT_LE(head.error_bound + head.rounding, 1e-2);
    EXPECT_EQ(head.candidates.size(), 3u);
  }
}

TEST(Plan, UnboundedHeadsTakeTheExactPath) {
  const AttentionCase c = small_entries(kLong, 1e-3);
  const auto plan = plan_of(c, on_spheres(c, 200));
  for (const HeadReport& head : plan.report().heads) {
    EXPECT_EQ(head.path, Path::exact);
    EXPECT_EQ(head.error_bound, 0);
    EXPECT_EQ(head.degree, 0);
    EXPECT_GT(head.entry_bound, 190);
    EXPECT_THAT(head.reason, HasSubstr("polynomial: "));
    for (const Candidate& candidate : head.candidates)
      EXPECT_EQ(candidate.feasible, candidate.path == Path::exact) << plan;
  }
}

TEST(Plan, ShortSequencesTakeTheExactPathBecauseItIsFaster) {
  const AttentionCase tiny = small_entries(64, 1e-3);
  AttentionInputs<float> in = on_spheres(tiny, 0.5);
  // attend() does not look where looking costs more than the exact path; a plan always does.
  const Report not_looked = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), tiny.options());
  EXPECT_EQ(not_looked.heads[0].path, Path::exact);
  EXPECT_THAT(not_looked.heads[0].reason, HasSubstr("costs less"));
  EXPECT_TRUE(std::isnan(not_looked.heads[0].entry_bound));
  EXPECT_NEAR(plan_of(tiny, in).report().heads[0].entry_bound, 0.5, 0.01);
  AttentionCase wide = small_entries(2000, 1e-3);
  wide.shapes.d = 16;
  const auto looked = plan_of(wide, on_spheres(wide, 1.5));
  EXPECT_EQ(looked.report().heads[0].path, Path::exact);
  EXPECT_TRUE(looked.report().heads[0].candidates[1].feasible) << looked;
  EXPECT_THAT(looked.report().heads[0].reason, HasSubstr("times slower"));
}

TEST(Plan, EachHeadIsPlannedOnItsOwn) {
  AttentionCase c{.shapes = {4, 4, 4096, 4096, 4, 4}};
  c.base.tolerance = 1e-2;
  c.base.scale = 1.0;
  AttentionInputs<float> in = on_spheres(c, 0.3);
  for (Index i = 0; i < 4096; ++i)
    for (Index m = 0; m < 4; ++m) in.q(1, i, m) *= 500;  // entries up to 150
  in.k(2, 4000, 1) = std::numeric_limits<float>::quiet_NaN();
  const auto plan = plan_of(c, in);
  const auto& heads = plan.report().heads;
  EXPECT_EQ(heads[0].path, Path::polynomial);
  EXPECT_EQ(heads[1].path, Path::exact);
  EXPECT_EQ(heads[2].path, Path::exact);
  EXPECT_EQ(heads[3].path, Path::polynomial);
  EXPECT_THAT(heads[2].reason, HasSubstr("k is not finite"));
  EXPECT_EQ(heads[2].entry_bound, std::numeric_limits<double>::infinity());

  std::vector<std::byte> workspace(plan.workspace_bytes());
  ASSERT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok);
  for (Index h = 0; h < 4; ++h)
    for (Index i = 0; i < 4096; i += 17) EXPECT_EQ(std::isnan(in.out(h, i, 0)), h == 2);
}

TEST(Plan, InputsThatAreNotFiniteTakeTheExactPathWithTheReason) {
  const AttentionCase c = small_entries(kLong, 1e-2);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const char which : {'q', 'k', 'v'}) {
      AttentionInputs<float> in = on_spheres(c, 0.1);
      (which == 'q' ? in.q : which == 'k' ? in.k : in.v)(0, 200, 1) = bad;
      const auto plan = plan_of(c, in);
      EXPECT_EQ(plan.report().heads[0].path, Path::exact);
      EXPECT_THAT(plan.report().heads[0].reason, HasSubstr(std::string(1, which) + " is not finite"));
      AttentionCase forced = c;
      forced.base.path = Path::polynomial;
      EXPECT_THROW(plan_of(forced, in), Error);
    }
  }
}

TEST(Plan, ThePathsThatCannotBeTakenSayWhy) {
  Inputs random(2);
  const auto expect = [&](auto&& set, const char* polynomial, const char* toeplitz) {
    AttentionCase c = small_entries(kLong, 1e-2);
    set(c);
    const auto plan = plan_of(c, on_spheres(c, 0.3));
    for (const HeadReport& head : plan.report().heads) {
      EXPECT_EQ(head.candidates.size(), 3u) << plan;
      for (const Candidate& candidate : head.candidates) {
        const char* text = candidate.path == Path::polynomial ? polynomial
                           : candidate.path == Path::toeplitz ? toeplitz
                                                              : "";
        EXPECT_THAT(candidate.reason, HasSubstr(text));
        EXPECT_FALSE(candidate.reason.empty());
      }
    }
  };
  expect([&](AttentionCase& c) { c.base.softcap = 5; }, "softcap", "softcap");
  expect([&](AttentionCase& c) { set_sinks(c, random); }, "sinks", "sinks");
  expect([&](AttentionCase& c) { set_dense(c, random, true, true, 5); }, "dense bias", "dense bias");
  expect([&](AttentionCase& c) { set_alibi(c, random); }, "lag bias", "");
  expect([&](AttentionCase& c) { c.base.mask = Mask::sliding_window(2500); }, "window", "");
  expect(
      [&](AttentionCase& c) {
        c.key_positions = shuffled_positions(random, kLong, 0);
        c.key_positions[7] = -9;
      },
      "", "not consecutive");
}

TEST(Plan, PrintsEveryCandidateWithItsReason) {
  const AttentionCase c = small_entries(kLong, 1e-2);
  const auto plan = plan_of(c, on_spheres(c, 0.3));
  std::ostringstream text;
  text << plan;
  EXPECT_THAT(text.str(), HasSubstr("2 heads (1 of keys), n_q 3000, n_k 3000, d 4, d_v 4"));
  EXPECT_THAT(text.str(), HasSubstr("tolerance 0.01"));
  EXPECT_THAT(text.str(), HasSubstr(std::to_string(plan.workspace_bytes()) + " bytes"));
  for (const HeadReport& head : plan.report().heads) {
    EXPECT_EQ(head.candidates.size(), 3u);
    for (const Candidate& candidate : head.candidates) {
      EXPECT_FALSE(candidate.reason.empty());
      std::ostringstream line;
      line.precision(3);
      line << candidate;
      EXPECT_THAT(text.str(), HasSubstr(line.str()));
      EXPECT_THAT(line.str(), HasSubstr(candidate.reason));
      EXPECT_THAT(line.str(), HasSubstr(to_string(candidate.path)));
    }
  }
}

TEST(Plan, PrintingLeavesTheStreamAsItWas) {
  std::ostringstream text;
  text << std::scientific << std::setprecision(9);
  const auto flags = text.flags();
  text << make_plan(Shapes{1, 1, 5, 5, 4, 4}, {});
  EXPECT_EQ(text.flags(), flags);
  EXPECT_EQ(text.precision(), 9);
}

TEST(Plan, ForcedPathsAreTakenOrRefused) {
  AttentionCase c = small_entries(128, 1e-2);
  const auto in = on_spheres(c, 0.3);
  for (const Path path : {Path::exact, Path::polynomial, Path::toeplitz}) {
    c.base.path = path;
    const auto plan = plan_of(c, in);
    for (const HeadReport& head : plan.report().heads) {
      EXPECT_EQ(head.path, path);
      EXPECT_EQ(head.reason, "forced");
    }
  }
}

TEST(Plan, ToleranceZeroNeedsNoData) {
  AttentionCase c{.shapes = {4, 2, 40, 70, 8, 5}};
  c.base.mask = Mask::causal();
  c.base.rope = Rope{};
  const auto by_shapes = make_plan(c.shapes, c.options());
  const AttentionInputs<float> in(c.shapes, 3);
  const auto by_data = plan_of(c, in);
  EXPECT_EQ(by_shapes.workspace_bytes(), by_data.workspace_bytes());
  EXPECT_EQ(by_shapes.shapes(), c.shapes);
  std::vector<std::byte> workspace(by_shapes.workspace_bytes());
  // One plan, any data of its shapes, any number of times.
  for (std::uint64_t seed : {4, 5, 4}) {
    AttentionInputs<float> data(c.shapes, seed);
    ASSERT_EQ(by_shapes.run(data.q.view(), data.k.view(), data.v.view(), data.out.view(), workspace),
              RunStatus::ok);
    EXPECT_LE(max_abs_difference(data.out.view(), data.reference(c).out.view()), 4e-6);
  }
  for (const HeadReport& head : by_shapes.report().heads) {
    EXPECT_TRUE(std::isnan(head.entry_bound));
    EXPECT_THAT(head.reason, HasSubstr("tolerance 0"));
  }
}

TEST(Plan, RunsAgainWithTheSameBits) {
  for (const Path path : {Path::exact, Path::polynomial, Path::toeplitz}) {
    AttentionCase c = small_entries(200, 1e-2);
    c.base.path = path;
    AttentionInputs<float> in = on_spheres(c, 0.3);
    const auto plan = plan_of(c, in);
    const auto copy = plan;
    // Memory of any alignment and content.
    std::vector<std::byte> workspace(plan.workspace_bytes() + 3, std::byte{0xff});
    const auto memory = std::span(workspace).subspan(3);
    ASSERT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), memory), RunStatus::ok);
    const Tensor<float> first = in.out;
    ASSERT_EQ(copy.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), memory), RunStatus::ok);
    EXPECT_EQ(in.out.values, first.values) << path;
  }
}

TEST(Plan, ADecodeLoopRunsInTheWorkspaceOfItsCapacity) {
  // A plan knows where its queries stand, so each step makes one: of the keys so far, or of the whole cache,
  // where the slots not yet used stand after the query and the causal mask hides what they hold.
  constexpr Index kCapacity = 1500;
  AttentionCase whole{.shapes = {4, 2, 1, kCapacity, 16, 8}};
  whole.base.rope = Rope{};
  whole.base.mask = Mask::causal();
  const AttentionInputs<float> tokens(whole.shapes, 9);
  std::vector<std::byte> workspace(make_plan(whole.shapes, whole.options()).workspace_bytes());
  for (const Index n : {1, 2, 63, 65, 1024, 1025, 1500}) {
    AttentionCase used = whole;
    used.shapes.n_k = n;
    used.query_positions.clear();
    whole.query_positions = {n - 1};
    AttentionInputs<float> in = tokens;
    for (const auto& cache : {in.k.view(), in.v.view()})
      for (Index h = 0; h < 2; ++h) std::fill(cache.head(h).row(n), cache.head(h).row(kCapacity), NAN);
    auto k = in.k.view(), v = in.v.view();
    k.rows = v.rows = n;
    const Reference reference = reference_attention(in.q.view(), k, v, used.options());

    const auto of_used = make_plan(used.shapes, used.options());
    EXPECT_LE(of_used.workspace_bytes(), workspace.size());
    ASSERT_EQ(of_used.run(in.q.view(), k, v, in.out.view(), workspace), RunStatus::ok);
    EXPECT_LE(max_abs_difference(in.out.view(), reference.out.view()), 4e-6) << n << " keys";

    const auto of_whole = make_plan(whole.shapes, whole.options());
    EXPECT_EQ(of_whole.workspace_bytes(), workspace.size());
    ASSERT_EQ(of_whole.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok);
    EXPECT_LE(max_abs_difference(in.out.view(), reference.out.view()), 4e-6) << n << " keys";
  }
}

TEST(Plan, RunRefusesWhatItWasNotMadeFor) {
  AttentionCase c{.shapes = {4, 2, 10, 20, 8, 5}};
  AttentionInputs<float> in(c.shapes, 6);
  const auto plan = plan_of(c, in);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const Tensor<float> untouched = in.out;
  const auto expect = [&](RunStatus expected, auto&& q, auto&& k, auto&& v, auto&& out,
                          std::span<std::byte> memory) {
    EXPECT_EQ(plan.run(q, k, v, out, memory), expected);
    for (float x : in.out.values) EXPECT_TRUE(std::isnan(x));
  };
  const AttentionInputs<float> other({4, 2, 11, 20, 8, 5}, 6), wide({4, 2, 10, 20, 8, 6}, 6),
      deep({4, 2, 10, 20, 9, 5}, 6), longer({4, 2, 10, 21, 8, 5}, 6), ungrouped({4, 4, 10, 20, 8, 5}, 6);
  expect(RunStatus::shape_mismatch, other.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace);
  expect(RunStatus::shape_mismatch, in.q.view(), in.k.view(), wide.v.view(), in.out.view(), workspace);
  expect(RunStatus::shape_mismatch, deep.q.view(), deep.k.view(), in.v.view(), in.out.view(), workspace);
  expect(RunStatus::shape_mismatch, in.q.view(), longer.k.view(), longer.v.view(), in.out.view(), workspace);
  expect(RunStatus::shape_mismatch, in.q.view(), longer.k.view(), in.v.view(), in.out.view(), workspace);
  expect(RunStatus::shape_mismatch, in.q.view(), ungrouped.k.view(), ungrouped.v.view(), in.out.view(),
         workspace);
  expect(RunStatus::shape_mismatch, TensorView<const float>{nullptr, 4, 10, 8, 80, 8}, in.k.view(),
         in.v.view(), in.out.view(), workspace);
  auto narrow = in.out.view();
  narrow.cols = 4;
  expect(RunStatus::shape_mismatch, in.q.view(), in.k.view(), in.v.view(), narrow, workspace);
  expect(RunStatus::workspace_too_small, in.q.view(), in.k.view(), in.v.view(), in.out.view(),
         std::span(workspace).first(workspace.size() - 1));
  expect(RunStatus::workspace_too_small, in.q.view(), in.k.view(), in.v.view(), in.out.view(), {});
  EXPECT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok);
}

TEST(Plan, RunReportsAnExecutorThatThrows) {
  AttentionCase c{.shapes = {4, 2, 10, 20, 8, 5}};
  c.base.executor = Executor(1, [](Index, TaskRef) { throw std::runtime_error("no threads left"); });
  AttentionInputs<float> in(c.shapes, 7);
  const auto plan = plan_of(c, in);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  EXPECT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace),
            RunStatus::executor_failed);
}

TEST(Plan, EmptyInputsAreValid) {
  for (const Shapes shapes : {Shapes{0, 0, 0, 0, 0, 0}, Shapes{0, 2, 5, 5, 4, 4}, Shapes{2, 1, 0, 5, 4, 4},
                              Shapes{2, 1, 5, 0, 4, 4}, Shapes{2, 1, 5, 5, 4, 0}, Shapes{2, 1, 0, 0, 4, 4}}) {
    for (const double tolerance : {0.0, 1e-2}) {
      AttentionCase c{.shapes = shapes};
      c.base.tolerance = tolerance;
      c.base.rope = Rope{};
      AttentionInputs<float> in(shapes, 8);
      const auto plan = plan_of(c, in);
      std::vector<std::byte> workspace(plan.workspace_bytes());
      EXPECT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok)
          << c;
      EXPECT_EQ(static_cast<Index>(plan.report().heads.size()), shapes.heads);
      if (shapes.n_k == 0) {
        EXPECT_EQ(max_abs(in.out.view()), 0) << c;
      }
      std::ostringstream text;
      text << plan;
      EXPECT_FALSE(text.str().empty());
    }
  }
}

TEST(Plan, NothingToAttendToIsNotAnApproximation) {
  AttentionCase c = small_entries(50, 1e-2);
  c.base.mask = Mask::lags(1, 0);
  AttentionInputs<float> in = on_spheres(c, 0.3);
  for (const Path path : {Path::automatic, Path::exact}) {
    c.base.path = path;
    const auto plan = plan_of(c, in);
    std::vector<std::byte> workspace(plan.workspace_bytes());
    ASSERT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok);
    EXPECT_EQ(max_abs(in.out.view()), 0);
  }
}

}  // namespace
}  // namespace fastrope_test
