// Engines change the arithmetic of their threads: subnormal results flushed to zero, subnormal operands read
// as zero, other rounding modes. What holds then:
//   flushing     the usual tolerance, and beside it (n_k + 2) times the least normal number, in |out|: the
//                subnormal elements of v read as 0, and as much lost in each product with a weight. Subnormal
//                elements of q and k are read as 0 too, which no logit notices unless scale max|q| or scale
//                max|k| is beyond the tolerance over the least normal number, 2^100 and more. Weights below
//                the least normal number are 0 in any environment. 16-bit storage keeps its own subnormal
//                numbers.
//   rounding     twice the usual tolerance: an operation is off by up to a unit in the last place, not half
//                one.
// It is the environment of the threads that the executor runs tasks on, not only of the one that calls.
#include <gtest/gtest.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

/// The floating-point environment of this thread, as it was, when it dies.
class Environment {
 public:
  Environment() { std::fegetenv(&before_); }
  ~Environment() { std::fesetenv(&before_); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  std::fenv_t before_;
};

#if defined(__SSE2__)
constexpr bool kFlushes = true;
void flush_subnormals() {
  _MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_ON);
  _mm_setcsr(_mm_getcsr() | 0x0040);  // denormals are zero
}
#else
constexpr bool kFlushes = false;
void flush_subnormals() {}
#endif

/// A number that no compiler knows.
template <class Real>
Real unknown(Real x) {
  volatile Real y = x;
  return y;
}

struct NamedCase {
  std::string name;
  AttentionCase attention;
};

/// Every path, on problems small enough for the oracle.
std::vector<NamedCase> cases() {
  Inputs random(1);
  std::vector<NamedCase> all;
  const auto add = [&](const char* name, const Shapes& shapes, Path path, auto&& set) {
    AttentionCase c{.shapes = shapes};
    c.base.path = path;
    set(c);
    all.push_back({name, c});
  };
  const auto small_entries = [](AttentionCase& c) {
    c.base.tolerance = 1e-3;
    c.base.scale = 0.2 / std::sqrt(static_cast<double>(c.shapes.d));
  };
  add("tiles", {2, 1, 90, 140, 16, 9}, Path::exact, [](AttentionCase& c) {
    c.base.rope = Rope{};
    c.base.mask = Mask::causal();
  });
  add("tiles with a bias", {2, 2, 70, 70, 33, 20}, Path::exact,
      [&](AttentionCase& c) { set_alibi(c, random); });
  add("decode", {4, 2, 1, 900, 16, 9}, Path::exact, [](AttentionCase& c) { c.base.rope = Rope{}; });
  add("polynomial", {2, 1, 300, 300, 8, 9}, Path::polynomial, [&](AttentionCase& c) {
    c.base.rope = Rope{};
    small_entries(c);
  });
  add("causal polynomial", {1, 1, 600, 600, 8, 9}, Path::polynomial, [&](AttentionCase& c) {
    c.base.mask = Mask::causal();
    small_entries(c);
  });
  add("transforms", {1, 1, 300, 300, 4, 3}, Path::toeplitz, [&](AttentionCase& c) {
    set_t5(c, random, /*bidirectional=*/true);
    small_entries(c);
  });
  return all;
}

/// What the tests of the exact path allow (exact/attention_test), relative to max|V|.
template <class Real>
constexpr double kExactTolerance = std::is_same_v<Real, float> ? 4e-6 : 1e-12;

template <class Real>
class FloatEnvironmentTest : public testing::Test {
 protected:
  static constexpr double kLeast = std::numeric_limits<Real>::min();

  /// Attends within an environment and holds the result, times `allowance`, against the oracle's, which was
  /// computed outside.
  template <class T>
  static void expect_near(const NamedCase& named, AttentionInputs<T>& in, const std::function<void()>& enter,
                          double allowance, double rounding_of_out = 0) {
    const AttentionCase& c = named.attention;
    const Reference expected = in.reference(c);
    Report report;
    {
      const Environment restored;
      enter();
      report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    }
    const double size = max_abs(in.v.view());
    for (Index h = 0; h < c.shapes.heads; ++h) {
      const HeadReport& head = report.heads[static_cast<std::size_t>(h)];
      ASSERT_EQ(head.path, c.base.path) << named.name;
      const double relative =
          head.path == Path::exact ? kExactTolerance<Real> : head.error_bound + head.rounding;
      const double lost = static_cast<double>(c.shapes.n_k + 2) * kLeast;
      for (Index i = 0; i < c.shapes.n_q; ++i)
        for (Index x = 0; x < c.shapes.d_v; ++x)
          ASSERT_LE(distance(static_cast<double>(in.out(h, i, x)), expected.out(h, i, x)),
                    allowance * (relative + rounding_of_out) * size + lost)
              << named.name << ", head " << h << ", row " << i;
    }
  }
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(FloatEnvironmentTest, Reals);

TYPED_TEST(FloatEnvironmentTest, FlushingSubnormalNumbersIsHarmless) {
  if (!kFlushes) GTEST_SKIP() << "this test knows how to flush subnormal numbers on x86 only";
  {
    const Environment restored;
    flush_subnormals();
    ASSERT_EQ(unknown(std::numeric_limits<TypeParam>::min()) / 2, 0) << "results are not flushed";
    ASSERT_EQ(unknown(std::numeric_limits<TypeParam>::denorm_min()) * 2, 0) << "operands are not flushed";
  }
  ASSERT_NE(unknown(std::numeric_limits<TypeParam>::min()) / 2, 0) << "flushing goes on";
  std::uint64_t seed = 1;
  for (const NamedCase& named : cases()) {
    AttentionInputs<TypeParam> in(named.attention.shapes, seed++);
    this->expect_near(named, in, flush_subnormals, 1);
  }
}

TYPED_TEST(FloatEnvironmentTest, SubnormalValuesAreReadAsZero) {
  if (!kFlushes) GTEST_SKIP() << "this test knows how to flush subnormal numbers on x86 only";
  std::uint64_t seed = 11;
  for (const NamedCase& named : cases())
    for (const double largest : {0.5, 3.0, 1000.0}) {  // times the least normal number
      AttentionInputs<TypeParam> in(named.attention.shapes, seed++);
      for (TypeParam& v : in.v.values) v *= static_cast<TypeParam>(largest * this->kLeast);
      this->expect_near(named, in, flush_subnormals, 1);
    }
}

TYPED_TEST(FloatEnvironmentTest, SubnormalWeightsAndEntriesAreNoticedByNobody) {
  if (!kFlushes) GTEST_SKIP() << "this test knows how to flush subnormal numbers on x86 only";
  std::uint64_t seed = 21;
  for (const NamedCase& named : cases()) {
    if (named.attention.base.path == Path::exact) {
      // Logits of about -ln of the least normal number, below the first key's: weights around it.
      AttentionInputs<TypeParam> in(named.attention.shapes, seed++);
      const double logit = std::log(this->kLeast);
      NamedCase steep = named;
      steep.name += ", steep";
      steep.attention.base.scale = 1;
      steep.attention.base.rope.reset();
      for (Index h = 0; h < in.q.heads; ++h)
        for (Index i = 0; i < in.q.rows; ++i)
          for (Index c = 0; c < in.q.cols; ++c) in.q(h, i, c) = c == 0;
      for (Index h = 0; h < in.k.heads; ++h)
        for (Index j = 0; j < in.k.rows; ++j)
          in.k(h, j, 0) =
              static_cast<TypeParam>(j == 0 ? 0 : logit * (0.9 + 0.001 * static_cast<double>(j % 200)));
      this->expect_near(steep, in, flush_subnormals, 1);
    }
    // Subnormal elements of q and k among others.
    AttentionInputs<TypeParam> in(named.attention.shapes, seed++);
    for (auto* x : {&in.q.values, &in.k.values})
      for (std::size_t e = 0; e < x->size(); e += 3) (*x)[e] *= static_cast<TypeParam>(this->kLeast);
    this->expect_near(named, in, flush_subnormals, 1);
  }
}

TYPED_TEST(FloatEnvironmentTest, OtherRoundingModesCostTwice) {
  std::uint64_t seed = 31;
  for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    {
      const Environment restored;
      ASSERT_EQ(std::fesetround(mode), 0);
      const TypeParam third = unknown(TypeParam{1}) / unknown(TypeParam{3}),
                      minus_third = unknown(TypeParam{-1}) / unknown(TypeParam{3});
      ASSERT_EQ(mode == FE_TOWARDZERO, third == -minus_third) << "the mode is not used";
    }
    for (const NamedCase& named : cases()) {
      SCOPED_TRACE(mode == FE_UPWARD ? "upwards" : mode == FE_DOWNWARD ? "downwards" : "towards zero");
      AttentionInputs<TypeParam> in(named.attention.shapes, seed++);
      this->expect_near(
          named, in, [mode] { std::fesetround(mode); }, 2);
    }
  }
}

TEST(FloatEnvironment, SixteenBitStorageKeepsItsSubnormalNumbers) {
  if (!kFlushes) GTEST_SKIP() << "this test knows how to flush subnormal numbers on x86 only";
  class Floats : public FloatEnvironmentTest<float> {
   public:
    using FloatEnvironmentTest<float>::expect_near;
    void TestBody() override {}
  };
  std::uint64_t seed = 41;
  for (const NamedCase& named : cases()) {
    if (named.attention.base.path != Path::exact) continue;
    AttentionInputs<float16> in(named.attention.shapes, seed++);
    // Below 2^-14 all numbers are multiples of 2^-24.
    for (float16& v : in.v.values) v = static_cast<float16>(0x1p-15F * static_cast<float>(v));
    Floats::expect_near(named, in, flush_subnormals, 1, /*rounding_of_out=*/0x1p-25 / 0x1p-16);
  }
}

}  // namespace
}  // namespace fastrope_test
