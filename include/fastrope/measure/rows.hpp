// RowSource: what planning reads of one side of a head, and samples of it.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/points.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The queries or keys of one head, in order of position. Not to be read by two threads at once.
template <class Real>
struct RowSource {
  Index count = 0;
  Index d = 0;
  /// Writes `rows` to `to`, [rows.size(), d] row by row: after their rotation, or before it if that only
  /// changes directions and `turned` is false.
  std::function<void(Range rows, bool turned, Real* to)> read = {};
};

/// Rows that are read at a time.
inline constexpr Index kRowBlock = 64;

/// visit(rows, x) for blocks of the source's rows from `first` on, x [kRowBlock, d] of which rows.size() are
/// read; the last of them fills the rest.
template <class Real, class Visit>
void for_each_block(const RowSource<Real>& source, Index first, bool turned, Visit&& visit) {
  std::vector<Real> x(static_cast<std::size_t>(kRowBlock * source.d));
  for (Index begin = first; begin < source.count; begin += kRowBlock) {
    const Range rows{begin, std::min(begin + kRowBlock, source.count)};
    source.read(rows, turned, x.data());
    for (Index i = rows.size(); i < kRowBlock; ++i)
      std::copy_n(x.data() + (rows.size() - 1) * source.d, source.d, x.data() + i * source.d);
    visit(rows, static_cast<const Real*>(x.data()));
  }
}

/// At most `count`, or 4, of the given rows after their rotation, evenly spread: all of them if they are no
/// more. For choices that need no proof.
template <class Real>
Points sample(const RowSource<Real>& source, Range rows, Index count) {
  constexpr Index kRun = 4;  // neighbours share most of what their angles cost
  const bool all = rows.size() <= std::max(count, kRun);
  const Index runs = all ? 1 : std::max<Index>(1, count / kRun), run = all ? rows.size() : kRun;
  std::vector<Real> read(static_cast<std::size_t>(run * source.d));
  Points some(source.d, runs * run);
  for (Index r = 0; r < runs; ++r) {
    const Index begin = rows.begin + r * (rows.size() - run) / std::max<Index>(1, runs - 1);
    source.read({begin, begin + run}, true, read.data());
    for (Index i = 0; i < run; ++i)
      for (Index c = 0; c < source.d; ++c)
        some(c, r * run + i) = static_cast<double>(read[static_cast<std::size_t>(i * source.d + c)]);
  }
  return some;
}

}  // namespace fastrope::inline FASTROPE_TARGET
