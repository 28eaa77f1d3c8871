// SectionPositions: where the rows of a side stand for each section of a rope (rope.hpp), beside the position
// of their token, which masks, biases and lags go by.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
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
  SectionPositions(const char* name, MatrixView<const Position> positions, Index sections, Index n) : n_(n) {
    if (positions.data == nullptr && (positions.rows == 0 || positions.cols == 0)) return;
    if (positions.rows != sections || positions.cols != n || positions.data == nullptr)
      detail::fail(name, " is ", positions.data == nullptr ? "null and " : "", "[", positions.rows, ", ",
                   positions.cols, "], the call has [sections = ", sections, ", n = ", n,
                   "]: rope.sections says how many");
    for (Index s = 0; s < sections; ++s)
      for (Index i = 0; i < n; ++i) {
        const Position p = positions(s, i);
        if (p > LagGrid::kMaxPosition || p < -LagGrid::kMaxPosition)
          detail::fail(name, ": ", p, " is beyond +-2^40");
        values_.push_back(p);
      }
  }

  bool empty() const { return values_.empty(); }
  /// Requires !empty().
  Position operator()(Index section, Index i) const {
    return values_[static_cast<std::size_t>(section * n_ + i)];
  }
  MatrixView<const Position> view() const {
    return {values_.data(), n_ == 0 ? 0 : std::ssize(values_) / n_, n_};
  }
  /// max |position|; 0 without any.
  Position farthest() const {
    Position farthest = 0;
    for (const Position p : values_) farthest = std::max(farthest, std::abs(p));
    return farthest;
  }

 private:
  Index n_ = 0;
  std::vector<Position> values_ = {};  // [sections, n]
};

}  // namespace fastrope::inline FASTROPE_TARGET
