// ProjectionChoice: from where and along which axes rows would be measured, judged from samples of them.
//
//     a few rows -> is any approximation worth more of a look? -> more rows -> shifts -> axes
// Nothing here needs proof: any choice is exact (projection.hpp), and what it achieves is measured on all
// rows before it is used (low_rank.hpp). Each step is taken only if the one before leaves hope.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/polynomial/axes.hpp"
#include "fastrope/polynomial/certificate.hpp"
#include "fastrope/polynomial/exp_polynomial.hpp"
#include "fastrope/polynomial/far_field.hpp"
#include "fastrope/polynomial/index_set.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/polynomial/row_bounds.hpp"
#include "fastrope/polynomial/rows.hpp"
#include "fastrope/polynomial/shift.hpp"

namespace fastrope::inline FASTROPE_TARGET {

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
  double factor_error = 0;     ///< relative, of factors of the lag beside the entries
  /// What rounding does to keys that are computed exactly, beside those of features.
  std::function<ExactRounding(const LogitSizes&)> exact = [](const LogitSizes&) { return ExactRounding{}; };
  LowRankSteps steps = {};
  /// Whether features of this rank would be cheaper than what else there is.
  std::function<bool(double rank)> pays = [](double) { return true; };
};

/// The query heads that share a key head's features, and the pairs that are approximated. far: ascending
/// rows, far nondecreasing. What it names must outlive it.
template <class Real>
struct LowRankRows {
  std::span<const RowSource<Real>> queries;
  const RowSource<Real>* keys;
  std::span<const FarPairs> far;
  const Shift<Real>* key_shift = nullptr;  ///< where the keys are to be measured from, if that is settled
};

template <class Real>
struct ProjectionChoice {
  Shift<Real> queries = {};  ///< nu; may be other than the origin only where keys may be weighed
  Shift<Real> keys = {};     ///< mu
  Axes axes = {};            ///< empty: the rows' own
  double mean_key = 0;       ///< about the length of the mean of k - mu, weighted

  bool own_axes() const { return axes.keys.size() == 0; }
  Measure<Real> of_queries() const { return measure(queries, axes.queries); }
  Measure<Real> of_keys() const { return measure(keys, axes.keys); }

 private:
  static Measure<Real> measure(const Shift<Real>& shift, const Eigen::MatrixXd& axes) {
    return {shift.centre == Centre::none ? Point<Real>() : shift.point, axes.cast<Real>()};
  }
};

/// Weights of keys stay within e^-60 of each other.
inline constexpr double kMaxWeightExponent = 30;

namespace detail {

template <class Real>
class ProjectionSearch {
 public:
  ProjectionSearch(const LowRankRows<Real>& rows, const LowRankRequest& request, std::string& reason)
      : rows_(rows),
        request_(request),
        reason_(reason),
        scale_(std::abs(request.scale)),
        d_(rows.keys->d),
        allowed_(allowed_relative_error(request.tolerance, request.value_spread)),
        field_(request.steps.near_field ? far_field(rows.far) : whole_field(rows)) {}

  std::optional<ProjectionChoice<Real>> choose() {
    ProjectionChoice<Real> choice;
    choice.queries = choice.keys = {Centre::none, Point<Real>::Zero(d_), 0};
    if (field_.empty() || d_ == 0) return choice;
    if (!hopeful()) return std::nullopt;

    const auto many = [](Range rows) { return std::clamp(rows.size() / kShare, kFewRows, kManyRows); };
    const Rows<Real> queries = sample_queries(field_.queries, many(field_.queries)),
                     keys = sample(*rows_.keys, field_.keys, many(field_.keys));
    choice.keys = choose_shift(keys, request_.steps.shift && rows_.key_shift == nullptr);
    if (rows_.key_shift != nullptr) {
      Index row = 0;
      choice.keys = *rows_.key_shift;
      choice.keys.reach = farthest(keys, choice.keys.point, row);
    }
    choice.queries = choose_shift(queries, request_.steps.shift && request_.may_weigh_keys);
    if (scale_ * static_cast<double>(choice.queries.point.norm()) * choice.keys.reach > kMaxWeightExponent)
      choice.queries = choose_shift(queries, false);
    choice.mean_key = weighted_mean(keys, choice);
    const double radius = scale_ * choice.queries.reach * choice.keys.reach;
    double rank = simplex_rank(static_cast<double>(d_), radius);
    if (request_.steps.axes && d_ > 1) choose_axes(queries, keys, radius, rank, choice);
    if (!pays(rank)) return std::nullopt;
    return choice;
  }

 private:
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
  static constexpr Index kFewRows = 128, kManyRows = 512, kShare = 16;  // 1 of 16, within these
  /// Logits or moments that spread over this share of the directions that they could leave no axes that are
  /// worth an eigenvalue problem.
  static constexpr double kFilled = 0.7;
  /// Other axes must make the rank this much smaller to be worth their cost.
  static constexpr double kWorthwhileRank = 0.95;
  /// They can hardly do that if even their last variable reaches farther than this share of the radius.
  static constexpr double kNarrow = 0.6;

  static FarField whole_field(const LowRankRows<Real>& rows) {
    return {{0, rows.queries.front().count}, {0, rows.keys->count}};
  }

  Rows<Real> sample_queries(Range range, Index count) const {
    const Index heads = std::ssize(rows_.queries);
    Rows<Real> all(0, d_);
    for (const RowSource<Real>& head : rows_.queries) {
      const Rows<Real> some = sample(head, range, std::max<Index>(8, count / heads));
      all.conservativeResize(all.rows() + some.rows(), d_);
      all.bottomRows(some.rows()) = some;
    }
    return all;
  }

  bool refuse(std::string why) {
    reason_ = std::move(why);
    return false;
  }
  bool pays(double rank) {
    if (request_.pays(rank)) return true;
    if (rank < std::numeric_limits<double>::infinity())
      return refuse(message("a rank of ", rank, " or so, as a sample of rows promises, is too much work"));
    return refuse("entries in a sample of rows are too large for any polynomial");
  }

  /// All multi-indices of the degree that entries up to the radius need; infinity where none will do.
  double simplex_rank(double variables, double radius) const {
    try {
      const int degree = ExpPolynomial::fit(radius, allowed_).degree();
      double rank = 1;  // C(variables + degree, degree)
      for (int i = 1; i <= degree; ++i) rank *= (variables + i) / i;
      return rank;
    } catch (const Error&) {
      return std::numeric_limits<double>::infinity();
    }
  }

  /// Whether the least that any shifts and axes could do, by a few rows, would pay.
  ///
  /// (q - q').(k - k') is a sum of four logits that no shift changes, so the radius is at least a quarter of
  /// the largest; and over how many directions the logits spread, (sum sigma^2)^2 / sum sigma^4, no axes
  /// change. Half as many variables are taken to be the least.
  bool hopeful() {
    FarField pairs = field_;
    if (rows_.far.size() > 1 && request_.steps.near_field) {
      // Rows of the second half see the keys of the first half's.
      const FarPairs& middle = rows_.far[rows_.far.size() / 2];
      if (middle.reach() > 0) pairs = {{middle.rows.begin, pairs.queries.end}, {0, middle.reach()}};
    }
    const Rows<Real> queries = sample_queries(pairs.queries, kFewRows),
                     keys = sample(*rows_.keys, pairs.keys, kFewRows);
    if (queries.rows() < 2 || keys.rows() < 2) return true;
    const auto differences = [](const Rows<Real>& x) {
      const Index half = x.rows() / 2;
      return Rows<Real>(x.topRows(half) - x.middleRows(half, half));
    };
    const Rows<Real> q = differences(queries), k = differences(keys);
    const Rows<Real> entries = q * k.transpose();
    const double least = scale_ / 4 * static_cast<double>(entries.cwiseAbs().maxCoeff());
    if (!(least < std::numeric_limits<double>::infinity())) return refuse("rows are not finite");
    // The terms of an entry add up to e^radius or more, each rounded.
    const double rounding = 20 * kEpsilon * std::exp(least);
    if (!(rounding < request_.tolerance))
      return refuse(message("whatever is shifted, entries reach ", least,
                            " in a sample of rows, where rounding alone is about ", rounding));
    const double energy = static_cast<double>(entries.squaredNorm());
    const double spread = energy > 0 ? energy * energy / energy_of_square(entries) : 0;
    const double filled = 1 / (1 / static_cast<double>(q.rows()) + 1 / static_cast<double>(k.rows()) +
                               1 / static_cast<double>(d_));
    if (request_.steps.axes && spread < kFilled * filled)
      return pays(simplex_rank(std::max(1.0, std::min(spread / 2, static_cast<double>(d_))), least));
    const double radius = scale_ *
                          choose_shift(queries, request_.steps.shift && request_.may_weigh_keys).reach *
                          choose_shift(keys, request_.steps.shift).reach;
    return pays(simplex_rank(static_cast<double>(d_), radius));
  }

  /// sum sigma^4.
  static double energy_of_square(const Rows<Real>& x) {
    const Rows<Real> square = x * x.transpose();
    return static_cast<double>(square.squaredNorm());
  }

  /// Of the sampled keys.
  double weighted_mean(const Rows<Real>& keys, const ProjectionChoice<Real>& choice) const {
    const Eigen::MatrixXd y = (keys.rowwise() - choice.keys.point).transpose().template cast<double>();
    const Eigen::VectorXd slope = request_.scale * choice.queries.point.transpose().template cast<double>();
    const Eigen::VectorXd weights = ((y.transpose() * slope).array() - kMaxWeightExponent).exp().matrix();
    return y.cols() == 0 ? 0 : (y * weights).norm() / weights.sum();
  }

  bool fills_space(const Eigen::MatrixXd& moments) const {
    const double trace = moments.trace();
    return trace * trace >= kFilled * static_cast<double>(d_) * moments.squaredNorm();
  }

  /// Other axes if they promise a smaller rank than `rank`, which becomes theirs.
  void choose_axes(const Rows<Real>& queries, const Rows<Real>& keys, double radius, double& rank,
                   ProjectionChoice<Real>& choice) const {
    const Eigen::MatrixXd query_moments = second_moments(queries, choice.queries.point),
                          key_moments = second_moments(keys, choice.keys.point);
    if (fills_space(query_moments) && fills_space(key_moments)) return;
    double least = kWorthwhileRank * rank;
    for (const Axes& axes :
         {principal_axes(query_moments, key_moments), balanced_axes(query_moments, key_moments)}) {
      std::vector<double> couplings = longest_tails(queries, choice.queries.point, axes.queries);
      const std::vector<double> of_keys = longest_tails(keys, choice.keys.point, axes.keys);
      for (std::size_t l = 0; l < couplings.size(); ++l) couplings[l] *= scale_ * of_keys[l];
      if (couplings.back() > kNarrow * couplings.front() && couplings.front() > kNarrow * radius) continue;
      const double promised = kept_rank(couplings);
      if (!(promised < least)) continue;
      least = rank = promised;
      choice.axes = axes;
    }
  }

  /// [d]: max |(A (x - point))[l..]|.
  std::vector<double> longest_tails(const Rows<Real>& rows, const Point<Real>& point,
                                    const Eigen::MatrixXd& axes) const {
    const Rows<Real> projected = (rows.rowwise() - point) * axes.cast<Real>().transpose();
    Eigen::Array<Real, Eigen::Dynamic, 1> squares = Eigen::Array<Real, Eigen::Dynamic, 1>::Zero(rows.rows());
    std::vector<double> tails(static_cast<std::size_t>(d_));
    for (Index l = d_; l-- > 0;) {
      squares += projected.col(l).array().square();
      tails[static_cast<std::size_t>(l)] = std::sqrt(static_cast<double>(squares.maxCoeff()));
    }
    return tails;
  }

  /// About the rank that axes with these couplings will have; infinity where none will do.
  double kept_rank(std::span<const double> couplings) const {
    try {
      const auto lowest = ExpPolynomial::fit(couplings.front(), allowed_ / 2);
      return rank_of(choose_limits(tail_losses(TailBound(lowest), couplings, couplings.size()),
                                   allowed_ - lowest.relative_error()));
    } catch (const Error&) {
      return std::numeric_limits<double>::infinity();
    }
  }

  const LowRankRows<Real>& rows_;
  const LowRankRequest& request_;
  std::string& reason_;
  double scale_;
  Index d_;
  double allowed_;
  FarField field_;
};

}  // namespace detail

/// Where the rows should be measured from, unless a sample tells that no approximation pays: then `reason`
/// says so, with figures. Requires a query head. Cost: up to 640 rows of each side, with two eigenvalue
/// problems of size d if axes may help; 128 rows where they tell that nothing will.
template <class Real>
std::optional<ProjectionChoice<Real>> choose_projection(const LowRankRows<Real>& rows,
                                                        const LowRankRequest& request, std::string& reason) {
  return detail::ProjectionSearch<Real>(rows, request, reason).choose();
}

}  // namespace fastrope::inline FASTROPE_TARGET
