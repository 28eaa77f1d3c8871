// Polynomial weights: what a polynomial kernel makes of scores, in the place of exp.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <span>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/problem/kernel.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// x [kVecs vectors] become P(x) by Horner's rule, side by side since each waits for itself, times a factor
/// unless `factors` is null, or 0 where x is -infinity. Returns total plus all of them.
template <int kVecs, class Real>
HWY_INLINE simd::Vec<Real> polynomial_weights(std::span<const Real> coefficients, Real* x,
                                              const Real* factors, simd::Vec<Real> total) {
  using namespace simd;
  const std::size_t degree = coefficients.size() - 1;
  Vec<Real> p[kVecs], score[kVecs];
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    score[v] = load(x + v * kLanes<Real>);
    p[v] = set(coefficients[degree]);
  }
  for (std::size_t k = degree; k-- > 0;) {
    const Vec<Real> coefficient = set(coefficients[k]);
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) p[v] = fma(p[v], score[v], coefficient);
  }
  if (factors != nullptr)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) p[v] = mul(p[v], load(factors + v * kLanes<Real>));
  const Vec<Real> masked = set(-std::numeric_limits<Real>::infinity());
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    p[v] = if_equal(score[v], masked, zero<Real>(), p[v]);
    total = add(total, p[v]);
    store<Real>(p[v], x + v * kLanes<Real>);
  }
  return total;
}

}  // namespace detail

/// A polynomial kernel in the arithmetic of a call.
template <class Real>
class PolynomialWeights {
 public:
  explicit PolynomialWeights(std::span<const double> coefficients) : count_(coefficients.size()) {
    std::transform(coefficients.begin(), coefficients.end(), coefficients_.begin(),
                   [](double coefficient) { return static_cast<Real>(coefficient); });
  }

  /// Scores x [count] become weights P(x), times `factors` [count] unless they are null, 0 where they are
  /// -infinity; returns a vector whose lanes add up to all of them. Requires count a multiple of the vector
  /// length.
  simd::Vec<Real> of(Real* x, Index count, const Real* factors = nullptr) const {
    constexpr Index kStep = simd::kLanes<Real>;
    const std::span<const Real> used(coefficients_.data(), count_);
    simd::Vec<Real> total = simd::zero<Real>();
    Index j = 0;
    for (; j + kTileVecs * kStep <= count; j += kTileVecs * kStep)
      total = detail::polynomial_weights<kTileVecs>(used, x + j, factors_at(factors, j), total);
    for (; j < count; j += kStep)
      total = detail::polynomial_weights<1>(used, x + j, factors_at(factors, j), total);
    return total;
  }

 private:
  static const Real* factors_at(const Real* factors, Index j) {
    return factors == nullptr ? nullptr : factors + j;
  }

  std::array<Real, Kernel::kMaxDegree + 1> coefficients_ = {};
  std::size_t count_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
