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
  /// Laid out as the numbers that options.bias was made of: slopes [heads or 1], a table [heads or 1, lags],
  /// T5's [buckets, heads].
  std::span<double> bias = {};
  std::span<double> sinks = {};  ///< [heads]
};

namespace detail {

/// Throws Error, naming the sizes, unless each that is given has as many places as there are parameters.
inline void require_parameters(const Problem& problem, const ParameterGradients& wanted) {
  const auto require = [](const char* name, std::span<double> given, Index parameters) {
    if (!given.empty() && std::ssize(given) != parameters)
      fail("ParameterGradients::", name, " has ", given.size(), " places for the gradients of ", parameters,
           " parameters");
  };
  require("bias", wanted.bias, problem.bias.parameters());
  require("sinks", wanted.sinks, std::ssize(problem.sinks));
}

}  // namespace detail

/// The gradient of a lag bias: that of each pair's logit, summed over the pairs that share a number. Sums are
/// of double, in the order in which pairs are added, and heads are apart, so that each may be another task's.
/// Workspace: [heads, lags of the table or 1].
class BiasGradient {
 public:
  BiasGradient(const Problem& problem, bool wanted, Workspace& workspace)
      : lags_(!wanted                   ? 0
              : problem.bias.is_table() ? std::ssize(problem.bias.values()) / problem.bias.heads()
                                        : 1),
        sums_(workspace.take<double>(problem.shapes.heads * lags_)) {}

  bool wanted() const { return lags_ > 0; }
  void clear() const { std::fill(sums_.begin(), sums_.end(), 0.0); }

  /// Adds d_logits [keys.size()] of query i of head h, 0 at keys that it may not attend to.
  template <class Real>
  void add(const Problem& problem, Index h, Index i, Range keys, const Real* d_logits) const {
    const Position from = problem.grid.lag(i, keys.begin);
    double* const sums = sums_.data() + h * lags_;
    if (problem.grid.consecutive())
      add(problem.bias, keys.size(), d_logits, sums, [&](Index m) { return from - m; });
    else
      add(problem.bias, keys.size(), d_logits, sums,
          [&](Index m) { return problem.grid.lag(i, keys.begin + m); });
  }

  /// to = the sums, laid out as ParameterGradients has it.
  void write(const Problem& problem, std::span<double> to) const {
    std::fill(to.begin(), to.end(), 0.0);
    const Index bias_heads = problem.bias.heads();
    const std::span<const Index> buckets = problem.bias.bucket_of_lag();
    for (Index h = 0; h < problem.shapes.heads; ++h)
      for (Index m = 0; m < lags_; ++m) {
        const Index of = bias_heads == 1 ? 0 : h;
        const Index place = buckets.empty() ? of * lags_ + m : buckets[m] * bias_heads + of;
        to[static_cast<std::size_t>(place)] += sums_[static_cast<std::size_t>(h * lags_ + m)];
      }
  }

 private:
  /// lag(m): that of d_logits[m].
  template <class Real, class Lag>
  void add(const LagBias& bias, Index count, const Real* d_logits, double* sums, Lag&& lag) const {
    if (bias.is_table()) {
      const Position first = bias.first_lag(), last = first + lags_ - 1;
      for (Index m = 0; m < count; ++m)
        sums[std::clamp(lag(m), first, last) - first] += static_cast<double>(d_logits[m]);
    } else {
      double sum = 0;
      for (Index m = 0; m < count; ++m)
        sum += static_cast<double>(std::abs(lag(m))) * static_cast<double>(d_logits[m]);
      *sums -= sum;
    }
  }

  Index lags_;              // of a head; 0: nothing is wanted
  std::span<double> sums_;  // [heads, lags]
};

}  // namespace fastrope::inline FASTROPE_TARGET
