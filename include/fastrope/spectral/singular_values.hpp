// Extreme singular values and eigenvalues of matrices that are known by their products, by Spectra's
// restarted Lanczos and Arnoldi methods. Needs the Spectra library; nothing else of fastrope does.
//
// Singular values are eigenvalues +-sigma of [0 M; M' 0], not roots of those of M'M: that would cost half of
// the digits of small ones. Each comes with the residual |[0 M; M' 0] w - sigma w|_2 of its unit vector w,
// and some singular value is within that of it.
#pragma once

#include <Spectra/GenEigsSolver.h>
#include <Spectra/SymEigsSolver.h>

#include <Eigen/Core>
#include <Eigen/SVD>
#include <algorithm>
#include <cmath>
#include <utility>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/spectral/hadamard_sum.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Some singular values or eigenvalues of symmetric matrices, the largest first.
struct Extremes {
  Eigen::VectorXd values;
  Eigen::VectorXd residuals;  ///< a value of the matrix is within this of each
};

namespace detail {

/// What Spectra multiplies by: product(x) / size.
template <class Product>
class SpectraOperator {
 public:
  using Scalar = double;

  SpectraOperator(Index n, double size, Product product) : n_(n), size_(size), product_(std::move(product)) {}
  Index rows() const { return n_; }
  Index cols() const { return n_; }
  void perform_op(const double* x, double* y) const {
    Eigen::Map<Eigen::VectorXd>(y, n_) = product_(Eigen::Map<const Eigen::VectorXd>(x, n_)) / size_;
  }
  Eigen::VectorXd operator()(const Eigen::VectorXd& x) const { return product_(x) / size_; }

 private:
  Index n_;
  double size_;
  Product product_;
};

inline void require_count(const char* name, Index count, Index most, Index n_rows, Index n_cols) {
  if (count < 1 || count > most)
    fail(name, ": a ", n_rows, " x ", n_cols, " matrix has 1 to ", most, " of them to be found, not ", count);
}

/// Vectors of Spectra's search space.
inline Index search_space(Index count, Index n) { return std::min(n, std::max<Index>(2 * count + 8, 24)); }

template <class Solver>
void require_converged(const char* name, const Solver& solver, Index converged, Index count) {
  if (solver.info() != Spectra::CompInfo::Successful)
    fail(name, ": only ", converged, " of ", count, " values converged in ", solver.num_operations(),
         " products (values that are nearly equal, or infinite entries)");
}

/// The `count` algebraically largest eigenvalues of a symmetric product.
template <class Product>
Extremes largest_eigenvalues(const char* name, Index n, Index count, const Product& product) {
  // Spectra's tolerances have an absolute floor, so that what is solved has a size near 1.
  const Eigen::VectorXd probe = Eigen::VectorXd::Random(n).normalized();
  const double size = product(product(probe)).norm() / std::max(product(probe).norm(), 1e-300);
  if (!std::isfinite(size)) fail(name, ": a product with the matrix is not finite");
  if (size == 0) return {Eigen::VectorXd::Zero(count), Eigen::VectorXd::Zero(count)};
  SpectraOperator op(n, size, product);
  Spectra::SymEigsSolver solver(op, count, search_space(count, n));
  solver.init();
  const Index converged = solver.compute(Spectra::SortRule::LargestAlge, 1000, 1e-12);
  require_converged(name, solver, converged, count);
  Extremes found{solver.eigenvalues(), Eigen::VectorXd(count)};
  const Eigen::MatrixXd vectors = solver.eigenvectors();
  for (Index i = 0; i < count; ++i)
    found.residuals(i) =
        (op(vectors.col(i)) - found.values(i) * vectors.col(i)).norm() / vectors.col(i).norm();
  found.values *= size;
  found.residuals *= size;
  return found;
}

}  // namespace detail

/// The `count` largest singular values. Throws Error, naming the values, unless 1 <= count <= min(n_rows,
/// n_cols), or if they do not converge. Cost: some tens of products with M and M'; memory for 2 count + 8
/// vectors of n_rows + n_cols.
template <LinearMap M>
Extremes singular_values(const M& m, Index count) {
  const Index n_rows = m.n_rows(), n_cols = m.n_cols();
  detail::require_count("singular_values", count, std::min(n_rows, n_cols), n_rows, n_cols);
  Extremes found =
      detail::largest_eigenvalues("singular_values", n_rows + n_cols, count, [&](const Eigen::VectorXd& x) {
        Eigen::VectorXd y(n_rows + n_cols);
        y << m.apply(x.tail(n_cols)), m.apply_transpose(x.head(n_rows));
        return y;
      });
  found.values = found.values.cwiseMax(0);  // zeros are found with either sign
  return found;
}

/// The `count` largest eigenvalues of a symmetric matrix. Throws Error, naming the values, for a matrix that
/// is not symmetric (a random x M y is not y M x), and as singular_values(), for count < n.
template <LinearMap M>
Extremes largest_eigenvalues(const M& m, Index count) {
  constexpr double kSymmetric = 1e-9;
  const Index n = m.n_rows();
  if (m.n_cols() != n) detail::fail("largest_eigenvalues: the matrix is ", n, " x ", m.n_cols());
  detail::require_count("largest_eigenvalues", count, n - 1, n, n);
  const Eigen::VectorXd x = Eigen::VectorXd::Random(n), y = Eigen::VectorXd::Random(n);
  const Eigen::VectorXd m_y = m.apply(y);
  const double one = x.dot(m_y), other = y.dot(m.apply(x));
  if (!(std::abs(one - other) <= kSymmetric * x.norm() * m_y.norm()))
    detail::fail("largest_eigenvalues: the matrix is not symmetric: a product x'My is ", one, ", y'Mx is ",
                 other);
  return detail::largest_eigenvalues("largest_eigenvalues", n, count,
                                     [&](const Eigen::VectorXd& v) { return m.apply(v); });
}

/// The `count` eigenvalues of a square matrix that are largest in size, such as those of softmax weights, the
/// largest first; count <= n - 2. Throws Error, naming the values, as singular_values().
template <LinearMap M>
Eigen::VectorXcd eigenvalues(const M& m, Index count) {
  const Index n = m.n_rows();
  if (m.n_cols() != n) detail::fail("eigenvalues: the matrix is ", n, " x ", m.n_cols());
  detail::require_count("eigenvalues", count, n - 2, n, n);
  detail::SpectraOperator op(n, 1.0, [&](const Eigen::VectorXd& x) { return m.apply(x); });
  Spectra::GenEigsSolver solver(op, count, detail::search_space(count, n));
  solver.init();
  const Index converged = solver.compute(Spectra::SortRule::LargestMagn, 1000, 1e-12);
  detail::require_converged("eigenvalues", solver, converged, count);
  return solver.eigenvalues();
}

/// All singular values, from the dense matrix; for matrices that are small enough, and to check the rest.
/// Throws Error unless min(n_rows, n_cols) <= 512. Cost: O(n_rows n_cols min(n_rows, n_cols)).
template <class M>
Eigen::VectorXd all_singular_values(const M& m) {
  constexpr Index kLargest = 512;
  if (std::min(m.n_rows(), m.n_cols()) > kLargest)
    detail::fail("all_singular_values: a dense ", m.n_rows(), " x ", m.n_cols(),
                 " matrix is above the limit of ", kLargest, "; singular_values() finds the largest ones");
  return Eigen::BDCSVD<Eigen::MatrixXd>(dense(m)).singularValues();
}

}  // namespace fastrope::inline FASTROPE_TARGET
