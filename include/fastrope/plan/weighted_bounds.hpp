// WeightedBounds: how large the entries of a general family W(lag) are.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/plan/look.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The entries of a general family, x = scale q^T W(lag) k, over the lags that are allowed.
struct WeightedBounds {
  double radius = 0;  ///< |x| <= radius
  double feature_radius =
      0;  ///< |scale| max|q^|_2 max|k^|_2, q^ = (q[a_s])_s, k^ = (max|W_s| k[b_s])_s: norms of the features
  double balance = 1;         ///< queries times it and keys over it make q^ and k^ equally long
  double largest_weight = 0;  ///< max|W_s(lag)|
};

/// Two bounds on |x|, the lesser taken: sum_s max|q[a_s]| max|W_s| max|k[b_s]|, and |q| |k| times the largest
/// sqrt(|W|_1 |W|_inf) >= |W|_2. epsilon: of the rows' arithmetic.
inline WeightedBounds weighted_bounds(GroupLook& look, Index head, const Problem& problem, double epsilon) {
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
  const std::vector<double> query_columns = look.queries(head).largest_columns(),
                            key_columns = look.keys().largest_columns();
  double entrywise = 0, query_square = 0, key_square = 0;
  for (std::size_t s = 0; s < support.size(); ++s) {
    const double q = query_columns[static_cast<std::size_t>(support[s].a)];
    const double k = key_columns[static_cast<std::size_t>(support[s].b)] * largest[s];
    entrywise += q * k;
    query_square += q * q;
    key_square += k * k;
  }
  const double scale = std::abs(problem.scale);
  const double allowance = 1 + 16 * epsilon;
  const double query_size = scale * std::sqrt(query_square), key_size = std::sqrt(key_square);
  return {.radius =
              scale * std::min(entrywise, look.query_norm(head) * look.key_norm() * largest_norm) * allowance,
          .feature_radius = query_size * key_size * allowance,
          .balance = query_size > 0 && key_size > 0 ? std::sqrt(key_size / query_size) : 1,
          .largest_weight = *std::max_element(largest.begin(), largest.end())};
}

}  // namespace fastrope::inline FASTROPE_TARGET
