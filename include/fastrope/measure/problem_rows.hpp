// The rows of a call's heads as planning reads them: converted to the arithmetic type, in order of position
// and turned by it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/rows.hpp"
#include "fastrope/position/rotation.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Rows index_of(i) of a head, i in rows, converted to `to`, [rows.size(), d]. Rows that follow each other in
/// memory are converted together: a row may be shorter than a vector.
template <class Real, class IndexOf>
void convert_rows(const StoredHead& head, Range rows, Index d, const IndexOf& index_of, Real* to) {
  const Index bytes = head.type->bytes_of(d);
  for (Index i = rows.begin; i < rows.end;) {
    const std::byte* first = head.row(index_of(i));
    Index end = i + 1;
    while (!head.is_scaled() && end < rows.end && head.row(index_of(end)) == first + (end - i) * bytes) ++end;
    if (end == i + 1)
      head.read(index_of(i), d, to + (i - rows.begin) * d);
    else
      head.type->convert(first, (end - i) * d, to + (i - rows.begin) * d);
    i = end;
  }
}

/// Rows index_of(i) of a head, i < count, turned by the angles of position_of(i, section). What they refer
/// to must outlive it, below too.
template <class Real, class IndexOf, class PositionOf>
RowSource<Real> rotated_rows(const Rotation& rotation, const StoredHead& head, Index count, Index d,
                             IndexOf index_of, PositionOf position_of) {
  std::vector<Real> table(static_cast<std::size_t>(kRowBlock * rotation.row_size()));
  return {count, d,
          [&rotation, head, d, index_of, position_of, table](Range rows, bool turned, Real* to) mutable {
            turned = rotation.pairs() > 0 && (turned || rotation.frequencies().attention_factor != 1);
            convert_rows(head, rows, d, index_of, to);
            if (!turned) return;
            for (Index begin = rows.begin; begin < rows.end; begin += kRowBlock) {
              const Range block{begin, std::min(begin + kRowBlock, rows.end)};
              rotation.fill(block, position_of, table.data());
              for (Index i = block.begin; i < block.end; ++i, to += d)
                rotation.apply(table.data() + (i - begin) * rotation.row_size(), to);
            }
          }};
}

/// Of query head h.
template <class Real>
RowSource<Real> query_rows(const Problem& problem, Index h, const StoredRows& q) {
  return rotated_rows<Real>(
      problem.rotation, q.head(h), problem.shapes.n_q, problem.shapes.d, [](Index i) { return i; },
      [&problem](Index i, Index section) { return problem.query_turn(i, section); });
}

/// Of key head kv.
template <class Real>
RowSource<Real> key_rows(const Problem& problem, Index kv, const StoredRows& k) {
  return rotated_rows<Real>(
      problem.rotation, k.head(kv), problem.shapes.n_k, problem.shapes.d,
      [&problem](Index j) { return problem.grid.source(j); },
      [&problem](Index j, Index section) { return problem.key_turn(j, section); });
}

/// The values of key head kv.
template <class Real>
RowSource<Real> value_rows(const Problem& problem, Index kv, const StoredRows& v) {
  const Index d_v = problem.shapes.d_v;
  return {problem.shapes.n_k, d_v,
          [&grid = problem.grid, head = v.head(kv), d_v](Range rows, bool, Real* to) {
            convert_rows(
                head, rows, d_v, [&](Index j) { return grid.source(j); }, to);
          }};
}

}  // namespace fastrope::inline FASTROPE_TARGET
