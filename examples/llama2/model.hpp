// A Llama 2 with the key/value cache of one text, whose attention is fastrope's. Any number of new tokens
// goes through in one call: a prompt, or one token.
#pragma once

#include <cmath>
#include <fastrope/eigen.hpp>
#include <fastrope/fastrope.hpp>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "network.hpp"
#include "tokenizer.hpp"

namespace llama2 {

/// A checkpoint and the cache of one text.
class Model {
 public:
  using View = fastrope::TensorView<const float>;
  /// Sees what a layer's attention is given, before rotation: q [heads, n, d], k and v [kv_heads, n_k, d].
  using Observer = std::function<void(std::size_t layer, View q, View k, View v)>;

  /// `options` chooses tolerance, path and executor; the model sets the mask and the rotary positions.
  explicit Model(Checkpoint checkpoint, fastrope::Options options = {})
      : network_(std::move(checkpoint)), options_(std::move(options)) {
    options_.mask = fastrope::Mask::causal();
    options_.rope = fastrope::Rope{.base = 10000.0, .pairing = fastrope::RopePairing::interleaved};
    cache_.resize(static_cast<std::size_t>(config().layers));
    for (Cache& cache : cache_) {
      cache.keys.resize(config().context, config().kv_dim());
      cache.values.resize(config().context, config().kv_dim());
    }
  }

  const Config& config() const { return network_.config(); }

  /// Tokens of the text so far.
  Index length() const { return length_; }

  /// What attention is called with.
  const fastrope::Options& options() const { return options_; }

  /// Appends n tokens to the text and returns the logits that follow each of them: [n, vocab].
  /// Throws Error if the context has no room or a token is not in the vocabulary; the text is then as before.
  Matrix forward(std::span<const Token> tokens, const Observer& observe = {}) {
    const Index n = static_cast<Index>(tokens.size());
    if (length_ + n > config().context)
      throw Error(std::to_string(length_) + " + " + std::to_string(n) +
                  " tokens exceed the model's context of " + std::to_string(config().context));
    const Matrix x =
        network_.states(tokens, [&](std::size_t layer, const Matrix& q, const Matrix& k, const Matrix& v,
                                    Matrix& mixed) { attend(layer, q, k, v, mixed, observe); });
    length_ += n;
    return network_.logits(x);
  }

 private:
  struct Cache {
    Matrix keys;    // [context, kv_heads, d], as projected: not rotated
    Matrix values;  // [context, kv_heads, d]
  };

  /// Appends keys and values [n, kv_heads, d] to a layer's cache and attends with q [n, heads, d] into mixed
  /// [n, heads, d].
  void attend(std::size_t layer, const Matrix& q, const Matrix& k, const Matrix& v, Matrix& mixed,
              const Observer& observe) {
    Cache& cache = cache_[layer];
    const Index n = q.rows(), n_k = length_ + n, d = config().head_size();
    const Index heads = config().heads, kv_heads = config().kv_heads;
    cache.keys.middleRows(length_, n) = k;
    cache.values.middleRows(length_, n) = v;

    // A token's heads lie side by side: a head is d columns further on, a row is a whole token.
    const View queries(q.data(), heads, n, d, /*head_stride=*/d, /*row_stride=*/heads * d);
    const View keys(cache.keys.data(), kv_heads, n_k, d, d, kv_heads * d);
    const View values(cache.values.data(), kv_heads, n_k, d, d, kv_heads * d);
    if (observe) observe(layer, queries, keys, values);
    fastrope::attend(queries, keys, values,
                     fastrope::TensorView<float>(mixed.data(), heads, n, d, d, heads * d), options_);
  }

  Network network_;
  fastrope::Options options_;
  std::vector<Cache> cache_;  // [layers]
  Index length_ = 0;          // rows of the cache in use
};

/// The likeliest token after the last row of logits [n, vocab].
inline Token likeliest(const Matrix& logits) {
  Index token = 0;
  logits.row(logits.rows() - 1).maxCoeff(&token);
  return static_cast<Token>(token);
}

/// The text as an empty model goes on with it, likeliest token after likeliest token, until its context is
/// full.
inline std::vector<Token> written_on(Model& model, std::vector<Token> text) {
  Matrix logits = model.forward(text);
  while (model.length() < model.config().context) {
    text.push_back(likeliest(logits));
    logits = model.forward({&text.back(), 1});
  }
  return text;
}

/// The model's loss on a text that it has read: the mean of -log p(token after) over all tokens but the last,
/// natural logarithm. logits: [tokens, vocab]. Throws Error for fewer than two tokens.
inline double mean_loss(const Matrix& logits, std::span<const Token> text) {
  if (text.size() < 2) throw Error("a text of " + std::to_string(text.size()) + " tokens has no loss");
  double sum = 0;
  for (std::size_t i = 0; i + 1 < text.size(); ++i) {
    const Eigen::RowVectorXd row = logits.row(static_cast<Index>(i)).cast<double>();
    const double top = row.maxCoeff();
    sum += top + std::log((row.array() - top).exp().sum()) - row(text[i + 1]);
  }
  return sum / static_cast<double>(text.size() - 1);
}

}  // namespace llama2
