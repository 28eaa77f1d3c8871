// HadamardSum: a sum of Hadamard products of Toeplitz and low-rank matrices, which is never formed.
//
//     M = sum_t T_t o (U_t V_t'),   M_ij = sum_t T_t(i - j) u_ti . v_tj
//
// Logits are such sums, whatever the positional scheme (logit_matrix.hpp): content has no T, a bias of the
// lag has U = V = ones, a mask is a T of zeros and ones, and a rotary frequency is a cosine and a sine.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <concepts>
#include <optional>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/eigen.hpp"
#include "fastrope/toeplitz/toeplitz.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Rows one after the other, as MatrixView has them.
using RowMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// T o (U V').
struct HadamardTerm {
  RowMatrix u;                         ///< [n_rows, r]
  RowMatrix v;                         ///< [n_cols, r]
  std::vector<double> generator = {};  ///< of T, as ToeplitzOperator takes it; empty: T is all ones
};

/// The sum of some terms, n_rows x n_cols.
class HadamardSum {
 public:
  /// Throws Error, naming the sizes, where a term has others.
  HadamardSum(Index n_rows, Index n_cols, std::vector<HadamardTerm> terms)
      : n_rows_(n_rows), n_cols_(n_cols) {
    if (n_rows < 1 || n_cols < 1) detail::fail("a HadamardSum cannot be ", n_rows, " x ", n_cols);
    terms_.reserve(terms.size());
    for (HadamardTerm& term : terms) {
      if (term.u.rows() != n_rows || term.v.rows() != n_cols || term.u.cols() != term.v.cols())
        detail::fail("a term of a ", n_rows, " x ", n_cols, " HadamardSum has U [", term.u.rows(), ", ",
                     term.u.cols(), "] and V [", term.v.rows(), ", ", term.v.cols(), "]");
      if (!term.generator.empty() && std::ssize(term.generator) != n_rows + n_cols - 1)
        detail::fail("a term of a ", n_rows, " x ", n_cols, " HadamardSum has a generator of ",
                     term.generator.size(), " values");
      terms_.emplace_back(std::move(term));
    }
  }

  Index n_rows() const { return n_rows_; }
  Index n_cols() const { return n_cols_; }

  /// M x.  x: [n_cols]. Cost: O(n r) a term without T or with one of ones within a band of lags, as masks
  /// are; 2 r transforms a term with another T.
  Eigen::VectorXd apply(const Eigen::VectorXd& x) const {
    require_size(x, n_cols_);
    Eigen::VectorXd y = Eigen::VectorXd::Zero(n_rows_);
    for (const Kept& t : terms_) t.factor.add(t.term.u, t.term.v, x, y);
    return y;
  }

  /// M' x.  x: [n_rows]. Cost: as apply().
  Eigen::VectorXd apply_transpose(const Eigen::VectorXd& x) const {
    require_size(x, n_rows_);
    Eigen::VectorXd y = Eigen::VectorXd::Zero(n_cols_);
    for (const Kept& t : terms_) t.transposed.add(t.term.v, t.term.u, x, y);
    return y;
  }

  /// Some rows of M, [rows.size(), n_cols]. Cost: 2 r flops an entry and term.
  RowMatrix rows(Range rows) const {
    RowMatrix block = RowMatrix::Zero(rows.size(), n_cols_);
    for (const auto& [term, factor, transposed] : terms_) {
      RowMatrix part = term.u.middleRows(rows.begin, rows.size()) * term.v.transpose();
      for (Index i = 0; !term.generator.empty() && i < rows.size(); ++i)
        part.row(i).array() *=
            Eigen::Map<const Eigen::RowVectorXd>(term.generator.data() + rows.begin + i, n_cols_)
                .reverse()
                .array();
      block += part;
    }
    return block;
  }

 private:
  void require_size(const Eigen::VectorXd& x, Index size) const {
    if (x.size() != size)
      detail::fail("a ", n_rows_, " x ", n_cols_, " matrix is multiplied by ", size, " values, not ",
                   x.size());
  }

  /// T of a term, ready to be multiplied.
  class Factor {
   public:
    /// generator: as in HadamardTerm.
    Factor(Index n_rows, Index n_cols, const std::vector<double>& generator) {
      const auto is_one = [](double t) { return t == 1; };
      const auto first = std::find_if(generator.begin(), generator.end(), is_one),
                 end = std::find_if_not(first, generator.end(), is_one);
      const auto ones = end - first;
      if (std::count(generator.begin(), generator.end(), 0.0) == std::ssize(generator) - ones) {
        // All of it where there is no generator.
        const Index corner = n_cols - 1;
        lags_ = generator.empty()
                    ? LagSupport::all(n_rows, n_cols)
                    : LagSupport{first - generator.begin() - corner, end - generator.begin() - 1 - corner};
      } else {
        toeplitz_.emplace(n_rows, n_cols, generator);
      }
    }

    /// y += (T o U V') x.
    void add(const RowMatrix& u, const RowMatrix& v, const Eigen::VectorXd& x, Eigen::VectorXd& y) const {
      if (!toeplitz_) return add_window(u, v, x, y);
      Eigen::VectorXd part(y.size());
      toeplitz_->apply_hadamard(u, v, MatrixView<const double>(x.data(), x.size(), 1),
                                MatrixView<double>(part.data(), part.size(), 1));
      y += part;
    }

   private:
    /// y_i += u_i . (the sum of x_j v_j over lags_.first <= i - j <= lags_.last).
    void add_window(const RowMatrix& u, const RowMatrix& v, const Eigen::VectorXd& x,
                    Eigen::VectorXd& y) const {
      Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(v.cols());
      Index begin = 0, end = 0;  // columns in the sum
      for (Index i = 0; i < u.rows(); ++i) {
        for (const Index to = std::min(v.rows(), i - lags_.first + 1); end < to; ++end)
          sum += x(end) * v.row(end);
        for (const Index to = std::min(end, i - lags_.last); begin < to; ++begin)
          sum -= x(begin) * v.row(begin);
        y(i) += u.row(i).dot(sum);
      }
    }

    LagSupport lags_ = {};  // of ones, where toeplitz_ is empty
    std::optional<ToeplitzOperator<double>> toeplitz_ = {};
  };

  struct Kept {
    HadamardTerm term;
    Factor factor, transposed;

    explicit Kept(HadamardTerm t)
        : term(std::move(t)),
          factor(term.u.rows(), term.v.rows(), term.generator),
          transposed(term.v.rows(), term.u.rows(), {term.generator.rbegin(), term.generator.rend()}) {}
  };

  Index n_rows_, n_cols_;
  std::vector<Kept> terms_ = {};
};

/// A matrix that is known by its products.
template <class M>
concept LinearMap = requires(const M& m, const Eigen::VectorXd& x) {
  { m.n_rows() } -> std::convertible_to<Index>;
  { m.n_cols() } -> std::convertible_to<Index>;
  { m.apply(x) } -> std::convertible_to<Eigen::VectorXd>;
  { m.apply_transpose(x) } -> std::convertible_to<Eigen::VectorXd>;
};

/// The whole of a matrix that has rows(). Requires memory for it.
template <class M>
Eigen::MatrixXd dense(const M& m) {
  return m.rows({0, m.n_rows()});
}

/// |M|_F, from blocks of rows. Cost: that of all of M's entries.
template <class M>
double frobenius_norm(const M& m) {
  constexpr Index kBlock = 64;
  double square = 0;
  for (Index begin = 0; begin < m.n_rows(); begin += kBlock)
    square += m.rows({begin, std::min(begin + kBlock, m.n_rows())}).squaredNorm();
  return std::sqrt(square);
}

}  // namespace fastrope::inline FASTROPE_TARGET
