// Decode rows: few query rows a key head, scored against blocks of keys where they lie in memory. Nothing is
// packed, so that the one read of the keys is what it costs.
//
// The query rows of a key/value head (n_q of each of its query heads) are taken together, in groups of at
// most 256, so that each key is read once for all of a group.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/online_softmax.hpp"
#include "fastrope/exact/rotation_tables.hpp"
#include "fastrope/exact/row_groups.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/exact/scores.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The queries of a call, in groups of rows, and their scores.
template <class Real>
class DecodeRows {
 public:
  /// The most rows of a group.
  static constexpr Index kMaxRows = 256;
  /// Up to so many rows read keys and values where they lie, by row kernels; more are multiplied with a block
  /// of them at once, the queries side by side.
  static constexpr Index kFewRows = 32;
  static constexpr Index kBlock = kDecodeBlock;
  /// Keys of a split, the most that a task meets.
  static constexpr Index kSplit = kStretch;
  static_assert(kSplit % kBlock == 0);

  /// Every row meets all the keys that some row may attend to: that wastes little only where there are few
  /// rows, or many more keys than queries. And many queries of one head fill the tiles of packed keys.
  static bool suits(const Problem& problem) {
    return must_suit(problem) || (may_suit(problem) && 8 * problem.shapes.n_q <= reach(problem).size());
  }
  /// Whether it does for any number of keys.
  static bool must_suit(const Problem& problem) {
    const Index n_q = problem.shapes.n_q;
    return !problem.weights && (n_q == 1 || n_q * problem.group() <= kFewRows / 2);
  }
  /// Whether it could for some number of keys.
  static bool may_suit(const Problem& problem) {
    const Index n_q = problem.shapes.n_q;
    return !problem.weights && (n_q * problem.group() <= kMaxRows || n_q <= kRowMultiple);
  }
  /// The smallest range that holds the keys which some query may attend to.
  static Range reach(const Problem& problem) { return problem.grid.reached().hull(); }

  DecodeRows(const Problem& problem, Workspace& workspace)
      : tables_(problem, reach(problem), workspace),
        scores_(problem, workspace),
        groups_(problem, kMaxRows),
        lanes_(groups_.rows() > kFewRows ? round_up(groups_.rows(), simd::kLanes<Real>) : 0),
        padded_(lanes_ > 0 ? round_up(groups_.rows(), kRowMultiple) : groups_.rows()),
        key_stride_(round_up(problem.shapes.d, simd::kLanes<Real>)),
        queries_(workspace.take<Real>(groups_.count() * query_rows() * key_stride_).data()),
        blocks_(takes_integers(problem) ? problem.shapes.d / IntegerQuery::kColumns : 0),
        integers_(workspace.take<IntegerQuery>(groups_.all_rows() * blocks_).data()),
        references_(workspace.take<BiasReference>(groups_.all_rows()).data()),
        allowed_(workspace.take<KeySet>(groups_.all_rows()).data()) {}

  /// One worker's scratch for a block of keys.
  struct Buffers {
    Real* scores;   // [padded_rows(), kBlock]
    Real* line;     // [kBlock], a row of a lag function
    Real* keys;     // [kPaddedBlock, key_stride], zero past d
    Real* columns;  // [kPaddedBlock, lanes], scores of queries side by side
  };
  Buffers buffers(Workspace& w) const {
    return {.scores = w.take<Real>(padded_ * kBlock).data(),
            .line = w.take<Real>(kBlock).data(),
            .keys = w.take<Real>(kPaddedBlock * key_stride_).data(),
            .columns = w.take<Real>(kPaddedBlock * lanes_).data()};
  }

  const Scores<Real>& scores() const { return scores_; }
  const RowGroups& groups() const { return groups_; }
  /// Whether queries are multiplied side by side.
  bool many() const { return lanes_ > 0; }
  /// Rows of the largest group, in whole tiles where they are many.
  Index padded_rows() const { return padded_; }
  /// Whether so many rows meet keys or values that were made numbers of Real first, once for all rows: many,
  /// those which are none as they lie, and the narrow ones, which are dear to convert for every few rows.
  bool unpacks(Index rows, const StoredHead& x, bool narrow_as_they_lie) const {
    return many() || x.is_scaled() || (rows > kConvertingRows && x.type->is_narrow() && !narrow_as_they_lie);
  }
  /// The keys that row r of group g may attend to.
  const KeySet& allowed(Index g, Index r) const { return allowed_[groups_.number(g, r)]; }
  /// What is taken out of its biases.
  const BiasReference& reference(Index g, Index r) const { return references_[groups_.number(g, r)]; }

  /// The independent tasks that lay out what depends on positions.
  Index prepare_tasks(const Problem& problem) const { return tables_.tasks(problem) + scores_.tasks(); }
  void prepare(const Problem& problem, Index task) {
    const Index table_tasks = tables_.tasks(problem);
    return task < table_tasks ? tables_.fill(problem, task) : scores_.prepare(problem, task - table_tasks);
  }

  /// Takes up the query row of a number, below groups().all_rows(); once all is prepared.
  void load(const Problem& problem, const StoredRows& q, const KeyRows<Real>& k, Index number,
            const Buffers& b) const {
    const auto [g, r] = groups_.row(number);
    const Index i = groups_.query(g, r), h = groups_.head(g, r), d = problem.shapes.d;
    Real* x = many() ? b.keys : queries_of(g) + r * key_stride_;
    q.head(h).read(i, d, x);
    tables_.turn_query(problem, i, x);
    const auto factor = static_cast<Real>(Scores<Real>::query_factor(problem));
    for (Index c = 0; c < d; ++c) x[c] *= factor;
    std::fill(x + d, x + key_stride_, Real{0});
    if constexpr (std::is_same_v<Real, float>)
      if (k.takes_integers)
        for (Index c = 0; c < blocks_; ++c)
          integers_[number * blocks_ + c].assign(x + c * IntegerQuery::kColumns);
    if (many()) {
      // The lanes after a group's last query hold what memory held: zeros are multiplied as fast as numbers.
      const Index end = r + 1 == groups_.size(g) ? lanes_ : r + 1;
      for (Index c = 0; c < d; ++c) {
        Real* column = queries_of(g) + c * lanes_;
        column[r] = x[c];
        std::fill(column + r + 1, column + end, Real{0});
      }
    }
    allowed_[number] = scores_.allowed(problem, h, i);
    references_[number] = scores_.reference(problem, h, i, allowed_[number]);
  }

  /// The keys of a split from `first` on that some query reaches.
  static Range split_keys(const Problem& problem, Index first) {
    return intersect({first, first + kSplit}, reach(problem));
  }
  /// Of the first block of `keys` from key j on of which a row of group g may see something, those that some
  /// row may attend to, as the smallest range; empty where there is none.
  ///
  /// Blocks begin at multiples of kBlock whatever is seen of them, so that masks of any kind which say the
  /// same give the same bits.
  Range next_seen(const Problem& problem, Index g, Index j, Range keys) const {
    for (; j < keys.end; j = round_down(j, kBlock) + kBlock)
      if (const Range seen = seen_of(problem, g, intersect({j, round_down(j, kBlock) + kBlock}, keys));
          !seen.empty())
        return seen;
    return {};
  }

  /// The source rows of a block of keys or values.
  using BlockRows = std::array<const std::byte*, kBlock>;
  /// Those of the block that holds `seen`; beside it, the rows of its first and last key again.
  static BlockRows block_rows(const Problem& problem, const StoredHead& source, Range seen) {
    BlockRows at;
    const Index first = round_down(seen.begin, kBlock);
    if (seen.size() == kBlock && problem.grid.in_order() && !source.is_paged) {
      const std::byte* row = source.row(first);
      for (Index m = 0; m < kBlock; ++m) at[static_cast<std::size_t>(m)] = row + m * source.row_stride;
      return at;
    }
    for (Index m = 0; m < kBlock; ++m)
      at[static_cast<std::size_t>(m)] =
          source.row(problem.grid.source(std::clamp(first + m, seen.begin, seen.end - 1)));
    return at;
  }
  /// Bytes of a row for a vector of columns, rounded up.
  static Index step_of(const StoredRows& x) {
    return ceil_div(simd::kLanes<Real> * x.type->bytes, x.type->elements);
  }
  /// Asks for `cols` columns of some of the rows ahead.
  static void fetch(RowsAhead ahead, Index cols, Range rows) {
    const Index bytes = ceil_div(cols, simd::kLanes<Real>) * ahead.step;
    for (Index m = rows.begin; m < rows.end; ++m)
      for (Index at = 0; at < bytes; at += kCacheLine) simd::prefetch(ahead.rows[m], at);
  }

  /// What keys are multiplied into for whole tiles of rows: zeros in the rows that a group does not have.
  void clear_padding(Index g, const Buffers& b) const {
    std::fill(b.scores + groups_.size(g) * kBlock, b.scores + padded_ * kBlock, Real{0});
  }
  /// b.scores [rows of group g, kBlock] of the block that holds the keys `seen`, from its begin up to
  /// `seen`'s end in whole vectors: base-2, -infinity where a row may not attend to a key. keys: the block's
  /// rows; `ahead_cols` columns of the rows ahead are fetched meanwhile. Returns the number of columns.
  Index score(const Problem& problem, Index g, const KeyRows<Real>& k, const BlockRows& keys, RowsAhead ahead,
              Index ahead_cols, Range seen, const Buffers& b) const {
    const Index j = round_down(seen.begin, kBlock), cols = round_up(seen.end - j, simd::kLanes<Real>);
    multiply_keys(problem, g, k, keys.data(), ahead, ahead_cols, seen, b);
    Scores<Real>::mark_infinite(problem, groups_.size(g), cols, b.scores, kBlock);
    for (Index r = 0; r < groups_.size(g); ++r) {
      const Index h = groups_.head(g, r), i = groups_.query(g, r);
      if (!Scores<Real>::modifies(problem) && !scores_.dense_masks(problem, h, {i, i + 1}, seen) &&
          allowed(g, r).solid(seen).size() == cols)
        continue;
      scores_.finish(problem, h, {i, i + 1}, {j, j + cols}, seen, &allowed(g, r), &reference(g, r), 1,
                     b.scores + r * kBlock, kBlock, b.line);
    }
    return cols;
  }

 private:
  static constexpr Index kConvertingRows = 8;
  static constexpr Index kPaddedBlock = round_up(kBlock, kRowMultiple);

  /// Rows of a group's queries, or lanes of their columns.
  Index query_rows() const { return std::max(groups_.rows(), lanes_); }
  /// The queries of a group: [rows, key_stride], or where they are many, side by side, [d, lanes].
  Real* queries_of(Index g) const { return queries_ + g * query_rows() * key_stride_; }

  /// Whether keys may be scored by integers: rows are few, whole blocks, and keys come as they lie.
  bool takes_integers(const Problem& problem) const {
    return simd::kIntegerProducts && std::is_same_v<Real, float> && !many() && !problem.rotates() &&
           problem.shapes.d % IntegerQuery::kColumns == 0;
  }
  /// The queries of a group as integers; null where some have no such value.
  const IntegerQuery* integers_of(Index g) const {
    const IntegerQuery* first = integers_ + groups_.number(g, 0) * blocks_;
    const bool all = std::all_of(first, first + groups_.size(g) * blocks_,
                                 [](const IntegerQuery& q) { return q.has_value(); });
    return all ? first : nullptr;
  }

  /// The keys of a block that some row of a group may attend to, as the smallest range; empty too where dense
  /// bias and mask leave nothing of it.
  Range seen_of(const Problem& problem, Index g, Range block) const {
    Range seen = block;
    if (problem.grid.has_ranges() || problem.gates.given()) {
      seen = {};
      for (Index r = 0; r < groups_.size(g); ++r) seen = hull(seen, allowed(g, r).hull(block));
    }
    if (seen.empty() || !problem.is_dense()) return seen;
    for (Index h = groups_.head(g, 0); h <= groups_.head(g, groups_.size(g) - 1); ++h)
      if (scores_.dense_sees(h, {0, problem.shapes.n_q}, block)) return seen;
    return {};
  }

  /// Products of a group's queries and the block that holds the keys `seen`, up to the last of them, for
  /// whole groups of four.
  void multiply_keys(const Problem& problem, Index g, const KeyRows<Real>& k, const std::byte* const* keys,
                     RowsAhead ahead, Index ahead_cols, Range seen, const Buffers& b) const {
    const Index d = problem.shapes.d, first = round_down(seen.begin, kBlock), count = seen.end - first;
    const Real* queries = queries_of(g);
    const Index rows = groups_.size(g);
    if (!unpacks(rows, k, k.takes_integers) && !problem.rotates())
      return k.score({rows, d, queries, key_stride_, k.takes_integers ? integers_of(g) : nullptr}, keys,
                     ahead, count, b.scores);
    const StoredHead head = k.head(groups_.kv_head(g));
    std::array<const std::byte*, kBlock> unpacked;
    for (Index m = 0; m < kBlock; ++m) {
      const Index j = std::clamp(first + m, seen.begin, seen.end - 1);
      Real* x = b.keys + (j - first) * key_stride_;
      if (j == first + m) {
        head.read(problem.grid.source(j), d, x);
        tables_.turn_key(problem, j, x);
      }
      unpacked[static_cast<std::size_t>(m)] = reinterpret_cast<const std::byte*>(x);
    }
    if (!many())
      return detail::score_rows<Real, Real>({rows, d, queries, key_stride_}, unpacked.data(), ahead, count,
                                            b.scores);
    std::fill(b.keys, b.keys + (seen.begin - first) * key_stride_, Real{0});
    std::fill(b.keys + count * key_stride_, b.keys + kPaddedBlock * key_stride_, Real{0});
    constexpr Index kSome = kRowMultiple;
    for (Index m = 0; m < count; m += kSome) {
      fetch(ahead, ahead_cols, {m, std::min(m + kSome, kBlock)});
      multiply<false, Real>(std::min(kSome, count - m), lanes_, d,
                            BroadcastOperand<Real>{b.keys + m * key_stride_, key_stride_, 1}, queries, lanes_,
                            b.columns + m * lanes_, lanes_);
    }
    for (Index m = 0; m < count; m += simd::kBlockRows<Real>)
      simd::transpose_strip(b.columns + m * lanes_, lanes_, rows, b.scores + m, kBlock);
  }

  RotationTables<Real> tables_;
  Scores<Real> scores_;
  RowGroups groups_;
  Index lanes_;                // of queries side by side, where rows are many; else 0
  Index padded_;               // rows of a group, in whole tiles where they are many
  Index key_stride_;           // d in whole vectors
  Real* queries_;              // of each group: queries_of
  Index blocks_;               // of a query as integers; 0 where there are none
  IntegerQuery* integers_;     // [all rows, blocks]
  BiasReference* references_;  // of all rows
  KeySet* allowed_;            // of all rows
};

}  // namespace fastrope::inline FASTROPE_TARGET
