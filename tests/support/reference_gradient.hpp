// The gradient of attention as calculus has it, in double precision: the oracle of attend_backward.
//
// With p the weights of a row, x = b + capped(scale turned_q . turned_k) its logits and L any function whose
// gradient with respect to out is d_out:
//     dL/dx_ij = p_ij (d_out_i . v_j - d_out_i . out_i),   dL/dsink = -p_sink d_out_i . out_i,
//     d_v_j = sum_i p_ij d_out_i,
// and from x the chain rule goes on through the cap, the scale and the turns. Shares nothing with the
// library's kernels, and with the oracle of the forward pass only the turning of rows.
#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "support/reference.hpp"
#include "support/tensor.hpp"

namespace fastrope_test {

struct ReferenceGradient {
  Tensor<double> q, k, v;
  std::vector<double> sinks;  ///< [heads]
};

/// What is told of dL/dx of each pair, before the cap: dL/db of its bias.
using PairVisitor = std::function<void(Index head, Position lag, double d_logit)>;

/// Shapes as reference_attention has them; out, d_out: [heads, n_q, d_v], lse: [1, heads, n_q], out and lse
/// of the same call. Cost heads n_q n_k (2 d + 2 d_v).
inline ReferenceGradient reference_backward(const TensorView<const double>& q,
                                            const TensorView<const double>& k,
                                            const TensorView<const double>& v, const Reference& forward,
                                            const TensorView<const double>& d_out,
                                            const fastrope::Options& options, const BiasFunction& bias = {},
                                            const PairVisitor& visit = {}) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const Index n_q = q.rows, n_k = k.rows, d = q.cols, d_v = v.cols;
  const auto query_position = query_positions_of(options, n_q, n_k);
  const auto key_position = key_positions_of(options);
  const auto query_turn = [&](Index i, Index section) {
    const auto& sections = options.query_section_positions;
    return sections.data == nullptr ? query_position(i) : sections(section, i);
  };
  const auto key_turn = [&](Index j, Index section) {
    const auto& sections = options.key_section_positions;
    return sections.data == nullptr ? key_position(j) : sections(section, j);
  };
  const bool turns = options.rope && !options.rope_already_applied;
  Tensor<double> queries = converted<double>(q), keys = converted<double>(k);
  if (turns) {
    reference_rotate(*options.rope, query_turn, queries);
    reference_rotate(*options.rope, key_turn, keys);
  }
  const double scale = options.scale.value_or(d == 0 ? 1 : 1 / std::sqrt(static_cast<double>(d)));

  ReferenceGradient gradient{Tensor<double>(q.heads, n_q, d), Tensor<double>(k.heads, n_k, d),
                             Tensor<double>(v.heads, n_k, d_v),
                             std::vector<double>(static_cast<std::size_t>(q.heads))};
  for (Index h = 0; h < q.heads; ++h) {
    const Index kv = h / (q.heads / k.heads);
    for (Index i = 0; i < n_q; ++i) {
      const double lse = forward.lse(0, h, i);
      if (lse == -kInfinity) continue;
      double delta = 0;  // d_out_i . out_i
      for (Index c = 0; c < d_v; ++c) delta += d_out.head(h)(i, c) * forward.out(h, i, c);
      if (!options.sinks.empty()) {
        const auto at = static_cast<std::size_t>(h);
        gradient.sinks[at] -= std::exp(static_cast<double>(options.sinks[at]) - lse) * delta;
      }
      for (Index j = 0; j < n_k; ++j) {
        const Position lag = query_position(i) - key_position(j);
        const double dense =
            options.dense_bias.data == nullptr ? 0 : dense_element(options.dense_bias, h, i, j);
        if (lag < options.mask.first || lag > options.mask.last || dense == -kInfinity) continue;
        if (options.dense_mask.data != nullptr && !options.dense_mask.head(h)(i, j)) continue;
        if (!reference_in_ranges(options.key_ranges, h, n_q, i, j)) continue;
        double product = 0, d_weight = 0;
        for (Index c = 0; c < d; ++c) product += queries(h, i, c) * keys(kv, j, c);
        for (Index c = 0; c < d_v; ++c) d_weight += d_out.head(h)(i, c) * v.head(kv)(j, c);
        const double t = options.softcap > 0 ? std::tanh(scale * product / options.softcap) : 0;
        const double x = options.softcap > 0 ? options.softcap * t : scale * product;
        const double weight = std::exp(x + (bias ? bias(h, lag) : 0) + dense - lse);
        const double d_logit = weight * (d_weight - delta);
        if (visit) visit(h, lag, d_logit);
        const double d_product = d_logit * (1 - t * t) * scale;
        for (Index c = 0; c < d_v; ++c) gradient.v(kv, j, c) += weight * d_out.head(h)(i, c);
        for (Index c = 0; c < d; ++c) {
          gradient.q(h, i, c) += d_product * keys(kv, j, c);
          gradient.k(kv, j, c) += d_product * queries(h, i, c);
        }
      }
    }
  }
  if (turns) {  // A rotation's transpose turns the other way, and gains stay what they are.
    reference_rotate(
        *options.rope, [&](Index i, Index section) { return -query_turn(i, section); }, gradient.q);
    reference_rotate(
        *options.rope, [&](Index j, Index section) { return -key_turn(j, section); }, gradient.k);
  }
  return gradient;
}

}  // namespace fastrope_test
