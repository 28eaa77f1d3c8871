// Arithmetic: in what type a plan's kernels compute, for what decides and is no template itself.
#pragma once

#include <cstddef>
#include <limits>
#include <type_traits>

#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

enum class Arithmetic { float32, float64 };

template <class Real>
inline constexpr Arithmetic kArithmeticOf =
    std::is_same_v<Real, double> ? Arithmetic::float64 : Arithmetic::float32;

/// f(std::type_identity<Real>), Real the type of that arithmetic: what kernels' constants and counts say of
/// it.
template <class F>
decltype(auto) with_real(Arithmetic arithmetic, F&& f) {
  return arithmetic == Arithmetic::float64 ? f(std::type_identity<double>{}) : f(std::type_identity<float>{});
}

/// The distance from 1 to the next number.
inline double epsilon_of(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::float64 ? std::numeric_limits<double>::epsilon()
                                           : static_cast<double>(std::numeric_limits<float>::epsilon());
}

/// Bytes of a number.
inline std::size_t size_of(Arithmetic arithmetic) { return arithmetic == Arithmetic::float64 ? 8 : 4; }

/// The nearest number of that arithmetic.
inline double rounded(Arithmetic arithmetic, double x) {
  return arithmetic == Arithmetic::float64 ? x : static_cast<double>(static_cast<float>(x));
}

}  // namespace fastrope::inline FASTROPE_TARGET
