// Query rows: a block of queries in tiles, and the scores of each tile against the runs of keys that it
// meets.
//
// A tile of kTileRows queries against the panels of a run of kKeys keys is scored by the tile kernel in the
// first-level cache, and handed on there: to the online softmax (attention.hpp) or to whoever asks for
// weights (weights.hpp). The tiles of a block share a run's keys while the second level holds them. Runs that
// the mask leaves nothing of are never touched.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/matrix_tiles.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/online_softmax.hpp"
#include "fastrope/exact/packing.hpp"
#include "fastrope/exact/scores.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The scores of some queries against the panels that hold some keys, as Scores::finish leaves them:
/// -infinity where a query may not attend to a key. Memory that may be overwritten, up to whole row multiples
/// of the tile kernel.
template <class Real>
struct ScoreTile {
  Index row;     ///< of the block, the first
  Range rows;    ///< queries of its head
  Range keys;    ///< that some of the rows may attend to
  Range panels;  ///< columns of scores
  Real* scores;  ///< [rows.size(), panels.size()], row stride QueryRows::kStride
  Real factor;   ///< what they are still to be multiplied by
};

/// One worker's block of queries.
template <class T>
class QueryRows {
 public:
  using Real = ArithmeticOf<T>;
  static constexpr Index kTileRows = 48;
  static constexpr Index kRows = 4 * kTileRows;
  static constexpr Index kKeys = 2 * PackedKeys<T>::kWidth;
  /// Of a row of scores: rows a power of two apart would compete for the same lines of the cache.
  static constexpr Index kStride = kKeys + simd::kLanes<Real>;
  static_assert(kTileRows % kRowMultipleOf<T> == 0 && kStretch % kKeys == 0);

  QueryRows(const Problem& problem, Workspace& workspace)
      : words_(words_of<T>(problem.shapes.d)),
        queries_(workspace.take<Real>(kRows * words_).data()),
        allowed_(workspace.take<KeySet>(kRows).data()),
        references_(workspace.take<BiasReference>(kRows).data()),
        scores_(workspace.take<Real>(kTileRows * kStride).data()),
        scratch_(workspace.take<Real>(std::max(kKeys, PackedKeys<T>::scratch_size(problem.shapes))).data()) {}

  /// Takes up rows of query head h. Requires rows.size() <= kRows.
  void start(const Problem& problem, const PackedKeys<T>& packed, const Scores<Real>& scores, Index h,
             const StoredRows& q, Range rows) {
    head_ = h;
    rows_ = rows;
    for (Index r = 0; r < rows.size(); r += kTileRows)
      packed.pack_queries(problem, q.head(h), tile_rows(r), kTileRows,
                          Scores<Real>::template query_factor<T>(problem), queries_ + r * words_, scratch_);
    for (Index r = 0; r < rows.size(); ++r) {
      allowed_[r] = scores.allowed(problem, h, rows.begin + r);
      references_[r] = scores.reference(problem, h, rows.begin + r, allowed_[r]);
    }
  }

  Index head() const { return head_; }
  Range rows() const { return rows_; }
  /// The queries from row r on, times Scores::query_factor, as PackedKeys::pack_queries lays out a tile: a
  /// column a row. Requires T = Real.
  const Real* queries(Index r) const { return queries_ + r / kTileRows * kTileRows * words_ + r % kTileRows; }
  /// The keys that row r may attend to.
  const KeySet& allowed(Index r) const { return allowed_[r]; }
  /// What is taken out of the biases of the rows from r on.
  const BiasReference* references(Index r) const { return references_ + r; }
  /// [kKeys], which scoring a tile overwrites.
  Real* scratch() const { return scratch_; }

  /// visit(ScoreTile) for tiles that hold all pairs with `keys` which mask and key ranges allow, those of a
  /// query in ascending order of the keys; end_stretch() after the last of a stretch.
  template <class Visit, class EndStretch>
  void for_each_tile(const Problem& problem, const PackedKeys<T>& packed, const Scores<Real>& scores,
                     Range keys, Visit&& visit, EndStretch&& end_stretch) const {
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
        score_run(problem, packed, scores, reach[static_cast<std::size_t>(r / kTileRows)], run, visit);
      }
      const Index next = touched ? run.end : std::min(all.end, round_down(next_of(run.end), kKeys));
      if (next / kStretch != j / kStretch || next >= all.end) end_stretch();
      j = next;
    }
  }

 private:
  static constexpr Index kWidth = PackedKeys<T>::kWidth;

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

  /// Scores the tile of some rows against those keys of a run that they can reach.
  template <class Visit>
  void score_run(const Problem& problem, const PackedKeys<T>& packed, const Scores<Real>& scores,
                 const Reach& reach, Range run, Visit&& visit) const {
    const Range keys = intersect(run, reach.some);
    const Index r = reach.rows.begin, tile = round_down(r, kTileRows);
    const Range rows{rows_.begin + r, rows_.begin + reach.rows.end};
    if (keys.empty() || !scores.dense_sees(head_, rows, keys)) return;
    const Range panels{round_down(keys.begin, kWidth), round_up(keys.end, kWidth)};
    scores.product(problem, packed, problem.kv_head(head_), packed.query(queries_ + tile * words_, r - tile),
                   kTileRows, rows, round_up(rows.size(), kRowMultipleOf<T>), panels, scores_, kStride,
                   scratch_);
    Scores<Real>::mark_infinite(problem, rows.size(), panels.size(), scores_, kStride);
    const auto factor = static_cast<Real>(Scores<Real>::template product_factor<T>(problem));
    const bool modified = Scores<Real>::modifies(problem);
    if (modified || scores.dense_masks(problem, head_, rows, keys) ||
        intersect(panels, reach.every) != panels)
      scores.finish(problem, head_, rows, panels, keys, allowed_ + r, references_ + r, modified ? factor : 1,
                    scores_, kStride, scratch_);
    visit(ScoreTile<Real>{r, rows, keys, panels, scores_, modified ? Real{1} : factor});
  }

  Index head_ = 0;
  Range rows_ = {};
  Index words_;                // of a query
  Real* queries_;              // [tiles], as packed
  KeySet* allowed_;            // [kRows], the keys that each row may attend to
  BiasReference* references_;  // [kRows]
  Real* scores_;               // [kTileRows, kStride]
  Real* scratch_;              // a row of a lag function, or what packing wants
};

}  // namespace fastrope::inline FASTROPE_TARGET
