// GivenPlaces: positions and key ranges as a caller gives them; GridMemory: where LagGrid keeps what it finds
// of them, which may be memory of a run, since engines write to the former between runs.
#pragma once

#include <cstddef>
#include <span>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/position/key_ranges.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Positions and key ranges: views. Arrays may have more rows than a grid of fewer queries and keys reads.
struct GivenPlaces {
  std::span<const Position> queries = {};
  std::span<const Position> keys = {};
  KeyRanges ranges = {};
  Index heads = 1;  ///< of which ranges may be

  /// The positions of the first queries and keys. Ranges, of which every head may have its own, are left.
  GivenPlaces first(Index n_q, Index n_k) const {
    GivenPlaces some = *this;
    if (!queries.empty()) some.queries = queries.first(static_cast<std::size_t>(n_q));
    if (!keys.empty()) some.keys = keys.first(static_cast<std::size_t>(n_k));
    return some;
  }
};

/// The arrays of a LagGrid, as large as they may have to be. The workspace may count.
struct GridMemory {
  std::span<Position> queries, keys;
  std::span<Index> order;
  // Of key ranges:
  std::span<Range> pieces, reached;
  std::span<Index> ends;
  std::span<Index> falls;  // [n_k], where positions are given: how often they have fallen up to each key
  std::span<Index> seen;   // [n_k + 1]: rows whose pieces begin minus those whose pieces end

  GridMemory(const GivenPlaces& given, Index n_q, Index n_k, Workspace& workspace) {
    const Index keys_given = std::ssize(given.keys), ranges = std::ssize(given.ranges.ranges);
    const bool has_ranges = given.ranges.given();
    queries = workspace.take<Position>(given.queries.empty() && keys_given == 0 ? 0 : n_q);
    keys = workspace.take<Position>(keys_given);
    order = workspace.take<Index>(keys_given);
    pieces = workspace.take<Range>(ranges);
    reached = workspace.take<Range>(ranges);
    ends = workspace.take<Index>(has_ranges ? ranges + 1 : 0);
    falls = workspace.take<Index>(has_ranges ? keys_given : 0);
    seen = workspace.take<Index>(has_ranges ? n_k + 1 : 0);
  }
};

}  // namespace fastrope::inline FASTROPE_TARGET
