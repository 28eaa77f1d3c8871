// Predict: what a plan would say of heads of a given size, without any.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "fastrope/attend/make_plan.hpp"
#include "fastrope/attend/report.hpp"
#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/side.hpp"
#include "fastrope/plan/cost_model.hpp"
#include "fastrope/plan/look.hpp"
#include "fastrope/plan/planner.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// What make_plan would choose, and why, for heads whose logits reach `radius` and whom neither shifts nor
/// axes help, as rows spread evenly over a sphere: to ask where a path pays before there is a model. Throws
/// Error as make_plan does, and unless the radius is finite and >= 0. Requires no weights W(lag). Cost: O(n
/// d) a head.
template <class Real = float>
Report predict(const Shapes& shapes, const Options& options, double radius, const CostModel& cost = {}) {
  if (!(radius >= 0) || !std::isfinite(radius))
    detail::fail("predict: the radius is finite and >= 0, got ", radius);
  if (options.weights) detail::fail("predict: entries of general weights have no single radius");
  const Problem problem(shapes, options);
  require_tolerance(options);
  if (options.tolerance == 0 || options.path == Path::exact || !options.kernel.is_softmax())
    return make_plan<Real>(shapes, options, cost).report();
  if (shapes.empty() || shapes.n_k == 0)
    return detail::exact_plan<Real>(problem, options, "there is nothing to attend to").report();
  const double length = problem.scale == 0 ? 0 : std::sqrt(radius / std::abs(problem.scale));
  // One column will do: bounds know lengths alone. Signs alternate, so that there is no mean.
  const auto rows = [&](Index count) {
    return RowSource<Real>{count, shapes.d, [length, d = shapes.d](Range range, bool, Real* to) {
                             std::fill_n(to, range.size() * d, Real{0});
                             for (Index i = range.begin; d > 0 && i < range.end; ++i, to += d)
                               *to = static_cast<Real>(i % 2 == 0 ? length : -length);
                           }};
  };
  const RowSource<Real> keys = rows(shapes.n_k);
  const RowSource<Real> values{shapes.n_k, 1, [](Range range, bool, Real* to) {
                                 for (Index j = range.begin; j < range.end; ++j)
                                   to[j - range.begin] = j % 2 == 0 ? Real{1} : Real{-1};
                               }};
  ProjectionChoice in_place;
  in_place.queries = in_place.keys = Shift::none(shapes.d);
  KeyMemory memory;
  memory.key_shift = in_place.keys;
  memory.shift_chosen_at = shapes.n_k;
  for (Index first = 0; first < problem.group(); ++first)
    for (const Index last : {first + 1, problem.group()})
      for (const bool weigh : {false, true})
        memory.measured.insert({{first, last, weigh}, {in_place, RowBounds(), shapes.n_k}});

  const Planner planner(problem, options.tolerance, options.path, cost, kArithmeticOf<Real>,
                        factorisations());
  Report report{.shapes = shapes, .tolerance = options.tolerance};
  for (Index kv = 0; kv < shapes.kv_heads; ++kv) {
    std::vector<std::unique_ptr<Side>> queries;
    for (Index h = 0; h < problem.group(); ++h)
      queries.push_back(std::make_unique<SideOf<Real>>(rows(shapes.n_q)));
    GroupLook look(std::move(queries), std::make_unique<SideOf<Real>>(keys),
                   std::make_unique<SideOf<Real>>(values), memory);
    for (HeadPlan& head : planner.plan(kv, look)) report.heads.push_back(std::move(head.report));
  }
  return report;
}

}  // namespace fastrope::inline FASTROPE_TARGET
