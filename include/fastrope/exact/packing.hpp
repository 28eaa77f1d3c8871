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
#include "fastrope/exact/rotation_tables.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope {

namespace detail {

/// Rows that are laid out as columns in one go, and the room a row has before: what pack_columns wants.
template <class Real>
inline constexpr Index kPackRows = simd::kBlockRows<Real>;
template <class Real>
constexpr Index pack_stride(Index d) {
  return round_up(d, simd::kLanes<Real>);
}

/// panel(c, i) = row i's element c for c < d and i < width, row stride `width` of the panel; zeros from
/// `count` on. load(i, x) writes row i to x [d]; scratch: [kPackRows, pack_stride]. Requires width a multiple
/// of kPackRows.
template <class Real, class Load>
void pack_columns(Index count, Index width, Index d, Real* panel, Real* scratch, Load&& load) {
  using namespace simd;
  const Index stride = pack_stride<Real>(d);
  for (Index i = 0; i < width; i += kPackRows<Real>) {
    for (Index r = 0; r < kPackRows<Real>; ++r) {
      if (i + r < count)
        load(i + r, scratch + r * stride);
      else
        std::fill_n(scratch + r * stride, d, Real{0});
    }
    Index c = 0;
    for (; c + kLanes<Real> <= d; c += kLanes<Real>)
      transpose_block(scratch + c, stride, panel + c * width + i, width);
    for (; c < d; ++c)
      for (Index r = 0; r < kPackRows<Real>; ++r) panel[c * width + i + r] = scratch[r * stride + c];
  }
}

}  // namespace detail

/// Keys and values of every key/value head, packed, and the rotation tables of all positions.
template <class Real>
class PackedKeys {
 public:
  static constexpr Index kWidth = kTileCols<Real>;

  PackedKeys(const Problem& problem, Workspace& workspace)
      : PackedKeys(problem, WorkerScratch(problem.executor.workers(), worker_bytes(problem), workspace),
                   workspace) {}
  /// With worker_bytes(problem) of scratch that nobody else uses while a task runs.
  PackedKeys(const Problem& problem, const WorkerScratch& scratch, Workspace& workspace)
      : tables_(problem, {0, problem.shapes.n_k}, workspace),
        d_(problem.shapes.d),
        value_stride_(round_up(problem.shapes.d_v, simd::kLanes<Real>)),
        panel_count_(ceil_div(problem.shapes.n_k, kWidth)),
        scratch_(scratch) {
    const Shapes& s = problem.shapes;
    panels_ = workspace.take<Real>(s.kv_heads * panel_count_ * kWidth * d_).data();
    values_ = workspace.take<Real>(s.kv_heads * panel_count_ * kWidth * value_stride_).data();
    finite_ = workspace.take<bool>(s.kv_heads * panel_count_).data();
  }

  /// k: [kv_heads, n_k, d], v: [kv_heads, n_k, d_v]: views with head(h).row(j).
  template <class K, class V>
  void pack(const Problem& problem, const K& k, const V& v) {
    problem.executor.parallel_for(tables_.tasks(problem),
                                  [&](Index task, Index) { tables_.fill(problem, task); });
    problem.executor.parallel_for(tasks(problem),
                                  [&](Index task, Index worker) { pack_task(problem, k, v, task, worker); });
  }

  /// To be filled before anything is packed.
  const RotationTables<Real>& tables() const { return tables_; }

  /// The independent tasks of packing.
  Index tasks(const Problem& problem) const { return problem.shapes.kv_heads * panel_count_; }
  template <class K, class V>
  void pack_task(const Problem& problem, const K& k, const V& v, Index task, Index worker) {
    const Index kv = task / panel_count_, p = task % panel_count_;
    Workspace share = scratch_.of(worker);
    pack_panel(problem, k.head(kv), {p * kWidth, (p + 1) * kWidth}, mutable_panel(kv, p),
               share.take<Real>(scratch_size(d_)).data());
    finite_[task] = pack_values(problem, v.head(kv), {p * kWidth, (p + 1) * kWidth},
                                values_ + task * kWidth * value_stride_);
  }
  static std::size_t worker_bytes(const Problem& problem) {
    return Workspace::bytes_of([&](Workspace& share) { share.take<Real>(scratch_size(problem.shapes.d)); });
  }

  /// Elements of scratch that packing rows of d takes.
  static Index scratch_size(Index d) { return detail::kPackRows<Real> * detail::pack_stride<Real>(d); }

  /// Rows [rows.begin, rows.end) of one query head as a panel [d, width] of x * factor, zeros past the end.
  /// scratch: [scratch_size(d)]. Requires width a multiple of kRowMultiple.
  template <class Q>
  void pack_queries(const Problem& problem, MatrixView<const Q> q, Range rows, Index width, double factor,
                    Real* panel, Real* scratch) const {
    detail::pack_columns(rows.size(), width, d_, panel, scratch, [&](Index i, Real* x) {
      tables_.load_query(problem, q.row(rows.begin + i), rows.begin + i, x);
      for (Index c = 0; c < d_; ++c) x[c] *= static_cast<Real>(factor);
    });
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

  template <class K>
  void pack_panel(const Problem& problem, const K& k, Range keys, Real* panel, Real* scratch) const {
    const Index count = intersect(keys, {0, problem.grid.n_k()}).size();
    detail::pack_columns(count, kWidth, d_, panel, scratch, [&](Index j, Real* x) {
      tables_.load_key(problem, k.row(problem.grid.source(keys.begin + j)), keys.begin + j, x);
    });
  }

  /// Returns whether all of them are finite.
  template <class V>
  bool pack_values(const Problem& problem, const V& v, Range keys, Real* values) const {
    using namespace simd;
    Vec<Real> zeros = zero<Real>();  // x * 0 is 0 for finite x and NaN otherwise
    for (Index j = keys.begin; j < keys.end; ++j, values += value_stride_) {
      const Index count = j < problem.grid.n_k() ? problem.shapes.d_v : 0;
      if (count > 0) convert(v.row(problem.grid.source(j)), count, values);
      std::fill(values + count, values + value_stride_, Real{0});
      for (Index c = 0; c < value_stride_; c += kLanes<Real>)
        zeros = fma(load(values + c), zero<Real>(), zeros);
    }
    return reduce_add<Real>(zeros) == 0;
  }

  RotationTables<Real> tables_;
  Index d_;
  Index value_stride_;
  Index panel_count_;
  Real* panels_;  // [kv_heads, panel_count, d, kWidth]
  Real* values_;  // [kv_heads, panel_count * kWidth, value_stride]
  bool* finite_;  // [kv_heads, panel_count]
  WorkerScratch scratch_;
};

}  // namespace fastrope
