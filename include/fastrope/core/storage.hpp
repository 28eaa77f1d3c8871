// Storage types: what elements of q, k, v and out may be kept in. Those of 16 bits have the layout that
// everybody's have, so that memory of other libraries may be read as these.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The upper half of a float: 8 bits of exponent, 7 of fraction. From a float, the nearest one, ties to even.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;
  constexpr bfloat16(float x) {  // NOLINT(google-explicit-constructor): as from float to float
    const auto word = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t rounded = word + 0x7fff + (word >> 16 & 1);
    bits = static_cast<std::uint16_t>((x != x ? word | 0x400000 : rounded) >> 16);
  }
  template <class T>
  requires std::is_arithmetic_v<T>
  explicit constexpr bfloat16(T x) : bfloat16(static_cast<float>(x)) {}

  template <std::floating_point T>
  explicit constexpr operator T() const {
    return T{std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16)};
  }
};

/// IEEE 754 binary16: 5 bits of exponent, 10 of fraction, numbers below 2^-14 with less. From a float, the
/// nearest one, ties to even; infinity from 65520 on.
struct float16 {
  std::uint16_t bits = 0;

  float16() = default;
  constexpr float16(float x) {  // NOLINT(google-explicit-constructor)
    const auto word = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t size = word & 0x7fffffff;
    std::uint32_t half = 0;
    if (size > 0x7f800000)
      half = 0x7e00 | (size >> 13 & 0x3ff);  // a NaN, quiet
    else if (size >= 0x477ff000)
      half = 0x7c00;
    else if (size >= 0x38800000)
      half = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
    else  // beside 0.5, floats are multiples of 2^-24 as these are
      half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 0.5F) - 0x3f000000;
    bits = static_cast<std::uint16_t>(half | (word >> 16 & 0x8000));
  }
  template <class T>
  requires std::is_arithmetic_v<T>
  explicit constexpr float16(T x) : float16(static_cast<float>(x)) {}

  template <std::floating_point T>
  explicit constexpr operator T() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16, size = bits & 0x7fff;
    std::uint32_t word = 0;
    if (size >= 0x7c00)
      word = (size << 13) + 0x70000000;  // infinity or NaN
    else if (size >= 0x400)
      word = (size << 13) + 0x38000000;
    else
      word = std::bit_cast<std::uint32_t>(static_cast<float>(size) * 0x1p-24F);
    return T{std::bit_cast<float>(word | sign)};
  }
};

/// As floats compare: -0 equals 0, and a NaN nothing.
template <class T>
requires std::same_as<T, bfloat16> || std::same_as<T, float16>
constexpr bool operator==(T a, T b) { return static_cast<float>(a) == static_cast<float>(b); }

/// Storage types of q, k, v and out.
template <class T>
concept Element = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bfloat16> ||
    std::same_as<T, float16>;

/// Arithmetic type for elements of type T: double for double, else float.
template <class T>
using ArithmeticOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace fastrope::inline FASTROPE_TARGET

/// Without these the standard's own would silently be zeros.
template <>
struct std::numeric_limits<fastrope::bfloat16> {
  using T = fastrope::bfloat16;
  static constexpr bool is_specialized = true, is_signed = true, is_integer = false, is_exact = false;
  static constexpr bool has_infinity = true, has_quiet_NaN = true, is_iec559 = false, is_bounded = true;
  static constexpr int digits = 8, radix = 2;
  static constexpr T min() { return T(0x1p-126F); }
  static constexpr T max() { return T(0x1.fep127F); }
  static constexpr T lowest() { return T(-0x1.fep127F); }
  static constexpr T epsilon() { return T(0x1p-7F); }
  static constexpr T denorm_min() { return T(0x1p-133F); }
  static constexpr T infinity() { return T(std::numeric_limits<float>::infinity()); }
  static constexpr T quiet_NaN() { return T(std::numeric_limits<float>::quiet_NaN()); }
};
template <>
struct std::numeric_limits<fastrope::float16> {
  using T = fastrope::float16;
  static constexpr bool is_specialized = true, is_signed = true, is_integer = false, is_exact = false;
  static constexpr bool has_infinity = true, has_quiet_NaN = true, is_iec559 = true, is_bounded = true;
  static constexpr int digits = 11, radix = 2;
  static constexpr T min() { return T(0x1p-14F); }
  static constexpr T max() { return T(65504.0F); }
  static constexpr T lowest() { return T(-65504.0F); }
  static constexpr T epsilon() { return T(0x1p-10F); }
  static constexpr T denorm_min() { return T(0x1p-24F); }
  static constexpr T infinity() { return T(std::numeric_limits<float>::infinity()); }
  static constexpr T quiet_NaN() { return T(std::numeric_limits<float>::quiet_NaN()); }
};
