// A block of queries against a run of keys, backwards: the inner loops of attend_backward.
//
// Scores S are made again tile by tile (query_rows.hpp), and become
//     P = exp(S - lse),  dP = d_out V^T,  dS = P (dP - delta), times the cap's derivative 1 - tanh^2,
//     d_q += dS K,  d_k^T += Q^T dS,  d_v^T += d_out^T P
// (with a polynomial kernel P and dS are those of weight_gradients.hpp): five products of the tile kernel, 2
// (3 d + 2 d_v) flops a pair; with a softcap one more of 2 d, since biases stand between scores and tanh. The
// gradients of keys and values are kept transposed, so that all products have rows of tiles, whose lengths
// are whole vectors, on the right. They are those of turned rows, without the factor `scale`.
#pragma once

#include <algorithm>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/query_rows.hpp"
#include "fastrope/exact/scores.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/gradient/packed_rows.hpp"
#include "fastrope/gradient/parameter_sums.hpp"
#include "fastrope/gradient/weight_gradients.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// What the backward pass reads of queries. delta: [heads, n_q], d_out_i . out_i.
template <class Real>
struct BackwardQueries {
  StoredRows q, d_out;
  MatrixView<const Real> lse;
  MatrixView<const double> delta;
};

/// One worker's block of queries and the gradients of the pairs that it has met, in the arithmetic of the
/// call.
template <class Real>
class GradientBlock {
 public:
  static constexpr Index kRows = QueryRows<Real>::kRows;
  /// Keys whose gradients are kept at once: with those of values of 64 columns they fit the second-level
  /// cache beside what they are made of.
  static constexpr Index kKeys = 512;
  static_assert(kKeys % QueryRows<Real>::kKeys == 0 && kKeys <= kStretch);

  GradientBlock(const Problem& problem, Index d_v, Workspace& workspace)
      : block_(problem, workspace),
        d_(problem.shapes.d),
        d_v_(d_v),
        queries_(workspace.take<Real>(kRows * padded(d_)).data()),
        d_out_(workspace.take<Real>(kRows * padded(d_v)).data()),
        rows_(workspace.take<RowGradient<Real>>(kRows).data()),
        d_scores_(workspace.take<Real>(kTileRows * kStride).data()),
        products_(workspace.take<Real>(problem.softcap > 0 ? kTileRows * kStride : 0).data()),
        terms_(problem.kernel.is_softmax() ? d_scores_ : workspace.take<Real>(kTileRows * kStride).data()),
        d_q_(workspace.take<Real>(kRows * key_stride()).data()),
        d_keys_(workspace.take<Real>(padded(d_) * kSumStride).data()),
        d_values_(workspace.take<Real>(padded(d_v) * kSumStride).data()) {}

  /// Takes up whole panels of keys, at most kKeys, with sums of 0.
  void start_keys(Range keys) {
    first_key_ = keys.begin;
    for (Index c = 0; c < padded(d_); ++c) std::fill_n(d_keys_ + c * kSumStride, keys.size(), Real{0});
    for (Index c = 0; c < padded(d_v_); ++c) std::fill_n(d_values_ + c * kSumStride, keys.size(), Real{0});
  }
  /// Takes up rows of query head h with sums of 0. Requires rows.size() <= kRows.
  void start_rows(const Problem& problem, const PackedRows<Real>& packed, const Scores<Real>& scores, Index h,
                  const BackwardQueries<Real>& x, Range rows) {
    block_.start(problem, packed.keys(), scores, h, x.q, rows);
    finite_ = true;
    std::fill_n(d_q_, rows.size() * key_stride(), Real{0});
    for (Index r = 0; r < rows.size(); ++r) {
      const Index i = rows.begin + r;
      Real* query = queries_ + r * padded(d_);
      Real* d_out = d_out_ + r * padded(d_v_);
      std::fill(query + d_, query + padded(d_), Real{0});
      std::fill(d_out + d_v_, d_out + padded(d_v_), Real{0});
      x.q.head(h).read(i, d_, query);
      packed.keys().tables().turn_query(problem, i, query);
      x.d_out.head(h).read(i, d_v_, d_out);
      finite_ &= simd::all_finite(query, padded(d_)) && simd::all_finite(d_out, padded(d_v_));
      rows_[r] = RowGradient<Real>(problem.kernel, problem.normaliser, static_cast<double>(x.lse(h, i)),
                                   x.delta(h, i), block_.references(r)->total());
    }
  }

  /// Adds the gradients of the rows' pairs with `keys`, some of those taken up, that mask and key ranges
  /// allow.
  void add_pairs(const Problem& problem, const PackedRows<Real>& packed, const Scores<Real>& scores,
                 Range keys, const ParameterSums<Real>& sums) const {
    block_.for_each_tile(
        problem, packed.keys(), scores, keys,
        [&](const ScoreTile<Real>& tile) { add_tile(problem, packed, scores, tile, sums); }, [] {});
  }

  /// Row r of d_q, [key_stride].
  const Real* d_q(Index r) const { return d_q_ + r * key_stride(); }
  Index key_stride() const { return round_up(d_, kLanes); }
  /// Column c of the rows of d_k and d_v of the keys taken up.
  const Real* d_k(Index c) const { return d_keys_ + c * kSumStride; }
  const Real* d_v(Index c) const { return d_values_ + c * kSumStride; }

 private:
  static constexpr Index kLanes = simd::kLanes<Real>;
  static constexpr Index kWidth = PackedRows<Real>::kWidth;
  static constexpr Index kTileRows = QueryRows<Real>::kTileRows;
  static constexpr Index kStride = QueryRows<Real>::kStride;
  static constexpr Index kSumStride = kKeys + kLanes;  // no power of two

  /// Of rows that are read as columns: room for whole tiles, in whole vectors.
  static Index padded(Index d) { return round_up(round_up(d, kRowMultiple), kLanes); }

  void add_tile(const Problem& problem, const PackedRows<Real>& packed, const Scores<Real>& scores,
                const ScoreTile<Real>& tile, const ParameterSums<Real>& sums) const {
    const Index kv = problem.kv_head(block_.head()), count = tile.rows.size();
    for (Index j = tile.panels.begin; j < tile.panels.end; j += kWidth)
      multiply<false, Real>(
          count, kWidth, d_v_, BroadcastOperand<Real>{d_out_ + tile.row * padded(d_v_), padded(d_v_), 1},
          packed.value_panel(kv, j / kWidth), kWidth, d_scores_ + (j - tile.panels.begin), kStride);
    differentiate(problem, scores, tile);
    sums.add(problem, block_.head(), tile, terms_, kStride);
    if (problem.softcap > 0) uncap(problem, packed, scores, tile);
    if (finite_ && packed.finite(kv, tile.panels))
      add_products(packed, kv, tile);
    else
      add_allowed(problem, packed, kv, tile);
  }

  /// The scores of a tile become weights, and dP becomes dS.
  void differentiate(const Problem& problem, const Scores<Real>& scores, const ScoreTile<Real>& tile) const {
    const Index cols = tile.panels.size();
    const PolynomialGradient<Real> polynomial(problem.kernel);
    for (Index r = 0; r < tile.rows.size(); ++r) {
      const RowGradient<Real>& row = rows_[tile.row + r];
      Real *const of_row = tile.scores + r * kStride, *const d_scores = d_scores_ + r * kStride;
      if (problem.kernel.is_softmax()) {
        differentiate_softmax(row, cols, of_row, d_scores);
      } else {
        const Real* factors =
            scores.factors(block_.head(), tile.panels, *block_.references(tile.row + r), block_.scratch());
        polynomial.differentiate(row, factors, cols, of_row, d_scores, terms_ + r * kStride);
      }
    }
  }

  /// dS times the derivative of the cap. What is 0 stays so, as at masked keys.
  void uncap(const Problem& problem, const PackedRows<Real>& packed, const Scores<Real>& scores,
             const ScoreTile<Real>& tile) const {
    using namespace simd;
    scores.product(problem, packed.keys(), problem.kv_head(block_.head()), block_.queries(tile.row),
                   kTileRows, tile.rows, round_up(tile.rows.size(), kRowMultiple), tile.panels, products_,
                   kStride, /*scratch=*/static_cast<Real*>(nullptr));
    for (Index r = 0; r < tile.rows.size(); ++r) {
      Real* d_score = d_scores_ + r * kStride;
      for (Index j = 0; j < tile.panels.size(); j += kLanes) {
        const Vec<Real> t = tanh<Real>(load(products_ + r * kStride + j));
        const Vec<Real> uncapped = mul(load(d_score + j), fma(neg(t), t, set(Real{1})));
        store<Real>(if_equal(load(d_score + j), zero<Real>(), zero<Real>(), uncapped), d_score + j);
      }
    }
  }

  void add_products(const PackedRows<Real>& packed, Index kv, const ScoreTile<Real>& tile) const {
    using Operand = BroadcastOperand<Real>;
    const Index first = tile.panels.begin - first_key_, keys = tile.panels.size(), rows = tile.rows.size();
    multiply<true, Real>(rows, key_stride(), keys, Operand{d_scores_, kStride, 1},
                         packed.key_rows(kv, tile.panels.begin), key_stride(), d_q_ + tile.row * key_stride(),
                         key_stride());
    multiply<true, Real>(d_, keys, rows, Operand{queries_ + tile.row * padded(d_), 1, padded(d_)}, d_scores_,
                         kStride, d_keys_ + first, kSumStride);
    multiply<true, Real>(d_v_, keys, rows, Operand{d_out_ + tile.row * padded(d_v_), 1, padded(d_v_)},
                         tile.scores, kStride, d_values_ + first, kSumStride);
  }

  /// The same where a factor of 0 times an infinite or NaN number would be NaN: pair by pair, without those
  /// that are masked.
  void add_allowed(const Problem& problem, const PackedRows<Real>& packed, Index kv,
                   const ScoreTile<Real>& tile) const {
    for (Index r = 0; r < tile.rows.size(); ++r) {
      const Real* query = queries_ + (tile.row + r) * padded(d_);
      const Real* d_out = d_out_ + (tile.row + r) * padded(d_v_);
      Real* d_q = d_q_ + (tile.row + r) * key_stride();
      block_.allowed(tile.row + r).for_each(tile.keys, [&](Range piece) {
        for (Index j = piece.begin; j < piece.end; ++j) {
          if (!dense_allows(problem, block_.head(), tile.rows.begin + r, j)) continue;
          const Index at = r * kStride + (j - tile.panels.begin);
          const Real weight = tile.scores[at], d_score = d_scores_[at];
          const Real* key = packed.key_rows(kv, j);
          for (Index c = 0; c < d_; ++c) {
            d_q[c] += d_score * key[c];
            d_keys_[c * kSumStride + (j - first_key_)] += d_score * query[c];
          }
          for (Index c = 0; c < d_v_; ++c) d_values_[c * kSumStride + (j - first_key_)] += weight * d_out[c];
        }
      });
    }
  }

  QueryRows<Real> block_;
  Index d_, d_v_;
  Index first_key_ = 0;
  bool finite_ = true;       // queries and d_out
  Real* queries_;            // [kRows, padded(d)], turned
  Real* d_out_;              // [kRows, padded(d_v)]
  RowGradient<Real>* rows_;  // [kRows]
  Real* d_scores_;           // [kTileRows, kStride]
  Real* products_;           // the same, of queries and keys, before the cap
  Real* terms_;              // the same, the gradients of the logs of weights: of softmax d_scores
  Real* d_q_;                // [kRows, key_stride]
  Real* d_keys_;             // [padded(d), kSumStride]
  Real* d_values_;           // [padded(d_v), kSumStride]
};

}  // namespace fastrope::inline FASTROPE_TARGET
