// attend: plan and run in one call.
#pragma once

#include <utility>
#include <vector>

#include "fastrope/attend/make_plan.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// What a spot check reads, in double.
struct CheckedTensors {
  StoredRows q;
  KeyRows<double> k;
  ValueRows<double> v;
  StoredRows out;
};

/// attend() of tensors whose types are known when the program runs. Operand: as OperandOf has it; checked:
/// the same tensors.
template <class Operand>
Report attend_tensors(const ExactTensors<ArithmeticOf<Operand>>& x, const Storage& storage,
                      const Options& options, const CheckedTensors& checked, const CostModel& cost) {
  using Real = ArithmeticOf<Operand>;
  const Shapes shapes = shapes_of(x.q, x.k, x.v);
  require_output(shapes, x.out);
  if (options.verify < 0) fail("a spot check is of 0 rows or more, got ", options.verify);
  const Plan<Real> plan = plan_tensors<Real>(x.q, x.k, x.v, storage, options, nullptr, cost);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  std::vector<Index> repaired(static_cast<std::size_t>(shapes.heads));
  std::vector<double> row_bounds;
  if (!options.kernel.is_softmax()) row_bounds.resize(static_cast<std::size_t>(shapes.heads * shapes.n_q));
  if (plan.template run_tensors<Operand>(x, workspace, {repaired, row_bounds}) != RunStatus::ok)
    fail("the executor failed while attending");
  Report report = plan.verify_rows(checked.q, checked.k, checked.v, checked.out, options.verify);
  report.row_bounds = std::move(row_bounds);
  for (std::size_t h = 0; h < report.heads.size(); ++h) report.heads[h].repaired_rows = repaired[h];
  return report;
}

}  // namespace detail

/// Attention with relative positions, out = D^-1 A V (options.hpp has the logits and their kernel).
/// q: [heads, n_q, d], k: [kv_heads, n_k, d], v: [kv_heads, n_k, d_v], out: [heads, n_q, d_v], each a view or
/// an Eigen row-major object; heads a multiple of kv_heads. A row without allowed keys gives zeros. Ensures
/// |out - exact| <= options.tolerance max|V|, rounding included, where the tolerance is not 0 and what the
/// report states is not more; with a polynomial kernel, what the report's row_bounds state. Arithmetic is in
/// q's type, float for 16-bit storage; where q, k and v are all bfloat16 and the hardware multiplies that,
/// products of exact heads are of bfloat16 with sums in float. out must not overlap the inputs. Allocates the
/// workspace; engines that must not use make_plan and Plan::run. Returns what was done for each head and why,
/// with a spot check of options.verify rows. Throws Error before any work, naming the values, for tensors and
/// options that clash or a forced path that cannot meet the tolerance.
template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
Report attend(const Q& q, const K& k, const V& v, Out&& out, const Options& options,
              const CostModel& cost = {}) {
  using Real = ArithmeticOf<ElementOf<Q>>;
  const auto out_view = as_tensor(out);
  return detail::attend_tensors<OperandOf<Real, Q, K, V>>({as_tensor(q), k, v, out_view},
                                                          storage_of<Real, Q, K, V, ElementOf<Out>>(),
                                                          options, {as_tensor(q), k, v, out_view}, cost);
}

}  // namespace fastrope::inline FASTROPE_TARGET
