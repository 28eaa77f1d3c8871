// Shares: which rank computes which pairs of queries and keys.
//
// The queries of rank i meet the keys of rank j on rank i, to which the keys are sent, or on rank j, to which
// the queries are sent and which sends back partial results (Li et al. 2023, DistFlashAttention). Ranks take
// up pairs in the order of i - j until they have their share of all work; what is beyond goes to the other
// side. So a causal mask, where the last rank's queries see all keys and the first's only their own, keeps
// all ranks busy, and a full one sends keys alone.
#pragma once

#include <algorithm>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/position/mask.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi {

/// Rows of one rank: how many, and the positions that they stand at. `consecutive`: at `least`, `least` + 1,
/// ..
struct RankRows {
  Index count = 0;
  Position least = 0;
  Position most = 0;
  bool consecutive = true;
};

/// Pairs with lags that the mask allows; where positions are not consecutive all, unless none can be allowed.
inline double pairs_of(const RankRows& queries, const RankRows& keys, const Mask& mask) {
  if (queries.count == 0 || keys.count == 0) return 0;
  if (queries.most - keys.least < mask.first || queries.least - keys.most > mask.last) return 0;
  if (!queries.consecutive || !keys.consecutive)
    return static_cast<double>(queries.count) * static_cast<double>(keys.count);
  double pairs = 0;
  for (Position p = queries.least; p <= queries.most; ++p) {
    const Position first = std::max(keys.least, p - mask.last), last = std::min(keys.most, p - mask.first);
    pairs += static_cast<double>(std::max<Position>(0, last - first + 1));
  }
  return pairs;
}

/// Some queries of a rank against all keys of a rank.
struct Piece {
  int query_rank, key_rank;
  Range rows;  ///< of the query rank's queries
  int worker;  ///< the rank that computes it: one of the two
};

/// The pieces of all ranks, in the order in which each takes up its own. queries_move: whether queries may be
/// computed elsewhere than on their rank.
inline std::vector<Piece> shares(const std::vector<RankRows>& queries, const std::vector<RankRows>& keys,
                                 const Mask& mask, bool queries_move) {
  constexpr Index kUnit = 96;  // rows, below which a piece is not divided
  const int count = static_cast<int>(queries.size());
  const auto at = [](const auto& list, int r) -> const auto& { return list[static_cast<std::size_t>(r)]; };
  double total = 0;
  for (const RankRows& q : queries)
    for (const RankRows& k : keys) total += pairs_of(q, k, mask);
  const double share = total / count;
  std::vector<double> load(queries.size(), 0.0);
  std::vector<Piece> pieces;
  for (int apart = 0; apart < count; ++apart)
    for (int i = 0; i < count; ++i) {
      const int j = (i - apart + count) % count;
      const double work = pairs_of(at(queries, i), at(keys, j), mask);
      if (work == 0) continue;
      const Index rows = at(queries, i).count;
      double &own = load[static_cast<std::size_t>(i)], &other = load[static_cast<std::size_t>(j)];
      Index here = rows;  // rows that stay
      if (i != j && queries_move) {
        const double beyond = std::min(own + work - std::max(own, share), std::max(0.0, share - other));
        const auto moved = static_cast<Index>(std::max(0.0, beyond) / work * static_cast<double>(rows));
        here = beyond >= work ? 0 : rows - round_down(moved + kUnit / 2, kUnit);
        here = std::max<Index>(0, here);
      }
      own += work * static_cast<double>(here) / static_cast<double>(rows);
      other += work * static_cast<double>(rows - here) / static_cast<double>(rows);
      if (here > 0) pieces.push_back({i, j, {0, here}, i});
      if (here < rows) pieces.push_back({i, j, {here, rows}, j});
    }
  return pieces;
}

}  // namespace fastrope::inline FASTROPE_TARGET::mpi
