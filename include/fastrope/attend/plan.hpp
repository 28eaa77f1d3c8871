// Plan: a call that has been checked, looked at and decided, ready to run any number of times.
//
//     Options -> Problem -> look at the rows -> HeadPlan of each head -> Plan -> run
// Making a plan allocates and may throw; running one does neither.
#pragma once

#include <algorithm>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/attend/report.hpp"
#include "fastrope/attend/verify.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/decode_rows.hpp"
#include "fastrope/exact/exact_call.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/plan/planner.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/problem/run_status.hpp"
#include "fastrope/toeplitz/attention.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// What bounds have to know of how tensors are stored.
struct Storage {
  bool pairs = false;          ///< q, k and v are such that bfloat16 products may serve
  double result_rounding = 0;  ///< of out, if it is not of the arithmetic type, over its size
};

template <class Real, class Q, class K, class V, class Out>
constexpr Storage storage_of() {
  return {!std::is_same_v<OperandOf<Real, Q, K, V>, Real>,
          std::is_same_v<Out, Real> ? 0 : kStoredType<Out>.rounding};
}

/// A planned attention call with arithmetic in Real. Copies are independent; one plan may be run by several
/// threads at once, each with its own workspace.
///
/// A plan of softmax with tolerance 0, without dense bias and dense mask, that was made from shapes has
/// capacity: its n_q and n_k are the most that run takes, and a run of fewer is, bit for bit, that of a plan
/// for them. So one plan serves a cache that grows: prompts in chunks, drafted tokens, single steps.
/// Positions and key ranges are read when run is called, from the memory that they were given in, which must
/// outlive the plan: of queries the first n_q, of keys the first n_k. They may be rewritten between runs.
/// (Made from tensors, a plan has capacity where neither is given.)
template <class Real>
class Plan {
 public:
  /// heads: of all query heads, in order.
  Plan(Problem problem, double tolerance, const Storage& storage, std::vector<HeadPlan> heads);

  /// Path, bounds, cost and reason of every head.
  const Report& report() const { return report_; }
  /// Scratch memory that run needs.
  std::size_t workspace_bytes() const { return report_.workspace_bytes; }
  const Shapes& shapes() const { return problem_.shapes; }
  /// The call that was planned.
  const Problem& problem() const { return problem_; }
  /// Whether every head is exact, by the same products. run then gives lse.
  bool all_exact() const {
    return units_.empty() && toeplitz_heads_.empty() && (pair_rows_.empty() || exact_rows_.empty());
  }
  /// Whether these are products of bfloat16 where tensors are stored so. Requires all_exact().
  bool allows_pairs() const { return allow_pairs_; }
  /// Whether run takes fewer queries and keys than shapes() has.
  bool has_capacity() const {
    return report_.tolerance == 0 && all_exact() && problem_.kernel.is_softmax() &&
           problem_.takes_any_sizes();
  }

  /// Computes out [heads, n_q, d_v] from q [heads, n_q, d], k [kv_heads, n_k, d] and v [kv_heads, n_k, d_v],
  /// each a view or an Eigen row-major object, k and v also paged. Allocates nothing and throws nothing. out
  /// must not overlap the inputs. A plan made with a tolerance holds for the q, k and v that it was made for.
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  RunStatus run(const Q& q, const K& k, const V& v, Out&& out,
                std::span<std::byte> workspace) const noexcept {
    return run_tensors<OperandOf<Real, Q, K, V>>({as_tensor(q), k, v, as_tensor(out)}, workspace,
                                                 RunDetails{});
  }
  /// The same with the natural log of each row's sum of exponentials, as merge() wants it: lse [heads, n_q],
  /// -infinity where nothing was attended to; of a polynomial kernel, the sum itself. Where every head is
  /// exact; else RunStatus::lse_unavailable.
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  RunStatus run(const Q& q, const K& k, const V& v, Out&& out, MatrixView<Real> lse,
                std::span<std::byte> workspace) const noexcept {
    return run_tensors<OperandOf<Real, Q, K, V>>({as_tensor(q), k, v, as_tensor(out), lse}, workspace,
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

  /// run() and verify() of tensors whose types are known when the program runs. Operand: as OperandOf has it.
  template <class Operand>
  RunStatus run_tensors(const ExactTensors<Real>& x, std::span<std::byte> memory,
                        const RunDetails& details) const noexcept;
  Report verify_rows(const StoredRows& q, const KeyRows<double>& k, const ValueRows<double>& v,
                     const StoredRows& out, Index rows) const;

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
Plan<Real>::Plan(Problem problem, double tolerance, const Storage& storage, std::vector<HeadPlan> heads)
    : problem_(std::move(problem)) {
  report_ = {.shapes = problem_.shapes, .tolerance = tolerance};
  // Products of bfloat16 where nobody asked for more, or in heads for which their bound leaves room. Few rows
  // are decoded, without them.
  const bool pairs = storage.pairs && pairs_pay() && tolerance > 0 && !DecodeRows<Real>::suits(problem_);
  for (HeadPlan& plan : heads) {
    HeadReport& head = report_.heads.emplace_back(std::move(plan.report));
    if (plan.polynomial) units_.push_back(std::move(*plan.polynomial));
    if (plan.toeplitz) toeplitz_heads_.push_back(std::move(*plan.toeplitz));
    if (head.path == Path::exact) {
      const bool multiplies_pairs = pairs && plan.pair_bound <= tolerance;
      if (multiplies_pairs) {
        head.error_bound = head.rounding = plan.pair_bound;
        head.reason += ", with products of bfloat16";
      }
      const RowTasks<Real> blocks(problem_, {plan.head, plan.head + 1});
      for (Index b = 0; b < blocks.count(); ++b)
        (multiplies_pairs ? pair_rows_ : exact_rows_).push_back(blocks[b]);
    }
    const double result = storage.result_rounding > 0 ? storage.result_rounding * (1 + head.error_bound) : 0;
    head.error_bound += result;
    head.rounding += result;
  }
  allow_pairs_ = tolerance == 0 || exact_rows_.empty();
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
  if (has_capacity()) problem_.rotation.template keep<Real>(kept_rotations(problem_));
  if (all_exact() && problem_.kernel.is_softmax())
    report_.workspace_bytes = has_capacity() ? problem_.places_bytes() + exact_capacity_bytes<Real>(problem_)
                                             : exact_workspace_bytes<Real>(problem_);
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
  const Shapes shapes = has_capacity() ? problem_.sized_shapes(x.q.rows, x.k.rows) : problem_.shapes;
  const Index heads = shapes.heads, n_q = shapes.n_q;
  if (!fits(shapes, x.q, x.k, x.v, x.out, x.lse) ||
      (!repaired_rows.empty() && std::ssize(repaired_rows) != heads) ||
      (!row_bounds.empty() && std::ssize(row_bounds) != heads * n_q))
    return RunStatus::shape_mismatch;
  if (x.lse.data != nullptr && !all_exact()) return RunStatus::lse_unavailable;
  if (!problem_.gates.are_valid(shapes.n_k)) return RunStatus::gates_refused;
  if (memory.size() < workspace_bytes()) return RunStatus::workspace_too_small;
  std::fill(repaired_rows.begin(), repaired_rows.end(), Index{0});
  for (Index h = 0; h < heads && !row_bounds.empty(); ++h)
    std::fill_n(row_bounds.data() + h * n_q, n_q,
                problem_.kernel.is_softmax() ? report_.heads[static_cast<std::size_t>(h)].error_bound : 0);
  if (shapes.empty() && x.lse.data == nullptr) return RunStatus::ok;
  const std::size_t places_bytes = problem_.places_bytes();
  std::optional<SizedProblem> sized;
  try {
    Workspace workspace(memory.first(places_bytes));
    sized.emplace(problem_, shapes.n_q, shapes.n_k, workspace);
  } catch (...) {
    return RunStatus::places_refused;
  }
  try {
    memory = memory.subspan(places_bytes);
    Workspace workspace(memory);
    const Problem& problem = sized->get();
    if (!all_exact())
      Mixture(*this, workspace).template run<Operand>(*this, x, details);
    else if (!row_bounds.empty() && !problem_.kernel.is_softmax())
      BoundedExact(problem, workspace).run(problem, x, row_bounds.data());
    else
      run_exact<Operand>(problem, x, memory, allow_pairs_);
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
  std::vector<std::byte> memory(problem_.places_bytes());
  Workspace workspace(memory);
  const SizedProblem problem(problem_, report.shapes.n_q, report.shapes.n_k, workspace);
  const std::vector<double> errors = observed_errors(problem.get(), q, k, v, out, rows);
  for (std::size_t h = 0; h < errors.size(); ++h) {
    report.heads[h].verified_rows = rows;
    report.heads[h].observed_error = errors[h];
  }
  return report;
}

}  // namespace fastrope::inline FASTROPE_TARGET
