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
  Problem problem(shapes_of(tensor(q), tensor(k), tensor(k)), options);
  if (problem.softcap > 0) fail("softcap ", problem.softcap, ": capped logits are not linear in q and k");
  if (!problem.sinks.empty()) fail("a sink, ", problem.sinks[0], ", is no entry of the matrix");
  if (problem.is_dense()) fail("a dense bias or mask does not depend on the lag alone");
  if (problem.gates.given()) fail("gates do not depend on the lag alone");
  if (problem.grid.has_ranges()) fail("key_ranges do not depend on the lag alone");
  return problem;
}

/// Rows of one head as dot products take them, rotated, queries times the scale; and where they stand. Key j
/// is row j of k, whatever its position.
struct RotatedHead {
  std::vector<Position> query_positions, key_positions;
  RowMatrix queries;  ///< [n_q, d]
  RowMatrix keys;     ///< [n_k, d]

  RotatedHead(const Problem& problem, MatrixView<const double> q, MatrixView<const double> k) {
    const LagGrid& grid = problem.grid;
    for (Index i = 0; i < q.rows; ++i) query_positions.push_back(grid.query_position(i));
    key_positions.resize(static_cast<std::size_t>(k.rows));
    for (Index j = 0; j < k.rows; ++j)
      key_positions[static_cast<std::size_t>(grid.source(j))] = grid.key_position(j);
    queries = problem.scale *
              rotated(problem.rotation, q, [&](Index i, Index s) { return problem.query_turn(i, s); });
    keys = rotated(problem.rotation, k, [&](Index j, Index s) {
      return problem.key_sections.empty() ? key_positions[static_cast<std::size_t>(j)]
                                          : problem.key_sections(s, j);
    });
  }

 private:
  template <class PositionOf>
  static RowMatrix rotated(const Rotation& rotation, MatrixView<const double> x, PositionOf&& position_of) {
    RowMatrix rows = Eigen::Map<const RowMatrix, 0, Eigen::OuterStride<>>(x.data, x.rows, x.cols,
                                                                          Eigen::OuterStride<>(x.row_stride));
    std::vector<double> table(static_cast<std::size_t>(rotation.row_size()));
    for (Index i = 0; rotation.pairs() > 0 && i < x.rows; ++i) {
      rotation.fill({i, i + 1}, position_of, table.data());
      rotation.apply(table.data(), rows.row(i).data());
    }
    return rows;
  }
};

/// Throws Error unless rows and columns of the matrix are in the order of consecutive positions, as what is a
/// function of row - column needs them.
inline void require_row_order(const char* name, const LagGrid& grid) {
  if (!grid.consecutive() || !grid.in_order())
    fail(name, ": positions must be consecutive, and keys in their order");
}

/// Throws Error where what turns is no function of one lag.
inline void require_one_lag(const char* name, const Problem& problem) {
  if (!problem.turns_by_lag())
    fail(name, ": ", problem.sections, " sections turn by positions of their own, so logits depend on more ",
         "than one lag");
}

}  // namespace detail

/// The logits of one head.  q: [n_q, d], k: [n_k, d]; of the options rope, weights, mask, bias (of one head),
/// scale and positions count. Throws Error, naming the values, for softcap, sinks and dense options, and for
/// positions that are not consecutive and in order beside a mask, bias or weights. Cost: O(n d) time and 16 n
/// d bytes; for a bias, and for each entry of the support of weights, four transforms and about 100 n bytes.
inline HadamardSum logit_matrix(MatrixView<const double> q, MatrixView<const double> k,
                                const Options& options) {
  const Problem problem = detail::one_head(q, k, options);
  const LagGrid& grid = problem.grid;
  const Index n_q = q.rows, n_k = k.rows;
  const bool masked = grid.allowed_pairs() < static_cast<double>(n_q) * static_cast<double>(n_k);
  if (masked || !problem.bias.empty() || problem.weights)
    detail::require_row_order("logit_matrix with a mask, a bias or weights", grid);

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
    detail::RotatedHead head(problem, q, k);
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
  if (options.rope_already_applied)
    detail::fail("frequency_matrix: rows that arrive rotated have no pairs that are not");
  if (m < 0 || m >= f.pairs())
    detail::fail("frequency_matrix: rope turns ", f.pairs(), " pairs, there is no pair ", m);
  detail::require_row_order("frequency_matrix", problem.grid);
  detail::require_one_lag("frequency_matrix", problem);
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
