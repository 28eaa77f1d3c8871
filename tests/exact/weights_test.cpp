// Key masses and attention weights against the oracle: its output for values that are the unit matrix is the
// matrix of weights.
#include "fastrope/exact/weights.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/exact/attend_partial.hpp"
#include "support/attention_case.hpp"
#include "support/error_of.hpp"
#include "support/executors.hpp"
#include "support/paged_copy.hpp"

namespace fastrope_test {
namespace {

using fastrope::ArithmeticOf;
using fastrope::attention_weights;
using fastrope::bfloat16;
using fastrope::float16;
using fastrope::Kernel;
using fastrope::key_mass;
using fastrope::Mask;
using fastrope::MatrixView;
using fastrope::Range;
using fastrope::Rope;
using fastrope::RunStatus;
using fastrope::WeightsPlan;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class T>
MatrixView<T> matrix(std::vector<T>& x, Index rows) {
  return {x.data(), rows, rows == 0 ? 0 : std::ssize(x) / rows};
}
template <class T>
MatrixView<const T> matrix(const std::vector<T>& x, Index rows) {
  return {x.data(), rows, rows == 0 ? 0 : std::ssize(x) / rows};
}

/// The oracle's weights [heads, n_q, n_k], and lse [1, heads, n_q].
template <class T>
Reference oracle(const AttentionCase& c, const AttentionInputs<T>& in) {
  Tensor<double> unit(c.shapes.kv_heads, c.shapes.n_k, c.shapes.n_k);
  for (Index kv = 0; kv < unit.heads; ++kv)
    for (Index j = 0; j < c.shapes.n_k; ++j) unit(kv, j, j) = 1;
  return reference_attention(in.q.view(), in.k.view(), unit.view(), c.options(), c.bias);
}

/// What key_mass takes of the oracle's: lse, or the plain sums.
template <class Real>
std::vector<Real> row_sums(const AttentionCase& c, const Reference& reference) {
  std::vector<Real> sums;
  for (const double lse : reference.lse.values)
    sums.push_back(static_cast<Real>(c.base.kernel.is_softmax() ? lse : std::exp(lse)));
  return sums;
}

template <class T>
std::vector<double> masses(const AttentionCase& c, const AttentionInputs<T>& in,
                           const std::vector<ArithmeticOf<T>>& lse, Index rows, const Options& options) {
  std::vector<double> mass(static_cast<std::size_t>(rows * c.shapes.n_k), NAN);
  key_mass(in.q.view(), in.k.view(), matrix(lse, c.shapes.heads), {mass.data(), rows, c.shapes.n_k}, options);
  return mass;
}
template <class T>
std::vector<double> masses(const AttentionCase& c, const AttentionInputs<T>& in,
                           const std::vector<ArithmeticOf<T>>& lse) {
  return masses(c, in, lse, c.shapes.heads, c.options());
}

template <class T>
Tensor<ArithmeticOf<T>> weights_of(const AttentionCase& c, const AttentionInputs<T>& in,
                                   const std::vector<Index>& heads, const Options& options) {
  Tensor<ArithmeticOf<T>> weights(std::ssize(heads), c.shapes.n_q, c.shapes.n_k);
  std::fill(weights.values.begin(), weights.values.end(), std::numeric_limits<ArithmeticOf<T>>::quiet_NaN());
  attention_weights(in.q.view(), in.k.view(), heads, weights.view(), options);
  return weights;
}

/// The last head, and the first.
std::vector<Index> some_heads(const AttentionCase& c) {
  if (c.shapes.heads == 1) return {0};
  return {c.shapes.heads - 1, 0};
}

double largest_norm(const Tensor<double>& x) {
  double most = 0;
  for (Index h = 0; h < x.heads; ++h)
    for (Index i = 0; i < x.rows; ++i) {
      double squares = 0;
      for (Index m = 0; m < x.cols; ++m) squares += x(h, i, m) * x(h, i, m);
      most = std::max(most, std::sqrt(squares));
    }
  return most;
}

/// |t| of what weights are off by, as the headers have it: a logit takes d roundings of products and some of
/// rotation, softcap (8), biases (within +-4 here) and exponentials.
template <class T>
double bound(const AttentionCase& c, const AttentionInputs<T>& in, const Reference& reference) {
  constexpr double u = std::numeric_limits<ArithmeticOf<T>>::epsilon() / 2;
  const double entry = c.base.weights ? 3 : 1;  // more entries than columns, below 1
  const double scale = c.base.scale.value_or(1 / std::sqrt(static_cast<double>(c.shapes.d)));
  double size = 4 + entry * scale * largest_norm(converted<double>(in.q.view())) *
                        largest_norm(converted<double>(in.k.view()));
  if (!c.base.bias.empty()) size += 0.1 * static_cast<double>(c.shapes.n_q + c.shapes.n_k);
  for (const double lse : reference.lse.values)
    if (std::isfinite(lse)) size = std::max(size, std::abs(lse));
  return u * (static_cast<double>(c.shapes.d) + 40) * size;
}

template <class T>
void expect_near_oracle(const AttentionCase& c, const AttentionInputs<T>& in) {
  const Shapes& s = c.shapes;
  const Reference reference = oracle(c, in);
  const double factor = std::expm1(bound(c, in, reference)), tiny = 1e-37 * static_cast<double>(s.n_q + 1);
  const std::vector<ArithmeticOf<T>> sums = row_sums<ArithmeticOf<T>>(c, reference);
  for (const Index rows : {s.heads, s.kv_heads}) {
    const std::vector<double> mass = masses(c, in, sums, rows, c.options());
    const Index together = s.heads / rows;
    for (Index row = 0; row < rows; ++row)
      for (Index j = 0; j < s.n_k; ++j) {
        double expected = 0;
        for (Index h = row * together; h < (row + 1) * together; ++h)
          for (Index i = 0; i < s.n_q; ++i) expected += reference.out(h, i, j);
        const double got = mass[static_cast<std::size_t>(row * s.n_k + j)];
        ASSERT_LE(distance(got, expected), factor * expected + tiny)
            << c << ", mass of row " << row << " of " << rows << ", key " << j << ": " << got << " and "
            << expected;
      }
  }
  const std::vector<Index> heads = some_heads(c);
  const auto weights = weights_of(c, in, heads, c.options());
  for (Index m = 0; m < std::ssize(heads); ++m)
    for (Index i = 0; i < s.n_q; ++i)
      for (Index j = 0; j < s.n_k; ++j) {
        const double expected = reference.out(heads[static_cast<std::size_t>(m)], i, j);
        ASSERT_LE(distance(static_cast<double>(weights(m, i, j)), expected), 2 * factor * expected + tiny)
            << c << ", head " << heads[static_cast<std::size_t>(m)] << ", row " << i << ", key " << j;
      }
}

/// Changes of a case: every option that scores have.
std::vector<std::function<void(AttentionCase&, Inputs&)>> changes() {
  return {
      [](AttentionCase&, Inputs&) {},
      [](AttentionCase& c, Inputs&) { c.base.mask = Mask::causal(), c.base.rope = Rope{}; },
      [](AttentionCase& c, Inputs& random) {
        c.base.mask = Mask::sliding_window(40);
        c.base.softcap = 3;
        set_alibi(c, random);
      },
      [](AttentionCase& c, Inputs& random) {
        c.base.scale = 0.3;
        set_t5(c, random, true);
        set_sinks(c, random);
      },
      [](AttentionCase& c, Inputs& random) {
        c.base.rope = Rope{};
        c.base.rope_already_applied = true;
        c.base.mask = Mask::lags(-7, 60);
        set_dense(c, random, true, true, 3);
      },
      [](AttentionCase& c, Inputs& random) {
        set_alibi(c, random);
        set_sinks(c, random);
        set_dense(c, random, false, false, 4);
      },
      [](AttentionCase& c, Inputs& random) {
        c.base.mask = Mask::causal();
        c.base.rope = Rope{};
        c.key_positions = shuffled_positions(random, c.shapes.n_k, 5);
        c.query_positions = shuffled_positions(random, c.shapes.n_q, c.shapes.n_k / 2);
        c.text += ", positions in disorder";
      },
      [](AttentionCase& c, Inputs& random) {
        c.base.rope = Rope{};
        set_sections(c, random, {1, 1, c.shapes.d / 2 - 2}, fastrope::SectionOrder::consecutive);
      },
      [](AttentionCase& c, Inputs&) {
        c.base.mask = Mask::causal();
        c.ranges.per_row = 2;
        for (Index i = 0; i < c.shapes.n_q; ++i) {
          const Index third = c.shapes.n_k / 3;
          c.ranges.ranges.push_back({i % 5, std::max(i % 5, third)});
          c.ranges.ranges.push_back(i % 4 == 0 ? Range{} : Range{std::max(i % 5, third) + 1, c.shapes.n_k});
        }
        c.text += ", key ranges";
        if (c.shapes.n_k < 8) c.ranges = {};
      },
      [](AttentionCase& c, Inputs& random) {
        c.base.weights = random_weights(random, c.shapes.d, 9, c.shapes.n_q + c.shapes.n_k);
        c.text += ", general weights";
      },
      [](AttentionCase& c, Inputs&) {
        c.base.kernel = Kernel::taylor(2);
        c.base.mask = Mask::causal();
        c.text += ", polynomial";
      },
  };
}

template <class T>
class WeightsTest : public testing::Test {};
using Elements = testing::Types<float, double, bfloat16, float16>;
TYPED_TEST_SUITE(WeightsTest, Elements);

TYPED_TEST(WeightsTest, AreTheOraclesForAllOptionsAndShapes) {
  Inputs random(1);
  for (const Shapes shapes : {Shapes{2, 2, 1, 1, 8, 0},
                              {8, 2, 1, 130, 8, 0},
                              {4, 2, 3, 63, 12, 0},
                              {6, 2, 17, 150, 8, 0},
                              {2, 1, 17, 40, 8, 0},
                              {2, 1, 200, 131, 8, 0},
                              {4, 4, 50, 33, 70, 0},
                              {40, 1, 7, 90, 8, 0}})
    for (const auto& change : changes()) {
      AttentionCase c{.shapes = shapes};
      change(c, random);
      expect_near_oracle(c, AttentionInputs<TypeParam>(shapes, random));
    }
}

TYPED_TEST(WeightsTest, AddUpToTheRowsThatHaveAKeyWithoutTheShareOfSinks) {
  using Real = ArithmeticOf<TypeParam>;
  // bfloat16 products, which the lse below may be of, round logits to 2^-8 of their size.
  const double eps = std::is_same_v<TypeParam, bfloat16> ? 0.02 : std::is_same_v<Real, float> ? 1e-5 : 1e-13;
  for (const auto& [n_q, n_k] : {std::pair<Index, Index>{1, 3000}, {3, 1200}, {70, 50}, {300, 1300}})
    for (const bool sinks : {false, true}) {
      AttentionCase c{.shapes = {4, 2, n_q, n_k, 16, 5}};  // where n_q > n_k, some rows stand before all keys
      c.base.mask = Mask::causal();
      Inputs random(3);
      if (sinks) set_sinks(c, random);
      AttentionInputs<TypeParam> in(c.shapes, random);
      std::vector<Real> lse(static_cast<std::size_t>(4 * n_q));
      attend_partial(in.q.view(), in.k.view(), in.v.view(), in.out.view(), matrix(lse, 4), c.options());
      const std::vector<double> mass = masses(c, in, lse);
      const auto weights = weights_of(c, in, {0, 1, 2, 3}, c.options());
      for (Index h = 0; h < 4; ++h) {
        double rows = 0, of_masses = 0;
        for (Index i = 0; i < n_q; ++i) {
          double row = n_q - i <= n_k ? 1 : 0, of_weights = 0;
          if (sinks)
            row -= std::exp(static_cast<double>(c.sinks[static_cast<std::size_t>(h)]) -
                            static_cast<double>(lse[static_cast<std::size_t>(h * n_q + i)]));
          if (n_q - i > n_k) row = 0;
          for (Index j = 0; j < n_k; ++j) of_weights += static_cast<double>(weights(h, i, j));
          EXPECT_NEAR(of_weights, row, eps) << c << ", row " << i;
          rows += row;
        }
        for (Index j = 0; j < n_k; ++j) of_masses += mass[static_cast<std::size_t>(h * n_k + j)];
        EXPECT_NEAR(of_masses, rows, eps * static_cast<double>(n_q)) << c << ", head " << h;
      }
    }
}

template <class Real>
class WeightsOfReals : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(WeightsOfReals, Reals);

TYPED_TEST(WeightsOfReals, AreTheOraclesBeyondASplitOfTheKeys) {
  Inputs random(2);
  for (const Shapes shapes : {Shapes{4, 2, 2, 2100, 8, 0}, {1, 1, 260, 1100, 8, 0}, {1, 1, 60, 1300, 8, 0}})
    for (const Mask mask : {Mask::causal(), Mask::sliding_window(100), Mask::lags(1200, 1300)}) {
      AttentionCase c{.shapes = shapes};
      c.base.rope = Rope{};
      c.base.mask = mask;
      expect_near_oracle(c, AttentionInputs<TypeParam>(shapes, random));
    }
}

TYPED_TEST(WeightsOfReals, AreTheSameBitsForAnyNumberOfThreads) {
  Inputs random(4);
  for (const Shapes shapes : {Shapes{8, 2, 1, 2100, 8, 0}, {4, 2, 210, 1200, 8, 0}}) {
    AttentionCase c{.shapes = shapes};
    c.base.mask = Mask::causal();
    set_alibi(c, random);
    const AttentionInputs<TypeParam> in(shapes, random);
    const std::vector<TypeParam> lse(static_cast<std::size_t>(shapes.heads * shapes.n_q), 3);
    Options options = c.options();
    const auto mass = masses(c, in, lse, 2, options);
    const auto weights = weights_of(c, in, {1, 3}, options);
    for (const Index count : {2, 3, 7}) {
      options.executor = threads(count);
      EXPECT_EQ(masses(c, in, lse, 2, options), mass) << count << " threads";
      EXPECT_EQ(weights_of(c, in, {1, 3}, options).values, weights.values) << count << " threads";
    }
  }
}

TYPED_TEST(WeightsOfReals, NumbersThatAreNoneStayWithTheirRows) {
  for (const Index n_q : {4, 60}) {  // decoded, in tiles
    for (const TypeParam bad :
         {std::numeric_limits<TypeParam>::quiet_NaN(), std::numeric_limits<TypeParam>::infinity()}) {
      AttentionCase c{.shapes = {2, 1, n_q, 100, 8, 5}};
      c.base.mask = Mask::causal();
      AttentionInputs<TypeParam> in(c.shapes, 5);
      in.q(0, 1, 2) = bad;  // sees the keys up to 100 - n_q + 1
      const auto run = [&](std::vector<TypeParam>& lse) {
        attend_partial(in.q.view(), in.k.view(), in.v.view(), in.out.view(), matrix(lse, 2), c.options());
      };
      std::vector<TypeParam> lse(static_cast<std::size_t>(2 * n_q));
      run(lse);
      ASSERT_TRUE(std::isnan(lse[1]));
      const auto mass = masses(c, in, lse);
      const auto weights = weights_of(c, in, {0, 1}, c.options());
      for (Index h = 0; h < 2; ++h)
        for (Index j = 0; j < 100; ++j) {
          // A logit of -infinity is a weight of 0.
          const bool none = h == 0 && j <= 100 - n_q + 1 && (std::isnan(bad) || in.k(0, j, 2) > 0);
          EXPECT_EQ(std::isnan(mass[static_cast<std::size_t>(h * 100 + j)]), none) << h << ", " << j;
          for (Index i = 0; i < n_q; ++i) {
            EXPECT_EQ(std::isnan(weights(h, i, j)), none && i == 1) << h << ", " << i << ", " << j;
          }
        }

      // A row whose lse is set to -infinity does not count, whatever it holds.
      lse[1] = -std::numeric_limits<TypeParam>::infinity();
      AttentionInputs<TypeParam> good = in;
      good.q(0, 1, 2) = 1;
      EXPECT_EQ(masses(c, in, lse), masses(c, good, lse));

      // A key that is not a number, in the rows that see it: the last.
      good.k(0, 99, 0) = bad;
      const auto of_key = weights_of(c, good, {0}, c.options());
      for (Index i = 0; i < n_q; ++i) EXPECT_EQ(std::isnan(of_key(0, i, 99)), i == n_q - 1) << i;
    }
  }
}

TYPED_TEST(WeightsOfReals, RowsWithoutAKeyAreZeros) {
  for (const Index n_q : {6, 90}) {
    AttentionCase c{.shapes = {1, 1, n_q, n_q / 2, 8, 0}};
    c.base.mask = Mask::causal();
    const AttentionInputs<TypeParam> in(c.shapes, 6);
    const auto weights = weights_of(c, in, {0}, c.options());
    for (Index i = 0; i < n_q; ++i) EXPECT_EQ(weights(0, i, 0) == 0, i < n_q / 2) << i;
    c.base.mask = Mask::lags(1000, 2000);
    const std::vector<TypeParam> lse(static_cast<std::size_t>(n_q), static_cast<TypeParam>(-kInfinity));
    EXPECT_THAT(masses(c, in, lse), testing::Each(0.0));
    EXPECT_THAT(weights_of(c, in, {0}, c.options()).values, testing::Each(TypeParam{0}));
  }
}

TYPED_TEST(WeightsOfReals, HugeBiasesLeaveTheSoftmaxOfWhatIsLeft) {
  AttentionCase c{.shapes = {1, 1, 4, 70, 8, 0}};
  Inputs random(7);
  set_dense(c, random, true, true, 1000);
  for (Index j = 0; j < 70; ++j) c.dense[static_cast<std::size_t>(70 + j)] = -FLT_MAX;  // a row of padding
  c.dense[2 * 70] = FLT_MAX;                                                            // one key has it all
  c.sinks = {1};
  AttentionInputs<TypeParam> in(c.shapes, random);
  for (Index m = 0; m < 8; ++m) in.q(0, 2, m) = in.k(0, 0, m) = 2;  // a logit of 11
  const Reference reference = oracle(c, in);
  const auto weights = weights_of(c, in, {0}, c.options());
  EXPECT_LE(max_abs_difference(weights.view(), reference.out.view()),
            (std::is_same_v<TypeParam, float> ? 1e-5 : 1e-13));
  EXPECT_EQ(weights(0, 1, 0), 0);  // the sink's
  EXPECT_EQ(weights(0, 2, 0), 1);
  // The lse of that key's row is as huge and has lost all digits: what is left is that no weight is above 1.
  const auto mass = masses(c, in, row_sums<TypeParam>(c, reference));
  for (const double m : mass) EXPECT_TRUE(m >= 0 && m <= 4) << m;
}

TYPED_TEST(WeightsOfReals, MassesOfPartsOfTheKeysAreThoseOfTheWhole) {
  const AttentionCase whole{.shapes = {4, 2, 5, 300, 8, 0}};
  AttentionInputs<TypeParam> in(whole.shapes, 8);
  const auto lse = row_sums<TypeParam>(whole, oracle(whole, in));
  const auto all = masses(whole, in, lse);
  for (const Range part : {Range{0, 100}, {100, 300}}) {
    std::vector<double> mass(static_cast<std::size_t>(4 * part.size()));
    key_mass(in.q.view(), fastrope::rows(in.k.view(), part), matrix(lse, 4), matrix(mass, 4),
             whole.options());
    for (Index h = 0; h < 4; ++h)
      for (Index j = 0; j < part.size(); ++j)
        EXPECT_NEAR(mass[static_cast<std::size_t>(h * part.size() + j)],
                    all[static_cast<std::size_t>(h * 300 + part.begin + j)], 1e-6);
  }
}

TYPED_TEST(WeightsOfReals, OfPagesAreTheSameBits) {
  for (const Index n_q : {1, 40}) {
    AttentionCase c{.shapes = {2, 1, n_q, 29, 10, 0}};
    c.base.mask = Mask::causal();
    c.base.rope = Rope{};
    const AttentionInputs<TypeParam> in(c.shapes, 9);
    const PagedCopy<TypeParam> pages(in.k);
    const auto lse = row_sums<TypeParam>(c, oracle(c, in));
    std::vector<double> mass(2 * 29);
    key_mass(in.q.view(), pages.view(), matrix(lse, 2), matrix(mass, 2), c.options());
    EXPECT_EQ(mass, masses(c, in, lse));
    const std::vector<Index> heads = {1};
    Tensor<TypeParam> weights(1, n_q, 29);
    attention_weights(in.q.view(), pages.view(), heads, weights.view(), c.options());
    EXPECT_EQ(weights.values, weights_of(c, in, heads, c.options()).values);
  }
}

TYPED_TEST(WeightsOfReals, APlanTakesFewerRowsAndNoMoreMemory) {
  for (const auto& [heads, kv_heads] : {std::pair<Index, Index>{4, 2}, {40, 1}})
    for (const Mask mask : {Mask::causal(), Mask::sliding_window(90)}) {
      AttentionCase c{.shapes = {heads, kv_heads, 60, 700, 8, 0}};
      c.base.mask = mask;
      c.base.rope = Rope{};
      c.base.executor = threads(2);
      const AttentionInputs<TypeParam> in(c.shapes, 10);
      const WeightsPlan<TypeParam> plan(c.shapes, c.options());
      ASSERT_TRUE(plan.has_capacity());
      for (const auto& [n_q, n_k] : {std::pair<Index, Index>{60, 700},
                                     {1, 1},
                                     {1, 700},
                                     {3, 401},
                                     {12, 130},
                                     {59, 60},
                                     {0, 5},
                                     {5, 0},
                                     {60, 64}}) {
        AttentionCase less = c;
        less.shapes.n_q = n_q, less.shapes.n_k = n_k;
        EXPECT_LE(WeightsPlan<TypeParam>(less.shapes, less.options()).workspace_bytes(),
                  plan.workspace_bytes());
        // Fenced: what is behind the workspace stays as it is.
        std::vector<std::byte> memory(plan.workspace_bytes() + 64, std::byte{0xff});
        const auto workspace = std::span(memory).first(plan.workspace_bytes());
        const auto q = fastrope::rows(in.q.view(), {0, n_q}), k = fastrope::rows(in.k.view(), {0, n_k});
        const std::vector<TypeParam> lse(static_cast<std::size_t>(heads * n_q), 3);
        std::vector<double> mass(static_cast<std::size_t>(heads * n_k), NAN), alone = mass;
        const MatrixView<const TypeParam> lse_view(lse.data(), heads, n_q);
        ASSERT_EQ(plan.key_mass(q, k, lse_view, {mass.data(), heads, n_k}, workspace), RunStatus::ok);
        key_mass(q, k, lse_view, {alone.data(), heads, n_k}, less.options());
        EXPECT_EQ(mass, alone) << less;
        const std::vector<Index> chosen = {2, 0, 2};
        Tensor<TypeParam> weights(3, n_q, n_k), weights_alone = weights;
        ASSERT_EQ(plan.attention_weights(q, k, chosen, weights.view(), workspace), RunStatus::ok);
        attention_weights(q, k, chosen, weights_alone.view(), less.options());
        EXPECT_EQ(weights.values, weights_alone.values) << less;
        EXPECT_TRUE(
            std::all_of(memory.end() - 64, memory.end(), [](std::byte b) { return b == std::byte{0xff}; }));
      }
    }
}

TYPED_TEST(WeightsOfReals, DecodingPacksNoKeys) {
  Options options{.rope = Rope{}, .mask = Mask::sliding_window(1024)};
  EXPECT_LT(WeightsPlan<TypeParam>({8, 8, 1, 524288, 128, 128}, options).workspace_bytes(),
            std::size_t{2} << 20);
  // Room for a block of keys as numbers, which those with scales are made, is there for any.
  constexpr std::size_t kBlock = 80 * 128 * sizeof(TypeParam);
  EXPECT_LT(WeightsPlan<TypeParam>({32, 8, 1, 16384, 128, 128}, {}).workspace_bytes(),
            kBlock + (std::size_t{1} << 17));
}

TEST(Weights, APlanRefusesWhatItDoesNotTake) {
  const WeightsPlan<float> plan({2, 1, 4, 10, 8, 8}, {});
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const AttentionInputs<float> in({2, 1, 4, 10, 8, 0}, 1), more({2, 1, 4, 11, 8, 0}, 1);
  std::vector<float> lse(8, 1);
  std::vector<double> mass(22, -1);
  const auto run = [&](const AttentionInputs<float>& x, Index rows, std::span<std::byte> memory) {
    return plan.key_mass(x.q.view(), x.k.view(), matrix(lse, 2), {mass.data(), rows, x.k.rows}, memory);
  };
  EXPECT_EQ(run(more, 2, workspace), RunStatus::shape_mismatch);
  EXPECT_EQ(run(in, 3, workspace), RunStatus::shape_mismatch);
  EXPECT_EQ(run(in, 2, std::span(workspace).first(workspace.size() - 1)), RunStatus::workspace_too_small);
  EXPECT_THAT(mass, testing::Each(-1.0));  // nothing was written
  EXPECT_EQ(run(in, 2, workspace), RunStatus::ok);

  Options options;
  options.executor = {1, [](Index, fastrope::TaskRef) { throw 1; }};
  const WeightsPlan<float> failing({2, 1, 4, 10, 8, 8}, options);
  EXPECT_EQ(failing.key_mass(in.q.view(), in.k.view(), matrix(lse, 2), {mass.data(), 2, 10}, workspace),
            RunStatus::executor_failed);
}

TEST(Weights, BadShapesAreNamed) {
  const AttentionInputs<float> in({4, 2, 10, 30, 8, 0}, 1);
  const std::vector<float> lse(40);
  std::vector<double> mass(120);
  const auto with_mass = [&](MatrixView<const float> l, MatrixView<double> m) {
    return error_of([&] { key_mass(in.q.view(), in.k.view(), l, m, {}); });
  };
  const MatrixView<const float> good(lse.data(), 4, 10);
  EXPECT_EQ(with_mass(good, {mass.data(), 4, 30}), "no Error");
  EXPECT_EQ(with_mass(good, {mass.data(), 2, 30}), "no Error");
  EXPECT_EQ(with_mass({lse.data(), 4, 9}, {mass.data(), 4, 30}),
            "lse is [4, 9], the call is [heads = 4, n_q = 10]");
  EXPECT_EQ(with_mass({nullptr, 4, 10}, {mass.data(), 4, 30}),
            "lse is [4, 10] and null, the call is [heads = 4, n_q = 10]");
  EXPECT_EQ(with_mass(good, {mass.data(), 3, 30}),
            "mass is [3, 30], the result is [heads = 4 or kv_heads = 2, n_k = 30]");
  EXPECT_EQ(with_mass(good, {mass.data(), 2, 29}),
            "mass is [2, 29], the result is [heads = 4 or kv_heads = 2, n_k = 30]");
  EXPECT_EQ(with_mass(good, {mass.data(), 4, 30, 29}),
            "mass is [4, 30] with row_stride 29: rows would overwrite each other");

  std::vector<float> weights(2 * 10 * 30);
  const auto with_heads = [&](std::vector<Index> heads, TensorView<float> w) {
    return error_of([&] { attention_weights(in.q.view(), in.k.view(), heads, w, {}); });
  };
  EXPECT_EQ(with_heads({0, 3}, fastrope::contiguous(weights.data(), 2, 10, 30)), "no Error");
  EXPECT_EQ(with_heads({}, fastrope::contiguous(weights.data(), 0, 10, 30)), "no Error");
  EXPECT_EQ(with_heads({0, 4}, fastrope::contiguous(weights.data(), 2, 10, 30)),
            "heads[1] is 4, q has heads 0 to 3");
  EXPECT_EQ(with_heads({-1}, fastrope::contiguous(weights.data(), 1, 10, 30)),
            "heads[0] is -1, q has heads 0 to 3");
  EXPECT_EQ(with_heads({1}, fastrope::contiguous(weights.data(), 2, 10, 30)),
            "weights is [2, 10, 30], the result is [chosen heads = 1, n_q = 10, n_k = 30]");
  EXPECT_EQ(with_heads({1, 2}, {weights.data(), 2, 10, 30, 299, 30}),
            "weights is [2, 10, 30] with head_stride 299 and row_stride 30: rows would overwrite each other");

  const AttentionInputs<float> other({4, 2, 10, 30, 9, 0}, 1);
  EXPECT_EQ(error_of([&] {
              key_mass(in.q.view(), other.k.view(), good, {mass.data(), 4, 30}, {});
            }),
            "k has d = 9 columns, q has d = 8");
}

TEST(Weights, OfNothing) {
  for (const Shapes s :
       {Shapes{0, 0, 3, 4, 8, 0}, {2, 1, 0, 4, 8, 0}, {2, 1, 3, 0, 8, 0}, {0, 2, 3, 4, 8, 0}}) {
    const AttentionInputs<float> in(s, 1);
    const std::vector<float> lse(static_cast<std::size_t>(s.heads * s.n_q));
    std::vector<double> mass(static_cast<std::size_t>(s.kv_heads * s.n_k), NAN);
    key_mass(in.q.view(), in.k.view(), {lse.data(), s.heads, s.n_q}, {mass.data(), s.kv_heads, s.n_k}, {});
    EXPECT_THAT(mass, testing::Each(0.0));
  }
}

}  // namespace
}  // namespace fastrope_test
