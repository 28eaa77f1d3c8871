// The exact path: tiled online softmax over packed keys, nothing n x n in memory.
//
// A block of queries meets the keys it may attend to in runs, tile by tile: kTileRows rows against kKeys keys
// give scores by the tile kernel, weights and their sums by the online softmax or a polynomial, outputs by
// the tile kernel again, all in the first-level cache; the tiles of a block share a run's keys and values
// while the second level holds them. Runs that the mask leaves nothing of are never touched. Cost 2 n_q n_k
// (d + d_v) flops and n_q n_k exponentials, over the allowed pairs rounded up to whole panels; workspace: the
// packed keys and O(kRows (kKeys + d + d_v)) per worker.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <span>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/online_softmax.hpp"
#include "fastrope/exact/packing.hpp"
#include "fastrope/exact/scores.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// One worker's block of queries and its softmax state.
template <class T>
class QueryBlock {
 public:
  using Real = ArithmeticOf<T>;
  static constexpr Index kTileRows = 48;
  static constexpr Index kRows = 4 * kTileRows;
  static constexpr Index kKeys = 2 * PackedKeys<T>::kWidth;
  static_assert(kTileRows % kRowMultipleOf<T> == 0 && kStretch % kKeys == 0);

  QueryBlock(const Problem& problem, Index value_stride, Workspace& workspace)
      : words_(words_of<T>(problem.shapes.d)),
        queries_(workspace.take<Real>(kRows * words_).data()),
        allowed_(workspace.take<KeySet>(kRows).data()),
        references_(workspace.take<BiasReference>(kRows).data()),
        scores_(workspace.take<Real>(kTileRows * kStride).data()),
        scratch_(workspace.take<Real>(std::max(kKeys, PackedKeys<T>::scratch_size(problem.shapes))).data()),
        stretch_(kRows, value_stride, workspace),
        totals_(kRows, value_stride, workspace) {}

  /// The queries from row r on, times Scores::query_factor, as PackedKeys::pack_queries lays out a tile: a
  /// column a row. Requires T = Real.
  const Real* queries(Index r) const { return queries_ + r / kTileRows * kTileRows * words_ + r % kTileRows; }
  const SoftmaxTotals& totals() const { return totals_; }
  /// Rows of sums that are 0 but while attend runs.
  const SoftmaxRows<Real>& stretch() const { return stretch_; }

  /// Takes up rows of query head h, with nothing attended yet. Requires rows.size() <= kRows.
  void start(const Problem& problem, const PackedKeys<T>& packed, const Scores<Real>& scores, Index h,
             const StoredRows& q, Range rows) {
    head_ = h;
    rows_ = rows;
    for (Index r = 0; r < rows.size(); r += kTileRows)
      packed.pack_queries(problem, q.head(h), tile_rows(r), kTileRows,
                          Scores<Real>::template query_factor<T>(problem), queries_ + r * words_, scratch_);
    for (Index r = 0; r < rows.size(); ++r) {
      allowed_[r] = problem.grid.keys_of(h, rows.begin + r);
      references_[r] = scores.reference(problem, h, rows.begin + r, allowed_[r]);
    }
    stretch_.clear(round_up(rows.size(), kTileRows));
    totals_.clear(round_up(rows.size(), kTileRows));
  }

  /// Attends to those of `keys` that mask and key ranges allow.
  void attend(const Problem& problem, const PackedKeys<T>& packed, const Scores<Real>& scores,
              Range keys) const {
    std::optional<MatrixTiles> tiles;
    if constexpr (std::is_same_v<T, bfloat16>) tiles.emplace();
    std::array<Reach, kRows / kTileRows> reach;
    Range all;
    for (Index r = 0; r < rows_.size(); r += kTileRows) all = hull(all, reach_of(r, keys, reach).some);
    // Runs begin at multiples of kKeys and stretches at multiples of kStretch whatever the block, so that a
    // row's result does not depend on its block.
    for (Index j = round_down(all.begin, kKeys); j < all.end;) {
      const Range run{j, j + kKeys};
      bool touched = !problem.grid.has_ranges();
      for (Index r = 0; r < rows_.size(); r += kTileRows) {
        if (problem.grid.has_ranges()) touched |= !reach_of(r, intersect(run, keys), reach).some.empty();
        attend_run(problem, packed, scores, reach[static_cast<std::size_t>(r / kTileRows)], run);
      }
      const Index next = touched ? run.end : std::min(all.end, round_down(next_of(run.end), kKeys));
      if (next / kStretch != j / kStretch || next >= all.end) fold();
      j = next;
    }
  }

  /// Writes its rows of out [heads, n_q, d_v] and, where lse [heads, n_q] has data, the natural log of each
  /// row's sum; of a polynomial kernel, the sum itself, which may be negative.
  void write(const Problem& problem, const OutputRows& out, MatrixView<Real> lse = {}) const {
    for (Index i = rows_.begin; i < rows_.end; ++i) {
      const Index r = i - rows_.begin;
      if (!problem.sinks.empty())
        totals_.add_sink(r,
                         (problem.sinks[static_cast<std::size_t>(head_)] - references_[r].total()) * kLog2E);
      totals_.template write<Real>(r, out, head_, i);
      if (lse.data == nullptr) continue;
      lse(head_, i) = static_cast<Real>(problem.kernel.is_softmax() ? totals_.lse(r) + references_[r].total()
                                                                    : totals_.sum[r]);
    }
  }

 private:
  static constexpr Index kWidth = PackedKeys<T>::kWidth;
  /// Of a row of scores: rows a power of two apart would compete for the same lines of the cache.
  static constexpr Index kStride = kKeys + simd::kLanes<Real>;

  /// What a tile meets of some keys: those which hold all that some row may attend to, those that every row
  /// may, and the rows of the block which hold all that see any, in whole row multiples of the tile kernel.
  struct Reach {
    Range some;
    Range every;
    Range rows;
  };

  Range tile_rows(Index r) const { return intersect(rows_, {rows_.begin + r, rows_.begin + r + kTileRows}); }

  /// Of the tile that begins at row r of the block, and its place among those of all tiles.
  Reach& reach_of(Index r, Range keys, std::array<Reach, kRows / kTileRows>& all) const {
    constexpr Index kMultiple = kRowMultipleOf<T>;
    Reach reach{.some = {}, .every = keys, .rows = {}};
    for (Index i = r; i < r + tile_rows(r).size(); i += kMultiple) {
      const Range rows = intersect({i, i + kMultiple}, {0, rows_.size()});
      Range some, every = keys;
      for (Index row = rows.begin; row < rows.end; ++row) {
        some = hull(some, allowed_[row].hull(keys));
        every = intersect(every, allowed_[row].solid(keys));
      }
      if (some.empty()) continue;
      reach = {hull(reach.some, some), intersect(reach.every, every), hull(reach.rows, rows)};
    }
    return all[static_cast<std::size_t>(r / kTileRows)] = reach;
  }

  /// The first key from j on that some row may attend to; one beyond all where there is none.
  Index next_of(Index j) const {
    Index next = std::numeric_limits<Index>::max();
    for (Index r = 0; r < rows_.size(); ++r)
      if (j < allowed_[r].hull().end) next = std::min(next, allowed_[r].next(j));
    return next;
  }

  /// The tile of some rows against those keys of a run that they can reach.
  void attend_run(const Problem& problem, const PackedKeys<T>& packed, const Scores<Real>& scores,
                  const Reach& reach, Range run) const {
    const Range keys = intersect(run, reach.some);
    const Index r = reach.rows.begin, tile = round_down(r, kTileRows);
    const Range rows{rows_.begin + r, rows_.begin + reach.rows.end};
    if (keys.empty() || !scores.dense_sees(head_, rows, keys)) return;
    const Range panels{round_down(keys.begin, kWidth), round_up(keys.end, kWidth)};
    const Index kv = problem.kv_head(head_), row_count = round_up(rows.size(), kRowMultipleOf<T>);
    scores.product(problem, packed, kv, packed.query(queries_ + tile * words_, r - tile), kTileRows, rows,
                   row_count, panels, scores_, kStride, scratch_);
    Scores<Real>::mark_infinite(problem, rows.size(), panels.size(), scores_, kStride);
    const auto factor = static_cast<Real>(Scores<Real>::template product_factor<T>(problem));
    const bool modified = Scores<Real>::modifies(problem);
    if (modified || scores.dense_masks(problem, head_, rows, keys) ||
        intersect(panels, reach.every) != panels)
      scores.finish(problem, head_, rows, panels, keys, allowed_ + r, references_ + r, modified ? factor : 1,
                    scores_, kStride, scratch_);
    if (problem.kernel.is_softmax())
      stretch_.from(r).template weigh<T>(rows.size(), scores_, kStride, panels.size(), modified ? 1 : factor);
    else
      stretch_.from(r).weigh_polynomial(problem.kernel.coefficients(), rows.size(), scores_, kStride,
                                        panels.size());
    for (Index i = 0; i < rows.size(); ++i) make_words<T>(panels.size(), scores_ + i * kStride);
    if (finite(packed, kv, panels))
      multiply<true, T>(row_count, stretch_.width, panels.size() / kWordSize<T>,
                        BroadcastOperand<Real>{scores_, kStride, 1}, packed.values(kv, panels.begin),
                        stretch_.width, stretch_.row(r), stretch_.width);
    else
      add_allowed_values(problem, packed, r, rows, keys, panels.begin);
  }

  /// A masked key's weight is 0, but 0 times an infinite or NaN value is NaN: here such keys are left out one
  /// by one. The weights begin at key `first`.
  void add_allowed_values(const Problem& problem, const PackedKeys<T>& packed, Index r, Range rows,
                          Range keys, Index first) const {
    constexpr Index kSize = kWordSize<T>;
    const Index kv = problem.kv_head(head_);
    for (Index i = 0; i < rows.size(); ++i)
      allowed_[r + i].for_each(keys, [&](Range allowed) {
        for (Index j = allowed.begin; j < allowed.end; ++j) {
          if (!dense_allows(problem, head_, rows.begin + i, j)) continue;
          const Index half = j % kSize;
          const Real weight = element_of<T>(scores_[i * kStride + (j - first) / kSize], half);
          const Real* values = packed.values(kv, j - half);
          for (Index c = 0; c < stretch_.width; ++c)
            stretch_.row(r + i)[c] += weight * element_of<T>(values[c], half);
        }
      });
  }

  /// Ends the stretch: its sums join those of the stretches before.
  void fold() const {
    for (Index r = 0; r < rows_.size(); ++r) totals_.add(r, stretch_, r);
    stretch_.clear_sums(round_up(rows_.size(), kTileRows));
  }

  static bool finite(const PackedKeys<T>& packed, Index kv, Range run) {
    for (Index j = run.begin; j < run.end; j += kWidth)
      if (!packed.finite_values(kv, j / kWidth)) return false;
    return true;
  }

  Index head_ = 0;
  Range rows_ = {};
  Index words_;                // of a query
  Real* queries_;              // [tiles], as packed
  KeySet* allowed_;            // [kRows], the keys that each row may attend to
  BiasReference* references_;  // [kRows]
  Real* scores_;               // [kTileRows, kStride], then the weights' words
  Real* scratch_;              // a row of a lag function, or what packing wants
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
