// Bounded recurrence: softmax whose entries are promised to be bounded, by states in the place of a cache.
//
//     |P(x) - e^x| <= delta e^x for |x| <= R   makes of weights e^x (1 + f), |f| <= delta, and
//     |out_P - out| <= 2 delta / (1 + sqrt(1 - delta^2)) max|V|    (certificate.hpp)
// for any number of tokens. With P as the kernel the recurrence is exact but for rounding, of which each row
// has a bound: row_bounds() is the sum of both. Gates multiply weights and change nothing of that.
//
// Without gates rounding is bounded beforehand too. With n keys the denominator is at least n (1 - delta)
// e^-R. In rounding.hpp |x|^p M_p <= n R^p, and B_p |x|^p, of a state that is a sum over keys, at most |c_p|
// n R^p; folds are n / kKeyBlock. For recent keys sizes are those of R as well (kernel_rounding.hpp). So what
// sums are off by is at most n E, and with a = E e^R / (1 - delta)
//     |out~ - out_P| <= max|V| a / (1 - 2 a), and the rounding of the result.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/plan/certificate.hpp"
#include "fastrope/plan/exp_polynomial.hpp"
#include "fastrope/polynomial/kernel_rounding.hpp"
#include "fastrope/polynomial/recurrent.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/problem/kernel.hpp"
#include "fastrope/problem/options.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Tokens up to which a recurrence's error_bound() holds.
inline constexpr Position kPromisedTokens = Position{1} << 32;

namespace detail {

/// E e^R / (1 - delta) and what follows: what rounding does to a row of a recurrence without gates, at most,
/// over max|V|. problem: with P as its kernel.
template <class Real>
double bounded_rounding(const Problem& problem, Index rank, double radius, double delta) {
  constexpr double kUnit = kUnitRoundoff<Real>;
  const auto c = problem.kernel.coefficients();
  const double folds = static_cast<double>(kPromisedTokens / kKeyBlock<Real> + 1);
  const double entry = row_rounding<Real>(
      problem, problem.rotates() ? std::min(kPromisedTokens, problem.rotation.frequencies().max_position())
                                 : kPromisedTokens);
  // Lengths of rows are measured outward.
  const double x = radius * (1 + static_cast<double>(4 * problem.shapes.d + 64) * kUnit);
  double far = 0, power = 1;
  for (std::size_t p = 0; p < c.size(); ++p, power *= x) {
    const int degree = static_cast<int>(p);
    const double roundings = key_roundings<Real>(degree) + 2 * row_roundings(degree, rank);
    far += kHigherOrder * kHigherOrder * std::abs(c[p]) * power *
           (kUnit * roundings + 2 * degree * entry + 12 * kUnitRoundoff<double> * folds);
  }
  WeightArithmetic tiles = tile_arithmetic<Real>(problem);
  tiles.entry += entry;
  tiles.sums += static_cast<double>(kPromisedTokens / kStretch + 1) * 0x1p-51;
  std::array<double, Kernel::kMaxDegree + 1> one_key;
  one_key.fill(1);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double near = KernelRounding(problem.kernel, tiles).error(x, one_key.data(), 1, 0, kInfinity);

  const double a = std::max(far, near) * std::exp(radius) / (1 - delta) * kHigherOrder;
  if (!(a < 0.25)) return kInfinity;
  const double sums = a / (1 - 2 * a), stored = kUnit + 0x1p-50;
  // |out~| / max|V| is at most 1 and what it is off by.
  const double ratio = (1 + 2 * stored) / (1 - (1 + 2 * stored) * sums);
  return (sums + stored) * ratio;
}

/// The kernel of a recurrence of softmax, and what is promised with it.
struct BoundedExp {
  Kernel kernel;
  double approximation;  ///< of softmax's rows, over max|V|
  double error_bound;    ///< and rounding
};

/// options: those of each token. Half of the tolerance is the polynomial's, less where rounding takes more
/// than the other half. Throws Error as the recurrence.
template <class Real>
BoundedExp bounded_exp(const Shapes& shapes, Options options, double radius) {
  if (!options.kernel.is_softmax())
    fail("a radius is of softmax: options.kernel is a polynomial of degree ", options.kernel.degree(),
         ", whose states need none");
  if (!(radius > 0) || !std::isfinite(radius))
    fail("the radius of a recurrence is a positive number, got ", radius);
  const double tolerance = options.tolerance;
  if (!(tolerance > 0) || !(tolerance < 1))
    fail("a recurrence of softmax approximates: options.tolerance must be between 0 and 1, got ", tolerance);
  double rounding = tolerance / 2;
  for (bool again = false;; again = true) {
    const auto polynomial = ExpPolynomial::fit(radius, allowed_relative_error(tolerance - rounding, 1));
    const auto c = polynomial.coefficients();
    options.kernel = Kernel::polynomial(std::vector<double>(c.begin(), c.end()), KernelSign::any);
    const double delta = polynomial.relative_error(), approximation = output_error(delta);
    const double rank = rank_of(simplex_limits(shapes.d, polynomial.degree()));
    rounding = bounded_rounding<Real>(Problem(shapes, options),
                                      static_cast<Index>(std::min<double>(rank, kMaxRank)), radius, delta);
    if (approximation + rounding <= tolerance)
      return {options.kernel, approximation, approximation + rounding};
    if (again || !(rounding < 0.95 * tolerance))
      fail("a recurrence of softmax with the radius ", radius,
           " cannot promise options.tolerance = ", tolerance, " in ", 8 * sizeof(Real),
           " bits: approximation by degree ", polynomial.degree(), " takes ", approximation,
           ", and rounding up to ", rounding);
    rounding *= 1.05;  // a degree more rounds a little more
  }
}

inline Options with_kernel(Options options, const Kernel& kernel) {
  options.kernel = kernel;
  return options;
}

}  // namespace detail

template <class Real>
RecurrentAttention<Real>::RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v,
                                             const Options& options, double radius)
    : RecurrentAttention(
          heads, kv_heads, d, d_v, options,
          detail::bounded_exp<Real>({heads, kv_heads, 1, 1, d, d_v}, of_tokens(options), radius), radius) {}

template <class Real>
RecurrentAttention<Real>::RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v,
                                             const Options& options, const detail::BoundedExp& bounded,
                                             double radius)
    : RecurrentAttention(heads, kv_heads, d, d_v, detail::with_kernel(options, bounded.kernel)) {
  radius_ = radius;
  approximation_ = bounded.approximation;
  error_bound_ = bounded.error_bound;
}

}  // namespace fastrope::inline FASTROPE_TARGET
