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
  for (Index i = 0; whole_cols < cols && i < whole_rows; i += kHigh)
    simd::transpose_strip(from + i * from_stride + whole_cols, from_stride, cols - whole_cols,
                          to + whole_cols * to_stride + i, to_stride);
  for (Index i = whole_rows; i < rows; ++i)
    for (Index j = 0; j < cols; ++j) to[j * to_stride + i] = from[i * from_stride + j];
}

}  // namespace fastrope::inline FASTROPE_TARGET
