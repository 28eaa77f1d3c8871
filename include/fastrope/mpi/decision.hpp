// Decision: what every rank of a call runs, the same on all.
//
//     Layout -> do features suit it? -> look at the rows of all ranks -> HeadPlan of each head
// What is asked of the rows is reduced over the ranks (side.hpp), and the planner of one process decides from
// it on each of them. It counts the work of all ranks, which share it.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/attend/make_plan.hpp"
#include "fastrope/attend/plan.hpp"
#include "fastrope/core/error.hpp"
#include "fastrope/core/executor.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/mpi/layout.hpp"
#include "fastrope/mpi/ranks.hpp"
#include "fastrope/mpi/side.hpp"
#include "fastrope/mpi/states.hpp"
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

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// Query heads that run together, with their key heads.
struct HeadPart {
  Range heads, kv_heads;
};

template <class Real>
struct Decision {
  std::vector<HeadReport> heads = {};
  std::vector<HeadPart> exact = {};  ///< together all exact heads
  bool allow_pairs = true;           ///< products of bfloat16 in these, where tensors are stored so
  RankUnits<Real> units = {};        ///< the others
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

/// Whether all rows see all keys.
inline bool sees_all_keys(const LagGrid& grid) {
  return grid.n_q() == 0 || grid.keys_of(0).end >= grid.n_k();
}

/// Why a rank's queries cannot do with all keys of the ranks before and some of its own; else empty.
inline std::string near_keys_refusal(const Layout& layout, const LagGrid& grid) {
  if (sees_all_keys(grid)) return {};
  Index first = 0;  // query of the rank
  for (std::size_t r = 0; r < layout.queries.size(); first += layout.queries[r++].count) {
    const Index rows = layout.queries[r].count, first_key = layout.first_keys[r],
                end = first_key + layout.keys[r].count;
    if (rows == 0) continue;
    const Index least = grid.keys_of(first).end, most = grid.keys_of(first + rows - 1).end;
    if (least < first_key || most > end)
      return fastrope::detail::message("rank ", r, " has the keys from ", first_key, " to ", end,
                                       ", and its queries see as few as ", std::max<Index>(least, 0),
                                       " and as many as ", most, ": near keys would be other ranks'");
  }
  return {};
}

/// The call of all ranks as one; its executor is the calling thread, which alone calls MPI. Requires default
/// positions, and options that give nothing else of each row.
inline Problem whole_problem(const Layout& layout, const Options& options) {
  Options of_all = options;
  of_all.executor = Executor::serial();
  return {layout.whole, of_all};
}

/// The call of some of this rank's rows, the first queries and keys, at their positions among all. Requires
/// default positions.
inline Problem own_problem(const Layout& layout, const Options& options, Index n_q, Index n_k) {
  const auto from = [](Position first, Index count) {
    std::vector<Position> positions(static_cast<std::size_t>(count));
    for (Index i = 0; i < count; ++i) positions[static_cast<std::size_t>(i)] = first + i;
    return positions;
  };
  const std::vector<Position> queries = from(layout.whole.n_k - layout.whole.n_q + layout.first_query, n_q),
                              keys = from(layout.first_key, n_k);
  Options of_rank = options;
  of_rank.query_positions = queries;
  of_rank.key_positions = keys;
  Shapes shapes = layout.own;
  shapes.n_q = n_q;
  shapes.n_k = n_k;
  return {shapes, of_rank};
}

/// Why every head is exact without a look at the rows; else empty.
template <class Real>
std::string exact_without_look(const Layout& layout, const Options& options) {
  if (options.path == Path::exact) return "forced";
  if (options.tolerance == 0) return "tolerance 0 asks for the exact path";
  if (!layout.default_places) return "positions are given: over ranks, features are of consecutive rows";
  if (options.key_ranges.given()) return "key_ranges are done by the exact path";
  if (options.dense_bias.data != nullptr || options.dense_mask.data != nullptr)
    return "a dense bias or mask is done by the exact path";
  const Problem whole = whole_problem(layout, options);
  if (std::string refusal = polynomial_refusal(whole); !refusal.empty()) return refusal;
  if (std::string refusal = near_keys_refusal(layout, whole.grid); !refusal.empty()) return refusal;
  return fastrope::detail::exact_reason<Real>(whole, options, CostModel{});
}

/// Makes a Decision, head group after head group.
template <class Real>
class Decider {
 public:
  Decider(const Ranks& ranks, const Layout& layout, const Options& options, const Storage& storage)
      : ranks_(ranks), layout_(layout), options_(options), storage_(storage) {}

  Decision<Real> decide(const StoredRows& q, const StoredRows& k, const StoredRows& v) {
    std::string reason;
    ranks_.agree([&] {
      require_tolerance(options_);
      reason = exact_without_look<Real>(layout_, options_);
      if (options_.path == Path::polynomial && !reason.empty())
        fastrope::detail::fail("path polynomial cannot be run over ranks: ", reason);
    });
    if (reason.empty()) {
      look(q, k, v);
    } else {
      constexpr double kInfinity = std::numeric_limits<double>::infinity();
      all_.heads.assign(static_cast<std::size_t>(layout_.own.heads),
                        {.path = Path::exact,
                         .entry_bound = std::numeric_limits<double>::quiet_NaN(),
                         .error_bound = kInfinity,
                         .rounding = kInfinity,
                         .reason = reason});
      pair_bound_ = kInfinity;
    }
    divide_exact_heads();
    return std::move(all_);
  }

 private:
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
    all_.allow_pairs = options_.tolerance == 0 || (storage_.pairs && pair_bound_ <= options_.tolerance);
    for (HeadReport& head : all_.heads)
      if (head.path == Path::exact && all_.allow_pairs && options_.tolerance > 0)
        head.error_bound = head.rounding = pair_bound_ + storage_.result_rounding * (1 + pair_bound_);
    const Index group = s.kv_heads == 0 ? 1 : s.heads / s.kv_heads;
    const auto is_exact = [&](Index h) {
      return h < s.heads && all_.heads[static_cast<std::size_t>(h)].path == Path::exact;
    };
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
