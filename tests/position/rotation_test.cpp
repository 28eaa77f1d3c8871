#include "fastrope/position/rotation.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <variant>
#include <vector>

#include "support/inputs.hpp"
#include "support/reference.hpp"

namespace {

using fastrope::Index;
using fastrope::LinearScaling;
using fastrope::Llama3Scaling;
using fastrope::NtkScaling;
using fastrope::Position;
using fastrope::Range;
using fastrope::Rope;
using fastrope::rope_frequencies;
using fastrope::RopeFrequencies;
using fastrope::RopePairing;
using fastrope::Rotation;
using fastrope::SectionOrder;
using fastrope_test::Inputs;

template <class Real>
class RotationOf : public testing::Test {
 public:
  /// The table of a list of positions.
  static std::vector<Real> table(const Rotation& rotation, const std::vector<Position>& positions) {
    const Index rows = static_cast<Index>(positions.size());
    std::vector<Real> values(static_cast<std::size_t>(rows * rotation.row_size()));
    rotation.fill(
        {0, rows}, [&](Index i, Index) { return positions[static_cast<std::size_t>(i)]; }, values.data());
    return values;
  }

  /// x turned to position p.
  static std::vector<Real> turned(const Rotation& rotation, std::vector<Real> x, Position p) {
    rotation.apply(table(rotation, {p}).data(), x.data());
    return x;
  }

  /// What the header promises for a table entry at |position| <= 2^20.
  static constexpr double kPhaseError = std::is_same_v<Real, float> ? 1e-7 : 1e-9;
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(RotationOf, Reals);

TYPED_TEST(RotationOf, PhasesAreExactUpToAMillionTokens) {
  Inputs inputs(11);
  std::vector<Position> positions{0, 1, 63, 64, 65, -1, -63, -64, -65, 1 << 20, -(1 << 20), (1 << 20) - 1};
  while (positions.size() < 1000) positions.push_back(inputs.integer(-(1 << 20), 1 << 20));
  double worst = 0;
  for (const double base : {1e4, 5e5, 1e6}) {
    for (const double gain : {1.0, 1.3}) {
      RopeFrequencies f = rope_frequencies({.base = base}, 128);
      f.attention_factor = gain;
      const auto table = this->table(Rotation(f), positions);
      for (std::size_t i = 0; i < positions.size(); ++i) {
        for (std::size_t m = 0; m < 64; ++m) {
          const long double angle = static_cast<long double>(positions[i]) * f.theta[m];
          const auto error = [&](long double exact, std::size_t column) {
            return static_cast<double>(std::abs(gain * exact - table[128 * i + column]));
          };
          worst = std::max({worst, error(std::cos(angle), m), error(std::sin(angle), 64 + m)});
        }
      }
    }
  }
  EXPECT_LE(worst, this->kPhaseError);
  this->RecordProperty("worst_phase_error", std::to_string(worst / this->kPhaseError) + " of the promise");
}

TYPED_TEST(RotationOf, RowsDoNotDependOnTheRangeTheyAreFilledIn) {
  using Real = TypeParam;
  const Rotation rotation(rope_frequencies({}, 10));
  const auto position_of = [](Index i, Index) { return 1000 - 37 * static_cast<Position>(i); };
  std::vector<Real> all(static_cast<std::size_t>(60 * rotation.row_size()));
  rotation.fill({0, 60}, position_of, all.data());
  for (Index begin = 0; begin < 60; begin += 7) {
    std::vector<Real> part(static_cast<std::size_t>(5 * rotation.row_size()));
    rotation.fill(fastrope::intersect({begin, begin + 5}, {0, 60}), position_of, part.data());
    for (Index x = 0; x < std::min<Index>(5, 60 - begin) * rotation.row_size(); ++x)
      EXPECT_EQ(part[static_cast<std::size_t>(x)],
                all[static_cast<std::size_t>(begin * rotation.row_size() + x)]);
  }
}

TYPED_TEST(RotationOf, TurnsEachPairOfColumns) {
  using Real = TypeParam;
  Inputs inputs(12);
  for (const RopePairing pairing : {RopePairing::interleaved, RopePairing::half_split}) {
    constexpr Index d = 14, rotary_dim = 10;
    RopeFrequencies f = rope_frequencies({.pairing = pairing, .rotary_dim = rotary_dim}, d);
    f.attention_factor = 1.25;
    for (const Position p : {0, 3, -17, 100000}) {
      const auto x = inputs.gaussian<Real>(1, 1, d).values;
      const auto y = this->turned(Rotation(f), x, p);
      for (std::size_t m = 0; m < 5; ++m) {
        const std::size_t a = pairing == RopePairing::interleaved ? 2 * m : m;
        const std::size_t b = pairing == RopePairing::interleaved ? 2 * m + 1 : m + 5;
        const double angle = static_cast<double>(p) * f.theta[m];
        const double tolerance =
            1.25 * (this->kPhaseError + 3 * this->kEpsilon) * (std::abs(x[a]) + std::abs(x[b]));
        EXPECT_NEAR(y[a], 1.25 * (std::cos(angle) * x[a] - std::sin(angle) * x[b]), tolerance);
        EXPECT_NEAR(y[b], 1.25 * (std::sin(angle) * x[a] + std::cos(angle) * x[b]), tolerance);
      }
      for (std::size_t c = rotary_dim; c < d; ++c) EXPECT_EQ(y[c], x[c]) << "a column that does not turn";
    }
  }
}

TYPED_TEST(RotationOf, TheTransposeIsAdjoint) {
  using Real = TypeParam;
  Inputs inputs(13);
  for (const RopePairing pairing : {RopePairing::interleaved, RopePairing::half_split}) {
    constexpr Index d = 44;
    RopeFrequencies f = rope_frequencies({.pairing = pairing, .rotary_dim = 40, .rotary_begin = 2}, d);
    f.attention_factor = 1.25;
    const Rotation rotation(f);
    std::vector<Real> row(static_cast<std::size_t>(rotation.row_size()));
    rotation.fill(
        {0, 1}, [](Index, Index) { return Position{7}; }, row.data());
    const auto x = inputs.gaussian<Real>(1, 1, d).values, y = inputs.gaussian<Real>(1, 1, d).values;
    auto turned = x, back = y;
    rotation.apply(row.data(), turned.data());
    rotation.apply_transposed(row.data(), back.data());
    double a = 0, b = 0;  // <turned x, y> and <x, y turned back>
    for (std::size_t c = 0; c < d; ++c) {
      a += static_cast<double>(turned[c]) * static_cast<double>(y[c]);
      b += static_cast<double>(x[c]) * static_cast<double>(back[c]);
    }
    EXPECT_NEAR(a, b, 4 * d * this->kEpsilon);
  }
}

TYPED_TEST(RotationOf, TheProductDependsOnTheLagAlone) {
  using Real = TypeParam;
  Inputs inputs(13);
  constexpr Index d = 64;
  for (const RopePairing pairing : {RopePairing::interleaved, RopePairing::half_split}) {
    const Rotation rotation(rope_frequencies({.base = 5e5, .pairing = pairing}, d));
    const auto q = inputs.gaussian<Real>(1, 1, d).values, k = inputs.gaussian<Real>(1, 1, d).values;
    double size = 0;
    for (std::size_t c = 0; c < d; ++c) size += 2 * std::abs(q[c]) * std::abs(k[c]);
    const auto product = [&](Position p, Position t) {
      const auto a = this->turned(rotation, q, p), b = this->turned(rotation, k, t);
      double sum = 0;
      for (std::size_t c = 0; c < d; ++c) sum += static_cast<double>(a[c]) * b[c];
      return sum;
    };
    for (const Position lag : {0, 1, 50, -7, 4096}) {
      const double at_zero = product(lag, 0);
      for (const Position t : {1, 5000, -300, 1 << 20})
        EXPECT_NEAR(product(t + lag, t), at_zero, 8 * this->kPhaseError * size)
            << "lag " << lag << " at " << t;
    }
    EXPECT_GT(std::abs(product(50, 0) - product(-50, 0)), 1e-3) << "direction matters";
  }
}

TYPED_TEST(RotationOf, EqualPositionsOfSectionsAreOnePositionBitForBit) {
  Inputs inputs(15);
  for (const Index d : {12, 128, 180}) {
    Rope rope{.base = 1e6};
    const Rotation plain(rope_frequencies(rope, d));
    for (const SectionOrder order : {SectionOrder::consecutive, SectionOrder::interleaved}) {
      rope.sections = {d / 2 - 2 * (d / 8), d / 8, d / 8};
      rope.section_order = order;
      const Rotation sections(rope_frequencies(rope, d));
      std::vector<Position> positions;
      for (int i = 0; i < 100; ++i) positions.push_back(inputs.integer(-5000, 1 << 20));
      EXPECT_EQ(this->table(sections, positions), this->table(plain, positions)) << "d " << d;
    }
  }
}

TYPED_TEST(RotationOf, EachSectionTurnsByItsOwnPositions) {
  using Real = TypeParam;
  Inputs inputs(16);
  for (const SectionOrder order : {SectionOrder::consecutive, SectionOrder::interleaved}) {
    const Rope rope{
        .base = 1e6, .sections = {26, 20, 20}, .section_order = order};  // more than kPairs together
    const Rotation rotation(rope_frequencies(rope, 132));
    const std::vector<Index> section = fastrope_test::reference_sections(rope, 66);
    constexpr Index kRows = 40;
    std::vector<Position> positions;  // [rows, 3]
    for (Index i = 0; i < 3 * kRows; ++i) positions.push_back(inputs.integer(-70, 1 << 20));
    for (Index i = 0; i < 3 * kRows; i += 9)
      positions[static_cast<std::size_t>(i)] = 4096;  // a `high` in common
    const auto position_of = [&](Index i, Index s) { return positions[static_cast<std::size_t>(3 * i + s)]; };
    std::vector<Real> table(static_cast<std::size_t>(kRows * rotation.row_size()));
    rotation.fill({0, kRows}, position_of, table.data());
    for (Index i = 0; i < kRows; ++i)
      for (Index m = 0; m < 66; ++m) {
        const long double angle =
            static_cast<long double>(position_of(i, section[static_cast<std::size_t>(m)])) *
            rotation.frequencies().theta[static_cast<std::size_t>(m)];
        const auto at = static_cast<std::size_t>(i * 132 + m);
        EXPECT_NEAR(table[at], static_cast<double>(std::cos(angle)), this->kPhaseError);
        EXPECT_NEAR(table[at + 66], static_cast<double>(std::sin(angle)), this->kPhaseError);
      }
  }
}

TYPED_TEST(RotationOf, ColumnsBeforeTheFirstThatTurnStayAsTheyAre) {
  using Real = TypeParam;
  Inputs inputs(17);
  for (const RopePairing pairing : {RopePairing::interleaved, RopePairing::half_split})
    for (const Index begin : {1, 5, 16}) {
      const Index turning = 38, d = begin + turning;
      const Rotation last(rope_frequencies({.pairing = pairing, .rotary_begin = begin}, d));
      const Rotation whole(rope_frequencies({.pairing = pairing}, turning));
      const auto x = inputs.gaussian<Real>(1, 1, d).values;
      const auto y = this->turned(last, x, 777);
      const auto expected = this->turned(whole, {x.begin() + begin, x.end()}, 777);
      EXPECT_TRUE(std::equal(x.begin(), x.begin() + begin, y.begin()));
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), y.begin() + begin));
    }
}

TYPED_TEST(RotationOf, WithoutFrequenciesNothingTurns) {
  using Real = TypeParam;
  const Rotation none;
  EXPECT_EQ(none.pairs(), 0);
  EXPECT_EQ(none.row_size(), 0);
  const std::vector<Real> x{1, 2, 3};
  EXPECT_EQ(this->turned(none, x, 5), x);
}

/// theta_m of a rope in long double, by the formulas of the papers.
std::vector<long double> frequencies_of(const Rope& rope, Index d) {
  std::vector<long double> all;
  for (Index m = 0; 2 * m < d; ++m) {
    long double theta = 1 / std::pow(static_cast<long double>(rope.base), 2.0L * m / d);
    if (const auto* linear = std::get_if<LinearScaling>(&rope.scaling)) theta /= linear->factor;
    if (const auto* ntk = std::get_if<NtkScaling>(&rope.scaling))
      theta = 1 / std::pow(rope.base * std::pow(static_cast<long double>(ntk->factor), d / (d - 2.0L)),
                           2.0L * m / d);
    if (const auto* llama = std::get_if<Llama3Scaling>(&rope.scaling)) {
      const long double wavelength = 2 * std::acos(-1.0L) / theta;
      const long double smooth =
          std::clamp((llama->original_context / wavelength - llama->low_freq_factor) /
                         (static_cast<long double>(llama->high_freq_factor) - llama->low_freq_factor),
                     0.0L, 1.0L);
      theta = (1 - smooth) * theta / llama->factor + smooth * theta;
    }
    all.push_back(theta);
  }
  return all;
}

TEST(Rotation, PhasesAreAsExactAsPromised) {
  if (std::numeric_limits<long double>::digits < 64) GTEST_SKIP() << "no arithmetic to compare with";
  Inputs inputs(14);
  for (const Rope& rope : {Rope{}, Rope{.base = 5e5}, Rope{.base = 3e7, .scaling = LinearScaling{3}},
                           Rope{.scaling = NtkScaling{5}}, Rope{.base = 5e5, .scaling = Llama3Scaling{32}}}) {
    for (const double gain : {1.0, 1.37}) {
      const Index d = 96;
      RopeFrequencies f = rope_frequencies(rope, d);
      f.attention_factor = gain;
      const Rotation rotation(f);
      const std::vector<long double> theta = frequencies_of(rope, d);
      for (const Position farthest : {Position{64}, Position{5000}, Position{1} << 20, f.max_position()}) {
        std::vector<Position> positions = {farthest, -farthest};
        while (positions.size() < 200) positions.push_back(inputs.integer(-farthest, farthest));
        const std::vector<double> table = RotationOf<double>::table(rotation, positions);
        const double promised = rotation.phase_error(farthest);
        double worst = 0;
        for (std::size_t i = 0; i < positions.size(); ++i)
          for (std::size_t m = 0; m < theta.size(); ++m) {
            const long double angle = static_cast<long double>(positions[i]) * theta[m];
            const auto error = [&](long double exact, std::size_t column) {
              return static_cast<double>(std::abs(gain * exact - table[i * 2 * theta.size() + column]));
            };
            worst = std::max({worst, error(std::cos(angle), m), error(std::sin(angle), theta.size() + m)});
          }
        EXPECT_LE(worst, promised) << "base " << rope.base << ", positions up to " << farthest;
        if (farthest >= 1 << 20) {
          EXPECT_GE(worst, 0.1 * promised) << "base " << rope.base << ", positions up to " << farthest;
        }
      }
    }
  }
}

TEST(Rotation, APromiseMayBeReckonedWith) {
  const Rotation rotation(rope_frequencies({}, 128));
  EXPECT_LE(rotation.phase_error(0), 4e-14);
  EXPECT_LE(rotation.phase_error(1 << 20), 3e-10);
  EXPECT_LE(rotation.phase_error(Position{1} << 28), 1e-7);
  EXPECT_LE(rotation.phase_error(rotation.frequencies().max_position()), 6e-7);
  EXPECT_EQ(rotation.frequencies().max_position(), Position{1} << 31);
  // Frequencies above 1 turn as far sooner.
  const Rotation fast(rope_frequencies({.scaling = LinearScaling{1.0 / 1024}}, 128));
  EXPECT_EQ(fast.frequencies().max_position(), Position{1} << 21);
  EXPECT_LE(fast.phase_error(fast.frequencies().max_position()), 6e-7);
  EXPECT_EQ(Rotation().phase_error(Position{1} << 31), 0);
}

}  // namespace
