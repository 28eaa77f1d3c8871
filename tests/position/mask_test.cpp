#include "fastrope/position/mask.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <utility>

#include "support/error_of.hpp"

namespace {

using fastrope::Mask;
using fastrope::Position;
using fastrope_test::error_of;

constexpr Position kBeyond = Position{1} << 41;  // beyond every lag of positions within 2^40

/// allows(lag) is `expected(lag)` near zero and far away.
template <class Expected>
void expect_allows(const Mask& mask, Expected&& expected) {
  for (Position lag = -20; lag <= 20; ++lag) EXPECT_EQ(mask.allows(lag), expected(lag)) << "lag " << lag;
  for (const Position lag : {-kBeyond, kBeyond}) EXPECT_EQ(mask.allows(lag), expected(lag)) << "lag " << lag;
}

TEST(Mask, FullAllowsEveryLag) {
  expect_allows(Mask::full(), [](Position) { return true; });
  EXPECT_EQ(Mask{}, Mask::full());
}

TEST(Mask, CausalAllowsTheQueryAndWhatCameBefore) {
  expect_allows(Mask::causal(), [](Position lag) { return lag >= 0; });
}

TEST(Mask, ASlidingWindowHoldsItsOwnPositionAndTheOnesBefore) {
  for (const Position w : {1, 2, 7})
    expect_allows(Mask::sliding_window(w), [w](Position lag) { return 0 <= lag && lag < w; });
  static_assert(Mask::sliding_window(4) == Mask::lags(0, 3));
}

TEST(Mask, LagsAreInclusiveOnBothSides) {
  expect_allows(Mask::lags(-3, 5), [](Position lag) { return -3 <= lag && lag <= 5; });
  expect_allows(Mask::lags(4, 4), [](Position lag) { return lag == 4; });
  static_assert(Mask::lags(-3, 5).allows(5) && !Mask::lags(-3, 5).allows(6));
}

TEST(Mask, BoundsBeyondEveryLagAreUnlimited) {
  constexpr Position kLowest = std::numeric_limits<Position>::min();
  constexpr Position kHighest = std::numeric_limits<Position>::max();
  EXPECT_EQ(Mask::lags(kLowest, kHighest), Mask::full());
  EXPECT_EQ(Mask::lags(0, kHighest), Mask::causal());
}

TEST(MaskErrors, AWindowHoldsItsOwnPosition) {
  for (const Position w : {Position{0}, Position{-1}, std::numeric_limits<Position>::min()})
    EXPECT_EQ(
        error_of([=] { Mask::sliding_window(w); }),
        "Mask::sliding_window(" + std::to_string(w) + ") holds no key: a window has 1 position or more");
}

TEST(MaskErrors, LagsHaveAnOrder) {
  for (const auto& [first, last] : {std::pair<Position, Position>{1, -1}, {5, 4}, {Position{1} << 50, 0}})
    EXPECT_EQ(error_of([f = first, l = last] { Mask::lags(f, l); }),
              "a mask of the lags " + std::to_string(first) + " to " + std::to_string(last) +
                  " holds no key: its first lag is above its last");
}

}  // namespace
