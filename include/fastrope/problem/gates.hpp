// Gates: how much a query still sees of a key when tokens between them forget, and how much a key was let in.
//
//     the weight of key j for query i is multiplied by exp(G_i - G_j + b_j),   G_i = sum of g_t, t <= i
// with log gates g_t <= 0 of tokens and log input gates b_j of keys; a token weighs e^b_j for itself. g_t =
// -infinity is a reset: nothing before token t is seen from t on. A constant gate is ALiBi: a polynomial
// kernel, which has no exponent to add a bias to, takes slopes as gates.
#pragma once

#include <algorithm>
#include <cmath>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/shared_array.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The gates of one call: views of the caller's memory, of which runs read as many columns as there are keys.
struct Gates {
  MatrixView<const float> log = {};        ///< [kv_heads or heads, n_k], g; of no rows: 0
  MatrixView<const float> log_input = {};  ///< the same, b
  SharedArray<double> slopes = {};         ///< of 1 or all query heads: g is -slope a position more

  bool given() const { return log.rows > 0 || log_input.rows > 0 || !slopes.empty(); }
  /// How many rows of gates differ: one a key head, or one a query head. 0 without gates.
  Index rows(Index heads, Index kv_heads) const {
    if (!given()) return 0;
    const bool of_queries = log.rows > kv_heads || log_input.rows > kv_heads || std::ssize(slopes) > 1;
    return of_queries ? heads : kv_heads;
  }
  /// g and b of key row j for one of those rows of `all`, and its slope.
  double gate(Index row, Index all, Index j) const { return element(log, row, all, j); }
  double input_gate(Index row, Index all, Index j) const { return element(log_input, row, all, j); }
  double slope(Index row) const {
    return slopes.empty() ? 0 : slopes[slopes.size() == 1 ? 0 : static_cast<std::size_t>(row)];
  }

  /// At least |G_j| + |b_j| of every key that is not hidden, of n_k keys at `span` positions: what rounding
  /// of their sums is relative to. Cost: O(n_k).
  double size(Index row, Index all, Index n_k, double span) const {
    double gates = slope(row) * span, input = 0;
    for (Index j = 0; j < n_k; ++j) {
      if (const double g = gate(row, all, j); std::isfinite(g)) gates += std::abs(g);
      if (const double b = input_gate(row, all, j); std::isfinite(b)) input = std::max(input, std::abs(b));
    }
    return gates + input;
  }

  /// Throws Error, naming the sizes, unless both are of the heads and of n_k keys.
  void require_shape(Index heads, Index kv_heads, Index n_k) const {
    const auto require = [&](const char* name, const MatrixView<const float>& x) {
      if (x.rows == 0 && x.data == nullptr) return;
      if ((x.rows != heads && x.rows != kv_heads) || x.cols != n_k ||
          (x.data == nullptr && x.rows * x.cols != 0))
        detail::fail(name, " is [", x.rows, ", ", x.cols, x.data == nullptr ? "] and null" : "]",
                     ", gates are [kv_heads = ", kv_heads, " or heads = ", heads, ", n_k = ", n_k, "]");
    };
    require("log_gates", log);
    require("log_input_gates", log_input);
  }
  /// Throws Error, naming the value, unless every g is at most 0 and every b below infinity.
  void require_values() const {
    for (Index r = 0; r < log.rows; ++r)
      for (Index j = 0; j < log.cols; ++j)
        if (!(log(r, j) <= 0))
          detail::fail("log_gates(", r, ", ", j, ") is ", log(r, j), ": the log of a gate is at most 0");
    for (Index r = 0; r < log_input.rows; ++r)
      for (Index j = 0; j < log_input.cols; ++j)
        if (!(log_input(r, j) < INFINITY))
          detail::fail("log_input_gates(", r, ", ", j, ") is ", log_input(r, j), ", not below infinity");
  }
  /// Whether all of the first n_k keys are such, whatever is there when a plan runs.
  bool are_valid(Index n_k) const {
    for (Index r = 0; r < log.rows; ++r)
      for (Index j = 0; j < n_k; ++j)
        if (!(log(r, j) <= 0)) return false;
    for (Index r = 0; r < log_input.rows; ++r)
      for (Index j = 0; j < n_k; ++j)
        if (!(log_input(r, j) < INFINITY)) return false;
    return true;
  }

 private:
  static double element(const MatrixView<const float>& x, Index row, Index all, Index j) {
    if (x.rows == 0) return 0;
    return static_cast<double>(x(row * x.rows / all, j));
  }
};

}  // namespace fastrope::inline FASTROPE_TARGET
