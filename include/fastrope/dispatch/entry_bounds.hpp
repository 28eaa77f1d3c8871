// Entry bounds: one look at q, k and v, O(n d), from which every bound on the logits follows.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/polynomial/point_set.hpp"
#include "fastrope/position/rotation.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope {

/// What is known of the rows of one head of q or k.
struct RowBounds {
  double norm = 0;           ///< max_i |x_i|_2
  bool finite = true;        ///< every element is, and the norms do not overflow
  std::vector<double> mean;  ///< about that of the rows before rotation, [d]
  double mean_square = 0;    ///< about that of |x_i|_2
};

/// rows [count, d] = row_of(i) turned by the angles of position_of(i), and their bounds.
template <class Real, class RowOf, class PositionOf>
RowBounds rotate_rows(const Rotation& rotation, Index count, Index d, RowOf&& row_of,
                      PositionOf&& position_of, Rows<Real>& rows) {
  constexpr Index kBlock = 64;
  rows.resize(count, d);
  Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> turned(kBlock, d);
  std::vector<Real> table(static_cast<std::size_t>(kBlock * rotation.row_size()));
  double largest = 0, zeros = 0, total = 0;
  Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(d);
  for (Index begin = 0; begin < count; begin += kBlock) {
    const Range block{begin, std::min(begin + kBlock, count)};
    rotation.fill(block, position_of, table.data());
    for (Index i = block.begin; i < block.end; ++i) simd::convert(row_of(i), d, turned.row(i - begin).data());
    sum += turned.topRows(block.size()).colwise().sum().template cast<double>();
    for (Index i = 0; i < block.size(); ++i)
      rotation.apply(table.data() + i * rotation.row_size(), turned.row(i).data());
    const auto part = rows.middleRows(begin, block.size());
    rows.middleRows(begin, block.size()) = turned.topRows(block.size());
    const Eigen::Array<Real, Eigen::Dynamic, 1> squares = part.rowwise().squaredNorm();
    zeros += 0 * static_cast<double>(squares.sum());
    largest = std::max(largest, static_cast<double>(squares.maxCoeff()));
    total += static_cast<double>(squares.sum());
  }
  const double rows_in_all = static_cast<double>(std::max<Index>(1, count));
  sum /= rows_in_all;
  return {outward_norm<Real>(largest, d), zeros == 0, {sum.begin(), sum.end()}, total / rows_in_all};
}

/// What is known of the values [rows, cols] of one head.
struct ValueBounds {
  bool finite = true;
  double spread = 1;  ///< half of the largest range of a column, over the largest element
};

template <class Values>
ValueBounds value_bounds(const Values& v, Index rows, Index cols) {
  const auto size = static_cast<std::size_t>(cols);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<double> lowest(size, kInfinity), highest(size, -kInfinity);
  double zeros = 0;
  for (Index j = 0; j < rows; ++j) {
    const auto* row = v.row(j);
    for (std::size_t c = 0; c < size; ++c) {
      const double x = static_cast<double>(row[c]);
      zeros += 0 * x;
      lowest[c] = std::min(lowest[c], x);
      highest[c] = std::max(highest[c], x);
    }
  }
  double range = 0, largest = 0;
  for (std::size_t c = 0; c < size; ++c) {
    range = std::max(range, highest[c] - lowest[c]);
    largest = std::max({largest, highest[c], -lowest[c]});
  }
  // One rounding of the range and one of the quotient.
  const double spread =
      largest > 0 ? std::min(1.0, range / largest / 2 * (1 + 2 * std::numeric_limits<double>::epsilon())) : 1;
  return {zeros == 0, spread};
}

/// The query heads of one key head after rotation, as planning looks at them.
template <class Real>
struct GroupRows {
  std::vector<Rows<Real>> queries;  ///< [heads of the group], each [n_q, d]
  std::vector<RowBounds> query_bounds;
  Rows<Real> keys;  ///< [n_k, d], in ascending order of position
  RowBounds key_bounds;
  ValueBounds values;
};

/// Reads the rows of key head kv and its query heads. Memory: O((heads of the group n_q + n_k) d).
template <class Real, class Q, class K, class V>
GroupRows<Real> group_rows(const Problem& problem, Index kv, TensorView<const Q> q, const K& k, const V& v) {
  const Shapes& s = problem.shapes;
  const LagGrid& grid = problem.grid;
  const auto group = static_cast<std::size_t>(problem.group());
  GroupRows<Real> rows{.queries = std::vector<Rows<Real>>(group),
                       .query_bounds = std::vector<RowBounds>(group),
                       .keys = {},
                       .key_bounds = {},
                       .values = value_bounds(v.head(kv), s.n_k, s.d_v)};
  for (std::size_t g = 0; g < group; ++g) {
    const auto head = q.head(kv * problem.group() + static_cast<Index>(g));
    rows.query_bounds[g] = rotate_rows(
        problem.rotation, s.n_q, s.d, [&](Index i) { return head.row(i); },
        [&](Index i) { return grid.query_position(i); }, rows.queries[g]);
  }
  const auto head = k.head(kv);
  rows.key_bounds = rotate_rows(
      problem.rotation, s.n_k, s.d, [&](Index j) { return head.row(grid.source(j)); },
      [&](Index j) { return grid.key_position(j); }, rows.keys);
  return rows;
}

/// The entries of a general family, x = scale q^T W(lag) k, over the lags that are allowed.
struct WeightedBounds {
  double radius = 0;  ///< |x| <= radius
  double feature_radius =
      0;  ///< |scale| max|q^|_2 max|k^|_2, q^ = (q[a_s])_s, k^ = (max|W_s| k[b_s])_s: norms of the features
  double balance = 1;         ///< queries times it and keys over it make q^ and k^ equally long
  double largest_weight = 0;  ///< max|W_s(lag)|
};

/// Two bounds on |x|, the lesser taken: sum_s max|q[a_s]| max|W_s| max|k[b_s]|, and |q| |k| times the largest
/// sqrt(|W|_1 |W|_inf) >= |W|_2.
template <class Real>
WeightedBounds weighted_bounds(const GroupRows<Real>& rows, std::size_t query, const Problem& problem) {
  constexpr double epsilon = std::numeric_limits<Real>::epsilon();
  const RelativeWeights& weights = *problem.weights;
  const auto support = weights.support();
  const LagGrid::Lags lags = problem.grid.allowed_lags();
  const auto size = static_cast<std::size_t>(problem.shapes.d);
  double largest_norm = 0;
  std::vector<double> largest(support.size());
  for (Position lag = lags.first; lag <= lags.last; ++lag) {
    std::vector<double> across(size), down(size);
    for (std::size_t s = 0; s < support.size(); ++s) {
      const double w = std::abs(weights(lag, static_cast<Index>(s)));
      across[static_cast<std::size_t>(support[s].a)] += w;
      down[static_cast<std::size_t>(support[s].b)] += w;
      largest[s] = std::max(largest[s], w);
    }
    largest_norm = std::max(largest_norm, std::sqrt(*std::max_element(across.begin(), across.end()) *
                                                    *std::max_element(down.begin(), down.end())));
  }
  const Eigen::RowVectorXd query_columns =
      rows.queries[query].cwiseAbs().colwise().maxCoeff().template cast<double>();
  const Eigen::RowVectorXd key_columns = rows.keys.cwiseAbs().colwise().maxCoeff().template cast<double>();
  double entrywise = 0, query_square = 0, key_square = 0;
  for (std::size_t s = 0; s < support.size(); ++s) {
    const double q = query_columns(support[s].a);
    const double k = key_columns(support[s].b) * largest[s];
    entrywise += q * k;
    query_square += q * q;
    key_square += k * k;
  }
  const double scale = std::abs(problem.scale);
  const double allowance = 1 + 16 * epsilon;
  const double query_size = scale * std::sqrt(query_square), key_size = std::sqrt(key_square);
  return {.radius = scale *
                    std::min(entrywise, rows.query_bounds[query].norm * rows.key_bounds.norm * largest_norm) *
                    allowance,
          .feature_radius = query_size * key_size * allowance,
          .balance = query_size > 0 && key_size > 0 ? std::sqrt(key_size / query_size) : 1,
          .largest_weight = *std::max_element(largest.begin(), largest.end())};
}

}  // namespace fastrope
