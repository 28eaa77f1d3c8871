// The attention of a layer, forwards and backwards, for several sequences of the same length.
//
// Rows are tokens, [q | k | v] of all heads side by side: heads are columns of those rows, so that nothing is
// copied. Each sequence is a call of its own: its rows stay in the cache, and a bias has one table a head.
#pragma once

#include <algorithm>
#include <cstddef>
#include <fastrope/gradient.hpp>
#include <utility>
#include <vector>

#include "config.hpp"

namespace training {

template <class Real>
class Attention {
 public:
  using Config = training::Config;
  explicit Attention(const Config& config)
      : config_(config),
        d_bias_(static_cast<std::size_t>(config.trained_bias ? config.heads * config.lags() : 0)),
        sum_(d_bias_) {
    for (Index l = 0; l < config.layers; ++l) {
      fastrope::Options options = config.attention;
      if (config.decoupled > 0) options.rope->rotary_dim = config.decoupled;
      if (l >= config.rope_layers.value_or(config.layers)) options.rope.reset();
      const Index turned = options.rope ? config.rope_heads.value_or(config.heads) : config.heads;
      std::vector<Group> groups;
      if (turned > 0) groups.push_back({0, turned, options});
      options.rope.reset();
      if (turned < config.heads) groups.push_back({turned, config.heads - turned, options});
      layers_.push_back(std::move(groups));
    }
  }

  /// What a head of a layer is called with.
  const fastrope::Options& options(Index layer, Index head) const {
    const std::vector<Group>& groups = layers_[static_cast<std::size_t>(layer)];
    return groups.size() == 1 || head < groups[1].first ? groups[0].options : groups[1].options;
  }

  /// Takes the numbers of a trained bias, [heads, lags], if there is one.
  void take(const Real* values) {
    if (!config_.trained_bias) return;
    const std::vector<double> numbers(values, values + d_bias_.size());
    for (std::vector<Group>& groups : layers_)
      for (Group& group : groups)
        group.options.bias = fastrope::LagBias::table(numbers, config_.heads, 1 - config_.n);
  }

  /// The rows of a sequence among [tokens, projected()], [heads, n, row size]; and of [tokens, width].
  template <class M>
  auto queries(M& projected, Index sequence) const {
    return rows_of(projected, sequence, 0, config_.row_size());
  }
  template <class M>
  auto keys(M& projected, Index sequence) const {
    return rows_of(projected, sequence, config_.heads * config_.row_size(), config_.row_size());
  }
  template <class M>
  auto values(M& projected, Index sequence) const {
    return rows_of(projected, sequence, 2 * config_.heads * config_.row_size(), config_.head_size());
  }
  template <class M>
  auto mixed_rows(M& mixed, Index sequence) const {
    return rows_of(mixed, sequence, 0, config_.head_size());
  }

  /// mixed [tokens, width], lse [sequences heads, n] of projected [tokens, projected()].
  void forward(Index layer, const Matrix<Real>& projected, Matrix<Real>& mixed, Matrix<Real>& lse) const {
    for_each_call(layer, projected.rows(), [&](Index s, const Group& group) {
      fastrope::attend_partial(group.of(queries(projected, s)), group.of(keys(projected, s)),
                               group.of(values(projected, s)), group.of(mixed_rows(mixed, s)),
                               lse_of(lse, s, group), group.options);
    });
  }

  /// d_projected of d_mixed. Adds the gradient of a trained bias to d_bias, [heads, lags].
  void backward(Index layer, const Matrix<Real>& projected, const Matrix<Real>& mixed, Matrix<Real>& lse,
                const Matrix<Real>& d_mixed, Matrix<Real>& d_projected, Real* d_bias) {
    std::fill(sum_.begin(), sum_.end(), 0.0);
    for_each_call(layer, projected.rows(), [&](Index s, const Group& group) {
      fastrope::attend_backward(group.of(queries(projected, s)), group.of(keys(projected, s)),
                                group.of(values(projected, s)), group.of(mixed_rows(mixed, s)),
                                lse_of(lse, s, group), group.of(mixed_rows(d_mixed, s)),
                                group.of(queries(d_projected, s)), group.of(keys(d_projected, s)),
                                group.of(values(d_projected, s)), group.options, {.bias = d_bias_});
      for (std::size_t i = 0; i < sum_.size(); ++i) sum_[i] += d_bias_[i];
    });
    for (std::size_t i = 0; i < sum_.size(); ++i) d_bias[i] += static_cast<Real>(sum_[i]);
  }

 private:
  /// Heads that are called with the same options.
  struct Group {
    Index first, heads;
    fastrope::Options options;

    template <class T>
    fastrope::TensorView<T> of(const fastrope::TensorView<T>& all) const {
      return {all.data + first * all.head_stride, heads, all.rows, all.cols, all.head_stride, all.row_stride};
    }
  };

  template <class Call>
  void for_each_call(Index layer, Index tokens, Call&& call) const {
    for (Index sequence = 0; sequence < tokens / config_.n; ++sequence)
      for (const Group& group : layers_[static_cast<std::size_t>(layer)]) call(sequence, group);
  }

  /// Columns from `first` on, `size` a head, of a sequence's rows.
  template <class M>
  auto rows_of(M& x, Index sequence, Index first, Index size) const {
    return fastrope::TensorView(x.data() + sequence * config_.n * x.cols() + first, config_.heads, config_.n,
                                size, size, x.cols());
  }
  fastrope::MatrixView<Real> lse_of(Matrix<Real>& lse, Index sequence, const Group& group) const {
    return {lse.data() + (sequence * config_.heads + group.first) * config_.n, group.heads, config_.n};
  }

  Config config_;
  std::vector<std::vector<Group>> layers_;
  std::vector<double> d_bias_, sum_;  // [heads, lags], of a call and of all; empty where none is trained
};

}  // namespace training
