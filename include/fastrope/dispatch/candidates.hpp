// Candidates: the ways to compute one head, each with its certified error and predicted cost.
#pragma once

#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/dispatch/cost_model.hpp"
#include "fastrope/dispatch/entry_bounds.hpp"
#include "fastrope/dispatch/report.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/toeplitz/attention.hpp"

namespace fastrope {

/// The multi-index sets of a plan, each made once.
class MonomialSets {
 public:
  std::shared_ptr<const MonomialSet> get(Index variables, int degree) {
    auto& set = sets_[degree];
    if (!set) set = std::make_shared<const MonomialSet>(variables, degree);
    return set;
  }

 private:
  std::map<int, std::shared_ptr<const MonomialSet>> sets_ = {};
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
    double amplification = 0, power = 1;
    for (double c : p->coefficients()) {
      amplification += std::abs(c) * power;
      power *= feature_radius;
    }
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

/// What is needed to run a head, with its report.
struct HeadPlan {
  HeadReport report;
  std::optional<LowRankHead> polynomial = {};
  std::optional<ToeplitzHead> toeplitz = {};
  std::vector<RowTask> exact_rows = {};  ///< of the Toeplitz path
};

/// Plans the heads of one problem.
template <class Real>
class HeadPlanner {
 public:
  HeadPlanner(const Problem& problem, double tolerance, Path forced, const CostModel& cost)
      : problem_(problem),
        tolerance_(tolerance),
        forced_(forced),
        cost_(cost),
        pairs_(problem.grid.allowed_pairs()),
        polynomial_refusal_(polynomial_refusal(problem)),
        toeplitz_refusal_(toeplitz_refusal(problem)) {}

  /// The cheapest candidate that meets the tolerance, or the forced one.
  /// Throws Error when the forced path cannot be run or cannot meet the tolerance.
  HeadPlan plan(Index head, const RowBounds& queries, const RowBounds& keys, bool finite_values) {
    HeadPlan plan;
    HeadReport& report = plan.report;
    Candidate exact = exact_candidate();
    if (!queries.finite || !keys.finite || !finite_values) {
      const char* which = !queries.finite ? "q" : !keys.finite ? "k" : "v";
      exact.reason =
          detail::message(which, " is not finite (or its norms overflow), so entries have no bound");
      report.entry_bound = std::numeric_limits<double>::infinity();
      require_allowed(head, exact);
      report.candidates = {exact};
    } else {
      report.entry_bound = problem_.weights
                               ? weighted_bounds(queries, keys, problem_, kEpsilon).radius
                               : best_shift(queries, keys, problem_.scale, true, kEpsilon).radius;
      Candidate polynomial = polynomial_candidate(head, queries, keys, plan);
      Candidate toeplitz = toeplitz_candidate(head, queries, keys, plan);
      report.candidates = {exact, polynomial, toeplitz};
    }
    choose(head, plan);
    return plan;
  }

  /// The plan of a head that nobody looks at.
  HeadPlan plan_exact(const std::string& reason) const {
    HeadPlan plan;
    plan.report.entry_bound = std::numeric_limits<double>::quiet_NaN();
    Candidate exact = exact_candidate();
    exact.reason = reason;
    plan.report.candidates = {exact};
    plan.report.reason = reason;
    return plan;
  }

 private:
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();

  Candidate exact_candidate() const {
    Candidate c;
    c.seconds = cost_.template exact<Real>(problem_, pairs_, static_cast<double>(problem_.shapes.n_q));
    return c;
  }

  Candidate polynomial_candidate(Index head, const RowBounds& queries, const RowBounds& keys,
                                 HeadPlan& plan) {
    Candidate c{.path = Path::polynomial, .feasible = false};
    if (!polynomial_refusal_.empty()) {
      c.reason = polynomial_refusal_;
      return c;
    }
    Shift shift = best_shift(queries, keys, problem_.scale, /*may_weigh_keys=*/true, kEpsilon);
    const auto fit = approximate(shift.radius, shift.radius, logit_size(queries, keys), tolerance_, kEpsilon,
                                 problem_.shapes.n_k, c.reason);
    if (!fit || !set_rank(c, problem_.shapes.d, *fit)) return c;
    c.seconds = cost_.template polynomial<Real>(problem_, static_cast<double>(c.rank));
    plan.polynomial = LowRankHead{head, std::move(shift), fit->polynomial, nullptr};
    return c;
  }

  Candidate toeplitz_candidate(Index head, const RowBounds& queries, const RowBounds& keys, HeadPlan& plan) {
    Candidate c{.path = Path::toeplitz, .feasible = false};
    if (!toeplitz_refusal_.empty()) {
      c.reason = toeplitz_refusal_;
      return c;
    }
    const Shapes& s = problem_.shapes;
    Shift shift;
    double feature_radius = 0;
    if (problem_.weights) {
      const WeightedBounds bounds = weighted_bounds(queries, keys, problem_, kEpsilon);
      const std::vector<double> none(static_cast<std::size_t>(s.d));
      shift = {.key_shift = none, .query_shift = none, .balance = bounds.balance, .radius = bounds.radius};
      feature_radius = bounds.feature_radius;
    } else {
      shift = best_shift(queries, keys, problem_.scale, /*may_weigh_keys=*/false, kEpsilon);
      feature_radius = shift.radius;
    }
    // The transforms need a share of the tolerance too.
    const double logits = problem_.weights ? shift.radius : logit_size(queries, keys);
    const auto fit =
        approximate(shift.radius, feature_radius, logits, 0.75 * tolerance_, kEpsilon, s.n_k, c.reason);
    const Index variables = problem_.weights ? static_cast<Index>(problem_.weights->support().size()) : s.d;
    if (!fit || !set_rank(c, variables, *fit)) return c;
    std::vector<double> generator = lag_generator(problem_, head);
    add_exact_rows(head, generator, shift.radius, *fit, c, plan);
    plan.toeplitz = ToeplitzHead{{head, std::move(shift), fit->polynomial, nullptr}, std::move(generator)};
    return c;
  }

  /// Bound of |scale q.k| before any shift.
  double logit_size(const RowBounds& queries, const RowBounds& keys) const {
    return std::abs(problem_.scale) * queries.norm * keys.norm;
  }

  /// Degree, rank and errors of a candidate; infeasible where the rank is too large.
  static bool set_rank(Candidate& c, Index variables, const Approximation& fit) {
    c.degree = fit.polynomial.degree();
    c.error_bound = fit.error_bound;
    c.rounding = fit.rounding;
    const auto rank = simplex_rank(variables, c.degree);
    if (!rank) {
      c.reason = detail::message("degree ", c.degree, " in ", variables, " variables exceeds the rank limit ",
                                 kMaxRank);
      return false;
    }
    c.rank = *rank;
    c.feasible = true;
    return true;
  }

  /// Finds the rows whose transforms' error would break the tolerance, and the cost and error bound of the
  /// rest.
  void add_exact_rows(Index head, std::span<const double> generator, double radius, const Approximation& fit,
                      Candidate& c, HeadPlan& plan) const {
    const std::vector<double> bounds = transform_error<Real>(
        problem_, generator, radius, fit.polynomial.relative_error(), fit.amplification);
    const double allowed = tolerance_ - fit.error_bound - fit.rounding;
    const RowTasks<Real> blocks(problem_, {head, head + 1});
    double exact_pairs = 0, worst = 0;
    for (Index b = 0; b < blocks.count(); ++b) {
      const RowTask block = blocks[b];
      const auto begin = bounds.begin() + block.rows.begin, end = bounds.begin() + block.rows.end;
      const double largest = *std::max_element(begin, end);
      if (largest <= allowed) {
        worst = std::max(worst, largest);
        continue;
      }
      plan.exact_rows.push_back(block);
      c.exact_rows += block.rows.size();
      for (Index i = block.rows.begin; i < block.rows.end; ++i)
        exact_pairs += static_cast<double>(problem_.grid.keys_of(i).size());
    }
    c.error_bound += worst;
    c.seconds = cost_.template toeplitz<Real>(problem_, static_cast<double>(c.rank));
    if (c.exact_rows > 0)
      c.seconds += cost_.template exact<Real>(problem_, exact_pairs, static_cast<double>(c.exact_rows));
    if (c.exact_rows == problem_.shapes.n_q) {
      c.feasible = false;
      c.reason = "the transforms' rounding would break the tolerance in every row";
    }
  }

  /// Throws Error if a path is forced and `only` is another.
  void require_allowed(Index head, const Candidate& only) const {
    if (forced_ != Path::automatic && forced_ != only.path)
      detail::fail("head ", head, ": path ", forced_, " cannot be run: ", only.reason);
  }

  void choose(Index head, HeadPlan& plan) {
    HeadReport& report = plan.report;
    const Candidate* best = nullptr;
    for (const Candidate& c : report.candidates) {
      if (forced_ == c.path && !c.feasible)
        detail::fail("head ", head, ": path ", forced_, " cannot meet the tolerance ", tolerance_, ": ",
                     c.reason, " (entry bound ", report.entry_bound, ")");
      const bool eligible = c.feasible && (forced_ == Path::automatic || forced_ == c.path);
      if (eligible && (best == nullptr || c.seconds < best->seconds)) best = &c;
    }
    const std::size_t winner = static_cast<std::size_t>(best - report.candidates.data());
    for (std::size_t i = 0; i < report.candidates.size(); ++i) {
      Candidate& c = report.candidates[i];
      if (i == winner) {
        if (c.reason.empty())
          c.reason = forced_ != Path::automatic ? "forced" : "cheapest that meets the tolerance";
      } else if (c.reason.empty()) {
        c.reason = forced_ != Path::automatic
                       ? detail::message("path ", forced_, " is forced")
                       : detail::message("predicted ", c.seconds / report.candidates[winner].seconds,
                                         " times slower");
      }
    }
    const Candidate& chosen = report.candidates[winner];
    report.path = chosen.path;
    report.degree = chosen.degree;
    report.rank = chosen.rank;
    report.error_bound = chosen.error_bound;
    report.rounding = chosen.rounding;
    report.reason = chosen.reason;
    if (chosen.path == Path::exact && forced_ == Path::automatic && report.candidates.size() > 1)
      report.reason = detail::message(runner_up(report).path, ": ", runner_up(report).reason);
    if (chosen.path == Path::polynomial)
      plan.polynomial->monomials = sets_.get(problem_.shapes.d, chosen.degree);
    if (chosen.path != Path::polynomial) plan.polynomial.reset();
    if (chosen.path == Path::toeplitz) {
      const Index variables =
          problem_.weights ? static_cast<Index>(problem_.weights->support().size()) : problem_.shapes.d;
      plan.toeplitz->low_rank.monomials = sets_.get(variables, chosen.degree);
      report.entry_bound = plan.toeplitz->low_rank.shift.radius;
    } else {
      plan.toeplitz.reset();
      plan.exact_rows.clear();
    }
  }

  /// The approximation that came closest to being chosen: the cheapest that could run, else the polynomial
  /// path unless the options alone rule it out.
  const Candidate& runner_up(const HeadReport& report) const {
    const Candidate &polynomial = report.candidates[1], &toeplitz = report.candidates[2];
    if (polynomial.feasible && toeplitz.feasible)
      return polynomial.seconds <= toeplitz.seconds ? polynomial : toeplitz;
    const bool prefer_toeplitz = !polynomial_refusal_.empty() && toeplitz_refusal_.empty();
    return toeplitz.feasible || (!polynomial.feasible && prefer_toeplitz) ? toeplitz : polynomial;
  }

  const Problem& problem_;
  double tolerance_;
  Path forced_;
  const CostModel& cost_;
  double pairs_;
  std::string polynomial_refusal_;
  std::string toeplitz_refusal_;
  MonomialSets sets_ = {};
};

}  // namespace fastrope
