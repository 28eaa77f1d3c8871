// RotationTables: the cosines and sines of a call's positions, made once and shared by its heads.
#pragma once

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Turns rows of q and k, in the arithmetic type, by their positions.
template <class Real>
class RotationTables {
 public:
  /// For any query and the keys in `keys` only: a long cache costs nothing where none reaches it.
  RotationTables(const Problem& problem, Range keys, Workspace& workspace)
      : row_size_(problem.rotation.row_size()), filled_(keys) {
    const Shapes& s = problem.shapes;
    const LagGrid& grid = problem.grid;
    // Queries that stand among the keys share their rows of the table.
    shared_ = grid.consecutive() && grid.offset() >= 0 && grid.offset() + s.n_q <= s.n_k;
    first_query_ = shared_ ? grid.offset() : 0;
    if (shared_) filled_ = hull(filled_, {first_query_, first_query_ + s.n_q});
    keys_ = workspace.take<Real>(s.n_k * row_size_).data();
    queries_ = shared_ ? keys_ : workspace.take<Real>(s.n_q * row_size_).data();
  }

  /// The independent tasks that fill the tables.
  Index tasks(const Problem& problem) const {
    if (!problem.rotates()) return 0;
    return key_tasks() + (shared_ ? 0 : ceil_div(problem.grid.n_q(), kBlock));
  }

  /// Call for every task, before anything is turned.
  void fill(const Problem& problem, Index task) const {
    const LagGrid& grid = problem.grid;
    if (task < key_tasks()) {
      const Index first = filled_.begin + task * kBlock;
      const Range rows = intersect({first, first + kBlock}, filled_);
      if (!turns_some(grid, rows)) return;
      problem.rotation.fill(
          rows, [&](Index j) { return grid.key_position(j); }, keys_ + rows.begin * row_size_);
    } else {
      const Index first = (task - key_tasks()) * kBlock;
      const Range rows = intersect({first, first + kBlock}, {0, grid.n_q()});
      problem.rotation.fill(
          rows, [&](Index i) { return grid.query_position(i); }, queries_ + rows.begin * row_size_);
    }
  }

  /// Turns query i, x [d].
  void turn_query(const Problem& problem, Index i, Real* x) const {
    if (problem.rotates()) problem.rotation.apply(queries_ + (first_query_ + i) * row_size_, x);
  }
  /// Turns key j in ascending order of position, x [d].
  void turn_key(const Problem& problem, Index j, Real* x) const {
    if (problem.rotates()) problem.rotation.apply(keys_ + j * row_size_, x);
  }

 private:
  static constexpr Index kBlock = 256;  // rows of a task

  Index key_tasks() const { return ceil_div(filled_.size(), kBlock); }

  /// Whether a key in `rows` may be turned, as part of a panel, or a query that stands there.
  bool turns_some(const LagGrid& grid, Range rows) const {
    if (!grid.has_ranges()) return true;
    if (shared_ && !intersect(rows, {first_query_, first_query_ + grid.n_q()}).empty()) return true;
    const Range panels{round_down(rows.begin, kTileCols<Real>), round_up(rows.end, kTileCols<Real>)};
    return !grid.reached().hull(panels).empty();
  }

  Index row_size_;
  Range filled_;  // the rows of keys_ that are filled
  bool shared_;
  Index first_query_;  // the row of queries_ that is query 0's
  Real* keys_;         // [n_k, row_size]
  Real* queries_;      // [n_q, row_size], or the keys' table
};

}  // namespace fastrope::inline FASTROPE_TARGET
