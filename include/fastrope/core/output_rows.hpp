// Output rows: where results go, when the type of their elements is no template parameter any more.
#pragma once

#include <cstddef>
#include <limits>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// What is done with results of one storage type.
struct OutputType {
  const StoredType* stored;
  double rounding;  ///< of a result that has more digits, at most, over its size
  double smallest;  ///< what else it may be off by where it is small
  /// to [count] = factor x, rounded to float, or not, and then to the type.
  void (*write_float)(const double* x, double factor, Index count, std::byte* to);
  void (*write_double)(const double* x, double factor, Index count, std::byte* to);
};

namespace detail {

template <class T, class Real>
void write_stored(const double* x, double factor, Index count, std::byte* to) {
  T* out = reinterpret_cast<T*>(to);
  for (Index c = 0; c < count; ++c) out[c] = static_cast<T>(static_cast<Real>(x[c] * factor));
}

}  // namespace detail

template <Element T>
inline constexpr OutputType kOutputType{
    .stored = &kStoredType<T>,
    .rounding = std::is_same_v<T, bfloat16>  ? 0x1p-8
                : std::is_same_v<T, float16> ? 0x1p-11  // beside `smallest`
                                             : static_cast<double>(std::numeric_limits<T>::epsilon()) / 2,
    .smallest = std::is_same_v<T, double>    ? std::numeric_limits<double>::min()
                : std::is_same_v<T, float16> ? 0x1p-25
                                             : static_cast<double>(std::numeric_limits<float>::min()),
    .write_float = detail::write_stored<T, float>,
    .write_double = detail::write_stored<T, double>};

/// heads x rows x cols elements of any storage type, to be written.
struct OutputRows {
  const OutputType* type;
  std::byte* data;
  Index heads;
  Index rows;
  Index cols;
  Index head_stride;  ///< in elements
  Index row_stride;   ///< in elements

  template <class T>
  requires(!std::is_const_v<T>) OutputRows(const TensorView<T>& x)
      : type(&kOutputType<T>),
        data(reinterpret_cast<std::byte*>(x.data)),
        heads(x.heads),
        rows(x.rows),
        cols(x.cols),
        head_stride(x.head_stride),
        row_stride(x.row_stride) {}

  std::byte* row(Index h, Index i) const {
    return data + (h * head_stride + i * row_stride) * type->stored->bytes;
  }
  /// Row i of head h, from column c on, = factor x [count], rounded to Real before it is stored.
  template <class Real>
  void write(Index h, Index i, const double* x, double factor, Index count, Index c = 0) const {
    const auto convert = std::is_same_v<Real, double> ? type->write_double : type->write_float;
    convert(x, factor, count, row(h, i) + c * type->stored->bytes);
  }
};

}  // namespace fastrope::inline FASTROPE_TARGET
