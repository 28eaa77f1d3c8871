// PagedView: keys or values of a cache that is kept in pages, as engines that serve many requests keep it.
//
// Row j of a sequence is row j % page_rows of page pages[j / page_rows] of a pool that all sequences share.
#pragma once

#include <cstdint>
#include <span>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// Throws Error unless `rows` rows have pages.
inline void require_pages(const char* name, Index rows, Index page_rows,
                          std::span<const std::int32_t> pages) {
  if (rows <= 0) return;
  if (page_rows < 1) fail(name, " has pages of ", page_rows, " rows");
  const Index needed = (rows - 1) / page_rows + 1;  // however large page_rows is
  if (static_cast<Index>(pages.size()) < needed)
    fail(name, " names ", pages.size(), " pages of ", page_rows, " rows, its ", rows, " rows need ", needed);
  for (std::int32_t page : pages.first(static_cast<std::size_t>(needed)))
    if (page < 0) fail(name, " names page ", page);
}

}  // namespace detail

/// heads x rows x cols elements; element (h, j, c) is
/// data[pages[j / page_rows] * page_stride + h * head_stride + (j % page_rows) * row_stride + c]; of blocks,
/// strides and places in a row count these.
template <class T>
struct PagedView {
  T* data = nullptr;
  Index heads = 0;
  Index rows = 0;
  Index cols = 0;
  Index page_rows = 0;
  std::span<const std::int32_t> pages = {};
  Index page_stride = 0;
  Index head_stride = 0;
  Index row_stride = 0;

  /// One head's rows.
  struct Head {
    T* data;
    Index page_rows;
    const std::int32_t* pages;
    Index page_stride;
    Index row_stride;

    T* row(Index j) const { return data + pages[j / page_rows] * page_stride + j % page_rows * row_stride; }
  };
  Head head(Index h) const {
    return {data + h * head_stride, page_rows, pages.data(), page_stride, row_stride};
  }

  /// Throws Error unless every row has a page. The pool's size is the caller's to know.
  void require_pages(const char* name) const { detail::require_pages(name, rows, page_rows, pages); }
};

/// What keys and values may come as: a TensorView<const T>, from anything that is CacheLike, or a
/// PagedView<const T>.
template <CacheLike X>
TensorView<const ElementOf<X>> as_rows(const X& tensor) {
  return as_tensor(tensor);
}
template <class T>
PagedView<const std::remove_const_t<T>> as_rows(const PagedView<T>& p) {
  return {p.data, p.heads, p.rows, p.cols, p.page_rows, p.pages, p.page_stride, p.head_stride, p.row_stride};
}

/// A type that as_rows takes.
template <class X>
concept RowsLike = requires(const X& x) {
  as_rows(x);
};

}  // namespace fastrope::inline FASTROPE_TARGET
