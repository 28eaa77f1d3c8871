#include "fastrope/polynomial/monomials.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>
#include <vector>

namespace {

using fastrope::Degrees;
using fastrope::Index;
using fastrope::kMaxRank;
using fastrope::Monomial;
using fastrope::MonomialSet;
using fastrope::rank_of;
using fastrope::simplex_limits;

/// C(n, k) by Pascal's triangle.
double binomial(Index n, Index k) {
  std::vector<double> row{1};
  for (Index i = 1; i <= n; ++i) {
    row.push_back(0);
    for (auto j = static_cast<std::size_t>(i); j > 0; --j) row[j] += row[j - 1];
  }
  return row[static_cast<std::size_t>(k)];
}

using MultiIndex = std::vector<int>;

bool within(const MultiIndex& alpha, const std::vector<int>& limits) {
  int degree = 0;
  for (std::size_t l = alpha.size(); l-- > 0;) {
    degree += alpha[l];
    if (degree > limits[l]) return false;
  }
  return true;
}

/// All multi-indices within the limits, by trying every one of the box.
std::set<MultiIndex> brute_force(const std::vector<int>& limits) {
  std::set<MultiIndex> all;
  MultiIndex alpha(limits.size());
  for (;;) {
    if (within(alpha, limits)) all.insert(alpha);
    std::size_t l = 0;
    while (l < alpha.size() && alpha[l] == limits[l]) alpha[l++] = 0;
    if (l == alpha.size()) return all;
    ++alpha[l];
  }
}

/// The exponents of every term, by way of its parents.
std::vector<MultiIndex> exponents(const MonomialSet& set) {
  std::vector<MultiIndex> alpha;
  for (const Monomial& term : set.terms()) {
    alpha.emplace_back(static_cast<std::size_t>(set.variables()));
    for (const Monomial* at = &term; at->degree > 0; at = &set.parent_of(*at)) {
      EXPECT_EQ(set.parent_of(*at).degree, at->degree - 1);
      ++alpha.back().at(static_cast<std::size_t>(at->variable));
    }
  }
  return alpha;
}

std::vector<int> random_limits(std::mt19937_64& random) {
  std::vector<int> limits(random() % 7);
  for (int& limit : limits) limit = static_cast<int>(random() % 6);
  std::sort(limits.rbegin(), limits.rend());
  return limits;
}

TEST(RankOf, TheSimplexIsTheBinomial) {
  for (Index variables = 0; variables <= 20; ++variables)
    for (int degree = 0; degree <= 6; ++degree)
      EXPECT_EQ(rank_of(simplex_limits(variables, degree)), binomial(variables + degree, degree))
          << variables;
  static_assert(kMaxRank == 1048576);
  EXPECT_EQ(rank_of(simplex_limits(64, 2)), 2145);
  EXPECT_EQ(rank_of(simplex_limits(128, 4)), 12082785);
  EXPECT_NEAR(rank_of(simplex_limits(128, 32)) / binomial(160, 32), 1, 1e-13);  // 4.6e33
}

TEST(RankOf, CountsWhatTheLimitsAllow) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 200; ++trial) {
    const std::vector<int> limits = random_limits(random);
    EXPECT_EQ(rank_of(limits), static_cast<double>(brute_force(limits).size()));
  }
}

TEST(MonomialSet, HoldsEachMultiIndexWithinTheLimitsOnce) {
  std::mt19937_64 random(2);
  for (int trial = 0; trial < 100; ++trial) {
    const std::vector<int> limits = random_limits(random);
    const MonomialSet set(limits);
    const auto alpha = exponents(set);
    EXPECT_EQ(set.rank(), static_cast<Index>(alpha.size()));
    EXPECT_EQ(static_cast<double>(set.rank()), rank_of(limits));
    EXPECT_EQ(set.degree(), limits.empty() ? 0 : limits[0]);
    EXPECT_EQ(std::set(alpha.begin(), alpha.end()), brute_force(limits));
    for (std::size_t t = 0; t < alpha.size(); ++t)
      EXPECT_EQ(std::accumulate(alpha[t].begin(), alpha[t].end(), 0), set.terms()[t].degree);
  }
}

TEST(MonomialSet, AHomogeneousOneHasTheHighestDegreeAlone) {
  EXPECT_EQ(rank_of(simplex_limits(128, 2), Degrees::highest), 8256);  // PowerCoder's
  EXPECT_EQ(MonomialSet(simplex_limits(128, 2), Degrees::highest).rank(), 8256);
  for (Index variables = 1; variables <= 9; ++variables)
    for (int degree = 1; degree <= 5; ++degree) {
      const std::vector<int> limits = simplex_limits(variables, degree);
      const MonomialSet set(limits, Degrees::highest);
      EXPECT_EQ(static_cast<double>(set.rank()), binomial(variables + degree - 1, degree));
      EXPECT_EQ(static_cast<double>(set.rank()), rank_of(limits, Degrees::highest));
      const auto alpha = exponents(set);
      EXPECT_EQ(std::set(alpha.begin(), alpha.end()).size(), alpha.size());
      for (const MultiIndex& of_term : alpha)
        EXPECT_EQ(std::accumulate(of_term.begin(), of_term.end(), 0), degree);
      // Of lower degrees there are as many inner ones as a simplex has.
      EXPECT_EQ(static_cast<double>(set.inner().size()), rank_of(simplex_limits(variables, degree - 1)));
      EXPECT_EQ(set.constants(), 0);
    }
  EXPECT_EQ(MonomialSet(simplex_limits(3, 0), Degrees::highest).constants(), 1);
}

TEST(MonomialSet, MultinomialsAreRight) {
  for (const MonomialSet& set :
       {MonomialSet(std::vector{6, 6, 4, 2}), MonomialSet(simplex_limits(4, 5), Degrees::highest)}) {
    const auto alpha = exponents(set);
    for (std::size_t t = 0; t < alpha.size(); ++t) {
      double multinomial = std::tgamma(set.terms()[t].degree + 1.0);
      for (int a : alpha[t]) multinomial /= std::tgamma(a + 1.0);
      EXPECT_NEAR(set.terms()[t].multinomial, multinomial, 1e-14 * multinomial);
    }
  }
}

TEST(MonomialSet, AncestorsOfATermFormAStack) {
  // Depth first: the parent is the last term of the degree below.
  const MonomialSet set(std::vector{4, 4, 3, 3, 1});
  std::vector<Index> last{0};
  for (std::size_t t = 1; t < set.terms().size(); ++t) {
    const auto degree = static_cast<std::size_t>(set.terms()[t].degree);
    EXPECT_EQ(set.terms()[t].parent, last.at(degree - 1));
    last.resize(degree + 1);
    last[degree] = static_cast<Index>(t);
  }
}

}  // namespace
