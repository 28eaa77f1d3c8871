// The rows of a call's heads as planning reads them: converted to the arithmetic type, in order of position and
// turned by it.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/measure/rows.hpp"
#include "fastrope/position/rotation.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// row_of(i), [d] each, for i in rows, converted to `to`, [rows.size(), d]. Rows that follow each other in
/// memory are converted together: a row may be shorter than a vector.
template <class Real, class RowOf>
void convert_rows(Range rows, Index d, const RowOf& row_of, Real* to) {
  for (Index i = rows.begin; i < rows.end;) {
    const auto* first = row_of(i);
    Index end = i + 1;
    while (end < rows.end && row_of(end) == first + (end - i) * d) ++end;
    simd::convert(first, (end - i) * d, to + (i - rows.begin) * d);
    i = end;
  }
}

/// Rows row_of(i), i < count, turned by the angles of position_of(i). What they refer to must outlive it.
template <class Real, class RowOf, class PositionOf>
RowSource<Real> rotated_rows(const Rotation& rotation, Index count, Index d, RowOf row_of,
                             PositionOf position_of) {
  std::vector<Real> table(static_cast<std::size_t>(kRowBlock * rotation.row_size()));
  return {count, d, [&rotation, d, row_of, position_of, table](Range rows, bool turned, Real* to) mutable {
            turned = rotation.pairs() > 0 && (turned || rotation.frequencies().attention_factor != 1);
            convert_rows(rows, d, row_of, to);
            if (!turned) return;
            for (Index begin = rows.begin; begin < rows.end; begin += kRowBlock) {
              const Range block{begin, std::min(begin + kRowBlock, rows.end)};
              rotation.fill(block, position_of, table.data());
              for (Index i = block.begin; i < block.end; ++i, to += d)
                rotation.apply(table.data() + (i - begin) * rotation.row_size(), to);
            }
          }};
}

/// Of query head h. The problem and the tensor must outlive it, as below.
template <class Real, class Q>
RowSource<Real> query_rows(const Problem& problem, Index h, TensorView<const Q> q) {
  const LagGrid& grid = problem.grid;
  return rotated_rows<Real>(
      problem.rotation, problem.shapes.n_q, problem.shapes.d,
      [head = q.head(h)](Index i) { return head.row(i); },
      [&grid](Index i) { return grid.query_position(i); });
}

/// Of key head kv.
template <class Real, class K>
RowSource<Real> key_rows(const Problem& problem, Index kv, const K& k) {
  const LagGrid& grid = problem.grid;
  return rotated_rows<Real>(
      problem.rotation, problem.shapes.n_k, problem.shapes.d,
      [&grid, head = k.head(kv)](Index j) { return head.row(grid.source(j)); },
      [&grid](Index j) { return grid.key_position(j); });
}

/// The values of key head kv.
template <class Real, class V>
RowSource<Real> value_rows(const Problem& problem, Index kv, const V& v) {
  const LagGrid& grid = problem.grid;
  const Index d_v = problem.shapes.d_v;
  return {problem.shapes.n_k, d_v, [&grid, head = v.head(kv), d_v](Range rows, bool, Real* to) {
            convert_rows(
                rows, d_v, [&](Index j) { return head.row(grid.source(j)); }, to);
          }};
}

}  // namespace fastrope::inline FASTROPE_TARGET
