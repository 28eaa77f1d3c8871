// The gradients of log gates and log input gates, from those of the logs of pairs' weights.
//
// A pair's log weight has G_i - G_j + b_j added to it. With c_ij its gradient,
//     dL/db_j = sum_i c_ij,   dL/dg_t = sum of c_ij over the pairs whose key stands before token t and whose
//     query does not,
// found by suffix sums of what each query adds to its G and each key takes from its own. Both are sums of the
// same numbers in double, so that pairs that t does not stand between leave nothing but the rounding of
// those. A reset, g_t = -infinity, begins the sums again; no pair is on both sides of one, and its own
// gradient is 0, the limit of e^g_t times what a pair would gain.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/packing.hpp"
#include "fastrope/exact/query_rows.hpp"
#include "fastrope/exact/row_weights.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Heads are apart, and so are rows and keys of a head, so that each may be another task's. Workspace: 8
/// bytes for each query and key of each query head.
template <class Real>
class GateGradients {
 public:
  GateGradients(const Problem& problem, bool wanted, Workspace& workspace)
      : n_q_(problem.shapes.n_q),
        key_stride_(round_up(problem.shapes.n_k, PackedKeys<Real>::kWidth)),
        rows_(workspace.take<double>(wanted ? problem.shapes.heads * n_q_ : 0)),
        keys_(workspace.take<double>(wanted ? problem.shapes.heads * key_stride_ : 0)),
        sums_(workspace.take<double>(wanted ? problem.shapes.n_k + 1 : 0)) {}

  bool wanted() const { return !sums_.empty(); }
  void clear() const {
    std::fill(rows_.begin(), rows_.end(), 0.0);
    std::fill(keys_.begin(), keys_.end(), 0.0);
  }

  /// Adds c [rows.size(), panels.size()], row stride `stride`, of queries of head h, 0 at keys that they may
  /// not attend to.
  void add(Index h, Range rows, Range panels, const Real* c, Index stride) const {
    for (Index r = 0; r < rows.size(); ++r)
      rows_[static_cast<std::size_t>(h * n_q_ + rows.begin + r)] +=
          detail::sum_of(c + r * stride, panels.size());
    detail::add_columns(rows.size(), panels.size(), c, stride, keys_.data() + h * key_stride_ + panels.begin);
  }

  /// to [gates.rows, n_k] = the gradients of log gates, of the heads that share a row together.
  void write_gates(const Problem& problem, const MatrixView<const float>& gates, std::span<double> to) const {
    const Index n_k = problem.shapes.n_k;
    for (Index row = 0; row < gates.rows; ++row) {
      std::fill(sums_.begin(), sums_.end(), 0.0);  // of G after the first n keys
      for_each_head(problem, gates, row, [&](Index h) {
        for (Index i = 0; i < n_q_; ++i)
          sums_[static_cast<std::size_t>(problem.grid.keys_until(i))] +=
              rows_[static_cast<std::size_t>(h * n_q_ + i)];
        for (Index j = 0; j < n_k; ++j) sums_[static_cast<std::size_t>(j + 1)] -= key(h, j);
      });
      double sum = 0;
      for (Index j = n_k - 1; j >= 0; --j) {
        sum += sums_[static_cast<std::size_t>(j + 1)];
        const Index source = problem.grid.source(j);
        if (std::isinf(gates(row, source))) sum = 0;
        to[static_cast<std::size_t>(row * n_k + source)] = sum;
      }
    }
  }
  /// The same of log input gates.
  void write_input_gates(const Problem& problem, const MatrixView<const float>& gates,
                         std::span<double> to) const {
    const Index n_k = problem.shapes.n_k;
    for (Index row = 0; row < gates.rows; ++row)
      for (Index j = 0; j < n_k; ++j) {
        double& sum = to[static_cast<std::size_t>(row * n_k + problem.grid.source(j))];
        sum = 0;
        for_each_head(problem, gates, row, [&](Index h) { sum += key(h, j); });
      }
  }

 private:
  double key(Index h, Index j) const { return keys_[static_cast<std::size_t>(h * key_stride_ + j)]; }

  /// visit(h) for the query heads of a row of gates.
  template <class Visit>
  static void for_each_head(const Problem& problem, const MatrixView<const float>& gates, Index row,
                            Visit&& visit) {
    const Index group = problem.shapes.heads / gates.rows;
    for (Index h = row * group; h < (row + 1) * group; ++h) visit(h);
  }

  Index n_q_;
  Index key_stride_;
  std::span<double> rows_;  // [heads, n_q], sum_j c_ij
  std::span<double> keys_;  // [heads, key_stride], sum_i c_ij
  std::span<double> sums_;  // [n_k + 1], scratch
};

}  // namespace fastrope::inline FASTROPE_TARGET
