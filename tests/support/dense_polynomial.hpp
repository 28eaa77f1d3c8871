// The approximate paths' definition, evaluated densely in double: attention with P in the place of exp after
// the shifts
//     s q.k = s q.mu + s nu.(k - mu) + x',   x' = s (q - nu).(k - mu),
// of which only the last goes through P. Shares with the library the numbers mu, nu and P, and no code.
#pragma once

#include <cmath>
#include <functional>

#include "fastrope/polynomial/exp_polynomial.hpp"
#include "fastrope/polynomial/shift.hpp"
#include "support/reference.hpp"
#include "support/tensor.hpp"

namespace fastrope_test {

/// What a pair of rows is: its factor T (0 where masked) and whether its exponential is exact.
struct DensePair {
  double factor = 1;
  bool exact = false;
};

/// q: [1, n_q, d], k: [1, n_k, d], already rotated, v: [1, n_k, d_v].
inline Tensor<double> dense_polynomial_attention(const Tensor<double>& q, const Tensor<double>& k,
                                                 const Tensor<double>& v, double scale,
                                                 const fastrope::Shift& shift,
                                                 const fastrope::ExpPolynomial& polynomial,
                                                 const std::function<DensePair(Index i, Index j)>& pair) {
  Tensor<double> out(1, q.rows, v.cols);
  for (Index i = 0; i < q.rows; ++i) {
    double sum = 0;
    for (Index j = 0; j < k.rows; ++j) {
      const DensePair p = pair(i, j);
      if (p.factor == 0) continue;
      double row = 0, key = 0, rest = 0;
      for (Index c = 0; c < q.cols; ++c) {
        const double mu = shift.key_shift[static_cast<std::size_t>(c)];
        const double nu = shift.query_shift[static_cast<std::size_t>(c)];
        row += scale * q(0, i, c) * mu;
        key += scale * nu * (k(0, j, c) - mu);
        rest += scale * (q(0, i, c) - nu) * (k(0, j, c) - mu);
      }
      const double weight = p.factor * std::exp(row + key) * (p.exact ? std::exp(rest) : polynomial(rest));
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
