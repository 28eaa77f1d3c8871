// The staircase of approximated pairs, and the largest products over it, against all of its pairs.
#include "fastrope/polynomial/far_field.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

template <class Real>
Rows<Real> gaussian(Inputs& inputs, Index n, Index d) {
  return Rows<Real>::NullaryExpr(n, d, [&] { return static_cast<Real>(inputs.normal()); });
}

/// Ascending rows of any number, some of them none, far nondecreasing and some of it 0.
std::vector<FarPairs> random_pairs(Inputs& random, Index n_q, Index n_k) {
  std::vector<FarPairs> pairs;
  Index far = 0;
  for (Index i = 0; i < n_q;) {
    const Index end = std::min(n_q, i + random.integer(0, 20));
    pairs.push_back({{i, end}, far});
    i = end;
    if (random.integer(0, 2) > 0) far = random.integer(far, n_k);
  }
  return pairs;
}

template <class Real>
class FarFieldTest : public testing::Test {
 protected:
  /// The rows of a set, in order.
  static Rows<Real> all_of(const PointSet<Real>& set, Index d) {
    Index count = 0;
    for (const auto& x : set) count += x.rows;
    Rows<Real> rows(count, d);
    Index used = 0;
    for (const auto& x : set) {
      if (x.rows > 0) rows.middleRows(used, x.rows) = x.slice(0, x.rows);
      used += x.rows;
    }
    return rows;
  }
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(FarFieldTest, Reals);

TYPED_TEST(FarFieldTest, StepsHoldTheRowsOfTheirPairsAndTheKeysThatAreNew) {
  using Real = TypeParam;
  Inputs random(1);
  for (int trial = 0; trial < 50; ++trial) {
    const Index n_q = random.integer(1, 100), n_k = random.integer(1, 100), d = random.integer(1, 5);
    std::vector<Rows<Real>> queries;
    for (Index h = random.integer(1, 3); h > 0; --h) queries.push_back(gaussian<Real>(random, n_q, d));
    const Rows<Real> keys = gaussian<Real>(random, n_k, d);
    const std::vector<FarPairs> pairs = random_pairs(random, n_q, n_k);
    const FarField<Real> field = far_field<Real>(queries, keys, pairs);

    ASSERT_EQ(field.queries.size(), queries.size());
    for (std::size_t h = 0; h < queries.size(); ++h)
      EXPECT_EQ(this->all_of({field.queries[h]}, d), queries[h]) << "trial " << trial;
    EXPECT_EQ(this->all_of(field.keys, d), keys) << "trial " << trial;

    std::size_t step = 0;
    PointSet<Real> seen;
    for (const FarPairs& p : pairs) {
      if (p.rows.empty() || p.far == 0) continue;
      ASSERT_LT(step, field.steps.size()) << "trial " << trial;
      const FarStep<Real>& of_pairs = field.steps[step++];
      ASSERT_EQ(of_pairs.queries.size(), queries.size());
      for (std::size_t h = 0; h < queries.size(); ++h)
        EXPECT_EQ(this->all_of({of_pairs.queries[h]}, d), queries[h].middleRows(p.rows.begin, p.rows.size()))
            << "trial " << trial << ", step " << step;
      seen.insert(seen.end(), of_pairs.keys.begin(), of_pairs.keys.end());
      EXPECT_EQ(this->all_of(seen, d), keys.topRows(p.far)) << "trial " << trial << ", step " << step;
    }
    EXPECT_EQ(step, field.steps.size()) << "trial " << trial;
    EXPECT_EQ(field.empty(), step == 0);
  }
}

TYPED_TEST(FarFieldTest, WithoutFarKeysItIsEmpty) {
  using Real = TypeParam;
  const std::vector<Rows<Real>> queries = {Rows<Real>::Zero(10, 2)};
  const Rows<Real> keys = Rows<Real>::Zero(8, 2);
  const std::vector<FarPairs> near = {{{0, 10}, 0}}, none, no_rows = {{{4, 4}, 8}};
  EXPECT_TRUE(far_field<Real>(queries, keys, near).empty());
  EXPECT_TRUE(far_field<Real>(queries, keys, none).empty());
  EXPECT_TRUE(far_field<Real>(queries, keys, no_rows).empty());
}

TYPED_TEST(FarFieldTest, LargestProductsAreThoseOfThePairs) {
  // Of lengths in the last columns, over the pairs (row, key < far).
  using Real = TypeParam;
  Inputs random(2);
  for (int trial = 0; trial < 50; ++trial) {
    const Index n = random.integer(1, 80), d = random.integer(1, 4);
    const std::vector<Rows<Real>> queries = {gaussian<Real>(random, n, d), gaussian<Real>(random, n, d)};
    const Rows<Real> keys = gaussian<Real>(random, n, d);
    const std::vector<FarPairs> pairs = random_pairs(random, n, n);
    const FarField<Real> field = far_field<Real>(queries, keys, pairs);
    const auto lengths = [&](const PointSet<Real>& set) {
      const Rows<Real> rows = this->all_of(set, d);
      std::vector<double> largest(static_cast<std::size_t>(d));
      for (Index l = 0; l < d; ++l)
        for (Index i = 0; i < rows.rows(); ++i) {
          double& of_cut = largest[static_cast<std::size_t>(l)];
          of_cut = std::max(of_cut, static_cast<double>(rows.row(i).rightCols(d - l).norm()));
        }
      return largest;
    };
    std::vector<std::vector<double>> of_queries, of_keys;
    for (const FarStep<Real>& step : field.steps) {
      of_queries.push_back(lengths(step.queries));
      of_keys.push_back(lengths(step.keys));
    }
    const std::vector<double> products = largest_products(of_queries, of_keys, static_cast<std::size_t>(d));
    ASSERT_EQ(products.size(), static_cast<std::size_t>(d));
    for (Index l = 0; l < d; ++l) {
      double expected = 0;
      for (const Rows<Real>& q : queries)
        for (const FarPairs& p : pairs)
          for (Index i = p.rows.begin; i < p.rows.end; ++i)
            for (Index j = 0; j < p.far; ++j)
              expected = std::max(expected, static_cast<double>(q.row(i).rightCols(d - l).norm()) *
                                                static_cast<double>(keys.row(j).rightCols(d - l).norm()));
      // The same lengths and products: Eigen may add up a row's squares in another order.
      const double epsilon = std::numeric_limits<Real>::epsilon();
      EXPECT_NEAR(products[static_cast<std::size_t>(l)], expected,
                  2 * static_cast<double>(d) * epsilon * expected)
          << "trial " << trial << ", cut " << l;
    }
  }
}

TEST(LargestProducts, OfNumbersByHand) {
  // Two steps, three cuts: the long query of the first never meets the long key of the second.
  EXPECT_EQ(largest_products({{10, 1, 0}, {2, 3, 4}}, {{1, 5, 7}, {8, 2, 0}}, 3),
            (std::vector<double>{16, 15, 28}));
  EXPECT_EQ(largest_products({{10, 1}}, {{3, 5}}, 1), (std::vector<double>{30}))
      << "fewer cuts than there are";
  EXPECT_EQ(largest_products({}, {}, 2), (std::vector<double>{0, 0}));
}

}  // namespace
}  // namespace fastrope_test
