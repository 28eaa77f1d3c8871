// The polynomial path: equal to dense evaluation of its own definition, and never farther from exact
// attention than its certificate promises.
#include "fastrope/polynomial/attention.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"
#include "support/dense_polynomial.hpp"
#include "support/executors.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

/// The path with units of our choice.
Tensor<double> run_path(const Problem& problem, const std::vector<LowRankUnit>& units,
                        const AttentionInputs<double>& in) {
  const auto parts = [&](Workspace& workspace) {
    PackedKeys<double> packed(problem, workspace);
    ExactAttention<double> exact(problem, packed, workspace);
    PolynomialAttention<double> polynomial(problem, units, workspace);
    return std::tuple{packed, exact, polynomial};
  };
  Workspace counting;
  parts(counting);
  std::vector<std::byte> memory(counting.bytes());
  std::memset(memory.data(), 0xff, memory.size());  // NaN
  Workspace workspace(memory);
  auto [packed, exact, polynomial] = parts(workspace);
  Tensor<double> out = in.out;
  packed.pack(problem, in.k.view(), in.v.view());
  exact.prepare(problem);
  polynomial.run(problem, packed, exact, in.q.view(), out.view());
  return out;
}

/// q and k of a case, turned.
std::pair<Tensor<double>, Tensor<double>> rotated(const AttentionCase& c, const Problem& problem,
                                                  const AttentionInputs<double>& in) {
  Tensor<double> q = in.q, k = in.k;
  if (c.base.rope) {
    reference_rotate(
        *c.base.rope, [&](Index i) { return problem.grid.query_position(i); }, q);
    reference_rotate(
        *c.base.rope,
        [&](Index j) { return c.key_positions.empty() ? j : c.key_positions[static_cast<std::size_t>(j)]; },
        k);
  }
  return {q, k};
}

/// Shifts, axes, limits and a polynomial that nothing chose but chance: they need not be good for anything,
/// only be computed as they say. Heads of a key head share a unit or have their own.
std::vector<LowRankUnit> random_units(const AttentionCase& c, const Problem& problem, Inputs& random,
                                      Index chunk) {
  const Index d = c.shapes.d, group = problem.group(), shared = random.integer(0, 1) == 1 ? group : 1;
  std::vector<LowRankUnit> units;
  for (Index h = 0; h < c.shapes.heads; h += shared) {
    const Index variables = random.integer(0, std::min<Index>(d, 8));
    const auto numbers = [&](double sigma) {
      std::vector<double> list(static_cast<std::size_t>(d));
      for (double& x : list) x = sigma * random.normal();
      return list;
    };
    LowRankUnit unit{.heads = {h, h + shared},
                     .projection = {.key_shift = numbers(0.3), .query_shift = numbers(0.3)},
                     .coefficients = {1, 0.9, 0.6, 0.2, 0.05},
                     .monomials = nullptr,
                     .chunks = far_chunks<double>(problem, chunk)};
    // Above s nu.(k - mu) <= |s| |nu| |k - mu| for all keys that these tests have.
    unit.projection.weight_max = random.uniform(15, 20);
    for (Index l = 0; l < variables; ++l)
      for (std::vector<double>* axes : {&unit.projection.query_axes, &unit.projection.key_axes}) {
        const std::vector<double> axis = numbers(0.3);
        axes->insert(axes->end(), axis.begin(), axis.end());
      }
    std::vector<int> limits;
    for (Index l = 0, limit = 4; l < variables; ++l, limit = random.integer(1, limit))
      limits.push_back(static_cast<int>(limit));
    unit.monomials = std::make_shared<const MonomialSet>(limits);
    units.push_back(unit);
  }
  return units;
}

/// Compares the path with the dense evaluation of its units.
void expect_dense(const AttentionCase& c, Inputs& random, Index chunk) {
  const AttentionInputs<double> in(c.shapes, random);
  const Problem problem(c.shapes, c.options());
  ASSERT_EQ(polynomial_refusal(problem), "") << c;
  const std::vector<LowRankUnit> units = random_units(c, problem, random, chunk);
  const Tensor<double> out = run_path(problem, units, in);
  const auto [q, k] = rotated(c, problem, in);
  std::vector<Index> rank(static_cast<std::size_t>(c.shapes.n_k));  // of a key among the positions
  for (Index r = 0; r < c.shapes.n_k; ++r) rank[static_cast<std::size_t>(problem.grid.source(r))] = r;
  for (const LowRankUnit& unit : units) {
    std::vector<Index> far(static_cast<std::size_t>(c.shapes.n_q));
    for (const FarPairs& pairs : unit.chunks)
      std::fill(far.begin() + pairs.rows.begin, far.begin() + pairs.rows.end, pairs.far);
    for (Index h = unit.heads.begin; h < unit.heads.end; ++h) {
      const auto pair = [&](Index i, Index j) -> DensePair {  // j in the order of memory
        const Position key = c.key_positions.empty() ? j : c.key_positions[static_cast<std::size_t>(j)];
        if (!c.base.mask.allows(problem.grid.query_position(i) - key)) return {0};
        return {1, rank[static_cast<std::size_t>(j)] >= far[static_cast<std::size_t>(i)]};
      };
      const Tensor<double> expected =
          dense_polynomial_attention(head_of(q, h), head_of(k, problem.kv_head(h)),
                                     head_of(in.v, problem.kv_head(h)), problem.scale, unit, pair);
      for (Index i = 0; i < c.shapes.n_q; ++i) {
        // A polynomial by chance may be negative: a row whose weights cancel keeps no digits.
        double size = 0;
        for (Index m = 0; m < c.shapes.d_v; ++m) size = std::max(size, std::abs(expected(0, i, m)));
        for (Index m = 0; m < c.shapes.d_v; ++m)
          ASSERT_NEAR(out(h, i, m), expected(0, i, m), 1e-11 * std::max(1.0, size * size))
              << c << ", head " << h << ", row " << i << ", chunks of " << chunk;
      }
    }
  }
}

TEST(PolynomialAttention, EqualsDenseEvaluation) {
  Inputs random(1);
  for (const Mask mask :
       {Mask::full(), Mask::causal(), Mask::lags(5, Mask::kUnlimited), Mask::lags(-30, Mask::kUnlimited)}) {
    for (const auto& [n_q, n_k] : {std::pair{200, 200}, {70, 300}, {210, 150}, {1, 100}, {100, 33}}) {
      for (const Index chunk : {8, 48, 100, 1000}) {
        AttentionCase c{.shapes = {4, 2, n_q, n_k, 6, random.integer(1, 40)}};
        c.base.mask = mask;
        c.base.scale = 0.2;
        if (chunk != 48) c.base.rope = Rope{};
        expect_dense(c, random, chunk);
      }
    }
  }
}

TEST(PolynomialAttention, EqualsDenseEvaluationForEveryWidth) {
  Inputs random(2);
  for (const Index d : {1, 2, 3, 8, 16, 65}) {
    for (const Index d_v : {1, 2, 3, 4, 7, 8, 9, 17, 31, 64, 100}) {
      AttentionCase c{.shapes = {1, 1, 70, 150, d, d_v}};
      c.base.mask = Mask::causal();
      c.base.scale = 1 / static_cast<double>(d);
      expect_dense(c, random, 32);
    }
  }
}

TEST(PolynomialAttention, EqualsDenseEvaluationForExplicitPositions) {
  Inputs random(3);
  for (const Mask mask : {Mask::full(), Mask::causal()}) {
    for (const Index chunk : {16, 100}) {
      AttentionCase c{.shapes = {2, 1, 100, 200, 6, 5}};
      c.base.mask = mask;
      c.base.scale = 0.3;
      c.base.rope = Rope{};
      c.key_positions = shuffled_positions(random, 200, 40);
      for (Index i = 0; i < 100; ++i) c.query_positions.push_back(60 + 2 * i + (i > 50 ? 20 : 0));
      expect_dense(c, random, chunk);
    }
  }
}

/// One point of a sweep: how much of the promise is used.
struct Promise {
  double observed = 0;
  double promised = 0;
};

template <class Real>
Promise promise(const AttentionCase& c, const AttentionInputs<Real>& in) {
  AttentionInputs<Real> run = in;
  const Report report = attend(run.q.view(), run.k.view(), run.v.view(), run.out.view(), c.options());
  const Reference reference = run.reference(c);
  Promise worst;
  for (Index h = 0; h < c.shapes.heads; ++h) {
    const HeadReport& head = report.heads[static_cast<std::size_t>(h)];
    EXPECT_EQ(head.path, Path::polynomial);
    EXPECT_LE(head.error_bound, c.base.tolerance);
    const Index kv = h / (c.shapes.heads / c.shapes.kv_heads);
    const double size = max_abs(TensorView<const Real>(run.v.view().head(kv)));
    const double observed = max_abs_difference(TensorView<const Real>(run.out.view().head(h)),
                                               TensorView<const double>(reference.out.view().head(h))) /
                            size;
    EXPECT_LE(observed, head.error_bound) << c << ", head " << h << ", tolerance " << c.base.tolerance
                                          << ", entries " << head.entry_bound << ", degree " << head.degree;
    if (observed * worst.promised >= worst.observed * (head.error_bound))
      worst = {observed, head.error_bound};
  }
  return worst;
}

template <class Real>
class PolynomialPromiseTest : public testing::Test {};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(PolynomialPromiseTest, Reals);

/// Sweeps radii, widths, lengths and masks. `tolerances` are those that the radii allow.
TYPED_TEST(PolynomialPromiseTest, RadiiAndWidths) {
  constexpr bool kDouble = std::is_same_v<TypeParam, double>;
  double used = 0;
  for (const double radius : {0.01, 0.3, 1.0, 2.0, 3.5}) {
    for (const double tolerance : {3e-1, 1e-2, 1e-3, 1e-5, 1e-9}) {
      if (!kDouble && (tolerance < 1e-3 || radius > 2)) continue;
      for (const auto& [d, n_q, n_k] : {std::tuple{1, 97, 97}, {2, 200, 200}, {4, 64, 257}, {8, 150, 100}}) {
        for (const Mask mask : {Mask::full(), Mask::causal()}) {
          if (!kDouble && (tolerance < 1e-3 || radius > 2)) continue;
          if (d == 8 && (tolerance < 1e-5 || radius > 2)) continue;  // ranks beyond 10^5
          AttentionCase c{.shapes = {2, 1, n_q, n_k, d, 3}};
          c.base.mask = mask;
          c.base.scale = 1.0;
          c.base.tolerance = tolerance;
          c.base.path = Path::polynomial;
          if (d % 2 == 0) c.base.rope = Rope{};
          Inputs random(4);
          AttentionInputs<TypeParam> in(c.shapes, random);
          in.q = random.sphere<TypeParam>(2, n_q, d, std::sqrt(radius));
          in.k = random.sphere<TypeParam>(1, n_k, d, std::sqrt(radius));
          const Promise p = promise(c, in);
          used = std::max(used, p.observed / p.promised);
        }
      }
    }
  }
  EXPECT_GT(used, 0.05) << "promises that loose say nothing";
  testing::Test::RecordProperty("largest_share_of_the_promise", std::to_string(used));
}

TYPED_TEST(PolynomialPromiseTest, ScalesOverSixDecades) {
  for (const double decade : {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0}) {
    for (const double sign : {1.0, -1.0}) {
      AttentionCase c{.shapes = {2, 2, 150, 150, 6, 4}};
      c.base.mask = Mask::causal();
      c.base.tolerance = 1e-3;
      c.base.path = Path::polynomial;
      c.base.rope = Rope{};
      c.base.scale = sign * 0.5;
      Inputs random(5);
      AttentionInputs<TypeParam> in(c.shapes, random);
      in.q = random.sphere<TypeParam>(2, 150, 6, std::pow(10.0, decade));
      in.k = random.sphere<TypeParam>(2, 150, 6, std::pow(10.0, -decade));
      promise(c, in);
    }
  }
}

TYPED_TEST(PolynomialPromiseTest, OffsetsThatTheShiftsTakeOut) {
  // Common means of length up to 300: logits of thousands, of which the means explain nearly all. Their
  // rounding may leave too little of the tolerance; then the plan must say so.
  int kept = 0, refused = 0;
  for (const double key_mean : {0.0, 1.0, 30.0, 300.0}) {
    for (const double query_mean : {0.0, 1.0, 30.0, 300.0}) {
      for (const Mask mask : {Mask::full(), Mask::causal()}) {
        for (const double tolerance : {1e-2, 1e-3, 1e-4, 3e-5}) {
          AttentionCase c{
              .shapes = {2, 1, 180, 180, 4, 4},
              .text = ", means " + std::to_string(query_mean) + " and " + std::to_string(key_mean)};
          c.base.mask = mask;
          c.base.tolerance = tolerance;
          c.base.path = Path::polynomial;
          c.base.scale = 0.5;
          Inputs random(6);
          AttentionInputs<TypeParam> in(c.shapes, random);
          in.q = random.common_mean<TypeParam>(2, 180, 4, query_mean, 0.3);
          in.k = random.common_mean<TypeParam>(1, 180, 4, key_mean, 0.3);
          try {
            promise(c, in);
            ++kept;
          } catch (const fastrope::Error& error) {
            EXPECT_THAT(error.what(), testing::HasSubstr("rounding"));
            ++refused;
          }
        }
      }
    }
  }
  std::cout << kept << " promises kept, " << refused << " refused\n";
  EXPECT_GT(kept, refused);
}

TYPED_TEST(PolynomialPromiseTest, ExplicitPositionsAndGroupedHeads) {
  for (const auto& [heads, kv_heads] : {std::pair{1, 1}, {6, 2}, {4, 4}}) {
    for (const Mask mask : {Mask::full(), Mask::causal()}) {
      AttentionCase c{.shapes = {heads, kv_heads, 100, 220, 6, 7}};
      c.base.mask = mask;
      c.base.tolerance = 1e-3;
      c.base.path = Path::polynomial;
      c.base.rope = Rope{};
      c.base.scale = 0.1;
      Inputs random(7);
      c.key_positions = shuffled_positions(random, 220, 1000);
      for (Index i = 0; i < 100; ++i) c.query_positions.push_back(1005 + 2 * i);
      promise(c, AttentionInputs<TypeParam>(c.shapes, random));
    }
  }
}

TYPED_TEST(PolynomialPromiseTest, ThreadsDoNotChangeABit) {
  AttentionCase c{.shapes = {6, 2, 150, 220, 6, 7}};
  c.base.mask = Mask::causal();
  c.base.tolerance = 1e-3;
  c.base.path = Path::polynomial;
  c.base.scale = 0.1;
  const AttentionInputs<TypeParam> in(c.shapes, 8);
  std::vector<Tensor<TypeParam>> outs;
  for (const Index n : {1, 2, 3}) {
    c.base.executor = threads(n);
    outs.push_back(in.out);
    attend(in.q.view(), in.k.view(), in.v.view(), outs.back().view(), c.options());
    EXPECT_EQ(outs.back().values, outs.front().values) << n << " threads";
  }
}

TEST(PolynomialPromise, IsAlmostReachedByTheWorstInputs) {
  // Keys where the polynomial is most above and most below exp, with weights that balance and values of
  // opposite sign: the output is off by delta itself. Queries +-1 and keys at both ends leave nothing to
  // shift.
  for (const double radius : {0.5, 1.0, 2.0}) {
    AttentionCase c{.shapes = {1, 1, 2, 400, 1, 1}};
    c.base.scale = 1.0;
    c.base.tolerance = 1e-2;
    c.base.path = Path::polynomial;
    AttentionInputs<double> in(c.shapes, 10);
    in.q.values = {1, -1};
    in.k.values.assign(400, 0.0);
    in.k.values[0] = radius;
    in.k.values[1] = -radius;
    const HeadReport head = make_plan(in.q.view(), in.k.view(), in.v.view(), c.options()).report().heads[0];
    const auto polynomial = ExpPolynomial::minimax(head.entry_bound, head.degree);
    double high = 0, low = 0;  // where P(x) e^-x - 1 is largest and least
    const auto error = [&](double x) { return polynomial(x) * std::exp(-x) - 1; };
    for (double x = -radius; x <= radius; x += radius / 5000) {
      if (error(x) > error(high)) high = x;
      if (error(x) < error(low)) low = x;
    }
    const auto highs = static_cast<Index>(398 / (1 + std::exp(high - low)));  // highs e^high = lows e^low
    for (Index j = 0; j < 400; ++j) {
      if (j >= 2) in.k(0, j, 0) = j < 2 + highs ? high : low;
      in.v(0, j, 0) = j < 2 ? 0 : j < 2 + highs ? 1 : -1;
    }
    const Promise p = promise(c, in);
    EXPECT_GT(p.observed, 0.9 * p.promised) << "radius " << radius;
  }
}

TEST(PolynomialRefusal, SaysWhatDoesNotSeparate) {
  Inputs random(9);
  const auto refusal = [](const AttentionCase& c) {
    return polynomial_refusal(Problem(c.shapes, c.options()));
  };
  const AttentionCase plain{.shapes = {2, 1, 20, 30, 6, 4}};
  EXPECT_EQ(refusal(plain), "");
  const auto expect_refused = [&](auto&& set, const char* text) {
    AttentionCase c = plain;
    set(c);
    EXPECT_THAT(refusal(c), testing::HasSubstr(text));
  };
  expect_refused([&](AttentionCase& c) { c.base.weights = random_weights(random, 6, 4, 40); }, "weights");
  expect_refused([&](AttentionCase& c) { set_alibi(c, random); }, "lag bias");
  expect_refused([&](AttentionCase& c) { c.base.softcap = 10; }, "softcap");
  expect_refused([&](AttentionCase& c) { set_sinks(c, random); }, "sinks");
  expect_refused([&](AttentionCase& c) { set_dense(c, random, true, true, 9); }, "dense bias");
  expect_refused([&](AttentionCase& c) { c.base.mask = Mask::sliding_window(15); }, "window");
  expect_refused([&](AttentionCase& c) { c.query_positions = shuffled_positions(random, 20, 0); }, "ascend");
  // A window as wide as the sequence drops nothing.
  AttentionCase wide = plain;
  wide.base.mask = Mask::sliding_window(30);
  EXPECT_EQ(refusal(wide), "");
}

}  // namespace
}  // namespace fastrope_test
