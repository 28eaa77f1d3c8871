// attend: plan and run in one call.
#pragma once

#include <utility>
#include <vector>

#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/dispatch/plan.hpp"

namespace fastrope {

namespace detail {

/// Whether an approximation of these shapes could be worth a look at the data, or make_plan has to say why
/// not.
template <class Real>
bool looking_pays(const Shapes& shapes, const Options& options) {
  require_tolerance(options);
  if (options.tolerance == 0 || options.path != Path::automatic || !options.kernel.is_softmax() ||
      shapes.empty() || shapes.n_k == 0)
    return true;
  const Problem problem(shapes, options);
  const CostModel cost;
  const double exact =
      cost.exact<Real>(problem, problem.grid.allowed_pairs(), static_cast<double>(shapes.n_q));
  return exact > cost.least_approximate<Real>(problem);
}

}  // namespace detail

/// Attention with relative positions, out = D^-1 A V (options.hpp has the logits and their kernel).
/// q: [heads, n_q, d], k: [kv_heads, n_k, d], v: [kv_heads, n_k, d_v], out: [heads, n_q, d_v], each a view or
/// an Eigen row-major object; heads a multiple of kv_heads. A row without allowed keys gives zeros. Ensures
/// |out - exact| <= options.tolerance max|V| beside the rounding that the report states. Arithmetic is in q's
/// type, float for 16-bit storage; where q, k and v are all bfloat16 and the hardware multiplies that,
/// products of exact heads are of bfloat16 with sums in float. out must not overlap the inputs. Allocates the
/// workspace; engines that must not use make_plan and Plan::run. Returns what was done for each head and why.
/// Throws Error before any work, naming the values, for tensors and options that clash or a forced path that
/// cannot meet the tolerance.
template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
Report attend(const Q& q, const K& k, const V& v, Out&& out, const Options& options) {
  using Real = ArithmeticOf<ElementOf<Q>>;
  const auto out_view = as_tensor(out);
  const Shapes shapes = shapes_of(as_tensor(q), as_rows(k), as_rows(v));
  require_output(shapes, out_view);
  const auto plan = detail::looking_pays<Real>(shapes, options)
                        ? make_plan(q, k, v, options)
                        : detail::exact_plan<Real>(shapes, options,
                                                   "exact costs less than a look at the data and the "
                                                   "cheapest approximation of these shapes");
  std::vector<std::byte> workspace(plan.workspace_bytes());
  if (plan.run(q, k, v, out_view, workspace) != RunStatus::ok)
    detail::fail("the executor failed while attending");
  return plan.report();
}

}  // namespace fastrope
