// Recurrent attention: causal attention with a polynomial kernel, whose state has a fixed size.
//
//     A_ij = P(x_ij) for j <= i,   state [kv_heads, rank, d_v + 1] = sum_j c_alpha k_j^alpha [v_j, 1]
// A prompt is taken in chunks (polynomial/attention.hpp) and leaves its state; a step then adds one token to
// it and reads the answer off it, in O(rank d_v), however long the sequence. Nothing is approximated.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/problem/run_status.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// One sequence's attention with options.kernel, token after token, with arithmetic in Real. A copy is
/// another sequence with the same past. Rounding: the state is a running sum over all tokens, and its error
/// grows as such a sum's does, in float to about 3000 epsilon (3e-4) after 10^5 steps with one and the same
/// key, and 10 epsilon with keys that differ.
template <class Real>
class RecurrentAttention {
 public:
  /// For q of `heads` and k, v of `kv_heads` heads. options: a polynomial kernel; causal mask; rope and scale
  /// as elsewhere; positions count tokens from 0. Throws Error, naming the values, where options do not allow
  /// a recurrence and where the rank exceeds kMaxRank.
  RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v, const Options& options);

  /// Tokens so far.
  Position tokens() const { return tokens_; }
  Index rank() const { return units_.empty() ? 0 : units_.front().monomials->rank(); }
  /// [kv_heads, rank, d_v + 1]: all that is kept of the tokens so far.
  std::span<const Real> state() const { return state_; }

  /// Takes the next n tokens: q [heads, n, d], k [kv_heads, n, d], v [kv_heads, n, d_v]; out [heads, n, d_v]
  /// is what each attends to among all tokens so far. Allocates a workspace. Throws Error for tensors that
  /// clash; then nothing has changed. An exception of the executor leaves the state undefined. Cost: 4 n rank
  /// (d_v + 2) flops a head.
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  void prefill(const Q& q, const K& k, const V& v, Out&& out);

  /// The same for one token, n = 1. Allocates nothing and throws nothing; after RunStatus::executor_failed
  /// the token may be in the states of some heads. With rope, position_out_of_range once tokens() exceeds
  /// RopeFrequencies::max_position(). Cost: O(rank d_v) a head.
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  RunStatus step(const Q& q, const K& k, const V& v, Out&& out) noexcept;

 private:
  /// Rows that a prompt is taken in at a time: their pairs are computed as such, so few; the state is read
  /// and written for each chunk, so not too few.
  static constexpr Index kChunk = 768;

  Index channels() const { return d_v_ + 1; }
  /// Columns of a step: the key, the queries of its group, padding.
  Index width() const { return round_up(1 + problem_.group(), simd::kLanes<Real>); }
  Index step_scratch_size() const {
    return (d_ + unit_degree() + 1) * width() + (1 + problem_.group()) * channels() +
           round_up(d_, simd::kLanes<Real>) + problem_.rotation.row_size();
  }
  Index unit_degree() const { return problem_.kernel.degree(); }

  template <class Q, class K, class V, class Out>
  void step_head(Index kv, const Q& q, const K& k, const V& v, const Out& out);

  Index heads_, kv_heads_, d_, d_v_;
  Problem problem_;                      // of one token
  std::vector<LowRankUnit> units_ = {};  // one for each key head
  std::vector<Real> state_ = {};
  std::vector<Real> scratch_ = {};  // [kv_heads, step_scratch_size]
  Position tokens_ = 0;
};

template <class Real>
RecurrentAttention<Real>::RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v,
                                             const Options& options)
    : heads_(heads),
      kv_heads_(kv_heads),
      d_(d),
      d_v_(d_v),
      problem_(Shapes{heads, kv_heads, 1, 1, d, d_v}, options) {
  if (problem_.kernel.is_softmax())
    detail::fail("a recurrence needs a polynomial options.kernel: softmax has no state of fixed size");
  const Mask mask = problem_.grid.mask();
  if (mask != Mask::causal())
    detail::fail("a recurrence is causal: options.mask allows the lags ", mask.first, " to ", mask.last);
  if (!options.query_positions.empty() || !options.key_positions.empty())
    detail::fail("a recurrence counts positions itself: options give ", options.query_positions.size(),
                 " query positions and ", options.key_positions.size(), " key positions");
  if (const std::string refusal = polynomial_refusal(problem_); !refusal.empty())
    detail::fail("no recurrence: ", refusal);
  const std::vector<int> limits = simplex_limits(d, problem_.kernel.degree());
  if (const double rank = rank_of(limits); rank > static_cast<double>(kMaxRank))
    detail::fail(rank_refusal(problem_.kernel.degree(), d, rank, d_v, sizeof(Real)));
  const auto monomials = std::make_shared<const MonomialSet>(limits);
  const auto coefficients = problem_.kernel.coefficients();
  for (Index kv = 0; heads > 0 && kv < kv_heads; ++kv)
    units_.push_back({{kv * problem_.group(), (kv + 1) * problem_.group()},
                      Projection::identity(d, 1),
                      {coefficients.begin(), coefficients.end()},
                      monomials,
                      {}});
  state_.resize(static_cast<std::size_t>(kv_heads * rank() * channels()));
  scratch_.resize(static_cast<std::size_t>(kv_heads * step_scratch_size()));
}

template <class Real>
template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
void RecurrentAttention<Real>::prefill(const Q& q, const K& k, const V& v, Out&& out) {
  const auto q_view = as_tensor(q);
  const auto k_view = as_rows(k);
  const auto v_view = as_rows(v);
  const auto out_view = as_tensor(out);
  const Shapes shapes = shapes_of(q_view, k_view, v_view);
  if (shapes != Shapes{heads_, kv_heads_, shapes.n_q, shapes.n_q, d_, d_v_})
    detail::fail("prefill: q, k and v are of ", shapes.heads, " and ", shapes.kv_heads, " heads, ",
                 shapes.n_q, " and ", shapes.n_k, " tokens, d ", shapes.d, " and d_v ", shapes.d_v,
                 "; this recurrence has ", heads_, " and ", kv_heads_, " heads, d ", d_, " and d_v ", d_v_);
  require_output(shapes, out_view);
  std::vector<Position> positions(static_cast<std::size_t>(shapes.n_q));
  for (Index i = 0; i < shapes.n_q; ++i) positions[static_cast<std::size_t>(i)] = tokens_ + i;
  const Problem problem = problem_.with(shapes.n_q, shapes.n_k, positions, positions);
  for (LowRankUnit& unit : units_) unit.chunks = far_chunks<Real>(problem, kChunk);

  const auto parts = [&](Workspace& workspace, auto&& use) {
    PackedKeys<Real> packed(problem, workspace);
    ExactAttention<Real> exact(problem, packed, workspace);
    PolynomialAttention<Real> polynomial(problem, units_, workspace, state_.data(), tokens_ > 0);
    use(packed, exact, polynomial);
  };
  std::vector<std::byte> memory(
      Workspace::bytes_of([&](Workspace& workspace) { parts(workspace, [](auto&...) {}); }));
  Workspace workspace(memory);
  parts(workspace, [&](auto& packed, auto& exact, auto& polynomial) {
    packed.pack(problem, k_view, v_view);
    exact.prepare(problem);
    polynomial.run(problem, packed, exact, TensorView<const ElementOf<Q>>(q_view), out_view);
  });
  tokens_ += shapes.n_q;
}

template <class Real>
template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
RunStatus RecurrentAttention<Real>::step(const Q& q, const K& k, const V& v, Out&& out) noexcept {
  const auto q_view = as_tensor(q);
  const auto k_view = as_rows(k);
  const auto v_view = as_rows(v);
  const auto out_view = as_tensor(out);
  if (!fits(problem_.shapes, q_view, k_view, v_view, out_view)) return RunStatus::shape_mismatch;
  if (problem_.rotates() && tokens_ > problem_.rotation.frequencies().max_position())
    return RunStatus::position_out_of_range;
  try {
    problem_.executor.parallel_for(static_cast<Index>(units_.size()),
                                   [&](Index kv, Index) { step_head(kv, q_view, k_view, v_view, out_view); });
  } catch (...) {
    return RunStatus::executor_failed;
  }
  ++tokens_;
  return RunStatus::ok;
}

template <class Real>
template <class Q, class K, class V, class Out>
void RecurrentAttention<Real>::step_head(Index kv, const Q& q, const K& k, const V& v, const Out& out) {
  const Index columns = width(), group = problem_.group();
  Real* x = scratch_.data() + kv * step_scratch_size();     // [d, columns]: the key, then queries
  Real* ancestors = x + d_ * columns;                       // [degree + 1, columns]
  Real* value = ancestors + (unit_degree() + 1) * columns;  // [channels]
  Real* sums = value + channels();                          // [group, channels]
  Real* row = sums + group * channels();                    // [d]
  Real* table = row + round_up(d_, simd::kLanes<Real>);
  problem_.rotation.fill(
      {0, 1}, [&](Index) { return tokens_; }, table);
  const auto load = [&](const auto* from, Index column, double factor) {
    simd::convert(from, d_, row);
    problem_.rotation.apply(table, row);
    for (Index c = 0; c < d_; ++c) x[c * columns + column] = row[c] * static_cast<Real>(factor);
  };
  load(k.head(kv).row(0), 0, 1);
  for (Index h = 0; h < group; ++h) load(q.head(kv * group + h).row(0), 1 + h, problem_.scale);
  simd::convert(v.head(kv).row(0), d_v_, value);
  value[d_v_] = 1;
  std::fill_n(ancestors, columns, Real{1});
  std::fill_n(sums, group * channels(), Real{0});

  const LowRankUnit& unit = units_[static_cast<std::size_t>(kv)];
  Real* state = state_.data() + kv * rank() * channels();
  for (const Monomial& term : unit.monomials->terms()) {
    Real* feature = ancestors + term.degree * columns;
    if (term.degree > 0)
      for (Index i = 0; i < columns; ++i) feature[i] = feature[i - columns] * x[term.variable * columns + i];
    const Real weight =
        feature[0] *
        static_cast<Real>(unit.coefficients[static_cast<std::size_t>(term.degree)] * term.multinomial);
    for (Index c = 0; c < channels(); ++c) state[c] += weight * value[c];
    for (Index h = 0; h < group; ++h)
      for (Index c = 0; c < channels(); ++c) sums[h * channels() + c] += feature[1 + h] * state[c];
    state += channels();
  }
  for (Index h = 0; h < group; ++h) {
    const Real* sum = sums + h * channels();
    const Real total = sum[d_v_];
    const Real inverse = std::abs(total) < std::numeric_limits<Real>::min() ? Real{0} : 1 / total;
    auto* to = out.head(kv * group + h).row(0);
    for (Index c = 0; c < d_v_; ++c)
      to[c] = static_cast<std::remove_cvref_t<decltype(to[c])>>(sum[c] * inverse);
  }
}

}  // namespace fastrope::inline FASTROPE_TARGET
