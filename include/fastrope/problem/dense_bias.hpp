// DenseBias: a bias for every pair of a query and a key, of whatever type its elements are stored as.
#pragma once

#include <concepts>
#include <utility>

#include "fastrope/core/index.hpp"
#include "fastrope/core/storage.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET {

template <class T>
concept DenseElement = std::same_as<T, float> || std::same_as<T, float16> || std::same_as<T, bfloat16>;

/// [heads, n_q, n_k] of float, float16 or bfloat16, added to logits; -infinity leaves a key out. Strides may
/// be 0. A TensorView of it, or an Eigen row-major object, converts; without data it is none.
struct DenseBias : StoredRows {
  DenseBias() : StoredRows(TensorView<const float>{}) {}
  DenseBias(const float* x, Index heads_, Index rows_, Index cols_, Index head_stride_, Index row_stride_)
      : StoredRows(TensorView<const float>{x, heads_, rows_, cols_, head_stride_, row_stride_}) {}
  template <DenseElement T>
  DenseBias(const T* x, Index heads_, Index rows_, Index cols_, Index head_stride_, Index row_stride_)
      : StoredRows(TensorView<const T>{x, heads_, rows_, cols_, head_stride_, row_stride_}) {}
  template <class X>
  requires DenseElement<ElementOf<X>> && requires(X&& x) { as_tensor(std::forward<X>(x)); }
  DenseBias(X&& x) : StoredRows(as_tensor(std::forward<X>(x))) {}

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
