// DenseRows: how the rows of a DenseBias are read.
#pragma once

#include <cstddef>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/storage.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/problem/dense_bias.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The rows of a DenseBias; without data where that has none.
struct DenseRows : StoredRows {
  DenseRows(const DenseBias& x)
      : StoredRows(x.type == DenseType::float32   ? StoredRows(x.as<float>())
                   : x.type == DenseType::float16 ? StoredRows(x.as<float16>())
                                                  : StoredRows(x.as<bfloat16>())) {}

  /// to [keys.size()] = the elements of row i of head h in `keys`.
  template <class Real>
  void read(Index h, Index i, Range keys, Real* to) const {
    const std::byte* from = data + h * head_stride + i * row_stride + type->bytes_of(keys.begin);
    if (type == &kStoredType<float>)
      simd::convert(reinterpret_cast<const float*>(from), keys.size(), to);
    else
      type->convert(from, keys.size(), to);
  }
  float operator()(Index h, Index i, Index j) const {
    float x = 0;
    read(h, i, {j, j + 1}, &x);
    return x;
  }
};

}  // namespace fastrope::inline FASTROPE_TARGET
