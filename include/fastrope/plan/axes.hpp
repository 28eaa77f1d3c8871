// Axes: coordinates of queries and keys in which few variables carry most of every entry.
//
//     q.k = (B q).(C k)   for any B, C with B^T C = I.
// Tails are small where the later coordinates of both sides are; any choice is exact, so moments decide.
#pragma once

#include <cmath>
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

/// Who factorises: factorisations.hpp, which only files that plan include and compile.
struct Factorisations {
  SymmetricEigen (*symmetric_eigen)(Matrix m) = nullptr;
  Matrix (*cholesky)(Matrix m) = nullptr;  ///< L, lower triangular, L L^T = m positive definite
};

/// x = B q and y = C k: [d, d] each, B^T C = I up to rounding.
struct Axes {
  Matrix queries;  ///< B
  Matrix keys;     ///< C
};

/// The rows' own coordinates.
inline Axes identity_axes(Index d) { return {identity(d), identity(d)}; }

/// Orthogonal axes, B = C, along which both sides, made equally large, have their largest moments first.
/// Norms stay what they are.
inline Axes principal_axes(const Matrix& query_moments, const Matrix& key_moments, const Factorisations& by) {
  Matrix sum(query_moments.rows, query_moments.cols);
  for (const Matrix* m : {&query_moments, &key_moments})
    if (const double size = trace(*m); size > 0)
      for (std::size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += m->values[i] / size;
  Matrix axes = by.symmetric_eigen(sum).vectors;
  return {axes, axes};
}

/// Axes in which both sides have the same diagonal moments S, the largest first (as in balanced truncation):
///     M_q = L L^T,   L^T M_k L = V S^2 V^T,   C = S^-1/2 V^T L^T,   B = C^-T = S^-1 C M_k,
/// so that B M_q B^T = C M_k C^T = S. A small multiple of I is added to the moments, which may be singular.
/// Norms change, and with them the radius, either way.
inline Axes balanced_axes(Matrix query_moments, Matrix key_moments, const Factorisations& by) {
  constexpr double kRidge = 1e-3;
  for (Matrix* m : {&query_moments, &key_moments}) {
    const double size = trace(*m) / static_cast<double>(m->rows);
    for (Index i = 0; i < m->rows; ++i) (*m)(i, i) += size > 0 ? kRidge * size : 1;
  }
  const Matrix root = by.cholesky(query_moments), turned = transposed(root);
  const Matrix half = product(turned, key_moments);
  const SymmetricEigen both = by.symmetric_eigen(product(half, root));
  Axes axes{product(both.vectors, half), product(both.vectors, turned)};
  for (Index l = 0; l < axes.keys.rows; ++l) {
    const double s = std::sqrt(both.values[static_cast<std::size_t>(l)]);
    const double of_queries = std::pow(s, -1.5), of_keys = std::pow(s, -0.5);
    for (Index c = 0; c < axes.keys.cols; ++c) {
      axes.queries(l, c) *= of_queries;
      axes.keys(l, c) *= of_keys;
    }
  }
  return axes;
}

}  // namespace fastrope::inline FASTROPE_TARGET
