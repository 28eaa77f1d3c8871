// Plan: a call that has been checked, looked at and decided, ready to run any number of times.
//
//     Options -> Problem -> entry bounds -> candidates -> Plan -> run
// Making a plan allocates and may throw; running one does neither.
#pragma once

#include <algorithm>
#include <exception>
#include <iterator>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/dispatch/cache_bounds.hpp"
#include "fastrope/dispatch/cost_model.hpp"
#include "fastrope/dispatch/entry_bounds.hpp"
#include "fastrope/dispatch/planner.hpp"
#include "fastrope/dispatch/report.hpp"
#include "fastrope/dispatch/verify.hpp"
#include "fastrope/exact/exact_call.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/problem/run_status.hpp"
#include "fastrope/toeplitz/attention.hpp"

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

/// What bounds have to know of how tensors are stored.
struct Storage {
  bool pairs = false;          ///< q, k and v are such that bfloat16 products may serve
  double result_rounding = 0;  ///< of out, if it is not of the arithmetic type, over its size
};

/// A planned attention call with arithmetic in Real. Copies are independent; one plan may be run by several
/// threads at once, each with its own workspace.
template <class Real>
class Plan {
 public:
  /// What make_plan found, a group for each key head.
  Plan(Problem problem, double tolerance, const Storage& storage, std::vector<GroupPlan> groups);

  /// Path, bounds, cost and reason of every head.
  const Report& report() const { return report_; }
  /// Scratch memory that run needs.
  std::size_t workspace_bytes() const { return report_.workspace_bytes; }
  const Shapes& shapes() const { return problem_.shapes; }

  /// Computes out [heads, n_q, d_v] from q [heads, n_q, d], k [kv_heads, n_k, d] and v [kv_heads, n_k, d_v],
  /// each a view or an Eigen row-major object, k and v also paged. Allocates nothing and throws nothing. out
  /// must not overlap the inputs. A plan made with a tolerance holds for the q, k and v that it was made for.
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  RunStatus run(const Q& q, const K& k, const V& v, Out&& out,
                std::span<std::byte> workspace) const noexcept {
    return run_tensors<OperandOf<Real, Q, K, V>>({as_tensor(q), k, v, as_tensor(out)}, workspace,
                                                 RunDetails{});
  }
  /// The same, with details of rows.
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  RunStatus run(const Q& q, const K& k, const V& v, Out&& out, std::span<std::byte> workspace,
                const RunDetails& details) const noexcept {
    return run_tensors<OperandOf<Real, Q, K, V>>({as_tensor(q), k, v, as_tensor(out)}, workspace, details);
  }

  /// The report with a spot check of `rows` rows of every head's output, recomputed in double precision: the
  /// largest error seen, to be held against the one that was promised. Allocates. Throws Error for tensors
  /// that are not the plan's. Cost: of exact attention in double for so many rows.
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  Report verify(const Q& q, const K& k, const V& v, const Out& out, Index rows) const {
    require_output(problem_.shapes, as_tensor(out));
    return verify_rows(as_tensor(q), k, v, as_tensor(out), rows);
  }

  /// The report for tools.
  std::string to_json() const { return report_.to_json(); }
  friend std::ostream& operator<<(std::ostream& out, const Plan& plan) { return out << plan.report_; }

 private:
  /// Whether products of bfloat16 may serve exact heads here at all.
  static constexpr bool kPairs = simd::kBfloat16Products && std::is_same_v<Real, float>;

  /// Exact heads whose products are of bfloat16.
  struct PairTiles {
    PackedKeys<bfloat16> packed;
    ExactAttention<bfloat16> exact;

    PairTiles(const Problem& problem, Workspace& workspace)
        : packed(problem, workspace), exact(problem, packed, workspace) {}
  };

  /// The components of a run of heads that differ, in the order in which they take workspace.
  struct Mixture {
    PackedKeys<Real> packed;
    ExactAttention<Real> exact;
    PolynomialAttention<Real> polynomial;
    ToeplitzAttention<Real> toeplitz;
    std::optional<KernelBounds<Real>> kernel = {};
    std::optional<std::conditional_t<kPairs, PairTiles, int>> pairs = {};

    Mixture(const Plan& plan, Workspace& workspace)
        : packed(plan.problem_, workspace, plan.key_shifts_),
          exact(plan.problem_, packed, workspace),
          polynomial(plan.problem_, plan.units_, workspace),
          toeplitz(plan.problem_, plan.segments_ ? &*plan.segments_ : nullptr, plan.toeplitz_heads_,
                   workspace) {
      if (!plan.problem_.kernel.is_softmax()) kernel.emplace(plan.problem_, workspace);
      if constexpr (kPairs)
        if (!plan.pair_rows_.empty()) pairs.emplace(plan.problem_, workspace);
    }

    template <class Operand>
    void run(const Plan& plan, const ExactTensors<Real>& x, const RunDetails& details) {
      const Problem& problem = plan.problem_;
      Index* repaired = details.repaired_rows.empty() ? nullptr : details.repaired_rows.data();
      packed.pack(problem, x.k, x.v);
      exact.prepare(problem);
      KernelRows<Real> rows;
      if (kernel) {
        kernel->measure(problem, x.k, x.v);
        rows = {&*kernel, details.row_bounds.empty() ? nullptr : details.row_bounds.data()};
      }
      polynomial.run(problem, packed, exact, x.q, x.out, repaired, rows);
      toeplitz.run(problem, packed, exact, x.q, x.out, repaired);
      exact.run(problem, packed, x.q, x.out, plan.exact_rows_);
      if constexpr (!std::is_same_v<Operand, Real>)
        if (pairs) {
          pairs->packed.pack(problem, x.k, x.v);
          pairs->exact.prepare(problem);
          return pairs->exact.run(problem, pairs->packed, x.q, x.out, plan.pair_rows_);
        }
      exact.run(problem, packed, x.q, x.out, plan.pair_rows_);
    }
  };

  /// Whether all heads are exact, and by the same products.
  bool all_exact() const {
    return units_.empty() && toeplitz_heads_.empty() && (pair_rows_.empty() || exact_rows_.empty());
  }

  template <class Operand>
  RunStatus run_tensors(const ExactTensors<Real>& x, std::span<std::byte> memory,
                        const RunDetails& details) const noexcept;
  Report verify_rows(const StoredRows& q, const KeyRows<double>& k, const ValueRows<double>& v,
                     const StoredRows& out, Index rows) const;

  /// The same where every head is exact and the rows of a polynomial kernel are bounded.
  struct BoundedExact {
    KernelBounds<Real> bounds;
    MatrixView<Real> sums;  // [heads, n_q], denominators
    std::span<std::byte> rest;

    BoundedExact(const Problem& problem, Workspace& workspace)
        : bounds(problem, workspace),
          sums{workspace.take<Real>(problem.shapes.heads * problem.shapes.n_q).data(), problem.shapes.heads,
               problem.shapes.n_q, problem.shapes.n_q},
          rest(workspace.take<std::byte>(static_cast<Index>(exact_workspace_bytes<Real>(problem)))) {}

    void run(const Problem& problem, const ExactTensors<Real>& x, double* row_bounds) {
      bounds.measure(problem, x.k, x.v);
      run_exact<Real>(problem, {x.q, x.k, x.v, x.out, sums}, rest);
      bounds.exact_rows(problem, x.q, sums, x.out, row_bounds);
    }
  };

  Problem problem_;
  Report report_;
  std::vector<LowRankUnit> units_ = {};
  std::vector<std::vector<Real>> key_shifts_ =
      {};  // [kv_heads] where there are units: taken out when keys are packed
  std::vector<ToeplitzHead> toeplitz_heads_ = {};
  std::vector<RowTask> exact_rows_ = {};
  std::vector<RowTask> pair_rows_ = {};  // exact too, by products of bfloat16
  std::optional<ToeplitzSegments<Real>> segments_ = {};
  bool allow_pairs_ = false;  // of bfloat16, where tensors are stored so
};

template <class Real>
Plan<Real>::Plan(Problem problem, double tolerance, const Storage& storage, std::vector<GroupPlan> groups)
    : problem_(std::move(problem)) {
  report_ = {.shapes = problem_.shapes, .tolerance = tolerance};
  const auto append = [](auto& all, auto& some) {
    all.insert(all.end(), std::make_move_iterator(some.begin()), std::make_move_iterator(some.end()));
  };
  std::vector<double> pair_bounds;
  for (GroupPlan& group : groups) {
    append(units_, group.polynomial);
    append(toeplitz_heads_, group.toeplitz);
    append(exact_rows_, group.exact_rows);
    append(report_.heads, group.reports);
    append(pair_bounds, group.pair_bounds);
  }
  // Products of bfloat16 where nobody asked for more, or in heads for which their bound leaves room. Few rows
  // are decoded, without them.
  const bool pairs = storage.pairs && tolerance > 0 && !DecodeAttention<Real>::suits(problem_);
  const auto multiplies_pairs = [&](Index h) {
    return pairs && report_.heads[static_cast<std::size_t>(h)].path == Path::exact &&
           pair_bounds[static_cast<std::size_t>(h)] <= tolerance;
  };
  const auto rest = std::stable_partition(exact_rows_.begin(), exact_rows_.end(),
                                          [&](const RowTask& task) { return !multiplies_pairs(task.head); });
  pair_rows_.assign(rest, exact_rows_.end());
  exact_rows_.erase(rest, exact_rows_.end());
  allow_pairs_ = tolerance == 0 || exact_rows_.empty();
  for (std::size_t h = 0; h < report_.heads.size(); ++h) {
    HeadReport& head = report_.heads[h];
    if (multiplies_pairs(static_cast<Index>(h))) {
      head.error_bound = head.rounding = pair_bounds[h];
      head.reason += ", with products of bfloat16";
    }
    const double result = storage.result_rounding > 0 ? storage.result_rounding * (1 + head.error_bound) : 0;
    head.error_bound += result;
    head.rounding += result;
  }
  if (!units_.empty()) key_shifts_.resize(static_cast<std::size_t>(problem_.shapes.kv_heads));
  for (LowRankUnit& unit : units_) {
    // Near keys and far ones are then of the same rows, and s q.mu is in neither. All units of a key head
    // have one shift.
    std::vector<double>& shift = unit.projection.key_shift;
    std::vector<Real>& packed = key_shifts_[static_cast<std::size_t>(problem_.kv_head(unit.heads.begin))];
    packed.assign(shift.begin(), shift.end());
    std::fill(shift.begin(), shift.end(), 0.0);
  }
  if (!toeplitz_heads_.empty())
    segments_.emplace(problem_.shapes.n_q, problem_.shapes.n_k, allowed_support(problem_));
  if (all_exact() && problem_.kernel.is_softmax())
    report_.workspace_bytes = exact_workspace_bytes<Real>(problem_);
  else if (all_exact())
    report_.workspace_bytes = Workspace::bytes_of([&](Workspace& w) { BoundedExact(problem_, w); });
  else
    report_.workspace_bytes = Workspace::bytes_of([&](Workspace& w) { Mixture(*this, w); });
}

template <class Real>
template <class Operand>
RunStatus Plan<Real>::run_tensors(const ExactTensors<Real>& x, std::span<std::byte> memory,
                                  const RunDetails& details) const noexcept {
  const auto& [repaired_rows, row_bounds] = details;
  const Index heads = problem_.shapes.heads, n_q = problem_.shapes.n_q;
  if (!fits(problem_.shapes, x.q, x.k, x.v, x.out) ||
      (!repaired_rows.empty() && std::ssize(repaired_rows) != heads) ||
      (!row_bounds.empty() && std::ssize(row_bounds) != heads * n_q))
    return RunStatus::shape_mismatch;
  if (memory.size() < workspace_bytes()) return RunStatus::workspace_too_small;
  std::fill(repaired_rows.begin(), repaired_rows.end(), Index{0});
  for (Index h = 0; h < heads && !row_bounds.empty(); ++h)
    std::fill_n(row_bounds.data() + h * n_q, n_q,
                problem_.kernel.is_softmax() ? report_.heads[static_cast<std::size_t>(h)].error_bound : 0);
  if (problem_.shapes.empty()) return RunStatus::ok;
  try {
    Workspace workspace(memory);
    if (!all_exact())
      Mixture(*this, workspace).template run<Operand>(*this, x, details);
    else if (!row_bounds.empty() && !problem_.kernel.is_softmax())
      BoundedExact(problem_, workspace).run(problem_, x, row_bounds.data());
    else
      run_exact<Operand>(problem_, x, memory, allow_pairs_);
  } catch (...) {
    return RunStatus::executor_failed;
  }
  return RunStatus::ok;
}

template <class Real>
Report Plan<Real>::verify_rows(const StoredRows& q, const KeyRows<double>& k, const ValueRows<double>& v,
                               const StoredRows& out, Index rows) const {
  if (rows < 0) detail::fail("a spot check is of 0 rows or more, got ", rows);
  if (shapes_of(q, k, v) != problem_.shapes)
    detail::fail("q, k and v are not of the shapes that the plan was made for");
  Report report = report_;
  rows = std::min(rows, problem_.shapes.n_q);
  if (rows == 0 || problem_.shapes.empty()) return report;
  const std::vector<double> errors = observed_errors(problem_, q, k, v, out, rows);
  for (std::size_t h = 0; h < errors.size(); ++h) {
    report.heads[h].verified_rows = rows;
    report.heads[h].observed_error = errors[h];
  }
  return report;
}

namespace detail {

/// plan_group(kv) for every key head.
template <class Real, class PlanGroup>
Plan<Real> plan_groups(Problem problem, double tolerance, const Storage& storage, const Executor& executor,
                       PlanGroup&& plan_group) {
  const auto count = static_cast<std::size_t>(problem.shapes.kv_heads);
  std::vector<GroupPlan> groups(count);
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
  return {std::move(problem), tolerance, storage, std::move(groups)};
}

/// Every head exact, for the reason given.
template <class Real>
Plan<Real> exact_plan(const Shapes& shapes, const Options& options, const char* reason) {
  const Problem problem(shapes, options);
  const CostModel cost;
  const Planner<Real> planner(problem, options.tolerance, options.path, cost);
  return plan_groups<Real>(problem, options.tolerance, {}, Executor::serial(),
                           [&](Index kv) { return planner.plan_exact(kv, reason, nullptr); });
}

}  // namespace detail

/// A plan for any data of these shapes: the exact path for every head, or features where a polynomial kernel
/// makes them exact and cheaper.
/// Throws Error for shapes and options that clash, and for a tolerance or a forced path that would need a
/// look at the data.
template <class Real = float>
Plan<Real> make_plan(const Shapes& shapes, const Options& options, const CostModel& cost = {}) {
  require_tolerance(options);
  if (options.path == Path::exact) return detail::exact_plan<Real>(shapes, options, "forced");
  if (!options.kernel.is_softmax()) {
    const Problem problem(shapes, options);
    Planner<Real> planner(problem, options.tolerance, options.path, cost);
    return detail::plan_groups<Real>(problem, options.tolerance, {}, Executor::serial(),
                                     [&](Index kv) { return planner.plan_kernel(kv); });
  }
  if (options.tolerance != 0)
    detail::fail("a plan with tolerance ", options.tolerance,
                 " belongs to the data: make_plan(q, k, v, options)");
  return detail::exact_plan<Real>(shapes, options, "tolerance 0 asks for the exact path");
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

/// Why every head is to be exact whatever the data; empty where a look at them could pay, or was asked for.
template <class Real>
std::string exact_reason(const Problem& problem, const Options& options, const CostModel& cost, bool asked) {
  if (problem.shapes.empty() || problem.shapes.n_k == 0) return "there is nothing to attend to";
  if (options.path == Path::exact) return "forced";
  if (asked || options.path != Path::automatic) return {};
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

/// look: whether make_plan was asked for, which looks at the rows wherever an approximation is possible;
/// attend only where that could pay.
template <class Real, class Q, class K, class V>
Plan<Real> plan_tensors(TensorView<const Q> q, const K& k, const V& v, const Options& options,
                        CacheBounds<Real>* seen, const CostModel& cost, double result_rounding, bool look) {
  const Shapes shapes = shapes_of(q, k, v);
  require_tolerance(options);
  if (options.tolerance == 0 || !options.kernel.is_softmax()) return make_plan<Real>(shapes, options, cost);
  const Problem problem(shapes, options);
  Planner<Real> planner(problem, options.tolerance, options.path, cost);
  const std::string exact = exact_reason<Real>(problem, options, cost, look);
  const bool lengths = !shapes.empty() && (look || lengths_pay<Real>(problem, cost));
  const auto plan = [&](std::vector<KeyMemory<Real>>& heads) {
    const Storage storage{!std::is_same_v<OperandOf<Real, TensorView<const Q>, K, V>, Real>, result_rounding};
    return plan_groups<Real>(problem, options.tolerance, storage, problem.executor, [&](Index kv) {
      if (!exact.empty() && !lengths) return planner.plan_exact(kv, exact, nullptr);
      KeyMemory<Real>& memory = heads[static_cast<std::size_t>(kv)];
      auto of_rows = group_look<Real>(problem, kv, q, k, v, std::move(memory));
      GroupPlan group = exact.empty() ? planner.plan(kv, of_rows) : planner.plan_exact(kv, exact, &of_rows);
      memory = std::move(of_rows.memory());
      return group;
    });
  };
  if (seen != nullptr && exact.empty()) return seen->update(problem, plan);
  std::vector<KeyMemory<Real>> heads(static_cast<std::size_t>(shapes.kv_heads));
  return plan(heads);
}

}  // namespace detail

/// A plan for these tensors, each a view or an Eigen row-major object, k and v also paged: validates, bounds
/// the entries, and chooses the cheapest path that meets options.tolerance for each head. Throws Error,
/// naming the values, for tensors and options that clash and for a forced path that cannot meet the
/// tolerance. Cost: a sample of the rows, and one pass over them for lengths or, where an approximation may
/// pay, for more.
template <TensorLike Q, RowsLike K, RowsLike V>
Plan<ArithmeticOf<ElementOf<Q>>> make_plan(const Q& q, const K& k, const V& v, const Options& options,
                                           const CostModel& cost = {}) {
  using Real = ArithmeticOf<ElementOf<Q>>;
  return detail::plan_tensors<Real>(TensorView<const ElementOf<Q>>(as_tensor(q)), as_rows(k), as_rows(v),
                                    options, nullptr, cost, result_rounding<Real, ElementOf<Q>>(), true);
}

/// The same for a cache whose first seen.rows() keys and values earlier plans have looked at: the look costs
/// O(n_q + new keys) rows.
template <TensorLike Q, RowsLike K, RowsLike V>
Plan<ArithmeticOf<ElementOf<Q>>> make_plan(const Q& q, const K& k, const V& v, const Options& options,
                                           CacheBounds<ArithmeticOf<ElementOf<Q>>>& seen,
                                           const CostModel& cost = {}) {
  using Real = ArithmeticOf<ElementOf<Q>>;
  return detail::plan_tensors<Real>(TensorView<const ElementOf<Q>>(as_tensor(q)), as_rows(k), as_rows(v),
                                    options, &seen, cost, result_rounding<Real, ElementOf<Q>>(), true);
}

}  // namespace fastrope::inline FASTROPE_TARGET
