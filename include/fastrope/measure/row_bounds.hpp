// RowBounds: how far the rows of one side reach, from one pass over them.
//
// Bounds are kept for blocks of rows, so that pairs of blocks can be told apart (far_field.hpp), and so that
// rows that come later are added without another look at those before.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/transpose.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/measure/points.hpp"
#include "fastrope/measure/rows.hpp"
#include "fastrope/polynomial/rounding.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Of bounds of blocks: that of all rows; 0 without any.
inline double largest(std::span<const double> bounds) {
  return bounds.empty() ? 0.0 : *std::max_element(bounds.begin(), bounds.end());
}

/// From where, and along which axes, rows are measured; all numbers of the rows' arithmetic.
struct Measure {
  Point point = {};  ///< [d]; empty: the origin
  Matrix axes = {};  ///< A, [cuts, d]; empty: lengths alone

  bool rotation_matters() const { return !point.empty() || !axes.empty(); }
};

/// Bounds on the rows of one side in blocks of kRowBlock.
class RowBounds {
 public:
  RowBounds() = default;
  explicit RowBounds(Measure measure) : measure_(std::move(measure)) {}
  /// Of rows that nobody has at hand: one bound for all of them in the place of each block's. reaches: [cuts]
  /// where there are axes. Not to be extended.
  RowBounds(Measure measure, Index rows, double norm, double distance, std::vector<double> reaches)
      : measure_(std::move(measure)),
        rows_(rows),
        norms_{norm},
        distances_{distance},
        reaches_(std::move(reaches)) {}

  /// Reads the rows that were not there before, and those of the last block if it was not full.
  /// Cost: O(new rows d), with axes a matrix product, O(new rows d cuts).
  template <class Real>
  void extend(const RowSource<Real>& source);

  const Measure& measure() const { return measure_; }
  Index rows() const { return rows_; }
  Index cuts() const { return std::max<Index>(1, measure_.axes.rows); }
  /// [blocks]: at least max |x_i|_2; infinity where an element is not finite, or the sum of the block's
  /// squares overflows.
  std::span<const double> norms() const { return norms_; }
  /// [blocks]: at least max |x_i - point|_2.
  std::span<const double> distances() const { return distances_; }
  /// [blocks, cuts]: at least max |(A (x_i - point))[l..]|_2 of exact arithmetic; without axes the distances.
  std::span<const double> reaches() const { return measure_.axes.empty() ? distances_ : reaches_; }

 private:
  Measure measure_ = {};
  Index rows_ = 0;
  std::vector<double> norms_ = {};
  std::vector<double> distances_ = {};
  std::vector<double> reaches_ = {};
};

namespace detail {

/// The squares of a block's rows, summed column by column.
template <class Real>
class BlockSquares {
 public:
  void clear() { *this = {}; }
  /// column: [kRowBlock].
  void add(const Real* column) {
    using namespace simd;
    for (Index i = 0; i < kRowBlock; i += kLanes<Real>) {
      const Vec<Real> x = load(column + i);
      store<Real>(fma(x, x, load(sums_ + i)), sums_ + i);
    }
  }
  /// At least the root of the largest sum of `terms` squares; infinity for NaN or overflow.
  double outward_root(Index terms) const {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    using namespace simd;
    Vec<Real> sum = load(sums_), most = sum;
    for (Index i = kLanes<Real>; i < kRowBlock; i += kLanes<Real>) {
      const Vec<Real> next = load(sums_ + i);
      sum = simd::add(sum, next);
      most = max(most, next);
    }
    const Real total = reduce_add<Real>(sum), largest = reduce_max<Real>(most);
    return static_cast<double>(total) < kInfinity ? outward_norm<Real>(static_cast<double>(largest), terms)
                                                  : kInfinity;
  }

 private:
  Real sums_[kRowBlock] = {};
};

}  // namespace detail

/// Rounding of an element of A (x - point): at most (d + 2) epsilon / 2 |a| |x - point|, a its row of A, so
/// of all of them |A|_F in the place of |a|. The sums and the root are off by (cuts + 4) epsilon / 2 of
/// themselves. Twice that is allowed.
template <class Real>
void RowBounds::extend(const RowSource<Real>& source) {
  using namespace simd;
  constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
  const Index d = source.d, m = measure_.axes.rows;
  const Index whole = rows_ / kRowBlock;
  norms_.resize(static_cast<std::size_t>(whole));
  distances_.resize(static_cast<std::size_t>(whole));
  reaches_.resize(static_cast<std::size_t>(whole * m));
  rows_ = source.count;
  const double axes_size = (static_cast<double>(d) + 3) * kEpsilon * norm(measure_.axes);
  const Index padded = round_up(m, kRowMultiple);
  std::vector<Real> columns(static_cast<std::size_t>(d * kRowBlock)),
      projected(static_cast<std::size_t>(padded * kRowBlock)), axes(static_cast<std::size_t>(padded * d));
  for (Index l = 0; l < m; ++l)
    for (Index c = 0; c < d; ++c)
      axes[static_cast<std::size_t>(l * d + c)] = static_cast<Real>(measure_.axes(l, c));
  detail::BlockSquares<Real> squares;
  for_each_block(source, whole * kRowBlock, measure_.rotation_matters(), [&](Range, const Real* rows) {
    transpose(rows, kRowBlock, d, d, columns.data(), kRowBlock);
    squares.clear();
    for (Index c = 0; c < d; ++c) squares.add(columns.data() + c * kRowBlock);
    norms_.push_back(squares.outward_root(d));
    if (measure_.point.empty()) {
      distances_.push_back(norms_.back());
    } else {
      squares.clear();
      for (Index c = 0; c < d; ++c) {
        Real* column = columns.data() + c * kRowBlock;
        const Vec<Real> centre = set(static_cast<Real>(measure_.point[static_cast<std::size_t>(c)]));
        for (Index i = 0; i < kRowBlock; i += kLanes<Real>)
          store<Real>(sub(load(column + i), centre), column + i);
        squares.add(column);
      }
      distances_.push_back(squares.outward_root(d));
    }
    if (m == 0) return;
    multiply<false, Real>(padded, kRowBlock, d, BroadcastOperand<Real>{axes.data(), d, 1}, columns.data(),
                          kRowBlock, projected.data(), kRowBlock);
    squares.clear();
    reaches_.resize(reaches_.size() + static_cast<std::size_t>(m));
    for (Index l = m; l-- > 0;) {
      squares.add(projected.data() + l * kRowBlock);
      reaches_[reaches_.size() - static_cast<std::size_t>(m - l)] =
          squares.outward_root(m) + axes_size * distances_.back();
    }
  });
}

}  // namespace fastrope::inline FASTROPE_TARGET
