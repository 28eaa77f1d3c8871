// Axes: coordinates of queries and keys in which few variables carry most of every entry.
//
//     q.k = (B q).(C k)   for any B, C with B^T C = I.
// Tails are small where the later coordinates of both sides are; any choice is exact, so moments decide.
#pragma once

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <cmath>

namespace fastrope {

/// x = B q and y = C k: [d, d] each, B^T C = I up to rounding.
struct Axes {
  Eigen::MatrixXd queries;  ///< B
  Eigen::MatrixXd keys;     ///< C
};

/// The rows' own coordinates.
inline Axes identity_axes(Eigen::Index d) {
  return {Eigen::MatrixXd::Identity(d, d), Eigen::MatrixXd::Identity(d, d)};
}

namespace detail {

/// V f(lambda) V^T of a symmetric matrix V lambda V^T.
template <class Function>
Eigen::MatrixXd of_eigenvalues(const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>& m, Function&& f) {
  const Eigen::MatrixXd scaled = m.eigenvectors() * m.eigenvalues().unaryExpr(f).asDiagonal();
  return scaled * m.eigenvectors().transpose();
}

/// Eigenvectors as rows, that of the largest eigenvalue first.
inline Eigen::MatrixXd eigenvector_rows(const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>& m) {
  return m.eigenvectors().rowwise().reverse().transpose();
}

}  // namespace detail

/// Orthogonal axes, B = C, along which both sides, made equally large, have their largest moments first.
/// Norms stay what they are.
inline Axes principal_axes(const Eigen::MatrixXd& query_moments, const Eigen::MatrixXd& key_moments) {
  Eigen::MatrixXd sum = Eigen::MatrixXd::Zero(query_moments.rows(), query_moments.cols());
  for (const Eigen::MatrixXd* m : {&query_moments, &key_moments})
    if (m->trace() > 0) sum += *m / m->trace();
  const Eigen::MatrixXd axes = detail::eigenvector_rows(Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(sum));
  return {axes, axes};
}

/// Axes in which both sides have the same diagonal moments S, the largest first (as in balanced truncation):
///     M_q^1/2 M_k M_q^1/2 = U S^2 U^T,   C = S^-1/2 U^T M_q^1/2,   B = S^1/2 U^T M_q^-1/2 = C^-T,
/// so that B M_q B^T = C M_k C^T = S. A small multiple of I is added to the moments, which may be singular.
/// Norms change, and with them the radius, either way.
inline Axes balanced_axes(Eigen::MatrixXd query_moments, Eigen::MatrixXd key_moments) {
  constexpr double kRidge = 1e-3;
  for (Eigen::MatrixXd* m : {&query_moments, &key_moments}) {
    const double size = m->trace() / static_cast<double>(m->rows());
    m->diagonal().array() += size > 0 ? kRidge * size : 1;
  }
  using Solver = Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>;
  const Solver of_queries(query_moments);
  const Eigen::MatrixXd root = detail::of_eigenvalues(of_queries, [](double x) { return std::sqrt(x); });
  const Eigen::MatrixXd inverse =
      detail::of_eigenvalues(of_queries, [](double x) { return 1 / std::sqrt(x); });
  const Eigen::MatrixXd half = root * key_moments;
  const Solver solver(half * root);
  const Eigen::VectorXd scale = solver.eigenvalues().reverse().array().sqrt().sqrt();
  const Eigen::MatrixXd u = detail::eigenvector_rows(solver);
  return {scale.asDiagonal() * (u * inverse), scale.cwiseInverse().asDiagonal() * (u * root)};
}

}  // namespace fastrope
