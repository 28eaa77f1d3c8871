// A text token after token, or a part of it at a time, in memory that does not grow with it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "network.hpp"

namespace bounded_model {

/// Local heads: the keys and values of the last window - 1 tokens, and room for the next ones.
class WindowCache {
 public:
  WindowCache(const Network& network, Index most)
      : group_(network.local()),
        d_v_(network.config().head_size()),
        past_(network.config().window - 1),
        keys_(past_ + most, group_.heads * group_.d),
        values_(past_ + most, group_.heads * d_v_),
        plan_(fastrope::make_plan<float>({group_.heads, group_.heads, most, past_ + most, group_.d, d_v_},
                                         group_.options)),
        workspace_(plan_.workspace_bytes()) {}

  /// The next tokens, at most as many as there is room for. Positions are those in the cache: rope goes by
  /// lags alone.
  void run(const Matrix& projected, Matrix& mixed) {
    const Index n = projected.rows();
    keys_.middleRows(kept_, n) = projected.middleCols(group_.k, keys_.cols());
    values_.middleRows(kept_, n) = projected.middleCols(group_.v, values_.cols());
    const Matrix &keys = keys_, &values = values_;
    auto k = rows_of(keys, group_, 0, group_.d), v = rows_of(values, group_, 0, d_v_);
    k.rows = v.rows = kept_ + n;
    if (plan_.run(rows_of(projected, group_, group_.q, group_.d), k, v,
                  rows_of(mixed, group_, group_.first * d_v_, d_v_), workspace_) != fastrope::RunStatus::ok)
      throw fastrope::Error("attention was refused");
    const Index rest = std::min(kept_ + n, past_);
    for (Matrix* rows : {&keys_, &values_})
      std::copy_n(rows->row(kept_ + n - rest).data(), rest * rows->cols(), rows->data());
    kept_ = rest;
  }
  std::size_t bytes() const {
    return static_cast<std::size_t>(past_ * (keys_.cols() + values_.cols())) * sizeof(float);
  }

 private:
  Group group_;
  Index d_v_, past_, kept_ = 0;
  Matrix keys_, values_;  // [past + most, heads columns]
  fastrope::Plan<float> plan_;
  std::vector<std::byte> workspace_;
};

/// One sequence: states of the global heads, within `tolerance` of softmax by a promise made beforehand, and
/// windows of the local ones.
class Stream {
 public:
  static constexpr Index kChunk = 1024;  // tokens that are taken at a time

  /// Throws Error for a network whose global heads are not bounded, and where their states can promise no
  /// such tolerance.
  Stream(const Network& network, double tolerance) : network_(&network) {
    const Group& g = network.global();
    fastrope::Options options = g.options;
    options.tolerance = tolerance;
    // Rows of length 1 may round beyond it.
    constexpr double kOutward = 1 + 1e-5;
    for (Index l = 0; l < network.config().layers; ++l) {
      states_.emplace_back(g.heads, g.heads, g.d, network.config().head_size(), options,
                           kOutward * network.config().radius);
      windows_.emplace_back(network, kChunk);
    }
  }

  /// The next tokens, one at least; the logits of what comes after the last of them, [1, bytes].
  Matrix take(std::span<const Token> tokens) {
    if (tokens.empty()) throw fastrope::Error("Stream::take: no tokens");
    Matrix x;
    for (std::size_t first = 0; first < tokens.size(); first += kChunk) {
      x = network_->embed(tokens.subspan(first, std::min<std::size_t>(kChunk, tokens.size() - first)));
      for (Index l = 0; l < network_->config().layers; ++l)
        network_->run_layer(l, x, [&](const Matrix& projected, Matrix& mixed) {
          windows_[static_cast<std::size_t>(l)].run(projected, mixed);
          add_to_states(states_[static_cast<std::size_t>(l)], projected, mixed);
        });
    }
    return network_->outputs(x.bottomRows(1));
  }

  fastrope::Position tokens() const { return states_.front().tokens(); }
  /// At most |out - exact| / max|V| of every global head.
  double error_bound() const { return states_.front().error_bound(); }
  /// What is kept of the past.
  std::size_t bytes() const {
    return states_.size() * (states_.front().state_bytes() + windows_.front().bytes());
  }

 private:
  void add_to_states(fastrope::RecurrentAttention<float>& states, const Matrix& projected,
                     Matrix& mixed) const {
    const Group& g = network_->global();
    const Index d_v = network_->config().head_size();
    const auto q = rows_of(projected, g, g.q, g.d), k = rows_of(projected, g, g.k, g.d),
               v = rows_of(projected, g, g.v, d_v);
    const auto out = rows_of(mixed, g, g.first * d_v, d_v);
    if (q.rows > 1)
      states.prefill(q, k, v, out);
    else if (states.step(q, k, v, out) != fastrope::RunStatus::ok)
      throw fastrope::Error("a step was refused");
  }

  const Network* network_;
  std::vector<fastrope::RecurrentAttention<float>> states_;  // of each layer
  std::vector<WindowCache> windows_;
};

}  // namespace bounded_model
