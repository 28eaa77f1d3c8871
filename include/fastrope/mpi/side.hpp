// RankSide: a side of a head whose rows are spread over ranks, as planning asks about it.
//
// Every rank asks the same in the same order and gets the same answers, so that plans made from them are the
// same: a sample is, bit for bit, that of one process with all rows, each rank giving those that it has;
// bounds are the largest of any rank. What is sent does not depend on how many rows there are.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/problem_rows.hpp"
#include "fastrope/measure/row_bounds.hpp"
#include "fastrope/measure/rows.hpp"
#include "fastrope/measure/side.hpp"
#include "fastrope/measure/value_bounds.hpp"
#include "fastrope/mpi/layout.hpp"
#include "fastrope/mpi/ranks.hpp"
#include "fastrope/plan/look.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// Members are collective; those that read throw the same on every rank. Bounds are one for all rows
/// (RowBounds), of which every pair is covered, whichever are approximated.
template <class Real>
class RankSide final : public Side {
 public:
  /// own: this rank's rows, the first of them row `first` of `all`.
  RankSide(const Ranks& ranks, RowSource<Real> own, Index first, Index all)
      : Side(all, own.d), ranks_(ranks), own_(std::move(own)), first_(first) {}

  Points sample(Range rows, Index how_many) const override {
    // Rows of other ranks are 0 here, and the sum of all is each rank's own.
    const RowSource<Real> spread{
        count(), d(), [this](Range some, bool turned, Real* to) {
          std::fill_n(to, some.size() * d(), Real{0});
          const Range here = intersect(some, {first_, first_ + own_.count});
          if (!here.empty())
            own_.read({here.begin - first_, here.end - first_}, turned, to + (here.begin - some.begin) * d());
        }};
    Points points;
    ranks_.agree([&] { points = fastrope::sample(spread, rows, how_many); });
    ranks_.sum(points.values);
    return points;
  }

  void extend(RowBounds& bounds) const override {
    if (bounds.rows() == count()) return;
    const auto cuts = static_cast<std::size_t>(bounds.measure().axes.rows);
    RowBounds own(bounds.measure());
    std::vector<double> most(2 + cuts);
    ranks_.agree([&] {
      own.extend(own_);
      most[0] = fastrope::largest(own.norms());
      most[1] = fastrope::largest(own.distances());
      for (std::size_t l = 0; l < own.reaches().size() && cuts > 0; ++l)
        most[2 + l % cuts] = std::max(most[2 + l % cuts], own.reaches()[l]);
    });
    ranks_.largest(most);
    bounds = RowBounds(bounds.measure(), count(), most[0], most[1], {most.begin() + 2, most.end()});
  }

  void extend(ValueBounds& bounds) const override {
    const auto columns = static_cast<std::size_t>(d());
    ValueBounds own;
    // -lowest, highest, whether some value is not finite.
    std::vector<double> most(2 * columns + 1, -std::numeric_limits<double>::infinity());
    ranks_.agree([&] {
      own.extend(own_);
      most.back() = own.finite() ? 0 : 1;
      for (std::size_t c = 0; c < own.lowest().size() && own.finite(); ++c) {
        most[c] = -own.lowest()[c];
        most[columns + c] = own.highest()[c];
      }
    });
    ranks_.largest(most);
    for (std::size_t c = 0; c < columns; ++c) most[c] = -most[c];
    const std::span<const double> ranges(most);
    bounds.add(ranges.first(columns), ranges.subspan(columns, columns), most.back() == 0);
  }

  std::vector<double> largest_columns() const override {
    std::vector<double> columns(static_cast<std::size_t>(d()));
    ranks_.agree([&] { columns = SideOf<Real>(own_).largest_columns(); });
    ranks_.largest(columns);
    return columns;
  }

 private:
  const Ranks& ranks_;
  RowSource<Real> own_;
  Index first_;
};

/// A look at key head kv of all ranks and its query heads. problem: of this rank's rows, at their positions
/// among all. The problem and the tensors must outlive it.
template <class Real>
GroupLook rank_look(const Ranks& ranks, const Layout& layout, const Problem& problem, Index kv,
                    const StoredRows& q, const StoredRows& k, const StoredRows& v) {
  std::vector<std::unique_ptr<Side>> queries;
  for (Index h = kv * problem.group(); h < (kv + 1) * problem.group(); ++h)
    queries.push_back(std::make_unique<RankSide<Real>>(ranks, query_rows<Real>(problem, h, q),
                                                       layout.first_query, layout.whole.n_q));
  const auto side = [&](RowSource<Real> rows) {
    return std::make_unique<RankSide<Real>>(ranks, std::move(rows), layout.first_key, layout.whole.n_k);
  };
  return {std::move(queries), side(key_rows<Real>(problem, kv, k)), side(value_rows<Real>(problem, kv, v))};
}

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
