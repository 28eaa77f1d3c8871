// LagLines: functions of the lag laid out so that a row of the score matrix reads them as a contiguous
// vector.
//
// With consecutive positions the lags of row i, keys ascending, are i + offset, i + offset - 1, ...; one
// reversed line over the lags that the mask allows, and some beyond them, serves all rows, each starting one
// earlier than the row before. What lies outside, and all of it otherwise, is evaluated when it is needed.
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
  /// Lags beyond those that are allowed, which rows that are read together in whole panels reach: up to 64
  /// rows.
  static constexpr Index kMargin = kTileCols<Real> + 64;

  LagLines(const LagGrid& grid, Index count, Workspace& workspace)
      : count_(count), lags_(count > 0 ? grid.allowed_lags() : LagGrid::Lags{}) {
    if (count > 0 && grid.consecutive() && lags_.first <= lags_.last) {
      first_lag_ = lags_.last + kMargin;
      length_ = lags_.last - lags_.first + 1 + 2 * kMargin;
    }
    lines_ = workspace.take<Real>(count_ * length_).data();
  }

  Index count() const { return count_; }

  /// Lays out line f; lags that are not allowed hold 0. values(lag, count, x) writes the function at lag,
  /// lag - 1, ... to x [count].
  template <class Values>
  void fill(Index f, Values&& values) {
    if (length_ == 0) return;
    Real* line = lines_ + f * length_;
    std::fill_n(line, kMargin, Real{0});
    values(first_lag_ - kMargin, length_ - 2 * kMargin, line + kMargin);
    std::fill_n(line + length_ - kMargin, kMargin, Real{0});
  }

  /// Whether the values of these rows and keys are laid out, those of a row one after the other and one
  /// earlier than the row before has them.
  bool holds(const LagGrid& grid, Range rows, Range keys) const {
    return length_ != 0 && grid.lag(rows.end - 1, keys.begin) <= first_lag_ &&
           grid.lag(rows.begin, keys.end - 1) > first_lag_ - length_;
  }

  /// Values of line f for row i and keys [keys.begin, keys.end), which may go beyond the last; 0 at lags that
  /// no pair has. Either in place or written to scratch [keys.size()].
  template <class Values>
  const Real* row(const LagGrid& grid, Index f, Index i, Range keys, Values&& values, Real* scratch) const {
    if (holds(grid, {i, i + 1}, keys)) return lines_ + f * length_ + first_lag_ - grid.lag(i, keys.begin);
    std::fill_n(scratch, keys.size(), Real{0});
    for (Index j = keys.begin; j < std::min(keys.end, grid.n_k()); ++j)
      if (const Position lag = grid.lag(i, j); lags_.contain(lag)) values(lag, 1, scratch + (j - keys.begin));
    return scratch;
  }

 private:
  Index count_;
  LagGrid::Lags lags_;      // that are allowed
  Index length_ = 0;        // 0: nothing is laid out
  Position first_lag_ = 0;  // of the lines' first values
  Real* lines_;             // [count, length]
};

}  // namespace fastrope::inline FASTROPE_TARGET
