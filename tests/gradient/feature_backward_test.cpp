// Gradients by features against the oracle: every row within what is promised, over shapes, radii and
// tolerances.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fastrope/core.hpp>
#include <fastrope/gradient.hpp>
#include <limits>
#include <string>
#include <vector>

#include "support/error_of.hpp"
#include "support/executors.hpp"
#include "support/gradient_case.hpp"

namespace fastrope_test {
namespace {

using fastrope::BackwardReport;
using fastrope::Mask;
using fastrope::Path;
using fastrope::Rope;
using testing::HasSubstr;

/// A call whose entries are at most `radius`, or a rotation's gain squared times that, and reach it in one
/// pair; d_v and d_out of size 1.
template <class Real>
struct FeatureCall {
  AttentionCase c;
  AttentionInputs<Real> in;
  Tensor<Real> d_out, d_q, d_k, d_v;

  FeatureCall(const AttentionCase& of, double radius, Inputs& random)
      : c(of),
        in(of.shapes, random),
        d_out(random.gaussian<Real>(of.shapes.heads, of.shapes.n_q, of.shapes.d_v)),
        d_q(of.shapes.heads, of.shapes.n_q, of.shapes.d),
        d_k(of.shapes.kv_heads, of.shapes.n_k, of.shapes.d),
        d_v(of.shapes.kv_heads, of.shapes.n_k, of.shapes.d_v) {
    const double scale = std::abs(c.base.scale.value_or(1 / std::sqrt(static_cast<double>(c.shapes.d))));
    for (auto* x : {&in.q, &in.k}) {
      const double longest = longest_row(*x);
      for (Real& value : x->values)
        value = static_cast<Real>(static_cast<double>(value) * std::sqrt(radius / scale) / longest);
    }
  }

  static double longest_row(const Tensor<Real>& x) {
    double longest = 0;
    for (Index h = 0; h < x.heads; ++h)
      for (Index i = 0; i < x.rows; ++i) {
        double sum = 0;
        for (Index m = 0; m < x.cols; ++m)
          sum += static_cast<double>(x(h, i, m)) * static_cast<double>(x(h, i, m));
        longest = std::max(longest, std::sqrt(sum));
      }
    return longest;
  }

  BackwardReport run(const Options& options) {
    for (Tensor<Real>* x : {&d_q, &d_k, &d_v}) std::fill(x->values.begin(), x->values.end(), Real(NAN));
    return fastrope::attend_backward(in.q.view(), in.k.view(), in.v.view(), in.out.view(), {}, d_out.view(),
                                     d_q.view(), d_k.view(), d_v.view(), options);
  }
  Options options(double tolerance) const {
    Options options = c.options();
    options.tolerance = tolerance;
    options.path = Path::polynomial;
    return options;
  }
};

/// The most of observed over promised of all rows, but for the rounding of results to Real.
template <class Real>
double worst_of(const FeatureCall<Real>& call, double bound) {
  const AttentionCase& c = call.c;
  const Shapes& s = c.shapes;
  const auto q = converted<double>(call.in.q.view()), k = converted<double>(call.in.k.view()),
             v = converted<double>(call.in.v.view()), d_out = converted<double>(call.d_out.view());
  const Reference forward = reference_attention(q.view(), k.view(), v.view(), c.options());
  const ReferenceGradient exact =
      reference_backward(q.view(), k.view(), v.view(), forward, d_out.view(), c.options());
  // sum_i p_ij |d_out_ic| is d_v of |d_out|, and of |d_out_i|_1 that of a tensor of one column.
  Tensor<double> sizes = d_out, of_rows(s.heads, s.n_q, 1), one(s.kv_heads, s.n_k, 1);
  double most_v = 0;
  for (double& x : sizes.values) x = std::abs(x);
  for (const double x : v.values) most_v = std::max(most_v, std::abs(x));
  for (Index h = 0; h < s.heads; ++h)
    for (Index i = 0; i < s.n_q; ++i)
      for (Index m = 0; m < s.d_v; ++m) of_rows(h, i, 0) += sizes(h, i, m);
  const ReferenceGradient of_sizes =
      reference_backward(q.view(), k.view(), v.view(), forward, sizes.view(), c.options());
  const ReferenceGradient masses =
      reference_backward(q.view(), k.view(), one.view(), {of_rows, forward.lse}, of_rows.view(), c.options());

  double gain = 1;
  if (c.base.rope) gain = std::max(1.0, reference_frequencies(*c.base.rope, s.d).gain);
  const double scale = std::abs(c.base.scale.value_or(1 / std::sqrt(static_cast<double>(s.d)))) * gain * gain;
  const double longest_q = call.longest_row(call.in.q), longest_k = call.longest_row(call.in.k);
  const double unit = std::numeric_limits<Real>::epsilon() / 2;
  double worst = 0;
  const auto see = [&](double error, double rounding, double promised) {
    worst = std::max(worst, std::max(0.0, error - rounding) / promised);
  };
  const auto see_row = [&](const Real* x, const double* y, double promised) {
    double error = 0, size = 0;
    for (Index m = 0; m < s.d; ++m) {
      error += std::pow(static_cast<double>(x[m]) - y[m], 2);
      size += y[m] * y[m];
    }
    see(std::sqrt(error), 1.01 * unit * std::sqrt(size), promised);
  };
  for (Index h = 0; h < s.heads; ++h)
    for (Index i = 0; i < s.n_q; ++i)
      see_row(call.d_q.view().head(h).row(i), exact.q.view().head(h).row(i),
              bound * scale * longest_k * most_v * of_rows(h, i, 0));
  for (Index kv = 0; kv < s.kv_heads; ++kv)
    for (Index j = 0; j < s.n_k; ++j) {
      see_row(call.d_k.view().head(kv).row(j), exact.k.view().head(kv).row(j),
              bound * scale * longest_q * most_v * masses.v(kv, j, 0));
      for (Index m = 0; m < s.d_v; ++m)
        see(std::abs(static_cast<double>(call.d_v(kv, j, m)) - exact.v(kv, j, m)),
            1.01 * unit * std::abs(exact.v(kv, j, m)), bound * of_sizes.v(kv, j, m));
    }
  return worst;
}

template <class Real>
class FeatureBackwardTest : public testing::Test {};

using FeatureReals = testing::Types<float, double>;
TYPED_TEST_SUITE(FeatureBackwardTest, FeatureReals);

TYPED_TEST(FeatureBackwardTest, EveryRowIsWithinItsBound) {
  std::uint64_t seed = 101;
  double worst = 0;
  for (const Shapes shapes :
       {Shapes{1, 1, 1, 1, 2, 1}, Shapes{4, 2, 70, 70, 4, 5}, Shapes{2, 1, 33, 150, 8, 8},
        Shapes{1, 1, 96, 129, 6, 20}, Shapes{3, 3, 31, 32, 5, 3}})
    for (const Mask mask : {Mask::full(), Mask::causal()})
      for (const double radius : {0.3, 1.0, 2.5})
        for (const double tolerance : {0.3, 1e-3, 1e-6}) {
          if (shapes.d > 5 && radius * std::sqrt(-std::log(tolerance)) > 4) continue;  // of a rank too large
          AttentionCase c{.shapes = shapes};
          c.base.mask = mask;
          if (shapes.d % 2 == 0) c.base.rope = Rope{.base = 100};
          if (shapes.d == 6) c.base.scale = -0.7;
          Inputs random(++seed);
          FeatureCall<TypeParam> call(c, radius, random);
          const BackwardReport report = call.run(call.options(tolerance));
          ASSERT_EQ(report.path, Path::polynomial);
          ASSERT_LE(report.bound, tolerance);
          const double of_call = worst_of(call, report.bound);
          EXPECT_LE(of_call, 1) << c << ", radius " << radius << ", tolerance " << tolerance;
          worst = std::max(worst, of_call);
        }
  std::printf("observed / promised: at most %.3f\n", worst);
}

// One key where Q / exp is largest, with a value of 1, among many where it is smallest, with -1: its weight
// is off by almost eta, and its value by 2 from the row's.
TEST(FeatureBackwardCallTest, AlmostReachesItsBound) {
  constexpr double kRadius = 1;
  AttentionCase c{.shapes = {1, 1, 1, 400, 2, 1}};
  c.base.scale = 1;
  for (const double tolerance : {0.2, 1e-2, 1e-4}) {
    Inputs random(7);
    FeatureCall<double> call(c, kRadius, random);
    const BackwardReport report = call.run(call.options(tolerance));
    int degree = 0;
    while ((degree + 2) * (degree + 3) / 2 < report.rank) ++degree;
    const auto polynomial = fastrope::ExpPolynomial::minimax(kRadius, degree);
    const auto error = [&](double x) { return polynomial(x) * std::exp(-x) - 1; };
    const double sign = error(kRadius) > 0 ? 1 : -1;
    double other = 0;
    for (double x = -kRadius; x < kRadius; x += 1e-3)
      if (sign * error(x) < sign * error(other)) other = x;
    call.in.q(0, 0, 0) = 1;
    call.in.q(0, 0, 1) = 0;
    for (Index j = 0; j < 400; ++j) {
      call.in.k(0, j, 0) = j == 7 ? kRadius : other;
      call.in.k(0, j, 1) = 0;
      call.in.v(0, j, 0) = j == 7 ? 1 : -1;
    }
    ASSERT_EQ(call.run(call.options(tolerance)).bound, report.bound);
    const double worst = worst_of(call, report.bound);
    EXPECT_LE(worst, 1) << tolerance;
    EXPECT_GE(worst, 0.6) << tolerance;
  }
}

TYPED_TEST(FeatureBackwardTest, GainsOfRotationsAreInTheBound) {
  AttentionCase c{.shapes = {2, 1, 50, 50, 6, 4}};
  c.base.mask = Mask::causal();
  c.base.rope = Rope{.scaling = fastrope::YarnScaling{.factor = 8, .original_context = 32}};
  Inputs random(151);
  FeatureCall<TypeParam> call(c, 0.8, random);
  const BackwardReport report = call.run(call.options(1e-2));
  EXPECT_LE(worst_of(call, report.bound), 1);
}

TYPED_TEST(FeatureBackwardTest, AnyNumberOfThreadsGivesTheSameBits) {
  for (const Mask mask : {Mask::full(), Mask::causal()}) {
    AttentionCase c{.shapes = {6, 3, 100, 120, 4, 6}};
    c.base.mask = mask;
    Inputs random(152);
    FeatureCall<TypeParam> one(c, 1, random);
    one.run(one.options(1e-3));
    for (const Index workers : {2, 3}) {
      FeatureCall<TypeParam> more = one;
      Options options = one.options(1e-3);
      options.executor = threads(workers);
      more.run(options);
      EXPECT_EQ(max_abs_difference(one.d_q.view(), more.d_q.view()), 0);
      EXPECT_EQ(max_abs_difference(one.d_k.view(), more.d_k.view()), 0);
      EXPECT_EQ(max_abs_difference(one.d_v.view(), more.d_v.view()), 0);
    }
  }
}

TEST(FeatureBackwardCallTest, StoredIn16BitsItIsTheGradientOfWhatIsStored) {
  AttentionCase c{.shapes = {2, 1, 30, 50, 4, 6}};
  Inputs random(153);
  FeatureCall<float> call(c, 0.5, random);
  const auto half = [](Tensor<float>& x) {
    const auto stored = converted<fastrope::bfloat16>(x.view());
    x = converted<float>(stored.view());
    return stored;
  };
  const auto q = half(call.in.q), k = half(call.in.k), v = half(call.in.v), d_out = half(call.d_out);
  call.run(call.options(1e-2));
  const Tensor<float> d_k = call.d_k;
  fastrope::attend_backward(q.view(), k.view(), v.view(), call.in.out.view(), {}, d_out.view(),
                            call.d_q.view(), call.d_k.view(), call.d_v.view(), call.options(1e-2));
  EXPECT_EQ(max_abs_difference(d_k.view(), call.d_k.view()), 0);
}

// A short call is exact, and so needs the sums of its rows; of a long one features take less.
TEST(FeatureBackwardCallTest, ChoosesTheCheaperWay) {
  for (const Index n : {20, 3000}) {
    AttentionCase c{.shapes = {1, 1, n, n, 2, 3}};
    Inputs random(154);
    FeatureCall<float> call(c, 0.5, random);
    Options options = call.options(1e-2);
    options.path = Path::automatic;
    if (n == 20) {
      EXPECT_THAT(error_of([&] { call.run(options); }), HasSubstr("exact gradients take"));
    } else {
      const BackwardReport report = call.run(options);
      EXPECT_EQ(report.path, Path::polynomial);
      EXPECT_EQ(report.rank, 15);
    }
  }
}

TEST(FeatureBackwardCallTest, SaysWhyItIsExact) {
  AttentionCase c{.shapes = {2, 1, 30, 50, 4, 6}};
  const auto reason = [&](double radius, auto&& change) {
    Inputs random(155);
    FeatureCall<float> call(c, radius, random);
    Options options = call.options(1e-3);
    change(options, call);
    return error_of([&] { call.run(options); });
  };
  using Call = FeatureCall<float>;
  EXPECT_EQ(reason(1, [](Options&, Call&) {}), "no Error");
  EXPECT_THAT(reason(20, [](Options&, Call&) {}), HasSubstr("above 16"));
  EXPECT_THAT(reason(15, [](Options&, Call&) {}), HasSubstr("entries up to 15"));
  EXPECT_THAT(reason(1, [](Options& o, Call&) { o.softcap = 3; }), HasSubstr("softcap"));
  EXPECT_THAT(reason(1, [](Options& o, Call&) { o.kernel = fastrope::Kernel::power(2); }),
              HasSubstr("softmax alone"));
  EXPECT_THAT(reason(1, [](Options& o, Call&) { o.mask = Mask::lags(0, 7); }), HasSubstr("lags 0 to 7"));
  EXPECT_THAT(reason(1, [](Options&, Call& call) { call.in.v(0, 3, 2) = NAN; }), HasSubstr("entries are"));
  EXPECT_THAT(reason(1, [](Options&, Call& call) { call.d_out(0, 3, 2) = INFINITY; }),
              HasSubstr("entries are"));
}

}  // namespace
}  // namespace fastrope_test
