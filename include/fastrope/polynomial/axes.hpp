// Axes: coordinates of queries and keys in which few variables carry most of every entry.
//
//     q.k = (B q).(C k)   for any B, C with B^T C = I.
// Tails are small where the later coordinates of both sides are; any choice is exact, so moments decide.
#pragma once

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>

#include "fastrope/core/target.hpp"
#include "fastrope/polynomial/rows.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// sum_i (x_i - centre)^T (x_i - centre) / n, [d, d], symmetric to the last bit, which a matrix product need
/// not be; 0 for no rows.
template <class Real>
Eigen::MatrixXd second_moments(const Rows<Real>& rows, const Point<Real>& centre) {
  const Rows<Real> centred = rows.rowwise() - centre;
  const Rows<Real> product = centred.transpose() * centred;
  const Rows<Real> sum = product + product.transpose();
  return sum.template cast<double>() / static_cast<double>(2 * std::max<Eigen::Index>(1, rows.rows()));
}

/// x = B q and y = C k: [d, d] each, B^T C = I up to rounding.
struct Axes {
  Eigen::MatrixXd queries;  ///< B
  Eigen::MatrixXd keys;     ///< C
};

/// The rows' own coordinates.
inline Axes identity_axes(Eigen::Index d) {
  return {Eigen::MatrixXd::Identity(d, d), Eigen::MatrixXd::Identity(d, d)};
}

// Moments: Eigen::MatrixXd. Templates, so that only files that choose axes compile the eigenvalue solver.

namespace detail {

/// Eigenvectors as rows, that of the largest eigenvalue first.
template <class Moments>
Moments eigenvector_rows(const Eigen::SelfAdjointEigenSolver<Moments>& m) {
  return m.eigenvectors().rowwise().reverse().transpose();
}

}  // namespace detail

/// Orthogonal axes, B = C, along which both sides, made equally large, have their largest moments first.
/// Norms stay what they are.
template <class Moments>
Axes principal_axes(const Moments& query_moments, const Moments& key_moments) {
  Moments sum = Moments::Zero(query_moments.rows(), query_moments.cols());
  for (const Moments* m : {&query_moments, &key_moments})
    if (m->trace() > 0) sum += *m / m->trace();
  const Moments axes = detail::eigenvector_rows(Eigen::SelfAdjointEigenSolver<Moments>(sum));
  return {axes, axes};
}

/// Axes in which both sides have the same diagonal moments S, the largest first (as in balanced truncation):
///     M_q = L L^T,   L^T M_k L = V S^2 V^T,   C = S^-1/2 V^T L^T,   B = C^-T = S^-1 C M_k,
/// so that B M_q B^T = C M_k C^T = S. A small multiple of I is added to the moments, which may be singular.
/// Norms change, and with them the radius, either way.
template <class Moments>
Axes balanced_axes(Moments query_moments, Moments key_moments) {
  constexpr double kRidge = 1e-3;
  for (Moments* m : {&query_moments, &key_moments}) {
    const double size = m->trace() / static_cast<double>(m->rows());
    m->diagonal().array() += size > 0 ? kRidge * size : 1;
  }
  const Moments root = Eigen::LLT<Moments>(query_moments).matrixL();
  const Moments half = root.transpose() * key_moments;
  const Eigen::SelfAdjointEigenSolver<Moments> solver(half * root);
  const Eigen::VectorXd s = solver.eigenvalues().reverse().array().sqrt();
  const Moments vectors = detail::eigenvector_rows(solver);
  const Moments b = vectors * half, c = vectors * root.transpose();
  return {s.array().pow(-1.5).matrix().asDiagonal() * b, s.array().pow(-0.5).matrix().asDiagonal() * c};
}

}  // namespace fastrope::inline FASTROPE_TARGET
