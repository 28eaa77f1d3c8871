// A layer of a llama-like model with grouped heads, rope, a log gate for each key head, and weights that are
// random: what is around the attention, which comes as an argument.
#pragma once

#include <Eigen/Dense>
#include <cmath>
#include <fastrope/fastrope.hpp>
#include <random>

#include "models.hpp"

namespace power {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// q [n, heads, d], k [n, kv_heads, d], v [n, kv_heads, d_v], turned, log gates [kv_heads, n], or none, and
/// the result [n, heads, d_v].
struct Tokens {
  Matrix q, k, v, gates, out;
};

/// [n, heads, d] as [heads, n, d].
inline fastrope::TensorView<const float> heads_of(const Matrix& x, Index d) {
  return {x.data(), x.cols() / d, x.rows(), d, d, x.cols()};
}
inline fastrope::TensorView<float> heads_of(Matrix& x, Index d) {
  return {x.data(), x.cols() / d, x.rows(), d, d, x.cols()};
}

/// A matrix of independent normal numbers.
inline Matrix normal_matrix(Index rows, Index cols, float sigma, std::mt19937& random) {
  std::normal_distribution<float> normal(0, sigma);
  Matrix m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = normal(random);
  return m;
}

class Layer {
 public:
  Layer(const Heads& heads, bool gates, Index hidden, std::mt19937& random)
      : heads_(heads),
        query_(of(hidden, heads.heads * heads.d, random)),
        key_(of(hidden, heads.kv_heads * heads.d, random)),
        value_(of(hidden, heads.kv_heads * heads.d_v, random)),
        gate_(of(hidden, gates ? heads.kv_heads : 0, random)),
        output_(of(heads.heads * heads.d_v, hidden, random)),
        up_(of(hidden, 4 * hidden, random)),
        gated_(of(hidden, 4 * hidden, random)),
        down_(of(4 * hidden, hidden, random)) {}

  /// x [n, hidden], tokens from position `first` on, becomes the next layer's. attend(Tokens&) fills out.
  template <class Attend>
  void run(Matrix& x, Index first, Attend&& attend) const {
    const Matrix normed = norm(x);
    Tokens t{.q = normed * query_, .k = normed * key_, .v = normed * value_, .gates = {}, .out = {}};
    if (heads_.norm) norm_rows(t.q), norm_rows(t.k);
    if (heads_.rope) turn(t.q, first), turn(t.k, first);
    // log sigmoid, mostly slow to forget.
    if (gate_.cols() > 0)
      t.gates = (normed * gate_).transpose().unaryExpr([](float y) { return -std::log1p(std::exp(-y - 5)); });
    t.out.resize(x.rows(), output_.rows());
    attend(t);
    x += t.out * output_;
    const Matrix inner = norm(x);
    const Matrix gate = (inner * gated_).unaryExpr([](float y) { return y / (1 + std::exp(-y)); });
    x += (inner * up_).cwiseProduct(gate) * down_;
  }

 private:
  static Matrix of(Index rows, Index cols, std::mt19937& random) {
    return normal_matrix(rows, cols, 1 / std::sqrt(static_cast<float>(rows)), random);
  }
  static Matrix norm(const Matrix& x) {
    const Eigen::VectorXf scale =
        (x.rowwise().squaredNorm() / static_cast<float>(x.cols())).array().sqrt().cwiseInverse();
    return scale.asDiagonal() * x;
  }
  /// The rows of each head.
  void norm_rows(Matrix& x) const {
    for (Index h = 0; h < x.cols(); h += heads_.d) {
      auto head = x.middleCols(h, heads_.d);
      head = norm(head);
    }
  }
  /// Half-split rope on the rows of all heads.
  void turn(Matrix& x, Index first) const {
    const Index d = heads_.d, pairs = d / 2;
    for (Index i = 0; i < x.rows(); ++i)
      for (Index m = 0; m < pairs; ++m) {
        const double angle = static_cast<double>(first + i) *
                             std::pow(10000.0, -2.0 * static_cast<double>(m) / static_cast<double>(d));
        const auto cosine = static_cast<float>(std::cos(angle)), sine = static_cast<float>(std::sin(angle));
        for (Index h = 0; h < x.cols(); h += d) {
          const float a = x(i, h + m), b = x(i, h + m + pairs);
          x(i, h + m) = a * cosine - b * sine;
          x(i, h + m + pairs) = a * sine + b * cosine;
        }
      }
  }

  Heads heads_;
  Matrix query_, key_, value_, gate_, output_, up_, gated_, down_;
};

}  // namespace power
