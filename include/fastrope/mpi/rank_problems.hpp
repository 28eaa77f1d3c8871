// The problems of a call over ranks: of all rows, and of one rank's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/executor.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/mpi/layout.hpp"
#include "fastrope/position/lag_grid.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// Whether all rows see all keys.
inline bool sees_all_keys(const LagGrid& grid) {
  return grid.n_q() == 0 || grid.keys_of(0).end >= grid.n_k();
}

/// Why a rank's queries cannot do with all keys of the ranks before and some of its own; else empty.
inline std::string near_keys_refusal(const Layout& layout, const LagGrid& grid) {
  if (sees_all_keys(grid)) return {};
  Index first = 0;  // query of the rank
  for (std::size_t r = 0; r < layout.queries.size(); first += layout.queries[r++].count) {
    const Index rows = layout.queries[r].count, first_key = layout.first_keys[r],
                end = first_key + layout.keys[r].count;
    if (rows == 0) continue;
    const Index least = grid.keys_of(first).end, most = grid.keys_of(first + rows - 1).end;
    if (least < first_key || most > end)
      return fastrope::detail::message("rank ", r, " has the keys from ", first_key, " to ", end,
                                       ", and its queries see as few as ", std::max<Index>(least, 0),
                                       " and as many as ", most, ": near keys would be other ranks'");
  }
  return {};
}

/// The call of all ranks as one, with the options of all rows; its executor is the calling thread, which
/// alone calls MPI.
inline Problem whole_problem(const Layout& layout, const Options& options) {
  Options of_all = options;
  of_all.executor = Executor::serial();
  return {layout.whole, of_all};
}

/// The call of some of this rank's rows, the first queries and keys, at their positions among all. Requires
/// default positions.
inline Problem own_problem(const Layout& layout, const Options& options, Index n_q, Index n_k) {
  const auto from = [](Position first, Index count) {
    std::vector<Position> positions(static_cast<std::size_t>(count));
    for (Index i = 0; i < count; ++i) positions[static_cast<std::size_t>(i)] = first + i;
    return positions;
  };
  const std::vector<Position> queries = from(layout.whole.n_k - layout.whole.n_q + layout.first_query, n_q),
                              keys = from(layout.first_key, n_k);
  Options of_rank = options;
  of_rank.query_positions = queries;
  of_rank.key_positions = keys;
  Shapes shapes = layout.own;
  shapes.n_q = n_q;
  shapes.n_k = n_k;
  return {shapes, of_rank};
}

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
