// The layers between the products, each with its backward pass. x, y: [rows, cols]; d_y is the gradient of a
// loss with respect to y.
#pragma once

#include <cmath>
#include <span>

#include "config.hpp"

namespace training {

/// y = x o gain / r,  r = sqrt(mean(x^2) + 1e-5) of each row. inverse: [rows], 1 / r.
template <class Real, class Gain>
void rms_norm(const Matrix<Real>& x, const Gain& gain, Matrix<Real>& y, Vector<Real>& inverse) {
  y.resize(x.rows(), x.cols());
  inverse.resize(x.rows());
  for (Index i = 0; i < x.rows(); ++i) {
    inverse(i) = 1 / std::sqrt(x.row(i).squaredNorm() / static_cast<Real>(x.cols()) + Real(1e-5));
    y.row(i) = inverse(i) * x.row(i).cwiseProduct(gain);
  }
}

/// d_x += and d_gain += the gradients of rms_norm:
///     d_x = (g - x (g . x) / (cols r^2)) / r,  g = d_y o gain.
template <class Real, class Gain, class DGain>
void add_rms_norm_gradient(const Matrix<Real>& x, const Gain& gain, const Vector<Real>& inverse,
                           const Matrix<Real>& d_y, Matrix<Real>& d_x, DGain&& d_gain) {
  for (Index i = 0; i < x.rows(); ++i) {
    const auto g = d_y.row(i).cwiseProduct(gain);
    const Real share = inverse(i) * inverse(i) / static_cast<Real>(x.cols()) * g.cwiseProduct(x.row(i)).sum();
    d_gain += inverse(i) * d_y.row(i).cwiseProduct(x.row(i));
    d_x.row(i) += inverse(i) * (g - share * x.row(i));
  }
}

/// y [rows, hidden] = silu(x_1) o x_2 of x = [x_1 | x_2].
template <class Real>
void gated_silu(const Matrix<Real>& x, Matrix<Real>& y) {
  const Index hidden = x.cols() / 2;
  y.resize(x.rows(), hidden);
  for (Index i = 0; i < x.rows(); ++i) {
    const auto gate = x.row(i).head(hidden).array();
    y.row(i).array() = gate / (1 + (-gate).exp()) * x.row(i).tail(hidden).array();
  }
}

/// d_x of gated_silu.
template <class Real>
void gated_silu_gradient(const Matrix<Real>& x, const Matrix<Real>& d_y, Matrix<Real>& d_x) {
  const Index hidden = x.cols() / 2;
  d_x.resize(x.rows(), x.cols());
  Eigen::Array<Real, 1, Eigen::Dynamic> sigmoid(hidden);
  for (Index i = 0; i < x.rows(); ++i) {
    const auto gate = x.row(i).head(hidden).array(), up = x.row(i).tail(hidden).array();
    sigmoid = 1 / (1 + (-gate).exp());
    d_x.row(i).head(hidden).array() = d_y.row(i).array() * up * sigmoid * (1 + gate * (1 - sigmoid));
    d_x.row(i).tail(hidden).array() = d_y.row(i).array() * gate * sigmoid;
  }
}

/// The sum over rows of -log softmax(outputs)[label]; d_outputs = its gradient times `weight`.
template <class Real>
double cross_entropy(const Matrix<Real>& outputs, std::span<const Index> labels, Real weight,
                     Matrix<Real>& d_outputs) {
  double loss = 0;
  d_outputs.resize(outputs.rows(), outputs.cols());
  for (Index i = 0; i < outputs.rows(); ++i) {
    const Index label = labels[static_cast<std::size_t>(i)];
    const Real most = outputs.row(i).maxCoeff();
    d_outputs.row(i) = (outputs.row(i).array() - most).exp();
    const Real sum = d_outputs.row(i).sum();
    loss += static_cast<double>(std::log(sum) - (outputs(i, label) - most));
    d_outputs.row(i) *= weight / sum;
    d_outputs(i, label) -= weight;
  }
  return loss;
}

}  // namespace training
