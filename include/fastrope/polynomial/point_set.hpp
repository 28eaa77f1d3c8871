// The geometry of rotated rows that planning looks at: where they are, how far they reach, along which axes.
//
// Rows stay in Real and are read in blocks, so that temporaries are O(block d). What only helps to choose
// (means, balls, moments) is computed as it comes; what a certificate rests on (reaches) is bounded outward.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fastrope/core/index.hpp"

namespace fastrope {

/// [n, d], a row a point, stored column by column, so that rows are vector lanes.
template <class Real>
using Rows = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic>;

/// [d].
template <class Real>
using Point = Eigen::Matrix<Real, 1, Eigen::Dynamic>;

/// Some rows of a matrix: a view.
template <class Real>
struct PointsView {
  const Real* data;
  Index rows, cols, col_stride;

  Eigen::Map<const Rows<Real>, Eigen::Unaligned, Eigen::OuterStride<>> slice(Index begin, Index count) const {
    return {data + begin, count, cols, Eigen::OuterStride<>(col_stride)};
  }
};

/// Points of several matrices of d columns.
template <class Real>
using PointSet = std::vector<PointsView<Real>>;

template <class Real>
PointsView<Real> rows_in(const Rows<Real>& x, Range range) {
  return {x.data() + range.begin, range.size(), x.cols(), x.rows()};
}

/// At least the norm of which `square` is the computed square, a sum of d squares that may each have been
/// off by an epsilon or have underflowed; their elements too were rounded.
template <class Real>
double outward_norm(double square, Index d) {
  const double size = static_cast<double>(d + 4);
  return std::sqrt(square + size * static_cast<double>(std::numeric_limits<Real>::min())) *
         (1 + size * static_cast<double>(std::numeric_limits<Real>::epsilon()));
}

namespace detail {

/// visit(rows [<= 256, d]) for all of the set.
template <class Real, class Visit>
void for_each_block(const PointSet<Real>& set, Visit&& visit) {
  constexpr Index kBlock = 256;
  for (const auto& x : set)
    for (Index i = 0; i < x.rows; i += kBlock) visit(x.slice(i, std::min(kBlock, x.rows - i)));
}

/// products = (rows - centre) direction^T, column by column.
template <class Real, class Block>
void products_with(const Block& rows, const Point<Real>& centre, const Point<Real>& direction,
                   Eigen::Array<Real, Eigen::Dynamic, 1>& products) {
  products.setZero(rows.rows());
  for (Index c = 0; c < rows.cols(); ++c) products += (rows.col(c).array() - centre(c)) * direction(c);
}

/// The row that is farthest from `centre`, and its distance; the centre itself for an empty set.
template <class Real>
double farthest(const PointSet<Real>& set, const Point<Real>& centre, Point<Real>& row) {
  Real largest = 0;
  row = centre;
  Eigen::Array<Real, Eigen::Dynamic, 1> squares;
  for_each_block(set, [&](const auto& block) {
    squares.setZero(block.rows());
    for (Index c = 0; c < block.cols(); ++c) squares += (block.col(c).array() - centre(c)).square();
    const Real square = squares.maxCoeff();
    if (!(square > largest)) return;
    largest = square;
    Index i = 0;
    squares.maxCoeff(&i);
    row = block.row(i);
  });
  return std::sqrt(static_cast<double>(largest));
}

}  // namespace detail

/// At most about `count` rows of the set, evenly spread, and those farthest from the origin: for choices that
/// need no proof.
template <class Real>
Rows<Real> sample(const PointSet<Real>& set, Index d, Index count) {
  Index total = 0;
  for (const auto& x : set) total += x.rows;
  const Index stride = ceil_div(std::max<Index>(total, 1), count);
  Rows<Real> rows(ceil_div(total, stride) + 2 * static_cast<Index>(set.size()), d);
  Index used = 0;
  Point<Real> outlier;
  for (const auto& x : set) {
    for (Index i = 0; i < x.rows; i += stride) rows.row(used++) = x.slice(i, 1);
    detail::farthest<Real>({x}, Point<Real>::Zero(d), outlier);
    rows.row(used++) = outlier;
  }
  rows.conservativeResize(used, d);
  return rows;
}

/// The mean; 0 for no rows.
template <class Real>
Point<Real> mean(const Rows<Real>& rows) {
  if (rows.rows() == 0) return Point<Real>::Zero(rows.cols());
  return rows.colwise().mean();
}

/// The centre of a ball around the rows that is nearly the smallest.
///
/// Core sets (Badoiu & Clarkson 2003): the ball of a few rows is found, the row farthest from its centre
/// joins them, until none is outside by more than 1 %. The ball of the few: their own algorithm, c += (p - c)
/// / i for p the farthest, which converges as 1 / i.
template <class Real>
Point<Real> ball_centre(const Rows<Real>& rows, const Point<Real>& start) {
  constexpr int kPasses = 16, kSteps = 64;
  const PointSet<Real> set{rows_in(rows, {0, rows.rows()})};
  Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> core(kPasses, start.cols());
  Point<double> centre = start.template cast<double>();
  Point<Real> best = start, row;
  double best_reach = std::numeric_limits<double>::infinity(), core_reach = 0;
  for (Index pass = 0; pass < kPasses; ++pass) {
    const Point<Real> candidate = centre.template cast<Real>();
    const double reach = detail::farthest(set, candidate, row);
    if (reach < best_reach) {
      best_reach = reach;
      best = candidate;
    }
    if (reach <= 1.01 * core_reach) break;
    core.row(pass) = row.template cast<double>();
    const auto few = core.topRows(pass + 1);
    centre = few.colwise().mean();
    for (int step = 1; step <= kSteps; ++step) {
      Index i = 0;
      core_reach = std::sqrt((few.rowwise() - centre).rowwise().squaredNorm().maxCoeff(&i));
      centre += (few.row(i) - centre) / (step + 1);
    }
  }
  return best;
}

/// sum_i (x_i - centre)^T (x_i - centre) / n, [d, d]; 0 for no rows.
template <class Real>
Eigen::MatrixXd second_moments(const Rows<Real>& rows, const Point<Real>& centre) {
  const Rows<Real> centred = rows.rowwise() - centre;
  const Rows<Real> sum = centred.transpose() * centred;
  return sum.template cast<double>() / static_cast<double>(std::max<Index>(1, rows.rows()));
}

/// At least max_i |x_i - centre|_2 of the exact differences.
/// Rounding: (d + 4) epsilon / 2 for the differences, their squares, the sum and the root; twice that is
/// allowed.
template <class Real>
double reach(const PointSet<Real>& set, const Point<Real>& centre) {
  Point<Real> row;
  const double distance = detail::farthest(set, centre, row);
  return outward_norm<Real>(distance * distance, centre.cols());
}

/// [m]: element l is at least max_i |(A (x_i - centre))[l..]|_2 of exact arithmetic. axes: A, [m, d];
/// centre_reach: at least max_i |x_i - centre|_2.
///
/// Rounding: an element of A (x - centre) is off by at most (d + 2) epsilon / 2 |a| |x - centre|, a its row
/// of A, so all of them by |A|_F in the place of |a|. The sums and the root are off by (m + 4) epsilon / 2 of
/// themselves. Twice that is allowed.
/// Cost: O(n d m), a matrix product.
template <class Real>
std::vector<double> projected_reaches(const PointSet<Real>& set, const Point<Real>& centre,
                                      double centre_reach, const Rows<Real>& axes) {
  constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
  const Index m = axes.rows(), d = axes.cols();
  std::vector<Real> largest(static_cast<std::size_t>(m));
  Rows<Real> centred, projected;
  Eigen::Array<Real, Eigen::Dynamic, 1> squares;
  detail::for_each_block(set, [&](const auto& block) {
    centred = block.rowwise() - centre;
    projected.noalias() = centred * axes.transpose();
    squares = Eigen::Array<Real, Eigen::Dynamic, 1>::Zero(block.rows());
    for (Index l = m; l-- > 0;) {
      squares += projected.col(l).array().square();
      Real& of_cut = largest[static_cast<std::size_t>(l)];
      of_cut = std::max(of_cut, squares.maxCoeff());
    }
  });
  const double slack =
      static_cast<double>(d + 3) * kEpsilon * static_cast<double>(axes.norm()) * centre_reach;
  std::vector<double> reaches;
  for (const Real square : largest)
    reaches.push_back(outward_norm<Real>(static_cast<double>(square), m) + slack);
  return reaches;
}

}  // namespace fastrope
