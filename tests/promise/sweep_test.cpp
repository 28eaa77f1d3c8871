// The promise, swept: on thousands of random problems of every kind (support/promise_problem.hpp) the error
// is within the bound that each head's report states, at the tightest tolerance that is accepted and at a
// looser one. scripts/promise goes on for as long as one likes; a seed that it or this prints is a problem
// again: promise_sweep SEED 1 --small.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <sstream>
#include <string>

#include "support/promise_check.hpp"

namespace fastrope_test {
namespace {

PromiseTally sweep(std::uint64_t first, std::uint64_t count, PromiseSize size) {
  PromiseTally tally;
  for (std::uint64_t seed = first; seed < first + count; ++seed) check_promise(seed, size, tally);
  tally.print(std::cout);
  const std::size_t shown = std::min<std::size_t>(tally.violations.size(), 20);
  for (std::size_t v = 0; v < shown; ++v) ADD_FAILURE() << tally.violations[v];
  EXPECT_EQ(tally.all().violations, 0);
  return tally;
}

TEST(PromiseSweep, IsKeptOnSmallProblems) {
  const PromiseTally tally = sweep(0, 3000, PromiseSize::small);
  EXPECT_GE(tally.all().refused, 30) << "problems that are too easy say little";
  // No kind of path, and no storage, is left out.
  for (const char* kind : {"exact", "exact-decode", "polynomial", "polynomial-causal", "state", "transforms"})
    for (const Storage storage : kStorages) {
      const auto found = tally.kinds.find(std::string(kind) + '/' + to_string(storage));
      ASSERT_NE(found, tally.kinds.end()) << kind << ' ' << to_string(storage);
      EXPECT_GE(found->second.bounded, 3) << found->first;
    }
}

/// Keys beyond the range of float16 are infinite, and a logit of -infinity is no masked key.
TEST(PromiseSweep, IsInfiniteWhereAPolynomialMeetsInfiniteKeys) {
  sweep(501891, 1, PromiseSize::any);
  sweep(803886, 1, PromiseSize::any);
}

TEST(PromiseSweep, IsKeptOnLargeProblems) { sweep(0, 12, PromiseSize::large); }

TEST(PromiseTally, GoesThroughALineOfText) {
  PromiseTally tally;
  PromiseCounts& counts = tally.kinds["polynomial/float"];
  counts.add(1e-3, 4e-4, 7);
  counts.add(1e-3, 1e-6, 8);
  counts.add(HUGE_VAL, 1e-6, 9);
  counts.add(0, 1e-6, 10);  // infinitely broken
  counts.violations = 1;
  counts.rows = 40;
  counts.repaired = 3;
  ++tally.kinds["refused/double"].refused;
  std::istringstream line(tally.to_line());
  const PromiseTally again = PromiseTally::of_line(line);
  EXPECT_EQ(again.to_line(), tally.to_line());
  const PromiseCounts all = again.all();
  EXPECT_EQ(all.heads, 4);
  EXPECT_EQ(all.bounded, 3);
  EXPECT_EQ(all.refused, 1);
  EXPECT_EQ(all.seed, 10u);
  EXPECT_NEAR(all.quantile(0.5), 2.5, 0.2);  // the second of three
}

}  // namespace
}  // namespace fastrope_test
