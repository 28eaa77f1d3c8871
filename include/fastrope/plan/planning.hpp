// Planning: what the candidates of one problem's heads have in common.
#pragma once

#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/plan/arithmetic.hpp"
#include "fastrope/plan/axes.hpp"
#include "fastrope/plan/cost_model.hpp"
#include "fastrope/plan/exact_rounding.hpp"
#include "fastrope/plan/head_report.hpp"
#include "fastrope/plan/look.hpp"
#include "fastrope/plan/low_rank.hpp"
#include "fastrope/plan/path_costs.hpp"
#include "fastrope/plan/work.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The multi-index sets of a plan, each made once. Safe to use from several threads.
class MonomialSets {
 public:
  std::shared_ptr<const MonomialSet> get(const std::vector<int>& limits, Degrees degrees) {
    const std::lock_guard lock(mutex_);
    auto& set = sets_[{limits, degrees}];
    if (!set) set = std::make_shared<const MonomialSet>(limits, degrees);
    return set;
  }

 private:
  std::mutex mutex_ = {};
  std::map<std::pair<std::vector<int>, Degrees>, std::shared_ptr<const MonomialSet>> sets_ = {};
};

/// What is asked of the plan of a problem, and its costs. Members may be called by several threads at once.
class Planning {
 public:
  Planning(const Problem& p, double allowed, Path path, const CostModel& rates, Arithmetic arithmetic,
           const Factorisations& by)
      : problem(p), tolerance(allowed), forced(path), costs(p, rates, arithmetic), factorisations_(by) {}

  const Problem& problem;
  const double tolerance;
  const Path forced;
  const PathCosts costs;

  /// The exact path of one head.
  Candidate exact() const {
    Candidate c;
    count(costs.exact(), c);
    return c;
  }

  /// What rounding does to exact attention of a head.
  ExactRoundingModel rounding(Index head) const {
    return with_real(costs.arithmetic(),
                     [&](auto real) { return exact_rounding<typename decltype(real)::type>(problem, head); });
  }

  /// What `path` may cost, in seconds, for so many heads, if it is to be chosen.
  double budget(Path path) const {
    if (forced == path) return std::numeric_limits<double>::infinity();
    return forced == Path::automatic ? costs.seconds(costs.exact()) : 0;
  }

  void count(const Work& work, Candidate& c) const {
    c.work = work;
    c.seconds = costs.seconds(work);
  }

  /// Features of query heads of the group, with what is known of them in the candidate. request: scale, d_v,
  /// rounding of exact keys, arithmetic and factorisations are found here.
  std::optional<LowRankFit> low_rank(GroupLook& look, Index head, Range queries,
                                     std::span<const FarPairs> far, LowRankRequest request,
                                     Candidate& c) const {
    request.scale = problem.scale;
    request.d_v = problem.shapes.d_v;
    request.exact = rounding(head);
    request.arithmetic = costs.arithmetic();
    request.factorisations = factorisations_;
    auto fit = look.fit(queries, far, std::move(request), c.reason);
    if (!fit) return fit;
    c.feasible = true;
    c.entry_bound = fit->radius;
    c.degree = fit->polynomial.degree();
    c.rank = static_cast<Index>(fit->rank);
    c.simplex_rank = fit->simplex_rank;
    c.error_bound = fit->error_bound;
    c.rounding = fit->rounding;
    c.how = detail::message(fit->limits.size(), " axes, keys shifted by ", name_of(fit->key_shift),
                            ", queries by ", name_of(fit->query_shift));
    return fit;
  }

  /// The features of a fit, for these query heads.
  LowRankUnit unit(Range heads, const LowRankFit& fit) {
    const auto c = fit.polynomial.coefficients();
    return {.heads = heads,
            .projection = fit.projection,
            .coefficients = {c.begin(), c.end()},
            .monomials = monomials(fit.limits),
            .chunks = {},
            .allowed = fit.allowed};
  }
  std::shared_ptr<const MonomialSet> monomials(const std::vector<int>& limits,
                                               Degrees degrees = Degrees::all) {
    return sets_.get(limits, degrees);
  }

  /// The rank of these limits; infeasible, with the figures, where it is too large.
  bool set_rank(Candidate& c, const std::vector<int>& limits, Degrees degrees = Degrees::all) const {
    const double rank = c.simplex_rank = rank_of(limits, degrees);
    c.degree = limits.empty() ? 0 : limits.front();
    c.feasible = rank <= static_cast<double>(kMaxRank);
    if (c.feasible)
      c.rank = static_cast<Index>(rank);
    else
      c.reason = rank_refusal(c.degree, static_cast<Index>(limits.size()), rank, problem.shapes.d_v,
                              size_of(costs.arithmetic()));
    return c.feasible;
  }

 private:
  Factorisations factorisations_;
  MonomialSets sets_ = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET
