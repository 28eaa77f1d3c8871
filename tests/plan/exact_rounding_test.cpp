// What the exact path's rounding bound takes from biases.
#include "fastrope/plan/exact_rounding.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "fastrope/position/lag_bias.hpp"

namespace fastrope_test {
namespace {

using fastrope::LagBias;
using fastrope::Options;
using fastrope::Position;

/// A query between two keys: none stands at lag 0, where the head's largest bias is.
TEST(LowestRowBias, IsOfLagsThatKeysHave) {
  const std::vector<Position> queries = {5, 0}, keys = {0, 10};
  Options options{.query_positions = queries, .key_positions = keys};
  options.bias = LagBias::alibi(std::vector<double>{2});
  EXPECT_GE(fastrope::lowest_row_bias({{1, 1, 2, 2, 4, 4}, options}, 0), 10);
  std::vector<double> table(21, -70.0);
  table[10] = 0;
  options.bias = LagBias::table(table, 1, -10);
  EXPECT_GE(fastrope::lowest_row_bias({{1, 1, 2, 2, 4, 4}, options}, 0), 70);
}

}  // namespace
}  // namespace fastrope_test
