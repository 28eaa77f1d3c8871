// How much of the variance of logits positions explain, how much content, and how much only both together.
//
// Let a query q, a key k and a lag be drawn independently: rows of q and of k alike, lags as often as the
// mask allows them. A logit is x = sum_r phi_r(lag) g_r(q, k), with phi the cosines and sines of RoPE, the
// entries of W(lag), 1 for columns that do not turn, and the bias; g are bilinear. Its variance splits (an
// analysis of variance with two factors, content and lag) into that of
//     E[x | lag], which is a Toeplitz matrix;  E[x | q, k], which has no position;  and what is left.
// All three follow from the means and second moments of phi over lags and of g over rows, without n^2 logits.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/spectral/logit_matrix.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Shares of the variance of logits; they add up to 1, or are 0 where nothing varies.
struct VarianceShares {
  double variance = 0;  ///< of all logits
  double position = 0;  ///< of E[x | lag]
  double content = 0;   ///< of E[x | q, k]
  double mixed = 0;     ///< of the rest
};

namespace detail {

/// phi(lag) g(q, k), g = sum of factor q_a k_b.
struct LagFunction {
  struct Entry {
    Index a, b;
    double factor;
  };
  std::function<double(Position lag)> phi;
  std::vector<Entry> entries;  ///< none: g is 1
};

inline std::vector<LagFunction> lag_functions(const Problem& problem) {
  std::vector<LagFunction> functions;
  const double scale = problem.scale;
  if (problem.weights) {
    const RelativeWeights& weights = *problem.weights;
    for (Index s = 0; s < std::ssize(weights.support()); ++s) {
      const RelativeWeights::Entry e = weights.support()[static_cast<std::size_t>(s)];
      functions.push_back({[&weights, s](Position lag) { return weights(lag, s); }, {{e.a, e.b, scale}}});
    }
  } else {
    const RopeFrequencies& f = problem.rotation.frequencies();
    const double gain = scale * f.attention_factor * f.attention_factor;
    for (Index m = 0; m < f.pairs(); ++m) {
      const Index a = f.first_column(m), b = f.second_column(m);
      const double theta = f.theta[static_cast<std::size_t>(m)];
      functions.push_back({[theta](Position lag) { return std::cos(static_cast<double>(lag) * theta); },
                           {{a, a, gain}, {b, b, gain}}});
      functions.push_back({[theta](Position lag) { return std::sin(static_cast<double>(lag) * theta); },
                           {{a, b, gain}, {b, a, -gain}}});
    }
    LagFunction still{[](Position) { return 1.0; }, {}};
    for (Index c = 2 * f.pairs(); c < problem.shapes.d; ++c) still.entries.push_back({c, c, scale});
    if (!still.entries.empty()) functions.push_back(std::move(still));
  }
  if (!problem.bias.empty())
    functions.push_back({[&problem](Position lag) { return problem.bias(0, lag); }, {}});
  return functions;
}

/// First and second moments of some functions.
struct Moments {
  Eigen::VectorXd mean;
  Eigen::MatrixXd second;

  Eigen::MatrixXd covariance() const { return second - mean * mean.transpose(); }
};

/// Over the lags of all allowed pairs.
inline Moments moments_over_lags(const LagGrid& grid, std::span<const LagFunction> functions) {
  constexpr Index kBlock = 1024;
  const Index n_q = grid.n_q(), n_k = grid.n_k(), count = std::ssize(functions);
  Moments m{Eigen::VectorXd::Zero(count), Eigen::MatrixXd::Zero(count, count)};
  for (Index begin = -(n_k - 1); begin < n_q; begin += kBlock) {
    const Index size = std::min(kBlock, n_q - begin);
    Eigen::MatrixXd phi(count, size);
    Eigen::VectorXd weight(size);
    for (Index i = 0; i < size; ++i) {
      const Index diagonal = begin + i;  // row - column
      const Position lag = diagonal + grid.offset();
      const bool allowed = grid.mask().allows(lag);
      const Index pairs = std::min(n_q, n_k + diagonal) - std::max<Index>(0, diagonal);
      weight(i) = allowed ? static_cast<double>(pairs) / grid.allowed_pairs() : 0;
      for (Index r = 0; r < count; ++r)
        phi(r, i) = allowed ? functions[static_cast<std::size_t>(r)].phi(lag) : 0;
    }
    m.mean += phi * weight;
    m.second.noalias() += phi * weight.asDiagonal() * phi.transpose();
  }
  return m;
}

/// Over the pairs of any row of q with any row of k.
inline Moments moments_over_rows(MatrixView<const double> q, MatrixView<const double> k,
                                 std::span<const LagFunction> functions) {
  const auto moments = [](MatrixView<const double> x) {
    Moments m{Eigen::VectorXd::Zero(x.cols), Eigen::MatrixXd::Zero(x.cols, x.cols)};
    for (Index i = 0; i < x.rows; ++i) {
      const Eigen::Map<const Eigen::VectorXd> row(x.row(i), x.cols);
      m.mean += row / static_cast<double>(x.rows);
      m.second.noalias() += row * row.transpose() / static_cast<double>(x.rows);
    }
    return m;
  };
  const Moments of_q = moments(q), of_k = moments(k);
  const Index count = std::ssize(functions);
  // No entries: the constant 1, which is 1 in the place of q_a and of k_b.
  const auto mean = [&](const LagFunction& g) {
    double sum = g.entries.empty() ? 1 : 0;
    for (const auto& [a, b, factor] : g.entries) sum += factor * of_q.mean(a) * of_k.mean(b);
    return sum;
  };
  Moments m{Eigen::VectorXd(count), Eigen::MatrixXd(count, count)};
  for (Index r = 0; r < count; ++r) {
    const LagFunction& g = functions[static_cast<std::size_t>(r)];
    m.mean(r) = mean(g);
    for (Index s = 0; s < count; ++s) {
      const LagFunction& h = functions[static_cast<std::size_t>(s)];
      double sum = g.entries.empty() ? mean(h) : h.entries.empty() ? mean(g) : 0;
      for (const auto& [a, b, factor] : g.entries)
        for (const auto& [c, d, other] : h.entries)
          sum += factor * other * of_q.second(a, c) * of_k.second(b, d);
      m.second(r, s) = sum;
    }
  }
  return m;
}

}  // namespace detail

/// q: [n_q, d], k: [n_k, d], not rotated; of the options rope, weights, mask, bias (of one head) and scale
/// count. Throws Error, naming the values, as logit_matrix(), for positions that are not consecutive, and for
/// a mask that leaves nothing. Cost: O(n (d^2 + R^2)) for R functions of the lag, d + 1 for RoPE.
inline VarianceShares logit_variance(MatrixView<const double> q, MatrixView<const double> k,
                                     const Options& options) {
  const Problem problem = detail::one_head(q, k, options);
  if (options.rope_already_applied)
    detail::fail("logit_variance: rows that arrive turned have no content apart from their positions");
  if (!problem.grid.consecutive()) detail::fail("logit_variance: positions must be consecutive");
  if (problem.grid.allowed_pairs() == 0)
    detail::fail("logit_variance: the mask allows none of ", q.rows, " x ", k.rows, " pairs");
  const std::vector<detail::LagFunction> functions = detail::lag_functions(problem);
  const detail::Moments lags = detail::moments_over_lags(problem.grid, functions),
                        rows = detail::moments_over_rows(q, k, functions);
  const Eigen::MatrixXd of_lags = lags.covariance(), of_rows = rows.covariance();
  const double position = rows.mean.dot(of_lags * rows.mean), content = lags.mean.dot(of_rows * lags.mean),
               mixed = of_lags.cwiseProduct(of_rows).sum();
  const double variance = position + content + mixed;
  constexpr double kRounding = 1e-13;
  if (!(variance > kRounding * lags.second.cwiseProduct(rows.second).sum())) return {};
  return {variance, position / variance, content / variance, mixed / variance};
}

}  // namespace fastrope::inline FASTROPE_TARGET
