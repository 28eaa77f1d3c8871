// Frequencies against the formulas of the papers and of HuggingFace's modeling_rope_utils, and against
// values that follow from them by hand.
#include "fastrope/position/rope.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <set>
#include <string>
#include <vector>

#include "support/reference.hpp"

namespace {

using fastrope::Error;
using fastrope::FactorScaling;
using fastrope::Index;
using fastrope::LinearScaling;
using fastrope::Llama3Scaling;
using fastrope::NtkScaling;
using fastrope::Rope;
using fastrope::rope_frequencies;
using fastrope::RopeFrequencies;
using fastrope::RopePairing;
using fastrope::RopeScaling;
using fastrope::SectionOrder;
using fastrope::YarnScaling;

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
constexpr double kPi = std::numbers::pi;

/// |x - expected| <= 64 epsilon |expected|: powers and logarithms, a few roundings each.
void expect_close(double x, double expected) { EXPECT_NEAR(x, expected, 64 * kEpsilon * std::abs(expected)); }

/// How far a pair's frequency was divided by the scaling.
std::vector<double> divisors(const Rope& rope, Index d) {
  Rope plain = rope;
  plain.scaling = {};
  const RopeFrequencies scaled = rope_frequencies(rope, d), unscaled = rope_frequencies(plain, d);
  std::vector<double> ratio;
  for (std::size_t m = 0; m < scaled.theta.size(); ++m) ratio.push_back(unscaled.theta[m] / scaled.theta[m]);
  return ratio;
}

TEST(RopeFrequencies, AreNegativePowersOfTheBase) {
  const RopeFrequencies f = rope_frequencies({.base = 10000.0}, 8);
  ASSERT_EQ(f.pairs(), 4);
  for (Index m = 0; m < 4; ++m) expect_close(f.theta[static_cast<std::size_t>(m)], std::pow(10.0, -m));
  EXPECT_EQ(f.attention_factor, 1);
}

TEST(RopeFrequencies, PartialRotationTurnsTheLeadingColumns) {
  const RopeFrequencies partial = rope_frequencies({.rotary_dim = 6}, 20);
  const RopeFrequencies whole = rope_frequencies({}, 6);
  EXPECT_EQ(partial.theta, whole.theta);
  EXPECT_EQ(rope_frequencies({}, 0).pairs(), 0);
}

TEST(RopeFrequencies, PairingsNameEveryColumnOnce) {
  for (const RopePairing pairing : {RopePairing::interleaved, RopePairing::half_split}) {
    const RopeFrequencies f = rope_frequencies({.pairing = pairing, .rotary_dim = 10}, 16);
    std::set<Index> columns;
    for (Index m = 0; m < f.pairs(); ++m) {
      EXPECT_EQ(f.first_column(m), pairing == RopePairing::interleaved ? 2 * m : m);
      EXPECT_EQ(f.second_column(m), pairing == RopePairing::interleaved ? 2 * m + 1 : m + 5);
      columns.insert({f.first_column(m), f.second_column(m)});
    }
    EXPECT_EQ(columns.size(), 10U);
    EXPECT_EQ(*columns.rbegin(), 9);
  }
}

TEST(RopeFrequencies, LinearScalingDividesAll) {
  for (const double ratio : divisors({.scaling = LinearScaling{2.5}}, 64)) expect_close(ratio, 2.5);
}

TEST(RopeFrequencies, NtkScalingLeavesTheHighestAndDividesTheLowest) {
  const Rope rope{.base = 10000.0, .scaling = NtkScaling{4}};
  const std::vector<double> ratio = divisors(rope, 128);
  expect_close(ratio.front(), 1);
  expect_close(ratio.back(), 4);
  expect_close(ratio[21], std::cbrt(4.0));  // a third of the way, geometrically
  const double base = 10000.0 * std::pow(4.0, 128.0 / 126.0);
  const RopeFrequencies f = rope_frequencies(rope, 128);
  for (std::size_t m = 0; m < f.theta.size(); ++m)
    expect_close(f.theta[m], std::pow(base, -static_cast<double>(m) / 64));
  EXPECT_EQ(rope_frequencies({.scaling = NtkScaling{4}}, 2).theta, std::vector<double>{1.0});
}

TEST(RopeFrequencies, YarnKeepsFastPairsAndDividesSlowOnes) {
  // Llama 2 at four times its context: correction range [20, 46] of 64 pairs, the first number rounded down
  // from 64 ln(4096 / (32 2 pi)) / ln 10000 = 20.9 and the second up from 64 ln(4096 / (2 pi)) / ln 10000
  // = 45.03.
  const Rope rope{.base = 10000.0, .scaling = YarnScaling{.factor = 4, .original_context = 4096}};
  const std::vector<double> ratio = divisors(rope, 128);
  for (std::size_t m = 0; m < 64; ++m) {
    const double ramp = m <= 20 ? 0 : m >= 46 ? 1 : (static_cast<double>(m) - 20) / 26;
    expect_close(1 / ratio[m], (1 - ramp) + ramp / 4);
  }
  expect_close(rope_frequencies(rope, 128).attention_factor, 0.1 * std::log(4.0) + 1);
}

TEST(RopeFrequencies, YarnRampIsOfWholePairsOnlyWhereTruncated) {
  // The same without whole numbers: from 64 ln(4096 / (32 2 pi)) / ln 10000 to 64 ln(4096 / (2 pi)) / ln
  // 10000.
  const Rope rope{.scaling = YarnScaling{.factor = 4, .original_context = 4096, .truncate = false}};
  const std::vector<double> ratio = divisors(rope, 128);
  const double low = 64 * std::log(4096 / (64 * kPi)) / std::log(1e4);
  const double high = 64 * std::log(4096 / (2 * kPi)) / std::log(1e4);
  ASSERT_NEAR(low, 20.94, 0.01);
  ASSERT_NEAR(high, 45.03, 0.01);
  for (std::size_t m = 0; m < 64; ++m) {
    const double ramp = std::clamp((static_cast<double>(m) - low) / (high - low), 0.0, 1.0);
    expect_close(1 / ratio[m], (1 - ramp) + ramp / 4);
  }
  EXPECT_EQ(ratio[20], 1);
  EXPECT_GT(ratio[21], 1);
}

TEST(RopeFrequencies, AnInfiniteFactorKeepsAPairStill) {
  const double kInfinity = std::numeric_limits<double>::infinity();
  const RopeFrequencies f =
      rope_frequencies({.scaling = FactorScaling{.factors = {1, kInfinity, 2, kInfinity}}}, 8);
  EXPECT_EQ(f.theta[1], 0);
  EXPECT_EQ(f.theta[3], 0);
  EXPECT_EQ(f.theta[2], rope_frequencies({}, 8).theta[2] / 2);
}

TEST(RopeFrequencies, TheColumnsThatTurnMayBeTheLast) {
  for (const RopePairing pairing : {RopePairing::interleaved, RopePairing::half_split}) {
    // MLA: 512 columns of content, then 64 that turn.
    const RopeFrequencies f = rope_frequencies({.pairing = pairing, .rotary_begin = 512}, 576);
    ASSERT_EQ(f.pairs(), 32);
    EXPECT_EQ(f.theta, rope_frequencies({}, 64).theta);
    EXPECT_EQ(f.first_column(0), 512);
    EXPECT_EQ(f.second_column(31), 575);
    EXPECT_EQ(f.second_column(0), pairing == RopePairing::interleaved ? 513 : 544);
    for (Index c = 0; c < 576; ++c) EXPECT_EQ(f.turns_column(c), c >= 512);
  }
  const RopeFrequencies middle = rope_frequencies({.rotary_dim = 4, .rotary_begin = 2}, 8);
  EXPECT_EQ(middle.pairs(), 2);
  EXPECT_FALSE(middle.turns_column(6));
}

/// The section of each pair as letters t, h, w.
std::string sections_of(const std::vector<Index>& sections, SectionOrder order) {
  Index pairs = 0;
  for (const Index n : sections) pairs += n;
  const RopeFrequencies f = rope_frequencies({.sections = sections, .section_order = order}, 2 * pairs);
  EXPECT_EQ(f.sections, std::ssize(sections));
  std::string letters;
  for (Index m = 0; m < pairs; ++m) letters += "thwe"[f.section(m)];
  return letters;
}

TEST(RopeFrequencies, SectionsShareOutThePairs) {
  const std::string qwen2 = sections_of({16, 24, 24}, SectionOrder::consecutive);
  EXPECT_EQ(qwen2, std::string(16, 't') + std::string(24, 'h') + std::string(24, 'w'));
  EXPECT_EQ(sections_of({1, 2, 0, 3}, SectionOrder::consecutive), "thheee");  // ggml's list is of four
  std::string qwen3;
  for (int m = 0; m < 20; ++m) qwen3 += "thw";
  EXPECT_EQ(sections_of({24, 20, 20}, SectionOrder::interleaved), qwen3 + "tttt");
  std::string qwen35 = qwen3.substr(0, 30);
  EXPECT_EQ(sections_of({11, 11, 10}, SectionOrder::interleaved), qwen35 + "th");
  EXPECT_EQ(sections_of({5}, SectionOrder::interleaved), "ttttt");
  EXPECT_EQ(rope_frequencies({}, 8).sections, 1);
  EXPECT_EQ(rope_frequencies({}, 8).section(3), 0);
}

TEST(RopeFrequencies, YarnAttentionFactorCanBeGiven) {
  const auto factor_of = [](const YarnScaling& yarn) {
    return rope_frequencies({.scaling = yarn}, 64).attention_factor;
  };
  EXPECT_EQ(factor_of({.factor = 8, .attention_factor = 1.0}), 1.0);
  EXPECT_EQ(factor_of({.factor = 8, .attention_factor = 0.707}), 0.707);
  EXPECT_EQ(factor_of({.factor = 1}), 1.0);
  EXPECT_EQ(factor_of({.factor = 0.5}), 1.0);
}

TEST(RopeFrequencies, Llama3StretchesLongWavelengths) {
  // Llama 3.1: context 8192, kept below wavelength 2048, divided by 8 above 8192.
  const Rope rope{.base = 500000.0, .scaling = Llama3Scaling{}};
  const std::vector<double> ratio = divisors(rope, 128);
  const RopeFrequencies plain = rope_frequencies({.base = 500000.0}, 128);
  int kept = 0, stretched = 0;
  for (std::size_t m = 0; m < 64; ++m) {
    const double wavelength = 2 * kPi / plain.theta[m];
    if (wavelength < 2048) {
      expect_close(ratio[m], 1);
      ++kept;
    } else if (wavelength > 8192) {
      expect_close(ratio[m], 8);
      ++stretched;
    } else {
      EXPECT_GT(ratio[m], 1);
      EXPECT_LT(ratio[m], 8);
    }
  }
  // 64 ln(2048 / 2 pi) / ln 500000 = 28.22 and 64 ln(8192 / 2 pi) / ln 500000 = 34.98 by hand.
  EXPECT_EQ(kept, 29);
  EXPECT_EQ(stretched, 29);
}

TEST(RopeFrequencies, FactorsDivideEachPair) {
  const Rope rope{.scaling = FactorScaling{.factors = {1, 2, 5, 0.5}, .attention_factor = 1.19}};
  const std::vector<double> ratio = divisors(rope, 8);
  const double expected[] = {1, 2, 5, 0.5};
  for (std::size_t m = 0; m < 4; ++m) expect_close(ratio[m], expected[m]);
  EXPECT_EQ(rope_frequencies(rope, 8).attention_factor, 1.19);
}

TEST(RopeFrequencies, EqualThePublishedFormulas) {
  const RopeScaling scalings[] = {
      std::monostate{},
      LinearScaling{3},
      NtkScaling{8},
      YarnScaling{.factor = 4},
      YarnScaling{.factor = 32, .original_context = 4096, .beta_fast = 32, .beta_slow = 1},
      YarnScaling{.factor = 40, .original_context = 100, .beta_fast = 3, .beta_slow = 2.9},
      YarnScaling{.factor = 2, .original_context = 32768, .attention_factor = 1.3},
      YarnScaling{.factor = 32, .original_context = 4096, .truncate = false},  // gpt-oss
      YarnScaling{.factor = 2, .original_context = 64, .truncate = false},
      YarnScaling{.factor = 2, .original_context = 64, .beta_fast = 32},  // starts before the first pair
      YarnScaling{.factor = 2, .original_context = 6},                    // starts and ends at the first pair
      YarnScaling{.factor = 2, .original_context = 1e9},                  // ends behind the last
      Llama3Scaling{},
      Llama3Scaling{.factor = 32, .low_freq_factor = 1, .high_freq_factor = 4, .original_context = 8192},
      Llama3Scaling{.factor = 2, .low_freq_factor = 0.5, .high_freq_factor = 20, .original_context = 300}};
  for (const RopeScaling& scaling : scalings) {
    for (const double base : {1e4, 5e5, 1e6}) {
      for (const Index rotary_dim : {2, 10, 64, 128}) {
        const Rope rope{.base = base, .rotary_dim = rotary_dim, .scaling = scaling};
        const RopeFrequencies f = rope_frequencies(rope, 128);
        const auto expected = fastrope_test::reference_frequencies(rope, 128);
        SCOPED_TRACE("scaling " + std::to_string(scaling.index()) + " base " + std::to_string(base) +
                     " rotary_dim " + std::to_string(rotary_dim));
        ASSERT_EQ(f.theta.size(), expected.theta.size());
        for (std::size_t m = 0; m < f.theta.size(); ++m) expect_close(f.theta[m], expected.theta[m]);
        expect_close(f.attention_factor, expected.gain);
      }
    }
  }
}

/// The message of the Error that rope_frequencies throws; empty if it does not.
std::string error_of(const Rope& rope, Index d) {
  try {
    rope_frequencies(rope, d);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(RopeErrors, DimensionsThatCannotTurn) {
  EXPECT_NE(error_of({}, 7).find('7'), std::string::npos) << error_of({}, 7);
  EXPECT_NE(error_of({.rotary_dim = 5}, 8).find('5'), std::string::npos);
  const std::string beyond = error_of({.rotary_dim = 10}, 8);
  EXPECT_NE(beyond.find("10"), std::string::npos) << beyond;
  EXPECT_NE(beyond.find('8'), std::string::npos) << beyond;
  EXPECT_NE(error_of({.rotary_dim = -2}, 8).find("-2"), std::string::npos);
  EXPECT_EQ(error_of({.rotary_dim = 6}, 7), "");  // an odd d with an even part that turns
}

TEST(RopeErrors, ColumnsThatAreNotThere) {
  EXPECT_NE(error_of({.rotary_begin = 9}, 8).find("rotary_begin 9"), std::string::npos);
  EXPECT_NE(error_of({.rotary_begin = -1}, 8).find("-1"), std::string::npos);
  EXPECT_NE(error_of({.rotary_dim = 6, .rotary_begin = 4}, 8).find("rotary_dim 6"), std::string::npos);
  EXPECT_NE(error_of({.rotary_begin = 3}, 8).find("even, got 5"), std::string::npos);
}

TEST(RopeErrors, SectionsThatDoNotShareOutThePairs) {
  EXPECT_NE(error_of({.sections = {1, 2}}, 8).find("3 pairs together, 4"), std::string::npos);
  EXPECT_NE(error_of({.sections = {5, -1}}, 8).find("5 of 4"), std::string::npos);
  EXPECT_NE(error_of({.sections = {4, 0, 0, 0, 0, 0, 0, 0, 0}}, 8).find("9 sections"), std::string::npos);
  // Every third of 6 pairs from the second on are 1 and 4.
  EXPECT_EQ(error_of({.sections = {2, 2, 2}, .section_order = SectionOrder::interleaved}, 12), "");
  const std::string few = error_of({.sections = {2, 3, 1}, .section_order = SectionOrder::interleaved}, 12);
  EXPECT_NE(few.find("fewer than the 3 of section 1"), std::string::npos) << few;
}

TEST(RopeErrors, ParametersOutOfRange) {
  const double kNaN = std::numeric_limits<double>::quiet_NaN();
  const double kInfinity = std::numeric_limits<double>::infinity();
  for (const double bad : {0.0, -1.0, kNaN, kInfinity}) {
    const Rope ropes[] = {
        {.base = bad},
        {.scaling = LinearScaling{bad}},
        {.scaling = NtkScaling{bad}},
        {.scaling = YarnScaling{.factor = bad}},
        {.scaling = YarnScaling{.factor = 2, .original_context = bad}},
        {.scaling = YarnScaling{.factor = 2, .beta_fast = bad}},
        {.scaling = YarnScaling{.factor = 2, .beta_slow = bad}},
        {.scaling = YarnScaling{.factor = 2, .attention_factor = bad}},
        {.scaling = Llama3Scaling{.factor = bad}},
        {.scaling = Llama3Scaling{.low_freq_factor = bad}},
        {.scaling = Llama3Scaling{.original_context = bad}},
        {.scaling = FactorScaling{.factors = {1, 1, 1, 1}, .attention_factor = bad}},
    };
    for (const Rope& rope : ropes)
      EXPECT_NE(error_of(rope, 8), "") << "scaling " << rope.scaling.index() << " with " << bad;
    if (bad < kInfinity || std::isnan(bad)) {  // an infinite factor keeps a pair still
      EXPECT_NE(error_of({.scaling = FactorScaling{.factors = {1, 1, 1, bad}}}, 8), "") << bad;
    }
  }
  EXPECT_NE(error_of({.scaling = Llama3Scaling{.low_freq_factor = 4, .high_freq_factor = 4}}, 8), "");
  EXPECT_NE(error_of({.scaling = Llama3Scaling{.high_freq_factor = kNaN}}, 8), "");
}

TEST(RopeErrors, AFactorForEachPair) {
  const std::string text = error_of({.scaling = FactorScaling{.factors = {1, 2, 3}}}, 8);
  EXPECT_NE(text.find('3'), std::string::npos) << text;
  EXPECT_NE(text.find('4'), std::string::npos) << text;
}

TEST(RopeErrors, AFrequencyThatIsNoDouble) {
  const std::string text = error_of({.scaling = FactorScaling{.factors = {1, 1e-310, 1, 1}}}, 8);
  EXPECT_NE(text.find("a frequency of inf"), std::string::npos) << text;
}

}  // namespace
