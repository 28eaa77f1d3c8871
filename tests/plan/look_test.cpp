// The look at the data: what it reads and when, and bounds that no row or value exceeds.
#include "fastrope/plan/look.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/measure/problem_rows.hpp"
#include "fastrope/plan/factorisations.hpp"
#include "support/attention_case.hpp"
#include "support/look_at.hpp"
#include "support/paged_copy.hpp"
#include "support/projected.hpp"
#include "support/row_matrix.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::HasSubstr;

/// Of query heads that share keys.
template <class Real>
GroupLook look_of(const std::vector<RowSource<Real>>& queries, RowSource<Real> keys, RowSource<Real> values,
                  KeyMemory memory = {}) {
  std::vector<std::unique_ptr<Side>> sides;
  for (const RowSource<Real>& source : queries) sides.push_back(side_of(source));
  return {std::move(sides), side_of(std::move(keys)), side_of(std::move(values)), std::move(memory)};
}

TEST(GroupLook, HasTheRowsOfAKeyHeadAndItsQueryHeads) {
  const auto expect = [](auto q_type, auto kv_type) {
    using T = decltype(q_type);
    using KV = decltype(kv_type);
    using Real = ArithmeticOf<T>;
    AttentionCase c{.shapes = {4, 2, 90, 150, 8, 3}};
    c.base.rope = Rope{};
    const AttentionInputs<T, KV> in(c.shapes, 1);
    const Problem problem(c.shapes, c.options());
    const auto norm_of = [](const RowSource<Real>& source) {
      RowBounds bounds;
      bounds.extend(source);
      return largest(bounds.norms());
    };
    const auto same = [](const Side& side, const RowSource<Real>& source) {
      EXPECT_EQ(side.count(), source.count);
      EXPECT_EQ(side.d(), source.d);
      const Range all{0, source.count};
      return farthest_apart(side.sample(all, source.count), sample(source, all, source.count)) == 0;
    };
    for (Index kv = 0; kv < 2; ++kv) {
      auto look = look_at(problem, in, kv);
      for (Index g = 0; g < 2; ++g) {
        const auto q = query_rows<Real>(problem, 2 * kv + g, in.q.view());
        EXPECT_TRUE(same(look.queries(g), q));
        EXPECT_EQ(look.query_norm(g), norm_of(q));
      }
      const auto k = key_rows<Real>(problem, kv, in.k.view());
      EXPECT_TRUE(same(look.keys(), k));
      EXPECT_EQ(look.key_norm(), norm_of(k));
      ValueBounds values;
      values.extend(value_rows<Real>(problem, kv, in.v.view()));
      EXPECT_EQ(look.known_spread(), 1) << "nobody asked for values";
      EXPECT_EQ(look.value_bounds().spread(), values.spread());
      EXPECT_EQ(look.known_spread(), values.spread());
    }
  };
  expect(0.0, 0.0);
  expect(0.0f, bfloat16{});
  expect(float16{}, float16{});
}

TEST(GroupLook, OfPagesSeesTheSameAsWithoutGaps) {
  AttentionCase c{.shapes = {2, 1, 20, 29, 4, 3}};
  c.base.rope = Rope{};
  const AttentionInputs<float> in(c.shapes, 5);
  const PagedCopy<float> k(in.k), v(in.v);
  const Problem problem(c.shapes, c.options());
  auto expected = look_at(problem, in, 0);
  auto look = group_look<float>(problem, 0, in.q.view(), k.view(), v.view());
  for (Index h = 0; h < 2; ++h) EXPECT_EQ(look.query_norm(h), expected.query_norm(h));
  EXPECT_EQ(look.key_norm(), expected.key_norm());
  EXPECT_EQ(look.value_bounds().spread(), expected.value_bounds().spread());
  EXPECT_EQ(look.not_finite(0), "");  // what no row of a page holds is not looked at
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

TEST(GroupLook, BoundsValuesOfSixteenBitsAndBetweenStrides) {
  const AttentionCase c{.shapes = {2, 2, 3, 70, 4, 5}};
  const AttentionInputs<float, bfloat16> in(c.shapes, 7);
  const Tensor<bfloat16> strided = token_major(in.v);
  const Problem problem(c.shapes, c.options());
  for (Index h = 0; h < 2; ++h) {
    RowMatrix<float> numbers(70, 5);
    for (Index j = 0; j < 70; ++j)
      for (Index m = 0; m < 5; ++m) numbers(j, m) = static_cast<float>(in.v(h, j, m));
    ValueBounds expected;
    expected.extend(source_of(numbers));
    EXPECT_LT(expected.spread(), 1);
    EXPECT_EQ(look_at(problem, in, h).value_bounds().spread(), expected.spread());
    auto between_strides = group_look<float>(problem, h, in.q.view(), in.k.view(), strided.view());
    EXPECT_EQ(between_strides.value_bounds().spread(), expected.spread());
  }
}

TEST(GroupLook, ReadsNothingBeforeItIsAskedForAndLengthsOnce) {
  Inputs random(11);
  const RowMatrix<double> q = gaussian_rows<double>(random, 100, 4),
                          k = gaussian_rows<double>(random, 130, 4),
                          v = gaussian_rows<double>(random, 130, 3);
  std::vector<Index> of_q, of_other, of_k, of_v;
  GroupLook look = look_of<double>({counted(q, 100, of_q), counted(q, 100, of_other)}, counted(k, 130, of_k),
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
void expect_bounded(const LowRankFit& fit, double scale, const RowMatrix<Real>& queries,
                    const RowMatrix<Real>& keys) {
  const Projection& p = fit.projection;
  double x = 0, y = 0, weight = -INFINITY;
  for (Index i = 0; i < queries.rows; ++i)
    x = std::max(x, norm(projected(p.query_axes, shifted(queries, i, p.query_shift, scale))));
  for (Index j = 0; j < keys.rows; ++j) {
    const std::vector<double> from_mu = shifted(keys, j, p.key_shift);
    y = std::max(y, norm(projected(p.key_axes, from_mu)));
    weight = std::max(weight, scale * dot(p.query_shift, from_mu));
  }
  EXPECT_LE(x * y, fit.radius);
  EXPECT_GE(x * y, 0.3 * fit.radius);
  EXPECT_LE(weight, fit.projection.weight_max * (1 + 1e-12) + 1e-12);
  EXPECT_LE(scale * longest(queries) * longest(keys), fit.plain_radius);
}

/// Queries, keys that are farther out towards the end, and values.
template <class Real>
struct GrowingCache {
  RowMatrix<Real> q, k, v;

  GrowingCache(Inputs& random, Index n_q, Index n_k, Index d)
      : q(gaussian_rows<Real>(random, n_q, d, 0.5)),
        k(gaussian_rows<Real>(random, n_k, d, 0.4)),
        v(gaussian_rows<Real>(random, n_k, 3)) {
    for (RowMatrix<Real>* x : {&q, &k}) x->move(gaussian_rows<Real>(random, 1, d, 0.5));
    for (RowMatrix<Real>* x : {&q, &k}) x->decay(0.6);
    for (Index j = 0; j < n_k; ++j)
      k.scale_row(j, 1 + 0.5 * static_cast<double>(j) / static_cast<double>(n_k));
  }
};

/// What a fit of features in the rows' arithmetic is asked for.
template <class Real>
LowRankRequest request_of(double scale, bool may_weigh_keys = true) {
  return {.scale = scale,
          .tolerance = 0.05,
          .d_v = 3,
          .may_weigh_keys = may_weigh_keys,
          .factorisations = factorisations(),
          .arithmetic = kArithmeticOf<Real>};
}

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
    const LowRankRequest request = request_of<Real>(0.3, trial % 2 == 0);
    KeyMemory memory;
    Index seen = 0, chosen_at = 0;
    for (const Index count : {first, std::min(second, n_k), n_k}) {
      std::vector<Index> of_q, of_k, of_v;
      const RowSource<Real> q = counted(c.q, n_q, of_q), k = counted(c.k, count, of_k),
                            v = counted(c.v, count, of_v);
      GroupLook look = look_of<Real>({q}, k, v, std::move(memory));
      const std::vector<FarPairs> all = {{{0, n_q}, count}};
      std::string reason;
      const auto fit = look.fit({0, 1}, all, request, reason);
      ASSERT_TRUE(fit) << reason << ", trial " << trial;
      const RowMatrix<Real> keys = c.k.top(count);
      expect_bounded(*fit, request.scale, c.q, keys);
      EXPECT_EQ(look.key_norm(), [&] {
        RowBounds plain;
        plain.extend(source_of(keys));
        return *std::max_element(plain.norms().begin(), plain.norms().end());
      }());
      ValueBounds values;
      const RowMatrix<Real> of_count = c.v.top(count);
      values.extend(source_of(of_count));
      EXPECT_EQ(look.value_bounds().spread(), values.spread());

      if (seen > 0 && count < 2 * chosen_at) {
        const Index first_new = round_down(seen, kRowBlock);
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
      RowBounds at_once(measured.choice.of_keys());
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
  c.k.scale_row(1400, 6);
  KeyMemory memory;
  double before = 0;
  for (const Index count : {1000, 1300, 1450}) {
    RowSource<Real> k = source_of(c.k), v = source_of(c.v);
    k.count = v.count = count;
    GroupLook look = look_of<Real>({source_of(c.q)}, k, v, std::move(memory));
    const std::vector<FarPairs> all = {{{0, 20}, count}};
    std::string reason;
    const LowRankRequest request = request_of<Real>(0.3);
    const auto fit = look.fit({0, 1}, all, request, reason);
    ASSERT_TRUE(fit) << reason;
    expect_bounded(*fit, request.scale, c.q, c.k.top(count));
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
    KeyMemory memory;
    for (const Index count : {200, 300}) {
      RowSource<Real> k = source_of(c.k), v = source_of(c.v);
      k.count = v.count = count;
      GroupLook look = look_of<Real>({source_of(c.q)}, k, v, std::move(memory));
      const std::vector<FarPairs> all = {{{0, 20}, count}};
      std::string reason;
      const auto fit = look.fit({0, 1}, all, request_of<Real>(0.3), reason);
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
  GroupLook look =
      look_of<Real>({counted(c.q, 2000, of_q)}, counted(c.k, 3000, of_k), counted(c.v, 3000, of_v));
  const std::vector<FarPairs> all = {{{0, 2000}, 3000}};
  std::string reason;
  LowRankRequest request = request_of<Real>(0.3);
  request.most_rank = 0;
  EXPECT_FALSE(look.fit({0, 1}, all, request, reason));
  EXPECT_THAT(reason, HasSubstr("too much work"));
  EXPECT_TRUE(look.memory().measured.empty());
  for (const auto* reads : {&of_q, &of_k, &of_v})
    EXPECT_LE(total_and_most(*reads, 0, std::ssize(*reads)).first, 128);
  request.most_rank = INFINITY;
  EXPECT_TRUE(look.fit({0, 1}, all, request, reason)) << reason;
}

TYPED_TEST(GrowingLook, KeepsWhatQueryHeadsAskForApart) {
  // Alone and together, with and without weights of keys.
  using Real = TypeParam;
  Inputs random(16);
  const GrowingCache<Real> c(random, 50, 400, 4), other(random, 50, 1, 4);
  const std::vector<FarPairs> all = {{{0, 50}, 400}};
  KeyMemory memory;
  std::vector<double> radii;
  for (int look_number = 0; look_number < 2; ++look_number) {
    GroupLook look = look_of<Real>({source_of(c.q), source_of(other.q)}, source_of(c.k), source_of(c.v),
                                   std::move(memory));
    std::size_t at = 0;
    for (const Range heads : {Range{0, 1}, Range{1, 2}, Range{0, 2}})
      for (const bool may_weigh_keys : {false, true}) {
        const LowRankRequest request = request_of<Real>(0.2, may_weigh_keys);
        std::string reason;
        const auto fit = look.fit(heads, all, request, reason);
        ASSERT_TRUE(fit) << reason;
        EXPECT_TRUE(may_weigh_keys || fit->query_shift == Centre::none);
        for (Index h = heads.begin; h < heads.end; ++h) {
          const RowMatrix<Real>& q = h == 0 ? c.q : other.q;
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

}  // namespace
}  // namespace fastrope_test
