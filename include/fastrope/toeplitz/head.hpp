// ToeplitzHead: what the Toeplitz path needs to know of one head, and what its transforms may be off by.
//
// A lag bias and a mask make one generator T(lag) for all terms of the polynomial; a general family W(lag)
// multiplies it by a product of its entries, and terms with the same product share it.
//
// Guarantee: beside the polynomial's certificate, the transforms' rounding is bounded for each row.
// With eps_F the error of a product relative to |t|_2 |x|_2 (circulant.hpp), numerators and denominators are
// off by at most E max|V| and E,
//     E = eps_F |t|_2 sqrt(n_k) sum_p |c_p| R^p
// (Cauchy-Schwarz over the terms of a degree: sum_m phi_m(x)^2 = |x|^2p), and the denominator is at least
// D_i = (1 - delta) e^-R sum_j T(i-j). With rho_i = E / D_i the output moves by at most 2 rho_i / (1 - rho_i)
// max|V|. Rows where that breaks the tolerance (the first ones of a causal mask) are done by the exact path.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/position/relative_weights.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/toeplitz/circulant.hpp"
#include "fastrope/toeplitz/fftw.hpp"
#include "fastrope/toeplitz/position_part.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// T's generator for one head, divided by its largest value: [n_q + n_k - 1], index lag - offset + n_k - 1.
inline std::vector<double> lag_generator(const Problem& problem, Index head,
                                         const std::optional<PositionPart>& part = {}) {
  const LagGrid& grid = problem.grid;
  const LagGrid::Lags lags = grid.allowed_lags();
  std::vector<double> generator(static_cast<std::size_t>(std::max<Index>(0, grid.n_q() + grid.n_k() - 1)));
  const Index size = std::max<Index>(0, lags.last - lags.first + 1);
  std::vector<double> logits(static_cast<std::size_t>(size));
  if (part) logits = position_logits(problem, *part, lags.first, size);
  if (!problem.bias.empty())
    for (Index m = 0; m < size; ++m)
      logits[static_cast<std::size_t>(m)] += problem.bias(head, lags.first + m);
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
  LowRankUnit low_rank;           ///< of one head
  std::vector<double> generator;  ///< T(lag), from lag_generator
  std::vector<SharedGenerator> terms;
  std::optional<PositionPart> part;  ///< that is in the generator; the features then have 2 d columns

  ToeplitzHead(const Problem& problem, LowRankUnit unit, std::optional<PositionPart> position_part = {})
      : low_rank(std::move(unit)),
        generator(lag_generator(problem, low_rank.heads.begin, position_part)),
        terms(share_generators(low_rank, problem.weights ? &*problem.weights : nullptr)),
        part(std::move(position_part)) {}

 private:
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
  if (!problem.grid.consecutive())
    return "positions are not consecutive, so lags do not make a Toeplitz matrix";
  if (problem.softcap > 0) return "softcap is not a polynomial of the dot product";
  if (!problem.sinks.empty()) return "attention sinks are done by the exact path";
  if (problem.is_dense()) return "a dense bias or mask is not a function of the lag";
  return {};
}

/// A bound on the transforms' part of each row's error, relative to max|V|: 2 rho_i / (1 - rho_i), infinity
/// where rho_i >= 1 or the row has no keys. `amplification` is sum_p |c_p| F^p, F >= R the bound on the
/// features' norms (for a general W that of q^ and k^ in WeightedBounds, which carry max|W_s|). Result:
/// [n_q].
template <class Real>
std::vector<double> transform_error(const Problem& problem, std::span<const double> generator, double radius,
                                    double delta, double amplification) {
  const Index n_q = problem.shapes.n_q, n_k = problem.shapes.n_k;
  std::vector<double> prefix{0};
  double total = 0, energy = 0;
  for (double t : generator) {
    total += t;
    prefix.push_back(total);
    energy += t * t;
  }
  const double length = static_cast<double>(fft_length(std::max<Index>(1, n_q + n_k - 1)));
  const double eps_f = 10 * std::numeric_limits<Real>::epsilon() * (1 + std::log2(length));
  const double error = eps_f * std::sqrt(energy * static_cast<double>(n_k)) * amplification;
  // What the running sum may be off by.
  const double slack =
      prefix.back() * std::numeric_limits<double>::epsilon() * static_cast<double>(prefix.size());
  std::vector<double> bounds;
  for (Index i = 0; i < n_q; ++i) {
    const double sum =
        prefix[static_cast<std::size_t>(i + n_k)] - prefix[static_cast<std::size_t>(i)] - slack;
    const double rho = sum > 0 ? error / ((1 - delta) * std::exp(-radius) * sum) : 1;
    bounds.push_back(rho < 1 ? 2 * rho / (1 - rho) : std::numeric_limits<double>::infinity());
  }
  return bounds;
}

}  // namespace fastrope::inline FASTROPE_TARGET
