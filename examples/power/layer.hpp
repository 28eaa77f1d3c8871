// A layer of a llama-like model with grouped heads, rope, a log gate for each key head, and weights that are
// random: what is around the attention, which comes as an argument.
#pragma once

#include <Eigen/Dense>
#include <cmath>
#include <fastrope/fastrope.hpp>
#include <random>
#include <vector>

namespace power {

using fastrope::Index;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct Shape {
  Index heads = 24, kv_heads = 2, d = 128;  // PowerCoder's
  Index hidden = 1024;                      // fewer than its 3072, to fit more machines
  Index layers = 1;                         // of its 30
};

/// q [n, heads, d], k and v [n, kv_heads, d], turned, log gates [kv_heads, n], and the result [n, heads, d].
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

class Layer {
 public:
  Layer(const Shape& shape, std::mt19937& random)
      : shape_(shape),
        query_(of(shape.hidden, shape.heads * shape.d, random)),
        key_(of(shape.hidden, shape.kv_heads * shape.d, random)),
        value_(of(shape.hidden, shape.kv_heads * shape.d, random)),
        gate_(of(shape.hidden, shape.kv_heads, random)),
        output_(of(shape.heads * shape.d, shape.hidden, random)),
        up_(of(shape.hidden, 4 * shape.hidden, random)),
        gated_(of(shape.hidden, 4 * shape.hidden, random)),
        down_(of(4 * shape.hidden, shape.hidden, random)) {}

  /// x [n, hidden], tokens from position `first` on, becomes the next layer's. attend(Tokens&) fills out.
  template <class Attend>
  void run(Matrix& x, Index first, Attend&& attend) const {
    const Matrix normed = norm(x);
    Tokens t{.q = normed * query_, .k = normed * key_, .v = normed * value_, .gates = {}, .out = {}};
    turn(t.q, first);
    turn(t.k, first);
    // log sigmoid, mostly slow to forget.
    t.gates = (normed * gate_).transpose().unaryExpr([](float y) { return -std::log1p(std::exp(-y - 5)); });
    t.out.resize(x.rows(), shape_.heads * shape_.d);
    attend(t);
    x += t.out * output_;
    const Matrix inner = norm(x);
    const Matrix gate = (inner * gated_).unaryExpr([](float y) { return y / (1 + std::exp(-y)); });
    x += (inner * up_).cwiseProduct(gate) * down_;
  }

 private:
  static Matrix of(Index rows, Index cols, std::mt19937& random) {
    std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(rows)));
    Matrix m(rows, cols);
    for (Index i = 0; i < m.size(); ++i) m.data()[i] = normal(random);
    return m;
  }
  static Matrix norm(const Matrix& x) {
    const Eigen::VectorXf scale =
        (x.rowwise().squaredNorm() / static_cast<float>(x.cols())).array().sqrt().cwiseInverse();
    return scale.asDiagonal() * x;
  }
  /// Half-split rope on the rows of all heads.
  void turn(Matrix& x, Index first) const {
    const Index d = shape_.d, pairs = d / 2;
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

  Shape shape_;
  Matrix query_, key_, value_, gate_, output_, up_, gated_, down_;
};

}  // namespace power
