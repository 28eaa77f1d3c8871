// The exact path: tiled online softmax over packed keys, nothing n x n in memory.
//
// A block of kRows queries meets the keys it may attend to in runs of kKeys: scores by the tile kernel,
// weights and their sums by the online softmax, outputs by the tile kernel again. Runs wholly outside the
// mask are never touched. Cost 2 n_q n_k (d + d_v) flops and n_q n_k exponentials, over the allowed pairs
// rounded up to whole panels; workspace: the packed keys and O(kRows (kKeys + d + d_v)) per worker.
#pragma once

#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/online_softmax.hpp"
#include "fastrope/exact/packing.hpp"
#include "fastrope/exact/scores.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope {

/// One worker's block of queries and its softmax state.
template <class Real>
class QueryBlock {
 public:
  static constexpr Index kRows = 48;
  static constexpr Index kKeys = 4 * PackedKeys<Real>::kWidth;
  static_assert(kRows % kRowMultiple == 0);

  QueryBlock(const Problem& problem, Index value_stride, Workspace& workspace)
      : queries_(workspace.take<Real>(kRows * problem.shapes.d).data()),
        scores_(workspace.take<Real>(kRows * kKeys).data()),
        scratch_(workspace.take<Real>(std::max(kKeys, problem.shapes.d)).data()),
        state_(kRows, value_stride, workspace) {}

  /// The block's queries times Scores::query_factor, [d, kRows].
  const Real* queries() const { return queries_; }
  const SoftmaxRows<Real>& state() const { return state_; }

  /// Takes up rows of query head h, with nothing attended yet. Requires rows.size() <= kRows.
  template <class Q>
  void start(const Problem& problem, const PackedKeys<Real>& packed, Index h, MatrixView<const Q> q,
             Range rows) {
    head_ = h;
    rows_ = rows;
    packed.pack_queries(problem, q, rows, kRows, Scores<Real>::query_factor(problem), queries_, scratch_);
    state_.clear(kRows);
  }

  /// Attends to those of `keys` that the mask allows.
  void attend(const Problem& problem, const PackedKeys<Real>& packed, const Scores<Real>& scores,
              Range keys) {
    constexpr Index kWidth = PackedKeys<Real>::kWidth;
    keys = intersect(keys, problem.grid.keys_of(rows_));
    const Index row_count = round_up(rows_.size(), kRowMultiple);
    const Index kv = problem.kv_head(head_);
    for (Index j = round_down(keys.begin, kWidth); j < keys.end; j += kKeys) {
      const Range run{j, std::min(j + kKeys, round_up(keys.end, kWidth))};
      scores.product(problem, packed, kv, queries_, kRows, rows_, row_count, run, scores_, kKeys, scratch_);
      for (Index i = rows_.begin; i < rows_.end; ++i) {
        Real* row = scores_ + (i - rows_.begin) * kKeys;
        scores.finish(problem, head_, i, run, intersect(keys, problem.grid.keys_of(i)), row, scratch_);
      }
      state_.weigh(rows_.size(), scores_, kKeys, run.size());
      add_values(problem, packed, kv, run, keys, row_count);
    }
  }

  /// Writes out [rows, d_v] and, where lse is not null, the natural log of each row's sum.
  template <class Out, class Lse>
  void write(const Problem& problem, MatrixView<Out> out, Lse* lse) {
    for (Index i = rows_.begin; i < rows_.end; ++i) {
      const Index r = i - rows_.begin;
      if (!problem.sinks.empty())
        state_.add_sink(r, static_cast<Real>(problem.sinks[static_cast<std::size_t>(head_)] * kLog2E));
      state_.write(r, out.row(i), problem.shapes.d_v);
      if (lse != nullptr) lse[i] = state_.lse(r);
    }
  }

 private:
  /// output += weights [rows, run] values [run, d_v].
  void add_values(const Problem& problem, const PackedKeys<Real>& packed, Index kv, Range run, Range keys,
                  Index row_count) {
    const Index width = packed.value_stride();
    const Real* values = packed.values(kv) + run.begin * width;
    if (finite(packed, kv, run)) {
      multiply<true>(row_count, width, run.size(), BroadcastOperand<Real>{scores_, kKeys, 1}, values, width,
                     state_.output, width);
      return;
    }
    // A masked key's weight is 0, but 0 times an infinite or NaN value is NaN: such keys are left out one by
    // one.
    for (Index i = rows_.begin; i < rows_.end; ++i) {
      const Range allowed = intersect(run, intersect(keys, problem.grid.keys_of(i)));
      for (Index j = allowed.begin; j < allowed.end; ++j) {
        if (!Scores<Real>::dense_allows(problem, head_, i, j)) continue;
        const Real weight = scores_[(i - rows_.begin) * kKeys + j - run.begin];
        for (Index c = 0; c < width; ++c)
          state_.row(i - rows_.begin)[c] += weight * values[(j - run.begin) * width + c];
      }
    }
  }

  static bool finite(const PackedKeys<Real>& packed, Index kv, Range run) {
    constexpr Index kWidth = PackedKeys<Real>::kWidth;
    for (Index j = run.begin; j < run.end; j += kWidth)
      if (!packed.finite_values(kv, j / kWidth)) return false;
    return true;
  }

  Index head_ = 0;
  Range rows_ = {};
  Real* queries_;  // [d, kRows]
  Real* scores_;   // [kRows, kKeys]
  Real* scratch_;  // [max(kKeys, d)]
  SoftmaxRows<Real> state_;
};

/// Some rows of a query head: the exact path's unit of work, at most QueryBlock::kRows rows.
struct RowTask {
  Index head;
  Range rows;
};

/// The tasks of all rows of some heads. The last rows of a head come first: with a causal mask those are the
/// longest, and threads that take tasks in turn finish together.
template <class Real>
class RowTasks {
 public:
  RowTasks(const Problem& problem, Range heads)
      : n_q_(problem.shapes.n_q), blocks_(ceil_div(n_q_, kRows)), heads_(heads) {}

  Index count() const { return heads_.size() * blocks_; }
  RowTask operator[](Index t) const {
    const Index block = blocks_ - 1 - t / heads_.size();
    return {heads_.begin + t % heads_.size(), intersect({block * kRows, (block + 1) * kRows}, {0, n_q_})};
  }

 private:
  static constexpr Index kRows = QueryBlock<Real>::kRows;
  Index n_q_;
  Index blocks_;
  Range heads_;
};

/// Exact attention of any rows of any heads over packed keys.
template <class Real>
class ExactAttention {
 public:
  ExactAttention(const Problem& problem, const PackedKeys<Real>& packed, Workspace& workspace)
      : ExactAttention(problem,
                       WorkerScratch(problem.executor.workers(), worker_bytes(problem, packed), workspace),
                       workspace) {}
  /// With worker_bytes(problem, packed) of scratch that nobody else uses while a task runs.
  ExactAttention(const Problem& problem, const WorkerScratch& scratch, Workspace& workspace)
      : scores_(problem, workspace), scratch_(scratch) {}

  static std::size_t worker_bytes(const Problem& problem, const PackedKeys<Real>& packed) {
    return Workspace::bytes_of(
        [&](Workspace& share) { QueryBlock<Real>(problem, packed.value_stride(), share); });
  }

  /// Lays out the lag functions. Call once, before run or block.
  void prepare(const Problem& problem) {
    problem.executor.parallel_for(scores_.tasks(), [&](Index task, Index) { prepare(problem, task); });
  }
  void prepare(const Problem& problem, Index task) { scores_.prepare(problem, task); }

  const Scores<Real>& scores() const { return scores_; }

  /// The block of a worker; valid until the worker asks again.
  QueryBlock<Real> block(const Problem& problem, const PackedKeys<Real>& packed, Index worker) const {
    Workspace share = scratch_.of(worker);
    return {problem, packed.value_stride(), share};
  }

  /// out: [heads, n_q, d_v]; lse: [heads, n_q] or without data. Writes the rows of task(t), t < count.
  template <class Q, class Out, class Task>
  void run(const Problem& problem, const PackedKeys<Real>& packed, TensorView<const Q> q, TensorView<Out> out,
           MatrixView<Real> lse, Index count, Task&& task) const {
    problem.executor.parallel_for(
        count, [&](Index t, Index worker) { run_task(problem, packed, q, out, lse, task(t), worker); });
  }

  /// The same for the rows of one task.
  template <class Q, class Out>
  void run_task(const Problem& problem, const PackedKeys<Real>& packed, TensorView<const Q> q,
                TensorView<Out> out, MatrixView<Real> lse, RowTask task, Index worker) const {
    const auto [h, rows] = task;
    QueryBlock<Real> queries = block(problem, packed, worker);
    queries.start(problem, packed, h, q.head(h), rows);
    queries.attend(problem, packed, scores_, {0, problem.shapes.n_k});
    queries.write(problem, out.head(h), lse.data == nullptr ? nullptr : lse.row(h));
  }

 private:
  Scores<Real> scores_;
  WorkerScratch scratch_;
};

}  // namespace fastrope
