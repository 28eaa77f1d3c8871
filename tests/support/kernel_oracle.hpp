// Attention with a polynomial kernel as its definition has it, in long double, and row bounds held against
// it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "support/attention_case.hpp"

namespace fastrope_test {

/// out [heads, rows of q, d_v]: of keys that come in order and queries that stand at the last of them, with a
/// causal or a full mask, without rope; zeros where there are no keys.
template <class Q, class K, class V>
Tensor<double> kernel_oracle(const AttentionCase& c, const TensorView<Q>& q, const TensorView<K>& k,
                             const TensorView<V>& v) {
  const auto coefficients = c.base.kernel.coefficients();
  const bool causal = c.base.mask == fastrope::Mask::causal();
  const auto scale = static_cast<long double>(
      c.base.scale.value_or(q.cols == 0 ? 1 : 1 / std::sqrt(static_cast<double>(q.cols))));
  Tensor<double> out(q.heads, q.rows, v.cols);
  std::vector<long double> sums(static_cast<std::size_t>(v.cols));
  for (Index h = 0; h < q.heads; ++h) {
    const Index kv = h / (q.heads / k.heads);
    for (Index i = 0; i < q.rows; ++i) {
      std::fill(sums.begin(), sums.end(), 0.0L);
      long double total = 0;
      const Index keys = causal ? std::clamp<Index>(k.rows - q.rows + i + 1, 0, k.rows) : k.rows;
      for (Index j = 0; j < keys; ++j) {
        long double x = 0, weight = 0;
        for (Index m = 0; m < q.cols; ++m)
          x += static_cast<long double>(q.head(h)(i, m)) * static_cast<long double>(k.head(kv)(j, m));
        x *= scale;
        for (std::size_t p = coefficients.size(); p-- > 0;)
          weight = weight * x + static_cast<long double>(coefficients[p]);
        total += weight;
        for (Index m = 0; m < v.cols; ++m)
          sums[static_cast<std::size_t>(m)] += weight * static_cast<long double>(v.head(kv)(j, m));
      }
      for (Index m = 0; m < v.cols; ++m)
        out(h, i, m) = total == 0 ? 0 : static_cast<double>(sums[static_cast<std::size_t>(m)] / total);
    }
  }
  return out;
}

/// max|V| of a head.
template <class V>
double largest_of(const MatrixView<V>& v) {
  double largest = 0;
  for (Index j = 0; j < v.rows; ++j)
    for (Index m = 0; m < v.cols; ++m) largest = std::max(largest, std::abs(static_cast<double>(v(j, m))));
  return largest;
}

/// What became of some rows and their bounds.
struct BoundedRows {
  std::vector<double> bounds = {};
  double closest = 0;  ///< the largest observed / promised
  Index violated = 0;  ///< rows beyond their bound
  std::string worst = {};

  /// Row i of head h: `out` against `expected`, both [d_v].
  template <class Out>
  void add(Index h, Index i, const Out* out, const double* expected, Index d_v, double largest_value,
           double bound) {
    double error = 0;
    for (Index m = 0; m < d_v; ++m) {
      const double off = std::abs(static_cast<double>(out[m]) - expected[m]);
      if (!(off <= error)) error = off;
    }
    bounds.push_back(bound);
    // 0 infinity: where all values are 0 every weight gives 0.
    const double promised = largest_value == 0 ? 0 : bound * largest_value;
    if (!(error <= promised)) {
      ++violated;
      worst = "head " + std::to_string(h) + ", row " + std::to_string(i) + ": off by " +
              std::to_string(error) + ", promised " + std::to_string(promised);
    }
    if (promised > 0) closest = std::max(closest, error / promised);
  }
  /// The part of the rows whose bound is at most `most`.
  double share_within(double most) const {
    const auto within = std::count_if(bounds.begin(), bounds.end(), [&](double b) { return b <= most; });
    return bounds.empty() ? 1 : static_cast<double>(within) / static_cast<double>(bounds.size());
  }
};

}  // namespace fastrope_test
