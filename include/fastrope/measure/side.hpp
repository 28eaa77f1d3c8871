// Side: the queries, keys or values of one head, as planning asks about them, whatever their arithmetic.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/row_bounds.hpp"
#include "fastrope/measure/rows.hpp"
#include "fastrope/measure/value_bounds.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Rows in order of position. Not to be asked by two threads at once.
class Side {
 public:
  Side(Index count, Index d) : count_(count), d_(d) {}
  virtual ~Side() = default;
  Side(const Side&) = delete;
  Side& operator=(const Side&) = delete;

  Index count() const { return count_; }
  Index d() const { return d_; }

  /// rows.hpp's sample, of rows after their rotation.
  virtual Points sample(Range rows, Index count) const = 0;
  /// Lets the bounds read the rows that they do not know.
  virtual void extend(RowBounds& bounds) const = 0;
  virtual void extend(ValueBounds& bounds) const = 0;
  /// [d]: the largest size of a column's elements, before rotation.
  virtual std::vector<double> largest_columns() const = 0;

 private:
  Index count_;
  Index d_;
};

/// The rows of a source.
template <class Real>
class SideOf final : public Side {
 public:
  explicit SideOf(RowSource<Real> source) : Side(source.count, source.d), source_(std::move(source)) {}

  Points sample(Range rows, Index count) const override { return fastrope::sample(source_, rows, count); }
  void extend(RowBounds& bounds) const override { bounds.extend(source_); }
  void extend(ValueBounds& bounds) const override { bounds.extend(source_); }
  std::vector<double> largest_columns() const override {
    std::vector<double> largest(static_cast<std::size_t>(d()));
    for_each_block(source_, 0, false, [&](Range block, const Real* rows) {
      for (Index i = 0; i < block.size(); ++i)
        for (Index c = 0; c < d(); ++c) {
          double& most = largest[static_cast<std::size_t>(c)];
          most = std::max(most, std::abs(static_cast<double>(rows[i * d() + c])));
        }
    });
    return largest;
  }

 private:
  RowSource<Real> source_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
