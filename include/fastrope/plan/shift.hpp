// Shift: the centres that queries and keys are measured from, chosen so that their entries are small.
//
//     s q.k = s q.mu + s nu.(k - mu) + s (q - nu).(k - mu)
// for any mu and nu: the first term cancels in the softmax, the second is a weight of the key
// (projection.hpp). Means suit clouds with an offset, the centre of a small ball suits skewed ones, and
// vectors on a sphere are shortest as they are.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/points.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Where a shift comes from.
enum class Centre { none, mean, ball };

inline const char* name_of(Centre centre) {
  return centre == Centre::none ? "none" : centre == Centre::mean ? "mean" : "ball";
}

/// Where rows are measured from.
struct Shift {
  Centre centre = Centre::none;
  Point point = {};  ///< [d]
  double reach = 0;  ///< about the largest |x - point|

  /// The origin of d columns.
  static Shift none(Index d) { return {Centre::none, Point(static_cast<std::size_t>(d)), 0}; }
};

/// The centre of a ball around the points that is nearly the smallest.
///
/// Core sets (Badoiu & Clarkson 2003): the ball of a few points is found, the point farthest from its centre
/// joins them, until none is outside by more than 1 %. The ball of the few: their own algorithm, c += (p - c)
/// / i for p the farthest, which converges as 1 / i; c = sum_i w_i p_i, and |p_i - c|^2 follows from the dot
/// products p_i.p_j. The square of no radius around the few, and so around all, is below sum_i w_i |p_i|^2 -
/// |c|^2: the search ends where that shows that no ball is smaller than `enough`.
inline Point ball_centre(const Points& points, const Point& start, double enough) {
  constexpr Index kPasses = 16;
  constexpr int kSteps = 64;
  const Index d = points.rows;
  Matrix core(kPasses, d), products(kPasses, kPasses);  // p_i - start, and their dot products
  Point centre = start, best = start;
  double best_reach = std::numeric_limits<double>::infinity(), core_reach = 0;
  for (Index pass = 0; pass < kPasses; ++pass) {
    Index point = 0;
    const double reach = farthest(points, centre, point);
    if (reach < best_reach) {
      best_reach = reach;
      best = centre;
    }
    if (reach <= 1.01 * core_reach) break;
    const auto few = static_cast<std::size_t>(pass + 1);
    for (Index c = 0; c < d; ++c) core(pass, c) = points(c, point) - start[static_cast<std::size_t>(c)];
    for (Index i = 0; i <= pass; ++i) {
      double dot = 0;
      for (Index c = 0; c < d; ++c) dot += core(i, c) * core(pass, c);
      products(i, pass) = products(pass, i) = dot;
    }
    std::vector<double> weights(few, 1 / static_cast<double>(few)), dots(few);  // dots: p_i.c
    for (std::size_t i = 0; i < few; ++i)
      for (std::size_t j = 0; j < few; ++j)
        dots[i] += products(static_cast<Index>(i), static_cast<Index>(j)) * weights[j];
    const auto square_of = [&](std::size_t i) {
      return products(static_cast<Index>(i), static_cast<Index>(i));
    };
    for (int step = 1; step <= kSteps; ++step) {
      std::size_t far = 0;
      double size = 0;  // |c|^2
      for (std::size_t i = 0; i < few; ++i) {
        if (square_of(i) - 2 * dots[i] > square_of(far) - 2 * dots[far]) far = i;
        size += weights[i] * dots[i];
      }
      core_reach = std::sqrt(std::max(0.0, square_of(far) - 2 * dots[far] + size));
      const double part = 1.0 / (step + 1);
      for (std::size_t i = 0; i < few; ++i) {
        weights[i] = (1 - part) * weights[i] + (i == far ? part : 0);
        dots[i] = (1 - part) * dots[i] + part * products(static_cast<Index>(i), static_cast<Index>(far));
      }
    }
    double least = 0;
    for (std::size_t i = 0; i < few; ++i) least += weights[i] * (square_of(i) - dots[i]);
    if (least >= enough * enough) break;
    for (Index c = 0; c < d; ++c) {
      double sum = start[static_cast<std::size_t>(c)];
      for (std::size_t i = 0; i < few; ++i) sum += weights[i] * core(static_cast<Index>(i), c);
      centre[static_cast<std::size_t>(c)] = sum;
    }
  }
  return best;
}

/// The centre from which a sample's points reach least: the origin, or if it may be moved, their mean or the
/// centre of a ball.
inline Shift choose_shift(const Points& points, bool may_move) {
  // A shift must bring the points this much nearer to be worth its rounding, and more than a sample's
  // accident.
  constexpr double kWorthwhile = 0.9;
  Index farthest_point = 0;
  Shift best = Shift::none(points.rows);
  best.reach = farthest(points, best.point, farthest_point);
  const auto consider = [&](Centre centre, const Point& point) {
    const double reach = farthest(points, point, farthest_point);
    if (reach < kWorthwhile * best.reach) best = {centre, point, reach};
  };
  if (!may_move || points.cols == 0) return best;
  const Point middle = mean(points);
  consider(Centre::mean, middle);
  consider(Centre::ball, ball_centre(points, middle, kWorthwhile * best.reach));
  return best;
}

}  // namespace fastrope::inline FASTROPE_TARGET
