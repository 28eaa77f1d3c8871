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
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/polynomial/low_rank.hpp"
#include "fastrope/toeplitz/attention.hpp"

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

/// A polynomial for entries up to a radius, and the errors that it implies for the output, relative to
/// max|V|.
struct Approximation {
  ExpPolynomial polynomial;
  double error_bound;    ///< delta / (1 - delta), certified
  double rounding;       ///< an estimate: epsilon ((2 g + 8 + sqrt(n_k) / 4) amplification e^R / (1 - delta)
                         ///< + the largest logit before any shift)
  double amplification;  ///< sum_p |c_p| F^p, what the features' sizes add up to; F >= R bounds their norms
};

/// sum_p |c_p| radius^p.
inline double amplification_of(const ExpPolynomial& polynomial, double radius) {
  double sum = 0, power = 1;
  for (double c : polynomial.coefficients()) {
    sum += std::abs(c) * power;
    power *= radius;
  }
  return sum;
}

/// The approximation of lowest degree whose certified error and rounding are within `tolerance` together;
/// nothing where there is none, with the reason. `logit_size`: bound of the logits before any shift, which
/// are computed with an error of epsilon of it.
inline std::optional<Approximation> approximate(double radius, double feature_radius, double logit_size,
                                                double tolerance, double epsilon, Index n_k,
                                                std::string& reason) {
  double target = tolerance;
  while (target > 0) {
    std::optional<ExpPolynomial> p;
    try {
      p = ExpPolynomial::fit(radius, target / (1 + target));
    } catch (const Error& error) {
      reason = error.what();
      return std::nullopt;
    }
    const double delta = p->relative_error();
    const double amplification = amplification_of(*p, feature_radius);
    const double roundings = 2.0 * p->degree() + 8 + std::sqrt(static_cast<double>(n_k)) / 4;
    const double rounding =
        epsilon * (roundings * amplification * std::exp(radius) / (1 - delta) + logit_size);
    const double bound = delta / (1 - delta);
    if (bound + rounding <= tolerance) return Approximation{*p, bound, rounding, amplification};
    if (rounding >= tolerance) {
      reason =
          detail::message("rounding alone is about ", rounding, " at degree ", p->degree(),
                          " (entries up to ", radius, ", logits up to ", logit_size, " before any shift)");
      return std::nullopt;
    }
    target = std::min(target / 2, tolerance - rounding);
  }
  return std::nullopt;
}

/// A candidate and what running it needs.
template <class Runnable>
struct Runner {
  Candidate candidate;
  std::optional<Runnable> runnable = {};  ///< where the candidate is feasible
};

/// The Toeplitz path of one head with the rows that it leaves to the exact one.
struct ToeplitzRun {
  ToeplitzHead head;
  std::vector<RowTask> exact_rows;
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

  /// The Toeplitz path of one head. Where positions separate it has the polynomial path's features, and
  /// transforms beside: it is looked at only if `forced`.
  Runner<ToeplitzRun> toeplitz(Index head, const GroupRows<Real>& rows, Index query, bool forced,
                               double& entry_bound) {
    Runner<ToeplitzRun> run{{.path = Path::toeplitz, .feasible = false, .reason = toeplitz_refusal_}};
    Candidate& c = run.candidate;
    if (c.reason.empty() && polynomial_refusal_.empty() && !forced)
      c.reason = "positions separate: the polynomial path has the same features without transforms";
    if (!c.reason.empty()) return run;
    // The transforms need a share of the tolerance too.
    const double tolerance = 0.75 * tolerance_;
    double radius = 0, delta = 0, amplification = 0;
    LowRankUnit unit{
        .heads = {head, head + 1}, .projection = {}, .coefficients = {}, .monomials = {}, .chunks = {}};
    if (problem_.weights) {
      const WeightedBounds bounds = weighted_bounds(rows, static_cast<std::size_t>(query), problem_);
      const auto fit = approximate(bounds.radius, bounds.feature_radius, bounds.radius, tolerance, kEpsilon,
                                   problem_.shapes.n_k, c.reason);
      if (!fit) return run;
      c.degree = fit->polynomial.degree();
      c.error_bound = fit->error_bound;
      c.rounding = fit->rounding;
      const auto variables = static_cast<Index>(problem_.weights->support().size());
      const std::vector<int> limits = simplex_limits(variables, c.degree);
      if (!set_rank(c, limits)) return run;
      c.how = detail::message("entries up to ", bounds.radius);
      radius = bounds.radius;
      delta = fit->polynomial.relative_error();
      amplification = fit->amplification;
      const auto p = fit->polynomial.coefficients();
      unit.projection = Projection::identity(problem_.shapes.d, bounds.balance);
      unit.coefficients = {p.begin(), p.end()};
      unit.monomials = sets_.get(limits);
    } else {
      const Range all_rows{0, problem_.shapes.n_q};
      const auto fit = low_rank(rows, {query, query + 1}, tolerance, /*may_weigh_keys=*/false,
                                {{all_rows, problem_.shapes.n_k}}, radius, c);
      if (!fit) return run;
      radius = fit->radius;
      delta = fit->certificate.relative_error;
      amplification = amplification_of(fit->polynomial, radius);
      unit.projection = fit->projection;
      unit.coefficients = coefficients(*fit);
      unit.monomials = sets_.get(fit->limits);
    }
    entry_bound = radius;
    run.runnable = ToeplitzRun{ToeplitzHead(problem_, std::move(unit)), {}};
    add_exact_rows(radius, delta, amplification, *run.runnable, c);
    return run;
  }

 private:
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();

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
  void add_exact_rows(double radius, double delta, double amplification, ToeplitzRun& run,
                      Candidate& c) const {
    const Range heads = run.head.low_rank.heads;
    const std::vector<double> bounds =
        transform_error<Real>(problem_, run.head.generator, radius, delta, amplification);
    const double allowed = tolerance_ - c.error_bound - c.rounding;
    const RowTasks<Real> blocks(problem_, heads);
    double exact_pairs = 0, worst = 0;
    for (Index b = 0; b < blocks.count(); ++b) {
      const RowTask block = blocks[b];
      const auto begin = bounds.begin() + block.rows.begin, end = bounds.begin() + block.rows.end;
      const double largest = *std::max_element(begin, end);
      if (largest <= allowed) {
        worst = std::max(worst, largest);
        continue;
      }
      run.exact_rows.push_back(block);
      c.exact_rows += block.rows.size();
      for (Index i = block.rows.begin; i < block.rows.end; ++i)
        exact_pairs += static_cast<double>(problem_.grid.keys_of(i).size());
    }
    c.error_bound += worst;
    c.seconds = cost_.template toeplitz<Real>(problem_, static_cast<double>(c.rank),
                                              static_cast<double>(run.head.terms.size()));
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
