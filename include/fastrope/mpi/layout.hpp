// Layout: how the rows of a sequence lie on the ranks of a call, once these have agreed that it is one call.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <span>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/mpi/ranks.hpp"
#include "fastrope/mpi/shares.hpp"
#include "fastrope/mpi/terms.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/shapes.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// The same on every rank, but for what is said of this one.
struct Layout {
  Shapes own = {};                                ///< of this rank's rows
  Shapes whole = {};                              ///< of all ranks' together
  Index first_query = 0, first_key = 0;           ///< of this rank, among those of all
  std::vector<Index> first_keys = {};             ///< [ranks]
  std::vector<RankRows> queries = {}, keys = {};  ///< [ranks]
  bool default_places = true;                     ///< no rank gives positions
};

/// A rank's rows, which begin at position `first` where none are given.
inline RankRows rank_rows(std::span<const Position> given, Index count, Position first) {
  if (given.empty() || count == 0) return {count, first, first + count - 1, true};
  const auto [least, most] = std::minmax_element(given.begin(), given.end());
  bool consecutive = true;
  for (Index i = 1; i < count; ++i)
    consecutive =
        consecutive && given[static_cast<std::size_t>(i)] == given[static_cast<std::size_t>(i - 1)] + 1;
  return {count, *least, *most, consecutive};
}

/// The rows of every rank, of which this one has `own`; collective.
inline std::vector<RankRows> gather_rows(const Ranks& ranks, const RankRows& own) {
  std::vector<RankRows> all;
  for (const auto& r : ranks.gather({own.count, own.least, own.most, own.consecutive}))
    all.push_back({r[0], r[1], r[2], r[3] != 0});
  return all;
}

/// How the rows lie; collective. types: what says how the elements of q, k and v are stored. Throws Error,
/// the same on every rank, for terms that differ and for rows that clash with the options on some rank.
inline Layout lay_out(const Ranks& ranks, const Shapes& own, const Options& options,
                      std::span<const Index> types) {
  Layout all{.own = own, .whole = own};
  Terms terms;
  ranks.agree([&] { terms = terms_of(own, options, types); });
  const bool given = !options.query_positions.empty() || !options.key_positions.empty();
  std::vector<Index> row = {own.n_q, own.n_k, given};
  const std::size_t first_term = row.size();
  row.insert(row.end(), terms.numbers().begin(), terms.numbers().end());
  const auto rows = ranks.gather(row);
  all.whole.n_q = all.whole.n_k = 0;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (std::size_t t = first_term; t < row.size(); ++t)
      if (rows[r][t] != rows[0][t])
        fastrope::detail::fail("ranks ", 0, " and ", r, " differ in ", terms.name(t - first_term));
    if (r == static_cast<std::size_t>(ranks.rank())) {
      all.first_query = all.whole.n_q;
      all.first_key = all.whole.n_k;
    }
    all.first_keys.push_back(all.whole.n_k);
    all.whole.n_q += rows[r][0];
    all.whole.n_k += rows[r][1];
    all.default_places = all.default_places && rows[r][2] == 0;
  }
  ranks.agree([&] { require_local(own, all.whole.n_k, options); });
  const Position first_position = all.whole.n_k - all.whole.n_q + all.first_query;
  all.queries = gather_rows(ranks, rank_rows(options.query_positions, own.n_q, first_position));
  all.keys = gather_rows(ranks, rank_rows(options.key_positions, own.n_k, all.first_key));
  return all;
}

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
