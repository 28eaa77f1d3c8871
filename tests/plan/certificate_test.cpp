#include "fastrope/plan/certificate.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>
#include <vector>

#include "fastrope/polynomial/monomials.hpp"
#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

using Row = std::vector<double>;

/// P_A(x.y), term by term.
double truncated(const ExpPolynomial& p, const MonomialSet& set, const Row& x, const Row& y) {
  std::vector<double> features{1};
  double sum = p.coefficients()[0];
  for (std::size_t t = 1; t < set.terms().size(); ++t) {
    const Monomial& term = set.terms()[t];
    const auto variable = static_cast<std::size_t>(term.variable);
    features.push_back(features[static_cast<std::size_t>(term.parent)] * x[variable] * y[variable]);
    sum += p.coefficients()[static_cast<std::size_t>(term.degree)] * term.multinomial * features.back();
  }
  return sum;
}

double inner(const Row& x, const Row& y) {
  double sum = 0;
  for (std::size_t l = 0; l < x.size(); ++l) sum += x[l] * y[l];
  return sum;
}

double norm_from(const Row& x, std::size_t l) {
  double sum = 0;
  for (std::size_t m = l; m < x.size(); ++m) sum += x[m] * x[m];
  return std::sqrt(sum);
}

/// couplings[l] of all pairs, with room for the rounding of this computation.
std::vector<double> couplings_of(const std::vector<std::pair<Row, Row>>& pairs) {
  std::vector<double> couplings(pairs[0].first.size());
  for (const auto& [x, y] : pairs)
    for (std::size_t l = 0; l < couplings.size(); ++l)
      couplings[l] = std::max(couplings[l], norm_from(x, l) * norm_from(y, l) * (1 + 1e-14));
  return couplings;
}

/// What rounding may add to the observed error, which is computed in double.
double rounding_of(const ExpPolynomial& p) {
  double size = 0;
  for (std::size_t i = 0; i < p.coefficients().size(); ++i)
    size += std::abs(p.coefficients()[i]) * std::pow(p.radius(), i);
  return 64 * std::numeric_limits<double>::epsilon() * size * std::exp(p.radius());
}

std::vector<int> random_limits(Inputs& inputs, std::size_t variables, int degree) {
  std::vector<int> limits;
  int limit = degree;
  for (std::size_t l = 0; l < variables; ++l) {
    if (inputs.integer(0, 2) == 0) limit = static_cast<int>(inputs.integer(limit / 2, limit));
    limits.push_back(limit);
  }
  return limits;
}

/// Random rows whose coordinates decay, scaled to a radius; half of the pairs parallel or opposite, at
/// x.y = +-R, and some of them parallel before a cut and opposite after it.
std::vector<std::pair<Row, Row>> random_rows(Inputs& inputs, std::size_t variables, double radius,
                                             double decay) {
  std::vector<std::pair<Row, Row>> pairs;
  for (int i = 0; i < 60; ++i) {
    Row x, y;
    for (std::size_t l = 0; l < variables; ++l) {
      x.push_back(std::pow(decay, l) * inputs.normal());
      y.push_back(std::pow(decay, l) * inputs.normal());
    }
    if (i % 2 == 0) {
      const auto cut = static_cast<std::size_t>(inputs.integer(0, static_cast<std::int64_t>(variables)));
      const double sign = i % 4 == 0 ? 1 : -1;
      for (std::size_t l = 0; l < variables; ++l) y[l] = (l < cut ? sign : i % 8 < 4 ? sign : -sign) * x[l];
    }
    const double scale = std::sqrt(radius / (norm_from(x, 0) * norm_from(y, 0)));
    for (double& value : x) value *= scale;
    for (double& value : y) value *= scale;
    pairs.emplace_back(std::move(x), std::move(y));
  }
  return pairs;
}

double observed_error(const ExpPolynomial& p, const std::vector<int>& limits,
                      const std::vector<std::pair<Row, Row>>& pairs) {
  const MonomialSet set(limits);
  double largest = 0;
  for (const auto& [x, y] : pairs)
    largest = std::max(largest, std::abs(truncated(p, set, x, y) * std::exp(-inner(x, y)) - 1));
  return largest;
}

double median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2), x.end());
  return x[x.size() / 2];
}

/// [degree + 1]: P^(j)(u) / j!.
std::vector<double> taylor_at(const ExpPolynomial& p, double u) {
  std::vector<double> a(p.coefficients().begin(), p.coefficients().end());
  for (std::size_t k = 0; k < a.size(); ++k)
    for (std::size_t j = a.size() - 1; j-- > k;) a[j] += u * a[j + 1];
  return a;
}

// The largest derivatives are at the ends of the cells that the bound divides its range into, not in their
// middles; the last of them only count where tau is small.
TEST(TailBound, HoldsForEveryDerivativeOnAFineGrid) {
  constexpr int kGrid = 600;
  std::vector<double> slack;
  for (const double radius : {0.25, 1.0, 3.0, 6.0})
    for (const int degree : {1, 2, 5, 9})
      for (const double share : {1e-5, 0.03, 0.25, 0.5, 0.97}) {
        const ExpPolynomial p = ExpPolynomial::minimax(radius, degree);
        const double tau = share * radius, room = radius - tau;
        std::vector<double> largest(static_cast<std::size_t>(degree) + 1);
        for (int i = -kGrid; i <= kGrid; ++i) {
          const double u = room * i / kGrid;
          const std::vector<double> derivatives = taylor_at(p, u);
          for (std::size_t j = 0; j < largest.size(); ++j)
            largest[j] = std::max(largest[j], std::exp(-u) * std::abs(derivatives[j]));
        }
        const std::vector<double> losses = TailBound(p).losses(tau);
        for (std::size_t h = 0; h + 1 < largest.size(); ++h) {
          double least = 0;
          for (std::size_t j = h + 1; j < largest.size(); ++j)
            least += std::exp(tau) * largest[j] * std::pow(tau, static_cast<double>(j));
          EXPECT_GE(losses[h], least * (1 - 1e-12)) << radius << ' ' << degree << ' ' << share << ' ' << h;
          slack.push_back(losses[h] / least);
        }
      }
  EXPECT_LT(median(slack), 1.5);
}

TEST(Certificate, ObservedErrorsAreWithinIt) {
  Inputs inputs(1);
  std::vector<double> slack;
  for (int trial = 0; trial < 1500; ++trial) {
    const auto variables = static_cast<std::size_t>(inputs.integer(1, 5));
    const double radius = std::exp2(inputs.uniform(-4, 2.5));
    const auto pairs = random_rows(inputs, variables, radius, inputs.uniform(0.2, 1));
    const std::vector<double> couplings = couplings_of(pairs);
    const ExpPolynomial p = ExpPolynomial::minimax(couplings[0], static_cast<int>(inputs.integer(1, 9)));
    const std::vector<int> limits = random_limits(inputs, variables, p.degree());
    const Certificate c = certify(p, limits, couplings, 0, 1);
    const double observed = observed_error(p, limits, pairs);
    ASSERT_LE(observed, c.relative_error + rounding_of(p))
        << "trial " << trial << ", radius " << radius << ", degree " << p.degree();
    ASSERT_GE(c.relative_error, c.polynomial + c.tail);
    if (c.relative_error < 1 && observed > 100 * rounding_of(p)) slack.push_back(c.relative_error / observed);
  }
  ASSERT_GT(slack.size(), 300U);
  std::cout << "certified / observed: median " << median(slack) << " of " << slack.size() << ", least "
            << *std::min_element(slack.begin(), slack.end()) << '\n';
  EXPECT_LT(median(slack), 5);
}

// Two variables, one cut: the pairs with the largest loss are known, so that little may be given away.
TEST(Certificate, OneCutIsTight) {
  for (const double radius : {0.5, 2.0, 4.0})
    for (const double tail : {0.05, 0.2, 0.5})
      for (const int limit : {0, 1, 2, 4}) {
        const double tau = tail * radius;
        const ExpPolynomial p = ExpPolynomial::minimax(radius, 9);
        const std::vector<int> limits{9, limit};
        std::vector<std::pair<Row, Row>> pairs;
        for (double u = -1; u <= 1; u += 1.0 / 64)
          for (const double t : {-tau, tau}) {
            // sqrt(|.|) on both sides: |u| + |t| = |x| |y|.
            const double room = (radius - tau) * u;
            pairs.push_back({{std::sqrt(std::abs(room)), std::sqrt(tau)},
                             {std::copysign(std::sqrt(std::abs(room)), room), t / std::sqrt(tau)}});
          }
        const Certificate c = certify(p, limits, std::vector{radius, tau}, 0, 1);
        const double observed = observed_error(p, limits, pairs);
        EXPECT_LE(observed, c.relative_error + rounding_of(p));
        // Signs, which Cauchy-Schwarz does not see, help by up to e^tau.
        EXPECT_LE(c.relative_error, 1.3 * std::exp(tau) * observed + 2 * p.relative_error() + rounding_of(p))
            << radius << ' ' << tau << ' ' << limit;
      }
}

TEST(Certificate, WithoutATailItIsThePolynomials) {
  const ExpPolynomial p = ExpPolynomial::minimax(2, 5);
  const Certificate c = certify(p, simplex_limits(8, 5), std::vector<double>(8, 2.0), 0, 0.5);
  EXPECT_EQ(c.tail, 0);
  EXPECT_NEAR(c.relative_error, p.relative_error(), 1e-14);
  EXPECT_NEAR(c.error_bound, output_error(p.relative_error()) / 2, 1e-14);
  EXPECT_GE(c.error_bound, p.relative_error() / 2);
  EXPECT_NEAR(allowed_relative_error(c.error_bound, 0.5), c.relative_error, 1e-14);
  // A direction that is left out altogether costs what its entries are: e^tau - 1.
  const Certificate cut = certify(p, std::vector{5, 0}, std::vector{2.0, 1e-3}, 0, 1);
  EXPECT_GE(cut.tail, std::expm1(1e-3) * (1 - p.relative_error()));
  EXPECT_LE(cut.tail, 1.1e-3);
  const Certificate axes = certify(p, simplex_limits(8, 5), std::vector<double>(8, 2.0), 1e-3, 1);
  EXPECT_NEAR(axes.relative_error, (1 + p.relative_error()) * std::exp(1e-3) - 1, 1e-14);
}

TEST(Certificate, HasNoBoundWhereNoneHolds) {
  const ExpPolynomial p = ExpPolynomial::minimax(4, 2);
  EXPECT_EQ(certify(p, std::vector{2}, std::vector{4.0}, 0.7, 1).error_bound,
            std::numeric_limits<double>::infinity());
  EXPECT_THROW(certify(p, std::vector{2, 1}, std::vector{4.0}, 0, 1), Error);
  EXPECT_THROW(certify(p, std::vector{2}, std::vector{4.01}, 0, 1), Error);
}

// Outputs: random values in an interval, weights off by up to delta either way, chosen to do harm.
TEST(Certificate, OutputsAreWithinTheBound) {
  Inputs inputs(2);
  double largest = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    const double delta = inputs.uniform(0.001, 0.9), half = inputs.uniform(0, 1);
    const double middle = inputs.uniform(-(1 - half), 1 - half);
    const auto n = static_cast<std::size_t>(inputs.integer(2, 6));
    std::vector<double> v, w;
    for (std::size_t j = 0; j < n; ++j) {
      v.push_back(middle + half * (trial % 2 == 0 ? (j % 2 == 0 ? 1 : -1) : inputs.uniform(-1, 1)));
      w.push_back(std::exp(inputs.normal()));
    }
    double numerator = 0, denominator = 0, exact = 0, total = 0;
    for (std::size_t j = 0; j < n; ++j) exact += w[j] * v[j], total += w[j];
    exact /= total;
    for (std::size_t j = 0; j < n; ++j) {
      const double weight = w[j] * (v[j] > exact ? 1 - delta : 1 + delta);
      numerator += weight * v[j], denominator += weight;
    }
    const double bound = output_error(delta) * half;
    ASSERT_LE(std::abs(numerator / denominator - exact), bound * (1 + 1e-12));
    if (bound > 0) largest = std::max(largest, std::abs(numerator / denominator - exact) / bound);
  }
  EXPECT_GT(largest, 0.999);
}

TEST(TailBound, LossesFallWithTheLimitAndGrowWithTheCoupling) {
  const TailBound bound(ExpPolynomial::minimax(4, 8));
  std::vector<double> before(9);
  for (double tau = 0; tau <= 5; tau += 0.01) {
    const std::vector<double> losses = bound.losses(tau);
    ASSERT_EQ(losses.size(), 9U);
    EXPECT_EQ(losses.back(), 0);
    for (std::size_t h = 0; h < losses.size(); ++h) {
      if (h > 0) {
        EXPECT_LE(losses[h], losses[h - 1]);
      }
      EXPECT_GE(losses[h], before[h]);
    }
    before = losses;
  }
}

}  // namespace
}  // namespace fastrope_test
