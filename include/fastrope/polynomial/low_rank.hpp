// LowRankFit: what the polynomial path would do for the query heads that share a key head's features, and how
// well: shifts and axes of the rows, a polynomial, its monomials, and the certificate of it all.
//
//     rows -> shift (projection.hpp) -> axes -> polynomial -> index set -> certificate
// Every step is exact or certified, and taken only where it makes the rank smaller.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/executor.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/polynomial/axes.hpp"
#include "fastrope/polynomial/certificate.hpp"
#include "fastrope/polynomial/exp_polynomial.hpp"
#include "fastrope/polynomial/far_field.hpp"
#include "fastrope/polynomial/index_set.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/polynomial/point_set.hpp"
#include "fastrope/polynomial/projection.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/polynomial/shift.hpp"

namespace fastrope {

/// Steps that may be taken.
struct LowRankSteps {
  bool shift = true;       ///< of keys and queries
  bool axes = true;        ///< other axes than the rows' own, and index sets smaller than the simplex
  bool near_field = true;  ///< only pairs that are approximated count
};

/// What a fit is asked for.
struct LowRankRequest {
  double scale = 1;         ///< s
  double value_spread = 1;  ///< half of the largest range of a column of V, over max|V|
  double tolerance = 0;     ///< of the output, relative to max|V|
  Index d_v = 0;
  bool may_weigh_keys = true;  ///< a query shift needs a weight for each key
  LowRankSteps steps = {};
};

struct LowRankFit {
  Projection projection;     ///< with the axes of the variables that are kept
  ExpPolynomial polynomial;  ///< for entries up to radius
  std::vector<int> limits;   ///< [projection.variables()], all > 0
  double radius;             ///< bounds |x| |y| for every pair that is approximated
  double plain_radius;       ///< bounds |s| |q| |k| for all rows, no step taken
  double rank;               ///< of the limits
  double simplex_rank;       ///< of all monomials, in the rows' own axes, at the degree that they need
  Centre key_shift;
  Centre query_shift;
  Certificate certificate;
  double rounding;  ///< rounding_estimate
};

/// Plans the query heads `queries` over `keys`, [n, d] each, rotated, their elements finite. `far`: ascending
/// rows, far nondecreasing. Ensures certificate.error_bound + rounding <= tolerance and rank <= kMaxRank;
/// without a fit, `reason` says why, with figures.
/// Cost: about 6 passes over each side, of O(n d), one of O(n d^2) where other axes pay, and up to 7
/// polynomials.
template <class Real>
std::optional<LowRankFit> fit_low_rank(std::span<const Rows<Real>> queries, const Rows<Real>& keys,
                                       std::span<const FarPairs> far, const LowRankRequest& request,
                                       std::string& reason);

namespace detail {

/// The search for the fit of one request: first the shift with the smallest radius, then the axes, degree and
/// index set with the smallest rank.
template <class Real>
class LowRankSearch {
 public:
  LowRankSearch(std::span<const Rows<Real>> queries, const Rows<Real>& keys, std::span<const FarPairs> far,
                const LowRankRequest& request)
      : request_(request),
        scale_(std::abs(request.scale)),
        d_(keys.cols()),
        field_(far_field(queries, keys, far)) {
    if (!request.steps.near_field && !field_.empty()) field_.steps = {{field_.queries, field_.keys}};
    query_sample_ = sample(field_.queries, d_, kSample);
    key_sample_ = sample(field_.keys, d_, kSample);
    const Point<Real> origin = Point<Real>::Zero(d_);
    plain_radius_ = scale_ * reach(field_.queries, origin) * reach(field_.keys, origin) * (1 + 16 * kEpsilon);
  }

  /// Without a fit, reason() says why.
  std::optional<LowRankFit> fit() {
    shifts_ = choose_shifts(field_, query_sample_, key_sample_, request_.scale, request_.steps.shift,
                            request_.may_weigh_keys);
    shifted_radius_ = with_allowance(shifts_.product, 1);
    mean_entry_ = lowest_mean_entry();
    // In the rows' own axes nothing is known of later variables: all couplings are the radius.
    try_axes(identity_axes(d_), std::vector<double>(static_cast<std::size_t>(d_), shifted_radius_));
    if (!request_.steps.axes || field_.empty() || d_ < 2) return best_;
    // A sample tells which axes deserve a look at all rows.
    const Eigen::MatrixXd query_moments = second_moments(query_sample_, shifts_.queries.point);
    const Eigen::MatrixXd key_moments = second_moments(key_sample_, shifts_.keys.point);
    if (fills_space(query_moments) && fills_space(key_moments)) return best_;
    std::optional<Axes> best;
    double least = kWorthwhileRank * (best_ ? best_->rank : std::numeric_limits<double>::infinity());
    for (const Axes& axes :
         {principal_axes(query_moments, key_moments), balanced_axes(query_moments, key_moments)}) {
      const std::vector<double> couplings = sampled_couplings(axes);
      if (couplings.back() > kNarrow * couplings.front() && couplings.front() > kNarrow * shifted_radius_)
        continue;
      const double rank = promised_rank(couplings);
      if (!(rank < least)) continue;
      least = rank;
      best = axes;
    }
    if (best) try_axes(*best, couplings(*best));
    return best_;
  }

  const std::string& reason() const { return reason_; }

 private:
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
  static constexpr double kDouble = std::numeric_limits<double>::epsilon();
  /// Other axes must make the rank this much smaller to be worth their pass over all rows.
  static constexpr double kWorthwhileRank = 0.95;
  /// They can hardly do that if even their last variable reaches farther than this share of the radius.
  static constexpr double kNarrow = 0.6;
  static constexpr Index kSample = 1024;  // rows
  /// Moments that spread over this share of all directions, (tr M)^2 / |M|_F^2 of d, leave no axis that is
  /// worth an eigenvalue problem.
  static constexpr double kFilled = 0.7;

  bool fills_space(const Eigen::MatrixXd& moments) const {
    const double trace = moments.trace();
    return trace * trace >= kFilled * static_cast<double>(d_) * moments.squaredNorm();
  }

  /// |s| times a bound of |x| |y|. Rotation, conversion and the shifts round each row by a few epsilon of its
  /// own length, which axes lengthen: `stretch` times for both sides.
  double with_allowance(double product, double stretch) const {
    if (field_.empty()) return 0;
    return scale_ * product * (1 + 8 * kEpsilon) + 8 * kEpsilon * plain_radius_ * stretch;
  }

  /// The least mean, over the keys of a row that are approximated, of its entries (weighted as they are): an
  /// estimate, at least -R.
  double lowest_mean_entry() const {
    Point<double> sum = Point<double>::Zero(d_);
    const Point<Real> slope = static_cast<Real>(request_.scale) * shifts_.queries.point;
    double weight = 0, lowest = 0;
    Eigen::Array<Real, Eigen::Dynamic, 1> weights, entries;
    for (const FarStep<Real>& step : field_.steps) {
      for_each_block(step.keys, [&](const auto& block) {
        products_with(block, shifts_.keys.point, slope, weights);
        weights = (weights - static_cast<Real>(shifts_.weight_max)).exp();
        const Real total = weights.sum();
        weight += static_cast<double>(total);
        for (Index c = 0; c < d_; ++c)
          sum(c) +=
              static_cast<double>((block.col(c).array() * weights).sum() - shifts_.keys.point(c) * total);
      });
      const Point<Real> mean_key = (request_.scale / weight * sum).template cast<Real>();
      for_each_block(step.queries, [&](const auto& block) {
        products_with(block, shifts_.queries.point, mean_key, entries);
        lowest = std::min(lowest, static_cast<double>(entries.minCoeff()));
      });
    }
    return std::max(lowest, -shifted_radius_);
  }

  /// [variables], in the given axes.
  std::vector<double> couplings(const Axes& axes) const {
    const auto reaches = [&](PointSet<Real> FarStep<Real>::*side, const Shift<Real>& shift,
                             const Eigen::MatrixXd& of_side) {
      const Rows<Real> rounded = of_side.cast<Real>();
      std::vector<std::vector<double>> list;
      for (std::size_t b = 0; b < field_.steps.size(); ++b)
        list.push_back(
            projected_reaches(field_.steps[b].*side, shift.point, shift.reaches[b].front(), rounded));
      return list;
    };
    std::vector<double> products = largest_products(
        reaches(&FarStep<Real>::queries, shifts_.queries, axes.queries),
        reaches(&FarStep<Real>::keys, shifts_.keys, axes.keys), static_cast<std::size_t>(d_));
    for (double& product : products)
      product = with_allowance(product, axes.queries.norm() * axes.keys.norm());
    return products;
  }

  /// About what couplings() would give, from the sample.
  std::vector<double> sampled_couplings(const Axes& axes) const {
    const auto reaches = [](const Rows<Real>& some, const Shift<Real>& shift,
                            const Eigen::MatrixXd& of_side) {
      return projected_reaches<Real>({rows_in(some, {0, some.rows()})}, shift.point, 0, of_side.cast<Real>());
    };
    std::vector<double> products = reaches(query_sample_, shifts_.queries, axes.queries);
    const std::vector<double> keys = reaches(key_sample_, shifts_.keys, axes.keys);
    for (std::size_t l = 0; l < products.size(); ++l) products[l] *= scale_ * keys[l];
    return products;
  }

  /// About the rank that axes with these couplings will have; infinity where none will do.
  double promised_rank(std::span<const double> couplings) const {
    const double allowed = allowed_relative_error(request_.tolerance, request_.value_spread);
    try {
      const auto lowest = ExpPolynomial::fit(couplings.front(), allowed / 2);
      return rank_of(choose_limits(tail_losses(TailBound(lowest), couplings, couplings.size()),
                                   allowed - lowest.relative_error()));
    } catch (const Error&) {
      return std::numeric_limits<double>::infinity();
    }
  }

  /// Room for the rounding of the budgets themselves.
  static constexpr double kBudgetShare = 1 - 1e-6;

  /// The candidates with these axes: degrees from the lowest whose polynomial is good enough on, until two
  /// have been feasible, as a higher degree leaves more of the tolerance to the tail.
  void try_axes(const Axes& exact, std::span<const double> couplings) {
    const Axes axes = balanced_in_size(exact);
    const Eigen::MatrixXd &b = axes.queries, &c = axes.keys;
    const Eigen::MatrixXd missed = b.transpose() * c - Eigen::MatrixXd::Identity(d_, d_);
    const double axes_error =
        shifted_radius_ * (missed.norm() + static_cast<double>(d_ + 2) * kDouble * b.norm() * c.norm());

    const double tolerance = request_.tolerance, radius = couplings.empty() ? 0 : couplings.front();
    std::optional<ExpPolynomial> polynomial;
    try {
      polynomial = ExpPolynomial::fit(radius, allowed_relative_error(tolerance, request_.value_spread));
    } catch (const Error& error) {
      refuse(error.what());
      return;
    }
    const int lowest = polynomial->degree(), highest = std::min(lowest + 3, ExpPolynomial::kMaxDegree);
    for (int feasible = 0, degree = lowest; degree <= highest && feasible < 2; ++degree) {
      if (degree > lowest) polynomial = ExpPolynomial::minimax(radius, degree);
      const double rounding = rounding_estimate(*polynomial, radius, mean_entry_, plain_radius_,
                                                field_.keys.front().rows, kEpsilon);
      if (rounding >= tolerance) {
        refuse(message("rounding alone is about ", rounding, " at degree ", degree, " (entries up to ",
                       radius, ", ", plain_radius_, " before any shift)"));
        return;
      }
      const double allowed = allowed_relative_error(tolerance - rounding, request_.value_spread);
      const double left = (1 + allowed) * std::exp(-axes_error) - 1 - polynomial->relative_error();
      if (!(left > 0)) {
        refuse(message("entries up to ", radius, " are off by ", polynomial->relative_error(), " at degree ",
                       degree, " and by ", axes_error, " from rounded axes"));
        continue;
      }
      ++feasible;
      consider(*polynomial, axes, couplings, axes_error, left * kBudgetShare, rounding);
    }
  }

  /// Rounds the axes to Real and scales them by a power of two, which rounds nothing more, so that x and y
  /// are of about the same size: the sum of |c_p x^alpha y^alpha| stays within the range of Real as long as
  /// each side does.
  Axes balanced_in_size(const Axes& axes) const {
    double q = 0, k = 0;
    for (const auto& reaches : shifts_.queries.reaches) q = std::max(q, reaches.front());
    for (const auto& reaches : shifts_.keys.reaches) k = std::max(k, reaches.front());
    const double x = scale_ * q * axes.queries.norm(), y = k * axes.keys.norm();
    const double factor = x > 0 && y > 0 ? std::exp2(std::round(std::log2(y / x) / 2)) : 1;
    return {axes.queries.cast<Real>().template cast<double>() * factor,
            axes.keys.cast<Real>().template cast<double>() / factor};
  }

  /// Keeps the candidate if its rank is the smallest so far and its certificate holds.
  void consider(const ExpPolynomial& polynomial, const Axes& axes, std::span<const double> couplings,
                double axes_error, double tail_budget, double rounding) {
    const std::vector<int> simplex = simplex_limits(d_, polynomial.degree());
    if (simplex_rank_ == 0) simplex_rank_ = rank_of(simplex);
    std::vector<int> limits = simplex;
    if (request_.steps.axes)
      limits = choose_limits(tail_losses(TailBound(polynomial), couplings, limits.size()), tail_budget);
    const double rank = rank_of(limits);
    if (best_ && rank >= best_->rank) return;
    const Index variables = std::count_if(limits.begin(), limits.end(), [](int limit) { return limit > 0; });
    if (rank > static_cast<double>(kMaxRank)) {
      if (rank >= refused_rank_) return;
      refused_rank_ = rank;
      reason_ = message("degree ", polynomial.degree(), " in ", variables, " variables has rank ", rank,
                        ", above ", kMaxRank, ": a state of ",
                        rank * static_cast<double>(request_.d_v + 1) * sizeof(Real), " bytes");
      return;
    }
    const Certificate certificate = certify(polynomial, limits, couplings, axes_error, request_.value_spread);
    if (!(certificate.error_bound + rounding <= request_.tolerance)) {
      refuse(message("the certified error ", certificate.error_bound, " and rounding, about ", rounding,
                     ", exceed the tolerance at degree ", polynomial.degree()));
      return;
    }
    limits.resize(static_cast<std::size_t>(variables));
    best_ = LowRankFit{.projection = projection(axes, variables),
                       .polynomial = polynomial,
                       .limits = std::move(limits),
                       .radius = polynomial.radius(),
                       .plain_radius = plain_radius_,
                       .rank = rank,
                       .simplex_rank = simplex_rank_,
                       .key_shift = shifts_.keys.centre,
                       .query_shift = shifts_.queries.centre,
                       .certificate = certificate,
                       .rounding = rounding};
  }

  Projection projection(const Axes& axes, Index variables) const {
    const auto numbers = [](const auto& matrix) {  // row by row
      std::vector<double> list;
      for (Index l = 0; l < matrix.rows(); ++l)
        for (Index c = 0; c < matrix.cols(); ++c) list.push_back(static_cast<double>(matrix(l, c)));
      return list;
    };
    return {.key_shift = numbers(shifts_.keys.point),
            .query_shift = numbers(shifts_.queries.point),
            .weight_max = shifts_.weight_max,
            .key_axes = numbers(axes.keys.topRows(variables)),
            .query_axes = numbers(axes.queries.topRows(variables))};
  }

  /// The first reason stands, unless it is that ranks are too large: then the smallest of them.
  void refuse(std::string why) {
    if (reason_.empty()) reason_ = std::move(why);
  }

  LowRankRequest request_;
  double scale_;
  Index d_;
  FarField<Real> field_;
  Rows<Real> query_sample_ = {};
  Rows<Real> key_sample_ = {};
  double plain_radius_ = 0;
  Shifts<Real> shifts_ = {};
  double shifted_radius_ = 0;
  double mean_entry_ = 0;
  double simplex_rank_ = 0;
  double refused_rank_ = std::numeric_limits<double>::infinity();
  std::string reason_ = {};
  std::optional<LowRankFit> best_ = {};
};

}  // namespace detail

template <class Real>
std::optional<LowRankFit> fit_low_rank(std::span<const Rows<Real>> queries, const Rows<Real>& keys,
                                       std::span<const FarPairs> far, const LowRankRequest& request,
                                       std::string& reason) {
  [[maybe_unused]] const OwnThread own_thread;
  detail::LowRankSearch<Real> search(queries, keys, far, request);
  std::optional<LowRankFit> fit = search.fit();
  reason = fit ? std::string() : search.reason();
  return fit;
}

}  // namespace fastrope
