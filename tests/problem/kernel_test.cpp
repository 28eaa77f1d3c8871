// Kernels: what is accepted, and the proof of a polynomial's sign against polynomials whose zeros are known.
#include "fastrope/problem/kernel.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/problem/problem.hpp"
#include "support/error_of.hpp"
#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using fastrope::Error;
using fastrope::Kernel;
using fastrope::KernelSign;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using Verdict = fastrope::detail::SignProof::Verdict;

/// The coefficients of scale * prod (x^2 - 2 re x + re^2 + im^2) over pairs (re, im) of zeros.
std::vector<double> from_pairs(const std::vector<std::pair<double, double>>& pairs, double scale = 1) {
  std::vector<double> c = {scale};
  for (const auto& [re, im] : pairs) {
    std::vector<double> product(c.size() + 2);
    for (std::size_t p = 0; p < c.size(); ++p) {
      product[p] += c[p] * (re * re + im * im);
      product[p + 1] -= 2 * re * c[p];
      product[p + 2] += c[p];
    }
    c = product;
  }
  return c;
}

Verdict verdict_of(const std::vector<double>& c) { return fastrope::detail::prove_sign(c).verdict; }

TEST(Kernel, SoftmaxIsTheExponential) {
  const Kernel kernel = Kernel::softmax();
  EXPECT_TRUE(kernel.is_softmax());
  EXPECT_TRUE(kernel.nonnegative());
  EXPECT_TRUE(kernel.coefficients().empty());
  EXPECT_EQ(kernel(1.5), std::exp(1.5));
}

TEST(Kernel, PolynomialsKeepTheirCoefficients) {
  const Kernel kernel = Kernel::polynomial({1, 1, 0.5, 0, 0});
  EXPECT_FALSE(kernel.is_softmax());
  EXPECT_TRUE(kernel.nonnegative());
  EXPECT_THAT(kernel.coefficients(), ElementsAre(1, 1, 0.5));
  EXPECT_EQ(kernel.degree(), 2);
  EXPECT_EQ(kernel(-3), 1 - 3 + 4.5);
  EXPECT_EQ(Kernel::polynomial(std::vector<float>{2}).degree(), 0);

  const Kernel taylor = Kernel::taylor(4), power = Kernel::power(2);
  EXPECT_THAT(taylor.coefficients(), ElementsAre(1, 1, 1.0 / 2, 1.0 / 6, 1.0 / 24));
  EXPECT_THAT(power.coefficients(), ElementsAre(0, 0, 1));
}

TEST(Kernel, RefusesCoefficientsThatMakeNoPolynomial) {
  EXPECT_THAT(error_of([] { Kernel::polynomial({}); }), HasSubstr("no coefficients"));
  EXPECT_THAT(error_of([] { Kernel::polynomial({0, 0, 0}); }), HasSubstr("are 0, 3 of them"));
  EXPECT_THAT(error_of([] { Kernel::polynomial({1, NAN}); }), HasSubstr("coefficient 1"));
  EXPECT_THAT(error_of([] { Kernel::polynomial({INFINITY}); }), HasSubstr("is inf"));
  EXPECT_THAT(error_of([] { Kernel::polynomial(std::vector<double>(34, 1.0), KernelSign::any); }),
              HasSubstr("0 to 32, got 33"));
  EXPECT_THAT(error_of([] { Kernel::taylor(1000, KernelSign::any); }), HasSubstr("0 to 32, got 1000"));
  EXPECT_THAT(error_of([] { Kernel::power(-1, KernelSign::any); }), HasSubstr("0 to 32, got -1"));
}

TEST(Kernel, TaylorAndPowersAreSignedExactlyWhereTheyAreOdd) {
  for (int degree = 0; degree <= Kernel::kMaxDegree; ++degree) {
    for (const bool taylor : {true, false}) {
      const auto make = [&](KernelSign sign) {
        return taylor ? Kernel::taylor(degree, sign) : Kernel::power(degree, sign);
      };
      EXPECT_EQ(make(KernelSign::any).nonnegative(), degree % 2 == 0) << degree;
      if (degree % 2 == 0)
        EXPECT_EQ(make(KernelSign::nonnegative).degree(), degree);
      else
        EXPECT_THAT(
            error_of([&] { make(KernelSign::nonnegative); }),
            AllOf(HasSubstr("KernelSign::any"), HasSubstr(std::to_string(degree)), HasSubstr("at x = -")));
    }
  }
}

TEST(Kernel, NamesAPointWhereItIsNegativeAndTheValue) {
  const std::vector<std::vector<double>> negative = {
      {-1},           {1, 1},           {0, 0, 0, 1}, {1, 0, -1},          {1, 3, 1},
      {-1e-12, 0, 1}, {2, -3, 0, 0, 1}, {0, 1, 1},    {1, 0, 0, 0, -1e-30}};
  for (const auto& c : negative) {
    const auto proof = fastrope::detail::prove_sign(c);
    ASSERT_EQ(proof.verdict, Verdict::negative);
    const double value = Kernel::polynomial(c, KernelSign::any)(proof.x);
    EXPECT_LT(value, 0);
    EXPECT_THAT(error_of([&] { Kernel::polynomial(c); }),
                HasSubstr(fastrope::detail::message("is ", value, " at x = ", proof.x)));
  }
}

TEST(Kernel, ZerosThatOnlyTouchAreProvedWhereTheyAreExact) {
  const std::vector<std::vector<double>> touching = {
      {1, -2, 1},                                                       // (x - 1)^2
      {1, 2, 1},                                                        // (1 + x)^2
      {1, 4, 6, 4, 1},                                                  // (1 + x)^4
      {0, 0, 1, -2, 1},                                                 // x^2 (x - 1)^2
      from_pairs({{0.375, 0}, {-2, 0}, {1, 3}}),                        // of two places
      from_pairs({{0.375, 0}, {1, 0x1p-10}, {1, 0}}),                   // near others
      from_pairs({{1024, 0}, {0x1p-10, 0}}, 0x1p-600),                  // far apart
      from_pairs(std::vector<std::pair<double, double>>(16, {-1, 0})),  // (1 + x)^32
  };
  for (const auto& c : touching) EXPECT_EQ(verdict_of(c), Verdict::nonnegative) << "degree " << c.size() - 1;
  // The smallest change that takes it below 0 is not accepted.
  for (std::vector<double> c : touching) {
    c[0] = std::nextafter(c[0], -1);
    EXPECT_NE(verdict_of(c), Verdict::nonnegative) << "degree " << c.size() - 1;
  }
}

TEST(Kernel, ZerosThatRoundingMakesDoubleAreNotProved) {
  // (x - 1)^2 (x^2 + 2 x + 3) = x^4 - 4 x + 3, and -1e-20 at x = 1, which sums lose.
  EXPECT_EQ(verdict_of({3, -4, 0, 0, 1}), Verdict::nonnegative);
  EXPECT_EQ(verdict_of({3, -4, -1e-20, 0, 1}), Verdict::unknown);
  // (x - a)^2 - 2^-60, a = 1 + 2^-30, which products lose.
  EXPECT_EQ(verdict_of({1 + 0x1p-29, -2 - 0x1p-29, 1}), Verdict::unknown);
  // (x - a)^2, a = 1 + 2^-20.
  EXPECT_EQ(verdict_of({1 + 0x1p-19 + 0x1p-40, -2 - 0x1p-19, 1}), Verdict::nonnegative);
}

TEST(Kernel, OnlyZerosWithinRoundingAreUndecided) {
  // (x - 1/3)^2 + gap.
  for (const double third : {1.0 / 3, -1000.0 / 3}) {
    for (const double gap : {1e-4, 1e-8, 1e-12, 1e-13}) {
      EXPECT_EQ(verdict_of({third * third * (1 + gap), -2 * third, 1}), Verdict::nonnegative) << gap;
      EXPECT_EQ(verdict_of({third * third * (1 - gap), -2 * third, 1}), Verdict::negative) << gap;
    }
    EXPECT_EQ(verdict_of({third * third, -2 * third, 1}), Verdict::unknown);
  }
  EXPECT_THAT(error_of([] {
                Kernel::polynomial({1.0 / 9, -2.0 / 3, 1});
              }),
              HasSubstr("too near to 0 to prove"));
  EXPECT_FALSE(Kernel::polynomial({1.0 / 9, -2.0 / 3, 1}, KernelSign::any).nonnegative());
}

TEST(Kernel, DecidesWhatIsKnownOfRandomZeros) {
  Inputs random(1);
  int undecided = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    std::vector<std::pair<double, double>> pairs;
    for (auto n = random.integer(1, 6); n > 0; --n)
      pairs.emplace_back(random.normal(), std::exp(random.uniform(-6, 1)));
    const double scale = std::exp(random.uniform(-100, 100));
    std::vector<double> positive = from_pairs(pairs, scale);
    EXPECT_NE(verdict_of(positive), Verdict::negative);
    undecided += verdict_of(positive) == Verdict::unknown;
    // Times (x - a)(x - b): negative between.
    const double a = random.normal(), b = a + std::exp(random.uniform(-6, 1));
    std::vector<double> crossing(positive.size() + 2);
    for (std::size_t p = 0; p < positive.size(); ++p) {
      crossing[p] += positive[p] * a * b;
      crossing[p + 1] -= positive[p] * (a + b);
      crossing[p + 2] += positive[p];
    }
    EXPECT_NE(verdict_of(crossing), Verdict::nonnegative);
    undecided += verdict_of(crossing) == Verdict::unknown;
  }
  EXPECT_LE(undecided, 40);  // of 4000: zeros that crowd
}

TEST(Kernel, SeesZerosBeyondTheSizeOfTheCoefficients) {
  // rho = 0.998; positive for |x| <= 1, negative about 1.4.
  std::vector<double> c(33);
  for (int p = 0; p <= 32; ++p)
    c[static_cast<std::size_t>(p)] = (p == 32 || p <= 22 ? 1 : p >= 30 ? -1 : 0) * std::pow(0.998, 32 - p);
  EXPECT_EQ(verdict_of(c), Verdict::negative);
}

TEST(Kernel, TheWholeRangeOfDoublesIsNoObstacle) {
  for (const double scale : {1e-300, 1.0, 1e300}) {
    EXPECT_EQ(verdict_of({scale, scale, scale / 2}), Verdict::nonnegative);
    EXPECT_EQ(verdict_of({scale, 3 * scale, scale}), Verdict::negative);
  }
  EXPECT_EQ(verdict_of({1e-300, 0, 1e300}), Verdict::nonnegative);
  EXPECT_EQ(verdict_of({1e300, 1, 1e-300}), Verdict::nonnegative);
  EXPECT_EQ(verdict_of({1e300, -1e301, 1e300}), Verdict::negative);
  EXPECT_NE(verdict_of({-1e-320, 0, 0, 0, 1e300}), Verdict::nonnegative);
}

TEST(KernelOptions, AlibiIsGates) {
  fastrope::Options options;
  options.kernel = Kernel::taylor(2);
  options.mask = fastrope::Mask::causal();
  options.bias = fastrope::LagBias::alibi({0.5, 0.25});
  const fastrope::Problem problem({2, 1, 3, 4, 8, 5}, options);
  EXPECT_TRUE(problem.bias.empty());
  EXPECT_EQ(problem.gates.rows(2, 1), 2);
  EXPECT_EQ(problem.gates.slope(1), 0.25);
  // Keys after a query have no gates between them and it.
  options.mask = fastrope::Mask::full();
  EXPECT_THAT(error_of([&] {
                fastrope::Problem({2, 1, 3, 4, 8, 5}, options);
              }),
              HasSubstr("only those >= 0"));
}

TEST(KernelOptions, WhatChangesAnExponentIsRefused) {
  const fastrope::Shapes shapes{2, 1, 3, 4, 8, 5};
  fastrope::Options plain;
  plain.kernel = Kernel::taylor(2);
  const fastrope::Problem problem(shapes, plain);
  EXPECT_THAT(problem.kernel.coefficients(), ElementsAre(1, 1, 0.5));
  EXPECT_EQ(problem.with(7, 9, {}).kernel.degree(), 2);

  const auto expect_refused = [&](auto&& set, const char* text) {
    fastrope::Options options = plain;
    set(options);
    EXPECT_THAT(error_of([&] { fastrope::Problem(shapes, options); }),
                AllOf(HasSubstr(text), HasSubstr("polynomial of degree 2")));
    options.kernel = Kernel::softmax();
    EXPECT_NO_THROW(fastrope::Problem(shapes, options));
  };
  const std::vector<float> sinks = {1, 2}, dense(24);
  expect_refused([](fastrope::Options& o) { o.softcap = 30; }, "softcap 30");
  expect_refused([&](fastrope::Options& o) { o.sinks = sinks; }, "sinks of 2 entries");
  expect_refused(
      [](fastrope::Options& o) { o.bias = fastrope::LagBias::table(std::vector<double>(14), 2, -3); },
      "a lag bias that is not ALiBi");
  expect_refused([&](fastrope::Options& o) { o.dense_bias = fastrope::contiguous(dense.data(), 2, 3, 4); },
                 "dense_bias [2, 3, 4]");
}

}  // namespace
}  // namespace fastrope_test
