// ToeplitzSegments: a banded Toeplitz matrix cut into blocks of rows that share one embedding.
//
// Rows [s, s + B) of a matrix with the lags [first, last] meet the columns [s - last, s + B - first) alone,
// and the block is the same Toeplitz matrix for every s ("overlap-save"). A narrow band then costs O(n log
// band), and its transforms stay in cache. A wide one is a single block of all rows and columns that are not
// zero.
#pragma once

#include <algorithm>
#include <cmath>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/toeplitz/circulant.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// How a product T x or T' x is done: as `count` products of the embedding, each from a window of the input
/// to a block of the output, in [N] values at `offset`. Windows may reach beyond the input, where zeros
/// stand. What no block covers is zero.
struct SegmentedProduct {
  Range output;      ///< rows of the result that are not zero
  Index block = 0;   ///< outputs of a segment; the last may have fewer
  Index input = 0;   ///< where the first window begins
  Index window = 0;  ///< inputs of a segment
  Index offset = 0;  ///< of the outputs in the padded vector

  Index count() const { return output.empty() ? 0 : ceil_div(output.size(), block); }
  Range outputs(Index s) const {
    return intersect({output.begin + s * block, output.begin + (s + 1) * block}, output);
  }
  /// May reach beyond the input on both sides.
  Range inputs(Index s) const { return {input + s * block, input + s * block + window}; }
};

/// The segments and transforms of all n_rows x n_cols Toeplitz matrices that are zero outside a support.
template <class Real>
class ToeplitzSegments {
 public:
  /// Requires the support within the lags of the shape. Throws Error when a size is negative.
  ToeplitzSegments(Index n_rows, Index n_cols, LagSupport support, FftEffort effort = FftEffort::estimate)
      : ToeplitzSegments(n_rows, n_cols, support, effort, layout(n_rows, n_cols, support)) {}

  Index n_rows() const { return n_rows_; }
  Index n_cols() const { return n_cols_; }
  LagSupport support() const { return support_; }
  /// Of a segment; its generators are the values of the support, first to last.
  const CirculantEmbedding<Real>& embedding() const { return embedding_; }

  /// T x.
  const SegmentedProduct& product() const { return product_; }
  /// T' x, with multiply_transpose.
  const SegmentedProduct& transposed() const { return transposed_; }

  /// Flops of one product: 2.5 N log2 N for each of its transforms.
  static double flops(Index n_rows, Index n_cols, LagSupport support) {
    return layout(n_rows, n_cols, support).flops;
  }

 private:
  struct Layout {
    Range rows, cols;  // that are not zero
    Index block;       // rows of a segment
    double flops;
  };

  static Layout layout(Index n_rows, Index n_cols, LagSupport support) {
    Layout all{{std::max<Index>(0, support.first), std::min(n_rows, n_cols + support.last)},
               {std::max<Index>(0, -support.last), std::min(n_cols, n_rows - support.first)},
               0,
               0};
    if (support.size() == 0 || all.rows.empty() || all.cols.empty()) return {{}, {}, 0, 0};
    const auto cost = [](Index segments, Index length) {
      const double n = static_cast<double>(fft_length(length));
      return static_cast<double>(segments) * 5 * n * std::log2(n);
    };
    const Index shift = all.rows.begin - all.cols.begin;
    Layout best = all;
    best.block = all.rows.size();
    best.flops = cost(1, std::max({all.rows.size(), all.cols.size(), all.cols.size() + support.last - shift,
                                   all.rows.size() - support.first + shift}));
    // Below some length a transform costs more than its flops.
    for (Index length = fft_length(std::max<Index>(512, 2 * support.size()));
         length < fft_length(all.rows.size()); length *= 2) {
      const Index block = length - support.size() + 1;
      const double flops = cost(ceil_div(all.rows.size(), block), length);
      if (flops < best.flops) {
        best.block = block;
        best.flops = flops;
      }
    }
    return best;
  }

  ToeplitzSegments(Index n_rows, Index n_cols, LagSupport support, FftEffort effort, const Layout& l)
      : n_rows_(n_rows),
        n_cols_(n_cols),
        support_(support),
        embedding_(embed(n_rows, n_cols, support, effort, l)) {
    if (l.block == l.rows.size()) {
      product_ = {l.rows, l.block, l.cols.begin, l.cols.size(), 0};
      transposed_ = {l.cols, l.cols.size(), l.rows.begin, l.block, 0};
    } else {
      const Index window = embedding_.n_cols();
      product_ = {l.rows, l.block, l.rows.begin - support.last, window, 0};
      // The transpose of a block, whose window ends where its outputs do.
      transposed_ = {l.cols, l.block, l.cols.begin + support.first, window, window - l.block};
    }
  }

  /// The embedding of a segment: lags count from the corner of its window.
  static CirculantEmbedding<Real> embed(Index n_rows, Index n_cols, LagSupport support, FftEffort effort,
                                        const Layout& l) {
    if (n_rows < 0 || n_cols < 0) return {n_rows, n_cols, {}, effort};  // which throws
    if (l.block == 0) return {0, 0, {}, effort};
    if (l.block < l.rows.size())
      return {l.block, l.block + support.size() - 1, {1 - support.size(), 0}, effort};
    const Index shift = l.rows.begin - l.cols.begin;
    return {l.block, l.cols.size(), {support.first - shift, support.last - shift}, effort};
  }

  Index n_rows_;
  Index n_cols_;
  LagSupport support_;
  CirculantEmbedding<Real> embedding_;
  SegmentedProduct product_;
  SegmentedProduct transposed_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
