// The gradient of attention as calculus has it, in double precision: the oracle of attend_backward.
//
// With w_ij = K(x_ij) e^b_ij the weights of a row, W their sum, N(W) what it is divided by, p = w / N, x =
// capped(scale turned_q . turned_k) and L any function whose gradient with respect to out is d_out:
//     dL/db_ij = p_ij (d_out_i . v_j - N'(W) d_out_i . out_i),   dL/dx_ij = K'(x_ij) / K(x_ij) dL/db_ij,
//     dL/dsink = -p_sink d_out_i . out_i,   d_v_j = sum_i p_ij d_out_i,
// and from x the chain rule goes on through the cap, the scale and the turns, from b through gates, each
// pair's to every gate between its key and its query. Shares nothing with the library's kernels, and with the
// oracle of the forward pass only the turning of rows and what gates add to a pair.
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
  std::vector<double> sinks;      ///< [heads]
  std::vector<double> log_gates;  ///< as in the options, here and below; of resets 0
  std::vector<double> log_input_gates;
};

/// What is told of dL/db of each pair, b all that is added to the log of its weight.
using PairVisitor = std::function<void(Index head, Position lag, double d_logit)>;

/// Adds the gradient of a pair's bias to those of its key's input gate and of all gates after its key, up to
/// the query; of keys that stand together the later row is the later token.
template <class KeyPosition>
void add_to_gates(const fastrope::Options& options, Index h, Index heads, KeyPosition&& key_position,
                  Position query, Index j, double d_bias, ReferenceGradient& gradient) {
  const auto row = [&](const fastrope::MatrixView<const float>& gates) {
    return h * gates.rows / heads * gates.cols;
  };
  if (options.log_input_gates.rows > 0)
    gradient.log_input_gates[static_cast<std::size_t>(row(options.log_input_gates) + j)] += d_bias;
  const auto& gates = options.log_gates;
  for (Index t = 0; t < gates.cols && gates.rows > 0; ++t) {
    const bool after = key_position(t) != key_position(j) ? key_position(t) > key_position(j) : t > j;
    if (after && key_position(t) <= query && !std::isinf(gates(h * gates.rows / heads, t)))
      gradient.log_gates[static_cast<std::size_t>(row(gates) + t)] += d_bias;
  }
}

/// Shapes as reference_attention has them; out, d_out: [heads, n_q, d_v], lse: [1, heads, n_q], out and lse
/// of the same call. Cost heads n_q n_k (2 d + 2 d_v), with gates n_k instead if that is more.
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

  ReferenceGradient gradient{
      Tensor<double>(q.heads, n_q, d),
      Tensor<double>(k.heads, n_k, d),
      Tensor<double>(v.heads, n_k, d_v),
      std::vector<double>(static_cast<std::size_t>(q.heads)),
      std::vector<double>(static_cast<std::size_t>(options.log_gates.rows * n_k)),
      std::vector<double>(static_cast<std::size_t>(options.log_input_gates.rows * n_k))};
  const bool gated = options.log_gates.rows > 0 || options.log_input_gates.rows > 0;
  const auto coefficients = options.kernel.coefficients();
  const auto power = [&](double x, std::size_t p) { return p == 0 ? 1 : std::pow(x, p); };
  const auto kernel = [&](double x) {
    double sum = 0;
    for (std::size_t p = 0; p < coefficients.size(); ++p) sum += coefficients[p] * power(x, p);
    return sum;
  };
  const auto kernel_slope = [&](double x) {
    double sum = 0;
    for (std::size_t p = 1; p < coefficients.size(); ++p)
      sum += static_cast<double>(p) * coefficients[p] * power(x, p - 1);
    return sum;
  };
  for (Index h = 0; h < q.heads; ++h) {
    const Index kv = h / (q.heads / k.heads);
    const ReferenceGates gates(options, h, q.heads, n_k, key_position);
    for (Index i = 0; i < n_q; ++i) {
      const double lse = forward.lse(0, h, i);
      if (lse == -kInfinity) continue;
      double delta = 0;  // d_out_i . out_i
      for (Index c = 0; c < d_v; ++c) delta += d_out.head(h)(i, c) * forward.out(h, i, c);
      if (!options.sinks.empty()) {
        const auto at = static_cast<std::size_t>(h);
        gradient.sinks[at] -= std::exp(static_cast<double>(options.sinks[at]) - lse) * delta;
      }
      struct Pair {
        Index j;
        Position lag;
        double x, t, bias;  // t: tanh of the cap
      };
      std::vector<Pair> pairs;
      double sum = 0;  // of a polynomial kernel's weights
      for (Index j = 0; j < n_k; ++j) {
        const Position lag = query_position(i) - key_position(j);
        const double dense =
            options.dense_bias.data == nullptr ? 0 : dense_element(options.dense_bias, h, i, j);
        if (lag < options.mask.first || lag > options.mask.last || dense == -kInfinity) continue;
        if (options.dense_mask.data != nullptr && !options.dense_mask.head(h)(i, j)) continue;
        if (!reference_in_ranges(options.key_ranges, h, n_q, i, j)) continue;
        if (gated && gates.hides(query_position(i), j)) continue;
        const double gate = gated ? gates(query_position(i), j) : 0;
        if (gate == -kInfinity) continue;
        double product = 0;
        for (Index c = 0; c < d; ++c) product += queries(h, i, c) * keys(kv, j, c);
        const double t = options.softcap > 0 ? std::tanh(scale * product / options.softcap) : 0;
        const double x = options.softcap > 0 ? options.softcap * t : scale * product;
        pairs.push_back({j, lag, x, t, gate + (bias ? bias(h, lag) : 0) + dense});
        if (!coefficients.empty()) sum += kernel(x) * std::exp(pairs.back().bias);
      }
      double n = 1, of_sum = 1;  // N and N'
      if (!coefficients.empty()) {
        using fastrope::Normaliser;
        const Normaliser& normaliser = options.normaliser;
        const double constant = normaliser.constant();
        if (normaliser.kind() == Normaliser::Kind::row_sum) {
          n = sum + constant;
        } else if (normaliser.kind() == Normaliser::Kind::at_least && std::abs(sum) > constant) {
          n = std::abs(sum);
          of_sum = sum > 0 ? 1 : -1;
        } else {
          n = constant;
          of_sum = 0;
        }
      }
      for (const auto& [j, lag, x, t, of_pair] : pairs) {
        double d_weight = 0;
        for (Index c = 0; c < d_v; ++c) d_weight += d_out.head(h)(i, c) * v.head(kv)(j, c);
        const double weight =
            coefficients.empty() ? std::exp(x + of_pair - lse) : kernel(x) * std::exp(of_pair) / n;
        const double d_bias = weight * (d_weight - of_sum * delta);
        if (visit) visit(h, lag, d_bias);
        if (gated) add_to_gates(options, h, q.heads, key_position, query_position(i), j, d_bias, gradient);
        const double d_logit = coefficients.empty()
                                   ? d_bias
                                   : kernel_slope(x) * std::exp(of_pair) / n * (d_weight - of_sum * delta);
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
