// LagLines: functions of the lag laid out so that a row of the score matrix reads them as a contiguous
// vector.
//
// With consecutive positions the lags of row i, keys ascending, are i + offset, i + offset - 1, ...; one
// reversed line of n_q + n_k - 1 values serves all rows, each starting one earlier than the row before.
// Otherwise a row is evaluated when it is needed.
#pragma once

#include <algorithm>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/position/lag_grid.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// `count` lag functions over the lags that a grid's mask allows.
template <class Real>
class LagLines {
 public:
  /// Room past the end of a line, so that whole vectors and panels can be read.
  static constexpr Index kPadding = kTileCols<Real>;

  LagLines(const LagGrid& grid, Index count, Workspace& workspace)
      : count_(count),
        lags_(count > 0 ? grid.allowed_lags() : LagGrid::Lags{}),
        length_(grid.consecutive() && count > 0 ? grid.n_q() + grid.n_k() + kPadding : 0) {
    lines_ = workspace.take<Real>(count_ * length_).data();
  }

  Index count() const { return count_; }

  /// Lays out line f; lags that are not allowed hold 0. values(lag, count, x) writes the function at lag, lag
  /// - 1,
  /// ... to x [count].
  template <class Values>
  void fill(const LagGrid& grid, Index f, Values&& values) {
    if (length_ == 0) return;
    const Position lag = grid.n_q() - 1 + grid.offset();  // of the line's first value
    const Range allowed = intersect({lag - lags_.last, lag - lags_.first + 1}, {0, length_});
    Real* line = lines_ + f * length_;
    std::fill_n(line, length_, Real{0});
    if (!allowed.empty()) values(lag - allowed.begin, allowed.size(), line + allowed.begin);
  }

  /// Values of line f for row i and keys [keys.begin, keys.end); 0 at lags that no pair has. Either in place
  /// or written to scratch [keys.size()].
  template <class Values>
  const Real* row(const LagGrid& grid, Index f, Index i, Range keys, Values&& values, Real* scratch) const {
    if (length_ != 0) return lines_ + f * length_ + (grid.n_q() - 1 - i) + keys.begin;
    std::fill_n(scratch, keys.size(), Real{0});
    for (Index j = keys.begin; j < std::min(keys.end, grid.n_k()); ++j)
      if (const Position lag = grid.lag(i, j); lags_.contain(lag)) values(lag, 1, scratch + (j - keys.begin));
    return scratch;
  }

 private:
  Index count_;
  LagGrid::Lags lags_;  // that are allowed
  Index length_;
  Real* lines_;  // [count, length]
};

}  // namespace fastrope::inline FASTROPE_TARGET
