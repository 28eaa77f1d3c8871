// Row overlap: whether two rows of a tensor that is written share an element, for any strides.
//
// Row (h, i) begins at h S + i T and has w elements, S = |head_stride| and T = |row_stride| (a sign mirrors
// the rows of a head, or the heads, and differences of h and of i come with both signs). Two rows overlap
// where their beginnings are less than w apart: where |a S - b T| < w or |a S + b T| < w for some
//     0 <= a <= A = heads - 1,  0 <= b <= B = rows - 1,  not both 0,
// of which the first is the weaker. Call such (a, b) close.
//
// If S < w, (1, 0) is close, and if T < w, (0, 1) is. Otherwise let (a, b) be close for lengths x >= y >= w,
// x = q y + z with z < y. Then a x - b y = a z - c y with c = b - q a, and c >= 0, since c < 0 would make
// that a z + |c| y >= w. So (a, b) -> (a, c) maps the close pairs of (x, y) onto those of (z, y), and has an
// inverse in which both numbers grow with a and c. Of (z, y) with z < w, the pair (1, 0) is the least in both
// numbers: a = 0 would need c y < w. With z >= w, (z, y) is the same question again. So the remainders of
// Euclid's algorithm on (S, T) are r = |a S - b T| of pairs (a, b) that grow, and the first r < w belongs to
// the close pair that is least in both numbers: rows overlap if and only if this one has a <= A and b <= B.
// No number overflows: a <= T and b <= S, since the last remainder, 0, has (T, S) over their common divisor.
// Cost: that of Euclid's algorithm at most, a few dozen steps; one or two for the usual layouts.
#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Requires sizes >= 0; strides may be anything.
constexpr bool rows_overlap(Index heads, Index rows, Index cols, Index head_stride, Index row_stride) {
  if (heads <= 0 || rows <= 0 || cols <= 0) return false;
  const auto length = [](Index stride) {  // of the least Index, one less: it has no negative
    return stride < 0 ? -std::max(stride, -std::numeric_limits<Index>::max()) : stride;
  };
  /// |a S - b T| = size
  struct Difference {
    Index size, a, b;
  };
  const auto in_range = [&](const Difference& r) { return r.a < heads && r.b < rows; };
  Difference x{length(head_stride), 1, 0}, y{length(row_stride), 0, 1};
  if ((heads > 1 && x.size < cols) || (rows > 1 && y.size < cols)) return true;
  while (in_range(x) && in_range(y)) {
    if (x.size < y.size) std::swap(x, y);
    const Index q = x.size / y.size;
    x = {x.size % y.size, x.a + q * y.a, x.b + q * y.b};
    if (x.size < cols) return in_range(x);
  }
  return false;  // all that follow are larger still
}

namespace detail {

/// Throws Error where rows of what is to be written, a TensorView or the like, share memory.
template <class Tensor>
void require_separate_rows(const char* name, const Tensor& t) {
  if (rows_overlap(t.heads, t.rows, t.cols, t.head_stride, t.row_stride))
    fail(name, " is [", t.heads, ", ", t.rows, ", ", t.cols, "] with head_stride ", t.head_stride,
         " and row_stride ", t.row_stride, ": rows would overwrite each other");
}
template <class T>
void require_separate_rows(const char* name, const MatrixView<T>& m) {
  if (rows_overlap(1, m.rows, m.cols, 0, m.row_stride))
    fail(name, " is [", m.rows, ", ", m.cols, "] with row_stride ", m.row_stride,
         ": rows would overwrite each other");
}

}  // namespace detail

}  // namespace fastrope::inline FASTROPE_TARGET
