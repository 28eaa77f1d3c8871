// exp2 on vectors: the exponential of the softmax. Logits carry a factor log2(e), so that no multiplication
// is left here.
//
//     2^x = 2^n 2^f,  n = round(x),  |f| <= 1/2,  2^f = 1 + f Q(f)
// Q interpolates (2^f - 1)/f at the Chebyshev points of [-1/2, 1/2]: relative error 2.1e-7 at degree 4
// (float) and 8.5e-18 at degree 10 (double), found in 60-digit arithmetic; evaluation adds at most one
// epsilon. 2^0 is exactly 1.
#pragma once

#include <array>
#include <limits>
#include <type_traits>

#include "fastrope/core/simd.hpp"

namespace fastrope {

inline constexpr double kLog2E = 1.4426950408889634074;
inline constexpr double kLn2 = 0.69314718055994530942;

namespace detail {

template <class Real>
constexpr auto exp2_coefficients() {
  if constexpr (std::is_same_v<Real, float>) {
    return std::array{0.69314718f, 0.24022349f, 0.055503810f, 0.0096663685f, 0.0013381303f};
  } else {
    return std::array{0.69314718055994529,    0.24022650695910097,    0.055504108664821597,
                      0.0096181291076068882,  0.0013333558146416936,  0.0001540353044173605,
                      1.5252733829836119e-05, 1.3215442587921689e-06, 1.0178062445845774e-07,
                      7.0725859492692234e-09, 4.4549605981865186e-10};
  }
}

}  // namespace detail

/// 2^x for x <= 0 (natural-log logits times log2(e), minus their maximum). Relative error at most 2.7e-7
/// (float) or 3e-16 (double) while 2^x is a normal number, 0 below that and at -infinity, NaN for NaN.
template <class Real>
HWY_INLINE simd::Vec<Real> exp2_nonpositive(simd::Vec<Real> x) {
  using namespace simd;
  // Adding 1.5 * 2^(digits - 1) leaves round(x) in the low bits of the significand.
  constexpr int kMantissa = std::numeric_limits<Real>::digits - 1;
  constexpr Real kShift = static_cast<Real>(3 * (std::int64_t{1} << (kMantissa - 1)));
  const Vec<Real> shifted = add(x, set(kShift));
  const Vec<Real> f = sub(x, sub(shifted, set(kShift)));
  constexpr auto q = detail::exp2_coefficients<Real>();
  Vec<Real> p = set(q.back());
  for (std::size_t k = q.size() - 1; k-- > 0;) p = fma(p, f, set(q[k]));
  p = fma(p, f, set(Real{1}));
  constexpr Real kLowest = std::numeric_limits<Real>::min_exponent - 1;
  return zero_if_less(x, set(kLowest), scale_by_low_bits<Real>(p, shifted));
}

}  // namespace fastrope
