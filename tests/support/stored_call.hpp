// StoredCall: PromiseCall for one choice of element types.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "fastrope/fastrope.hpp"
#include "support/promise_call.hpp"

namespace fastrope_test {

template <class Q, class Rows, class Out>
class StoredCall final : public PromiseCall {
 public:
  explicit StoredCall(const PromiseProblem& problem)
      : stored_q_(converted<Q>(problem.q.view())),
        stored_k_(converted<Rows>(problem.k.view())),
        stored_v_(converted<Rows>(problem.v.view())),
        cost_(problem.cost()) {
    q_ = converted<double>(stored_q_.view());
    k_ = converted<double>(stored_k_.view());
    v_ = converted<double>(stored_v_.view());
  }

  std::optional<fastrope::Report> plan(const Options& options) const override {
    try {
      return make(options).report();
    } catch (const fastrope::Error&) {
      return {};
    }
  }

  std::optional<fastrope::Report> run(const Options& options, Tensor<double>& out) const override {
    Tensor<Out> stored(q_.heads, q_.rows, v_.cols);
    for (Out& x : stored.values) x = static_cast<Out>(std::numeric_limits<float>::quiet_NaN());
    std::optional<fastrope::Report> report;
    try {
      report = cost_ ? run_plan(make(options), stored)
                     : fastrope::attend(stored_q_.view(), stored_k_.view(), stored_v_.view(), stored.view(),
                                        options);
    } catch (const fastrope::Error&) {
      return {};
    }
    out = converted<double>(stored.view());
    return report;
  }

 private:
  using Plan = fastrope::Plan<fastrope::ArithmeticOf<Q>>;

  Plan make(const Options& options) const {
    return fastrope::make_plan(stored_q_.view(), stored_k_.view(), stored_v_.view(), options,
                               cost_.value_or(fastrope::CostModel{}));
  }

  /// Runs in memory full of NaN.
  fastrope::Report run_plan(const Plan& plan, Tensor<Out>& out) const {
    std::vector<std::byte> memory(plan.workspace_bytes(), std::byte{0xff});
    plan.run(stored_q_.view(), stored_k_.view(), stored_v_.view(), out.view(), memory);
    fastrope::Report report = plan.report();
    // A plan takes results to be of q's type.
    using Real = fastrope::ArithmeticOf<Q>;
    for (fastrope::HeadReport& head : report.heads) {
      const double counted = fastrope::result_rounding<Real, Q>(),
                   rounded = fastrope::result_rounding<Real, Out>();
      if (counted != rounded && std::isfinite(head.error_bound))
        head.error_bound = (head.error_bound - counted) / (1 + counted) * (1 + rounded) + rounded;
    }
    return report;
  }

  const Tensor<Q> stored_q_;
  const Tensor<Rows> stored_k_, stored_v_;
  std::optional<fastrope::CostModel> cost_;
};

}  // namespace fastrope_test
