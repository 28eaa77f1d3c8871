#include "fastrope/polynomial/rounding.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>
#include <memory>
#include <vector>

#include "fastrope/polynomial/attention.hpp"
#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

/// What the path itself makes of queries x and keys y [heads 1, n, variables] with values v, by features of
/// every degree of p.
template <class Real>
Tensor<Real> attend(const ExpPolynomial& p, const Tensor<Real>& x, const Tensor<Real>& y,
                    const Tensor<Real>& v) {
  const Shapes shapes{1, 1, x.rows, y.rows, x.cols, v.cols};
  Options options;
  options.scale = 1.0;
  const Problem problem(shapes, options);
  const std::vector<LowRankUnit> units = {
      {{0, 1},
       Projection::identity(x.cols, 1),
       {p.coefficients().begin(), p.coefficients().end()},
       std::make_shared<const MonomialSet>(simplex_limits(x.cols, p.degree())),
       {{{0, x.rows}, y.rows}}}};
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
    polynomial.run(problem, packed, exact, x.view(), out.view());
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
        const double estimate = expected_rounding<float>(p.coefficients(), rank, radius, -radius);
        EXPECT_LE(worst, estimate) << radius << ' ' << variables << ' ' << keys;
        closest = std::max(closest, worst / estimate);
      }
  std::cout << "worst / estimate: " << closest << "\n";
  EXPECT_GT(closest, 0.01);  // not far off either
}

}  // namespace
}  // namespace fastrope_test
