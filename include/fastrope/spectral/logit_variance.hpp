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

/// Shares of the variance of logits; they add up to 1, or are 0 where nothing varies. Codes that the caller
/// has added to rows count as content.
struct VarianceShares {
  double variance = 0;  ///< of logits as they are drawn above; the matrix's own entries may differ in it
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
    for (Index c = 0; c < problem.shapes.d; ++c)
      if (!f.turns_column(c)) still.entries.push_back({c, c, scale});
    if (!still.entries.empty()) functions.push_back(std::move(still));
  }
  if (!problem.bias.empty())
    functions.push_back({[&problem](Position lag) { return problem.bias(0, lag); }, {}});
  return functions;
}

/// Of some functions.
struct Moments {
  Eigen::VectorXd mean;
  Eigen::MatrixXd covariance;
};

/// Of functions of the lag, over the lags of all allowed pairs.
inline Moments moments_over_lags(const LagGrid& grid, std::span<const LagFunction> functions) {
  constexpr Index kBlock = 1024;
  const Index n_q = grid.n_q(), n_k = grid.n_k(), count = std::ssize(functions);
  // visit(phi [count, size], weight [size]) for blocks of lags.
  const auto for_each_block = [&](auto&& visit) {
    for (Index begin = -(n_k - 1); begin < n_q; begin += kBlock) {
      const Index size = std::min(kBlock, n_q - begin);
      Eigen::MatrixXd phi = Eigen::MatrixXd::Zero(count, size);
      Eigen::VectorXd weight = Eigen::VectorXd::Zero(size);
      for (Index i = 0; i < size; ++i) {
        const Index diagonal = begin + i;  // row - column
        const Position lag = diagonal + grid.offset();
        if (!grid.mask().allows(lag)) continue;
        const Index pairs = std::min(n_q, n_k + diagonal) - std::max<Index>(0, diagonal);
        weight(i) = static_cast<double>(pairs) / grid.allowed_pairs();
        for (Index r = 0; r < count; ++r) phi(r, i) = functions[static_cast<std::size_t>(r)].phi(lag);
      }
      visit(phi, weight);
    }
  };
  Moments m{Eigen::VectorXd::Zero(count), Eigen::MatrixXd::Zero(count, count)};
  for_each_block([&](const auto& phi, const auto& weight) { m.mean += phi * weight; });
  for_each_block([&](auto& phi, const auto& weight) {
    phi.colwise() -= m.mean;
    m.covariance.noalias() += phi * weight.asDiagonal() * phi.transpose();
  });
  return m;
}

/// Of g, over the pairs of any row of q with any row of k. With means a and covariances C of both sides, and
/// q_i k_j q_l k_m's mean the product of those of q_i q_l and of k_j k_m,
///     Cov(q_i k_j, q_l k_m) = C_il C_jm + C_il a_j a_m + a_i a_l C_jm.
inline Moments moments_over_rows(MatrixView<const double> q, MatrixView<const double> k,
                                 std::span<const LagFunction> functions) {
  const auto moments = [](MatrixView<const double> x) {
    RowMatrix rows = Eigen::Map<const RowMatrix, 0, Eigen::OuterStride<>>(x.data, x.rows, x.cols,
                                                                          Eigen::OuterStride<>(x.row_stride));
    const Eigen::RowVectorXd mean = rows.colwise().mean();
    rows.rowwise() -= mean;
    return Moments{mean.transpose(), rows.transpose() * rows / static_cast<double>(x.rows)};
  };
  const Moments of_q = moments(q), of_k = moments(k);
  const Index count = std::ssize(functions);
  Moments m{Eigen::VectorXd(count), Eigen::MatrixXd::Zero(count, count)};
  for (Index r = 0; r < count; ++r) {
    const LagFunction& g = functions[static_cast<std::size_t>(r)];
    m.mean(r) = g.entries.empty() ? 1 : 0;
    for (const auto& [a, b, factor] : g.entries) m.mean(r) += factor * of_q.mean(a) * of_k.mean(b);
    for (Index s = 0; s < count; ++s)
      for (const auto& [a, b, factor] : g.entries)
        for (const auto& [c, d, other] : functions[static_cast<std::size_t>(s)].entries)
          m.covariance(r, s) +=
              factor * other *
              (of_q.covariance(a, c) * (of_k.covariance(b, d) + of_k.mean(b) * of_k.mean(d)) +
               of_q.mean(a) * of_q.mean(c) * of_k.covariance(b, d));
  }
  return m;
}

}  // namespace detail

/// q: [n_q, d], k: [n_k, d], not rotated; of the options rope, weights, mask, bias (of one head) and scale
/// count. Throws Error, naming the values, as logit_matrix(), for positions that are not consecutive, and for
/// a mask that leaves nothing. Cost: O(n (d^2 + R^2)) for R functions of the lag: up to d + 2 for RoPE, the
/// support's size for weights.
inline VarianceShares logit_variance(MatrixView<const double> q, MatrixView<const double> k,
                                     const Options& options) {
  const Problem problem = detail::one_head(q, k, options);
  if (options.rope_already_applied)
    detail::fail("logit_variance: rows that arrive turned have no content apart from their positions");
  if (!problem.grid.consecutive()) detail::fail("logit_variance: positions must be consecutive");
  detail::require_one_lag("logit_variance", problem);
  if (problem.grid.allowed_pairs() == 0)
    detail::fail("logit_variance: the mask allows none of ", q.rows, " x ", k.rows, " pairs");
  const std::vector<detail::LagFunction> functions = detail::lag_functions(problem);
  const detail::Moments lags = detail::moments_over_lags(problem.grid, functions),
                        rows = detail::moments_over_rows(q, k, functions);
  double position = rows.mean.dot(lags.covariance * rows.mean),
         content = lags.mean.dot(rows.covariance * lags.mean),
         mixed = lags.covariance.cwiseProduct(rows.covariance).sum();
  if (!std::isfinite(position + content + mixed))
    detail::fail("logit_variance: the logits' variance is ", position + content + mixed,
                 ": a row of q or k is not finite");
  for (double* part : {&position, &content, &mixed})
    *part = std::max(0.0, *part);  // but for rounding they are
  const double variance = position + content + mixed;
  // What rounding leaves of rows and lags that are all the same.
  const double size = lags.mean.cwiseAbs().dot(rows.mean.cwiseAbs());
  constexpr double kRounding = 1e-12;
  if (variance <= kRounding * size * (kRounding * size)) return {};
  return {variance, position / variance, content / variance, mixed / variance};
}

}  // namespace fastrope::inline FASTROPE_TARGET
