#include "fastrope/plan/exp_polynomial.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace {

using fastrope::certified_relative_error;
using fastrope::Error;
using fastrope::ExpPolynomial;

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

/// P(x) e^-x - 1. In long double its own error, e^2R times that epsilon, is far below what double could do.
long double relative_error_at(std::span<const double> coefficients, long double x) {
  long double value = 0;
  for (std::size_t p = coefficients.size(); p-- > 0;) value = value * x + coefficients[p];
  return value * std::exp(-x) - 1;
}

/// Samples from -R to R, ends included, dense towards the ends.
std::vector<long double> samples(double radius, int count) {
  std::vector<long double> x;
  for (int i = 0; i <= count; ++i)
    x.push_back(-radius * std::cos(std::numbers::pi_v<long double> * i / count));
  return x;
}

/// max |P(x) e^-x - 1| over the samples: at most the true maximum, and below it by about
/// (degree pi / count)^2 of it.
double sampled_relative_error(std::span<const double> coefficients, double radius, int count = 4000) {
  long double largest = 0;
  for (const long double x : samples(radius, count))
    largest = std::max(largest, std::abs(relative_error_at(coefficients, x)));
  return static_cast<double>(largest);
}

/// More than the certificate may add for rounding: 2 (p + 1) roundings of each term of P at R, seen at -R,
/// and a few units for exp.
double rounding_allowance(std::span<const double> coefficients, double radius) {
  double terms = 0;
  for (std::size_t p = 0; p < coefficients.size(); ++p)
    terms += 2 * static_cast<double>(p + 1) * std::abs(coefficients[p]) * std::pow(radius, p);
  return kEpsilon * (terms * std::exp(radius) + 20);
}

std::vector<double> taylor(int degree) {
  std::vector<double> c(static_cast<std::size_t>(degree) + 1, 1.0);
  for (std::size_t p = 1; p < c.size(); ++p) c[p] = c[p - 1] / static_cast<double>(p);
  return c;
}

// Lowest degrees of the weighted minimax polynomial, computed independently.
constexpr double kRadii[] = {0.5, 1, 2, 4, 8};
constexpr double kErrors[] = {1e-1, 1e-2, 1e-3, 1e-4, 1e-6};
constexpr int kDegrees[5][5] = {
    {1, 2, 3, 4, 5}, {2, 3, 4, 5, 7}, {3, 5, 6, 7, 9}, {6, 7, 9, 10, 13}, {10, 12, 14, 16, 19}};

TEST(ExpPolynomial, FitHasTheLowestDegree) {
  for (std::size_t i = 0; i < std::size(kRadii); ++i)
    for (std::size_t j = 0; j < std::size(kErrors); ++j) {
      SCOPED_TRACE("radius " + std::to_string(kRadii[i]) + ", error " + std::to_string(kErrors[j]));
      const ExpPolynomial p = ExpPolynomial::fit(kRadii[i], kErrors[j]);
      EXPECT_EQ(p.degree(), kDegrees[i][j]);
      EXPECT_EQ(p.radius(), kRadii[i]);
      EXPECT_LE(p.relative_error(), kErrors[j]);
      EXPECT_GT(ExpPolynomial::minimax(kRadii[i], p.degree() - 1).relative_error(), kErrors[j]);
    }
}

TEST(ExpPolynomial, CertifiedErrorIsTrueAndTight) {
  for (const double radius : kRadii)
    for (const double error : kErrors) {
      SCOPED_TRACE("radius " + std::to_string(radius) + ", error " + std::to_string(error));
      const ExpPolynomial p = ExpPolynomial::fit(radius, error);
      const double observed = sampled_relative_error(p.coefficients(), radius);
      EXPECT_GE(p.relative_error(), observed);
      EXPECT_LE(p.relative_error(), 1.02 * observed);
    }
}

// A best approximation is known by its g + 2 alternating extrema of equal height.
TEST(ExpPolynomial, ErrorAlternates) {
  for (const double radius : {0.25, 1.0, 3.0, 8.0, 12.0})
    for (int degree = 0; degree <= 16; ++degree) {
      const ExpPolynomial p = ExpPolynomial::minimax(radius, degree);
      const double rounding = rounding_allowance(p.coefficients(), radius);
      if (p.relative_error() < 100 * rounding) continue;
      SCOPED_TRACE("radius " + std::to_string(radius) + ", degree " + std::to_string(degree));
      std::vector<long double> extrema;
      for (const long double x : samples(radius, 4000)) {
        const long double f = relative_error_at(p.coefficients(), x);
        if (extrema.empty() || (f > 0) != (extrema.back() > 0))
          extrema.push_back(f);
        else if (std::abs(f) > std::abs(extrema.back()))
          extrema.back() = f;
      }
      ASSERT_EQ(extrema.size(), static_cast<std::size_t>(degree) + 2);
      for (const long double f : extrema) {
        EXPECT_GE(std::abs(f), 0.97L * p.relative_error());
        EXPECT_LE(std::abs(f), p.relative_error());
      }
    }
}

// The best constant is 1 / cosh R: off by tanh R, with opposite signs, at both ends.
TEST(ExpPolynomial, DegreeZeroIsKnown) {
  for (const double radius : {0.01, 0.5, 1.0, 2.0}) {
    const ExpPolynomial p = ExpPolynomial::minimax(radius, 0);
    ASSERT_EQ(p.coefficients().size(), 1U);
    EXPECT_NEAR(p.coefficients()[0], 1 / std::cosh(radius), 8 * kEpsilon);
    EXPECT_GE(p.relative_error(), std::tanh(radius));
    EXPECT_LE(p.relative_error(), 1.011 * std::tanh(radius));
  }
}

TEST(ExpPolynomial, EvaluatesItsCoefficients) {
  const ExpPolynomial p = ExpPolynomial::minimax(2, 5);
  for (const long double x : samples(2, 50)) {
    const double expected = static_cast<double>((relative_error_at(p.coefficients(), x) + 1) * std::exp(x));
    EXPECT_NEAR(p(static_cast<double>(x)), expected, 20 * kEpsilon * std::exp(2.0));
  }
}

TEST(ExpPolynomial, RadiusZero) {
  const ExpPolynomial p = ExpPolynomial::fit(0, 1e-3);
  EXPECT_EQ(p.degree(), 0);
  EXPECT_EQ(p(0), 1);
  EXPECT_LE(p.relative_error(), 20 * kEpsilon);
  const ExpPolynomial q = ExpPolynomial::minimax(0, 5);
  EXPECT_LE(q.relative_error(), 20 * kEpsilon);
  for (const double c : q.coefficients()) EXPECT_TRUE(std::isfinite(c));
}

TEST(ExpPolynomial, TinyRadius) {
  const double radius = 1e-8;
  EXPECT_EQ(ExpPolynomial::fit(radius, 1e-3).degree(), 0);
  EXPECT_EQ(ExpPolynomial::fit(radius, 1e-9).degree(), 1);
  for (const double tiny : {1e-8, 1e-80, 1e-300})
    for (int degree = 1; degree <= ExpPolynomial::kMaxDegree; ++degree)
      EXPECT_LE(ExpPolynomial::minimax(tiny, degree).relative_error(), 20 * kEpsilon)
          << tiny << ' ' << degree;
}

// Where the best error is below rounding the exchange has nothing to follow, but must not go astray.
TEST(ExpPolynomial, DegreesBeyondRounding) {
  for (const double radius : {1e-3, 0.1, 1.0, 4.0, 8.0})
    for (int degree = 24; degree <= ExpPolynomial::kMaxDegree; ++degree) {
      const ExpPolynomial p = ExpPolynomial::minimax(radius, degree);
      EXPECT_LE(p.relative_error(), 2 * rounding_allowance(p.coefficients(), radius))
          << radius << ' ' << degree;
      EXPECT_GE(p.relative_error(), sampled_relative_error(p.coefficients(), radius))
          << radius << ' ' << degree;
    }
}

TEST(ExpPolynomial, LargeRadius) {
  // Near the limit of double, rounding and all.
  const ExpPolynomial p = ExpPolynomial::fit(16, 0.1);
  EXPECT_GE(p.relative_error(), sampled_relative_error(p.coefficients(), 16));
  // Beyond it: the certificate says so, and nothing overflows.
  for (const double radius : {20.0, 100.0, 700.0})
    for (const int degree : {0, 5, 20, 32}) {
      const ExpPolynomial q = ExpPolynomial::minimax(radius, degree);
      for (const double c : q.coefficients()) EXPECT_TRUE(std::isfinite(c)) << radius << ' ' << degree;
      EXPECT_GE(q.relative_error(), 0.99) << radius << ' ' << degree;
      EXPECT_GE(q.relative_error(), sampled_relative_error(q.coefficients(), radius))
          << radius << ' ' << degree;
    }
}

TEST(ExpPolynomial, RefusesBadRequests) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double radius : {-1.0, infinity, nan}) {
    EXPECT_THROW(ExpPolynomial::fit(radius, 0.1), Error) << radius;
    EXPECT_THROW(ExpPolynomial::minimax(radius, 3), Error) << radius;
    EXPECT_THROW(certified_relative_error(taylor(2), radius), Error) << radius;
  }
  for (const double error : {0.0, -0.1, 1.0, 2.0, infinity, nan})
    EXPECT_THROW(ExpPolynomial::fit(1, error), Error) << error;
  EXPECT_THROW(ExpPolynomial::minimax(1, -1), Error);
  EXPECT_THROW(ExpPolynomial::minimax(1, ExpPolynomial::kMaxDegree + 1), Error);
  EXPECT_THROW(ExpPolynomial::minimax(1e3, 3), Error);
  for (const double radius : {20.0, 47.0, 1e3, 1e300}) EXPECT_THROW(ExpPolynomial::fit(radius, 0.1), Error);
  EXPECT_THROW(ExpPolynomial::fit(1, 4 * kEpsilon), Error);
  try {
    ExpPolynomial::fit(20, 0.125);
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("0.125"), std::string::npos) << text;
    EXPECT_NE(text.find("20"), std::string::npos) << text;
    EXPECT_NE(text.find("rounding"), std::string::npos) << text;
  }
}

// What lets fit() pass over degrees without a try.
TEST(ExpRemez, LowerBoundIsTrueAndTight) {
  for (const double radius : {0.1, 1.0, 4.0, 8.0, 12.0, 16.0})
    for (int degree = 0; degree <= ExpPolynomial::kMaxDegree; ++degree) {
      SCOPED_TRACE("radius " + std::to_string(radius) + ", degree " + std::to_string(degree));
      const ExpPolynomial p = ExpPolynomial::minimax(radius, degree);
      const double lower = fastrope::detail::ExpRemez(radius, degree).lower_bound();
      EXPECT_LE(lower, sampled_relative_error(p.coefficients(), radius) + 20 * kEpsilon);
      if (p.relative_error() < 0.1) {
        EXPECT_GE(lower, 0.8 * p.relative_error() - 2 * rounding_allowance(p.coefficients(), radius));
      }
    }
}

// 1 + x + ... + x^5 / 120 is negative at -2.6.
TEST(CertifiedRelativeError, CatchesTaylorPolynomialsThatAreNotPositive) {
  const double certified = certified_relative_error(taylor(5), 2.6);
  const double at_the_end = static_cast<double>(std::abs(relative_error_at(taylor(5), -2.6L)));
  EXPECT_GE(certified, 3.7);
  EXPECT_GE(certified, at_the_end);
  EXPECT_LE(certified, 1.011 * at_the_end);
  EXPECT_LT(certified_relative_error(taylor(5), 1.0), 1.0);
}

TEST(CertifiedRelativeError, SoundAndTightForPerturbedPolynomials) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform(-1, 1);
  for (int trial = 0; trial < 400; ++trial) {
    const double radius = std::exp2(3 * uniform(random));            // 1/8 .. 8
    const int degree = static_cast<int>(10 + 10 * uniform(random));  // 0 .. 20
    const double size = std::pow(10.0, -5 + 5 * uniform(random));    // 1e-10 .. 1
    std::vector<double> c = trial % 2 == 0 ? taylor(degree) : std::vector<double>{};
    if (c.empty()) {
      const ExpPolynomial p = ExpPolynomial::minimax(radius, degree);
      c.assign(p.coefficients().begin(), p.coefficients().end());
    }
    for (double& coefficient : c) coefficient *= 1 + size * uniform(random);
    const double certified = certified_relative_error(c, radius);
    const double observed = sampled_relative_error(c, radius);
    EXPECT_GE(certified, observed) << "trial " << trial << ", radius " << radius << ", degree " << degree;
    EXPECT_LE(certified, 1.02 * observed + rounding_allowance(c, radius))
        << "trial " << trial << ", radius " << radius << ", degree " << degree;
  }
}

TEST(CertifiedRelativeError, SoundAndTightForArbitraryPolynomials) {
  std::mt19937_64 random(2);
  std::normal_distribution<double> normal;
  for (int trial = 0; trial < 200; ++trial) {
    const double radius = std::exp2(std::uniform_real_distribution<double>(-3, 3.5)(random));
    std::vector<double> c(static_cast<std::size_t>(trial % 12));
    for (double& coefficient : c) coefficient = normal(random);
    const double certified = certified_relative_error(c, radius);
    const double observed = sampled_relative_error(c, radius);
    EXPECT_GE(certified, observed) << "trial " << trial << ", radius " << radius;
    EXPECT_LE(certified, 1.02 * observed + rounding_allowance(c, radius))
        << "trial " << trial << ", radius " << radius;
  }
}

// What the float kernels multiply with are rounded coefficients, whose error is e^2R larger at -R.
TEST(CertifiedRelativeError, SeesCoefficientsRoundedToFloat) {
  const ExpPolynomial p = ExpPolynomial::fit(6, 1e-4);
  std::vector<double> rounded;
  for (const double c : p.coefficients()) rounded.push_back(static_cast<float>(c));
  const double certified = certified_relative_error(rounded, 6);
  EXPECT_GT(certified, 2 * p.relative_error());
  EXPECT_GE(certified, sampled_relative_error(rounded, 6));
  EXPECT_LE(certified, 1.02 * sampled_relative_error(rounded, 6));
}

TEST(CertifiedRelativeError, InfiniteWhenNumbersOverflow) {
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(certified_relative_error(taylor(3), 1e3), infinity);
  EXPECT_EQ(certified_relative_error(taylor(3), 1e300), infinity);
  EXPECT_EQ(certified_relative_error(std::vector<double>{1, infinity}, 1), infinity);
  EXPECT_EQ(certified_relative_error(std::vector<double>{1, std::numeric_limits<double>::quiet_NaN()}, 1),
            infinity);
  EXPECT_EQ(certified_relative_error(std::vector<double>{1e300, 1e300, 1e300}, 300), infinity);
}

TEST(CertifiedRelativeError, ZeroPolynomialIsOffByOne) {
  EXPECT_GE(certified_relative_error({}, 3), 1);
  EXPECT_LE(certified_relative_error({}, 3), 1.011);
}

// A cell without extent shows the allowance for rounding alone: it must cover the rounding of every point.
TEST(BoundedCell, RoundingIsCoveredAndNotOverstated) {
  for (const double radius : {1.0, 4.0, 8.0, 12.0}) {
    const ExpPolynomial p = ExpPolynomial::minimax(radius, 24);
    long double largest_share = 0;
    for (const long double sample : samples(radius, 2000)) {
      const double x = static_cast<double>(sample);
      std::vector<double> c(p.coefficients().begin(), p.coefficients().end());
      const fastrope::detail::ErrorCell cell = fastrope::detail::bounded_cell(c, x, x);
      const long double f = std::abs(relative_error_at(p.coefficients(), x));
      EXPECT_GE(cell.bound, f) << x;
      largest_share = std::max(largest_share, std::abs(f - cell.centre_error) / cell.rounding);
    }
    EXPECT_GE(largest_share, 0.05L) << radius;
    EXPECT_LE(largest_share, 1.0L) << radius;
  }
}

// Polynomials that make each term of the remainder matter in turn: c x^k is nearly d_k alone, and the Taylor
// polynomial of degree 2 leaves only the tail.
TEST(BoundedCell, EachTermOfTheRemainderIsNeeded) {
  std::vector<std::vector<double>> polynomials{taylor(2)};
  for (std::size_t k = 0; k <= 5; ++k)
    for (const double c : {1e6, -1e6}) {
      polynomials.emplace_back(std::max<std::size_t>(k + 1, 3), 0.0);
      polynomials.back()[k] = c;
    }
  for (std::size_t i = 0; i < polynomials.size(); ++i)
    for (const double h : {0.5, 0.25}) {
      long double largest = 0;
      for (const long double x : samples(h, 200))
        largest = std::max(largest, std::abs(relative_error_at(polynomials[i], x)));
      std::vector<double> c = polynomials[i];
      const double bound = fastrope::detail::bounded_cell(c, -h, h).bound;
      EXPECT_GE(bound, largest) << "polynomial " << i << ", half-width " << h;
      EXPECT_LE(bound, 2 * largest) << "polynomial " << i << ", half-width " << h;
    }
}

}  // namespace
