// Shift: the centres that queries and keys are measured from, chosen so that their entries are small.
//
//     s q.k = s q.mu + s nu.(k - mu) + s (q - nu).(k - mu)
// for any mu and nu: the first term cancels in the softmax, the second is a weight of the key
// (projection.hpp). Means suit clouds with an offset, the centre of a small ball suits skewed ones, and
// vectors on a sphere are shortest as they are.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/polynomial/far_field.hpp"
#include "fastrope/polynomial/point_set.hpp"

namespace fastrope {

/// Where a shift comes from.
enum class Centre { none, mean, ball };

inline const char* name_of(Centre centre) {
  return centre == Centre::none ? "none" : centre == Centre::mean ? "mean" : "ball";
}

/// The shift of one side.
template <class Real>
struct Shift {
  Centre centre = Centre::none;
  Point<Real> point = {};
  std::vector<std::vector<double>> reaches = {};  ///< [steps of the far field][1], about the point
};

template <class Real>
struct Shifts {
  Shift<Real> queries = {};  ///< nu
  Shift<Real> keys = {};     ///< mu
  double product = 0;        ///< at least |q - nu| |k - mu| for all pairs that are approximated
  double weight_max = 0;     ///< at least |s| |nu| |k - mu| for all keys
};

namespace detail {

/// None, and if other shifts may be tried, the mean and the centre of a ball of `some` rows.
template <class Real>
std::vector<Shift<Real>> possible_shifts(const FarField<Real>& field, const Rows<Real>& some,
                                         PointSet<Real> FarStep<Real>::*side, bool may_shift) {
  std::vector<Shift<Real>> list{{Centre::none, Point<Real>::Zero(some.cols()), {}}};
  if (may_shift && !field.empty()) {
    list.push_back({Centre::mean, mean(some), {}});
    list.push_back({Centre::ball, ball_centre(some, list.back().point), {}});
  }
  for (Shift<Real>& s : list)
    for (const FarStep<Real>& step : field.steps) s.reaches.push_back({reach(step.*side, s.point)});
  return list;
}

}  // namespace detail

/// The pair of shifts with the smallest product. Centres are those of samples of both sides; queries are only
/// shifted if keys may be weighed, and weights then stay within e^-60 of each other.
/// Cost: 6 passes over each side.
template <class Real>
Shifts<Real> choose_shifts(const FarField<Real>& field, const Rows<Real>& query_sample,
                           const Rows<Real>& key_sample, double scale, bool may_shift, bool may_weigh_keys) {
  constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
  constexpr double kMaxWeightExponent = 30;
  // A shift must make the product this much smaller to be worth its rounding.
  constexpr double kWorthwhile = 0.99;
  const auto of_queries = detail::possible_shifts(field, query_sample, &FarStep<Real>::queries, may_shift);
  Shifts<Real> best;
  for (const Shift<Real>& k : detail::possible_shifts(field, key_sample, &FarStep<Real>::keys, may_shift)) {
    const double key_reach = reach(field.keys, k.point);
    for (const Shift<Real>& q : of_queries) {
      const double exponent =
          std::abs(scale) * static_cast<double>(q.point.norm()) * key_reach * (1 + 8 * kEpsilon);
      if (q.centre != Centre::none && !(may_weigh_keys && exponent <= kMaxWeightExponent)) continue;
      const double product = largest_products(q.reaches, k.reaches, 1).front();
      const bool none = q.centre == Centre::none && k.centre == Centre::none;
      if (none || product < kWorthwhile * best.product) best = {q, k, product, exponent};
    }
  }
  return best;
}

}  // namespace fastrope
