// Rounding of polynomial kernels: a bound for each row, known when its sums are.
//
//     w_j = P(x_j) = sum_p c_p x_j^p,  x_j = s q.k_j,  D = sum_j w_j,  N = sum_j w_j v_j,  out = N / D
// Terms and weights may cancel in D, and nothing bounds by how much before D is known: nothing is promised
// before. Afterwards, let |D~ - D| <= A_D, |N~_c - N_c| <= A_N max|V| and A = A_N + A_D. As out~ = N~ / D~,
//     out~ - out = (N~ - N + out~ (D - D~)) / D,  so
//     |out~_c - out_c| <= max|V| A max(1, |out~_c| / max|V|) / (|D~| - A)          if |D~| > A,
// and nothing is known otherwise: an infinite bound. A normaliser changes D and D~ alike: by a constant, to
// the larger of |D| and a constant, which are as near to each other, or to a constant, which is off by
// nothing.
//
// Features: rounding.hpp has their A. It is of sum_p |c_p| (|x| |y|)^p, so it counts entries that rounded
// rows change as well, by eps_r |x| |y|: 2 |c_p| p eps_r M_p more for e_p.
//
// Keys done as such (tiles, decoding, the recent tokens of a recurrence). The terms of a logit add up to at
// most z_j = |s| |q| |k_j| in size, by Cauchy and Schwarz, so |x~_j - x_j| <= eps z_j with
//     eps = h u + eps_r,   eps_r = u (2 for the scale, 2 for conversions, 8 for turning both rows) + 4 e,
// h roundings of a product, e the error of a table of cosines. Horner's rule rounds the term c_p x^p at most
// 2 p + 1 times and its coefficient once. With Z_p = sum_j z_j^p and X_p = sum_j |x~_j|^p,
//     sum_j |w~_j - w_j| <= T = sum_p |c_p| [(X_p^(1/p) + eps Z_p^(1/p))^p - X_p + ((1 + u)^(2 p + 2) - 1)
//     X_p]
// since ||x|^p - |x~|^p| <= (|x~| + eps z)^p - |x~|^p (convexity), summed by Minkowski's inequality. It is
// the same with x and x~ exchanged, and |x_j| <= z_j: the first difference is at most ((1 + eps)^p - 1) Z_p,
// and X_p <= (1 + eps)^p Z_p. Where P has only even powers with positive coefficients, X_p <= D~ / c_p as
// well, but for kHigherOrder: then digits that cancel in logits cost little, as they do in powers (x^4 with x
// = 0.01 z is off by 400 eps of itself, not by 4e8 eps). The sums take N_N and N_D roundings of weights and
// of their products with values:
//     A = 2 T + (N_N + N_D) u W,   W = sum_j |w~_j| <= sum_p |c_p| X_p + T,  or D~ + 2 T where P >= 0.
// Gates multiply each weight by a factor of at most 1, rounded and multiplied: z_j^p and |x_j|^p are to be
// read times that, and 2 u and the rounding of its exponent, each for D and N, are more for (N_N + N_D) u.
// Underflow loses at most eta, the smallest normal number, in every operation, flushed to zero or not: eta
// z^p for a step of Horner's rule that p more multiply, eta / max|V| for a product with a value; lengths are
// taken to be at least so large that eps z_j covers that of a logit.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/chains.hpp"
#include "fastrope/exact/gate_sums.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/problem/kernel.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// How the weights of keys that are done as such are computed and summed.
struct WeightArithmetic {
  double entry;     ///< eps
  double unit;      ///< u of Horner's rule
  double sums;      ///< (N_N + N_D) u
  double smallest;  ///< eta
};

/// eps_r: what rounding rows on their way from storage does to an entry, over |s| |q| |k|.
template <class Real>
double row_rounding(const Problem& problem, Position farthest) {
  if (!problem.rotates()) return 4 * kUnitRoundoff<Real>;
  return 12 * kUnitRoundoff<Real> + 4 * problem.rotation.phase_error(farthest);
}

/// That of the exact path. gate_size: of all gates (Gates::size).
template <class Real>
WeightArithmetic tile_arithmetic(const Problem& problem, double gate_size = 0) {
  const auto [products, values, ones] = exact_chains<Real>(problem);
  const double folds = static_cast<double>(ceil_div(problem.shapes.n_k, kStretch) + 4);
  return {.entry = kUnitRoundoff<Real> * static_cast<double>(products) +
                   row_rounding<Real>(problem, problem.farthest_turn()),
          .unit = kUnitRoundoff<Real>,
          .sums = kUnitRoundoff<Real> * static_cast<double>(values + ones + (problem.gates.given() ? 4 : 0)) +
                  folds * 0x1p-51 + 2 * gate_rounding(gate_size),
          .smallest = static_cast<double>(std::numeric_limits<Real>::min())};
}

/// What rounding does to sums over keys that are done as such.
class KernelRounding {
 public:
  KernelRounding(const Kernel& kernel, const WeightArithmetic& arithmetic)
      : arithmetic_(arithmetic), degree_(kernel.degree()), nonnegative_(kernel.nonnegative()) {
    const auto c = kernel.coefficients();
    for (int p = 0; p <= degree_; ++p) {
      const auto at = static_cast<std::size_t>(p);
      even_ = even_ && (c[at] == 0 || (p % 2 == 0 && c[at] > 0));
      size_[at] = std::abs(c[at]);
      moved_[at] = std::expm1(p * std::log1p(arithmetic.entry));
      rounded_[at] = std::expm1((2 * p + 2) * std::log1p(arithmetic.unit));
    }
  }

  double entry() const { return arithmetic_.entry; }

  /// A. query: |s| |q|; sizes [degree + 1]: S_p = sum_j |k_j|^p; far: an A of other sums; sum: D~ of all;
  /// of_gates: what rounding of weights by gates is more for (N_N + N_D) u.
  double error(double query, const double* sizes, double largest_value, double far, double sum,
               double of_gates = 0) const {
    const double known = kHigherOrder * (std::abs(sum) + far);  // at least D~ of these keys, where P >= 0
    double error = 0, terms = 0, underflow = 0, power = 1;
    for (int p = 0; p <= degree_; ++p, power *= query) {
      const auto at = static_cast<std::size_t>(p);
      const double z = power * sizes[p], c = size_[at];
      underflow += z;
      if (c == 0) continue;
      double x = (1 + moved_[at]) * z, moved = moved_[at] * z;
      if (even_ && p > 0 && known < c * x) {
        x = known / c;
        const double a = std::pow(x, 1.0 / p), b = arithmetic_.entry * std::pow(z, 1.0 / p);
        moved = std::min(moved, p * b * std::pow(a + b, p - 1));  // >= (a + b)^p - a^p
      }
      error += c * (moved + rounded_[at] * x);
      terms += c * x;
    }
    const double weights = nonnegative_ ? std::min(terms, known + 2 * error) : terms;
    const double products = largest_value > 0 ? sizes[0] / largest_value : 0;
    return kHigherOrder * (2 * error + (arithmetic_.sums + of_gates) * (weights + error)) +
           2 * arithmetic_.smallest * (underflow + sizes[0] + products);
  }

 private:
  using Degrees = std::array<double, Kernel::kMaxDegree + 1>;

  WeightArithmetic arithmetic_;
  int degree_;
  bool nonnegative_;
  bool even_ = true;      // only even powers, with positive coefficients
  Degrees size_ = {};     // |c_p|
  Degrees moved_ = {};    // (1 + eps)^p - 1
  Degrees rounded_ = {};  // (1 + u)^(2 p + 2) - 1
};

/// The bound of a row, over max|V|, whose sums are off by `error` = A. sum: D~, or what a normaliser makes of
/// it, `certain` if that is off by nothing; largest: max_c |out~_c|; out: how it is stored. Infinity where
/// nothing is known.
template <class Real>
double row_bound(double error, double sum, double largest, double largest_value, const StoredType& out,
                 bool certain = false) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double rounding = kUnitRoundoff<Real> + 0x1p-50 + result_rounding<Real>(out);
  const double least = std::max(out.smallest, static_cast<double>(std::numeric_limits<Real>::min()));
  const double left = certain ? std::abs(sum) : std::abs(sum) - error;
  // A denominator that is not normal gives zeros, and a mean with signs may be too large for out's type.
  if (!(left > 0) || !(std::abs(sum) >= 2 * static_cast<double>(std::numeric_limits<Real>::min())) ||
      !(std::abs(sum) < kInfinity) || !(largest <= out.largest))
    return kInfinity;
  const double ratio = largest_value > 0 ? (1 + 2 * rounding) * largest / largest_value : 0;
  const double stored = largest_value > 0 ? least / largest_value : 0;
  const double bound = error * (certain ? 1 : std::max(1.0, ratio)) / left + rounding * ratio + stored;
  return bound < kInfinity ? bound : kInfinity;
}

}  // namespace fastrope::inline FASTROPE_TARGET
