// Attention as its definition has it, in double precision: the oracle that every path is compared with.
//
//     x_ij = scale q_i^T W(lag) k_j,  x = softcap tanh(x / softcap),  x += bias(lag) + dense_bias,
//     out_i = sum_j exp(x_ij) v_j / (exp(sink) + sum_j exp(x_ij))  over the allowed j,
// or with another function in the place of exp, weights times exp(G_i - G_j + b_j), and another denominator.
// Shares nothing with the library's kernels: own loops over all pairs, a cosine and a sine of its own for
// every element that turns, frequencies as HuggingFace's and the papers' formulas give them. It reads the
// library's options as data; a lag bias comes as a function, so that tests write its formula again.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "fastrope/problem/options.hpp"
#include "support/tensor.hpp"

namespace fastrope_test {

using fastrope::Position;

/// b(head, lag), added to the logit.
using BiasFunction = std::function<double(Index head, Position lag)>;
/// What is done to a logit before rows are normalised, in the place of exp.
using KernelFunction = std::function<double(double x)>;

/// sum_p coefficients[p] x^p.
inline KernelFunction polynomial_kernel(std::vector<double> coefficients) {
  return [c = std::move(coefficients)](double x) {
    double sum = 0, power = 1;
    for (double coefficient : c) {
      sum += coefficient * power;
      power *= x;
    }
    return sum;
  };
}

struct Reference {
  Tensor<double> out;  ///< [heads, n_q, d_v]; zeros where nothing is attended to
  Tensor<double> lse;  ///< [1, heads, n_q], natural log of |denominator|; -infinity where nothing is
};

inline double dense_element(const fastrope::DenseBias& bias, Index h, Index i, Index j) {
  switch (bias.type) {
    case fastrope::DenseType::float32:
      return bias.as<float>().head(h)(i, j);
    case fastrope::DenseType::float16:
      return static_cast<double>(bias.as<fastrope::float16>().head(h)(i, j));
    case fastrope::DenseType::bfloat16:
      return static_cast<double>(bias.as<fastrope::bfloat16>().head(h)(i, j));
  }
  return 0;
}

/// Radians per position of each pair of columns, and what the rotated columns of q and k are multiplied by.
struct ReferenceFrequencies {
  std::vector<double> theta;
  double gain = 1;
};

inline ReferenceFrequencies reference_frequencies(const fastrope::Rope& rope, Index d) {
  const double pi = std::acos(-1.0);
  const double dim = static_cast<double>(rope.rotary_dim == 0 ? d - rope.rotary_begin : rope.rotary_dim);
  double base = rope.base;
  if (const auto* ntk = std::get_if<fastrope::NtkScaling>(&rope.scaling))
    base *= std::pow(ntk->factor, dim / (dim - 2));
  ReferenceFrequencies f;
  for (double pair = 0; 2 * pair < dim; ++pair) {
    double theta = 1 / std::pow(base, 2 * pair / dim);
    if (const auto* linear = std::get_if<fastrope::LinearScaling>(&rope.scaling)) {
      theta = theta / linear->factor;
    } else if (const auto* yarn = std::get_if<fastrope::YarnScaling>(&rope.scaling)) {
      const auto correction_dim = [&](double rotations) {
        return dim * std::log(yarn->original_context / (rotations * 2 * pi)) / (2 * std::log(base));
      };
      double low = correction_dim(yarn->beta_fast), high = correction_dim(yarn->beta_slow);
      if (yarn->truncate) low = std::floor(low), high = std::ceil(high);
      low = std::max(low, 0.0);
      high = std::min(high, dim - 1);
      const double width = high == low ? 0.001 : high - low;
      const double extrapolation = 1 - std::min(std::max((pair - low) / width, 0.0), 1.0);
      theta = theta / yarn->factor * (1 - extrapolation) + theta * extrapolation;
      f.gain = yarn->factor > 1 ? 0.1 * std::log(yarn->factor) + 1 : 1;
      if (yarn->attention_factor) f.gain = *yarn->attention_factor;
    } else if (const auto* llama = std::get_if<fastrope::Llama3Scaling>(&rope.scaling)) {
      const double wavelength = 2 * pi / theta;
      const double smooth = (llama->original_context / wavelength - llama->low_freq_factor) /
                            (llama->high_freq_factor - llama->low_freq_factor);
      if (wavelength > llama->original_context / llama->low_freq_factor)
        theta = theta / llama->factor;
      else if (wavelength >= llama->original_context / llama->high_freq_factor)
        theta = (1 - smooth) * theta / llama->factor + smooth * theta;
    } else if (const auto* table = std::get_if<fastrope::FactorScaling>(&rope.scaling)) {
      theta = theta / table->factors.at(static_cast<std::size_t>(pair));
      f.gain = table->attention_factor;
    }
    f.theta.push_back(theta);
  }
  return f;
}

/// The section of each pair, as transformers' apply_multimodal_rotary_pos_emb and apply_interleaved_mrope
/// have it.
inline std::vector<Index> reference_sections(const fastrope::Rope& rope, Index pairs) {
  std::vector<Index> section(static_cast<std::size_t>(pairs), 0);
  const Index count = std::ssize(rope.sections);
  for (Index s = 0, end = 0; s < count; ++s) {
    const Index begin = end;
    end += rope.sections[static_cast<std::size_t>(s)];
    if (rope.section_order == fastrope::SectionOrder::consecutive)
      for (Index m = begin; m < end; ++m) section.at(static_cast<std::size_t>(m)) = s;
    else if (s > 0)
      for (Index m = s; m < count * rope.sections[static_cast<std::size_t>(s)]; m += count)
        section.at(static_cast<std::size_t>(m)) = s;
  }
  return section;
}

/// Turns x [heads, rows, d], row i by the angles position_of(i) * theta, or position_of(i, section) * theta.
template <class PositionOf>
void reference_rotate(const fastrope::Rope& rope, PositionOf&& position_of, Tensor<double>& x) {
  const ReferenceFrequencies f = reference_frequencies(rope, x.cols);
  const Index pairs = static_cast<Index>(f.theta.size());
  const std::vector<Index> sections = reference_sections(rope, pairs);
  const bool interleaved = rope.pairing == fastrope::RopePairing::interleaved;
  for (Index h = 0; h < x.heads; ++h) {
    for (Index i = 0; i < x.rows; ++i) {
      for (Index m = 0; m < pairs; ++m) {
        Position position = 0;
        if constexpr (std::is_invocable_v<PositionOf, Index, Index>)
          position = position_of(i, sections[static_cast<std::size_t>(m)]);
        else
          position = position_of(i);
        const double angle = static_cast<double>(position) * f.theta[static_cast<std::size_t>(m)];
        double& a = x(h, i, rope.rotary_begin + (interleaved ? 2 * m : m));
        double& b = x(h, i, rope.rotary_begin + (interleaved ? 2 * m + 1 : m + pairs));
        const double old_a = a, old_b = b;
        a = f.gain * (old_a * std::cos(angle) - old_b * std::sin(angle));
        b = f.gain * (old_a * std::sin(angle) + old_b * std::cos(angle));
      }
    }
  }
}

/// Whether query i of head h sees key j, as KeyRanges has it.
inline bool reference_in_ranges(const fastrope::KeyRanges& given, Index h, Index n_q, Index i, Index j) {
  const Index m = given.per_row, rows = m == 0 ? 0 : static_cast<Index>(given.ranges.size()) / m;
  if (m == 0) return true;
  for (Index r = 0; r < m; ++r) {
    const fastrope::Range range =
        given.ranges[static_cast<std::size_t>(((rows > n_q ? h * n_q : 0) + i) * m + r)];
    if (range.begin <= j && j < range.end) return true;
  }
  return false;
}

/// G_i - G_j + b_j for a query and a key of one head: the sum of the gates of the tokens after the key, up to
/// the query's position; tokens come in the order of their positions.
class ReferenceGates {
 public:
  template <class KeyPosition>
  ReferenceGates(const fastrope::Options& options, Index h, Index heads, Index n_k, KeyPosition&& position)
      : input_(static_cast<std::size_t>(n_k)), at_(static_cast<std::size_t>(n_k)) {
    const auto element = [&](const fastrope::MatrixView<const float>& x, Index j) {
      return x.rows == 0 ? 0.0L : static_cast<long double>(x(h * x.rows / heads, j));
    };
    std::vector<Index> order(static_cast<std::size_t>(n_k));
    for (Index j = 0; j < n_k; ++j) order[static_cast<std::size_t>(j)] = j;
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return position(a) < position(b); });
    for (const Index j : order) {
      at_[static_cast<std::size_t>(j)] = static_cast<Index>(positions_.size());
      positions_.push_back(position(j));
      const long double gate = element(options.log_gates, j);
      const bool resets = std::isinf(gate);
      sums_.push_back((sums_.empty() ? 0.0L : sums_.back()) + (resets ? 0.0L : gate));
      resets_.push_back((resets_.empty() ? 0 : resets_.back()) + (resets ? 1 : 0));
      input_[static_cast<std::size_t>(j)] = element(options.log_input_gates, j);
    }
  }

  /// Whether a reset lies between them: the key is left out.
  bool hides(Position query, Index j) const { return resets_[last_of(query)] != resets_[place_of(j)]; }
  /// Where none does; -infinity is a weight of 0.
  double operator()(Position query, Index j) const {
    return static_cast<double>(sums_[last_of(query)] - sums_[place_of(j)] +
                               input_[static_cast<std::size_t>(j)]);
  }

 private:
  std::size_t place_of(Index j) const { return static_cast<std::size_t>(at_[static_cast<std::size_t>(j)]); }
  std::size_t last_of(Position query) const {
    return static_cast<std::size_t>(std::upper_bound(positions_.begin(), positions_.end(), query) -
                                    positions_.begin() - 1);
  }

  std::vector<Position> positions_ = {};  // ascending, as the next two
  std::vector<long double> sums_ = {};
  std::vector<Index> resets_ = {};
  std::vector<long double> input_;
  std::vector<Index> at_;  // where key j is among those
};

/// The positions of queries and keys, given or the defaults: functions of the row. They view the options.
inline auto query_positions_of(const fastrope::Options& options, Index n_q, Index n_k) {
  return [&options, n_q, n_k](Index i) -> Position {
    return options.query_positions.empty() ? n_k - n_q + i
                                           : options.query_positions[static_cast<std::size_t>(i)];
  };
}
inline auto key_positions_of(const fastrope::Options& options) {
  return [&options](Index j) -> Position {
    return options.key_positions.empty() ? j : options.key_positions[static_cast<std::size_t>(j)];
  };
}

/// q: [heads, n_q, d], k: [kv_heads, n_k, d], v: [kv_heads, n_k, d_v], of any element types. `bias` is
/// options.bias written as a formula; `kernel` is used instead of options.kernel. tolerance, path and
/// executor are not looked at. Throws where options.bias is set and `bias` is not. Cost heads n_q n_k (d +
/// d_v).
template <class Q, class K, class V>
Reference reference_attention(const TensorView<Q>& q, const TensorView<K>& k, const TensorView<V>& v,
                              const fastrope::Options& options, const BiasFunction& bias = {},
                              KernelFunction kernel = {}) {
  if (!options.bias.empty() && !bias) throw std::logic_error("reference_attention: write the bias again");
  if (const auto c = options.kernel.coefficients(); !kernel && !c.empty())
    kernel = polynomial_kernel({c.begin(), c.end()});
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const Index n_q = q.rows, n_k = k.rows, d = q.cols, d_v = v.cols;
  const auto query_position = query_positions_of(options, n_q, n_k);
  const auto key_position = key_positions_of(options);
  Tensor<double> queries = converted<double>(q), keys = converted<double>(k);
  if (options.rope && !options.rope_already_applied) {
    const auto turn = [](fastrope::MatrixView<const Position> sections, auto& position) {
      return [sections, &position](Index i, Index section) {
        return sections.data == nullptr ? position(i) : sections(section, i);
      };
    };
    reference_rotate(*options.rope, turn(options.query_section_positions, query_position), queries);
    reference_rotate(*options.rope, turn(options.key_section_positions, key_position), keys);
  }
  const double scale = options.scale.value_or(d == 0 ? 1 : 1 / std::sqrt(static_cast<double>(d)));

  Reference result{Tensor<double>(q.heads, n_q, d_v), Tensor<double>(1, q.heads, n_q)};
  for (Index h = 0; h < q.heads; ++h) {
    const Index kv = h / (q.heads / k.heads);
    const ReferenceGates gates(options, h, q.heads, n_k, key_position);
    const bool gated = options.log_gates.rows > 0 || options.log_input_gates.rows > 0;
    const double sink = options.sinks.empty() ? -kInfinity : options.sinks[static_cast<std::size_t>(h)];
    for (Index i = 0; i < n_q; ++i) {
      // Of the allowed keys: scores, and biases, which may be so large that what is added to one would be
      // lost. So the largest of the dense ones is taken out first, then that of what is left with the lags',
      // and both are given back to the logarithm of the sum.
      struct Logit {
        Index j;
        double x, lags, dense;
      };
      std::vector<Logit> logits;
      double largest_dense = -kInfinity, largest_rest = -kInfinity;
      for (Index j = 0; j < n_k; ++j) {
        const Position lag = query_position(i) - key_position(j);
        const double dense =
            options.dense_bias.data == nullptr ? 0 : dense_element(options.dense_bias, h, i, j);
        if (lag < options.mask.first || lag > options.mask.last || dense == -kInfinity) continue;
        if (options.dense_mask.data != nullptr && !options.dense_mask.head(h)(i, j)) continue;
        if (!reference_in_ranges(options.key_ranges, h, n_q, i, j)) continue;
        if (gated && gates.hides(query_position(i), j)) continue;
        const double gate = gated ? gates(query_position(i), j) : 0;
        double product = 0;
        if (options.weights) {
          Index s = 0;
          for (const auto& [a, b] : options.weights->support())
            product += queries(h, i, a) * (*options.weights)(lag, s++) * keys(kv, j, b);
        } else {
          for (Index c = 0; c < d; ++c) product += queries(h, i, c) * keys(kv, j, c);
        }
        double x = scale * product;
        if (options.softcap > 0) x = options.softcap * std::tanh(x / options.softcap);
        logits.push_back({j, x, gate + (bias ? bias(h, lag) : 0), dense});
        largest_dense = std::max(largest_dense, dense);
      }
      if (!std::isfinite(largest_dense)) largest_dense = 0;
      for (const Logit& logit : logits)
        largest_rest = std::max(largest_rest, logit.dense - largest_dense + logit.lags);
      if (!std::isfinite(largest_rest)) largest_rest = 0;
      const double largest_bias = largest_dense + largest_rest;
      double top = sink - largest_bias;
      for (Logit& logit : logits) {
        if (kernel) continue;
        logit.x += logit.dense - largest_dense + logit.lags - largest_rest;
        top = std::max(top, logit.x);
      }
      if (kernel || top == -kInfinity) top = 0;
      double sum = std::exp(sink - largest_bias - top);
      for (const auto& [j, x, lags, of_dense] : logits) {
        const double weight = kernel ? kernel(x) * std::exp(lags - largest_rest) : std::exp(x - top);
        sum += weight;
        for (Index c = 0; c < d_v; ++c) result.out(h, i, c) += weight * static_cast<double>(v.head(kv)(j, c));
      }
      using fastrope::Normaliser;
      const Normaliser& normaliser = options.normaliser;
      const double constant =  // 0 whatever the largest is
          normaliser.constant() == 0 ? 0 : normaliser.constant() * std::exp(-largest_rest);
      const double n = normaliser.kind() == Normaliser::Kind::row_sum    ? sum + constant
                       : normaliser.kind() == Normaliser::Kind::at_least ? std::max(std::abs(sum), constant)
                                                                         : constant;
      for (Index c = 0; c < d_v; ++c) result.out(h, i, c) = n == 0 ? 0 : result.out(h, i, c) / n;
      result.lse(0, h, i) = top + largest_bias + std::log(std::abs(sum));
    }
  }
  return result;
}

}  // namespace fastrope_test
