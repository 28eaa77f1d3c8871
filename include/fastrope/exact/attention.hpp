// The exact path: tiled online softmax over packed keys, nothing n x n in memory.
//
// A block of queries meets the keys it may attend to tile by tile (query_rows.hpp): kTileRows rows against
// kKeys keys give scores, weights and their sums by the online softmax or a polynomial, outputs by the tile
// kernel again, all in the first-level cache. Cost 2 n_q n_k (d + d_v) flops and n_q n_k exponentials, over
// the allowed pairs rounded up to whole panels; workspace: the packed keys and O(kRows (kKeys + d + d_v)) per
// worker.
#pragma once

#include <algorithm>
#include <span>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/online_softmax.hpp"
#include "fastrope/exact/packing.hpp"
#include "fastrope/exact/query_rows.hpp"
#include "fastrope/exact/scores.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// One worker's block of queries and its softmax state.
template <class T>
class QueryBlock {
 public:
  using Real = ArithmeticOf<T>;
  static constexpr Index kTileRows = QueryRows<T>::kTileRows;
  static constexpr Index kRows = QueryRows<T>::kRows;
  static constexpr Index kKeys = QueryRows<T>::kKeys;

  QueryBlock(const Problem& problem, Index value_stride, Workspace& workspace)
      : block_(problem, workspace),
        stretch_(kRows, value_stride, workspace),
        totals_(kRows, value_stride, workspace) {}

  /// QueryRows::queries.
  const Real* queries(Index r) const { return block_.queries(r); }
  const SoftmaxTotals& totals() const { return totals_; }
  /// What is taken out of the biases of the rows from r on.
  const BiasReference* references(Index r) const { return block_.references(r); }
  /// Rows of sums that are 0 but while attend runs.
  const SoftmaxRows<Real>& stretch() const { return stretch_; }

  /// Takes up rows of query head h, with nothing attended yet. Requires rows.size() <= kRows.
  void start(const Problem& problem, const PackedKeys<T>& packed, const Scores<Real>& scores, Index h,
             const StoredRows& q, Range rows) {
    block_.start(problem, packed, scores, h, q, rows);
    stretch_.clear(round_up(rows.size(), kTileRows));
    totals_.clear(round_up(rows.size(), kTileRows));
  }

  /// Attends to those of `keys` that mask and key ranges allow.
  void attend(const Problem& problem, const PackedKeys<T>& packed, const Scores<Real>& scores,
              Range keys) const {
    block_.for_each_tile(
        problem, packed, scores, keys,
        [&](const ScoreTile<Real>& tile) { add_values(problem, packed, scores, tile); }, [&] { fold(); });
  }

  /// Writes its rows of out [heads, n_q, d_v] and, where lse [heads, n_q] has data, the natural log of each
  /// row's sum; of a polynomial kernel, the sum itself, which may be negative. No normaliser is in it.
  void write(const Problem& problem, const OutputRows& out, MatrixView<Real> lse = {}) const {
    const Index h = block_.head();
    const Range rows = block_.rows();
    for (Index i = rows.begin; i < rows.end; ++i) {
      const Index r = i - rows.begin;
      const double taken = block_.references(r)->total();
      if (!problem.sinks.empty())
        totals_.add_sink(r, (problem.sinks[static_cast<std::size_t>(h)] - taken) * kLog2E);
      totals_.template write<Real>(r, out, h, i, problem.normaliser, taken);
      if (lse.data == nullptr) continue;
      lse(h, i) = static_cast<Real>(problem.kernel.is_softmax() ? totals_.lse(r) + taken
                                                                : totals_.whole_sum(r, taken));
    }
  }

 private:
  static constexpr Index kWidth = PackedKeys<T>::kWidth;
  static constexpr Index kStride = QueryRows<T>::kStride;

  /// The scores of a tile become weights, and these times its keys' values are added to the stretch.
  void add_values(const Problem& problem, const PackedKeys<T>& packed, const Scores<Real>& scores,
                  const ScoreTile<Real>& tile) const {
    const Index rows = tile.rows.size(), cols = tile.panels.size(), kv = problem.kv_head(block_.head());
    if (problem.kernel.is_softmax())
      stretch_.from(tile.row).template weigh<T>(rows, tile.scores, kStride, cols, tile.factor);
    else
      stretch_.from(tile.row).weigh_polynomial(
          problem.kernel.coefficients(), rows, tile.scores, kStride, cols, [&](Index i) {
            return scores.factors(block_.head(), tile.panels, *references(tile.row + i), block_.scratch());
          });
    for (Index i = 0; i < rows; ++i) make_words<T>(cols, tile.scores + i * kStride);
    if (finite(packed, kv, tile.panels))
      multiply<true, T>(round_up(rows, kRowMultipleOf<T>), stretch_.width, cols / kWordSize<T>,
                        BroadcastOperand<Real>{tile.scores, kStride, 1}, packed.values(kv, tile.panels.begin),
                        stretch_.width, stretch_.row(tile.row), stretch_.width);
    else
      add_allowed_values(problem, packed, tile);
  }

  /// A masked key's weight is 0, but 0 times an infinite or NaN value is NaN: here such keys are left out one
  /// by one.
  void add_allowed_values(const Problem& problem, const PackedKeys<T>& packed,
                          const ScoreTile<Real>& tile) const {
    constexpr Index kSize = kWordSize<T>;
    const Index h = block_.head(), kv = problem.kv_head(h), first = tile.panels.begin;
    for (Index i = 0; i < tile.rows.size(); ++i)
      block_.allowed(tile.row + i).for_each(tile.keys, [&](Range allowed) {
        for (Index j = allowed.begin; j < allowed.end; ++j) {
          if (!dense_allows(problem, h, tile.rows.begin + i, j)) continue;
          const Index half = j % kSize;
          const Real weight = element_of<T>(tile.scores[i * kStride + (j - first) / kSize], half);
          const Real* values = packed.values(kv, j - half);
          for (Index c = 0; c < stretch_.width; ++c)
            stretch_.row(tile.row + i)[c] += weight * element_of<T>(values[c], half);
        }
      });
  }

  /// Ends the stretch: its sums join those of the stretches before.
  void fold() const {
    const Index rows = block_.rows().size();
    for (Index r = 0; r < rows; ++r) {
      totals_.add(r, stretch_, r);
      stretch_.from(r).clear_sums(1);
    }
  }

  static bool finite(const PackedKeys<T>& packed, Index kv, Range run) {
    for (Index j = run.begin; j < run.end; j += kWidth)
      if (!packed.finite_values(kv, j / kWidth)) return false;
    return true;
  }

  QueryRows<T> block_;
  SoftmaxRows<Real> stretch_;
  SoftmaxTotals totals_;
};

/// Some rows of a query head: the exact path's unit of work, at most QueryBlock::kRows rows.
struct RowTask {
  Index head;
  Range rows;
};

/// The tasks of all rows of some heads: head after head, so that its keys stay in the cache, and the last
/// rows of a head first, since with a causal mask those are the longest and threads that take tasks in turn
/// finish together.
template <class Real>
class RowTasks {
 public:
  RowTasks(const Problem& problem, Range heads)
      : n_q_(problem.shapes.n_q),
        rows_(rows_of_a_task(problem)),
        blocks_(ceil_div(n_q_, rows_)),
        heads_(heads) {}

  Index count() const { return heads_.size() * blocks_; }
  RowTask operator[](Index t) const {
    const Index block = blocks_ - 1 - t % blocks_;
    return {heads_.begin + t / blocks_, intersect({block * rows_, (block + 1) * rows_}, {0, n_q_})};
  }

 private:
  /// Whole tiles, fewer where that would leave workers without tasks.
  static Index rows_of_a_task(const Problem& problem) {
    constexpr Index kTile = QueryBlock<Real>::kTileRows, kMost = QueryBlock<Real>::kRows / kTile;
    const Index tiles = problem.shapes.heads * ceil_div(problem.shapes.n_q, kTile);
    return kTile * std::clamp<Index>(tiles / (8 * problem.executor.workers()), 1, kMost);
  }

  Index n_q_;
  Index rows_;
  Index blocks_;
  Range heads_;
};

/// Exact attention of any rows of any heads over packed keys.
template <class T>
class ExactAttention {
 public:
  using Real = ArithmeticOf<T>;

  ExactAttention(const Problem& problem, const PackedKeys<T>& packed, Workspace& workspace)
      : ExactAttention(problem,
                       WorkerScratch(problem.executor.workers(), worker_bytes(problem, packed), workspace),
                       workspace) {}
  /// With worker_bytes(problem, packed) of scratch that nobody else uses while a task runs.
  ExactAttention(const Problem& problem, const WorkerScratch& scratch, Workspace& workspace)
      : scores_(problem, workspace), scratch_(scratch) {}

  static std::size_t worker_bytes(const Problem& problem, const PackedKeys<T>& packed) {
    return Workspace::bytes_of(
        [&](Workspace& share) { QueryBlock<T>(problem, packed.value_stride(), share); });
  }

  /// Lays out the lag functions. Call once, before run or block.
  void prepare(const Problem& problem) {
    problem.executor.parallel_for(scores_.tasks(), [&](Index task, Index) { prepare(problem, task); });
  }
  void prepare(const Problem& problem, Index task) { scores_.prepare(problem, task); }

  const Scores<Real>& scores() const { return scores_; }

  /// The block of a worker; valid until the worker asks again.
  QueryBlock<T> block(const Problem& problem, const PackedKeys<T>& packed, Index worker) const {
    Workspace share = scratch_.of(worker);
    return {problem, packed.value_stride(), share};
  }

  /// out: [heads, n_q, d_v]. Writes the rows of the tasks.
  void run(const Problem& problem, const PackedKeys<T>& packed, const StoredRows& q, const OutputRows& out,
           std::span<const RowTask> tasks) const {
    problem.executor.parallel_for(std::ssize(tasks), [&](Index t, Index worker) {
      run_task(problem, packed, q, out, {}, tasks[static_cast<std::size_t>(t)], worker);
    });
  }

  /// The same for one task; lse: [heads, n_q] or without data.
  void run_task(const Problem& problem, const PackedKeys<T>& packed, const StoredRows& q,
                const OutputRows& out, MatrixView<Real> lse, RowTask task, Index worker) const {
    const auto [h, rows] = task;
    QueryBlock<T> queries = block(problem, packed, worker);
    queries.start(problem, packed, scores_, h, q, rows);
    queries.attend(problem, packed, scores_, {0, problem.shapes.n_k});
    queries.write(problem, out, lse);
  }

 private:
  Scores<Real> scores_;
  WorkerScratch scratch_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
