// Chunks of rows and their far keys, against every pair of the mask.
#include "fastrope/polynomial/far_pairs.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "support/inputs.hpp"
#include "support/tensor.hpp"

namespace fastrope_test {
namespace {

using fastrope::far_chunks;
using fastrope::FarPairs;
using fastrope::kKeyBlock;
using fastrope::Mask;
using fastrope::Options;
using fastrope::polynomial_refusal;
using fastrope::Position;
using fastrope::Problem;

using Positions = std::vector<Position>;

/// A mask over positions; empty lists are the defaults.
struct Pairs {
  Index n_q, n_k;
  Mask mask;
  Positions queries = {}, keys = {};

  Problem problem() const {
    Options options;
    options.mask = mask;
    options.query_positions = queries;
    options.key_positions = keys;
    return {{1, 1, n_q, n_k, 4, 4}, options};
  }
  Position query(Index i) const {
    return queries.empty() ? n_k - n_q + i : queries[static_cast<std::size_t>(i)];
  }
  /// The positions of keys in ascending order.
  Positions sorted_keys() const {
    Positions sorted = keys;
    for (Index j = 0; keys.empty() && j < n_k; ++j) sorted.push_back(j);
    std::sort(sorted.begin(), sorted.end());
    return sorted;
  }
  /// How many of the first keys row i may attend to, without a gap. sorted: sorted_keys().
  Index reach(Index i, const Positions& sorted) const {
    Index reach = 0;
    while (reach < n_k && mask.allows(query(i) - sorted[static_cast<std::size_t>(reach)])) ++reach;
    return reach;
  }
};

std::ostream& operator<<(std::ostream& out, const Pairs& p) {
  return out << p.n_q << " queries, " << p.n_k << " keys, lags " << p.mask.first << ".." << p.mask.last
             << (p.queries.empty() ? "" : ", query positions") << (p.keys.empty() ? "" : ", key positions");
}

/// Ascending positions with gaps and repetitions.
Positions ascending(Inputs& random, Index n, Position first, Position step) {
  Positions positions;
  for (Index i = 0; i < n; ++i) {
    positions.push_back(first);
    first += random.integer(0, step);
  }
  return positions;
}

Positions shuffled(Inputs& random, Positions positions) {
  std::shuffle(positions.begin(), positions.end(), random.random());
  return positions;
}

/// What the polynomial path takes of these.
std::vector<Pairs> problems() {
  Inputs random(1);
  std::vector<Pairs> all;
  const Mask masks[] = {Mask::full(),
                        Mask::causal(),
                        Mask::lags(5, Mask::kUnlimited),
                        Mask::lags(-300, Mask::kUnlimited),
                        Mask::lags(400, Mask::kUnlimited),
                        Mask::sliding_window(2000),
                        Mask::sliding_window(16),
                        Mask::lags(-2000, -1000),
                        Mask::lags(100000, 200000)};
  for (const Mask mask : masks) {
    for (const auto& [n_q, n_k] : {std::pair{700, 700},
                                   {300, 900},
                                   {900, 300},
                                   {1, 500},
                                   {500, 1},
                                   {513, 256},
                                   {64, 128},
                                   {128, 0},
                                   {0, 128},
                                   {0, 0}}) {
      all.push_back({n_q, n_k, mask});
      all.push_back({n_q, n_k, mask, ascending(random, n_q, -20, 3)});
      all.push_back({n_q, n_k, mask, ascending(random, n_q, 3 * n_k, 1)});
      all.push_back(
          {n_q, n_k, mask, ascending(random, n_q, 10, 3), shuffled(random, ascending(random, n_k, 0, 3))});
      all.push_back(
          {n_q, n_k, mask, ascending(random, n_q, 0, 0), shuffled(random, ascending(random, n_k, -90, 1))});
    }
  }
  std::erase_if(all, [](const Pairs& p) { return !polynomial_refusal(p.problem()).empty(); });
  return all;
}

template <class Real>
class FarChunks : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(FarChunks, Reals);

TYPED_TEST(FarChunks, CoverTheRowsOnceInOrder) {
  for (const Pairs& p : problems())
    for (const Index rows : {1, 7, 48, 100, 768, 5000}) {
      Index next = 0, far = 0;
      for (const FarPairs& chunk : far_chunks<TypeParam>(p.problem(), rows)) {
        EXPECT_EQ(chunk.rows.begin, next) << p << ", chunks of " << rows;
        EXPECT_FALSE(chunk.rows.empty()) << p << ", chunks of " << rows;
        EXPECT_TRUE(next == 0 || chunk.far > far) << "neighbours of the same keys are one chunk: " << p;
        EXPECT_TRUE(chunk.rows.end == p.n_q || chunk.rows.end % rows == 0) << p;
        next = chunk.rows.end;
        far = chunk.far;
      }
      EXPECT_EQ(next, p.n_q) << p << ", chunks of " << rows;
    }
}

TYPED_TEST(FarChunks, FarAreTheWholeBlocksThatTheFirstRowMayAttendTo) {
  constexpr Index kBlock = kKeyBlock<TypeParam>;
  for (const Pairs& p : problems()) {
    const Positions keys = p.sorted_keys();
    for (const Index rows : {1, 48, 100, 768})
      for (const FarPairs& chunk : far_chunks<TypeParam>(p.problem(), rows))
        // Those that were merged into the chunk begin with rows of their own.
        for (Index i = chunk.rows.begin; i < chunk.rows.end; i += rows) {
          const Index reach = p.reach(i, keys);
          ASSERT_EQ(chunk.far, reach == p.n_k ? p.n_k : reach / kBlock * kBlock)
              << p << ", chunks of " << rows << ", row " << i << " reaches " << reach << " keys";
        }
  }
}

TYPED_TEST(FarChunks, EveryPairIsAllowed) {
  for (const Pairs& p : problems()) {
    const Positions keys = p.sorted_keys();
    for (const Index rows : {1, 48, 100, 768})
      for (const FarPairs& chunk : far_chunks<TypeParam>(p.problem(), rows))
        for (Index i = chunk.rows.begin; i < chunk.rows.end; ++i) {
          ASSERT_LE(chunk.far, p.n_k) << p;
          for (Index j = 0; j < chunk.far; ++j)
            ASSERT_TRUE(p.mask.allows(p.query(i) - keys[static_cast<std::size_t>(j)]))
                << p << ", chunks of " << rows << ": row " << i << ", key " << j;
        }
  }
}

TYPED_TEST(FarChunks, LargerChunksHaveNoPairsThatSmallerOnesHaveNot) {
  const auto far_of_rows = [](const Pairs& p, Index rows) {
    std::vector<Index> far(static_cast<std::size_t>(p.n_q));
    for (const FarPairs& chunk : far_chunks<TypeParam>(p.problem(), rows))
      std::fill(far.begin() + chunk.rows.begin, far.begin() + chunk.rows.end, chunk.far);
    return far;
  };
  for (const Pairs& p : problems())
    for (const auto& [small, large] : {std::pair{1, 7}, {16, 48}, {48, 96}, {96, 768}, {48, 768}}) {
      const std::vector<Index> of_small = far_of_rows(p, small), of_large = far_of_rows(p, large);
      for (std::size_t i = 0; i < of_small.size(); ++i)
        ASSERT_LE(of_large[i], of_small[i])
            << p << ", chunks of " << small << " and " << large << ", row " << i;
    }
}

TYPED_TEST(FarChunks, OfACausalSquare) {
  constexpr Index kBlock = kKeyBlock<TypeParam>;
  const Pairs causal{4 * kBlock, 4 * kBlock, Mask::causal()};
  const auto chunks = far_chunks<TypeParam>(causal.problem(), kBlock / 2);
  // Row i reaches i + 1 keys: a chunk's first row misses the whole block by those after it.
  ASSERT_EQ(chunks.size(), 4);
  for (Index c = 0; c < 4; ++c) {
    EXPECT_EQ(chunks[static_cast<std::size_t>(c)].rows, (fastrope::Range{c * kBlock, (c + 1) * kBlock}));
    EXPECT_EQ(chunks[static_cast<std::size_t>(c)].far, c * kBlock);
  }
  const Pairs full{100, 70, Mask::full()};
  const auto one = far_chunks<TypeParam>(full.problem(), 10);
  ASSERT_EQ(one.size(), 1);
  EXPECT_EQ(one[0].rows, (fastrope::Range{0, 100}));
  EXPECT_EQ(one[0].far, 70) << "all keys, be they whole blocks or not";
}

TEST(StateWindow, MovesByWhatEntersAndLeaves) {
  using fastrope::Range;
  using fastrope::StateWindow;
  // Against a set of keys, each counted as often as it was added, both ways.
  for (const bool backwards : {false, true}) {
    StateWindow window;
    std::vector<int> held(1000), fresh(1000);
    Index restarts = 0, removed = 0;
    for (Index step = 0; step < 90; ++step) {
      const Index begin = std::max<Index>(0, 10 * step - 150), end = std::min<Index>(1000, 10 * step + 70);
      const Range keys = backwards ? Range{1000 - end, 1000 - begin} : Range{begin, end};
      const fastrope::StateChange change = window.move_to(keys);
      if (change.restart) {
        ++restarts;
        held = fresh;
        EXPECT_TRUE(change.remove.empty());
      }
      removed += change.remove.size();
      for (Index j = change.remove.begin; j < change.remove.end; ++j) --held[static_cast<std::size_t>(j)];
      for (Index j = change.add.begin; j < change.add.end; ++j) ++held[static_cast<std::size_t>(j)];
      for (Index j = 0; j < 1000; ++j)
        ASSERT_EQ(held[static_cast<std::size_t>(j)], j >= keys.begin && j < keys.end ? 1 : 0)
            << "step " << step << ", key " << j;
    }
    EXPECT_EQ(restarts, 1) << "only the first, as less was removed than four times what is held";
    EXPECT_GT(removed, 700);
  }
  // Windows that do not meet, and many small steps.
  StateWindow window;
  EXPECT_TRUE(window.move_to({0, 10}).restart);
  EXPECT_TRUE(window.move_to({20, 30}).restart);
  Index restarts = 0;
  for (Index i = 21; i < 200; ++i) restarts += window.move_to({i, i + 10}).restart ? 1 : 0;
  EXPECT_EQ(restarts, 179 / 41) << "every 41st step";
}

}  // namespace
}  // namespace fastrope_test
