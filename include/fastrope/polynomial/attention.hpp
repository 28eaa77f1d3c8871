// The polynomial path: attention of bounded entries in linear time.
//
// With P(x) close to exp(x) and the features of monomials.hpp, a row's sums over a set of keys are
//     sum_j w_j P(x_ij) [v_j, 1] = sum_alpha c_|alpha| phi_alpha(q_i) S_alpha,  S_alpha = sum_j w_j
//     phi_alpha(k_j) [v_j, 1],
// so the keys enter only through the state S [r, d_v + 1]. Blocks of rows stream through it: never n x r in
// memory. Where the mask ends a row's keys (causal), the state holds the keys before the row's block and the
// rest, the near field, is exact: the far sums are a softmax state that the exact path continues. Cost 2 (n_q
// + n_k) r (d_v + 3) flops and the near field's; workspace O(r (d_v + 64)) per worker.
//
// Guarantee: |P(x) e^-x - 1| <= delta < 1 on [-R, R] gives |out - exact| <= delta / (1 - delta) max|V|
// (papers.md; the near field's error is 0), plus rounding.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/polynomial/exp_polynomial.hpp"
#include "fastrope/polynomial/features.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/polynomial/shift.hpp"

namespace fastrope {

/// What the approximate paths need to know of one head: found by the planner.
struct LowRankHead {
  Index head;
  Shift shift;
  ExpPolynomial polynomial;
  std::shared_ptr<const MonomialSet> monomials;
};

/// Why the polynomial path cannot compute this problem at any tolerance; empty when it can.
inline std::string polynomial_refusal(const Problem& problem) {
  if (problem.weights) return "relative weights do not separate into query and key factors";
  if (!problem.bias.empty()) return "a lag bias does not separate into query and key factors";
  if (problem.softcap > 0) return "softcap is not a polynomial of the dot product";
  if (!problem.sinks.empty()) return "attention sinks are done by the exact path";
  if (problem.is_dense()) return "a dense bias or mask is done by the exact path";
  if (!problem.grid.ascending_queries()) return "query positions do not ascend";
  for (Index i = 0; i < problem.shapes.n_q; ++i)
    if (const Range keys = problem.grid.keys_of(i); !keys.empty() && keys.begin > 0)
      return "the mask drops early keys (a window), which a running state cannot forget";
  return {};
}

/// Attention by features for some heads over packed keys.
template <class Real>
class PolynomialAttention {
 public:
  PolynomialAttention(const Problem& problem, const PackedKeys<Real>& packed,
                      std::span<const LowRankHead> heads, Workspace& workspace)
      : heads_(heads) {
    if (heads.empty()) return;
    for (const LowRankHead& head : heads) rank_ = std::max(rank_, head.monomials->rank());
    scratch_ = WorkerScratch(problem.executor.workers(), workspace, [&](Workspace& share) {
      Buffers(problem.shapes.d, rank_, packed.value_stride(), share);
    });
  }

  /// out: [heads, n_q, d_v]. Writes the planned heads.
  template <class Q, class Out>
  void run(const Problem& problem, const PackedKeys<Real>& packed, const ExactAttention<Real>& exact,
           TensorView<const Q> q, TensorView<Out> out) const {
    problem.executor.parallel_for(static_cast<Index>(heads_.size()), [&](Index task, Index worker) {
      const LowRankHead& head = heads_[static_cast<std::size_t>(task)];
      Workspace share = scratch_.of(worker);
      Buffers buffers(problem.shapes.d, rank_, packed.value_stride(), share);
      QueryBlock<Real> block = exact.block(problem, packed, worker);
      run_head(problem, packed, exact, head, q.head(head.head), out.head(head.head), buffers, block);
    });
  }

 private:
  static constexpr Index kRows = QueryBlock<Real>::kTileRows;
  static constexpr Index kWidth = PackedKeys<Real>::kWidth;
  static constexpr Index kBlock = std::max(kRows, kWidth);  // rows whose features are held at once

  /// One worker's scratch.
  struct Buffers {
    Index width;     // of the state's rows, d_v padded
    Real* x;         // [d, kBlock], shifted rows
    Real* weight;    // [kBlock], of keys; ones for queries
    Real* features;  // [rank padded, kBlock]
    Real* state;     // [rank padded, width]: S without its last column
    Real* sums;      // [rank]: the last column
    Real* factor;    // [kRows], log2 of the rows' common factors
    Real* dot;       // [kRows], denominators

    Buffers(Index d, Index rank, Index value_stride, Workspace& workspace)
        : width(value_stride),
          x(workspace.take<Real>(d * kBlock).data()),
          weight(workspace.take<Real>(kBlock).data()),
          features(workspace.take<Real>(round_up(rank, kRowMultiple) * kBlock).data()),
          state(workspace.take<Real>(round_up(rank, kRowMultiple) * width).data()),
          sums(workspace.take<Real>(rank).data()),
          factor(workspace.take<Real>(kRows).data()),
          dot(workspace.take<Real>(kRows).data()) {}
  };

  template <class Q, class Out>
  static void run_head(const Problem& problem, const PackedKeys<Real>& packed,
                       const ExactAttention<Real>& exact, const LowRankHead& head, MatrixView<const Q> q,
                       MatrixView<Out> out, const Buffers& buffers, QueryBlock<Real>& block) {
    const LagGrid& grid = problem.grid;
    const Index rank = head.monomials->rank();
    std::fill_n(buffers.state, round_up(rank, kRowMultiple) * buffers.width, Real{0});
    std::fill_n(buffers.sums, rank, Real{0});
    Index panels = 0;  // in the state
    for (Index i = 0; i < grid.n_q(); i += kRows) {
      const Range rows{i, std::min(i + kRows, grid.n_q())};
      // Every row of the block may attend to the keys of the first one: whole panels of those are far.
      const Index reach = grid.keys_of(rows.begin).end;
      const Index far = reach == grid.n_k() ? reach : round_down(std::max<Index>(reach, 0), kWidth);
      for (; panels < ceil_div(far, kWidth); ++panels) add_panel(problem, packed, head, panels, buffers);
      block.start(problem, packed, head.head, q, rows);
      if (far > 0) far_field(problem, head, block, buffers);
      block.attend(problem, packed, exact.scores(), {far, grid.n_k()});
      block.write(problem, out, static_cast<Real*>(nullptr));
    }
  }

  /// S += features of the panel's keys times [values, 1].
  static void add_panel(const Problem& problem, const PackedKeys<Real>& packed, const LowRankHead& head,
                        Index p, const Buffers& b) {
    const Index kv = problem.kv_head(head.head), rank = head.monomials->rank();
    const Index count = std::min(kWidth, problem.shapes.n_k - p * kWidth);
    shift_keys(head.shift, problem.scale, packed.panel(kv, p), kWidth, count, b.x, b.weight);
    evaluate_features(*head.monomials, b.x, b.weight, kWidth, b.features);
    std::fill(b.features + rank * kWidth, b.features + round_up(rank, kRowMultiple) * kWidth, Real{0});
    add_feature_sums(rank, kWidth, b.features, b.sums);
    multiply<true, Real>(round_up(rank, kRowMultiple), b.width, kWidth,
                         BroadcastOperand<Real>{b.features, kWidth, 1},
                         packed.values(kv) + p * kWidth * b.width, b.width, b.state, b.width);
  }

  /// The rows' sums over the keys in the state become their softmax states.
  static void far_field(const Problem& problem, const LowRankHead& head, QueryBlock<Real>& block,
                        const Buffers& b) {
    const SoftmaxRows<Real>& state = block.state();
    shift_queries(head.shift, problem.scale, block.queries(), kRows, b.x, b.factor);
    std::fill_n(b.weight, kRows, Real{1});
    evaluate_features(*head.monomials, b.x, b.weight, kRows, b.features);
    apply_coefficients(*head.monomials, head.polynomial.coefficients(), b.sums, kRows, b.features, b.dot);
    multiply<false, Real>(kRows, b.width, head.monomials->rank(),
                          BroadcastOperand<Real>{b.features, 1, kRows}, b.state, b.width, state.output,
                          b.width);
    std::copy_n(b.factor, kRows, state.maximum);
    for (Index i = 0; i < kRows; ++i) state.add_to_sum(i, b.dot[i]);
  }

  std::span<const LowRankHead> heads_;
  WorkerScratch scratch_;
  Index rank_ = 0;
};

}  // namespace fastrope
