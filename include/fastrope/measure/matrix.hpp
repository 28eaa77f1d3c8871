// Matrix: numbers in double for what planning computes, a few hundred rows of samples and d x d moments.
#pragma once

#include <cmath>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"

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
  for (Index i = 0; i < m.rows; ++i)
    for (Index j = 0; j < m.cols; ++j) t(j, i) = m(i, j);
  return t;
}

/// sum of squares.
inline double squared_norm(const Matrix& m) {
  double sum = 0;
  for (const double x : m.values) sum += x * x;
  return sum;
}
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

/// a b. Every element is summed in the same order, so that x^T x is symmetric to the last bit.
inline Matrix product(const Matrix& a, const Matrix& b) {
  using namespace simd;
  constexpr Index kRows = 4, kStep = kLanes<double>;
  Matrix c(a.rows, b.cols);
  for (Index i = 0; i < a.rows; i += kRows) {
    const double* row[kRows];  // past the end, the last once more
    for (Index r = 0; r < kRows; ++r) row[r] = a.row(std::min(i + r, a.rows - 1));
    for (Index j = 0; j < b.stride; j += kStep) {
      Vec<double> sum[kRows] = {zero<double>(), zero<double>(), zero<double>(), zero<double>()};
      for (Index k = 0; k < a.cols; ++k) {
        const Vec<double> of_b = load(b.row(k) + j);
#pragma GCC unroll 4
        for (Index r = 0; r < kRows; ++r) sum[r] = fma(set(row[r][k]), of_b, sum[r]);
      }
      for (Index r = 0; r < std::min(kRows, a.rows - i); ++r) store<double>(sum[r], c.row(i + r) + j);
    }
  }
  return c;
}

}  // namespace fastrope::inline FASTROPE_TARGET
