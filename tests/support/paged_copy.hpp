// One head of a tensor in pages that are out of order, with NaN where no row is.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "fastrope/core/paged_view.hpp"
#include "support/tensor.hpp"

namespace fastrope_test {

/// Of at most 32 rows.
template <class T>
class PagedCopy {
 public:
  explicit PagedCopy(const Tensor<T>& x)
      : rows_(x.rows),
        cols_(x.cols),
        memory_(static_cast<std::size_t>(6 * kPageRows * x.cols), static_cast<T>(NAN)) {
    for (Index j = 0; j < rows_; ++j)
      for (Index m = 0; m < cols_; ++m) {
        const Index row = pages_[static_cast<std::size_t>(j / kPageRows)] * kPageRows + j % kPageRows;
        memory_[static_cast<std::size_t>(row * cols_ + m)] = x(0, j, m);
      }
  }

  /// Valid while the copy lives.
  fastrope::PagedView<const T> view() const {
    const Index page = kPageRows * cols_;
    return {memory_.data(), 1, rows_, cols_, kPageRows, pages_, page, page, cols_};
  }

 private:
  static constexpr Index kPageRows = 8;

  Index rows_, cols_;
  std::vector<std::int32_t> pages_ = {3, 0, 5, 1};  // of six
  std::vector<T> memory_;
};

}  // namespace fastrope_test
