// StoredCache: keys or values in any of the types that they may be stored as, and the numbers that are
// stored.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "fastrope/core/quantize.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "support/tensor.hpp"

namespace fastrope_test {

/// [heads, rows, cols] of T, whole blocks a row.
template <class T>
struct StoredCache {
  Index heads = 0;
  Index rows = 0;
  Index cols = 0;
  std::vector<T> values = {};

  StoredCache() = default;
  explicit StoredCache(const Tensor<float>& x)
      : heads(x.heads), rows(x.rows), cols(x.cols), values(x.values.size() / fastrope::kElementsOf<T>) {
    if constexpr (fastrope::Element<T>)
      std::transform(x.values.begin(), x.values.end(), values.begin(),
                     [](float number) { return static_cast<T>(number); });
    else
      fastrope::quantize(x.values, values);
  }

  TensorView<T> view() { return fastrope::contiguous(values.data(), heads, rows, cols); }
  TensorView<const T> view() const { return fastrope::contiguous(values.data(), heads, rows, cols); }

  /// What is stored.
  Tensor<float> numbers() const {
    Tensor<float> x(heads, rows, cols);
    if constexpr (fastrope::Element<T>)
      std::transform(values.begin(), values.end(), x.values.begin(),
                     [](T number) { return static_cast<float>(number); });
    else
      fastrope::dequantize(values, x.values);
    return x;
  }
};

}  // namespace fastrope_test
