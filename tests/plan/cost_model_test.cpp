// Work counted by hand, and what rates make of it.
#include "fastrope/plan/cost_model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "fastrope/problem/options.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

Problem problem_of(Index n_q, Index n_k, Index d, Index d_v, Mask mask = Mask::full(), Index heads = 1) {
  return Problem({heads, 1, n_q, n_k, d, d_v}, {.mask = mask});
}

TEST(Work, AddsUpKindByKind) {
  const Work a{1, 2, 3, 4, 5, 6}, b{10, 20, 30, 40, 50, 60};
  const Work sum = 2 * a + b;
  EXPECT_EQ(sum.tile, 12);
  EXPECT_EQ(sum.weigh, 24);
  EXPECT_EQ(sum.feature, 36);
  EXPECT_EQ(sum.transform, 48);
  EXPECT_EQ(sum.element, 60);
  EXPECT_EQ(sum.round, 72);
  EXPECT_EQ(a.flops(), 1 + 2 * 3 + 4);
}

TEST(Work, OfTheExactPathIsThatOfItsPairs) {
  // 640 keys are whole panels, 64 columns and channels whole vectors.
  const Work full = exact_work<float>(problem_of(320, 640, 64, 64));
  EXPECT_EQ(full.tile, 4.0 * 320 * 640 * 64);
  EXPECT_EQ(full.weigh, 320 * 640);
  EXPECT_EQ(full.element, 640 * 128 + 320 * 64);
  EXPECT_EQ(full.feature + full.transform + full.round, 0);
  const Problem causal = problem_of(640, 640, 64, 64, Mask::causal());
  const double pairs = causal.grid.allowed_pairs();
  EXPECT_EQ(pairs, 640 * 641 / 2);
  const Work half = exact_work<float>(causal);
  EXPECT_GE(half.weigh, pairs);
  EXPECT_LE(half.weigh, pairs + 640 * 64) << "a panel more for each row";
  // A token over a cache packs nothing.
  EXPECT_LT(exact_work<float>(problem_of(1, 640, 64, 64)).element, 640 * 128 / 4);
}

TEST(Work, OfTheExactPathIsThatOfWholePanelsAndVectors) {
  const auto expect = [](auto real) {
    using Real = decltype(real);
    constexpr Index kPanel = PackedKeys<Real>::kWidth, kLanes = simd::kLanes<Real>;
    // One panel holds all keys, one vector all channels.
    const Problem problem = problem_of(100, kPanel - 1, 3, kLanes - 1);
    const double pairs = 100 * static_cast<double>(kPanel - 1), computed = 100 * static_cast<double>(kPanel);
    const Work w = tile_work<Real>(problem, pairs, 100);
    EXPECT_EQ(w.tile, 2 * computed * static_cast<double>(3 + kLanes));
    EXPECT_EQ(w.weigh, computed);
    // Rows with few pairs compute a panel more than those.
    EXPECT_EQ(tile_work<Real>(problem_of(100, 10 * kPanel, 3, 5), 700, 100).weigh, 700 + computed);
    // No rows, as where transforms leave none.
    EXPECT_EQ(tile_work<Real>(problem, 0, 0).tile, 0);
  };
  expect(0.0f);
  expect(0.0);
}

TEST(Work, OfBiasesAndGeneralWeights) {
  Problem problem = problem_of(100, 640, 8, 64);
  const Work plain = exact_work<float>(problem);
  problem.bias = LagBias::alibi(std::vector<double>{0.1});
  const Work biased = exact_work<float>(problem);
  EXPECT_DOUBLE_EQ(biased.weigh, (1 + kBiased) * plain.weigh);
  EXPECT_EQ(biased.tile, plain.tile);
  // Three flops for an entry of the support, in the place of one for a column.
  problem.weights =
      RelativeWeights({{0, 1}, {2, 3}, {4, 5}, {6, 7}}, -1000, 1000, [](Position, Index) { return 1.0; });
  EXPECT_EQ(exact_work<float>(problem).tile, plain.tile / (8 + 64) * (3 * 4 + 64));
}

TEST(Work, OfNearFieldsIsThatOfTheirPairs) {
  // Eight rows in two chunks: 10 pairs of each are near, the second has 4 far keys.
  const std::vector<FarPairs> chunks = {{{0, 4}, 0}, {{4, 8}, 4}};
  for (const Index heads : {1, 3}) {
    const Problem problem = problem_of(8, 8, 2, 3, Mask::causal(), heads);
    const double count = static_cast<double>(heads);
    const Work w = polynomial_work<float>(problem, 6, heads, chunks);
    const Work near = tile_work<float>(problem, 20 * count, 8 * count) + packing_work(problem, heads);
    const ValueLayout<float> layout(3);
    const double value_columns = static_cast<double>(layout.stride) / static_cast<double>(layout.group);
    EXPECT_DOUBLE_EQ(w.tile - near.tile, 2 * 6 * (4 * value_columns + 4 * count * (3 + 1)));
    EXPECT_DOUBLE_EQ(w.feature, 6 * (4 + 4 * count / 4));
    EXPECT_EQ(w.element - near.element, 6 * (3 + 1) * 2) << "a state for each chunk";
    EXPECT_EQ(w.weigh, near.weigh);
    EXPECT_EQ(w.round, 2) << "the first chunk has nothing far";
  }
}

TEST(Work, HeadsOfAGroupShareThePackingOfTheirKeys) {
  const Problem problem = problem_of(1000, 1000, 8, 8, Mask::causal(), 4);
  EXPECT_EQ(packing_work(problem, 4).element, 1000 * (8 + 8) + 4 * 1000 * 8);
  EXPECT_EQ(packing_work(problem, 1).element, 1000 * (8 + 8) / 4 + 1000 * 8);
  // With all pairs near, features are the exact path under another name, and must not look cheaper.
  const std::vector<FarPairs> near = {{{0, 1000}, 0}};
  const CostModel cost;
  EXPECT_GE(cost.seconds<float>(polynomial_work<float>(problem, 2, 4, near)),
            4 * cost.seconds<float>(exact_work<float>(problem)));
}

TEST(Work, OfWindowsCountsKeysThatAreRemoved) {
  const Problem problem = problem_of(12, 12, 2, 3, Mask::sliding_window(9));
  // Far are keys 0 to 4, then 2 to 6, then 4 to 8: 4 added, 2 added and removed twice.
  const std::vector<FarPairs> chunks = {{{4, 6}, 4, 0}, {{6, 8}, 6, 2}, {{8, 10}, 8, 4}};
  const Work w = polynomial_work<float>(problem, 5, 1, chunks);
  EXPECT_DOUBLE_EQ(w.feature, 5 * (4 + 2 * 4 + 6.0 / 4));
  EXPECT_EQ(w.round, 2 + 3 + 3);
}

TEST(Work, OfTransformsIsThatOfTheirLengths) {
  // 100 x 100 of all lags: an embedding of 200, two transforms for each product.
  const Work w = toeplitz_work<float>(problem_of(100, 100, 4, 3), 5, 2);
  const double product = 2 * 2.5 * 200 * std::log2(200.0);
  EXPECT_DOUBLE_EQ(w.transform, (5 * 4 + 1) * product);
  EXPECT_DOUBLE_EQ(w.element, 5 * 4 / 2 * 200 + 100 * (4 + 3) + 100 * 4);
  EXPECT_EQ(w.tile + w.weigh + w.feature + w.round, 0);
  // A band is cut into segments.
  const double wide = toeplitz_work<float>(problem_of(1 << 17, 1 << 17, 4, 3), 5, 1).transform,
               narrow =
                   toeplitz_work<float>(problem_of(1 << 17, 1 << 17, 4, 3, Mask::sliding_window(64)), 5, 1)
                       .transform;
  EXPECT_LT(narrow, 0.6 * wide);
}

TEST(Work, OfFeaturesIsLinearInRankAndRows) {
  const Problem problem = problem_of(1000, 2000, 8, 15, Mask::full(), 4);
  const std::vector<FarPairs> all = {{{0, 1000}, 2000}};
  const Work w = polynomial_work<float>(problem, 45, 1, all);
  EXPECT_EQ(w.weigh + w.transform, 0) << "no near field";
  // 16 channels for a row; a key's values fill a vector.
  EXPECT_GE(w.tile, 2.0 * 45 * (1000 * 16 + 2000 * 15));
  EXPECT_LE(w.tile, 2.0 * 45 * 3000 * 16);
  EXPECT_GE(w.feature, 45 * 2000);
  EXPECT_LE(w.feature, 45 * 3000);
  const Work twice = polynomial_work<float>(problem, 90, 1, all);
  EXPECT_EQ(twice.tile, 2 * w.tile);
  EXPECT_EQ(twice.feature, 2 * w.feature);
  // Heads that share features share the keys' part.
  const Work shared = polynomial_work<float>(problem, 45, 4, all);
  EXPECT_LT(shared.tile, 4 * w.tile);
  EXPECT_GT(shared.tile, w.tile);
}

TEST(CostModel, IsLinearInWorkAndDoubleTakesTwiceAsLong) {
  const CostModel cost{
      .tile = 2, .weigh = 4, .feature = 8, .transform = 16, .element = 32, .round = 64, .look = 1};
  EXPECT_EQ(cost.seconds<float>({.tile = 2, .weigh = 4, .feature = 8, .transform = 16, .element = 32}), 5);
  EXPECT_EQ(cost.seconds<double>({.tile = 2, .weigh = 4, .feature = 8, .transform = 16, .element = 32}), 10);
  EXPECT_EQ(cost.seconds<float>({.round = 64}), 1);
  EXPECT_EQ(cost.seconds<double>({.round = 64}), 1);
}

TEST(CostModel, TakesTheCheapestChunks) {
  const Problem problem = problem_of(20000, 20000, 8, 8, Mask::causal());
  const CostModel cost;
  for (const double rank : {2.0, 45.0, 495.0, 6000.0}) {
    const auto seconds = [&](const std::vector<FarPairs>& chunks) {
      return cost.seconds<float>(polynomial_work<float>(problem, rank, 1, chunks));
    };
    const double chosen = seconds(cost.best_chunks<float>(problem, rank, 1));
    for (Index rows = CostModel::kLeastChunk; rows < 40000; rows *= 2)
      EXPECT_LE(chosen, seconds(far_chunks<float>(problem, rows)))
          << "rank " << rank << ", " << rows << " rows";
  }
}

TEST(CostModel, TakesTheCheapestChunksOfAnyShape) {
  const auto expect = [](auto real, const Problem& problem, Index heads) {
    using Real = decltype(real);
    const CostModel cost;
    double most_wasted = 0;
    for (double rank = 1; rank < 1e6; rank *= 3) {
      const auto seconds = [&](const std::vector<FarPairs>& chunks) {
        return cost.seconds<Real>(polynomial_work<Real>(problem, rank, heads, chunks));
      };
      double least = std::numeric_limits<double>::infinity();
      for (Index rows = CostModel::kLeastChunk; rows < 4 * problem.shapes.n_q; rows *= 2)
        least = std::min(least, seconds(far_chunks<Real>(problem, rows)));
      most_wasted = std::max(most_wasted, seconds(cost.best_chunks<Real>(problem, rank, heads)) / least - 1);
    }
    const Shapes& s = problem.shapes;
    EXPECT_LE(most_wasted, 1e-12) << "n_q " << s.n_q << ", n_k " << s.n_k << ", d_v " << s.d_v << ", "
                                  << heads << " heads";
  };
  for (const auto& [n_q, n_k] :
       {std::pair<Index, Index>{150, 5000}, {300, 300}, {5000, 5000}, {700, 20000}, {20000, 20000}})
    for (const Index d_v : {1, 8, 64})
      for (const Index heads : {1, 4})
        for (const Mask& mask : {Mask::full(), Mask::causal(), Mask::lags(-300, Mask::kUnlimited)}) {
          expect(0.0f, problem_of(n_q, n_k, 8, d_v, mask, heads), heads);
          expect(0.0, problem_of(n_q, n_k, 8, d_v, mask, heads), heads);
        }
}

}  // namespace
}  // namespace fastrope_test
