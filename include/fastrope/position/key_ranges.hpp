// Key ranges: which keys each query row may attend to, as a few ranges of them, beside the mask of the lags.
//
// Packed documents, chunks of attention, prefixes and trees of drafted tokens are a range or a few in every
// row: n_q m numbers say what a dense mask says in n_q n_k, and keys that no row of a block reaches cost
// nothing.
#pragma once

#include <algorithm>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Row i of every head sees the union of ranges[i m] .. ranges[(i + 1) m - 1], m = per_row: half-open ranges
/// of rows of k, whatever their positions, which ascend and do not overlap; empty ones are padding. Of heads
/// that differ: heads n_q m ranges, head after head. Views memory, which is read when a call is
/// checked, and by a plan with capacity whenever it is run.
struct KeyRanges {
  std::span<const Range> ranges = {};
  Index per_row = 0;  ///< 0: no ranges are given, every key may be seen

  bool given() const { return per_row != 0 || !ranges.empty(); }
};

/// Ranges for KeyRanges with their memory, of patterns that models and engines use.
///
///     const std::vector<Index> lengths = {300, 200, 524};
///     const auto rows = fastrope::RowRanges::documents(lengths);  // must outlive the call
///     fastrope::attend(q, k, v, out, {.mask = fastrope::Mask::causal(), .key_ranges = rows});
struct RowRanges {
  std::vector<Range> ranges;  ///< [rows, per_row]
  Index per_row = 1;

  operator KeyRanges() const& { return {ranges, per_row}; }
  operator KeyRanges() const&& = delete;  // would dangle

  /// Documents of these lengths one after the other, among queries and keys alike: each row sees its own.
  /// With a causal mask, what comes before in its own. Throws Error for a negative length.
  static RowRanges documents(std::span<const Index> lengths);
  /// n tokens in chunks of `length`, the last may be shorter: each row sees its own chunk. Throws Error where
  /// n < 0 or length < 1.
  static RowRanges chunks(Index n, Index length);
  /// n tokens of which the first `prefix` are seen by every row, and the others by themselves and what comes
  /// after: a prefix language model, with a full mask. Throws Error unless 0 <= prefix <= n.
  static RowRanges prefix(Index n, Index prefix);
  /// Drafted tokens over a cache: token t is key `cached` + t, and sees the `cached` keys before the tokens,
  /// its ancestors and itself. parents[t] < t is its parent, -1 for none. With a full mask; a token's
  /// position, in query_positions and key_positions, is `cached` plus its depth. Throws Error for a parent
  /// that does not come before.
  ///
  ///     const std::vector<Index> parents = {-1, 0, 0, 1};  // 0 -> 1 -> 3, 0 -> 2
  ///     const auto rows = fastrope::RowRanges::tree(/*cached=*/900, parents);  // 4 queries, 904 keys
  static RowRanges tree(Index cached, std::span<const Index> parents);
};

/// Some keys: ranges that ascend, do not touch and are not empty; those of a row, or of all rows. One range,
/// the most frequent, is held in place; several are views.
class KeySet {
 public:
  KeySet() = default;
  KeySet(Range keys) : hull_(keys) {}
  /// Requires pieces that ascend, do not touch, are not empty, and outlive it.
  explicit KeySet(std::span<const Range> pieces) {
    if (pieces.empty()) return;
    hull_ = {pieces.front().begin, pieces.back().end};
    if (pieces.size() > 1) pieces_ = pieces;
  }

  bool empty() const { return hull_.empty(); }
  /// The smallest range that holds all of them.
  Range hull() const { return hull_; }
  /// The smallest range that holds those in `keys`.
  Range hull(Range keys) const {
    if (pieces_.empty()) return intersect(hull_, keys);
    const auto [first, last] = pieces_in(keys);
    if (first == last) return {};
    return intersect({first->begin, std::prev(last)->end}, keys);
  }
  /// The same where no key within is missing, else empty.
  Range solid(Range keys) const {
    if (pieces_.empty()) return intersect(hull_, keys);
    const auto [first, last] = pieces_in(keys);
    if (last - first != 1) return {};
    return intersect(*first, keys);
  }
  /// visit(range) for each piece of those in `keys`, in ascending order.
  template <class Visit>
  void for_each(Range keys, Visit&& visit) const {
    if (pieces_.empty()) {
      if (const Range one = intersect(hull_, keys); !one.empty()) visit(one);
      return;
    }
    const auto [first, last] = pieces_in(keys);
    for (auto piece = first; piece != last; ++piece) visit(intersect(*piece, keys));
  }
  /// The first of them from key j on; the end of the hull where there is none.
  Index next(Index j) const {
    if (pieces_.empty()) return j < hull_.end ? std::max(j, hull_.begin) : hull_.end;
    const auto piece = first_beyond(j);
    return piece == pieces_.end() ? hull_.end : std::max(j, piece->begin);
  }
  Index size() const {
    Index size = 0;
    for_each(hull_, [&](Range piece) { size += piece.size(); });
    return size;
  }

 private:
  using Piece = std::span<const Range>::iterator;

  /// The first piece that ends beyond key j.
  Piece first_beyond(Index j) const {
    if (j < pieces_.front().end) return pieces_.begin();  // as most are: a prefix or a cache
    return std::partition_point(pieces_.begin(), pieces_.end(), [j](Range piece) { return piece.end <= j; });
  }
  /// The pieces that have keys in `keys`, [first, last).
  std::pair<Piece, Piece> pieces_in(Range keys) const {
    if (keys.empty()) return {pieces_.begin(), pieces_.begin()};
    const Piece first = first_beyond(keys.begin);
    Piece last = first;
    while (last != pieces_.end() && last->begin < keys.end) ++last;
    return {first, last};
  }

  Range hull_ = {};
  std::span<const Range> pieces_ = {};  // empty: all of the hull
};

inline RowRanges RowRanges::documents(std::span<const Index> lengths) {
  RowRanges rows;
  Index first = 0;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    if (lengths[s] < 0) detail::fail("document ", s, " has ", lengths[s], " tokens");
    rows.ranges.insert(rows.ranges.end(), static_cast<std::size_t>(lengths[s]), {first, first + lengths[s]});
    first += lengths[s];
  }
  return rows;
}

inline RowRanges RowRanges::chunks(Index n, Index length) {
  if (n < 0 || length < 1) detail::fail(n, " tokens cannot be cut into chunks of ", length);
  RowRanges rows;
  for (Index i = 0; i < n; ++i)
    rows.ranges.push_back(intersect({round_down(i, length), round_down(i, length) + length}, {0, n}));
  return rows;
}

inline RowRanges RowRanges::prefix(Index n, Index prefix) {
  if (prefix < 0 || prefix > n) detail::fail("a prefix of ", prefix, " of ", n, " tokens");
  RowRanges rows;
  for (Index i = 0; i < n; ++i) rows.ranges.push_back({0, std::max(prefix, i + 1)});
  return rows;
}

inline RowRanges RowRanges::tree(Index cached, std::span<const Index> parents) {
  if (cached < 0) detail::fail("a tree over ", cached, " cached keys");
  std::vector<std::vector<Range>> paths;  // of each token, ascending
  std::size_t most = 1;
  for (Index t = 0; t < std::ssize(parents); ++t) {
    const Index parent = parents[static_cast<std::size_t>(t)], key = cached + t;
    if (parent < -1 || parent >= t)
      detail::fail("the parent of drafted token ", t, " is ", parent, ": it must come before, or be -1");
    std::vector<Range> path;
    if (parent >= 0)
      path = paths[static_cast<std::size_t>(parent)];
    else if (cached > 0)
      path = {{0, cached}};
    if (!path.empty() && path.back().end == key)
      path.back().end = key + 1;
    else
      path.push_back({key, key + 1});
    most = std::max(most, path.size());
    paths.push_back(std::move(path));
  }
  RowRanges rows{.ranges = {}, .per_row = static_cast<Index>(most)};
  for (const std::vector<Range>& path : paths) {
    rows.ranges.insert(rows.ranges.end(), path.begin(), path.end());
    rows.ranges.insert(rows.ranges.end(), most - path.size(), Range{});
  }
  return rows;
}

}  // namespace fastrope::inline FASTROPE_TARGET
