// What is said of a spectrum in a few numbers.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Measures of a matrix by its singular values.
struct SpectralMeasures {
  double sigma_1 = 0;       ///< the largest singular value, |M|_2
  Index rank = 0;           ///< numerical rank: singular values above max(n_rows, n_cols) epsilon sigma_1
  double condition = 1;     ///< sigma_1 / sigma_rank
  double stable_rank = 0;   ///< |M|_F^2 / sigma_1^2
  double entropy_rank = 0;  ///< exp of the entropy of sigma_i / sum sigma (Roy and Vetterli 2007)
};

namespace detail {

inline void require_singular_values(const char* name, const Eigen::VectorXd& values) {
  for (const double sigma : values)
    if (!(sigma >= 0) || !std::isfinite(sigma)) fail(name, ": ", sigma, " is no singular value");
}

}  // namespace detail

/// From all singular values that are not zero, in any order, of an n_rows x n_cols matrix. Throws Error for
/// values that are negative or not finite.
inline SpectralMeasures measures(const Eigen::VectorXd& singular_values, Index n_rows, Index n_cols) {
  SpectralMeasures m;
  detail::require_singular_values("measures", singular_values);
  m.sigma_1 = singular_values.size() > 0 ? singular_values.maxCoeff() : 0;
  if (m.sigma_1 == 0) return m;
  const double least =
      static_cast<double>(std::max(n_rows, n_cols)) * std::numeric_limits<double>::epsilon() * m.sigma_1;
  double smallest = m.sigma_1, entropy = 0;
  const double sum = singular_values.sum();
  for (const double sigma : singular_values) {
    if (sigma <= least) continue;
    ++m.rank;
    smallest = std::min(smallest, sigma);
    m.stable_rank += sigma / m.sigma_1 * (sigma / m.sigma_1);
    entropy -= sigma / sum * std::log(sigma / sum);
  }
  m.condition = m.sigma_1 / smallest;
  m.entropy_rank = std::exp(entropy);
  return m;
}

/// Contraction ratio: sigma_1 with positions over sigma_1 of the content's Gram matrix; below 1 the scheme
/// contracts.
inline double contraction(const SpectralMeasures& positioned, const SpectralMeasures& content) {
  return positioned.sigma_1 / content.sigma_1;
}

/// Majorisation test: the largest sum of the k largest of x, minus that of the k largest of y, over all k. At
/// most 0 where y weakly majorises x. Missing values count as 0. Throws Error for values that are negative or
/// not finite.
inline double majorisation_excess(Eigen::VectorXd x, Eigen::VectorXd y) {
  detail::require_singular_values("majorisation_excess", x);
  detail::require_singular_values("majorisation_excess", y);
  std::sort(x.begin(), x.end(), std::greater<>());
  std::sort(y.begin(), y.end(), std::greater<>());
  double sum = 0, largest = -std::numeric_limits<double>::infinity();
  for (Index k = 0; k < std::max(x.size(), y.size()); ++k) {
    sum += (k < x.size() ? x(k) : 0) - (k < y.size() ? y(k) : 0);
    largest = std::max(largest, sum);
  }
  return largest;
}

}  // namespace fastrope::inline FASTROPE_TARGET
