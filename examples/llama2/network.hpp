// The Llama 2 forward pass but for its attention: dense algebra by Eigen.
//
// For the rows x of the new tokens, in every layer:
//     x += attention(h) Wo^T,             h = rms(x)
//     x += (silu(h W1^T) o h W3^T) W2^T,  h = rms(x)
// and logits = rms(x) Wcls^T. Only attention looks at other rows: it, and the cache, are the caller's.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <utility>

#include "checkpoint.hpp"
#include "tokenizer.hpp"

namespace llama2 {

class Network {
 public:
  /// mixed [n, heads, d] of the new tokens' q [n, heads, d], k and v [n, kv_heads, d] in a layer: not
  /// rotated.
  using Attention = std::function<void(std::size_t layer, const Matrix& q, const Matrix& k, const Matrix& v,
                                       Matrix& mixed)>;

  explicit Network(Checkpoint checkpoint) : weights_(std::move(checkpoint)) {}

  const Config& config() const { return weights_.config; }

  /// What the last layer leaves of n tokens: [n, dim]. Throws Error for a token that is not in the
  /// vocabulary.
  Matrix states(std::span<const Token> tokens, const Attention& attend) const {
    Matrix x = embed(tokens);
    for (std::size_t i = 0; i < weights_.layers.size(); ++i) {
      const Layer& layer = weights_.layers[i];
      const Matrix h = rms_norm(x, layer.rms_attention);
      Matrix mixed(h.rows(), config().dim);
      attend(i, h * layer.wq.transpose(), h * layer.wk.transpose(), h * layer.wv.transpose(), mixed);
      x += mixed * layer.wo.transpose();
      x += feed_forward(rms_norm(x, layer.rms_ffn), layer);
    }
    return x;
  }

  /// The logits that follow each row of states: [n, vocab].
  Matrix logits(const Matrix& states) const {
    return rms_norm(states, weights_.rms_final) * weights_.classifier().transpose();
  }

 private:
  /// [n, dim]
  Matrix embed(std::span<const Token> tokens) const {
    Matrix x(static_cast<Index>(tokens.size()), config().dim);
    Index row = 0;
    for (const Token token : tokens) {
      if (token < 0 || token >= config().vocab_size)
        throw Error("token " + std::to_string(token) + " is not in the vocabulary of " +
                    std::to_string(config().vocab_size));
      x.row(row++) = weights_.embedding.row(token);
    }
    return x;
  }

  /// Each row over its root mean square, times the weight.
  static Matrix rms_norm(const Matrix& x, const RowVector& weight) {
    const Eigen::ArrayXf mean_square = x.rowwise().squaredNorm() / static_cast<float>(x.cols());  // [n]
    const Eigen::VectorXf inverse = 1.0f / (mean_square + 1e-5f).sqrt();                          // [n]
    return inverse.asDiagonal() * x * weight.asDiagonal();
  }

  /// h: [n, dim], normalised; returns [n, dim].
  static Matrix feed_forward(const Matrix& h, const Layer& layer) {
    const Matrix gate = h * layer.w1.transpose();                                     // [n, hidden]
    const Matrix up = h * layer.w3.transpose();                                       // [n, hidden]
    const Matrix inner = gate.array() / (1.0f + (-gate.array()).exp()) * up.array();  // silu(gate) o up
    return inner * layer.w2.transpose();
  }

  Checkpoint weights_;
};

}  // namespace llama2
