#include "fastrope/position/relative_weights.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/error_of.hpp"
#include "support/inputs.hpp"
#include "support/reference.hpp"

namespace {

using fastrope::Error;
using fastrope::Index;
using fastrope::Position;
using fastrope::RelativeWeights;
using fastrope::Rope;
using fastrope::RopePairing;
using fastrope::YarnScaling;
using fastrope_test::error_of;
using fastrope_test::Inputs;
using fastrope_test::Tensor;
using Entry = RelativeWeights::Entry;

/// q^T W(lag) k, as the family has it.
double product(const RelativeWeights& weights, Position lag, const Tensor<double>& q,
               const Tensor<double>& k) {
  double sum = 0;
  Index s = 0;
  for (const Entry& entry : weights.support()) sum += q(0, 0, entry.a) * weights(lag, s++) * k(0, 0, entry.b);
  return sum;
}

TEST(RelativeWeights, ReadsItsTableByEntryAndLag) {
  const RelativeWeights weights({{0, 0}, {1, 2}}, -1, {1, 2, 3, 10, 20, 30});
  EXPECT_EQ(weights.first_lag(), -1);
  EXPECT_EQ(weights.last_lag(), 1);
  ASSERT_EQ(weights.support().size(), 2U);
  EXPECT_EQ(weights.support()[1], (Entry{1, 2}));
  for (Position lag = -1; lag <= 1; ++lag) {
    EXPECT_EQ(weights(lag, 0), static_cast<double>(lag + 2));
    EXPECT_EQ(weights(lag, 1), static_cast<double>(10 * (lag + 2)));
  }
}

TEST(RelativeWeights, AFunctionIsTabulated) {
  const auto weight = [](Position lag, Index s) { return static_cast<double>(100 * lag + s); };
  const RelativeWeights weights({{0, 1}, {2, 2}, {1, 0}}, -4, 3, weight);
  EXPECT_EQ(weights.first_lag(), -4);
  EXPECT_EQ(weights.last_lag(), 3);
  for (Position lag = -4; lag <= 3; ++lag)
    for (Index s = 0; s < 3; ++s) EXPECT_EQ(weights(lag, s), weight(lag, s));
}

TEST(RelativeWeights, RopeAsAFamilyGivesRotatedProducts) {
  Inputs inputs(21);
  constexpr Index d = 12;
  const Rope ropes[] = {
      {},
      {.pairing = RopePairing::half_split},
      {.base = 100.0, .rotary_dim = 8},
      {.pairing = RopePairing::half_split, .rotary_dim = 4, .scaling = YarnScaling{.factor = 4}}};
  for (const Rope& rope : ropes) {
    const Index rotary_dim = rope.rotary_dim == 0 ? d : rope.rotary_dim;
    const RelativeWeights weights = RelativeWeights::rope(rope, d, -30, 40);
    EXPECT_EQ(static_cast<Index>(weights.support().size()), 2 * rotary_dim + (d - rotary_dim));
    for (Position lag = -30; lag <= 40; ++lag) {
      const auto q = inputs.gaussian<double>(1, 1, d), k = inputs.gaussian<double>(1, 1, d);
      const Position p = inputs.integer(-1000, 1000);
      auto turned_q = q, turned_k = k;
      fastrope_test::reference_rotate(
          rope, [&](Index) { return p; }, turned_q);
      fastrope_test::reference_rotate(
          rope, [&](Index) { return p - lag; }, turned_k);
      double expected = 0, size = 0;
      for (Index c = 0; c < d; ++c) {
        expected += turned_q(0, 0, c) * turned_k(0, 0, c);
        size += std::abs(turned_q(0, 0, c) * turned_k(0, 0, c));
      }
      // Angles of up to 1000 radians are rounded to 1000 epsilon.
      EXPECT_NEAR(product(weights, lag, q, k), expected,
                  4e3 * std::numeric_limits<double>::epsilon() * (1 + size))
          << "lag " << lag;
    }
  }
}

TEST(RelativeWeightsErrors, SizesEntriesAndValues) {
  const double kNaN = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(RelativeWeights({}, 0, {1, 2}), Error);
  EXPECT_THROW(RelativeWeights({{0, 0}}, 0, {}), Error);
  EXPECT_THROW(RelativeWeights({{0, 0}, {1, 1}}, 0, {1, 2, 3}), Error);
  EXPECT_THROW(RelativeWeights({{0, 0}}, 0, {1, kNaN}), Error);
  const std::string order = error_of([] {
    RelativeWeights({{0, 0}}, 3, 2, [](Position, Index) { return 1.0; });
  });
  EXPECT_NE(order.find("3, is above the last, 2"), std::string::npos) << order;
  const std::string text = error_of([] { RelativeWeights({{4, 7}, {0, 0}, {4, 7}}, 0, {1, 2, 3}); });
  EXPECT_NE(text.find('4'), std::string::npos) << text;
  EXPECT_NE(text.find('7'), std::string::npos) << text;
}

TEST(RelativeWeightsErrors, CoverageOfColumnsAndLags) {
  const RelativeWeights weights({{0, 3}}, -2, {1, 2, 3, 4, 5});
  EXPECT_EQ(error_of([&] { weights.require_covers(4, -2, 2); }), "no Error");
  EXPECT_EQ(error_of([&] { weights.require_covers(4, 1, 0); }), "no Error") << "no lags at all";
  const std::string columns = error_of([&] { weights.require_covers(3, -2, 2); });
  EXPECT_NE(columns.find("(0, 3)"), std::string::npos) << columns;
  EXPECT_NE(error_of([] { RelativeWeights({{-1, 0}}, 0, {1.0}).require_covers(3, 0, 0); }), "no Error");
  const std::string lags = error_of([&] { weights.require_covers(4, -3, 2); });
  for (const char* value : {"-3", "-2", "2"}) EXPECT_NE(lags.find(value), std::string::npos) << lags;
  EXPECT_NE(error_of([&] { weights.require_covers(4, -2, 3); }), "no Error");
}

TEST(RelativeWeightsErrors, LagsThatNoPositionsHave) {
  constexpr Position kMost = Position{1} << 42, kHighest = std::numeric_limits<Position>::max(),
                     kLowest = std::numeric_limits<Position>::min();
  const auto weight = [](Position, Index) { return 1.0; };
  EXPECT_EQ(error_of([] { RelativeWeights({{0, 0}}, -kMost, {1, 2}); }), "no Error");
  EXPECT_EQ(error_of([&] { RelativeWeights({{0, 0}}, kMost - 3, kMost, weight); }), "no Error");
  for (const Position first : {-kMost - 1, kMost, kLowest, kHighest, kHighest - 1})
    EXPECT_EQ(error_of([&] {
                RelativeWeights({{0, 0}}, first, {1, 2});
              }),
              "RelativeWeights: 2 lags from " + std::to_string(first) + " on are not within +-2^42");
  EXPECT_EQ(error_of([&] {
              RelativeWeights({{0, 0}}, kHighest - 1, kHighest, weight);
            }),
            "RelativeWeights: the lags " + std::to_string(kHighest - 1) + " to " + std::to_string(kHighest) +
                " are not within +-2^42");
  EXPECT_NE(error_of([&] { RelativeWeights({{0, 0}}, kLowest, kLowest + 1, weight); }), "no Error");
}

TEST(RelativeWeightsErrors, RopesPhasesAreHeldUpToSomeLag) {
  constexpr Position kMost = Position{1} << 31;
  EXPECT_EQ(error_of([] { RelativeWeights::rope({}, 4, kMost - 1, kMost); }), "no Error");
  EXPECT_EQ(
      error_of([] { RelativeWeights::rope({}, 4, kMost - 1, kMost + 1); }),
      "RelativeWeights::rope: the lags 2147483647 to 2147483649 are not within +-2147483648, up to which "
      "phases are held");
  EXPECT_NE(error_of([] { RelativeWeights::rope({}, 4, -kMost - 1, -kMost); }), "no Error");
}

}  // namespace
