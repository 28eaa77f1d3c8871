// What has broken a promise, each once more: the inputs are those that were found, not the nearest kind ones.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "support/promise_check.hpp"
#include "support/stored_call.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

constexpr float kLargestFloat = std::numeric_limits<float>::max();

/// One head of each; q, k and v of zeros.
PromiseProblem problem_of(Index n_q, Index n_k, Index d, Index d_v, Index heads = 1) {
  PromiseProblem problem;
  problem.call.shapes = {heads, heads, n_q, n_k, d, d_v};
  problem.call.base.scale = 1.0;
  problem.q = Tensor<double>(heads, n_q, d);
  problem.k = Tensor<double>(heads, n_k, d);
  problem.v = Tensor<double>(heads, n_k, d_v);
  return problem;
}

void fill_uniform(Tensor<double>& x, Inputs& random, double low, double high) {
  for (double& value : x.values) value = random.uniform(low, high);
}

/// Runs the problem and expects its promise kept; the error that was seen.
template <class Q = float, class Rows = Q, class Out = Q>
double expect_kept(const PromiseProblem& problem, double tolerance) {
  const StoredCall<Q, Rows, Out> call(problem);
  PromiseTally tally;
  const auto error = detail::PromiseCheck<double>(problem, call).at(tolerance, tally);
  EXPECT_TRUE(error) << problem << " is refused at " << tolerance;
  for (const std::string& violation : tally.violations) ADD_FAILURE() << violation;
  return error.value_or(0);
}

// A sample of the keys that consists of those few that differ from all others.
TEST(PromiseRegression, KeysThatASampleMisjudges) {
  constexpr Index n_k = 131072, runs = 128, run = 4;
  constexpr double radius = 6;
  PromiseProblem problem = problem_of(512, n_k, 2, 1);
  problem.call.base.path = Path::polynomial;
  for (Index j = 0; j < n_k; ++j) {
    problem.k(0, j, 0) = -std::sqrt(radius);
    problem.v(0, j, 0) = -1;
  }
  for (Index r = 0; r < runs; ++r)
    for (Index m = 0; m < run; ++m) {
      const Index j = r * (n_k - run) / (runs - 1) + m;
      problem.k(0, j, 0) = 0;
      problem.v(0, j, 0) = 1;
    }
  Inputs random(1);
  for (Index i = 0; i < problem.q.rows; ++i)
    problem.q(0, i, 0) = (i % 2 == 0 ? 1 : -1) * std::sqrt(radius) * (1 - 0.05 * random.uniform(0, 1));
  // No row could be vouched for, so the path that was forced is refused; a looser promise is kept.
  const StoredCall<float, float, float> call(problem);
  EXPECT_FALSE(call.plan(problem.options(3e-3)));
  expect_kept(problem, 5e-2);
  problem.call.base.path = Path::automatic;
  expect_kept(problem, 3e-3);
}

// Means over all earlier keys say nothing about a window that has left them behind.
TEST(PromiseRegression, AWindowWhoseContentChangesLate) {
  constexpr Index n = 131072;
  for (const double radius : {3.0, 6.0})
    for (const double value : {0.1, 1.0}) {
      PromiseProblem problem = problem_of(n, n, 1, 1);
      problem.call.base.path = Path::polynomial;
      problem.call.base.mask = Mask::sliding_window(8192);
      Inputs random(2);
      for (Index j = 0; j < n; ++j) {
        const bool late = j >= n - n / 8;
        problem.k(0, j, 0) = (late || j % 2 == 0 ? 1 : -1) * std::sqrt(radius);
        problem.q(0, j, 0) = -std::sqrt(radius) * (1 - (j % 3 == 0 ? 0 : 0.05) * random.uniform(0, 1));
        problem.v(0, j, 0) = value;
      }
      expect_kept(problem, 1e-3);
    }
}

// Logits of about 100 that are nearly the same for all keys: what is left of their rounding grows with d.
class WideRows : public testing::TestWithParam<Index> {};
TEST_P(WideRows, WithACommonMean) {
  const Index d = GetParam();
  PromiseProblem problem = problem_of(40, 500, d, 2);
  problem.call.base.path = Path::polynomial;
  problem.call.base.mask = Mask::causal();
  Inputs random(3);
  const Tensor<double> mean = random.sphere<double>(1, 1, d, 10);
  const double noise = 0.1 / std::sqrt(static_cast<double>(d));
  for (Tensor<double>* x : {&problem.q, &problem.k})
    for (Index i = 0; i < x->rows; ++i)
      for (Index c = 0; c < d; ++c) (*x)(0, i, c) = mean(0, 0, c) + noise * random.normal();
  fill_uniform(problem.v, random, -1, 1);
  const auto make_call = [](const PromiseProblem& p) {
    return std::make_unique<StoredCall<float, float, float>>(p);
  };
  double tolerance = 2e-5;  // not far above the tightest that is accepted
  while (tolerance < 0.1 && !make_call(problem)->plan(problem.options(tolerance))) tolerance *= 2;
  expect_kept(with_signs_of_errors(problem, tolerance, make_call), 1.2 * tolerance);
}
INSTANTIATE_TEST_SUITE_P(PromiseRegression, WideRows, testing::Values(256, 576));

// Products of bfloat16 pairs, logits of about 30, values of unit variance; and one rounding of the result.
TEST(PromiseRegression, Bfloat16Products) {
  for (const double tolerance : {1e-2, 1e-4}) {
    PromiseProblem problem = problem_of(100, 300, 64, 8);
    problem.storage = Storage::bfloat16_to_float;
    Inputs random(5);
    problem.q = random.sphere<double>(1, 100, 64, 5.5);
    problem.k = random.sphere<double>(1, 300, 64, 5.5);
    for (Index i = 0; i < 100; ++i)  // each has a key of its own, and a rival
      for (Index c = 0; c < 64; ++c)
        for (const Index j : {3 * i, 3 * i + 1})
          problem.k(0, j, c) = problem.q(0, i, c) + 0.03 * random.normal();
    problem.v = random.gaussian<double>(1, 300, 8);
    expect_kept<bfloat16, bfloat16, float>(problem, tolerance);
    problem.storage = Storage::bfloat16;
    expect_kept<bfloat16, bfloat16, bfloat16>(problem, tolerance);
  }
}

// What another head is computed with does not change this one.
TEST(PromiseRegression, Bfloat16ProductsBesideAnApproximatedHead) {
  PromiseProblem problem = problem_of(100, 300, 8, 4, /*heads=*/2);
  problem.eager = true;
  Inputs random(6);
  problem.q = random.sphere<double>(2, 100, 8, 30);
  problem.k = random.sphere<double>(2, 300, 8, 30);
  fill_uniform(problem.v, random, -1, 1);
  const auto run = [](const PromiseProblem& p, Path second) {
    Tensor<double> out;
    const auto report = StoredCall<bfloat16, bfloat16, bfloat16>(p).run(p.options(2e-2), out);
    EXPECT_EQ(report->heads[0].path, Path::exact);
    EXPECT_EQ(report->heads[1].path, second);
    return out;
  };
  const Tensor<double> alone = run(problem, Path::exact);
  for (Index i = 0; i < 100; ++i)
    for (Index c = 0; c < 8; ++c) problem.q(1, i, c) /= 2000;
  const Tensor<double> beside = run(problem, Path::polynomial);
  for (Index i = 0; i < 100; ++i)
    for (Index c = 0; c < 4; ++c) ASSERT_EQ(alone(0, i, c), beside(0, i, c)) << i << ' ' << c;
}

// Sums over very many keys, of values and weights that are all about the same.
class LongSums : public testing::TestWithParam<Index> {};
TEST_P(LongSums, OfEqualValues) {
  const Index n_k = GetParam();
  for (const Index n_q : {40, 1}) {
    PromiseProblem problem = problem_of(n_q, n_k, 1, 1);  // and of equal weights
    for (double& value : problem.v.values) value = 0.1;
    EXPECT_LE(expect_kept(problem, 1e-5), 1e-5) << n_q;

    const StoredCall<float, float, float> call(problem);
    const Tensor<float> q = converted<float>(problem.q.view()), k = converted<float>(problem.k.view()),
                        v = converted<float>(problem.v.view());
    Tensor<float> out(1, n_q, 1), lse(1, 1, n_q);
    attend_partial(q.view(), k.view(), v.view(), out.view(), lse.view().head(0), problem.options(0));
    for (Index i = 0; i < n_q; ++i)
      EXPECT_NEAR(lse(0, 0, i), std::log(static_cast<double>(n_k)), 1e-5) << n_q << ' ' << i;
  }
}
INSTANTIATE_TEST_SUITE_P(PromiseRegression, LongSums, testing::Values(32768, 131072, 1 << 20));

/// 4 rows and 50 keys of logits within 1, values within 1.
PromiseProblem small_problem() {
  PromiseProblem problem = problem_of(4, 50, 4, 3);
  problem.call.base.path = Path::exact;
  Inputs random(8);
  fill_uniform(problem.q, random, -0.5, 0.5);
  fill_uniform(problem.k, random, -0.5, 0.5);
  fill_uniform(problem.v, random, -1, 1);
  return problem;
}

// Finite numbers whose product with log2(e) is not.
TEST(PromiseRegression, BiasesAtTheEndOfTheRange) {
  PromiseProblem problem = small_problem();
  const auto fill = [&](float bias) {
    problem.call.dense.assign(4 * 50, bias);
    problem.call.dense_row_stride = 50;
  };
  fill(-kLargestFloat);  // the usual row of padding: the softmax of the scores
  EXPECT_LE(expect_kept(problem, 0), 1e-5);
  fill(kLargestFloat);
  EXPECT_LE(expect_kept(problem, 0), 1e-5);
  fill(0);
  problem.call.dense[3] = kLargestFloat;  // all that the first row sees
  problem.call.dense[50 + 7] = -kLargestFloat;
  EXPECT_LE(expect_kept(problem, 0), 1e-5);
}

TEST(PromiseRegression, ASinkAtTheEndOfTheRange) {
  PromiseProblem problem = small_problem();
  for (const float sink : {kLargestFloat, -kLargestFloat}) {
    problem.call.sinks = {sink};
    EXPECT_LE(expect_kept(problem, 0), 1e-5) << sink;
  }
}

TEST(PromiseRegression, ATableBeyondTheRangeOfFloat) {
  PromiseProblem problem = small_problem();
  for (const double entry : {1e39, -1e39}) {
    std::vector<double> table(99, 0.5);
    table[60] = entry;
    problem.call.base.bias = LagBias::table(table, 1, -49);
    problem.bias = table_formula(table, 1, -49);
    EXPECT_LE(expect_kept(problem, 0), 1e-5) << entry;
  }
}

// A bias of 500000 whose differences from key to key are 1/2.
TEST(PromiseRegression, ABiasMuchLargerThanTheScores) {
  PromiseProblem problem = small_problem();
  problem.call.base.bias = LagBias::alibi({0.5});
  problem.bias = [](Index, Position lag) { return -0.5L * static_cast<long double>(std::abs(lag)); };
  for (Index i = 0; i < 4; ++i) problem.call.query_positions.push_back(1000000 + i);
  EXPECT_LE(expect_kept(problem, 0), 1e-5);
  PromiseProblem dense = problem;  // the largest of both together is taken out
  dense.call.dense.assign(4 * 50, 0.25f);
  dense.call.dense_row_stride = 50;
  EXPECT_LE(expect_kept(dense, 0), 1e-5);
  problem.call.base.path = Path::automatic;
  EXPECT_LE(expect_kept(problem, 1e-5), 1e-5);
}

}  // namespace
}  // namespace fastrope_test
