// Key ranges: the patterns by their definitions, sets of keys against plain loops, and what is refused.
#include "fastrope/position/key_ranges.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "fastrope/position/lag_grid.hpp"
#include "support/error_of.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::ElementsAre;
using testing::HasSubstr;

/// allowed(i, j) for every pair, as the ranges of each row say.
void expect_pairs(const RowRanges& rows, Index n_q, Index n_k,
                  const std::function<bool(Index, Index)>& allowed) {
  ASSERT_EQ(std::ssize(rows.ranges), n_q * rows.per_row);
  const LagGrid grid(n_q, n_k, {}, {}, Mask::full(), rows);
  for (Index i = 0; i < n_q; ++i) {
    std::vector<bool> seen(static_cast<std::size_t>(n_k));
    grid.keys_of(0, i).for_each({0, n_k}, [&](Range piece) {
      for (Index j = piece.begin; j < piece.end; ++j) seen[static_cast<std::size_t>(j)] = true;
    });
    for (Index j = 0; j < n_k; ++j)
      EXPECT_EQ(seen[static_cast<std::size_t>(j)], allowed(i, j)) << "row " << i << ", key " << j;
  }
}

TEST(RowRanges, DocumentsSeeTheirOwnTokens) {
  const std::vector<Index> lengths = {2, 0, 3, 1};
  const std::vector<Index> document = {0, 0, 2, 2, 2, 3};
  expect_pairs(RowRanges::documents(lengths), 6, 6, [&](Index i, Index j) {
    return document[static_cast<std::size_t>(i)] == document[static_cast<std::size_t>(j)];
  });
  EXPECT_EQ(error_of([] { RowRanges::documents(std::vector<Index>{3, -1}); }), "document 1 has -1 tokens");
}

TEST(RowRanges, ChunksAndPrefixes) {
  expect_pairs(RowRanges::chunks(11, 4), 11, 11, [](Index i, Index j) { return i / 4 == j / 4; });
  expect_pairs(RowRanges::prefix(9, 4), 9, 9, [](Index i, Index j) { return j < 4 || j <= i; });
  expect_pairs(RowRanges::prefix(3, 0), 3, 3, [](Index i, Index j) { return j <= i; });
  EXPECT_EQ(error_of([] { RowRanges::chunks(8, 0); }), "8 tokens cannot be cut into chunks of 0");
  EXPECT_EQ(error_of([] { RowRanges::prefix(3, 4); }), "a prefix of 4 of 3 tokens");
}

TEST(RowRanges, TokensOfATreeSeeTheirAncestors) {
  const std::vector<Index> parents = {-1, 0, 0, 1, 2, 3, -1};
  for (const Index cached : {0, 5}) {
    const RowRanges tree = RowRanges::tree(cached, parents);
    expect_pairs(tree, 7, cached + 7, [&](Index i, Index j) {
      if (j < cached) return true;
      for (Index t = i; t >= 0; t = parents[static_cast<std::size_t>(t)])
        if (t == j - cached) return true;
      return false;
    });
    EXPECT_EQ(tree.per_row, cached == 0 ? 3 : 3) << "neighbours are one range";
  }
  EXPECT_EQ(error_of([] {
              RowRanges::tree(5, std::vector<Index>{-1, 1});
            }),
            "the parent of drafted token 1 is 1: it must come before, or be -1");
}

TEST(KeySet, AgreesWithPlainLoops) {
  const std::vector<std::vector<Range>> sets = {{}, {{3, 9}}, {{0, 2}, {3, 4}, {7, 12}}, {{5, 6}, {19, 20}}};
  for (const auto& pieces : sets) {
    const KeySet set(pieces);
    const auto has = [&](Index j) {
      return std::any_of(pieces.begin(), pieces.end(), [j](Range r) { return r.begin <= j && j < r.end; });
    };
    Index size = 0;
    for (Index j = 0; j < 20; ++j) size += has(j);
    EXPECT_EQ(set.size(), size);
    EXPECT_EQ(set.empty(), size == 0);
    for (Index a = 0; a <= 20; ++a) {
      Index next = a;
      while (next < 20 && !has(next)) ++next;
      if (next < 20) {
        EXPECT_EQ(set.next(a), next);
      }
      for (Index b = a; b <= 20; ++b) {
        Range expected;
        bool gap = false;
        for (Index j = a; j < b; ++j)
          if (has(j)) {
            gap |= !expected.empty() && expected.end != j;
            expected = hull(expected, {j, j + 1});
          }
        EXPECT_EQ(set.hull({a, b}).size(), expected.size());
        if (!expected.empty()) {
          EXPECT_EQ(set.hull({a, b}), expected);
        }
        EXPECT_EQ(set.solid({a, b}).size(), gap ? 0 : expected.size()) << a << " to " << b;
        Index visited = 0;
        set.for_each({a, b}, [&](Range piece) {
          EXPECT_FALSE(piece.empty());
          visited += piece.size();
          for (Index j = piece.begin; j < piece.end; ++j) EXPECT_TRUE(has(j) && a <= j && j < b);
        });
        Index within = 0;
        for (Index j = a; j < b; ++j) within += has(j);
        EXPECT_EQ(visited, within);
      }
    }
  }
}

TEST(KeyRanges, AMaskLeavesAPartOfEach) {
  const std::vector<Range> ranges = {{0, 3}, {4, 8}, {2, 2}, {5, 9}};
  const LagGrid grid(2, 10, {}, {}, Mask::lags(1, 5), KeyRanges{ranges, 2});
  // Row 0 stands at 8: keys 3 to 7; row 1 at 9: keys 4 to 8.
  EXPECT_EQ(grid.keys_of(0, 0).hull(), (Range{4, 8}));
  EXPECT_EQ(grid.keys_of(7, 1).hull(), (Range{5, 9})) << "the same in every head";
  EXPECT_EQ(grid.reached().hull(), (Range{4, 9}));
  EXPECT_EQ(grid.allowed_pairs(), 8);
  EXPECT_EQ(grid.allowed_lags().first, 1);
  EXPECT_EQ(grid.allowed_lags().last, 4);
}

TEST(KeyRanges, KeysOfManySequencesKeepTheirOrder) {
  // Two sequences in one cache, each at positions from 0.
  const std::vector<Position> keys = {0, 1, 2, 0, 1, 2, 3}, queries = {2, 3};
  const std::vector<Range> ranges = {{0, 3}, {3, 7}};
  const LagGrid grid(2, 7, queries, keys, Mask::sliding_window(2), KeyRanges{ranges, 1});
  EXPECT_TRUE(grid.in_order());
  EXPECT_EQ(grid.keys_of(0, 0).hull(), (Range{1, 3}));
  EXPECT_EQ(grid.keys_of(0, 1).hull(), (Range{5, 7}));
  EXPECT_EQ(grid.allowed_lags().last, 1);
  std::vector<Index> reached;
  grid.reached().for_each({0, 7}, [&](Range piece) {
    reached.insert(reached.end(), {piece.begin, piece.end});
  });
  EXPECT_THAT(reached, ElementsAre(1, 3, 5, 7));

  const std::vector<Range> across = {{0, 3}, {1, 7}};
  EXPECT_THAT(error_of([&] {
                LagGrid(2, 7, queries, keys, Mask::causal(), KeyRanges{across, 1});
              }),
              HasSubstr("row 1 has [1, 7), within which positions do not ascend"));
  EXPECT_EQ(error_of([&] { LagGrid(2, 7, queries, keys, Mask::full(), KeyRanges{across, 1}); }), "no Error");
}

TEST(KeyRanges, WhatIsRefusedIsNamed) {
  const auto error = [](std::vector<Range> ranges, Index m, Index heads = 1) {
    return error_of([&] { LagGrid(2, 10, {}, {}, Mask::full(), KeyRanges{ranges, m}, heads); });
  };
  EXPECT_EQ(error({{0, 3}, {0, 10}}, 1), "no Error");
  EXPECT_EQ(error({{0, 3}, {0, 10}, {1, 1}}, 1),
            "key_ranges has 3 ranges of 1 a row, for n_q = 2 rows: n_q m of all heads together, or heads n_q "
            "m, heads "
            "= 1");
  EXPECT_THAT(error({{0, 3}}, 0), HasSubstr("1 ranges of 0 a row"));
  EXPECT_EQ(error({{0, 3}, {4, 11}}, 1), "key_ranges: row 1 has [4, 11), beyond the n_k = 10 keys");
  EXPECT_THAT(error({{-1, 3}, {4, 11}}, 1), HasSubstr("row 0 has [-1, 3), beyond"));
  EXPECT_EQ(error({{0, 3}, {2, 5}, {0, 1}, {2, 3}}, 2),
            "key_ranges: row 0 has [2, 5), before the end 3 of a range to its left: ranges ascend");
  EXPECT_THAT(error({{0, 1}, {0, 1}, {0, 1}, {0, 12}}, 1, 2), HasSubstr("head 1, row 1 has [0, 12)"));
}

}  // namespace
}  // namespace fastrope_test
