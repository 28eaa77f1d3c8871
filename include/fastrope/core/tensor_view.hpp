// Strided views of memory that the caller owns: MatrixView [rows, cols] and TensorView [heads, rows, cols].
//
// Columns have unit stride; rows and heads have any stride, so [heads, n, d] and [n, heads, d] memory are
// both views, and a stride of 0 repeats data that is only read. Of blocks (quantised.hpp) sizes count the
// numbers in them and strides the blocks, and columns are whole blocks. With eigen.hpp, Eigen's row-major
// matrices, arrays and maps convert to both (a matrix is a tensor of one head); temporaries that own their
// memory do not, since the view would dangle.
#pragma once

#include <type_traits>
#include <utility>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/quantised.hpp"
#include "fastrope/core/storage.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// U* may be read as T*: equal up to an added const.
template <class U, class T>
concept QualifiesTo = std::is_convertible_v<U (*)[], T (*)[]>;

/// Whether Object is of Eigen: eigen.hpp, which includes Eigen, says so.
template <class Object>
inline constexpr bool kEigenHppKnows = false;
template <class Object>
inline constexpr bool kOwnsItsMemory = false;

/// The element type that an Eigen object's data() points to, const where the object is.
template <class Expression>
using EigenElement = std::remove_pointer_t<decltype(std::declval<Expression&>().data())>;

/// An Eigen matrix, array, map or block that a view can describe: row-major with unit inner stride at compile
/// time, and not a temporary that owns its memory (the view would dangle). `Expression` is a forwarding
/// reference's type.
template <class Expression, class Plain = std::remove_cvref_t<Expression>>
concept EigenRowMajor = kEigenHppKnows<Plain> && bool(Plain::IsRowMajor) &&
                        int(Plain::InnerStrideAtCompileTime) == 1 &&
                        (std::is_lvalue_reference_v<Expression> || !kOwnsItsMemory<Plain>);

}  // namespace detail

/// rows x cols elements; element (i, j) is data[i * row_stride + j].
template <class T>
struct MatrixView {
  T* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index row_stride = 0;

  constexpr MatrixView() = default;
  constexpr MatrixView(T* data_, Index rows_, Index cols_, Index row_stride_)
      : data(data_), rows(rows_), cols(cols_), row_stride(row_stride_) {}
  /// Contiguous rows.
  constexpr MatrixView(T* data_, Index rows_, Index cols_)
      : MatrixView(data_, rows_, cols_, blocks_of<std::remove_const_t<T>>(cols_)) {}

  template <detail::QualifiesTo<T> U>
  constexpr MatrixView(const MatrixView<U>& other)
      : MatrixView(other.data, other.rows, other.cols, other.row_stride) {}

  template <detail::EigenRowMajor Expression>
  requires detail::QualifiesTo<detail::EigenElement<Expression>, T> MatrixView(Expression&& m)
      : MatrixView(m.data(), m.rows(), m.cols(), m.outerStride()) {}

  constexpr T* row(Index i) const { return data + i * row_stride; }
  constexpr T& operator()(Index i, Index j) const requires(kElementsOf<std::remove_const_t<T>> == 1) {
    return data[i * row_stride + j];
  }
};

/// heads x rows x cols elements; element (h, i, j) is data[h * head_stride + i * row_stride + j].
template <class T>
struct TensorView {
  T* data = nullptr;
  Index heads = 0;
  Index rows = 0;
  Index cols = 0;
  Index head_stride = 0;
  Index row_stride = 0;

  constexpr TensorView() = default;
  constexpr TensorView(T* data_, Index heads_, Index rows_, Index cols_, Index head_stride_,
                       Index row_stride_)
      : data(data_),
        heads(heads_),
        rows(rows_),
        cols(cols_),
        head_stride(head_stride_),
        row_stride(row_stride_) {}

  template <detail::QualifiesTo<T> U>
  constexpr TensorView(const TensorView<U>& o)
      : TensorView(o.data, o.heads, o.rows, o.cols, o.head_stride, o.row_stride) {}

  /// One head.
  template <detail::QualifiesTo<T> U>
  constexpr TensorView(const MatrixView<U>& m) : TensorView(m.data, 1, m.rows, m.cols, 0, m.row_stride) {}

  template <detail::EigenRowMajor Expression>
  requires detail::QualifiesTo<detail::EigenElement<Expression>, T> TensorView(Expression&& m)
      : TensorView(MatrixView<T>(std::forward<Expression>(m))) {}

  constexpr MatrixView<T> head(Index h) const { return {data + h * head_stride, rows, cols, row_stride}; }
};

/// Anything that converts to a TensorView, as one: the element type is deduced.
template <class T>
constexpr TensorView<T> as_tensor(const TensorView<T>& tensor) {
  return tensor;
}
template <class T>
constexpr TensorView<T> as_tensor(const MatrixView<T>& matrix) {
  return matrix;
}
template <detail::EigenRowMajor Expression>
TensorView<detail::EigenElement<Expression>> as_tensor(Expression&& matrix) {
  return std::forward<Expression>(matrix);
}

/// The element type, without const, of what as_tensor makes of an X.
template <class X>
using ElementOf = std::remove_const_t<std::remove_pointer_t<decltype(as_tensor(std::declval<X&>()).data)>>;

/// A TensorView, MatrixView or Eigen row-major object of a storage type.
template <class X>
concept TensorLike = Element<ElementOf<X>>;
/// The same of what keys and values may be stored as.
template <class X>
concept CacheLike = CacheElement<ElementOf<X>>;

/// Some rows of every head: a sequence's share of tensors that hold the tokens of many, one after the other.
/// Throws Error for rows that x does not have.
template <class T>
constexpr TensorView<T> rows(const TensorView<T>& x, Range range) {
  if (!range.empty() && (range.begin < 0 || range.end > x.rows))
    detail::fail("rows ", range.begin, " to ", range.end, " of a tensor that has ", x.rows);
  return {x.data + range.begin * x.row_stride, x.heads, range.size(), x.cols, x.head_stride, x.row_stride};
}

/// A [heads, rows, cols] array without gaps.
template <class T>
constexpr TensorView<T> contiguous(T* data, Index heads, Index rows, Index cols) {
  const Index row = blocks_of<std::remove_const_t<T>>(cols);
  return {data, heads, rows, cols, saturating_product(rows, row), row};
}

}  // namespace fastrope::inline FASTROPE_TARGET
