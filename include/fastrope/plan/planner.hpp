// Planner: which candidate each head runs, and why the others lost.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/executor.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/plan/cost_model.hpp"
#include "fastrope/plan/exact_rounding.hpp"
#include "fastrope/plan/head_report.hpp"
#include "fastrope/plan/look.hpp"
#include "fastrope/plan/planning.hpp"
#include "fastrope/plan/polynomial_candidates.hpp"
#include "fastrope/plan/toeplitz_candidates.hpp"
#include "fastrope/plan/weighted_bounds.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/toeplitz/head.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// What one query head runs, and why.
struct HeadPlan {
  Index head = 0;
  HeadReport report = {};
  std::optional<LowRankUnit> polynomial = {};  ///< of heads that share one, the first has it
  std::optional<ToeplitzHead> toeplitz = {};
  double pair_bound =
      std::numeric_limits<double>::infinity();  ///< of its exact path, if products were of bfloat16
};

/// Plans the heads of one problem, those of a key head together. Members may be called by several threads at
/// once.
class Planner {
 public:
  /// The problem and the rates must outlive it.
  Planner(const Problem& problem, double tolerance, Path forced, const CostModel& cost, Arithmetic arithmetic,
          const Factorisations& by)
      : problem_(problem),
        planning_(problem, tolerance, forced, cost, arithmetic, by),
        polynomial_(planning_),
        toeplitz_(planning_) {}
  ~Planner() = default;
  Planner(const Planner&) = delete;
  Planner& operator=(const Planner&) = delete;

  /// The cheapest candidates that meet the tolerance, or the forced ones, for the rows of key head kv.
  /// Throws Error when the forced path cannot be run or cannot meet the tolerance.
  std::vector<HeadPlan> plan(Index kv, GroupLook& look) const {
    [[maybe_unused]] const OwnThread own_thread;
    std::vector<HeadPlan> plans;
    for (Index query = 0; query < problem_.group(); ++query)
      plans.push_back(plan_head(look, kv * problem_.group() + query, query));
    share_features(look, plans);
    return plans;
  }

  /// The exact path, with its bound if there is a look at the rows.
  std::vector<HeadPlan> plan_exact(Index kv, const std::string& reason, GroupLook* look) const {
    std::vector<HeadPlan> plans;
    for (Index query = 0; query < problem_.group(); ++query) {
      HeadPlan& plan = plans.emplace_back(HeadPlan{.head = kv * problem_.group() + query});
      plan.report.candidates = {unknown_exact(plan)};
      Candidate& exact = plan.report.candidates[0];
      exact.reason = reason;
      if (look != nullptr) plan.report.entry_bound = bound_exact(*look, query, exact, plan);
      take(plan, 0, look != nullptr ? reason + shortfall(exact) : reason);
    }
    return plans;
  }

  /// With a polynomial kernel the exact path and features are both exact but for rounding, of which each row
  /// gets a bound when it is run: whichever is cheaper. Throws Error when a forced path cannot be run.
  std::vector<HeadPlan> plan_kernel(Index kv) const {
    const Index group = problem_.group();
    if (group == 0) return {};
    // Query heads that are gated apart have a state each.
    const Index together =
        problem_.gates.rows(problem_.shapes.heads, problem_.shapes.kv_heads) > problem_.shapes.kv_heads
            ? 1
            : group;
    std::optional<LowRankUnit> unit;
    Candidate features;
    std::vector<HeadPlan> plans;
    for (Index query = 0; query < group; ++query) {
      const Index head = kv * group + query;
      HeadPlan& plan = plans.emplace_back(HeadPlan{.head = head});
      if (query % together == 0)
        features = share(polynomial_.kernel({head, head + together}, unit), together);
      plan.report.candidates = {unknown_exact(plan), features,
                                Candidate{.path = Path::toeplitz,
                                          .feasible = false,
                                          .reason = "transforms are for an exponential kernel"}};
      choose(plan);
      if (query % together == 0 && plan.report.path == Path::polynomial) plan.polynomial = std::move(unit);
    }
    return plans;
  }

 private:
  HeadPlan plan_head(GroupLook& look, Index head, Index query) const {
    HeadPlan plan{.head = head};
    std::vector<Candidate>& candidates = plan.report.candidates;
    candidates.resize(3);
    candidates[1] = polynomial_.softmax({head, head + 1}, look, {query, query + 1},
                                        planning_.budget(Path::polynomial), plan.polynomial);
    const bool separates = polynomial_.separates() || plan.polynomial;
    if (separates && planning_.forced != Path::toeplitz)
      candidates[2] = {.path = Path::toeplitz,
                       .feasible = false,
                       .reason = toeplitz_.refusal().empty()
                                     ? "positions separate: features do without transforms"
                                     : toeplitz_.refusal()};
    else
      candidates[2] = toeplitz_.softmax(head, look, query, plan.toeplitz);
    candidates[0] = planning_.exact();
    candidates[0].error_bound = std::numeric_limits<double>::infinity();
    if (const std::string reason = look.not_finite(query); !reason.empty()) {
      plan.report.entry_bound = std::numeric_limits<double>::infinity();
      if (planning_.forced != Path::automatic)
        detail::fail("head ", head, ": path ", planning_.forced, " cannot be run: ", reason);
      candidates.resize(1);
      candidates[0].reason = reason;
      take(plan, 0, reason);
      return plan;
    }
    plan.report.entry_bound = bound_exact(look, query, candidates[0], plan);
    choose(plan);
    return plan;
  }

  /// The exact path of a head of which nothing is known.
  Candidate unknown_exact(HeadPlan& plan) const {
    plan.report.entry_bound = std::numeric_limits<double>::quiet_NaN();
    Candidate exact = planning_.exact();
    exact.error_bound = exact.rounding = std::numeric_limits<double>::infinity();
    return exact;
  }

  /// The error of a head's exact path, from the rows' lengths. Returns the bound on its entries.
  double bound_exact(GroupLook& look, Index query, Candidate& exact, HeadPlan& plan) const {
    double entries = 0, terms = 0;
    const Arithmetic arithmetic = planning_.costs.arithmetic();
    if (problem_.weights) {
      const WeightedBounds bounds = weighted_bounds(look, query, problem_, epsilon_of(arithmetic));
      entries = bounds.radius;
      terms = bounds.feature_radius;
    } else {
      entries = terms = std::abs(problem_.scale) * look.query_norm(query) * look.key_norm();
    }
    const double spread = look.known_spread();
    exact.error_bound = exact.rounding = planning_.rounding(plan.head).of({terms, terms}).error(spread);
    if (simd::kBfloat16Products && arithmetic == Arithmetic::float32 && !problem_.weights)
      plan.pair_bound = exact_rounding<bfloat16>(problem_, plan.head).of({terms, terms}).error(spread);
    return entries;
  }

  /// Lets all heads of a key head share their features where that is cheaper than what was planned.
  void share_features(GroupLook& look, std::vector<HeadPlan>& plans) const {
    if (plans.size() < 2 || !polynomial_.separates() ||
        (planning_.forced != Path::automatic && planning_.forced != Path::polynomial))
      return;
    double separate = 0;
    for (const HeadPlan& plan : plans) {
      if (plan.report.candidates.size() < 2) return;  // it is not finite
      separate += chosen_of(plan).seconds;
    }
    std::optional<LowRankUnit> unit;
    const Candidate shared = share(polynomial_.softmax({plans.front().head, plans.back().head + 1}, look,
                                                       {0, problem_.group()}, separate, unit),
                                   std::ssize(plans));
    if (!unit) return;
    for (HeadPlan& plan : plans) {
      for (Candidate& c : plan.report.candidates)
        if (c.feasible) c.reason.clear();
      plan.report.candidates[1] = shared;
      plan.polynomial.reset();
      plan.toeplitz.reset();
      explain(plan, 1);
    }
    plans.front().polynomial = std::move(unit);
  }

  /// A head's share of the cost of all.
  static Candidate share(Candidate c, Index heads) {
    c.work = 1 / static_cast<double>(heads) * c.work;
    c.seconds /= static_cast<double>(heads);
    return c;
  }

  static const Candidate& chosen_of(const HeadPlan& plan) {
    return *std::find_if(plan.report.candidates.begin(), plan.report.candidates.end(),
                         [&](const Candidate& c) { return c.path == plan.report.path; });
  }

  /// The cheapest feasible candidate, or the forced one.
  void choose(HeadPlan& plan) const {
    const std::vector<Candidate>& candidates = plan.report.candidates;
    std::optional<std::size_t> best;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const Candidate& c = candidates[i];
      if (planning_.forced == c.path && !c.feasible)
        detail::fail("head ", plan.head, ": path ", planning_.forced, " cannot meet the tolerance ",
                     planning_.tolerance, ": ", c.reason, " (entry bound ", plan.report.entry_bound, ")");
      const bool eligible = c.feasible && (planning_.forced == Path::automatic || planning_.forced == c.path);
      if (eligible && (!best || c.seconds < candidates[*best].seconds)) best = i;
    }
    explain(plan, *best);
    if (plan.report.path != Path::polynomial) plan.polynomial.reset();
    if (plan.report.path != Path::toeplitz) plan.toeplitz.reset();
  }

  /// Says of each candidate why it won or lost.
  void explain(HeadPlan& plan, std::size_t winner) const {
    std::vector<Candidate>& candidates = plan.report.candidates;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      Candidate& c = candidates[i];
      if (!c.reason.empty()) continue;
      if (i == winner)
        c.reason = planning_.forced != Path::automatic ? "forced"
                   : problem_.kernel.is_softmax()      ? "cheapest that meets the tolerance"
                                                       : "cheapest";
      else if (planning_.forced != Path::automatic)
        c.reason = detail::message("path ", planning_.forced, " is forced");
      else
        c.reason = detail::message("predicted ", c.seconds / candidates[winner].seconds, " times slower");
    }
    const bool says_little = candidates[winner].path == Path::exact && planning_.forced == Path::automatic;
    const Candidate& closest = runner_up(candidates);
    std::string reason =
        says_little ? detail::message(closest.path, ": ", closest.reason) : candidates[winner].reason;
    if (problem_.kernel.is_softmax()) reason += shortfall(candidates[winner]);
    take(plan, winner, reason);
  }

  /// What a reason has to add of a bound that is more than the tolerance.
  std::string shortfall(const Candidate& c) const {
    if (c.error_bound <= planning_.tolerance) return {};
    return detail::message("; exact arithmetic can promise only ", c.error_bound, ", not the tolerance");
  }

  void take(HeadPlan& plan, std::size_t winner, const std::string& reason) const {
    const Candidate& c = plan.report.candidates[winner];
    plan.report.path = c.path;
    if (c.path != Path::exact && c.entry_bound > 0) plan.report.entry_bound = c.entry_bound;
    plan.report.degree = c.degree;
    plan.report.rank = c.rank;
    plan.report.error_bound = c.error_bound;
    plan.report.rounding = c.rounding;
    plan.report.reason = reason;
    if (!problem_.kernel.is_softmax()) plan.report.reason += "; rows get bounds when they are run";
  }

  /// The approximation that came closest to being chosen: the cheapest that could run, else the polynomial
  /// path unless the options alone rule it out.
  const Candidate& runner_up(const std::vector<Candidate>& candidates) const {
    const Candidate &polynomial = candidates[1], &toeplitz = candidates[2];
    if (polynomial.feasible && toeplitz.feasible)
      return polynomial.seconds <= toeplitz.seconds ? polynomial : toeplitz;
    return toeplitz.feasible || (!polynomial.feasible && only_toeplitz()) ? toeplitz : polynomial;
  }

  /// Whether the options rule features without transforms out and the Toeplitz path in.
  bool only_toeplitz() const {
    return problem_.kernel.is_softmax() && !polynomial_.separates() && toeplitz_.refusal().empty();
  }

  const Problem& problem_;
  Planning planning_;
  PolynomialCandidates polynomial_;
  ToeplitzCandidates toeplitz_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
