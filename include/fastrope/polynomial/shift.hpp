// Shift: the centres that queries and keys are measured from, chosen so that their entries are small.
//
//     s q.k = s q.mu + s nu.(k - mu) + s (q - nu).(k - mu)
// for any mu and nu: the first term cancels in the softmax, the second is a weight of the key
// (projection.hpp). Means suit clouds with an offset, the centre of a small ball suits skewed ones, and
// vectors on a sphere are shortest as they are.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/polynomial/rows.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Where a shift comes from.
enum class Centre { none, mean, ball };

inline const char* name_of(Centre centre) {
  return centre == Centre::none ? "none" : centre == Centre::mean ? "mean" : "ball";
}

/// Where rows are measured from.
template <class Real>
struct Shift {
  Centre centre = Centre::none;
  Point<Real> point = {};  ///< [d]
  double reach = 0;        ///< about the largest |x - point|
};

/// About the largest distance from `centre`, and the row that is so far.
template <class Real>
double farthest(const Rows<Real>& rows, const Point<Real>& centre, Index& row) {
  Eigen::Array<Real, Eigen::Dynamic, 1> squares = Eigen::Array<Real, Eigen::Dynamic, 1>::Zero(rows.rows());
  for (Index c = 0; c < rows.cols(); ++c) squares += (rows.col(c).array() - centre(c)).square();
  row = 0;
  return rows.rows() == 0 ? 0 : std::sqrt(static_cast<double>(squares.maxCoeff(&row)));
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
/// / i for p the farthest, which converges as 1 / i; c = sum_i w_i p_i, and |p_i - c|^2 follows from the dot
/// products p_i.p_j. The square of no radius around the few, and so around all, is below sum_i w_i |p_i|^2 -
/// |c|^2: the search ends where that shows that no ball is smaller than `enough`.
template <class Real>
Point<Real> ball_centre(const Rows<Real>& rows, const Point<Real>& start, double enough) {
  constexpr Index kPasses = 16;
  constexpr int kSteps = 64;
  Rows<double> core(kPasses, rows.cols());
  Eigen::MatrixXd products(kPasses, kPasses);
  Point<Real> centre = start, best = start;
  double best_reach = std::numeric_limits<double>::infinity(), core_reach = 0;
  for (Index pass = 0; pass < kPasses; ++pass) {
    Index row = 0;
    const double reach = farthest(rows, centre, row);
    if (reach < best_reach) {
      best_reach = reach;
      best = centre;
    }
    if (reach <= 1.01 * core_reach) break;
    core.row(pass) = (rows.row(row) - start).template cast<double>();
    const auto few = core.topRows(pass + 1);
    products.row(pass).head(pass + 1) = few * core.row(pass).transpose();
    products.col(pass).head(pass) = products.row(pass).head(pass).transpose();
    const auto gram = products.topLeftCorner(pass + 1, pass + 1);
    Eigen::VectorXd weights = Eigen::VectorXd::Constant(pass + 1, 1 / static_cast<double>(pass + 1));
    Eigen::VectorXd dots = gram * weights;  // p_i.c, kept up to date
    for (int step = 1; step <= kSteps; ++step) {
      Index i = 0;
      const double square = (gram.diagonal() - 2 * dots).maxCoeff(&i) + weights.dot(dots);
      core_reach = std::sqrt(std::max(0.0, square));
      const double part = 1.0 / (step + 1);
      weights *= 1 - part;
      weights(i) += part;
      dots = (1 - part) * dots + part * gram.col(i);
    }
    if (weights.dot(gram.diagonal() - dots) >= enough * enough) break;
    centre = start + Point<Real>((weights.transpose() * few).template cast<Real>());
  }
  return best;
}

/// The centre from which a sample's rows reach least: the origin, or if it may be moved, their mean or the
/// centre of a ball.
template <class Real>
Shift<Real> choose_shift(const Rows<Real>& rows, bool may_move) {
  // A shift must bring the rows this much nearer to be worth its rounding, and more than a sample's accident.
  constexpr double kWorthwhile = 0.9;
  Index farthest_row = 0;
  Shift<Real> best{Centre::none, Point<Real>::Zero(rows.cols()), 0};
  best.reach = farthest(rows, best.point, farthest_row);
  const auto consider = [&](Centre centre, const Point<Real>& point) {
    const double reach = farthest(rows, point, farthest_row);
    if (reach < kWorthwhile * best.reach) best = {centre, point, reach};
  };
  if (!may_move || rows.rows() == 0) return best;
  const Point<Real> middle = mean(rows);
  consider(Centre::mean, middle);
  consider(Centre::ball, ball_centre(rows, middle, kWorthwhile * best.reach));
  return best;
}

}  // namespace fastrope::inline FASTROPE_TARGET
