// What attend_backward does about a tolerance: by features, with a certified bound, or exactly.
//
// Let A_i = |d_out_i|_1 max|V|, p_ij the exact weights, s the scale, G >= 1 the attention factor of RoPE, or
// 1 if that is more. By features, for every row
//     |d_q_i - exact|_2 <= bound |s| G^2 max|k|_2 A_i,
//     |d_k_j - exact|_2 <= bound |s| G^2 max|q|_2 sum_i p_ij A_i,
//     |d_v_jc - exact|  <= bound sum_i p_ij |d_out_ic|
// beside the rounding of results to their type. None of it grows with n_k: the p_ij of a row add up to 1.
//
// Approximation. The polynomial has |Q(x) e^-x - 1| <= eps for |x| <= R, R at least every |x_i| |y_j|.
// Turning and scaling a row moves it by tau of its length, so that entries are off by at most E = 2 tau R and
// w_ij = e^x_ij (1 + f), |f| <= delta = (1 + eps) e^E - 1. Hence w_ij / N_i = p_ij (1 + h), |h| <= eta = 2
// delta / (1 - delta), and sum_j w_ij v_j / N_i is off by at most omega max|V|, omega = 2 delta / (1 + sqrt(1
// - delta^2)) (certificate.hpp). With |dP_ij - D_i| <= 2 A_i and |D~_i - D_i| <= omega A_i,
//     |w_ij / N_i (dP_ij - D~_i) - p_ij (dP_ij - D_i)| <= p_ij A_i (2 eta + (1 + eta) omega).
// Rounding. Every sum here is of products: w_ij, by monomials or as Q(x_i.y_j), times something. Its terms
// take at most m roundings each, gamma = m u to first order, and their sizes add up to at most Q^ = sum_p
// |c_p| R^p for a pair,
//     sum_|alpha|=p (p!/alpha!) |x^alpha y^alpha| = (|x|.|y|)^p <= R^p   (|x|, |y| elementwise),
// and Q^ |y_l| for element l of the gradient of F, where that of the terms of degree p + 1 is c_p (|x|.|y|)^p
// |y_l|. As e^x_ij >= e^-R, a pair is so off by rho w_ij, rho = gamma Q^ e^R / (1 - delta), which makes rho
// N_i of N_i, 3 rho max|V| of out~_i and 4 rho A_i of D~_i; so 8 rho (1 + eta) p_ij A_i of what a pair
// multiplies a row by, for rho <= 1/8, and with the rounding of that product, 2.5 rho p_ij A_i (1 + eta) / (1
// - rho), 12 rho in all, for eta <= 1/8. Rows that were moved by tau, and results that are turned back, are 5
// tau, since |d_q_i|_2 <= 2 |s| G^2 max|k|_2 A_i. So
//     bound = 1.01 (2 eta + (1 + eta) omega + 12 rho + 5 tau).
// m: a monomial, its factors and the way back to its variables (g + 2) (d + 6); products with a state and
// sums over it 2 r; sums over a block, and blocks; pairs within a block; channels. Twice as many are taken.
// Underflow changes a term by at most 2^-1022, times sizes that are within 2^+-400, or else the path is
// exact: 2^-300 of rho covers it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/gradient/feature_backward.hpp"
#include "fastrope/plan/certificate.hpp"
#include "fastrope/plan/cost_model.hpp"
#include "fastrope/plan/exp_polynomial.hpp"
#include "fastrope/plan/work.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// How attend_backward computed a call.
struct BackwardReport {
  Path path = Path::exact;  ///< or polynomial: by features
  double bound = 0;         ///< as above; of the exact path 0, which approximates nothing
  Index rank = 0;           ///< of the features
  std::string reason = {};  ///< why the path is exact, where there was a tolerance
};

/// What is measured of all rows: the largest lengths of q and k before they are turned, and elements.
struct BackwardSizes {
  double q, k, v, d_out;
};

/// A report, and if the path is polynomial the features.
struct BackwardChoice {
  BackwardReport report;
  std::optional<BackwardFeatures> features = {};
};

namespace detail {

/// max over all rows of size(row, cols), NaN where one is.
template <class Size>
double largest_row(const StoredRows& x, Size&& size) {
  std::vector<double> row(static_cast<std::size_t>(x.cols));
  double largest = 0;
  for (Index h = 0; h < x.heads; ++h)
    for (Index i = 0; i < x.rows; ++i) {
      x.head(h).read(i, x.cols, row.data());
      const double of_row = size(row);
      if (!(of_row <= largest)) largest = of_row;
      if (std::isnan(largest)) return largest;
    }
  return largest;
}
inline double length_of(const std::vector<double>& row) {
  double sum = 0;
  for (const double x : row) sum += x * x;
  return std::sqrt(sum);
}
inline double largest_of(const std::vector<double>& row) {
  double largest = 0;
  for (const double x : row) {
    if (std::isnan(x)) return x;
    largest = std::max(largest, std::abs(x));
  }
  return largest;
}

/// Why features do not serve a call, whatever its rows; empty where they do.
inline std::string features_refusal(const Problem& problem) {
  const Shapes& s = problem.shapes;
  const Mask& mask = problem.grid.mask();
  if (!problem.kernel.is_softmax()) return "softmax alone is approximated";
  if (problem.softcap > 0 || !problem.sinks.empty() || !problem.bias.empty() || problem.gates.given() ||
      problem.is_dense())
    return "softcap, sinks, biases, gates and dense masks are exact";
  if (!problem.grid.consecutive() || problem.grid.has_ranges())
    return "given positions and key ranges are exact";
  if (mask != Mask::full() && (mask != Mask::causal() || s.n_q > s.n_k))
    return message("the mask of lags ", mask.first, " to ", mask.last, " with n_q = ", s.n_q,
                   ", n_k = ", s.n_k, " is neither full nor causal with n_q <= n_k");
  if (s.heads == 0 || s.n_q == 0 || s.n_k == 0 || s.d == 0) return "there are no entries";
  return {};
}

}  // namespace detail

/// Decides one kind of call: what rows are, and what polynomials then promise.
class BackwardBound {
 public:
  /// Infinite where sizes are beyond what is proved.
  BackwardBound(const Problem& problem, Index d_v, const BackwardSizes& sizes)
      : d_(problem.shapes.d), d_v_(d_v) {
    const double factor = problem.rotates() ? problem.rotation.frequencies().attention_factor : 1;
    const double gain = std::max(1.0, factor);
    tau_ = 6 * kUnit;
    if (problem.rotates()) tau_ += 2 * problem.rotation.phase_error(problem.farthest_turn());
    constexpr double kMost = 0x1p400;
    const auto fits = [](double x) { return x == 0 || (x >= 1 / kMost && x <= kMost); };
    const double radius = std::abs(problem.scale) * gain * gain * sizes.q * sizes.k;
    if (fits(sizes.q) && fits(sizes.k) && fits(sizes.v) && fits(sizes.d_out))
      radius_ = radius * (1 + 2 * tau_ + static_cast<double>(2 * d_ + 20) * kUnit) + 0x1p-100;
    const Index tokens = problem.shapes.n_k + problem.group() * (problem.shapes.n_k + problem.shapes.n_q);
    blocks_ = static_cast<double>(ceil_div(tokens, FeatureRows::kWidth) +
                                  (2 * FeatureRows::kWidth + 3) * problem.group());
  }

  double radius() const { return radius_; }

  double of(const ExpPolynomial& polynomial, double rank) const {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const double delta = (1 + polynomial.relative_error()) * std::exp(1.01 * 2 * tau_ * radius_) - 1;
    if (!(delta < 0.5)) return kInfinity;
    const double eta = 2 * delta / (1 - delta);
    double size = 0;
    for (int p = polynomial.degree(); p >= 0; --p)
      size = size * radius_ + std::abs(polynomial.coefficients()[static_cast<std::size_t>(p)]);
    const double roundings = 2 * rank + static_cast<double>((polynomial.degree() + 2) * (d_ + 6)) + blocks_ +
                             static_cast<double>(4 * FeatureRows::kWidth + 2 * d_v_) + 70;
    const double rho = 1.01 * 2 * roundings * kUnit * size * std::exp(radius_) / (1 - delta) + 0x1p-300;
    if (!(eta <= 0.125) || !(rho <= 0.125)) return kInfinity;
    return 1.01 * (2 * eta + (1 + eta) * output_error(delta) + 12 * rho + 5 * tau_);
  }

 private:
  static constexpr double kUnit = kUnitRoundoff<double>;

  Index d_, d_v_;
  double tau_;
  double radius_ = std::numeric_limits<double>::infinity();
  double blocks_;
};

/// Requires options.tolerance > 0, path automatic or polynomial. Throws Error where the latter cannot be.
template <class Real>
BackwardChoice choose_backward(const Problem& problem, const Options& options, Index d_v,
                               const BackwardSizes& sizes) {
  constexpr double kMostRadius = 16;
  constexpr double kMostRank = 0x1p16;
  const bool forced = options.path == Path::polynomial;
  const auto exact = [&](const auto&... reason) {
    BackwardChoice choice{.report = {.reason = detail::message(reason...)}};
    if (forced) detail::fail("attend_backward: path polynomial: ", choice.report.reason);
    return choice;
  };
  if (const std::string refusal = detail::features_refusal(problem); !refusal.empty()) return exact(refusal);
  const BackwardBound bound(problem, d_v, sizes);
  const Shapes& s = problem.shapes;
  if (!(bound.radius() <= kMostRadius))
    return exact("entries are up to ", bound.radius(), ", above ", kMostRadius);
  double least = std::numeric_limits<double>::infinity(), rank = 0;
  for (int degree = 0;; ++degree) {
    rank = rank_of(simplex_limits(s.d, degree + 1));
    if (rank > kMostRank || degree > ExpPolynomial::kMaxDegree)
      return exact("entries up to ", bound.radius(), " have a bound of ", least,
                   " at best, with a rank below ", kMostRank);
    const ExpPolynomial polynomial = ExpPolynomial::minimax(bound.radius(), degree);
    const double of_degree = bound.of(polynomial, rank);
    least = std::min(least, of_degree);
    if (of_degree > options.tolerance) continue;

    const double pairs = problem.grid.allowed_pairs() * static_cast<double>(s.heads);
    const double tokens = static_cast<double>(s.heads * s.n_q + s.kv_heads * s.n_k);
    const CostModel cost;
    const double of_exact =
        cost.seconds<Real>({.tile = 2 * pairs * static_cast<double>(3 * s.d + 2 * d_v), .weigh = 3 * pairs});
    const double of_features = cost.seconds<double>(
        {.tile = 6 * tokens * rank * static_cast<double>(d_v + 1), .feature = 9 * tokens * rank});
    if (!forced && of_features > of_exact)
      return exact("exact gradients take ", of_exact, " s, features of rank ", rank, " ", of_features, " s");

    // Powers of queries and keys are of one size, and the scale is with the queries: a power of two rounds
    // nothing.
    const double ratio = std::abs(problem.scale) * sizes.q / sizes.k;
    const double key_scale =
        std::isfinite(ratio) && ratio > 0 ? std::exp2(std::round(std::log2(ratio) / 2)) : 1;
    BackwardChoice choice{
        .report = {.path = Path::polynomial, .bound = of_degree, .rank = static_cast<Index>(rank)}};
    choice.features.emplace(polynomial.coefficients(), s.d, problem.scale / key_scale, key_scale);
    return choice;
  }
}

}  // namespace fastrope::inline FASTROPE_TARGET
