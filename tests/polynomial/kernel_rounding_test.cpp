// Bounds of polynomial kernels' rounding against the worst that entries and weights may be off by.
#include "fastrope/polynomial/kernel_rounding.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fastrope/polynomial/kernel_bounds.hpp"
#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

constexpr double kNoBound = std::numeric_limits<double>::infinity();

/// Keys whose logits are x_j, |x_j| <= z_j = query |k_j|, which may be off by entry z_j each, the terms of
/// their weights by (1 + unit)^(2 p + 2).
struct SomeKeys {
  double query = 3;
  std::vector<double> x = {}, lengths = {};

  /// cosine: the largest |x_j| / z_j.
  SomeKeys(Inputs& random, Index count, double cosine) {
    for (Index j = 0; j < count; ++j) {
      lengths.push_back(random.uniform(0.2, 1));
      x.push_back(query * lengths.back() * cosine * random.uniform(-1, 1));
    }
  }
  std::vector<double> sizes(int degree) const {
    std::vector<double> sums(static_cast<std::size_t>(degree) + 1);
    for (const double length : lengths)
      for (std::size_t p = 0; p < sums.size(); ++p) sums[p] += std::pow(length, static_cast<double>(p));
    return sums;
  }
  double sum(const Kernel& kernel) const {
    double total = 0;
    for (const double x_j : x) total += kernel(x_j);
    return total;
  }
  /// All weights as far as may be from what they are, upwards or downwards.
  double moved(const Kernel& kernel, double entry, double unit, int sign) const {
    const auto c = kernel.coefficients();
    double total = 0;
    for (std::size_t j = 0; j < x.size(); ++j) {
      double worst = sign * kernel(x[j]);
      for (const double off : {-1.0, -0.5, 0.0, 0.5, 1.0}) {
        const double moved = x[j] + off * entry * query * lengths[j];
        double weight = 0;
        for (std::size_t p = 0; p < c.size(); ++p) {
          const double term = c[p] * std::pow(moved, static_cast<double>(p));
          weight +=
              sign * term + std::abs(term) * std::expm1(static_cast<double>(2 * p + 2) * std::log1p(unit));
        }
        worst = std::max(worst, weight);
      }
      total += sign * worst;
    }
    return total;
  }
};

const std::vector<Kernel>& rounded_kernels() {
  static const std::vector<Kernel> all = {
      Kernel::power(1, KernelSign::any),
      Kernel::power(2),
      Kernel::power(4),
      Kernel::power(8),
      Kernel::power(3, KernelSign::any),
      Kernel::taylor(2),
      Kernel::taylor(4),
      Kernel::polynomial({1, 0, 0.5, 0, 0.125}),
      Kernel::polynomial({1, 2, 1}),
      Kernel::polynomial({5}),
      Kernel::polynomial({2, -1, 0, 0.125}, KernelSign::any),
  };
  return all;
}

TEST(KernelRounding, CoversTheWorstOfEntriesAndWeights) {
  Inputs random(1);
  double closest = 0;
  for (const Kernel& kernel : rounded_kernels())
    for (const double cosine : {1.0, 0.3, 0.01, 0.0})
      for (const double entry : {1e-2, 1e-4, 1e-7})
        for (const double unit : {1e-5, 1e-9, 0.0})
          for (const Index count : {1, 2, 50}) {
            const SomeKeys keys(random, count, cosine);
            const KernelRounding rounding(kernel, {.entry = entry, .unit = unit, .sums = 0, .smallest = 0});
            const double exact = keys.sum(kernel);
            for (const int sign : {-1, 1}) {
              const double computed = keys.moved(kernel, entry, unit, sign);
              const double allowed =
                  rounding.error(keys.query, keys.sizes(kernel.degree()).data(), 1, 0, computed);
              // Of the numerator and of the denominator.
              const double error = 2 * std::abs(computed - exact);
              EXPECT_LE(error, allowed + 1e-13 * (std::abs(exact) + 1))
                  << "degree " << kernel.degree() << ", cosine " << cosine << ", entry " << entry << ", unit "
                  << unit;
              if (allowed > 1e-10) closest = std::max(closest, error / allowed);
            }
          }
  EXPECT_GT(closest, 0.9);
}

TEST(KernelRounding, DigitsThatCancelInLogitsCostPowersLittle) {
  Inputs random(2);
  const SomeKeys keys(random, 100, 0.01);
  const auto relative = [&](const Kernel& kernel) {
    const KernelRounding rounding(kernel, {.entry = 1e-6, .unit = 1e-7, .sums = 0, .smallest = 0});
    const double sum = keys.sum(kernel);
    return rounding.error(keys.query, keys.sizes(kernel.degree()).data(), 1, 0, sum) / sum;
  };
  EXPECT_LT(relative(Kernel::power(4)), 4 * 4 * 200 * 1e-6);
  // The same polynomial, of which nobody knows that its terms do not cancel.
  EXPECT_GT(relative(Kernel::polynomial({0, 1e-12, 0, 0, 1}, KernelSign::any)), 1);
}

TEST(KernelRounding, SumsRoundWhatTheyAreOf) {
  Inputs random(3);
  const SomeKeys keys(random, 50, 0.5);
  const WeightArithmetic sums{.entry = 0, .unit = 0, .sums = 1e-3, .smallest = 0};
  const auto error = [&](const Kernel& kernel, double sum) {
    return KernelRounding(kernel, sums).error(keys.query, keys.sizes(kernel.degree()).data(), 1, 0, sum);
  };
  for (const Kernel& kernel : rounded_kernels()) {
    double sizes = 0, terms = 0;
    for (std::size_t j = 0; j < keys.x.size(); ++j) {
      sizes += std::abs(kernel(keys.x[j]));
      for (std::size_t p = 0; p < kernel.coefficients().size(); ++p)
        terms += std::abs(kernel.coefficients()[p]) *
                 std::pow(keys.query * keys.lengths[j], static_cast<double>(p));
    }
    const double allowed = error(kernel, keys.sum(kernel));
    EXPECT_GE(allowed, 1e-3 * sizes) << kernel.degree();
    // Weights that are not negative add up to their sum.
    EXPECT_LE(allowed, 1.01e-3 * (kernel.nonnegative() ? sizes : terms)) << kernel.degree();
  }
}

TEST(KernelRounding, UnderflowCountsOnceForEachKeyAndValue) {
  const SomeKeys keys = [] {
    Inputs random(4);
    return SomeKeys(random, 10, 0.5);
  }();
  const KernelRounding rounding(Kernel::power(2), {.entry = 0, .unit = 0, .sums = 0, .smallest = 1e-30});
  const auto error = [&](double largest_value) {
    return rounding.error(keys.query, keys.sizes(2).data(), largest_value, 0, keys.sum(Kernel::power(2)));
  };
  EXPECT_GE(error(1), 1e-30 * 20);
  EXPECT_GE(error(1e-20), 1e-10 * 10);
  EXPECT_LE(error(1e-20), 1e-10 * 100);
  EXPECT_LE(error(0), error(1)) << "of values that are all 0 nothing can be lost";
}

TEST(RowBound, IsTheQuotientOfWhatIsLeft) {
  // Where rounding of the result is far below.
  const auto bound = [](double error, double sum, double largest, double largest_value) {
    return row_bound<double>(error, sum, largest, largest_value, kStoredType<double>);
  };
  EXPECT_NEAR(bound(0.1, 1.1, 0.5, 1), 0.1, 1e-12);
  EXPECT_NEAR(bound(0.1, -1.1, 0.5, 1), 0.1, 1e-12);
  EXPECT_NEAR(bound(0.1, 1.1, 6, 2), 0.3, 1e-12) << "outputs beyond the values, of signed weights";
  EXPECT_NEAR(bound(0.1, 1.1, 6, kNoBound), 0.1, 1e-12);
  EXPECT_NEAR(bound(0.1, 1.1, 0, 0), 0.1, 1e-12);
  EXPECT_EQ(bound(1, 1, 0.5, 1), kNoBound);
  EXPECT_EQ(bound(2, 1, 0.5, 1), kNoBound);
  EXPECT_EQ(bound(0, 0, 0, 1), kNoBound);
  EXPECT_EQ(bound(NAN, 1, 0.5, 1), kNoBound);
  EXPECT_EQ(bound(0.1, NAN, 0.5, 1), kNoBound);
  EXPECT_EQ(bound(0.1, kNoBound, 0.5, 1), kNoBound);
  EXPECT_EQ(bound(0.1, 1.1, NAN, 1), kNoBound);
  EXPECT_EQ(bound(0.1, 1.1, kNoBound, 1), kNoBound);
  // A denominator that is not normal in the arithmetic gives zeros, whatever the sums.
  EXPECT_EQ(row_bound<float>(0, 1e-38, 0, 1, kStoredType<float>), kNoBound);
  EXPECT_LT(row_bound<double>(0, 1e-38, 0, 1, kStoredType<double>), 1e-10);
}

TEST(RowBound, CountsTheResultsRounding) {
  EXPECT_GE(row_bound<float>(0, 1, 0.5, 1, kStoredType<bfloat16>), 0x1p-9);
  EXPECT_GE(row_bound<float>(0, 1, 0.5, 1, kStoredType<float16>), 0x1p-12);
  EXPECT_GE(row_bound<float>(0, 1, 0.5, 1, kStoredType<float>), 0x1p-25);
  EXPECT_LE(row_bound<float>(0, 1, 0.5, 1, kStoredType<float>), 0x1p-24);
  EXPECT_GE(row_bound<double>(0, 1, 0.5, 1, kStoredType<float>), 0x1p-25);
  EXPECT_GE(row_bound<float>(0, 1, 1e-9, 1e-9, kStoredType<float16>), 10) << "numbers that float16 has not";
}

TEST(RowLength, IsAtLeastTheLength) {
  const auto length = [](const std::vector<float>& x, Index d) {
    return row_length<float>(
        {.type = &kStoredType<float>, .data = reinterpret_cast<const std::byte*>(x.data())}, 0, d);
  };
  std::vector<float> x = {3, -4, 0, 0, 0, 0, 0, 0, 12};
  EXPECT_NEAR(length(x, 9), 13, 1e-12);
  EXPECT_NEAR(length(x, 2), 5, 1e-12);
  EXPECT_GT(length(x, 0), 0) << "so that underflow is covered";
  EXPECT_LT(length(x, 0), 1e-14);
  EXPECT_NEAR(length({3e38f}, 1) / 3e38, 1, 1e-6);
  x.resize(200);
  x.back() = 84;
  EXPECT_NEAR(length(x, 200), 85, 1e-12) << "of several pieces";
}

}  // namespace
}  // namespace fastrope_test
