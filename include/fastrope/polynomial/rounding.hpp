// Rounding: what floating-point arithmetic adds to the certified error of polynomial attention.
#pragma once

#include <cmath>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/polynomial/exp_polynomial.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// sum_p |c_p| radius^p: what the terms of an entry add up to at most.
inline double amplification(const ExpPolynomial& polynomial, double radius) {
  double terms = 0, power = 1;
  for (double c : polynomial.coefficients()) {
    terms += std::abs(c) * power;
    power *= radius;
  }
  return terms;
}

/// The rounding of polynomial attention in arithmetic of `epsilon`, relative to max|V|: an estimate,
///     epsilon ((20 + sqrt(n_k) / 10) A e^-m + logit_size),   A = amplification(polynomial, feature_radius).
///
/// The terms of an entry add up to at most A (times the key's weight; feature_radius bounds the features'
/// norms, |x| |y|), and of a row's denominator there is at least e^m for each key, m = mean_entry the least
/// mean over keys of a row's entries (Jensen: the mean of e^x is at least e^mean). The entries themselves are
/// computed with an error of epsilon times the logits before any shift. The factor was measured in float, R =
/// 1 .. 4, 1 to 3 variables, n_k up to 131072: for identical keys opposite to the query (m = -R), whose sums
/// are off in the same direction each time, at most 20 for n_k = 2048 and 28 for 16384.
inline double rounding_estimate(const ExpPolynomial& polynomial, double feature_radius, double mean_entry,
                                double logit_size, Index keys, double epsilon) {
  const double roundings = 20 + std::sqrt(static_cast<double>(keys)) / 10;
  return epsilon *
         (roundings * amplification(polynomial, feature_radius) * std::exp(-mean_entry) + logit_size);
}

}  // namespace fastrope::inline FASTROPE_TARGET
