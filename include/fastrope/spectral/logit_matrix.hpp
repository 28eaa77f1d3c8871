// The logits of one head as a matrix that is never formed, for every positional scheme.
//
//     x_ij = scale q_i^T W(i - j) k_j + b(i - j)  where the mask allows the pair, else 0
//
// Content alone is a Gram matrix of rank d; absolute codes are added to q and k by the caller; ALiBi, T5 and
// tables are options.bias; RoPE, whole or partial, turns the factors; MLA's decoupled rotation is partial
// rotation of rows [rotated part, content]; general W(lag) are a Hadamard product for each entry of the
// support.
#pragma once

#include <Eigen/Core>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/position/rotation.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/spectral/hadamard_sum.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// One head, as the spectral functions take it. Throws Error, naming the values, where shapes and options
/// clash.
inline Problem one_head(MatrixView<const double> q, MatrixView<const double> k, const Options& options) {
  if (q.rows < 1 || k.rows < 1 || q.cols < 1)
    detail::fail("q is [", q.rows, ", ", q.cols, "], k is [", k.rows, ", ", k.cols,
                 "]: neither rows nor columns may be missing");
  const auto tensor = [](MatrixView<const double> x) {
    return TensorView<const double>(x.data, 1, x.rows, x.cols, 0, x.row_stride);
  };
  const Problem problem(shapes_of(tensor(q), tensor(k), tensor(k)), options);
  if (problem.softcap > 0) fail("softcap ", problem.softcap, ": capped logits are not linear in q and k");
  if (!problem.sinks.empty()) fail("a sink, ", problem.sinks[0], ", is no entry of the matrix");
  if (problem.is_dense()) fail("a dense bias or mask does not depend on the lag alone");
  return problem;
}

/// x_i turned by the angles of position_of(i), times `factor`; [n, d].
template <class PositionOf>
RowMatrix turned_rows(const Rotation& rotation, MatrixView<const double> x, double factor,
                      PositionOf&& position_of) {
  RowMatrix rows(x.rows, x.cols);
  std::vector<double> table(static_cast<std::size_t>(rotation.row_size()));
  for (Index i = 0; i < x.rows; ++i) {
    rows.row(i) = Eigen::Map<const Eigen::RowVectorXd>(x.row(i), x.cols);
    if (rotation.pairs() > 0) {
      rotation.fill({i, i + 1}, position_of, table.data());
      rotation.apply(table.data(), rows.row(i).data());
    }
  }
  return factor * rows;
}

/// Queries, with the scale, and keys as dot products take them. Key j is row j of k, whatever its position.
struct TurnedHead {
  RowMatrix queries;  ///< [n_q, d]
  RowMatrix keys;     ///< [n_k, d]

  TurnedHead(const Problem& problem, MatrixView<const double> q, MatrixView<const double> k)
      : queries(turned_rows(problem.rotation, q, problem.scale,
                            [&](Index i) { return problem.grid.query_position(i); })),
        keys(k.rows, k.cols) {
    const RowMatrix sorted = [&] {
      RowMatrix rows(k.rows, k.cols);
      for (Index j = 0; j < k.rows; ++j)
        rows.row(j) = Eigen::Map<const Eigen::RowVectorXd>(k.row(problem.grid.source(j)), k.cols);
      return turned_rows(problem.rotation, rows, 1, [&](Index j) { return problem.grid.key_position(j); });
    }();
    for (Index j = 0; j < k.rows; ++j) keys.row(problem.grid.source(j)) = sorted.row(j);
  }
};

}  // namespace detail

/// The logits of one head.  q: [n_q, d], k: [n_k, d]; of the options rope, weights, mask, bias (of one head),
/// scale and positions count. Throws Error, naming the values, for softcap, sinks and dense options, and for
/// positions that are not consecutive beside a mask, bias or weights. Cost: O(n d), and two transforms for
/// each term with a Toeplitz factor; memory 16 n d bytes.
inline HadamardSum logit_matrix(MatrixView<const double> q, MatrixView<const double> k,
                                const Options& options) {
  const Problem problem = detail::one_head(q, k, options);
  const LagGrid& grid = problem.grid;
  const Index n_q = q.rows, n_k = k.rows;
  const bool masked = grid.allowed_pairs() < static_cast<double>(n_q) * static_cast<double>(n_k);
  if (!grid.consecutive() && (masked || !problem.bias.empty() || problem.weights))
    detail::fail("logit_matrix: with a mask, a bias or weights positions must be consecutive");

  // T(row - column) = value(lag) where the mask allows the lag.
  const auto generator = [&](auto&& value) {
    std::vector<double> t(static_cast<std::size_t>(n_q + n_k - 1), 0.0);
    for (Index g = 0; g < n_q + n_k - 1; ++g) {
      const Position lag = g - (n_k - 1) + grid.offset();
      if (grid.mask().allows(lag)) t[static_cast<std::size_t>(g)] = value(lag);
    }
    return t;
  };
  std::vector<HadamardTerm> terms;
  if (problem.weights) {
    const auto support = problem.weights->support();
    for (Index s = 0; s < std::ssize(support); ++s) {
      const auto column = [](MatrixView<const double> x, Index c, double factor) {
        RowMatrix values(x.rows, 1);
        for (Index i = 0; i < x.rows; ++i) values(i, 0) = factor * x(i, c);
        return values;
      };
      terms.push_back({column(q, support[static_cast<std::size_t>(s)].a, problem.scale),
                       column(k, support[static_cast<std::size_t>(s)].b, 1),
                       generator([&](Position lag) { return (*problem.weights)(lag, s); })});
    }
  } else {
    detail::TurnedHead head(problem, q, k);
    terms.push_back({std::move(head.queries), std::move(head.keys)});
    if (masked) terms.back().generator = generator([](Position) { return 1.0; });
  }
  if (!problem.bias.empty())
    terms.push_back({RowMatrix::Ones(n_q, 1), RowMatrix::Ones(n_k, 1),
                     generator([&](Position lag) { return problem.bias(0, lag); })});
  return {n_q, n_k, std::move(terms)};
}

/// What rotary pair m adds to the logits, as Hadamard products of Toeplitz matrices with rows that do not
/// turn:
///     cos(theta lag) (q_a k_a + q_b k_b) + sin(theta lag) (q_a k_b - q_b k_a),  a and b the pair's columns,
/// times the scale. q and k as for logit_matrix(). Throws Error, naming the values, unless options.rope turns
/// a pair m, positions are consecutive, and the mask is full.
inline HadamardSum frequency_matrix(MatrixView<const double> q, MatrixView<const double> k,
                                    const Options& options, Index m) {
  const Problem problem = detail::one_head(q, k, options);
  const RopeFrequencies& f = problem.rotation.frequencies();
  if (m < 0 || m >= f.pairs())
    detail::fail("frequency_matrix: rope turns ", f.pairs(), " pairs, there is no pair ", m);
  if (!problem.grid.consecutive()) detail::fail("frequency_matrix: positions must be consecutive");
  const Index n_q = q.rows, n_k = k.rows;
  if (problem.grid.allowed_pairs() < static_cast<double>(n_q) * static_cast<double>(n_k))
    detail::fail("frequency_matrix: the mask leaves out ",
                 static_cast<double>(n_q) * static_cast<double>(n_k) - problem.grid.allowed_pairs(), " of ",
                 n_q, " x ", n_k, " pairs");
  const double gain = problem.scale * f.attention_factor * f.attention_factor;
  HadamardTerm cosine{RowMatrix(n_q, 2), RowMatrix(n_k, 2)}, sine = cosine;
  const Index a = f.first_column(m), b = f.second_column(m);
  for (Index i = 0; i < n_q; ++i) {
    cosine.u.row(i) << gain * q(i, a), gain * q(i, b);
    sine.u.row(i) << gain * q(i, a), -gain * q(i, b);
  }
  for (Index j = 0; j < n_k; ++j) {
    cosine.v.row(j) << k(j, a), k(j, b);
    sine.v.row(j) << k(j, b), k(j, a);
  }
  for (Index g = 0; g < n_q + n_k - 1; ++g) {
    const double angle =
        static_cast<double>(g - (n_k - 1) + problem.grid.offset()) * f.theta[static_cast<std::size_t>(m)];
    cosine.generator.push_back(std::cos(angle));
    sine.generator.push_back(std::sin(angle));
  }
  return {n_q, n_k, {std::move(cosine), std::move(sine)}};
}

}  // namespace fastrope::inline FASTROPE_TARGET
