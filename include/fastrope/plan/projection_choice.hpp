// ProjectionChoice: from where and along which axes rows would be measured, judged from samples of them.
//
//     a few rows -> is any approximation worth more of a look? -> more rows -> shifts -> axes
// Nothing here needs proof: any choice is exact (projection.hpp), and what it achieves is measured on all
// rows before it is used (low_rank.hpp). Each step is taken only if the one before leaves hope.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/points.hpp"
#include "fastrope/measure/side.hpp"
#include "fastrope/plan/arithmetic.hpp"
#include "fastrope/plan/axes.hpp"
#include "fastrope/plan/certificate.hpp"
#include "fastrope/plan/exact_rounding.hpp"
#include "fastrope/plan/exp_polynomial.hpp"
#include "fastrope/plan/far_field.hpp"
#include "fastrope/plan/index_set.hpp"
#include "fastrope/plan/shift.hpp"
#include "fastrope/polynomial/monomials.hpp"

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
  bool may_weigh_keys = true;     ///< a query shift needs a weight for each key
  double factor_error = 0;        ///< relative, of factors of the lag beside the entries
  ExactRoundingModel exact = {};  ///< what rounding does to keys that are computed exactly, beside features
  LowRankSteps steps = {};
  Factorisations factorisations = {};                          ///< needed where steps.axes
  double most_rank = std::numeric_limits<double>::infinity();  ///< features of more cost more than they save
  Arithmetic arithmetic = Arithmetic::float32;                 ///< of the features
};

/// The query heads that share a key head's features, and the pairs that are approximated. far: ascending
/// rows, far nondecreasing. What it names must outlive it.
struct LowRankRows {
  std::span<const Side* const> queries;
  const Side* keys;
  std::span<const FarPairs> far;
  const Shift* key_shift = nullptr;  ///< where the keys are to be measured from, if that is settled
};

struct ProjectionChoice {
  Shift queries = {};   ///< nu; may be other than the origin only where keys may be weighed
  Shift keys = {};      ///< mu
  Axes axes = {};       ///< empty: the rows' own
  double mean_key = 0;  ///< about the length of the mean of k - mu, weighted

  bool own_axes() const { return axes.keys.empty(); }
  Measure of_queries() const { return measure(queries, axes.queries); }
  Measure of_keys() const { return measure(keys, axes.keys); }

 private:
  static Measure measure(const Shift& shift, const Matrix& axes) {
    return {shift.centre == Centre::none ? Point() : shift.point, axes};
  }
};

/// Weights of keys stay within e^-60 of each other.
inline constexpr double kMaxWeightExponent = 30;

namespace detail {

class ProjectionSearch {
 public:
  ProjectionSearch(const LowRankRows& rows, const LowRankRequest& request, std::string& reason)
      : rows_(rows),
        request_(request),
        reason_(reason),
        scale_(std::abs(request.scale)),
        d_(rows.keys->d()),
        allowed_(allowed_relative_error(request.tolerance, request.value_spread)),
        field_(request.steps.near_field ? far_field(rows.far) : whole_field(rows)) {}

  std::optional<ProjectionChoice> choose() {
    ProjectionChoice choice;
    choice.queries = choice.keys = Shift::none(d_);
    if (field_.empty() || d_ == 0) return choice;
    if (!hopeful()) return std::nullopt;

    const auto many = [](Range rows) { return std::clamp(rows.size() / kShare, kFewRows, kManyRows); };
    const Points queries = sample_queries(field_.queries, many(field_.queries)),
                 keys = rows_.keys->sample(field_.keys, many(field_.keys));
    choice.keys = choose_shift(keys, request_.steps.shift && rows_.key_shift == nullptr);
    if (rows_.key_shift != nullptr) {
      Index row = 0;
      choice.keys = *rows_.key_shift;
      choice.keys.reach = farthest(keys, choice.keys.point, row);
    }
    choice.queries = choose_shift(queries, request_.steps.shift && request_.may_weigh_keys);
    if (scale_ * norm(choice.queries.point) * choice.keys.reach > kMaxWeightExponent)
      choice.queries = choose_shift(queries, false);
    choice.mean_key = weighted_mean(keys, choice);
    const double radius = scale_ * choice.queries.reach * choice.keys.reach;
    double rank = simplex_rank(static_cast<double>(d_), radius);
    if (request_.steps.axes && d_ > 1) choose_axes(queries, keys, radius, rank, choice);
    if (!pays(rank)) return std::nullopt;
    // Rows are moved by numbers of their own arithmetic.
    for (Shift* shift : {&choice.queries, &choice.keys})
      for (double& x : shift->point) x = rounded(request_.arithmetic, x);
    for (Matrix* axes : {&choice.axes.queries, &choice.axes.keys})
      for (double& x : axes->values) x = rounded(request_.arithmetic, x);
    return choice;
  }

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  static constexpr Index kFewRows = 128, kManyRows = 512, kShare = 16;  // 1 of 16, within these
  /// Logits or moments that spread over this share of the directions that they could leave no axes that are
  /// worth an eigenvalue problem.
  static constexpr double kFilled = 0.7;
  /// Other axes must make the rank this much smaller to be worth their cost.
  static constexpr double kWorthwhileRank = 0.95;
  /// They can hardly do that if even their last variable reaches farther than this share of the radius.
  static constexpr double kNarrow = 0.6;

  static FarField whole_field(const LowRankRows& rows) {
    return {{0, rows.queries.front()->count()}, {0, rows.keys->count()}};
  }

  Points sample_queries(Range range, Index count) const {
    const Index heads = std::ssize(rows_.queries);
    std::vector<Points> samples;
    Index size = 0;
    for (const Side* head : rows_.queries) {
      samples.push_back(head->sample(range, std::max<Index>(8, count / heads)));
      size += samples.back().cols;
    }
    if (heads == 1) return std::move(samples.front());
    Points all(d_, size);
    for (Index c = 0; c < d_; ++c) {
      double* to = all.row(c);
      for (const Points& some : samples) to = std::copy_n(some.row(c), some.cols, to);
    }
    return all;
  }

  bool refuse(std::string why) {
    reason_ = std::move(why);
    return false;
  }
  bool pays(double rank) {
    if (rank <= request_.most_rank) return true;
    if (rank < kInfinity)
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
      return kInfinity;
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
    const Points queries = sample_queries(pairs.queries, kFewRows),
                 keys = rows_.keys->sample(pairs.keys, kFewRows);
    if (queries.cols < 2 || keys.cols < 2) return true;
    const Points q = differences(queries), k = differences(keys);
    const Matrix entries = product(transposed(q), k);
    const Sizes sizes = sizes_of(entries);
    const double least = scale_ / 4 * sizes.largest, energy = sizes.squares;
    if (!(energy < kInfinity)) return refuse("rows are not finite");
    // The terms of an entry add up to e^radius or more, each rounded.
    const double rounding = 20 * epsilon_of(request_.arithmetic) * std::exp(least);
    if (!(rounding < request_.tolerance))
      return refuse(message("whatever is shifted, entries reach ", least,
                            " in a sample of rows, where rounding alone is about ", rounding));
    const double spread = energy > 0 ? energy * energy / energy_of_squares(q, k, entries) : 0;
    const double filled =
        1 / (1 / static_cast<double>(q.cols) + 1 / static_cast<double>(k.cols) + 1 / static_cast<double>(d_));
    if (request_.steps.axes && spread < kFilled * filled)
      return pays(simplex_rank(std::max(1.0, std::min(spread / 2, static_cast<double>(d_))), least));
    const double radius = scale_ *
                          choose_shift(queries, request_.steps.shift && request_.may_weigh_keys).reach *
                          choose_shift(keys, request_.steps.shift).reach;
    return pays(simplex_rank(static_cast<double>(d_), radius));
  }

  /// sum sigma^4 of entries = q^T k: |entries entries^T|^2, or with few columns tr (q q^T k k^T)^2, the same.
  double energy_of_squares(const Points& q, const Points& k, const Matrix& entries) const {
    if (d_ >= q.cols) return squared_norm(product(entries, transposed(entries)));
    const Matrix m = product(product(q, transposed(q)), product(k, transposed(k)));
    double sum = 0;
    for (Index i = 0; i < d_; ++i)
      for (Index j = 0; j < d_; ++j) sum += m(i, j) * m(j, i);
    return sum;
  }

  /// Of the first half of a sample from the second.
  static Points differences(const Points& x) {
    const Index half = x.cols / 2;
    Points y(x.rows, half);
    for (Index c = 0; c < x.rows; ++c)
      for (Index i = 0; i < half; ++i) y(c, i) = x(c, i) - x(c, half + i);
    return y;
  }

  /// Of the sampled keys.
  double weighted_mean(const Points& keys, const ProjectionChoice& choice) const {
    const Points y = centred(keys, choice.keys.point);
    if (y.cols == 0) return 0;
    Matrix slope(1, d_);
    for (Index c = 0; c < d_; ++c)
      slope(0, c) = request_.scale * choice.queries.point[static_cast<std::size_t>(c)];
    const Matrix exponents = product(slope, y);
    double sum = 0;
    Matrix weights(y.cols, 1);
    for (Index i = 0; i < y.cols; ++i) sum += weights(i, 0) = std::exp(exponents(0, i) - kMaxWeightExponent);
    return norm(product(y, weights)) / sum;
  }

  bool fills_space(const Matrix& moments) const {
    const double size = trace(moments);
    return size * size >= kFilled * static_cast<double>(d_) * squared_norm(moments);
  }

  /// Other axes if they promise a smaller rank than `rank`, which becomes theirs.
  void choose_axes(const Points& queries, const Points& keys, double radius, double& rank,
                   ProjectionChoice& choice) const {
    const Points x = centred(queries, choice.queries.point), y = centred(keys, choice.keys.point);
    const Matrix query_moments = second_moments(x), key_moments = second_moments(y);
    if (fills_space(query_moments) && fills_space(key_moments)) return;
    double least = kWorthwhileRank * rank;
    for (const Axes& axes : {principal_axes(query_moments, key_moments, request_.factorisations),
                             balanced_axes(query_moments, key_moments, request_.factorisations)}) {
      std::vector<double> couplings = longest_tails(x, axes.queries);
      const std::vector<double> of_keys = longest_tails(y, axes.keys);
      for (std::size_t l = 0; l < couplings.size(); ++l) couplings[l] *= scale_ * of_keys[l];
      if (couplings.back() > kNarrow * couplings.front() && couplings.front() > kNarrow * radius) continue;
      const double promised = kept_rank(couplings);
      if (!(promised < least)) continue;
      least = rank = promised;
      choice.axes = axes;
    }
  }

  /// About the rank that axes with these couplings will have; infinity where none will do.
  double kept_rank(std::span<const double> couplings) const {
    try {
      const auto lowest = ExpPolynomial::fit(couplings.front(), allowed_ / 2);
      return rank_of(choose_limits(tail_losses(TailBound(lowest), couplings, couplings.size()),
                                   allowed_ - lowest.relative_error()));
    } catch (const Error&) {
      return kInfinity;
    }
  }

  const LowRankRows& rows_;
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
inline std::optional<ProjectionChoice> choose_projection(const LowRankRows& rows,
                                                         const LowRankRequest& request, std::string& reason) {
  return detail::ProjectionSearch(rows, request, reason).choose();
}

}  // namespace fastrope::inline FASTROPE_TARGET
