// exp2 on vectors: the exponential of the softmax. Logits carry a factor log2(e), so that no multiplication
// is left here.
//
//     2^x = 2^floor(x) 2^f,  f = x - floor(x) in [0, 1],  2^f = 1 + f Q(f)
// Q interpolates (2^f - 1)/f at the Chebyshev points of [0, 1]: relative error 2.3e-7 at degree 4 (float)
// and 8.7e-18 at degree 10 (double), found in 60-digit arithmetic; evaluation adds about one epsilon. 2^0 is
// exactly 1.
#pragma once

#include <array>
#include <limits>
#include <type_traits>

#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

inline constexpr double kLog2E = 1.4426950408889634074;
inline constexpr double kLn2 = 0.69314718055994530942;

namespace detail {

template <class Real>
constexpr auto exp2_coefficients() {
  if constexpr (std::is_same_v<Real, float>) {
    return std::array{0.693147568f, 0.240207194f, 0.0556570544f, 0.0091993876f, 0.00178836874f};
  } else {
    return std::array{0.69314718055994529,    0.24022650695909673,    0.055504108664980671,
                      0.0096181291051517567,  0.001333355834393728,   0.00015403521219107733,
                      1.5252998899728418e-05, 1.3210583477765189e-06, 1.0236023803275179e-07,
                      6.6344458662514139e-09, 6.1230929168263867e-10};
  }
}

}  // namespace detail

/// 2^x for x <= 0 (natural-log logits times log2(e), minus their maximum). Relative error at most 3.5e-7
/// (float) or 4e-16 (double) while 2^x is a normal number, 0 below that and at -infinity, NaN for NaN.
template <class Real>
HWY_INLINE simd::Vec<Real> exp2_nonpositive(simd::Vec<Real> x) {
  using namespace simd;
  const Vec<Real> f = fraction<Real>(x);
  constexpr auto q = detail::exp2_coefficients<Real>();
  Vec<Real> p = set(q.back());
  for (std::size_t k = q.size() - 1; k-- > 0;) p = fma(p, f, set(q[k]));
  p = fma(p, f, set(Real{1}));
  return scale_by_floor<Real>(p, x, set(static_cast<Real>(std::numeric_limits<Real>::min_exponent - 1)));
}

}  // namespace fastrope::inline FASTROPE_TARGET
