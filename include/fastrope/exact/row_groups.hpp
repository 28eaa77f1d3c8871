// RowGroups: the query rows of each key/value head, n_q of each of its query heads, head after head, cut into
// groups as equal as can be that meet its keys and values together.
#pragma once

#include <algorithm>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

class RowGroups {
 public:
  /// Of at most `most` rows.
  RowGroups(const Problem& problem, Index most)
      : n_q_(problem.shapes.n_q),
        heads_(problem.group()),
        kv_heads_(problem.shapes.kv_heads),
        parts_(std::max<Index>(1, ceil_div(n_q_ * heads_, most))),
        rows_(ceil_div(n_q_ * heads_, parts_)) {}

  /// Groups of all key/value heads.
  Index count() const { return kv_heads_ * parts_; }
  /// Rows of all groups.
  Index all_rows() const { return kv_heads_ * n_q_ * heads_; }
  /// Rows of the largest group.
  Index rows() const { return rows_; }

  Index kv_head(Index g) const { return g / parts_; }
  /// Rows of group g: the last of a head may have fewer.
  Index size(Index g) const { return std::min(rows_, n_q_ * heads_ - first(g)); }
  /// The query head and the query of row r of group g.
  Index head(Index g, Index r) const { return kv_head(g) * heads_ + (first(g) + r) / n_q_; }
  Index query(Index g, Index r) const { return (first(g) + r) % n_q_; }

  /// A row's number among all, and the row that has a number.
  Index number(Index g, Index r) const { return kv_head(g) * n_q_ * heads_ + first(g) + r; }
  struct Row {
    Index group;
    Index row;
  };
  Row row(Index number) const {
    const Index in_head = number % (n_q_ * heads_);
    return {number / (n_q_ * heads_) * parts_ + in_head / rows_, in_head % rows_};
  }

 private:
  /// The first row of group g among those of its key/value head.
  Index first(Index g) const { return g % parts_ * rows_; }

  Index n_q_;
  Index heads_;  // query heads of a key/value head
  Index kv_heads_;
  Index parts_;  // groups of a key/value head
  Index rows_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
