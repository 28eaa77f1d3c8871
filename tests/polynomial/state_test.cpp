// The state of the keys' features, and what rows read off it, against plain sums in double.
#include "fastrope/polynomial/state.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/polynomial/rounding.hpp"
#include "support/dense_polynomial.hpp"
#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using simd::kLanes;

using Limits = std::vector<int>;

/// Keys as projection leaves them, laid out as the state wants them. Memory that may not be read is full of
/// NaN, and what is multiplied by a weight of 0 is not 0 itself.
template <class Real>
class Keys {
 public:
  static constexpr Index kWidth = kKeyBlock<Real>;
  static constexpr Real kNaN = std::numeric_limits<Real>::quiet_NaN();

  Keys(Index n, Index variables, Index d_v, Inputs& random)
      : n_(n),
        y_(random.gaussian<Real>(1, ceil_div(n, kWidth) * variables, kWidth).values),
        weight_(static_cast<std::size_t>(ceil_div(n, kWidth) * kWidth)) {
    for (Index j = 0; j < n; ++j)
      weight_[static_cast<std::size_t>(j)] = static_cast<Real>(random.uniform(0, 1));
    const ValueLayout<Real> layout(d_v);
    const auto [group, stride] = layout;
    const Index count = round_up(n, PackedKeys<Real>::kWidth);
    values_.assign(static_cast<std::size_t>(ceil_div(n, kWidth) * kWidth / group * stride), kNaN);
    std::fill_n(values_.begin(), count / group * stride, Real{100});
    blocks_ = {.count = count,
               .variables = variables,
               .d_v = d_v,
               .layout = layout,
               .y = y_.data(),
               .weight = weight_.data(),
               .values = values_.data()};
    for (Index j = 0; j < n; ++j)
      for (Index c = 0; c < d_v; ++c) value(j, c) = static_cast<Real>(random.uniform(-1, 1));
  }
  Keys(const Keys&) = delete;

  Index n() const { return n_; }
  const KeyBlocks<Real>& blocks() const { return blocks_; }
  Range all() const { return {0, ceil_div(n_, kWidth)}; }
  double y(Index j, Index l) const {
    return static_cast<double>(
        y_[static_cast<std::size_t>((j / kWidth * blocks_.variables + l) * kWidth + j % kWidth)]);
  }
  double weight(Index j) const { return static_cast<double>(weight_[static_cast<std::size_t>(j)]); }
  /// Column d_v is the ones.
  double value_or_one(Index j, Index c) const {
    return c == blocks_.d_v ? 1 : static_cast<double>(const_cast<Keys*>(this)->value(j, c));
  }

 private:
  Real& value(Index j, Index c) {
    const auto [group, stride] = blocks_.layout;
    return values_[static_cast<std::size_t>(j / group * stride + c * group + j % group)];
  }

  Index n_;
  std::vector<Real> y_, weight_, values_;
  KeyBlocks<Real> blocks_;
};

/// Scratch full of NaN.
template <class Real>
class Scratch {
 public:
  Scratch(const MonomialSet& set, const KeyBlocks<Real>& keys) {
    const auto carve = [&](Workspace& workspace) {
      return FeatureScratch<Real>(set.variables(), set.variables(), set.degree(), keys.d_v, workspace);
    };
    memory_.resize(Workspace::bytes_of(carve));
    std::memset(memory_.data(), 0xff, memory_.size());
    Workspace workspace(memory_);
    arrays_.push_back(carve(workspace));
  }
  const FeatureScratch<Real>& arrays() const { return arrays_.front(); }

 private:
  std::vector<std::byte> memory_;
  std::vector<FeatureScratch<Real>> arrays_;
};

/// Some of either sign that fall like those of exp; of degrees that a set does not have none.
std::vector<double> coefficients_of(const MonomialSet& set) {
  std::vector<double> c = {1.25};
  for (int p = 1; p <= set.degree(); ++p) c.push_back((p % 3 == 0 ? -0.9 : 1.1) * c.back() / p);
  if (set.constants() == 0) std::fill(c.begin(), c.end() - 1, 0.0);
  return c;
}

/// x [variables, kQueryBlock] as kernels hold it.
template <class Real>
struct QueryRows {
  static constexpr Index kWidth = kQueryBlock<Real>;

  QueryRows(Index variables, double sigma, Inputs& random)
      : x(random.gaussian<Real>(1, variables, kWidth, sigma).values) {}

  double operator()(Index i, Index l) const {
    return static_cast<double>(x[static_cast<std::size_t>(l * kWidth + i)]);
  }
  /// sums [d_v + 1, kWidth] of a state.
  std::vector<Real> apply(const MonomialSet& set, Index d_v, const std::vector<Real>& state) const {
    constexpr Real kNaN = std::numeric_limits<Real>::quiet_NaN();
    std::vector<Real> ancestors(static_cast<std::size_t>((set.degree() + 1) * kWidth), kNaN);
    std::vector<Real> features(static_cast<std::size_t>(kChain * kWidth), kNaN);
    std::vector<Real> sums(static_cast<std::size_t>((d_v + 1) * kWidth), kNaN);
    const StateQueries<Real> queries{const_cast<Real*>(x.data()), ancestors.data(), nullptr, sums.data()};
    apply_state<Real>(set, d_v, state.data(), {&queries, 1}, features.data());
    return sums;
  }

  std::vector<Real> x;
};

/// x^alpha of every term in double.
template <class VariableOf>
std::vector<double> monomials(const MonomialSet& set, VariableOf&& x) {
  std::vector<double> values;
  for (const Monomial& term : set.terms()) {
    values.push_back(1);
    for (const Monomial* at = &term; at->degree > 0; at = &set.parent_of(*at))
      values.back() *= x(at->variable);
  }
  return values;
}

template <class Real>
class StateTest : public testing::Test {
 protected:
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();

  /// Roundings that an element of the state may have, in relation to the sizes of its summands: a feature's,
  /// and those of a block's sum, half an epsilon each; folds are of double.
  static double state_roundings(int degree, Index n) {
    const auto folds = static_cast<double>(ceil_div(n, kKeyBlock<Real>) + 4);
    return key_roundings<Real>(degree) / 2 + (std::is_same_v<Real, double> ? folds : 1);
  }

  static double once(Index) { return 1; }

  static std::vector<double> state_of(const MonomialSet& set, std::span<const double> coefficients,
                                      const Keys<Real>& keys) {
    std::vector<double> state(static_cast<std::size_t>(set.rank() * (keys.blocks().d_v + 1)));
    const Scratch<Real> scratch(set, keys.blocks());
    add_keys(set, coefficients, keys.blocks(), keys.all(), {0, set.rank()}, scratch.arrays(), once,
             state.data());
    return state;
  }
  /// The copy that rows read.
  static std::vector<Real> rounded(const std::vector<double>& state) {
    std::vector<Real> copy;
    for (const double x : state) copy.push_back(static_cast<Real>(x));
    return copy;
  }

  /// Every element, after it was added to what was there, some blocks of the keys at a time.
  static void expect_state(const Limits& limits, Index n, Index d_v, Inputs& random,
                           std::vector<Range> parts = {}, Degrees degrees = Degrees::all) {
    SCOPED_TRACE(testing::Message() << limits.size() << " variables, degree "
                                    << (limits.empty() ? 0 : limits[0]) << ", " << n << " keys, d_v " << d_v);
    const MonomialSet set(limits, degrees);
    const std::vector<double> c = coefficients_of(set);
    const Keys<Real> keys(n, set.variables(), d_v, random);
    const Index channels = d_v + 1;
    const auto before = random.gaussian<double>(1, set.rank(), channels).values;
    auto state = before;
    const Scratch<Real> scratch(set, keys.blocks());
    if (parts.empty()) parts = {keys.all()};
    for (const Range& part : parts)
      add_keys(set, c, keys.blocks(), part, {0, set.rank()}, scratch.arrays(), once, state.data());
    std::vector<double> expected(before.begin(), before.end()), size = expected;
    for (double& s : size) s = std::abs(s);
    std::vector<double> factor;
    for (const Monomial& term : set.terms())
      factor.push_back(c[static_cast<std::size_t>(term.degree)] * term.multinomial);
    for (Index j = 0; j < n; ++j) {
      const std::vector<double> feature = monomials(set, [&](Index l) { return keys.y(j, l); });
      for (std::size_t f = 0; f < feature.size(); ++f)
        for (Index m = 0; m < channels; ++m) {
          const double summand = factor[f] * keys.weight(j) * feature[f] * keys.value_or_one(j, m);
          expected[f * static_cast<std::size_t>(channels) + static_cast<std::size_t>(m)] += summand;
          size[f * static_cast<std::size_t>(channels) + static_cast<std::size_t>(m)] += std::abs(summand);
        }
    }
    for (std::size_t e = 0; e < state.size(); ++e)
      ASSERT_NEAR(state[e], expected[e], state_roundings(set.degree(), n) * kEpsilon * size[e])
          << "term " << e / static_cast<std::size_t>(channels) << ", column "
          << e % static_cast<std::size_t>(channels);
  }

  /// sum_j w_j P_A(x.y_j) [v_j, 1] for a block of rows.
  static void expect_dense(const Limits& limits, Index n, Index d_v, Inputs& random,
                           Degrees degrees = Degrees::all) {
    SCOPED_TRACE(testing::Message() << limits.size() << " variables, degree "
                                    << (limits.empty() ? 0 : limits[0]) << ", " << n << " keys, d_v " << d_v);
    const MonomialSet set(limits, degrees);
    const std::vector<double> c = coefficients_of(set);
    std::vector<double> c_size = c;
    for (double& coefficient : c_size) coefficient = std::abs(coefficient);
    const Keys<Real> keys(n, set.variables(), d_v, random);
    const QueryRows<Real> x(set.variables(), 0.5, random);
    const std::vector<Real> sums = x.apply(set, d_v, rounded(state_of(set, c, keys)));
    std::vector<double> z(limits.size()), z_size = z;
    for (Index i = 0; i < x.kWidth; i += 5) {
      std::vector<double> expected(static_cast<std::size_t>(d_v + 1)), size = expected;
      for (Index j = 0; j < n; ++j) {
        for (std::size_t l = 0; l < z.size(); ++l) {
          z[l] = x(i, static_cast<Index>(l)) * keys.y(j, static_cast<Index>(l));
          z_size[l] = std::abs(z[l]);
        }
        const double entry = keys.weight(j) * limited_polynomial(c, limits, z);
        const double entry_size = keys.weight(j) * limited_polynomial(c_size, limits, z_size);
        for (Index m = 0; m <= d_v; ++m) {
          expected[static_cast<std::size_t>(m)] += entry * keys.value_or_one(j, m);
          size[static_cast<std::size_t>(m)] += entry_size * std::abs(keys.value_or_one(j, m));
        }
      }
      // The row's own features have a rounding for each degree, their sum the root of its length.
      const double roundings =
          state_roundings(set.degree(), n) + set.degree() + 2 * std::sqrt(static_cast<double>(set.rank()));
      for (Index m = 0; m <= d_v; ++m)
        ASSERT_NEAR(static_cast<double>(sums[static_cast<std::size_t>(m * x.kWidth + i)]),
                    expected[static_cast<std::size_t>(m)],
                    roundings * kEpsilon * size[static_cast<std::size_t>(m)])
            << "row " << i << ", column " << m;
    }
  }
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(StateTest, Reals);

TYPED_TEST(StateTest, KeysShareVectorsWhereTheirValuesNeedFewerOfThem) {
  using Real = TypeParam;
  constexpr Index kGroup = kKeyGroup<Real>;
  for (Index d_v = 1; d_v <= 100; ++d_v) {
    const auto [group, stride] = ValueLayout<Real>(d_v);
    const Index vectors_of_a_group = ceil_div(d_v * kGroup, kLanes<Real>);
    const Index vectors_of_a_key = ceil_div(d_v, kLanes<Real>);
    EXPECT_EQ(group, vectors_of_a_group < kGroup * vectors_of_a_key ? kGroup : 1) << d_v;
    EXPECT_EQ(stride, kLanes<Real> * (group > 1 ? vectors_of_a_group : vectors_of_a_key)) << d_v;
  }
  // Whole panels, groups and vectors in a block.
  EXPECT_EQ(kKeyBlock<Real> % PackedKeys<Real>::kWidth, 0);
  EXPECT_EQ(kQueryBlock<Real> % kLanes<Real>, 0);
  EXPECT_EQ(kFeatureBlock % kRowMultiple, 0);
}

TYPED_TEST(StateTest, IsTheSumOverTheKeys) {
  Inputs random(1);
  for (Index d_v = 1; d_v <= 40; ++d_v) {
    const Limits limits = d_v % 3 == 0   ? Limits{4, 4, 4}
                          : d_v % 3 == 1 ? Limits{5, 3, 2, 1}
                                         : Limits{2, 2, 2, 2, 2};
    this->expect_state(limits, random.integer(1, 2 * kKeyBlock<TypeParam> + 1), d_v, random);
    if (this->HasFatalFailure()) return;
  }
  for (const Limits& limits : {Limits{}, {0}, {9}, {6, 6, 6, 6}, {3, 3, 0, 0}})
    for (const Index d_v : {1, 4, 7, 17}) this->expect_state(limits, 70, d_v, random);
  for (const Limits& limits : {Limits{2, 2, 2, 2, 2, 2, 2}, {1, 1, 1}, {4, 4, 4, 4}})
    for (const Index d_v : {1, 7, 16}) this->expect_state(limits, 300, d_v, random, {}, Degrees::highest);
}

TYPED_TEST(StateTest, AnyNumberOfKeys) {
  Inputs random(2);
  constexpr Index kBlock = kKeyBlock<TypeParam>, kPanel = PackedKeys<TypeParam>::kWidth;
  for (const Index d_v : {1, 2, 3, 5, 8, 16, 20})
    for (const Index n : {Index{1}, Index{2}, Index{3}, kPanel - 1, kPanel, kPanel + 1, kBlock - 1, kBlock,
                          kBlock + 1, kBlock + kPanel, 3 * kBlock - 2}) {
      this->expect_state({3, 3, 2}, n, d_v, random);
      if (this->HasFatalFailure()) return;
    }
  this->expect_state({3, 3}, 0, 3, random);
}

TYPED_TEST(StateTest, ManyBlocks) {
  Inputs random(3);
  constexpr Index kBlock = kKeyBlock<TypeParam>;
  for (const Index d_v : {1, 3, 6, 18})
    for (const Index n : {16 * kBlock, 16 * kBlock + 1, 40 * kBlock + 13}) {
      this->expect_state({3, 3, 1}, n, d_v, random);
      if (this->HasFatalFailure()) return;
    }
}

TYPED_TEST(StateTest, ReadByRowsItIsTheDenseSum) {
  Inputs random(4);
  for (Index d_v = 1; d_v <= 40; ++d_v) {
    const Limits limits = d_v % 3 == 0   ? Limits{4, 4, 4}
                          : d_v % 3 == 1 ? Limits{5, 3, 2, 1}
                                         : Limits{2, 2, 2, 2, 2};
    this->expect_dense(limits, random.integer(1, 3 * kKeyBlock<TypeParam>), d_v, random);
    if (this->HasFatalFailure()) return;
  }
  for (const Limits& limits : {Limits{}, {0, 0}, {7}, {4, 4, 4, 4, 4, 4}, {6, 2, 0}})
    for (const Index d_v : {1, 3, 6, 33}) this->expect_dense(limits, 200, d_v, random);
  this->expect_dense({3, 3, 3}, 17 * kKeyBlock<TypeParam> + 5, 5, random);
  for (const Limits& limits : {Limits{2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2}, {1, 1, 1}, {4, 4, 4, 4, 4, 4}})
    for (const Index d_v : {1, 6, 33}) this->expect_dense(limits, 300, d_v, random, Degrees::highest);
}

TYPED_TEST(StateTest, BlocksOfRowsReadItTogetherAsEachAlone) {
  using Real = TypeParam;
  Inputs random(10);
  for (const Degrees degrees : {Degrees::all, Degrees::highest})
    for (const Index d_v : {1, 20}) {
      const MonomialSet set(Limits{4, 4, 4, 4, 4}, degrees);
      const auto state = random.gaussian<Real>(1, set.rank(), d_v + 1).values;
      std::vector<Real> features(static_cast<std::size_t>(kChain * kQueryBlock<Real>));
      std::vector<std::vector<Real>> expected, memory;
      std::vector<StateQueries<Real>> blocks;
      for (Index b = 0; b < kQueryBlocks; ++b) {
        QueryRows<Real> x(set.variables(), 1, random);
        expected.push_back(x.apply(set, d_v, state));
        const auto take = [&](std::vector<Real> values) {
          return memory.emplace_back(std::move(values)).data();
        };
        const auto rows = [](Index n) {
          return std::vector<Real>(static_cast<std::size_t>(n * kQueryBlock<Real>));
        };
        blocks.push_back({take(x.x), take(rows(set.degree() + 1)), nullptr, take(rows(d_v + 1))});
      }
      apply_state<Real>(set, d_v, state.data(), blocks, features.data());
      for (std::size_t b = 0; b < blocks.size(); ++b)
        EXPECT_TRUE(std::equal(expected[b].begin(), expected[b].end(), blocks[b].sums)) << "block " << b;
    }
}

TYPED_TEST(StateTest, RowsReadEveryColumnOfAnyState) {
  using Real = TypeParam;
  Inputs random(5);
  const MonomialSet set(Limits{4, 4, 3, 2});
  for (Index d_v = 0; d_v <= 40; ++d_v) {
    const auto state = random.gaussian<Real>(1, set.rank(), d_v + 1).values;
    const QueryRows<Real> x(set.variables(), 1, random);
    const std::vector<Real> sums = x.apply(set, d_v, state);
    for (Index i = 0; i < x.kWidth; ++i) {
      const std::vector<double> feature = monomials(set, [&](Index l) { return x(i, l); });
      for (Index m = 0; m <= d_v; ++m) {
        double expected = 0, size = 0;
        for (std::size_t f = 0; f < feature.size(); ++f) {
          const double summand =
              feature[f] *
              static_cast<double>(state[f * static_cast<std::size_t>(d_v + 1) + static_cast<std::size_t>(m)]);
          expected += summand;
          size += std::abs(summand);
        }
        const double roundings = set.degree() + 2 * std::sqrt(static_cast<double>(set.rank()));
        ASSERT_NEAR(static_cast<double>(sums[static_cast<std::size_t>(m * x.kWidth + i)]), expected,
                    roundings * this->kEpsilon * size)
            << "d_v " << d_v << ", row " << i << ", column " << m;
      }
    }
  }
}

TYPED_TEST(StateTest, AnySplitOfTheTermsGivesTheSameBits) {
  using Real = TypeParam;
  Inputs random(6);
  const MonomialSet set(Limits{5, 5, 5, 4, 3});
  ASSERT_GT(set.rank(), 4 * kFeatureBlock);
  ASSERT_NE(set.rank() % kRowMultiple, 0);
  const std::vector<double> c = coefficients_of(set);
  for (const Index d_v : {1, 4, 7, 30}) {
    const Keys<Real> keys(5 * kKeyBlock<Real> - 9, set.variables(), d_v, random);
    const std::vector<double> whole = this->state_of(set, c, keys);
    for (Index size = kFeatureBlock; size < set.rank() + kFeatureBlock; size += kFeatureBlock) {
      std::vector<double> state(whole.size());
      std::vector<Range> parts;
      for (Index begin = 0; begin < set.rank(); begin += size)
        parts.push_back({begin, std::min(begin + size, set.rank())});
      std::shuffle(parts.begin(), parts.end(), random.random());
      for (const Range& part : parts) {
        const Scratch<Real> scratch(set, keys.blocks());
        add_keys(set, c, keys.blocks(), keys.all(), part, scratch.arrays(), this->once, state.data());
      }
      EXPECT_EQ(state, whole) << "d_v " << d_v << ", " << size << " terms at a time";
    }
  }
}

TYPED_TEST(StateTest, BlocksOfKeysAddUp) {
  // In parts of any number of blocks, as chunks of a causal call add them.
  Inputs random(7);
  for (const Index d_v : {1, 3, 7, 20})
    this->expect_state({4, 4, 2}, 21 * kKeyBlock<TypeParam> - 9, d_v, random,
                       {{0, 1}, {1, 3}, {3, 3}, {3, 20}, {20, 21}});
}

TYPED_TEST(StateTest, ABlockIsTakenOutAsItCameIn) {
  // A heavy block comes and goes, with a factor: it leaves no more than a rounding of double behind.
  Inputs random(8);
  const MonomialSet set(Limits{3, 3, 2});
  const std::vector<double> c = coefficients_of(set);
  for (const Index d_v : {1, 7, 30}) {
    const Keys<TypeParam> keys(4 * kKeyBlock<TypeParam>, set.variables(), d_v, random);
    const Scratch<TypeParam> scratch(set, keys.blocks());
    const auto add = [&](Range blocks, double factor, std::vector<double>& state) {
      add_keys(
          set, c, keys.blocks(), blocks, {0, set.rank()}, scratch.arrays(), [&](Index) { return factor; },
          state.data());
    };
    std::vector<double> kept(static_cast<std::size_t>(set.rank() * (d_v + 1))), state = kept;
    add({2, 4}, 1, kept);
    add({0, 2}, 1e6, state);
    std::vector<double> heavy = state;
    add({2, 4}, 1, state);
    add({0, 2}, -1e6, state);
    for (std::size_t e = 0; e < state.size(); ++e) {
      double size = 0;  // of any state on the way, about
      for (const double x : heavy) size = std::max(size, std::abs(x));
      ASSERT_NEAR(state[e], kept[e], 12 * std::numeric_limits<double>::epsilon() * size) << e;
    }
  }
}

TYPED_TEST(StateTest, RoundedWithItsSquares) {
  Inputs random(9);
  const MonomialSet set(Limits{4, 4, 3, 2});
  const Index channels = 5, degrees = set.degree() + 1;
  const auto state = random.gaussian<double>(1, set.rank(), channels).values;
  std::vector<TypeParam> copy(state.size());
  std::vector<double> squares(static_cast<std::size_t>(degrees * channels), 1e9), expected(squares.size());
  round_state(set, channels, {0, set.rank()}, state.data(), copy.data(), squares.data());
  EXPECT_EQ(copy, this->rounded(state));
  for (std::size_t f = 0; f < set.terms().size(); ++f)
    for (Index m = 0; m < channels; ++m) {
      const double x = state[f * static_cast<std::size_t>(channels) + static_cast<std::size_t>(m)];
      expected[static_cast<std::size_t>(set.terms()[f].degree * channels + m)] +=
          x * x / set.terms()[f].multinomial;
    }
  for (std::size_t e = 0; e < squares.size(); ++e)
    EXPECT_NEAR(squares[e], expected[e], 1e-12 * expected[e]) << e;
}

}  // namespace
}  // namespace fastrope_test
