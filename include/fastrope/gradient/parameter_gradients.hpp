// ParameterGradients: where the gradients of a call's parameters go, beside those of q, k and v.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <span>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Memory for the gradients of parameters, overwritten; what is empty is not computed.
struct ParameterGradients {
  /// Laid out as the numbers that options.bias was made of: slopes [heads or 1], which a polynomial kernel
  /// takes too, a table [heads or 1, lags], T5's [buckets, heads].
  std::span<double> bias = {};
  std::span<double> sinks = {};            ///< [heads]
  std::span<double> log_gates = {};        ///< [rows of options.log_gates, n_k]; of a reset 0
  std::span<double> log_input_gates = {};  ///< [rows of options.log_input_gates, n_k]
};

namespace detail {

/// Throws Error, naming the sizes, unless each that is given has as many places as there are parameters.
inline void require_parameters(const Problem& problem, const LagBias& bias,
                               const ParameterGradients& wanted) {
  const auto require = [](const char* name, std::span<double> given, Index parameters) {
    if (!given.empty() && std::ssize(given) != parameters)
      fail("ParameterGradients::", name, " has ", given.size(), " places for the gradients of ", parameters,
           " parameters");
  };
  const auto gates = [](const MatrixView<const float>& x) { return x.rows * x.cols; };
  require("bias", wanted.bias, bias.parameters());
  require("sinks", wanted.sinks, std::ssize(problem.sinks));
  require("log_gates", wanted.log_gates, gates(problem.gates.log));
  require("log_input_gates", wanted.log_input_gates, gates(problem.gates.log_input));
}

}  // namespace detail

/// The gradient of a lag bias: that of the log of each pair's weight, summed over the pairs that share a
/// number. Sums are of double, in the order in which pairs are added, and heads are apart, so that each may
/// be another task's. Workspace: [heads, lags of the table or 1].
class BiasGradient {
 public:
  /// The bias, which the problem may have as gates, must outlive it.
  BiasGradient(const Problem& problem, const LagBias& bias, bool wanted, Workspace& workspace)
      : bias_(&bias),
        lags_(!wanted           ? 0
              : bias.is_table() ? std::ssize(bias.values()) / bias.heads()
                                : 1),
        sums_(workspace.take<double>(problem.shapes.heads * lags_)) {}

  bool wanted() const { return lags_ > 0; }
  void clear() const { std::fill(sums_.begin(), sums_.end(), 0.0); }

  /// Adds terms [keys.size()] of query i of head h, 0 at keys that it may not attend to.
  template <class Real>
  void add(const Problem& problem, Index h, Index i, Range keys, const Real* terms) const {
    const Position from = problem.grid.lag(i, keys.begin);
    double* const sums = sums_.data() + h * lags_;
    if (problem.grid.consecutive())
      add(keys.size(), terms, sums, [&](Index m) { return from - m; });
    else
      add(keys.size(), terms, sums, [&](Index m) { return problem.grid.lag(i, keys.begin + m); });
  }

  /// to = the sums, laid out as ParameterGradients has it.
  void write(const Problem& problem, std::span<double> to) const {
    std::fill(to.begin(), to.end(), 0.0);
    const Index bias_heads = bias_->heads();
    const std::span<const Index> buckets = bias_->bucket_of_lag();
    for (Index h = 0; h < problem.shapes.heads; ++h)
      for (Index m = 0; m < lags_; ++m) {
        const Index of = bias_heads == 1 ? 0 : h;
        const Index place = buckets.empty() ? of * lags_ + m : buckets[m] * bias_heads + of;
        to[static_cast<std::size_t>(place)] += sums_[static_cast<std::size_t>(h * lags_ + m)];
      }
  }

 private:
  /// lag(m): that of terms[m].
  template <class Real, class Lag>
  void add(Index count, const Real* terms, double* sums, Lag&& lag) const {
    if (bias_->is_table()) {
      const Position first = bias_->first_lag(), last = first + lags_ - 1;
      for (Index m = 0; m < count; ++m)
        sums[std::clamp(lag(m), first, last) - first] += static_cast<double>(terms[m]);
    } else {
      double sum = 0;
      for (Index m = 0; m < count; ++m)
        sum += static_cast<double>(std::abs(lag(m))) * static_cast<double>(terms[m]);
      *sums -= sum;
    }
  }

  const LagBias* bias_;
  Index lags_;              // of a head; 0: nothing is wanted
  std::span<double> sums_;  // [heads, lags]
};

}  // namespace fastrope::inline FASTROPE_TARGET
