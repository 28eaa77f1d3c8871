// WeightMatrix: the softmax weights of one head as a matrix that is never formed.
//
//     P_ij = exp(x_ij - lse_i),   lse_i = log sum_j exp(x_ij),   x as in logit_matrix.hpp
//
// P X is attention with values X. P' Y is attention too, keys asking queries: with a last column that carries
// -lse, each entry's logit is the log of its weight, and what the softmax of keys divides by is multiplied
// back.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/exact/attend_partial.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/spectral/hadamard_sum.hpp"
#include "fastrope/spectral/logit_matrix.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The weights of one head, n_rows queries times n_cols keys; a row without allowed keys is zero.
class WeightMatrix {
 public:
  /// q: [n_q, d], k: [n_k, d]; of the options rope, mask, bias (of one head), scale, positions and executor
  /// count. Throws Error, naming the values, for softcap, sinks, dense options, weights and other kernels.
  /// Cost: 2 n_q n_k (d + 2) flops.
  WeightMatrix(MatrixView<const double> q, MatrixView<const double> k, const Options& options)
      : problem_(detail::one_head(q, k, options)) {
    if (problem_.weights)
      detail::fail("WeightMatrix: general weights W(lag) do not factor into rows of q and k");
    if (!problem_.kernel.is_softmax())
      detail::fail("WeightMatrix: the kernel is a polynomial of degree ", problem_.kernel.degree());
    detail::RotatedHead head(problem_, q, k);
    queries_.setZero(q.rows, q.cols + 1);
    queries_.leftCols(q.cols) = head.queries;
    keys_.setOnes(k.rows, k.cols + 1);
    keys_.leftCols(k.cols) = head.keys;
    query_positions_ = std::move(head.query_positions);
    key_positions_ = std::move(head.key_positions);
    // Whatever the values, their weights' sums.
    const Eigen::VectorXd lse = attend(queries_, keys_, forward(), Eigen::VectorXd::Zero(k.rows)).lse;
    for (Index i = 0; i < q.rows; ++i) queries_(i, q.cols) = std::isfinite(lse(i)) ? -lse(i) : 0;
  }

  Index n_rows() const { return queries_.rows(); }
  Index n_cols() const { return keys_.rows(); }

  /// P x.  x: [n_cols]. Cost: exact attention with d_v = 1.
  Eigen::VectorXd apply(const Eigen::VectorXd& x) const { return attend(queries_, keys_, forward(), x).out; }

  /// P' x.  x: [n_rows]. Cost: as apply().
  Eigen::VectorXd apply_transpose(const Eigen::VectorXd& x) const {
    const Attended columns = attend(keys_, queries_, backward(), x);
    return columns.out.array() * columns.lse.array().exp();
  }

  /// Some rows of P, [rows.size(), n_cols].
  RowMatrix rows(Range rows) const {
    RowMatrix block = queries_.middleRows(rows.begin, rows.size()) * keys_.transpose();
    for (Index i = rows.begin; i < rows.end; ++i)
      for (Index j = 0; j < n_cols(); ++j) {
        const Position lag =
            query_positions_[static_cast<std::size_t>(i)] - key_positions_[static_cast<std::size_t>(j)];
        double& weight = block(i - rows.begin, j);
        if (!problem_.grid.mask().allows(lag))
          weight = 0;
        else
          weight = std::exp(weight + (problem_.bias.empty() ? 0 : problem_.bias(0, lag)));
      }
    return block;
  }

 private:
  struct Attended {
    Eigen::VectorXd out, lse;  ///< [n]
  };

  static Attended attend(const RowMatrix& q, const RowMatrix& k, const Options& options,
                         const Eigen::VectorXd& x) {
    Attended result{Eigen::VectorXd(q.rows()), Eigen::VectorXd(q.rows())};
    attend_partial(contiguous(q.data(), 1, q.rows(), q.cols()), contiguous(k.data(), 1, k.rows(), k.cols()),
                   contiguous(x.data(), 1, x.size(), 1), contiguous(result.out.data(), 1, q.rows(), 1),
                   MatrixView<double>(result.lse.data(), 1, q.rows()), options);
    return result;
  }

  Options forward() const {
    const Mask mask = problem_.grid.mask();
    return options(mask, problem_.bias, query_positions_, key_positions_);
  }
  /// Of keys that attend to queries: every lag changes its sign.
  Options backward() const {
    const Mask mask = problem_.grid.mask();
    return options(Mask::lags(-mask.last, -mask.first), problem_.bias.mirrored(), key_positions_,
                   query_positions_);
  }
  Options options(Mask mask, LagBias bias, std::span<const Position> queries,
                  std::span<const Position> keys) const {
    return {.mask = mask,
            .bias = std::move(bias),
            .scale = 1.0,  // queries_ have it
            .query_positions = queries,
            .key_positions = keys,
            .executor = problem_.executor};
  }

  Problem problem_;
  RowMatrix queries_;  // [n_q, d + 1]: rotated, times the scale; -lse
  RowMatrix keys_;     // [n_k, d + 1]: rotated; 1
  std::vector<Position> query_positions_ = {}, key_positions_ = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET
