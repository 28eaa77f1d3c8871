// The rows of a call's heads as planning reads them.
#include "fastrope/measure/problem_rows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "fastrope/measure/row_bounds.hpp"
#include "support/attention_case.hpp"
#include "support/paged_copy.hpp"
#include "support/row_matrix.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

// Valid while the problem and the tensors live.
template <class T, class KV>
RowSource<ArithmeticOf<T>> queries_of(const Problem& problem, const AttentionInputs<T, KV>& in, Index h) {
  return query_rows<ArithmeticOf<T>>(problem, h, in.q.view());
}
template <class T, class KV>
RowSource<ArithmeticOf<T>> keys_of(const Problem& problem, const AttentionInputs<T, KV>& in, Index kv) {
  return key_rows<ArithmeticOf<T>>(problem, kv, in.k.view());
}
template <class T, class KV>
RowSource<ArithmeticOf<T>> values_of(const Problem& problem, const AttentionInputs<T, KV>& in, Index kv) {
  return value_rows<ArithmeticOf<T>>(problem, kv, in.v.view());
}

/// All rows of a source, read a few at a time.
template <class Real>
RowMatrix<Real> read_all(const RowSource<Real>& source, bool turned = true, Index few = 77) {
  RowMatrix<Real> rows(source.count, source.d);
  for (Index begin = 0; begin < source.count; begin += few)
    source.read({begin, std::min(begin + few, source.count)}, turned, rows.values.data() + begin * source.d);
  return rows;
}

/// The source has head h of x in the given order, and bounds of it the longest, hardly loosely.
template <class Real, class T>
void expect_rows(const RowSource<Real>& source, const Tensor<T>& x, Index h,
                 const std::vector<Index>& order) {
  ASSERT_EQ(source.count, x.rows);
  ASSERT_EQ(source.d, x.cols);
  constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
  RowBounds bounds;
  bounds.extend(source);
  const double norm = fastrope::largest(bounds.norms());
  const RowMatrix<Real> rows = read_all(source);
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
    EXPECT_LE(length(rows, i), norm);
  }
  EXPECT_NEAR(norm, largest, 4 * static_cast<double>(x.cols + 4) * kEpsilon * largest);
}

std::vector<Index> in_order(Index n) {
  std::vector<Index> order(static_cast<std::size_t>(n));
  for (Index i = 0; i < n; ++i) order[static_cast<std::size_t>(i)] = i;
  return order;
}

TEST(ProblemRows, AreRotated) {
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
      for (Index h = 2 * kv; h < 2 * kv + 2; ++h) expect_rows(queries_of(problem, in, h), q, h, in_order(90));
      expect_rows(keys_of(problem, in, kv), k, kv, in_order(150));
    }
  };
  expect(0.0f);
  expect(0.0);
}

TEST(ProblemRows, AreInOrderOfPositionAndOfAnyStorage) {
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
    expect_rows(queries_of(problem, in, 0), q, 0, in_order(30));
    expect_rows(keys_of(problem, in, 0), k, 0, order);
    const auto values = read_all(values_of(problem, in, 0));
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

TEST(ProblemRows, OfPagesAreTheSameAsWithoutGaps) {
  AttentionCase c{.shapes = {2, 1, 20, 29, 4, 3}};
  c.base.rope = Rope{};
  const AttentionInputs<float> in(c.shapes, 5);
  const PagedCopy<float> k(in.k), v(in.v);
  const Problem problem(c.shapes, c.options());
  EXPECT_EQ(read_all(key_rows<float>(problem, 0, k.view())), read_all(keys_of(problem, in, 0)));
  EXPECT_EQ(read_all(value_rows<float>(problem, 0, v.view())), read_all(values_of(problem, in, 0)));
}

TEST(ProblemRows, AreNotTurnedWhereLengthsMatter) {
  // As they are where turning changes directions only, else turned.
  Inputs random(6);
  for (const Rope& rope :
       {Rope{}, Rope{.rotary_dim = 4},
        Rope{.rotary_dim = 4, .scaling = YarnScaling{.factor = 16, .original_context = 32}}}) {
    AttentionCase c{.shapes = {1, 1, 40, 90, 6, 2}};
    c.base.rope = rope;
    const AttentionInputs<double> in(c.shapes, random);
    const Problem problem(c.shapes, c.options());
    const bool stretches = problem.rotation.frequencies().attention_factor != 1;
    for (const auto& [source, x] :
         {std::pair{queries_of(problem, in, 0), &in.q}, {keys_of(problem, in, 0), &in.k}}) {
      const RowMatrix<double> turned = read_all(source), lengths = read_all(source, false);
      double change = 0, apart = 0;
      for (Index i = 0; i < x->rows; ++i) {
        change += std::pow(length(turned, i) - length(lengths, i), 2);
        for (Index m = 0; m < 6; ++m) apart += std::pow(turned(i, m) - lengths(i, m), 2);
      }
      EXPECT_LE(std::sqrt(change), 1e-13);
      for (Index i = 0; i < x->rows; ++i)
        for (Index m = 0; m < 6; ++m) EXPECT_EQ(lengths(i, m), stretches ? turned(i, m) : (*x)(0, i, m));
      EXPECT_GT(std::sqrt(apart), stretches ? -1 : 1);
    }
  }
}

}  // namespace
}  // namespace fastrope_test
