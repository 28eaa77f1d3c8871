// Rounding of sums by features: a bound for each row, known when its sums are.
//
// u: the unit roundoff of the arithmetic, h roundings along a sum mean an error of h u times the sum of its
// terms' sizes, first order (the factor kHigherOrder covers the rest, as no count of roundings is above
// 3000).
//
// Keys. A feature w y^alpha is |alpha| products. The sum of a block's features is off by N_D more roundings,
// with values by N_N (chains of kChain products, their sums, the lanes of a group). Blocks are summed in
// double. With
//     M_p = sum_j w_j |y_j|^p   over the keys of the state,
// what the states of all alpha of degree p are off by adds up, in a row, since sum_(|alpha| = p) (p! /
// alpha!) |x^alpha y^alpha| <= (|x| |y|)^p, to at most
//     u [2 p + N_N + N_D] |c_p| M_p |x|^p                                       (numerator / max|V| and
//     denominator).
// Folds. Each fold into a state of double may lose 3 double roundings of what the state and the block hold,
// or held: `spill`, which windows leave behind when blocks are taken out. Rows. The state is rounded once,
// x^alpha takes |alpha| - 1 products, a sum is kChain terms, then chains, the constant last: k_Q(p) roundings
// of |x^alpha state(alpha)|. By Cauchy-Schwarz these add up to
//     u k_Q(p) |x|^p B_p,   B_p^2 = sum_(|alpha| = p) state(alpha)^2 alpha! / p!,
// for the state that there is, whatever it was meant to be: B^N_p of the worst column, over max|V|, and
// B^D_p. So |N~_c - N_c| / max|V| + |D~ - D| <= sum_p e_p |x|^p, with
//     e_p = u [(2 p + N_N + N_D) |c_p| M_p + k_Q(p) (B^N_p + B^D_p)] + 2 spill_p.
// Where P is the kernel itself and no certificate speaks of rounded rows, these move entries by eps |x| |y|,
// which is 2 |c_p| p eps M_p more for e_p; gates, whose factors w_j are rounded, by eps_w each, 2 |c_p| eps_w
// M_p. Underflow, of which the softmax's weights stay clear, loses at
// most eta, the smallest normal number, in an operation. With m variables, X = max(1, |x|), sum_(|alpha| = p)
// (p! / alpha!) |x^alpha| <= (sqrt(m) |x|)^p: the p products of a key's feature, those with values, the
// state's rounding, the products of a row's feature and those with the state lose
//     eta (1 + 1 / max|V|) [rank + sum_p (4 p + 2) (|c_p| + 1) (sqrt(m) X)^p (1 + M_0 + M_p)]          at
//     most.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <span>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/polynomial/state.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Half an epsilon: a result is off by at most this of itself.
template <class Real>
inline constexpr double kUnitRoundoff = static_cast<double>(std::numeric_limits<Real>::epsilon()) / 2;

/// What rounding a result of Real once more to the type that it is stored as does at most, over its size; for
/// float16 beside 2^-25 in absolute value, as it has no smaller numbers.
template <class Real>
constexpr double result_rounding(const StoredType& out) {
  return out.rounding == kUnitRoundoff<Real> ? 0 : out.rounding;
}
template <class Real, class T>
constexpr double result_rounding() {
  return result_rounding<Real>(kStoredType<T>);
}

/// Products of at most 3000 factors 1 + e, |e| <= u = 2^-24, differ from 1 by no more than this times the sum
/// of |e|.
inline constexpr double kHigherOrder = 1.001;

/// N_N + N_D + 2 p: roundings of a block's features of degree p and their two sums.
template <class Real>
constexpr double key_roundings(int p) {
  constexpr Index kLanes = simd::kLanes<Real>;
  constexpr Index with_values =
      kChain + std::max<Index>(ceil_div(kKeyBlock<Real>, kChain),
                               std::bit_width(static_cast<unsigned>(kKeyGroup<Real>)));
  constexpr Index ones = kKeyBlock<Real> / kLanes + std::bit_width(static_cast<unsigned>(kLanes));
  return static_cast<double>(2 * p + with_values + ones);
}

/// k_Q(p): roundings of a row's terms of degree p.
inline double row_roundings(int p, Index rank) {
  if (p == 0) return 2;
  const Index chains = ceil_div(rank, kChain);
  return static_cast<double>(p + std::min(kChain, rank) + chains + 1);
}

/// At least the norm of which `square` is the computed square, a sum of d squares that may each have been
/// off by an epsilon or have underflowed; their elements too were rounded.
template <class Real>
double outward_norm(double square, Index d) {
  const double size = static_cast<double>(d + 4);
  return std::sqrt(square + size * static_cast<double>(std::numeric_limits<Real>::min())) *
         (1 + size * static_cast<double>(std::numeric_limits<Real>::epsilon()));
}

/// errors [degree + 1] = e_p. entry_error: eps; weight_error: eps_w; sizes: M_p; squares: B_p^2, [degree + 1,
/// channels], the last channel the denominator's; spill: [degree + 1]; largest_value: max|V|, without which
/// (0) numerators are 0.
template <class Real>
void state_errors(std::span<const double> coefficients, Index rank, Index channels, double largest_value,
                  double entry_error, double weight_error, const double* sizes, const double* squares,
                  const double* spill, double* errors) {
  for (std::size_t p = 0; p < coefficients.size(); ++p) {
    const double* row = squares + static_cast<Index>(p) * channels;
    const double numerator = channels > 1 ? std::sqrt(*std::max_element(row, row + channels - 1)) : 0;
    const double of_state =
        std::sqrt(row[channels - 1]) + (largest_value > 0 ? numerator / largest_value : 0);
    const int degree = static_cast<int>(p);
    errors[p] =
        kHigherOrder * kUnitRoundoff<Real> *
            (key_roundings<Real>(degree) * std::abs(coefficients[p]) * sizes[p] +
             row_roundings(degree, rank) * of_state) +
        kHigherOrder * 2 * (degree * entry_error + weight_error) * std::abs(coefficients[p]) * sizes[p] +
        2 * spill[p];
  }
}

/// What is added to the weights of gates, which may underflow, in sums of sizes: so much of a key counts in
/// any case, and what underflow loses of it is at most that over this.
inline constexpr double kLeastWeight = 0x1p-60;

/// What underflow may add to a row's sums over a state; norm: |x|; gated: whether sizes are of weights by
/// gates.
template <class Real>
double underflow_error(std::span<const double> coefficients, Index rank, Index variables,
                       double largest_value, const double* sizes, double norm, bool gated) {
  const double step = std::sqrt(static_cast<double>(variables)) * std::max(1.0, norm);
  double lost = static_cast<double>(rank), power = 1;
  for (std::size_t p = 0; p < coefficients.size(); ++p, power *= step)
    lost +=
        static_cast<double>(4 * p + 2) * (std::abs(coefficients[p]) + 1) * power * (1 + sizes[0] + sizes[p]);
  return static_cast<double>(std::numeric_limits<Real>::min()) * (gated ? lost / kLeastWeight : lost) *
         (largest_value > 0 ? 1 + 1 / largest_value : 1);
}

/// sizes [degree + 1] = sum_j (w_j + least_weight) |y_j|^p of a block of keys, at least; y: [variables,
/// kKeyBlock].
template <class Real>
void key_sizes(int degree, Index variables, const Real* y, const Real* weight, double* sizes,
               double least_weight = 0) {
  constexpr Index kWidth = kKeyBlock<Real>;
  std::array<Real, kWidth> squares = {};
  for (Index l = 0; l < variables; ++l)
    for (Index j = 0; j < kWidth; ++j)
      squares[static_cast<std::size_t>(j)] += y[l * kWidth + j] * y[l * kWidth + j];
  std::fill_n(sizes, degree + 1, 0.0);
  for (Index j = 0; j < kWidth; ++j) {
    const double norm =
        outward_norm<Real>(static_cast<double>(squares[static_cast<std::size_t>(j)]), variables);
    double power = static_cast<double>(weight[j]) + least_weight;
    for (int p = 0; p <= degree; ++p, power *= norm) sizes[p] += power;
  }
}

/// bounds [kQueryBlock] = sum_p errors_p |x_i|^p of some rows, and norms [kQueryBlock] at least |x_i|; x:
/// [variables, kQueryBlock], errors: [degree + 1].
template <class Real>
void row_errors(Index variables, int degree, const Real* x, const double* errors, Real* norms,
                double* bounds) {
  using namespace simd;
  constexpr Index kRows = kQueryBlock<Real>;
  // As outward_norm, with the root's own rounding.
  const Real size = static_cast<Real>(variables + 8);
  const Vec<Real> underflow = set(size * std::numeric_limits<Real>::min()),
                  outward = set(1 + size * std::numeric_limits<Real>::epsilon());
  for (Index i = 0; i < kRows; i += kLanes<Real>) {
    Vec<Real> square = underflow;
    for (Index l = 0; l < variables; ++l) {
      const Vec<Real> value = load(x + l * kRows + i);
      square = fma(value, value, square);
    }
    store<Real>(mul(sqrt(square), outward), norms + i);
  }
  for (Index i = 0; i < kRows; i += kLanes<double>) {
    const Vec<double> norm = load_as<double>(norms + i);
    Vec<double> bound = zero<double>();
    for (int p = degree; p >= 0; --p) bound = fma(bound, norm, set(errors[p]));
    store<double>(bound, bounds + i);
  }
}

/// About what a row's bound will be, relative to its denominator, for choices that need no proof: with states
/// as large as keys in one direction make them at degree 0, and a quarter of that beyond, and denominators of
/// e^mean_entry a key.
template <class Real>
double expected_rounding(std::span<const double> coefficients, Index rank, Index keys, double radius,
                         double mean_entry) {
  const double folds = 6 * static_cast<double>(ceil_div(keys, kKeyBlock<Real>) + 1);
  double sum = 0, power = 1;
  for (std::size_t p = 0; p < coefficients.size(); ++p, power *= radius) {
    const int degree = static_cast<int>(p);
    const double of_rows = (p == 0 ? 2 : 0.5) * row_roundings(degree, rank);
    sum += std::abs(coefficients[p]) * power *
           (kUnitRoundoff<Real> * (key_roundings<Real>(degree) + of_rows) + kUnitRoundoff<double> * folds);
  }
  return sum * std::exp(-mean_entry);
}

/// sum_p |c_p| radius^p: what the terms of an entry add up to at most.
inline double amplification(std::span<const double> coefficients, double radius) {
  double terms = 0, power = 1;
  for (const double c : coefficients) {
    terms += std::abs(c) * power;
    power *= radius;
  }
  return terms;
}

}  // namespace fastrope::inline FASTROPE_TARGET
