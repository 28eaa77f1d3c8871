// Features of any block of terms against the monomials of their multi-indices, in double.
#include "fastrope/polynomial/features.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fastrope/polynomial/state.hpp"
#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using fastrope::Degrees;
using fastrope::evaluate_features;
using fastrope::find_ancestors;
using fastrope::kKeyBlock;
using fastrope::kQueryBlock;
using fastrope::Monomial;
using fastrope::MonomialSet;
using fastrope::Range;
using fastrope::simd::kLanes;

using Limits = std::vector<int>;

/// Simplices, and sets that leave high powers of later variables out, the last of which has no variables; and
/// homogeneous ones.
const std::vector<MonomialSet>& index_sets() {
  static const std::vector<MonomialSet> sets = [] {
    std::vector<MonomialSet> all;
    for (const Limits& limits : {Limits{6},
                                 {3, 3},
                                 {4, 4, 4, 4},
                                 {2, 2, 2, 2, 2, 2, 2, 2, 2},
                                 {5, 3, 3, 1},
                                 {7, 2, 1},
                                 {3, 3, 0},
                                 {0, 0},
                                 {}})
      all.emplace_back(limits);
    for (const Limits& limits : {Limits{6}, {1, 1, 1}, {2, 2, 2, 2, 2, 2, 2, 2, 2}, {4, 4, 4, 4}, {3, 3, 3}})
      all.emplace_back(limits, Degrees::highest);
    return all;
  }();
  return sets;
}

/// The exponents of every term.
std::vector<Limits> exponents(const MonomialSet& set) {
  std::vector<Limits> alpha;
  for (const Monomial& term : set.terms()) {
    alpha.emplace_back(static_cast<std::size_t>(set.variables()));
    for (const Monomial* at = &term; at->degree > 0; at = &set.parent_of(*at))
      ++alpha.back()[static_cast<std::size_t>(at->variable)];
  }
  return alpha;
}

/// A block of rows as kernels hold it, and memory for its features that is full of NaN.
template <class Real, Index kWidth>
struct Block {
  static constexpr Real kNaN = std::numeric_limits<Real>::quiet_NaN();

  explicit Block(const MonomialSet& monomials, Inputs& random)
      : set(monomials),
        x(random.gaussian<Real>(1, set.variables(), kWidth).values),
        root(static_cast<std::size_t>(kWidth)),
        ancestors(static_cast<std::size_t>((set.degree() + 1) * kWidth), kNaN) {
    for (Real& value : root) value = static_cast<Real>(random.uniform(0.5, 2));
    root.back() = 0;  // a padding key
  }

  void find(Index first) { find_ancestors<kWidth>(set, first, x.data(), root.data(), ancestors.data()); }

  /// The features of some terms; `ones` grows by their sums.
  std::vector<Real> features_of(Range block, std::vector<Real>& ones) {
    std::vector<Real> features(static_cast<std::size_t>(block.size() * kWidth), kNaN);
    evaluate_features<kWidth>(set, block, x.data(), ancestors.data(), features.data(), ones.data());
    return features;
  }

  /// root(i) x_i^alpha.
  double monomial(const Limits& alpha, Index i) const {
    double value = static_cast<double>(root[static_cast<std::size_t>(i)]);
    for (std::size_t l = 0; l < alpha.size(); ++l)
      value *=
          std::pow(static_cast<double>(x[l * static_cast<std::size_t>(kWidth) + static_cast<std::size_t>(i)]),
                   alpha[l]);
    return value;
  }

  const MonomialSet& set;
  std::vector<Real> x, root, ancestors;
};

template <class Real>
class FeaturesTest : public testing::Test {
 protected:
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();

  template <Index kWidth>
  static void expect_monomials(const MonomialSet& set, Range block, Inputs& random) {
    SCOPED_TRACE(testing::Message() << "terms " << block.begin << " to " << block.end << " of " << set.rank()
                                    << ", width " << kWidth);
    Block<Real, kWidth> rows(set, random);
    const auto before = random.gaussian<Real>(1, block.size(), kLanes<Real>).values;
    auto ones = before;
    rows.find(block.begin);
    const std::vector<Real> features = rows.features_of(block, ones);
    const auto alpha = exponents(set);
    for (Index f = block.begin; f < block.end; ++f) {
      const Limits& of_term = alpha[static_cast<std::size_t>(f)];
      std::vector<double> sums(static_cast<std::size_t>(kLanes<Real>)), sizes = sums;
      for (Index l = 0; l < kLanes<Real>; ++l)
        sums[static_cast<std::size_t>(l)] =
            static_cast<double>(before[static_cast<std::size_t>((f - block.begin) * kLanes<Real> + l)]);
      for (Index i = 0; i < kWidth; ++i) {
        const double expected = rows.monomial(of_term, i);
        const Real feature = features[static_cast<std::size_t>((f - block.begin) * kWidth + i)];
        // |alpha| products, and as many in double for what it is compared with.
        const int degree = set.terms()[static_cast<std::size_t>(f)].degree;
        ASSERT_NEAR(static_cast<double>(feature), expected, degree * kEpsilon * std::abs(expected))
            << "term " << f;
        sums[static_cast<std::size_t>(i % kLanes<Real>)] += static_cast<double>(feature);
        sizes[static_cast<std::size_t>(i % kLanes<Real>)] += std::abs(static_cast<double>(feature));
      }
      for (Index l = 0; l < kLanes<Real>; ++l) {
        const auto lane = static_cast<std::size_t>(l);
        const auto at = static_cast<std::size_t>((f - block.begin) * kLanes<Real> + l);
        const double size = sizes[lane] + std::abs(static_cast<double>(before[at]));
        constexpr double kSummands = static_cast<double>(kWidth / kLanes<Real>);
        ASSERT_NEAR(static_cast<double>(ones[at]), sums[lane], kSummands * kEpsilon * size)
            << "ones of term " << f;
      }
    }
  }

  /// Blocks of `size` terms one after the other, the ancestors handed on: the same bits as any other split.
  template <Index kWidth>
  static void expect_handed_on(const MonomialSet& set, Index size, Inputs& random) {
    SCOPED_TRACE(testing::Message() << "blocks of " << size << " of " << set.rank() << " terms, width "
                                    << kWidth);
    Block<Real, kWidth> rows(set, random), found = rows;
    std::vector<Real> whole_ones(static_cast<std::size_t>(set.rank() * kLanes<Real>));
    found.find(0);
    const std::vector<Real> whole = found.features_of({0, set.rank()}, whole_ones);
    rows.find(0);
    for (Index begin = 0; begin < set.rank(); begin += size) {
      const Range block{begin, std::min(begin + size, set.rank())};
      std::vector<Real> ones(static_cast<std::size_t>(block.size() * kLanes<Real>));
      const std::vector<Real> features = rows.features_of(block, ones);
      EXPECT_TRUE(std::equal(features.begin(), features.end(), whole.begin() + block.begin * kWidth));
      EXPECT_TRUE(std::equal(ones.begin(), ones.end(), whole_ones.begin() + block.begin * kLanes<Real>));
      if (block.end == set.rank()) break;
      std::fill(found.ancestors.begin(), found.ancestors.end(), found.kNaN);
      found.find(block.end);
      // The one of each degree below the term's.
      const Index needed = set.terms()[static_cast<std::size_t>(block.end)].degree * kWidth;
      ASSERT_TRUE(
          std::equal(found.ancestors.begin(), found.ancestors.begin() + needed, rows.ancestors.begin()))
          << "ancestors of term " << block.end;
    }
  }
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(FeaturesTest, Reals);

TYPED_TEST(FeaturesTest, AnyBlockOfTermsIsTheMonomials) {
  Inputs random(1);
  for (const MonomialSet& set : index_sets()) {
    std::vector<Range> blocks = {
        {0, set.rank()}, {0, 1}, {set.rank() - 1, set.rank()}, {set.rank() / 2, set.rank()}};
    for (int trial = 0; trial < 20; ++trial) {
      const Index begin = random.integer(0, set.rank() - 1);
      blocks.push_back({begin, random.integer(begin + 1, set.rank())});
    }
    for (const Range& block : blocks) {
      this->template expect_monomials<kKeyBlock<TypeParam>>(set, block, random);
      this->template expect_monomials<kQueryBlock<TypeParam>>(set, block, random);
      if (this->HasFatalFailure()) return;
    }
  }
}

TYPED_TEST(FeaturesTest, AncestorsAreHandedFromBlockToBlock) {
  Inputs random(2);
  for (const MonomialSet& set : index_sets()) {
    for (const Index size : {1, 2, 3, 7, 12, 24, 48, 1000}) {
      this->template expect_handed_on<kKeyBlock<TypeParam>>(set, size, random);
      this->template expect_handed_on<kQueryBlock<TypeParam>>(set, size, random);
      if (this->HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace fastrope_test
