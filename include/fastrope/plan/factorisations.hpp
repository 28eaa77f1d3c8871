// Factorisations of small symmetric matrices: eigenvectors and Cholesky's factor.
//
// They are a few dozen lines here, as Eigen's take users two seconds more to compile in every file. What is
// off by rounding costs nothing but a little of a rank: axes are counted as they are.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/matrix.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// m = V^T diag(values) V, the largest value first.
struct SymmetricEigen {
  std::vector<double> values;
  Matrix vectors;  ///< V, a vector a row
};

namespace detail {

/// Where squares are no greater, numbers beside others of size 1 are taken for zero.
inline constexpr double kNoSquare = 1e-200;

/// T, symmetric with three diagonals, and rows [n, n] that take part in what is done to it.
struct Tridiagonal {
  std::vector<double> diagonal;
  std::vector<double> beside;  // [n - 1]
  Matrix rows;
};

/// By Householder's reflections H = I - 2 v v^T: m = U^T T U with U = H_(n-2) .. H_1, the rows.
inline Tridiagonal tridiagonal(Matrix m) {
  const Index n = m.rows;
  Matrix rows = identity(n);
  std::vector<double> reflection(static_cast<std::size_t>(m.stride)), product(reflection);
  for (Index k = 0; k + 2 < n; ++k) {
    double* v = reflection.data();
    double square = 0;
    for (Index i = k + 1; i < n; ++i) square += m(k, i) * m(k, i);
    if (!(square > kNoSquare)) continue;
    std::fill_n(v, k + 1, 0.0);
    std::copy_n(m.row(k) + k + 1, n - k - 1, v + k + 1);
    const double size = std::copysign(std::sqrt(square), v[k + 1]);
    const double length = std::sqrt(2 * (square + size * v[k + 1]));
    v[k + 1] += size;
    for (Index i = k + 1; i < n; ++i) v[i] /= length;
    // m - 2 v w^T - 2 w v^T, w = m v - (v.m v) v, from column k on.
    const Index begin = round_down(k, simd::kLanes<double>), count = m.stride - begin;
    double* w = product.data() + begin;
    std::fill_n(w, count, 0.0);
    for (Index i = k; i < n; ++i) add_scaled(v[i], m.row(i) + begin, count, w);
    double dot = 0;
    for (Index i = k; i < n; ++i) dot += v[i] * product[static_cast<std::size_t>(i)];
    add_scaled(-dot, v + begin, count, w);
    for (Index i = k; i < n; ++i) {
      add_scaled(-2 * v[i], w, count, m.row(i) + begin);
      add_scaled(-2 * product[static_cast<std::size_t>(i)], v + begin, count, m.row(i) + begin);
    }
    // H_k U.
    std::fill(product.begin(), product.end(), 0.0);
    for (Index i = k + 1; i < n; ++i) add_scaled(v[i], rows.row(i), m.stride, product.data());
    for (Index i = k + 1; i < n; ++i) add_scaled(-2 * v[i], product.data(), m.stride, rows.row(i));
  }
  Tridiagonal t{{}, {}, std::move(rows)};
  for (Index i = 0; i < n; ++i) t.diagonal.push_back(m(i, i));
  for (Index i = 0; i + 1 < n; ++i) t.beside.push_back(m(i, i + 1));
  return t;
}

/// x' = c x + s y, y' = c y - s x; count in whole vectors.
inline void rotate_rows(double c, double s, double* x, double* y, Index count) {
  using namespace simd;
  const Vec<double> cosine = set(c), sine = set(s);
  for (Index i = 0; i < count; i += kLanes<double>) {
    const Vec<double> of_x = load(x + i), of_y = load(y + i);
    store<double>(fma(cosine, of_x, mul(sine, of_y)), x + i);
    store<double>(sub(mul(cosine, of_y), mul(sine, of_x)), y + i);
  }
}

/// One implicit step of QR with Wilkinson's shift on rows [begin, last] of T, where none beside the diagonal
/// is zero: G T G^T for plane rotations G, and G rows.
inline void qr_step(Tridiagonal& t, std::size_t begin, std::size_t last) {
  std::vector<double>&d = t.diagonal, &e = t.beside;
  const double half = (d[last - 1] - d[last]) / 2, corner = e[last - 1];
  const double shift =
      d[last] - corner * corner / (half + std::copysign(std::sqrt(half * half + corner * corner), half));
  double x = d[begin] - shift, z = e[begin];  // z is to become zero
  for (std::size_t k = begin; k < last; ++k) {
    const double r = std::sqrt(x * x + z * z), c = r > 0 ? x / r : 1, s = r > 0 ? z / r : 0;
    if (k > begin) e[k - 1] = r;
    const double mixed = 2 * c * s * e[k], difference = d[k + 1] - d[k];
    e[k] = c * s * difference + (c * c - s * s) * e[k];
    d[k] += s * s * difference + mixed;
    d[k + 1] -= s * s * difference + mixed;
    if (k + 1 < last) {
      x = e[k];
      z = s * e[k + 1];
      e[k + 1] *= c;
    }
    const auto row = static_cast<Index>(k);
    rotate_rows(c, s, t.rows.row(row), t.rows.row(row + 1), t.rows.stride);
  }
}

}  // namespace detail

/// O(m.rows^3).
inline SymmetricEigen symmetric_eigen(Matrix m) {
  double largest = 0;
  for (const double x : m.values) largest = std::max(largest, std::abs(x));
  if (!(largest > 0)) largest = 1;
  for (double& x : m.values) x /= largest;  // no square overflows, and what underflows is no part of the sum
  const auto n = static_cast<std::size_t>(m.rows);
  detail::Tridiagonal t = detail::tridiagonal(std::move(m));
  std::vector<double>&d = t.diagonal, &e = t.beside;
  std::size_t last = n > 0 ? n - 1 : 0;
  for (std::size_t steps = 30 * n; last > 0 && steps > 0;
       --steps) {  // NaN never ends; two for each value are usual
    const auto apart = [&](std::size_t i) {
      const double beside = std::numeric_limits<double>::epsilon() * (std::abs(d[i]) + std::abs(d[i + 1]));
      return e[i] * e[i] <= std::max(detail::kNoSquare, beside * beside);
    };
    while (last > 0 && apart(last - 1)) --last;
    std::size_t begin = last;
    while (begin > 0 && !apart(begin - 1)) --begin;
    if (begin < last) detail::qr_step(t, begin, last);
  }
  std::vector<std::size_t> order(n);  // the largest first
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return d[a] > d[b]; });
  SymmetricEigen result{{}, Matrix(t.rows.rows, t.rows.rows)};
  for (std::size_t l = 0; l < n; ++l) {
    result.values.push_back(largest * d[order[l]]);
    std::copy_n(t.rows.row(static_cast<Index>(order[l])), t.rows.stride,
                result.vectors.row(static_cast<Index>(l)));
  }
  return result;
}

/// L, lower triangular, L L^T = m, positive definite.
inline Matrix cholesky(Matrix m) {
  // The columns of m below the diagonal, one after the other, are L's once those before are taken out.
  Matrix l(m.rows, m.cols);
  for (Index j = 0; j < m.rows; ++j) {
    const double root = std::sqrt(m(j, j));
    for (Index i = j; i < m.rows; ++i) l(i, j) = m(j, i) / root;
    for (Index i = j + 1; i < m.rows; ++i) add_scaled(-l(i, j) / root, m.row(j), m.stride, m.row(i));
  }
  return l;
}

}  // namespace fastrope::inline FASTROPE_TARGET
