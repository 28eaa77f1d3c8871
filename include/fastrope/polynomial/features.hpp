// Features: the monomials of a block of rows, one product each, with the rows as vector lanes.
#pragma once

#include <cmath>
#include <span>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/polynomial/monomials.hpp"

namespace fastrope {

/// features [rank, width]: features(alpha, i) = weight(i) * phi_alpha(x_i).
/// x: [variables, width], one row a column; weight: [width]. Requires width a multiple of the vector length.
/// Cost 2 rank width multiplications; relative error of each at most (2 |alpha| + 1) epsilon.
template <class Real>
void evaluate_features(const MonomialSet& set, const Real* x, const Real* weight, Index width,
                       Real* features) {
  using namespace simd;
  constexpr Index kStep = kLanes<Real>;
  for (Index i = 0; i < width; i += kStep) store<Real>(load(weight + i), features + i);
  const auto terms = set.terms();
  for (std::size_t f = 1; f < terms.size(); ++f) {
    const Monomial& term = terms[f];
    const Real* parent = features + term.parent * width;
    const Real* variable = x + term.variable * width;
    Real* feature = features + static_cast<Index>(f) * width;
    const Vec<Real> ratio = simd::set(static_cast<Real>(term.ratio));
    for (Index i = 0; i < width; i += kStep)
      store<Real>(mul(load(parent + i), mul(ratio, load(variable + i))), feature + i);
  }
}

/// sums(alpha) += sum_i features(alpha, i). features: [rank, width].
template <class Real>
void add_feature_sums(Index rank, Index width, const Real* features, Real* sums) {
  using namespace simd;
  for (Index f = 0; f < rank; ++f) {
    Vec<Real> total = zero<Real>();
    for (Index i = 0; i < width; i += kLanes<Real>) total = add(total, load(features + f * width + i));
    sums[f] += reduce_add<Real>(total);
  }
}

/// Multiplies each feature by its degree's coefficient and returns their product with `sums`:
///     features(alpha, i) *= c_|alpha|,  dot(i) = sum_alpha features(alpha, i) sums(alpha).
/// features: [rank, width]; dot: [width].
template <class Real>
void apply_coefficients(const MonomialSet& set, std::span<const double> coefficients, const Real* sums,
                        Index width, Real* features, Real* dot) {
  using namespace simd;
  const auto terms = set.terms();
  std::fill_n(dot, width, Real{0});
  for (std::size_t f = 0; f < terms.size(); ++f) {
    const Vec<Real> c = simd::set(static_cast<Real>(coefficients[static_cast<std::size_t>(terms[f].degree)]));
    const Vec<Real> s = simd::set(sums[f]);
    Real* feature = features + static_cast<Index>(f) * width;
    for (Index i = 0; i < width; i += kLanes<Real>) {
      const Vec<Real> x = mul(load(feature + i), c);
      store<Real>(x, feature + i);
      store<Real>(fma(x, s, load(dot + i)), dot + i);
    }
  }
}

}  // namespace fastrope
