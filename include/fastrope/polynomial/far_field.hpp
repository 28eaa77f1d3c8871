// FarField: the pairs of rows that are approximated, and the largest products over them.
//
// With a causal mask the keys near a row are exact, so that what is approximated is a staircase: blocks of
// query rows, each against a prefix of the keys. Products of lengths are largest for a block's longest query
// and the longest key of its prefix, a running maximum: O(n d) for all pairs.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/polynomial/point_set.hpp"

namespace fastrope {

/// One step of the staircase: queries, and the keys that the steps before do not have.
template <class Real>
struct FarStep {
  PointSet<Real> queries;
  PointSet<Real> keys;
};

/// A view of all rows of both sides, and of those that are approximated together.
template <class Real>
struct FarField {
  PointSet<Real> queries;
  PointSet<Real> keys;
  std::vector<FarStep<Real>> steps;

  bool empty() const { return steps.empty(); }
};

/// pairs: ascending rows; all keys below their reach, and below earlier ones', count as far. queries: a
/// matrix for each head, [n_q, d]; keys: [n_k, d].
template <class Real>
FarField<Real> far_field(std::span<const Rows<Real>> queries, const Rows<Real>& keys,
                         std::span<const FarPairs> pairs) {
  FarField<Real> field;
  for (const Rows<Real>& q : queries) field.queries.push_back(rows_in(q, {0, q.rows()}));
  field.keys.push_back(rows_in(keys, {0, keys.rows()}));
  Index seen = 0;
  for (const FarPairs& p : pairs) {
    if (p.rows.empty() || p.reach() == 0) continue;
    FarStep<Real>& step = field.steps.emplace_back();
    for (const Rows<Real>& q : queries) step.queries.push_back(rows_in(q, p.rows));
    step.keys.push_back(rows_in(keys, {seen, std::max(seen, p.reach())}));
    seen = std::max(seen, p.reach());
  }
  return field;
}

/// max over the pairs (i, j) of steps of queries[i][l] keys[j][l], [cuts]; each [steps][cuts], nonnegative,
/// keys' of the new keys of a step.
inline std::vector<double> largest_products(const std::vector<std::vector<double>>& queries,
                                            const std::vector<std::vector<double>>& keys, std::size_t cuts) {
  std::vector<double> products(cuts), key_prefix(cuts);
  for (std::size_t step = 0; step < queries.size(); ++step)
    for (std::size_t l = 0; l < cuts; ++l) {
      key_prefix[l] = std::max(key_prefix[l], keys[step][l]);
      products[l] = std::max(products[l], queries[step][l] * key_prefix[l]);
    }
  return products;
}

}  // namespace fastrope
