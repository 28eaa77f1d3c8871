// The network of config.hpp without its attention, which comes as an argument: for texts, not for training.
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "../training/layers.hpp"
#include "config.hpp"
#include "unit_rows.hpp"
#include "weights_file.hpp"

namespace bounded_model {

using Matrix = training::Matrix<float>;
using Token = int;

/// A group's rows among [tokens, cols]: [heads, tokens, cols of a head] from column `first` on.
template <class M>
auto rows_of(M& x, const Group& g, Index first, Index cols) {
  return fastrope::TensorView(x.data() + first, g.heads, x.rows(), cols, cols, x.cols());
}

class Network {
 public:
  explicit Network(Weights weights)
      : config_(weights.config),
        layout_(config_),
        parameters_(std::move(weights.parameters)),
        groups_{local_group(config_), global_group(config_)} {}

  const Config& config() const { return config_; }
  auto weight(const training::Block& b) const { return training::matrix_of(parameters_, b); }
  const Group& local() const { return groups_[0]; }
  const Group& global() const { return groups_[1]; }

  /// [tokens, width]
  Matrix embed(std::span<const Token> tokens) const {
    Matrix x(std::ssize(tokens), config_.width);
    const auto embedding = weight(layout_.embedding);
    for (Index i = 0; i < x.rows(); ++i) x.row(i) = embedding.row(tokens[static_cast<std::size_t>(i)]);
    return x;
  }

  /// x [tokens, width], what a layer is given, becomes the next one's. attend(projected, mixed) fills mixed
  /// [tokens, width] from [q | k | v], [tokens, projected()], whose global q and k are of length 1.
  template <class Attend>
  void run_layer(Index l, Matrix& x, Attend&& attend) const {
    const training::LayerBlocks& b = layout_.layers[static_cast<std::size_t>(l)];
    Matrix projected(x.rows(), config_.projected()), mixed(x.rows(), config_.width);
    Matrix rows, normed, gates, inner;
    training::Vector<float> inverse;
    for_each_part(x.rows(), [&](Index first, Index count) {
      rows = x.middleRows(first, count);
      training::rms_norm(rows, weight(b.rms_attention), normed, inverse);
      projected.middleRows(first, count).noalias() = normed * weight(b.wqkv()).transpose();
      for (const Group& g : groups_)
        for (Index h = 0; g.unit && h < g.heads; ++h)
          for (const Index column : {g.q, g.k})
            make_unit(projected.block(first, column + h * g.d, count, g.d), inverse);
    });
    attend(std::as_const(projected), mixed);
    for_each_part(x.rows(), [&](Index first, Index count) {
      rows = x.middleRows(first, count);
      rows.noalias() += mixed.middleRows(first, count) * weight(b.wo).transpose();
      training::rms_norm(rows, weight(b.rms_ffn), normed, inverse);
      gates.noalias() = normed * weight(b.w13()).transpose();
      training::gated_silu(gates, inner);
      rows.noalias() += inner * weight(b.w2).transpose();
      x.middleRows(first, count) = rows;
    });
  }

  /// The logits of what comes after each token, [tokens, bytes], for rows of what the last layer gave.
  Matrix outputs(const Matrix& x) const {
    Matrix normed;
    training::Vector<float> inverse;
    training::rms_norm(x, weight(layout_.rms_final), normed, inverse);
    return normed * weight(layout_.classifier).transpose();
  }

  /// f(first, count) of parts of n rows whose activations stay in the cache.
  template <class F>
  static void for_each_part(Index n, F&& f) {
    constexpr Index kPart = 512;
    for (Index first = 0; first < n; first += kPart) f(first, std::min(kPart, n - first));
  }

 private:
  Config config_;
  training::Layout layout_;
  training::Vector<float> parameters_;
  std::array<Group, 2> groups_;
};

}  // namespace bounded_model
