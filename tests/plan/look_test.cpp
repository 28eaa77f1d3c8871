// The look at the data: rows as planning sees them, and bounds that no row, value or family exceeds.
#include "fastrope/plan/look.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/core/paged_view.hpp"
#include "support/attention_case.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::HasSubstr;

/// Valid while the problem lives.
template <class T, class KV>
GroupLook<ArithmeticOf<T>> look_at(const Problem& problem, const AttentionInputs<T, KV>& in, Index kv) {
  return group_look<ArithmeticOf<T>>(problem, kv, TensorView<const T>(in.q.view()),
                                     TensorView<const KV>(in.k.view()), TensorView<const KV>(in.v.view()));
}

/// All rows of a source, read a few at a time.
template <class Real>
Rows<Real> read_all(const RowSource<Real>& source, bool turned = true, Index few = 77) {
  Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows(source.count, source.d);
  for (Index begin = 0; begin < source.count; begin += few)
    source.read({begin, std::min(begin + few, source.count)}, turned, rows.data() + begin * source.d);
  return rows;
}

/// The source has head h of x in the given order, and norm bounds the longest, hardly loosely.
template <class Real, class T>
void expect_rows(const RowSource<Real>& source, double norm, const Tensor<T>& x, Index h,
                 const std::vector<Index>& order) {
  ASSERT_EQ(source.count, x.rows);
  ASSERT_EQ(source.d, x.cols);
  constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
  const Rows<Real> rows = read_all(source);
  EXPECT_EQ(rows, read_all(source, true, 1)) << "rows depend on what is read beside them";
  double largest = 0;
  for (Index i = 0; i < x.rows; ++i) {
    double square = 0;
    for (Index m = 0; m < x.cols; ++m) {
      const double expected = static_cast<double>(x(h, order[static_cast<std::size_t>(i)], m));
      square += expected * expected;
      // Phases of up to 200 radians, to 7 roundings of a double.
      EXPECT_NEAR(static_cast<double>(rows(i, m)), expected,
                  4 * (kEpsilon + 200 * std::numeric_limits<double>::epsilon()));
    }
    largest = std::max(largest, std::sqrt(square));
    EXPECT_LE(static_cast<double>(rows.row(i).template cast<double>().norm()), norm);
  }
  EXPECT_NEAR(norm, largest, 4 * static_cast<double>(x.cols + 4) * kEpsilon * largest);
}

std::vector<Index> in_order(Index n) {
  std::vector<Index> order(static_cast<std::size_t>(n));
  for (Index i = 0; i < n; ++i) order[static_cast<std::size_t>(i)] = i;
  return order;
}

TEST(GroupLook, ReadsRotatedRows) {
  const auto expect = [](auto real) {
    using Real = decltype(real);
    AttentionCase c{.shapes = {4, 2, 90, 150, 8, 3}};
    c.base.rope = Rope{};
    AttentionInputs<Real> in(c.shapes, 1);
    Tensor<double> q = converted<double>(in.q.view()), k = converted<double>(in.k.view());
    reference_rotate(
        *c.base.rope, [](Index i) { return 60 + i; }, q);
    reference_rotate(
        *c.base.rope, [](Index j) { return j; }, k);
    const Problem problem(c.shapes, c.options());
    for (Index kv = 0; kv < 2; ++kv) {
      auto look = look_at(problem, in, kv);
      for (Index g = 0; g < 2; ++g)
        expect_rows(look.queries(g), look.query_norm(g), q, 2 * kv + g, in_order(90));
      expect_rows(look.keys(), look.key_norm(), k, kv, in_order(150));
    }
  };
  expect(0.0f);
  expect(0.0);
}

TEST(GroupLook, ReadsRowsInOrderOfPositionAndOfAnyStorage) {
  const auto expect = [](auto q_type, auto kv_type, std::optional<Rope> rope) {
    using T = decltype(q_type);
    using KV = decltype(kv_type);
    AttentionCase c{.shapes = {1, 1, 30, 70, 6, 3}};
    c.base.rope = rope;
    Inputs random(2);
    c.key_positions = shuffled_positions(random, 70, 11);
    c.query_positions = shuffled_positions(random, 30, 50);
    AttentionInputs<T, KV> in(c.shapes, random);
    std::vector<Index> order(70);
    for (Index j = 0; j < 70; ++j)
      order[static_cast<std::size_t>(c.key_positions[static_cast<std::size_t>(j)] - 11)] = j;
    Tensor<double> q = converted<double>(in.q.view()), k = converted<double>(in.k.view());
    if (rope) {
      reference_rotate(
          *rope, [&](Index i) { return c.query_positions[static_cast<std::size_t>(i)]; }, q);
      reference_rotate(
          *rope, [&](Index j) { return c.key_positions[static_cast<std::size_t>(j)]; }, k);
    }
    const Problem problem(c.shapes, c.options());
    auto look = look_at(problem, in, 0);
    expect_rows(look.queries(0), look.query_norm(0), q, 0, in_order(30));
    expect_rows(look.keys(), look.key_norm(), k, 0, order);
    const auto values = read_all(look.values());
    for (Index j = 0; j < 70; ++j)
      for (Index m = 0; m < 3; ++m)
        EXPECT_EQ(static_cast<double>(values(j, m)),
                  static_cast<double>(in.v(0, order[static_cast<std::size_t>(j)], m)));
  };
  for (const auto& rope : {std::optional<Rope>{}, {Rope{}}, {Rope{.rotary_dim = 4}}}) {
    expect(0.0, 0.0, rope);
    expect(0.0f, bfloat16{}, rope);
    expect(float16{}, float16{}, rope);
  }
}

TEST(GroupLook, OfPagesReadsTheSameRowsAsWithoutGaps) {
  constexpr Index kPageRows = 8;
  AttentionCase c{.shapes = {2, 1, 20, 29, 4, 3}};
  c.base.rope = Rope{};
  const AttentionInputs<float> in(c.shapes, 5);
  const std::vector<std::int32_t> pages = {3, 0, 5, 1};  // of six
  const auto paged = [&](const Tensor<float>& x, std::vector<float>& memory) {
    memory.assign(static_cast<std::size_t>(6 * kPageRows * x.cols), NAN);
    for (Index j = 0; j < x.rows; ++j)
      for (Index m = 0; m < x.cols; ++m) {
        const Index row = pages[static_cast<std::size_t>(j / kPageRows)] * kPageRows + j % kPageRows;
        memory[static_cast<std::size_t>(row * x.cols + m)] = x(0, j, m);
      }
    const Index page = kPageRows * x.cols;
    return PagedView<const float>{memory.data(), 1, x.rows, x.cols, kPageRows, pages, page, page, x.cols};
  };
  std::vector<float> key_memory, value_memory;
  const auto k = paged(in.k, key_memory), v = paged(in.v, value_memory);
  const Problem problem(c.shapes, c.options());
  auto expected = look_at(problem, in, 0);
  auto look = group_look<float>(problem, 0, TensorView<const float>(in.q.view()), k, v);
  EXPECT_EQ(read_all(look.keys()), read_all(expected.keys()));
  EXPECT_EQ(read_all(look.values()), read_all(expected.values()));
  for (Index h = 0; h < 2; ++h) EXPECT_EQ(read_all(look.queries(h)), read_all(expected.queries(h)));
  EXPECT_EQ(look.key_norm(), expected.key_norm());
  EXPECT_EQ(look.value_bounds().spread(), expected.value_bounds().spread());
  EXPECT_EQ(look.not_finite(0), "");  // what no row of a page holds is not looked at
}

TEST(GroupLook, ReadsLengthsWithoutTurningRows) {
  // As they are where turning changes directions only, else turned.
  Inputs random(6);
  for (const Rope& rope :
       {Rope{}, Rope{.rotary_dim = 4},
        Rope{.rotary_dim = 4, .scaling = YarnScaling{.factor = 16, .original_context = 32}}}) {
    AttentionCase c{.shapes = {1, 1, 40, 90, 6, 2}};
    c.base.rope = rope;
    const AttentionInputs<double> in(c.shapes, random);
    const Problem problem(c.shapes, c.options());
    const auto look = look_at(problem, in, 0);
    const bool stretches = problem.rotation.frequencies().attention_factor != 1;
    for (const auto& [source, x] : {std::pair{look.queries(0), &in.q}, {look.keys(), &in.k}}) {
      const Rows<double> turned = read_all(source), lengths = read_all(source, false);
      EXPECT_LE((turned.rowwise().norm() - lengths.rowwise().norm()).norm(), 1e-13);
      for (Index i = 0; i < x->rows; ++i)
        for (Index m = 0; m < 6; ++m) EXPECT_EQ(lengths(i, m), stretches ? turned(i, m) : (*x)(0, i, m));
      EXPECT_GT((turned - lengths).norm(), stretches ? -1 : 1);
    }
  }
}

TEST(GroupLook, SaysWhatIsNotFinite) {
  const auto expect = [](auto q_type, auto kv_type, double overflow) {
    using T = decltype(q_type);
    using KV = decltype(kv_type);
    for (const bool turned : {false, true}) {
      AttentionCase c{.shapes = {4, 2, 9, 15, 8, 3}};
      if (turned) c.base.rope = Rope{};
      for (const double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY),
                               static_cast<double>(-INFINITY), overflow, -overflow}) {
        AttentionInputs<T, KV> in(c.shapes, 2);
        in.q(1, 8, 7) = static_cast<T>(bad);
        in.k(1, 14, 0) = static_cast<KV>(bad);
        in.v(0, 0, 2) = static_cast<KV>(bad);
        const Problem problem(c.shapes, c.options());
        auto first = look_at(problem, in, 0), second = look_at(problem, in, 1);
        EXPECT_FALSE(std::isinf(first.query_norm(0)));
        EXPECT_TRUE(std::isinf(first.query_norm(1))) << bad;
        EXPECT_FALSE(std::isinf(second.query_norm(0)));
        EXPECT_FALSE(std::isinf(second.query_norm(1)));
        EXPECT_FALSE(std::isinf(first.key_norm()));
        EXPECT_TRUE(std::isinf(second.key_norm())) << bad;
        EXPECT_EQ(first.not_finite(0), "");  // nobody asked for values
        EXPECT_THAT(first.not_finite(1), HasSubstr("q is not finite"));
        EXPECT_THAT(second.not_finite(0), HasSubstr("k is not finite"));
        EXPECT_EQ(first.value_bounds().finite(), std::isfinite(bad));  // values have no norms to overflow
        EXPECT_TRUE(second.value_bounds().finite());
        EXPECT_THAT(first.not_finite(0), HasSubstr(std::isfinite(bad) ? "" : "v is not finite"));
        EXPECT_EQ(first.not_finite(0).empty(), std::isfinite(bad));
      }
    }
  };
  expect(0.0, 0.0, 1e200);
  expect(0.0f, 0.0f, 1e20);
  expect(0.0f, bfloat16{}, 1e20);
}

TEST(ValueBounds, SpreadIsHalfTheLargestRangeOverTheLargestElement) {
  const auto spread = [](std::vector<double> values, Index cols) {
    const auto count = static_cast<Index>(values.size()) / cols;
    Rows<double> x(count, cols);
    for (Index i = 0; i < count * cols; ++i) x(i / cols, i % cols) = values[static_cast<std::size_t>(i)];
    ValueBounds<double> bounds;
    bounds.extend(source_of(x));
    EXPECT_TRUE(bounds.finite());
    return bounds.spread();
  };
  EXPECT_DOUBLE_EQ(spread({1, -1}, 1), 1);
  EXPECT_DOUBLE_EQ(spread({0, 4}, 1), 0.5);
  EXPECT_DOUBLE_EQ(spread({3, 4, 3, 3}, 1), 0.125);
  EXPECT_DOUBLE_EQ(spread({3, 0, 4, 1}, 2), 0.125);           // columns 3, 4 and 0, 1
  EXPECT_DOUBLE_EQ(spread({-8, 2, -8, -2, -8, 0}, 2), 0.25);  // the range in one column, the size in another
  EXPECT_DOUBLE_EQ(spread({0, 0}, 1), 1);
  EXPECT_DOUBLE_EQ(spread({7, 7, 7}, 1), 0);
  EXPECT_DOUBLE_EQ(spread({-3, -4}, 1), 0.125);
  EXPECT_DOUBLE_EQ(spread({1e-200, 3e-200}, 1), 1.0 / 3);
  // Outward: no smaller than the exact quotient.
  Inputs random(3);
  for (int repeat = 0; repeat < 100; ++repeat) {
    const double low = random.uniform(-1, 0), high = random.uniform(0, 1);
    const long double exact = (static_cast<long double>(high) - low) / (2 * std::max(high, -low));
    EXPECT_GE(static_cast<long double>(spread({low, high}, 1)), exact);
  }
}

TEST(ValueBounds, HoldForWhatSixteenBitsStoreAndBetweenStrides) {
  const AttentionCase c{.shapes = {2, 2, 3, 70, 4, 5}};
  const AttentionInputs<float, bfloat16> in(c.shapes, 7);
  const Tensor<bfloat16> strided = token_major(in.v);
  const Problem problem(c.shapes, c.options());
  for (Index h = 0; h < 2; ++h) {
    Rows<float> numbers(70, 5);
    for (Index j = 0; j < 70; ++j)
      for (Index m = 0; m < 5; ++m) numbers(j, m) = static_cast<float>(in.v(h, j, m));
    ValueBounds<float> expected;
    expected.extend(source_of(numbers));
    EXPECT_LT(expected.spread(), 1);
    EXPECT_EQ(look_at(problem, in, h).value_bounds().spread(), expected.spread());
    auto between_strides = group_look<float>(problem, h, TensorView<const float>(in.q.view()),
                                             TensorView<const bfloat16>(in.k.view()),
                                             TensorView<const bfloat16>(strided.view()));
    EXPECT_EQ(between_strides.value_bounds().spread(), expected.spread());
  }
}

/// A source of x's first rows that counts how often each is read.
template <class Real>
RowSource<Real> counted(const Rows<Real>& x, Index count, std::vector<Index>& reads) {
  reads.resize(static_cast<std::size_t>(x.rows()));
  RowSource<Real> source = source_of(x);
  source.count = count;
  source.read = [&reads, read = source.read](Range rows, bool turned, Real* to) {
    for (Index i = rows.begin; i < rows.end; ++i) ++reads[static_cast<std::size_t>(i)];
    read(rows, turned, to);
  };
  return source;
}

template <class Real>
Rows<Real> gaussian(Inputs& random, Index n, Index d, double sigma = 1) {
  return Rows<Real>::NullaryExpr(n, d, [&] { return static_cast<Real>(sigma * random.normal()); });
}

TEST(ValueBounds, AreTheSameInAnySteps) {
  const auto expect = [](auto real) {
    using Real = decltype(real);
    Inputs random(10);
    for (int trial = 0; trial < 50; ++trial) {
      const Index n = random.integer(0, 300), d = random.integer(1, 5);
      Rows<Real> x = gaussian<Real>(random, n, d);
      if (trial % 4 == 0 && n > 0) x(random.integer(0, n - 1), random.integer(0, d - 1)) = NAN;
      ValueBounds<Real> at_once, in_steps;
      at_once.extend(source_of(x));
      std::vector<Index> reads;
      for (Index count = 0;; count = std::min(n, count + random.integer(0, 100))) {
        in_steps.extend(counted(x, count, reads));
        if (count == n) break;
      }
      EXPECT_EQ(in_steps.finite(), at_once.finite());
      EXPECT_EQ(at_once.finite(), x.allFinite());
      if (at_once.finite()) {
        EXPECT_EQ(in_steps.spread(), at_once.spread());
      }
      for (const Index times : reads) EXPECT_EQ(times, 1);
    }
  };
  expect(0.0f);
  expect(0.0);
}

TEST(GroupLook, ReadsNothingBeforeItIsAskedForAndLengthsOnce) {
  Inputs random(11);
  const Rows<double> q = gaussian<double>(random, 100, 4), k = gaussian<double>(random, 130, 4),
                     v = gaussian<double>(random, 130, 3);
  std::vector<Index> of_q, of_other, of_k, of_v;
  GroupLook<double> look({counted(q, 100, of_q), counted(q, 100, of_other)}, counted(k, 130, of_k),
                         counted(v, 130, of_v));
  const auto expect_reads = [](const std::vector<Index>& reads, Index times) {
    for (const Index of_row : reads) EXPECT_EQ(of_row, times);
  };
  const auto expect_all = [&](Index q_times, Index other, Index k_times, Index v_times) {
    expect_reads(of_q, q_times);
    expect_reads(of_other, other);
    expect_reads(of_k, k_times);
    expect_reads(of_v, v_times);
  };
  expect_all(0, 0, 0, 0);
  for (int twice = 0; twice < 2; ++twice) look.query_norm(0);
  expect_all(1, 0, 0, 0);
  for (int twice = 0; twice < 2; ++twice) look.key_norm();
  expect_all(1, 0, 1, 0);
  for (int twice = 0; twice < 2; ++twice) look.value_bounds();
  expect_all(1, 0, 1, 1);
  look.not_finite(1);
  expect_all(1, 1, 1, 1);
}

/// Every entry of a head's queries and keys is within the fit's radius, every key's weight within its
/// greatest.
template <class Real>
void expect_bounded(const LowRankFit& fit, double scale, const Rows<Real>& queries, const Rows<Real>& keys) {
  const Projection& p = fit.projection;
  const auto d = static_cast<Index>(p.key_shift.size());
  using RowByRow = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::Map<const Point<double>> mu(p.key_shift.data(), d), nu(p.query_shift.data(), d);
  const Eigen::Map<const RowByRow> b(p.query_axes.data(), p.variables(), d),
      c(p.key_axes.data(), p.variables(), d);
  const Rows<double> from_nu = queries.template cast<double>().rowwise() - nu,
                     from_mu = keys.template cast<double>().rowwise() - mu;
  const double x = (scale * from_nu * b.transpose()).rowwise().norm().maxCoeff(),
               y = (from_mu * c.transpose()).rowwise().norm().maxCoeff();
  EXPECT_LE(x * y, fit.radius);
  EXPECT_GE(x * y, 0.3 * fit.radius);
  EXPECT_LE((scale * from_mu * nu.transpose()).maxCoeff(), fit.projection.weight_max * (1 + 1e-12) + 1e-12);
  EXPECT_LE(scale * queries.template cast<double>().rowwise().norm().maxCoeff() *
                keys.template cast<double>().rowwise().norm().maxCoeff(),
            fit.plain_radius);
}

/// Queries, keys that are farther out towards the end, and values.
template <class Real>
struct GrowingCache {
  Rows<Real> q, k, v;

  GrowingCache(Inputs& random, Index n_q, Index n_k, Index d)
      : q(gaussian<Real>(random, n_q, d, 0.5)),
        k(gaussian<Real>(random, n_k, d, 0.4)),
        v(gaussian<Real>(random, n_k, 3)) {
    q.rowwise() += gaussian<Real>(random, 1, d, 0.5).row(0);
    k.rowwise() += gaussian<Real>(random, 1, d, 0.5).row(0);
    for (Index l = 0; l < d; ++l) {
      q.col(l) *= static_cast<Real>(std::pow(0.6, l));
      k.col(l) *= static_cast<Real>(std::pow(0.6, l));
    }
    for (Index j = 0; j < n_k; ++j)
      k.row(j) *= static_cast<Real>(1 + 0.5 * static_cast<double>(j) / static_cast<double>(n_k));
  }
};

/// How many rows were read, and how often the most.
std::pair<Index, Index> total_and_most(const std::vector<Index>& reads, Index begin, Index end) {
  Index total = 0, most = 0;
  for (Index i = begin; i < end; ++i) {
    total += reads[static_cast<std::size_t>(i)];
    most = std::max(most, reads[static_cast<std::size_t>(i)]);
  }
  return {total, most};
}

template <class Real>
class GrowingLook : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(GrowingLook, Reals);

TYPED_TEST(GrowingLook, BoundsAllKeysAndReadsThoseThatAreNew) {
  using Real = TypeParam;
  Inputs random(12);
  for (int trial = 0; trial < 12; ++trial) {
    const Index d = random.integer(2, 6), n_q = random.integer(5, 50);
    const Index first = random.integer(100, 200), second = random.integer(200, 220);
    const Index n_k =
        trial % 4 == 3 ? 2 * first : random.integer(220, 399);  // keys that double are looked at anew
    GrowingCache<Real> c(random, n_q, n_k, d);
    LowRankRequest request{.scale = 0.3, .tolerance = 0.05, .d_v = 3, .may_weigh_keys = trial % 2 == 0};
    KeyMemory<Real> memory;
    Index seen = 0, chosen_at = 0;
    for (const Index count : {first, std::min(second, n_k), n_k}) {
      std::vector<Index> of_q, of_k, of_v;
      const RowSource<Real> q = counted(c.q, n_q, of_q), k = counted(c.k, count, of_k),
                            v = counted(c.v, count, of_v);
      GroupLook<Real> look({q}, k, v, std::move(memory));
      const std::vector<FarPairs> all = {{{0, n_q}, count}};
      std::string reason;
      const auto fit = look.fit({0, 1}, all, request, reason);
      ASSERT_TRUE(fit) << reason << ", trial " << trial;
      const Rows<Real> keys = c.k.topRows(count);
      expect_bounded(*fit, request.scale, c.q, keys);
      EXPECT_EQ(look.key_norm(), [&] {
        RowBounds<Real> plain;
        plain.extend(source_of(keys));
        return *std::max_element(plain.norms().begin(), plain.norms().end());
      }());
      ValueBounds<Real> values;
      const Rows<Real> of_count = c.v.topRows(count);
      values.extend(source_of(of_count));
      EXPECT_EQ(look.value_bounds().spread(), values.spread());

      if (seen > 0 && count < 2 * chosen_at) {
        const Index first_new = round_down(seen, RowBounds<Real>::kRows);
        EXPECT_EQ(total_and_most(of_k, 0, first_new).first, 0) << "keys of full blocks are read again";
        EXPECT_EQ(total_and_most(of_k, 0, count), std::pair(count - first_new, Index{count > first_new}));
        EXPECT_EQ(total_and_most(of_q, 0, n_q).first, n_q);
      } else {
        chosen_at = count;
      }
      // Values are sampled too, 128 of them.
      EXPECT_LE(total_and_most(of_v, 0, count).first, count - seen + 128);
      seen = count;

      // Block by block what one pass over all keys gives.
      memory = std::move(look.memory());
      ASSERT_EQ(memory.measured.size(), 1u);
      const auto& measured = memory.measured.begin()->second;
      EXPECT_EQ(measured.chosen_at, chosen_at);
      RowBounds<Real> at_once(measured.choice.of_keys());
      at_once.extend(source_of(keys));
      EXPECT_TRUE(std::equal(at_once.reaches().begin(), at_once.reaches().end(),
                             measured.keys.reaches().begin(), measured.keys.reaches().end()));
    }
  }
}

TYPED_TEST(GrowingLook, SeesKeysThatAreFarFromTheOnesBefore) {
  using Real = TypeParam;
  Inputs random(13);
  GrowingCache<Real> c(random, 20, 1500, 4);
  c.k.row(1400) *= 6;
  KeyMemory<Real> memory;
  double before = 0;
  for (const Index count : {1000, 1300, 1450}) {
    RowSource<Real> k = source_of(c.k), v = source_of(c.v);
    k.count = v.count = count;
    GroupLook<Real> look({source_of(c.q)}, k, v, std::move(memory));
    const std::vector<FarPairs> all = {{{0, 20}, count}};
    std::string reason;
    const LowRankRequest request{.scale = 0.3, .tolerance = 0.05, .d_v = 3};
    const auto fit = look.fit({0, 1}, all, request, reason);
    ASSERT_TRUE(fit) << reason;
    expect_bounded(*fit, request.scale, c.q, Rows<Real>(c.k.topRows(count)));
    if (count == 1450) {
      EXPECT_GT(fit->radius, 2 * before);
    }
    before = fit->radius;
    memory = std::move(look.memory());
  }
}

TYPED_TEST(GrowingLook, SeesNewKeysAndValuesThatAreNotFinite) {
  using Real = TypeParam;
  Inputs random(14);
  for (const char which : {'k', 'v'}) {
    GrowingCache<Real> c(random, 20, 300, 4);
    (which == 'k' ? c.k : c.v)(250, 1) = NAN;
    KeyMemory<Real> memory;
    for (const Index count : {200, 300}) {
      RowSource<Real> k = source_of(c.k), v = source_of(c.v);
      k.count = v.count = count;
      GroupLook<Real> look({source_of(c.q)}, k, v, std::move(memory));
      const std::vector<FarPairs> all = {{{0, 20}, count}};
      std::string reason;
      const auto fit = look.fit({0, 1}, all, {.scale = 0.3, .tolerance = 0.05, .d_v = 3}, reason);
      EXPECT_EQ(fit.has_value(), count == 200) << reason;
      EXPECT_THAT(reason, HasSubstr(count == 200 ? "" : std::string(1, which) + " is not finite"));
      memory = std::move(look.memory());
    }
  }
}

TYPED_TEST(GrowingLook, RemembersNothingOfWhatDoesNotPay) {
  using Real = TypeParam;
  Inputs random(15);
  const GrowingCache<Real> c(random, 2000, 3000, 4);
  std::vector<Index> of_q, of_k, of_v;
  GroupLook<Real> look({counted(c.q, 2000, of_q)}, counted(c.k, 3000, of_k), counted(c.v, 3000, of_v));
  const std::vector<FarPairs> all = {{{0, 2000}, 3000}};
  std::string reason;
  LowRankRequest request{.scale = 0.3, .tolerance = 0.05, .d_v = 3, .pays = [](double) { return false; }};
  EXPECT_FALSE(look.fit({0, 1}, all, request, reason));
  EXPECT_THAT(reason, HasSubstr("too much work"));
  EXPECT_TRUE(look.memory().measured.empty());
  for (const auto* reads : {&of_q, &of_k, &of_v})
    EXPECT_LE(total_and_most(*reads, 0, std::ssize(*reads)).first, 128);
  request.pays = [](double) { return true; };
  EXPECT_TRUE(look.fit({0, 1}, all, request, reason)) << reason;
}

TYPED_TEST(GrowingLook, KeepsWhatQueryHeadsAskForApart) {
  // Alone and together, with and without weights of keys.
  using Real = TypeParam;
  Inputs random(16);
  const GrowingCache<Real> c(random, 50, 400, 4), other(random, 50, 1, 4);
  const std::vector<FarPairs> all = {{{0, 50}, 400}};
  KeyMemory<Real> memory;
  std::vector<double> radii;
  for (int look_number = 0; look_number < 2; ++look_number) {
    GroupLook<Real> look({source_of(c.q), source_of(other.q)}, source_of(c.k), source_of(c.v),
                         std::move(memory));
    std::size_t at = 0;
    for (const Range heads : {Range{0, 1}, Range{1, 2}, Range{0, 2}})
      for (const bool may_weigh_keys : {false, true}) {
        const LowRankRequest request{
            .scale = 0.2, .tolerance = 0.05, .d_v = 3, .may_weigh_keys = may_weigh_keys};
        std::string reason;
        const auto fit = look.fit(heads, all, request, reason);
        ASSERT_TRUE(fit) << reason;
        EXPECT_TRUE(may_weigh_keys || fit->query_shift == Centre::none);
        for (Index h = heads.begin; h < heads.end; ++h) {
          const Rows<Real>& q = h == 0 ? c.q : other.q;
          if (heads.size() == 1) expect_bounded(*fit, request.scale, q, c.k);
        }
        if (look_number == 0)
          radii.push_back(fit->radius);
        else
          EXPECT_EQ(fit->radius, radii[at++]) << "nothing is new";
      }
    memory = std::move(look.memory());
    EXPECT_EQ(memory.measured.size(), 6u);
  }
}

TEST(WeightedBounds, BoundEveryEntryAndTheFeatures) {
  const auto expect = [](auto real) {
    using Real = decltype(real);
    Inputs random(4);
    for (int repeat = 0; repeat < 24; ++repeat) {
      AttentionCase c{.shapes = {2, 1, 40, 50, 5, 2}};
      c.base.weights = random_weights(random, 5, random.integer(1, 25), 60);
      c.base.mask = repeat % 2 == 0 ? Mask::full() : repeat % 4 == 1 ? Mask::causal() : Mask::lags(-3, 7);
      c.base.scale = repeat % 3 == 0 ? -0.7 : 0.2;
      AttentionInputs<Real> in(c.shapes, random);
      for (Index i = 0; i < 40; ++i)
        for (Index m = 0; m < 5; ++m) in.q(1, i, m) *= Real{4};
      const Problem problem(c.shapes, c.options());
      auto look = look_at(problem, in, 0);
      const auto support = c.base.weights->support();
      for (Index h = 0; h < 2; ++h) {
        const WeightedBounds b = weighted_bounds(look, h, problem);
        double largest = 0, features = 0;
        for (Index i = 0; i < 40; ++i)
          for (Index j = 0; j < 50; ++j) {
            const Position lag = 10 + i - j;
            if (!c.base.mask.allows(lag)) continue;
            double x = 0, query = 0, key = 0;
            for (std::size_t s = 0; s < support.size(); ++s) {
              const double q = static_cast<double>(in.q(h, i, support[s].a)),
                           k = static_cast<double>(in.k(0, j, support[s].b));
              const double w = (*c.base.weights)(lag, static_cast<Index>(s));
              x += q * w * k;
              query += q * q;
              key += w * k * w * k;
            }
            largest = std::max(largest, std::abs(problem.scale * x));
            features = std::max(features, std::abs(problem.scale) * std::sqrt(query * key));
          }
        EXPECT_LE(largest, b.radius) << "head " << h << ", " << support.size() << " entries";
        EXPECT_LE(features, b.feature_radius) << "head " << h << ", " << support.size() << " entries";
      }
    }
  };
  expect(0.0f);
  expect(0.0);
}

TEST(WeightedBounds, AreTheLesserOfTwo) {
  // Rows of one direction each, +-2 in q and +-3 in k, so that both bounds can be told from the weights.
  AttentionCase c{.shapes = {1, 1, 4, 4, 4, 1}};
  c.base.scale = -0.5;
  AttentionInputs<double> in(c.shapes, 8);
  for (Index i = 0; i < 4; ++i)
    for (Index m = 0; m < 4; ++m) {
      in.q(0, i, m) = i == m ? 2 : 0;
      in.k(0, i, m) = i == m ? -3 : 0;
    }
  const auto bounds = [&](const std::vector<RelativeWeights::Entry>& support, auto&& weight) {
    c.base.weights = RelativeWeights(support, -3, 3, weight);
    const Problem problem(c.shapes, c.options());
    auto look = look_at(problem, in, 0);
    return weighted_bounds(look, 0, problem);
  };
  // To a few epsilon outward: norms of 4 columns and 16 epsilon of allowance.
  const auto expect_just_above = [](double bound, double exact) {
    EXPECT_GE(bound, exact);
    EXPECT_LE(bound, exact * (1 + 64 * std::numeric_limits<double>::epsilon()));
  };
  const auto one = [](Position, Index) { return 1.0; };
  // W = diag(1): by entries 4 x 2 x 3, by norms 2 x 3.
  const std::vector<RelativeWeights::Entry> diagonal = {{0, 0}, {1, 1}, {2, 2}, {3, 3}};
  const WeightedBounds identity = bounds(diagonal, one);
  expect_just_above(identity.radius, 0.5 * 2 * 3);
  expect_just_above(identity.feature_radius, 0.5 * 4 * 6);  // columns' maxima, four of each
  // q^ and k^ of about one size, the scale among the queries'.
  EXPECT_DOUBLE_EQ(identity.balance * identity.balance * 0.5 * 4, 6);
  // One entry: both say 2 x |w| x 3, of the largest |w|.
  const auto slope = [](Position lag, Index) { return 0.125 * static_cast<double>(lag); };
  expect_just_above(bounds({{1, 2}}, slope).radius, 0.5 * 2 * 0.375 * 3);
  // A full row of W, (1, 1, 1, 1): |W|_1 = 1 and |W|_inf = 4, so by norms 2 x 2 x 3, by entries 4 x 2 x 3.
  expect_just_above(bounds({{0, 0}, {0, 1}, {0, 2}, {0, 3}}, one).radius, 0.5 * 2 * 2 * 3);
  // Queries along the first axis alone, keys along the second: the entries see that they never meet.
  for (Index i = 0; i < 4; ++i)
    for (Index m = 0; m < 4; ++m) {
      in.q(0, i, m) = m == 0 ? 2 : 0;
      in.k(0, i, m) = m == 1 ? 3 : 0;
    }
  EXPECT_EQ(bounds(diagonal, one).radius, 0);
}

TEST(WeightedBounds, CountOnlyLagsThatTheMaskAllows) {
  AttentionCase c{.shapes = {1, 1, 20, 20, 2, 1}};
  std::vector<double> weights(39, 1.0);  // lags -19..19
  for (std::size_t m = 0; m < 19; ++m) weights[m] = 100;
  c.base.weights = RelativeWeights({{0, 1}}, -19, weights);
  const AttentionInputs<double> in(c.shapes, 9);
  const auto radius = [&](const Mask& mask) {
    c.base.mask = mask;
    const Problem problem(c.shapes, c.options());
    auto look = look_at(problem, in, 0);
    return weighted_bounds(look, 0, problem).radius;
  };
  EXPECT_GT(radius(Mask::causal()), 0);
  EXPECT_DOUBLE_EQ(radius(Mask::full()), 100 * radius(Mask::causal()));
  EXPECT_DOUBLE_EQ(radius(Mask::lags(-1, 5)), 100 * radius(Mask::causal()));
}

}  // namespace
}  // namespace fastrope_test
