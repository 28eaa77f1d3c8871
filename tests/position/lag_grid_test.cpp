// Positions, lags and allowed ranges against the mask applied to every pair.
#include "fastrope/position/lag_grid.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "support/inputs.hpp"

namespace {

using fastrope::Error;
using fastrope::Index;
using fastrope::LagGrid;
using fastrope::Mask;
using fastrope::Position;
using fastrope::Range;
using fastrope_test::Inputs;
using Positions = std::vector<Position>;

Positions consecutive(Index n, Position first) {
  Positions positions(static_cast<std::size_t>(n));
  std::iota(positions.begin(), positions.end(), first);
  return positions;
}

/// Every query of the grid against every key, one pair at a time.
void expect_agrees_with_pairs(const LagGrid& grid, const Positions& queries, const Positions& keys,
                              const Mask& mask) {
  const Index n_q = static_cast<Index>(queries.size()), n_k = static_cast<Index>(keys.size());
  ASSERT_EQ(grid.n_q(), n_q);
  ASSERT_EQ(grid.n_k(), n_k);
  ASSERT_EQ(grid.mask(), mask);

  std::vector<bool> named(keys.size());
  for (Index j = 0; j < n_k; ++j) {
    const auto source = static_cast<std::size_t>(grid.source(j));
    ASSERT_LT(source, keys.size());
    EXPECT_FALSE(named[source]) << "row " << source << " is named twice";
    named[source] = true;
    EXPECT_EQ(grid.key_position(j), keys[source]);
    EXPECT_LE(grid.key_position(std::max<Index>(j - 1, 0)), grid.key_position(j));
  }

  double pairs = 0;
  Position first = std::numeric_limits<Position>::max(), last = std::numeric_limits<Position>::min();
  for (Index i = 0; i < n_q; ++i) {
    const Position p = queries[static_cast<std::size_t>(i)];
    EXPECT_EQ(grid.query_position(i), p);
    const Range allowed = grid.keys_of(i);
    EXPECT_TRUE(allowed.empty() || (0 <= allowed.begin && allowed.end <= n_k));
    for (Index j = 0; j < n_k; ++j) {
      const Position lag = p - grid.key_position(j);
      EXPECT_EQ(grid.lag(i, j), lag);
      EXPECT_TRUE(!grid.consecutive() || lag == i - j + grid.offset());
      const bool inside = allowed.begin <= j && j < allowed.end;
      EXPECT_EQ(inside, mask.first <= lag && lag <= mask.last) << "query " << i << " key " << j;
      if (!inside) continue;
      ++pairs;
      first = std::min(first, lag);
      last = std::max(last, lag);
    }
  }
  EXPECT_EQ(grid.allowed_pairs(), pairs);
  const LagGrid::Lags lags = grid.allowed_lags();
  if (pairs == 0) {
    EXPECT_GT(lags.first, lags.last);
  } else {
    EXPECT_EQ(lags.first, first);
    EXPECT_EQ(lags.last, last);
  }
  EXPECT_EQ(grid.ascending_queries(), std::is_sorted(queries.begin(), queries.end()));
}

/// keys_of(rows) and pairs_of(rows) against the rows' own ranges.
void expect_hulls(const LagGrid& grid) {
  for (Index a = 0; a <= grid.n_q(); ++a) {
    for (Index b = a; b <= grid.n_q(); ++b) {
      Index begin = grid.n_k(), end = 0;
      double pairs = 0;
      for (Index i = a; i < b; ++i) {
        pairs += static_cast<double>(grid.keys_of(i).size());
        if (grid.keys_of(i).empty()) continue;
        begin = std::min(begin, grid.keys_of(i).begin);
        end = std::max(end, grid.keys_of(i).end);
      }
      EXPECT_EQ(grid.pairs_of({a, b}), pairs);
      const Range hull = grid.keys_of(Range{a, b});
      if (begin >= end) {
        EXPECT_TRUE(hull.empty());
      } else {
        EXPECT_EQ(hull, (Range{begin, end}));
      }
    }
  }
}

/// pairs_of(rows) against every pair of the rows.
void expect_pairs(const LagGrid& grid) {
  for (Index a = 0; a <= grid.n_q(); ++a) {
    double pairs = 0;
    for (Index b = a; b <= grid.n_q(); ++b) {
      EXPECT_EQ(grid.pairs_of({a, b}), pairs) << "rows " << a << " to " << b;
      if (b < grid.n_q())
        for (Index j = 0; j < grid.n_k(); ++j) pairs += grid.mask().allows(grid.lag(b, j));
    }
  }
}

const Mask kMasks[] = {Mask::full(),
                       Mask::causal(),
                       Mask::sliding_window(1),
                       Mask::sliding_window(4),
                       Mask::lags(-2, 3),
                       Mask::lags(2, 5),
                       Mask::lags(-7, -3),
                       Mask::lags(-2000, -1000),
                       Mask::lags(-Mask::kUnlimited, 0),
                       Mask::lags(1000, 2000)};

TEST(LagGrid, QueriesStandWhereTheLastKeysStandInOrderOfPosition) {
  const std::vector<Position> keys = {5, 2, 9, 7};
  const LagGrid grid(2, 4, {}, keys, Mask::full());
  EXPECT_EQ(grid.query_position(0), 7);
  EXPECT_EQ(grid.query_position(1), 9);
}

TEST(LagGrid, KeysOfOnePositionStayInTheOrderInWhichTheyAreStored) {
  for (const Positions& keys :
       {Positions{5, 6, 7, 2, 3}, {5, 6, 5, 5}, {5, 7, 2, 5}, {4, 4, 1, 1}, {3, 1, 2, 1}}) {
    const auto n = static_cast<Index>(keys.size());
    std::vector<Index> expected(keys.size());
    std::iota(expected.begin(), expected.end(), Index{0});
    std::stable_sort(expected.begin(), expected.end(), [&](Index a, Index b) { return keys[a] < keys[b]; });
    const LagGrid grid(1, n, Positions{9}, keys, Mask::full());
    for (Index j = 0; j < n; ++j) {
      EXPECT_EQ(grid.source(j), expected[j]);
      EXPECT_EQ(grid.key_position(j), keys[expected[j]]);
    }
  }
}

TEST(LagGrid, DefaultsPutTheQueriesAtTheEndOfTheKeys) {
  for (const Mask& mask : kMasks)
    for (const Index n_k : {0, 1, 9})
      for (const Index n_q : {0, 1, 4, 9, 12}) {  // more queries than keys start before key 0
        const LagGrid grid(n_q, n_k, {}, {}, mask);
        EXPECT_TRUE(grid.consecutive());
        EXPECT_EQ(grid.offset(), n_k - n_q);
        expect_agrees_with_pairs(grid, consecutive(n_q, n_k - n_q), consecutive(n_k, 0), mask);
        expect_hulls(grid);
        expect_pairs(grid);
      }
}

TEST(LagGrid, ExplicitConsecutivePositionsAreRecognised) {
  for (const Mask& mask : kMasks)
    for (const Position first_query : {-20, 0, 4, 11}) {
      const Positions queries = consecutive(5, first_query), keys = consecutive(8, 3);
      const LagGrid grid(5, 8, queries, keys, mask);
      EXPECT_TRUE(grid.consecutive());
      EXPECT_EQ(grid.offset(), first_query - 3);
      expect_agrees_with_pairs(grid, queries, keys, mask);
      expect_hulls(grid);
      expect_pairs(grid);
    }
}

TEST(LagGrid, ARingCacheIsConsecutiveOnceSorted) {
  Positions keys = consecutive(10, 90);
  std::rotate(keys.begin(), keys.begin() + 3, keys.end());
  const Positions queries{99};
  for (const Mask& mask : kMasks) {
    const LagGrid grid(1, 10, queries, keys, mask);
    EXPECT_TRUE(grid.consecutive());
    EXPECT_EQ(grid.offset(), 9);
    expect_agrees_with_pairs(grid, queries, keys, mask);
  }
}

TEST(LagGrid, GapsAndEqualPositionsKeepTheirOrder) {
  const Positions keys{2, 2, 5, 5, 5, 9}, queries{2, 5, 5, 20};
  const LagGrid grid(4, 6, queries, keys, Mask::causal());
  EXPECT_FALSE(grid.consecutive());
  for (Index j = 0; j < 6; ++j) EXPECT_EQ(grid.source(j), j);
  EXPECT_EQ(grid.keys_of(1), (Range{0, 5})) << "every key at the query's own position";
  expect_agrees_with_pairs(grid, queries, keys, Mask::causal());
}

TEST(LagGrid, RandomPositionsAgreeWithEveryPair) {
  Inputs inputs(31);
  for (int round = 0; round < 300; ++round) {
    Positions queries(static_cast<std::size_t>(inputs.integer(0, 9)));
    Positions keys(static_cast<std::size_t>(inputs.integer(0, 12)));
    const Position spread = inputs.integer(0, 15);
    for (Position& p : queries) p = inputs.integer(-spread, spread);
    for (Position& p : keys) p = inputs.integer(-spread, spread);
    Mask mask = kMasks[static_cast<std::size_t>(round) % std::size(kMasks)];
    if (round % 3 == 0) {
      const auto [first, last] =
          std::minmax({inputs.integer(-spread - 2, 4), inputs.integer(-4, spread + 2)});
      mask = Mask::lags(first, last);
    }
    if (queries.empty() || keys.empty()) continue;  // an empty span means the defaults
    const LagGrid grid(static_cast<Index>(queries.size()), static_cast<Index>(keys.size()), queries, keys,
                       mask);
    expect_agrees_with_pairs(grid, queries, keys, mask);
    expect_hulls(grid);
    expect_pairs(grid);
    if (testing::Test::HasFailure())
      FAIL() << "round " << round << ", mask " << mask.first << ".." << mask.last;
  }
}

TEST(LagGrid, ShuffledKeysNameTheirRows) {
  Inputs inputs(32);
  Positions keys = consecutive(40, -15);
  std::shuffle(keys.begin(), keys.end(), inputs.random());
  const Positions queries = consecutive(6, 20);
  const LagGrid grid(6, 40, queries, keys, Mask::sliding_window(8));
  EXPECT_TRUE(grid.consecutive());
  expect_agrees_with_pairs(grid, queries, keys, Mask::sliding_window(8));
  expect_pairs(grid);
}

TEST(LagGrid, CountsThePairsOfLongSequences) {
  Inputs inputs(33);
  for (int round = 0; round < 40; ++round) {
    const Index n_q = inputs.integer(1, 3000), n_k = inputs.integer(1, 100000);
    Mask mask = kMasks[static_cast<std::size_t>(round) % std::size(kMasks)];
    if (round % 2 == 0) mask = Mask::lags(inputs.integer(-4000, -100), inputs.integer(-100, 60000));
    const Positions queries = consecutive(n_q, inputs.integer(-5000, 100000));
    const LagGrid grid(n_q, n_k, queries, {}, mask);
    ASSERT_TRUE(grid.consecutive());
    double all = 0;
    for (Index i = 0; i < n_q; ++i) all += static_cast<double>(grid.keys_of(i).size());
    EXPECT_EQ(grid.allowed_pairs(), all) << "round " << round;
    const Index middle = inputs.integer(0, n_q);
    EXPECT_EQ(grid.pairs_of({0, middle}) + grid.pairs_of({middle, n_q}), all) << "round " << round;
  }
}

TEST(LagGrid, HoldsTheFarthestPositions) {
  constexpr Position kMost = LagGrid::kMaxPosition;
  const Positions queries{-kMost, kMost}, keys{kMost, -kMost};
  for (const Mask& mask : {Mask::full(), Mask::causal(), Mask::sliding_window(1)}) {
    const LagGrid grid(2, 2, queries, keys, mask);
    expect_agrees_with_pairs(grid, queries, keys, mask);
    expect_pairs(grid);
  }
}

TEST(LagGrid, CountsPairsOfTheFarthestConsecutivePositions) {
  constexpr Position kMost = LagGrid::kMaxPosition;
  for (const Position first_query : {-kMost, Position{0}, kMost - 4})
    for (const Position first_key : {-kMost, Position{0}, kMost - 6})
      for (const Mask& mask : kMasks) {
        const LagGrid grid(5, 7, consecutive(5, first_query), consecutive(7, first_key), mask);
        EXPECT_TRUE(grid.consecutive());
        expect_pairs(grid);
      }
}

/// The message of the Error that making the grid throws; empty if it does not.
std::string error_of(Index n_q, Index n_k, const Positions& queries, const Positions& keys) {
  try {
    LagGrid(n_q, n_k, queries, keys, Mask::full());
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(LagGridErrors, LengthsAndRange) {
  EXPECT_EQ(error_of(2, 3, {0, 5}, {1, 2, 3}), "");
  const std::string queries = error_of(2, 3, {0, 5, 6}, {});
  for (const char* part : {"query_positions", "3", "2"})
    EXPECT_NE(queries.find(part), std::string::npos) << queries;
  const std::string keys = error_of(2, 3, {}, {1, 2});
  for (const char* part : {"key_positions", "2", "3"}) EXPECT_NE(keys.find(part), std::string::npos) << keys;
  for (const Index rows : {Index{-1}, LagGrid::kMaxPosition + 1, std::numeric_limits<Index>::min()}) {
    EXPECT_NE(error_of(rows, 1, {}, {}).find(std::to_string(rows)), std::string::npos);
    EXPECT_NE(error_of(1, rows, {}, {}).find(std::to_string(rows)), std::string::npos);
  }
  EXPECT_EQ(error_of(LagGrid::kMaxPosition, LagGrid::kMaxPosition, {}, {}), "");
  for (const Position far : {LagGrid::kMaxPosition + 1, -LagGrid::kMaxPosition - 1,
                             std::numeric_limits<Position>::min(), std::numeric_limits<Position>::max()}) {
    EXPECT_NE(error_of(1, 1, {far}, {}).find(std::to_string(far)), std::string::npos);
    EXPECT_NE(error_of(1, 2, {}, {0, far}).find(std::to_string(far)), std::string::npos);
  }
}

TEST(LagGridErrors, AMaskWhoseFirstLagIsAboveItsLast) {
  try {
    LagGrid(2, 3, {}, {}, Mask{5, -7});  // as an aggregate, that nothing has looked at yet
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    for (const char* part : {"5", "-7"}) EXPECT_NE(std::string(error.what()).find(part), std::string::npos);
  }
}

TEST(LagGrid, KnowsTheFarthestPosition) {
  EXPECT_EQ(LagGrid(0, 0, {}, {}, Mask::full()).farthest_position(), 0);
  EXPECT_EQ(LagGrid(3, 9, {}, {}, Mask::full()).farthest_position(), 8);
  EXPECT_EQ(LagGrid(20, 4, {}, {}, Mask::full()).farthest_position(), 16) << "queries from -16 on";
  const Positions near = {3, -2, 1}, below = {2, -50, 7}, above = {2, 60, 7}, row = {-9, -8, -7};
  EXPECT_EQ(LagGrid(3, 3, near, near, Mask::full()).farthest_position(), 3);
  EXPECT_EQ(LagGrid(3, 3, below, near, Mask::full()).farthest_position(), 50);
  EXPECT_EQ(LagGrid(3, 3, above, near, Mask::full()).farthest_position(), 60);
  EXPECT_EQ(LagGrid(3, 3, near, below, Mask::full()).farthest_position(), 50);
  EXPECT_EQ(LagGrid(3, 3, near, above, Mask::full()).farthest_position(), 60);
  EXPECT_EQ(LagGrid(3, 3, row, near, Mask::full()).farthest_position(), 9);
  EXPECT_EQ(LagGrid(0, 3, {}, row, Mask::full()).farthest_position(), 9);
}

}  // namespace
