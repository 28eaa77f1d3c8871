// What the dispatcher chooses, what it says about it, and what it refuses.
#include "fastrope/attend/make_plan.hpp"

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
#include "support/error_of.hpp"
#include "support/executors.hpp"

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
    EXPECT_LE(static_cast<double>(head.rank), rank_of(simplex_limits(4, head.degree)));
    EXPECT_LE(head.error_bound, 1e-2);
    EXPECT_EQ(head.candidates.size(), 3u);
  }
}

TEST(Plan, UnboundedHeadsTakeTheExactPath) {
  const AttentionCase c = small_entries(kLong, 1e-3);
  const auto plan = plan_of(c, on_spheres(c, 200));
  for (const HeadReport& head : plan.report().heads) {
    EXPECT_EQ(head.path, Path::exact);
    EXPECT_GT(head.error_bound, 1e-5) << "logits of 200 are rounded";
    EXPECT_LT(head.error_bound, 1e-3);
    EXPECT_EQ(head.rounding, head.error_bound);
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
  // Nothing is looked at where looking costs more than the exact path.
  const Report attended = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), tiny.options());
  for (const Report& report : {attended, plan_of(tiny, in).report()}) {
    EXPECT_EQ(report.heads[0].path, Path::exact);
    EXPECT_THAT(report.heads[0].reason, HasSubstr("costs less"));
    EXPECT_TRUE(std::isnan(report.heads[0].entry_bound));
    EXPECT_TRUE(std::isinf(report.heads[0].error_bound));
  }
  // Lengths that are read for nothing bound the exact path's rounding, which may be more than the tolerance.
  CostModel reads;
  reads.element = 1e30;
  for (const double tolerance : {1e-3, 1e-9}) {
    AttentionCase c = tiny;
    c.base.tolerance = tolerance;
    const HeadReport head =
        make_plan(in.q.view(), in.k.view(), in.v.view(), c.options(), reads).report().heads[0];
    EXPECT_NEAR(head.entry_bound, 0.5, 0.01);
    EXPECT_LT(head.error_bound, 1e-3);
    EXPECT_THAT(head.reason, HasSubstr("costs less"));
    EXPECT_EQ(head.reason.find("can promise only") != std::string::npos, tolerance == 1e-9) << head.reason;
  }
  AttentionCase wide = small_entries(2000, 1e-3);
  wide.shapes.d = 16;
  const auto few = on_spheres(wide, 1.5);
  const HeadReport looked = plan_of(wide, few).report().heads[0];
  EXPECT_EQ(looked.path, Path::exact);
  EXPECT_FALSE(looked.candidates[1].feasible);
  EXPECT_THAT(looked.candidates[1].reason, testing::ContainsRegex("a rank of [0-9]+ .*is too much work"));
  EXPECT_THAT(looked.reason, HasSubstr(looked.candidates[1].reason));
  // What is forced is not asked what it costs.
  wide.base.path = Path::polynomial;
  const HeadReport forced = plan_of(wide, few).report().heads[0];
  EXPECT_EQ(forced.path, Path::polynomial);
  EXPECT_GT(forced.candidates[1].seconds, forced.candidates[0].seconds);
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
  expect([&](AttentionCase& c) { set_table(c, random, 1, kLong); }, "lag bias", "");
  expect([&](AttentionCase& c) { set_alibi(c, random); }, "", "features do without transforms");
  expect([&](AttentionCase& c) { c.base.mask = Mask::sliding_window(2500); }, "",
         "features do without transforms");
  expect(
      [&](AttentionCase& c) {
        c.key_positions = shuffled_positions(random, kLong, 0);
        c.key_positions[7] = -9;
      },
      "", "not consecutive");
}

/// What is printed of the candidates, head after head.
std::vector<std::string> candidate_lines(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);)
    for (const Path path : {Path::exact, Path::polynomial, Path::toeplitz})
      if (line.find(detail::message("    ", to_string(path), ' ')) == 0 ||
          line.find(detail::message("  > ", to_string(path), ' ')) == 0)
        lines.push_back(line);
  return lines;
}

TEST(Plan, PrintsEveryCandidateWithItsReason) {
  const AttentionCase c = small_entries(kLong, 1e-2);
  const auto plan = plan_of(c, on_spheres(c, 0.3));
  std::ostringstream text;
  text << plan;
  EXPECT_THAT(text.str(), HasSubstr("2 heads (1 of keys), n_q 3000, n_k 3000, d 4, d_v 4"));
  EXPECT_THAT(text.str(), HasSubstr("tolerance 0.01"));
  EXPECT_THAT(text.str(), HasSubstr(std::to_string(plan.workspace_bytes()) + " bytes"));
  const std::vector<std::string> lines = candidate_lines(text.str());
  ASSERT_EQ(lines.size(), 6u) << plan;
  auto line = lines.begin();
  for (const HeadReport& head : plan.report().heads) {
    EXPECT_EQ(head.candidates.size(), 3u);
    for (const Candidate& candidate : head.candidates) {
      EXPECT_FALSE(candidate.reason.empty());
      EXPECT_EQ(line->find(to_string(candidate.path)), 4u);
      EXPECT_EQ(line->find('>') == 2, candidate.path == head.path) << plan;
      EXPECT_THAT(*line, HasSubstr(candidate.reason));
      EXPECT_THAT(*line, HasSubstr(candidate.how));
      ++line;
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

TEST(Plan, IsTheSameWithEveryExecutorAndEveryTime) {
  Inputs random(6);
  for (const bool t5 : {false, true}) {
    AttentionCase c = small_entries(kLong, 1e-2);
    c.shapes.heads = 6;
    c.shapes.kv_heads = 3;
    c.base.mask = Mask::causal();
    if (t5) set_t5(c, random, false);
    AttentionInputs<float> in = on_spheres(c, 0.7);
    for (Index i = 0; i < kLong; ++i) in.k(1, i, 0) *= 30;  // a group of exact heads
    const auto alone = plan_of(c, in);
    for (const Index workers : {1, 2, 3, 7}) {
      c.base.executor = threads(workers);
      const auto plan = plan_of(c, in);
      Report report = plan.report();
      report.workspace_bytes = alone.workspace_bytes();  // scratch for each worker
      EXPECT_EQ(report.to_json(), alone.to_json()) << workers << " workers";
    }
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
  // Of the last step: its positions given, since then a plan keeps no table of them.
  AttentionCase last = whole;
  last.query_positions = {kCapacity - 1};
  std::vector<std::byte> workspace(make_plan(last.shapes, last.options()).workspace_bytes());
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
    EXPECT_LE(of_whole.workspace_bytes(), workspace.size());  // of the keys that the query reaches
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

TEST(Plan, RunReportsAnExecutorThatBreaksItsContract) {
  const auto status = [](auto&& number_of) {
    AttentionCase c{.shapes = {4, 2, 100, 300, 8, 5}};
    c.base.executor = Executor(2, [=](Index count, TaskRef task) {
      for (Index i = 0; i < count; ++i) {
        const auto [number, worker] = number_of(i, count);
        task(number, worker);
      }
    });
    AttentionInputs<float> in(c.shapes, 7);
    const auto plan = plan_of(c, in);
    std::vector<std::byte> workspace(plan.workspace_bytes());
    return plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace);
  };
  using Pair = std::pair<Index, Index>;
  EXPECT_EQ(status([](Index i, Index) { return Pair{i, i % 2}; }), RunStatus::ok);
  EXPECT_EQ(status([](Index i, Index) { return Pair{i, i % 3}; }), RunStatus::executor_failed);
  EXPECT_EQ(status([](Index i, Index) { return Pair{i, -1}; }), RunStatus::executor_failed);
  EXPECT_EQ(status([](Index i, Index count) {
              return Pair{i + (i == count - 1), 0};
            }),
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

TEST(Plan, PolynomialKernelsAreExactByEitherPathOnAnyData) {
  const auto expect = [](auto real, double rounding) {
    using Real = decltype(real);
    for (const Path path : {Path::automatic, Path::exact, Path::polynomial}) {
      for (const Index n : {20, 700}) {
        for (const double tolerance : {0.0, 1e-2}) {
          AttentionCase c{.shapes = {4, 2, n, n, 6, 5}};
          c.base.kernel = Kernel::taylor(2);
          c.base.mask = Mask::causal();
          c.base.rope = Rope{};
          c.base.path = path;
          c.base.tolerance = tolerance;
          const auto by_shapes = make_plan<Real>(c.shapes, c.options());
          AttentionInputs<Real> in(c.shapes, 10);
          const auto plan = plan_of(c, in);
          EXPECT_EQ(plan.workspace_bytes(), by_shapes.workspace_bytes());
          EXPECT_EQ(plan.report().heads.size(), 4u);
          for (std::size_t h = 0; h < 4; ++h) {
            const HeadReport& head = plan.report().heads[h];
            EXPECT_EQ(head.path, by_shapes.report().heads[h].path);
            EXPECT_EQ(head.reason, by_shapes.report().heads[h].reason);
            EXPECT_EQ(head.error_bound, INFINITY) << "nothing is promised before";
            EXPECT_EQ(head.rounding, INFINITY);
            EXPECT_THAT(head.reason, HasSubstr("rows get bounds when they are run"));
            EXPECT_TRUE(std::isnan(head.entry_bound)) << "nobody looked";
            if (path != Path::automatic) {
              EXPECT_EQ(head.path, path);
              EXPECT_THAT(head.reason, HasSubstr("forced"));
            } else if (n == 700) {
              EXPECT_EQ(head.path, Path::polynomial) << plan;
            }
            EXPECT_EQ(head.degree, head.path == Path::polynomial ? 2 : 0);
            EXPECT_EQ(head.rank, head.path == Path::polynomial ? 28 : 0);  // C(6 + 2, 2)
          }
          std::vector<std::byte> workspace(plan.workspace_bytes());
          ASSERT_EQ(by_shapes.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace),
                    RunStatus::ok);
          EXPECT_LE(max_abs_difference(in.out.view(), in.reference(c).out.view()), rounding) << plan;
          const Tensor<Real> first = in.out;
          ASSERT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok);
          EXPECT_EQ(in.out.values, first.values);
        }
      }
    }
  };
  expect(0.0f, 4e-6);
  expect(0.0, 1e-14);
}

TEST(Plan, PolynomialKernelsTakeWhateverIsCheaper) {
  // The candidates of each head say so: both are exact, so that only the time is left to choose by.
  bool taken[2] = {false, false};
  for (const Index n : {8, 30, 60, 100, 300, 1000}) {
    AttentionCase c{.shapes = {2, 1, n, n, 6, 5}};
    c.base.kernel = Kernel::taylor(4);
    const auto plan = make_plan(c.shapes, c.options());
    for (const HeadReport& head : plan.report().heads) {
      ASSERT_EQ(head.candidates.size(), 3u);
      const Candidate &exact = head.candidates[0], &features = head.candidates[1];
      EXPECT_TRUE(exact.feasible && features.feasible);
      EXPECT_EQ(features.error_bound, INFINITY);
      EXPECT_THAT(features.how, HasSubstr("exact for this kernel"));
      EXPECT_THAT(features.how, HasSubstr("shared by 2 heads"));
      EXPECT_FALSE(head.candidates[2].feasible);
      const bool cheaper = features.seconds < exact.seconds;
      EXPECT_EQ(head.path, cheaper ? Path::polynomial : Path::exact) << plan;
      EXPECT_THAT(head.candidates[cheaper ? 0 : 1].reason, HasSubstr("times slower"));
      taken[cheaper ? 1 : 0] = true;
    }
    std::ostringstream text;
    text << plan;
    const std::string line = candidate_lines(text.str())[1];
    EXPECT_THAT(line, testing::ContainsRegex("polynomial +0 +4 +210 ")) << "entry bound, degree and rank";
  }
  EXPECT_TRUE(taken[0] && taken[1]);
}

TEST(Plan, PolynomialKernelsKeepWhatIsNotFiniteInTheRowsThatMeetIt) {
  AttentionCase c{.shapes = {2, 1, 700, 700, 6, 5}};
  c.base.kernel = Kernel::taylor(2);
  c.base.mask = Mask::causal();
  for (const Path path : {Path::exact, Path::polynomial}) {
    for (const char which : {'q', 'k', 'v'}) {
      c.base.path = path;
      AttentionInputs<float> in(c.shapes, 11);
      const Tensor<double> expected = in.reference(c).out;
      (which == 'q' ? in.q : which == 'k' ? in.k : in.v)(0, 400, 1) = NAN;
      const auto plan = plan_of(c, in);
      std::vector<std::byte> workspace(plan.workspace_bytes());
      ASSERT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok);
      for (Index h = 0; h < 2; ++h)
        for (Index i = 0; i < 700; ++i)
          for (Index m = 0; m < 5; ++m) {
            const bool meets = which == 'q'   ? h == 0 && i == 400
                               : which == 'k' ? i >= 400
                                              : i >= 400 && m == 1;
            if (meets)
              EXPECT_TRUE(std::isnan(in.out(h, i, m))) << path << ", " << which << ", row " << i;
            else
              EXPECT_LE(distance(static_cast<double>(in.out(h, i, m)), expected(h, i, m)), 4e-6)
                  << path << ", " << which << ", row " << i;
          }
    }
  }
}

TEST(Plan, PolynomialKernelsHaveNoTransformsAndNoRankBeyondMemory) {
  AttentionCase c{.shapes = {1, 1, 100, 100, 8, 15}};
  c.base.kernel = Kernel::taylor(2);
  c.base.path = Path::toeplitz;
  const auto expect_error = [&](const char* text) {
    const AttentionInputs<float> in(c.shapes, 12);
    EXPECT_THAT(error_of([&] { make_plan(c.shapes, c.options()); }), HasSubstr(text));
    EXPECT_THAT(error_of([&] { plan_of(c, in); }), HasSubstr(text));
  };
  expect_error("tolerance 0");
  c.base.tolerance = 1e-2;
  expect_error("exponential");
  c.base.path = Path::polynomial;
  c.base.tolerance = 0;
  expect_error("no Error");
  // C(64 + 10, 10) = 718406958841 terms of 15 values and a sum, in float.
  c.base.kernel = Kernel::taylor(10);
  c.shapes.d = 64;
  expect_error("degree 10 in 64 variables has rank 7.18407e+11, above 1048576: a state of 4.5978e+13 bytes");
  c.base.path = Path::automatic;  // the exact path needs no features
  expect_error("no Error");
  const HeadReport head = make_plan(c.shapes, c.options()).report().heads[0];
  EXPECT_EQ(head.path, Path::exact);
  EXPECT_FALSE(head.candidates[1].feasible);
  EXPECT_THAT(head.candidates[1].reason, HasSubstr("7.18407e+11"));
  EXPECT_THAT(head.reason, HasSubstr("7.18407e+11"));
}

TEST(Plan, PolynomialKernelsThatCannotTakeFeaturesAreExactAndSayWhy) {
  Inputs random(13);
  const auto expect = [&](auto&& set, const char* text) {
    AttentionCase c{.shapes = {2, 1, 300, 300, 6, 5}};
    c.base.kernel = Kernel::taylor(2);
    set(c);
    AttentionInputs<float> in(c.shapes, 14);
    const auto plan = plan_of(c, in);
    for (const HeadReport& head : plan.report().heads) {
      EXPECT_EQ(head.path, Path::exact);
      EXPECT_FALSE(head.candidates[1].feasible);
      EXPECT_THAT(head.candidates[1].reason, HasSubstr(text));
      EXPECT_THAT(head.reason, HasSubstr(text));
    }
    std::vector<std::byte> workspace(plan.workspace_bytes());
    ASSERT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok);
    EXPECT_LE(max_abs_difference(in.out.view(), in.reference(c).out.view()), 4e-6);
    c.base.path = Path::polynomial;
    EXPECT_THAT(error_of([&] { plan_of(c, in); }), HasSubstr(text));
  };
  expect([&](AttentionCase& c) { c.base.mask = Mask::sliding_window(40); }, "window");
  expect([&](AttentionCase& c) { c.base.weights = random_weights(random, 6, 8, 300); }, "weights");
  expect([&](AttentionCase& c) { c.query_positions = shuffled_positions(random, 300, 0); }, "ascend");
}

TEST(Plan, PolynomialKernelsOfAnyDegreeOnEmptyInputs) {
  for (const Shapes shapes : {Shapes{2, 1, 0, 5, 4, 4}, Shapes{2, 1, 5, 0, 4, 4}, Shapes{2, 1, 5, 5, 4, 0},
                              Shapes{2, 1, 5, 5, 0, 4}, Shapes{0, 0, 0, 0, 0, 0}, Shapes{0, 2, 5, 5, 4, 4}}) {
    for (const Kernel& kernel : {Kernel::polynomial({1.0}), Kernel::taylor(2), Kernel::power(2)}) {
      for (const Path path : {Path::automatic, Path::exact, Path::polynomial}) {
        AttentionCase c{.shapes = shapes};
        c.base.kernel = kernel;
        c.base.path = path;
        c.base.mask = Mask::causal();
        AttentionInputs<float> in(shapes, 15);
        const auto plan = plan_of(c, in);
        std::vector<std::byte> workspace(plan.workspace_bytes());
        ASSERT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok);
        EXPECT_LE(max_abs_difference(in.out.view(), in.reference(c).out.view()), 4e-6)
            << c << ", degree " << kernel.degree() << ", " << path;
      }
    }
  }
}

TEST(Plan, RanksBeyondMemoryAreRefusedWithTheFigures) {
  AttentionCase c{.shapes = {1, 1, 200, 200, 128, 7}};
  c.base.scale = 1.0;
  c.base.tolerance = 1e-3;
  const auto in = on_spheres<float>(c, 2);
  const HeadReport head = plan_of(c, in).report().heads[0];
  EXPECT_EQ(head.path, Path::exact);
  EXPECT_FALSE(head.candidates[1].feasible);
  EXPECT_THAT(head.candidates[1].reason, testing::ContainsRegex("a rank of [0-9.]+e\\+09 .*too much work"));
  EXPECT_THAT(head.reason, HasSubstr(head.candidates[1].reason));
  c.base.path = Path::polynomial;
  const std::string error = error_of([&] { plan_of(c, in); });
  EXPECT_THAT(error, HasSubstr("in 128 variables has rank "));
  EXPECT_THAT(error, HasSubstr("above 1048576: a state of "));
}

TEST(Plan, RanksOfGeneralWeightsBeyondMemoryAreRefusedWithTheFigures) {
  // C(|S| + g, g) terms for a support of 40 entries.
  Inputs random(16);
  AttentionCase c{.shapes = {1, 1, 100, 100, 8, 3}};
  c.base.scale = 1.0;
  c.base.tolerance = 1e-8;
  c.base.path = Path::toeplitz;
  c.base.weights = random_weights(random, 8, 40, 99);
  const std::string error = error_of([&] { plan_of(c, on_spheres<double>(c, 0.05)); });
  int degree = 0;
  while (degree < ExpPolynomial::kMaxDegree &&
         error.find(detail::message("degree ", degree, " in 40 variables")) == std::string::npos)
    ++degree;
  const double rank = rank_of(simplex_limits(40, degree));
  EXPECT_GT(rank, static_cast<double>(kMaxRank));
  EXPECT_THAT(error, HasSubstr(rank_refusal(degree, 40, rank, 3, sizeof(double))));
}

TEST(Plan, HeadsThatShareKeysShareTheirFeatures) {
  // Four query heads in the same ball: one state for all of them.
  AttentionCase c{.shapes = {4, 1, 4096, 4096, 4, 16}};
  c.base.rope = Rope{};
  c.base.scale = 1.0;
  c.base.tolerance = 1e-2;
  AttentionInputs<float> in = on_spheres(c, 0.5);
  AttentionCase exact = c;
  exact.base.tolerance = 0;
  AttentionInputs<float> expected = in;
  attend(expected.q.view(), expected.k.view(), expected.v.view(), expected.out.view(), exact.options());
  for (const Path path : {Path::automatic, Path::polynomial}) {
    c.base.path = path;
    const auto plan = plan_of(c, in);
    const auto& heads = plan.report().heads;
    for (const HeadReport& head : heads) {
      const Candidate& shared = head.candidates[1];
      EXPECT_EQ(head.path, Path::polynomial);
      EXPECT_THAT(shared.how, HasSubstr("shared by 4 heads"));
      EXPECT_EQ(shared.how, heads[0].candidates[1].how);
      EXPECT_EQ(shared.seconds, heads[0].candidates[1].seconds);
      EXPECT_EQ(head.rank, shared.rank);
      EXPECT_EQ(head.degree, shared.degree);
      EXPECT_EQ(head.error_bound, shared.error_bound);
      EXPECT_EQ(head.rounding, shared.rounding);
      EXPECT_EQ(head.entry_bound, heads[0].entry_bound);
      EXPECT_EQ(head.rank, heads[0].rank);
      EXPECT_EQ(head.error_bound, heads[0].error_bound);
      EXPECT_LE(head.error_bound, c.base.tolerance);
      EXPECT_EQ(head.reason, path == Path::automatic ? "cheapest that meets the tolerance" : "forced");
      EXPECT_THAT(head.candidates[0].reason,
                  HasSubstr(path == Path::automatic ? "times slower" : "path polynomial is forced"));
    }
    // One head alone has all of the keys' work to do.
    auto first = in.q.view();
    first.heads = 1;
    const auto alone = make_plan(first, in.k.view(), in.v.view(), c.options());
    EXPECT_LT(heads[0].candidates[1].seconds, alone.report().heads[0].candidates[1].seconds);

    std::vector<std::byte> workspace(plan.workspace_bytes());
    ASSERT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok);
    EXPECT_LE(max_abs_difference(in.out.view(), expected.out.view()),
              (heads[0].error_bound) * max_abs(in.v.view()));
    EXPECT_GT(max_abs_difference(in.out.view(), expected.out.view()), 0);
  }
}

TEST(Plan, HeadsOfWhichOneHasNoPolynomialStayApart) {
  AttentionCase c{.shapes = {4, 1, 4096, 4096, 4, 16}};
  c.base.scale = 1.0;
  c.base.tolerance = 1e-2;
  c.base.executor = threads(4);
  const AttentionInputs<float> in = on_spheres(c, 0.5);
  AttentionInputs<float> large = in, broken = in;
  for (Index i = 0; i < 4096; ++i)
    for (Index m = 0; m < 4; ++m) large.q(2, i, m) *= 400;
  broken.q(2, 77, 1) = NAN;
  const auto together = plan_of(c, in);
  for (const auto* some : {&large, &broken}) {
    const auto plan = plan_of(c, *some);
    for (std::size_t h = 0; h < 4; ++h) {
      const HeadReport& head = plan.report().heads[h];
      EXPECT_EQ(head.path, h == 2 ? Path::exact : Path::polynomial) << plan;
      EXPECT_EQ(head.rank, h == 2 ? 0 : together.report().heads[h].rank);
      for (const Candidate& candidate : head.candidates)
        EXPECT_THAT(candidate.how, testing::Not(HasSubstr("shared")));
    }
    // Three states of that rank and three projections of the keys, in the place of one.
    EXPECT_GT(plan.workspace_bytes(), together.workspace_bytes());
  }
}

TEST(Planner, SharesFeaturesWithinAKeyHeadWhereThatIsCheaper) {
  // Head 5 needs a higher degree than 3 and 4. Sharing spares features of the keys, and has more for the
  // queries of heads 3 and 4: it depends on the lengths which weighs more.
  const auto plan_group = [](Index n_q, Index n_k, Path forced, Index kv) {
    AttentionCase c{.shapes = {6, 2, n_q, n_k, 4, 8}};
    c.base.scale = 1.0;
    AttentionInputs<float> in = on_spheres(c, 0.5);
    for (Index i = 0; i < n_q; ++i)
      for (Index m = 0; m < 4; ++m) in.q(5, i, m) *= 4;
    const Problem problem(c.shapes, c.options());
    const CostModel cost;
    const Planner planner(problem, 1e-2, forced, cost, Arithmetic::float32, factorisations());
    GroupLook look =
        group_look<float>(problem, kv, TensorView<const float>(in.q.view()),
                          TensorView<const float>(in.k.view()), TensorView<const float>(in.v.view()));
    return planner.plan(kv, look);
  };
  const auto expect_shared = [](const std::vector<HeadPlan>& group, Range heads) {
    ASSERT_EQ(group.size(), 3u);
    ASSERT_TRUE(group[0].polynomial && !group[1].polynomial && !group[2].polynomial);
    EXPECT_EQ(group[0].polynomial->heads, heads);
    for (const HeadPlan& head : group) {
      EXPECT_FALSE(head.toeplitz);
      EXPECT_EQ(head.report.path, Path::polynomial);
      EXPECT_EQ(head.report.rank, group[0].polynomial->monomials->rank());
      EXPECT_GE(head.report.entry_bound, heads.begin == 3 ? 1.9 : 0.49);
    }
  };
  expect_shared(plan_group(2000, 2000, Path::polynomial, 0), {0, 3});
  expect_shared(plan_group(50, 2000, Path::polynomial, 1), {3, 6});
  const std::vector<HeadPlan> apart = plan_group(2000, 50, Path::polynomial, 1);
  ASSERT_EQ(apart.size(), 3u);
  for (std::size_t g = 0; g < 3; ++g) {
    const Index head = 3 + static_cast<Index>(g);
    ASSERT_TRUE(apart[g].polynomial);
    EXPECT_EQ(apart[g].head, head);
    EXPECT_EQ(apart[g].polynomial->heads, (Range{head, head + 1}));
    EXPECT_EQ(apart[g].polynomial->monomials->rank(), apart[g].report.rank);
  }
  EXPECT_GT(apart[2].report.rank, apart[0].report.rank);
  for (const HeadPlan& head : plan_group(2000, 2000, Path::exact, 0)) {
    EXPECT_FALSE(head.polynomial);
    EXPECT_EQ(head.report.path, Path::exact);
  }
}

TEST(Plan, KeptRankIsPrintedBesideTheSimplex) {
  // Two of six directions matter.
  AttentionCase c{.shapes = {1, 1, 4096, 4096, 6, 4}};
  c.base.scale = 1.0;
  c.base.tolerance = 1e-2;
  AttentionInputs<float> in = on_spheres(c, 0.5);
  for (auto* x : {&in.q, &in.k})
    for (Index i = 0; i < 4096; ++i)
      for (Index m = 2; m < 6; ++m) (*x)(0, i, m) *= 1e-3f;
  const auto plan = plan_of(c, in);
  const HeadReport& head = plan.report().heads[0];
  const Candidate& candidate = head.candidates[1];
  EXPECT_EQ(head.path, Path::polynomial);
  EXPECT_EQ(head.rank, candidate.rank);
  EXPECT_LE(static_cast<double>(candidate.rank), rank_of(simplex_limits(2, candidate.degree)));
  EXPECT_GE(candidate.simplex_rank, rank_of(simplex_limits(6, 2)));
  EXPECT_LT(static_cast<double>(candidate.rank), candidate.simplex_rank);
  EXPECT_THAT(candidate.how, HasSubstr("2 axes"));
  std::ostringstream text;
  text << plan;
  const std::string line = candidate_lines(text.str())[1];
  EXPECT_THAT(line,
              testing::ContainsRegex(detail::message(" ", candidate.degree, " +", candidate.rank, " ")));
  EXPECT_THAT(line, HasSubstr(detail::message("full rank ", detail::number(candidate.simplex_rank))));
}

TEST(Plan, NothingToAttendToIsNotAnApproximation) {
  AttentionCase c = small_entries(50, 1e-2);
  c.base.mask = Mask::lags(50, 60);  // beyond every lag
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
