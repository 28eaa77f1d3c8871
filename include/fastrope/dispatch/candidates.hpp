// Candidates: the ways to compute one head, each with its certified error and predicted cost.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/dispatch/cost_model.hpp"
#include "fastrope/dispatch/entry_bounds.hpp"
#include "fastrope/dispatch/report.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/polynomial/certificate.hpp"
#include "fastrope/polynomial/exp_polynomial.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/polynomial/low_rank.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/toeplitz/attention.hpp"
#include "fastrope/toeplitz/lag_tails.hpp"

namespace fastrope {

/// The multi-index sets of a plan, each made once. Safe to use from several threads.
class MonomialSets {
 public:
  std::shared_ptr<const MonomialSet> get(const std::vector<int>& limits) {
    const std::lock_guard lock(mutex_);
    auto& set = sets_[limits];
    if (!set) set = std::make_shared<const MonomialSet>(limits);
    return set;
  }

 private:
  std::mutex mutex_ = {};
  std::map<std::vector<int>, std::shared_ptr<const MonomialSet>> sets_ = {};
};

/// A candidate and what running it needs.
template <class Runnable>
struct Runner {
  Candidate candidate;
  std::optional<Runnable> runnable = {};  ///< where the candidate is feasible
};

/// The Toeplitz path of one head: by transforms, with the rows that they leave to the exact path, or by a
/// state.
struct ToeplitzRun {
  std::optional<ToeplitzHead> transforms = {};
  std::vector<RowTask> exact_rows = {};
  std::optional<LowRankUnit> state = {};
};

/// Finds the candidates of one problem's heads. Members may be called by several threads at once.
template <class Real>
class Candidates {
 public:
  Candidates(const Problem& problem, double tolerance, const CostModel& cost)
      : problem_(problem),
        tolerance_(tolerance),
        cost_(cost),
        pairs_(problem.grid.allowed_pairs()),
        polynomial_refusal_(polynomial_refusal(problem)),
        toeplitz_refusal_(toeplitz_refusal(problem)) {}

  double tolerance() const { return tolerance_; }
  /// Why the options rule the Toeplitz path alone out, or in.
  bool only_toeplitz() const {
    return problem_.kernel.is_softmax() && !polynomial_refusal_.empty() && toeplitz_refusal_.empty();
  }

  Candidate exact() const {
    Candidate c;
    c.seconds = cost_.template exact<Real>(problem_, pairs_, static_cast<double>(problem_.shapes.n_q));
    return c;
  }

  /// The polynomial path of query heads that share their features, `queries` of the group; its cost is that
  /// of all. radius: the smallest bound on their entries that the shifts give, if there is any reason to
  /// look.
  Runner<LowRankUnit> polynomial(Range heads, const GroupRows<Real>& rows, Range queries, double& radius) {
    Runner<LowRankUnit> run{{.path = Path::polynomial, .feasible = false, .reason = polynomial_refusal_}};
    Candidate& c = run.candidate;
    if (!c.reason.empty()) return run;
    const auto fit = low_rank(rows, queries, tolerance_, /*may_weigh_keys=*/true,
                              far_chunks<Real>(problem_, CostModel::kLeastChunk), radius, c);
    if (!fit) return run;
    run.runnable = LowRankUnit{heads, fit->projection, coefficients(*fit), sets_.get(fit->limits), {}};
    add_chunks(fit->rank, *run.runnable, c);
    return run;
  }

  /// The features of a polynomial kernel, which are exact, for all heads of a key head.
  Runner<LowRankUnit> kernel(Range heads) {
    const auto kernel = problem_.kernel.coefficients();
    Runner<LowRankUnit> run{{.path = Path::polynomial, .feasible = false, .reason = polynomial_refusal_}};
    Candidate& c = run.candidate;
    const std::vector<int> limits = simplex_limits(problem_.shapes.d, problem_.kernel.degree());
    if (!c.reason.empty() || !set_rank(c, limits)) return run;
    run.runnable = LowRankUnit{heads,
                               Projection::identity(problem_.shapes.d, 1),
                               {kernel.begin(), kernel.end()},
                               sets_.get(limits),
                               {}};
    c.how = "exact for this kernel";
    add_chunks(static_cast<double>(c.rank), *run.runnable, c);
    return run;
  }

  /// The Toeplitz path of one head, by transforms or by a state, whichever is cheaper. Where positions
  /// separate it has the polynomial path's features, and transforms beside: then it is looked at only if
  /// `forced`, or with the positions' part of the logits in the generator.
  Runner<ToeplitzRun> toeplitz(Index head, const GroupRows<Real>& rows, Index query, bool forced,
                               double& entry_bound) {
    Runner<ToeplitzRun> run{{.path = Path::toeplitz, .feasible = false, .reason = toeplitz_refusal_}};
    Candidate& c = run.candidate;
    if (!c.reason.empty()) return run;
    // Keeps what is feasible, and of that the cheaper.
    const auto take = [&](Runner<ToeplitzRun>&& other, double radius) {
      const Candidate &now = run.candidate, &next = other.candidate;
      if (!next.feasible && (now.feasible || !now.reason.empty())) return;
      if (now.feasible && !(next.seconds < now.seconds)) return;
      run = std::move(other);
      entry_bound = radius;
    };
    double radius = 0;
    if (polynomial_refusal_.empty() && !forced) {
      c.reason = "positions separate: the polynomial path has the same features without transforms";
    } else {
      auto plain = transforms(head, rows, query, {}, radius);
      take(std::move(plain), radius);
      if (!problem_.weights) {
        auto by_state = tails(head, rows, query, radius);
        take(std::move(by_state), radius);
      }
    }
    if (const auto part = position_part(rows, query)) {
      const GroupRows<Real> left{.queries = {without_position_part(
                                     problem_, *part, true, rows.queries[static_cast<std::size_t>(query)])},
                                 .query_bounds = {},
                                 .keys = without_position_part(problem_, *part, false, rows.keys),
                                 .key_bounds = {},
                                 .values = rows.values};
      auto moved = transforms(head, left, 0, part, radius);
      take(std::move(moved), radius);
    }
    return run;
  }

 private:
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
  /// Of Rotation's tables at positions up to 2^20 or so; the positions' part of logits has exact lags.
  static constexpr double kTableError = 2e-9;

  /// By transforms: the bounds of their rounding leave some rows to the exact path.
  Runner<ToeplitzRun> transforms(Index head, const GroupRows<Real>& rows, Index query,
                                 const std::optional<PositionPart>& part, double& radius) {
    Runner<ToeplitzRun> run{{.path = Path::toeplitz, .feasible = false}};
    Candidate& c = run.candidate;
    // The transforms need a share of the tolerance too, and so does what rounds the part of the positions.
    double tolerance = 0.75 * tolerance_, part_rounding = 0;
    if (part) part_rounding = (kEpsilon + kTableError) * position_logit_bound(problem_, *part);
    tolerance -= part_rounding;
    LowRankUnit unit{
        .heads = {head, head + 1}, .projection = {}, .coefficients = {}, .monomials = {}, .chunks = {}};
    double delta = 0, terms = 0;
    if (problem_.weights) {
      const WeightedBounds bounds = weighted_bounds(rows, static_cast<std::size_t>(query), problem_);
      const auto polynomial = weighted_fit(bounds, rows.values.spread, tolerance, c);
      if (!polynomial) return run;
      if (!features_fit(rows, query, bounds, polynomial->degree())) {
        c.reason =
            detail::message("features of degree ", polynomial->degree(),
                            " leave the range of the arithmetic (weights or rows of very unequal size)");
        return run;
      }
      const std::vector<int> limits =
          simplex_limits(static_cast<Index>(problem_.weights->support().size()), polynomial->degree());
      if (!set_rank(c, limits)) return run;
      radius = bounds.radius;
      delta = polynomial->relative_error();
      terms = amplification(*polynomial, bounds.feature_radius);
      unit.projection = Projection::identity(problem_.shapes.d, bounds.balance);
      unit.coefficients = {polynomial->coefficients().begin(), polynomial->coefficients().end()};
      unit.monomials = sets_.get(limits);
      c.how = detail::message("entries up to ", radius);
    } else {
      const Range all_rows{0, problem_.shapes.n_q};
      const auto fit = low_rank(rows, {query, query + 1}, tolerance, /*may_weigh_keys=*/false,
                                {{all_rows, problem_.shapes.n_k}}, radius, c);
      if (!fit) return run;
      radius = fit->radius;
      delta = fit->certificate.relative_error;
      terms = amplification(fit->polynomial, radius);
      unit.projection = fit->projection;
      unit.coefficients = coefficients(*fit);
      unit.monomials = sets_.get(fit->limits);
      c.rounding += part_rounding;
    }
    run.runnable = ToeplitzRun{.transforms = ToeplitzHead(problem_, std::move(unit), part)};
    if (part) c.how += ", positions' part of the logits in the generator";
    const ToeplitzHead& t = *run.runnable->transforms;
    c.how += detail::message(", transforms of ", t.terms.size(), " generator", t.terms.size() > 1 ? "s" : "");
    add_exact_rows(radius, delta, terms, *run.runnable, c);
    return run;
  }

  /// The means of a head's rows, where rotation hides them from shifts and they are most of the rows.
  std::optional<PositionPart> position_part(const GroupRows<Real>& rows, Index query) const {
    constexpr double kMost = 0.7;  // of the rows' mean square
    if (problem_.rotation.pairs() == 0 || !near_origin()) return std::nullopt;
    const RowBounds &q = rows.query_bounds[static_cast<std::size_t>(query)], &k = rows.key_bounds;
    PositionPart part;
    const auto rounded = [](const std::vector<double>& mean, std::vector<double>& to) {
      double square = 0;
      for (const double x : mean) {
        to.push_back(static_cast<double>(static_cast<Real>(x)));
        square += x * x;
      }
      return square;
    };
    const double a = rounded(q.mean, part.query), b = rounded(k.mean, part.key);
    if (!(a >= kMost * q.mean_square && b >= kMost * k.mean_square && a > 0 && b > 0)) return std::nullopt;
    // |q - a| |k - b| / (|a| |k|) is where the two parts of x.y are as large as each other.
    const double left = std::max(1e-6 * a, q.mean_square - a) * std::max(1e-6 * b, k.mean_square - b);
    part.balance = std::pow(left / (a * k.mean_square), 0.25);
    return part;
  }

  /// Whether powers of the columns of a general family, which do not carry its weights, stay in range.
  bool features_fit(const GroupRows<Real>& rows, Index query, const WeightedBounds& bounds,
                    int degree) const {
    const double limit =
        std::pow(static_cast<double>(std::numeric_limits<Real>::max()), 0.6 / std::max(1, degree));
    const double q =
        std::abs(problem_.scale) * bounds.balance * rows.query_bounds[static_cast<std::size_t>(query)].norm;
    return degree == 0 || (q <= limit && rows.key_bounds.norm / bounds.balance <= limit &&
                           bounds.largest_weight <= limit && 1 / limit <= bounds.largest_weight);
  }

  /// Positions whose angles tables hold to kTableError.
  bool near_origin() const {
    constexpr Position kFar = Position{1} << 20;
    const LagGrid& grid = problem_.grid;
    for (const Position p : {grid.query_position(0), grid.query_position(grid.n_q() - 1),
                             grid.key_position(0), grid.key_position(grid.n_k() - 1)})
      if (p > kFar || p < -kFar) return false;
    return true;
  }

  /// The polynomial of a general family.
  std::optional<ExpPolynomial> weighted_fit(const WeightedBounds& bounds, double value_spread,
                                            double tolerance, Candidate& c) const {
    double left = tolerance;
    for (int attempt = 0; attempt < 3 && left > 0; ++attempt) {
      std::optional<ExpPolynomial> p;
      try {
        p = ExpPolynomial::fit(bounds.radius, allowed_relative_error(left, value_spread));
      } catch (const Error& error) {
        c.reason = error.what();
        return std::nullopt;
      }
      c.degree = p->degree();
      c.error_bound = certify(*p, {}, {}, 0, value_spread).error_bound;
      c.rounding = rounding_estimate(*p, bounds.feature_radius, -bounds.radius, bounds.radius,
                                     problem_.shapes.n_k, kEpsilon);
      if (c.error_bound + c.rounding <= tolerance) return p;
      left = tolerance - c.rounding;
    }
    c.reason =
        detail::message("rounding alone is about ", c.rounding, " at degree ", c.degree, " (entries up to ",
                        bounds.radius, ", features up to ", bounds.feature_radius, ")");
    return std::nullopt;
  }

  /// By a state, where the bias has tails.
  Runner<ToeplitzRun> tails(Index head, const GroupRows<Real>& rows, Index query, double& radius) {
    Runner<ToeplitzRun> run{{.path = Path::toeplitz, .feasible = false}};
    const LagTails tails = find_lag_tails(problem_, head);
    const auto chunks = [&](Index count) { return tail_chunks<Real>(problem_, tails, count); };
    const std::vector<FarPairs> least = chunks(CostModel::kLeastChunk);
    bool past = false, later = false, removes = false;
    for (const FarPairs& chunk : least) {
      past = past || chunk.far > chunk.first;
      later = later || !chunk.later.empty();
      removes = removes || chunk.first > 0 || (!chunk.later.empty() && chunk.later.end < problem_.shapes.n_k);
    }
    if (!past && !later) return run;
    // What rounds the bias is counted before, as the fit has to leave room for it.
    double bias_rounding = 0;
    for (const auto& tail : {tails.past, tails.later})
      if (tail) bias_rounding = std::max(bias_rounding, tail->miss + kEpsilon * std::abs(tail->factor.level));
    // A heavy key that leaves a window would leave its rounding behind: there keys may not be weighed.
    const auto fit = low_rank(rows, {query, query + 1}, tolerance_ - 2 * bias_rounding,
                              /*may_weigh_keys=*/!removes, least, radius, run.candidate);
    if (!fit) return run;
    run.candidate.rounding += 2 * bias_rounding;
    LowRankUnit unit{{head, head + 1}, fit->projection, coefficients(*fit), sets_.get(fit->limits), {}};
    if (past) unit.factor = tails.past->factor;
    if (later) unit.later_factor = tails.later->factor;
    unit.chunks = cost_.template best_chunks<Real>(problem_, fit->rank, 1, chunks);
    Candidate& c = run.candidate;
    c.seconds = cost_.template polynomial<Real>(problem_, fit->rank, 1, unit.chunks);
    const auto say = [&](const LagTail& tail, const char* from) {
      c.how += tail.factor.slope == 0 ? std::string(", running sums")
                                      : detail::message(", a recurrence with slope ", tail.factor.slope);
      c.how += detail::message(" for lags ", from, tail.inner);
    };
    if (past) say(*tails.past, ">= ");
    if (later) say(*tails.later, "<= ");
    c.how += detail::message(", ", unit.chunks.size(), " chunks of rows with exact near fields");
    run.runnable = ToeplitzRun{.state = std::move(unit)};
    return run;
  }

  std::optional<LowRankFit> low_rank(const GroupRows<Real>& rows, Range queries, double tolerance,
                                     bool may_weigh_keys, const std::vector<FarPairs>& far, double& radius,
                                     Candidate& c) const {
    const LowRankRequest request{.scale = problem_.scale,
                                 .value_spread = rows.values.spread,
                                 .tolerance = tolerance,
                                 .d_v = problem_.shapes.d_v,
                                 .may_weigh_keys = may_weigh_keys};
    const auto heads =
        std::span(rows.queries)
            .subspan(static_cast<std::size_t>(queries.begin), static_cast<std::size_t>(queries.size()));
    auto fit = fit_low_rank<Real>(heads, rows.keys, far, request, c.reason);
    if (!fit) return fit;
    radius = fit->radius;
    c.feasible = true;
    c.degree = fit->polynomial.degree();
    c.rank = static_cast<Index>(fit->rank);
    c.simplex_rank = fit->simplex_rank;
    c.error_bound = fit->certificate.error_bound;
    c.rounding = fit->rounding;
    c.how = detail::message("entries up to ", fit->radius, " (", fit->plain_radius,
                            " unshifted), keys shifted by ", name_of(fit->key_shift), ", queries by ",
                            name_of(fit->query_shift), ", ", fit->limits.size(), " axes");
    return fit;
  }

  static std::vector<double> coefficients(const LowRankFit& fit) {
    const auto c = fit.polynomial.coefficients();
    return {c.begin(), c.end()};
  }

  /// The rank of these limits; infeasible, with the figures, where it is too large.
  bool set_rank(Candidate& c, const std::vector<int>& limits) const {
    const double rank = c.simplex_rank = rank_of(limits);
    c.degree = limits.empty() ? 0 : limits.front();
    c.feasible = rank <= static_cast<double>(kMaxRank);
    if (c.feasible)
      c.rank = static_cast<Index>(rank);
    else
      c.reason =
          rank_refusal(c.degree, static_cast<Index>(limits.size()), rank, problem_.shapes.d_v, sizeof(Real));
    return c.feasible;
  }

  void add_chunks(double rank, LowRankUnit& unit, Candidate& c) const {
    unit.chunks = cost_.template best_chunks<Real>(problem_, rank, unit.heads.size());
    c.seconds = cost_.template polynomial<Real>(problem_, rank, unit.heads.size(), unit.chunks);
    if (unit.chunks.size() > 1)
      c.how += detail::message(", ", unit.chunks.size(), " chunks of rows with exact near fields");
    if (unit.heads.size() > 1) c.how += detail::message(", features shared by ", unit.heads.size(), " heads");
  }

  /// Finds the rows whose transforms' error would break the tolerance, and the cost and error bound of the
  /// rest.
  void add_exact_rows(double radius, double delta, double terms, ToeplitzRun& run, Candidate& c) const {
    const std::vector<double> bounds =
        transform_error<Real>(problem_, run.transforms->generator, radius, delta, terms);
    const double allowed = tolerance_ - c.error_bound - c.rounding;
    double exact_pairs = 0, worst = 0;
    // Tiles, whatever the executor, so that every executor has the same plan.
    constexpr Index kTile = QueryBlock<Real>::kTileRows;
    for (Index begin = 0; begin < problem_.shapes.n_q; begin += kTile) {
      const Range rows{begin, std::min(begin + kTile, problem_.shapes.n_q)};
      const double largest = *std::max_element(bounds.begin() + rows.begin, bounds.begin() + rows.end);
      if (largest <= allowed) {
        worst = std::max(worst, largest);
        continue;
      }
      run.exact_rows.push_back({run.transforms->low_rank.heads.begin, rows});
      c.exact_rows += rows.size();
      for (Index i = rows.begin; i < rows.end; ++i)
        exact_pairs += static_cast<double>(problem_.grid.keys_of(i).size());
    }
    c.error_bound += worst;
    c.seconds = cost_.template toeplitz<Real>(problem_, static_cast<double>(c.rank),
                                              static_cast<double>(run.transforms->terms.size()));
    if (c.exact_rows > 0)
      c.seconds += cost_.template exact<Real>(problem_, exact_pairs, static_cast<double>(c.exact_rows));
    if (c.exact_rows == problem_.shapes.n_q) {
      c.feasible = false;
      c.reason = "the transforms' rounding would break the tolerance in every row";
    }
  }

  const Problem& problem_;
  double tolerance_;
  const CostModel& cost_;
  double pairs_;
  std::string polynomial_refusal_;
  std::string toeplitz_refusal_;
  MonomialSets sets_ = {};
};

}  // namespace fastrope
