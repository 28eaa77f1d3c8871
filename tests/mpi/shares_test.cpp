#include "fastrope/mpi/shares.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <utility>
#include <vector>

namespace fastrope_test {
namespace {

using fastrope::Index;
using fastrope::Mask;
using fastrope::Position;
using fastrope::Range;
using fastrope::mpi::pairs_of;
using fastrope::mpi::Piece;
using fastrope::mpi::RankRows;
using fastrope::mpi::shares;

std::vector<RankRows> consecutive(const std::vector<Index>& counts, Position first = 0) {
  std::vector<RankRows> rows;
  for (const Index n : counts) {
    rows.push_back({n, first, first + n - 1, true});
    first += n;
  }
  return rows;
}

double pairs_one_by_one(const RankRows& q, const RankRows& k, const Mask& mask) {
  double pairs = 0;
  for (Position i = q.least; i <= q.most; ++i)
    for (Position j = k.least; j <= k.most; ++j) pairs += mask.allows(i - j);
  return pairs;
}

TEST(Shares, CountPairs) {
  for (const Mask& mask : {Mask::full(), Mask::causal(), Mask::sliding_window(7), Mask::lags(-3, 12)})
    for (const Position first : {-40, -12, 0, 5, 33})
      for (const Index n : {0, 1, 9, 30}) {
        const RankRows queries{20, 0, 19, true}, keys{n, first, first + n - 1, true};
        EXPECT_EQ(pairs_of(queries, keys, mask), n == 0 ? 0 : pairs_one_by_one(queries, keys, mask));
        EXPECT_EQ(pairs_of(keys, queries, mask), n == 0 ? 0 : pairs_one_by_one(keys, queries, mask));
      }
}

/// Every pair that the mask allows is in one piece, which one of its two ranks computes. Returns the load of
/// the busiest rank over the mean.
double busiest(const std::vector<RankRows>& queries, const std::vector<RankRows>& keys, const Mask& mask,
               bool queries_move) {
  const std::size_t ranks = queries.size();
  std::vector<double> load(ranks, 0.0);
  std::vector<std::vector<Index>> covered(ranks, std::vector<Index>(ranks, 0));
  for (const Piece& p : shares(queries, keys, mask, queries_move)) {
    EXPECT_TRUE(p.worker == p.query_rank || (queries_move && p.worker == p.key_rank));
    const auto q = static_cast<std::size_t>(p.query_rank), k = static_cast<std::size_t>(p.key_rank);
    EXPECT_EQ(p.rows.begin, covered[q][k]);
    EXPECT_LT(p.rows.begin, p.rows.end);
    covered[q][k] = p.rows.end;
    load[static_cast<std::size_t>(p.worker)] += pairs_of(queries[q], keys[k], mask) *
                                                static_cast<double>(p.rows.size()) /
                                                static_cast<double>(queries[q].count);
  }
  for (std::size_t q = 0; q < ranks; ++q)
    for (std::size_t k = 0; k < ranks; ++k)
      EXPECT_EQ(covered[q][k], pairs_of(queries[q], keys[k], mask) > 0 ? queries[q].count : 0);
  const double all = std::accumulate(load.begin(), load.end(), 0.0);
  return all == 0 ? 1 : *std::max_element(load.begin(), load.end()) * static_cast<double>(ranks) / all;
}

TEST(Shares, KeepAllRanksBusy) {
  for (const std::size_t ranks : {1u, 2u, 3u, 4u, 7u, 8u, 16u, 61u}) {
    const std::vector<RankRows> rows = consecutive(std::vector<Index>(ranks, 4800));
    EXPECT_LE(busiest(rows, rows, Mask::full(), true), 1.001) << ranks;
    EXPECT_LE(busiest(rows, rows, Mask::causal(), true), 1.02) << ranks;
    EXPECT_LE(busiest(rows, rows, Mask::sliding_window(1000), true), 1.1) << ranks;
    // The last rank's queries alone would see twice the mean.
    if (ranks == 1) continue;
    EXPECT_GT(busiest(rows, rows, Mask::causal(), false), 1.3) << ranks;
  }
}

TEST(Shares, OfUnequalRanks) {
  const std::vector<RankRows> some = consecutive({100, 0, 4000, 1, 700, 0}),
                              even = consecutive({800, 800, 800, 801, 800, 800});
  for (const Mask& mask : {Mask::full(), Mask::causal(), Mask::sliding_window(90)})
    for (const bool move : {false, true}) {
      busiest(some, even, mask, move);
      busiest(even, some, mask, move);
    }
  // One rank has all queries: the others take the share of theirs that meets their keys.
  EXPECT_LE(busiest(consecutive({0, 4800, 0, 0}), consecutive({1200, 1200, 1200, 1200}), Mask::full(), true),
            1.1);
}

TEST(Shares, WherePositionsAreNotConsecutive) {
  const RankRows queries{10, 0, 90, false}, before{10, -50, -1, false}, after{10, 91, 200, false};
  EXPECT_EQ(pairs_of(queries, before, Mask::causal()), 100);
  EXPECT_EQ(pairs_of(queries, after, Mask::causal()), 0);
  EXPECT_EQ(pairs_of(queries, after, Mask::full()), 100);
}

}  // namespace
}  // namespace fastrope_test
