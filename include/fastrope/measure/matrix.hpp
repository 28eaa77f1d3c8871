// Matrix: numbers in double for what planning computes, a few hundred rows of samples and d x d moments.
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/transpose.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// [rows, cols] row by row, each padded with zeros to whole vectors.
struct Matrix {
  Index rows = 0;
  Index cols = 0;
  Index stride = 0;
  std::vector<double> values = {};

  Matrix() = default;
  Matrix(Index rows_, Index cols_)
      : rows(rows_),
        cols(cols_),
        stride(round_up(cols_, simd::kLanes<double>)),
        values(static_cast<std::size_t>(rows_ * stride)) {}

  bool empty() const { return rows == 0 || cols == 0; }
  double* row(Index i) { return values.data() + i * stride; }
  const double* row(Index i) const { return values.data() + i * stride; }
  double& operator()(Index i, Index j) { return row(i)[j]; }
  double operator()(Index i, Index j) const { return row(i)[j]; }
};

inline Matrix identity(Index size) {
  Matrix m(size, size);
  for (Index i = 0; i < size; ++i) m(i, i) = 1;
  return m;
}

inline Matrix transposed(const Matrix& m) {
  Matrix t(m.cols, m.rows);
  transpose(m.values.data(), m.rows, m.cols, m.stride, t.values.data(), t.stride);
  return t;
}

/// The sum of the elements' squares, and the largest of their sizes where none is NaN.
struct Sizes {
  double squares = 0;
  double largest = 0;
};

inline Sizes sizes_of(const Matrix& m) {
  using namespace simd;
  constexpr Index kStep = kLanes<double>;
  const Index count = std::ssize(m.values);
  Vec<double> squares = zero<double>(), largest = zero<double>();
  for (Index i = 0; i < count; i += kStep) {
    const Vec<double> x = load(m.values.data() + i);
    squares = fma(x, x, squares);
    largest = max(largest, max(x, sub(zero<double>(), x)));
  }
  return {reduce_add<double>(squares), reduce_max<double>(largest)};
}
inline double squared_norm(const Matrix& m) { return sizes_of(m).squares; }
/// Of Frobenius.
inline double norm(const Matrix& m) { return std::sqrt(squared_norm(m)); }

inline double trace(const Matrix& m) {
  double sum = 0;
  for (Index i = 0; i < std::min(m.rows, m.cols); ++i) sum += m(i, i);
  return sum;
}

/// y [count] += factor x; count in whole vectors.
inline void add_scaled(double factor, const double* x, Index count, double* y) {
  using namespace simd;
  const Vec<double> times = set(factor);
  for (Index i = 0; i < count; i += kLanes<double>)
    store<double>(fma(times, load(x + i), load(y + i)), y + i);
}

namespace detail {

/// Columns [j, j + kVecs vectors) of c = a b.
template <int kVecs>
HWY_INLINE void multiply_columns(const Matrix& a, const Matrix& b, Index j, Matrix& c) {
  using namespace simd;
  constexpr Index kRows = 4, kStep = kLanes<double>;
  for (Index i = 0; i < a.rows; i += kRows) {
    const double* row[kRows];  // past the end, the last once more
    for (Index r = 0; r < kRows; ++r) row[r] = a.row(std::min(i + r, a.rows - 1));
    Vec<double> sum[kRows][kVecs];
#pragma GCC unroll 4
    for (Index r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (Index v = 0; v < kVecs; ++v) sum[r][v] = zero<double>();
    for (Index k = 0; k < a.cols; ++k) {
      Vec<double> of_b[kVecs];
#pragma GCC unroll 4
      for (Index v = 0; v < kVecs; ++v) of_b[v] = load(b.row(k) + j + v * kStep);
#pragma GCC unroll 4
      for (Index r = 0; r < kRows; ++r) {
        const Vec<double> of_a = set(row[r][k]);
#pragma GCC unroll 4
        for (Index v = 0; v < kVecs; ++v) sum[r][v] = fma(of_a, of_b[v], sum[r][v]);
      }
    }
    for (Index r = 0; r < std::min(kRows, a.rows - i); ++r)
#pragma GCC unroll 4
      for (Index v = 0; v < kVecs; ++v) store<double>(sum[r][v], c.row(i + r) + j + v * kStep);
  }
}

}  // namespace detail

/// a b. Every element is summed in the same order, so that x^T x is symmetric to the last bit.
inline Matrix product(const Matrix& a, const Matrix& b) {
  constexpr int kVecs = simd::kRegisters >= 32 ? 4 : 2;
  constexpr Index kStep = simd::kLanes<double>;
  Matrix c(a.rows, b.cols);
  Index j = 0;
  for (; j + kVecs * kStep <= b.stride; j += kVecs * kStep) detail::multiply_columns<kVecs>(a, b, j, c);
  for (; j < b.stride; j += kStep) detail::multiply_columns<1>(a, b, j, c);
  return c;
}

}  // namespace fastrope::inline FASTROPE_TARGET
