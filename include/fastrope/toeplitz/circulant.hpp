// CirculantEmbedding: a rectangular Toeplitz matrix times one vector, by FFT.
//
//   T_ij = t(i - j),  i < n_rows, j < n_cols,  generator[lag + n_cols - 1] = t(lag),  lag = i - j
//
// T is the upper left corner of the N x N circulant matrix with first column
//   c = (t(0), .., t(n_rows - 1), 0, .., 0, t(1 - n_cols), .., t(-1)),  N >= n_rows + n_cols - 1,
// and circulant matrices are diagonal under the Fourier transform F: T x = corner of F^-1 diag(F c) F [x; 0].
// T' is the corner of the transposed circulant matrix, whose eigenvalues are the conjugates.
//
// Here are single vectors in the caller's memory, without allocation; ToeplitzOperator has whole matrices.
#pragma once

#include <algorithm>
#include <complex>
#include <memory>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/toeplitz/fftw.hpp"

namespace fastrope {

/// The transforms that serve every Toeplitz matrix of one shape. Real is float or double. Copies share their
/// FFT plans; all functions are thread-safe on disjoint memory.
///
/// Error: |y - T x|_max <= 10 eps (1 + log2 N) |t|_2 |x|_2, from three transforms each of relative error
/// 3.4 eps log2 N in the 2-norm (Higham, Accuracy and Stability of Numerical Algorithms, theorem 24.2, proved
/// for powers of two; the tests see at most a quarter of an eps in place of the 10). The bound is relative to
/// norms: an entry of T x that is small beside them keeps no digits of its own. A value that is not finite
/// spoils all of y.
template <class Real>
class CirculantEmbedding {
 public:
  using Complex = std::complex<Real>;

  /// n_rows or n_cols may be 0. Throws Error when one is negative. Plans the transforms of a new length().
  CirculantEmbedding(Index n_rows, Index n_cols)
      : n_rows_(n_rows), n_cols_(n_cols), fft_(shared_fft<Real>(transform_length(n_rows, n_cols))) {}

  /// Values in a generator, n_rows + n_cols - 1, or 0 when that is -1. Throws Error when one is negative.
  static Index generator_size(Index n_rows, Index n_cols) {
    check_shape(n_rows, n_cols);
    return std::max<Index>(0, n_rows + n_cols - 1);
  }

  Index n_rows() const { return n_rows_; }
  Index n_cols() const { return n_cols_; }

  /// N, the size of the padded vectors: fft_length(n_rows + n_cols - 1), where a size of 0 counts as 1.
  Index length() const { return fft_->length(); }

  /// Complex values in a spectrum: N/2 + 1.
  Index spectrum_size() const { return fft_->spectrum_size(); }

  /// spectrum = F c / N, the form that the products take: 1/N of the inverse transform is already in it.
  ///   generator: [n_rows + n_cols - 1]
  ///   padded:    [N], scratch
  ///   spectrum:  [spectrum_size]
  /// Requires padded and spectrum aligned to kAlignment. Cost: one transform of length N.
  void transform_generator(const Real* generator, Real* padded, Complex* spectrum) const noexcept {
    const Index n = length();
    std::fill_n(padded, n, Real(0));
    for (Index lag = 1 - n_cols_; lag < n_rows_; ++lag) {
      padded[lag < 0 ? lag + n : lag] = generator[lag + n_cols_ - 1] / static_cast<Real>(n);
    }
    fft_->forward(padded, spectrum);
  }

  /// y = T x.
  ///   generator_spectrum: [spectrum_size], from transform_generator; any alignment
  ///   x_padded:           [N], x in the first n_cols values, zeros in the rest
  ///   y:                  [N], T x in the first n_rows values, no meaning in the rest
  ///   scratch:            [spectrum_size]
  /// y may be x_padded itself. Requires x_padded, y and scratch aligned to kAlignment. Cost: two transforms
  /// of length N.
  void multiply(const Complex* generator_spectrum, const Real* x_padded, Real* y,
                Complex* scratch) const noexcept {
    fft_->forward(x_padded, scratch);
    for (Index k = 0; k < spectrum_size(); ++k) scratch[k] = product(scratch[k], generator_spectrum[k]);
    fft_->inverse(scratch, y);
  }

  /// y = T' x: as multiply(), with x in the first n_rows values of x_padded, T' x in the first n_cols of y.
  void multiply_transpose(const Complex* generator_spectrum, const Real* x_padded, Real* y,
                          Complex* scratch) const noexcept {
    fft_->forward(x_padded, scratch);
    for (Index k = 0; k < spectrum_size(); ++k) {
      scratch[k] = product(scratch[k], std::conj(generator_spectrum[k]));
    }
    fft_->inverse(scratch, y);
  }

 private:
  static Index transform_length(Index n_rows, Index n_cols) {
    check_shape(n_rows, n_cols);
    return fft_length(std::max<Index>(1, n_rows) + std::max<Index>(1, n_cols) - 1);
  }

  static void check_shape(Index n_rows, Index n_cols) {
    if (n_rows < 0 || n_cols < 0) detail::fail("a Toeplitz matrix cannot be ", n_rows, " x ", n_cols);
  }

  /// a b by its definition, which vectorises: the operator of std::complex looks for NaN in every product.
  static Complex product(Complex a, Complex b) {
    return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
  }

  Index n_rows_;
  Index n_cols_;
  std::shared_ptr<const RealFft<Real>> fft_;
};

}  // namespace fastrope
