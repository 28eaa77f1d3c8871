#include "fastrope/polynomial/features.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using fastrope::MonomialSet;

/// A block of rows as kernels hold it, [variables, width], and its features.
template <class Real>
struct Block {
  Index width;
  std::vector<Real> x, weight, features;

  Block(const MonomialSet& set, Index rows, Inputs& random)
      : width(fastrope::round_up(rows, fastrope::simd::kLanes<Real>)),
        x(static_cast<std::size_t>(set.variables() * width)),
        weight(static_cast<std::size_t>(width)),
        features(static_cast<std::size_t>(set.rank() * width)) {
    for (Real& value : x) value = static_cast<Real>(random.normal());
    for (Real& value : weight) value = static_cast<Real>(random.uniform(0.5, 2));
  }

  void evaluate(const MonomialSet& set) {
    fastrope::evaluate_features(set, x.data(), weight.data(), width, features.data());
  }

  double variable(Index m, Index i) const {
    return static_cast<double>(x[static_cast<std::size_t>(m * width + i)]);
  }
  double feature(std::size_t f, Index i) const {
    return static_cast<double>(features[f * static_cast<std::size_t>(width) + static_cast<std::size_t>(i)]);
  }
  double norm(const MonomialSet& set, Index i) const {
    double square = 0;
    for (Index m = 0; m < set.variables(); ++m) square += variable(m, i) * variable(m, i);
    return std::sqrt(square);
  }
};

template <class Real>
class FeaturesTest : public testing::Test {
 protected:
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(FeaturesTest, Reals);

TYPED_TEST(FeaturesTest, ProductsOfADegreeArePowersOfTheDotProduct) {
  Inputs random(1);
  for (const auto& [variables, degree] : {std::pair{1, 6}, {2, 5}, {5, 4}, {8, 3}, {20, 2}, {3, 0}}) {
    const MonomialSet set(variables, degree);
    Block<TypeParam> q(set, 40, random), k(set, 40, random);
    q.evaluate(set);
    k.evaluate(set);
    for (Index i = 0; i < 40; ++i) {
      const Index j = (7 * i + 3) % 40;
      std::vector<double> sums(static_cast<std::size_t>(degree) + 1);
      for (std::size_t f = 0; f < set.terms().size(); ++f)
        sums[static_cast<std::size_t>(set.terms()[f].degree)] += q.feature(f, i) * k.feature(f, j);
      double dot = 0;
      for (Index m = 0; m < variables; ++m) dot += q.variable(m, i) * k.variable(m, j);
      const double weight = static_cast<double>(q.weight[static_cast<std::size_t>(i)]) *
                            static_cast<double>(k.weight[static_cast<std::size_t>(j)]);
      for (int p = 0; p <= degree; ++p) {
        // Each feature is off by 2 p + 1 epsilon; their sizes add up to (|q| |k|)^p at most.
        const double size = weight * std::pow(q.norm(set, i) * k.norm(set, j), p);
        EXPECT_NEAR(sums[static_cast<std::size_t>(p)], weight * std::pow(dot, p),
                    2 * (2 * p + 1) * this->kEpsilon * size)
            << variables << " variables, degree " << p;
      }
    }
  }
}

TYPED_TEST(FeaturesTest, SumsAddUpOverBlocks) {
  Inputs random(2);
  const MonomialSet set(3, 4);
  std::vector<TypeParam> sums(static_cast<std::size_t>(set.rank()));
  std::vector<double> expected(sums.size()), size(sums.size());
  for (int block = 0; block < 3; ++block) {
    Block<TypeParam> k(set, 40, random);
    k.evaluate(set);
    fastrope::add_feature_sums(set.rank(), k.width, k.features.data(), sums.data());
    for (std::size_t f = 0; f < sums.size(); ++f)
      for (Index i = 0; i < k.width; ++i) {
        expected[f] += k.feature(f, i);
        size[f] += std::abs(k.feature(f, i));
      }
  }
  for (std::size_t f = 0; f < sums.size(); ++f)
    EXPECT_NEAR(static_cast<double>(sums[f]), expected[f], 40 * this->kEpsilon * size[f]);
}

TYPED_TEST(FeaturesTest, CoefficientsApplyByDegree) {
  Inputs random(3);
  const MonomialSet set(4, 3);
  const std::vector<double> coefficients = {0.5, -2, 3, 0.25};
  Block<TypeParam> q(set, 20, random);
  q.evaluate(set);
  Block<TypeParam> scaled = q;
  std::vector<TypeParam> sums(static_cast<std::size_t>(set.rank())), dot(static_cast<std::size_t>(q.width));
  for (TypeParam& s : sums) s = static_cast<TypeParam>(random.normal());
  fastrope::apply_coefficients(set, coefficients, sums.data(), q.width, scaled.features.data(), dot.data());
  for (Index i = 0; i < q.width; ++i) {
    double expected = 0, size = 0;
    for (std::size_t f = 0; f < sums.size(); ++f) {
      const double feature = coefficients[static_cast<std::size_t>(set.terms()[f].degree)] * q.feature(f, i);
      EXPECT_NEAR(scaled.feature(f, i), feature, this->kEpsilon * std::abs(feature));
      expected += feature * static_cast<double>(sums[f]);
      size += std::abs(feature * static_cast<double>(sums[f]));
    }
    EXPECT_NEAR(static_cast<double>(dot[static_cast<std::size_t>(i)]), expected, 40 * this->kEpsilon * size);
  }
}

}  // namespace
}  // namespace fastrope_test
