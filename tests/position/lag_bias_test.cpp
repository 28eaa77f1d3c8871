#include "fastrope/position/lag_bias.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/error_of.hpp"
#include "support/inputs.hpp"

namespace {

using fastrope::alibi_slopes;
using fastrope::Error;
using fastrope::Index;
using fastrope::LagBias;
using fastrope::Position;
using fastrope_test::error_of;
using fastrope_test::Inputs;

constexpr Position kFar = Position{1} << 41;

TEST(LagBias, NoneIsEmptyAndCoversEverything) {
  EXPECT_TRUE(LagBias::none().empty());
  EXPECT_NO_THROW(LagBias::none().require_covers(3, -kFar, kFar));
}

TEST(LagBias, AlibiFallsWithTheDistance) {
  // The paper's slopes for 4 heads: 2^-2, 2^-4, 2^-6, 2^-8.
  const LagBias bias = LagBias::alibi({0.25, 0.0625, 0.015625, 0.00390625});
  EXPECT_FALSE(bias.empty());
  for (Index h = 0; h < 4; ++h)
    for (const Position lag : {0, 1, -1, 7, -300, 1 << 20})
      EXPECT_EQ(bias(h, lag),
                -std::exp2(-2.0 * static_cast<double>(h + 1)) * std::abs(static_cast<double>(lag)));
  EXPECT_NO_THROW(bias.require_covers(4, -kFar, kFar));
}

TEST(LagBias, OneSlopeServesEveryHead) {
  const LagBias bias = LagBias::alibi(std::vector<float>{0.5F});
  for (Index h = 0; h < 9; ++h) EXPECT_EQ(bias(h, -6), -3);
  EXPECT_NO_THROW(bias.require_covers(9, -10, 10));
}

TEST(LagBias, TheLargestAndSmallestAreOverTheLagsGiven) {
  Inputs random(9);
  std::vector<double> table;
  for (int i = 0; i < 32; ++i) table.push_back(random.uniform(-2, 2));
  for (const LagBias& bias : {LagBias::alibi({0.25, -0.5}), LagBias::t5(table, 2, true, 20),
                              LagBias::t5(table, 2, false, 20), LagBias::table(table, 2, -7)}) {
    EXPECT_EQ(bias.is_table(), bias.largest(0, 0, 0) != 0);
    for (Index head = 0; head < 2; ++head)
      for (Position first = -7; first <= 8; ++first)
        for (Position last = first; last <= 8; ++last) {
          double most = bias(head, first), least = most;
          for (Position lag = first; lag <= last; ++lag) {
            most = std::max(most, bias(head, lag));
            least = std::min(least, bias(head, lag));
          }
          EXPECT_EQ(bias.largest(head, first, last), most) << first << ".." << last;
          EXPECT_EQ(bias.smallest(head, first, last), least) << first << ".." << last;
        }
  }
}

TEST(LagBias, NumbersBelowThoseOfFloatAreItsLowest) {
  const LagBias bias = LagBias::table({0.0, -1e39, -3e38}, 1, 0);
  float row[3];
  bias.fill(0, 2, 3, 0, 1.4426950408889634, row);
  EXPECT_EQ(row[0], std::numeric_limits<float>::lowest());
  EXPECT_EQ(row[1], std::numeric_limits<float>::lowest());
  EXPECT_EQ(row[2], 0.0f);
}

TEST(LagBias, ARowOfLagsIsFilledDownwards) {
  Inputs random(8);
  std::vector<double> table;
  for (int i = 0; i < 32; ++i) table.push_back(random.uniform(-2, 2));
  const std::vector<LagBias> all = {LagBias::alibi({0.25, -0.5}), LagBias::t5(table, 2, true, 20),
                                    LagBias::t5(table, 2, false, 20), LagBias::table(table, 2, -7)};
  for (const LagBias& bias : all) {
    for (Index head = 0; head < 2; ++head) {
      const bool is_table = &bias == &all.back();
      const Position first = is_table ? 8 : 40;
      const Index count = is_table ? 16 : 80;
      std::vector<double> row(static_cast<std::size_t>(count) + 1, 99);
      bias.fill(head, first, count, 0.75, -1.5, row.data());
      for (Index m = 0; m < count; ++m)
        EXPECT_DOUBLE_EQ(row[static_cast<std::size_t>(m)], -1.5 * (bias(head, first - m) - 0.75))
            << "lag " << first - m;
      EXPECT_EQ(row.back(), 99);
    }
  }
}

/// The bucket of T5's _relative_position_bucket, whose relative_position is key minus query, in its own
/// arithmetic (float logarithm, truncation).
Index published_bucket(Position relative_position, bool bidirectional, Index num_buckets,
                       Index max_distance) {
  Index bucket = 0;
  Position n = -relative_position;
  if (bidirectional) {
    num_buckets /= 2;
    if (n < 0) bucket += num_buckets;
    n = std::abs(n);
  } else {
    n = std::max<Position>(n, 0);
  }
  const Index max_exact = num_buckets / 2;
  if (n < max_exact) return bucket + n;
  const float ratio =
      std::log(static_cast<float>(n) / static_cast<float>(max_exact)) /
      static_cast<float>(std::log(static_cast<double>(max_distance) / static_cast<double>(max_exact)));
  const Index large = max_exact + static_cast<Index>(ratio * static_cast<float>(num_buckets - max_exact));
  return bucket + std::min(large, num_buckets - 1);
}

/// A table [buckets, heads] whose value names its bucket and head.
std::vector<double> bucket_table(Index buckets, Index heads) {
  std::vector<double> table;
  for (Index b = 0; b < buckets; ++b)
    for (Index h = 0; h < heads; ++h)
      table.push_back(static_cast<double>(b) + 0.001 * static_cast<double>(h));
  return table;
}

struct Buckets {
  Index buckets;
  Index max_distance;
};

class T5 : public testing::TestWithParam<Buckets> {};

TEST_P(T5, BucketsAreThePublishedOnes) {
  const auto [buckets, max_distance] = GetParam();
  constexpr Index kHeads = 3;
  for (const bool bidirectional : {true, false}) {
    const LagBias bias = LagBias::t5(bucket_table(buckets, kHeads), kHeads, bidirectional, max_distance);
    for (Position lag = -300; lag <= 300; ++lag) {
      const Index bucket = published_bucket(-lag, bidirectional, buckets, max_distance);
      for (Index h = 0; h < kHeads; ++h)
        EXPECT_EQ(bias(h, lag), static_cast<double>(bucket) + 0.001 * static_cast<double>(h))
            << "lag " << lag << (bidirectional ? " both ways" : " one way");
    }
    EXPECT_NO_THROW(bias.require_covers(kHeads, -kFar, kFar));
    EXPECT_EQ(bias(0, kFar), bias(0, max_distance)) << "farther lags share the last bucket";
    EXPECT_EQ(bias(0, -kFar), bidirectional ? static_cast<double>(buckets - 1) : 0);
  }
}

// T5 and its kin use 32 buckets and 128; the others are odd, small and large ones.
INSTANTIATE_TEST_SUITE_P(Configurations, T5,
                         testing::Values(Buckets{32, 128}, Buckets{32, 20}, Buckets{8, 5}, Buckets{64, 256},
                                         Buckets{12, 100}, Buckets{4, 64}, Buckets{320, 800}));

TEST(LagBias, T5BucketsBothWaysByHand) {
  const LagBias bias = LagBias::t5(bucket_table(32, 1), 1, /*bidirectional=*/true);
  const auto bucket = [&](Position lag) { return bias(0, lag); };
  EXPECT_EQ(bucket(0), 0);
  EXPECT_EQ(bucket(7), 7);     // the last lag with a bucket to itself
  EXPECT_EQ(bucket(8), 8);     // 8 + 8 ln(1) / ln 16
  EXPECT_EQ(bucket(11), 8);    // 8 + 0.92
  EXPECT_EQ(bucket(12), 9);    // 8 + 1.17
  EXPECT_EQ(bucket(32), 12);   // 8 + 4 exactly
  EXPECT_EQ(bucket(127), 15);  // 8 + 7.98
  EXPECT_EQ(bucket(128), 15);  // clamped
  EXPECT_EQ(bucket(-1), 17);   // keys after the query
  EXPECT_EQ(bucket(-64), 30);
}

TEST(LagBias, TablesAreReadByHeadAndLag) {
  const LagBias bias = LagBias::table({0, 1, 2, 10, 11, 12}, 2, -1);
  for (Index h = 0; h < 2; ++h)
    for (Position lag = -1; lag <= 1; ++lag) EXPECT_EQ(bias(h, lag), static_cast<double>(10 * h + lag + 1));
  const LagBias shared = LagBias::table({0, 1, 2}, 1, 5);
  for (Index h = 0; h < 4; ++h) EXPECT_EQ(shared(h, 7), 2);
}

TEST(LagBias, TellsWhatItIsMadeOf) {
  const LagBias t5 = LagBias::t5({1, 10, 2, 20, 3, 30, 4, 40, 5, 50, 6, 60, 7, 70, 8, 80}, 2,
                                 /*bidirectional=*/true, 9);
  EXPECT_EQ(t5.parameters(), 16);
  const LagBias mirrored = t5.mirrored();
  for (const LagBias* bias : {&t5, &mirrored}) {
    ASSERT_EQ(bias->bucket_of_lag().size(), 19u);
    for (Index m = 0; m < 19; ++m)  // bucket b of head h has (b + 1) 10^h
      EXPECT_EQ((*bias)(1, bias->first_lag() + m), 10.0 * static_cast<double>(bias->bucket_of_lag()[m] + 1));
  }
  EXPECT_EQ(mirrored.parameters(), 16);
  const LagBias table = LagBias::table({1, 2, 3, 10, 20, 30}, 2, -1);
  EXPECT_EQ(table.parameters(), 6);
  EXPECT_TRUE(table.bucket_of_lag().empty());
  EXPECT_EQ(LagBias::alibi({0.5, 2}).parameters(), 2);
  EXPECT_EQ(LagBias::none().parameters(), 0);
}

TEST(LagBias, MirroredIsThatOfTheOppositeLag) {
  const LagBias t5 = LagBias::t5({1, 2, 3, 4, 5, 6, 7, 8}, 1, /*bidirectional=*/true, 9),
                table = LagBias::table({1, 2, 3, 10, 20, 30}, 2, -1), alibi = LagBias::alibi({0.5, 2});
  for (Position lag = -20; lag <= 20; ++lag) {
    EXPECT_EQ(t5.mirrored()(0, lag), t5(0, -lag)) << lag;
    for (const Index head : {0, 1}) {
      EXPECT_EQ(alibi.mirrored()(head, lag), alibi(head, lag)) << lag;
      if (std::abs(lag) <= 1) {
        EXPECT_EQ(table.mirrored()(head, lag), table(head, -lag)) << lag;
      }
    }
  }
  EXPECT_NO_THROW(LagBias::table({1, 2, 3}, 1, 0).mirrored().require_covers(1, -2, 0));
  EXPECT_THROW(LagBias::table({1, 2, 3}, 1, 0).mirrored().require_covers(1, 0, 1), Error);
  EXPECT_TRUE(LagBias::none().mirrored().empty());
}

TEST(LagBias, AClampedTableIsConstantBeyondItsEnds) {
  const LagBias bias = LagBias::clamped_table({1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, 2, -1);
  EXPECT_EQ(bias(0, -9), 1.0);
  EXPECT_EQ(bias(0, 9), 3.0);
  EXPECT_EQ(bias(1, 0), 5.0);
  EXPECT_NO_THROW(bias.require_covers(2, -9, 9));
  EXPECT_TRUE(bias.is_clamped());
  EXPECT_EQ(bias.heads(), 2);
  EXPECT_EQ(bias.first_lag(), -1);
  EXPECT_EQ(bias.values().size(), 6u);
  EXPECT_TRUE(bias.slopes().empty());
}

TEST(LagBiasErrors, ATableMustHoldEveryLagOfTheCall) {
  const LagBias bias = LagBias::table(std::vector<double>(9), 1, -4);
  EXPECT_EQ(error_of([&] { bias.require_covers(2, -4, 4); }), "no Error");
  EXPECT_EQ(error_of([&] { bias.require_covers(2, 1, 0); }), "no Error") << "no lags at all";
  for (const auto& [first, last] : {std::pair<Position, Position>{-5, 4}, {-4, 5}, {100, 200}}) {
    const std::string text = error_of([&, f = first, l = last] { bias.require_covers(2, f, l); });
    for (const Position value : {Position{-4}, Position{4}, first, last})
      EXPECT_NE(text.find(std::to_string(value)), std::string::npos) << text;
  }
}

TEST(LagBiasErrors, HeadsMustBeOneOrTheCalls) {
  const LagBias two = LagBias::alibi({0.5, 0.25});
  EXPECT_EQ(error_of([&] { two.require_covers(2, 0, 1); }), "no Error");
  const std::string text = error_of([&] { two.require_covers(3, 0, 1); });
  EXPECT_NE(text.find('2'), std::string::npos) << text;
  EXPECT_NE(text.find('3'), std::string::npos) << text;
}

TEST(LagBiasErrors, SizesAndValues) {
  const double kNaN = std::numeric_limits<double>::quiet_NaN();
  const double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_THROW(LagBias::alibi({}), Error);
  EXPECT_THROW(LagBias::table({}, 1, 0), Error);
  EXPECT_THROW(LagBias::table({1, 2, 3}, 2, 0), Error);
  EXPECT_THROW(LagBias::table({1, 2}, 0, 0), Error);
  EXPECT_THROW(LagBias::t5({1, 2, 3}, 2, true), Error);
  EXPECT_THROW(LagBias::t5({}, 1, true), Error);
  EXPECT_THROW(LagBias::t5(std::vector<double>(32), 0, true), Error);
  EXPECT_THROW(LagBias::t5(std::vector<double>(31), 1, true), Error) << "an odd number cannot be halved";
  EXPECT_NO_THROW(LagBias::t5(std::vector<double>(31), 1, false));
  EXPECT_THROW(LagBias::t5(std::vector<double>(32), 1, true, 8), Error) << "no room above 8 exact buckets";
  EXPECT_THROW(LagBias::t5(std::vector<double>(2), 1, true), Error);
  for (const double bad : {kNaN, kInfinity, -kInfinity}) {
    EXPECT_THROW(LagBias::alibi({0.5, bad}), Error);
    EXPECT_THROW(LagBias::table({0, bad}, 1, 0), Error);
    std::vector<double> table(32);
    table[31] = bad;
    EXPECT_THROW(LagBias::t5(table, 1, true), Error);
  }
}

TEST(LagBiasErrors, LagsThatNoPositionsHave) {
  constexpr Position kMost = Position{1} << 42;  // Mask::kUnlimited
  EXPECT_EQ(error_of([] { LagBias::table({1, 2}, 1, -kMost); }), "no Error");
  EXPECT_EQ(error_of([] { LagBias::table({1, 2}, 1, kMost - 1); }), "no Error");
  for (const Position first :
       {-kMost - 1, kMost, std::numeric_limits<Position>::min(), std::numeric_limits<Position>::max(),
        std::numeric_limits<Position>::max() - 1})
    EXPECT_EQ(error_of([&] {
                LagBias::table({1, 2, 3}, 1, first);
              }),
              "LagBias::table: 3 lags from " + std::to_string(first) + " on are not within +-2^42");
  for (const Index distance : {Index{kMost}, std::numeric_limits<Index>::max()}) {
    const std::string text = error_of([&] { LagBias::t5(std::vector<double>(64), 2, true, distance); });
    EXPECT_NE(text.find("max_distance = " + std::to_string(distance)), std::string::npos) << text;
  }
}

TEST(AlibiSlopes, AreThoseOfThePaper) {
  EXPECT_EQ(alibi_slopes(0), std::vector<double>{});
  EXPECT_EQ(alibi_slopes(1), std::vector<double>{1.0 / 256});
  const std::vector<double> eight = {1.0 / 2,  1.0 / 4,  1.0 / 8,   1.0 / 16,
                                     1.0 / 32, 1.0 / 64, 1.0 / 128, 1.0 / 256};
  EXPECT_EQ(alibi_slopes(8), eight);
  // 12 heads: those of 8, then the odd ones of 16, 2^-0.5 2^-1.5 ..
  const std::vector<double> twelve = alibi_slopes(12);
  ASSERT_EQ(twelve.size(), 12U);
  for (std::size_t h = 0; h < 8; ++h) EXPECT_EQ(twelve[h], eight[h]);
  for (std::size_t h = 8; h < 12; ++h)
    EXPECT_DOUBLE_EQ(twelve[h], std::exp2(-(static_cast<double>(h) - 7.5)));
  EXPECT_EQ(alibi_slopes(71).size(), 71U);
  EXPECT_EQ(alibi_slopes(2, 4), (std::vector{0.25, 0.0625}));
  EXPECT_THROW(alibi_slopes(-1), Error);
  EXPECT_THROW(alibi_slopes(2, std::numeric_limits<double>::infinity()), Error);
  EXPECT_EQ(LagBias::alibi(alibi_slopes(3))(2, 8), -8 * std::exp2(-2.0));
}

}  // namespace
