// What benchmarks compare a path with: attention as one would write it with matrix products, and the error
// of some rows against the double-precision reference.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "fastrope/eigen.hpp"
#include "support/attention_case.hpp"

namespace bench {

using fastrope::Index;
using fastrope_test::AttentionCase;
using fastrope_test::AttentionInputs;

/// Queries and keys uniform on spheres that make |x| <= radius, at the scale 1.
template <class T>
AttentionInputs<T> on_spheres(const AttentionCase& c, double radius) {
  fastrope_test::Inputs random(1);
  const fastrope::Shapes& s = c.shapes;
  AttentionInputs<T> in(s, random);
  in.q = random.sphere<T>(s.heads, s.n_q, s.d, std::sqrt(radius));
  in.k = random.sphere<T>(s.kv_heads, s.n_k, s.d, std::sqrt(radius));
  return in;
}

/// [1, n, cols]: the rows of x over and over, after the first time with noise of 1 % of their deviation.
inline fastrope_test::Tensor<float> repeated(fastrope::MatrixView<const float> x, Index n,
                                             fastrope_test::Inputs& random) {
  double squares = 0;
  for (Index i = 0; i < x.rows; ++i)
    for (Index c = 0; c < x.cols; ++c) squares += static_cast<double>(x(i, c)) * static_cast<double>(x(i, c));
  const double sigma = 0.01 * std::sqrt(squares / static_cast<double>(x.rows * x.cols));
  fastrope_test::Tensor<float> y(1, n, x.cols);
  for (Index i = 0; i < n; ++i)
    for (Index c = 0; c < x.cols; ++c)
      y(0, i, c) = x(i % x.rows, c) + (i < x.rows ? 0.0f : static_cast<float>(sigma * random.normal()));
  return y;
}

/// max |out - reference| / max|V| over `count` rows of every head, evenly spread from the first to the last.
/// Cost: heads count n_k (d + d_v). Requires default positions, no dense bias.
template <class T, class KV>
double sampled_error(const AttentionCase& c, const AttentionInputs<T, KV>& in, Index count = 16) {
  const fastrope::Shapes& s = c.shapes;
  count = std::min(count, s.n_q);
  const Index step = count > 1 ? (s.n_q - 1) / (count - 1) : 1;
  AttentionCase sampled = c;
  sampled.query_positions.clear();
  for (Index i = 0; i < count; ++i) sampled.query_positions.push_back(s.n_k - s.n_q + i * step);
  const auto some_rows = [&](const auto& x) {
    return fastrope::TensorView<const T>{x.values.data(), s.heads,       count,
                                         x.cols,          x.head_stride, x.row_stride * step};
  };
  const auto reference = fastrope_test::reference_attention(some_rows(in.q), in.k.view(), in.v.view(),
                                                            sampled.options(), c.bias);
  return fastrope_test::max_abs_difference(some_rows(in.out), reference.out.view()) /
         fastrope_test::max_abs(in.v.view());
}

/// Head 0 of a float call, its n x n scores in memory: rotate, multiply, weigh, multiply. Honours rope,
/// scale, mask and lag bias. Requires n_q = n_k.
inline void naive(const AttentionCase& c, AttentionInputs<float>& in) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Index n = c.shapes.n_q;
  fastrope_test::Tensor<double> q = fastrope_test::converted<double>(in.q.view()),
                                k = fastrope_test::converted<double>(in.k.view());
  if (c.base.rope)
    for (auto* x : {&q, &k})
      fastrope_test::reference_rotate(
          *c.base.rope, [](Index i) { return i; }, *x);
  const auto matrix = [n](const fastrope_test::Tensor<double>& x) {
    return Matrix(Eigen::Map<const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
                      x.values.data(), n, x.cols)
                      .cast<float>());
  };
  Matrix x = matrix(q) * matrix(k).transpose() *
             static_cast<float>(c.base.scale.value_or(1 / std::sqrt(static_cast<double>(c.shapes.d))));
  Eigen::RowVectorXf of_lag(2 * n - 1);  // of lags n-1, .., 1-n: row i begins at lag i
  for (Index m = 0; m < 2 * n - 1; ++m) {
    const Index lag = n - 1 - m;
    of_lag(m) = !c.base.mask.allows(lag) ? -INFINITY : c.bias ? static_cast<float>(c.bias(0, lag)) : 0.0f;
  }
  for (Index i = 0; i < n; ++i) x.row(i) += of_lag.segment(n - 1 - i, n);
  x = (x.colwise() - x.rowwise().maxCoeff()).array().exp();
  const Eigen::Map<const Matrix> v(in.v.values.data(), n, c.shapes.d_v);
  Eigen::Map<Matrix>(in.out.values.data(), n, c.shapes.d_v) =
      (x * v).array().colwise() / x.rowwise().sum().array();
}

}  // namespace bench
