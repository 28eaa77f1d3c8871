#include "fastrope/polynomial/monomials.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

namespace {

using fastrope::Index;
using fastrope::kMaxRank;
using fastrope::Monomial;
using fastrope::MonomialSet;
using fastrope::simplex_rank;

/// C(n, k) by Pascal's triangle.
Index binomial(Index n, Index k) {
  std::vector<Index> row{1};
  for (Index i = 1; i <= n; ++i) {
    row.push_back(0);
    for (auto j = static_cast<std::size_t>(i); j > 0; --j) row[j] += row[j - 1];
  }
  return row[static_cast<std::size_t>(k)];
}

TEST(SimplexRank, IsTheBinomial) {
  for (Index variables = 0; variables <= 20; ++variables)
    for (int degree = 0; degree <= 6; ++degree)
      EXPECT_EQ(simplex_rank(variables, degree), binomial(variables + degree, degree)) << variables;
  EXPECT_EQ(simplex_rank(8, 4), 495);
  EXPECT_EQ(simplex_rank(64, 2), 2145);
  EXPECT_EQ(simplex_rank(16, 6), 74613);
}

TEST(SimplexRank, EndsAtTheLimit) {
  static_assert(kMaxRank == 1048576);
  EXPECT_EQ(simplex_rank(kMaxRank - 1, 1), kMaxRank);
  EXPECT_EQ(simplex_rank(kMaxRank, 1), std::nullopt);
  EXPECT_EQ(simplex_rank(128, 3), 366145);
  EXPECT_EQ(simplex_rank(128, 4), std::nullopt);  // 12,082,785
  EXPECT_EQ(simplex_rank(128, 32), std::nullopt);
}

/// The exponents of every term, by way of its parents.
std::vector<std::vector<int>> exponents(const MonomialSet& set) {
  std::vector<std::vector<int>> alpha{std::vector<int>(static_cast<std::size_t>(set.variables()))};
  for (std::size_t t = 1; t < set.terms().size(); ++t) {
    const Monomial& term = set.terms()[t];
    alpha.push_back(alpha.at(static_cast<std::size_t>(term.parent)));
    ++alpha.back().at(static_cast<std::size_t>(term.variable));
  }
  return alpha;
}

TEST(MonomialSet, HoldsEachMultiIndexOnce) {
  for (Index variables = 0; variables <= 7; ++variables) {
    for (int degree = 0; degree <= 5; ++degree) {
      const MonomialSet set(variables, degree);
      const auto alpha = exponents(set);
      EXPECT_EQ(set.rank(), binomial(variables + degree, degree));
      EXPECT_EQ(static_cast<Index>(std::set(alpha.begin(), alpha.end()).size()), set.rank());
      for (std::size_t t = 0; t < alpha.size(); ++t) {
        int sum = 0;
        for (int a : alpha[t]) sum += a;
        EXPECT_EQ(sum, set.terms()[t].degree);
        EXPECT_LE(sum, degree);
      }
    }
  }
}

TEST(MonomialSet, RatiosMultiplyToTheRootOfTheMultinomial) {
  const MonomialSet set(4, 6);
  const auto alpha = exponents(set);
  std::vector<double> factor{1.0};
  for (std::size_t t = 1; t < alpha.size(); ++t) {
    const Monomial& term = set.terms()[t];
    factor.push_back(term.ratio * factor[static_cast<std::size_t>(term.parent)]);
    double multinomial = std::tgamma(term.degree + 1.0);
    for (int a : alpha[t]) multinomial /= std::tgamma(a + 1.0);
    EXPECT_NEAR(factor[t], std::sqrt(multinomial), 1e-14 * factor[t]);
  }
}

TEST(MonomialSet, AncestorsOfATermFormAStack) {
  // Depth first: the parent is the last term of the degree below.
  const MonomialSet set(5, 4);
  std::vector<Index> last{0};
  for (std::size_t t = 1; t < set.terms().size(); ++t) {
    const auto degree = static_cast<std::size_t>(set.terms()[t].degree);
    EXPECT_EQ(set.terms()[t].parent, last.at(degree - 1));
    last.resize(degree + 1);
    last[degree] = static_cast<Index>(t);
  }
}

}  // namespace
