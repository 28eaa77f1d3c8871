// Softmax by states: the promise is kept, by prompts and steps, with gates too, in memory that does not grow;
// tokens that break the other one are refused and change nothing.
#include "fastrope/attend/bounded_recurrence.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "support/attention_case.hpp"
#include "support/error_of.hpp"
#include "support/kernel_oracle.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::AllOf;
using testing::HasSubstr;

/// q and k on spheres, so that entries come up to `radius`.
AttentionInputs<float> bounded_inputs(const AttentionCase& c, double radius, std::uint64_t seed) {
  AttentionInputs<float> in(c.shapes, seed);
  Inputs random(seed);
  const double norm = std::sqrt(radius * std::sqrt(static_cast<double>(c.shapes.d))) * (1 - 1e-6);
  in.q = random.sphere<float>(c.shapes.heads, c.shapes.n_q, c.shapes.d, norm);
  in.k = random.sphere<float>(c.shapes.kv_heads, c.shapes.n_k, c.shapes.d, norm);
  // Some at both ends.
  for (Index h = 0; h < c.shapes.heads; ++h)
    for (Index i = 0; i < c.shapes.n_q; i += 3)
      for (Index m = 0; m < c.shapes.d; ++m)
        in.q(h, i, m) = (i % 2 == 0 ? 1 : -1) * in.k(h / (c.shapes.heads / c.shapes.kv_heads), i / 2, m);
  return in;
}

template <class X>
auto token(const Tensor<X>& x, Index i) {
  return rows(x.view(), Range{i, i + 1});
}

TEST(BoundedRecurrence, KeepsItsPromise) {
  Inputs random(1);
  for (const double radius : {0.5, 2.0})
    for (const double tolerance : {1e-2, 2e-3})
      for (const bool gated : {false, true})
        for (const Index stepped : {0, 700}) {
          AttentionCase c{.shapes = {4, 2, 900, 900, 4, 5}};
          c.base.mask = Mask::causal();
          c.base.tolerance = tolerance;
          c.base.rope = Rope{.base = 100};
          if (gated) set_gates(c, random, 2, 8);
          AttentionInputs<float> in = bounded_inputs(c, radius, 2);
          RecurrentAttention<float> recurrence(4, 2, 4, 5, c.base, radius);
          std::vector<std::vector<double>> bounds(4);
          const auto keep = [&] {
            for (Index h = 0; h < 4; ++h)
              for (Index i = 0; i < recurrence.row_bounds().cols; ++i)
                bounds[static_cast<std::size_t>(h)].push_back(recurrence.row_bounds()(h, i));
          };
          for (Index i = 0; i < stepped; ++i) {
            std::vector<float> gates;
            for (std::size_t at = static_cast<std::size_t>(i); at < c.log_gates.size(); at += 900)
              gates.push_back(c.log_gates[at]);
            ASSERT_EQ(recurrence.step(token(in.q, i), token(in.k, i), token(in.v, i),
                                      rows(in.out.view(), Range{i, i + 1}), gates),
                      RunStatus::ok);
            keep();
          }
          const Range rest{stepped, 900};
          MatrixView<const float> gates;
          if (gated) gates = {c.log_gates.data() + stepped, 2, 900 - stepped, 900};
          recurrence.prefill(rows(in.q.view(), rest), rows(in.k.view(), rest), rows(in.v.view(), rest),
                             rows(in.out.view(), rest), gates);
          keep();
          const Tensor<double> expected = in.reference(c).out;
          BoundedRows all;
          for (Index h = 0; h < 4; ++h)
            for (Index i = 0; i < 900; ++i)
              all.add(h, i, in.out.view().head(h).row(i), expected.view().head(h).row(i), 5,
                      largest_of(in.v.view().head(h / 2)),
                      bounds[static_cast<std::size_t>(h)][static_cast<std::size_t>(i)]);
          EXPECT_EQ(all.violated, 0) << all.worst;
          EXPECT_LE(recurrence.error_bound(), tolerance);
          if (!gated) {
            EXPECT_EQ(all.share_within(recurrence.error_bound()), 1)
                << *std::max_element(all.bounds.begin(), all.bounds.end()) << " beyond "
                << recurrence.error_bound();
          }
          EXPECT_EQ(all.share_within(tolerance), 1) << "radius " << radius << ", tolerance " << tolerance;
          EXPECT_GT(all.closest, 0.01) << "the bound says something";
        }
}

TEST(BoundedRecurrence, ATokenBeyondTheRadiusChangesNothing) {
  AttentionCase c{.shapes = {2, 1, 40, 40, 4, 3}};
  c.base.mask = Mask::causal();
  c.base.tolerance = 1e-2;
  const double radius = 1;
  AttentionInputs<float> in = bounded_inputs(c, radius, 3);
  RecurrentAttention<float> recurrence(2, 1, 4, 3, c.base, radius);
  const auto prefill = [&](Index begin, Index end) {
    const Range part{begin, end};
    recurrence.prefill(rows(in.q.view(), part), rows(in.k.view(), part), rows(in.v.view(), part),
                       rows(in.out.view(), part));
  };
  const auto step = [&](Index i) {
    return recurrence.step(token(in.q, i), token(in.k, i), token(in.v, i),
                           rows(in.out.view(), Range{i, i + 1}));
  };
  prefill(0, 20);
  std::vector<std::byte> before(recurrence.state_bytes()), after = before;
  ASSERT_EQ(recurrence.save(before), RunStatus::ok);
  const auto unchanged = [&] {
    EXPECT_EQ(recurrence.save(after), RunStatus::ok);
    EXPECT_EQ(after, before);
  };
  // A long query meets the keys before it, and a long key the queries that follow.
  const auto scale = [&](Tensor<float>& x, Index i, float factor) {
    for (Index h = 0; h < x.heads; ++h)
      for (Index m = 0; m < x.cols; ++m) x(h, i, m) *= factor;
  };
  scale(in.q, 25, 1.5F);
  EXPECT_THAT(error_of([&] { prefill(20, 40); }),
              AllOf(HasSubstr("head 0, token 25"), HasSubstr("as large as 1.5"), HasSubstr("radius 1")));
  unchanged();
  EXPECT_EQ(step(25), RunStatus::promise_broken);
  unchanged();
  scale(in.q, 25, 1 / 1.5F);
  scale(in.k, 30, 2);
  scale(in.q, 30, 0.4F);                                                   // whose own query is short
  EXPECT_THAT(error_of([&] { prefill(20, 40); }), HasSubstr("token 31"));  // a long key of the same call
  unchanged();
  prefill(20, 30);
  ASSERT_EQ(step(30), RunStatus::ok);
  ASSERT_EQ(recurrence.save(before), RunStatus::ok);
  EXPECT_EQ(step(31), RunStatus::promise_broken);
  EXPECT_THAT(error_of([&] { prefill(31, 40); }), HasSubstr("token 31"));
  unchanged();
  // The longest key is part of the past.
  RecurrentAttention<float> resumed(2, 1, 4, 3, c.base, radius);
  resumed.load(before);
  EXPECT_EQ(
      resumed.step(token(in.q, 31), token(in.k, 31), token(in.v, 31), rows(in.out.view(), Range{31, 32})),
      RunStatus::promise_broken);
  in.q(1, 31, 0) = NAN;
  EXPECT_EQ(step(31), RunStatus::promise_broken);
  RecurrentAttention<float> other(2, 1, 4, 3, c.base, 1.0001);
  EXPECT_NE(error_of([&] { other.load(before); }), "no Error");
}

TEST(BoundedRecurrence, EveryRowKeepsToTheErrorBound) {
  // Rows and keys that make sums as large as rounding can be, and denominators as small: the bounds of rows,
  // which are measured, never exceed what is promised of all beforehand.
  for (const Index d : {1, 3})
    for (const double sign : {-1.0, 1.0})
      for (const bool stepped : {false, true}) {
        AttentionCase c{.shapes = {1, 1, 3000, 3000, d, 2}};
        c.base.mask = Mask::causal();
        c.base.tolerance = 1e-2;
        c.base.scale = 1;
        const double radius = 2;
        AttentionInputs<float> in(c.shapes, 5);
        for (Index i = 0; i < 3000; ++i)
          for (Index m = 0; m < d; ++m) {
            in.k(0, i, m) = m == 0 ? 1.4142F : 0;
            in.q(0, i, m) = m == 0 ? static_cast<float>(sign * 1.4142) : 0;
          }
        RecurrentAttention<float> recurrence(1, 1, d, 2, c.base, radius);
        double most = 0;
        const auto keep = [&] {
          for (Index i = 0; i < recurrence.row_bounds().cols; ++i)
            most = std::max(most, recurrence.row_bounds()(0, i));
        };
        if (stepped)
          for (Index i = 0; i < 3000; ++i) {
            ASSERT_EQ(recurrence.step(token(in.q, i), token(in.k, i), token(in.v, i),
                                      rows(in.out.view(), Range{i, i + 1})),
                      RunStatus::ok);
            keep();
          }
        else {
          recurrence.prefill(in.q.view(), in.k.view(), in.v.view(), in.out.view());
          keep();
        }
        EXPECT_LE(most, recurrence.error_bound());
        if (sign < 0) {
          EXPECT_GE(most, 0.1 * recurrence.error_bound()) << "the bound says something";
        }
      }
}

TEST(BoundedRecurrence, MemoryDoesNotGrow) {
  AttentionCase c{.shapes = {1, 1, 20000, 20000, 3, 2}};
  c.base.mask = Mask::causal();
  c.base.tolerance = 1e-2;
  AttentionInputs<float> in = bounded_inputs(c, 1, 4);
  RecurrentAttention<float> recurrence(1, 1, 3, 2, c.base, 1);
  const std::size_t bytes = recurrence.state_bytes();
  for (Index i = 0; i < 20000; ++i) {
    ASSERT_EQ(
        recurrence.step(token(in.q, i), token(in.k, i), token(in.v, i), rows(in.out.view(), Range{i, i + 1})),
        RunStatus::ok);
    ASSERT_LE(recurrence.row_bounds()(0, 0), 1e-2) << i;
  }
  EXPECT_EQ(recurrence.state_bytes(), bytes);
  const Range last{19990, 20000};
  const Tensor<double> expected =
      reference_attention(rows(in.q.view(), last), in.k.view(), in.v.view(), c.base).out;
  for (Index i = 0; i < 10; ++i) EXPECT_NEAR(in.out(0, 19990 + i, 0), expected(0, i, 0), 1e-2);
}

TEST(BoundedRecurrence, WhatCannotBePromisedIsNamed) {
  Options options;
  options.mask = Mask::causal();
  const auto error = [&](double radius) {
    return error_of([&] { RecurrentAttention<float>(1, 1, 4, 4, options, radius); });
  };
  EXPECT_THAT(error(1), AllOf(HasSubstr("options.tolerance"), HasSubstr("got 0")));
  options.tolerance = 1e-2;
  EXPECT_EQ(error(1), "no Error");
  EXPECT_THAT(error(0), HasSubstr("got 0"));
  EXPECT_THAT(error(INFINITY), HasSubstr("got inf"));
  EXPECT_THAT(error(25), HasSubstr("25"));
  // e^(2 radius) roundings of float are more than any tolerance, and of double are not.
  EXPECT_THAT(error(6), AllOf(HasSubstr("radius 6"), HasSubstr("options.tolerance = 0.01"),
                              HasSubstr("32 bits"), HasSubstr("rounding up to")));
  EXPECT_EQ(error_of([&] { RecurrentAttention<double>(1, 1, 2, 4, options, 6); }), "no Error");
  EXPECT_EQ(RecurrentAttention<float>(1, 1, 4, 4, options, 1).error_bound() <= 1e-2, true);
  options.kernel = Kernel::power(2);
  EXPECT_THAT(error(1), HasSubstr("degree 2"));
  EXPECT_EQ(RecurrentAttention<float>(1, 1, 4, 4, options).error_bound(), INFINITY);
}

}  // namespace
}  // namespace fastrope_test
