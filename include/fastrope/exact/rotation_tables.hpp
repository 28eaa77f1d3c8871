// RotationTables: the cosines and sines of a call's positions, shared by its heads: those that its plan
// keeps, or made in each run.
#pragma once

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Rows of a table that a plan does well to keep (Rotation::keep): of all keys, where they stand at their
/// default positions and are reached; of a window, runs make the few that they need.
inline Index kept_rotations(const Problem& problem) {
  const LagGrid& grid = problem.grid;
  const Index n_q = problem.shapes.n_q, n_k = problem.shapes.n_k;
  // Key ranges that are read when run may reach what those of now do not.
  const Range reached =
      (problem.reads_places() ? LagGrid(n_q, n_k, {}, {}, grid.mask()) : grid).reached().hull();
  const bool all =
      grid.consecutive() && grid.key_position(0) == 0 && problem.turns_by_lag() && reached == Range{0, n_k};
  return problem.rotates() && all ? n_k : 0;
}

/// Turns rows of q and k, in the arithmetic type, by their positions.
template <class Real>
class RotationTables {
 public:
  /// For any query and the keys in `keys` only: a long cache costs neither time nor memory where none reaches
  /// it.
  RotationTables(const Problem& problem, Range keys, Workspace& workspace)
      : row_size_(problem.rotation.row_size()), keys_(keys) {
    const Index n_q = problem.shapes.n_q, n_k = problem.shapes.n_k;
    const LagGrid& grid = problem.grid;
    // Queries that stand among the keys, or beside them, share the keys' rows.
    if (grid.consecutive() && problem.turns_by_lag() && grid.offset() >= 0 && grid.offset() + n_q <= n_k) {
      const Real* kept = grid.key_position(0) == 0 ? problem.rotation.template kept<Real>(n_k) : nullptr;
      kept_ = kept != nullptr;
      const Range all = kept_ ? Range{0, n_k} : hull(keys, {grid.offset(), grid.offset() + n_q});
      shared_ = kept_ || all.size() <= keys.size() + n_q;
      if (shared_) keys_ = all;
      key_rows_ = kept;
    }
    if (kept_) return;
    key_rows_ = own_rows_ = workspace.take<Real>(keys_.size() * row_size_).data();
    query_rows_ = shared_ ? nullptr : workspace.take<Real>(n_q * row_size_).data();
  }

  /// The independent tasks that fill the tables.
  Index tasks(const Problem& problem) const {
    if (!problem.rotates() || kept_) return 0;
    return key_tasks() + (shared_ ? 0 : ceil_div(problem.shapes.n_q, kBlock));
  }

  /// Call for every task, before anything is turned.
  void fill(const Problem& problem, Index task) const {
    if (task < key_tasks()) {
      const Index first = keys_.begin + task * kBlock;
      const Range rows = intersect({first, first + kBlock}, keys_);
      if (!turns_some(problem.grid, rows)) return;
      problem.rotation.fill(
          rows, [&](Index j, Index section) { return problem.key_turn(j, section); },
          own_rows_ + (rows.begin - keys_.begin) * row_size_);
    } else {
      const Index first = (task - key_tasks()) * kBlock;
      const Range rows = intersect({first, first + kBlock}, {0, problem.shapes.n_q});
      problem.rotation.fill(
          rows, [&](Index i, Index section) { return problem.query_turn(i, section); },
          query_rows_ + rows.begin * row_size_);
    }
  }

  /// Turns query i, x [d].
  void turn_query(const Problem& problem, Index i, Real* x) const {
    if (problem.rotates()) problem.rotation.apply(query_row(problem, i), x);
  }
  /// Turns key j in ascending order of position, x [d].
  void turn_key(const Problem& problem, Index j, Real* x) const {
    if (problem.rotates()) problem.rotation.apply(key_row(j), x);
  }
  /// The transposes of these, x [d] a gradient. Requires a key that some query may attend to.
  void turn_query_back(const Problem& problem, Index i, Real* x) const {
    if (problem.rotates()) problem.rotation.apply_transposed(query_row(problem, i), x);
  }
  void turn_key_back(const Problem& problem, Index j, Real* x) const {
    if (problem.rotates()) problem.rotation.apply_transposed(key_row(j), x);
  }

 private:
  static constexpr Index kBlock = 256;  // rows of a task

  Index key_tasks() const { return ceil_div(keys_.size(), kBlock); }
  const Real* key_row(Index j) const { return key_rows_ + (j - keys_.begin) * row_size_; }
  const Real* query_row(const Problem& problem, Index i) const {
    return shared_ ? key_row(problem.grid.offset() + i) : query_rows_ + i * row_size_;
  }

  /// Whether a key in `rows` may be turned, as part of a panel, or a query that stands there.
  bool turns_some(const LagGrid& grid, Range rows) const {
    if (!grid.has_ranges()) return true;
    if (shared_ && !intersect(rows, {grid.offset(), grid.offset() + grid.n_q()}).empty()) return true;
    const Range panels{round_down(rows.begin, kTileCols<Real>), round_up(rows.end, kTileCols<Real>)};
    return !grid.reached().hull(panels).empty();
  }

  Index row_size_;
  Range keys_;                      // that have rows
  bool shared_ = false;             // by the queries
  bool kept_ = false;               // by the plan
  const Real* key_rows_ = nullptr;  // [keys_.size(), row_size]
  Real* own_rows_ = nullptr;        // the same where they are made in the run
  Real* query_rows_ = nullptr;      // [n_q, row_size], null where shared
};

}  // namespace fastrope::inline FASTROPE_TARGET
