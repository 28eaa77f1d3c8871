// The attention of training::Model for heads of two kinds (config.hpp), forwards and backwards.
#pragma once

#include <array>
#include <fastrope/gradient.hpp>
#include <vector>

#include "config.hpp"
#include "unit_rows.hpp"

namespace bounded_model {

template <class Real>
class TrainingAttention {
 public:
  using Config = bounded_model::Config;

  explicit TrainingAttention(const Config& config)
      : config_(config),
        groups_{local_group(config), global_group(config)},
        inverse_(static_cast<std::size_t>(config.layers)) {}

  /// There is nothing that attention itself trains.
  void take(const Real*) {}

  /// mixed [tokens, width], lse [sequences heads, n] of projected [tokens, projected()], whose rows that are
  /// to be of length 1 are made so.
  void forward(Index layer, training::Matrix<Real>& projected, training::Matrix<Real>& mixed,
               training::Matrix<Real>& lse) {
    training::Matrix<Real>& inverse = inverse_[static_cast<std::size_t>(layer)];
    for_each_unit(projected.rows(), inverse, [&](Index first, Index d, auto&& column) {
      make_unit(projected.middleCols(first, d), column);
    });
    for_each_call(projected.rows(), [&](Index s, const Group& g) {
      fastrope::attend_partial(rows_of(projected, s, g.q, g, g.d), rows_of(projected, s, g.k, g, g.d),
                               values(projected, s, g), mixed_rows(mixed, s, g), lse_of(lse, s, g),
                               g.options);
    });
  }

  /// d_projected of d_mixed, before rows were made unit.
  void backward(Index layer, const training::Matrix<Real>& projected, const training::Matrix<Real>& mixed,
                training::Matrix<Real>& lse, const training::Matrix<Real>& d_mixed,
                training::Matrix<Real>& d_projected, Real*) {
    for_each_call(projected.rows(), [&](Index s, const Group& g) {
      fastrope::attend_backward(rows_of(projected, s, g.q, g, g.d), rows_of(projected, s, g.k, g, g.d),
                                values(projected, s, g), mixed_rows(mixed, s, g), lse_of(lse, s, g),
                                mixed_rows(d_mixed, s, g), rows_of(d_projected, s, g.q, g, g.d),
                                rows_of(d_projected, s, g.k, g, g.d), values(d_projected, s, g), g.options);
    });
    for_each_unit(projected.rows(), inverse_[static_cast<std::size_t>(layer)],
                  [&](Index first, Index d, auto&& column) {
                    make_unit_gradient(projected.middleCols(first, d), column,
                                       d_projected.middleCols(first, d));
                  });
  }

 private:
  template <class Call>
  void for_each_call(Index tokens, Call&& call) const {
    for (Index sequence = 0; sequence < tokens / config_.n; ++sequence)
      for (const Group& group : groups_)
        if (group.heads > 0) call(sequence, group);
  }

  /// f(first column, d, column of inverse [tokens, 2 heads]) of every head's q and k that are to be unit.
  template <class F>
  void for_each_unit(Index tokens, training::Matrix<Real>& inverse, F&& f) const {
    for (const Group& g : groups_) {
      if (!g.unit) continue;
      inverse.resize(tokens, 2 * g.heads);
      for (Index h = 0; h < g.heads; ++h) {
        f(g.q + h * g.d, g.d, inverse.col(2 * h));
        f(g.k + h * g.d, g.d, inverse.col(2 * h + 1));
      }
    }
  }

  /// [group's heads, n, cols] of a sequence, from column `first` on.
  template <class M>
  auto rows_of(M& x, Index sequence, Index first, const Group& g, Index cols) const {
    return fastrope::TensorView(x.data() + sequence * config_.n * x.cols() + first, g.heads, config_.n, cols,
                                cols, x.cols());
  }
  template <class M>
  auto values(M& projected, Index sequence, const Group& g) const {
    return rows_of(projected, sequence, g.v, g, config_.head_size());
  }
  template <class M>
  auto mixed_rows(M& mixed, Index sequence, const Group& g) const {
    return rows_of(mixed, sequence, g.first * config_.head_size(), g, config_.head_size());
  }
  fastrope::MatrixView<Real> lse_of(training::Matrix<Real>& lse, Index sequence, const Group& g) const {
    return {lse.data() + (sequence * config_.heads + g.first) * config_.n, g.heads, config_.n};
  }

  Config config_;
  std::array<Group, 2> groups_;
  std::vector<training::Matrix<Real>> inverse_;  // of each layer, what unit rows were multiplied by
};

}  // namespace bounded_model
