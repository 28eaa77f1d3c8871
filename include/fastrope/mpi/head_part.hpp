// HeadPart: query heads that run together, with their key heads, and their rows of a tensor.
#pragma once

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

struct HeadPart {
  Range heads, kv_heads;
};

/// Some heads of a tensor.
template <class Rows>
Rows heads_of(Rows x, Range heads) {
  x.data += heads.begin * x.head_stride;
  x.heads = heads.size();
  const auto scales = [&](MatrixView<const float>& some, const float*& first) {
    if (some.data == nullptr) return;
    first = some.data = some.row(heads.begin);
    some.rows = heads.size();
  };
  scales(x.scales_of_rows, x.row_scales);
  scales(x.scales_of_columns, x.column_scales);
  return x;
}
inline OutputRows heads_of(OutputRows x, Range heads) {
  x.data += heads.begin * x.head_stride * x.type->bytes;
  x.heads = heads.size();
  return x;
}

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
