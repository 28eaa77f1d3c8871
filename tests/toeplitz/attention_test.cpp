// The Toeplitz path: equal to dense evaluation of the same polynomial, equal to the separable route where
// both apply, and never farther from exact attention than its certificate promises.
#include "fastrope/toeplitz/attention.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"
#include "support/dense_polynomial.hpp"
#include "support/executors.hpp"
#include "support/look_at.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

/// The path alone, with a polynomial of our choice: every row by transforms, but for those that the heads do
/// not allow; repaired: [heads], where wanted.
template <class Real>
Tensor<Real> run_path(const Problem& problem, const std::vector<ToeplitzHead>& heads,
                      const AttentionInputs<Real>& in, Index* repaired = nullptr) {
  const ToeplitzSegments<Real> segments(problem.shapes.n_q, problem.shapes.n_k, allowed_support(problem));
  const auto parts = [&](Workspace& workspace) {
    PackedKeys<Real> packed(problem, workspace);
    ExactAttention<Real> exact(problem, packed, workspace);
    ToeplitzAttention<Real> toeplitz(problem, &segments, heads, workspace);
    return std::tuple{packed, exact, toeplitz};
  };
  Workspace counting;
  parts(counting);
  std::vector<std::byte> memory(counting.bytes());
  Workspace workspace(memory);
  auto [packed, exact, toeplitz] = parts(workspace);
  Tensor<Real> out = in.out;
  packed.pack(problem, in.k.view(), in.v.view());
  exact.prepare(problem);
  toeplitz.run(problem, packed, exact, in.q.view(), out.view(), repaired);
  return out;
}

/// Every monomial of the polynomial in the rows' own variables, or those of the weights' support.
LowRankUnit unit_of(Index head, Projection projection, const ExpPolynomial& polynomial, Index variables) {
  const auto c = polynomial.coefficients();
  return {.heads = {head, head + 1},
          .projection = std::move(projection),
          .coefficients = {c.begin(), c.end()},
          .monomials = std::make_shared<const MonomialSet>(simplex_limits(variables, polynomial.degree())),
          .chunks = {}};
}

/// The heads of a problem with polynomials of relative error `fit`, keys shifted by chance.
template <class Real>
std::vector<ToeplitzHead> make_heads(const Problem& problem, const AttentionInputs<Real>& in, double fit,
                                     Inputs& random) {
  const Index d = problem.shapes.d;
  std::vector<ToeplitzHead> heads;
  for (Index h = 0; h < problem.shapes.heads; ++h) {
    auto look = look_at(problem, in, problem.kv_head(h));
    const Index query = h % problem.group();
    if (problem.weights) {
      const WeightedBounds weighted =
          weighted_bounds(look, query, problem, std::numeric_limits<Real>::epsilon());
      heads.emplace_back(problem, unit_of(h, Projection::identity(d, weighted.balance),
                                          ExpPolynomial::fit(weighted.radius, fit),
                                          static_cast<Index>(problem.weights->support().size())));
      continue;
    }
    Projection projection = Projection::identity(d, random.uniform(0.5, 2));
    double shift = 0;
    for (double& x : projection.key_shift) {
      x = 0.3 * random.normal();
      shift += x * x;
    }
    const double radius =
        std::abs(problem.scale) * look.query_norm(query) * (look.key_norm() + std::sqrt(shift));
    heads.emplace_back(problem, unit_of(h, std::move(projection), ExpPolynomial::fit(radius, fit), d));
  }
  return heads;
}

TEST(ToeplitzAttention, GeneralWeightsEqualDensePolynomialAttention) {
  Inputs random(1);
  AttentionCase c{.shapes = {1, 1, 512, 512, 4, 4}};
  c.base.weights = random_weights(random, 4, 8, 511);
  AttentionInputs<double> in(c.shapes, random);
  in.q = random.sphere<double>(1, 512, 4, 0.7);
  in.k = random.sphere<double>(1, 512, 4, 0.7);
  const Problem problem(c.shapes, c.options());
  for (const double fit : {0.3, 0.01, 0.001}) {
    const auto heads = make_heads(problem, in, fit, random);
    const std::vector<double>& coefficients = heads[0].low_rank.coefficients;
    const int degree = static_cast<int>(coefficients.size()) - 1;
    const Reference dense = reference_attention(in.q.view(), in.k.view(), in.v.view(), c.options(), {},
                                                polynomial_kernel(coefficients));
    EXPECT_EQ(static_cast<double>(heads[0].low_rank.monomials->rank()), rank_of(simplex_limits(8, degree)));
    EXPECT_LE(max_abs_difference(run_path(problem, heads, in).view(), dense.out.view()), 1e-12)
        << "degree " << degree;
    EXPECT_GT(max_abs_difference(in.reference(c).out.view(), dense.out.view()), 1e-9);
  }
}

TEST(ToeplitzAttention, ThePlanRunsTheSamePolynomial) {
  // The public route: the plan's polynomial is the minimax one of its degree on the bound it reports.
  Inputs random(2);
  AttentionCase c{.shapes = {1, 1, 512, 512, 4, 4}};
  c.base.weights = random_weights(random, 4, 8, 511);
  c.base.path = Path::toeplitz;
  c.base.tolerance = 1e-2;
  AttentionInputs<double> in(c.shapes, random);
  in.q = random.sphere<double>(1, 512, 4, 0.7);
  in.k = random.sphere<double>(1, 512, 4, 0.7);
  const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
  const auto p = ExpPolynomial::minimax(report.heads[0].entry_bound, report.heads[0].degree);
  const auto coefficients = p.coefficients();
  const Reference dense = reference_attention(in.q.view(), in.k.view(), in.v.view(), c.options(), {},
                                              polynomial_kernel({coefficients.begin(), coefficients.end()}));
  EXPECT_LE(max_abs_difference(in.out.view(), dense.out.view()), 1e-12);
}

TEST(ToeplitzAttention, SeparablePositionsEqualDenseEvaluation) {
  Inputs random(3);
  const auto expect = [&](AttentionCase c) {
    AttentionInputs<double> in(c.shapes, random);
    in.k = random.common_mean<double>(c.shapes.kv_heads, c.shapes.n_k, c.shapes.d, 2.0, 0.7);
    c.base.scale = 0.2;
    const Problem problem(c.shapes, c.options());
    ASSERT_EQ(toeplitz_refusal(problem), "") << c;
    const auto heads = make_heads(problem, in, 0.02, random);
    const Tensor<double> out = run_path(problem, heads, in);
    Tensor<double> q = in.q, k = in.k;
    if (c.base.rope) {
      reference_rotate(
          *c.base.rope, [&](Index i) { return c.shapes.n_k - c.shapes.n_q + i; }, q);
      reference_rotate(
          *c.base.rope, [&](Index j) { return j; }, k);
    }
    for (Index h = 0; h < c.shapes.heads; ++h) {
      double largest = -INFINITY;  // bias among the allowed lags
      for (Index i = 0; i < c.shapes.n_q; ++i)
        for (Index j = 0; j < c.shapes.n_k; ++j)
          if (const Position lag = c.shapes.n_k - c.shapes.n_q + i - j; c.base.mask.allows(lag))
            largest = std::max(largest, c.bias ? c.bias(h, lag) : 0);
      double all = 0;  // a row's factors, to leave out rows that keep no digits
      const auto factor = [&](Index i, Index j) {
        const Position lag = c.shapes.n_k - c.shapes.n_q + i - j;
        return c.base.mask.allows(lag) ? std::exp((c.bias ? c.bias(h, lag) : 0) - largest) : 0.0;
      };
      const Tensor<double> expected = dense_polynomial_attention(
          head_of(q, h), head_of(k, problem.kv_head(h)), head_of(in.v, problem.kv_head(h)), problem.scale,
          heads[static_cast<std::size_t>(h)].low_rank,
          [&](Index i, Index j) { return DensePair{factor(i, j)}; });
      for (Index i = 0; i < c.shapes.n_q; ++i) {
        all = 0;
        for (Index j = 0; j < c.shapes.n_k; ++j) all += factor(i, j);
        if (all == 0) continue;  // the exact path's rows
        // The transforms' error is relative to the norms of generator and values, some 20 here.
        for (Index m = 0; m < c.shapes.d_v; ++m)
          EXPECT_NEAR(out(h, i, m), expected(0, i, m), 2e-13 * (1 + 20 / all)) << c << ", row " << i;
      }
    }
  };
  for (const Mask mask :
       {Mask::full(), Mask::causal(), Mask::sliding_window(30), Mask::lags(-20, 25), Mask::lags(-60, -3)}) {
    for (const auto& [n_q, n_k] : {std::pair{150, 150}, {40, 170}, {170, 40}, {1, 50}}) {
      AttentionCase plain{.shapes = {2, 1, n_q, n_k, 4, 3}};
      plain.base.mask = mask;
      expect(plain);
      AttentionCase rotated = plain;
      rotated.base.rope = Rope{};
      expect(rotated);
      for (const bool bidirectional : {true, false}) {
        AttentionCase t5 = rotated;
        set_t5(t5, random, bidirectional);
        expect(t5);
      }
      AttentionCase alibi = plain;
      set_alibi(alibi, random);
      expect(alibi);
      AttentionCase table = rotated;
      set_table(table, random, 2, 170);
      expect(table);
    }
  }
}

TEST(ToeplitzAttention, EqualsDenseEvaluationForPrimesAndPowersOfTwo) {
  // Every structure, square and rectangular both ways, transforms for every row.
  Inputs random(19);
  std::vector<Index> sizes{1, 4, 8, 16, 32, 64, 128, 256};
  for (Index n = 2; n < 300; ++n) {
    bool prime = true;
    for (Index p = 2; p * p <= n; ++p) prime = prime && n % p != 0;
    if (prime) sizes.push_back(n);
  }
  for (const std::string structure :
       {"full", "causal", "window", "T5", "T5 both ways", "ALiBi", "table", "W 2", "W 8", "W 32"}) {
    for (const Index n : sizes) {
      const bool general = structure[0] == 'W';
      const Index other = 1 + random.integer(0, 299);
      for (const auto& [n_q, n_k] : {std::pair{n, n}, {n, other}, {other, n}}) {
        AttentionCase c{.shapes = {1, 1, n_q, n_k, general ? 6 : 2, 1}};
        c.base.scale = 1.0;
        if (structure == "causal" || structure == "T5") c.base.mask = Mask::causal();
        if (structure == "window") c.base.mask = Mask::sliding_window(1 + n / 3);
        if (structure.starts_with("T5")) set_t5(c, random, structure != "T5");
        if (structure == "ALiBi") set_alibi(c, random);
        if (structure == "table") set_table(c, random, 1, 300);
        const Index entries = general ? std::stoi(structure.substr(2)) : 0;
        if (general) c.base.weights = random_weights(random, 6, entries, 300);
        AttentionInputs<double> in(c.shapes, random);
        in.q = random.sphere<double>(1, n_q, c.shapes.d, 0.5);
        in.k = random.sphere<double>(1, n_k, c.shapes.d, 0.5);
        const Problem problem(c.shapes, c.options());
        // A polynomial of our own, positive on the entries: |x| <= 0.25 |S|^(1/2) or so.
        std::vector<double> coefficients = {8, 1, 0.5};
        if (entries == 32) coefficients.pop_back();
        const auto degree = static_cast<int>(coefficients.size()) - 1;
        const LowRankUnit unit{
            .heads = {0, 1},
            .projection = Projection::identity(c.shapes.d, 1.5),
            .coefficients = coefficients,
            .monomials = std::make_shared<const MonomialSet>(simplex_limits(general ? entries : 2, degree)),
            .chunks = {}};
        const std::vector<ToeplitzHead> heads{ToeplitzHead(problem, unit)};
        const Tensor<double> out = run_path(problem, heads, in);
        const auto of_lag = [&, corner = n_k - 1](Index i, Index j) {
          return heads[0].generator[static_cast<std::size_t>(i - j + corner)];
        };
        const Tensor<double> dense =
            general ? reference_attention(in.q.view(), in.k.view(), in.v.view(), c.options(), {},
                                          polynomial_kernel(coefficients))
                          .out
                    : dense_polynomial_attention(in.q, in.k, in.v, 1.0, unit,
                                                 [&](Index i, Index j) { return DensePair{of_lag(i, j)}; });
        for (Index i = 0; i < n_q; ++i) {
          double all = 0;
          for (Index j = 0; j < n_k; ++j) all += of_lag(i, j);
          if (all < 1e-3) continue;  // such rows are the exact path's
          ASSERT_NEAR(out(0, i, 0), dense(0, i, 0), 1e-11 * std::max(1.0, 1 / all))
              << c << ", " << structure << ", row " << i;
        }
      }
    }
  }
}

TEST(ToeplitzAttention, SharesGeneratorsThatAreEqual) {
  // RoPE as a family has four entries a pair, of which two and two are the same up to a sign.
  Inputs random(20);
  AttentionCase c{.shapes = {1, 1, 90, 120, 4, 2}};
  c.base.scale = 1.0;
  c.base.weights = RelativeWeights::rope(Rope{}, 4, -200, 200);
  AttentionInputs<double> in(c.shapes, random);
  in.q = random.sphere<double>(1, 90, 4, 0.5);
  in.k = random.sphere<double>(1, 120, 4, 0.5);
  const Problem problem(c.shapes, c.options());
  const ToeplitzHead head(problem, unit_of(0, Projection::identity(4, 1), ExpPolynomial::fit(0.6, 1e-3), 8));
  const int degree = head.low_rank.monomials->degree();
  EXPECT_EQ(static_cast<double>(head.terms.size()), rank_of(simplex_limits(4, degree)));
  std::size_t terms = 0;
  for (const SharedGenerator& shared : head.terms) terms += shared.terms.size();
  EXPECT_EQ(static_cast<double>(terms), rank_of(simplex_limits(8, degree)));
  const Reference dense = reference_attention(in.q.view(), in.k.view(), in.v.view(), c.options(), {},
                                              polynomial_kernel(head.low_rank.coefficients));
  EXPECT_LE(max_abs_difference(run_path(problem, {head}, in).view(), dense.out.view()), 1e-11);
}

TEST(ToeplitzAttention, FewerMonomialsInOtherAxesEqualDenseEvaluation) {
  // What the planner finds for rows of decaying directions: shifts, axes of its own, a part of the simplex.
  // It asks for no query shift here, but the path would compute one too: a weight for each key.
  Inputs random(14);
  for (const bool may_weigh_keys : {false, true}) {
    for (const Mask mask : {Mask::full(), Mask::causal(), Mask::sliding_window(30)}) {
      AttentionCase c{.shapes = {4, 2, 120, 150, 6, 3}};
      c.base.mask = mask;
      c.base.scale = 0.5;
      set_t5(c, random, true);
      AttentionInputs<double> in(c.shapes, random);
      in.q = random.common_mean<double>(4, 120, 6, 2.0, 0.6);
      in.k = random.common_mean<double>(2, 150, 6, 4.0, 0.6);
      for (auto* x : {&in.q, &in.k})
        for (Index h = 0; h < x->heads; ++h)
          for (Index i = 0; i < x->rows; ++i)
            for (Index m = 0; m < 6; ++m) (*x)(h, i, m) *= std::exp2(static_cast<double>(-m));
      const Problem problem(c.shapes, c.options());
      std::vector<ToeplitzHead> heads;
      std::vector<double> radii;
      for (Index h = 0; h < 4; ++h) {
        auto look = look_at(problem, in, h / 2);
        const std::vector<FarPairs> all = {{{0, 120}, 150}};
        const LowRankRequest request{.scale = 0.5,
                                     .tolerance = 0.05,
                                     .d_v = 3,
                                     .may_weigh_keys = may_weigh_keys,
                                     .factorisations = factorisations(),
                                     .arithmetic = Arithmetic::float64};
        std::string reason;
        const auto fit = look.fit({h % 2, h % 2 + 1}, all, request, reason);
        ASSERT_TRUE(fit) << reason;
        EXPECT_LT(fit->rank, 0.8 * fit->simplex_rank);
        EXPECT_NE(fit->key_shift, Centre::none);
        EXPECT_EQ(fit->query_shift != Centre::none, may_weigh_keys);
        const auto p = fit->polynomial.coefficients();
        heads.emplace_back(problem, LowRankUnit{.heads = {h, h + 1},
                                                .projection = fit->projection,
                                                .coefficients = {p.begin(), p.end()},
                                                .monomials = std::make_shared<const MonomialSet>(fit->limits),
                                                .chunks = {}});
        radii.push_back(fit->radius);
      }
      const Tensor<double> out = run_path(problem, heads, in);
      for (Index h = 0; h < 4; ++h) {
        const LowRankUnit& unit = heads[static_cast<std::size_t>(h)].low_rank;
        const auto factor = [&, &t = heads[static_cast<std::size_t>(h)].generator](Index i, Index j) {
          return t[static_cast<std::size_t>(i - j + 149)];
        };
        const Tensor<double> expected =
            dense_polynomial_attention(head_of(in.q, h), head_of(in.k, h / 2), head_of(in.v, h / 2), 0.5,
                                       unit, [&](Index i, Index j) { return DensePair{factor(i, j)}; });
        // The path's weights of keys are at most 1; transforms are off by epsilon of the norms of generator
        // and values, sqrt(120 + 150) and sqrt(150), times the size of the terms, about e^R. A denominator
        // has e^-R of each key's weight.
        const Projection& projection = unit.projection;
        const double radius = radii[static_cast<std::size_t>(h)];
        for (Index i = 0; i < 120; ++i) {
          double denominator = 0;
          for (Index j = 0; j < 150; ++j) {
            double exponent = -projection.weight_max;
            for (std::size_t m = 0; m < 6; ++m)
              exponent += 0.5 * projection.query_shift[m] *
                          (in.k(h / 2, j, static_cast<Index>(m)) - projection.key_shift[m]);
            EXPECT_LE(exponent, 0);
            denominator += factor(i, j) * std::exp(exponent - radius);
          }
          if (denominator == 0) continue;  // the exact path's rows
          const double error = 10 * std::numeric_limits<double>::epsilon() * std::sqrt(270.0 * 150.0) *
                               std::exp(radius) / denominator;
          EXPECT_LE(error, 1e-9);
          for (Index m = 0; m < 3; ++m)
            EXPECT_NEAR(out(h, i, m), expected(0, i, m), error) << c << ", head " << h << ", row " << i;
        }
      }
    }
  }
}

TEST(ToeplitzAttention, RopeAsAFamilyEqualsRopeAsARotation) {
  // The paper's algorithm for RoPE over the full index set, against separable features and against rotation
  // done by the exact path.
  for (const Rope& rope : {Rope{}, Rope{.pairing = RopePairing::half_split}, Rope{.rotary_dim = 2}}) {
    for (const Mask mask : {Mask::full(), Mask::causal()}) {
      AttentionCase c{.shapes = {1, 1, 200, 200, 4, 3}};
      c.base.mask = mask;
      c.base.tolerance = 1e-10;
      Inputs random(4);
      AttentionInputs<double> in(c.shapes, random);
      in.q = random.sphere<double>(1, 200, 4, 0.3);
      in.k = random.sphere<double>(1, 200, 4, 0.3);
      AttentionCase family = c;
      family.base.weights = RelativeWeights::rope(rope, 4, -199, 199);
      family.base.path = Path::toeplitz;
      AttentionCase separable = c;
      separable.base.rope = rope;
      separable.base.path = Path::toeplitz;
      AttentionCase linear = separable;
      linear.base.path = Path::polynomial;
      Tensor<double> out[3] = {in.out, in.out, in.out};
      const AttentionCase* cases[3] = {&family, &separable, &linear};
      for (int m = 0; m < 3; ++m) {
        const Report report =
            attend(in.q.view(), in.k.view(), in.v.view(), out[m].view(), cases[m]->options());
        EXPECT_EQ(report.heads[0].path, cases[m]->base.path);
      }
      EXPECT_LE(max_abs_difference(out[0].view(), out[1].view()), 2e-10);
      EXPECT_LE(max_abs_difference(out[0].view(), out[2].view()), 2e-10);
      EXPECT_LE(max_abs_difference(out[0].view(), in.reference(separable).out.view()), 1e-10);
    }
  }
}

template <class Real>
class ToeplitzPromiseTest : public testing::Test {
 protected:
  /// observed / promised, which must be at most 1. Rows done exactly must be exact.
  static double share_of_promise(const AttentionCase& c, const AttentionInputs<Real>& in) {
    AttentionInputs<Real> run = in;
    const Report report = attend(run.q.view(), run.k.view(), run.v.view(), run.out.view(), c.options());
    const Reference reference = run.reference(c);
    double share = 0;
    for (Index h = 0; h < c.shapes.heads; ++h) {
      const HeadReport& head = report.heads[static_cast<std::size_t>(h)];
      EXPECT_EQ(head.path, Path::toeplitz);
      const double promised = head.error_bound;
      EXPECT_LE(promised, c.base.tolerance);
      const Index kv = h / (c.shapes.heads / c.shapes.kv_heads);
      const double observed = max_abs_difference(TensorView<const Real>(run.out.view().head(h)),
                                                 TensorView<const double>(reference.out.view().head(h))) /
                              max_abs(TensorView<const Real>(run.v.view().head(kv)));
      EXPECT_LE(observed, promised) << c << ", head " << h << ", tolerance " << c.base.tolerance
                                    << ", entries " << head.entry_bound << ", degree " << head.degree;
      share = std::max(share, observed / promised);
    }
    return share;
  }
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(ToeplitzPromiseTest, Reals);

TYPED_TEST(ToeplitzPromiseTest, BiasesMasksAndRadii) {
  constexpr bool kDouble = std::is_same_v<TypeParam, double>;
  double share = 0;
  Inputs random(5);
  for (const double radius : {0.02, 0.5, 1.5}) {
    for (const double tolerance : {1e-1, 1e-2, 1e-6}) {
      if (!kDouble && tolerance < 1e-2) continue;
      for (const Mask mask : {Mask::full(), Mask::causal(), Mask::sliding_window(40), Mask::lags(-30, 60)}) {
        for (const auto& lengths : {std::pair{160, 160}, {50, 230}}) {
          const auto expect = [&](auto&& set) {
            AttentionCase c{.shapes = {2, 1, lengths.first, lengths.second, 4, 2}};
            c.base.mask = mask;
            c.base.scale = 1.0;
            c.base.tolerance = tolerance;
            c.base.path = Path::toeplitz;
            AttentionInputs<TypeParam> in(c.shapes, random);
            in.q = random.sphere<TypeParam>(2, lengths.first, 4, std::sqrt(radius));
            in.k = random.sphere<TypeParam>(1, lengths.second, 4, std::sqrt(radius));
            set(c);
            share = std::max(share, this->share_of_promise(c, in));
          };
          expect([&](AttentionCase& c) { c.base.rope = Rope{}; });
          expect([&](AttentionCase& c) { set_t5(c, random, true); });
          expect([&](AttentionCase& c) { set_alibi(c, random); });
          expect([&](AttentionCase& c) { set_table(c, random, 1, 230); });
          if (radius < 1 && tolerance > 1e-3)
            expect([&](AttentionCase& c) { c.base.weights = random_weights(random, 4, 6, 230); });
        }
      }
    }
  }
  EXPECT_GT(share, 0.02) << "promises that loose say nothing";
  testing::Test::RecordProperty("largest_share_of_the_promise", std::to_string(share));
}

TYPED_TEST(ToeplitzPromiseTest, ScalesOverSixDecades) {
  Inputs random(6);
  for (const double decade : {-3.0, -1.5, 0.0, 1.5, 3.0}) {
    for (const bool general : {false, true}) {
      AttentionCase c{.shapes = {2, 2, 120, 120, 4, 2}};
      c.base.mask = Mask::lags(-20, Mask::kUnlimited);
      c.base.tolerance = 1e-2;
      c.base.path = Path::toeplitz;
      c.base.scale = -0.4;
      if (general)
        c.base.weights = random_weights(random, 4, 5, 120);
      else
        set_t5(c, random, true);
      AttentionInputs<TypeParam> in(c.shapes, random);
      in.q = random.sphere<TypeParam>(2, 120, 4, std::pow(10.0, decade));
      in.k = random.sphere<TypeParam>(2, 120, 4, std::pow(10.0, -decade));
      this->share_of_promise(c, in);
    }
  }
}

// Where the transforms take all that is left of the tolerance, the sum of both parts is rounded.
TYPED_TEST(ToeplitzPromiseTest, IsWithinTheToleranceToTheLastBit) {
  constexpr double kLeast = std::is_same_v<TypeParam, double> ? 4e-15 : 2e-6;
  int tight = 0;
  for (const Index n : {7, 40})
    for (const Index d : {0, 2, 8}) {
      AttentionCase c{.shapes = {1, 1, n, n, d, 2}};
      c.base.path = Path::toeplitz;
      Inputs random(8);
      AttentionInputs<TypeParam> in(c.shapes, random);
      if (d > 0) {
        in.q = random.sphere<TypeParam>(1, n, d, 0.1);
        in.k = random.sphere<TypeParam>(1, n, d, 0.1);
      }
      for (int i = 0; i < 1000; ++i) {
        c.base.tolerance = kLeast * std::pow(1.004, i);
        try {
          const auto plan = make_plan(in.q.view(), in.k.view(), in.v.view(), c.options());
          const double promised = plan.report().heads.front().error_bound;
          EXPECT_LE(promised, c.base.tolerance) << "n " << n << ", d " << d;
          if (promised > (1 - 1e-5) * c.base.tolerance) ++tight;
        } catch (const Error&) {  // below what rounding leaves
        }
      }
    }
  EXPECT_GT(tight, 100);
}

TYPED_TEST(ToeplitzPromiseTest, KeysWithACommonMeanAreShifted) {
  Inputs random(7);
  for (const double mean : {0.0, 1.0, 10.0}) {
    AttentionCase c{.shapes = {2, 1, 150, 150, 4, 3}};
    c.base.mask = Mask::causal();
    c.base.tolerance = 1e-2;
    c.base.path = Path::toeplitz;
    c.base.scale = 0.3;
    set_t5(c, random, false);
    AttentionInputs<TypeParam> in(c.shapes, random);
    in.k = random.common_mean<TypeParam>(1, 150, 4, mean, 0.3);
    this->share_of_promise(c, in);
    const auto plan = make_plan(in.q.view(), in.k.view(), in.v.view(), c.options());
    for (const HeadReport& head : plan.report().heads) {
      EXPECT_THAT(head.candidates[2].how, testing::HasSubstr("queries by none"));
      if (mean == 0) continue;
      EXPECT_THAT(head.candidates[2].how, testing::Not(testing::HasSubstr("keys shifted by none")));
      EXPECT_LT(head.entry_bound, 0.3 * 4 * 2) << "lengths of queries and of keys from their centre";
    }
  }
}

TEST(Promise, HoldsForRowsWhoseSquaresUnderflow) {
  // A large scale makes logits of up to 1 of them: either the bounds see that, or the exact path has to run.
  for (const double size : {1e-21, 1e-23, 1e-25}) {
    for (const Path path : {Path::automatic, Path::polynomial, Path::toeplitz}) {
      Inputs random(18);
      AttentionCase c{.shapes = {1, 1, 200, 200, 4, 3}};
      c.base.path = path;
      c.base.tolerance = 1e-2;
      c.base.scale = 1 / size;
      AttentionInputs<float> in(c.shapes, random);
      in.q = random.sphere<float>(1, 200, 4, size);
      in.k = random.sphere<float>(1, 200, 4, 1);
      try {
        attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
      } catch (const Error&) {
        continue;  // a forced path may be refused
      }
      EXPECT_LE(max_abs_difference(in.out.view(), in.reference(c).out.view()),
                c.base.tolerance * max_abs(in.v.view()))
          << size << path;
    }
  }
}

TYPED_TEST(ToeplitzPromiseTest, DecayingSpectraNeedFewerMonomials) {
  Inputs random(15);
  for (const Mask mask : {Mask::full(), Mask::causal(), Mask::sliding_window(40)}) {
    AttentionCase c{.shapes = {4, 2, 150, 180, 8, 3}};
    c.base.mask = mask;
    c.base.tolerance = 3e-2;
    c.base.path = Path::toeplitz;
    c.base.scale = 0.5;
    set_t5(c, random, true);
    AttentionInputs<TypeParam> in(c.shapes, random);
    in.q = random.sphere<TypeParam>(4, 150, 8, 2);
    in.k = random.sphere<TypeParam>(2, 180, 8, 2);
    for (auto* x : {&in.q, &in.k})
      for (Index h = 0; h < x->heads; ++h)
        for (Index i = 0; i < x->rows; ++i)
          for (Index m = 0; m < 8; ++m) (*x)(h, i, m) *= static_cast<TypeParam>(std::exp2(-m));
    this->share_of_promise(c, in);
    const auto plan = make_plan(in.q.view(), in.k.view(), in.v.view(), c.options());
    for (const HeadReport& head : plan.report().heads) {
      const Candidate& toeplitz = head.candidates[2];
      EXPECT_EQ(head.rank, toeplitz.rank);
      EXPECT_LT(static_cast<double>(toeplitz.rank), 0.5 * toeplitz.simplex_rank) << plan;
    }
  }
}

TYPED_TEST(ToeplitzPromiseTest, EarlyRowsAreExact) {
  // A steep ALiBi against the direction of the mask: the early rows' weights are tiny beside the generator's
  // largest, and only the exact path can compute them.
  AttentionCase c{.shapes = {2, 1, 400, 400, 4, 3}};
  c.base.mask = Mask::causal();
  c.base.path = Path::toeplitz;
  c.base.tolerance = 1e-2;
  c.base.scale = 0.05;
  std::vector<double> values;
  for (Index lag = 0; lag < 400; ++lag)  // rough, or a state would carry it
    values.push_back(0.05 * static_cast<double>(lag) + (lag % 2 == 0 ? 0.01 : 0));
  c.base.bias = LagBias::table(values, 1, 0);
  c.bias = table_formula(values, 1, 0);
  AttentionInputs<TypeParam> in(c.shapes, 8);
  AttentionCase exact = c;
  exact.base.path = Path::exact;
  Tensor<TypeParam> exact_out = in.out;
  attend(in.q.view(), in.k.view(), in.v.view(), exact_out.view(), exact.options());
  this->share_of_promise(c, in);
  const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
  for (Index h = 0; h < 2; ++h) {
    const Candidate& toeplitz = report.heads[static_cast<std::size_t>(h)].candidates[2];
    ASSERT_EQ(toeplitz.path, Path::toeplitz);
    const Index rows = toeplitz.exact_rows;
    EXPECT_LT(rows, 400);
    if constexpr (std::is_same_v<TypeParam, float>) {
      EXPECT_GE(rows, 48);
    }
    for (Index i = 0; i < rows; ++i)
      for (Index m = 0; m < 3; ++m) EXPECT_EQ(in.out(h, i, m), exact_out(h, i, m)) << "row " << i;
    if (rows < 400) {
      double rest = 0;
      for (Index i = rows; i < 400; ++i)
        for (Index m = 0; m < 3; ++m)
          rest = std::max(
              rest, distance(static_cast<double>(in.out(h, i, m)), static_cast<double>(exact_out(h, i, m))));
      EXPECT_GT(rest, 0) << "the rows behind are approximated";
    }
  }
}

TYPED_TEST(ToeplitzPromiseTest, RowsWithoutKeysAreZero) {
  AttentionCase c{.shapes = {1, 1, 150, 60, 4, 3}};  // the first 90 rows stand before all keys
  c.base.mask = Mask::causal();
  c.base.path = Path::toeplitz;
  c.base.tolerance = 1e-2;
  c.base.scale = 0.05;
  AttentionInputs<TypeParam> in(c.shapes, 9);
  this->share_of_promise(c, in);
  attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
  for (Index i = 0; i < 90; ++i) EXPECT_EQ(in.out(0, i, 0), 0) << "row " << i;
}

TYPED_TEST(ToeplitzPromiseTest, ThreadsDoNotChangeABit) {
  Inputs random(10);
  AttentionCase c{.shapes = {6, 2, 150, 220, 4, 3}};
  c.base.mask = Mask::causal();
  c.base.tolerance = 1e-2;
  c.base.path = Path::toeplitz;
  c.base.scale = 0.05;
  set_t5(c, random, false);
  const AttentionInputs<TypeParam> in(c.shapes, random);
  std::vector<Tensor<TypeParam>> outs;
  for (const Index n : {1, 2, 3}) {
    c.base.executor = threads(n);
    outs.push_back(in.out);
    attend(in.q.view(), in.k.view(), in.v.view(), outs.back().view(), c.options());
    EXPECT_EQ(outs.back().values, outs.front().values) << n << " threads";
  }
}

template <class Real>
class TransformErrorTest : public testing::Test {
 protected:
  /// The largest observed error over the least that may be allowed before a row is computed again; the oracle
  /// is the sum of the same polynomial and generator in long double. q and k are one column of
  /// +-sqrt(radius): where a row's keys all have the other sign its denominator is as small, and the
  /// cancellation as large, as the radius allows.
  static double share_of_promise(const Shapes& shapes, const Mask& mask, const std::vector<double>& bias,
                                 double radius, Inputs& random) {
    AttentionCase c{.shapes = shapes};
    c.base.mask = mask;
    c.base.scale = 1.0;
    c.base.bias = LagBias::table(bias, 1, 1 - shapes.n_q);
    AttentionInputs<Real> in(shapes, random);
    const auto sign = [&] { return static_cast<Real>(2 * random.integer(0, 1) - 1); };
    const auto size = static_cast<Real>(std::sqrt(radius));
    for (Real& x : in.q.values) x = size * sign();
    for (Real& x : in.k.values) x = size * sign();
    const Index spike = random.integer(0, shapes.n_k - 1);
    for (Index j = 0; j < shapes.n_k; ++j) {  // max|V| is 1
      in.v(0, j, 0) = sign();
      in.v(0, j, 1) = static_cast<Real>(j == spike ? 1 : 1e-3);
      in.v(0, j, 2) = static_cast<Real>(2 * j < shapes.n_k ? 1 : -1);
      in.v(0, j, 3) = static_cast<Real>(random.uniform(0.999, 1));
    }

    const Problem problem(shapes, c.options());
    const double reach = radius * (1 + 4 * std::numeric_limits<Real>::epsilon());  // of the rounded roots
    const auto polynomial = ExpPolynomial::fit(reach, 1e-3);
    const auto coefficients = polynomial.coefficients();
    const std::vector<double> generator = lag_generator(problem, 0);
    std::vector<ToeplitzHead> heads = {
        ToeplitzHead(problem, unit_of(0, Projection::identity(1, 1), polynomial, 1))};
    // One tile of rows, so that all are kept or none.
    if (shapes.n_q > QueryBlock<Real>::kTileRows) return 0;
    Tensor<Real> out = in.out;
    double low = -40, promise = 0;
    for (double high = 0; high - low > 0.02;) {
      const double middle = (low + high) / 2;
      heads[0].low_rank.allowed = std::exp2(middle);
      Index repaired = 0;
      const Tensor<Real> some = run_path(problem, heads, in, &repaired);
      if (repaired == 0) {
        promise = std::exp2(middle);
        out = some;
      }
      (repaired == 0 ? high : low) = middle;
    }
    if (promise == 0) return 0;
    promise += 3 * std::numeric_limits<Real>::epsilon() / 2;  // of the result
    double share = 0;
    for (Index i = 0; i < shapes.n_q; ++i) {
      long double sum = 0, sums[4] = {};
      for (Index j = 0; j < shapes.n_k; ++j) {
        const long double x = static_cast<long double>(in.q(0, i, 0)) * in.k(0, j, 0);
        long double weight = 0;
        for (std::size_t p = coefficients.size(); p-- > 0;) weight = weight * x + coefficients[p];
        weight *= generator[static_cast<std::size_t>(i - j + shapes.n_k - 1)];
        sum += weight;
        for (Index m = 0; m < 4; ++m) sums[m] += weight * in.v(0, j, m);
      }
      if (problem.grid.keys_of(i).empty()) continue;
      for (Index m = 0; m < 4; ++m) {
        const double observed = distance(static_cast<double>(out(0, i, m) - sums[m] / sum), 0);
        EXPECT_LE(observed, promise) << c << ", radius " << radius << ", row " << i << ", column " << m;
        share = std::max(share, observed / promise);
      }
    }
    return share;
  }
};
TYPED_TEST_SUITE(TransformErrorTest, Reals);

TYPED_TEST(TransformErrorTest, RowsAreExpectedByTheirLags) {
  Inputs random(13);
  for (const auto& [n_q, n_k] : {std::pair{40, 40}, {70, 20}, {3, 500}}) {
    AttentionCase c{.shapes = {1, 1, n_q, n_k, 1, 1}};
    c.base.mask = Mask::causal();
    set_table(c, random, 1, 500);
    const Problem problem(c.shapes, c.options());
    const ToeplitzHead head(problem,
                            unit_of(0, Projection::identity(1, 1), ExpPolynomial::fit(0.7, 0.05), 1));
    double energy = 0;
    for (double t : head.generator) energy += t * t;
    EXPECT_NEAR(head.generator_norm, std::sqrt(energy), 1e-12 * std::sqrt(energy));
    const double amplification = 3;
    const std::vector<double> expected = expected_transform_rounding<TypeParam>(problem, head, amplification);
    for (Index i = 0; i < n_q; ++i) {
      double sum = 0;
      for (Index j = 0; j < n_k; ++j) sum += head.generator[static_cast<std::size_t>(i - j + n_k - 1)];
      const double row_sum = head.row_sums[static_cast<std::size_t>(i)];
      EXPECT_GE(row_sum, sum * (1 - 1e-15));
      EXPECT_NEAR(row_sum, sum, 1e-12 * (1 + static_cast<double>(n_k)));
      if (sum == 0) continue;
      EXPECT_NEAR(expected[static_cast<std::size_t>(i)] * row_sum,
                  2 * transform_rounding<TypeParam>(c.shapes) * std::sqrt(energy * n_k) * amplification,
                  1e-12);
    }
  }
}

TYPED_TEST(TransformErrorTest, OfEachRowIsWithinThePromise) {
  Inputs random(12);
  double share = 0;
  for (const auto& [n_q, n_k] : {std::pair{1, 2}, {3, 3}, {4, 4}, {16, 16}, {5, 60}, {48, 5}, {40, 300}}) {
    const Index lags = n_q + n_k - 1;
    for (const Mask& mask : {Mask::full(), Mask::causal(), Mask::sliding_window(3)}) {
      for (const double radius : {0.0, 1.0, 5.0}) {
        for (int turn = 0; turn < std::clamp<Index>(800 / lags, 1, 12); ++turn) {
          const std::vector<double> rough = random_numbers(random, lags, -2, 2);
          std::vector<double> spikes = rough, tail = rough;
          for (double& b : spikes) b = random.integer(1, 4) == 1 ? 0 : -30;
          // Far lags weigh most: the first rows of a causal mask are small beside the generator's norm.
          for (std::size_t m = 0; m < tail.size(); ++m)
            tail[m] += 20 * static_cast<double>(m) / static_cast<double>(lags);
          for (const std::vector<double>& bias : {rough, spikes, tail})
            share =
                std::max(share, this->share_of_promise({1, 1, n_q, n_k, 1, 4}, mask, bias, radius, random));
        }
      }
    }
  }
  EXPECT_GT(share, 0.01) << "a promise that loose says nothing";
  testing::Test::RecordProperty("largest_share_of_the_promise", std::to_string(share));
}

TEST(ToeplitzAttention, IsPlannedAndRunByEightThreadsAtOnce) {
  // Some share a length, whose transforms nobody has planned before.
  std::vector<std::thread> team;
  std::vector<double> worst(8);
  for (unsigned t = 0; t < 8; ++t) {
    team.emplace_back([t, &worst] {
      for (Index step = 0; step < 4; ++step) {
        Inputs random(30 + t);
        const Index n = 190 + 30 * step + (t % 2 == 0 ? 0 : static_cast<Index>(t));
        AttentionCase c{.shapes = {2, 1, n, n, 3, 2}};
        c.base.mask = Mask::causal();
        c.base.scale = 1.0;
        c.base.tolerance = 1e-2;
        c.base.path = Path::toeplitz;
        set_table(c, random, 2, n);
        AttentionInputs<double> in(c.shapes, random);
        in.q = random.sphere<double>(2, n, 3, 0.6);
        in.k = random.sphere<double>(1, n, 3, 0.6);
        attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
        worst[t] = std::max(
            worst[t], max_abs_difference(in.out.view(), in.reference(c).out.view()) / max_abs(in.v.view()));
      }
    });
  }
  for (std::thread& thread : team) thread.join();
  EXPECT_THAT(worst, testing::Each(testing::Le(1e-2)));
}

TEST(ToeplitzRefusal, SaysWhatIsNotAFunctionOfTheLag) {
  Inputs random(11);
  const auto refusal = [](const AttentionCase& c) {
    return toeplitz_refusal(Problem(c.shapes, c.options()));
  };
  const AttentionCase plain{.shapes = {2, 1, 20, 30, 6, 4}};
  EXPECT_EQ(refusal(plain), "");
  const auto expect_refused = [&](auto&& set, const char* text) {
    AttentionCase c = plain;
    set(c);
    EXPECT_THAT(refusal(c), testing::HasSubstr(text));
  };
  expect_refused([&](AttentionCase& c) { c.base.softcap = 10; }, "softcap");
  expect_refused([&](AttentionCase& c) { set_sinks(c, random); }, "sinks");
  expect_refused([&](AttentionCase& c) { set_dense(c, random, true, true, 9); }, "dense bias");
  expect_refused([&](AttentionCase& c) { c.query_positions = shuffled_positions(random, 20, 0); },
                 "not consecutive");
}

}  // namespace
}  // namespace fastrope_test
