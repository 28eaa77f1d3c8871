// DenseBias: a bias for every pair of a query and a key, of whatever type its elements are stored as.
#pragma once

#include <concepts>
#include <utility>

#include "fastrope/core/index.hpp"
#include "fastrope/core/storage.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET {

template <class T>
concept DenseElement = std::same_as<T, float> || std::same_as<T, float16> || std::same_as<T, bfloat16>;

/// What a DenseBias is stored as.
enum class DenseType { float32, float16, bfloat16 };
template <DenseElement T>
inline constexpr DenseType kDenseType = std::same_as<T, float>     ? DenseType::float32
                                        : std::same_as<T, float16> ? DenseType::float16
                                                                   : DenseType::bfloat16;

/// [heads, n_q, n_k] of float, float16 or bfloat16, added to logits; -infinity leaves a key out. Strides, in
/// elements, may be 0. A TensorView of it, or an Eigen row-major object, converts; without data it is none.
struct DenseBias {
  const void* data = nullptr;
  DenseType type = DenseType::float32;
  Index heads = 0;
  Index rows = 0;
  Index cols = 0;
  Index head_stride = 0;
  Index row_stride = 0;

  DenseBias() = default;
  DenseBias(const float* x, Index heads_, Index rows_, Index cols_, Index head_stride_, Index row_stride_)
      : DenseBias(TensorView<const float>{x, heads_, rows_, cols_, head_stride_, row_stride_}, Fields{}) {}
  template <DenseElement T>
  DenseBias(const T* x, Index heads_, Index rows_, Index cols_, Index head_stride_, Index row_stride_)
      : DenseBias(TensorView<const T>{x, heads_, rows_, cols_, head_stride_, row_stride_}, Fields{}) {}
  template <class X>
  requires DenseElement<ElementOf<X>> && requires(X&& x) { as_tensor(std::forward<X>(x)); }
  DenseBias(X&& x) : DenseBias(TensorView<const ElementOf<X>>(as_tensor(std::forward<X>(x))), Fields{}) {}

  /// The same elements, of which T is the type.
  template <DenseElement T>
  TensorView<const T> as() const {
    return {static_cast<const T*>(data), heads, rows, cols, head_stride, row_stride};
  }

 private:
  struct Fields {};
  template <class T>
  DenseBias(const TensorView<const T>& x, Fields)
      : data(x.data),
        type(kDenseType<T>),
        heads(x.heads),
        rows(x.rows),
        cols(x.cols),
        head_stride(x.head_stride),
        row_stride(x.row_stride) {}
};

}  // namespace fastrope::inline FASTROPE_TARGET
