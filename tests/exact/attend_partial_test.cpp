// Partial states: (out, lse) against the oracle, and the two uses that they are made for, split-K and a
// prefix shared by many requests.
#include "fastrope/exact/attend_partial.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/attention_case.hpp"
#include "support/error_of.hpp"

namespace fastrope_test {
namespace {

using fastrope::attend_partial;
using fastrope::Error;
using fastrope::Mask;
using fastrope::MatrixView;
using fastrope::merge;
using fastrope::Range;
using fastrope::Rope;

template <class Real>
constexpr double kTolerance = std::is_same_v<Real, float> ? 4e-6 : 1e-12;

/// out and lse of one part.
template <class Real>
struct State {
  Tensor<Real> out, lse;

  explicit State(const Shapes& s) : out(s.heads, s.n_q, s.d_v), lse(1, s.heads, s.n_q) {}
  MatrixView<Real> lse_view() { return lse.view().head(0); }
};

/// Rows [begin, end) of every head.
template <class T>
TensorView<T> rows(TensorView<T> x, Index begin, Index end) {
  x.data += begin * x.row_stride;
  x.rows = end - begin;
  return x;
}

/// Columns [begin, end): the lse of some queries.
template <class T>
MatrixView<T> columns(const MatrixView<T>& x, Index begin, Index end) {
  return {x.data + begin, x.rows, end - begin, x.row_stride};
}

template <class T>
void copy(const TensorView<const T>& from, const TensorView<T>& to) {
  for (Index h = 0; h < from.heads; ++h)
    for (Index i = 0; i < from.rows; ++i) std::copy_n(from.head(h).row(i), from.cols, to.head(h).row(i));
}

template <class Real>
class AttendPartialTest : public testing::Test {
 protected:
  static State<Real> attend(const AttentionCase& c, const AttentionInputs<Real>& in) {
    State<Real> state(c.shapes);
    attend_partial(in.q.view(), in.k.view(), in.v.view(), state.out.view(), state.lse_view(), c.options());
    return state;
  }

  /// Errors relative to max|V| for out, to 1 + max|lse| for lse.
  static void expect_near(State<Real> state, const Reference& reference, const AttentionCase& c) {
    expect_near(state.out.view(), state.lse_view(), reference, c);
  }
  static void expect_near(const TensorView<Real>& out, const MatrixView<Real>& lse,
                          const Reference& reference, const AttentionCase& c) {
    EXPECT_LE(max_abs_difference(out, reference.out.view()), kTolerance<Real>) << c;
    double size = 1;
    for (double x : reference.lse.values)
      if (std::isfinite(x)) size = std::max(size, 1 + std::abs(x));
    EXPECT_LE(max_abs_difference(TensorView<Real>(lse), reference.lse.view()), kTolerance<Real> * size) << c;
  }
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(AttendPartialTest, Reals);

TYPED_TEST(AttendPartialTest, LseIsTheNaturalLogOfTheSumOfExponentials) {
  Inputs random(1);
  for (const auto& [n_q, n_k] : {std::pair{100, 100}, {30, 140}, {140, 30}, {5, 0}, {0, 5}}) {
    for (const Mask mask : {Mask::full(), Mask::causal(), Mask::lags(-5, 9), Mask::lags(300, 400)}) {
      AttentionCase c{.shapes = {4, 2, n_q, n_k, 8, 5}};
      c.base.mask = mask;
      c.base.rope = Rope{};
      const auto expect = [&] {
        const AttentionInputs<TypeParam> in(c.shapes, 2);
        this->expect_near(this->attend(c, in), in.reference(c), c);
      };
      expect();
      set_alibi(c, random);
      expect();
      set_sinks(c, random);
      expect();
      c.base.softcap = 3;
      expect();
      set_dense(c, random, true, true, 3);
      expect();
    }
  }
}

TYPED_TEST(AttendPartialTest, LseWithoutValuesOrWithoutColumns) {
  for (const Shapes shapes : {Shapes{2, 1, 20, 50, 8, 0}, Shapes{2, 1, 20, 50, 0, 3}}) {
    const AttentionCase c{.shapes = shapes};
    const AttentionInputs<TypeParam> in(shapes, 3);
    this->expect_near(this->attend(c, in), in.reference(c), c);
  }
}

TYPED_TEST(AttendPartialTest, ARowWithoutKeysIsZerosAndMinusInfinity) {
  AttentionCase c{.shapes = {1, 1, 100, 60, 8, 4}};  // the first 40 queries stand before all keys
  c.base.mask = Mask::causal();
  const AttentionInputs<TypeParam> in(c.shapes, 4);
  const State<TypeParam> state = this->attend(c, in);
  for (Index i = 0; i < 100; ++i) {
    EXPECT_EQ(state.lse(0, 0, i) == -std::numeric_limits<TypeParam>::infinity(), i < 40) << "row " << i;
    EXPECT_EQ(state.out(0, i, 0) == 0, i < 40) << "row " << i;
  }
}

TYPED_TEST(AttendPartialTest, SplitKOfAnyPartsMergesToTheWhole) {
  // A long cache is cut into parts; each is attended on its own, with the positions of its keys, by the same
  // queries.
  Inputs random(5);
  for (const Index n_q : {70, 3}) {  // tiles, decode
    AttentionCase whole{.shapes = {4, 2, n_q, 200, 12, 9}};
    whole.base.rope = Rope{};
    whole.base.mask = Mask::sliding_window(120);  // some parts have no keys for some rows
    set_alibi(whole, random);
    set_sinks(whole, random);
    const AttentionInputs<TypeParam> in(whole.shapes, 6);
    const Reference reference = in.reference(whole);
    for (int split = 0; split < 20; ++split) {
      std::vector<Index> ends{200};  // of the parts
      for (Index p = random.integer(1, 6); p > 1; --p) ends.push_back(random.integer(0, 200));
      std::sort(ends.begin(), ends.end());
      std::vector<Range> parts;
      parts.reserve(ends.size());
      for (Index begin = 0; const Index end : ends) parts.push_back({std::exchange(begin, end), end});
      // In any order: the state so far may be the one without keys.
      std::shuffle(parts.begin(), parts.end(), random.random());

      State<TypeParam> total(whole.shapes);
      for (bool first = true; const auto [begin, end] : parts) {
        AttentionCase part = whole;
        part.shapes.n_k = end - begin;
        for (Position j = begin; j < end; ++j) part.key_positions.push_back(j);
        for (Position i = 200 - n_q; i < 200; ++i) part.query_positions.push_back(i);
        if (!first) part.sinks.clear();  // a sink joins the denominator once
        State<TypeParam> state(part.shapes);
        attend_partial(in.q.view(), rows(in.k.view(), begin, end), rows(in.v.view(), begin, end),
                       state.out.view(), state.lse_view(), part.options());
        if (std::exchange(first, false))
          total = state;
        else
          merge(total.out.view(), total.lse_view(), state.out.view(), state.lse_view());
      }
      this->expect_near(total, reference, whole);
    }
  }
}

TYPED_TEST(AttendPartialTest, CascadeOfASharedPrefixMergesToEachWhole) {
  // Requests that begin with the same system prompt keep its keys once. The queries of all requests, rows of
  // one tensor, attend to it in a single call; each request attends to its own suffix; the two merge.
  constexpr Index kPrefix = 150;
  struct Request {
    Index suffix;  // tokens behind the prefix
    Index n_q;     // the last of them are queries
  };
  using Batch = std::vector<Request>;
  const Batch decoding = {{1, 1}, {40, 1}, {7, 1}}, mixed = {{30, 30}, {90, 20}, {5, 1}};
  Inputs random(9);
  for (const Batch& batch : {decoding, mixed}) {
    AttentionCase prefix{.shapes = {4, 2, 0, kPrefix, 12, 9}};
    prefix.base.rope = Rope{};
    prefix.base.mask = Mask::causal();
    for (const auto [suffix, n_q] : batch) {
      for (Position i = suffix - n_q; i < suffix; ++i) prefix.query_positions.push_back(kPrefix + i);
      prefix.shapes.n_q += n_q;
    }
    AttentionInputs<TypeParam> shared(prefix.shapes, random);
    State<TypeParam> batch_state(prefix.shapes);
    attend_partial(shared.q.view(), shared.k.view(), shared.v.view(), batch_state.out.view(),
                   batch_state.lse_view(), prefix.options());

    for (Index begin = 0; const auto [suffix, n_q] : batch) {
      const Index end = begin + n_q, n_k = kPrefix + suffix;
      AttentionCase request{.shapes = {4, 2, n_q, n_k, 12, 9}, .base = prefix.base};
      AttentionInputs<TypeParam> in(request.shapes, random);  // as if the request had the cache for itself
      copy(rows(std::as_const(shared.q).view(), begin, end), in.q.view());
      copy(std::as_const(shared.k).view(), rows(in.k.view(), 0, kPrefix));
      copy(std::as_const(shared.v).view(), rows(in.v.view(), 0, kPrefix));

      AttentionCase own = request;
      for (Position j = kPrefix; j < n_k; ++j) own.key_positions.push_back(j);
      State<TypeParam> state(request.shapes);
      attend_partial(in.q.view(), rows(in.k.view(), kPrefix, n_k), rows(in.v.view(), kPrefix, n_k),
                     state.out.view(), state.lse_view(), own.options());
      const TensorView<TypeParam> out = rows(batch_state.out.view(), begin, end);
      const MatrixView<TypeParam> lse = columns(batch_state.lse_view(), begin, end);
      merge(out, lse, state.out.view(), state.lse_view());
      this->expect_near(out, lse, in.reference(request), request);
      begin = end;
    }
  }
}

TYPED_TEST(AttendPartialTest, MergingWithAnEmptyStateChangesNothing) {
  const AttentionCase c{.shapes = {2, 1, 10, 30, 8, 4}};
  const AttentionInputs<TypeParam> in(c.shapes, 7);
  const State<TypeParam> state = this->attend(c, in);
  AttentionCase nothing = c;
  nothing.base.mask = Mask::lags(30, 40);  // beyond every lag
  State<TypeParam> left = state, right = this->attend(nothing, in), none = this->attend(nothing, in);
  merge(left.out.view(), left.lse_view(), none.out.view(), none.lse_view());
  EXPECT_EQ(left.out.values, state.out.values);
  EXPECT_EQ(left.lse.values, state.lse.values);
  merge(right.out.view(), right.lse_view(), left.out.view(), left.lse_view());
  EXPECT_EQ(right.out.values, state.out.values);
  EXPECT_EQ(right.lse.values, state.lse.values);
  State<TypeParam> still_none = none;
  merge(still_none.out.view(), still_none.lse_view(), none.out.view(), none.lse_view());
  EXPECT_EQ(still_none.out.values, none.out.values);
  EXPECT_EQ(still_none.lse.values, none.lse.values);
}

TYPED_TEST(AttendPartialTest, MergingStatesFarApartKeepsTheLarger) {
  const Shapes shapes{1, 1, 1, 1, 1, 2};
  State<TypeParam> a(shapes), b(shapes);
  a.out.values = {1, 2};
  b.out.values = {3, 4};
  a.lse.values = {-5000};
  b.lse.values = {5000};
  State<TypeParam> ab = a, ba = b;
  merge(ab.out.view(), ab.lse_view(), b.out.view(), b.lse_view());
  merge(ba.out.view(), ba.lse_view(), a.out.view(), a.lse_view());
  EXPECT_EQ(ab.out.values, b.out.values);
  EXPECT_EQ(ba.out.values, b.out.values);
  EXPECT_EQ(ab.lse.values[0], 5000);
  EXPECT_EQ(ba.lse.values[0], 5000);
}

TYPED_TEST(AttendPartialTest, RefusesShapesThatClash) {
  const AttentionCase c{.shapes = {2, 1, 10, 30, 8, 4}};
  const AttentionInputs<TypeParam> in(c.shapes, 8);
  State<TypeParam> state(c.shapes), other({2, 1, 9, 30, 8, 4});
  const auto expect_error = [](auto&& call, const char* text) {
    try {
      call();
      ADD_FAILURE() << "no Error with " << text;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(text));
    }
  };
  expect_error(
      [&] {
        attend_partial(in.q.view(), in.k.view(), in.v.view(), state.out.view(), other.lse_view(),
                       c.options());
      },
      "lse is [2, 9]");
  expect_error(
      [&] {
        attend_partial(in.q.view(), in.k.view(), in.v.view(), other.out.view(), state.lse_view(),
                       c.options());
      },
      "out is [2, 9, 4]");
  expect_error([&] { merge(state.out.view(), state.lse_view(), other.out.view(), other.lse_view()); },
               "other_out is [2, 9, 4]");
  expect_error([&] { merge(state.out.view(), state.lse_view(), state.out.view(), other.lse_view()); },
               "other_lse is [2, 9]");
  const auto without = [](auto view) {
    view.data = nullptr;
    return view;
  };
  const auto out = state.out.view();
  const auto lse = state.lse_view();
  expect_error([&] { merge(without(out), lse, out, lse); }, "merge: out is null");
  expect_error([&] { merge(out, without(lse), out, lse); }, "merge: lse is null");
  expect_error([&] { merge(out, lse, without(out), lse); }, "merge: other_out is null");
  expect_error([&] { merge(out, lse, out, without(lse)); }, "merge: other_lse is null");
}

TYPED_TEST(AttendPartialTest, RefusesResultsWhoseRowsOverlap) {
  const AttentionCase c{.shapes = {2, 1, 10, 30, 8, 4}};
  const AttentionInputs<TypeParam> in(c.shapes, 9);
  State<TypeParam> state(c.shapes), other(c.shapes);
  auto lse = state.lse_view();
  auto out = state.out.view();
  const auto partial = [&] {
    return error_of([&] { attend_partial(in.q.view(), in.k.view(), in.v.view(), out, lse, c.options()); });
  };
  const auto merged = [&] { return error_of([&] { merge(out, lse, other.out.view(), other.lse_view()); }); };
  EXPECT_EQ(partial(), "no Error");
  EXPECT_EQ(merged(), "no Error");
  lse.row_stride = 9;
  EXPECT_EQ(partial(), "lse is [2, 10] with row_stride 9: rows would overwrite each other");
  EXPECT_EQ(merged(), "merge: lse is [2, 10] with row_stride 9: rows would overwrite each other");
  lse.row_stride = 10;
  out.row_stride = 3;
  EXPECT_THAT(partial(), testing::HasSubstr("out is [2, 10, 4] with head_stride 40 and row_stride 3"));
  EXPECT_THAT(merged(), testing::HasSubstr("merge: out is [2, 10, 4] with head_stride 40 and row_stride 3"));
}

}  // namespace
}  // namespace fastrope_test
