#include "fastrope/polynomial/rounding.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "fastrope/plan/exp_polynomial.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

/// What the path itself makes of queries x and keys y [heads 1, n, variables] with values v, by features of
/// every degree of p.
template <class Real>
Tensor<Real> attend(const ExpPolynomial& p, const Tensor<Real>& x, const Tensor<Real>& y,
                    const Tensor<Real>& v, double allowed = std::numeric_limits<double>::infinity(),
                    Index* repaired = nullptr) {
  const Shapes shapes{1, 1, x.rows, y.rows, x.cols, v.cols};
  Options options;
  options.scale = 1.0;
  const Problem problem(shapes, options);
  const std::vector<LowRankUnit> units = {
      {.heads = {0, 1},
       .projection = Projection::identity(x.cols, 1),
       .coefficients = {p.coefficients().begin(), p.coefficients().end()},
       .monomials = std::make_shared<const MonomialSet>(simplex_limits(x.cols, p.degree())),
       .chunks = {{{0, x.rows}, y.rows}},
       .allowed = allowed}};
  Tensor<Real> out(1, x.rows, v.cols);
  const auto parts = [&](Workspace& workspace, auto&& use) {
    PackedKeys<Real> packed(problem, workspace);
    ExactAttention<Real> exact(problem, packed, workspace);
    PolynomialAttention<Real> polynomial(problem, units, workspace);
    use(packed, exact, polynomial);
  };
  std::vector<std::byte> memory(
      Workspace::bytes_of([&](Workspace& workspace) { parts(workspace, [](auto&...) {}); }));
  Workspace workspace(memory);
  parts(workspace, [&](auto& packed, auto& exact, auto& polynomial) {
    packed.pack(problem, y.view(), v.view());
    exact.prepare(problem);
    polynomial.run(problem, packed, exact, x.view(), out.view(), repaired);
  });
  return out;
}

// The worst that was found: all keys the same, opposite to the query, so that sums are off in one direction.
// Exactly, the output is the value.
TEST(ExpectedRounding, CoversIdenticalKeysOppositeToTheQuery) {
  Inputs inputs(1);
  constexpr Index kTrials = 20;
  double closest = 0;
  for (const double radius : {1.0, 2.0, 4.0})
    for (const Index variables : {1, 2, 3})
      for (const Index keys : {64, 128, 2048, 16384, 131072}) {
        if (keys > 16384 && variables > 1) continue;  // slow
        const ExpPolynomial p = ExpPolynomial::fit(radius, 1e-2);
        double worst = 0;
        for (Index trial = 0; trial < kTrials; ++trial) {
          const Tensor<float> x = inputs.sphere<float>(1, 1, variables, std::sqrt(radius));
          Tensor<float> y(1, keys, variables), v(1, keys, 1);
          const auto value = static_cast<float>(inputs.uniform(0.5, 1));
          for (Index j = 0; j < keys; ++j) {
            for (Index l = 0; l < variables; ++l) y(0, j, l) = -x(0, 0, l);
            v(0, j, 0) = value;
          }
          worst = std::max(worst, std::abs(static_cast<double>(attend(p, x, y, v)(0, 0, 0) / value - 1)));
        }
        const auto rank = static_cast<Index>(rank_of(simplex_limits(variables, p.degree())));
        const double estimate = expected_rounding<float>(p.coefficients(), rank, keys, radius, -radius);
        EXPECT_LE(worst, estimate) << radius << ' ' << variables << ' ' << keys;
        closest = std::max(closest, worst / estimate);
      }
  std::cout << "worst / estimate: " << closest << "\n";
  EXPECT_GT(closest, 0.1);  // not far off either
}

template <class Real>
class RowRounding : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(RowRounding, Reals);

TYPED_TEST(RowRounding, IsWithinTheLeastThatARowMayBeAllowed) {
  // Rows of one tile, so that all are kept or computed again; the oracle is the same polynomial in long
  // double.
  using Real = TypeParam;
  Inputs inputs(2);
  double closest = 0;
  for (int turn = 0; turn < 60; ++turn) {
    const double radius = inputs.uniform(0.2, 5);
    const Index variables = inputs.integer(1, 4), keys = inputs.integer(1, 1500), d_v = inputs.integer(1, 20);
    const ExpPolynomial p = ExpPolynomial::fit(radius, 1e-2);
    Tensor<Real> x = inputs.sphere<Real>(1, 40, variables, std::sqrt(radius)), y(1, keys, variables),
                 v(1, keys, d_v);
    // Keys at random, or all opposite to the first query; values of any sign or one.
    y = inputs.sphere<Real>(1, keys, variables, std::sqrt(radius));
    if (turn % 2 == 0)
      for (Index j = 0; j < keys; ++j)
        for (Index l = 0; l < variables; ++l) y(0, j, l) = -x(0, 0, l);
    for (Real& value : v.values) value = static_cast<Real>(turn % 3 == 0 ? 0.7 : inputs.uniform(-1, 1));
    double size = 0;
    for (const Real value : v.values) size = std::max(size, std::abs(static_cast<double>(value)));

    double low = -50, promise = 0;
    Tensor<Real> out;
    for (double high = 4; high - low > 0.02;) {
      const double middle = (low + high) / 2;
      Index repaired = 0;
      Tensor<Real> some = attend(p, x, y, v, std::exp2(middle), &repaired);
      if (repaired == 0) {
        promise = std::exp2(middle);
        out = std::move(some);
      }
      (repaired == 0 ? high : low) = middle;
    }
    ASSERT_GT(promise, 0);
    double observed = 0;
    for (Index i = 0; i < x.rows; ++i) {
      std::vector<long double> sums(static_cast<std::size_t>(d_v + 1));
      for (Index j = 0; j < keys; ++j) {
        long double entry = 0, weight = 0;
        for (Index l = 0; l < variables; ++l) entry += static_cast<long double>(x(0, i, l)) * y(0, j, l);
        for (std::size_t t = p.coefficients().size(); t-- > 0;) weight = weight * entry + p.coefficients()[t];
        sums.back() += weight;
        for (Index m = 0; m < d_v; ++m) sums[static_cast<std::size_t>(m)] += weight * v(0, j, m);
      }
      for (Index m = 0; m < d_v; ++m)
        observed = std::max(
            observed,
            std::abs(static_cast<double>(out(0, i, m) - sums[static_cast<std::size_t>(m)] / sums.back())) /
                size);
    }
    // Queries are scaled by log2(e) and back, which rounds the entries; the result is rounded once.
    const double others = std::numeric_limits<Real>::epsilon() * (3 * radius + 1);
    EXPECT_LE(observed, promise + others) << turn;
    closest = std::max(closest, observed / (promise + others));
  }
  std::cout << "observed / promised: " << closest << "\n";
  EXPECT_GT(closest, 0.02);
}

}  // namespace
}  // namespace fastrope_test
