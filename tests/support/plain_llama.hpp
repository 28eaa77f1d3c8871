// The Llama 2 forward pass as plain loops in double precision, to compare the llama2 example with.
//
// Shares nothing with the example or the library: its own reader, one token at a time, keys rotated before
// they are cached, softmax over a whole row. Short enough to trust by reading.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastrope_test {

class PlainLlama {
 public:
  using Vector = std::vector<double>;

  /// Reads a llama2.c checkpoint whose classifier is the embedding.
  explicit PlainLlama(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::int32_t header[7];
    file.read(reinterpret_cast<char*>(header), sizeof header);
    if (!file || header[5] <= 0) throw std::runtime_error("PlainLlama cannot read " + path);
    const auto size = [&](int i) { return static_cast<std::size_t>(header[i]); };
    dim_ = size(0), hidden_ = size(1), layers_ = size(2), heads_ = size(3), kv_heads_ = size(4),
    vocab_ = size(5);
    d_ = dim_ / heads_;
    const std::size_t kv_dim = kv_heads_ * d_;
    const auto read = [&](std::size_t count) {
      std::vector<float> floats(count);
      file.read(reinterpret_cast<char*>(floats.data()), static_cast<std::streamsize>(count * sizeof(float)));
      if (!file) throw std::runtime_error("PlainLlama: too short: " + path);
      return Vector(floats.begin(), floats.end());
    };
    embedding_ = read(vocab_ * dim_);
    rms_attention_ = read(layers_ * dim_);
    wq_ = read(layers_ * dim_ * dim_);
    wk_ = read(layers_ * kv_dim * dim_);
    wv_ = read(layers_ * kv_dim * dim_);
    wo_ = read(layers_ * dim_ * dim_);
    rms_ffn_ = read(layers_ * dim_);
    w1_ = read(layers_ * hidden_ * dim_);
    w2_ = read(layers_ * dim_ * hidden_);
    w3_ = read(layers_ * hidden_ * dim_);
    rms_final_ = read(dim_);
    queries_.resize(layers_);
    keys_.resize(layers_);
    values_.resize(layers_);
  }

  /// What the heads of all layers attended with so far, rotated: [layers][tokens] of [heads, d] and
  /// [kv_heads, d].
  const std::vector<std::vector<Vector>>& queries() const { return queries_; }
  const std::vector<std::vector<Vector>>& keys() const { return keys_; }
  std::size_t heads() const { return heads_; }
  std::size_t kv_heads() const { return kv_heads_; }
  std::size_t head_size() const { return d_; }

  /// Appends one token and returns the logits that follow it: [vocab].
  Vector step(int token) {
    const std::size_t position = position_++;
    Vector x = row(embedding_, static_cast<std::size_t>(token), dim_);  // [dim]
    for (std::size_t l = 0; l < layers_; ++l) {
      add(x, product(wo_, l, dim_, attention(normalise(x, rms_attention_, l), l, position)));
      const Vector h = normalise(x, rms_ffn_, l);     // [dim]
      Vector gate = product(w1_, l, hidden_, h);      // [hidden]
      const Vector up = product(w3_, l, hidden_, h);  // [hidden]
      for (std::size_t i = 0; i < hidden_; ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
      add(x, product(w2_, l, dim_, gate));
    }
    return product(embedding_, 0, vocab_, normalise(x, rms_final_, 0));
  }

  /// Feeds the prompt and returns the `count` likeliest tokens that follow, each fed in turn.
  std::vector<int> greedy(const std::vector<int>& prompt, std::size_t count) {
    Vector logits;
    for (int token : prompt) logits = step(token);
    std::vector<int> tokens;
    while (tokens.size() < count) {
      tokens.push_back(static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
      logits = step(tokens.back());
    }
    return tokens;
  }

 private:
  static Vector row(const Vector& matrix, std::size_t i, std::size_t width) {
    const auto begin = matrix.begin() + static_cast<std::ptrdiff_t>(i * width);
    return Vector(begin, begin + static_cast<std::ptrdiff_t>(width));
  }

  static void add(Vector& x, const Vector& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  /// W_l x for matrix l of `weights` [layers, rows, x.size()].
  static Vector product(const Vector& weights, std::size_t l, std::size_t rows, const Vector& x) {
    Vector y(rows, 0.0);
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t j = 0; j < x.size(); ++j) y[i] += weights[(l * rows + i) * x.size() + j] * x[j];
    return y;
  }

  /// x over its root mean square, times row l of `weights` [layers, dim].
  Vector normalise(Vector x, const Vector& weights, std::size_t l) const {
    double squares = 0;
    for (double value : x) squares += value * value;
    const double rms = std::sqrt(squares / static_cast<double>(dim_) + 1e-5);
    for (std::size_t i = 0; i < dim_; ++i) x[i] *= weights[l * dim_ + i] / rms;
    return x;
  }

  /// Turns columns (2m, 2m+1) of every head of x by position * 10000^(-2m/d).
  void rotate(Vector& x, std::size_t position) const {
    for (std::size_t i = 0; i < x.size(); i += 2) {
      const double exponent = -static_cast<double>(i % d_) / static_cast<double>(d_);
      const double angle = static_cast<double>(position) * std::pow(10000.0, exponent);
      const double a = x[i], b = x[i + 1];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
  }

  /// Causal attention of the newest token, h: [dim]; returns [heads, d].
  Vector attention(const Vector& h, std::size_t l, std::size_t position) {
    Vector q = product(wq_, l, dim_, h);            // [heads, d]
    Vector k = product(wk_, l, kv_heads_ * d_, h);  // [kv_heads, d]
    rotate(q, position);
    rotate(k, position);
    queries_[l].push_back(q);
    keys_[l].push_back(k);
    values_[l].push_back(product(wv_, l, kv_heads_ * d_, h));

    Vector out(dim_, 0.0);
    for (std::size_t head = 0; head < heads_; ++head) {
      const std::size_t q0 = head * d_, k0 = head / (heads_ / kv_heads_) * d_;
      Vector weights(position + 1, 0.0);
      for (std::size_t t = 0; t <= position; ++t)
        for (std::size_t c = 0; c < d_; ++c) weights[t] += q[q0 + c] * keys_[l][t][k0 + c];
      const double largest = *std::max_element(weights.begin(), weights.end());
      double sum = 0;
      for (double& weight : weights) {
        weight = std::exp((weight - largest) / std::sqrt(static_cast<double>(d_)));
        sum += weight;
      }
      for (std::size_t t = 0; t <= position; ++t)
        for (std::size_t c = 0; c < d_; ++c) out[q0 + c] += weights[t] / sum * values_[l][t][k0 + c];
    }
    return out;
  }

  std::size_t dim_, hidden_, layers_, heads_, kv_heads_, vocab_, d_;
  Vector embedding_, rms_attention_, wq_, wk_, wv_, wo_, rms_ffn_, w1_, w2_, w3_, rms_final_;
  // [layers][tokens] of [heads, d] and [kv_heads, d], queries and keys rotated
  std::vector<std::vector<Vector>> queries_, keys_, values_;
  std::size_t position_ = 0;
};

}  // namespace fastrope_test
