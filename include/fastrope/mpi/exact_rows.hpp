// Some rows of a call over ranks, computed exactly in double: where sums cannot be vouched for, and to check.
#pragma once

#include <cstddef>
#include <cstring>
#include <iterator>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/mpi/exact_call.hpp"
#include "fastrope/mpi/exchange.hpp"
#include "fastrope/mpi/layout.hpp"
#include "fastrope/mpi/ranks.hpp"
#include "fastrope/problem/options.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// [heads, rows.size(), d_v]: exact attention of these rows of this rank's queries; collective, each rank
/// with rows of its own. x: its tensors; out is not used. Types: CallTypes in double. Requires options
/// without key ranges, dense bias and dense mask.
template <class Types>
std::vector<double> exact_rows(const Ranks& ranks, const Layout& layout, const Options& options,
                               ExactTensors<double> x, std::span<const Index> rows, Traffic& traffic) {
  const Shapes& s = layout.own;
  const Index count = std::ssize(rows), row_bytes = x.q.type->bytes_of(s.d);
  std::vector<Position> positions;
  std::vector<std::byte> queries;
  std::vector<double> results;
  ranks.agree([&] {
    for (const Index i : rows)
      positions.push_back(options.query_positions.empty()
                              ? layout.queries[static_cast<std::size_t>(ranks.rank())].least + i
                              : options.query_positions[static_cast<std::size_t>(i)]);
    queries.resize(static_cast<std::size_t>(s.heads * count * row_bytes));
    std::byte* to = queries.data();
    for (Index h = 0; h < s.heads; ++h)
      for (const Index i : rows) {
        std::memcpy(to, x.q.head(h).row(i), static_cast<std::size_t>(row_bytes));
        to += row_bytes;
      }
    results.resize(static_cast<std::size_t>(s.heads * count * s.d_v));
  });
  x.q = contiguous(reinterpret_cast<const typename Types::Query*>(queries.data()), s.heads, count, s.d);
  x.out = contiguous(results.data(), s.heads, count, s.d_v);
  Layout some = layout;
  some.own.n_q = count;
  some.queries = gather_rows(ranks, rank_rows(positions, count, 0));
  Options of_rows = options;
  of_rows.query_positions = positions;
  traffic += ExactCall<Types>(ranks, some, x, of_rows, /*allow_pairs=*/false).run();
  return results;
}

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
