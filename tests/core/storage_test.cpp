#include "fastrope/core/storage.hpp"

#include <gtest/gtest.h>

#include <Eigen/Core>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

namespace fastrope {
namespace {

static_assert(sizeof(bfloat16) == 2 && sizeof(float16) == 2);
static_assert(std::is_trivially_copyable_v<bfloat16> && std::is_trivially_copyable_v<float16>);
static_assert(static_cast<float>(bfloat16(1.0F)) == 1 && static_cast<double>(float16(-2)) == -2);
static_assert(!std::is_convertible_v<bfloat16, float> && !std::is_convertible_v<float16, float>);

/// Own and Theirs have all numbers in common, bit for bit.
template <class Own, class Theirs>
void expect_same_numbers() {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    Own own;
    own.bits = static_cast<std::uint16_t>(bits);
    const auto theirs = std::bit_cast<Theirs>(own.bits);
    const auto mine = static_cast<float>(own), other = static_cast<float>(theirs);
    ASSERT_EQ(std::isnan(mine), std::isnan(other)) << bits;
    if (std::isnan(mine)) continue;
    ASSERT_EQ(std::bit_cast<std::uint32_t>(mine), std::bit_cast<std::uint32_t>(other)) << bits;
    ASSERT_EQ(Own(mine).bits, own.bits);
  }
}

/// Any float becomes the same number.
template <class Own, class Theirs>
void expect_same_rounding() {
  std::mt19937 random(1);
  const auto check = [](float x) {
    const Own own(x);
    const auto theirs = static_cast<Theirs>(x);
    if (std::isnan(x))
      ASSERT_TRUE(std::isnan(static_cast<float>(own))) << std::bit_cast<std::uint32_t>(x);
    else
      ASSERT_EQ(own.bits, std::bit_cast<std::uint16_t>(theirs)) << x;
  };
  for (int i = 0; i < 2'000'000; ++i) check(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  // Numbers, their neighbours, and the middles between them with theirs.
  for (std::uint32_t bits = 0; bits < 0xffff; ++bits) {
    Own a, b;
    a.bits = static_cast<std::uint16_t>(bits);
    b.bits = static_cast<std::uint16_t>(bits + 1);
    const auto low = static_cast<float>(a), high = static_cast<float>(b);
    if (!std::isfinite(low) || !std::isfinite(high)) continue;
    const float middle = low / 2 + high / 2;
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    for (const float x : {low, middle, std::nextafter(middle, kInfinity), std::nextafter(middle, -kInfinity)})
      check(x);
  }
  for (const float x : {65519.996F, 65520.0F, 3.4e38F, 1e-45F, -0.0F, 0x1p-25F}) check(x);
}

TEST(Storage16, NumbersAreThoseOfBfloat16) { expect_same_numbers<bfloat16, Eigen::bfloat16>(); }
TEST(Storage16, NumbersAreThoseOfBinary16) { expect_same_numbers<float16, Eigen::half>(); }
TEST(Storage16, RoundsToBfloat16) { expect_same_rounding<bfloat16, Eigen::bfloat16>(); }
TEST(Storage16, RoundsToBinary16) { expect_same_rounding<float16, Eigen::half>(); }

/// The limits, against the neighbours of 1, of the largest number and of 0.
template <class T>
void expect_limits() {
  using Limits = std::numeric_limits<T>;
  const auto next = [](T x) {
    ++x.bits;
    return static_cast<float>(x);
  };
  EXPECT_EQ(next(T(1.0F)) - 1, static_cast<float>(Limits::epsilon()));
  EXPECT_EQ(next(Limits::max()), INFINITY);
  EXPECT_EQ(static_cast<float>(Limits::infinity()), INFINITY);
  EXPECT_EQ(static_cast<float>(Limits::lowest()), -static_cast<float>(Limits::max()));
  EXPECT_EQ(next(T(0.0F)), static_cast<float>(Limits::denorm_min()));
  EXPECT_EQ(next(Limits::min()),
            (1 + static_cast<float>(Limits::epsilon())) * static_cast<float>(Limits::min()));
  EXPECT_TRUE(std::isnan(static_cast<float>(Limits::quiet_NaN())));
  EXPECT_EQ(static_cast<float>(Limits::epsilon()), std::exp2(1.0F - Limits::digits));
}
TEST(Storage16, HasLimits) {
  expect_limits<bfloat16>();
  expect_limits<float16>();
}

TEST(Storage16, ComparesAsFloats) {
  EXPECT_TRUE(bfloat16(0.0F) == bfloat16(-0.0F));
  EXPECT_FALSE(float16(NAN) == float16(NAN));
  EXPECT_TRUE(float16(1.5F) != float16(1.25F));
}

}  // namespace
}  // namespace fastrope
