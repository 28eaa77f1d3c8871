// Online softmax: attention over part of the keys, in a form that can be continued and merged.
//
// For one row and a set of keys, with y_j = x_j log2(e):
//     maximum m >= max_j y_j,   sum l = sum_j 2^(y_j - m),   output o = sum_j 2^(y_j - m) v_j.
// l is kept as one part for each lane of a vector, so that a block of scores ends without a reduction.
// Two sets merge by raising both to the larger maximum; out = o / l and lse = ln(sum_j exp(x_j)) = (m + log2
// l) ln 2. A row without keys has m = -infinity, l = 0, o = 0; its output is 0 and its lse -infinity.
// The weights P(x_j) of a polynomial kernel add up in the same states, with m = 0.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <type_traits>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/row_overlap.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/exp2.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/problem/kernel.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// x [kVecs vectors] become P(x) by Horner's rule, side by side since each waits for itself, or 0 where x is
/// -infinity. Returns total plus all of them.
template <int kVecs, class Real>
HWY_INLINE simd::Vec<Real> polynomial_weights(std::span<const Real> coefficients, Real* x,
                                              simd::Vec<Real> total) {
  using namespace simd;
  const std::size_t degree = coefficients.size() - 1;
  Vec<Real> p[kVecs], score[kVecs];
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    score[v] = load(x + v * kLanes<Real>);
    p[v] = set(coefficients[degree]);
  }
  for (std::size_t k = degree; k-- > 0;) {
    const Vec<Real> coefficient = set(coefficients[k]);
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) p[v] = fma(p[v], score[v], coefficient);
  }
  const Vec<Real> masked = set(-std::numeric_limits<Real>::infinity());
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    p[v] = if_equal(score[v], masked, zero<Real>(), p[v]);
    total = add(total, p[v]);
    store<Real>(p[v], x + v * kLanes<Real>);
  }
  return total;
}

}  // namespace detail

/// The states of a block of rows.
template <class Real>
struct SoftmaxRows {
  static constexpr Index kLanes = simd::kLanes<Real>;
  static constexpr Real kEmpty = -std::numeric_limits<Real>::infinity();

  Index width = 0;          ///< values per row, padded to whole vectors
  Real* maximum = nullptr;  ///< [rows], base-2
  Real* parts = nullptr;    ///< [rows, kLanes], which add up to the sum
  Real* output = nullptr;   ///< [rows, width]

  SoftmaxRows(Index rows, Index value_stride, Workspace& workspace)
      : width(value_stride),
        maximum(workspace.take<Real>(rows).data()),
        parts(workspace.take<Real>(rows * kLanes).data()),
        output(workspace.take<Real>(rows * value_stride).data()) {}

  Real* row(Index i) const { return output + i * width; }
  Real sum(Index i) const { return simd::reduce_add<Real>(simd::load(parts + i * kLanes)); }
  void add_to_sum(Index i, Real x) const { parts[i * kLanes] += x; }

  void clear(Index rows) const {
    std::fill_n(maximum, rows, kEmpty);
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

  /// Merges row j of `other`, states of other keys, into row i.
  void absorb(Index i, const SoftmaxRows& other, Index j) const {
    raise(i, other.maximum[j]);
    const Real sum = other.sum(j);
    if (sum == 0 && other.maximum[j] == kEmpty) return;
    const Real shrink = std::exp2(other.maximum[j] - maximum[i]);
    add_to_sum(i, shrink * sum);
    for (Index c = 0; c < width; ++c) row(i)[c] += shrink * other.row(j)[c];
  }

  /// Makes room for scores up to `candidate`: the maximum rises and what was summed shrinks by the same
  /// factor.
  void raise(Index i, Real candidate) const {
    if (!(candidate > maximum[i])) return;
    if (maximum[i] != kEmpty) {
      const Real shrink = std::exp2(maximum[i] - candidate);
      scale_by(shrink, parts + i * kLanes, kLanes);
      scale_by(shrink, row(i), width);
    }
    maximum[i] = candidate;
  }

  /// scores [rows, cols], base-2, row stride `stride`, become weights 2^(score - maximum), and their sums are
  /// added. Scores of -infinity weigh 0. Requires cols a multiple of the vector length. The outputs are left
  /// to the caller.
  void weigh(Index rows, Real* scores, Index stride, Index cols) const {
    using namespace simd;
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
      largest[0] = max(largest[0], largest[1]);
      // A NaN score makes its row NaN whatever the maximum is.
      if (any_greater<Real>(largest[0], set(maximum[i]))) raise(i, reduce_max<Real>(largest[0]));
    }
    for (Index i = 0; i < rows; ++i) {
      Real* row = scores + i * stride;
      const Vec<Real> shift = set(maximum[i] == kEmpty ? Real{0} : maximum[i]);
      Vec<Real> total = load(parts + i * kLanes);
      for (Index j = 0; j < cols; j += kLanes) {
        const Vec<Real> weight = exp2_nonpositive<Real>(sub(load(row + j), shift));
        total = add(total, weight);
        store<Real>(weight, row + j);
      }
      store<Real>(total, parts + i * kLanes);
    }
  }

  /// The same for a polynomial kernel: scores, in natural units, become weights P(score). Those of -infinity
  /// weigh 0 here too. Requires maxima of 0, or of -infinity, which become 0: nothing is shifted.
  void weigh_polynomial(std::span<const double> coefficients, Index rows, Real* scores, Index stride,
                        Index cols) const {
    using namespace simd;
    std::array<Real, Kernel::kMaxDegree + 1> c;
    std::transform(coefficients.begin(), coefficients.end(), c.begin(),
                   [](double coefficient) { return static_cast<Real>(coefficient); });
    std::fill_n(maximum, rows, Real{0});
    const std::span<const Real> used(c.data(), coefficients.size());
    for (Index i = 0; i < rows; ++i) {
      Real* row = scores + i * stride;
      Vec<Real> total = load(parts + i * kLanes);
      Index j = 0;
      for (; j + kTileVecs * kLanes <= cols; j += kTileVecs * kLanes)
        total = detail::polynomial_weights<kTileVecs>(used, row + j, total);
      for (; j < cols; j += kLanes) total = detail::polynomial_weights<1>(used, row + j, total);
      store<Real>(total, parts + i * kLanes);
    }
  }

  /// One more logit that has no value: an attention sink.
  void add_sink(Index i, Real logit) const {
    raise(i, logit);
    if (maximum[i] != kEmpty) add_to_sum(i, std::exp2(logit - maximum[i]));
  }

  /// Row i of out, o / l, in the storage type; zeros where l is 0, or so small that weights have underflowed.
  template <class Out>
  void write(Index i, Out* out, Index d_v) const {
    const Real total = sum(i);
    const Real inverse = std::abs(total) < std::numeric_limits<Real>::min() ? Real{0} : 1 / total;
    for (Index c = 0; c < d_v; ++c) out[c] = static_cast<Out>(row(i)[c] * inverse);
  }

  /// Natural log of the sum of exponentials.
  Real lse(Index i) const {
    const Real total = sum(i);
    return total == 0 ? kEmpty : (maximum[i] + std::log2(total)) * static_cast<Real>(kLn2);
  }

 private:
  static void scale_by(Real factor, Real* x, Index count) {
    for (Index c = 0; c < count; c += kLanes)
      simd::store<Real>(simd::mul(simd::load(x + c), simd::set(factor)), x + c);
  }
};

/// Merges two partial results of the same queries over disjoint sets of keys into the first.
///     lse = ln(e^lse_a + e^lse_b),  out = (e^lse_a out_a + e^lse_b out_b) / e^lse
/// out, other_out: [heads, n_q, d_v]; lse, other_lse: [heads, n_q], natural log, -infinity where nothing was
/// attended. Associative and commutative up to rounding. Throws Error where shapes differ and where rows of
/// out or lse overlap.
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
  detail::require_separate_rows("merge: out", out);
  detail::require_separate_rows("merge: lse", lse);
  for (Index h = 0; h < out.heads; ++h) {
    for (Index i = 0; i < out.rows; ++i) {
      const Real a = lse(h, i), b = other_lse(h, i);
      if (b == SoftmaxRows<Real>::kEmpty) continue;
      const Real top = a > b ? a : b;
      const Real weight_a = std::exp(a - top), weight_b = std::exp(b - top);
      const Real total = weight_a + weight_b;
      for (Index c = 0; c < out.cols; ++c) {
        Real& x = out.head(h)(i, c);
        x = a == SoftmaxRows<Real>::kEmpty ? other_out.head(h)(i, c)
                                           : (weight_a * x + weight_b * other_out.head(h)(i, c)) / total;
      }
      lse(h, i) = top + std::log(total);
    }
  }
}

}  // namespace fastrope::inline FASTROPE_TARGET
