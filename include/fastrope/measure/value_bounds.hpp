// ValueBounds: the ranges of one head's values, from one pass over them.
#pragma once

#include <algorithm>
#include <iterator>
#include <limits>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/transpose.hpp"
#include "fastrope/measure/points.hpp"
#include "fastrope/measure/rows.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The range of each column of V. Rows may be added.
class ValueBounds {
 public:
  /// Reads the rows that were not there before.
  template <class Real>
  void extend(const RowSource<Real>& values);

  /// Counts a sample in.
  void add(const Points& points) {
    for (Index c = 0; c < points.rows; ++c)
      for (Index i = 0; i < points.cols; ++i) count(points.rows, c, points(c, i), points(c, i), points(c, i));
  }

  /// Counts in columns of other rows: [columns] each.
  void add(std::span<const double> lowest, std::span<const double> highest, bool all_finite) {
    constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
    const Index columns = std::ssize(lowest);
    for (Index c = 0; c < columns; ++c) {
      const auto at = static_cast<std::size_t>(c);
      count(columns, c, lowest[at], highest[at], all_finite ? 0 : kNaN);
    }
  }

  /// [columns], or none where there was no row.
  std::span<const double> lowest() const { return lowest_; }
  std::span<const double> highest() const { return highest_; }
  bool finite() const { return zeros_ == 0; }
  /// Half of the largest range of a column, over the largest element.
  double spread() const {
    double range = 0, largest = 0;
    for (std::size_t c = 0; c < lowest_.size(); ++c) {
      range = std::max(range, highest_[c] - lowest_[c]);
      largest = std::max({largest, highest_[c], -lowest_[c]});
    }
    // One rounding of the range and one of the quotient.
    constexpr double kOutward = 1 + 2 * std::numeric_limits<double>::epsilon();
    return largest > 0 ? std::min(1.0, range / largest / 2 * kOutward) : 1;
  }

 private:
  void count(Index columns, Index c, double lowest, double highest, double sum) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    lowest_.resize(static_cast<std::size_t>(columns), kInfinity);
    highest_.resize(static_cast<std::size_t>(columns), -kInfinity);
    double &low = lowest_[static_cast<std::size_t>(c)], &high = highest_[static_cast<std::size_t>(c)];
    low = std::min(low, lowest);
    high = std::max(high, highest);
    zeros_ += 0 * sum;
  }

  Index rows_ = 0;
  std::vector<double> lowest_ = {}, highest_ = {};
  double zeros_ = 0;  // or NaN, if a value is not finite
};

template <class Real>
void ValueBounds::extend(const RowSource<Real>& values) {
  using namespace simd;
  const Index d = values.d;
  std::vector<Real> columns(static_cast<std::size_t>(d * kRowBlock));
  for_each_block(values, rows_, false, [&](Range, const Real* rows) {
    transpose(rows, kRowBlock, d, d, columns.data(), kRowBlock);
    for (Index c = 0; c < d; ++c) {
      const Real* column = columns.data() + c * kRowBlock;
      Vec<Real> high = load(column), low = sub(zero<Real>(), high), zeros = zero<Real>();
      for (Index i = 0; i < kRowBlock; i += kLanes<Real>) {
        const Vec<Real> x = load(column + i);
        low = max(low, sub(zero<Real>(), x));
        high = max(high, x);
        zeros = fma(x, zero<Real>(), zeros);
      }
      count(d, c, -static_cast<double>(reduce_max<Real>(low)), static_cast<double>(reduce_max<Real>(high)),
            static_cast<double>(reduce_add<Real>(zeros)));
    }
  });
  rows_ = values.count;
}

}  // namespace fastrope::inline FASTROPE_TARGET
