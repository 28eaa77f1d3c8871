// Points: a sample of rows in double, a column each, and what choices need to know of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/matrix.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// [d, n]: column i is row i of the sample, so that rows are vector lanes.
using Points = Matrix;

/// A place in the space of rows, [d].
using Point = std::vector<double>;

inline double norm(const Point& x) {
  double square = 0;
  for (const double element : x) square += element * element;
  return std::sqrt(square);
}

/// The points measured from `centre`.
inline Points centred(const Points& points, const Point& centre) {
  using namespace simd;
  Points x(points.rows, points.cols);
  for (Index c = 0; c < x.rows; ++c) {
    const Vec<double> shift = set(centre[static_cast<std::size_t>(c)]);
    for (Index i = 0; i < x.stride; i += kLanes<double>)
      store<double>(sub(load(points.row(c) + i), shift), x.row(c) + i);
    std::fill(x.row(c) + x.cols, x.row(c) + x.stride, 0.0);
  }
  return x;
}

namespace detail {

/// sums += the squares of row - shift, [stride of the row].
inline void add_squares(const double* row, double shift, std::vector<double>& sums) {
  using namespace simd;
  for (std::size_t i = 0; i < sums.size(); i += static_cast<std::size_t>(kLanes<double>)) {
    const Vec<double> x = sub(load(row + i), set(shift));
    store<double>(fma(x, x, load(sums.data() + i)), sums.data() + i);
  }
}

}  // namespace detail

/// About the largest distance from `centre`, and the point that is so far; 0 without points.
inline double farthest(const Points& points, const Point& centre, Index& point) {
  std::vector<double> squares(static_cast<std::size_t>(points.stride));
  for (Index c = 0; c < points.rows; ++c)
    detail::add_squares(points.row(c), centre[static_cast<std::size_t>(c)], squares);
  const auto largest = std::max_element(squares.begin(), squares.begin() + points.cols);
  point = largest - squares.begin();
  return points.cols == 0 ? 0 : std::sqrt(*largest);
}

/// The mean; 0 for no points.
inline Point mean(const Points& points) {
  Point sum(static_cast<std::size_t>(points.rows));
  for (Index c = 0; c < points.rows; ++c)
    for (Index i = 0; i < points.cols; ++i)
      sum[static_cast<std::size_t>(c)] += points(c, i) / static_cast<double>(points.cols);
  return sum;
}

/// sum_i x_i x_i^T / n, [d, d], symmetric to the last bit; 0 for no points.
inline Matrix second_moments(const Points& x) {
  Matrix moments = product(x, transposed(x));
  for (double& element : moments.values) element /= static_cast<double>(std::max<Index>(1, x.cols));
  return moments;
}

/// [cuts]: max_i |(A x_i)[l..]|; 0 for no points. axes: A, [cuts, d].
inline std::vector<double> longest_tails(const Points& x, const Matrix& axes) {
  const Matrix projected = product(axes, x);
  std::vector<double> squares(static_cast<std::size_t>(projected.stride)),
      tails(static_cast<std::size_t>(axes.rows));
  for (Index l = axes.rows; l-- > 0 && x.cols > 0;) {
    detail::add_squares(projected.row(l), 0, squares);
    tails[static_cast<std::size_t>(l)] =
        std::sqrt(*std::max_element(squares.begin(), squares.begin() + projected.cols));
  }
  return tails;
}

}  // namespace fastrope::inline FASTROPE_TARGET
