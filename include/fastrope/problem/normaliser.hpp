// Normaliser: what a row's weighted values are divided by.
//
//     out_i = sum_j w_ij v_j / N_i,   N_i = sum_j w_ij + eps,  max(|sum_j w_ij|, c)  or  1
// Softmax and power attention divide by the sum; an eps keeps rows of small weights small; mLSTM's
// denominator is at least 1; retention divides by nothing, as a norm follows.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "fastrope/core/error.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

class Normaliser {
 public:
  enum class Kind { row_sum, at_least, none };

  /// N = the sum of the weights + eps. Throws Error unless eps is finite and >= 0.
  static Normaliser row_sum(double eps = 0) {
    if (!(eps >= 0) || !std::isfinite(eps))
      detail::fail("Normaliser::row_sum: eps must be 0 or a positive number, got ", eps);
    return {Kind::row_sum, eps};
  }
  /// N = max(|the sum of the weights|, c). Throws Error unless c is finite and > 0.
  static Normaliser at_least(double c) {
    if (!(c > 0) || !std::isfinite(c))
      detail::fail("Normaliser::at_least: c must be a positive number, got ", c);
    return {Kind::at_least, c};
  }
  /// N = 1.
  static Normaliser none() { return {Kind::none, 1}; }

  /// Division by the sum, the default.
  Normaliser() = default;

  Kind kind() const { return kind_; }
  /// eps, c or 1.
  double constant() const { return constant_; }
  /// Whether N is the sum alone, so that a factor of all weights of a row changes nothing.
  bool is_plain_sum() const { return kind_ == Kind::row_sum && constant_ == 0; }

  /// N where the weights, their sum `sum` and N itself are in units of e^unit.
  double denominator(double sum, double unit) const {
    if (is_plain_sum()) return sum;
    const double constant = constant_ * std::exp(-unit);
    if (kind_ == Kind::row_sum) return sum + constant;
    return kind_ == Kind::at_least ? std::max(std::abs(sum), constant) : constant;
  }
  /// 1 / N, what sums in units of e^unit are multiplied by; 0 where N is 0, or so small in Real that weights
  /// have underflowed.
  template <class Real>
  double inverse(double sum, double unit) const {
    // Where weights may underflow so may the result.
    if (kind_ == Kind::none) return std::min(std::exp(unit), std::numeric_limits<double>::max());
    const double n = denominator(sum, unit);
    return std::abs(n) < static_cast<double>(std::numeric_limits<Real>::min()) ? 0 : 1 / n;
  }

  /// dN/d(sum of the weights): 1, the sum's sign where |sum| > c, or 0 where N does not depend on the sum.
  double derivative(double sum) const {
    if (kind_ == Kind::row_sum) return 1;
    return kind_ == Kind::at_least && std::abs(sum) > constant_ ? std::copysign(1.0, sum) : 0;
  }

  friend bool operator==(const Normaliser&, const Normaliser&) = default;

 private:
  Normaliser(Kind kind, double constant) : kind_(kind), constant_(constant) {}

  Kind kind_ = Kind::row_sum;
  double constant_ = 0;
};

}  // namespace fastrope::inline FASTROPE_TARGET
