// Decision: what every rank of a call runs, the same on all.
//
//     Layout -> by rows?  yes: exact pieces, or features: a look at the rows of all ranks -> HeadPlan of each
//                         no:  by heads: each rank plans some, as one process would
// What is asked of the rows is reduced over the ranks (side.hpp), and the planner of one process decides from
// it on each of them. It counts the work of all ranks, which share it.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/attend/make_plan.hpp"
#include "fastrope/attend/plan.hpp"
#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/mpi/by_heads.hpp"
#include "fastrope/mpi/exchange.hpp"
#include "fastrope/mpi/head_part.hpp"
#include "fastrope/mpi/layout.hpp"
#include "fastrope/mpi/rank_problems.hpp"
#include "fastrope/mpi/ranks.hpp"
#include "fastrope/mpi/side.hpp"
#include "fastrope/mpi/states.hpp"
#include "fastrope/mpi/whole_options.hpp"
#include "fastrope/plan/certificate.hpp"
#include "fastrope/plan/cost_model.hpp"
#include "fastrope/plan/factorisations.hpp"
#include "fastrope/plan/far_field.hpp"
#include "fastrope/plan/head_report.hpp"
#include "fastrope/plan/planner.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/toeplitz/head.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

template <class Real>
struct Decision {
  std::vector<HeadReport> heads = {};
  std::vector<HeadPart> exact = {};  ///< together all exact heads
  bool allow_pairs = true;           ///< products of bfloat16 in these, where tensors are stored so
  RankUnits<Real> units = {};        ///< those by states
  UnitPlans<Real> by_heads = {};     ///< those that have a rank each

  /// Whether some head is divided by rows.
  bool by_rows() const { return !exact.empty() || !units.units.empty(); }
};

/// What merging partial results (online_softmax.hpp) adds to the error of exact attention, over max|V|;
/// logits bounds their sizes.
///
/// A row's parts, at most one a rank, join one after the other. With L = logits, a part of n_k keys or fewer
/// has |lse| <= L + ln n_k, which is rounded to Real when it is made and by each merge. So the weight of a
/// part is off by the factor 1 + f, |f| <= P (L + ln n_k + 1) u, roundings of exp and log in double among
/// them, which moves the output as the weights of certificate.hpp do, by output_error(f) at most. Each merge
/// rounds the output, at most max|V|, once.
template <class Real>
double merge_rounding(int ranks, double logits, Index keys) {
  const double merges = kHigherOrder * ranks * kUnitRoundoff<Real>;
  const double weights = merges * (logits + std::log(static_cast<double>(std::max<Index>(keys, 1))) + 1);
  return weights < 1 ? output_error(weights) + merges : std::numeric_limits<double>::infinity();
}

/// Whether no part of a head's rows can do without the others, so that heads go to ranks whole.
inline bool takes_whole_heads(const Options& o) {
  return !o.kernel.is_softmax() || o.log_gates.rows > 0 || o.log_input_gates.rows > 0 ||
         o.query_section_positions.rows > 0 || o.key_section_positions.rows > 0 || o.path == Path::toeplitz;
}

/// Why every head is exact whatever the sizes; else empty.
inline std::string exact_anyway(const Options& options) {
  if (options.path == Path::exact) return "forced";
  if (options.tolerance == 0) return "tolerance 0 asks for the exact path";
  if (options.dense_bias.data != nullptr || options.dense_mask.data != nullptr)
    return "a dense bias or mask is done by the exact path";
  if (options.path == Path::automatic && options.key_ranges.given())
    return "key_ranges are done by the exact path";
  return {};
}

/// Why heads cannot be approximated by states (states.hpp); else empty. whole: of all rows.
inline std::string states_refusal(const Layout& layout, const Problem& whole) {
  if (!layout.default_places) return "positions are given: states are of consecutive rows";
  if (std::string refusal = polynomial_refusal(whole); !refusal.empty()) return refusal;
  return near_keys_refusal(layout, whole.grid);
}

/// What a head's path is predicted to take.
inline double chosen_seconds(const HeadReport& head) {
  for (const Candidate& c : head.candidates)
    if (c.path == head.path) return c.seconds;
  return 0;
}

/// Makes a Decision, head group after head group.
template <class Real>
class Decider {
 public:
  Decider(const Ranks& ranks, const Layout& layout, const Options& options, const Storage& storage)
      : ranks_(ranks), layout_(layout), options_(options), storage_(storage) {}

  /// What messages of rows and options it took goes to traffic.
  Decision<Real> decide(const StoredRows& q, const StoredRows& k, const StoredRows& v, Traffic& traffic) {
    const bool whole_heads = takes_whole_heads(options_);
    std::string exact = whole_heads ? "" : exact_anyway(options_), refusal;
    const bool dense = options_.dense_bias.data != nullptr || options_.dense_mask.data != nullptr;
    ranks_.agree([&] {
      require_tolerance(options_);
      if (dense && (whole_heads || options_.path == Path::polynomial))
        fastrope::detail::fail(
            "a dense bias or mask is spread over ranks on the exact path of softmax alone");
      if (options_.verify > 0 && !exact.empty() && (options_.key_ranges.given() || dense))
        fastrope::detail::fail("a spot check of ", options_.verify,
                               " rows (options.verify) does not go with "
                               "key_ranges, dense_bias and dense_mask over ranks");
    });
    std::unique_ptr<WholeOptions> all_options;
    if (exact.empty()) all_options = std::make_unique<WholeOptions>(ranks_, layout_, options_, traffic);
    if (exact.empty() && !whole_heads)
      ranks_.agree([&] {
        const Problem whole = whole_problem(layout_, all_options->all());
        refusal = states_refusal(layout_, whole);
        if (!refusal.empty() && refusal == polynomial_refusal(whole) && !toeplitz_refusal(whole).empty()) {
          if (options_.path == Path::polynomial)
            fastrope::detail::fail("path polynomial cannot be run: ", refusal);
          exact = refusal;
          return;
        }
        exact = fastrope::detail::exact_reason<Real>(whole, options_, CostModel{});
        if (!exact.empty() && !refusal.empty()) exact = refusal + "; " + exact;
      });
    if (!exact.empty()) {
      all_.heads.resize(static_cast<std::size_t>(layout_.own.heads));
      for (HeadReport& head : all_.heads) take_exact(head, exact);
    } else if (whole_heads || !refusal.empty()) {
      all_.by_heads.units = head_units(layout_.whole, ranks_.count());
      all_.by_heads.options = std::move(all_options);
      all_.heads = plan_units(ranks_, layout_, all_.by_heads, q, k, v, storage_, traffic);
      if (!whole_heads && options_.path == Path::automatic) keep_units_that_pay(refusal);
    } else {
      look(q, k, v);
    }
    divide_exact_heads();
    return std::move(all_);
  }

 private:
  /// A head by exact pieces, of whose rows nobody knows how long they are.
  void take_exact(HeadReport& head, const std::string& reason) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    head = {.path = Path::exact,
            .entry_bound = std::numeric_limits<double>::quiet_NaN(),
            .error_bound = kInfinity,
            .rounding = kInfinity,
            .reason = reason,
            .candidates = std::move(head.candidates)};
    pair_bound_ = kInfinity;
  }

  /// Of the planned units those with heads that are not exact, if the rank that has most to do with them is
  /// predicted to end before all ranks together would have computed them exactly. refusal: of states.
  void keep_units_that_pay(const std::string& refusal) {
    UnitPlans<Real>& all = all_.by_heads;
    UnitPlans<Real> kept;
    std::vector<double> of_ranks(static_cast<std::size_t>(ranks_.count()));
    double exact = 0;
    std::size_t mine = 0;
    for (const HeadUnit& unit : all.units) {
      const bool is_mine = unit.rank == ranks_.rank();
      const std::size_t plan = is_mine ? mine++ : 0;
      const std::span<HeadReport> heads = heads_of(unit);
      if (std::all_of(heads.begin(), heads.end(), [](auto& head) { return head.path == Path::exact; })) {
        for (HeadReport& head : heads) take_exact(head, refusal + "; " + head.reason);
        continue;
      }
      kept.units.push_back(unit);
      if (is_mine) kept.plans.push_back(std::move(all.plans[plan]));
      for (const HeadReport& head : heads) {
        of_ranks[static_cast<std::size_t>(unit.rank)] += chosen_seconds(head);
        exact += head.candidates.front().seconds / ranks_.count();
      }
    }
    const double longest = *std::max_element(of_ranks.begin(), of_ranks.end());
    if (longest < exact) {
      kept.options = std::move(all.options);
      all = std::move(kept);
      return;
    }
    for (const HeadUnit& unit : kept.units)
      for (HeadReport& head : heads_of(unit))
        take_exact(head, fastrope::detail::message(refusal, "; by heads one rank would take ", longest,
                                                   " s, exactly all together ", exact, " s"));
    all = {};
  }
  std::span<HeadReport> heads_of(const HeadUnit& unit) {
    return std::span(all_.heads)
        .subspan(static_cast<std::size_t>(unit.heads.begin), static_cast<std::size_t>(unit.heads.size()));
  }

  void look(const StoredRows& q, const StoredRows& k, const StoredRows& v) {
    const Problem whole = whole_problem(layout_, options_);
    all_.units.of_all = sees_all_keys(whole.grid);
    all_.units.key_shifts.resize(static_cast<std::size_t>(layout_.own.kv_heads));
    std::optional<Problem> own;
    ranks_.agree([&] { own = own_problem(layout_, options_, layout_.own.n_q, layout_.own.n_k); });
    const CostModel cost;
    const Planner planner(whole, options_.tolerance, options_.path, cost, kArithmeticOf<Real>,
                          factorisations());
    for (Index kv = 0; kv < layout_.own.kv_heads; ++kv) {
      GroupLook rows = rank_look<Real>(ranks_, layout_, *own, kv, q, k, v);
      std::vector<HeadPlan> plans;
      try {
        plans = planner.plan(kv, rows);
      } catch (const Error&) {  // the same on every rank
        throw;
      } catch (...) {  // this rank's memory, while others wait for what it was about to ask
        MPI_Abort(ranks_.comm(), 1);
      }
      double queries = 0;
      for (Index h = 0; h < whole.group(); ++h) queries = std::max(queries, rows.query_norm(h));
      logits_ = std::abs(whole.scale) * queries * rows.key_norm();
      for (HeadPlan& plan : plans)
        if (plan.polynomial) take(std::move(*plan.polynomial), *own, rows, plans);
      for (HeadPlan& plan : plans) take(std::move(plan));
    }
  }

  /// A unit, unless nothing is far from anything, or rows that are computed again could be off by more than
  /// the tolerance: those are off by what near keys are, which the unit's bound has beside `allowed`, and by
  /// the merging of their parts in double.
  void take(LowRankUnit unit, const Problem& own, GroupLook& rows, std::vector<HeadPlan>& plans) {
    const double merged = merge_rounding<double>(ranks_.count(), logits_, layout_.whole.n_k);
    std::string refusal;
    if (far_field(unit.chunks).empty()) refusal = "no key is far from any row";
    for (HeadPlan& plan : plans) {
      if (plan.head < unit.heads.begin || plan.head >= unit.heads.end) continue;
      double& bound = plan.report.error_bound;
      bound = std::max(bound, bound - unit.allowed + merged);
      if (bound > options_.tolerance)
        refusal =
            fastrope::detail::message("rows that are computed again over ranks could be off by ", bound);
    }
    if (!refusal.empty()) {
      for (HeadPlan& plan : plans)
        if (unit.heads.begin <= plan.head && plan.head < unit.heads.end) {
          const Candidate& exact = plan.report.candidates.front();
          plan.report = {.path = Path::exact,
                         .entry_bound = logits_,
                         .error_bound = exact.error_bound,
                         .rounding = exact.rounding,
                         .reason = refusal,
                         .candidates = std::move(plan.report.candidates)};
        }
      return;
    }
    // As in one process, all units of a key head have one shift, which its packed keys have lost.
    std::vector<double>& shift = unit.projection.key_shift;
    all_.units.key_shifts[static_cast<std::size_t>(own.kv_head(unit.heads.begin))].assign(shift.begin(),
                                                                                          shift.end());
    std::fill(shift.begin(), shift.end(), 0.0);
    if (all_.units.of_all)
      unit.chunks = {{{0, layout_.own.n_q}, 0}};
    else
      unit.chunks =
          CostModel{}.best_chunks<Real>(own, static_cast<double>(unit.monomials->rank()), unit.heads.size());
    double largest = 0;
    for (const double x : rows.value_bounds().lowest()) largest = std::max(largest, std::abs(x));
    for (const double x : rows.value_bounds().highest()) largest = std::max(largest, std::abs(x));
    all_.units.largest_values.push_back(largest);
    all_.units.units.push_back(std::move(unit));
  }

  void take(HeadPlan plan) {
    HeadReport& head = all_.heads.emplace_back(std::move(plan.report));
    if (head.path == Path::exact) {
      const double merged = merge_rounding<Real>(ranks_.count(), logits_, layout_.whole.n_k);
      head.error_bound += merged;
      head.rounding += merged;
      pair_bound_ = std::max(pair_bound_, plan.pair_bound + merged);
    }
    const double result =
        storage_.result_rounding > 0 ? storage_.result_rounding * (1 + head.error_bound) : 0;
    head.error_bound += result;
    head.rounding += result;
  }

  void divide_exact_heads() {
    const Shapes& s = layout_.own;
    const Index group = s.kv_heads == 0 ? 1 : s.heads / s.kv_heads;
    std::vector<bool> exact;
    for (const HeadReport& head : all_.heads) exact.push_back(head.path == Path::exact);
    for (const HeadUnit& unit : all_.by_heads.units)
      std::fill(exact.begin() + unit.heads.begin, exact.begin() + unit.heads.end, false);
    const auto is_exact = [&](Index h) { return h < s.heads && exact[static_cast<std::size_t>(h)]; };
    all_.allow_pairs = options_.tolerance == 0 || (storage_.pairs && pair_bound_ <= options_.tolerance);
    for (Index h = 0; h < s.heads && all_.allow_pairs && options_.tolerance > 0; ++h)
      if (HeadReport& head = all_.heads[static_cast<std::size_t>(h)]; is_exact(h))
        head.error_bound = head.rounding = pair_bound_ + storage_.result_rounding * (1 + pair_bound_);
    // Whole groups side by side are one part; of the others, neighbours in a group.
    for (Index h = 0; h < s.heads;) {
      if (!is_exact(h)) {
        ++h;
        continue;
      }
      const Index kv = h / group;
      Index end = h + 1;
      while (is_exact(end) && end < (kv + 1) * group) ++end;
      std::vector<HeadPart>& parts = all_.exact;
      const bool whole = end - h == group;
      if (whole && !parts.empty() && parts.back().heads.end == h &&
          parts.back().heads.size() == parts.back().kv_heads.size() * group)
        parts.back() = {{parts.back().heads.begin, end}, {parts.back().kv_heads.begin, kv + 1}};
      else
        parts.push_back({{h, end}, {kv, kv + 1}});
      h = end;
    }
    if (s.heads == 0) all_.exact = {{{0, 0}, {0, s.kv_heads}}};
  }

  const Ranks& ranks_;
  const Layout& layout_;
  const Options& options_;
  const Storage& storage_;
  double logits_ = 0;      // of the key head at hand
  double pair_bound_ = 0;  // of all exact heads
  Decision<Real> all_ = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
