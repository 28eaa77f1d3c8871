// Packing: q, k and v converted to the arithmetic type, turned by their positions and laid out for the tiles.
//
// A panel is `width` rows stored column by column, [d, width], so that one column of many rows is a vector.
// Keys are packed once per call, in ascending order of position, in panels of kTileCols; queries one block at
// a time.
#pragma once

#include <algorithm>
#include <span>

#include "fastrope/core/index.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope {

/// Keys and values of every key/value head, packed, and the rotation tables of all positions.
template <class Real>
class PackedKeys {
 public:
  static constexpr Index kWidth = kTileCols<Real>;

  PackedKeys(const Problem& problem, Workspace& workspace)
      : d_(problem.shapes.d),
        value_stride_(round_up(problem.shapes.d_v, simd::kLanes<Real>)),
        panel_count_(ceil_div(problem.shapes.n_k, kWidth)) {
    const Shapes& s = problem.shapes;
    const Index row = problem.rotation.row_size();
    const LagGrid& grid = problem.grid;
    shares_table_ = grid.consecutive() && grid.offset() >= 0 && grid.offset() + s.n_q <= s.n_k;
    key_table_ = workspace.take<Real>(s.n_k * row).data();
    query_table_ = shares_table_ ? key_table_ : workspace.take<Real>(s.n_q * row).data();
    query_table_row_ = shares_table_ ? grid.offset() : 0;
    panels_ = workspace.take<Real>(s.kv_heads * panel_count_ * kWidth * d_).data();
    values_ = workspace.take<Real>(s.kv_heads * panel_count_ * kWidth * value_stride_).data();
    finite_ = workspace.take<bool>(s.kv_heads * panel_count_).data();
    scratch_ = workspace.take<Real>(problem.executor.workers() * d_).data();
  }

  /// k: [kv_heads, n_k, d], v: [kv_heads, n_k, d_v].
  template <class K, class V>
  void pack(const Problem& problem, TensorView<const K> k, TensorView<const V> v) {
    const LagGrid& grid = problem.grid;
    constexpr Index kBlock = 256;  // rows of a table filled by one task
    const Index key_blocks = ceil_div(grid.n_k(), kBlock);
    const Index query_blocks = shares_table_ ? 0 : ceil_div(grid.n_q(), kBlock);
    if (problem.rotates()) {
      problem.executor.parallel_for(key_blocks + query_blocks, [&](Index task, Index) {
        const Index row = problem.rotation.row_size();
        if (task < key_blocks) {
          const Range rows = intersect({task * kBlock, (task + 1) * kBlock}, {0, grid.n_k()});
          problem.rotation.fill(
              rows, [&](Index j) { return grid.key_position(j); }, key_table_ + rows.begin * row);
        } else {
          const Index block = task - key_blocks;
          const Range rows = intersect({block * kBlock, (block + 1) * kBlock}, {0, grid.n_q()});
          problem.rotation.fill(
              rows, [&](Index i) { return grid.query_position(i); }, query_table_ + rows.begin * row);
        }
      });
    }
    problem.executor.parallel_for(problem.shapes.kv_heads * panel_count_, [&](Index task, Index worker) {
      const Index kv = task / panel_count_, p = task % panel_count_;
      pack_panel(problem, k.head(kv), {p * kWidth, (p + 1) * kWidth}, mutable_panel(kv, p),
                 scratch_ + worker * d_);
      finite_[task] = pack_values(problem, v.head(kv), {p * kWidth, (p + 1) * kWidth},
                                  values_ + task * kWidth * value_stride_);
    });
  }

  /// Rows [rows.begin, rows.end) of one query head as a panel [d, width] of x * factor, zeros past the end.
  /// scratch: [d].
  template <class Q>
  void pack_queries(const Problem& problem, MatrixView<const Q> q, Range rows, Index width, double factor,
                    Real* panel, Real* scratch) const {
    const Index row = problem.rotation.row_size();
    for (Index i = 0; i < width; ++i) {
      if (i < rows.size()) {
        load_row(q.row(rows.begin + i), scratch);
        if (problem.rotates())
          problem.rotation.apply(query_table_ + (query_table_row_ + rows.begin + i) * row, scratch);
      }
      for (Index c = 0; c < d_; ++c)
        panel[c * width + i] = i < rows.size() ? scratch[c] * static_cast<Real>(factor) : Real{0};
    }
  }

  Index panel_count() const { return panel_count_; }
  /// Panel p of a key head: [d, kWidth], zeros past key n_k.
  const Real* panel(Index kv, Index p) const { return panels_ + (kv * panel_count_ + p) * kWidth * d_; }
  /// Values of a key head: [panel_count * kWidth, value_stride], zeros past n_k and d_v.
  const Real* values(Index kv) const { return values_ + kv * panel_count_ * kWidth * value_stride_; }
  /// Whether the values of the keys of panel p are finite: if not, a weight of 0 does not make them vanish.
  bool finite_values(Index kv, Index p) const { return finite_[kv * panel_count_ + p]; }
  Index value_stride() const { return value_stride_; }

 private:
  Real* mutable_panel(Index kv, Index p) { return panels_ + (kv * panel_count_ + p) * kWidth * d_; }

  template <class T>
  void load_row(const T* source, Real* x) const {
    for (Index c = 0; c < d_; ++c) x[c] = static_cast<Real>(source[c]);
  }

  template <class K>
  void pack_panel(const Problem& problem, MatrixView<const K> k, Range keys, Real* panel,
                  Real* scratch) const {
    const Index row = problem.rotation.row_size();
    for (Index j = keys.begin; j < keys.end; ++j) {
      const bool inside = j < problem.grid.n_k();
      if (inside) {
        load_row(k.row(problem.grid.source(j)), scratch);
        if (problem.rotates()) problem.rotation.apply(key_table_ + j * row, scratch);
      }
      for (Index c = 0; c < d_; ++c) panel[c * kWidth + j - keys.begin] = inside ? scratch[c] : Real{0};
    }
  }

  /// Returns whether all of them are finite.
  template <class V>
  bool pack_values(const Problem& problem, MatrixView<const V> v, Range keys, Real* values) const {
    Real zeros = 0;  // x * 0 is 0 for finite x and NaN otherwise
    for (Index j = keys.begin; j < keys.end; ++j, values += value_stride_) {
      Index c = 0;
      if (j < problem.grid.n_k()) {
        for (const V* row = v.row(problem.grid.source(j)); c < v.cols; ++c) {
          values[c] = static_cast<Real>(row[c]);
          zeros += values[c] * 0;
        }
      }
      std::fill(values + c, values + value_stride_, Real{0});
    }
    return zeros == 0;
  }

  Index d_;
  Index value_stride_;
  Index panel_count_;
  bool shares_table_;  // queries are among the key positions, so one table serves
  Real* key_table_;    // [n_k, row_size]
  Real* query_table_;  // query i's row is query_table_row_ + i
  Index query_table_row_;
  Real* panels_;   // [kv_heads, panel_count, d, kWidth]
  Real* values_;   // [kv_heads, panel_count * kWidth, value_stride]
  bool* finite_;   // [kv_heads, panel_count]
  Real* scratch_;  // [workers, d]
};

}  // namespace fastrope
