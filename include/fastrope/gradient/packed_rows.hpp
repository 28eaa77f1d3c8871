// What the products of the backward pass read of keys and values: beside the panels of keys that the exact
// path packs, from which scores are made again, the rows of turned keys that d_q sums, and panels of values,
// whose products with d_out are the gradients of weights.
#pragma once

#include <algorithm>
#include <cstddef>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/packing.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Keys and values of every key/value head in the panels that some query reaches. The problem has no values,
/// d_v = 0, so that none are packed as the forward pass wants them.
template <class Real>
class PackedRows {
 public:
  static constexpr Index kWidth = PackedKeys<Real>::kWidth;

  /// With worker_bytes(problem, d_v) of scratch that nobody else uses while a task runs.
  PackedRows(const Problem& problem, Index d_v, const WorkerScratch& scratch, Workspace& workspace)
      : packed_(problem, problem.grid.reached().hull(), scratch, workspace),
        d_v_(d_v),
        key_stride_(round_up(problem.shapes.d, simd::kLanes<Real>)),
        panels_{problem.grid.reached().hull().begin / kWidth,
                ceil_div(problem.grid.reached().hull().end, kWidth)},
        scratch_(scratch) {
    const Index panels = problem.shapes.kv_heads * panels_.size();
    keys_ = workspace.take<Real>(panels * kWidth * key_stride_).data();
    values_ = workspace.take<Real>(panels * kWidth * d_v_).data();
    finite_ = workspace.take<bool>(panels).data();
  }

  static std::size_t worker_bytes(const Problem& problem, Index d_v) {
    return std::max(PackedKeys<Real>::worker_bytes(problem), Workspace::bytes_of([&](Workspace& share) {
                      share.take<Real>(simd::kBlockRows<Real> * value_row_size(d_v));
                    }));
  }

  /// The panels of keys, and the tables of all turns, to be filled before anything is packed.
  const PackedKeys<Real>& keys() const { return packed_; }

  /// The independent tasks of packing.
  Index tasks(const Problem& problem) const { return packed_.tasks(problem); }
  void pack_task(const Problem& problem, const StoredRows& k, const StoredRows& v, Index task, Index worker) {
    const Index kv = task / panels_.size(), p = panels_.begin + task % panels_.size();
    const Range keys{p * kWidth, (p + 1) * kWidth};
    if (problem.grid.has_ranges() && problem.grid.reached().hull(keys).empty()) return;
    const TensorView<const Real> no_values(nullptr, v.heads, v.rows, 0, 0, 0);
    packed_.pack_task(problem, k, no_values, task, worker);

    const Index d = problem.shapes.d, count = intersect(keys, {0, problem.grid.n_k()}).size();
    bool finite = true;
    for (Index r = 0; r < kWidth; ++r) {
      Real* row = keys_ + ((place(kv, p) * kWidth) + r) * key_stride_;
      std::fill_n(row, key_stride_, Real{0});
      if (r >= count) continue;
      k.head(kv).read(problem.grid.source(keys.begin + r), d, row);
      packed_.tables().turn_key(problem, keys.begin + r, row);
      finite &= simd::all_finite(row, key_stride_);
    }
    Workspace share = scratch_.of(worker);
    const Index row_size = value_row_size(d_v_);
    Real* scratch = share.take<Real>(simd::kBlockRows<Real> * row_size).data();
    detail::pack_columns(count, kWidth, d_v_, values_ + place(kv, p) * kWidth * d_v_, scratch, row_size,
                         [&](Index r, Real* x) {
                           v.head(kv).read(problem.grid.source(keys.begin + r), d_v_, x);
                           std::fill(x + d_v_, x + row_size, Real{0});
                           finite &= simd::all_finite(x, row_size);
                         });
    finite_[place(kv, p)] = finite;
  }

  /// Turned keys of a head from key j of a packed panel on, here and below: [.., key_stride], zeros past d
  /// and n_k.
  const Real* key_rows(Index kv, Index j) const { return keys_ + (place(kv, 0) * kWidth + j) * key_stride_; }
  Index key_stride() const { return key_stride_; }
  /// Values of panel p: [d_v, kWidth], zeros past n_k.
  const Real* value_panel(Index kv, Index p) const { return values_ + place(kv, p) * kWidth * d_v_; }
  /// Whether keys and values of the panels that hold `keys` are finite: if not, a factor of 0 does not make
  /// them vanish.
  bool finite(Index kv, Range keys) const {
    for (Index p = keys.begin / kWidth; p < ceil_div(keys.end, kWidth); ++p)
      if (!finite_[place(kv, p)]) return false;
    return true;
  }

 private:
  Index place(Index kv, Index p) const { return kv * panels_.size() + p - panels_.begin; }
  static Index value_row_size(Index d_v) { return round_up(d_v, simd::kLanes<Real>); }

  PackedKeys<Real> packed_;
  Index d_v_;
  Index key_stride_;
  Range panels_;
  Real* keys_;    // [kv_heads, panels, kWidth, key_stride]
  Real* values_;  // [kv_heads, panels, d_v, kWidth]
  bool* finite_;  // [kv_heads, panels]
  WorkerScratch scratch_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
