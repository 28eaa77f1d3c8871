// Weight gradients: scores of a row become weights, and what each weight does to the loss becomes what its
// score does.
//
// With w_ij = K(x_ij) f_ij, f the factor of gates, W_i = sum_j w_ij and out_i = sum_j w_ij v_j / N(W_i),
//     dL/dw_ij = (d_out_i . v_j - N'(W_i) d_out_i . out_i) / N(W_i),   dL/dx_ij = K'(x_ij) f_ij dL/dw_ij.
// Softmax has K' = K and N = W, so that both are p_ij (dP_ij - delta_i), p_ij = w_ij / N. What is added to
// log w_ij, as biases and gates are, has the gradient w_ij dL/dw_ij whatever the kernel.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/exp2.hpp"
#include "fastrope/exact/row_weights.hpp"
#include "fastrope/problem/kernel.hpp"
#include "fastrope/problem/normaliser.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// What a row's scores are made into weights by, in the arithmetic of the call.
template <class Real>
struct RowGradient {
  Real delta;  ///< N'(W) d_out . out
  Real unit;   ///< softmax: added to base-2 scores; a polynomial kernel: multiplies weights

  /// lse: the log of the row's sum, of a polynomial kernel the sum; delta: d_out . out; taken: what was taken
  /// out of the logs of its weights. A row without keys weighs nothing, whatever its scores.
  RowGradient(const Kernel& kernel, const Normaliser& normaliser, double lse, double delta_of_row,
              double taken)
      : delta(static_cast<Real>(delta_of_row)), unit(static_cast<Real>(lse)) {
    if (kernel.is_softmax()) {
      if (lse != -std::numeric_limits<double>::infinity())
        unit = detail::finite_as<Real>((taken - lse) * kLog2E);
    } else {
      delta = static_cast<Real>(normaliser.derivative(lse) * delta_of_row);
      unit = detail::finite_as<Real>(std::exp(taken) * normaliser.template inverse<Real>(lse, 0));
    }
  }
};

/// Weights of 2^kLeastExponent and less are taken for 0. Products with them could be subnormal numbers, and
/// those take many times as long: with ALiBi over 4096 keys, all of the backward pass took twice as long.
template <class Real>
inline constexpr Real kLeastExponent =
    std::numeric_limits<Real>::min_exponent + std::numeric_limits<Real>::digits;

/// Scores [cols] of a row, base-2, become its softmax weights P, and dP [cols] becomes dS; both are 0 where a
/// score is masked.
template <class Real>
void differentiate_softmax(const RowGradient<Real>& row, Index cols, Real* scores, Real* d_scores) {
  using namespace simd;
  const Vec<Real> masked = set(-std::numeric_limits<Real>::infinity());
  for (Index j = 0; j < cols; j += kLanes<Real>) {
    const Vec<Real> score = load(scores + j);
    const Vec<Real> exponent = neg(at_most(neg(add(score, set(row.unit))), set(-kLeastExponent<Real>)));
    const Vec<Real> weight = if_equal(exponent, set(kLeastExponent<Real>), zero<Real>(),
                                      exp2_nonpositive<Real>(at_most(exponent, zero<Real>())));
    const Vec<Real> d_score = mul(weight, sub(load(d_scores + j), set(row.delta)));
    store<Real>(if_equal(score, masked, zero<Real>(), weight), scores + j);
    store<Real>(if_equal(score, masked, zero<Real>(), d_score), d_scores + j);
  }
}

/// A polynomial kernel and its derivative in the arithmetic of a call.
template <class Real>
class PolynomialGradient {
 public:
  explicit PolynomialGradient(const Kernel& kernel) : degree_(std::max(kernel.degree(), 0)) {
    std::transform(kernel.coefficients().begin(), kernel.coefficients().end(), coefficients_.begin(),
                   [](double coefficient) { return static_cast<Real>(coefficient); });
  }

  /// Scores x [cols] become weights P(x) f / N, dP [cols] becomes dS = P'(x) f / N (dP - delta), and terms
  /// [cols] what the logs of weights have, P(x) f / N (dP - delta); all are 0 where a score is -infinity.
  /// factors: f [cols], or null, which is 1.
  void differentiate(const RowGradient<Real>& row, const Real* factors, Index cols, Real* scores,
                     Real* d_scores, Real* terms) const {
    using namespace simd;
    const Vec<Real> masked = set(-std::numeric_limits<Real>::infinity());
    for (Index j = 0; j < cols; j += kLanes<Real>) {
      const Vec<Real> score = load(scores + j);
      Vec<Real> value = set(coefficients_[degree_]), derivative = zero<Real>();
      for (std::size_t p = degree_; p-- > 0;) {
        derivative = fma(derivative, score, value);
        value = fma(value, score, set(coefficients_[p]));
      }
      Vec<Real> unit = set(row.unit);
      if (factors != nullptr) unit = mul(unit, load(factors + j));
      const Vec<Real> weight = mul(value, unit), d_weight = sub(load(d_scores + j), set(row.delta));
      const auto store_allowed = [&](Vec<Real> x, Real* to) {
        store<Real>(if_equal(score, masked, zero<Real>(), x), to + j);
      };
      store_allowed(mul(weight, d_weight), terms);
      store_allowed(mul(mul(derivative, unit), d_weight), d_scores);
      store_allowed(weight, scores);
    }
  }

 private:
  std::array<Real, Kernel::kMaxDegree + 1> coefficients_ = {};
  std::size_t degree_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
