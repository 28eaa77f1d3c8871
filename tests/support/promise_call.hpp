// PromiseCall: a problem's tensors in their storage, planned and run behind an interface without templates,
// so that what a storage needs is compiled once (tests/promise/calls_*.cpp).
#pragma once

#include <memory>
#include <optional>

#include "fastrope/attend/report.hpp"
#include "fastrope/problem/options.hpp"
#include "support/promise_problem.hpp"
#include "support/tensor.hpp"

namespace fastrope_test {

class PromiseCall {
 public:
  virtual ~PromiseCall() = default;
  /// What is stored, in double.
  const Tensor<double>& q() const { return q_; }
  const Tensor<double>& k() const { return k_; }
  const Tensor<double>& v() const { return v_; }

  /// The report of a plan, or nothing where the path is refused.
  virtual std::optional<fastrope::Report> plan(const Options& options) const = 0;
  /// Computes out, in double what the storage holds; nothing where the path is refused.
  virtual std::optional<fastrope::Report> run(const Options& options, Tensor<double>& out) const = 0;

 protected:
  Tensor<double> q_ = {}, k_ = {}, v_ = {};
};

/// The call of a problem, in its storage.
std::unique_ptr<PromiseCall> make_promise_call(const PromiseProblem& problem);

namespace detail {

/// The same for one storage each, compiled in files of their own.
using MakeCall = std::unique_ptr<PromiseCall>(const PromiseProblem&);
MakeCall float_call, double_call, bfloat16_call, bfloat16_to_float_call, float16_call, narrow_keys_call,
    narrow_keys_and_out_call;

}  // namespace detail

}  // namespace fastrope_test
