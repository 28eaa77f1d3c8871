// Planner: which candidate each head runs, and why the others lost.
#pragma once

#include <limits>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/core/executor.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/dispatch/candidates.hpp"
#include "fastrope/dispatch/cost_model.hpp"
#include "fastrope/dispatch/entry_bounds.hpp"
#include "fastrope/dispatch/report.hpp"
#include "fastrope/dispatch/toeplitz_candidates.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/toeplitz/attention.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// What is needed to run the query heads of one key head, with their reports.
struct GroupPlan {
  std::vector<HeadReport> reports = {};
  std::vector<LowRankUnit> polynomial = {};
  std::vector<ToeplitzHead> toeplitz = {};
  std::vector<RowTask> exact_rows = {};
  std::vector<double> pair_bounds = {};  ///< of the heads' exact paths, if products were of bfloat16
};

/// Plans the heads of one problem, those of a key head together. Members may be called by several threads at
/// once.
template <class Real>
class Planner {
 public:
  Planner(const Problem& problem, double tolerance, Path forced, const CostModel& cost)
      : problem_(problem),
        planning_(problem, tolerance, forced, cost),
        polynomial_(planning_),
        toeplitz_(planning_, polynomial_.refusal().empty()) {}
  ~Planner() = default;
  Planner(const Planner&) = delete;
  Planner& operator=(const Planner&) = delete;

  /// The cheapest candidates that meet the tolerance, or the forced ones, for the rows of key head kv.
  /// Throws Error when the forced path cannot be run or cannot meet the tolerance.
  GroupPlan plan(Index kv, GroupLook<Real>& look);

  /// The exact path, with its bound if there is a look at the rows.
  GroupPlan plan_exact(Index kv, const std::string& reason, GroupLook<Real>* look) const;

  /// With a polynomial kernel the exact path and features are both exact but for rounding, of which each row
  /// gets a bound when it is run: whichever is cheaper. Throws Error when a forced path cannot be run.
  GroupPlan plan_kernel(Index kv);

 private:
  /// One head while it is planned.
  struct Draft {
    Index head;
    HeadReport report = {};
    std::optional<LowRankUnit> polynomial = {};  ///< of heads that share one, the first has it
    std::optional<ToeplitzRun> toeplitz = {};

    std::size_t chosen = 0;  ///< of the report's candidates
    double pair_bound = std::numeric_limits<double>::infinity();

    explicit Draft(Index h) : head(h) {}
  };

  void draft(GroupLook<Real>& look, Index query, Draft& d) {
    auto polynomial = polynomial_.softmax({d.head, d.head + 1}, look, {query, query + 1},
                                          [&](const Work& w) { return planning_.pays(Path::polynomial, w); });
    auto toeplitz = toeplitz_.softmax(d.head, look, query);
    Candidate exact = planning_.exact();
    exact.error_bound = std::numeric_limits<double>::infinity();
    if (exact.reason = look.not_finite(query); !exact.reason.empty()) {
      d.report.entry_bound = std::numeric_limits<double>::infinity();
      if (planning_.forced != Path::automatic)
        detail::fail("head ", d.head, ": path ", planning_.forced, " cannot be run: ", exact.reason);
      d.report.candidates = {exact};
      return take(d, 0, exact.reason);
    }
    d.report.entry_bound = bound_exact(look, query, exact, d);
    d.report.candidates = {exact, std::move(polynomial.candidate), std::move(toeplitz.candidate)};
    d.polynomial = std::move(polynomial.runnable);
    d.toeplitz = std::move(toeplitz.runnable);
    choose(d);
  }

  /// The error of a head's exact path, from the rows' lengths. Returns the bound on its entries.
  double bound_exact(GroupLook<Real>& look, Index query, Candidate& exact, Draft& d) const {
    double entries = 0, terms = 0;
    if (problem_.weights) {
      const WeightedBounds bounds = weighted_bounds(look, query, problem_);
      entries = bounds.radius;
      terms = bounds.feature_radius;
    } else {
      entries = terms = std::abs(problem_.scale) * look.query_norm(query) * look.key_norm();
    }
    const double spread = look.known_spread();
    exact.error_bound = exact.rounding = planning_.rounding(d.head, {terms, terms}).error(spread);
    if constexpr (simd::kBfloat16Products && std::is_same_v<Real, float>)
      if (!problem_.weights)
        d.pair_bound = exact_rounding<bfloat16>(problem_, d.head, {terms, terms}).error(spread);
    return entries;
  }

  /// Lets all heads of a key head share their features where that is cheaper than what was drafted.
  void share_features(GroupLook<Real>& look, std::vector<Draft>& drafts) {
    if (drafts.size() < 2 || (planning_.forced != Path::automatic && planning_.forced != Path::polynomial))
      return;
    double separate = 0;
    for (const Draft& d : drafts) {
      if (d.report.candidates.size() < 2) return;  // it is not finite
      separate += d.report.candidates[d.chosen].seconds;
    }
    const Range heads{drafts.front().head, drafts.back().head + 1};
    auto [shared, unit] = polynomial_.softmax(heads, look, {0, problem_.group()}, [&](const Work& work) {
      return planning_.cost.template seconds<Real>(work) < separate;
    });
    if (!unit) return;
    share(shared, drafts.size());
    for (Draft& d : drafts) {
      for (Candidate& c : d.report.candidates)
        if (c.feasible) c.reason.clear();
      d.report.candidates[1] = shared;
      d.polynomial.reset();
      explain(d, 1);
    }
    drafts.front().polynomial = std::move(unit);
  }

  /// A head's share of the cost of all.
  static void share(Candidate& c, std::size_t heads) {
    c.work = 1 / static_cast<double>(heads) * c.work;
    c.seconds /= static_cast<double>(heads);
  }

  /// The cheapest feasible candidate, or the forced one.
  void choose(Draft& d) const {
    const std::vector<Candidate>& candidates = d.report.candidates;
    std::optional<std::size_t> best;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const Candidate& c = candidates[i];
      if (planning_.forced == c.path && !c.feasible)
        detail::fail("head ", d.head, ": path ", planning_.forced, " cannot meet the tolerance ",
                     planning_.tolerance, ": ", c.reason, " (entry bound ", d.report.entry_bound, ")");
      const bool eligible = c.feasible && (planning_.forced == Path::automatic || planning_.forced == c.path);
      if (eligible && (!best || c.seconds < candidates[*best].seconds)) best = i;
    }
    explain(d, *best);
  }

  /// Says of each candidate why it won or lost.
  void explain(Draft& d, std::size_t winner) const {
    std::vector<Candidate>& candidates = d.report.candidates;
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
    if (candidates[winner].error_bound > planning_.tolerance && problem_.kernel.is_softmax())
      reason += detail::message("; exact arithmetic can promise only ", candidates[winner].error_bound,
                                ", not the tolerance");
    take(d, winner, reason);
  }

  void take(Draft& d, std::size_t winner, const std::string& reason) const {
    const Candidate& c = d.report.candidates[winner];
    d.chosen = winner;
    d.report.path = c.path;
    if (c.path != Path::exact && c.entry_bound > 0) d.report.entry_bound = c.entry_bound;
    d.report.degree = c.degree;
    d.report.rank = c.rank;
    d.report.error_bound = c.error_bound;
    d.report.rounding = c.rounding;
    d.report.reason = reason;
    if (!problem_.kernel.is_softmax()) d.report.reason += "; rows get bounds when they are run";
  }

  /// The approximation that came closest to being chosen: the cheapest that could run, else the polynomial
  /// path unless the options alone rule it out.
  const Candidate& runner_up(const std::vector<Candidate>& candidates) const {
    const Candidate &polynomial = candidates[1], &toeplitz = candidates[2];
    if (polynomial.feasible && toeplitz.feasible)
      return polynomial.seconds <= toeplitz.seconds ? polynomial : toeplitz;
    return toeplitz.feasible || (!polynomial.feasible && only_toeplitz()) ? toeplitz : polynomial;
  }

  /// Whether the options rule the polynomial path out and the Toeplitz path in.
  bool only_toeplitz() const {
    return problem_.kernel.is_softmax() && !polynomial_.refusal().empty() && toeplitz_.refusal().empty();
  }

  GroupPlan finish(std::vector<Draft>& drafts) const {
    GroupPlan group;
    for (Draft& d : drafts) {
      if (d.report.path == Path::polynomial && d.polynomial)
        group.polynomial.push_back(std::move(*d.polynomial));
      if (d.report.path == Path::toeplitz && d.toeplitz->state)
        group.polynomial.push_back(std::move(*d.toeplitz->state));
      if (d.report.path == Path::toeplitz && d.toeplitz->transforms) {
        group.toeplitz.push_back(std::move(*d.toeplitz->transforms));
      }
      if (d.report.path == Path::exact) {
        const RowTasks<Real> blocks(problem_, {d.head, d.head + 1});
        for (Index b = 0; b < blocks.count(); ++b) group.exact_rows.push_back(blocks[b]);
      }
      group.pair_bounds.push_back(d.pair_bound);
      group.reports.push_back(std::move(d.report));
    }
    return group;
  }

  const Problem& problem_;
  Planning<Real> planning_;
  PolynomialCandidates<Real> polynomial_;
  ToeplitzCandidates<Real> toeplitz_;
};

template <class Real>
GroupPlan Planner<Real>::plan(Index kv, GroupLook<Real>& look) {
  [[maybe_unused]] const OwnThread own_thread;
  std::vector<Draft> drafts;
  for (Index h = 0; h < problem_.group(); ++h) {
    Draft& d = drafts.emplace_back(kv * problem_.group() + h);
    draft(look, h, d);
  }
  share_features(look, drafts);
  return finish(drafts);
}

template <class Real>
GroupPlan Planner<Real>::plan_exact(Index kv, const std::string& reason, GroupLook<Real>* look) const {
  std::vector<Draft> drafts;
  for (Index h = 0; h < problem_.group(); ++h) {
    Draft& d = drafts.emplace_back(kv * problem_.group() + h);
    d.report.entry_bound = std::numeric_limits<double>::quiet_NaN();
    Candidate exact = planning_.exact();
    exact.error_bound = exact.rounding = std::numeric_limits<double>::infinity();
    exact.reason = reason;
    if (look != nullptr) d.report.entry_bound = bound_exact(*look, h, exact, d);
    d.report.candidates = {exact};
    take(d, 0, reason);
  }
  return finish(drafts);
}

template <class Real>
GroupPlan Planner<Real>::plan_kernel(Index kv) {
  const Index group = problem_.group();
  if (group == 0) return {};
  auto [features, unit] = polynomial_.kernel({kv * group, (kv + 1) * group});
  share(features, static_cast<std::size_t>(group));
  std::vector<Draft> drafts;
  for (Index h = 0; h < group; ++h) {
    Draft& d = drafts.emplace_back(kv * group + h);
    d.report.entry_bound = std::numeric_limits<double>::quiet_NaN();
    Candidate exact = planning_.exact();
    exact.error_bound = exact.rounding = std::numeric_limits<double>::infinity();
    d.report.candidates = {
        exact, features,
        Candidate{
            .path = Path::toeplitz, .feasible = false, .reason = "transforms are for an exponential kernel"}};
    choose(d);
  }
  if (drafts.front().report.path == Path::polynomial) drafts.front().polynomial = std::move(unit);
  return finish(drafts);
}

}  // namespace fastrope::inline FASTROPE_TARGET
