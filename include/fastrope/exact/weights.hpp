// Weights: what is asked for beside the result. The attention that each key received (cache eviction,
// alignment), and the attention weights of chosen heads. Calls that do not ask pay nothing.
//
//     w_ij = exp(x_ij - lse_i),   mass_j = sum_i w_ij
// Nothing n x n is in memory for the masses: scores are made again, block by block (score_blocks.hpp), and
// the lse that an exact call gave turns them into weights. The weights of a head are n_q n_k numbers anyway
// and are normalised where they lie, so that they need no lse. With a polynomial kernel P, w_ij = P(x_ij) /
// l_i, l_i the row's plain sum, which is what Plan::run gives in the place of lse.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/row_overlap.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/score_blocks.hpp"
#include "fastrope/exact/weights_call.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/problem/run_status.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// The shapes of a call without values. Throws Error, naming the values, where they clash.
template <class Real>
Shapes shapes_of_scored(const ScoredTensors<Real>& x) {
  return shapes_of(x.q, x.k, StoredRows(TensorView<const Real>(nullptr, x.k.heads, x.k.rows, 0, 0, 0)));
}

/// Throws Error, naming the values, unless lse is [heads, n_q] and mass [heads or kv_heads, n_k].
template <class Real>
void require_mass(const Shapes& s, const MatrixView<const Real>& lse, const MatrixView<double>& mass) {
  if (lse.rows != s.heads || lse.cols != s.n_q || (lse.data == nullptr && s.heads * s.n_q != 0))
    fail("lse is [", lse.rows, ", ", lse.cols, lse.data == nullptr ? "] and null" : "]",
         ", the call is [heads = ", s.heads, ", n_q = ", s.n_q, "]");
  if ((mass.rows != s.heads && mass.rows != s.kv_heads) || mass.cols != s.n_k ||
      (mass.data == nullptr && mass.rows * s.n_k != 0))
    fail("mass is [", mass.rows, ", ", mass.cols, mass.data == nullptr ? "] and null" : "]",
         ", the result is [heads = ", s.heads, " or kv_heads = ", s.kv_heads, ", n_k = ", s.n_k, "]");
  require_separate_rows("mass", mass);
}

/// Throws Error, naming the values, unless `heads` are of the call's and weights is [heads.size(), n_q, n_k].
template <class Real>
void require_weights(const Shapes& s, std::span<const Index> heads, const TensorView<Real>& weights) {
  for (std::size_t m = 0; m < heads.size(); ++m)
    if (heads[m] < 0 || heads[m] >= s.heads)
      fail("heads[", m, "] is ", heads[m], ", q has heads 0 to ", s.heads - 1);
  const Index count = std::ssize(heads);
  if (weights.heads != count || weights.rows != s.n_q || weights.cols != s.n_k ||
      (weights.data == nullptr && count * s.n_q * s.n_k != 0))
    fail("weights is [", weights.heads, ", ", weights.rows, ", ", weights.cols,
         weights.data == nullptr ? "] and null" : "]", ", the result is [chosen heads = ", count,
         ", n_q = ", s.n_q, ", n_k = ", s.n_k, "]");
  require_separate_rows("weights", weights);
}

}  // namespace detail

namespace detail {

/// Throws Error for a polynomial kernel with gates or a normaliser, whose weights are more than P(x) / sum.
inline void require_plain_weights(const Problem& problem) {
  if (!problem.kernel.is_softmax() && (problem.gates.given() || !problem.normaliser.is_plain_sum()))
    fail("weights of a polynomial kernel, here of degree ", problem.kernel.degree(),
         ", are those without gates, over their plain sum");
}

}  // namespace detail

/// What calls of given shapes are asked for beside their results, with arithmetic in Real: checked once, run
/// any number of times, by several threads at once if each has its own workspace.
///
/// Where positions are the defaults, without key ranges, dense bias and dense mask, it has capacity as a Plan
/// has: run it with any n_q and n_k up to its own, a step of a cache that grows.
template <class Real = float>
class WeightsPlan {
 public:
  /// Every option of scores is looked at; shapes.d_v, tolerance, path and verify are not. Throws Error,
  /// naming the values, for shapes and options that clash.
  WeightsPlan(const Shapes& shapes, const Options& options) : problem_(without_values(shapes), options) {
    detail::require_plain_weights(problem_);
    workspace_bytes_ =
        has_capacity() ? weights_capacity_bytes<Real>(problem_) : weights_workspace_bytes<Real>(problem_);
  }

  /// Scratch memory that a run needs: the packed keys, or for a few query rows next to nothing.
  std::size_t workspace_bytes() const { return workspace_bytes_; }
  /// Whether it takes fewer queries and keys than its shapes have.
  bool has_capacity() const { return problem_.takes_any_sizes(); }

  /// fastrope::key_mass in the caller's memory. Allocates nothing and throws nothing.
  template <TensorLike Q, RowsLike K>
  RunStatus key_mass(const Q& q, const K& k, MatrixView<const Real> lse, MatrixView<double> mass,
                     std::span<std::byte> workspace) const noexcept {
    return run_mass({as_tensor(q), k}, lse, mass, workspace);
  }
  /// fastrope::attention_weights in the caller's memory. Allocates nothing and throws nothing.
  template <TensorLike Q, RowsLike K>
  RunStatus attention_weights(const Q& q, const K& k, std::span<const Index> heads, TensorView<Real> weights,
                              std::span<std::byte> workspace) const noexcept {
    return run_weights({as_tensor(q), k}, heads, weights, workspace);
  }

 private:
  static Shapes without_values(Shapes s) {
    s.d_v = 0;
    return s;
  }

  RunStatus run_mass(const ScoredTensors<Real>& x, MatrixView<const Real> lse, MatrixView<double> mass,
                     std::span<std::byte> memory) const noexcept {
    return run(
        x, memory, [&](const Shapes& s) { detail::require_mass(s, lse, mass); },
        [&](WeightsCall<Real>& call, const Problem& problem) { call.sum_masses(problem, x, lse, mass); });
  }
  RunStatus run_weights(const ScoredTensors<Real>& x, std::span<const Index> heads, TensorView<Real> weights,
                        std::span<std::byte> memory) const noexcept {
    return run(
        x, memory, [&](const Shapes& s) { detail::require_weights(s, heads, weights); },
        [&](WeightsCall<Real>& call, const Problem& problem) {
          call.write_weights(problem, x, heads, weights);
        });
  }

  /// use(call, problem) with the problem of these tensors. Where they are not the plan's, or require(shapes)
  /// throws, what is to be read or written beside them is not: then it does nothing.
  template <class Require, class Use>
  RunStatus run(const ScoredTensors<Real>& x, std::span<std::byte> memory, Require&& require,
                Use&& use) const noexcept {
    Shapes s = problem_.shapes;
    if (has_capacity()) {
      s.n_q = std::clamp<Index>(x.q.rows, 0, s.n_q);
      s.n_k = std::clamp<Index>(x.k.rows, 0, s.n_k);
    }
    try {
      if (detail::shapes_of_scored(x) != s) return RunStatus::shape_mismatch;
      require(s);
    } catch (...) {
      return RunStatus::shape_mismatch;
    }
    if (memory.size() < workspace_bytes_) return RunStatus::workspace_too_small;
    try {
      Workspace workspace(memory);
      const SizedProblem problem(problem_, s.n_q, s.n_k, workspace);
      WeightsCall<Real> call(problem.get(), workspace);
      use(call, problem.get());
    } catch (...) {
      return RunStatus::executor_failed;
    }
    return RunStatus::ok;
  }

  Problem problem_;
  std::size_t workspace_bytes_ = 0;
};

/// mass(h, j) = sum over the queries i of exp(x_ij - lse(h, i)): the attention that key j received from head
/// h, 0 where it is masked for all rows. lse [heads, n_q] is that of these queries, from an exact call
/// (Plan::run, attend_partial) or of merge(), where the keys are a part of those that it is over; of a
/// polynomial kernel the plain sums, and P(x_ij) / sum. A row of lse = -infinity contributes nothing: set it
/// for rows that are not to count, such as padding. mass is [heads, n_k], or [kv_heads, n_k] and then a sum
/// over the query heads of each key head, as caches are evicted from. For the masses of the last rows alone
/// (SnapKV) give the last rows of q and lse.
///
/// The masses of a head add up to the number of its rows with a key, to less where there are sinks, whose
/// share is no key's. Every w_ij of softmax is in [0, 1] and off by a factor e^t,
///     |t| <= E + 4 u (|lse - b| + |ln w_ij|) + e,
/// E what logit and lse are off by (the latter at least by u |lse| if it was rounded), b the row's largest
/// bias, u the unit roundoff of the arithmetic, e = 4e-7 in float and 1e-15 in double; below 2^-126 (2^-1022)
/// it is 0. Sums are of double, bit for bit the same for any number of threads. Logits and lse that are not
/// numbers make NaN of what a row gives to the keys that it sees.
///
/// Cost: 2 n_q n_k d flops and n_q n_k exponentials over the allowed pairs, about half of attention; for few
/// query rows, one read of k. Allocates the workspace; engines that must not use WeightsPlan. Throws Error,
/// naming the values, for tensors and options that clash. options.tolerance, path and verify are not looked
/// at.
template <TensorLike Q, RowsLike K>
void key_mass(const Q& q, const K& k, MatrixView<const ArithmeticOf<ElementOf<Q>>> lse,
              MatrixView<double> mass, const Options& options) {
  using Real = ArithmeticOf<ElementOf<Q>>;
  const ScoredTensors<Real> x{as_tensor(q), k};
  const Shapes shapes = detail::shapes_of_scored(x);
  detail::require_mass(shapes, lse, mass);
  const Problem problem(shapes, options);
  detail::require_plain_weights(problem);
  std::vector<std::byte> memory(weights_workspace_bytes<Real>(problem));
  Workspace workspace(memory);
  WeightsCall<Real>(problem, workspace).sum_masses(problem, x, lse, mass);
}

/// weights(m, i, j) = exp(x_ij) / (sum over j' of exp(x_ij'), and of the sink's) of query head heads[m], 0
/// where key j is masked and in rows without a key; of a polynomial kernel P(x_ij) / sum. weights is
/// [heads.size(), n_q, n_k], heads in any order. Chosen rows are those of q: rows(q, range), whose
/// positions are the default if they are the last, and otherwise options.query_positions.
///
/// Each weight is off by a factor e^t, |t| <= 2 E + 2 u (|ln w| + ln n_k + 3) + e, E what logits are off by,
/// u the unit roundoff of the arithmetic, e = 8e-7 in float and 2e-15 in double; below 2^-126 (2^-1022) of
/// the row's largest it is 0. Logits that are not finite make NaN of the weights of their row, but for those
/// that are 0. The bits are the same for any number of threads.
///
/// Cost: 2 n_q n_k d flops a chosen head, and a few passes over its weights. Allocates the workspace, engines
/// that must not use WeightsPlan. Throws Error, naming the values, for tensors, heads and options that clash.
template <TensorLike Q, RowsLike K>
void attention_weights(const Q& q, const K& k, std::span<const Index> heads,
                       TensorView<ArithmeticOf<ElementOf<Q>>> weights, const Options& options) {
  using Real = ArithmeticOf<ElementOf<Q>>;
  const ScoredTensors<Real> x{as_tensor(q), k};
  const Shapes shapes = detail::shapes_of_scored(x);
  detail::require_weights(shapes, heads, weights);
  const Problem problem(shapes, options);
  detail::require_plain_weights(problem);
  std::vector<std::byte> memory(weights_workspace_bytes<Real>(problem));
  Workspace workspace(memory);
  WeightsCall<Real>(problem, workspace).write_weights(problem, x, heads, weights);
}

}  // namespace fastrope::inline FASTROPE_TARGET
