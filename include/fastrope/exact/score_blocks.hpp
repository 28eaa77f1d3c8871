// Score blocks: all scores of a call, block by block, for what is asked of them beside the result.
//
// Keys are cut into splits of kStretch, whatever the number of threads: a task takes a key/value head and a
// split, and meets the rows of its query heads in an order that is fixed. As in an exact call, a few query
// rows are scored where keys lie (decode_rows.hpp), more in tiles of packed keys (query_rows.hpp); values are
// not looked at.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <variant>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/decode_rows.hpp"
#include "fastrope/exact/packing.hpp"
#include "fastrope/exact/query_rows.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/exact/scores.hpp"
#include "fastrope/exact/stage.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Scores of neighbouring queries of a head against neighbouring keys, as Scores::finish leaves them:
/// base-2 and without the rows' references, -infinity where a query may not attend to a key. Memory that may
/// be overwritten.
template <class Real>
struct ScoreBlock {
  Index head;
  Range rows;
  Range keys;                       ///< in ascending order of position, whole vectors: the last may be > n_k
  const BiasReference* references;  ///< [rows.size()]
  Real* scores;                     ///< [rows.size(), keys.size()], row stride `stride`
  Index stride;

  Real* row(Index r) const { return scores + r * stride; }
};

/// q: [heads, n_q, d], k: [kv_heads, n_k, d].
template <class Real>
struct ScoredTensors {
  StoredRows q;
  KeyRows<Real> k;
};

/// The query heads whose scores are wanted.
class WantedHeads {
 public:
  /// All of them.
  explicit WantedHeads(const Problem& problem) : group_(problem.group()) {}
  /// Those in `heads`.
  WantedHeads(const Problem& problem, std::span<const Index> heads)
      : group_(problem.group()), all_(false), heads_(heads) {}

  bool has(Index h) const { return all_ || std::find(heads_.begin(), heads_.end(), h) != heads_.end(); }
  /// Whether one of a key/value head's is among them.
  bool has_any_of(Index kv) const {
    return all_ || std::any_of(heads_.begin(), heads_.end(), [&](Index h) { return h / group_ == kv; });
  }

 private:
  Index group_;
  bool all_ = true;
  std::span<const Index> heads_ = {};
};

/// The tiled way: the keys that some query reaches packed, then blocks of query rows. The problem has no
/// values: d_v = 0.
template <class Real>
class TiledScores {
 public:
  /// With worker_bytes(problem) of scratch that nobody else uses while a task runs.
  TiledScores(const Problem& problem, const WorkerScratch& scratch, Workspace& workspace)
      : packed_(problem, problem.grid.reached().hull(), scratch, workspace), scores_(problem, workspace) {}

  std::size_t worker_bytes(const Problem& problem) const {
    return std::max(PackedKeys<Real>::worker_bytes(problem),
                    Workspace::bytes_of([&](Workspace& share) { QueryRows<Real>(problem, share); }));
  }

  const Scores<Real>& scores() const { return scores_; }

  Index prepare_tasks(const Problem& problem) const {
    return packed_.tables().tasks(problem) + scores_.tasks();
  }
  void prepare(const Problem& problem, Index task) {
    const Index table_tasks = packed_.tables().tasks(problem);
    return task < table_tasks ? packed_.tables().fill(problem, task)
                              : scores_.prepare(problem, task - table_tasks);
  }

  Index load_tasks(const Problem& problem) const { return packed_.tasks(problem); }
  void load(const Problem& problem, const ScoredTensors<Real>& x, const WantedHeads& wanted, Index task,
            Index worker, Workspace&) {
    const Shapes& s = problem.shapes;
    if (!wanted.has_any_of(task / (load_tasks(problem) / s.kv_heads))) return;
    packed_.pack_task(problem, x.k, TensorView<const Real>(nullptr, s.kv_heads, s.n_k, 0, 0, 0), task,
                      worker);
  }

  template <class Visit>
  void for_each_block(const Problem& problem, const ScoredTensors<Real>& x, const WantedHeads& wanted,
                      Index kv, Range keys, Workspace& share, Visit&& visit) const {
    QueryRows<Real> block(problem, share);
    const Index n_q = problem.shapes.n_q, first = kv * problem.group();
    for (Index h = first; h < first + problem.group(); ++h) {
      if (!wanted.has(h)) continue;
      for (Index i = 0; i < n_q; i += block.kRows) {
        const Range rows = intersect({i, i + block.kRows}, {0, n_q});
        if (!reaches(problem, h, rows, keys)) continue;
        block.start(problem, packed_, scores_, h, x.q, rows);
        block.for_each_tile(
            problem, packed_, scores_, keys,
            [&](const ScoreTile<Real>& tile) {
              visit(ScoreBlock<Real>{h, tile.rows, tile.panels, block.references(tile.row), tile.scores,
                                     block.kStride});
            },
            [] {});
      }
    }
  }

 private:
  static bool reaches(const Problem& problem, Index h, Range rows, Range keys) {
    for (Index i = rows.begin; i < rows.end; ++i)
      if (!problem.grid.keys_of(h, i).hull(keys).empty()) return true;
    return false;
  }

  PackedKeys<Real> packed_;
  Scores<Real> scores_;
};

/// The way of decoding: keys are read in place.
template <class Real>
class DecodeScores {
 public:
  DecodeScores(const Problem& problem, const WorkerScratch&, Workspace& workspace)
      : rows_(problem, workspace) {}

  std::size_t worker_bytes(const Problem&) const {
    return Workspace::bytes_of([&](Workspace& share) { rows_.buffers(share); });
  }

  const Scores<Real>& scores() const { return rows_.scores(); }

  Index prepare_tasks(const Problem& problem) const { return rows_.prepare_tasks(problem); }
  void prepare(const Problem& problem, Index task) { rows_.prepare(problem, task); }

  Index load_tasks(const Problem&) const { return rows_.groups().all_rows(); }
  void load(const Problem& problem, const ScoredTensors<Real>& x, const WantedHeads&, Index task, Index,
            Workspace& share) {
    rows_.load(problem, x.q, x.k, task, rows_.buffers(share));
  }

  template <class Visit>
  void for_each_block(const Problem& problem, const ScoredTensors<Real>& x, const WantedHeads& wanted,
                      Index kv, Range keys, Workspace& share, Visit&& visit) const {
    const RowGroups& groups = rows_.groups();
    const auto b = rows_.buffers(share);
    const Range reached = intersect(keys, Rows::reach(problem));
    const StoredHead k = x.k.head(kv);
    const Index parts = groups.count() / problem.shapes.kv_heads;
    for (Index g = kv * parts; g < (kv + 1) * parts; ++g) {
      rows_.clear_padding(g, b);
      Range seen = rows_.next_seen(problem, g, reached.begin, reached);
      if (seen.empty()) continue;
      BlockRows key_rows = Rows::block_rows(problem, k, seen);
      while (!seen.empty()) {
        const Index j = round_down(seen.begin, Rows::kBlock);
        const Range next = rows_.next_seen(problem, g, j + Rows::kBlock, reached);
        const BlockRows next_rows = next.empty() ? key_rows : Rows::block_rows(problem, k, next);
        const Index cols = rows_.score(problem, g, x.k, key_rows, {next_rows.data(), Rows::step_of(x.k)},
                                       problem.shapes.d, seen, b);
        for_each_head(problem, g, wanted, [&](Index h, Range queries, Index r) {
          visit(ScoreBlock<Real>{
              h, queries, {j, j + cols}, &rows_.reference(g, r), b.scores + r * Rows::kBlock, Rows::kBlock});
        });
        seen = next;
        key_rows = next_rows;
      }
    }
  }

 private:
  using Rows = DecodeRows<Real>;
  using BlockRows = typename Rows::BlockRows;

  /// visit(h, queries, r) for the rows of a group from r on that are queries of one head.
  template <class Visit>
  void for_each_head(const Problem& problem, Index g, const WantedHeads& wanted, Visit&& visit) const {
    const RowGroups& groups = rows_.groups();
    for (Index r = 0; r < groups.size(g);) {
      const Index h = groups.head(g, r), i = groups.query(g, r);
      const Index count = std::min(groups.size(g) - r, problem.shapes.n_q - i);
      if (wanted.has(h)) visit(h, Range{i, i + count}, r);
      r += count;
    }
  }

  Rows rows_;
};

/// Either way, as an exact call would choose.
template <class Real>
class ScoreBlocks {
 public:
  ScoreBlocks(const Problem& problem, const WorkerScratch& scratch, Workspace& workspace)
      : way_(DecodeRows<Real>::suits(problem)
                 ? Way(std::in_place_type<DecodeScores<Real>>, problem, scratch, workspace)
                 : Way(std::in_place_type<TiledScores<Real>>, problem, scratch, workspace)),
        scratch_(scratch) {}

  std::size_t worker_bytes(const Problem& problem) const {
    return std::visit([&](const auto& way) { return way.worker_bytes(problem); }, way_);
  }

  /// What is taken out of the biases of query i of head h; once all is prepared.
  double reference(const Problem& problem, Index h, Index i) const {
    return std::visit(
        [&](const auto& way) {
          const Scores<Real>& scores = way.scores();
          return scores.reference(problem, h, i, scores.allowed(problem, h, i)).total();
        },
        way_);
  }

  /// Everything before the first block. Requires n_q > 0 and n_k > 0, here and below.
  void prepare(const Problem& problem, const ScoredTensors<Real>& x, const WantedHeads& wanted) {
    std::visit(
        [&](auto& way) {
          problem.executor.parallel_for(way.prepare_tasks(problem),
                                        [&](Index task, Index) { way.prepare(problem, task); });
          problem.executor.parallel_for(way.load_tasks(problem), [&](Index task, Index worker) {
            Workspace share = scratch_.of(worker);
            way.load(problem, x, wanted, task, worker, share);
          });
        },
        way_);
  }

  /// The independent tasks of reading scores: a key/value head and a split of the keys each.
  static Index tasks(const Problem& problem) {
    return problem.shapes.kv_heads * ceil_div(problem.shapes.n_k, kStretch);
  }
  static Index kv_head(const Problem& problem, Index task) { return task % problem.shapes.kv_heads; }
  static Range keys(const Problem& problem, Index task) {
    const Index first = task / problem.shapes.kv_heads * kStretch;
    return intersect({first, first + kStretch}, {0, problem.shapes.n_k});
  }

  /// visit(ScoreBlock) for blocks that hold all pairs of a task which are not masked, those of a head in
  /// ascending order of rows for each key. Blocks lie within the split. share: a worker's, or what is left of
  /// it.
  template <class Visit>
  void for_each_block(const Problem& problem, const ScoredTensors<Real>& x, const WantedHeads& wanted,
                      Index task, Workspace& share, Visit&& visit) const {
    const Index kv = kv_head(problem, task);
    if (!wanted.has_any_of(kv)) return;
    std::visit(
        [&](const auto& way) {
          way.for_each_block(problem, x, wanted, kv, keys(problem, task), share, visit);
        },
        way_);
  }

 private:
  using Way = std::variant<DecodeScores<Real>, TiledScores<Real>>;

  Way way_;
  WorkerScratch scratch_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
