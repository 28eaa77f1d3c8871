// Kernel bounds: what has to be known of a call's rows to bound what rounding does to each, with a polynomial
// kernel.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/scores.hpp"
#include "fastrope/polynomial/kernel_rounding.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// |x| of row j of d elements, at least so large that a bound relative to it covers what underflow does to
/// products of Real.
template <class Real>
double row_length(const StoredHead& rows, Index j, Index d) {
  constexpr Index kTogether = 8;
  double squares[kTogether] = {};
  rows.for_each_piece<double>(j, d, [&](Index, const double* x, Index count) {
    static_assert(StoredHead::kPiece % kTogether == 0);
    Index c = 0;
    for (; c + kTogether <= count; c += kTogether)
      for (Index l = 0; l < kTogether; ++l) squares[l] += x[c + l] * x[c + l];
    for (; c < count; ++c) squares[0] += x[c] * x[c];
  });
  double square = static_cast<double>(d + 4) * static_cast<double>(std::numeric_limits<Real>::min()) /
                  kUnitRoundoff<Real>;
  for (const double s : squares) square += s;
  return std::sqrt(square);
}

/// |scale|, and what turning may do to the lengths of a query and a key.
inline double query_factor(const Problem& problem) {
  const double gain = problem.rotates() ? std::max(1.0, problem.rotation.frequencies().attention_factor) : 1;
  return std::abs(problem.scale) * gain * gain;
}

/// The larger of both, NaN where one was met.
inline double or_larger(double largest, double size) {
  return size <= largest || std::isnan(largest) ? largest : size;
}

/// The larger of that and |x| for all elements of row j.
inline double or_larger(double largest, const StoredHead& rows, Index j, Index cols) {
  rows.for_each_piece<double>(j, cols, [&](Index, const double* x, Index count) {
    for (Index c = 0; c < count; ++c) largest = or_larger(largest, std::abs(x[c]));
  });
  return largest;
}

/// Bounds the rows of one call, whose arithmetic is in Real.
template <class Real>
class KernelBounds {
 public:
  KernelBounds(const Problem& problem, Workspace& workspace)
      : rounding_(problem.kernel, tile_arithmetic<Real>(problem)),
        degrees_(problem.kernel.degree() + 1),
        rows_(problem.shapes.n_k + 1),
        sizes_(workspace.take<double>(problem.shapes.kv_heads * rows_ * degrees_).data()),
        largest_values_(workspace.take<double>(problem.shapes.kv_heads).data()) {}

  /// Reads all keys and values: k [kv_heads, n_k, d], v [kv_heads, n_k, d_v].
  void measure(const Problem& problem, const StoredRows& k, const StoredRows& v) {
    query_factor_ = query_factor(problem) * longest_weights(problem);
    problem.executor.parallel_for(
        problem.shapes.kv_heads, [&](Index kv, Index) { measure_head(problem, kv, k.head(kv), v.head(kv)); });
  }

  /// max|V| of a key head.
  double largest_value(Index kv) const { return largest_values_[kv]; }
  /// The same where there were values before.
  void raise_largest_value(Index kv, double value) const {
    largest_values_[kv] = std::max(largest_values_[kv], value);
  }
  /// |s| |q| of row i of a head's queries as stored.
  double query_size(const Problem& problem, const StoredHead& q, Index i) const {
    return query_factor_ * row_length<Real>(q, i, problem.shapes.d);
  }

  /// Bounds row i of head h, whose keys `near` were done as such; far_error: the A of its other sums, sum:
  /// D~, largest: max_c |out~_c|. out: how it is stored.
  double row(const Problem& problem, Index h, Index i, double query_size, Range near, double far_error,
             double sum, double largest, const StoredType& out) const {
    const KeySet allowed = problem.grid.keys_of(h, i);
    if (sum == 0 && !has_keys(problem, h, i, allowed)) return 0;
    const Index kv = problem.kv_head(h);
    const double largest_value = largest_values_[kv];
    double error = far_error;
    if (!allowed.hull(near).empty()) {
      // Prefix sums over all keys, of which those before are taken off again.
      std::array<double, Kernel::kMaxDegree + 1> sizes = {};
      allowed.for_each(near, [&](Range keys) {
        const double* begin = sizes_ + (kv * rows_ + keys.begin) * degrees_;
        const double* end = sizes_ + (kv * rows_ + keys.end) * degrees_;
        const double loss = 0x1p-52 * static_cast<double>(keys.begin == 0 ? 1 : rows_);
        for (Index p = 0; p < degrees_; ++p)
          sizes[static_cast<std::size_t>(p)] += end[p] - (keys.begin == 0 ? 0 : begin[p]) + loss * end[p];
      });
      error += rounding_.error(query_size, sizes.data(), largest_value, far_error, sum);
    }
    return row_bound<Real>(error, sum, largest, largest_value, out);
  }

  /// Bounds all rows of the exact path: q [heads, n_q, d], sums [heads, n_q], D~; out [heads, n_q, d_v],
  /// bounds [heads, n_q].
  void exact_rows(const Problem& problem, const StoredRows& q, MatrixView<const Real> sums,
                  const OutputRows& out, double* bounds) const {
    const Shapes& s = problem.shapes;
    problem.executor.parallel_for(s.heads, [&](Index h, Index) {
      for (Index i = 0; i < s.n_q; ++i)
        bounds[h * s.n_q + i] = row(
            problem, h, i, query_size(problem, q.head(h), i), {0, s.n_k}, 0, static_cast<double>(sums(h, i)),
            or_larger(0, {.type = out.type, .data = out.row(h, i)}, 0, s.d_v), *out.type);
    });
  }

 private:
  void measure_head(const Problem& problem, Index kv, const StoredHead& k, const StoredHead& v) const {
    const Shapes& s = problem.shapes;
    double* sizes = sizes_ + kv * rows_ * degrees_;
    double largest = 0;
    std::fill_n(sizes, degrees_, 0.0);
    for (Index j = 0; j < s.n_k; ++j, sizes += degrees_) {
      const Index source = problem.grid.source(j);
      const double length = row_length<Real>(k, source, s.d);
      // A key that is not finite makes the sums of rows that meet it so, which says enough; others need not
      // know.
      double power = 1;
      for (Index p = 0; p < degrees_; ++p, power = std::isfinite(length) ? power * length : 0)
        sizes[degrees_ + p] = sizes[p] + power;
      largest = or_larger(largest, v, source, s.d_v);
    }
    largest_values_[kv] = std::isnan(largest) ? std::numeric_limits<double>::infinity() : largest;
  }

  /// At least what |q| grows by when general weights W(lag), by their sizes, are applied to it: their
  /// Frobenius norm.
  static double longest_weights(const Problem& problem) {
    if (!problem.weights) return 1;
    const LagGrid::Lags lags = problem.grid.allowed_lags();
    double longest = 0;
    for (Position lag = lags.first; lag <= lags.last; ++lag) {
      double square = 0;
      for (Index s = 0; s < std::ssize(problem.weights->support()); ++s)
        square += (*problem.weights)(lag, s) * (*problem.weights)(lag, s);
      longest = std::max(longest, square);
    }
    return std::sqrt(longest);
  }

  static bool has_keys(const Problem& problem, Index h, Index i, const KeySet& allowed) {
    bool some = false;
    allowed.for_each({0, problem.shapes.n_k}, [&](Range keys) {
      for (Index j = keys.begin; j < keys.end && !some; ++j) some = dense_allows(problem, h, i, j);
    });
    return some;
  }

  KernelRounding rounding_;
  Index degrees_;
  Index rows_;
  double query_factor_ = 0;
  double* sizes_;           // [kv_heads, n_k + 1, degree + 1]: sums of |k_j|^p over the keys before each
  double* largest_values_;  // [kv_heads]
};

}  // namespace fastrope::inline FASTROPE_TARGET
