// The staircase of approximated pairs, and the largest products over it, against all of its pairs.
#include "fastrope/plan/far_field.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/inputs.hpp"
#include "support/row_matrix.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

/// Ascending rows of any number, some of them none, far nondecreasing and some of it 0.
std::vector<FarPairs> random_pairs(Inputs& random, Index n_q, Index n_k, Index most_rows) {
  std::vector<FarPairs> pairs;
  Index far = 0;
  for (Index i = 0; i < n_q;) {
    const Index end = std::min(n_q, i + random.integer(0, most_rows));
    pairs.push_back({{i, end}, far});
    i = end;
    if (random.integer(0, 2) > 0) far = random.integer(far, n_k);
  }
  return pairs;
}

/// The same, but that some keys are far only behind others.
std::vector<FarPairs> random_pairs_with_later(Inputs& random, Index n_q, Index n_k, Index most_rows) {
  std::vector<FarPairs> pairs = random_pairs(random, n_q, n_k, most_rows);
  Index reach = 0;
  for (FarPairs& p : pairs) {
    reach = std::max(reach, p.far);
    p.first = random.integer(0, p.far);
    if (random.integer(0, 1) == 0) reach = random.integer(reach, n_k);
    p.later = {std::min(reach, p.far + 1), reach};
  }
  return pairs;
}

TEST(FarField, HoldsTheRowsAndKeysOfItsPairs) {
  Inputs random(1);
  int empty = 0;
  for (int trial = 0; trial < 300; ++trial) {
    const Index n_q = random.integer(1, 100), n_k = random.integer(1, 100);
    const auto draw = trial % 2 == 0 ? random_pairs : random_pairs_with_later;
    const std::vector<FarPairs> pairs = draw(random, n_q, n_k, 60);
    Index first_row = n_q, last_row = -1, last_key = -1;
    for (const FarPairs& p : pairs)
      for (Index i = p.rows.begin; i < p.rows.end; ++i)
        for (Index j = 0; j < p.reach(); ++j) {
          first_row = std::min(first_row, i);
          last_row = std::max(last_row, i);
          last_key = std::max(last_key, j);
        }
    const FarField field = far_field(pairs);
    EXPECT_EQ(field.empty(), last_key < 0) << "trial " << trial;
    empty += field.empty();
    if (last_key < 0) continue;
    EXPECT_EQ(field.queries, (Range{first_row, last_row + 1})) << "trial " << trial;
    EXPECT_EQ(field.keys, (Range{0, last_key + 1})) << "trial " << trial;
  }
  EXPECT_GT(empty, 0);
}

TEST(FarField, WithoutFarKeysIsEmpty) {
  const std::vector<FarPairs> near = {{{0, 10}, 0}}, none, no_rows = {{{4, 4}, 8}};
  for (const auto& pairs : {near, none, no_rows}) EXPECT_TRUE(far_field(pairs).empty());
}

/// [n, d]: |x_i[l..]|, in double.
template <class Real>
RowMatrix<double> tail_lengths(const RowMatrix<Real>& x) {
  RowMatrix<double> lengths(x.rows, x.cols);
  for (Index i = 0; i < x.rows; ++i) {
    double square = 0;
    for (Index l = x.cols; l-- > 0;) {
      square += static_cast<double>(x(i, l)) * static_cast<double>(x(i, l));
      lengths(i, l) = std::sqrt(square);
    }
  }
  return lengths;
}

template <class Real>
class LargestProducts : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(LargestProducts, Reals);

TYPED_TEST(LargestProducts, BoundEveryPairByTheBlocksThatItTouches) {
  // Of lengths in the last columns. All keys below a row's reach, or an earlier row's, count.
  using Real = TypeParam;
  Inputs random(2);
  for (int trial = 0; trial < 60; ++trial) {
    const Index n_q = random.integer(1, 400), n_k = random.integer(1, 400), d = random.integer(1, 4);
    const RowMatrix<Real> q = gaussian_rows<Real>(random, n_q, d), k = gaussian_rows<Real>(random, n_k, d);
    const auto draw = trial % 3 > 0 ? random_pairs : random_pairs_with_later;
    const std::vector<FarPairs> pairs = draw(random, n_q, n_k, trial % 2 == 0 ? 20 : 150);
    const Measure measure{.axes = identity(d)};
    RowBounds queries(measure), keys(measure);
    queries.extend(source_of(q));
    keys.extend(source_of(k));
    const std::vector<double> products = largest_products(pairs, queries.reaches(), keys.reaches(), d);
    ASSERT_EQ(products.size(), static_cast<std::size_t>(d));
    const RowMatrix<double> of_queries = tail_lengths(q), of_keys = tail_lengths(k);
    for (Index l = 0; l < d; ++l) {
      const auto of_block = [&](const RowBounds& bounds, Index row) {
        return bounds.reaches()[static_cast<std::size_t>(row / kRowBlock * d + l)];
      };
      double true_most = 0, most_of_blocks = 0;
      Index reach = 0;
      for (const FarPairs& p : pairs) {
        if (!p.rows.empty()) reach = std::max(reach, p.reach());
        if (p.reach() == 0) continue;
        for (Index i = p.rows.begin; i < p.rows.end; ++i)
          for (Index j = 0; j < reach; ++j) {
            true_most = std::max(true_most, of_queries(i, l) * of_keys(j, l));
            most_of_blocks = std::max(most_of_blocks, of_block(queries, i) * of_block(keys, j));
          }
      }
      EXPECT_GE(products[static_cast<std::size_t>(l)], true_most) << "trial " << trial << ", cut " << l;
      EXPECT_EQ(products[static_cast<std::size_t>(l)], most_of_blocks) << "trial " << trial << ", cut " << l;
    }
  }
}

TEST(LargestProductsByHand, OfTwoBlocks) {
  constexpr Index n = kRowBlock;
  const auto products = [](const std::vector<FarPairs>& pairs, const std::vector<double>& queries,
                           const std::vector<double>& keys,
                           Index cuts) { return largest_products(pairs, queries, keys, cuts); };
  // Two blocks, three cuts: the long query of the first never meets the long key of the second.
  const std::vector<double> queries = {10, 1, 0, 2, 3, 4}, keys = {1, 5, 7, 8, 2, 0};
  EXPECT_EQ(products({{{0, n}, n}, {{n, 2 * n}, 2 * n}}, queries, keys, 3),
            (std::vector<double>{16, 15, 28}));
  // It does where one row or one key of a block is in the other's.
  EXPECT_EQ(products({{{0, n}, n + 1}, {{n, 2 * n}, 2 * n}}, queries, keys, 3),
            (std::vector<double>{80, 15, 28}));
  EXPECT_EQ(products({{{n - 1, 2 * n}, 2 * n}}, queries, keys, 3), (std::vector<double>{80, 15, 28}));
  EXPECT_EQ(products({{{0, 1}, 1}}, queries, keys, 3), (std::vector<double>{10, 5, 0}));
  EXPECT_EQ(products({{{n, n + 1}, n}}, queries, keys, 3), (std::vector<double>{2, 15, 28}));
  // Keys behind a gap.
  EXPECT_EQ(products({{{n, 2 * n}, 0, 0, {n, 2 * n}}}, queries, keys, 3), (std::vector<double>{16, 15, 28}));
  // One bound of all rows is that of every block.
  const std::vector<double> all_queries = {10, 3, 4}, all_keys = {8, 5, 7};
  EXPECT_EQ(products({{{n, 2 * n}, 2 * n}}, all_queries, all_keys, 3), (std::vector<double>{80, 15, 28}));
  EXPECT_EQ(products({{{n, 2 * n}, n}}, all_queries, keys, 3), (std::vector<double>{10, 15, 28}));
  // What has no rows or no keys has no products.
  EXPECT_EQ(products({{{0, n}, 0}, {{n, n}, 2 * n}}, queries, keys, 3), (std::vector<double>{0, 0, 0}));
  EXPECT_EQ(products({}, {}, {}, 2), (std::vector<double>{0, 0}));
}

}  // namespace
}  // namespace fastrope_test
