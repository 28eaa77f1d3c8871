// Transpose: a matrix in row-major order into its transpose, block by block in registers.
#pragma once

#include <algorithm>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// to[c * to_stride + r] = from[r * from_stride + c] for r < rows, c < cols. They must not overlap. Columns
/// of `to` that are a power of two apart share cache sets: prefer other strides.
template <class Real>
void transpose(const Real* from, Index rows, Index cols, Index from_stride, Real* to, Index to_stride) {
  constexpr Index kAhead = 48;
  constexpr Index kWide = simd::kLanes<Real>, kHigh = simd::kBlockRows<Real>;
  const Index whole_rows = round_down(rows, kHigh), whole_cols = round_down(cols, kWide);
  const auto one_by_one = [&](Range r, Range c) {
    for (Index i = r.begin; i < r.end; ++i)
      for (Index j = c.begin; j < c.end; ++j) to[j * to_stride + i] = from[i * from_stride + j];
  };
  // Squares, whose cache lines are read and written whole.
  for (Index i = 0; i < whole_rows; i += kWide)
    for (Index j = 0; j < whole_cols; j += kWide) {
      // Lines of the longer side, a stride apart, which hardware does not foresee.
      for (Index k = kAhead; k < kAhead + kWide; ++k) {
        if (rows > cols)
          simd::prefetch(from, (i + k) * from_stride + j);
        else
          simd::prefetch(to, (j + k) * to_stride + i);
      }
      for (Index r = i; r < std::min(i + kWide, whole_rows); r += kHigh)
        simd::transpose_block(from + r * from_stride + j, from_stride, to + j * to_stride + r, to_stride);
    }
  one_by_one({0, whole_rows}, {whole_cols, cols});
  one_by_one({whole_rows, rows}, {0, cols});
}

}  // namespace fastrope::inline FASTROPE_TARGET
