// Rows: what planning reads of one side of a head, and samples of it.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <functional>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/transpose.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// [n, d], a row a point, stored column by column, so that rows are vector lanes.
template <class Real>
using Rows = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic>;

/// [d].
template <class Real>
using Point = Eigen::Matrix<Real, 1, Eigen::Dynamic>;

/// The queries or keys of one head, in order of position. Not to be read by two threads at once.
template <class Real>
struct RowSource {
  Index count = 0;
  Index d = 0;
  /// Writes `rows` to `to`, [rows.size(), d] row by row: after their rotation, or before it if that only
  /// changes directions and `turned` is false.
  std::function<void(Range rows, bool turned, Real* to)> read = {};
};

/// The rows of a matrix, as they are; it must outlive the source.
template <class Real>
RowSource<Real> source_of(const Rows<Real>& x) {
  return {x.rows(), x.cols(), [&x](Range rows, bool, Real* to) {
            Eigen::Map<Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
                to, rows.size(), x.cols()) = x.middleRows(rows.begin, rows.size());
          }};
}

/// Rows that are read at a time.
inline constexpr Index kRowBlock = 64;

/// visit(rows, x) for blocks of the source's rows from `first` on, x [kRowBlock, d] of which rows.size() are
/// read.
template <class Real, class Visit>
void for_each_block(const RowSource<Real>& source, Index first, bool turned, Visit&& visit) {
  Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> x(kRowBlock, source.d);
  for (Index begin = first; begin < source.count; begin += kRowBlock) {
    const Range rows{begin, std::min(begin + kRowBlock, source.count)};
    source.read(rows, turned, x.data());
    visit(rows, x);
  }
}

/// At most `count`, or 4, of the given rows, evenly spread: all of them if they are no more. For choices that
/// need no proof.
template <class Real>
Rows<Real> sample(const RowSource<Real>& source, Range rows, Index count, bool turned = true) {
  constexpr Index kRun = 4;  // neighbours share most of what their angles cost
  const bool all = rows.size() <= std::max(count, kRun);
  const Index runs = all ? 1 : std::max<Index>(1, count / kRun), run = all ? rows.size() : kRun;
  Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> read(runs * run, source.d);
  for (Index r = 0; r < runs; ++r) {
    const Index begin = rows.begin + r * (rows.size() - run) / std::max<Index>(1, runs - 1);
    source.read({begin, begin + run}, turned, read.data() + r * run * source.d);
  }
  Rows<Real> some(read.rows(), source.d);
  transpose(read.data(), read.rows(), source.d, source.d, some.data(), read.rows());
  return some;
}

}  // namespace fastrope::inline FASTROPE_TARGET
