// FeatureBackward: the gradient of attention in time linear in the number of tokens, where a polynomial Q
// stands for exp.
//
//     w_ij = Q(x_i . y_j),   N_i = sum_j w_ij,   D_i = d_out_i . (sum_j w_ij v_j) / N_i,
//     g_i = [d_out_i, -D_i] / N_i,   d_v_j = sum_i w_ij d_out_i / N_i,
//     d_x_i = sum_j w_ij (g_i . [v_j, 1]) y_j,   d_y_j = sum_i w_ij (g_i . [v_j, 1]) x_i
// Weights of the last two are Q and not Q', so that their error is certified (backward_choice.hpp). With F'
// = Q they are gradients of sum_j F(x_i . y_j) (g_i . [v_j, 1]), and so two sums over features are enough:
// that of keys with [v_j, 1], which each query reads for N_i, D_i and d_x_i, and that of queries with g_i,
// which each key reads for d_v_j and d_y_j. F has one degree more than Q.
//
// With a causal mask blocks come in order, for the first sum, and back, for the second; pairs within a block
// are summed one by one. A task is a key head, whose sums have one order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/rotation_tables.hpp"
#include "fastrope/gradient/feature_rows.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Q and the monomials of F.
struct BackwardFeatures {
  std::vector<double> coefficients;   ///< c_p of Q, p = 0 .. degree
  MonomialSet monomials;              ///< of degree + 1
  std::vector<double> value_factors;  ///< of each monomial in Q(x.y)
  std::vector<double> slope_factors;  ///< and in F(x.y)
  double query_scale;                 ///< x = query_scale q, turned,
  double key_scale;                   ///< y = key_scale k, turned

  BackwardFeatures(std::span<const double> c, Index d, double of_queries, double of_keys)
      : coefficients(c.begin(), c.end()),
        monomials(simplex_limits(d, static_cast<int>(c.size()))),
        query_scale(of_queries),
        key_scale(of_keys) {
    for (const Monomial& term : monomials.terms()) {
      const auto p = static_cast<std::size_t>(term.degree);
      value_factors.push_back(p < c.size() ? c[p] * term.multinomial : 0);
      slope_factors.push_back(p > 0 ? c[p - 1] / static_cast<double>(p) * term.multinomial : 0);
    }
  }
};

/// Tensors as attend_backward has them.
struct FeatureTensors {
  StoredRows q, k, v, d_out;
  OutputRows d_q, d_k, d_v;
};

/// One call. Requires a problem without values, of consecutive positions, whose mask is full, or causal with
/// n_q <= n_k, n_k > 0.
class FeatureBackward {
 public:
  FeatureBackward(const Problem& problem, Index d_v, const BackwardFeatures& features, Workspace& workspace)
      : features_(features),
        d_(problem.shapes.d),
        d_v_(d_v),
        causal_(problem.grid.mask().first == 0),
        offset_(causal_ ? problem.shapes.n_k - problem.shapes.n_q : 0),
        key_blocks_(ceil_div(problem.shapes.n_k, kWidth)),
        query_blocks_(ceil_div(offset_ + problem.shapes.n_q, kWidth)),
        tables_(problem, {0, problem.shapes.n_k}, workspace),
        scratch_(problem.executor.workers(), workspace,
                 [&](Workspace& share) { Worker(*this, problem, share); }) {}

  void run(const Problem& problem, const FeatureTensors& t) const {
    const Executor& executor = problem.executor;
    executor.parallel_for(tables_.tasks(problem), [&](Index task, Index) { tables_.fill(problem, task); });
    executor.parallel_for(problem.shapes.kv_heads, [&](Index kv, Index worker) {
      Workspace share = scratch_.of(worker);
      run_head(problem, t, kv, Worker(*this, problem, share));
    });
  }

 private:
  static constexpr Index kWidth = FeatureRows::kWidth;

  /// kWidth rows of queries or keys: as they are, and as columns.
  struct Block {
    double* rows;     // [kWidth, d], x or y
    double* x;        // [d, kWidth]
    double* columns;  // [channels, kWidth]: g of queries, [v, 1] of keys

    Block(Index d, const MonomialSums& sums, Workspace& share)
        : rows(share.take<double>(kWidth * d).data()),
          x(share.take<double>(d * kWidth).data()),
          columns(share.take<double>(sums.stride * kWidth).data()) {}
  };

  struct Worker {
    FeatureRows features;
    MonomialSums sums;
    Block queries, keys;
    double* channels;  // [kWidth, stride], [v, 1] of keys
    double* totals;    // [channels, kWidth], with room for whole tiles
    double* gradient;  // [d, kWidth]
    double* weights;   // [kWidth, kWidth]
    double* row;       // [d or d_v]
    double* g;         // [group, query blocks, kWidth, stride]

    Worker(const FeatureBackward& of, const Problem& problem, Workspace& share)
        : features(of.features_.monomials, share),
          sums(of.features_.monomials.rank(), of.d_v_ + 1, share),
          queries(of.d_, sums, share),
          keys(of.d_, sums, share),
          channels(share.take<double>(kWidth * sums.stride).data()),
          totals(share.take<double>(round_up(sums.channels, kRowMultiple) * kWidth).data()),
          gradient(share.take<double>(of.d_ * kWidth).data()),
          weights(share.take<double>(kWidth * kWidth).data()),
          row(share.take<double>(std::max(of.d_, of.d_v_)).data()),
          g(share.take<double>(problem.group() * of.query_blocks_ * kWidth * sums.stride).data()) {}
  };

  void run_head(const Problem& problem, const FeatureTensors& t, Index kv, const Worker& w) const {
    w.sums.clear();
    for (Index b = 0; b < key_blocks_; ++b) {
      if (causal_) differentiate_queries(problem, t, kv, b, w);
      load_keys(problem, t, kv, b, w);
      w.features.make(w.keys.x);
      w.features.add_to(w.sums, w.channels);
    }
    for (Index b = 0; !causal_ && b < query_blocks_; ++b) differentiate_queries(problem, t, kv, b, w);

    w.sums.clear();
    const auto add_queries = [&](Index b) {
      for (Index m = 0; m < problem.group(); ++m) {
        load_queries(problem, t, kv * problem.group() + m, b, w);
        w.features.make(w.queries.x);
        w.features.add_to(w.sums, gradients_of(m, b, w));
      }
    };
    for (Index b = 0; !causal_ && b < query_blocks_; ++b) add_queries(b);
    for (Index b = key_blocks_; b-- > 0;) {
      differentiate_keys(problem, t, kv, b, w);
      if (causal_) add_queries(b);
    }
  }

  double* gradients_of(Index m, Index b, const Worker& w) const {
    return w.g + (m * query_blocks_ + b) * kWidth * w.sums.stride;
  }
  /// The queries of a block: lane i is query first + i, where there is one.
  Range queries_of(const Problem& problem, Index b) const {
    return intersect({b * kWidth - offset_, (b + 1) * kWidth - offset_}, {0, problem.shapes.n_q});
  }
  static Range keys_of(const Problem& problem, Index b) {
    return intersect({b * kWidth, (b + 1) * kWidth}, {0, problem.shapes.n_k});
  }

  static void transpose_columns(const double* rows, Index stride, Index columns, double* to) {
    for (Index c = 0; c < columns; ++c)
      for (Index i = 0; i < kWidth; ++i) to[c * kWidth + i] = rows[i * stride + c];
  }

  /// x of a block of queries; lanes without one are 0.
  void load_queries(const Problem& problem, const FeatureTensors& t, Index h, Index b,
                    const Worker& w) const {
    const Block& block = w.queries;
    std::fill_n(block.rows, kWidth * d_, 0.0);
    const Range some = queries_of(problem, b);
    for (Index i = some.begin; i < some.end; ++i) {
      double* const row = block.rows + (i + offset_ - b * kWidth) * d_;
      t.q.head(h).read(i, d_, row);
      tables_.turn_query(problem, i, row);
      for (Index c = 0; c < d_; ++c) row[c] *= features_.query_scale;
    }
    transpose_columns(block.rows, d_, d_, block.x);
  }

  /// y and [v, 1] of a block of keys; lanes without one are 0.
  void load_keys(const Problem& problem, const FeatureTensors& t, Index kv, Index b, const Worker& w) const {
    const Block& block = w.keys;
    const Index stride = w.sums.stride;
    std::fill_n(block.rows, kWidth * d_, 0.0);
    std::fill_n(w.channels, kWidth * stride, 0.0);
    const Range some = keys_of(problem, b);
    for (Index j = some.begin; j < some.end; ++j) {
      double* const row = block.rows + (j - some.begin) * d_;
      double* const channels = w.channels + (j - some.begin) * stride;
      t.k.head(kv).read(j, d_, row);
      tables_.turn_key(problem, j, row);
      for (Index c = 0; c < d_; ++c) row[c] *= features_.key_scale;
      t.v.head(kv).read(j, d_v_, channels);
      channels[d_v_] = 1;
    }
    transpose_columns(block.rows, d_, d_, block.x);
    transpose_columns(w.channels, stride, d_v_ + 1, block.columns);
  }

  /// to [kWidth] = Q(row . x) of a row and the lanes x [d, kWidth] from `first` to `last`; 0 in the others.
  void weigh(const double* row, const double* x, Index first, Index last, double* to) const {
    std::fill_n(to, kWidth, 0.0);
    for (Index c = 0; c < d_; ++c) add_scaled<kWidth>(x + c * kWidth, row[c], to);
    const std::vector<double>& c = features_.coefficients;
    for (Index i = 0; i < kWidth; ++i) {
      double value = 0;
      for (std::size_t p = c.size(); p-- > 0;) value = value * to[i] + c[p];
      to[i] = first <= i && i <= last ? value : 0;
    }
  }
  /// gradient += (channels . columns) weights row, in each lane: of pairs of a row with its channels and of
  /// lanes with theirs.
  void add_pairs(const double* channels, const double* columns, const double* weights, const double* row,
                 const Worker& w) const {
    alignas(64) double product[kWidth] = {}, d_entry[kWidth] = {};
    for (Index c = 0; c <= d_v_; ++c) add_scaled<kWidth>(columns + c * kWidth, channels[c], product);
    add_products<kWidth>(product, weights, d_entry);
    for (Index c = 0; c < d_; ++c) add_scaled<kWidth>(d_entry, row[c], w.gradient + c * kWidth);
  }

  /// N, D and g of a block of queries, and their d_q, from the sums over keys: all of them, or those of the
  /// blocks before, and then the block's own one by one.
  void differentiate_queries(const Problem& problem, const FeatureTensors& t, Index kv, Index b,
                             const Worker& w) const {
    const Range some = queries_of(problem, b);
    if (causal_ && !some.empty()) load_keys(problem, t, kv, b, w);
    const Index stride = w.sums.stride, near = causal_ ? keys_of(problem, b).size() : 0;
    for (Index m = 0; m < problem.group(); ++m) {
      double* const g = gradients_of(m, b, w);
      std::fill_n(g, kWidth * stride, 0.0);
      if (some.empty()) continue;
      const Index h = kv * problem.group() + m;
      load_queries(problem, t, h, b, w);
      w.features.make(w.queries.x);
      w.features.apply(features_.value_factors, w.sums, w.totals);
      for (Index j = 0; j < near; ++j) {
        double* const weights = w.weights + j * kWidth;
        weigh(w.keys.rows + j * d_, w.queries.x, j, kWidth - 1, weights);
        for (Index c = 0; c <= d_v_; ++c)
          add_scaled<kWidth>(weights, w.channels[j * stride + c], w.totals + c * kWidth);
      }
      for (Index i = some.begin; i < some.end; ++i) {
        const Index lane = i + offset_ - b * kWidth;
        const double inverse = 1 / w.totals[d_v_ * kWidth + lane];
        double* const row = g + lane * stride;
        t.d_out.head(h).read(i, d_v_, row);
        double sum = 0;
        for (Index c = 0; c < d_v_; ++c) sum += row[c] * (w.totals[c * kWidth + lane] * inverse);
        for (Index c = 0; c < d_v_; ++c) row[c] *= inverse;
        row[d_v_] = -sum * inverse;
      }
      transpose_columns(g, stride, d_v_ + 1, w.queries.columns);
      w.features.pull_back(features_.slope_factors, w.sums, w.queries.columns, w.queries.x, w.gradient);
      for (Index j = 0; j < near; ++j)
        add_pairs(w.channels + j * stride, w.queries.columns, w.weights + j * kWidth, w.keys.rows + j * d_,
                  w);
      for (Index i = some.begin; i < some.end; ++i) {
        write(w.gradient, d_, i + offset_ - b * kWidth, features_.query_scale, w.row);
        tables_.turn_query_back(problem, i, w.row);
        t.d_q.write<double>(h, i, w.row, 1, d_);
      }
    }
  }

  /// d_k and d_v of a block of keys, from the sums over queries in the same way.
  void differentiate_keys(const Problem& problem, const FeatureTensors& t, Index kv, Index b,
                          const Worker& w) const {
    const Index stride = w.sums.stride;
    load_keys(problem, t, kv, b, w);
    w.features.make(w.keys.x);
    w.features.apply(features_.value_factors, w.sums, w.totals);
    w.features.pull_back(features_.slope_factors, w.sums, w.keys.columns, w.keys.x, w.gradient);
    for (Index m = 0; causal_ && m < problem.group(); ++m) {
      const Range some = queries_of(problem, b);
      load_queries(problem, t, kv * problem.group() + m, b, w);
      for (Index i = some.begin; i < some.end; ++i) {
        const Index lane = i + offset_ - b * kWidth;
        const double *const row = w.queries.rows + lane * d_, *const g =
                                                                  gradients_of(m, b, w) + lane * stride;
        weigh(row, w.keys.x, 0, lane, w.weights);
        for (Index c = 0; c < d_v_; ++c) add_scaled<kWidth>(w.weights, g[c], w.totals + c * kWidth);
        add_pairs(g, w.keys.columns, w.weights, row, w);
      }
    }
    const Range some = keys_of(problem, b);
    for (Index j = some.begin; j < some.end; ++j) {
      write(w.totals, d_v_, j - some.begin, 1, w.row);
      t.d_v.write<double>(kv, j, w.row, 1, d_v_);
      write(w.gradient, d_, j - some.begin, features_.key_scale, w.row);
      tables_.turn_key_back(problem, j, w.row);
      t.d_k.write<double>(kv, j, w.row, 1, d_);
    }
  }

  /// row [columns] = factor times a lane of columns [columns, kWidth].
  static void write(const double* columns, Index count, Index lane, double factor, double* row) {
    for (Index c = 0; c < count; ++c) row[c] = factor * columns[c * kWidth + lane];
  }

  const BackwardFeatures& features_;
  Index d_, d_v_;
  bool causal_;
  Index offset_;  // the position of query 0 among the keys, where that matters
  Index key_blocks_, query_blocks_;
  RotationTables<double> tables_;
  WorkerScratch scratch_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
