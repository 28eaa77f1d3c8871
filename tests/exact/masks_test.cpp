// Key ranges and dense masks: what says the same gives the same bits, in tiles, decoded and in batches;
// blocks that nobody sees are neither read nor computed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fastrope/fastrope.hpp>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "support/attention_case.hpp"
#include "support/error_of.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

/// Ranges of a call, of all heads or of each.
struct Pattern {
  std::string name;
  Shapes shapes;
  RowRanges ranges;
  Mask mask = Mask::full();
  std::vector<Position> query_positions = {}, key_positions = {};

  Options options() const {
    Options options{.mask = mask, .key_ranges = ranges};
    options.query_positions = query_positions;
    options.key_positions = key_positions;
    return options;
  }
};

/// Rows of up to `most` ascending ranges each, some rows without any; of every head its own where per_head.
RowRanges random_ranges(Inputs& random, Index rows, Index n_k, Index most) {
  RowRanges all{.ranges = {}, .per_row = most};
  for (Index row = 0; row < rows; ++row) {
    std::vector<Index> ends;
    for (Index e = 0; e < 2 * most; ++e)
      ends.push_back(static_cast<Index>(random.uniform(0, 1) * static_cast<double>(n_k + 1)));
    std::sort(ends.begin(), ends.end());
    for (Index r = 0; r < most; ++r) {
      const Range range{ends[static_cast<std::size_t>(2 * r)], ends[static_cast<std::size_t>(2 * r + 1)]};
      all.ranges.push_back(random.uniform(0, 1) < 0.3 ? Range{} : range);
    }
  }
  return all;
}

std::vector<Pattern> patterns() {
  std::vector<Pattern> all;
  const std::vector<Index> lengths = {3, 200, 1, 0, 131, 64, 300, 17};
  const Index tokens = std::accumulate(lengths.begin(), lengths.end(), Index{0});
  for (const Mask mask : {Mask::full(), Mask::causal(), Mask::sliding_window(50)})
    all.push_back({"documents", {4, 2, tokens, tokens, 24, 20}, RowRanges::documents(lengths), mask});
  all.push_back({"chunks", {2, 2, 700, 700, 16, 16}, RowRanges::chunks(700, 96), Mask::causal()});
  all.push_back({"prefix", {2, 1, 500, 500, 16, 16}, RowRanges::prefix(500, 130)});
  // Trees are decoded, and tiled.
  for (const Index tokens_drafted : {4, 60}) {
    std::vector<Index> parents;
    for (Index t = 0; t < tokens_drafted; ++t) parents.push_back(t == 0 ? -1 : (t - 1) / 2 - (t % 5 == 0));
    Pattern tree{
        "tree", {4, 2, tokens_drafted, 2500 + tokens_drafted, 16, 16}, RowRanges::tree(2500, parents)};
    std::vector<Position> depth;
    for (const Index parent : parents)
      depth.push_back(parent < 0 ? 2500 : depth[static_cast<std::size_t>(parent)] + 1);
    tree.query_positions = depth;
    tree.key_positions.resize(2500);
    std::iota(tree.key_positions.begin(), tree.key_positions.end(), Position{0});
    tree.key_positions.insert(tree.key_positions.end(), depth.begin(), depth.end());
    all.push_back(std::move(tree));
  }
  Inputs random(5);
  for (const bool per_head : {false, true})
    for (const Index n_q : {3, 150})
      for (const Index most : {1, 6}) {
        const Index heads = 4, n_k = 1700;
        const RowRanges ranges = random_ranges(random, per_head ? heads * n_q : n_q, n_k, most);
        all.push_back({per_head ? "random of heads" : "random", {heads, 2, n_q, n_k, 20, 12}, ranges});
        all.push_back({per_head ? "random of heads, window" : "random, window",
                       {heads, 2, n_q, n_k, 20, 12},
                       ranges,
                       Mask::lags(-100, 900)});
      }
  return all;
}

/// The same as a dense mask [heads, n_q, n_k].
std::unique_ptr<bool[]> dense_of(const Pattern& p) {
  const Shapes& s = p.shapes;
  auto mask = std::make_unique<bool[]>(static_cast<std::size_t>(s.heads * s.n_q * s.n_k));
  for (Index h = 0; h < s.heads; ++h)
    for (Index i = 0; i < s.n_q; ++i)
      for (Index j = 0; j < s.n_k; ++j)
        mask[static_cast<std::size_t>((h * s.n_q + i) * s.n_k + j)] =
            reference_in_ranges(p.ranges, h, s.n_q, i, j);
  return mask;
}

template <class T>
class Masks : public testing::Test {};
using Storages = testing::Types<float, double, bfloat16>;
TYPED_TEST_SUITE(Masks, Storages);

template <class T>
void run(const Shapes& shapes, const Options& options, AttentionInputs<T>& in,
         MatrixView<ArithmeticOf<T>> lse = {}) {
  if (lse.data != nullptr)
    return attend_partial(in.q.view(), in.k.view(), in.v.view(), in.out.view(), lse, options);
  const auto plan = make_plan<ArithmeticOf<T>>(shapes, options);
  std::vector<std::byte> memory(plan.workspace_bytes());
  std::memset(memory.data(), 0xff, memory.size());
  ASSERT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), memory), RunStatus::ok);
}

TYPED_TEST(Masks, RangesEqualTheDenseMaskBitForBit) {
  using T = TypeParam;
  for (const Pattern& p : patterns()) {
    SCOPED_TRACE(p.name + " of " + std::to_string(p.shapes.n_q) + " rows, " +
                 std::to_string(p.ranges.per_row) + " ranges each");
    for (const bool rotated : {false, true}) {
      AttentionInputs<T> in(p.shapes, 3);
      Options options = p.options();
      if (rotated) options.rope = Rope{};
      run(p.shapes, options, in);
      const std::vector<T> ranged = in.out.values;
      const Reference expected = reference_attention(in.q.view(), in.k.view(), in.v.view(), options);
      for (std::size_t e = 0; e < ranged.size() && !rotated && p.shapes.n_q < 200; ++e)
        ASSERT_NEAR(
            static_cast<double>(ranged[e]), expected.out.values[e],
            (std::is_same_v<T, bfloat16> ? 0.02 : 200 * std::numeric_limits<ArithmeticOf<T>>::epsilon()))
            << e;
      // Dense masks let keys be sorted by position, which rounds differently.
      if (!std::is_sorted(p.key_positions.begin(), p.key_positions.end())) continue;
      const auto mask = dense_of(p);
      options.key_ranges = {};
      options.dense_mask = contiguous<const bool>(mask.get(), p.shapes.heads, p.shapes.n_q, p.shapes.n_k);
      run(p.shapes, options, in);
      ASSERT_EQ(std::memcmp(ranged.data(), in.out.values.data(), ranged.size() * sizeof(T)), 0);

      // Ranges give the log of the sum of exponentials, too.
      if (std::is_same_v<T, bfloat16> || rotated) continue;
      std::vector<ArithmeticOf<T>> lse(static_cast<std::size_t>(p.shapes.heads * p.shapes.n_q));
      const auto view = [&] { return MatrixView<ArithmeticOf<T>>(lse.data(), p.shapes.heads, p.shapes.n_q); };
      run(p.shapes, p.options(), in, view());
      ASSERT_EQ(std::memcmp(ranged.data(), in.out.values.data(), ranged.size() * sizeof(T)), 0);
      for (std::size_t e = 0; e < lse.size(); ++e)
        ASSERT_TRUE(static_cast<double>(lse[e]) == expected.lse.values[e] ||
                    std::abs(static_cast<double>(lse[e]) - expected.lse.values[e]) < 1e-5)
            << e;
    }
  }
}

TYPED_TEST(Masks, ABatchTakesRangesAndDenseMasksOfEachSequence) {
  using T = TypeParam;
  std::vector<Pattern> sequences;
  for (Pattern& p : patterns())
    if (p.shapes.heads == 4 && p.shapes.d == 20 && p.mask == Mask::full()) sequences.push_back(std::move(p));
  std::vector<AttentionInputs<T>> alone, together;
  std::vector<Shapes> shapes;
  std::vector<SequenceOptions> own;
  std::vector<std::unique_ptr<bool[]>> masks;
  for (const Pattern& p : sequences) {
    const auto seed = static_cast<std::uint64_t>(own.size() + 1);
    alone.emplace_back(p.shapes, seed);
    together.emplace_back(p.shapes, seed);
    shapes.push_back(p.shapes);
    masks.push_back(dense_of(p));
    const auto mask = contiguous<const bool>(masks.back().get(), p.shapes.heads, p.shapes.n_q, p.shapes.n_k);
    if (own.size() % 2 == 0)
      own.push_back({.key_ranges = p.ranges});
    else
      own.push_back({.dense_mask = mask});
    run(p.shapes, p.options(), alone.back());
  }
  std::vector<SequenceViews<T>> views;
  for (auto& in : together) views.push_back({in.q.view(), in.k.view(), in.v.view(), in.out.view()});
  attend_batch(views, {}, own);
  for (std::size_t s = 0; s < sequences.size(); ++s)
    EXPECT_EQ(std::memcmp(alone[s].out.values.data(), together[s].out.values.data(),
                          alone[s].out.values.size() * sizeof(T)),
              0)
        << "sequence " << s;
  own[1].dense_mask.cols -= 1;
  EXPECT_THAT(error_of([&] { attend_batch(views, {}, own); }),
              testing::HasSubstr("sequence 1: dense_mask is [4, "));
  own[0].key_ranges.per_row += 1;
  EXPECT_THAT(error_of([&] { attend_batch(views, {}, own); }),
              testing::HasSubstr("sequence 0: key_ranges has "));
}

/// Fills rows of keys and values that nobody sees, whole panels of them, with NaN.
template <class T>
void spoil(AttentionInputs<T>& in, const std::vector<Range>& seen) {
  constexpr Index kPanel = kTileCols<ArithmeticOf<T>>;
  for (Index j = 0; j < in.k.rows; ++j) {
    const bool near = std::any_of(seen.begin(), seen.end(), [j](Range range) {
      return round_down(range.begin, kPanel) <= j && j < round_up(range.end, kPanel);
    });
    for (Index h = 0; h < in.k.heads && !near; ++h) {
      for (Index c = 0; c < in.k.cols; ++c) in.k(h, j, c) = std::numeric_limits<T>::quiet_NaN();
      for (Index c = 0; c < in.v.cols; ++c) in.v(h, j, c) = std::numeric_limits<T>::quiet_NaN();
    }
  }
}

TYPED_TEST(Masks, KeysThatNoRowReachesAreNotRead) {
  using T = TypeParam;
  constexpr double kTolerance = std::is_same_v<T, bfloat16> ? 0.02 : 1e-5;
  for (const Index n_q : {2, 150}) {
    const Shapes shapes{4, 2, n_q, 5000, 16, 16};
    const std::vector<Range> seen = {{70, 75}, {1500, 1700}, {4200, 4201}};
    RowRanges ranges{.ranges = {}, .per_row = 2};
    for (Index i = 0; i < n_q; ++i) {
      ranges.ranges.push_back(seen[i % 2 == 0 ? 0 : 1]);
      ranges.ranges.push_back(seen[2]);
    }
    AttentionInputs<T> in(shapes, 4), spoilt(shapes, 4);
    spoil(spoilt, seen);
    Options options{.rope = Rope{}, .key_ranges = ranges};
    run(shapes, options, in);
    run(shapes, options, spoilt);
    EXPECT_EQ(std::memcmp(in.out.values.data(), spoilt.out.values.data(), in.out.values.size() * sizeof(T)),
              0);
    const Reference expected = reference_attention(in.q.view(), in.k.view(), in.v.view(), options);
    EXPECT_LT(max_abs_difference(in.out.view(), expected.out.view()), kTolerance);
  }
}

/// The exact path with ranges and every other option against the oracle, decoded and in tiles.
TEST(KeyRanges, GoWithEveryOption) {
  Inputs random(9);
  for (const Index n_q : {3, 120})
    for (const bool per_head : {false, true})
      for (int option = 0; option < 9; ++option) {
        AttentionCase c{.shapes = {4, 2, n_q, 400, 16, 12}};
        RowRanges ranges = random_ranges(random, per_head ? 4 * n_q : n_q, 400, 3);
        c.base.mask = option % 2 == 0 ? Mask::causal() : Mask::full();
        if (option == 1 || option == 2) set_alibi(c, random);
        if (option == 3 || option == 4) set_t5(c, random, option == 3);
        if (option == 5) c.base.softcap = 3;
        if (option == 6) set_sinks(c, random);
        if (option == 7) c.base.weights = random_weights(random, 16, 5, 401);
        if (option == 2 || option == 8) set_dense(c, random, true, true, 4);
        if (option == 4 || option == 8) {
          // Two sequences in one cache, whose positions begin anew: ranges lie within one.
          for (Range& range : ranges.ranges)
            if (range.begin < 150) range = intersect(range, {0, 150});
          for (Position p = 0; p < 400; ++p) c.key_positions.push_back(p < 150 ? p : p - 150);
          c.query_positions.assign(static_cast<std::size_t>(n_q), 200);
          c.base.rope = Rope{};
        }
        c.base.key_ranges = ranges;
        c.base.verify = 3;
        AttentionInputs<double> in(c.shapes, 4);
        const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
        EXPECT_LT(report.heads[3].observed_error, 1e-12);
        ASSERT_LT(max_abs_difference(in.out.view(), in.reference(c).out.view()), 1e-12)
            << c << ", option " << option;
      }
}

/// Rows of a polynomial kernel are bounded over their own ranges.
TEST(KeyRanges, BoundRowsOfPolynomialKernels) {
  Inputs random(3);
  for (const Index n_q : {2, 90}) {
    AttentionCase c{.shapes = {2, 1, n_q, 300, 8, 8}};
    const RowRanges ranges = random_ranges(random, n_q, 300, 2);
    c.base.key_ranges = ranges;
    c.base.kernel = Kernel::taylor(2);
    AttentionInputs<float> in(c.shapes, 4);
    const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    EXPECT_EQ(report.heads[0].path, Path::exact);
    const Reference expected = in.reference(c);
    for (Index h = 0; h < 2; ++h)
      for (Index i = 0; i < n_q; ++i) {
        const double bound = report.row_bounds[static_cast<std::size_t>(h * n_q + i)];
        EXPECT_LT(bound, 1e-3);
        for (Index m = 0; m < 8; ++m)
          EXPECT_LE(std::abs(static_cast<double>(in.out(h, i, m)) - expected.out(h, i, m)), bound);
      }
  }
}

TEST(KeyRanges, ApproximationsRefuseAndSayWhy) {
  const Shapes shapes{1, 1, 2048, 2048, 16, 16};
  const RowRanges ranges = RowRanges::chunks(2048, 1024);
  Options options{.key_ranges = ranges, .scale = 0.01, .tolerance = 1e-2};
  AttentionInputs<float> in(shapes, 4);
  const auto plan = [&] { return make_plan(in.q.view(), in.k.view(), in.v.view(), options); };
  EXPECT_EQ(plan().report().heads[0].path, Path::exact);
  EXPECT_THAT(plan().report().heads[0].reason, testing::HasSubstr("key_ranges are done by the exact path"));
  options.path = Path::polynomial;
  EXPECT_THAT(error_of(plan), testing::HasSubstr("key_ranges"));
  options.path = Path::toeplitz;
  EXPECT_THAT(error_of(plan), testing::HasSubstr("key_ranges are not a function of the lag"));

  EXPECT_THAT(error_of([&] {
                RecurrentAttention<float>(
                    1, 1, 8, 8, {.mask = Mask::causal(), .key_ranges = ranges, .kernel = Kernel::taylor(2)});
              }),
              testing::HasSubstr("a recurrence sees all tokens before: options give 2048 key_ranges"));
  EXPECT_THAT(error_of([&] { BatchPlan<float>(std::vector<Shapes>{shapes}, {.key_ranges = ranges}); }),
              testing::HasSubstr("each sequence has its own"));
}

}  // namespace
}  // namespace fastrope_test
