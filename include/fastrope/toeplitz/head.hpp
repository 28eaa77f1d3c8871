// ToeplitzHead: what the Toeplitz path needs to know of one head, and what its transforms may be off by.
//
// A lag bias and a mask make one generator T(lag) for all terms of the polynomial; a general family W(lag)
// multiplies it by a product of its entries, and terms with the same product share it.
//
// Guarantee: beside the polynomial's certificate, the rounding of each row is bounded when it is done. With
// k_F u the error of a product relative to |t|_2 |x|_2 (circulant.hpp), terms summed in double, and features
// and generators of up to 2 p + 4 roundings, numerator and denominator are off by at most, over max|V| and
// together,
//     sum_p e_p |x_i|^p + 2 u (T 1)_i sum_p (2 p + 4) |c_p| Y^p |x_i|^p,
//     e_p = k_F u |t|_2 |c_p| (S^N_p + S^D_p),   S_p^2 = sum_j v_j^2 |y_j|^2p
// (Cauchy-Schwarz over the terms of a degree, sum_(|alpha| = p) (p! / alpha!) x^(2 alpha) = |x|^2p, on both
// sides): S^N of the worst column over max|V|, S^D of ones, Y = max|y_j|. Rows for which that is more than
// `allowed` of the denominator (the first ones of a causal mask, say) are done again by exact tiles.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/position/relative_weights.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/toeplitz/circulant.hpp"
#include "fastrope/toeplitz/fftw.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// T's generator for one head, divided by its largest value: [n_q + n_k - 1], index lag - offset + n_k - 1.
inline std::vector<double> lag_generator(const Problem& problem, Index head) {
  const LagGrid& grid = problem.grid;
  const LagGrid::Lags lags = grid.allowed_lags();
  std::vector<double> generator(static_cast<std::size_t>(std::max<Index>(0, grid.n_q() + grid.n_k() - 1)));
  const Index size = std::max<Index>(0, lags.last - lags.first + 1);
  std::vector<double> logits(static_cast<std::size_t>(size));
  if (!problem.bias.empty())
    for (Index m = 0; m < size; ++m) logits[static_cast<std::size_t>(m)] = problem.bias(head, lags.first + m);
  const double largest = size > 0 ? *std::max_element(logits.begin(), logits.end()) : 0;
  for (Index m = 0; m < size; ++m)
    generator[static_cast<std::size_t>(lags.first + m - grid.offset() + grid.n_k() - 1)] =
        std::exp(logits[static_cast<std::size_t>(m)] - largest);
  return generator;
}

/// Terms of a polynomial whose generator is the same product of lag functions.
struct SharedGenerator {
  std::vector<Index> weights;  ///< the entries s of the support whose W_s(lag) are multiplied with T(lag)
  struct Term {
    Index monomial;
    double coefficient;
  };
  std::vector<Term> terms;
};

/// What the Toeplitz path needs to know of one head: found by the planner.
struct ToeplitzHead {
  LowRankUnit low_rank;           ///< of one head, without chunks
  std::vector<double> generator;  ///< T(lag), from lag_generator
  std::vector<double> row_sums;   ///< [n_q]: at least (T 1)_i
  double generator_norm;          ///< at least |t|_2
  std::vector<double>
      weight_sizes;  ///< [support]: max|W_s| over the lags that are allowed; empty without weights
  std::vector<SharedGenerator> terms;

  ToeplitzHead(const Problem& problem, LowRankUnit unit)
      : low_rank(std::move(unit)),
        generator(lag_generator(problem, low_rank.heads.begin)),
        row_sums(sums_of_rows(generator, problem.shapes)),
        generator_norm(norm_of(generator)),
        weight_sizes(sizes_of_weights(problem)),
        terms(share_generators(low_rank, problem.weights ? &*problem.weights : nullptr)) {}

 private:
  /// Of a running sum, with what it may be off by.
  static std::vector<double> sums_of_rows(std::span<const double> generator, const Shapes& s) {
    std::vector<double> prefix{0}, sums;
    for (const double t : generator) prefix.push_back(prefix.back() + t);
    const double slack =
        prefix.back() * std::numeric_limits<double>::epsilon() * static_cast<double>(prefix.size());
    for (Index i = 0; i < s.n_q; ++i)
      sums.push_back(prefix[static_cast<std::size_t>(i + s.n_k)] - prefix[static_cast<std::size_t>(i)] +
                     slack);
    return sums;
  }
  static std::vector<double> sizes_of_weights(const Problem& problem) {
    std::vector<double> sizes;
    if (!problem.weights) return sizes;
    const LagGrid::Lags lags = problem.grid.allowed_lags();
    for (Index s = 0; s < std::ssize(problem.weights->support()); ++s) {
      double size = 0;
      for (Position lag = lags.first; lag <= lags.last; ++lag)
        size = std::max(size, std::abs((*problem.weights)(lag, s)));
      sizes.push_back(size);
    }
    return sizes;
  }
  static double norm_of(std::span<const double> generator) {
    double square = 0;
    for (const double t : generator) square += t * t;
    return std::sqrt(square) *
           (1 + static_cast<double>(generator.size()) * std::numeric_limits<double>::epsilon());
  }

  /// Without weights all terms share T; with weights those whose entries of W are the same up to their signs.
  static std::vector<SharedGenerator> share_generators(const LowRankUnit& unit,
                                                       const RelativeWeights* weights) {
    const auto monomials = unit.monomials->terms();
    std::vector<RelativeWeights::Equal> equal;  // [support]
    for (Index s = 0; weights && s < std::ssize(weights->support()); ++s)
      equal.push_back(weights->first_equal(s));
    std::map<std::vector<Index>, SharedGenerator> groups;
    for (std::size_t m = 0; m < monomials.size(); ++m) {
      double coefficient =
          unit.coefficients[static_cast<std::size_t>(monomials[m].degree)] * monomials[m].multinomial;
      std::vector<Index> factors;
      for (const Monomial* term = &monomials[m]; weights && term->degree > 0;
           term = &monomials[static_cast<std::size_t>(term->parent)]) {
        const auto [entry, sign] = equal[static_cast<std::size_t>(term->variable)];
        factors.push_back(entry);
        coefficient *= sign;
      }
      std::sort(factors.begin(), factors.end());
      SharedGenerator& group = groups[factors];
      group.weights = factors;
      group.terms.push_back({static_cast<Index>(m), coefficient});
    }
    std::vector<SharedGenerator> list;
    list.reserve(groups.size());
    for (auto& [factors, group] : groups) list.push_back(std::move(group));
    return list;
  }
};

/// The lags row - column that the mask allows.
inline LagSupport allowed_support(const Problem& problem) {
  const LagGrid::Lags lags = problem.grid.allowed_lags();
  const Position offset = problem.grid.offset();
  return lags.first > lags.last ? LagSupport{} : LagSupport{lags.first - offset, lags.last - offset};
}

/// Why the Toeplitz path cannot compute this problem at any tolerance; empty when it can.
inline std::string toeplitz_refusal(const Problem& problem) {
  if (problem.grid.has_ranges()) return "key_ranges are not a function of the lag";
  if (!problem.grid.consecutive())
    return "positions are not consecutive, so lags do not make a Toeplitz matrix";
  if (problem.gates.given()) return "gates are not a function of the lag";
  if (problem.softcap > 0) return "softcap is not a polynomial of the dot product";
  if (!problem.sinks.empty()) return "attention sinks are done by the exact path";
  if (problem.is_dense()) return "a dense bias or mask is not a function of the lag";
  return {};
}

/// k_F u: the error of a product by transforms over |t|_2 |x|_2.
template <class Real>
double transform_rounding(const Shapes& s) {
  const double length = static_cast<double>(fft_length(std::max<Index>(1, s.n_q + s.n_k - 1)));
  return 20 * kUnitRoundoff<Real> * (1 + std::log2(length));
}

/// About what each row's bound will be, over its denominator, for choices that need no proof: values of size
/// 1, keys as long as they can be, a denominator of its lags' factors. amplification: sum_p |c_p| F^p, F the
/// bound on the features' norms. Result: [n_q], infinity for a row without keys.
template <class Real>
std::vector<double> expected_transform_rounding(const Problem& problem, const ToeplitzHead& head,
                                                double amplification) {
  const Shapes& s = problem.shapes;
  const double error = 2 * transform_rounding<Real>(s) * head.generator_norm *
                       std::sqrt(static_cast<double>(s.n_k)) * amplification;
  std::vector<double> expected;
  for (const double sum : head.row_sums) expected.push_back(error / sum);
  return expected;
}

}  // namespace fastrope::inline FASTROPE_TARGET
