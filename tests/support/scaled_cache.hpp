// ScaledCache: keys or values as integers of 8 bits with scales beside them, and the numbers that they are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "fastrope/core/quantize.hpp"
#include "fastrope/core/scaled_view.hpp"
#include "support/tensor.hpp"

namespace fastrope_test {

/// [heads, rows, cols], a scale for each row of a head, each column, or both.
struct ScaledCache {
  Index heads = 0;
  Index rows = 0;
  Index cols = 0;
  std::vector<std::int8_t> values = {};
  std::vector<float> row_scales = {};     // [heads, rows]
  std::vector<float> column_scales = {};  // [heads, cols]

  ScaledCache(const Tensor<float>& x, bool of_rows, bool of_columns)
      : heads(x.heads), rows(x.rows), cols(x.cols), values(x.values.size()) {
    std::vector<float> left = x.values;  // of the numbers, over the scales of columns
    if (of_columns) {
      column_scales.resize(static_cast<std::size_t>(heads * cols));
      for (Index h = 0; h < heads; ++h)
        fastrope::quantize_columns(part(left, h), part(values, h), part(column_scales, h));
    }
    if (!of_rows) return;
    row_scales.resize(static_cast<std::size_t>(heads * rows));
    for (std::size_t i = 0; of_columns && i < left.size(); ++i) {
      const auto head = i / static_cast<std::size_t>(rows * cols);
      left[i] /= column_scales[head * static_cast<std::size_t>(cols) + i % static_cast<std::size_t>(cols)];
    }
    for (Index h = 0; h < heads; ++h)
      fastrope::quantize_rows(part(left, h), part(values, h), part(row_scales, h));
  }

  fastrope::ScaledView<TensorView<const std::int8_t>> view() const {
    return {fastrope::contiguous(values.data(), heads, rows, cols), row_view(), column_view()};
  }
  fastrope::MatrixView<const float> row_view() const {
    return {row_scales.empty() ? nullptr : row_scales.data(), heads, rows, rows};
  }
  fastrope::MatrixView<const float> column_view() const {
    return {column_scales.empty() ? nullptr : column_scales.data(), heads, cols, cols};
  }

  /// What is stored: products rounded once.
  Tensor<float> numbers() const {
    Tensor<float> x(heads, rows, cols);
    for (Index h = 0; h < heads; ++h)
      for (Index j = 0; j < rows; ++j)
        for (Index c = 0; c < cols; ++c) {
          double scale = 1;
          if (!row_scales.empty()) scale *= static_cast<double>(row_view()(h, j));
          if (!column_scales.empty()) scale *= static_cast<double>(column_view()(h, c));
          x(h, j, c) =
              static_cast<float>(values[static_cast<std::size_t>((h * rows + j) * cols + c)] * scale);
        }
    return x;
  }

 private:
  template <class T>
  std::span<T> part(std::vector<T>& x, Index h) const {
    const auto size = x.size() / static_cast<std::size_t>(heads);
    return std::span<T>(x).subspan(static_cast<std::size_t>(h) * size, size);
  }
};

}  // namespace fastrope_test
