// WeightsCall: what a call's scores are made into when weights are asked for, with the caller's memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/exact_call.hpp"
#include "fastrope/exact/exp2.hpp"
#include "fastrope/exact/polynomial_weights.hpp"
#include "fastrope/exact/row_weights.hpp"
#include "fastrope/exact/score_blocks.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Blocks: ScoreBlocks, or one of its ways when workspace is counted.
template <class Real, class Blocks = ScoreBlocks<Real>>
class WeightsCall {
 public:
  WeightsCall(const Problem& problem, Workspace& workspace)
      : workers_(problem.executor.workers(), worker_bytes(problem), workspace),
        blocks_(problem, workers_, workspace) {}

  /// fastrope::key_mass of checked tensors.
  void sum_masses(const Problem& problem, const ScoredTensors<Real>& x, const MatrixView<const Real>& lse,
                  const MatrixView<double>& mass) {
    const WantedHeads all(problem);
    if (has_rows(problem)) blocks_.prepare(problem, x, all);
    problem.executor.parallel_for(blocks_.tasks(problem), [&](Index task, Index worker) {
      Workspace share = workers_.of(worker);
      add_masses(problem, x, all, lse, mass, task, share);
    });
  }

  /// fastrope::attention_weights of checked tensors.
  void write_weights(const Problem& problem, const ScoredTensors<Real>& x, std::span<const Index> heads,
                     const TensorView<Real>& weights) {
    const Index rows = std::ssize(heads) * problem.shapes.n_q;
    if (rows == 0) return;
    const WantedHeads wanted(problem, heads);
    blocks_.prepare(problem, x, wanted);
    problem.executor.parallel_for(blocks_.tasks(problem), [&](Index task, Index worker) {
      Workspace share = workers_.of(worker);
      write_scores(problem, x, wanted, heads, weights, task, share);
    });
    problem.executor.parallel_for(rows, [&](Index row, Index) {
      normalise(problem, heads, weights, row / problem.shapes.n_q, row % problem.shapes.n_q);
    });
  }

 private:
  static bool has_rows(const Problem& problem) { return problem.shapes.heads > 0 && problem.shapes.n_q > 0; }

  /// A worker's sums over the keys of a split: [group or 1, kStretch].
  static double* take_sums(const Problem& problem, Workspace& share) {
    return share.take<double>(std::max<Index>(problem.group(), 1) * kStretch).data();
  }
  static std::size_t worker_bytes(const Problem& problem) {
    Workspace counting;
    return Blocks(problem, WorkerScratch{}, counting).worker_bytes(problem) +
           Workspace::bytes_of([&](Workspace& share) { take_sums(problem, share); });
  }

  /// The masses of a task's keys: sums over all rows of a head, in double, in ascending order.
  void add_masses(const Problem& problem, const ScoredTensors<Real>& x, const WantedHeads& all,
                  const MatrixView<const Real>& lse, const MatrixView<double>& mass, Index task,
                  Workspace& share) {
    const Range keys = blocks_.keys(problem, task);
    const Index kv = blocks_.kv_head(problem, task);
    const Index lines = mass.rows / problem.shapes.kv_heads, group = problem.group();
    double* const sums = take_sums(problem, share);
    std::fill_n(sums, lines * kStretch, 0.0);
    if (has_rows(problem))
      blocks_.for_each_block(problem, x, all, task, share, [&](const ScoreBlock<Real>& block) {
        weigh(problem, lse, block);
        const Index line = lines == group ? block.head - kv * group : 0;
        detail::add_columns(block.rows.size(), block.keys.size(), block.scores, block.stride,
                            sums + line * kStretch + (block.keys.begin - keys.begin));
      });
    for (Index line = 0; line < lines; ++line)
      for (Index j = keys.begin; j < keys.end; ++j)
        mass(kv * lines + line, problem.grid.source(j)) = sums[line * kStretch + (j - keys.begin)];
  }

  /// The scores of a block become weights.
  static void weigh(const Problem& problem, const MatrixView<const Real>& lse,
                    const ScoreBlock<Real>& block) {
    const PolynomialWeights<Real> polynomial(problem.kernel.coefficients());
    const Index cols = block.keys.size();
    for (Index r = 0; r < block.rows.size(); ++r) {
      const double of_row = static_cast<double>(lse(block.head, block.rows.begin + r));
      if (!problem.kernel.is_softmax()) {
        polynomial.of(block.row(r), cols);
        detail::scale_weights(detail::finite_as<Real>(detail::inverse_of_sum<Real>(of_row)), block.row(r),
                              cols);
      } else if (of_row == -std::numeric_limits<double>::infinity()) {
        std::fill_n(block.row(r), cols, Real{0});
      } else {
        const double shift = (block.references[r].total() - of_row) * kLog2E;
        detail::exp2_weights(detail::finite_as<Real>(shift), block.row(r), cols);
      }
    }
  }

  /// The scores of a task's keys where their weights are to be.
  void write_scores(const Problem& problem, const ScoredTensors<Real>& x, const WantedHeads& wanted,
                    std::span<const Index> heads, const TensorView<Real>& weights, Index task,
                    Workspace& share) {
    const Range keys = blocks_.keys(problem, task);
    const LagGrid& grid = problem.grid;
    // f(row) for row i of weights of each place where head h is chosen.
    const auto for_each_row = [&](Index h, Index i, auto&& f) {
      for (std::size_t m = 0; m < heads.size(); ++m)
        if (heads[m] == h) f(weights.head(static_cast<Index>(m)).row(i));
    };
    const Index first = blocks_.kv_head(problem, task) * problem.group();
    for (Index h = first; h < first + problem.group(); ++h)
      for (Index i = 0; i < problem.shapes.n_q && wanted.has(h); ++i) {
        if (!problem.is_dense() && !problem.gates.given() && grid.keys_of(h, i).solid(keys) == keys)
          continue;  // all are visited
        for_each_row(h, i, [&](Real* row) {
          for (Index j = keys.begin; j < keys.end; ++j)
            row[grid.source(j)] = -std::numeric_limits<Real>::infinity();
        });
      }
    blocks_.for_each_block(problem, x, wanted, task, share, [&](const ScoreBlock<Real>& block) {
      const Range seen = intersect(block.keys, keys);
      for (Index r = 0; r < block.rows.size(); ++r)
        for_each_row(block.head, block.rows.begin + r, [&](Real* row) {
          const Real* from = block.row(r);
          if (grid.in_order())
            std::copy_n(from, seen.size(), row + seen.begin);
          else
            for (Index j = seen.begin; j < seen.end; ++j) row[grid.source(j)] = from[j - seen.begin];
        });
    });
  }

  /// The scores of a row become weights.
  void normalise(const Problem& problem, std::span<const Index> heads, const TensorView<Real>& weights,
                 Index m, Index i) {
    Real* const row = weights.head(m).row(i);
    const auto h = static_cast<std::size_t>(heads[static_cast<std::size_t>(m)]);
    if (!problem.kernel.is_softmax())
      return detail::normalise_polynomial(PolynomialWeights<Real>(problem.kernel.coefficients()), row,
                                          weights.cols);
    double sink = -std::numeric_limits<double>::infinity();
    if (!problem.sinks.empty())
      sink = (problem.sinks[h] - blocks_.reference(problem, static_cast<Index>(h), i)) * kLog2E;
    detail::normalise_exp2(sink, row, weights.cols);
  }

  WorkerScratch workers_;
  Blocks blocks_;
};

/// Workspace for a call of weights or masses.
template <class Real, class Blocks = ScoreBlocks<Real>>
std::size_t weights_workspace_bytes(const Problem& problem) {
  return Workspace::bytes_of([&](Workspace& w) { WeightsCall<Real, Blocks>(problem, w); });
}

/// The same for any numbers of queries and keys up to the problem's. Requires problem.takes_any_sizes().
template <class Real>
std::size_t weights_capacity_bytes(const Problem& problem) {
  std::size_t most = 0;
  for_largest_calls<Real, TiledScores<Real>, DecodeScores<Real>>(
      problem, [&](auto way, const Problem& sized) {
        most = std::max(most, weights_workspace_bytes<Real, typename decltype(way)::type>(sized));
      });
  return most;
}

}  // namespace fastrope::inline FASTROPE_TARGET
