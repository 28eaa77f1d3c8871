// attend_backward against the oracle of gradients, over options, shapes and seeds; and the laws of a
// gradient.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fastrope/core.hpp>
#include <fastrope/gradient.hpp>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "support/error_of.hpp"
#include "support/executors.hpp"
#include "support/gradient_case.hpp"

namespace fastrope_test {
namespace {

using fastrope::attend_backward;
using fastrope::Mask;
using fastrope::ParameterGradients;
using fastrope::Rope;
using testing::HasSubstr;

/// A call, what it gave, and its gradients, which no kernel has written yet.
template <class Real>
struct Backward {
  const AttentionCase& c;
  AttentionInputs<Real> in;
  Tensor<Real> d_out, lse, d_q, d_k, d_v;
  std::vector<double> bias, sinks, log_gates, log_input_gates;

  Backward(const AttentionCase& of, Inputs& random)
      : c(of),
        in(of.shapes, random),
        d_out(random.gaussian<Real>(of.shapes.heads, of.shapes.n_q, of.shapes.d_v)),
        lse(1, of.shapes.heads, of.shapes.n_q),
        d_q(of.shapes.heads, of.shapes.n_q, of.shapes.d),
        d_k(of.shapes.kv_heads, of.shapes.n_k, of.shapes.d),
        d_v(of.shapes.kv_heads, of.shapes.n_k, of.shapes.d_v),
        bias(static_cast<std::size_t>(of.base.bias.parameters()), NAN),
        sinks(of.sinks.size(), NAN),
        log_gates(of.log_gates.size(), NAN),
        log_input_gates(of.log_input_gates.size(), NAN) {
    forward();
    for (Tensor<Real>* x : {&d_q, &d_k, &d_v}) std::fill(x->values.begin(), x->values.end(), Real(NAN));
  }

  /// lse: of a polynomial kernel the sum itself, as a plan gives it.
  void forward() {
    const fastrope::Problem problem(c.shapes, c.options());
    std::vector<std::byte> memory(fastrope::exact_workspace_bytes<Real>(problem));
    fastrope::run_exact<Real>(
        problem, {in.q.view(), in.k.view(), in.v.view(), in.out.view(), lse.view().head(0)}, memory);
  }
  void run() { run(c.options()); }
  void run(const Options& options) {
    attend_backward(in.q.view(), in.k.view(), in.v.view(), in.out.view(), lse.view().head(0), d_out.view(),
                    d_q.view(), d_k.view(), d_v.view(), options, {bias, sinks, log_gates, log_input_gates});
  }
};

/// What d_logit of a pair is to a number of which the case's bias is made, as `bias` lays them out.
std::vector<double> reference_bias(const AttentionCase& c, const std::vector<std::vector<double>>& by_lag,
                                   Position first_lag) {
  const fastrope::LagBias& bias = c.base.bias;
  std::vector<double> sums(static_cast<std::size_t>(bias.parameters()));
  const bool is_t5 = c.text.find("T5") != std::string::npos;
  const Index heads = c.shapes.heads, buckets = is_t5 ? bias.parameters() / heads : 0;
  for (Index h = 0; h < heads; ++h)
    for (std::size_t m = 0; m < by_lag[static_cast<std::size_t>(h)].size(); ++m) {
      const double d_logit = by_lag[static_cast<std::size_t>(h)][m];
      const Position lag = first_lag + static_cast<Position>(m);
      if (d_logit == 0) continue;
      if (is_t5) {  // the bucket is where a table that counts them has its number
        std::vector<double> count;
        for (Index at = 0; at < buckets * heads; ++at) count.push_back(static_cast<double>(at / heads));
        const double bucket = t5_formula(count, heads, c.text.find("both") != std::string::npos, 50)(h, lag);
        sums[static_cast<std::size_t>(static_cast<Index>(bucket) * heads + h)] += d_logit;
      } else if (bias.is_table()) {
        const Index lags = bias.parameters() / bias.heads();
        sums[static_cast<std::size_t>((bias.heads() == 1 ? 0 : h) * lags + lag - bias.first_lag())] +=
            d_logit;
      } else {
        sums[static_cast<std::size_t>(bias.heads() == 1 ? 0 : h)] -=
            std::abs(static_cast<double>(lag)) * d_logit;
      }
    }
  return sums;
}

/// max |a - b| over 1 + max |b|.
double difference(const std::vector<double>& a, const std::vector<double>& b) {
  double most = 0, size = 1;
  for (std::size_t m = 0; m < b.size(); ++m) {
    most = std::max(most, distance(a.at(m), b[m]));
    size = std::max(size, 1 + std::abs(b[m]));
  }
  return most / size;
}
template <class Real>
double difference(const Tensor<Real>& a, const Tensor<double>& b) {
  return difference(std::vector<double>(a.values.begin(), a.values.end()), b.values);
}

/// Sums of a few hundred terms of size 1, whose weights are off by epsilon |lse|.
template <class Real>
constexpr double kGradientTolerance = 40 * static_cast<double>(std::numeric_limits<Real>::epsilon());

template <class Real>
void expect_reference(Backward<Real>& b) {
  const AttentionCase& c = b.c;
  const auto q = converted<double>(b.in.q.view()), k = converted<double>(b.in.k.view()),
             v = converted<double>(b.in.v.view()), d_out = converted<double>(b.d_out.view());
  constexpr Position kReach = 2000;
  std::vector<std::vector<double>> by_lag(static_cast<std::size_t>(c.shapes.heads),
                                          std::vector<double>(2 * kReach + 1));
  const ReferenceGradient expected = reference_backward(
      q.view(), k.view(), v.view(), b.in.reference(c), d_out.view(), c.options(), c.bias,
      [&](Index h, Position lag, double d_logit) {
        by_lag.at(static_cast<std::size_t>(h)).at(static_cast<std::size_t>(lag + kReach)) += d_logit;
      });
  constexpr double kMost = kGradientTolerance<Real>;
  EXPECT_LE(difference(b.d_q, expected.q), kMost) << "d_q of " << c;
  EXPECT_LE(difference(b.d_k, expected.k), kMost) << "d_k of " << c;
  EXPECT_LE(difference(b.d_v, expected.v), kMost) << "d_v of " << c;
  if (!c.sinks.empty()) {
    EXPECT_LE(difference(b.sinks, expected.sinks), kMost) << "sinks of " << c;
  }
  if (!c.base.bias.empty()) {
    EXPECT_LE(difference(b.bias, reference_bias(c, by_lag, -kReach)), kMost) << "bias of " << c;
  }
  EXPECT_LE(difference(b.log_gates, expected.log_gates), kMost) << "log gates of " << c;
  for (std::size_t t = 0; t < c.log_gates.size(); ++t)
    if (std::isinf(c.log_gates[t])) {
      EXPECT_EQ(b.log_gates[t], 0) << "a reset of " << c;
    }
  EXPECT_LE(difference(b.log_input_gates, expected.log_input_gates), kMost) << "log input gates of " << c;
}

template <class Real>
class AttendBackwardTest : public testing::Test {};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(AttendBackwardTest, Reals);

TYPED_TEST(AttendBackwardTest, IsTheGradientWithEveryOption) {
  for (const Shapes shapes : {Shapes{4, 2, 61, 61, 8, 5}, Shapes{2, 1, 23, 307, 16, 20}}) {
    for (const auto& [name, set] : gradient_options()) {
      AttentionCase c{.shapes = shapes, .text = ", " + name};
      Inputs random(21);
      set(c, random);
      Backward<TypeParam> b(c, random);
      b.run();
      expect_reference(b);
    }
  }
}

TYPED_TEST(AttendBackwardTest, IsTheGradientOfAnyShape) {
  std::uint64_t seed = 31;
  for (const Shapes shapes :
       {Shapes{1, 1, 1, 1, 2, 1}, Shapes{2, 2, 1, 67, 4, 3}, Shapes{3, 1, 67, 1, 6, 70},
        Shapes{1, 1, 193, 513, 10, 9}, Shapes{2, 1, 600, 530, 4, 2}, Shapes{1, 1, 47, 129, 70, 33},
        Shapes{2, 2, 24, 64, 64, 64}, Shapes{6, 2, 211, 211, 12, 12}, Shapes{1, 1, 20, 1100, 8, 8},
        Shapes{1, 1, 20, 30, 130, 150}}) {
    for (const Mask mask : {Mask::full(), Mask::causal(), Mask::lags(3, 50)}) {
      AttentionCase c{.shapes = shapes};
      c.base.mask = mask;
      c.base.rope = Rope{.base = 1000};
      Inputs random(++seed);
      set_table(c, random, shapes.heads, 1200);
      set_sinks(c, random);
      Backward<TypeParam> b(c, random);
      b.run();
      expect_reference(b);
    }
  }
}

TYPED_TEST(AttendBackwardTest, EmptyTensorsAreValid) {
  for (const Shapes shapes : {Shapes{0, 0, 5, 5, 4, 4}, Shapes{0, 2, 5, 5, 4, 4}, Shapes{2, 1, 0, 5, 4, 4},
                              Shapes{2, 1, 5, 0, 4, 4}, Shapes{2, 1, 5, 6, 0, 3}, Shapes{2, 1, 5, 6, 4, 0}}) {
    AttentionCase c{.shapes = shapes};
    Inputs random(41);
    Backward<TypeParam> b(c, random);
    b.run();
    if (shapes.heads > 0) {
      expect_reference(b);
    } else {
      for (TypeParam x : b.d_k.values) EXPECT_EQ(x, 0);
    }
  }
}

TYPED_TEST(AttendBackwardTest, RowsWithoutKeysAndKeysWithoutRowsHaveNoGradient) {
  AttentionCase c{.shapes = {2, 1, 100, 80, 8, 4}};  // the first 20 queries stand before all keys
  c.base.mask = Mask::lags(10, 30);                  // and nobody sees the last 10 keys
  Inputs random(42);
  Backward<TypeParam> b(c, random);
  b.run();
  expect_reference(b);
  for (Index i = 0; i < 30; ++i) EXPECT_EQ(b.d_q(0, i, 0), 0) << i;
  for (Index j = 70; j < 80; ++j) {
    EXPECT_EQ(b.d_k(0, j, 0), 0) << j;
    EXPECT_EQ(b.d_v(0, j, 0), 0) << j;
  }
}

TYPED_TEST(AttendBackwardTest, DenseMasksLeaveKeysOut) {
  AttentionCase c{.shapes = {2, 1, 50, 90, 8, 4}};
  Inputs random(43);
  std::vector<char> allowed(2 * 50 * 90);
  for (char& x : allowed) x = random.integer(0, 2) == 0;
  for (Index j = 0; j < 90; ++j) allowed[static_cast<std::size_t>(7 * 90 + j)] = 0;
  c.base.dense_mask = {reinterpret_cast<const bool*>(allowed.data()), 2, 50, 90, 50 * 90, 90};
  c.base.mask = Mask::causal();
  Backward<TypeParam> b(c, random);
  b.run();
  expect_reference(b);
}

// <d_out, J (x, y, z)> = <J^T d_out, (x, y, z)>, J attention's derivative along a direction, here by central
// differences of the library itself.
TEST(AttendBackwardCallTest, IsAdjointToAttentionLinearised) {
  for (const auto& [name, set] : gradient_options()) {
    AttentionCase c{.shapes = {4, 2, 40, 90, 8, 6}, .text = ", " + name};
    Inputs random(51);
    set(c, random);
    Backward<double> b(c, random);
    b.run();
    const AttentionInputs<double> along(c.shapes, random);
    const double inner = inner_product(b.d_q.view(), along.q.view()) +
                         inner_product(b.d_k.view(), along.k.view()) +
                         inner_product(b.d_v.view(), along.v.view());
    const auto move = [&](double step) {
      const auto add = [&](Tensor<double>& x, const Tensor<double>& y) {
        for (std::size_t m = 0; m < x.values.size(); ++m) x.values[m] += step * y.values[m];
      };
      add(b.in.q, along.q);
      add(b.in.k, along.k);
      add(b.in.v, along.v);
      b.forward();
      return inner_product(b.d_out.view(), b.in.out.view());
    };
    constexpr double kStep = 1e-5;
    const double above = move(kStep), below = move(-2 * kStep);
    EXPECT_NEAR((above - below) / (2 * kStep), inner, 1e-7 * (1 + std::abs(inner))) << c;
  }
}

/// Runs one call on 1, 2, 3 and 5 threads.
template <class Real>
void expect_same_bits(const AttentionCase& c, Inputs& random) {
  Backward<Real> one(c, random);
  one.run();
  const auto expect_equal = [&](const auto& a, const auto& b) {
    ASSERT_EQ(a.size(), b.size());
    EXPECT_TRUE(a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0) << c;
  };
  const auto expect_equal_calls = [&](const Backward<Real>& a, const Backward<Real>& b) {
    expect_equal(a.d_q.values, b.d_q.values);
    expect_equal(a.d_k.values, b.d_k.values);
    expect_equal(a.d_v.values, b.d_v.values);
    expect_equal(a.sinks, b.sinks);
    expect_equal(a.log_gates, b.log_gates);
    expect_equal(a.log_input_gates, b.log_input_gates);
  };
  for (const Index workers : {2, 3, 5}) {
    Backward<Real> more = one;
    Options options = c.options();
    options.executor = threads(workers);
    more.run(options);
    expect_equal_calls(one, more);
    expect_equal(one.bias, more.bias);
    more.bias.clear();  // without it, splits of a head run at once
    more.run(options);
    expect_equal_calls(one, more);
  }
}

TYPED_TEST(AttendBackwardTest, AnyNumberOfThreadsGivesTheSameBits) {
  AttentionCase c{.shapes = {4, 2, 700, 1300, 8, 6}};
  c.base.mask = Mask::causal();
  c.base.rope = Rope{};
  AttentionCase gated = c;
  Inputs random(61);
  set_alibi(c, random);
  set_sinks(c, random);
  expect_same_bits<TypeParam>(c, random);
  set_gates(gated, random, 2, 8, 300);
  set_input_gates(gated, random, 4, 1);
  expect_same_bits<TypeParam>(gated, random);
  gated.base.kernel = fastrope::Kernel::taylor(2);
  gated.base.normaliser = fastrope::Normaliser::at_least(3);
  set_alibi(gated, random);
  expect_same_bits<TypeParam>(gated, random);
}

TYPED_TEST(AttendBackwardTest, WhatIsNotFiniteStaysWithItsRows) {
  AttentionCase causal{.shapes = {1, 1, 90, 90, 8, 4}};
  AttentionCase dense = causal;  // says the same
  causal.base.mask = Mask::causal();
  std::vector<char> before(90 * 90);
  for (std::size_t i = 0; i < 90; ++i) std::fill_n(before.begin() + static_cast<Index>(90 * i), i + 1, 1);
  dense.base.dense_mask = {reinterpret_cast<const bool*>(before.data()), 1, 90, 90, 0, 90};
  AttentionCase polynomial = causal;
  polynomial.base.kernel = fastrope::Kernel::taylor(2);
  const auto is_finite = [](const Tensor<TypeParam>& x, Index row) {
    const auto* first = x.view().head(0).row(row);
    return std::all_of(first, first + x.cols, [](TypeParam y) { return std::isfinite(y); });
  };
  Inputs random(71);
  for (const AttentionCase* c : {&causal, &dense, &polynomial}) {
    // A key and a value that rows from 50 on see, a query and a gradient that meet keys up to 50.
    for (const int which : {0, 1, 2, 3}) {
      const bool of_keys = which < 2;
      Backward<TypeParam> b(*c, random);
      Tensor<TypeParam>* const changed[] = {&b.in.k, &b.in.v, &b.in.q, &b.d_out};
      (*changed[which])(0, 50, 1) = which % 2 == 0 ? TypeParam(INFINITY) : TypeParam(NAN);
      b.forward();
      b.run();
      for (Index i = 0; i < 90; ++i)
        EXPECT_EQ(is_finite(b.d_q, i), of_keys ? i < 50 : i != 50) << which << ", d_q of row " << i;
      for (Index j = 51; !of_keys && j < 90; ++j) {
        EXPECT_TRUE(is_finite(b.d_k, j)) << which << ", d_k of key " << j;
        EXPECT_TRUE(is_finite(b.d_v, j)) << which << ", d_v of key " << j;
      }
      EXPECT_FALSE(is_finite(b.d_k, 50)) << which;
    }
  }
}

TYPED_TEST(AttendBackwardTest, ReadsAndWritesRowsAnywhere) {
  AttentionCase c{.shapes = {4, 2, 30, 50, 8, 6}};
  c.base.rope = Rope{};
  Inputs random(81);
  Backward<TypeParam> b(c, random);
  b.run();
  auto q = token_major(b.in.q), k = token_major(b.in.k), v = token_major(b.in.v), out = token_major(b.in.out),
       d_out = token_major(b.d_out), d_q = token_major(b.d_q), d_k = token_major(b.d_k),
       d_v = token_major(b.d_v);
  for (auto* x : {&d_q, &d_k, &d_v}) std::fill(x->values.begin(), x->values.end(), TypeParam(NAN));
  attend_backward(q.view(), k.view(), v.view(), out.view(), b.lse.view().head(0), d_out.view(), d_q.view(),
                  d_k.view(), d_v.view(), c.options());
  EXPECT_EQ(max_abs_difference(d_q.view(), b.d_q.view()), 0);
  EXPECT_EQ(max_abs_difference(d_k.view(), b.d_k.view()), 0);
  EXPECT_EQ(max_abs_difference(d_v.view(), b.d_v.view()), 0);
}

TEST(AttendBackwardCallTest, StoredIn16BitsItIsTheGradientOfWhatIsStored) {
  AttentionCase c{.shapes = {2, 1, 30, 50, 8, 6}};
  Inputs random(82);
  Backward<float> b(c, random);
  const auto half = [](Tensor<float>& x) {
    const auto stored = converted<fastrope::float16>(x.view());
    x = converted<float>(stored.view());
    return stored;
  };
  const auto q = half(b.in.q), k = half(b.in.k), v = half(b.in.v);
  b.forward();
  b.run();
  const Tensor<float> d_q = b.d_q;
  attend_backward(q.view(), k.view(), v.view(), b.in.out.view(), b.lse.view().head(0), b.d_out.view(),
                  b.d_q.view(), b.d_k.view(), b.d_v.view(), c.options());
  EXPECT_EQ(max_abs_difference(d_q.view(), b.d_q.view()), 0);
}

TEST(AttendBackwardCallTest, TakesWhatABatchGives) {
  AttentionCase c{.shapes = {4, 2, 40, 60, 8, 6}};
  Inputs random(83);
  c.base.mask = Mask::causal();
  set_gates(c, random, 4, 6);
  for (const bool polynomial : {false, true}) {
    if (polynomial) {
      c.base.kernel = fastrope::Kernel::power(1, fastrope::KernelSign::any);
      c.base.normaliser = fastrope::Normaliser::at_least(1);
    }
    Backward<float> b(c, random);
    b.run();
    const Tensor<float> d_k = b.d_k;
    for (Tensor<float>* x : {&b.in.out, &b.lse}) std::fill(x->values.begin(), x->values.end(), NAN);
    const std::vector<fastrope::SequenceViews<float>> batch = {
        {b.in.q.view(), b.in.k.view(), b.in.v.view(), b.in.out.view(), b.lse.view().head(0)}};
    const std::vector<fastrope::SequenceOptions> own = {{.log_gates = c.options().log_gates}};
    fastrope::attend_batch(batch, c.base, own);
    b.run();
    EXPECT_EQ(max_abs_difference(d_k.view(), b.d_k.view()), 0) << c;
  }
}

TEST(AttendBackwardCallTest, RefusesWhatItDoesNotCompute) {
  const AttentionCase c{.shapes = {2, 1, 6, 7, 4, 3}};
  Inputs random(91);
  Backward<float> b(c, random);
  const auto error = [&](auto&& change) {
    Options options;
    change(options);
    return error_of([&] { b.run(options); });
  };
  EXPECT_THAT(error([&](Options& o) { o.weights = random_weights(random, 4, 3, 10); }),
              HasSubstr("3 entries"));
  const std::vector<float> gates(7, 0.1F);
  EXPECT_THAT(error([&](Options& o) {
                o.mask = Mask::causal();
                o.log_gates = {gates.data(), 1, 7, 7};
              }),
              HasSubstr("log_gates(0, 0) is 0.1"));
  EXPECT_THAT(error([](Options& o) { o.tolerance = -1; }), HasSubstr("got -1"));
  EXPECT_THAT(error([](Options& o) { o.path = fastrope::Path::polynomial; }), HasSubstr("needs a tolerance"));
  EXPECT_THAT(error([](Options& o) { o.path = fastrope::Path::toeplitz; }), HasSubstr("toeplitz"));
  EXPECT_EQ(error([](Options& o) { o.path = fastrope::Path::exact; }), "no Error");
  b.bias.resize(5);
  EXPECT_THAT(error([](Options&) {}), HasSubstr("bias has 5 places for the gradients of 0 parameters"));
  b.bias.clear();
  b.sinks.resize(3);
  EXPECT_THAT(error([](Options&) {}), HasSubstr("sinks has 3 places"));
  b.sinks.clear();
  b.log_gates.resize(4);
  EXPECT_THAT(error([](Options&) {}), HasSubstr("log_gates has 4 places for the gradients of 0 parameters"));
}

TEST(AttendBackwardCallTest, RefusesTensorsThatClash) {
  const AttentionCase c{.shapes = {2, 1, 6, 7, 4, 3}};
  Inputs random(92);
  Backward<float> b(c, random);
  const auto error = [&] { return error_of([&] { b.run(); }); };
  const auto with = [&](Tensor<float>& x, Tensor<float> other) {
    std::swap(x, other);
    const std::string text = error();
    std::swap(x, other);
    return text;
  };
  EXPECT_THAT(with(b.d_q, Tensor<float>(2, 6, 5)), HasSubstr("d_q is [2, 6, 5], the call needs [2, 6, 4]"));
  EXPECT_THAT(with(b.d_k, Tensor<float>(2, 7, 4)), HasSubstr("d_k is [2, 7, 4], the call needs [1, 7, 4]"));
  EXPECT_THAT(with(b.d_v, Tensor<float>(1, 7, 3, 21, 0)), HasSubstr("d_v"));
  EXPECT_THAT(with(b.d_out, Tensor<float>(2, 6, 2)), HasSubstr("d_out is [2, 6, 2]"));
  EXPECT_THAT(with(b.in.out, Tensor<float>(2, 5, 3)), HasSubstr("out is [2, 5, 3]"));
  EXPECT_THAT(with(b.lse, Tensor<float>(1, 2, 5)),
              HasSubstr("lse is [2, 5], the call is [heads = 2, n_q = 6]"));
}

}  // namespace
}  // namespace fastrope_test
