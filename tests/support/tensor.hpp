// Tensor: an owning [heads, rows, cols] array for tests, in either memory order.
#pragma once

#include <cstddef>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope_test {

using fastrope::Index;
using fastrope::MatrixView;
using fastrope::TensorView;

/// Element (h, i, c) is values[h * head_stride + i * row_stride + c].
template <class T>
struct Tensor {
  Index heads = 0;
  Index rows = 0;
  Index cols = 0;
  Index head_stride = 0;
  Index row_stride = 0;
  std::vector<T> values = {};

  Tensor() = default;
  /// Zeros in [heads, rows, cols] order.
  Tensor(Index heads_, Index rows_, Index cols_) : Tensor(heads_, rows_, cols_, rows_ * cols_, cols_) {}
  Tensor(Index heads_, Index rows_, Index cols_, Index head_stride_, Index row_stride_)
      : heads(heads_),
        rows(rows_),
        cols(cols_),
        head_stride(head_stride_),
        row_stride(row_stride_),
        values(static_cast<std::size_t>(heads_ * rows_ * cols_)) {}

  TensorView<T> view() { return {values.data(), heads, rows, cols, head_stride, row_stride}; }
  TensorView<const T> view() const { return {values.data(), heads, rows, cols, head_stride, row_stride}; }
  T& operator()(Index h, Index i, Index c) { return view().head(h)(i, c); }
  const T& operator()(Index h, Index i, Index c) const { return view().head(h)(i, c); }
};

/// A copy in [heads, rows, cols] order with every element converted.
template <class To, class From>
Tensor<To> converted(const TensorView<From>& x) {
  Tensor<To> copy(x.heads, x.rows, x.cols);
  for (Index h = 0; h < x.heads; ++h)
    for (Index i = 0; i < x.rows; ++i)
      for (Index c = 0; c < x.cols; ++c) copy(h, i, c) = static_cast<To>(x.head(h)(i, c));
  return copy;
}

/// A copy in [rows, heads, cols] order, as a fused projection leaves it.
template <class T>
Tensor<T> token_major(const Tensor<T>& x) {
  Tensor<T> copy(x.heads, x.rows, x.cols, x.cols, x.heads * x.cols);
  for (Index h = 0; h < x.heads; ++h)
    for (Index i = 0; i < x.rows; ++i)
      for (Index c = 0; c < x.cols; ++c) copy(h, i, c) = x(h, i, c);
  return copy;
}

}  // namespace fastrope_test
