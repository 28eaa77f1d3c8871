// Floats of 8 bits, in which keys and values may be kept: float8_e4m3, which has more digits, and
// float8_e5m2, which has more range. Their layouts are those of OCP's OFP8, ONNX and PyTorch (float8_e4m3fn,
// float8_e5m2).
//
// From a float, the nearest one, ties to even; what is beyond the largest becomes the largest, infinity too,
// as caches want it. NaN stays NaN.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "fastrope/core/storage.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// The bits of the number nearest to x among those with so many bits of fraction, 7 of all but the sign, and
/// the usual bias; `largest` are those of the largest.
template <int kFraction>
constexpr std::uint8_t nearest_float8(float x, std::uint32_t largest) {
  constexpr int kBias = (1 << (6 - kFraction)) - 1, kDropped = 23 - kFraction;
  constexpr std::uint32_t kLeastNormal = static_cast<std::uint32_t>(128 - kBias) << 23;
  const auto word = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t size = word & 0x7fffffff, sign = word >> 24 & 0x80;
  std::uint32_t bits = 0;
  if (size > 0x7f800000) {
    bits = 0x7f;
  } else if (size >= kLeastNormal) {
    const std::uint32_t odd = size >> kDropped & 1, half = 1U << (kDropped - 1);
    bits = (size - (static_cast<std::uint32_t>(127 - kBias) << 23) + half - 1 + odd) >> kDropped;
    if (bits > largest) bits = largest;
  } else {  // beside this power of two, floats are multiples of the least number as these are
    constexpr auto kBeside = static_cast<std::uint32_t>(127 + kDropped + 1 - kBias) << 23;
    bits = std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + std::bit_cast<float>(kBeside)) - kBeside;
  }
  return static_cast<std::uint8_t>(bits | sign);
}

}  // namespace detail

/// 4 bits of exponent, 3 of fraction: up to 448, numbers below 2^-6 with less; NaN, but no infinity.
struct float8_e4m3 {
  std::uint8_t bits = 0;

  float8_e4m3() = default;
  constexpr float8_e4m3(float x)  // NOLINT(google-explicit-constructor): as from float to float
      : bits(detail::nearest_float8<3>(x, 0x7e)) {}
  template <class T>
  requires std::is_arithmetic_v<T>
  explicit constexpr float8_e4m3(T x) : float8_e4m3(static_cast<float>(x)) {}

  template <std::floating_point T>
  explicit constexpr operator T() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80) << 24, size = bits & 0x7f;
    std::uint32_t word = 0;
    if (size == 0x7f)
      word = 0x7fc00000;
    else if (size >= 0x08)
      word = (size << 20) + 0x3c000000;
    else
      word = std::bit_cast<std::uint32_t>(static_cast<float>(size) * 0x1p-9F);
    return T{std::bit_cast<float>(word | sign)};
  }
};

/// The upper half of a float16: 5 bits of exponent, 2 of fraction, up to 57344, with infinity and NaN.
struct float8_e5m2 {
  std::uint8_t bits = 0;

  float8_e5m2() = default;
  constexpr float8_e5m2(float x)  // NOLINT(google-explicit-constructor)
      : bits(detail::nearest_float8<2>(x, 0x7b)) {}
  template <class T>
  requires std::is_arithmetic_v<T>
  explicit constexpr float8_e5m2(T x) : float8_e5m2(static_cast<float>(x)) {}

  template <std::floating_point T>
  explicit constexpr operator T() const {
    float16 half;
    half.bits = static_cast<std::uint16_t>(bits << 8);
    return static_cast<T>(half);
  }
};

/// As floats compare: -0 equals 0, and a NaN nothing.
template <class T>
requires std::same_as<T, float8_e4m3> || std::same_as<T, float8_e5m2>
constexpr bool operator==(T a, T b) { return static_cast<float>(a) == static_cast<float>(b); }

}  // namespace fastrope::inline FASTROPE_TARGET

/// Without these the standard's own would silently be zeros.
template <>
struct std::numeric_limits<fastrope::float8_e4m3> {
  using T = fastrope::float8_e4m3;
  static constexpr bool is_specialized = true, is_signed = true, is_integer = false, is_exact = false;
  static constexpr bool has_infinity = false, has_quiet_NaN = true, is_iec559 = false, is_bounded = true;
  static constexpr int digits = 4, radix = 2;
  static constexpr T min() { return T(0x1p-6F); }
  static constexpr T max() { return T(448.0F); }
  static constexpr T lowest() { return T(-448.0F); }
  static constexpr T epsilon() { return T(0x1p-3F); }
  static constexpr T denorm_min() { return T(0x1p-9F); }
  static constexpr T quiet_NaN() { return T(std::numeric_limits<float>::quiet_NaN()); }
};
template <>
struct std::numeric_limits<fastrope::float8_e5m2> {
  using T = fastrope::float8_e5m2;
  static constexpr bool is_specialized = true, is_signed = true, is_integer = false, is_exact = false;
  static constexpr bool has_infinity = true, has_quiet_NaN = true, is_iec559 = false, is_bounded = true;
  static constexpr int digits = 3, radix = 2;
  static constexpr T min() { return T(0x1p-14F); }
  static constexpr T max() { return T(57344.0F); }
  static constexpr T lowest() { return T(-57344.0F); }
  static constexpr T epsilon() { return T(0x1p-2F); }
  static constexpr T denorm_min() { return T(0x1p-16F); }
  static constexpr T infinity() {
    T x;
    x.bits = 0x7c;
    return x;
  }
  static constexpr T quiet_NaN() { return T(std::numeric_limits<float>::quiet_NaN()); }
};
