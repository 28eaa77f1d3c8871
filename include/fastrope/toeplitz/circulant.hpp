// CirculantEmbedding: a rectangular Toeplitz matrix times one vector, by FFT.
//
//   T_ij = t(i - j) for first <= i - j <= last, else 0;  i < n_rows, j < n_cols
//
// T is the upper left corner of the N x N circulant matrix with first column c, c_(lag mod N) = t(lag), as
// long as no lag of another entry falls on one of these modulo N:
//   N >= n_cols + last, N >= n_rows - first  (all lags: n_rows + n_cols - 1),
// and circulant matrices are diagonal under the Fourier transform F: T x = corner of F^-1 diag(F c) F [x; 0].
// T' is the corner of the transposed circulant matrix, whose eigenvalues are the conjugates.
//
// Here are single vectors in the caller's memory, without allocation; ToeplitzOperator has whole matrices.
#pragma once

#include <algorithm>
#include <memory>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/toeplitz/fftw.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The lags row - col, first to last, outside of which a Toeplitz matrix is zero; none when first > last.
struct LagSupport {
  Index first = 0;
  Index last = -1;

  /// Every lag of an n_rows x n_cols matrix.
  static LagSupport all(Index n_rows, Index n_cols) { return {1 - n_cols, n_rows - 1}; }

  Index size() const { return std::max<Index>(0, last - first + 1); }
  friend bool operator==(const LagSupport&, const LagSupport&) = default;
};

/// The transforms that serve every Toeplitz matrix of one shape and support. Real is float or double. Copies
/// share their FFT plans; all functions are thread-safe on disjoint memory.
///
/// Error: |y - T x|_max <= 10 eps (1 + log2 N) |t|_2 |x|_2, from three transforms each of relative error
/// 3.4 eps log2 N in the 2-norm (Higham, Accuracy and Stability of Numerical Algorithms, theorem 24.2, proved
/// for powers of two; the tests see at most a quarter of an eps in place of the 10). The bound is relative to
/// norms: an entry of T x that is small beside them keeps no digits of its own. A value that is not finite
/// spoils all of y.
template <class Real>
class CirculantEmbedding {
 public:
  /// n_rows or n_cols may be 0. Requires the support within the lags of the shape. Throws Error when a size
  /// is negative. Plans the transforms of a new length().
  CirculantEmbedding(Index n_rows, Index n_cols, LagSupport support, FftEffort effort = FftEffort::estimate)
      : n_rows_(n_rows),
        n_cols_(n_cols),
        support_(support),
        fft_(shared_fft<Real>(transform_length(n_rows, n_cols, support), effort)) {}
  CirculantEmbedding(Index n_rows, Index n_cols)
      : CirculantEmbedding(n_rows, n_cols, LagSupport::all(n_rows, n_cols)) {}

  Index n_rows() const { return n_rows_; }
  Index n_cols() const { return n_cols_; }
  LagSupport support() const { return support_; }

  /// N, the length of the transforms.
  Index length() const { return fft_->length(); }
  /// What it will be; at least 2. Throws Error when a size is negative.
  static Index transform_length(Index n_rows, Index n_cols, LagSupport support) {
    if (n_rows < 0 || n_cols < 0) detail::fail("a Toeplitz matrix cannot be ", n_rows, " x ", n_cols);
    return fft_length(std::max({Index{1}, n_rows, n_cols, n_cols + support.last, n_rows - support.first}));
  }

  /// Values in a spectrum or a padded vector: N + 2.
  Index buffer_size() const { return fft_->buffer_size(); }

  /// spectrum = F c / N, the form that the products take: 1/N of the inverse transform is already in it.
  ///   values:   [support().size()], t(first) .. t(last)
  ///   spectrum: [buffer_size], and scratch of that size, both aligned to kAlignment
  /// Cost: one transform of length N.
  void transform_generator(const Real* values, Real* spectrum, Real* scratch) const noexcept {
    const Index n = length();
    std::fill_n(scratch, n, Real(0));
    for (Index lag = support_.first; lag <= support_.last; ++lag)
      scratch[lag < 0 ? lag + n : lag] = values[lag - support_.first] / static_cast<Real>(n);
    const Real* transformed = fft_->forward(scratch, spectrum);
    if (transformed != spectrum) std::copy_n(transformed, buffer_size(), spectrum);
  }

  /// T x, in the first n_rows values of the buffer that is returned, x or y; the rest has no meaning.
  ///   generator_spectrum: [buffer_size], from transform_generator; any alignment
  ///   x:                  [buffer_size], x in the first n_cols values, zeros in the rest of N
  ///   y:                  [buffer_size], scratch
  /// Requires x and y aligned to kAlignment and not overlapping. Cost: two transforms of length N.
  Real* multiply(const Real* generator_spectrum, Real* x, Real* y) const noexcept {
    return product<false>(generator_spectrum, x, y);
  }

  /// T' x: as multiply(), with x in the first n_rows values, T' x in the first n_cols.
  Real* multiply_transpose(const Real* generator_spectrum, Real* x, Real* y) const noexcept {
    return product<true>(generator_spectrum, x, y);
  }

 private:
  template <bool kConjugate>
  Real* product(const Real* generator_spectrum, Real* x, Real* y) const noexcept {
    Real* const spectrum = fft_->forward(x, y);
    scale<kConjugate>(spectrum, generator_spectrum);
    Real* const result = spectrum == x ? y : x;
    fft_->inverse(spectrum, result);
    return result;
  }

  /// Complex x_k *= g_k, or its conjugate, by the definition: std::complex looks for NaN in every product.
  template <bool kConjugate>
  void scale(Real* x, const Real* g) const noexcept {
    using namespace simd;
    constexpr Index kStep = 2 * kLanes<Real>;
    const Index size = buffer_size();
    Index k = 0;
    for (; k + kStep <= size; k += kStep) {
      Vec<Real> x_re, x_im, g_re, g_im;
      load_pairs<Real>(x + k, x_re, x_im);
      load_pairs<Real>(g + k, g_re, g_im);
      if constexpr (kConjugate) g_im = neg(g_im);
      store_pairs(sub(mul(x_re, g_re), mul(x_im, g_im)), fma(x_re, g_im, mul(x_im, g_re)), x + k);
    }
    for (; k < size; k += 2) {
      const Real x_re = x[k], x_im = x[k + 1], g_re = g[k], g_im = kConjugate ? -g[k + 1] : g[k + 1];
      x[k] = x_re * g_re - x_im * g_im;
      x[k + 1] = x_re * g_im + x_im * g_re;
    }
  }

  Index n_rows_;
  Index n_cols_;
  LagSupport support_;
  std::shared_ptr<const RealFft<Real>> fft_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
