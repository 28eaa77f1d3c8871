// What a small transformer is made of, and where its parameters are.
//
// Of the tokens t of a sequence, for every layer:
//     x = E[t] + P                                (P: positions, if they are added)
//     x += attention(h) Wo^T,                     h = rms(x)
//     x += (silu(h W1^T) o h W3^T) W2^T,          h = rms(x)
// and outputs = rms(x) Wc^T, or those of the mean of rms(x) over the sequence. That is Llama's architecture.
#pragma once

#include <Eigen/Core>
#include <fastrope/core.hpp>
#include <optional>
#include <string>
#include <vector>

namespace training {

using fastrope::Index;
template <class Real>
using Matrix = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class Real>
using Vector = Eigen::Matrix<Real, Eigen::Dynamic, 1>;

/// Positions that are added to the embedding.
enum class Absolute { none, sinusoidal, learned };

struct Config {
  Index vocabulary = 0;
  Index n = 0;         // tokens of a sequence
  Index outputs = 0;   // classes, or the vocabulary
  bool pooled = true;  // outputs of a sequence's mean; else of each token
  Index layers = 2, width = 64, heads = 8, hidden = 96;

  fastrope::Options attention = {};       // of every layer and head, but for what follows
  std::optional<Index> rope_layers = {};  // the first ones, which attention.rope turns; all
  std::optional<Index> rope_heads = {};   // the same of heads
  Absolute absolute = Absolute::none;
  bool trained_bias = false;  // a number for each head and lag, the same in all layers: T5 without buckets
  Index decoupled = 0;        // MLA: columns more in q and k, which rope turns, and it turns no others;
                              // all heads share those of a key
  bool shared_query = false;  // and those of a query
  bool raw_keys = false;      // keys and values of every layer are made of the embedding

  Index head_size() const { return width / heads; }                           // d, of content and of values
  Index row_size() const { return decoupled + head_size(); }                  // of a head's queries and keys
  Index query_cols() const { return heads * row_size(); }                     // q, and k, of all heads
  Index projected() const { return heads * (2 * row_size() + head_size()); }  // [q | k | v] of all heads
  Index lags() const { return 2 * n - 1; }
};

/// c. Throws fastrope::Error, naming the values, for what clashes.
template <class AnyConfig>
const AnyConfig& consistent(const AnyConfig& c) {
  const auto require = [](bool holds, const std::string& message) {
    if (!holds) throw fastrope::Error("training::Config: " + message);
  };
  require(c.vocabulary > 0 && c.n > 0 && c.outputs > 0 && c.layers > 0 && c.hidden > 0,
          "vocabulary, n, outputs, layers and hidden must be positive");
  require(c.heads > 0 && c.width > 0 && c.width % c.heads == 0,
          std::to_string(c.heads) + " heads do not divide the width " + std::to_string(c.width));
  require(c.decoupled == 0 || c.attention.rope, "decoupled columns need attention.rope, which turns them");
  require(!c.shared_query || c.decoupled > 0,
          "a shared query is one of decoupled columns, and there are none");
  require(!c.trained_bias || c.attention.bias.empty(),
          "attention.bias is given, and another is to be trained");
  const Index turned = c.rope_heads.value_or(c.heads);
  require(turned >= 0 && turned <= c.heads,
          "rope_heads = " + std::to_string(turned) + " of " + std::to_string(c.heads));
  require(!c.rope_heads || (c.attention.bias.empty() && !c.trained_bias),
          "rope_heads and a lag bias do not go together");
  return c;
}

/// A matrix among the parameters, row-major.
struct Block {
  Index begin = 0, rows = 0, cols = 0;

  Index end() const { return begin + rows * cols; }
  /// One matrix of this one's rows and those of the block that follows it.
  Block with(const Block& next) const { return {begin, rows + next.rows, cols}; }
};

template <class Real>
auto matrix_of(Vector<Real>& all, const Block& b) {
  return Eigen::Map<Matrix<Real>>(all.data() + b.begin, b.rows, b.cols);
}
template <class Real>
auto matrix_of(const Vector<Real>& all, const Block& b) {
  return Eigen::Map<const Matrix<Real>>(all.data() + b.begin, b.rows, b.cols);
}

struct LayerBlocks {
  Block rms_attention, wq, wk, wv, wo, rms_ffn, w1, w3, w2;

  Block wkv() const { return wk.with(wv); }
  Block wqkv() const { return wq.with(wkv()); }
  Block w13() const { return w1.with(w3); }
};

/// Where each matrix is in the one vector of all parameters. Weights are [outputs, inputs].
struct Layout {
  Block embedding;  // [vocabulary, width]
  Block positions;  // [n, width], or nothing
  Block bias;       // [heads, lags] from lag 1 - n on, or nothing
  std::vector<LayerBlocks> layers;
  Block rms_final, classifier;
  Index size = 0;

  template <class AnyConfig>
  explicit Layout(const AnyConfig& c) {
    const auto take = [this](Index rows, Index cols) {
      const Block block{size, rows, cols};
      size = block.end();
      return block;
    };
    embedding = take(c.vocabulary, c.width);
    positions = take(c.absolute == Absolute::learned ? c.n : 0, c.width);
    bias = take(c.trained_bias ? c.heads : 0, c.lags());
    for (Index l = 0; l < c.layers; ++l) {
      LayerBlocks b;
      b.rms_attention = take(1, c.width);
      b.wq = take(c.query_cols(), c.width);
      b.wk = take(c.query_cols(), c.width);
      b.wv = take(c.width, c.width);
      b.wo = take(c.width, c.width);
      b.rms_ffn = take(1, c.width);
      b.w1 = take(c.hidden, c.width);
      b.w3 = take(c.hidden, c.width);
      b.w2 = take(c.width, c.hidden);
      layers.push_back(b);
    }
    rms_final = take(1, c.width);
    classifier = take(c.outputs, c.width);
  }
};

}  // namespace training
