// LagLines: functions of the lag laid out so that a row of the score matrix reads them as a contiguous
// vector.
//
// With consecutive positions the lags of row i, keys ascending, are i + offset, i + offset - 1, ...; one
// reversed line of n_q + n_k - 1 values serves all rows, each starting one earlier than the row before.
// Otherwise a row is evaluated when it is needed.
#pragma once

#include "fastrope/core/index.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/position/lag_grid.hpp"

namespace fastrope {

/// `count` lag functions over the lags that a grid's mask allows.
template <class Real>
class LagLines {
 public:
  /// Room past the end of a line, so that whole vectors and panels can be read.
  static constexpr Index kPadding = kTileCols<Real>;

  LagLines(const LagGrid& grid, Index count, Workspace& workspace)
      : count_(count), length_(grid.consecutive() && count > 0 ? grid.n_q() + grid.n_k() + kPadding : 0) {
    lines_ = workspace.take<Real>(count_ * length_).data();
  }

  Index count() const { return count_; }

  /// Lays out line f by value(lag); lags that are not allowed hold 0.
  template <class Value>
  void fill(const LagGrid& grid, Index f, Value&& value) {
    if (length_ == 0) return;
    const LagGrid::Lags lags = grid.allowed_lags();
    Real* line = lines_ + f * length_;
    for (Index m = 0; m < length_; ++m) {
      const Position lag = grid.n_q() - 1 - m + grid.offset();
      line[m] = lags.first <= lag && lag <= lags.last ? static_cast<Real>(value(lag)) : Real{0};
    }
  }

  /// Values of line f for row i and keys [keys.begin, keys.end); 0 where the mask forbids the key. Either in
  /// place or written to scratch [keys.size()].
  template <class Value>
  const Real* row(const LagGrid& grid, Index f, Index i, Range keys, Value&& value, Real* scratch) const {
    if (length_ != 0) return lines_ + f * length_ + (grid.n_q() - 1 - i) + keys.begin;
    const Range allowed = grid.keys_of(i);
    for (Index j = keys.begin; j < keys.end; ++j)
      scratch[j - keys.begin] =
          allowed.begin <= j && j < allowed.end ? static_cast<Real>(value(grid.lag(i, j))) : Real{0};
    return scratch;
  }

 private:
  Index count_;
  Index length_;
  Real* lines_;  // [count, length]
};

}  // namespace fastrope
