// FarField: the pairs of rows that are approximated, and the largest products over them.
//
// With a causal mask the keys near a row are exact, so that what is approximated is a staircase: blocks of
// query rows, each against a prefix of the keys. Products of lengths are largest for a block's longest query
// and the longest key of its prefix, a running maximum.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/row_bounds.hpp"
#include "fastrope/polynomial/far_pairs.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The rows of either side that some pair has.
struct FarField {
  Range queries = {};
  Range keys = {};

  bool empty() const { return queries.empty() || keys.empty(); }
};

inline FarField far_field(std::span<const FarPairs> pairs) {
  FarField field;
  for (const FarPairs& p : pairs) {
    if (p.rows.empty() || p.reach() == 0) continue;
    field.queries = hull(field.queries, p.rows);
    field.keys = hull(field.keys, {0, p.reach()});
  }
  return field;
}

/// [cuts]: at least queries_i[l] keys_j[l] for all pairs (i, j), where all keys below a row's reach, and
/// below that of earlier rows, count as far. queries, keys: [blocks of RowBounds, cuts]; of one block alone,
/// which is then of all rows, and all pairs count.
inline std::vector<double> largest_products(std::span<const FarPairs> pairs, std::span<const double> queries,
                                            std::span<const double> keys, Index cuts) {
  constexpr Index kRows = kRowBlock;
  const auto size = static_cast<std::size_t>(cuts);
  std::vector<double> products(size), prefix(size), longest(size);
  const auto raise = [size](std::vector<double>& most, std::span<const double> blocks, Index block) {
    const std::size_t at = blocks.size() == size ? 0 : static_cast<std::size_t>(block) * size;
    for (std::size_t l = 0; l < size; ++l) most[l] = std::max(most[l], blocks[at + l]);
  };
  Index seen = 0;  // blocks of keys
  for (const FarPairs& p : pairs) {
    if (p.rows.empty() || p.reach() == 0) continue;
    for (; seen * kRows < p.reach(); ++seen) raise(prefix, keys, seen);
    std::fill(longest.begin(), longest.end(), 0.0);
    for (Index block = p.rows.begin / kRows; block * kRows < p.rows.end; ++block)
      raise(longest, queries, block);
    for (std::size_t l = 0; l < size; ++l) products[l] = std::max(products[l], longest[l] * prefix[l]);
  }
  return products;
}

}  // namespace fastrope::inline FASTROPE_TARGET
