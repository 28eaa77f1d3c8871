#include "fastrope/core/float8.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "fastrope/core/quantize.hpp"
#include "support/error_of.hpp"

namespace fastrope {
namespace {

static_assert(sizeof(float8_e4m3) == 1 && sizeof(float8_e5m2) == 1);
static_assert(static_cast<float>(float8_e4m3(1.0F)) == 1 && static_cast<double>(float8_e5m2(-2)) == -2);
static_assert(!std::is_convertible_v<float8_e4m3, float> && !Element<float8_e4m3> &&
              CacheElement<float8_e4m3>);

template <class T>
T from_bits(unsigned bits) {
  T x;
  x.bits = static_cast<std::uint8_t>(bits);
  return x;
}

/// The number as its format defines it.
double by_definition(unsigned bits, int fraction_bits) {
  const int bias = (1 << (6 - fraction_bits)) - 1, exponent = static_cast<int>(bits & 0x7f) >> fraction_bits;
  const double fraction = (bits & ((1U << fraction_bits) - 1)) * std::exp2(-fraction_bits);
  const double size =
      exponent == 0 ? std::exp2(1 - bias) * fraction : std::exp2(exponent - bias) * (1 + fraction);
  return (bits & 0x80) != 0 ? -size : size;
}
template <class T>
double definition(unsigned bits) {
  const unsigned size = bits & 0x7f;
  if constexpr (std::is_same_v<T, float8_e4m3>) return size == 0x7f ? NAN : by_definition(bits, 3);
  if (size > 0x7c) return NAN;
  if (size == 0x7c) return (bits & 0x80) != 0 ? -INFINITY : INFINITY;
  return by_definition(bits, 2);
}

template <class T>
class Float8 : public testing::Test {};
using Float8Types = testing::Types<float8_e4m3, float8_e5m2>;
TYPED_TEST_SUITE(Float8, Float8Types);

TYPED_TEST(Float8, NumbersAreThoseOfTheFormatInVectorsToo) {
  std::vector<TypeParam> all;
  for (unsigned bits = 0; bits < 256; ++bits) all.push_back(from_bits<TypeParam>(bits));
  std::vector<float> together(256);
  dequantize(all, together);
  for (unsigned bits = 0; bits < 256; ++bits) {
    const double expected = definition<TypeParam>(bits);
    for (const double x : {static_cast<double>(all[bits]), static_cast<double>(together[bits])}) {
      ASSERT_EQ(std::isnan(x), std::isnan(expected)) << bits;
      if (!std::isnan(expected)) {
        ASSERT_EQ(std::bit_cast<std::uint64_t>(x), std::bit_cast<std::uint64_t>(expected)) << bits;
      }
    }
  }
}

TYPED_TEST(Float8, RoundsToTheNearestTiesToEvenUpToTheLargest) {
  std::mt19937 random(1);
  const auto check = [](float x) {
    const TypeParam y(x);
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(static_cast<float>(y)));
      return;
    }
    // Of all finite numbers of x's sign the nearest, of two the even one.
    unsigned best = 0;
    double least = INFINITY;
    for (unsigned bits = 0; bits < 0x7f; ++bits) {
      const double size = definition<TypeParam>(bits);
      if (!std::isfinite(size)) break;
      const double off = std::abs(size - std::min(std::abs(static_cast<double>(x)), 1e6));
      if (off < least || (off == least && bits % 2 == 0)) best = bits, least = off;
    }
    ASSERT_EQ(y.bits, best | (std::signbit(x) ? 0x80U : 0U)) << x;
  };
  for (int i = 0; i < 20'000; ++i) check(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  for (unsigned bits = 0; bits < 0x7c; ++bits) {
    const auto low = static_cast<float>(definition<TypeParam>(bits)),
               high = static_cast<float>(definition<TypeParam>(bits + 1));
    if (!std::isfinite(high)) continue;
    const float middle = low / 2 + high / 2;
    for (const float x : {low, middle, std::nextafter(middle, INFINITY), std::nextafter(middle, 0.0F)}) {
      check(x);
      check(-x);
    }
  }
  for (const float x : {0.0F, -0.0F, 1e-45F, 464.0F, 464.1F, 61440.0F, 3.4e38F, INFINITY, -INFINITY, NAN})
    check(x);
}

TYPED_TEST(Float8, HasLimits) {
  using Limits = std::numeric_limits<TypeParam>;
  EXPECT_EQ(static_cast<float>(from_bits<TypeParam>(TypeParam(1.0F).bits + 1U)) - 1,
            static_cast<float>(Limits::epsilon()));
  const auto after = static_cast<float>(from_bits<TypeParam>(Limits::max().bits + 1U));
  EXPECT_EQ(Limits::has_infinity, std::isinf(after));
  EXPECT_EQ(!Limits::has_infinity, std::isnan(after));
  EXPECT_EQ(static_cast<float>(Limits::lowest()), -static_cast<float>(Limits::max()));
  EXPECT_EQ(from_bits<TypeParam>(1), Limits::denorm_min());
  EXPECT_EQ(static_cast<float>(Limits::epsilon()), std::exp2(1.0F - Limits::digits));
  EXPECT_EQ(static_cast<float>(from_bits<TypeParam>(Limits::min().bits + 1U)),
            (1 + static_cast<float>(Limits::epsilon())) * static_cast<float>(Limits::min()));
  EXPECT_TRUE(std::isnan(static_cast<float>(Limits::quiet_NaN())));
}

TYPED_TEST(Float8, QuantizesEachNumber) {
  std::vector<float> x = {1.0F, -0.3F, 1e9F, NAN, 0.0F};
  std::vector<TypeParam> stored(5), fewer(4);
  quantize(x, stored);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(stored[i].bits, TypeParam(x[i]).bits);
  EXPECT_EQ(fastrope_test::error_of([&] { quantize(x, fewer); }), "there are 5 floats for 4 elements of 1");
  EXPECT_EQ(fastrope_test::error_of([&] { dequantize(fewer, x); }), "there are 5 floats for 4 elements of 1");
}

}  // namespace
}  // namespace fastrope
