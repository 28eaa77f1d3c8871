// ExpPolynomial: P(x) = sum_p c_p x^p, close to e^x in relative error on [-R, R], and the proof of how close.
//
// Softmax weights are ratios of exponentials, so attention with P in the place of exp is off by the relative
// error f(x) = P(x) e^-x - 1. fit() finds the lowest degree for a bound on |f|: a Remez exchange gives the
// coefficients, and certified_relative_error(), which knows nothing of the exchange, proves a bound for the
// doubles that are stored. A bound below 1 also proves P > 0 on [-R, R].
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <queue>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// A proved upper bound of max |P(x) e^-x - 1| over |x| <= radius, where P(x) = sum_p coefficients[p] x^p in
/// exact arithmetic of the given doubles; infinity when intermediate numbers overflow. It is within 1 % of
/// the maximum, plus an allowance for rounding of the order of epsilon sum_p |c_p| R^p e^R.
///
/// Branch and bound: [-R, R] is cut into cells, each with a bound of |f| that holds at all its points
/// (detail::bounded_cell has the proof); the cell with the largest bound is halved until that bound is no
/// more than 1 % above the largest |f| seen at a cell's centre. The largest bound holds on all of [-R, R] at
/// any time, so giving up early costs tightness and never truth.
///
/// Requires: radius finite, >= 0. Throws Error otherwise. Cost: O(degree^2) a cell, about 10 (degree + 1)
/// cells.
inline double certified_relative_error(std::span<const double> coefficients, double radius);

/// A polynomial close to exp in relative error on [-R, R], with a proved bound.
class ExpPolynomial {
 public:
  /// More than any pair of radius and error that doubles can reach asks for.
  static constexpr int kMaxDegree = 32;

  /// The polynomial of lowest degree whose certified relative error is at most `relative_error`.
  /// Requires: radius finite, >= 0; 0 < relative_error < 1. Throws Error otherwise, and when no degree up to
  /// kMaxDegree reaches it. It is not tried for a relative error below epsilon e^(2 radius), the size at
  /// x = -radius of the rounding of coefficients that add up to e^radius at x = radius.
  /// Cost: up to 0.2 ms for radius <= 8.
  static ExpPolynomial fit(double radius, double relative_error);

  /// The polynomial of the given degree with the smallest max |P(x) e^-x - 1| over |x| <= radius, up to
  /// rounding. Its certified error may be 1 or more; then P need not be positive.
  /// Requires: 0 <= radius, e^radius a finite double; 0 <= degree <= kMaxDegree. Throws Error otherwise.
  static ExpPolynomial minimax(double radius, int degree);

  int degree() const { return static_cast<int>(coefficients_.size()) - 1; }
  /// c_p of x^p, p = 0 .. degree().
  std::span<const double> coefficients() const& { return coefficients_; }
  std::span<const double> coefficients() const&& = delete;  // would dangle
  double radius() const { return radius_; }
  /// Certified: |P(x) e^-x - 1| <= relative_error() for every |x| <= radius().
  double relative_error() const { return relative_error_; }

  double operator()(double x) const {
    double value = 0;
    for (std::size_t p = coefficients_.size(); p-- > 0;) value = value * x + coefficients_[p];
    return value;
  }

 private:
  ExpPolynomial(double radius, std::vector<double> coefficients)
      : coefficients_(std::move(coefficients)),
        radius_(radius),
        relative_error_(certified_relative_error(coefficients_, radius)) {}

  std::vector<double> coefficients_;
  double radius_;
  double relative_error_;
};

namespace detail {

/// Remez exchange for the relative error f(x) = P(x) e^-x - 1, P of degree g, x = R s.
///
/// f' = e^-x (P' - P) has at most g zeros, so the g + 2 extrema at which the best f alternates are both ends
/// of [-R, R] and g points between. A step levels the error on g + 2 points s_i = -cos(angle_i),
///     P(x_i) e^-x_i = 1 + (-1)^i E,   E = -sum_i w_i e^x_i / sum_i (-1)^i w_i e^x_i,
///     w_i = 1 / prod_(j != i) 2 (s_i - s_j)      (the divided difference of P over g + 2 points is zero),
/// and moves each inner point to the vertex of a parabola through f nearby. By de la Vallee Poussin |E| is at
/// most max |f| of any P of degree g, whatever the points.
///
/// The first points are spread as the weight e^-x asks (Saff & Totik: their density is
/// (1 - s R / (g + 1)) / (pi sqrt(1 - s^2))), with angle + R / (g + 1) sin(angle) uniform. |E| is then within
/// 20 % of its final value wherever that is below 0.1 and R <= 16, two or three steps suffice, and Lagrange's
/// formula is well conditioned in the relative error (on Chebyshev points it can lose a factor e^2R).
class ExpRemez {
 public:
  ExpRemez(double radius, int degree)
      : radius_(radius),
        angle_(static_cast<std::size_t>(degree) + 2),
        node_(angle_.size()),
        weight_(angle_.size()),
        value_(angle_.size()) {
    const double n = degree + 1, skew = radius / n;
    for (std::size_t i = 1; i + 1 < angle_.size(); ++i) {
      // Newton's method; from 0 it ascends a concave function. The points need not be accurate.
      double& angle = angle_[i];
      for (int iteration = 0; iteration < 8; ++iteration)
        angle -= (angle + skew * std::sin(angle) - std::numbers::pi * static_cast<double>(i) / n) /
                 (1 + skew * std::cos(angle));
    }
    angle_.back() = std::numbers::pi;
    level();
  }

  /// |E|: no P of this degree has a smaller max |f|.
  double lower_bound() const { return std::abs(level_); }

  /// Exchanges until the points rest and returns the coefficients c_p of x^p.
  std::vector<double> solve() {
    // An error at the level of rounding has no extrema to go to.
    for (int step = 0; step < 16 && lower_bound() > 1e-14; ++step) {
      const double moved = exchange();
      level();
      if (moved < 0.05) break;
    }
    return power_coefficients();
  }

 private:
  static double sign(std::size_t i) { return i % 2 == 0 ? 1.0 : -1.0; }

  /// Levels the error on the present points: sets s_i, w_i, E and the values P(x_i) e^-R.
  void level() {
    const std::size_t n = angle_.size();
    for (std::size_t i = 0; i < n; ++i) node_[i] = -std::cos(angle_[i]);
    double difference = 0, total = 0;
    for (std::size_t i = 0; i < n; ++i) {
      double product = 1;
      for (std::size_t j = 0; j < n; ++j)
        if (j != i) product *= 2 * (node_[i] - node_[j]);
      weight_[i] = 1 / product;
      value_[i] = std::exp(radius_ * (node_[i] - 1));
      difference += weight_[i] * value_[i];
      total += sign(i) * weight_[i] * value_[i];
    }
    level_ = -difference / total;
    for (std::size_t i = 0; i < n; ++i) value_[i] *= 1 + sign(i) * level_;
  }

  /// f between the points, by Lagrange's formula prod_i 2 (s - s_i) sum_i w_i P(x_i) / (2 (s - s_i)).
  double error(double angle) const {
    const double s = -std::cos(angle);
    double product = 1, sum = 0;
    for (std::size_t i = 0; i < node_.size(); ++i) {
      const double distance = 2 * (s - node_[i]);
      product *= distance;
      sum += weight_[i] * value_[i] / distance;
    }
    return product * sum * std::exp(radius_ * (1 - s)) - 1;
  }

  /// Moves the inner points; returns the largest move in units of a quarter of the gap to the next point.
  double exchange() {
    std::vector<double> next = angle_;
    double moved = 0;
    for (std::size_t i = 1; i + 1 < angle_.size(); ++i) {
      const double reach = std::min(angle_[i] - angle_[i - 1], angle_[i + 1] - angle_[i]) / 4;
      const double orientation = std::copysign(1.0, sign(i) * level_);  // makes f positive at the point
      const double before = orientation * error(angle_[i] - reach);
      const double after = orientation * error(angle_[i] + reach);
      const double slope = after - before, bend = 2 * std::abs(level_) - before - after;
      const double move = bend > 0 ? std::clamp(slope / (2 * bend), -1.0, 1.0) : std::copysign(1.0, slope);
      next[i] += move * reach;
      moved = std::max(moved, std::abs(move));
    }
    angle_ = std::move(next);
    return moved;
  }

  /// Newton's interpolation and its expansion in powers of s (Bjorck & Pereyra), then of x = R s. Any g + 1
  /// points determine P. Their order matters: ascending, the divided differences of e^x cancel least, and the
  /// result is about as good as rounded coefficients can be; descending, 10^3 times worse at R = 8, g = 22.
  std::vector<double> power_coefficients() const {
    const std::size_t n = node_.size() - 1;
    const double* s = node_.data();
    std::vector<double> c(value_.begin(), value_.end() - 1);
    for (std::size_t k = 1; k < n; ++k)
      for (std::size_t i = n; i-- > k;) c[i] = (c[i] - c[i - 1]) / (s[i] - s[i - k]);
    for (std::size_t k = n - 1; k-- > 0;)
      for (std::size_t i = k; i + 1 < n; ++i) c[i] -= s[k] * c[i + 1];
    double scale = std::exp(radius_);
    for (double& coefficient : c) {
      coefficient *= scale;
      scale /= radius_;
    }
    return c;
  }

  double radius_;
  std::vector<double> angle_;   // ascending, first 0, last pi
  std::vector<double> node_;    // s_i, ascending
  std::vector<double> weight_;  // w_i
  std::vector<double> value_;   // P(x_i) e^-R
  double level_ = 0;            // E
};

/// A cell [left, right] of the branch and bound.
struct ErrorCell {
  double left;
  double right;
  double centre;
  double centre_error;  // |f(centre)| as computed
  double rounding;      // share of `bound` that is an allowance for rounding
  double bound;         // of |f| on the cell

  friend bool operator<(const ErrorCell& a, const ErrorCell& b) { return a.bound < b.bound; }
};

/// Bounds f(c + t) = P(c + t) e^-(c + t) - 1 for |t| <= h: its parabola exactly, the rest by a majorant.
///
/// With d_k = e^-c q_k - 1/k!, where q_k are the Taylor coefficients of P at c (0 beyond the degree),
///     f(c + t) = e^-t sum_k d_k t^k = b_0 + b_1 t + b_2 t^2 + terms of order >= 3,
///     b_0 = d_0,   b_1 = d_1 - d_0,   b_2 = d_2 - d_1 + d_0 / 2.
/// In the rest, d_k t^k meets the terms of e^-t of order >= 3 - k, together at most e^h h^(3-k) / (3-k)!
/// (Lagrange's remainder). So, for any n >= max(degree, 2), the rest is at most
///     e^h (|d_0| h^3/6 + |d_1| h^3/2 + |d_2| h^3 + sum_(3 <= k <= n) |d_k| h^k + e^h h^(n+1) / (n+1)!).
///
/// Rounding, u = epsilon / 2, h <= 1/2:
/// - Synthetic division. Stage k divides sum_(p >= k) a_p x^(p-k) by x - c: a_p += c a_(p+1), downwards. An
///   error e in a_p is the same as an error e t^k x^(p-k) in P, and two roundings make it at most
///   u (|c a_(p+1)| + |a_p|). So the computed q_k belong exactly to a polynomial that differs from P on the
///   cell by at most u S, S = sum over k, p of h^k (|c| + h)^(p-k) (|c a_(p+1)| + |a_p|); in f, e^(h-c) u S.
/// - exp (4 u allowed), its product with q_k, 1/k! (k roundings): at most e^h sum_k h^k (6 u |d_k| +
///   (6 + k) u / k!). The second part is below 18 u; 20 u is allowed, which covers underflow too.
/// - All else is relative to sum_k |d_k| h^k. The parabola's maximum B is at least |b_0|, |b_1| h and
///   |b_2| h^2 / 2, hence |d_0|, |d_1| h, |d_2| h^2 are at most B, 1.5 B, 3 B, and |d_k| h^k for k >= 3 is
///   part of the bound: in all at most 2 n + 200 roundings of the bound itself.
/// The factor 1.01 covers the rounding of the allowance and products of roundings.
///
/// `taylor` holds the n + 1 coefficients of P, zeros behind; it is overwritten.
inline ErrorCell bounded_cell(std::span<double> taylor, double left, double right) {
  constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double c = left + (right - left) / 2;
  const double h = std::max(right - c, c - left) * (1 + kEpsilon);
  const std::size_t n = taylor.size() - 1;

  double power = 1;      // h^k
  double roundings = 0;  // S
  for (std::size_t k = 0; k < n; ++k, power *= h) {
    double stage = 0;
    for (std::size_t p = n; p-- > k;) {
      const double product = c * taylor[p + 1];
      taylor[p] += product;
      stage = stage * (std::abs(c) + h) + std::abs(product) + std::abs(taylor[p]);
    }
    roundings += power * stage;
  }

  const double scale = std::exp(-c), growth = std::exp(h);
  double remainder = 0, inverse_factorial = 1;
  power = 1;
  for (std::size_t k = 0; k <= n; ++k) {
    taylor[k] = scale * taylor[k] - inverse_factorial;
    if (k >= 3) remainder += std::abs(taylor[k]) * power;
    power *= h;
    inverse_factorial /= static_cast<double>(k + 1);
  }
  const double d0 = taylor[0], d1 = taylor[1], d2 = taylor[2];
  remainder +=
      (std::abs(d0) / 6 + std::abs(d1) / 2 + std::abs(d2)) * h * h * h + growth * power * inverse_factorial;

  const double b0 = d0, b1 = d1 - d0, b2 = d2 - d1 + d0 / 2;
  double parabola = std::max(std::abs(b0 + (b1 + b2 * h) * h), std::abs(b0 - (b1 - b2 * h) * h));
  if (std::abs(b1) < 2 * std::abs(b2) * h) parabola = std::max(parabola, std::abs(b0 - b1 * b1 / (4 * b2)));

  const double rounding = 1.01 * kEpsilon / 2 * (growth * scale * roundings + 20);
  const double bound =
      (parabola + growth * remainder) * (1 + static_cast<double>(n + 100) * kEpsilon) + rounding;
  return {left, right, c, std::abs(d0), rounding, bound < kInfinity ? bound : kInfinity};
}

inline void check_radius(double radius) {
  if (!(radius >= 0 && std::isfinite(radius)))
    fail("the radius of an exp polynomial is finite and >= 0, got ", radius);
}

/// The best coefficients for |x| <= radius: of the exchange, or 1/p! when those are exact to rounding.
inline std::vector<double> minimax_coefficients(double radius, int degree) {
  if (std::pow(radius, degree + 1) >= std::numeric_limits<double>::epsilon())
    return ExpRemez(radius, degree).solve();
  std::vector<double> taylor(static_cast<std::size_t>(degree) + 1, 1.0);
  for (std::size_t p = 1; p < taylor.size(); ++p) taylor[p] = taylor[p - 1] / static_cast<double>(p);
  return taylor;
}

}  // namespace detail

inline double certified_relative_error(std::span<const double> coefficients, double radius) {
  constexpr std::size_t kMaxCells = 4096;
  detail::check_radius(radius);
  if (std::isinf(std::exp(radius))) return std::numeric_limits<double>::infinity();

  std::vector<double> taylor(std::max<std::size_t>(coefficients.size(), 3));
  std::priority_queue<detail::ErrorCell> cells;
  double seen = 0;
  const auto add_cell = [&](double left, double right) {
    std::fill(std::copy(coefficients.begin(), coefficients.end(), taylor.begin()), taylor.end(), 0.0);
    const detail::ErrorCell cell = detail::bounded_cell(taylor, left, right);
    seen = std::max(seen, cell.centre_error);
    cells.push(cell);
  };
  const int initial = static_cast<int>(2 * radius) + 1;  // half-widths are at most 1/2
  double left = -radius;
  for (int i = 1; i <= initial; ++i) {
    const double right = radius * (2.0 * i / initial - 1);
    add_cell(left, right);
    left = right;
  }
  while (cells.top().bound > 1.01 * seen + cells.top().rounding && cells.size() < kMaxCells) {
    const detail::ErrorCell cell = cells.top();
    cells.pop();
    add_cell(cell.left, cell.centre);
    add_cell(cell.centre, cell.right);
  }
  return cells.top().bound;
}

inline ExpPolynomial ExpPolynomial::minimax(double radius, int degree) {
  detail::check_radius(radius);
  if (std::isinf(std::exp(radius)))
    detail::fail("exp overflows on the radius ", radius, " of an exp polynomial");
  if (degree < 0 || degree > kMaxDegree)
    detail::fail("the degree of an exp polynomial is 0 to ", kMaxDegree, ", got ", degree);
  return {radius, detail::minimax_coefficients(radius, degree)};
}

inline ExpPolynomial ExpPolynomial::fit(double radius, double relative_error) {
  detail::check_radius(radius);
  if (!(relative_error > 0 && relative_error < 1))
    detail::fail("the relative error of an exp polynomial is between 0 and 1, got ", relative_error);
  const double attainable = std::numeric_limits<double>::epsilon() * std::exp(2 * radius);
  if (attainable > relative_error)
    detail::fail("a polynomial in double is not within relative error ", relative_error, " of exp on [-",
                 radius, ", ", radius, "]: rounding alone makes it about ", attainable);
  for (int degree = 0; degree <= kMaxDegree; ++degree) {
    if (detail::ExpRemez(radius, degree).lower_bound() > relative_error) continue;
    ExpPolynomial candidate = minimax(radius, degree);
    if (candidate.relative_error() <= relative_error) return candidate;
  }
  detail::fail("no polynomial of degree up to ", kMaxDegree, " is within relative error ", relative_error,
               " of exp on [-", radius, ", ", radius, "]");
}

}  // namespace fastrope::inline FASTROPE_TARGET
