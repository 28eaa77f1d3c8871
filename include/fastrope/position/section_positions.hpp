// SectionPositions: where the rows of a side stand for each section of a rope (rope.hpp), beside the position
// of their token, which masks, biases and lags go by.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/shared_array.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/position/lag_grid.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Positions [sections, n] of one side's rows, in the order in which they are stored; or none, where every
/// section turns by the token's.
class SectionPositions {
 public:
  SectionPositions() = default;

  /// A copy. Throws Error, naming `name` and the values, unless positions are [sections, n], without data and
  /// of size 0, or where one is beyond LagGrid::kMaxPosition.
  SectionPositions(const char* name, MatrixView<const Position> positions, Index sections, Index n)
      : SectionPositions(view_of(name, positions, sections, n)) {
    std::vector<Position> values;
    for (Index s = 0; s < view_.rows; ++s) values.insert(values.end(), view_.row(s), view_.row(s) + n);
    values_ = SharedArray<Position>(std::move(values));
    view_ = {values_.data(), view_.rows, n};
  }
  /// The caller's memory itself, which must outlive it. Allocates nothing.
  static SectionPositions view_of(const char* name, MatrixView<const Position> positions, Index sections,
                                  Index n) {
    SectionPositions of;
    if (positions.data == nullptr && (positions.rows == 0 || positions.cols == 0)) return of;
    if (positions.rows != sections || positions.cols != n || positions.data == nullptr)
      detail::fail(name, " is ", positions.data == nullptr ? "null and " : "", "[", positions.rows, ", ",
                   positions.cols, "], the call has [sections = ", sections, ", n = ", n,
                   "]: rope.sections says how many");
    for (Index s = 0; s < sections; ++s)
      for (Index i = 0; i < n; ++i)
        if (const Position p = positions(s, i); p > LagGrid::kMaxPosition || p < -LagGrid::kMaxPosition)
          detail::fail(name, ": ", p, " is beyond +-2^40");
    of.view_ = positions;
    return of;
  }

  bool empty() const { return view_.rows == 0 || view_.cols == 0; }
  /// Requires !empty().
  Position operator()(Index section, Index i) const { return view_(section, i); }
  MatrixView<const Position> view() const { return view_; }
  /// max |position|; 0 without any.
  Position farthest() const {
    Position farthest = 0;
    for (Index s = 0; s < view_.rows; ++s)
      for (Index i = 0; i < view_.cols; ++i) farthest = std::max(farthest, std::abs(view_(s, i)));
    return farthest;
  }

 private:
  MatrixView<const Position> view_ = {};  // [sections, n]
  SharedArray<Position> values_ = {};     // the memory of a copy
};

}  // namespace fastrope::inline FASTROPE_TARGET
