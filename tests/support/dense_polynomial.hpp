// The approximate paths' definition, evaluated densely in double: attention with P_A in the place of exp
// after the projections
//     s q.k = s q.mu + s nu.(k - mu) + x.y,   x = B s (q - nu),   y = C (k - mu),
// of which only the last goes through P_A, the terms of P within the limits A. Shares with the library the
// numbers (mu, nu, B, C, limits, coefficients), and no code.
#pragma once

#include <cmath>
#include <functional>
#include <span>
#include <vector>

#include "fastrope/polynomial/attention.hpp"
#include "support/reference.hpp"
#include "support/tensor.hpp"

namespace fastrope_test {

/// What a pair of rows is: its factor T (0 where masked) and whether its exponential is exact.
struct DensePair {
  double factor = 1;
  bool exact = false;
};

/// sum over alpha, alpha_l + alpha_(l+1) + .. <= limits[l] for all l, of c_|alpha| |alpha|! prod_l
/// z_l^alpha_l / alpha_l!, by the number of terms of the last variables.
inline double limited_polynomial(std::span<const double> coefficients, std::span<const int> limits,
                                 std::span<const double> z) {
  std::vector<double> of_degree{1};  // in the variables from l on, without |alpha|!
  for (std::size_t l = limits.size(); l-- > 0;) {
    std::vector<double> sums(static_cast<std::size_t>(limits[l]) + 1);
    for (std::size_t t = 0; t < sums.size(); ++t) {
      double power = 1;
      for (std::size_t a = 0; a <= t; ++a) {
        if (t - a < of_degree.size()) sums[t] += power * of_degree[t - a];
        power *= z[l] / static_cast<double>(a + 1);
      }
    }
    of_degree = std::move(sums);
  }
  double sum = 0, factorial = 1;
  for (std::size_t t = 0; t < of_degree.size(); ++t) {
    sum += coefficients[t] * factorial * of_degree[t];
    factorial *= static_cast<double>(t + 1);
  }
  return sum;
}

/// q: [1, n_q, d], k: [1, n_k, d], already rotated, v: [1, n_k, d_v].
inline Tensor<double> dense_polynomial_attention(const Tensor<double>& q, const Tensor<double>& k,
                                                 const Tensor<double>& v, double scale,
                                                 const fastrope::LowRankUnit& unit,
                                                 const std::function<DensePair(Index i, Index j)>& pair) {
  const fastrope::Projection& p = unit.projection;
  const Index variables = p.variables(), d = q.cols;
  const auto axes = [&](const std::vector<double>& matrix, const Tensor<double>& x,
                        const std::vector<double>& shift, double factor) {
    Tensor<double> projected(1, x.rows, variables);
    for (Index i = 0; i < x.rows; ++i)
      for (Index l = 0; l < variables; ++l)
        for (Index c = 0; c < d; ++c)
          projected(0, i, l) += matrix[static_cast<std::size_t>(l * d + c)] * factor *
                                (x(0, i, c) - shift[static_cast<std::size_t>(c)]);
    return projected;
  };
  const Tensor<double> x = axes(p.query_axes, q, p.query_shift, scale);
  const Tensor<double> y = axes(p.key_axes, k, p.key_shift, 1);
  Tensor<double> out(1, q.rows, v.cols);
  std::vector<double> z(static_cast<std::size_t>(variables));
  for (Index i = 0; i < q.rows; ++i) {
    double sum = 0;
    for (Index j = 0; j < k.rows; ++j) {
      const DensePair of_pair = pair(i, j);
      if (of_pair.factor == 0) continue;
      double shifts = 0, logit = 0;
      for (Index c = 0; c < d; ++c) {
        const double mu = p.key_shift[static_cast<std::size_t>(c)];
        const double nu = p.query_shift[static_cast<std::size_t>(c)];
        logit += scale * q(0, i, c) * k(0, j, c);
        shifts += scale * (q(0, i, c) * mu + nu * (k(0, j, c) - mu));
      }
      for (Index l = 0; l < variables; ++l) z[static_cast<std::size_t>(l)] = x(0, i, l) * y(0, j, l);
      const double weight =
          of_pair.factor *
          (of_pair.exact
               ? std::exp(logit)
               : std::exp(shifts) * limited_polynomial(unit.coefficients, unit.monomials->limits(), z));
      sum += weight;
      for (Index c = 0; c < v.cols; ++c) out(0, i, c) += weight * v(0, j, c);
    }
    for (Index c = 0; c < v.cols; ++c) out(0, i, c) = sum == 0 ? 0 : out(0, i, c) / sum;
  }
  return out;
}

/// Head h of x.
inline Tensor<double> head_of(const Tensor<double>& x, Index h) {
  return converted<double>(TensorView<const double>(x.view().head(h)));
}

}  // namespace fastrope_test
