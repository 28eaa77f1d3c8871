// Stored rows: q, k and v as they lie in memory, when the type of their elements is no template parameter any
// more, so that what reads them is compiled once for each arithmetic type.
//
// The public entries make them of views. A row is read by one call through a pointer, whatever its length.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// What is done with elements of one storage type.
struct StoredType {
  Index bytes;  ///< of an element
  void (*to_float)(const std::byte* from, Index count, float* to);
  void (*to_double)(const std::byte* from, Index count, double* to);

  /// Bytes of `count` elements of a row.
  Index bytes_of(Index count) const { return count * bytes; }

  void convert(const std::byte* from, Index count, float* to) const { to_float(from, count, to); }
  void convert(const std::byte* from, Index count, double* to) const { to_double(from, count, to); }

  static constexpr Index kPiece = 64;
  /// visit(c, x, count): a row in pieces x [count] from column c on, in the arithmetic of Real.
  template <class Real, class Visit>
  void for_each_piece(const std::byte* row, Index cols, Visit&& visit) const {
    std::array<Real, kPiece> piece;
    for (Index c = 0; c < cols; c += kPiece) {
      const Index count = std::min(kPiece, cols - c);
      convert(row + bytes_of(c), count, piece.data());
      visit(c, static_cast<const Real*>(piece.data()), count);
    }
  }
};

namespace detail {

template <class T, class Real>
void convert_stored(const std::byte* from, Index count, Real* to) {
  simd::convert(reinterpret_cast<const T*>(from), count, to);
}

/// In bytes. Strides that are never used may be anything: nothing overflows.
template <class T>
constexpr Index byte_stride(Index stride) {
  return static_cast<Index>(static_cast<std::size_t>(stride) * sizeof(T));
}

}  // namespace detail

template <Element T>
inline constexpr StoredType kStoredType{.bytes = sizeof(T),
                                        .to_float = detail::convert_stored<T, float>,
                                        .to_double = detail::convert_stored<T, double>};

/// The rows of one head.
struct StoredHead {
  const StoredType* type;
  const std::byte* data;
  Index row_stride;           ///< in bytes
  const std::int32_t* pages;  ///< null where rows are not in pages
  Index page_rows;
  Index page_stride;  ///< in bytes

  const std::byte* row(Index j) const {
    if (pages == nullptr) return data + j * row_stride;
    return data + pages[j / page_rows] * page_stride + j % page_rows * row_stride;
  }
  /// to [count] = the first elements of row j.
  template <class Real>
  void read(Index j, Index count, Real* to) const {
    type->convert(row(j), count, to);
  }
};

/// heads x rows x cols elements of any storage type, also in pages, to be read.
struct StoredRows {
  const StoredType* type = nullptr;
  const std::byte* data = nullptr;
  Index heads = 0;
  Index rows = 0;
  Index cols = 0;
  Index head_stride = 0;  ///< in bytes, like all strides here
  Index row_stride = 0;
  bool is_paged = false;
  std::span<const std::int32_t> pages = {};
  Index page_rows = 0;
  Index page_stride = 0;

  template <class T>
  StoredRows(const TensorView<T>& x)
      : type(&kStoredType<std::remove_const_t<T>>),
        data(reinterpret_cast<const std::byte*>(x.data)),
        heads(x.heads),
        rows(x.rows),
        cols(x.cols),
        head_stride(detail::byte_stride<T>(x.head_stride)),
        row_stride(detail::byte_stride<T>(x.row_stride)) {}
  template <class T>
  StoredRows(const PagedView<T>& x)
      : StoredRows(TensorView<T>(x.data, x.heads, x.rows, x.cols, x.head_stride, x.row_stride)) {
    is_paged = true;
    pages = x.pages;
    page_rows = x.page_rows;
    page_stride = detail::byte_stride<T>(x.page_stride);
  }

  StoredHead head(Index h) const {
    return {type, data + h * head_stride, row_stride, pages.data(), page_rows, page_stride};
  }
  /// Throws Error unless every row has a page.
  void require_pages(const char* name) const {
    if (is_paged) detail::require_pages(name, rows, page_rows, pages);
  }
};

}  // namespace fastrope::inline FASTROPE_TARGET
