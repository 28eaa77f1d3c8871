#include "fastrope/core/index.hpp"

#include <gtest/gtest.h>

#include <limits>

namespace {

using fastrope::Index;
using fastrope::Range;

TEST(Range, SizeIsNeverNegative) {
  EXPECT_EQ((Range{2, 7}.size()), 5);
  EXPECT_FALSE((Range{2, 7}.empty()));
  for (const Range range : {Range{}, Range{3, 3}, Range{7, 2}}) {
    EXPECT_EQ(range.size(), 0);
    EXPECT_TRUE(range.empty());
  }
}

TEST(Range, IntersectionHoldsWhatBothHold) {
  for (Index a = -2; a <= 4; ++a) {
    for (Index b = -2; b <= 4; ++b) {
      const Range x{0, 3}, y{a, b};
      const Range both = intersect(x, y);
      for (Index i = -3; i <= 5; ++i) {
        const bool inside = x.begin <= i && i < x.end && y.begin <= i && i < y.end;
        EXPECT_EQ(both.begin <= i && i < both.end, inside) << a << ".." << b << " at " << i;
      }
    }
  }
}

TEST(Index, RoundingAgreesWithItsDefinition) {
  for (Index a = 0; a <= 40; ++a) {
    for (Index b = 1; b <= 9; ++b) {
      const Index up = fastrope::ceil_div(a, b);
      EXPECT_GE(up * b, a);
      EXPECT_LT(up * b - b, a + (a == 0));
      EXPECT_EQ(fastrope::round_up(a, b), up * b);
      const Index down = fastrope::round_down(a, b);
      EXPECT_EQ(down % b, 0);
      EXPECT_TRUE(down <= a && a < down + b);
    }
  }
}

TEST(Index, HoldsProductsBeyond32Bits) {
  static_assert(std::numeric_limits<Index>::max() >= (std::int64_t{1} << 62));
  static_assert(std::numeric_limits<fastrope::Position>::is_signed);
  static_assert(fastrope::round_up((Index{1} << 40) + 1, 64) == (Index{1} << 40) + 64);
}

TEST(Index, SaturatesWhereProductsAndSumsWouldOverflow) {
  constexpr Index kMost = std::numeric_limits<Index>::max();
  using fastrope::saturating_product, fastrope::saturating_sum;
  for (const Index a : {0, 1, 7, 1 << 20})
    for (const Index b : {0, 1, 3, 1 << 30}) {
      EXPECT_EQ(saturating_product(a, b), a * b);
      EXPECT_EQ(saturating_sum(a, b), a + b);
    }
  EXPECT_EQ(saturating_product(kMost, 0), 0);
  EXPECT_EQ(saturating_product(0, kMost), 0);
  EXPECT_EQ(saturating_product(kMost, 1), kMost);
  EXPECT_EQ(saturating_product(kMost / 3, 3), kMost - kMost % 3);
  EXPECT_EQ(saturating_product(kMost / 3 + 1, 3), kMost);
  EXPECT_EQ(saturating_product(Index{1} << 32, Index{1} << 32), kMost);
  EXPECT_EQ(saturating_sum(kMost - 1, 1), kMost);
  EXPECT_EQ(saturating_sum(kMost, 1), kMost);
  EXPECT_EQ(saturating_sum(kMost, kMost), kMost);
}

}  // namespace
