// Certificate: how far the output of a polynomial path is from exact attention, proved from what was really
// done: which polynomial, which monomials were kept, how long the projected rows are, what the axes miss.
//
//     e^(s (q-nu).(k-mu))  ->  P_A(x.y) = sum over alpha in A of c_|alpha| (|alpha|! / alpha!) x^alpha
//     y^alpha
// with x, y as in projection.hpp and A the multi-indices within the limits (monomials.hpp). The pairs of rows
// enter through their couplings alone,
//     couplings[l] >= |x_i[l..]|_2 |y_j[l..]|_2   for every pair (i, j) that is approximated, l = 0 .. m.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/plan/exp_polynomial.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// What leaving out monomials costs, for one polynomial P of degree g and radius R.
///
/// Cut an entry at variable l: u = x[..l).y[..l), t = x[l..).y[l..), rho = |x[l..)| |y[l..)|. Take monomials
/// of any degree in the first variables, and of degree j > h in those from l on, where the parts gamma in the
/// latter lie in any set G. Since p!/alpha! = p!/(beta! gamma!) for alpha = (beta, gamma), their sum is
///     sum_(j > h) P^(j)(u)/j!  sum_(gamma in G, |gamma| = j) (j!/gamma!) x^gamma y^gamma,
/// and by Cauchy-Schwarz the inner sum is at most rho^j, as sum_(|gamma| = j) (j!/gamma!) x^(2 gamma) =
/// |x[l..)|^2j. Also |t| <= rho and |u| <= R - rho (Cauchy-Schwarz again, in two dimensions: |u| + rho <=
/// |x| |y| <= R), so that relative to e^(u+t) the sum is at most
///     loss(rho, h) = e^rho sum_(j > h) rho^j max_(|u| <= R - rho) e^-u |P^(j)(u)| / j!,
/// about rho^(h+1) / (h+1)!, as P is about e^u. For rho <= tau its maximum over rho counts.
class TailBound {
 public:
  /// Cost: O(g^2) for each of 2 kRings cells.
  explicit TailBound(const ExpPolynomial& polynomial);

  int degree() const { return static_cast<int>(rings_.front().size()) - 1; }

  /// [degree + 1], nonincreasing: element h bounds loss(rho, h) for all 0 <= rho <= min(tau, R). The last is
  /// 0.
  std::vector<double> losses(double tau) const;

 private:
  static constexpr int kRings = 64;

  double radius_ = 0;
  /// [ring][j]: at least e^-u |P^(j)(u)| / j! for all |u| <= R (1 - ring / kRings).
  std::array<std::vector<double>, kRings> rings_;
};

/// The loss of every cut: [variables][degree + 1].
inline std::vector<std::vector<double>> tail_losses(const TailBound& bound, std::span<const double> couplings,
                                                    std::size_t variables) {
  std::vector<std::vector<double>> losses;
  for (std::size_t l = 0; l < variables; ++l)
    losses.push_back(l > 0 && couplings[l] == couplings[l - 1] ? losses.back() : bound.losses(couplings[l]));
  return losses;
}

/// Bounds |P_A(x.y) - P(x.y)| e^(-x.y), A the multi-indices within the limits.
///
/// A limit only binds where it is below the one before it (before the first: the degree). A multi-index that
/// is left out breaks at least one of these limits; count it at the last that it breaks, l. Then its degree
/// in the variables from l on is above limits[l], its part there breaks no later limit, and its part before l
/// is any: the case of TailBound, with h = limits[l]. The losses of all binding limits add up.
inline double tail_error(std::span<const int> limits, std::span<const std::vector<double>> losses) {
  double total = 0;
  for (std::size_t l = 0; l < limits.size(); ++l) {
    const int before = l == 0 ? static_cast<int>(losses[0].size()) - 1 : limits[l - 1];
    if (limits[l] < before) total += losses[l][static_cast<std::size_t>(limits[l])];
  }
  return total * (1 + static_cast<double>(limits.size()) * std::numeric_limits<double>::epsilon());
}

/// The certified error of one head, and its parts. Errors of entries are relative to e^entry.
struct Certificate {
  double polynomial = 0;      ///< of P
  double tail = 0;            ///< of the monomials that are left out
  double axes_error = 0;      ///< absolute, of the entries x.y
  double relative_error = 0;  ///< of all that together: delta
  double error_bound = 0;     ///< of the output, relative to max|V|; infinity when delta >= 1
};

/// The output's error in units of half the largest range of a column of V, from that of the weights, < 1.
inline double output_error(double relative_error) {
  return 2 * relative_error / (1 + std::sqrt((1 - relative_error) * (1 + relative_error)));
}

/// The relative error of weights for which the output's error is at most `error`, relative to max|V|;
/// below 1.
inline double allowed_relative_error(double error, double value_spread) {
  const double gain = std::min(error / 2, 0.9 * value_spread) / value_spread;
  return value_spread > 0 ? 2 * gain / (1 + gain * gain) : 0.99;
}

/// Sizes of a head's logits before biases, over all of its rows.
struct LogitSizes {
  double plain = 0;   ///< L: at least |scale| |q_i| |k_j|
  double packed = 0;  ///< L': at least |scale| |q_i| |k_j - mu|
};

/// What rounding does to exact attention.
struct ExactRounding {
  double weights = 0;  ///< delta
  double sums = 0;     ///< of the output, over max|V|

  /// The output's error over max|V|, with weights that are off by `relative` or by delta, whichever is more.
  double error(double value_spread, double relative = 0) const {
    const double delta = std::max(weights, relative);
    return delta < 1 ? output_error(delta) * value_spread + sums : std::numeric_limits<double>::infinity();
  }
};

/// The certificate of a polynomial, the limits of its multi-indices, and the rows' couplings.
///
/// Entries. With e = x.y - s (q-nu).(k-mu), |e| <= axes_error, the weight that is used in the place of
/// e^(s (q-nu).(k-mu)) is off by the factor
///     1 + f = P_A(x.y) e^(-x.y) e^e,   |f| <= (1 + polynomial + tail) e^axes_error - 1 = delta.
/// Output. Factors common to a row cancel, and weights common to a key belong to both sides. A row's softmax
/// weights w_j become w'_j = w_j (1 + f_j) / sum_i w_i (1 + f_i). Keys that hold the share p of w hold at
/// most
///     (1 + delta) p / ((1 + delta) p + (1 - delta) (1 - p))
/// of w', as that is when f is delta on them and -delta elsewhere; the gain is largest, delta / (1 + sqrt(1 -
/// delta^2)), where 2 p = 1 - that. So w and w' differ by twice as much in the sum of absolute values, the
/// means of numbers in an interval by its length times the gain, and the output by at most
///     2 delta / (1 + sqrt(1 - delta^2)) value_spread max|V|,
/// value_spread = half of the largest range of a column of V, over max|V|. Keys that are attended to exactly
/// (f_j = 0) are no worse than others.
///
/// limits: [variables], of all variables, 0 where one is left out altogether; none where no monomial of the
/// polynomial's degree is left out. losses: tail_losses of the
/// polynomial and the couplings, for as many variables or more. Requires couplings[0] <= polynomial.radius(),
/// limits and couplings nonincreasing, 0 <= value_spread <= 1, axes_error >= 0.
/// Rounding: exact arithmetic of the given numbers is bounded outward; rounding of the attention itself is
/// not part of it. About 20 roundings lie between the parts and the result, for which 32 epsilon are added.
inline Certificate certify(const ExpPolynomial& polynomial, std::span<const int> limits,
                           std::span<const std::vector<double>> losses, double axes_error,
                           double value_spread) {
  constexpr double kOutward = 1 + 32 * std::numeric_limits<double>::epsilon();
  Certificate c{.polynomial = polynomial.relative_error(), .axes_error = axes_error};
  if (!limits.empty()) c.tail = tail_error(limits, losses);
  // (1 + a) e^b - 1 without cancellation: e^b - 1 + a e^b.
  c.relative_error = (std::expm1(axes_error) + (c.polynomial + c.tail) * std::exp(axes_error)) * kOutward;
  c.error_bound = c.relative_error < 1 ? output_error(c.relative_error) * value_spread * kOutward
                                       : std::numeric_limits<double>::infinity();
  return c;
}

/// The same from the couplings: [variables] or more. Throws Error when they are fewer, or beyond the
/// polynomial's radius.
inline Certificate certify(const ExpPolynomial& polynomial, std::span<const int> limits,
                           std::span<const double> couplings, double axes_error, double value_spread) {
  if (couplings.size() < limits.size())
    detail::fail("a certificate of ", limits.size(), " variables needs as many couplings, got ",
                 couplings.size());
  if (!limits.empty() && !(couplings[0] <= polynomial.radius()))
    detail::fail("rows are coupled by ", couplings[0], ", beyond the polynomial's radius ",
                 polynomial.radius());
  return certify(polynomial, limits, tail_losses(TailBound(polynomial), couplings, limits.size()), axes_error,
                 value_spread);
}

/// Taylor coefficients of P at the centre c of a cell, q_k = P^(k)(c)/k!, by repeated synthetic division. A
/// path from a coefficient of P to q_k has at most 2 g + 1 roundings, so q_k is off by at most (g + 1)
/// epsilon times what the same steps give for |c_p| at |c|, which is added to |q_k|. On the cell, |u - c| <=
/// w,
///     e^-u |P^(j)(u)| / j! <= e^(w - c) sum_(k >= j) C(k, j) |q_k| w^(k-j):
/// the same synthetic division, of |q_k| at w. Everything then is a sum of nonnegative products with at most
/// 6 g + 20 < 256 roundings, covered by 128 epsilon.
inline TailBound::TailBound(const ExpPolynomial& polynomial) : radius_(polynomial.radius()) {
  constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
  const auto given = polynomial.coefficients();
  const std::size_t size = given.size();
  const auto expand = [size](std::vector<double>& a, double at) {
    for (std::size_t k = 0; k + 1 < size; ++k)
      for (std::size_t p = size - 1; p-- > k;) a[p] += at * a[p + 1];
  };
  const double half_width = radius_ / kRings * (0.5 + 1e-9);
  std::vector<double> inner(size), taylor(size), sizes(size);
  for (std::size_t ring = kRings; ring-- > 0;) {
    for (const double sign : {-1.0, 1.0}) {
      const double centre = sign * radius_ * (1 - (static_cast<double>(ring) + 0.5) / kRings);
      for (std::size_t p = 0; p < size; ++p) {
        taylor[p] = given[p];
        sizes[p] = std::abs(given[p]);
      }
      expand(taylor, centre);
      expand(sizes, std::abs(centre));
      for (std::size_t k = 0; k < size; ++k)
        taylor[k] = std::abs(taylor[k]) + static_cast<double>(size) * kEpsilon * sizes[k];
      expand(taylor, half_width);
      const double weight = std::exp(half_width - centre) * (1 + 128 * kEpsilon);
      for (std::size_t j = 0; j < size; ++j) inner[j] = std::max(inner[j], weight * taylor[j]);
    }
    rings_[ring] = inner;
  }
}

inline std::vector<double> TailBound::losses(double tau) const {
  constexpr double kOutward = 1 + 128 * std::numeric_limits<double>::epsilon();
  std::vector<double> largest(rings_.front().size()), terms(largest.size());
  for (std::size_t ring = 0; ring < kRings; ++ring) {
    // rho from ring / kRings to (ring + 1) / kRings of R, as far as tau.
    if (radius_ * static_cast<double>(ring) / kRings > tau) break;
    const double rho = std::min(tau, radius_ * static_cast<double>(ring + 1) / kRings);
    const double growth = std::exp(rho) * kOutward;
    double power = growth, sum = 0;
    for (std::size_t j = 0; j < terms.size(); ++j, power *= rho) terms[j] = rings_[ring][j] * power;
    for (std::size_t h = terms.size() - 1; h-- > 0;) {
      sum += terms[h + 1];
      largest[h] = std::max(largest[h], sum);
    }
  }
  return largest;
}

}  // namespace fastrope::inline FASTROPE_TARGET
