// The promise of exp2_nonpositive, observed: a dense sweep, the edges, and what is not a number.
#include "fastrope/exact/exp2.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <limits>
#include <type_traits>
#include <vector>

namespace {

namespace simd = fastrope::simd;

template <class Real>
class Exp2 : public testing::Test {
 protected:
  /// The header's promise while 2^x is a normal number.
  static constexpr double kRelativeError = std::is_same_v<Real, float> ? 3.5e-7 : 4e-16;
  /// The least x whose 2^x is normal.
  static constexpr Real kLowest = std::numeric_limits<Real>::min_exponent - 1;

  static Real exp2(Real x) {
    std::vector<Real> lanes(static_cast<std::size_t>(simd::kLanes<Real>));
    simd::store<Real>(fastrope::exp2_nonpositive<Real>(simd::set(x)), lanes.data());
    return lanes[0];
  }

  static double relative_error(Real x) {
    const long double exact = std::exp2(static_cast<long double>(x));
    return static_cast<double>(std::abs(exp2(x) - exact) / exact);
  }
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(Exp2, Reals);

TYPED_TEST(Exp2, MeetsItsRelativeErrorEverywhere) {
  using Real = TypeParam;
  double worst = 0;
  // Densely over the first octaves, where weights matter most, then over the whole range.
  for (int step = 0; step <= 400000; ++step)
    worst = std::max(worst, this->relative_error(-static_cast<Real>(step) * Real{4} / 400000));
  for (int step = 0; step <= 400000; ++step)
    worst = std::max(worst, this->relative_error(this->kLowest * static_cast<Real>(step) / 400000));
  std::cout << "worst relative error " << worst << ", promised " << this->kRelativeError << '\n';
  EXPECT_LE(worst, this->kRelativeError);
}

TYPED_TEST(Exp2, IsExactAtIntegers) {
  using Real = TypeParam;
  for (int n = 0; n >= static_cast<int>(this->kLowest); --n)
    EXPECT_EQ(this->exp2(static_cast<Real>(n)), std::ldexp(Real{1}, n));
  EXPECT_EQ(this->exp2(-Real{0}), 1);
  EXPECT_LE(this->relative_error(-std::numeric_limits<Real>::denorm_min()), this->kRelativeError);
}

TYPED_TEST(Exp2, MeetsItsErrorAroundHalfIntegers) {
  using Real = TypeParam;
  for (int n = 0; n > static_cast<int>(this->kLowest); --n) {
    const Real half = static_cast<Real>(n) - Real{0.5};
    for (const Real x : {std::nextafter(half, Real{0}), half, std::nextafter(half, this->kLowest)})
      EXPECT_LE(this->relative_error(x), this->kRelativeError) << x;
  }
}

TYPED_TEST(Exp2, IsZeroBelowTheNormalNumbers) {
  using Real = TypeParam;
  const Real infinity = std::numeric_limits<Real>::infinity();
  EXPECT_EQ(this->exp2(this->kLowest), std::numeric_limits<Real>::min());
  EXPECT_EQ(this->exp2(std::nextafter(this->kLowest, -infinity)), 0);
  for (const Real x : {this->kLowest - 1, 2 * this->kLowest, Real{-1000000}, std::ldexp(Real{-1}, 100),
                       std::numeric_limits<Real>::lowest(), -infinity}) {
    EXPECT_EQ(this->exp2(x), 0) << x;
    EXPECT_FALSE(std::signbit(this->exp2(x))) << x;
  }
}

TYPED_TEST(Exp2, IsNaNForEveryNaN) {
  using Real = TypeParam;
  using Bits = std::conditional_t<sizeof(Real) == 4, std::uint32_t, std::uint64_t>;
  const Bits quiet = std::bit_cast<Bits>(std::numeric_limits<Real>::quiet_NaN());
  const Bits sign = ~(~Bits{0} >> 1);
  // Payloads: none, the lowest bits, some, and all ones, as memory filled with 0xff holds.
  for (const Bits payload : {Bits{0}, Bits{1}, Bits{0x155}, Bits{0xfff}, Bits(~sign)}) {
    for (const Bits bits : {Bits(quiet | payload), Bits(quiet | payload | sign)}) {
      const Real y = this->exp2(std::bit_cast<Real>(bits));
      EXPECT_TRUE(std::isnan(y)) << "NaN with bits " << std::hex << bits << " gives " << y;
    }
  }
}

}  // namespace
