// RowBounds: how far the rows of one side reach, from one pass over them.
//
// Bounds are kept for blocks of rows, so that pairs of blocks can be told apart (far_field.hpp), and so that
// rows that come later are added without another look at those before.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/transpose.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/polynomial/rows.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Of bounds of blocks: that of all rows; 0 without any.
inline double largest(std::span<const double> bounds) {
  return bounds.empty() ? 0.0 : *std::max_element(bounds.begin(), bounds.end());
}

/// From where, and along which axes, rows are measured.
template <class Real>
struct Measure {
  Point<Real> point = {};  ///< [d]; empty: the origin
  Rows<Real> axes = {};    ///< A, [cuts, d]; empty: lengths alone

  bool rotation_matters() const { return point.size() > 0 || axes.size() > 0; }
};

/// Bounds on the rows of one side in blocks of kRows.
template <class Real>
class RowBounds {
 public:
  static constexpr Index kRows = kRowBlock;

  RowBounds() = default;
  explicit RowBounds(Measure<Real> measure) : measure_(std::move(measure)) {}

  /// Reads the rows that were not there before, and those of the last block if it was not full.
  /// Cost: O(new rows d), with axes a matrix product, O(new rows d cuts).
  void extend(const RowSource<Real>& source);

  const Measure<Real>& measure() const { return measure_; }
  Index rows() const { return rows_; }
  Index cuts() const { return std::max<Index>(1, measure_.axes.rows()); }
  /// [blocks]: at least max |x_i|_2; infinity where an element is not finite, or the sum of the block's
  /// squares overflows.
  std::span<const double> norms() const { return norms_; }
  /// [blocks]: at least max |x_i - point|_2.
  std::span<const double> distances() const { return distances_; }
  /// [blocks, cuts]: at least max |(A (x_i - point))[l..]|_2 of exact arithmetic; without axes the distances.
  std::span<const double> reaches() const { return measure_.axes.size() > 0 ? reaches_ : distances_; }

 private:
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  using Block = Eigen::Array<Real, kRows, 1>;

  /// At least the root of the largest square; infinity for NaN.
  static double norm_of(const Block& squares, Index d) {
    const double total = static_cast<double>(squares.sum());
    return total < kInfinity ? outward_norm<Real>(static_cast<double>(squares.maxCoeff()), d) : kInfinity;
  }

  Measure<Real> measure_ = {};
  Index rows_ = 0;
  std::vector<double> norms_ = {};
  std::vector<double> distances_ = {};
  std::vector<double> reaches_ = {};
};

/// Rounding of an element of A (x - point): at most (d + 2) epsilon / 2 |a| |x - point|, a its row of A, so
/// of all of them |A|_F in the place of |a|. The sums and the root are off by (cuts + 4) epsilon / 2 of
/// themselves. Twice that is allowed.
template <class Real>
void RowBounds<Real>::extend(const RowSource<Real>& source) {
  const Index d = source.d, m = measure_.axes.rows();
  const Index whole = rows_ / kRows;
  norms_.resize(static_cast<std::size_t>(whole));
  distances_.resize(static_cast<std::size_t>(whole));
  reaches_.resize(static_cast<std::size_t>(whole * m));
  rows_ = source.count;
  const double axes_size =
      (static_cast<double>(d) + 3) * kEpsilon * static_cast<double>(measure_.axes.norm());
  Eigen::Matrix<Real, kRows, Eigen::Dynamic> columns(kRows, d), projected(kRows, m);
  for_each_block(source, whole * kRows, measure_.rotation_matters(), [&](Range block, auto& rows) {
    // Rows past the end repeat the first.
    for (Index i = block.size(); i < kRows; ++i) rows.row(i) = rows.row(0);
    transpose(rows.data(), kRows, d, d, columns.data(), kRows);
    Block squares = Block::Zero();
    for (Index c = 0; c < d; ++c) squares += columns.col(c).array().square();
    norms_.push_back(norm_of(squares, d));
    if (measure_.point.size() == 0) {
      distances_.push_back(norms_.back());
    } else {
      squares.setZero();
      for (Index c = 0; c < d; ++c) {
        columns.col(c).array() -= measure_.point(c);
        squares += columns.col(c).array().square();
      }
      distances_.push_back(norm_of(squares, d));
    }
    if (m == 0) return;
    projected.noalias() = columns * measure_.axes.transpose();
    squares.setZero();
    reaches_.resize(reaches_.size() + static_cast<std::size_t>(m));
    for (Index l = m; l-- > 0;) {
      squares += projected.col(l).array().square();
      reaches_[reaches_.size() - static_cast<std::size_t>(m - l)] =
          norm_of(squares, m) + axes_size * distances_.back();
    }
  });
}

}  // namespace fastrope::inline FASTROPE_TARGET
