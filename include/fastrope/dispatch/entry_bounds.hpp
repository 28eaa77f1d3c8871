// Entry bounds: one look at q, k and v, O(n d), from which every bound on the logits follows.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/polynomial/shift.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope {

/// What is known of the rows of one head of q or k, after rotation.
struct RowBounds {
  bool finite = true;          ///< every element is, and the norms do not overflow
  std::vector<double> mean;    ///< [d]
  double norm = 0;             ///< max_i |x_i|_2
  double centred_norm = 0;     ///< max_i |x_i - mean|_2
  std::vector<double> column;  ///< [d], max_i |x_ic|
};

/// RowBounds of `rows` rows of d elements, row_of(i) turned by the angles of position_of(i). Sums are in
/// double.
template <class RowOf, class PositionOf>
RowBounds row_bounds(const Rotation& rotation, Index rows, Index d, RowOf&& row_of,
                     PositionOf&& position_of) {
  constexpr Index kBlock = 64;
  const auto size = static_cast<std::size_t>(d);
  RowBounds bounds{.mean = std::vector<double>(size), .column = std::vector<double>(size)};
  std::vector<double> table(static_cast<std::size_t>(kBlock * rotation.row_size()));
  std::vector<double> row(size);
  const auto for_each_row = [&](auto&& visit) {
    for (Index begin = 0; begin < rows; begin += kBlock) {
      const Range block{begin, std::min(begin + kBlock, rows)};
      rotation.fill(block, position_of, table.data());
      for (Index i = block.begin; i < block.end; ++i) {
        const auto* x = row_of(i);
        for (std::size_t c = 0; c < size; ++c) row[c] = static_cast<double>(x[c]);
        rotation.apply(table.data() + (i - begin) * rotation.row_size(), row.data());
        visit(row);
      }
    }
  };
  const double weight = 1 / static_cast<double>(std::max<Index>(1, rows));
  double largest = 0, zeros = 0;
  for_each_row([&](const std::vector<double>& y) {
    double square = 0;
    for (std::size_t c = 0; c < y.size(); ++c) {
      square += y[c] * y[c];
      bounds.mean[c] += weight * y[c];
      bounds.column[c] = std::max(bounds.column[c], std::abs(y[c]));
    }
    zeros += 0 * square;
    largest = std::max(largest, square);
  });
  bounds.norm = std::sqrt(largest);
  bounds.finite = zeros == 0;
  if (!bounds.finite) return bounds;
  double largest_centred = 0;
  for_each_row([&](const std::vector<double>& y) {
    double square = 0;
    for (std::size_t c = 0; c < y.size(); ++c) square += (y[c] - bounds.mean[c]) * (y[c] - bounds.mean[c]);
    largest_centred = std::max(largest_centred, square);
  });
  bounds.centred_norm = std::sqrt(largest_centred);
  return bounds;
}

/// Whether every element of x [rows, cols] is finite.
template <class Rows>
bool all_finite(const Rows& x, Index rows, Index cols) {
  double zeros = 0;
  for (Index i = 0; i < rows; ++i) {
    const auto* row = x.row(i);
    for (Index c = 0; c < cols; ++c) zeros += 0 * static_cast<double>(row[c]);
  }
  return zeros == 0;
}

/// The bounds of all heads of a call.
struct EntryBounds {
  std::vector<RowBounds> queries;   ///< [heads]
  std::vector<RowBounds> keys;      ///< [kv_heads]
  std::vector<bool> finite_values;  ///< [kv_heads]
};

template <class Q, class K, class V>
EntryBounds entry_bounds(const Problem& problem, TensorView<const Q> q, const K& k, const V& v) {
  const Shapes& s = problem.shapes;
  EntryBounds bounds{.queries = std::vector<RowBounds>(static_cast<std::size_t>(s.heads)),
                     .keys = std::vector<RowBounds>(static_cast<std::size_t>(s.kv_heads)),
                     .finite_values = {}};
  // Bytes, since the elements of std::vector<bool> cannot be written by two threads at once.
  std::vector<char> finite(static_cast<std::size_t>(s.kv_heads));
  const LagGrid& grid = problem.grid;
  problem.executor.parallel_for(s.heads + s.kv_heads, [&](Index task, Index) {
    if (task < s.heads) {
      bounds.queries[static_cast<std::size_t>(task)] = row_bounds(
          problem.rotation, s.n_q, s.d, [&](Index i) { return q.head(task).row(i); },
          [&](Index i) { return grid.query_position(i); });
    } else {
      const Index h = task - s.heads;
      bounds.keys[static_cast<std::size_t>(h)] = row_bounds(
          problem.rotation, s.n_k, s.d, [&](Index j) { return k.head(h).row(grid.source(j)); },
          [&](Index j) { return grid.key_position(j); });
      finite[static_cast<std::size_t>(h)] = all_finite(v.head(h), s.n_k, s.d_v);
    }
  });
  bounds.finite_values.assign(finite.begin(), finite.end());
  return bounds;
}

/// The shift, among none and the means, that makes the radius of a head smallest. Queries are shifted only
/// where `may_weigh_keys` and the keys' weights stay within e^-60 of each other. `epsilon`: of the arithmetic
/// that will compute the entries; the radius allows for its rounding.
inline Shift best_shift(const RowBounds& queries, const RowBounds& keys, double scale, bool may_weigh_keys,
                        double epsilon) {
  constexpr double kMaxWeightExponent = 30;
  Shift shift{.key_shift = std::vector<double>(keys.mean.size()),
              .query_shift = std::vector<double>(keys.mean.size())};
  double key_norm = keys.norm, query_norm = queries.norm;
  if (keys.centred_norm < keys.norm) {
    shift.key_shift = keys.mean;
    key_norm = keys.centred_norm;
  }
  if (may_weigh_keys && queries.centred_norm < queries.norm) {
    double mean_norm = 0;
    for (double x : queries.mean) mean_norm += x * x;
    const double exponent = std::abs(scale) * std::sqrt(mean_norm) * key_norm;
    if (exponent <= kMaxWeightExponent) {
      shift.query_shift = queries.mean;
      shift.weight_max = exponent;
      query_norm = queries.centred_norm;
    }
  }
  // Rotation, conversion and the shifts round each row by a few epsilon of its own length.
  const double rounding = 8 * epsilon * std::abs(scale) * queries.norm * keys.norm;
  shift.radius = std::abs(scale) * query_norm * key_norm * (1 + 8 * epsilon) + rounding;
  const double query_size = std::abs(scale) * query_norm;
  shift.balance = query_size > 0 && key_norm > 0 ? std::sqrt(key_norm / query_size) : 1;
  return shift;
}

/// The entries of a general family, x = scale q^T W(lag) k, over the lags that are allowed.
struct WeightedBounds {
  double radius = 0;  ///< |x| <= radius
  double feature_radius =
      0;  ///< |scale| max|q^|_2 max|k^|_2, q^ = (q[a_s])_s, k^ = (max|W_s| k[b_s])_s: norms of the features
  double balance = 1;  ///< as Shift::balance, for q^ and k^
};

/// Two bounds on |x|, the lesser taken: sum_s max|q[a_s]| max|W_s| max|k[b_s]|, and |q| |k| times the largest
/// sqrt(|W|_1 |W|_inf) >= |W|_2.
inline WeightedBounds weighted_bounds(const RowBounds& queries, const RowBounds& keys, const Problem& problem,
                                      double epsilon) {
  const RelativeWeights& weights = *problem.weights;
  const auto support = weights.support();
  const LagGrid::Lags lags = problem.grid.allowed_lags();
  const auto size = static_cast<std::size_t>(problem.shapes.d);
  double largest_norm = 0;
  std::vector<double> largest(support.size());
  for (Position lag = lags.first; lag <= lags.last; ++lag) {
    std::vector<double> row(size), column(size);
    for (std::size_t s = 0; s < support.size(); ++s) {
      const double w = std::abs(weights(lag, static_cast<Index>(s)));
      row[static_cast<std::size_t>(support[s].a)] += w;
      column[static_cast<std::size_t>(support[s].b)] += w;
      largest[s] = std::max(largest[s], w);
    }
    largest_norm = std::max(largest_norm, std::sqrt(*std::max_element(row.begin(), row.end()) *
                                                    *std::max_element(column.begin(), column.end())));
  }
  double entrywise = 0, query_square = 0, key_square = 0;
  for (std::size_t s = 0; s < support.size(); ++s) {
    const double q = queries.column[static_cast<std::size_t>(support[s].a)];
    const double k = keys.column[static_cast<std::size_t>(support[s].b)] * largest[s];
    entrywise += q * k;
    query_square += q * q;
    key_square += k * k;
  }
  const double scale = std::abs(problem.scale);
  const double allowance = 1 + 16 * epsilon;
  const double query_size = scale * std::sqrt(query_square), key_size = std::sqrt(key_square);
  return {.radius = scale * std::min(entrywise, queries.norm * keys.norm * largest_norm) * allowance,
          .feature_radius = query_size * key_size * allowance,
          .balance = query_size > 0 && key_size > 0 ? std::sqrt(key_size / query_size) : 1};
}

}  // namespace fastrope
