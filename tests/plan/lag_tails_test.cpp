// Lag tails: found where a bias has them, and states that carry them equal to dense evaluation and to
// transforms.
#include "fastrope/plan/lag_tails.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"
#include "support/dense_polynomial.hpp"
#include "support/executors.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

Problem problem_of(Index n_q, Index n_k, const Mask& mask, const LagBias& bias) {
  Options options;
  options.mask = mask;
  options.bias = bias;
  return {{1, 1, n_q, n_k, 2, 2}, options};
}

TEST(LagTails, AreWhereBiasesAreStraight) {
  Inputs random(1);
  // No bias: one tail of all lags.
  LagTails tails = find_lag_tails(problem_of(100, 100, Mask::causal(), LagBias::none()), 0);
  ASSERT_TRUE(tails.past);
  EXPECT_EQ(tails.past->inner, 0);
  EXPECT_EQ(tails.past->factor.slope, 0);
  EXPECT_FALSE(tails.later);
  // ALiBi: straight on both sides of lag 0.
  tails = find_lag_tails(problem_of(100, 100, Mask::full(), LagBias::alibi(std::vector<double>{0.3})), 0);
  ASSERT_TRUE(tails.past && tails.later);
  EXPECT_EQ(tails.past->inner, 0);
  EXPECT_EQ(tails.later->inner, -1);
  EXPECT_NEAR(tails.past->factor.slope, 0.3, 1e-14);
  EXPECT_NEAR(tails.later->factor.slope, -0.3, 1e-14);
  EXPECT_NEAR(tails.past->factor.level, 0, 1e-12);
  // T5: constant beyond the last bucket, which begins at max_distance or before.
  std::vector<double> buckets(16);
  for (double& b : buckets) b = random.uniform(-2, 2);
  const LagBias t5 = LagBias::t5(buckets, 1, /*bidirectional=*/true, 50);
  tails = find_lag_tails(problem_of(200, 300, Mask::full(), t5), 0);
  ASSERT_TRUE(tails.past && tails.later);
  EXPECT_EQ(tails.past->factor.slope, 0);
  EXPECT_EQ(tails.past->factor.level, t5(0, 299));
  EXPECT_EQ(tails.later->factor.level, t5(0, -150));
  EXPECT_LE(tails.past->inner, 50);
  EXPECT_GT(tails.past->inner, 20);
  // A window cuts them off.
  tails = find_lag_tails(problem_of(200, 200, Mask::lags(-10, 120), t5), 0);
  EXPECT_EQ(tails.allowed.last, 120);
  // No lags at all.
  tails = find_lag_tails(problem_of(5, 5, Mask::lags(50, 60), t5), 0);
  EXPECT_FALSE(tails.past || tails.later);
}

TEST(LagTails, OfAnyBiasAreItsValuesToRounding) {
  Inputs random(2);
  for (int trial = 0; trial < 300; ++trial) {
    // A rough middle between two lines, or rough throughout.
    const Position first = -random.integer(1, 40), last = random.integer(1, 60);
    const Position from = random.integer(first, 0), to = random.integer(0, last);
    const double a = random.normal(), b = 0.1 * random.normal(), c = 0.1 * random.normal();
    std::vector<double> values;
    for (Position lag = first; lag <= last; ++lag) {
      const double x = static_cast<double>(lag);
      values.push_back(lag < from ? a + b * x : lag > to ? 2 * a + c * x : random.normal());
    }
    const LagBias bias = LagBias::table(values, 1, first);
    const Problem problem = problem_of(last + 1, last + 1, Mask::lags(first, last), bias);
    const auto allowed = problem.grid.allowed_lags();
    const LagTails tails = find_lag_tails(problem, 0);
    const auto expect_line = [&](const LagTail& tail, Position begin, Position end) {
      for (Position lag = begin; lag <= end; ++lag)
        EXPECT_NEAR(tail.factor.level - tail.factor.slope * static_cast<double>(lag), bias(0, lag), 1e-13)
            << "lag " << lag;
    };
    if (tails.past) {
      EXPECT_LE(tails.past->inner, std::min(to + 1, allowed.last));
      expect_line(*tails.past, tails.past->inner, allowed.last);
    }
    if (tails.later) {
      EXPECT_GE(tails.later->inner,
                std::max(std::min(from - 1, (tails.past ? tails.past->inner : last + 1) - 1), allowed.first));
      expect_line(*tails.later, allowed.first, tails.later->inner);
      if (tails.past) {
        EXPECT_LT(tails.later->inner, tails.past->inner);
      }
    }
  }
}

TEST(LagTails, ThatGrowTooMuchAreLeftOut) {
  const auto grows = [](double slope) {
    std::vector<double> values;
    for (int lag = 0; lag < 100; ++lag) values.push_back(slope * lag);
    return find_lag_tails(problem_of(100, 100, Mask::causal(), LagBias::table(values, 1, 0)), 0);
  };
  EXPECT_TRUE(grows(0.0005).past);
  EXPECT_FALSE(grows(0.5).past);
  EXPECT_TRUE(grows(-0.5).past);
}

/// What each case of a problem looks like.
struct Structure {
  Mask mask;
  std::string bias;
};

std::vector<Structure> structures() {
  std::vector<Structure> list;
  for (const Mask& mask :
       {Mask::full(), Mask::causal(), Mask::sliding_window(700), Mask::sliding_window(1500),
        Mask::lags(-600, 900), Mask::lags(5, 1300), Mask::lags(-1800, -20)})
    for (const char* bias : {"none", "t5", "t5 both ways", "alibi", "steep alibi", "mild alibi"})
      list.push_back({mask, bias});
  return list;
}

AttentionCase make_case(const Structure& s, Index n_q, Index n_k, Inputs& random) {
  AttentionCase c{.shapes = {2, 1, n_q, n_k, 3, 2}};
  c.base.mask = s.mask;
  c.base.scale = 1.0;
  const auto slopes = [&](double least, double most) {
    const std::vector<double> list = random_numbers(random, 2, least, most);
    c.base.bias = LagBias::alibi(list);
    c.bias = alibi_formula(list);
    c.text += s.bias;
  };
  if (s.bias == "t5") set_t5(c, random, false);
  if (s.bias == "t5 both ways") set_t5(c, random, true);
  if (s.bias == "alibi") slopes(0.01, 0.1);
  if (s.bias == "steep alibi") slopes(0.5, 3);
  if (s.bias == "mild alibi") slopes(1e-5, 1e-3);
  return c;
}

/// The heads of a problem by states, chunks of `rows`, with a polynomial and shifts of our choice.
std::vector<LowRankUnit> state_units(const Problem& problem, Inputs& random, Index rows,
                                     double error = 0.01) {
  const auto p = ExpPolynomial::fit(1.5, error);
  std::vector<LowRankUnit> units;
  for (Index h = 0; h < problem.shapes.heads; ++h) {
    const LagTails tails = find_lag_tails(problem, h);
    LowRankUnit unit{
        .heads = {h, h + 1},
        .projection = Projection::identity(problem.shapes.d, 1),
        .coefficients = {p.coefficients().begin(), p.coefficients().end()},
        .monomials = std::make_shared<const MonomialSet>(simplex_limits(problem.shapes.d, p.degree())),
        .chunks = tail_chunks<double>(problem, tails, rows)};
    for (double& x : unit.projection.key_shift) x = 0.1 * random.normal();
    for (double& x : unit.projection.query_shift) x = 0.1 * random.normal();
    unit.projection.weight_max = 1;
    if (tails.past) unit.factor = tails.past->factor;
    if (tails.later) unit.later_factor = tails.later->factor;
    units.push_back(unit);
  }
  return units;
}

template <class Real>
Tensor<Real> run_units(const Problem& problem, const std::vector<LowRankUnit>& units,
                       const AttentionInputs<Real>& in) {
  const auto parts = [&](Workspace& w) {
    PackedKeys<Real> packed(problem, w);
    ExactAttention<Real> exact(problem, packed, w);
    return std::tuple{packed, exact, PolynomialAttention<Real>(problem, units, w)};
  };
  Workspace counting;
  parts(counting);
  std::vector<std::byte> memory(counting.bytes());
  Workspace workspace(memory);
  auto [packed, exact, states] = parts(workspace);
  Tensor<Real> out = in.out;
  packed.pack(problem, in.k.view(), in.v.view());
  exact.prepare(problem);
  states.run(problem, packed, exact, in.q.view(), out.view());
  return out;
}

/// Of pair (i, j) in the chunks: whether it is far.
bool is_far(const std::vector<FarPairs>& chunks, Index i, Index j) {
  for (const FarPairs& c : chunks)
    if (i >= c.rows.begin && i < c.rows.end)
      return (j >= c.first && j < c.far) || (j >= c.later.begin && j < c.later.end);
  return false;
}

TEST(TailChunks, HoldTailsOfEveryRowInOrder) {
  Inputs random(3);
  Index far_pairs = 0;
  for (const Structure& s : structures()) {
    for (const auto& [n_q, n_k] : {std::pair<Index, Index>{2000, 2000}, {300, 2000}, {2000, 700}, {1, 900}}) {
      const AttentionCase c = make_case(s, n_q, n_k, random);
      const Problem problem(c.shapes, c.options());
      const LagTails tails = find_lag_tails(problem, 0);
      for (const Index rows : {64, 192, 1000}) {
        const auto chunks = tail_chunks<double>(problem, tails, rows);
        Index next = 0;
        FarPairs before{.rows = {}, .far = 0};
        for (const FarPairs& chunk : chunks) {
          EXPECT_EQ(chunk.rows.begin, next);
          next = chunk.rows.end;
          const Index far = chunk.far - chunk.first;
          EXPECT_GE(far, 0);
          EXPECT_TRUE(chunk.later.empty() || chunk.far <= chunk.later.begin);
          if (far > 0 && before.far > before.first) {
            EXPECT_GE(chunk.first, before.first) << c;
            EXPECT_GE(chunk.far, before.far) << c;
          }
          if (!chunk.later.empty() && !before.later.empty()) {
            EXPECT_GE(chunk.later.begin, before.later.begin) << c;
            EXPECT_GE(chunk.later.end, before.later.end) << c;
          }
          before = chunk;
          // The corners of a chunk see the least and the greatest lags.
          for (const Index i : {chunk.rows.begin, chunk.rows.end - 1}) {
            for (const Index j : {chunk.first, chunk.far - 1}) {
              if (far == 0) continue;
              const Position lag = problem.grid.lag(i, j);
              EXPECT_TRUE(c.base.mask.allows(lag) && lag >= tails.past->inner) << c;
              ++far_pairs;
            }
            for (const Index j : {chunk.later.begin, chunk.later.end - 1}) {
              if (chunk.later.empty()) continue;
              const Position lag = problem.grid.lag(i, j);
              EXPECT_TRUE(c.base.mask.allows(lag) && lag <= tails.later->inner) << c;
              ++far_pairs;
            }
          }
        }
        EXPECT_EQ(next, n_q);
      }
    }
  }
  EXPECT_GT(far_pairs, 5000);
}

TEST(StateOfTails, EqualsDenseEvaluation) {
  Inputs random(4);
  for (const Structure& s : structures()) {
    for (const auto& [n_q, n_k] : {std::pair<Index, Index>{320, 320}, {150, 500}, {500, 210}}) {
      const AttentionCase c = make_case(s, n_q, n_k, random);
      AttentionInputs<double> in(c.shapes, random);
      in.q = random.sphere<double>(2, n_q, 3, 1);
      in.k = random.sphere<double>(1, n_k, 3, 1);
      const Problem problem(c.shapes, c.options());
      const auto units = state_units(problem, random, random.integer(1, 2) == 1 ? 64 : 200);
      const Tensor<double> out = run_units(problem, units, in);
      for (Index h = 0; h < 2; ++h) {
        const LowRankUnit& unit = units[static_cast<std::size_t>(h)];
        std::vector<double> largest(static_cast<std::size_t>(n_q), -INFINITY);  // bias of a row
        const auto bias = [&](Position lag) { return c.bias ? c.bias(h, lag) : 0; };
        for (Index i = 0; i < n_q; ++i)
          for (Index j = 0; j < n_k; ++j)
            if (const Position lag = n_k - n_q + i - j; c.base.mask.allows(lag))
              largest[static_cast<std::size_t>(i)] =
                  std::max(largest[static_cast<std::size_t>(i)], bias(lag));
        const auto pair = [&, offset = n_k - n_q](Index i, Index j) -> DensePair {
          const Position lag = offset + i - j;
          if (!c.base.mask.allows(lag)) return {0};
          return {std::exp(bias(lag) - largest[static_cast<std::size_t>(i)]), !is_far(unit.chunks, i, j)};
        };
        const Tensor<double> expected =
            dense_polynomial_attention(head_of(in.q, h), head_of(in.k, 0), head_of(in.v, 0), 1.0, unit, pair);
        for (Index i = 0; i < n_q; ++i)
          for (Index m = 0; m < 2; ++m)
            ASSERT_NEAR(out(h, i, m), expected(0, i, m), 1e-11) << c << ", head " << h << ", row " << i;
      }
    }
  }
}

TEST(StateOfTails, EqualsTransforms) {
  // Polynomials of relative error 1e-9, so that what differs is the carrier of the far field.
  Inputs random(5);
  int compared = 0;
  for (const Structure& s : structures()) {
    if (s.bias == "steep alibi") continue;  // its transforms keep too few digits
    AttentionCase c = make_case(s, 900, 1000, random);
    AttentionInputs<double> in(c.shapes, random);
    in.q = random.sphere<double>(2, 900, 3, 0.6);
    in.k = random.sphere<double>(1, 1000, 3, 0.6);
    const Problem problem(c.shapes, c.options());
    const Tensor<double> by_state = run_units(problem, state_units(problem, random, 128, 1e-9), in);
    std::vector<ToeplitzHead> heads;
    const auto p = ExpPolynomial::fit(0.5, 1e-9);
    for (Index h = 0; h < 2; ++h)
      heads.emplace_back(
          problem,
          LowRankUnit{.heads = {h, h + 1},
                      .projection = Projection::identity(3, 1),
                      .coefficients = {p.coefficients().begin(), p.coefficients().end()},
                      .monomials = std::make_shared<const MonomialSet>(simplex_limits(3, p.degree())),
                      .chunks = {}});
    const ToeplitzSegments<double> segments(900, 1000, allowed_support(problem));
    const auto parts = [&](Workspace& w) {
      PackedKeys<double> packed(problem, w);
      ExactAttention<double> exact(problem, packed, w);
      return std::tuple{packed, exact, ToeplitzAttention<double>(problem, &segments, heads, w)};
    };
    Workspace counting;
    parts(counting);
    std::vector<std::byte> memory(counting.bytes());
    Workspace workspace(memory);
    auto [packed, exact, transforms] = parts(workspace);
    packed.pack(problem, in.k.view(), in.v.view());
    exact.prepare(problem);
    Tensor<double> by_transforms = in.out;
    transforms.run(problem, packed, exact, std::as_const(in).q.view(), by_transforms.view());
    for (Index h = 0; h < 2; ++h)
      for (Index i = 0; i < 900; ++i) {
        double row = 0;  // of the generator: rows that keep few digits are the exact path's
        for (Index j = 0; j < 1000; ++j)
          row += heads[static_cast<std::size_t>(h)].generator[static_cast<std::size_t>(i - j + 999)];
        if (row < 1e-3) continue;
        ++compared;
        for (Index m = 0; m < 2; ++m)
          ASSERT_NEAR(by_state(h, i, m), by_transforms(h, i, m), 1e-7) << c << ", row " << i;
      }
  }
  EXPECT_GT(compared, 20000);
}

template <class Real>
class TailPromiseTest : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(TailPromiseTest, Reals);

TYPED_TEST(TailPromiseTest, HoldsForEveryStructure) {
  Inputs random(6);
  int states = 0;
  for (const Structure& s : structures()) {
    struct Size {
      Index n_q, n_k;
      double radius;
    };
    for (const auto& [n_q, n_k, radius] : {Size{600, 600, 0.3}, Size{200, 1100, 1.5}}) {
      AttentionCase c = make_case(s, n_q, n_k, random);
      c.base.tolerance = 1e-2;
      c.base.path = Path::polynomial;
      AttentionInputs<TypeParam> in(c.shapes, random);
      in.q = random.sphere<TypeParam>(2, n_q, 3, std::sqrt(radius));
      in.k = random.common_mean<TypeParam>(1, n_k, 3, 1.0, std::sqrt(radius));
      Report report;
      try {
        report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
      } catch (const Error& error) {
        EXPECT_THAT(error.what(), testing::HasSubstr("cannot meet the tolerance")) << c;
        continue;
      }
      const Reference reference = in.reference(c);
      for (Index h = 0; h < 2; ++h) {
        const HeadReport& head = report.heads[static_cast<std::size_t>(h)];
        ++states;
        const double observed = max_abs_difference(TensorView<const TypeParam>(in.out.view().head(h)),
                                                   TensorView<const double>(reference.out.view().head(h))) /
                                max_abs(in.v.view());
        EXPECT_LE(observed, head.error_bound) << c << ", " << head.candidates[1].how;
        EXPECT_LE(head.error_bound, 1e-2);
      }
    }
  }
  EXPECT_GT(states, 30);
}

TYPED_TEST(TailPromiseTest, ThreadsDoNotChangeABit) {
  Inputs random(7);
  for (const Structure& s : structures()) {
    AttentionCase c = make_case(s, 600, 600, random);
    c.base.tolerance = 1e-2;
    AttentionInputs<TypeParam> in(c.shapes, random);
    in.q = random.sphere<TypeParam>(2, 600, 3, 0.7);
    in.k = random.sphere<TypeParam>(1, 600, 3, 0.7);
    attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    const Tensor<TypeParam> serial = in.out;
    c.base.executor = threads(3);
    attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    EXPECT_EQ(max_abs_difference(in.out.view(), serial.view()), 0) << c;
  }
}

/// Runs a float call as it is planned and compares it with its promise.
void expect_promise(const AttentionCase& c, AttentionInputs<float>& in) {
  const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
  const HeadReport& head = report.heads[0];
  EXPECT_LE(max_abs_difference(in.out.view(), in.reference(c).out.view()) / max_abs(in.v.view()),
            head.error_bound + 1e-6)
      << c << ", " << head.path << ", " << head.candidates[1].how;
}

TEST(TailPromise, HoldsWhereTheLastBlockOfKeysIsPartial) {
  Inputs random(9);
  for (const double slope : {0.25, 0.5, 1.0, 4.0}) {  // all keys before all rows
    AttentionCase c{.shapes = {1, 1, 600, 1290, 2, 4}};
    c.base.mask = Mask::causal();
    c.base.scale = 1.0;
    c.base.tolerance = 1e-2;
    for (Index i = 0; i < 600; ++i) c.query_positions.push_back(1290 + i);
    c.base.bias = LagBias::alibi(std::vector<double>{slope});
    c.bias = alibi_formula({slope});
    AttentionInputs<float> in(c.shapes, random);
    in.q = random.sphere<float>(1, 600, 2, 0.7);
    in.k = random.sphere<float>(1, 1290, 2, 0.7);
    expect_promise(c, in);
  }
  // A line over all lags: no near field at all.
  const Index n = 1290;
  std::vector<double> values;
  for (Index lag = 1 - n; lag < n; ++lag) values.push_back(-0.5 * static_cast<double>(lag));
  AttentionCase c{.shapes = {1, 1, n, n, 2, 4}};
  c.base.scale = 1.0;
  c.base.tolerance = 1e-2;
  c.base.bias = LagBias::table(values, 1, 1 - n);
  c.bias = table_formula(values, 1, 1 - n);
  AttentionInputs<float> in(c.shapes, random);
  in.q = random.sphere<float>(1, n, 2, 0.7);
  in.k = random.sphere<float>(1, n, 2, 0.7);
  expect_promise(c, in);
}

/// Runs a float call by states at two tolerances, and compares it with its promise: if nothing can keep it
/// there is an Error. Returns whether a state ran.
bool expect_state_promise(AttentionCase c, AttentionInputs<float>& in) {
  c.base.path = Path::polynomial;
  const Tensor<double> expected = in.reference(c).out;
  bool state = false;
  for (const double tolerance : {1e-2, 1e-4}) {
    c.base.tolerance = tolerance;
    Report report;
    try {
      report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("cannot meet the tolerance")) << c;
      continue;
    }
    const HeadReport& head = report.heads[0];
    const std::string& how = head.candidates[1].how;
    state = true;
    EXPECT_LE(max_abs_difference(in.out.view(), expected.view()) / max_abs(in.v.view()), head.error_bound)
        << c << ", " << how;
    EXPECT_LE(head.error_bound, tolerance) << c << ", " << how;
  }
  return state;
}

TEST(TailPromise, HoldsForTablesThatSayMasked) {
  // What is not masked is rough, or level: then it has a state, whatever number is beside it.
  Inputs random(10);
  const Index n = 2000;
  const auto run = [&](const Mask& mask, const std::vector<double>& values, const std::string& text) {
    AttentionCase c{.shapes = {1, 1, n, n, 2, 3}, .text = text};
    c.base.mask = mask;
    c.base.scale = 1.0;
    const Position first = n - std::ssize(values);
    c.base.bias = LagBias::table(values, 1, first);
    c.bias = table_formula(values, 1, first);
    AttentionInputs<float> in(c.shapes, random);
    in.q = random.sphere<float>(1, n, 2, 0.7);
    in.k = random.sphere<float>(1, n, 2, 0.7);
    for (Index j = 0; j < n; ++j)
      in.v(0, j, 0) = static_cast<float>(std::cos(0.002 * static_cast<double>(j)));
    return expect_state_promise(c, in);
  };
  for (const double masked : {-50.0, -1e9, -1e16, -3.4028234e38}) {
    const std::string text = ", masked " + testing::PrintToString(masked);
    std::vector<double> rough(n, masked), level(n, masked), causal(2 * n - 1, masked);
    for (Index lag = 0; lag < 700; ++lag)
      rough[static_cast<std::size_t>(lag)] = 4 * std::sin(0.003 * static_cast<double>(lag));
    std::fill_n(level.begin(), 700, 0.0);
    std::fill_n(causal.rbegin(), n, 0.0);
    run(Mask::causal(), rough, text);
    EXPECT_TRUE(run(Mask::causal(), level, text)) << text;
    EXPECT_TRUE(run(Mask::full(), causal, text)) << text;
  }
}

TEST(TailPromise, HoldsForWindowsThatGrowOutwards) {
  // What shrinks towards the rows is a tail from the other end.
  Inputs random(11);
  for (const double slope : {-0.0001, -0.01, -0.02, -0.2}) {
    AttentionCase c{.shapes = {1, 1, 4000, 4000, 2, 3}, .text = ", slope " + testing::PrintToString(slope)};
    c.base.mask = Mask::sliding_window(1024);
    c.base.scale = 1.0;
    c.base.bias = LagBias::alibi(std::vector<double>{slope});
    c.bias = alibi_formula({slope});
    AttentionInputs<float> in(c.shapes, random);
    in.q = random.sphere<float>(1, 4000, 2, 0.7);
    in.k = random.sphere<float>(1, 4000, 2, 0.7);
    EXPECT_TRUE(expect_state_promise(c, in)) << c;
  }
}

TEST(TailPromise, HoldsAfterAHeavyKeyHasLeftTheWindow) {
  Inputs random(12);
  for (const double logit : {5.0, 20.0, 29.0}) {
    const Index n = 5000;
    AttentionCase c{.shapes = {1, 1, n, n, 2, 3}};
    c.base.mask = Mask::sliding_window(900);
    c.base.scale = 1.0;
    c.base.tolerance = 1e-3;
    AttentionInputs<float> in(c.shapes, random);
    for (Index i = 0; i < n; ++i)
      for (Index m = 0; m < 2; ++m) {
        in.q(0, i, m) = static_cast<float>((m == 0 ? 2.0 : 0.0) + 0.05 * random.normal());
        in.k(0, i, m) = static_cast<float>(0.2 * random.normal());
      }
    in.k(0, 0, 0) = static_cast<float>(logit / 2);
    in.k(0, 0, 1) = 0;
    expect_promise(c, in);
  }
}

TEST(LongSums, OfIdenticalKeysInAWindowStayWithinTheRounding) {
  // Keys that leave are subtracted: what they leave behind must not grow with the tokens that have passed.
  // Weights and values are all the same, so that every sum is off in one direction.
  Inputs random(8);
  const Index n = 60000;
  for (const double size : {0.5, 1.0}) {
    AttentionCase c{.shapes = {1, 1, n, n, 2, 1}};
    c.base.mask = Mask::sliding_window(3000);
    c.base.scale = 1.0;
    AttentionInputs<float> in(c.shapes, random);
    for (float& x : in.q.values) x = static_cast<float>(size);
    for (float& x : in.k.values) x = static_cast<float>(-size);
    for (float& x : in.v.values) x = 0.7f;
    const double radius = 2 * size * size * (1 + 1e-6);
    const auto p = ExpPolynomial::fit(radius, 1e-3);
    const Problem problem(c.shapes, c.options());
    const std::vector<LowRankUnit> units = {
        {.heads = {0, 1},
         .projection = Projection::identity(2, 1),
         .coefficients = {p.coefficients().begin(), p.coefficients().end()},
         .monomials = std::make_shared<const MonomialSet>(simplex_limits(2, p.degree())),
         .chunks = tail_chunks<float>(problem, find_lag_tails(problem, 0), 384)}};
    const Tensor<float> out = run_units(problem, units, in);
    double worst = 0;
    for (const float x : out.values) worst = std::max(worst, std::abs(static_cast<double>(x) / 0.7f - 1));
    const double estimate =
        expected_rounding<float>(p.coefficients(), units[0].monomials->rank(), n, radius, -radius);
    EXPECT_LE(worst, estimate);
    EXPECT_GT(worst, 1e-3 * estimate) << "an estimate that loose says nothing";
  }
}

}  // namespace
}  // namespace fastrope_test
