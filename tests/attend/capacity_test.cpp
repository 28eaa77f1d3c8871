// Plans with capacity: a run of fewer queries and keys is that of a plan for them, bit for bit, in no more
// workspace, and gives the log of each row's sum.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fastrope/fastrope.hpp>
#include <vector>

#include "support/attention_case.hpp"

namespace fastrope_test {
namespace {

using fastrope::Index;
using fastrope::LagBias;
using fastrope::Mask;
using fastrope::MatrixView;
using fastrope::Options;
using fastrope::Plan;
using fastrope::Range;
using fastrope::Rope;
using fastrope::RunStatus;
using fastrope::Shapes;
using fastrope::TensorView;

struct Result {
  std::vector<float> out, lse;
  friend bool operator==(const Result&, const Result&) = default;
};

/// A run of the plan's tensors cut to n_q and n_k rows, in memory that begins as NaN.
Result run_of(const Plan<float>& plan, const AttentionInputs<float>& in, Index n_q, Index n_k) {
  const Shapes& s = plan.shapes();
  std::vector<std::byte> workspace(plan.workspace_bytes() + 64, std::byte{0xff});
  Result r{std::vector<float>(static_cast<std::size_t>(s.heads * n_q * s.d_v)),
           std::vector<float>(static_cast<std::size_t>(s.heads * n_q))};
  const auto cut = [](const Tensor<float>& x, Index rows) {
    return TensorView<const float>{x.values.data(), x.heads, rows, x.cols, x.head_stride, x.row_stride};
  };
  const RunStatus status = plan.run(
      cut(in.q, n_q), cut(in.k, n_k), cut(in.v, n_k), fastrope::contiguous(r.out.data(), s.heads, n_q, s.d_v),
      MatrixView<float>{r.lse.data(), s.heads, n_q, n_q}, std::span(workspace).first(plan.workspace_bytes()));
  EXPECT_EQ(status, RunStatus::ok);
  for (const std::byte b : std::span(workspace).last(64)) EXPECT_EQ(b, std::byte{0xff});
  return r;
}

/// What plans with capacity are asked for.
std::vector<Options> option_sets() {
  std::vector<Options> sets;
  for (const Mask mask : {Mask::causal(), Mask::full(), Mask::sliding_window(90), Mask::lags(-5, 40)}) {
    Options options;
    options.mask = mask;
    sets.push_back(options);
    options.rope = Rope{};
    options.bias = LagBias::alibi(std::vector<double>{0.3});
    options.softcap = 20;
    sets.push_back(options);
  }
  return sets;
}

TEST(PlanCapacity, ARunOfFewerRowsIsThatOfAPlanForThem) {
  for (const Options& options : option_sets())
    for (const auto& [heads, kv_heads] : {std::pair{2, 2}, {8, 1}, {40, 1}}) {
      const Shapes most{heads, kv_heads, 60, 700, 8, 9};
      const AttentionInputs<float> in(most, 1);
      const auto plan = fastrope::make_plan<float>(most, options);
      ASSERT_TRUE(plan.has_capacity());
      for (const auto& [n_q, n_k] : {std::pair{60, 700},
                                     {60, 60},
                                     {1, 1},
                                     {1, 2},
                                     {1, 63},
                                     {1, 64},
                                     {1, 65},
                                     {1, 699},
                                     {3, 400},
                                     {20, 300},
                                     {59, 470},
                                     {59, 472},
                                     {60, 5},
                                     {0, 100},
                                     {7, 0}}) {
        Shapes fewer = most;
        fewer.n_q = n_q;
        fewer.n_k = n_k;
        const auto own = fastrope::make_plan<float>(fewer, options);
        EXPECT_EQ(run_of(plan, in, n_q, n_k), run_of(own, in, n_q, n_k))
            << heads << " heads, n_q " << n_q << ", n_k " << n_k;
      }
    }
}

enum class Kind { ring, shuffled, gaps, sections, ranges, ranges_of_heads };

/// Positions and key ranges in arrays of a plan's sizes, whose first rows are those of a run.
struct Places {
  static constexpr Index kSections = 3, kRanges = 2;

  Kind kind;
  Shapes most;
  std::vector<Position> queries = {}, keys = {};  // [sections, n]
  std::vector<Range> ranges = {};                 // [heads or 1, n_q, kRanges]

  Places(Kind kind_, const Shapes& most_) : kind(kind_), most(most_) {
    const Index sections = kind == Kind::sections ? kSections : 1;
    queries.resize(static_cast<std::size_t>(sections * most.n_q));
    keys.resize(static_cast<std::size_t>(sections * most.n_k));
    ranges.resize(static_cast<std::size_t>(range_heads() * most.n_q * kRanges));
  }
  Index range_heads() const { return kind == Kind::ranges_of_heads ? most.heads : 1; }

  void write(Inputs& random, Index n_q, Index n_k) {
    const Position last = n_k + random.integer(0, 900);
    const auto copy = [](const std::vector<Position>& from, std::vector<Position>& to) {
      std::copy(from.begin(), from.end(), to.begin());
    };
    switch (kind) {
      case Kind::ring:
        for (Position p = last - n_k; p < last; ++p) keys[static_cast<std::size_t>(p % n_k)] = p;
        for (Index i = 0; i < n_q; ++i) queries[static_cast<std::size_t>(i)] = last - n_q + i;
        break;
      case Kind::shuffled:
        copy(shuffled_positions(random, n_k, last - n_k), keys);
        copy(shuffled_positions(random, n_q, last - n_q), queries);
        break;
      case Kind::gaps:
        for (Index j = 0, p = 0; j < n_k; ++j) keys[static_cast<std::size_t>(j)] = p += random.integer(0, 2);
        break;
      case Kind::sections:
        for (Position& p : queries) p = random.integer(0, 900);
        for (Position& p : keys) p = random.integer(0, 900);
        break;
      case Kind::ranges:
      case Kind::ranges_of_heads:
        for (Index h = 0; h < range_heads(); ++h)
          for (Index i = 0; i < n_q; ++i) {
            Index begin = 0;
            for (Index m = 0; m < kRanges; ++m) {
              begin = random.integer(begin, n_k);
              const Index end = random.integer(begin, n_k);
              ranges[static_cast<std::size_t>((h * most.n_q + i) * kRanges + m)] = {begin, end};
              begin = end;
            }
          }
    }
  }

  /// What a plan of so many queries and keys is given. Valid while the places and `ranges_of_run` live.
  Options options(const Options& base, Index n_q, Index n_k, std::vector<Range>& ranges_of_run) const {
    Options o = base;
    switch (kind) {
      case Kind::ring:
      case Kind::shuffled:
        o.query_positions = std::span(queries).first(static_cast<std::size_t>(n_q));
        [[fallthrough]];
      case Kind::gaps:
        o.key_positions = std::span(keys).first(static_cast<std::size_t>(n_k));
        break;
      case Kind::sections:
        o.rope = Rope{.sections = {2, 1, 1}};
        o.query_section_positions = {queries.data(), kSections, n_q, most.n_q};
        o.key_section_positions = {keys.data(), kSections, n_k, most.n_k};
        break;
      case Kind::ranges:
      case Kind::ranges_of_heads:
        ranges_of_run.clear();
        for (Index h = 0; h < range_heads(); ++h) {
          const auto first = ranges.begin() + h * most.n_q * kRanges;
          ranges_of_run.insert(ranges_of_run.end(), first, first + n_q * kRanges);
        }
        o.key_ranges = {n_q == most.n_q ? std::span(ranges) : std::span(ranges_of_run), kRanges};
    }
    return o;
  }
};

TEST(PlanCapacity, PositionsAndRangesAreReadWhenRun) {
  Inputs random(6);
  for (const Kind kind :
       {Kind::ring, Kind::shuffled, Kind::gaps, Kind::sections, Kind::ranges, Kind::ranges_of_heads})
    for (const Options& base : option_sets())
      for (const auto& [heads, kv_heads] : {std::pair{2, 2}, {8, 1}, {40, 1}}) {
        const Shapes most{heads, kv_heads, 60, 700, 8, 9};
        const AttentionInputs<float> in(most, 1);
        Places places(kind, most);
        places.write(random, 60, 700);
        std::vector<Range> ranges;
        const auto plan = fastrope::make_plan<float>(most, places.options(base, 60, 700, ranges));
        ASSERT_TRUE(plan.has_capacity());
        for (const auto& [n_q, n_k] : {std::pair{60, 700},
                                       {60, 700},
                                       {60, 65},
                                       {1, 1},
                                       {1, 64},
                                       {1, 699},
                                       {3, 400},
                                       {59, 470},
                                       {0, 9}}) {
          places.write(random, n_q, n_k);
          Shapes fewer = most;
          fewer.n_q = n_q;
          fewer.n_k = n_k;
          const auto own = fastrope::make_plan<float>(fewer, places.options(base, n_q, n_k, ranges));
          EXPECT_EQ(run_of(plan, in, n_q, n_k), run_of(own, in, n_q, n_k))
              << "kind " << static_cast<int>(kind) << ", " << heads << " heads, n_q " << n_q << ", n_k "
              << n_k;
        }
      }
}

TEST(PlanCapacity, RangesTakeNoTableBesideThatOfThePlan) {
  const Shapes most{2, 2, 1, 100'000, 64, 64};
  const std::vector<Range> ranges(1);  // of nothing yet
  const auto bytes = [&](const Options& options) {
    return fastrope::make_plan<float>(most, options).workspace_bytes();
  };
  Options options;
  options.key_ranges = {ranges, 1};
  const std::size_t unturned = bytes(options);
  options.rope = Rope{};
  EXPECT_LT(bytes(options), unturned + (1 << 16));
}

TEST(PlanCapacity, WhatIsReadIsChecked) {
  const Shapes most{2, 1, 4, 50, 8, 8};
  AttentionInputs<float> in(most, 3);
  std::vector<Position> queries(4, 60), keys(50, 7);
  std::vector<Range> ranges(4, {0, 50});
  const auto run = [&](const Plan<float>& plan, Index n_k) {
    std::vector<std::byte> workspace(plan.workspace_bytes());
    std::fill(in.out.values.begin(), in.out.values.end(), 5.0f);
    const RunStatus status = plan.run(in.q.view(), rows(in.k.view(), {0, n_k}), rows(in.v.view(), {0, n_k}),
                                      in.out.view(), workspace);
    const bool untouched =
        std::all_of(in.out.values.begin(), in.out.values.end(), [](float x) { return x == 5; });
    EXPECT_EQ(untouched, status != RunStatus::ok);
    return status;
  };
  Options options;
  options.query_positions = queries;
  options.key_positions = keys;
  const auto plain = fastrope::make_plan<float>(most, options);
  options.rope = Rope{};
  const auto turned = fastrope::make_plan<float>(most, options);
  options = {};
  options.key_ranges = {ranges, 1};
  const auto ranged = fastrope::make_plan<float>(most, options);
  EXPECT_EQ(run(plain, 50), RunStatus::ok);
  EXPECT_EQ(run(turned, 50), RunStatus::ok);
  EXPECT_EQ(run(ranged, 50), RunStatus::ok);
  EXPECT_EQ(run(ranged, 49), RunStatus::places_refused);
  keys[49] = Position{1} << 35;  // beyond what rope's phases are held for
  EXPECT_EQ(run(plain, 50), RunStatus::ok);
  EXPECT_EQ(run(turned, 50), RunStatus::places_refused);
  EXPECT_EQ(run(turned, 49), RunStatus::ok);
  keys[49] = Position{1} << 41;
  EXPECT_EQ(run(plain, 50), RunStatus::places_refused);
  EXPECT_EQ(run(plain, 49), RunStatus::ok);
}

TEST(PlanCapacity, APlanOfTensorsKeepsWhatItWasMadeWith) {
  const Shapes shapes{2, 1, 4, 50, 8, 8};
  AttentionInputs<float> in(shapes, 3);
  std::vector<Position> keys(50);
  for (std::size_t j = 0; j < 50; ++j) keys[j] = static_cast<Position>(j * j);
  Options options;
  options.mask = Mask::causal();
  options.key_positions = keys;
  const auto plan = fastrope::make_plan(in.q.view(), in.k.view(), in.v.view(), options);
  EXPECT_FALSE(plan.has_capacity());
  const Result before = run_of(plan, in, 4, 50);
  std::fill(keys.begin(), keys.end(), Position{1} << 41);
  EXPECT_EQ(run_of(plan, in, 4, 50), before);
}

TEST(PlanCapacity, ItsWorkspaceIsThatOfTheLargestRun) {
  fastrope_test::Inputs random(5);
  for (int i = 0; i < 60; ++i) {
    Options options;
    const Index window = random.integer(1, 3000);
    options.mask = random.integer(0, 2) == 0 ? Mask::causal() : Mask::sliding_window(window);
    if (random.integer(0, 1) == 0) options.rope = Rope{};
    if (random.integer(0, 2) == 0) options.bias = LagBias::alibi(std::vector<double>{0.1});
    const Index kv_heads = random.integer(1, 2), group = random.integer(0, 2) == 0 ? 40 : 2;
    const Shapes most{kv_heads * group, kv_heads, random.integer(1, 300), random.integer(1, 6000), 16, 16};
    const auto plan = fastrope::make_plan<float>(most, options);
    fastrope::Problem whole(most, options);
    whole.rotation.keep<float>(fastrope::kept_rotations(whole));
    for (int j = 0; j < 40; ++j) {
      Shapes fewer = most;
      fewer.n_q = random.integer(0, most.n_q);
      fewer.n_k = random.integer(0, j % 2 == 0 ? most.n_k : std::min(most.n_k, most.n_q));
      const fastrope::Problem problem = whole.widest(fewer.n_q, fewer.n_k);
      EXPECT_LE(fastrope::exact_workspace_bytes<float>(problem), plan.workspace_bytes())
          << "window " << window << ", n_q " << fewer.n_q << " of " << most.n_q << ", n_k " << fewer.n_k
          << " of " << most.n_k << ", group " << group;
    }
  }
}

TEST(PlanCapacity, ResultsAreThoseOfPartialStates) {
  for (const auto& [n_q, n_k] : {std::pair{1, 300}, {40, 200}, {3, 0}}) {
    const Shapes s{4, 2, n_q, n_k, 8, 5};
    AttentionInputs<float> in(s, 2);
    Options options;
    options.mask = Mask::causal();
    options.rope = Rope{};  // whose table the plan keeps, and the partial call makes
    const Result of_plan = run_of(fastrope::make_plan<float>(s, options), in, n_q, n_k);
    Result of_part = of_plan;
    fastrope::attend_partial(in.q.view(), in.k.view(), in.v.view(),
                             fastrope::contiguous(of_part.out.data(), 4, n_q, 5),
                             MatrixView<float>{of_part.lse.data(), 4, n_q, n_q}, options);
    EXPECT_EQ(of_plan, of_part);
  }
}

TEST(PlanCapacity, OfAPolynomialKernelTheSumItself) {
  for (const Index n_q : {1, 60}) {
    const Shapes s{2, 1, n_q, 300, 8, 5};
    const AttentionInputs<float> in(s, 4);
    Options options;
    options.kernel = fastrope::Kernel::power(2);
    options.path = fastrope::Path::exact;
    const auto plan = fastrope::make_plan<float>(s, options);
    EXPECT_FALSE(plan.has_capacity());
    const Result r = run_of(plan, in, n_q, 300);
    for (Index h = 0; h < 2; ++h)
      for (Index i = 0; i < n_q; ++i) {
        double sum = 0;
        for (Index j = 0; j < 300; ++j) {
          double x = 0;
          for (Index c = 0; c < 8; ++c)
            x += static_cast<double>(in.q(h, i, c)) * static_cast<double>(in.k(0, j, c)) / std::sqrt(8.0);
          sum += x * x;
        }
        EXPECT_NEAR(r.lse[static_cast<std::size_t>(h * n_q + i)], sum, 1e-4 * sum);
      }
  }
}

TEST(PlanCapacity, SumsWithoutValues) {
  for (const Index n_q : {1, 60}) {
    const Shapes s{2, 1, n_q, 70, 8, 3};
    Shapes none = s;
    none.d_v = 0;
    AttentionInputs<float> in(s, 5), without(none, 5);
    without.q = in.q;
    without.k = in.k;
    const Options options;
    EXPECT_EQ(run_of(fastrope::make_plan<float>(none, options), without, n_q, 70).lse,
              run_of(fastrope::make_plan<float>(s, options), in, n_q, 70).lse);
  }
}

TEST(PlanCapacity, WhatDoesNotFitIsRefused) {
  const Shapes most{2, 1, 4, 50, 8, 8};
  AttentionInputs<float> in(most, 3);
  AttentionInputs<float> longer({2, 1, 4, 51, 8, 8}, 3), wider({2, 1, 5, 50, 8, 8}, 3);
  std::vector<float> sums(100);
  std::vector<std::byte> workspace(1 << 20);
  const auto status = [&](const Plan<float>& plan, AttentionInputs<float>& x, MatrixView<float> lse) {
    return plan.run(x.q.view(), x.k.view(), x.v.view(), x.out.view(), lse, workspace);
  };
  const auto plan = fastrope::make_plan<float>(most, Options{});
  EXPECT_EQ(status(plan, in, {sums.data(), 2, 4, 4}), RunStatus::ok);
  EXPECT_EQ(status(plan, longer, {}), RunStatus::shape_mismatch);
  EXPECT_EQ(status(plan, wider, {}), RunStatus::shape_mismatch);
  EXPECT_EQ(status(plan, in, {sums.data(), 2, 3, 3}), RunStatus::shape_mismatch);
  EXPECT_EQ(status(plan, in, {sums.data(), 2, 4, 3}), RunStatus::shape_mismatch);

  // What has a value for each pair belongs to one size.
  const std::vector<float> bias(50);
  Options of_pairs;
  of_pairs.dense_bias = {bias.data(), 2, 4, 50, 0, 0};
  const auto fixed = fastrope::make_plan<float>(most, of_pairs);
  EXPECT_FALSE(fixed.has_capacity());
  AttentionInputs<float> shorter({2, 1, 4, 49, 8, 8}, 3);
  EXPECT_EQ(status(fixed, shorter, {}), RunStatus::shape_mismatch);
  EXPECT_EQ(status(plan, shorter, {}), RunStatus::ok);

  // Sums of an approximation are not kept.
  Options rough;
  rough.tolerance = 1e-2;
  rough.path = fastrope::Path::polynomial;
  rough.scale = 0.01;
  const auto approximate = fastrope::make_plan(in.q.view(), in.k.view(), in.v.view(), rough);
  workspace.resize(approximate.workspace_bytes());
  EXPECT_EQ(status(approximate, in, {sums.data(), 2, 4, 4}), RunStatus::lse_unavailable);
  EXPECT_EQ(status(approximate, in, {}), RunStatus::ok);
}

}  // namespace
}  // namespace fastrope_test
