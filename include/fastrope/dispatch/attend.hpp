// attend: plan and run in one call.
#pragma once

#include <utility>
#include <vector>

#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/dispatch/plan.hpp"

namespace fastrope::inline FASTROPE_TARGET {

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
  return cost.seconds<Real>(exact_work<Real>(problem)) >
         1 / cost.look + cost.seconds<Real>(least_work<Real>(problem, cost));
}

}  // namespace detail

/// Attention with relative positions, out = D^-1 A V (options.hpp has the logits and their kernel).
/// q: [heads, n_q, d], k: [kv_heads, n_k, d], v: [kv_heads, n_k, d_v], out: [heads, n_q, d_v], each a view or
/// an Eigen row-major object; heads a multiple of kv_heads. A row without allowed keys gives zeros. Ensures
/// |out - exact| <= options.tolerance max|V|, rounding included, where the tolerance is not 0 and what the report states
/// is not more. Arithmetic is in q's
/// type, float for 16-bit storage; where q, k and v are all bfloat16 and the hardware multiplies that,
/// products of exact heads are of bfloat16 with sums in float. out must not overlap the inputs. Allocates the
/// workspace; engines that must not use make_plan and Plan::run. Returns what was done for each head and why,
/// with a spot check of options.verify rows. Throws Error before any work, naming the values, for tensors and
/// options that clash or a forced path that cannot meet the tolerance.
template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
Report attend(const Q& q, const K& k, const V& v, Out&& out, const Options& options) {
  using Real = ArithmeticOf<ElementOf<Q>>;
  const auto out_view = as_tensor(out);
  const Shapes shapes = shapes_of(as_tensor(q), as_rows(k), as_rows(v));
  require_output(shapes, out_view);
  if (options.verify < 0) detail::fail("a spot check is of 0 rows or more, got ", options.verify);
  const auto plan = detail::looking_pays<Real>(shapes, options)
                        ? make_plan(q, k, v, options)
                        : detail::exact_plan<Real>(shapes, options,
                                                   "exact costs less than a look at the data and the "
                                                   "cheapest approximation of these shapes");
  std::vector<std::byte> workspace(plan.workspace_bytes());
  std::vector<Index> repaired(static_cast<std::size_t>(shapes.heads));
  if (plan.run(q, k, v, out_view, workspace, repaired) != RunStatus::ok)
    detail::fail("the executor failed while attending");
  Report report = plan.verify(q, k, v, out_view, options.verify);
  for (std::size_t h = 0; h < report.heads.size(); ++h) report.heads[h].repaired_rows = repaired[h];
  return report;
}

}  // namespace fastrope::inline FASTROPE_TARGET
