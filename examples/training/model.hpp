// The transformer of config.hpp: its parameters, outputs, and the gradient of a loss.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "attention.hpp"
#include "config.hpp"
#include "layers.hpp"

namespace training {

using Token = int;

/// The sinusoidal code of each position, [n, width] (Vaswani et al. 2017).
template <class Real>
Matrix<Real> sinusoidal_codes(Index n, Index width) {
  Matrix<Real> codes(n, width);
  for (Index i = 0; i < n; ++i)
    for (Index c = 0; c < width; ++c) {
      const double angle = static_cast<double>(i) *
                           std::pow(10000.0, -static_cast<double>(c - c % 2) / static_cast<double>(width));
      codes(i, c) = static_cast<Real>(c % 2 == 0 ? std::sin(angle) : std::cos(angle));
    }
  return codes;
}

template <class Real, class AnyAttention = Attention<Real>>
class Model {
 public:
  using Config = typename AnyAttention::Config;
  /// Weights uniform within 1 / sqrt(inputs), embeddings and learned positions of deviation 1, gains of 1,
  /// biases of 0: torch's defaults. The same for a seed, whatever Real.
  Model(const Config& config, std::uint64_t seed)
      : config_(consistent(config)),
        layout_(config),
        attention_(config),
        states_(layout_.layers.size() + 1),
        layers_(layout_.layers.size()) {
    if (config.absolute == Absolute::sinusoidal) codes_ = sinusoidal_codes<Real>(config.n, config.width);
    start(seed);
  }

  const Config& config() const { return config_; }
  const Layout& layout() const { return layout_; }
  const AnyAttention& attention() const { return attention_; }
  Vector<Real>& parameters() { return parameters_; }
  const Vector<Real>& parameters() const { return parameters_; }
  /// [q | k | v] of a layer in the last forward(), [tokens, projected()].
  const Matrix<Real>& projected(std::size_t layer) const { return layers_[layer].projected; }

  /// Outputs of whole sequences, one after the other, each of config().n tokens: [sequences, outputs], or
  /// [tokens, outputs]. Allocates for the first call of a size alone.
  const Matrix<Real>& forward(std::span<const Token> tokens) {
    tokens_ = tokens;
    share_rows();
    attention_.take(parameters_.data() + layout_.bias.begin);
    embed();
    for (std::size_t l = 0; l < layers_.size(); ++l) forward(l);
    rms_norm(states_.back(), weight(layout_.rms_final), normed_, inverse_);
    if (config_.pooled) {
      pooled_.resize(sequences(), config_.width);
      for (Index s = 0; s < sequences(); ++s)
        pooled_.row(s) = normed_.middleRows(s * config_.n, config_.n).colwise().mean();
    }
    outputs_.noalias() = features() * weight(layout_.classifier).transpose();
    return outputs_;
  }

  /// gradient += that of a loss with respect to the parameters, from that with respect to the outputs of the
  /// last forward(), whose tokens must still be there.
  void backward(const Matrix<Real>& d_outputs, Vector<Real>& gradient) {
    matrix_of(gradient, layout_.classifier).noalias() += d_outputs.transpose() * features();
    Matrix<Real>& d_features = config_.pooled ? d_features_ : d_normed_;
    d_features.noalias() = d_outputs * weight(layout_.classifier);
    if (config_.pooled) {
      d_normed_.resize(normed_.rows(), config_.width);
      for (Index s = 0; s < sequences(); ++s)
        d_normed_.middleRows(s * config_.n, config_.n).rowwise() =
            d_features.row(s) / static_cast<Real>(config_.n);
    }
    d_x_.setZero(normed_.rows(), config_.width);
    d_embedded_.setZero(config_.raw_keys ? normed_.rows() : 0, config_.width);
    add_rms_norm_gradient(states_.back(), weight(layout_.rms_final), inverse_, d_normed_, d_x_,
                          matrix_of(gradient, layout_.rms_final));
    for (std::size_t l = layers_.size(); l-- > 0;) backward(l, gradient);
    if (config_.raw_keys) d_x_ += d_embedded_;
    add_embedding_gradient(gradient);
    sum_shared_rows(gradient);
  }

 private:
  /// What a layer leaves for its backward pass. Rows are tokens.
  struct Activations {
    Matrix<Real> normed, normed_raw;     // [tokens, width]; the embedding's, for raw keys
    Vector<Real> inverse, inverse_raw;   // [tokens]
    Matrix<Real> projected;              // [tokens, projected()]
    Matrix<Real> mixed, lse;             // [tokens, width], [sequences heads, n]
    Matrix<Real> middle, middle_normed;  // [tokens, width], between attention and feed-forward
    Vector<Real> middle_inverse;         // [tokens]
    Matrix<Real> gates, inner;           // [tokens, 2 hidden], [tokens, hidden]
  };

  void start(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform(-1, 1);
    parameters_.setZero(layout_.size);
    const auto fill = [&](const Block& b, auto&& draw) {
      for (Index i = b.begin; i < b.end(); ++i) parameters_(i) = static_cast<Real>(draw());
    };
    const auto fill_weights = [&](const Block& b) {
      fill(b, [&] { return uniform(random) / std::sqrt(static_cast<double>(b.cols)); });
    };
    fill(layout_.embedding, [&] { return normal(random); });
    for (const LayerBlocks& b : layout_.layers) {
      for (const Block& gain : {b.rms_attention, b.rms_ffn}) fill(gain, [] { return 1.0; });
      for (const Block& w : {b.wq, b.wk, b.wv, b.wo, b.w1, b.w3, b.w2}) fill_weights(w);
    }
    fill(layout_.rms_final, [] { return 1.0; });
    fill_weights(layout_.classifier);
    fill(layout_.positions, [&] { return normal(random); });
    share_rows();
  }

  /// f(block of a projection) for those whose turned rows, the first of each head, all heads share.
  template <class F>
  void for_each_shared(F&& f) const {
    if (config_.decoupled == 0) return;
    for (const LayerBlocks& b : layout_.layers) {
      f(b.wk);
      if (config_.shared_query) f(b.wq);
    }
  }
  /// Shared rows are those of head 0; the copies of the other heads let all be multiplied as one matrix.
  void share_rows() {
    for_each_shared([&](const Block& b) {
      auto w = matrix_of(parameters_, b);
      for (Index h = 1; h < config_.heads; ++h)
        w.middleRows(h * config_.row_size(), config_.decoupled) = w.topRows(config_.decoupled);
    });
  }
  void sum_shared_rows(Vector<Real>& gradient) const {
    for_each_shared([&](const Block& b) {
      auto d_w = matrix_of(gradient, b);
      for (Index h = 1; h < config_.heads; ++h) {
        auto copies = d_w.middleRows(h * config_.row_size(), config_.decoupled);
        d_w.topRows(config_.decoupled) += copies;
        copies.setZero();
      }
    });
  }

  auto weight(const Block& b) const { return matrix_of(parameters_, b); }
  Index sequences() const { return static_cast<Index>(tokens_.size()) / config_.n; }
  const Matrix<Real>& features() const { return config_.pooled ? pooled_ : normed_; }

  void embed() {
    Matrix<Real>& x = states_.front();
    x.resize(static_cast<Index>(tokens_.size()), config_.width);
    const auto embedding = weight(layout_.embedding), positions = weight(layout_.positions);
    for (Index i = 0; i < x.rows(); ++i) {
      x.row(i) = embedding.row(tokens_[static_cast<std::size_t>(i)]);
      if (config_.absolute == Absolute::sinusoidal) x.row(i) += codes_.row(i % config_.n);
      if (config_.absolute == Absolute::learned) x.row(i) += positions.row(i % config_.n);
    }
  }
  void add_embedding_gradient(Vector<Real>& gradient) const {
    auto d_embedding = matrix_of(gradient, layout_.embedding),
         d_positions = matrix_of(gradient, layout_.positions);
    for (Index i = 0; i < d_x_.rows(); ++i) {
      d_embedding.row(tokens_[static_cast<std::size_t>(i)]) += d_x_.row(i);
      if (config_.absolute == Absolute::learned) d_positions.row(i % config_.n) += d_x_.row(i);
    }
  }

  /// states_[l + 1] of states_[l].
  void forward(std::size_t l) {
    const LayerBlocks& b = layout_.layers[l];
    const Matrix<Real>& x = states_[l];
    Activations& a = layers_[l];
    rms_norm(x, weight(b.rms_attention), a.normed, a.inverse);
    a.projected.resize(x.rows(), config_.projected());
    if (config_.raw_keys) {
      rms_norm(states_.front(), weight(b.rms_attention), a.normed_raw, a.inverse_raw);
      a.projected.leftCols(b.wq.rows).noalias() = a.normed * weight(b.wq).transpose();
      a.projected.rightCols(b.wkv().rows).noalias() = a.normed_raw * weight(b.wkv()).transpose();
    } else {
      a.projected.noalias() = a.normed * weight(b.wqkv()).transpose();
    }
    a.mixed.resize(x.rows(), config_.width);
    a.lse.resize(sequences() * config_.heads, config_.n);
    attention_.forward(static_cast<Index>(l), a.projected, a.mixed, a.lse);
    a.middle = x;
    a.middle.noalias() += a.mixed * weight(b.wo).transpose();
    rms_norm(a.middle, weight(b.rms_ffn), a.middle_normed, a.middle_inverse);
    a.gates.noalias() = a.middle_normed * weight(b.w13()).transpose();
    gated_silu(a.gates, a.inner);
    states_[l + 1] = a.middle;
    states_[l + 1].noalias() += a.inner * weight(b.w2).transpose();
  }

  /// d_x_ of states_[l + 1] becomes that of states_[l].
  void backward(std::size_t l, Vector<Real>& gradient) {
    const LayerBlocks& b = layout_.layers[l];
    Activations& a = layers_[l];
    const auto d = [&](const Block& block) { return matrix_of(gradient, block); };

    d(b.w2).noalias() += d_x_.transpose() * a.inner;
    d_inner_.noalias() = d_x_ * weight(b.w2);
    gated_silu_gradient(a.gates, d_inner_, d_gates_);
    d(b.w13()).noalias() += d_gates_.transpose() * a.middle_normed;
    d_normed_.noalias() = d_gates_ * weight(b.w13());
    add_rms_norm_gradient(a.middle, weight(b.rms_ffn), a.middle_inverse, d_normed_, d_x_, d(b.rms_ffn));

    d(b.wo).noalias() += d_x_.transpose() * a.mixed;
    d_mixed_.noalias() = d_x_ * weight(b.wo);
    d_projected_.resize(d_x_.rows(), config_.projected());
    attention_.backward(static_cast<Index>(l), a.projected, a.mixed, a.lse, d_mixed_, d_projected_,
                        gradient.data() + layout_.bias.begin);
    if (config_.raw_keys) {
      const auto d_keys = d_projected_.rightCols(b.wkv().rows);
      d(b.wkv()).noalias() += d_keys.transpose() * a.normed_raw;
      d_normed_.noalias() = d_keys * weight(b.wkv());
      add_rms_norm_gradient(states_.front(), weight(b.rms_attention), a.inverse_raw, d_normed_, d_embedded_,
                            d(b.rms_attention));
      const auto d_queries = d_projected_.leftCols(b.wq.rows);
      d(b.wq).noalias() += d_queries.transpose() * a.normed;
      d_normed_.noalias() = d_queries * weight(b.wq);
    } else {
      d(b.wqkv()).noalias() += d_projected_.transpose() * a.normed;
      d_normed_.noalias() = d_projected_ * weight(b.wqkv());
    }
    add_rms_norm_gradient(states_[l], weight(b.rms_attention), a.inverse, d_normed_, d_x_,
                          d(b.rms_attention));
  }

  Config config_;
  Layout layout_;
  AnyAttention attention_;
  Vector<Real> parameters_;
  Matrix<Real> codes_;  // [n, width], of sinusoidal positions
  std::span<const Token> tokens_;
  std::vector<Matrix<Real>> states_;  // [layers + 1], [tokens, width]: the embedding, and after each layer
  std::vector<Activations> layers_;
  Matrix<Real> normed_, pooled_, outputs_;
  Vector<Real> inverse_;
  Matrix<Real> d_features_, d_normed_, d_x_, d_embedded_, d_inner_, d_gates_, d_mixed_, d_projected_;
};

}  // namespace training
