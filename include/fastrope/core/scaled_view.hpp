// ScaledView: keys or values whose scales lie beside them, one for each row (a token's of a head) or column
// (a channel), as caches of int8 and float8 are often kept.
#pragma once

#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// values(h, j, c) row_scales(h, j) column_scales(h, c), of which either may be left out, rounded once to the
/// arithmetic's type. View: a TensorView or PagedView. Scales of a pool of pages are those
/// of its rows: page p's begin at row p page_rows.
template <class View>
struct ScaledView {
  View values;
  MatrixView<const float> row_scales = {};     ///< [heads, rows], of pages [heads, rows of the pool]
  MatrixView<const float> column_scales = {};  ///< [heads, cols]
};
template <class View>
ScaledView(View, MatrixView<const float>) -> ScaledView<View>;
template <class View>
ScaledView(View, MatrixView<const float>, MatrixView<const float>) -> ScaledView<View>;

template <class View>
auto as_rows(const ScaledView<View>& x) {
  return ScaledView<decltype(as_rows(x.values))>{as_rows(x.values), x.row_scales, x.column_scales};
}

/// Some rows of every head, as rows() has them of a TensorView.
template <class T>
ScaledView<TensorView<T>> rows(const ScaledView<TensorView<T>>& x, Range range) {
  const TensorView<T> values = rows(x.values, range);
  MatrixView<const float> scales = x.row_scales;
  if (scales.data != nullptr) {
    scales.data += range.begin;
    scales.cols = range.size();
  }
  return {values, scales, x.column_scales};
}

}  // namespace fastrope::inline FASTROPE_TARGET
