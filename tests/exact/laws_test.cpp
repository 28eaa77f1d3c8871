// What exact attention must obey whatever its kernels are: relative positions, causality, independence of the
// threads, and IEEE behaviour of values that are not finite.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"
#include "support/executors.hpp"

namespace fastrope_test {
namespace {

using fastrope::attend;
using fastrope::Executor;
using fastrope::Mask;
using fastrope::Rope;

template <class Real>
constexpr double kLawTolerance = std::is_same_v<Real, float> ? 4e-6 : 1e-12;

template <class Real>
Tensor<Real> run(const AttentionCase& c, const AttentionInputs<Real>& in) {
  Tensor<Real> out = in.out;
  attend(in.q.view(), in.k.view(), in.v.view(), out.view(), c.options());
  return out;
}

/// Rows [begin, end) of every head.
template <class Real>
TensorView<const Real> rows(const Tensor<Real>& x, Index begin, Index end) {
  TensorView<const Real> view = x.view();
  view.data += begin * view.row_stride;
  view.rows = end - begin;
  return view;
}

template <class Real>
class ExactLawTest : public testing::Test {};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(ExactLawTest, Reals);

TYPED_TEST(ExactLawTest, RopeDependsOnTheLagAlone) {
  for (const auto pairing : {fastrope::RopePairing::interleaved, fastrope::RopePairing::half_split}) {
    AttentionCase c{.shapes = {2, 1, 60, 90, 16, 8}};
    c.base.rope = Rope{.pairing = pairing};
    c.base.mask = Mask::causal();
    const AttentionInputs<TypeParam> in(c.shapes, 1);
    const Tensor<TypeParam> out = run(c, in);
    for (const Position shift : {-1000, 1, 63, 64, 100000}) {
      AttentionCase shifted = c;
      for (Position j = 0; j < 90; ++j) shifted.key_positions.push_back(j + shift);
      for (Position i = 30; i < 90; ++i) shifted.query_positions.push_back(i + shift);
      // An angle of size a is off by epsilon a in double.
      const double angles = 4 * std::numeric_limits<double>::epsilon() * static_cast<double>(std::abs(shift));
      EXPECT_LE(max_abs_difference(run(shifted, in).view(), out.view()),
                kLawTolerance<TypeParam> + 8 * angles)
          << "shift " << shift;
    }
  }
}

TYPED_TEST(ExactLawTest, AConstantAddedToAllKeysChangesNothing) {
  const AttentionCase c{.shapes = {2, 1, 60, 90, 16, 8}};
  AttentionInputs<TypeParam> in(c.shapes, 2);
  const Tensor<TypeParam> out = run(c, in);
  Inputs random(3);
  const auto constant = random.sphere<double>(1, 1, 16, 8);
  for (Index j = 0; j < 90; ++j)
    for (Index m = 0; m < 16; ++m) in.k(0, j, m) += static_cast<TypeParam>(constant(0, 0, m));
  // Logits grow from about 5 to 20, and their rounding with them.
  EXPECT_LE(max_abs_difference(run(c, in).view(), out.view()), 4 * kLawTolerance<TypeParam>);
}

TYPED_TEST(ExactLawTest, OrderOfKeysDoesNotMatterWithoutPositions) {
  const AttentionCase c{.shapes = {2, 1, 60, 90, 16, 8}};
  AttentionInputs<TypeParam> in(c.shapes, 4);
  const Tensor<TypeParam> out = run(c, in);
  for (Index j = 0; j < 45; ++j) {
    for (Index m = 0; m < 16; ++m) std::swap(in.k(0, j, m), in.k(0, 89 - j, m));
    for (Index m = 0; m < 8; ++m) std::swap(in.v(0, j, m), in.v(0, 89 - j, m));
  }
  EXPECT_LE(max_abs_difference(run(c, in).view(), out.view()), kLawTolerance<TypeParam>);
}

TYPED_TEST(ExactLawTest, CausalRowsDoNotChangeWhenLaterTokensDo) {
  Inputs random(5);
  AttentionCase c{.shapes = {4, 2, 300, 300, 12, 9}};
  c.base.mask = Mask::causal();
  c.base.rope = Rope{};
  set_alibi(c, random);
  const AttentionInputs<TypeParam> in(c.shapes, 6);
  const Tensor<TypeParam> out = run(c, in);
  for (const Index n : {1, 47, 48, 100, 191, 192, 299}) {
    AttentionInputs<TypeParam> changed = in;
    const AttentionInputs<TypeParam> other(c.shapes, 7);
    const auto replace = [&](Tensor<TypeParam>& x, const Tensor<TypeParam>& y) {
      for (Index h = 0; h < x.heads; ++h)
        for (Index i = n; i < x.rows; ++i)
          for (Index m = 0; m < x.cols; ++m) x(h, i, m) = y(h, i, m);
    };
    replace(changed.q, other.q);
    replace(changed.k, other.k);
    replace(changed.v, other.v);
    EXPECT_EQ(max_abs_difference(rows(run(c, changed), 0, n), rows(out, 0, n)), 0) << "changed from " << n;

    Tensor<TypeParam> prefix(4, n, 9);
    attend(rows(in.q, 0, n), rows(in.k, 0, n), rows(in.v, 0, n), prefix.view(), c.options());
    // One query is decoded: its weight and value are multiplied and divided elsewhere.
    EXPECT_LE(max_abs_difference(prefix.view(), rows(out, 0, n)),
              n == 1 ? std::numeric_limits<TypeParam>::epsilon() : 0)
        << "cut at " << n;
  }
}

TYPED_TEST(ExactLawTest, ThreadsDoNotChangeABit) {
  Inputs random(8);
  AttentionCase c{.shapes = {4, 2, 200, 300, 12, 9}};
  c.base.mask = Mask::causal();
  c.base.rope = Rope{};
  set_alibi(c, random);
  set_dense(c, random, true, true, 9);
  const AttentionInputs<TypeParam> in(c.shapes, 9);
  const Tensor<TypeParam> out = run(c, in);
  for (const Index n : {1, 2, 3}) {
    c.base.executor = threads(n);
    EXPECT_EQ(run(c, in).values, out.values) << n << " threads";
#ifdef _OPENMP
    c.base.executor = Executor::openmp(n);
    EXPECT_EQ(run(c, in).values, out.values) << n << " OpenMP threads";
#endif
  }
}

TYPED_TEST(ExactLawTest, TasksOfAnySizeDoNotChangeABit) {
  // So many rows that the tasks of one worker are of four tiles, of two workers of two and of three of one;
  // under a window, whose runs of keys begin anywhere.
  for (const fastrope::Position window : {100, 333}) {
    AttentionCase c{.shapes = {1, 1, 1600, 1700, 8, 4}};
    c.base.mask = Mask::sliding_window(window);
    const AttentionInputs<TypeParam> in(c.shapes, 19);
    const Tensor<TypeParam> out = run(c, in);
    for (const Index n : {2, 3}) {
      c.base.executor = threads(n);
      EXPECT_EQ(run(c, in).values, out.values) << n << " threads, window " << window;
    }
  }
}

/// A number of the oracle is NaN or infinite where that of the library is, else within the tolerance.
template <class Real>
void expect_ieee(const Tensor<Real>& out, const Tensor<double>& expected, const char* what) {
  for (std::size_t i = 0; i < out.values.size(); ++i) {
    const double x = static_cast<double>(out.values[i]), y = expected.values[i];
    if (std::isnan(y))
      EXPECT_TRUE(std::isnan(x)) << what << ", element " << i << " is " << x;
    else
      EXPECT_LE(distance(x, y), kLawTolerance<Real>) << what << ", element " << i;
  }
}

TYPED_TEST(ExactLawTest, NotANumberInAKeyStaysInTheRowsThatAttendToIt) {
  AttentionCase c{.shapes = {2, 1, 130, 130, 8, 4}};
  c.base.rope = Rope{};
  for (const Mask mask : {Mask::causal(), Mask::full(), Mask::sliding_window(20)}) {
    c.base.mask = mask;
    AttentionInputs<TypeParam> in(c.shapes, 10);
    const Tensor<TypeParam> clean = run(c, in);
    in.k(0, 70, 3) = std::numeric_limits<TypeParam>::quiet_NaN();
    const Tensor<TypeParam> out = run(c, in);
    for (Index h = 0; h < 2; ++h) {
      for (Index i = 0; i < 130; ++i) {
        for (Index m = 0; m < 4; ++m) {
          if (mask.allows(i - 70))
            EXPECT_TRUE(std::isnan(out(h, i, m))) << "row " << i;
          else
            EXPECT_EQ(out(h, i, m), clean(h, i, m)) << "row " << i;
        }
      }
    }
  }
}

TYPED_TEST(ExactLawTest, NotANumberInAKeyThatADenseBiasMasksChangesNothing) {
  for (const Index n_q : {130, 3}) {  // in tiles, and decoded
    AttentionCase c{.shapes = {2, 1, n_q, 130, 8, 4}};
    c.dense.assign(130, 0.5F);
    c.dense[70] = -INFINITY;
    AttentionInputs<TypeParam> in(c.shapes, 20);
    const Tensor<TypeParam> clean = run(c, in);
    for (const double bad : {std::nan(""), HUGE_VAL}) {
      in.k(0, 70, 3) = static_cast<TypeParam>(bad);
      EXPECT_EQ(run(c, in).values, clean.values) << bad << ", n_q " << n_q;
    }
  }
}

TYPED_TEST(ExactLawTest, NotANumberInAQueryStaysInItsRow) {
  AttentionCase c{.shapes = {2, 1, 60, 60, 8, 4}};
  AttentionInputs<TypeParam> in(c.shapes, 11);
  const Tensor<TypeParam> clean = run(c, in);
  in.q(1, 20, 3) = std::numeric_limits<TypeParam>::quiet_NaN();
  const Tensor<TypeParam> out = run(c, in);
  for (Index h = 0; h < 2; ++h)
    for (Index i = 0; i < 60; ++i)
      for (Index m = 0; m < 4; ++m) {
        if (h == 1 && i == 20)
          EXPECT_TRUE(std::isnan(out(h, i, m)));
        else
          EXPECT_EQ(out(h, i, m), clean(h, i, m)) << h << ' ' << i;
      }
}

TYPED_TEST(ExactLawTest, InfiniteLogits) {
  // One infinite element: logits of +-infinity by the sign of the query. A weight of +infinity has no
  // quotient, one of -infinity is 0.
  for (const bool every_row : {false, true}) {
    AttentionCase c{.shapes = {1, 1, 100, 100, 8, 4}};
    c.base.mask = Mask::causal();
    AttentionInputs<TypeParam> in(c.shapes, 12);
    in.k(0, 30, 2) = -std::numeric_limits<TypeParam>::infinity();
    if (every_row)
      for (Index i = 0; i < 100; ++i) in.q(0, i, 2) = std::abs(in.q(0, i, 2));
    expect_ieee(run(c, in), in.reference(c).out, "infinite logits");
  }
  AttentionCase c{.shapes = {1, 1, 3, 5, 1, 2}, .text = ", all logits -infinity"};
  AttentionInputs<TypeParam> in(c.shapes, 13);
  for (TypeParam& x : in.q.values) x = 1;
  for (TypeParam& x : in.k.values) x = -std::numeric_limits<TypeParam>::infinity();
  EXPECT_EQ(max_abs(run(c, in).view()), 0);
}

TYPED_TEST(ExactLawTest, ValuesThatAreNotFiniteReachOnlyTheRowsThatAttendToThem) {
  constexpr TypeParam kNaN = std::numeric_limits<TypeParam>::quiet_NaN();
  constexpr TypeParam kInfinity = std::numeric_limits<TypeParam>::infinity();
  for (const TypeParam bad : {kNaN, kInfinity, -kInfinity}) {
    AttentionCase c{.shapes = {2, 1, 130, 130, 8, 4}};
    AttentionInputs<TypeParam> in(c.shapes, 14);
    in.v(0, 70, 2) = bad;
    for (const Mask mask : {Mask::full(), Mask::causal(), Mask::sliding_window(20), Mask::lags(1, 9)}) {
      c.base.mask = mask;
      expect_ieee(run(c, in), in.reference(c).out, "mask");
    }
    Inputs random(15);
    set_dense(c, random, true, true, 2);  // half of the pairs
    expect_ieee(run(c, in), in.reference(c).out, "dense bias");
    for (Position j = 0; j < 130; ++j) c.key_positions.push_back((j + 50) % 130);
    expect_ieee(run(c, in), in.reference(c).out, "shuffled keys");
  }
}

TYPED_TEST(ExactLawTest, HugeLogitsPickOneKey) {
  // The largest logit is hundreds above the next, whose weights are exactly 0; its own, between a half and 1,
  // is multiplied and divided by.
  AttentionCase c{.shapes = {1, 1, 64, 64, 64, 3}};
  AttentionInputs<TypeParam> in(c.shapes, 16);
  for (Index i = 0; i < 64; ++i)
    for (Index m = 0; m < 64; ++m) in.q(0, i, m) = in.k(0, i, m) = i == m ? TypeParam{1000} : TypeParam{0};
  EXPECT_LE(max_abs_difference(run(c, in).view(), in.v.view()), std::numeric_limits<TypeParam>::epsilon());
}

}  // namespace
}  // namespace fastrope_test
