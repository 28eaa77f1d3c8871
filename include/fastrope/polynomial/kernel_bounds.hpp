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
#include "fastrope/exact/exp2.hpp"
#include "fastrope/exact/gate_sums.hpp"
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

/// The sums of a row: D~ and what is known of them.
struct RowSums {
  double sum;          ///< D~, without what was taken out of the gates,
  double maximum = 0;  ///< and in units of 2^maximum
  double far_error;    ///< in the same unit, the A of keys that were not done as such
  double largest;      ///< max_c |out~_c|
};

/// Bounds the rows of one call, whose arithmetic is in Real.
template <class Real>
class KernelBounds {
 public:
  KernelBounds(const Problem& problem, Workspace& workspace)
      : rounding_(problem.kernel, tile_arithmetic<Real>(problem)),
        degrees_(problem.kernel.degree() + 1),
        rows_(problem.shapes.n_k + 1),
        gates_(problem, workspace),
        sizes_(workspace.take<double>(std::max(problem.shapes.kv_heads, gates_.tasks()) * rows_ * degrees_)
                   .data()),
        largest_values_(workspace.take<double>(problem.shapes.kv_heads).data()),
        longest_keys_(workspace.take<double>(problem.shapes.kv_heads).data()) {}

  /// Reads all keys and values: k [kv_heads, n_k, d], v [kv_heads, n_k, d_v].
  void measure(const Problem& problem, const StoredRows& k, const StoredRows& v) {
    query_factor_ = query_factor(problem) * longest_weights(problem);
    double gate_size = 0;
    // Queries may stand far beyond all keys.
    const double span =
        problem.gates.slopes.empty() ? 0 : 2 * static_cast<double>(problem.grid.farthest_position());
    for (Index row = 0; row < gates_.tasks(); ++row)
      gate_size = std::max(gate_size, problem.gates.size(row, gates_.tasks(), problem.shapes.n_k, span));
    unit_rounding_ = gate_rounding(gate_size);
    rounding_ = KernelRounding(problem.kernel, tile_arithmetic<Real>(problem, gate_size));
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

  /// Bounds row i of head h, whose keys `near` were done as such; out: how it is stored.
  double row(const Problem& problem, Index h, Index i, double query_size, Range near, const RowSums& sums,
             const StoredType& out) const {
    const KeySet allowed = gates_.allowed(problem, h, i);
    if (sums.sum == 0 && !has_keys(problem, h, i, allowed)) return 0;
    const Index kv = problem.kv_head(h);
    const double largest_value = largest_values_[kv], shift = sums.maximum * kLn2;
    const GateReference reference =
        gates_.empty() ? GateReference{} : gates_.reference(problem, h, i, allowed);
    double error = sums.far_error;
    if (!allowed.hull(near).empty()) {
      std::array<double, Kernel::kMaxDegree + 1> sizes = {};
      allowed.for_each(near, [&](Range keys) { add_sizes(h, kv, keys, reference.level + shift, sizes); });
      error += rounding_.error(query_size, sizes.data(), largest_value, sums.far_error, sums.sum);
      if (!gates_.empty()) error += flushed(problem, kv, query_size);
    }
    const Normaliser& normaliser = problem.normaliser;
    const double n = normaliser.denominator(sums.sum, reference.sum + reference.level + shift);
    const bool certain = normaliser.kind() == Normaliser::Kind::none ||
                         (normaliser.kind() == Normaliser::Kind::at_least && std::abs(sums.sum) + error <= n);
    // The unit itself is rounded.
    if (n != sums.sum && largest_value > 0)
      error += unit_rounding_ * std::abs(n) * std::max(1.0, sums.largest / largest_value);
    return row_bound<Real>(error, n, sums.largest, largest_value, out, certain);
  }

  /// Bounds all rows of the exact path: q [heads, n_q, d], sums [heads, n_q], D~; out [heads, n_q, d_v],
  /// bounds [heads, n_q].
  void exact_rows(const Problem& problem, const StoredRows& q, MatrixView<const Real> sums,
                  const OutputRows& out, double* bounds) const {
    const Shapes& s = problem.shapes;
    problem.executor.parallel_for(s.heads, [&](Index h, Index) {
      for (Index i = 0; i < s.n_q; ++i) {
        double sum = static_cast<double>(sums(h, i));
        if (!gates_.empty()) {
          const GateReference taken = gates_.reference(problem, h, i, gates_.allowed(problem, h, i));
          sum *= std::exp(-taken.sum - taken.level);
        }
        bounds[h * s.n_q + i] =
            row(problem, h, i, query_size(problem, q.head(h), i), {0, s.n_k},
                {.sum = sum,
                 .far_error = 0,
                 .largest = or_larger(0, {.type = out.type, .data = out.row(h, i)}, 0, s.d_v)},
                *out.type);
      }
    });
  }

 private:
  void measure_head(const Problem& problem, Index kv, const StoredHead& k, const StoredHead& v) const {
    const Shapes& s = problem.shapes;
    // The rows of gates of this key head, or none.
    const Index rows = gates_.tasks() / s.kv_heads;
    for (Index row = kv * rows; row < (kv + 1) * rows; ++row) gates_.prepare(problem, row);
    double largest = 0, longest = 0;
    for (Index row = kv * rows; row < std::max((kv + 1) * rows, kv * rows + 1); ++row)
      std::fill_n(sizes_ + (rows == 0 ? kv : row) * rows_ * degrees_, degrees_, 0.0);
    for (Index j = 0; j < s.n_k; ++j) {
      const Index source = problem.grid.source(j);
      const double length = row_length<Real>(k, source, s.d);
      if (rows == 0) add_key(length, 1, 1, sizes_ + (kv * rows_ + j) * degrees_);
      for (Index row = kv * rows; row < (kv + 1) * rows; ++row) {
        const double top = gates_.top(row, j + 1);
        const bool resets = gates_.resets(row, j + 1) == j;
        add_key(length, resets ? 0 : decay(gates_.top(row, j), top), decay(gates_.levels(row)[j], top),
                sizes_ + (row * rows_ + j) * degrees_);
      }
      if (std::isfinite(length)) longest = std::max(longest, length);
      largest = or_larger(largest, v, source, s.d_v);
    }
    largest_values_[kv] = std::isnan(largest) ? std::numeric_limits<double>::infinity() : largest;
    longest_keys_[kv] = longest;
  }

  /// sizes [2, degree + 1]: the second = what is left of the first and a key of this length and weight. A key
  /// that is not finite makes the sums of rows that meet it so, which says enough; others need not know.
  void add_key(double length, double shrink, double weight, double* sizes) const {
    double power = weight;
    for (Index p = 0; p < degrees_; ++p, power = std::isfinite(length) ? power * length : 0)
      sizes[degrees_ + p] = (shrink == 0 ? 0 : sizes[p] * shrink) + power;
  }

  /// sizes += those of `keys`, in units of e^level: sums over all keys before their end, of which those
  /// before their begin are taken off again.
  void add_sizes(Index h, Index kv, Range keys, double level,
                 std::array<double, Kernel::kMaxDegree + 1>& sizes) const {
    const Index row = gates_.empty() ? kv : gates_.row_of(h);
    const double* begin = sizes_ + (row * rows_ + keys.begin) * degrees_;
    const double* end = sizes_ + (row * rows_ + keys.end) * degrees_;
    const bool all = keys.begin <= (gates_.empty() ? 0 : gates_.start(row, keys.end));
    const double of_end = gates_.empty() ? 1 : decay(gates_.top(row, keys.end), level);
    const double of_begin = gates_.empty() ? 1 : decay(gates_.top(row, keys.begin), level);
    const double loss = 0x1p-52 * static_cast<double>(all ? 1 : rows_);
    for (Index p = 0; p < degrees_; ++p)
      sizes[static_cast<std::size_t>(p)] +=
          of_end * end[p] - (all ? 0 : of_begin * begin[p]) + loss * of_end * end[p];
  }

  /// What factors of gates lose to underflow: a weight each, and its product with a value.
  double flushed(const Problem& problem, Index kv, double query_size) const {
    const double weight =
        amplification(problem.kernel.coefficients(), kHigherOrder * query_size * longest_keys_[kv]);
    const double of_value = largest_values_[kv] > 0 ? 1 / largest_values_[kv] : 0;
    return static_cast<double>(std::numeric_limits<Real>::min()) * static_cast<double>(rows_) * 2 *
           (2 * weight + 1 + of_value);
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
  double unit_rounding_ = 0;
  GateSums gates_;
  double* sizes_;  // [kv_heads or rows of gates, n_k + 1, degree + 1]: sums over the keys before each of
                   // |k_j|^p, times e^(their level - the largest) with gates
  double* largest_values_;  // [kv_heads]
  double* longest_keys_;    // [kv_heads]
};

}  // namespace fastrope::inline FASTROPE_TARGET
