// Candidates: the ways to compute one head, each with its certified error and predicted cost.
#pragma once

#include <functional>
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
#include "fastrope/core/target.hpp"
#include "fastrope/dispatch/cost_model.hpp"
#include "fastrope/dispatch/entry_bounds.hpp"
#include "fastrope/dispatch/exact_rounding.hpp"
#include "fastrope/dispatch/path_work.hpp"
#include "fastrope/dispatch/report.hpp"
#include "fastrope/dispatch/work.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/polynomial/kernel_rounding.hpp"
#include "fastrope/polynomial/low_rank.hpp"
#include "fastrope/polynomial/monomials.hpp"

namespace fastrope::inline FASTROPE_TARGET {

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
  std::optional<Runnable> runnable = {};  ///< where the candidate is feasible and may be chosen
};

/// What the candidates of a problem's heads have in common. Members may be called by several threads at once.
template <class Real>
class Planning {
 public:
  Planning(const Problem& p, double allowed, Path path, const CostModel& rates)
      : problem(p), tolerance(allowed), forced(path), cost(rates), exact_(exact_work<Real>(p)) {}

  const Problem& problem;
  const double tolerance;
  const Path forced;
  const CostModel& cost;

  /// The exact path of one head.
  Candidate exact() const {
    Candidate c;
    count(exact_, c);
    return c;
  }

  /// What rounding does to exact attention of a head.
  ExactRounding rounding(Index head, const LogitSizes& sizes) const {
    return exact_rounding<Real>(problem, head, sizes);
  }

  /// Whether `path` may be chosen for so much work of a head.
  bool pays(Path path, const Work& work) const {
    return forced == path ||
           (forced == Path::automatic && cost.seconds<Real>(work) < cost.seconds<Real>(exact_));
  }

  void count(const Work& work, Candidate& c) const {
    c.work = work;
    c.seconds = cost.seconds<Real>(work);
  }

  /// Features of query heads of the group, with what is known of them in the candidate. worth(rank): whether
  /// they would pay.
  std::optional<LowRankFit> low_rank(GroupLook<Real>& look, Index head, Range queries, double allowed,
                                     bool may_weigh_keys, std::span<const FarPairs> far,
                                     std::function<bool(double)> worth, Candidate& c,
                                     double factor_error = 0) const {
    LowRankRequest request{.scale = problem.scale,
                           .tolerance = allowed,
                           .d_v = problem.shapes.d_v,
                           .may_weigh_keys = may_weigh_keys,
                           .factor_error = factor_error,
                           .exact = [this, head](const LogitSizes& sizes) { return rounding(head, sizes); },
                           .pays = std::move(worth)};
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
  std::shared_ptr<const MonomialSet> monomials(const std::vector<int>& limits) { return sets_.get(limits); }

  /// The rank of these limits; infeasible, with the figures, where it is too large.
  bool set_rank(Candidate& c, const std::vector<int>& limits) const {
    const double rank = c.simplex_rank = rank_of(limits);
    c.degree = limits.empty() ? 0 : limits.front();
    c.feasible = rank <= static_cast<double>(kMaxRank);
    if (c.feasible)
      c.rank = static_cast<Index>(rank);
    else
      c.reason =
          rank_refusal(c.degree, static_cast<Index>(limits.size()), rank, problem.shapes.d_v, sizeof(Real));
    return c.feasible;
  }

 private:
  Work exact_;
  MonomialSets sets_ = {};
};

/// The bound by features beyond which rows of a polynomial kernel are computed by exact tiles, where no
/// tolerance says.
inline constexpr double kKernelRowBound = 1e-2;

/// The polynomial path.
template <class Real>
class PolynomialCandidates {
 public:
  explicit PolynomialCandidates(Planning<Real>& planning)
      : planning_(planning), refusal_(polynomial_refusal(planning.problem)) {}

  /// Why the options rule it out, or empty.
  const std::string& refusal() const { return refusal_; }

  /// Query heads that share their features, `queries` of the group, all of the cost counted. worth(work):
  /// whether so much would pay.
  template <class Worth>
  Runner<LowRankUnit> softmax(Range heads, GroupLook<Real>& look, Range queries, Worth&& worth) const {
    Runner<LowRankUnit> run{{.path = Path::polynomial, .feasible = false, .reason = refusal_}};
    Candidate& c = run.candidate;
    if (!c.reason.empty()) return run;
    const auto work = [&](double rank) { return chunks_and_work(rank, heads.size()).second; };
    constexpr double kLeastRank = 2;  // degree 1 in one variable
    if (!worth(work(kLeastRank))) {
      c.reason = "for these shapes features of any rank are more work than the exact path";
      return run;
    }
    const auto fit = planning_.low_rank(
        look, heads.begin, queries, planning_.tolerance, /*may_weigh_keys=*/true,
        far_chunks<Real>(planning_.problem, CostModel::kLeastChunk),
        [&](double rank) { return worth(work(rank)); }, c);
    if (fit) finish(heads, fit->rank, worth, c, run, [&] { return planning_.unit(heads, *fit); });
    return run;
  }

  /// The features of a polynomial kernel, which approximate nothing, for all heads of a key head.
  Runner<LowRankUnit> kernel(Range heads) const {
    const Problem& problem = planning_.problem;
    const auto kernel = problem.kernel.coefficients();
    Runner<LowRankUnit> run{{.path = Path::polynomial, .feasible = false, .reason = refusal_}};
    Candidate& c = run.candidate;
    const std::vector<int> limits = simplex_limits(problem.shapes.d, problem.kernel.degree());
    if (!c.reason.empty() || !planning_.set_rank(c, limits)) return run;
    c.how = "exact for this kernel";
    c.error_bound = c.rounding = std::numeric_limits<double>::infinity();
    finish(
        heads, static_cast<double>(c.rank), [](const Work&) { return true; }, c, run,
        [&] {
          const Position farthest = problem.rotates() ? problem.grid.farthest_position() : 0;
          return LowRankUnit{.heads = heads,
                             .projection = Projection::identity(problem.shapes.d, 1),
                             .coefficients = {kernel.begin(), kernel.end()},
                             .monomials = planning_.monomials(limits),
                             .chunks = {},
                             .allowed = planning_.tolerance > 0 ? planning_.tolerance : kKernelRowBound,
                             .entry_error = row_rounding<Real>(problem, farthest)};
        });
    return run;
  }

 private:
  std::pair<std::vector<FarPairs>, Work> chunks_and_work(double rank, Index heads) const {
    const Problem& problem = planning_.problem;
    auto chunks = planning_.cost.template best_chunks<Real>(problem, rank, heads);
    const Work work = polynomial_work<Real>(problem, rank, heads, chunks);
    return {std::move(chunks), work};
  }

  template <class Worth, class MakeUnit>
  void finish(Range heads, double rank, Worth&& worth, Candidate& c, Runner<LowRankUnit>& run,
              MakeUnit&& make_unit) const {
    auto [chunks, work] = chunks_and_work(rank, heads.size());
    planning_.count(work, c);
    if (chunks.size() > 1)
      c.how += detail::message(", near fields exact in ", chunks.size(), " chunks of rows");
    if (heads.size() > 1) c.how += detail::message(", features shared by ", heads.size(), " heads");
    if (!worth(work)) return;
    run.runnable = make_unit();
    run.runnable->chunks = std::move(chunks);
  }

  Planning<Real>& planning_;
  std::string refusal_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
