// The exact path reads what some query may attend to and nothing else: neither keys and values out of reach
// nor scratch memory that was not written.
#include "fastrope/exact/exact_call.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <fastrope/fastrope.hpp>
#include <limits>
#include <vector>

#include "support/attention_case.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

template <class T>
class Reach : public testing::Test {
 protected:
  /// Runs the case in memory full of NaN, with NaN in every key and value row that no query reaches.
  static void expect_correct(const AttentionCase& c) {
    AttentionInputs<T> in(c.shapes, 7);
    const Options options = c.options();
    const Problem problem(c.shapes, options);
    const Range reach = problem.grid.keys_of(Range{0, c.shapes.n_q});
    for (Index j = 0; j < c.shapes.n_k; ++j) {
      if (j >= reach.begin && j < reach.end) continue;
      for (Index h = 0; h < c.shapes.kv_heads; ++h)
        for (Index col = 0; col < c.shapes.d; ++col) in.k(h, problem.grid.source(j), col) = kNaN;
      for (Index h = 0; h < c.shapes.kv_heads; ++h)
        for (Index col = 0; col < c.shapes.d_v; ++col) in.v(h, problem.grid.source(j), col) = kNaN;
    }
    const Plan<T> plan = make_plan<T>(c.shapes, options);
    std::vector<std::byte> memory(plan.workspace_bytes());
    std::memset(memory.data(), 0xff, memory.size());
    ASSERT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), memory), RunStatus::ok);

    const Reference expected = in.reference(c);
    for (std::size_t e = 0; e < in.out.values.size(); ++e)
      ASSERT_NEAR(static_cast<double>(in.out.values[e]), expected.out.values[e],
                  200 * std::numeric_limits<T>::epsilon())
          << c << ", element " << e;
  }

  static constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(Reach, Reals);

TYPED_TEST(Reach, OnlyWhatSomeQueryReachesIsRead) {
  constexpr Index kKeys = 3000;  // many splits, panels and blocks of the rotation table
  const std::vector<std::vector<Position>> queries = {
      {},                  // the last positions: the queries' rows are among the keys'
      {40, 41, 42},        // early in a cache with room left
      {1022, 1023, 1024},  // across two splits
      {2998, 2999, 3000},  // not all of them among the keys
      {700, 5, 1300},      // not consecutive
      {9000, 9001, 9002},  // where a window leaves nothing
      {-3, -2, -1},        // where a causal mask leaves nothing
  };
  for (const Mask mask : {Mask::causal(), Mask::sliding_window(100), Mask::lags(200, 300), Mask::full()})
    for (const auto& positions : queries)
      for (const Index repeat : {1, 20, 60})  // decoded, by products too, and in tiles
        for (const bool ring : {false, true}) {
          AttentionCase c{.shapes = {4, 2, 3 * repeat, kKeys, 12, 9}};
          c.base.mask = mask;
          c.base.rope = Rope{};
          for (Index r = 0; r < repeat; ++r)
            c.query_positions.insert(c.query_positions.end(), positions.begin(), positions.end());
          if (ring) {
            c.text = ", ring";
            for (Index j = 0; j < kKeys; ++j) c.key_positions.push_back((j + 1234) % kKeys);
          }
          if (!positions.empty()) c.text += ", first query at " + std::to_string(positions.front());
          if (repeat != 20) {
            ASSERT_EQ(DecodeRows<TypeParam>::suits(Problem(c.shapes, c.options())), repeat == 1);
          }
          this->expect_correct(c);
        }
}

/// Of a call with a sliding window.
template <class Real>
std::size_t workspace_of(Index n_q, Index n_k, Position window, bool biased = false) {
  Options options{.rope = Rope{}, .mask = Mask::sliding_window(window)};
  if (biased) options.bias = LagBias::alibi(std::vector<double>(8, 0.1));
  return make_plan<Real>({8, 8, n_q, n_k, 128, 128}, options).workspace_bytes();
}

TEST(ReachMemory, MemoryIsOfWhatSomeQueryReaches) {
  // A window of 1024 over 524288 keys took 271 MB for a token, nearly all of the rotation's table, and 4.6 GB
  // for 64 tokens, of packed keys and values: what they reach takes 0.6 MB and 10 MB.
  constexpr Index kKeys = 524288, kWindow = 1024;
  for (const bool biased : {false, true}) {
    EXPECT_LT(workspace_of<float>(1, kKeys, kWindow, biased), std::size_t{1} << 20);
    EXPECT_LT(workspace_of<float>(64, kKeys, kWindow, biased), std::size_t{11} << 20);
    EXPECT_LT(workspace_of<double>(64, kKeys, kWindow, biased), std::size_t{22} << 20);
    // However long the cache is behind the window.
    EXPECT_EQ(workspace_of<float>(1, kKeys, kWindow, biased),
              workspace_of<float>(1, kKeys / 8, kWindow, biased));
    EXPECT_EQ(workspace_of<float>(64, kKeys, kWindow, biased),
              workspace_of<float>(64, kKeys / 8, kWindow, biased));
  }
}

TEST(ReachMemory, QueriesFarFromTheirKeysHaveTablesOfTheirOwn) {
  Options options{.rope = Rope{}, .mask = Mask::lags(400000, 400100)};
  const Plan<float> plan = make_plan<float>({8, 8, 2, 524288, 128, 128}, options);
  EXPECT_LT(plan.workspace_bytes(), std::size_t{1} << 20);
  AttentionCase c{.shapes = {1, 1, 2, 5000, 8, 8}};
  c.base.rope = Rope{};
  c.base.mask = Mask::lags(4000, 4100);
  AttentionInputs<float> in(c.shapes, 3);
  attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
  EXPECT_LE(max_abs_difference(in.out.view(), in.reference(c).out.view()), 2e-5);
}

}  // namespace
}  // namespace fastrope_test
