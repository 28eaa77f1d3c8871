// PromiseOracle: single rows of attention as its definition has it, for rows of any length and with the
// digits that the arithmetic under test has to spare.
//
// The formulas of support/reference.hpp, in another order of operations: a row's largest biases are taken out
// before scores are added, so that biases near the end of the range, or much larger than the scores, keep
// them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "fastrope/problem/options.hpp"
#include "support/promise_call.hpp"
#include "support/promise_problem.hpp"

namespace fastrope_test {

/// Real: double beside arithmetic in float, long double beside double.
template <class Real>
class PromiseOracle {
 public:
  /// Views what is given.
  PromiseOracle(const PromiseProblem& problem, const PromiseCall& call)
      : problem_(problem),
        options_(problem.call.base),
        d_(call.q().cols),
        n_q_(call.q().rows),
        n_k_(call.k().rows) {
    queries_ = turned(call.q(), [&](Index i) { return query_position(i); });
    const std::vector<Real> keys = turned(call.k(), [&](Index j) { return key_position(j); });
    columns_.resize(keys.size());
    for (Index h = 0; h < call.k().heads; ++h)
      for (Index j = 0; j < n_k_; ++j)
        for (Index c = 0; c < d_; ++c)
          columns_[index((h * d_ + c) * n_k_ + j)] = keys[index((h * n_k_ + j) * d_ + c)];
    group_ = call.q().heads / call.k().heads;
    scale_ = options_.scale ? static_cast<Real>(*options_.scale) : 1 / std::sqrt(static_cast<Real>(d_));
  }

  /// The weights of row i of head h, over its normaliser: softmax's add up to 1 with the sink's; 0 where a
  /// key is left out, all 0 where nothing is attended to. Valid until the next call.
  const std::vector<Real>& weights(Index h, Index i) {
    score(h, i);
    gate(h, i);
    if (options_.kernel.is_softmax())
      exponentials(h);
    else
      polynomials();
    return x_;
  }

  /// out[c] = sum_j weight_j v(j, c), of the weights last asked for.
  void average(const Tensor<double>& v, Index h, std::vector<Real>& out) const {
    out.assign(index(v.cols), 0);
    for (Index j = range_.begin; j < range_.end; ++j) {
      const Real weight = x_[index(j)];
      const double* row = v.view().head(h / group_).row(j);
      for (Index c = 0; c < v.cols; ++c) out[index(c)] += weight * static_cast<Real>(row[c]);
    }
  }

 private:
  static constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
  static std::size_t index(Index i) { return static_cast<std::size_t>(i); }

  Position query_position(Index i) const {
    const auto& positions = problem_.call.query_positions;
    return positions.empty() ? n_k_ - n_q_ + i : positions[index(i)];
  }
  Position key_position(Index j) const {
    const auto& positions = problem_.call.key_positions;
    return positions.empty() ? j : positions[index(j)];
  }

  /// [heads, rows, d], with the leading columns turned.
  template <class PositionOf>
  std::vector<Real> turned(const Tensor<double>& x, PositionOf&& position_of) const {
    std::vector<Real> rows(x.values.begin(), x.values.end());
    if (!options_.rope || options_.rope_already_applied) return rows;
    const fastrope::Rope& rope = *options_.rope;
    const Index dim = rope.rotary_dim == 0 ? d_ : rope.rotary_dim, pairs = dim / 2;
    const bool interleaved = rope.pairing == fastrope::RopePairing::interleaved;
    std::vector<Real> theta;
    for (Index m = 0; m < pairs; ++m)
      theta.push_back(
          std::pow(static_cast<Real>(rope.base), static_cast<Real>(-2 * m) / static_cast<Real>(dim)));
    for (Index h = 0; h < x.heads; ++h)
      for (Index i = 0; i < x.rows; ++i)
        for (Index m = 0; m < pairs; ++m) {
          const Real angle = static_cast<Real>(position_of(i)) * theta[index(m)];
          const Real cosine = std::cos(angle), sine = std::sin(angle);
          Real* row = rows.data() + (h * x.rows + i) * x.cols;
          Real& a = row[interleaved ? 2 * m : m];
          Real& b = row[interleaved ? 2 * m + 1 : m + pairs];
          const Real old_a = a, old_b = b;
          a = old_a * cosine - old_b * sine;
          b = old_a * sine + old_b * cosine;
        }
    return rows;
  }

  /// x = scaled (and capped) products, range_ and allowed_.
  void score(Index h, Index i) {
    const fastrope::Mask& mask = options_.mask;
    const auto& dense = problem_.call.dense;
    const Position p = query_position(i);
    range_ = {0, n_k_};
    if (problem_.call.key_positions.empty()) {
      range_.begin = std::clamp<Position>(p - mask.last, 0, n_k_);
      range_.end = std::clamp<Position>(p - mask.first + 1, range_.begin, n_k_);
    }
    x_.assign(index(n_k_), 0);
    const Real* query = queries_.data() + (h * n_q_ + i) * d_;
    for (Index c = 0; c < d_; ++c) {
      const Real* column = columns_.data() + ((h / group_) * d_ + c) * n_k_;
      const Real q = query[c];
      for (Index j = range_.begin; j < range_.end; ++j) x_[index(j)] += q * column[j];
    }
    const Real cap = static_cast<Real>(options_.softcap);
    for (Index j = range_.begin; j < range_.end; ++j) {
      Real& x = x_[index(j)];
      x *= scale_;
      if (cap > 0) x = cap * std::tanh(x / cap);
    }

    all_allowed_ = problem_.call.key_positions.empty() && dense.empty();
    lag_bias_.clear();
    dense_bias_.clear();
    allowed_.clear();
    if (!all_allowed_) {
      const float* row =
          dense.data() + h * problem_.call.dense_head_stride + i * problem_.call.dense_row_stride;
      allowed_.assign(index(n_k_), false);
      for (Index j = range_.begin; j < range_.end; ++j) {
        const Position lag = p - key_position(j);
        allowed_[index(j)] = lag >= mask.first && lag <= mask.last &&
                             (dense.empty() || row[j] > -std::numeric_limits<float>::infinity());
      }
      if (!dense.empty()) dense_bias_.assign(row, row + n_k_);
    }
    if (problem_.bias) {
      lag_bias_.assign(index(n_k_), 0);
      for (Index j = range_.begin; j < range_.end; ++j)
        if (allowed(j)) lag_bias_[index(j)] = static_cast<Real>(problem_.bias(h, p - key_position(j)));
    }
  }

  /// gates_[j] = G_i - G_j + b_j, summed from the row's position back; a reset hides all keys before it.
  void gate(Index h, Index i) {
    const auto row_of = [&](const std::vector<float>& x) {
      const Index rows = std::ssize(x) / n_k_;
      return x.data() + h * rows / problem_.call.shapes.heads * n_k_;
    };
    gates_.clear();
    if (problem_.call.log_gates.empty()) return;
    gates_.assign(index(n_k_), -kInfinity);
    const float* log = row_of(problem_.call.log_gates);
    const float* input =
        problem_.call.log_input_gates.empty() ? nullptr : row_of(problem_.call.log_input_gates);
    Real sum = 0;
    for (Index j = std::min<Index>(query_position(i), n_k_ - 1); j >= 0; sum += static_cast<Real>(log[j--]))
      gates_[index(j)] = sum + (input == nullptr ? 0 : static_cast<Real>(input[j]));
  }

  bool allowed(Index j) const { return all_allowed_ || allowed_[index(j)]; }

  /// The largest of the allowed keys' numbers; 0 where there are none.
  Real largest(const std::vector<Real>& numbers) const {
    Real top = -kInfinity;
    if (!numbers.empty())
      for (Index j = range_.begin; j < range_.end; ++j)
        if (allowed(j)) top = std::max(top, numbers[index(j)]);
    return top == -kInfinity ? 0 : top;
  }

  void exponentials(Index h) {
    const Real lag_top = largest(lag_bias_), dense_top = largest(dense_bias_);
    for (Index j = range_.begin; j < range_.end; ++j) {
      Real bias = 0;
      if (!lag_bias_.empty()) bias += lag_bias_[index(j)] - lag_top;
      if (!dense_bias_.empty()) bias += dense_bias_[index(j)] - dense_top;
      if (!gates_.empty()) bias += gates_[index(j)];
      x_[index(j)] += bias;
    }
    const auto& sinks = problem_.call.sinks;
    const Real sink = sinks.empty() ? -kInfinity : static_cast<Real>(sinks[index(h)]) - dense_top - lag_top;
    Real top = sink;
    for (Index j = range_.begin; j < range_.end; ++j)
      if (allowed(j)) top = std::max(top, x_[index(j)]);
    if (top == -kInfinity) return zero();
    Real sum = std::exp(sink - top);
    for (Index j = range_.begin; j < range_.end; ++j) {
      x_[index(j)] = allowed(j) ? std::exp(x_[index(j)] - top) : 0;
      sum += x_[index(j)];
    }
    for (Index j = range_.begin; j < range_.end; ++j) x_[index(j)] /= sum;
  }

  void polynomials() {
    const auto coefficients = options_.kernel.coefficients();
    Real sum = 0;
    for (Index j = range_.begin; j < range_.end; ++j) {
      Real value = 0;
      for (std::size_t p = coefficients.size(); p-- > 0;)
        value = value * x_[index(j)] + static_cast<Real>(coefficients[p]);
      if (!gates_.empty()) value = gates_[index(j)] == -kInfinity ? 0 : value * std::exp(gates_[index(j)]);
      x_[index(j)] = allowed(j) ? value : 0;
      sum += x_[index(j)];
    }
    const fastrope::Normaliser& normaliser = options_.normaliser;
    using Kind = fastrope::Normaliser::Kind;
    const Real constant = static_cast<Real>(normaliser.constant());
    const Real n = normaliser.kind() == Kind::row_sum    ? sum + constant
                   : normaliser.kind() == Kind::at_least ? std::max(std::abs(sum), constant)
                                                         : 1;
    if (n == 0) return zero();
    for (Index j = range_.begin; j < range_.end; ++j) x_[index(j)] /= n;
  }

  void zero() { std::fill(x_.begin(), x_.end(), Real{0}); }

  const PromiseProblem& problem_;
  const Options& options_;
  Index d_, n_q_, n_k_, group_ = 1;
  Real scale_ = 1;
  std::vector<Real> queries_ = {}, columns_ = {};  // [heads, n_q, d] and [kv_heads, d, n_k]
  fastrope::Range range_ = {};                     // of keys
  std::vector<Real> x_ = {}, lag_bias_ = {}, dense_bias_ = {}, gates_ = {};
  std::vector<bool> allowed_ = {};
  bool all_allowed_ = true;
};

}  // namespace fastrope_test
