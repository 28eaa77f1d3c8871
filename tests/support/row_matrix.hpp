// RowMatrix: rows in a test's own arithmetic, as a source, a side or points of them, and what tests do to
// rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/measure/points.hpp"
#include "fastrope/measure/rows.hpp"
#include "fastrope/measure/side.hpp"
#include "support/inputs.hpp"

namespace fastrope_test {

/// [rows, cols] row by row.
template <class Real>
struct RowMatrix {
  Index rows = 0;
  Index cols = 0;
  std::vector<Real> values = {};

  RowMatrix() = default;
  RowMatrix(Index rows_, Index cols_, Real value = 0)
      : rows(rows_), cols(cols_), values(static_cast<std::size_t>(rows_ * cols_), value) {}

  Real& operator()(Index i, Index c) { return values[static_cast<std::size_t>(i * cols + c)]; }
  Real operator()(Index i, Index c) const { return values[static_cast<std::size_t>(i * cols + c)]; }
  friend bool operator==(const RowMatrix&, const RowMatrix&) = default;

  /// The first rows.
  RowMatrix top(Index count) const {
    RowMatrix some(count, cols);
    std::copy_n(values.begin(), some.values.size(), some.values.begin());
    return some;
  }
  RowMatrix row(Index i) const {
    RowMatrix one(1, cols);
    for (Index c = 0; c < cols; ++c) one(0, c) = (*this)(i, c);
    return one;
  }
  void set_row(Index i, const RowMatrix& one) {
    for (Index c = 0; c < cols; ++c) (*this)(i, c) = one(0, c);
  }
  void scale_row(Index i, double factor) {
    for (Index c = 0; c < cols; ++c) (*this)(i, c) *= static_cast<Real>(factor);
  }
  void scale_column(Index c, double factor) {
    for (Index i = 0; i < rows; ++i) (*this)(i, c) *= static_cast<Real>(factor);
  }
  /// Column l times decay^l.
  void decay(double factor) {
    for (Index c = 0; c < cols; ++c) scale_column(c, std::pow(factor, static_cast<double>(c)));
  }
  void move_column(Index c, double by) {
    for (Index i = 0; i < rows; ++i) (*this)(i, c) += static_cast<Real>(by);
  }
  void move(const RowMatrix& by) {
    for (Index i = 0; i < rows; ++i)
      for (Index c = 0; c < cols; ++c) (*this)(i, c) += by(0, c);
  }
  void move(double by) {
    for (Real& x : values) x += static_cast<Real>(by);
  }
};

/// x y.
template <class Real>
RowMatrix<Real> times(const RowMatrix<Real>& x, const RowMatrix<Real>& y) {
  RowMatrix<Real> z(x.rows, y.cols);
  for (Index i = 0; i < x.rows; ++i)
    for (Index k = 0; k < x.cols; ++k)
      for (Index c = 0; c < y.cols; ++c) z(i, c) += x(i, k) * y(k, c);
  return z;
}

template <class Real>
RowMatrix<Real> gaussian_rows(Inputs& inputs, Index n, Index d, double sigma = 1) {
  RowMatrix<Real> x(n, d);
  for (Index c = 0; c < d; ++c)
    for (Index i = 0; i < n; ++i) x(i, c) = static_cast<Real>(sigma * inputs.normal());
  return x;
}

/// |x_i|, in double.
template <class Real>
double length(const RowMatrix<Real>& x, Index i) {
  double square = 0;
  for (Index c = 0; c < x.cols; ++c) square += static_cast<double>(x(i, c)) * static_cast<double>(x(i, c));
  return std::sqrt(square);
}

template <class Real>
double longest(const RowMatrix<Real>& x) {
  double most = 0;
  for (Index i = 0; i < x.rows; ++i) most = std::max(most, length(x, i));
  return most;
}

/// Rows of length `norm`.
template <class Real>
RowMatrix<Real> sphere_rows(Inputs& inputs, Index n, Index d, double norm) {
  RowMatrix<Real> x = gaussian_rows<Real>(inputs, n, d);
  for (Index i = 0; i < n; ++i) x.scale_row(i, norm / length(x, i));
  return x;
}

/// The rows as they are; they must outlive the source.
template <class Real>
fastrope::RowSource<Real> source_of(const RowMatrix<Real>& x) {
  return {x.rows, x.cols, [&x](fastrope::Range rows, bool, Real* to) {
            std::copy(x.values.begin() + rows.begin * x.cols, x.values.begin() + rows.end * x.cols, to);
          }};
}

/// A source of x's first rows that counts how often each is read.
template <class Real>
fastrope::RowSource<Real> counted(const RowMatrix<Real>& x, Index count, std::vector<Index>& reads) {
  reads.resize(static_cast<std::size_t>(x.rows));
  fastrope::RowSource<Real> source = source_of(x);
  source.count = count;
  source.read = [&reads, read = source.read](fastrope::Range rows, bool turned, Real* to) {
    for (Index i = rows.begin; i < rows.end; ++i) ++reads[static_cast<std::size_t>(i)];
    read(rows, turned, to);
  };
  return source;
}

template <class Real>
std::unique_ptr<fastrope::Side> side_of(fastrope::RowSource<Real> source) {
  return std::make_unique<fastrope::SideOf<Real>>(std::move(source));
}
template <class Real>
std::unique_ptr<fastrope::Side> side_of(const RowMatrix<Real>& x) {
  return side_of(source_of(x));
}

template <class Real>
fastrope::Points points_of(const RowMatrix<Real>& x) {
  fastrope::Points points(x.cols, x.rows);
  for (Index i = 0; i < x.rows; ++i)
    for (Index c = 0; c < x.cols; ++c) points(c, i) = static_cast<double>(x(i, c));
  return points;
}

/// Row i.
template <class Real>
fastrope::Point point_of(const RowMatrix<Real>& x, Index i = 0) {
  fastrope::Point point;
  for (Index c = 0; c < x.cols; ++c) point.push_back(static_cast<double>(x(i, c)));
  return point;
}

/// The same numbers, an axis a row.
template <class Real>
fastrope::Matrix matrix_of(const RowMatrix<Real>& x) {
  fastrope::Matrix m(x.rows, x.cols);
  for (Index i = 0; i < x.rows; ++i)
    for (Index c = 0; c < x.cols; ++c) m(i, c) = static_cast<double>(x(i, c));
  return m;
}

/// max |a - b| over the elements; infinity where sizes differ.
inline double farthest_apart(const fastrope::Matrix& a, const fastrope::Matrix& b) {
  if (a.rows != b.rows || a.cols != b.cols) return INFINITY;
  double most = 0;
  for (Index i = 0; i < a.rows; ++i)
    for (Index j = 0; j < a.cols; ++j) most = std::max(most, std::abs(a(i, j) - b(i, j)));
  return most;
}

}  // namespace fastrope_test
