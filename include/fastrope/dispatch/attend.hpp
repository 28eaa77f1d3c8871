// attend: plan and run in one call.
#pragma once

#include <utility>
#include <vector>

#include "fastrope/core/tensor_view.hpp"
#include "fastrope/dispatch/plan.hpp"

namespace fastrope {

/// Softmax attention with relative positions, out = D^-1 A V (options.hpp has the logits).
/// q: [heads, n_q, d], k: [kv_heads, n_k, d], v: [kv_heads, n_k, d_v], out: [heads, n_q, d_v], each a view or
/// an Eigen row-major object; heads a multiple of kv_heads. A row without allowed keys gives zeros. Ensures
/// |out - exact| <= options.tolerance max|V| beside the rounding that the report states. out must not overlap
/// the inputs. Allocates the workspace; engines that must not use make_plan and Plan::run. Returns what was
/// done for each head and why. Throws Error before any work, naming the values, for tensors and options that
/// clash or a forced path that cannot meet the tolerance.
template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
Report attend(const Q& q, const K& k, const V& v, Out&& out, const Options& options) {
  const auto out_view = as_tensor(out);
  require_output(shapes_of(as_tensor(q), as_rows(k), as_rows(v)), out_view);
  const auto plan = make_plan(q, k, v, options);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  if (plan.run(q, k, v, out_view, workspace) != RunStatus::ok)
    detail::fail("the executor failed while attending");
  return plan.report();
}

}  // namespace fastrope
