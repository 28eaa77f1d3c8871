// Factorisations of small symmetric matrices, and the only include of Eigen beside eigen.hpp and spectral/.
//
// Eigenvalues are Eigen's, of a tridiagonal matrix; the reduction to one, and Cholesky's factors, are a few
// lines here, as Eigen's blocked forms of them take most users seven seconds more to compile than the rest of
// a plan's algebra. What is off by rounding costs nothing but a little of a rank: axes are counted as they
// are.
#pragma once

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/matrix.hpp"
#include "fastrope/plan/axes.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

// Templates, so that only files that plan compile Eigen's solver.

/// By Householder's reflections H = I - 2 v v^T: m = H_1 .. H_(n-2) T H_(n-2) .. H_1 with T tridiagonal.
template <class M = Matrix>
SymmetricEigen symmetric_eigen(M m) {
  // Elements up to 1: Eigen takes what stands beside the diagonal for zero by its size, and squares may
  // underflow.
  constexpr double kNoSquare = 1e-200;
  double largest = 0;
  for (const double x : m.values) largest = std::max(largest, std::abs(x));
  if (!(largest > 0)) largest = 1;
  for (double& x : m.values) x /= largest;
  const Index n = m.rows;
  M reflections(n, n);  // v of each, a row
  std::vector<double> product(static_cast<std::size_t>(m.stride));
  for (Index k = 0; k + 2 < n; ++k) {
    double* v = reflections.row(k);
    double square = 0;
    std::copy_n(m.row(k) + k + 1, n - k - 1, v + k + 1);
    for (Index i = k + 1; i < n; ++i) square += v[i] * v[i];
    if (!(square > kNoSquare)) {
      std::fill_n(v, n, 0.0);
      continue;
    }
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
  }
  Eigen::VectorXd diagonal(n), beside(std::max<Index>(n - 1, 0));
  for (Index i = 0; i < n; ++i) diagonal(i) = m(i, i);
  for (Index i = 0; i + 1 < n; ++i) beside(i) = m(i, i + 1);
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(n);
  solver.computeFromTridiagonal(diagonal, beside);
  // Eigenvectors of m, as columns: the reflections of those of T.
  M vectors(n, n);
  SymmetricEigen result{std::vector<double>(static_cast<std::size_t>(n)), M(n, n)};
  for (Index l = 0; l < n; ++l) {
    result.values[static_cast<std::size_t>(l)] = largest * solver.eigenvalues()(n - 1 - l);
    for (Index i = 0; i < n; ++i) vectors(i, l) = solver.eigenvectors()(i, n - 1 - l);
  }
  for (Index k = n - 2; k-- > 0;) {
    const double* v = reflections.row(k);
    std::fill(product.begin(), product.end(), 0.0);
    for (Index i = k + 1; i < n; ++i) add_scaled(v[i], vectors.row(i), m.stride, product.data());
    for (Index i = k + 1; i < n; ++i) add_scaled(-2 * v[i], product.data(), m.stride, vectors.row(i));
  }
  result.vectors = transposed(vectors);
  return result;
}

template <class M = Matrix>
M cholesky(M m) {
  // The columns of m below the diagonal, one after the other, are L's once those before are taken out.
  M l(m.rows, m.cols);
  for (Index j = 0; j < m.rows; ++j) {
    const double root = std::sqrt(m(j, j));
    for (Index i = j; i < m.rows; ++i) l(i, j) = m(j, i) / root;
    for (Index i = j + 1; i < m.rows; ++i) add_scaled(-l(i, j) / root, m.row(j), m.stride, m.row(i));
  }
  return l;
}

}  // namespace detail

/// symmetric_eigen by Eigen, O(n^3).
template <class M = Matrix>
Factorisations factorisations() {
  return {&detail::symmetric_eigen<M>, &detail::cholesky<M>};
}

}  // namespace fastrope::inline FASTROPE_TARGET
