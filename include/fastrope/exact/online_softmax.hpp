// Online softmax: attention over part of the keys, in a form that can be continued and merged.
//
// For one row and a set of keys, with y_j = x_j log2(e):
//     maximum m >= max_j y_j,   sum l = sum_j 2^(y_j - m),   output o = sum_j 2^(y_j - m) v_j,
// out = o / l and lse = ln(sum_j exp(x_j)) = (m + log2 l) ln 2. Two sets merge by raising both to the larger
// maximum. A row without keys has m = -infinity, l = 0, o = 0; its output is 0 and its lse -infinity. The
// weights P(x_j) of a polynomial kernel add up in the same states, with m = 0.
//
// Maxima are rounded up to integers, so that raising them multiplies by powers of two and rounds nothing.
// Sums are kept in the arithmetic of the call for a stretch of keys (SoftmaxRows) and then folded into double
// (SoftmaxTotals): their rounding does not grow with the number of keys (rounding.hpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <type_traits>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/row_overlap.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/exp2.hpp"
#include "fastrope/exact/polynomial_weights.hpp"
#include "fastrope/problem/normaliser.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The most keys whose sums are kept in the arithmetic of the call before they are folded into double.
inline constexpr Index kStretch = 1024;

/// The states of a block of rows over a stretch of keys, in the arithmetic of the call. l is kept as one part
/// for each lane of a vector, so that a block of scores ends without a reduction.
template <class Real>
struct SoftmaxRows {
  static constexpr Index kLanes = simd::kLanes<Real>;
  static constexpr Real kEmpty = -std::numeric_limits<Real>::infinity();

  Index width = 0;          ///< values per row, padded to whole vectors
  Real* maximum = nullptr;  ///< [rows], base-2, integers
  Real* parts = nullptr;    ///< [rows, kLanes], which add up to the sum
  Real* output = nullptr;   ///< [rows, width]

  SoftmaxRows(Index rows, Index value_stride, Workspace& workspace)
      : width(value_stride),
        maximum(workspace.take<Real>(rows).data()),
        parts(workspace.take<Real>(rows * kLanes).data()),
        output(workspace.take<Real>(rows * value_stride).data()) {}

  Real* row(Index i) const { return output + i * width; }
  Real sum(Index i) const { return simd::reduce_add<Real>(simd::load(parts + i * kLanes)); }

  void clear(Index rows) const {
    std::fill_n(maximum, rows, kEmpty);
    clear_sums(rows);
  }
  /// Begins another stretch, with the same maxima.
  void clear_sums(Index rows) const {
    std::fill_n(parts, rows * kLanes, Real{0});
    std::fill_n(output, rows * width, Real{0});
  }

  /// The states from row i on.
  SoftmaxRows from(Index i) const {
    SoftmaxRows rows = *this;
    rows.maximum += i;
    rows.parts += i * kLanes;
    rows.output += i * width;
    return rows;
  }

  /// Makes room for scores up to `candidate`: the maximum rises to the next integer and what was summed
  /// shrinks by the same factor, a power of two.
  void raise(Index i, Real candidate) const {
    if (!(candidate > maximum[i])) return;
    const Real next = std::ceil(candidate);
    if (maximum[i] != kEmpty) {
      const simd::Vec<Real> shrink = exp2_nonpositive<Real>(simd::set(maximum[i] - next));
      scale_by(shrink, parts + i * kLanes, kLanes);
      scale_by(shrink, row(i), width);
    }
    maximum[i] = next;
  }

  /// scores [rows, cols], base-2 when multiplied by `factor` > 0, row stride `stride`, become weights
  /// 2^(factor score - maximum), rounded to T, and their sums are added. Requires cols a multiple of the
  /// vector length. The outputs are left to the caller.
  template <class T = Real>
  void weigh(Index rows, Real* scores, Index stride, Index cols, Real factor = 1) const {
    using namespace simd;
    const Vec<Real> unit = set(factor);
    // Two passes over all rows, so that no row waits for the maximum of the one before. The maximum is
    // reduced over lanes only where it rises, which grows rare.
    for (Index i = 0; i < rows; ++i) {
      const Real* row = scores + i * stride;
      Vec<Real> largest[2] = {set(kEmpty), set(kEmpty)};
      Index j = 0;
      for (; j + 2 * kLanes <= cols; j += 2 * kLanes) {
        largest[0] = max(load(row + j), largest[0]);
        largest[1] = max(load(row + j + kLanes), largest[1]);
      }
      if (j < cols) largest[0] = max(load(row + j), largest[0]);
      largest[0] = mul(max(largest[0], largest[1]), unit);
      // A NaN score makes its row NaN whatever the maximum is.
      if (any_greater<Real>(largest[0], set(maximum[i]))) raise(i, reduce_max<Real>(largest[0]));
    }
    for (Index i = 0; i < rows; ++i) {
      Real* row = scores + i * stride;
      const Vec<Real> shift = set(maximum[i] == kEmpty ? Real{0} : -maximum[i]);
      Vec<Real> total = zero<Real>();
      for (Index j = 0; j < cols; j += kLanes) {
        Vec<Real> weight = exp2_nonpositive<Real>(fma(load(row + j), unit, shift));
#if FASTROPE_BFLOAT16_PRODUCTS
        if constexpr (std::is_same_v<T, bfloat16>) weight = round_to_bfloat16(weight);
#endif
        total = add(total, weight);
        store<Real>(weight, row + j);
      }
      store<Real>(add(load(parts + i * kLanes), total), parts + i * kLanes);
    }
  }

  /// The same for a polynomial kernel: scores, in natural units, become weights P(score), times factors_of(i)
  /// [cols] for row i unless that is null. Those of -infinity weigh 0 here too. Requires maxima of 0, or of
  /// -infinity, which become 0: nothing is shifted.
  template <class FactorsOf>
  void weigh_polynomial(std::span<const double> coefficients, Index rows, Real* scores, Index stride,
                        Index cols, FactorsOf&& factors_of) const {
    using namespace simd;
    const PolynomialWeights<Real> weights(coefficients);
    std::fill_n(maximum, rows, Real{0});
    for (Index i = 0; i < rows; ++i) {
      const Vec<Real> total = weights.of(scores + i * stride, cols, factors_of(i));
      store<Real>(add(load(parts + i * kLanes), total), parts + i * kLanes);
    }
  }

  void weigh_polynomial(std::span<const double> coefficients, Index rows, Real* scores, Index stride,
                        Index cols) const {
    weigh_polynomial(coefficients, rows, scores, stride, cols, [](Index) -> const Real* { return nullptr; });
  }

 private:
  static void scale_by(simd::Vec<Real> factor, Real* x, Index count) {
    for (Index c = 0; c < count; c += kLanes) simd::store<Real>(simd::mul(simd::load(x + c), factor), x + c);
  }
};

/// The states of a block of rows over any number of keys, in double. The sums of an approximation come with a
/// bound on their error, in the same unit: |l~ - l| + max_c |o~_c - o_c| / max|V| <= error.
struct SoftmaxTotals {
  static constexpr double kEmpty = -std::numeric_limits<double>::infinity();

  Index width = 0;            ///< values per row, padded to whole vectors
  double* maximum = nullptr;  ///< [rows], base-2, integers
  double* sum = nullptr;      ///< [rows]
  double* error = nullptr;    ///< [rows]
  double* output = nullptr;   ///< [rows, width]

  SoftmaxTotals(Index rows, Index value_stride, Workspace& workspace)
      : width(value_stride),
        maximum(workspace.take<double>(rows).data()),
        sum(workspace.take<double>(rows).data()),
        error(workspace.take<double>(rows).data()),
        output(workspace.take<double>(rows * value_stride).data()) {}

  double* row(Index i) const { return output + i * width; }

  void clear(Index rows) const {
    std::fill_n(maximum, rows, kEmpty);
    std::fill_n(sum, rows, 0.0);
    std::fill_n(error, rows, 0.0);
    std::fill_n(output, rows * width, 0.0);
  }

  /// The states from row i on.
  SoftmaxTotals from(Index i) const {
    SoftmaxTotals rows = *this;
    rows.maximum += i;
    rows.sum += i;
    rows.error += i;
    rows.output += i * width;
    return rows;
  }

  /// Adds row j of a stretch of other keys to row i.
  template <class Real>
  void add(Index i, const SoftmaxRows<Real>& stretch, Index j) const {
    using namespace simd;
    const double more = static_cast<double>(stretch.sum(j));
    const double level = static_cast<double>(stretch.maximum[j]);
    if (level == kEmpty && more == 0) return;  // scores that are all NaN leave the maximum as it was
    const double shrink = raise(i, level);
    sum[i] += shrink * more;
    const Vec<double> factor = set(shrink);
    double* to = row(i);
    const Real* from = stretch.row(j);
    for (Index c = 0; c < width; c += simd::kLanes<double>)
      store<double>(fma(load_as<double>(from + c), factor, load(to + c)), to + c);
  }

  /// Adds sums over other keys, in units of 2^exponent, any number, to row i: `more` to l, values [width] to
  /// o; `bound` is on what they are off by.
  template <class Real>
  void add_far(Index i, double exponent, Real more, double bound, const Real* values) const {
    const double level = std::ceil(exponent);
    const double factor = raise(i, level) * (exponent == level ? 1 : std::exp2(exponent - level));
    sum[i] += factor * static_cast<double>(more);
    error[i] += factor * bound;
    for (Index c = 0; c < width; ++c) row(i)[c] += factor * static_cast<double>(values[c]);
  }

  /// Whether row i's sums are off by no more than `allowed` of its denominator; not where that is not known.
  bool within(Index i, double allowed) const {
    return error[i] == 0 || error[i] <= allowed * std::abs(sum[i]);
  }

  /// Adds row j of `other`, states of other keys, to row i.
  void absorb(Index i, const SoftmaxTotals& other, Index j) const {
    if (other.maximum[j] == kEmpty && other.sum[j] == 0) return;
    const double shrink = raise(i, other.maximum[j]);
    sum[i] += shrink * other.sum[j];
    error[i] += shrink * other.error[j];
    for (Index c = 0; c < width; ++c) row(i)[c] += shrink * other.row(j)[c];
  }

  /// One more logit, base-2, that has no value: an attention sink.
  void add_sink(Index i, double logit) const {
    if (logit == kEmpty) return;
    const double shrink = raise(i, std::ceil(logit));
    sum[i] += shrink * std::exp2(logit - std::ceil(logit));
  }

  /// o / N of row i, rounded to Real, becomes row `to` of a head of out; `taken`, natural log, was taken out
  /// of its weights. Zeros where N is 0, or so small that weights have underflowed.
  template <class Real>
  void write(Index i, const OutputRows& out, Index head, Index to, const Normaliser& normaliser = {},
             double taken = 0) const {
    out.write<Real>(head, to, row(i), normaliser.template inverse<Real>(sum[i], unit(i, taken)), out.cols);
  }

  /// Of what row i's sums are multiples, natural log.
  double unit(Index i, double taken) const { return taken + maximum[i] * kLn2; }

  /// The sum itself.
  double whole_sum(Index i, double taken) const {
    return sum[i] == 0 ? 0 : sum[i] * std::exp(unit(i, taken));
  }
  /// Natural log of the sum of exponentials.
  double lse(Index i) const { return sum[i] == 0 ? kEmpty : (maximum[i] + std::log2(sum[i])) * kLn2; }

 private:
  /// Makes room for sums at the maximum `level`, an integer; returns by how much those shrink, 1 if they are
  /// larger.
  double raise(Index i, double level) const {
    if (!(level > maximum[i]))
      return level == maximum[i] || level == kEmpty ? 1 : std::exp2(level - maximum[i]);
    if (maximum[i] != kEmpty) {
      const double shrink = std::exp2(maximum[i] - level);
      sum[i] *= shrink;
      error[i] *= shrink;
      for (Index c = 0; c < width; ++c) row(i)[c] *= shrink;
    }
    maximum[i] = level;
    return 1;
  }
};

/// Merges two partial results of the same queries over disjoint sets of keys into the first.
///     lse = ln(e^lse_a + e^lse_b),  out = (e^lse_a out_a + e^lse_b out_b) / e^lse
/// out, other_out: [heads, n_q, d_v]; lse, other_lse: [heads, n_q], natural log, -infinity where nothing was
/// attended. Associative and commutative up to rounding: weights and sums are of double, and what is left is
/// the rounding of the results, that of lse to Real an error of |lse| epsilon / 2 in the weight of its part.
/// Throws Error where shapes differ, views are null and rows of out or lse overlap.
template <class Real>
void merge(TensorView<Real> out, std::type_identity_t<MatrixView<Real>> lse,
           std::type_identity_t<TensorView<const Real>> other_out,
           std::type_identity_t<MatrixView<const Real>> other_lse) {
  if (out.heads != other_out.heads || out.rows != other_out.rows || out.cols != other_out.cols)
    detail::fail("merge: out is [", out.heads, ", ", out.rows, ", ", out.cols, "], other_out is [",
                 other_out.heads, ", ", other_out.rows, ", ", other_out.cols, "]");
  if (lse.rows != out.heads || lse.cols != out.rows || other_lse.rows != out.heads ||
      other_lse.cols != out.rows)
    detail::fail("merge: lse is [", lse.rows, ", ", lse.cols, "] and other_lse is [", other_lse.rows, ", ",
                 other_lse.cols, "], both must be [heads = ", out.heads, ", n_q = ", out.rows, "]");
  const auto require = [](const char* name, const void* data, Index count) {
    if (data == nullptr && count > 0) detail::fail("merge: ", name, " is null");
  };
  require("out", out.data, out.heads * out.rows * out.cols);
  require("lse", lse.data, lse.rows * lse.cols);
  require("other_out", other_out.data, out.heads * out.rows * out.cols);
  require("other_lse", other_lse.data, lse.rows * lse.cols);
  detail::require_separate_rows("merge: out", out);
  detail::require_separate_rows("merge: lse", lse);
  for (Index h = 0; h < out.heads; ++h) {
    for (Index i = 0; i < out.rows; ++i) {
      const double a = lse(h, i), b = other_lse(h, i);
      if (b == SoftmaxTotals::kEmpty) continue;
      const double top = a > b ? a : b;
      const double weight_a = std::exp(a - top), weight_b = std::exp(b - top);
      const double total = weight_a + weight_b;
      for (Index c = 0; c < out.cols; ++c) {
        Real& x = out.head(h)(i, c);
        const double y = other_out.head(h)(i, c);
        x = static_cast<Real>(a == SoftmaxTotals::kEmpty ? y : (weight_a * x + weight_b * y) / total);
      }
      lse(h, i) = static_cast<Real>(top + std::log(total));
    }
  }
}

}  // namespace fastrope::inline FASTROPE_TARGET
