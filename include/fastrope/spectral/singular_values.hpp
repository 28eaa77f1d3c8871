// Extreme singular values and eigenvalues of matrices that are known by their products, by Spectra's
// restarted Lanczos and Arnoldi methods. Needs the Spectra library; nothing else of fastrope does.
//
// Singular values are eigenvalues +-sigma of [0 M; M' 0], not roots of those of M'M: that would cost half of
// the digits of small ones. Each comes with the residual |[0 M; M' 0] w - sigma w|_2 of its unit vector w,
// and some singular value is within that of it. A search that begins with one vector finds one copy of a
// repeated value: what was found is taken out of the matrix and the search begun again until nothing larger
// is left.
#pragma once

#include <Spectra/GenEigsSolver.h>
#include <Spectra/SymEigsSolver.h>

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/spectral/hadamard_sum.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Some singular values, or eigenvalues of a symmetric matrix, the largest first.
struct Extremes {
  Eigen::VectorXd values;
  Eigen::VectorXd residuals;  ///< a value of the matrix is within this of each
};

/// Some eigenvalues of a general matrix, the largest in size first.
struct ComplexExtremes {
  Eigen::VectorXcd values;
  Eigen::VectorXd residuals;  ///< |M w - lambda w|_2 of unit vectors; says little where M is far from normal
};

namespace detail {

/// A square matrix over its size, as Spectra multiplies by it: its tolerances have an absolute floor.
class SpectraOperator {
 public:
  using Scalar = double;
  using Product = std::function<Eigen::VectorXd(const Eigen::VectorXd&)>;

  /// Throws Error where a product is not finite.
  SpectraOperator(const char* name, Index n, Product product) : n_(n), product_(std::move(product)) {
    size_ = product_(Eigen::VectorXd::Random(n).normalized()).stableNorm();
    if (!std::isfinite(size_)) fail(name, ": a product with the ", n, " x ", n, " matrix is not finite");
  }

  /// Of a random vector's product: 0 for the matrix of zeros.
  double size() const { return size_; }
  Index rows() const { return n_; }
  Index cols() const { return n_; }
  void perform_op(const double* x, double* y) const {
    Eigen::Map<Eigen::VectorXd>(y, n_) = (*this)(Eigen::Map<const Eigen::VectorXd>(x, n_));
  }
  Eigen::VectorXd operator()(const Eigen::VectorXd& x) const { return product_(x) / size_; }

 private:
  Index n_;
  Product product_;
  double size_ = 0;
};

inline void require_count(const char* name, Index count, Index most, Index n_rows, Index n_cols) {
  if (count < 1 || count > most)
    fail(name, ": a ", n_rows, " x ", n_cols, " matrix has 1 to ", most, " of them to be found, not ", count);
}

template <class M>
void require_square(const char* name, const M& m) {
  if (m.n_rows() != m.n_cols()) fail(name, ": the matrix is ", m.n_rows(), " x ", m.n_cols());
}

/// Vectors of Spectra's search space.
inline Index search_space(Index count, Index n) { return std::min(n, std::max<Index>(2 * count + 8, 24)); }

template <class Solver>
void require_converged(const char* name, const Solver& solver, Index converged, Index count) {
  if (solver.info() != Spectra::CompInfo::Successful)
    fail(name, ": only ", converged, " of ", count, " values converged in ", solver.num_operations(),
         " products");
}

/// Eigenvalues of a symmetric matrix with unit eigenvectors.
struct Eigenpairs {
  Eigen::VectorXd values;
  Eigen::MatrixXd vectors;
};

/// The `count` algebraically largest, descending, as one search finds them; of a matrix no larger than the
/// search space, which leaves nothing to search for, from its entries.
inline Eigenpairs one_search(const char* name, SpectraOperator& op, Index count, double tolerance) {
  if (const Index n = op.rows(); n == search_space(count, n)) {
    Eigen::MatrixXd entries(n, n);
    for (Index c = 0; c < n; ++c) entries.col(c) = op(Eigen::VectorXd::Unit(n, c));
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver((entries + entries.transpose()) / 2);
    return {solver.eigenvalues().tail(count).reverse(),
            solver.eigenvectors().rightCols(count).rowwise().reverse()};
  }
  Spectra::SymEigsSolver solver(op, count, search_space(count, op.rows()));
  solver.init();
  const Index converged = solver.compute(Spectra::SortRule::LargestAlge, 1000, tolerance);
  require_converged(name, solver, converged, count);
  return {solver.eigenvalues(), solver.eigenvectors()};
}

/// The `count` algebraically largest eigenvalues of a symmetric product.
inline Extremes largest_eigenvalues(const char* name, Index n, Index count,
                                    SpectraOperator::Product product) {
  SpectraOperator op(name, n, std::move(product));
  if (op.size() == 0) return {Eigen::VectorXd::Zero(count), Eigen::VectorXd::Zero(count)};
  Eigenpairs found = one_search(name, op, count, 1e-12);

  // A value above the least that was found, if there is one that the search has missed. What is left is moved
  // up by the size of the largest value: where nothing is left, it is no matrix of rounding errors then.
  constexpr double kDistinct = 1e-11;
  const double largest = found.values.cwiseAbs().maxCoeff();
  for (;;) {
    SpectraOperator rest(name, n, [&](const Eigen::VectorXd& x) -> Eigen::VectorXd {
      return op(x) + largest * x -
             found.vectors * (found.values.asDiagonal() * (found.vectors.transpose() * x));
    });
    Eigen::VectorXd next = one_search(name, rest, 1, 1e-10).vectors;
    next -= found.vectors * (found.vectors.transpose() * next);
    if (next.norm() < 0.5) break;  // of what was found: nothing is left
    next.normalize();
    const double value = next.dot(op(next));
    if (!(value > found.values(count - 1) + kDistinct * largest)) break;
    Index at = count - 1;
    for (; at > 0 && found.values(at - 1) < value; --at) {
      found.values(at) = found.values(at - 1);
      found.vectors.col(at) = found.vectors.col(at - 1);
    }
    found.values(at) = value;
    found.vectors.col(at) = next;
  }

  Extremes extremes{found.values * op.size(), Eigen::VectorXd(count)};
  for (Index i = 0; i < count; ++i)
    extremes.residuals(i) =
        (op(found.vectors.col(i)) - found.values(i) * found.vectors.col(i)).norm() * op.size();
  return extremes;
}

}  // namespace detail

/// The `count` largest singular values. Throws Error, naming the values, unless 1 <= count <= min(n_rows,
/// n_cols), for products that are not finite, and if they do not converge. Cost: some tens of products with M
/// and M' for each copy of repeated values; memory for max(3 count + 8, 24 + count) vectors of n_rows +
/// n_cols.
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
/// is not symmetric (a random x'My is not y'Mx), and as singular_values(), for count < n.
template <LinearMap M>
Extremes largest_eigenvalues(const M& m, Index count) {
  constexpr double kSymmetric = 1e-9;
  constexpr const char* kName = "largest_eigenvalues";
  const Index n = m.n_rows();
  detail::require_square(kName, m);
  detail::require_count(kName, count, n - 1, n, n);
  const Eigen::VectorXd x = Eigen::VectorXd::Random(n), y = Eigen::VectorXd::Random(n);
  const Eigen::VectorXd m_x = m.apply(x), m_y = m.apply(y);
  const double one = x.dot(m_y), other = y.dot(m_x);
  if (std::abs(one - other) > kSymmetric * x.norm() * m_y.stableNorm())
    detail::fail(kName, ": the matrix is not symmetric: a product x'My is ", one, ", y'Mx is ", other);
  return detail::largest_eigenvalues(kName, n, count, [&](const Eigen::VectorXd& v) { return m.apply(v); });
}

/// `count` eigenvalues of a square matrix that are large in size, such as those of softmax weights; count <=
/// n - 2. Repeated ones may be found once. Matrices far from normal, causal weights are, have eigenvalues
/// that no method which only multiplies finds to many digits (those of triangular matrices are the diagonal).
/// Throws Error, naming the values, as singular_values().
template <LinearMap M>
ComplexExtremes eigenvalues(const M& m, Index count) {
  constexpr const char* kName = "eigenvalues";
  const Index n = m.n_rows();
  detail::require_square(kName, m);
  detail::require_count(kName, count, n - 2, n, n);
  detail::SpectraOperator op(kName, n, [&](const Eigen::VectorXd& x) { return m.apply(x); });
  if (op.size() == 0) return {Eigen::VectorXcd::Zero(count), Eigen::VectorXd::Zero(count)};
  Spectra::GenEigsSolver solver(op, count, detail::search_space(count, n));
  solver.init();
  const Index converged = solver.compute(Spectra::SortRule::LargestMagn, 1000, 1e-12);
  detail::require_converged(kName, solver, converged, count);
  ComplexExtremes found{solver.eigenvalues() * op.size(), Eigen::VectorXd(count)};
  const Eigen::MatrixXcd vectors = solver.eigenvectors();
  for (Index i = 0; i < count; ++i) {
    const Eigen::VectorXcd w = vectors.col(i).normalized();
    Eigen::VectorXcd product(n);
    product.real() = m.apply(w.real());
    product.imag() = m.apply(w.imag());
    found.residuals(i) = (product - found.values(i) * w).norm();
  }
  return found;
}

/// All singular values, the largest first, from the dense matrix; for matrices that are small enough, and to
/// check the rest. Throws Error, naming the values, unless n_rows + n_cols <= 1024, and where an entry is not
/// finite. Cost: 4/3 (n_rows + n_cols)^3 flops. (Of [0 M; M' 0], as above: Eigen 3.4's BDCSVD errs on
/// repeated values.)
template <class M>
Eigen::VectorXd all_singular_values(const M& m) {
  constexpr Index kLargest = 1024;
  const Index n_rows = m.n_rows(), n_cols = m.n_cols(), n = n_rows + n_cols;
  if (n > kLargest)
    detail::fail("all_singular_values: a dense ", n_rows, " x ", n_cols, " matrix is above the limit of ",
                 kLargest, " rows and columns; singular_values() finds the largest ones");
  const Eigen::MatrixXd entries = dense(m);
  if (!entries.allFinite())
    detail::fail("all_singular_values: the ", n_rows, " x ", n_cols, " matrix is not finite");
  Eigen::MatrixXd both = Eigen::MatrixXd::Zero(n, n);
  both.bottomLeftCorner(n_cols, n_rows) = entries.transpose();  // the half that is read
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(both, Eigen::EigenvaluesOnly);
  return solver.eigenvalues().reverse().head(std::min(n_rows, n_cols)).cwiseMax(0);
}

}  // namespace fastrope::inline FASTROPE_TARGET
