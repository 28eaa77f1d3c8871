// make_plan: what is checked and looked at before a call is decided, and who decides it (plan/planner.hpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/attend/cache_bounds.hpp"
#include "fastrope/attend/plan.hpp"
#include "fastrope/core/error.hpp"
#include "fastrope/core/executor.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/plan/arithmetic.hpp"
#include "fastrope/plan/cost_model.hpp"
#include "fastrope/plan/factorisations.hpp"
#include "fastrope/plan/look.hpp"
#include "fastrope/plan/path_work.hpp"
#include "fastrope/plan/planner.hpp"
#include "fastrope/plan/work.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Throws Error unless the tolerance is a finite number >= 0 that a forced path can work with.
inline void require_tolerance(const Options& options) {
  if (!(options.tolerance >= 0) || !std::isfinite(options.tolerance))
    detail::fail("tolerance must be finite and not negative, got ", options.tolerance);
  const bool approximates =
      options.path == Path::toeplitz || (options.path == Path::polynomial && options.kernel.is_softmax());
  if (options.tolerance == 0 && approximates)
    detail::fail("path ", options.path, " approximates: it cannot meet tolerance 0");
}

namespace detail {

/// plan_group(kv) for every key head.
template <class Real, class PlanGroup>
Plan<Real> plan_groups(Problem problem, double tolerance, const Storage& storage, const Executor& executor,
                       PlanGroup&& plan_group) {
  const auto count = static_cast<std::size_t>(problem.shapes.kv_heads);
  std::vector<std::vector<HeadPlan>> groups(count);
  std::vector<std::exception_ptr> errors(count);  // an executor's threads need not let exceptions through
  executor.parallel_for(problem.shapes.kv_heads, [&](Index kv, Index) {
    try {
      groups[static_cast<std::size_t>(kv)] = plan_group(kv);
    } catch (...) {
      errors[static_cast<std::size_t>(kv)] = std::current_exception();
    }
  });
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  std::vector<HeadPlan> heads;
  for (std::vector<HeadPlan>& group : groups)
    for (HeadPlan& head : group) heads.push_back(std::move(head));
  return {std::move(problem), tolerance, storage, std::move(heads)};
}

/// Every head exact, for the reason given.
template <class Real>
Plan<Real> exact_plan(const Problem& problem, const Options& options, const char* reason) {
  const CostModel cost;
  const Planner planner(problem, options.tolerance, options.path, cost, kArithmeticOf<Real>, {});
  return plan_groups<Real>(problem, options.tolerance, {}, Executor::serial(),
                           [&](Index kv) { return planner.plan_exact(kv, reason, nullptr); });
}

/// A plan for any data of the problem's shapes.
template <class Real>
Plan<Real> plan_shapes(const Problem& problem, const Options& options, const CostModel& cost) {
  if (options.path == Path::exact) return exact_plan<Real>(problem, options, "forced");
  if (!options.kernel.is_softmax()) {
    const Planner planner(problem, options.tolerance, options.path, cost, kArithmeticOf<Real>, {});
    return plan_groups<Real>(problem, options.tolerance, {}, Executor::serial(),
                             [&](Index kv) { return planner.plan_kernel(kv); });
  }
  if (options.tolerance != 0)
    fail("a plan with tolerance ", options.tolerance, " belongs to the data: make_plan(q, k, v, options)");
  return exact_plan<Real>(problem, options, "tolerance 0 asks for the exact path");
}

}  // namespace detail

/// A plan for any data of these shapes: the exact path for every head, or features where a polynomial kernel
/// makes them exact and cheaper. With softmax and tolerance 0 it has capacity, as Plan says.
/// Throws Error for shapes and options that clash, and for a tolerance or a forced path that would need a
/// look at the data.
template <class Real = float>
Plan<Real> make_plan(const Shapes& shapes, const Options& options, const CostModel& cost = {}) {
  require_tolerance(options);
  Problem problem(shapes, options);
  if (options.tolerance == 0 && options.kernel.is_softmax())
    problem.read_when_run({.queries = options.query_positions,
                           .keys = options.key_positions,
                           .query_sections = options.query_section_positions,
                           .key_sections = options.key_section_positions,
                           .key_ranges = options.key_ranges});
  return detail::plan_shapes<Real>(problem, options, cost);
}

namespace detail {

/// The least that any approximation of a head could take: degree 1, beside reading the rows once.
template <class Real>
Work least_work(const Problem& problem, const CostModel& cost) {
  const Shapes& s = problem.shapes;
  const Index variables = problem.weights ? std::ssize(problem.weights->support()) : s.d;
  const double rank = static_cast<double>(variables + 1);
  std::vector<Work> paths = {toeplitz_work<Real>(problem, rank, 1)};
  if (polynomial_refusal(problem).empty())
    paths.push_back(polynomial_work<Real>(problem, rank, 1, cost.best_chunks<Real>(problem, rank, 1)));
  else if (!problem.weights)  // lags may separate in tails, of all rows at best
    paths.push_back(polynomial_work<Real>(problem, rank, 1, std::vector<FarPairs>{{{0, s.n_q}, s.n_k}}));
  return *std::min_element(paths.begin(), paths.end(), [&](const Work& a, const Work& b) {
    return cost.seconds<Real>(a) < cost.seconds<Real>(b);
  });
}

/// Why every head is to be exact whatever the data; empty where a look at them could pay, or a path is
/// forced.
template <class Real>
std::string exact_reason(const Problem& problem, const Options& options, const CostModel& cost) {
  if (problem.shapes.empty() || problem.shapes.n_k == 0) return "there is nothing to attend to";
  if (options.path == Path::exact) return "forced";
  if (options.path != Path::automatic) return {};
  const bool pays = cost.seconds<Real>(exact_work<Real>(problem)) >
                    1 / cost.look + cost.seconds<Real>(least_work<Real>(problem, cost));
  return pays ? ""
              : "exact costs less than a look at the data and the cheapest approximation of these shapes";
}

/// Whether the lengths of the rows, which bound the exact path's rounding, are worth reading beside it.
template <class Real>
bool lengths_pay(const Problem& problem, const CostModel& cost) {
  constexpr double kShare = 0.02;
  const Shapes& s = problem.shapes;
  const double rows =
      static_cast<double>(s.n_q) + static_cast<double>(s.n_k) / static_cast<double>(problem.group());
  const double seconds = cost.seconds<Real>({.element = rows * static_cast<double>(s.d) / kStreamed});
  return seconds <= kShare * cost.seconds<Real>(exact_work<Real>(problem));
}

/// A plan for these tensors. seen: what earlier plans have seen of them, or null.
template <class Real>
Plan<Real> plan_tensors(const StoredRows& q, const StoredRows& k, const StoredRows& v, const Storage& storage,
                        const Options& options, CacheBounds<Real>* seen, const CostModel& cost) {
  const Shapes shapes = shapes_of(q, k, v);
  require_tolerance(options);
  const Problem problem(shapes, options);
  problem.gates.require_values();
  if (options.tolerance == 0 || !options.kernel.is_softmax())
    return plan_shapes<Real>(problem, options, cost);
  const Planner planner(problem, options.tolerance, options.path, cost, kArithmeticOf<Real>,
                        factorisations());
  const std::string exact = exact_reason<Real>(problem, options, cost);
  const bool lengths = !shapes.empty() && lengths_pay<Real>(problem, cost);
  const auto plan = [&](std::vector<KeyMemory>& heads) {
    return plan_groups<Real>(problem, options.tolerance, storage, problem.executor, [&](Index kv) {
      if (!exact.empty() && !lengths) return planner.plan_exact(kv, exact, nullptr);
      KeyMemory& memory = heads[static_cast<std::size_t>(kv)];
      GroupLook of_rows = group_look<Real>(problem, kv, q, k, v, std::move(memory));
      auto plans = exact.empty() ? planner.plan(kv, of_rows) : planner.plan_exact(kv, exact, &of_rows);
      memory = std::move(of_rows.memory());
      return plans;
    });
  };
  if (seen != nullptr && exact.empty()) return seen->update(problem, plan);
  std::vector<KeyMemory> heads(static_cast<std::size_t>(shapes.kv_heads));
  return plan(heads);
}

}  // namespace detail

/// A plan for these tensors, each a view or an Eigen row-major object, k and v also paged: validates, bounds
/// the entries, and chooses the cheapest path that meets options.tolerance for each head. Throws Error,
/// naming the values, for tensors and options that clash and for a forced path that cannot meet the
/// tolerance. Cost: where no approximation of these shapes can pay, that of looking at shapes and options,
/// and of the lengths of all rows if they take at most 2 % of the exact path, for its bound; else a sample of
/// the rows and one pass over them.
template <TensorLike Q, RowsLike K, RowsLike V>
Plan<ArithmeticOf<ElementOf<Q>>> make_plan(const Q& q, const K& k, const V& v, const Options& options,
                                           const CostModel& cost = {}) {
  using Real = ArithmeticOf<ElementOf<Q>>;
  return detail::plan_tensors<Real>(as_tensor(q), as_rows(k), as_rows(v),
                                    storage_of<Real, Q, K, V, ElementOf<Q>>(), options, nullptr, cost);
}

/// The same for a cache whose first seen.rows() keys and values earlier plans have looked at: a look costs
/// O(n_q + new keys) rows.
template <TensorLike Q, RowsLike K, RowsLike V>
Plan<ArithmeticOf<ElementOf<Q>>> make_plan(const Q& q, const K& k, const V& v, const Options& options,
                                           CacheBounds<ArithmeticOf<ElementOf<Q>>>& seen,
                                           const CostModel& cost = {}) {
  using Real = ArithmeticOf<ElementOf<Q>>;
  return detail::plan_tensors<Real>(as_tensor(q), as_rows(k), as_rows(v),
                                    storage_of<Real, Q, K, V, ElementOf<Q>>(), options, &seen, cost);
}

}  // namespace fastrope::inline FASTROPE_TARGET
