// Stored rows: q, k, v and out as they lie in memory, when the type of their elements is no template
// parameter any more, so that what reads and writes them is compiled once for each arithmetic type.
//
// The public entries make them of views. A row is read or written by one call through a pointer, whatever its
// length. Elements come one by one or in blocks of several, and strides are in bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include "fastrope/core/columns.hpp"
#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/quantised.hpp"
#include "fastrope/core/scaled_view.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// What is done with elements of one storage type.
struct StoredType {
  Index bytes;     ///< of an element, or of a block
  Index elements;  ///< of a block, or 1
  /// Of whole blocks, here and below.
  void (*to_float)(const std::byte* from, Index count, float* to);
  void (*to_double)(const std::byte* from, Index count, double* to);

  // Of what results are stored as, an Element:
  double rounding = 0;  ///< of a number with more digits that is stored, at most, over its size
  double smallest = 0;  ///< what it may be off by beside that where it is small
  double largest = 0;   ///< beyond it, a number may be stored as infinity
  /// to [count] = factor x, rounded to float or double first.
  void (*from_float)(const double* x, double factor, Index count, std::byte* to) = nullptr;
  void (*from_double)(const double* x, double factor, Index count, std::byte* to) = nullptr;

  /// Whether a number takes less than 16 bits.
  bool is_narrow() const { return 2 * elements > bytes; }
  /// Bytes of `count` elements of a row.
  Index bytes_of(Index count) const { return count / elements * bytes; }

  void convert(const std::byte* from, Index count, float* to) const { to_float(from, count, to); }
  void convert(const std::byte* from, Index count, double* to) const { to_double(from, count, to); }
};

namespace detail {

template <class T, class Real>
void write_stored(const double* x, double factor, Index count, std::byte* to) {
  T* out = reinterpret_cast<T*>(to);
  for (Index c = 0; c < count; ++c) out[c] = static_cast<T>(static_cast<Real>(x[c] * factor));
}

/// Strides that are never used may be anything: nothing overflows.
template <class T>
constexpr Index byte_stride(Index stride) {
  return static_cast<Index>(static_cast<std::size_t>(stride) * sizeof(T));
}

}  // namespace detail

template <CacheElement T>
inline constexpr StoredType kStoredType{.bytes = sizeof(T),
                                        .elements = kElementsOf<T>,
                                        .to_float = simd::convert_row<T, float>,
                                        .to_double = simd::convert_row<T, double>};
template <Element T>
inline constexpr StoredType kStoredType<T>{
    .bytes = sizeof(T),
    .elements = 1,
    .to_float = simd::convert_row<T, float>,
    .to_double = simd::convert_row<T, double>,
    .rounding = std::is_same_v<T, bfloat16>  ? 0x1p-8
                : std::is_same_v<T, float16> ? 0x1p-11
                                             : static_cast<double>(std::numeric_limits<T>::epsilon()) / 2,
    .smallest = std::is_same_v<T, double>    ? std::numeric_limits<double>::min()
                : std::is_same_v<T, float16> ? 0x1p-25
                                             : static_cast<double>(std::numeric_limits<float>::min()),
    .largest = static_cast<double>(std::numeric_limits<T>::max()),
    .from_float = detail::write_stored<T, float>,
    .from_double = detail::write_stored<T, double>};

/// The rows of one head, also in pages or with scales, to be read.
struct StoredHead {
  const StoredType* type = nullptr;
  const std::byte* data = nullptr;
  Index row_stride = 0;
  bool is_paged = false;
  std::span<const std::int32_t> pages = {};
  Index page_rows = 0;
  Index page_stride = 0;
  const float* row_scales = nullptr;     // of the rows in memory; null: none
  const float* column_scales = nullptr;  // null: none

  const std::byte* row(Index j) const {
    if (!is_paged) return data + j * row_stride;
    return data + pages.data()[j / page_rows] * page_stride + j % page_rows * row_stride;
  }
  /// Whether what lies in memory is still to be multiplied.
  bool is_scaled() const { return row_scales != nullptr || column_scales != nullptr; }

  /// to [count] = the first elements of row j, whole blocks of them. Short rows of Real itself are worth no
  /// call.
  template <class Real>
  void read(Index j, Index count, Real* to) const {
    if (type == &kStoredType<Real>)
      simd::convert(reinterpret_cast<const Real*>(row(j)), count, to);
    else
      type->convert(row(j), count, to);
    if (is_scaled()) scale(j, {0, count}, to);
  }

  static constexpr Index kPiece = 64;  // whole blocks
  /// visit(c, x, count): row j in pieces x [count] from column c on, in the arithmetic of Real.
  template <class Real, class Visit>
  void for_each_piece(Index j, Index cols, Visit&& visit) const {
    std::array<Real, kPiece> piece;
    for (Index c = 0; c < cols; c += kPiece) {
      const Index count = std::min(kPiece, cols - c);
      type->convert(row(j) + type->bytes_of(c), count, piece.data());
      if (is_scaled()) scale(j, {c, c + count}, piece.data());
      visit(c, static_cast<const Real*>(piece.data()), count);
    }
  }

 private:
  template <class Real>
  void scale(Index j, Range cols, Real* x) const {
    const Index place = is_paged ? pages.data()[j / page_rows] * page_rows + j % page_rows : j;
    const float of_row = row_scales != nullptr ? row_scales[place] : 1;
    if (column_scales == nullptr)
      for (Index c = 0; c < cols.size(); ++c) x[c] *= static_cast<Real>(of_row);
    else  // in double, which makes one rounding of two
      for (Index c = 0; c < cols.size(); ++c)
        x[c] = static_cast<Real>(x[c] * (static_cast<double>(of_row) * column_scales[cols.begin + c]));
  }
};

/// heads x rows x cols elements, to be read.
struct StoredRows : StoredHead {
  Index heads = 0;
  Index rows = 0;
  Index cols = 0;
  Index head_stride = 0;
  MatrixView<const float> scales_of_rows = {};
  MatrixView<const float> scales_of_columns = {};

  template <class T>
  StoredRows(const TensorView<T>& x)
      : StoredHead{.type = &kStoredType<std::remove_const_t<T>>,
                   .data = reinterpret_cast<const std::byte*>(x.data),
                   .row_stride = detail::byte_stride<T>(x.row_stride)},
        heads(x.heads),
        rows(x.rows),
        cols(x.cols),
        head_stride(detail::byte_stride<T>(x.head_stride)) {}
  template <class T>
  StoredRows(const PagedView<T>& x)
      : StoredRows(TensorView<T>(x.data, x.heads, x.rows, x.cols, x.head_stride, x.row_stride)) {
    is_paged = true;
    pages = x.pages;
    page_rows = x.page_rows;
    page_stride = detail::byte_stride<T>(x.page_stride);
  }
  template <class View>
  StoredRows(const ScaledView<View>& x) : StoredRows(x.values) {
    scales_of_rows = x.row_scales;
    scales_of_columns = x.column_scales;
    row_scales = scales_of_rows.data;
    column_scales = scales_of_columns.data;
  }

  StoredHead head(Index h) const {
    StoredHead one = *this;
    one.data += h * head_stride;
    if (row_scales != nullptr) one.row_scales = scales_of_rows.row(h);
    if (column_scales != nullptr) one.column_scales = scales_of_columns.row(h);
    return one;
  }
  /// Throws Error unless every row has a page.
  void require_pages(const char* name) const {
    if (is_paged) detail::require_pages(name, rows, page_rows, pages);
  }
  /// Throws Error unless there is a scale for every row that is in use, and for every column, or none.
  void require_scales(const char* name) const {
    const auto require = [&](const char* what, const MatrixView<const float>& scales, Index count) {
      if (scales.data != nullptr && (scales.rows != heads || scales.cols < count))
        detail::fail(name, " has scales of ", what, " [", scales.rows, ", ", scales.cols, "], not [", heads,
                     ", ", count, "]");
    };
    Index used = rows;
    if (is_paged) {
      used = 0;
      for (Index p = 0; p * page_rows < rows; ++p)
        used = std::max(
            used, pages[static_cast<std::size_t>(p)] * page_rows + std::min(page_rows, rows - p * page_rows));
    }
    require("rows", scales_of_rows, used);
    require("columns", scales_of_columns, cols);
  }
  /// Throws Error unless rows are whole blocks.
  void require_blocks(const char* name) const {
    if (cols % type->elements != 0)
      detail::fail(name, " has rows of ", cols, " numbers, which are not whole blocks of ", type->elements);
  }
};

/// heads x rows x cols elements, to be written. Strides are in elements.
struct OutputRows {
  const StoredType* type;
  std::byte* data;
  Index heads;
  Index rows;
  Index cols;
  Index head_stride;
  Index row_stride;

  template <class T>
  requires Element<T> OutputRows(const TensorView<T>& x)
      : type(&kStoredType<T>),
        data(reinterpret_cast<std::byte*>(x.data)),
        heads(x.heads),
        rows(x.rows),
        cols(x.cols),
        head_stride(x.head_stride),
        row_stride(x.row_stride) {}

  std::byte* row(Index h, Index i) const { return data + (h * head_stride + i * row_stride) * type->bytes; }
  /// Row i of head h, from column c on, = factor x [count], rounded to Real before it is stored.
  template <class Real>
  void write(Index h, Index i, const double* x, double factor, Index count, Index c = 0) const {
    const auto convert = std::is_same_v<Real, double> ? type->from_double : type->from_float;
    convert(x, factor, count, row(h, i) + c * type->bytes);
  }
};

}  // namespace fastrope::inline FASTROPE_TARGET
