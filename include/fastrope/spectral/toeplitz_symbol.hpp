// ToeplitzSymbol: what the symbol of a Toeplitz matrix says of its spectrum.
//
//     T_ij = t(i - j),   f(theta) = sum_k t(k) e^(i k theta),   |T|_2 <= max |f|
//
// Where the t(k) are summable, the singular values of large T are spread as |f| is over equally spaced theta,
// and for symmetric T the eigenvalues as f (Szego; Avram and Parter). RoPE's are not: its symbol is point
// masses at its frequencies, and neither are the causal mask's.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <complex>
#include <functional>
#include <numbers>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/toeplitz/fftw.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// An interval that holds |T|_2, but for rounding.
struct NormBounds {
  double lower = 0;
  double upper = 0;
};

/// The symbol of an n_rows x n_cols Toeplitz matrix, of the lags that it has.
class ToeplitzSymbol {
 public:
  /// generator: [n_rows + n_cols - 1], as ToeplitzOperator takes it. Throws Error, naming the values, for
  /// another length and values that are not finite.
  ToeplitzSymbol(Index n_rows, Index n_cols, std::span<const double> generator)
      : n_rows_(n_rows), n_cols_(n_cols), generator_(generator.begin(), generator.end()) {
    if (n_rows < 1 || n_cols < 1 || std::ssize(generator) != n_rows + n_cols - 1)
      detail::fail("ToeplitzSymbol: a ", n_rows, " x ", n_cols, " matrix has no generator of ",
                   generator.size(), " values");
    for (double t : generator)
      if (!std::isfinite(t)) detail::fail("ToeplitzSymbol: the generator's value ", t, " is not finite");
  }

  /// f at theta = 2 pi j / n for j = 0 .. n / 2; f(-theta) is the conjugate. Throws Error unless
  /// n >= n_rows + n_cols - 1. Cost: O(n log n).
  Eigen::VectorXcd values(Index n) const {
    return transform(n, [](Index) { return 1.0; });
  }

  /// From above: the largest of 16 times as many values as f has coefficients, over the cosine that a
  /// polynomial of its degree can gain between them (Ehlich and Zeller 1964). From below: x' T y for the best
  /// unit vectors of a single frequency. Cost: O(n log n).
  NormBounds norm_bounds() const {
    const Index degree = std::max(n_rows_, n_cols_) - 1;
    const Index n = 16 * (degree + 1);
    const double between = std::cos(std::numbers::pi * static_cast<double>(degree) / static_cast<double>(n));
    const auto diagonal = [&](Index lag) {
      return static_cast<double>(
          std::min(n_rows_ - std::max<Index>(lag, 0), n_cols_ + std::min<Index>(lag, 0)));
    };
    const double size = std::sqrt(static_cast<double>(n_rows_) * static_cast<double>(n_cols_));
    return {transform(n, diagonal).cwiseAbs().maxCoeff() / size, values(n).cwiseAbs().maxCoeff() / between};
  }

  /// Szego's estimate of all singular values of a square T, the largest first: |f| at pi j / (n + 1), j = 1
  /// .. n. For bands of b diagonals beside the main one, a value lies between the estimates 2 b places before
  /// and after it. Throws Error, naming the values, for other shapes and where the outer half of the lags
  /// holds more than a hundredth of sum |t|: then n lags do not resolve the symbol, or it is no function at
  /// all. Cost: O(n log n).
  Eigen::VectorXd szego_singular_values() const {
    Eigen::VectorXd sizes = interior().cwiseAbs();
    std::sort(sizes.begin(), sizes.end(), std::greater<>());
    return sizes;
  }

  /// The same of all eigenvalues of a symmetric T. Throws Error, naming the values, where it is not
  /// symmetric, and as szego_singular_values().
  Eigen::VectorXd szego_eigenvalues() const {
    for (std::size_t i = 0; i < generator_.size(); ++i)
      if (generator_[i] != generator_[generator_.size() - 1 - i])
        detail::fail("szego_eigenvalues: T is not symmetric, t(", static_cast<Index>(i) - n_cols_ + 1,
                     ") = ", generator_[i], " and t(", n_cols_ - 1 - static_cast<Index>(i),
                     ") = ", generator_[generator_.size() - 1 - i]);
    Eigen::VectorXd values = interior().real();
    std::sort(values.begin(), values.end(), std::greater<>());
    return values;
  }

 private:
  /// sum_k factor(k) t(k) e^(i k theta) at theta = 2 pi j / n.
  template <class Factor>
  Eigen::VectorXcd transform(Index n, Factor&& factor) const {
    if (n < std::ssize(generator_))
      detail::fail("ToeplitzSymbol: ", n, " values do not resolve ", generator_.size(), " coefficients");
    const RealFft<double> fft(n);
    const auto x = detail::aligned_array<double>(fft.buffer_size()),
               y = detail::aligned_array<double>(fft.buffer_size());
    auto* const values = reinterpret_cast<double*>(x.get());
    std::fill_n(values, fft.buffer_size(), 0.0);
    for (Index i = 0; i < std::ssize(generator_); ++i) {
      const Index lag = i - n_cols_ + 1;
      values[lag < 0 ? lag + n : lag] = factor(lag) * generator_[static_cast<std::size_t>(i)];
    }
    const double* spectrum = fft.forward(values, reinterpret_cast<double*>(y.get()));
    Eigen::VectorXcd f(fft.spectrum_size());
    // The transform has e^(-i k theta).
    for (Index j = 0; j < f.size(); ++j) f(j) = {spectrum[2 * j], -spectrum[2 * j + 1]};
    return f;
  }

  /// f at pi j / (n + 1), j = 1 .. n, after a look at whether it means anything.
  Eigen::VectorXcd interior() const {
    constexpr double kMost = 0.01;
    if (n_rows_ != n_cols_)
      detail::fail("Szego's estimates are of square matrices, not ", n_rows_, " x ", n_cols_);
    double all = 0, outer = 0;
    for (Index i = 0; i < std::ssize(generator_); ++i) {
      const double size = std::abs(generator_[static_cast<std::size_t>(i)]);
      all += size;
      if (2 * std::abs(i - n_cols_ + 1) >= n_rows_) outer += size;
    }
    if (outer > kMost * all)
      detail::fail("Szego's estimates need a generator that is summable: lags from ", ceil_div(n_rows_, 2),
                   " on hold ", outer / all, " of the sum of its sizes, at most ", kMost,
                   " is allowed (RoPE's symbol is point masses, a causal mask's has a pole)");
    return values(2 * (n_rows_ + 1)).segment(1, n_rows_);
  }

  Index n_rows_, n_cols_;
  std::vector<double> generator_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
