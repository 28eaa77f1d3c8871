// LagGrid: where the queries and keys of a call stand, and which pairs the mask and key ranges allow.
//
// Keys are seen in ascending order of position (softmax attention does not care in which order keys come), so
// that the keys a mask lets a query attend to are always one range [begin, end). Ring caches and other
// shuffled key orders are a permutation, `source(j)`, that is applied while keys are packed and nowhere else.
// Key ranges are of keys as they are stored: with them nothing is permuted, and what a mask leaves of a range
// is one range if positions ascend within it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <span>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/position/grid_memory.hpp"
#include "fastrope/position/key_ranges.hpp"
#include "fastrope/position/mask.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Positions p_i of n_q queries, t_j of n_k keys in ascending order (as stored where there are key ranges),
/// the mask over the lags p_i - t_j, and the ranges. Copies share what it found of them.
class LagGrid {
 public:
  /// Positions beyond this, and so more rows, are refused, so that lags and mask arithmetic cannot overflow.
  static constexpr Position kMaxPosition = Position{1} << 40;

  /// Empty spans mean the defaults: keys at 0..n_k-1, queries where the last n_q keys stand (n_k-n_q..n_k-1
  /// for default keys, whatever their number). Throws Error if a span has another length, a position is
  /// beyond kMaxPosition, n_q > n_k queries have no positions beside keys that have, the mask's first lag
  /// is above its last, ranges of n_q rows, or of those of every head, are not as KeyRanges has them, or
  /// positions do not ascend within a range of which the mask leaves a part.
  LagGrid(Index n_q, Index n_k, std::span<const Position> query_positions,
          std::span<const Position> key_positions, Mask mask, KeyRanges ranges = {}, Index heads = 1)
      : LagGrid(n_q, n_k, mask) {
    const GivenPlaces given{query_positions, key_positions, ranges, heads};
    check("query_positions", query_positions, n_q);
    check("key_positions", key_positions, n_k);
    if (ranges.given()) require_rows(given, n_q);
    const std::size_t bytes = Workspace::bytes_of([&](Workspace& w) { GridMemory(given, n_q, n_k, w); });
    if (bytes == 0) return;
    std::shared_ptr<std::byte[]> memory(new std::byte[bytes]);
    Workspace workspace({memory.get(), bytes});
    place(given, n_q, GridMemory(given, n_q, n_k, workspace));
    memory_ = std::move(memory);
  }
  /// The same of the first n_q rows of queries and the first n_k of keys of arrays that have `most_q` rows of
  /// queries and n_k or more of keys, in the workspace, which must outlive it. Allocates nothing.
  LagGrid(Index n_q, Index n_k, GivenPlaces given, Index most_q, Mask mask, Workspace& workspace)
      : LagGrid(n_q, n_k, mask) {
    given = given.first(n_q, n_k);
    check("query_positions", given.queries, n_q);
    check("key_positions", given.keys, n_k);
    place(given, most_q, GridMemory(given, n_q, n_k, workspace));
  }
  /// Takes what that takes.
  static void take(Index n_q, Index n_k, const GivenPlaces& given, Workspace& workspace) {
    GridMemory(given.first(n_q, n_k), n_q, n_k, workspace);
  }
  /// Of all grids of these sizes one that takes the most memory to run: every query sees every key, and
  /// stands beside them.
  static LagGrid widest(Index n_q, Index n_k) {
    LagGrid grid(n_q, n_k, Mask::full());
    grid.first_query_ = n_k;
    return grid;
  }

  Index n_q() const { return n_q_; }
  Index n_k() const { return n_k_; }
  const Mask& mask() const { return mask_; }

  Position query_position(Index i) const { return queries_.empty() ? first_query_ + i : queries_[i]; }
  /// Position of the j-th key in ascending order, as stored where there are key ranges.
  Position key_position(Index j) const { return keys_.empty() ? first_key_ + j : keys_[j]; }
  Position lag(Index i, Index j) const { return query_position(i) - key_position(j); }

  /// max |position| of queries and keys; 0 without any.
  Position farthest_position() const {
    Position farthest = 0;
    const auto see = [&](Position p) { farthest = std::max(farthest, std::abs(p)); };
    for (Position p : queries_) see(p);
    if (queries_.empty() && n_q_ > 0) see(query_position(0)), see(query_position(n_q_ - 1));
    if (n_k_ > 0) see(key_position(0)), see(key_position(n_k_ - 1));
    if (has_ranges())
      for (Position p : keys_) see(p);
    return farthest;
  }

  /// Whether source(j) = j.
  bool in_order() const { return order_.empty(); }
  /// The row of k and v that holds the j-th key.
  Index source(Index j) const { return order_.empty() ? j : order_[j]; }

  /// lag(i, j) = i - j + offset(): what depends on the lag is a Toeplitz matrix.
  bool consecutive() const { return queries_.empty() && keys_.empty(); }
  /// Requires consecutive().
  Position offset() const { return first_query_ - first_key_; }

  /// Whether rows see key ranges, which may be several for a row.
  bool has_ranges() const { return !ends_.empty(); }
  /// Whether these are the same in every head.
  bool shares_ranges() const { return std::ssize(ends_) <= n_q_ + 1; }

  /// How many keys stand at query i's position or before. Requires no key ranges.
  Index keys_until(Index i) const { return lower_bound(query_position(i) + 1, {0, n_k_}); }

  /// The keys that query i may attend to; with key ranges, the smallest range that holds those of any head.
  Range keys_of(Index i) const {
    if (has_ranges()) {
      Range all;
      for (Index row = i; row + 1 < std::ssize(ends_); row += n_q_) all = hull(all, pieces_of(row).hull());
      return all;
    }
    const Position p = query_position(i);
    return {lower_bound(p - mask_.last, {0, n_k_}), lower_bound(p - mask_.first + 1, {0, n_k_})};
  }
  /// The keys that query i of head h may attend to. Views the grid.
  KeySet keys_of(Index h, Index i) const {
    if (!has_ranges()) return keys_of(i);
    return pieces_of(shares_ranges() ? i : h * n_q_ + i);
  }

  /// The smallest range that holds the keys of every query in `rows`. Cost: O(1) where consecutive() without
  /// key ranges.
  Range keys_of(Range rows) const {
    if (consecutive() && !has_ranges() && !rows.empty()) {
      // From a row to the next the mask's lags move by a key: together they are one range.
      const Range all{lower_bound(query_position(rows.begin) - mask_.last, {0, n_k_}),
                      lower_bound(query_position(rows.end - 1) - mask_.first + 1, {0, n_k_})};
      return all.empty() ? Range{} : all;
    }
    Range all;
    for (Index i = rows.begin; i < rows.end; ++i) all = hull(all, keys_of(i));
    return all;
  }
  /// The keys that some query of some head may attend to. Views the grid. Cost: that of keys_of.
  KeySet reached() const { return has_ranges() ? KeySet(reached_) : keys_of(Range{0, n_q_}); }

  /// Queries stand in ascending order, so begin and end of keys_of(i) never decrease.
  bool ascending_queries() const { return std::is_sorted(queries_.begin(), queries_.end()); }

  /// Pairs (i, j) that the mask allows, i in `rows`, on average over the heads. Cost: O(1) where
  /// consecutive() without key ranges.
  double pairs_of(Range rows) const {
    double pairs = 0;
    if (has_ranges()) {
      const Index heads = std::max<Index>(1, (std::ssize(ends_) - 1) / std::max<Index>(1, n_q_));
      for (Index h = 0; h < heads; ++h)
        for (Index i = rows.begin; i < rows.end; ++i)
          pairs += static_cast<double>(keys_of(h, i).size()) / static_cast<double>(heads);
    } else if (!consecutive()) {
      for (Index i = rows.begin; i < rows.end; ++i) pairs += static_cast<double>(keys_of(i).size());
    } else {
      pairs = sum_of_bounds(rows, offset() - mask_.first + 1) - sum_of_bounds(rows, offset() - mask_.last);
    }
    return pairs;
  }
  double allowed_pairs() const { return pairs_of({0, n_q_}); }

  /// The least and greatest lag among allowed pairs; first > last when there are none. Where positions do not
  /// ascend within a key range, of pairs with any key.
  struct Lags {
    Position first = 0;
    Position last = -1;

    bool contain(Position lag) const { return first <= lag && lag <= last; }
  };
  /// Cost: O(1) where consecutive() or with key ranges.
  Lags allowed_lags() const {
    if (has_ranges()) return lags_;
    Lags lags = no_lags();
    if (consecutive()) {
      if (n_q_ == 0 || n_k_ == 0) return lags;
      // Every lag between these is that of some pair.
      const Lags some{std::max(lag(0, n_k_ - 1), mask_.first), std::min(lag(n_q_ - 1, 0), mask_.last)};
      return some.first <= some.last ? some : lags;
    }
    for (Index i = 0; i < n_q_; ++i) add_lags(i, keys_of(i), lags);
    return lags;
  }

 private:
  /// At default positions.
  LagGrid(Index n_q, Index n_k, Mask mask) : n_q_(n_q), n_k_(n_k), mask_(Mask::lags(mask.first, mask.last)) {
    if (n_q < 0 || n_q > kMaxPosition || n_k < 0 || n_k > kMaxPosition)
      detail::fail("n_q = ", n_q, " and n_k = ", n_k, " must not be negative or beyond 2^40");
    first_query_ = n_k - n_q;
  }

  static void check(const char* name, std::span<const Position> positions, Index n) {
    if (!positions.empty() && static_cast<Index>(positions.size()) != n)
      detail::fail(name, " has ", positions.size(), " entries for ", n, " rows");
    for (Position p : positions)
      if (p > kMaxPosition || p < -kMaxPosition) detail::fail(name, ": ", p, " is beyond +-2^40");
  }

  /// range_rows: rows of queries that the ranges have.
  void place(const GivenPlaces& given, Index range_rows, const GridMemory& memory) {
    set_keys(given.keys, /*as_stored=*/given.ranges.given(), memory);
    std::span<Position> queries = memory.queries;
    std::copy(given.queries.begin(), given.queries.end(), queries.begin());
    if (given.queries.empty() && !given.keys.empty()) {
      if (n_q_ > n_k_)
        detail::fail("key_positions are given for ", n_k_, " keys: ", n_q_,
                     " queries need query_positions too");
      for (Index i = 0; i < n_q_; ++i) queries[i] = key_position(n_k_ - n_q_ + i);
    }
    if (!queries.empty() && is_consecutive(queries))
      first_query_ = queries.front();
    else
      queries_ = queries;
    if (given.ranges.given()) set_ranges(given, range_rows, memory);
  }

  void set_keys(std::span<const Position> positions, bool as_stored, const GridMemory& memory) {
    if (positions.empty()) return;
    const std::span<Position> keys = memory.keys;
    if (as_stored || std::is_sorted(positions.begin(), positions.end())) {
      std::copy(positions.begin(), positions.end(), keys.begin());
    } else {
      sort(positions, memory.order);
      for (std::size_t j = 0; j < keys.size(); ++j) keys[j] = positions[memory.order[j]];
      order_ = memory.order;
    }
    if (is_consecutive(keys))
      first_key_ = keys.front();
    else
      keys_ = keys;
  }

  /// order [positions.size()] = the stable order by position. Cost: O(n) for a ring.
  static void sort(std::span<const Position> positions, std::span<Index> order) {
    std::iota(order.begin(), order.end(), Index{0});
    const auto fall = std::is_sorted_until(positions.begin(), positions.end());
    if (std::is_sorted(fall, positions.end()) && positions.back() < positions.front())
      std::rotate(order.begin(), order.begin() + (fall - positions.begin()), order.end());
    else
      std::sort(order.begin(), order.end(), [&](Index a, Index b) {
        return positions[a] != positions[b] ? positions[a] < positions[b] : a < b;
      });
  }

  static bool is_consecutive(std::span<const Position> positions) {
    return std::adjacent_find(positions.begin(), positions.end(),
                              [](Position a, Position b) { return b != a + 1; }) == positions.end();
  }

  /// sum over i in rows of i + shift, cut off at 0 and n_k.
  double sum_of_bounds(Range rows, Position shift) const {
    const Index low = std::clamp<Position>(-shift, rows.begin, rows.end),
                high = std::clamp<Position>(n_k_ - shift, rows.begin, rows.end);
    const auto real = [](Position x) { return static_cast<double>(x); };
    return real(high - low) * (real(low + high - 1) / 2 + real(shift)) + real(rows.end - high) * real(n_k_);
  }

  /// The first of the keys in `range`, whose positions ascend, at position t or beyond.
  Index lower_bound(Position t, Range range) const {
    if (keys_.empty()) return std::clamp<Position>(t - first_key_, range.begin, range.end);
    const auto first = keys_.begin();
    return std::lower_bound(first + range.begin, first + range.end, t) - first;
  }

  static Lags no_lags() { return {2 * Mask::kUnlimited, -2 * Mask::kUnlimited}; }
  /// Of query i and keys whose positions ascend.
  void add_lags(Index i, Range keys, Lags& lags) const {
    if (keys.empty()) return;
    lags = {std::min(lags.first, lag(i, keys.end - 1)), std::max(lags.last, lag(i, keys.begin))};
  }

  /// Row `row` of [heads, n_q], or of [n_q].
  KeySet pieces_of(Index row) const {
    const auto *begin = pieces_.data() + ends_[row], *end = pieces_.data() + ends_[row + 1];
    return KeySet(std::span<const Range>(begin, end));
  }

  /// Throws Error unless ranges have n_q rows, of all heads or of each.
  static void require_rows(const GivenPlaces& given, Index n_q) {
    const Index m = given.ranges.per_row, size = std::ssize(given.ranges.ranges);
    if (m < 1 || (size != saturating_product(n_q, m) &&
                  size != saturating_product(given.heads, saturating_product(n_q, m))))
      detail::fail("key_ranges has ", size, " ranges of ", m, " a row, for n_q = ", n_q,
                   " rows: n_q m of all heads together, or heads n_q m, heads = ", given.heads);
  }

  /// Finds pieces_, ends_, reached_ and lags_. range_rows: of a head in the ranges given.
  void set_ranges(const GivenPlaces& given, Index range_rows, const GridMemory& memory) {
    const Index m = given.ranges.per_row, size = std::ssize(given.ranges.ranges);
    const Index rows = size == saturating_product(range_rows, m) ? n_q_ : given.heads * n_q_;
    // How often positions have fallen up to each key: as often at both ends of a range within which they
    // ascend.
    const std::span<Index> falls = memory.falls, seen = memory.seen;
    for (std::size_t j = 0; j < keys_.size(); ++j)
      falls[j] = j == 0 ? 0 : falls[j - 1] + (keys_[j] < keys_[j - 1]);
    const bool masked = mask_ != Mask::full();
    std::fill(seen.begin(), seen.end(), Index{0});
    lags_ = no_lags();
    Index count = 0;  // of pieces
    memory.ends[0] = 0;
    for (Index row = 0; row < rows; ++row) {
      const Index i = row % n_q_, first_range = (row / n_q_ * range_rows + i) * m;
      const auto fail = [&](Range range, const auto&... what) {
        if (rows > n_q_)
          detail::fail("key_ranges: head ", row / n_q_, ", row ", i, " has [", range.begin, ", ", range.end,
                       ")", what...);
        detail::fail("key_ranges: row ", i, " has [", range.begin, ", ", range.end, ")", what...);
      };
      const Position first = query_position(i) - mask_.last, last = query_position(i) - mask_.first;
      Index end = 0;  // of the ranges before
      for (const Range range :
           given.ranges.ranges.subspan(static_cast<std::size_t>(first_range), static_cast<std::size_t>(m))) {
        if (range.empty()) continue;
        if (range.begin < 0 || range.end > n_k_) fail(range, ", beyond the n_k = ", n_k_, " keys");
        if (range.begin < end)
          fail(range, ", before the end ", end, " of a range to its left: ranges ascend");
        end = range.end;
        const bool ascends = keys_.empty() || falls[range.begin] == falls[range.end - 1];
        if (masked && !ascends)
          fail(range, ", within which positions do not ascend, and a mask of the lags ", mask_.first, " to ",
               mask_.last, " would leave gaps: use ranges of ascending positions, or Mask::full()");
        const Range piece = masked ? Range{lower_bound(first, range), lower_bound(last + 1, range)} : range;
        if (piece.empty()) continue;
        if (ascends)
          add_lags(i, piece, lags_);
        else
          for (const Position p : keys_)
            lags_ = {std::min(lags_.first, query_position(i) - p),
                     std::max(lags_.last, query_position(i) - p)};
        ++seen[piece.begin];
        --seen[piece.end];
        if (count > memory.ends[row] && memory.pieces[count - 1].end == piece.begin)
          memory.pieces[count - 1].end = piece.end;
        else
          memory.pieces[count++] = piece;
      }
      memory.ends[row + 1] = count;
    }
    pieces_ = memory.pieces.first(static_cast<std::size_t>(count));
    ends_ = memory.ends.first(static_cast<std::size_t>(rows) + 1);
    count = 0;  // of ranges that some row reaches
    for (Index j = 0, rows_here = 0; j < n_k_; ++j) {
      rows_here += seen[j];
      if (rows_here == 0) continue;
      if (count > 0 && memory.reached[count - 1].end == j)
        ++memory.reached[count - 1].end;
      else
        memory.reached[count++] = {j, j + 1};
    }
    reached_ = memory.reached.first(static_cast<std::size_t>(count));
  }

  Index n_q_;
  Index n_k_;
  Mask mask_;
  Position first_query_ = 0;                // where queries_ is empty
  Position first_key_ = 0;                  // where keys_ is empty
  std::span<const Position> queries_ = {};  // empty when consecutive
  std::span<const Position> keys_ = {};     // ascending unless there are key ranges; empty when consecutive
  std::span<const Index> order_ = {};       // empty when keys already ascend, or need not
  // What the mask leaves of key ranges; empty without them.
  std::span<const Range> pieces_ = {};  // of all rows of the first head, or of all heads, one after the other
  std::span<const Index> ends_ = {};    // [rows + 1] in pieces_
  std::span<const Range> reached_ = {};             // of all rows together
  std::shared_ptr<const std::byte[]> memory_ = {};  // of all these; null where it is the caller's
  Lags lags_ = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET
