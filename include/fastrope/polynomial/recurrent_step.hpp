// A step of recurrent attention: a token is read off the state and the recent tokens, which it joins.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/gate_sums.hpp"
#include "fastrope/polynomial/kernel_bounds.hpp"
#include "fastrope/polynomial/kernel_rounding.hpp"
#include "fastrope/polynomial/recurrent.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/polynomial/state.hpp"

namespace fastrope::inline FASTROPE_TARGET {

template <class Real>
RunStatus RecurrentAttention<Real>::step_rows(const StoredRows& q, const StoredRows& k, const StoredRows& v,
                                              const OutputRows& out, const Gates& gates) noexcept {
  if (!fits(problem_.shapes, q, k, v, out) || !fits_states(gates.log) || !fits_states(gates.log_input))
    return RunStatus::shape_mismatch;
  if (problem_.rotates() && tokens_ > problem_.rotation.frequencies().max_position())
    return RunStatus::position_out_of_range;
  for (Index u = 0; u < states_; ++u)
    if (!(gates.gate(u, states_, 0) <= 0) ||
        !(gates.input_gate(u, states_, 0) < std::numeric_limits<double>::infinity()))
      return RunStatus::gates_refused;
  if (broken_promise(q, k, 1)) return RunStatus::promise_broken;
  gated_ = gated_ || gates.given();
  bounded_rows_ = 1;
  if (recent() == 0) rounding_ = step_rounding();
  try {
    problem_.executor.parallel_for(static_cast<Index>(units_.size()), [&](Index u, Index worker) {
      Workspace share(std::span<std::byte>(scratch_).subspan(
          static_cast<std::size_t>(worker) * scratch_bytes_, scratch_bytes_));
      step_state(u, q, k, v, out, gates, step_scratch(share));
    });
  } catch (...) {
    return RunStatus::executor_failed;
  }
  ++tokens_;
  return RunStatus::ok;
}

template <class Real>
void RecurrentAttention<Real>::append(Index u, Index kv, Index slot, Position position, const StoredRows& k,
                                      const StoredRows& v, Index j, const TokenGates& gates,
                                      const StepScratch& s) {
  // Beside which what underflow does to the weight of a token by gates is nothing.
  constexpr double kLeast = 0x1p-900;
  const StoredHead key = k.head(kv), value = v.head(kv);
  Real* raw = recent_keys_.data() + (u * kBlock + slot) * d_;
  Real* column = recent_columns_.data() + u * kBlock * d_ + slot;
  Real* values = recent_values_.data() + (u * kBlock + slot) * value_stride();
  double* sizes = recent_sizes_.data() + (u * (kBlock + 1) + slot) * degrees();
  RecentGates& recent = recent_gates_[static_cast<std::size_t>(u)];
  const double top = slot > 0 ? recent.top() : -std::numeric_limits<double>::infinity();
  recent.add(slot, gates);
  const double shrink = recent.resets() ? 0 : decay(top, recent.top());
  key.read(j, d_, raw);
  std::copy_n(raw, d_, s.row);
  problem_.rotation.fill(
      {0, 1}, [&](Index, Index) { return position; }, s.table);
  problem_.rotation.apply(s.table, s.row);
  for (Index c = 0; c < d_; ++c) column[c * kBlock] = s.row[c];
  value.read(j, d_v_, values);
  double power = gated_ ? decay(recent.level(slot), recent.top()) + kLeast : 1;
  double& largest = largest_value_[at(u, 1)];
  const double length = row_length<Real>(key, j, d_);
  for (Index p = 0; p < degrees(); ++p, power *= length)
    sizes[degrees() + p] = (slot > 0 && shrink > 0 ? shrink * sizes[p] : 0) + power;
  largest = or_larger(largest, value, j, d_v_);
  if (std::isnan(largest)) largest = std::numeric_limits<double>::infinity();
}

template <class Real>
void RecurrentAttention<Real>::fold(Index u, const StepScratch& s) {
  const LowRankUnit& unit = units_[static_cast<std::size_t>(u)];
  const CarriedState<Real> to = carried(u);
  const MonomialSet& set = *unit.monomials;
  const ValueLayout<Real> layout(d_v_);
  Real* y = recent_columns_.data() + u * kBlock * d_;
  const Real* values = recent_values_.data() + u * kBlock * value_stride();
  // The state is raised to the level of its heaviest token, and so are the tokens.
  const RecentGates& gates = recent_gates_[static_cast<std::size_t>(u)];
  double shrink = 1, factor = 1, gate_error = 0;
  std::fill_n(s.ones, kBlock, Real{1});
  if (gated_) {
    double& level = *to.level;
    gate_error = gates.rounding(level);
    const bool keeps = gates.sees_state() && tokens_in_state() > 0;
    const double heaviest = keeps ? std::max(level, gates.top()) : gates.top();
    shrink = keeps ? decay(level, heaviest) : 0;
    factor = decay(gates.top(), heaviest);
    for (Index j = 0; j < kBlock; ++j)
      s.ones[j] = j < gates.first() ? Real{0} : static_cast<Real>(decay(gates.level(j), gates.top()));
    level = heaviest + gates.sum();
  }
  if (layout.group > 1) {
    std::fill_n(s.values, kBlock / layout.group * layout.stride, Real{0});
    for (Index j = 0; j < kBlock; ++j)
      for (Index c = 0; c < d_v_; ++c)
        s.values[j / layout.group * layout.stride + c * layout.group + j % layout.group] =
            values[j * value_stride() + c];
  }
  const KeyBlocks<Real> keys{.count = kBlock,
                             .variables = d_,
                             .d_v = d_v_,
                             .layout = layout,
                             .y = y,
                             .weight = s.ones,
                             .values = layout.group > 1 ? s.values : values};
  const std::span<const double> coefficients = unit.coefficients;
  if (shrink != 1)
    for (Index e = 0; e < rank() * channels(); ++e) to.state[e] = shrink == 0 ? 0 : to.state[e] * shrink;
  add_keys(
      set, coefficients, keys, {0, 1}, {0, set.rank()}, s.features_of_keys, [&](Index) { return factor; },
      to.state);
  round_state(set, channels(), {0, set.rank()}, to.state, to.rounded, s.squares);

  double *errors = to.errors, *held = errors + degrees(), *spill = held + degrees();
  key_sizes(set.degree(), d_, y, s.ones, s.sizes, gated_ ? kLeastWeight : 0);
  for (Index p = 0; p < degrees(); ++p) {
    const double lost =
        (6 * kUnitRoundoff<double> + gate_error) * std::abs(coefficients[static_cast<std::size_t>(p)]);
    held[p] = (shrink == 0 ? 0 : shrink * held[p]) + factor * s.sizes[p];
    spill[p] = (shrink == 0 ? 0 : shrink * spill[p]) + lost * held[p];
  }
  const double weight_error = gated_ ? 2 * kUnitRoundoff<Real> + 3 * gate_error : 0;
  state_errors<Real>(coefficients, set.rank(), channels(), *to.largest_value,
                     row_rounding<Real>(problem_, farthest()), weight_error, held, s.squares, spill, errors);
}

template <class Real>
void RecurrentAttention<Real>::step_state(Index u, const StoredRows& q, const StoredRows& k,
                                          const StoredRows& v, const OutputRows& out, const Gates& given,
                                          const StepScratch& s) {
  const Index together = group(), width = columns(), padded = padded_channels(), count = recent() + 1;
  const RecentGates& gates = recent_gates_[static_cast<std::size_t>(u)];
  append(u, key_head(u), recent(), tokens_, k, v, 0, gates_of(given, u, 0), s);
  std::fill_n(s.queries, d_ * width, Real{0});
  for (Index h = 0; h < together; ++h) {
    q.head(u * together + h).read(0, d_, s.row);
    problem_.rotation.apply(s.table, s.row);
    for (Index c = 0; c < d_; ++c) s.queries[c * width + h] = s.row[c] * static_cast<Real>(problem_.scale);
  }
  const LowRankUnit& unit = units_[static_cast<std::size_t>(u)];
  const CarriedState<Real> state = carried(u);
  const bool far = tokens_in_state() > 0 && gates.sees_state();
  // Sums are in units of the heaviest token's weight.
  double level = 0, of_state = 1, of_recent = 1, gate_error = 0;
  if (gated_) {
    level = far ? std::max(*state.level, gates.top()) : gates.top();
    if (!std::isfinite(level)) level = 0;
    of_state = decay(*state.level, level);
    of_recent = decay(gates.top(), level);
    gate_error = gates.rounding(*state.level);
  }
  std::fill_n(s.sums, together * padded, 0.0);
  if (far) add_state(u, s);
  if (far && of_state != 1)
    for (Index i = 0; i < together * padded; ++i) s.sums[i] = of_state == 0 ? 0 : of_state * s.sums[i];

  const double* sizes = recent_sizes_.data() + (u * (kBlock + 1) + count) * degrees();
  for (Index p = 0; p < degrees(); ++p) s.sizes[p] = of_recent * sizes[p];
  const double largest_value = *state.largest_value, unit_of_sums = level + gates.sum();
  add_recent(u, {gates.first(), count}, level, s);
  for (Index h = 0; h < together; ++h) {
    const double* sums = s.sums + h * padded;
    const double sum = sums[d_v_];
    const double inverse = problem_.normaliser.template inverse<Real>(sum, unit_of_sums);
    double largest = 0;
    for (Index c = 0; c < d_v_; ++c) largest = or_larger(largest, std::abs(sums[c] * inverse));
    out.write<Real>(u * together + h, 0, sums, inverse, d_v_);
    const StoredHead q_head = q.head(u * together + h);
    const double query = query_factor(problem_) * row_length<Real>(q_head, 0, d_);
    double error = 0;
    if (far) {
      const double norm = query * (1 + rounding_.entry());  // of the rounded row
      for (Index p = degrees() - 1; p >= 0; --p) error = error * norm + state.errors[p];
      error += underflow_error<Real>(unit.coefficients, rank(), d_, largest_value, state.errors + degrees(),
                                     norm, gated_);
      error = of_state == 0 ? 0 : of_state * error;
    }
    error += rounding_.error(query, s.sizes, largest_value, error, sum, 2 * gate_error);
    const Normaliser& normaliser = problem_.normaliser;
    const double n = normaliser.denominator(sum, unit_of_sums);
    const bool certain = normaliser.kind() == Normaliser::Kind::none ||
                         (normaliser.kind() == Normaliser::Kind::at_least && std::abs(sum) + error <= n);
    if (n != sum && largest_value > 0)
      error += gate_error * std::abs(n) * std::max(1.0, largest / largest_value);
    row_bounds_[at(u * together + h, 1)] =
        row_bound<Real>(error, n, largest, largest_value, *out.type, certain) + approximation_;
  }
  if (radius_ < std::numeric_limits<double>::infinity())
    longest_key_[at(u, 1)] = std::max(longest_key_[at(u, 1)], row_length<Real>(k.head(key_head(u)), 0, d_));
  if (count == kBlock) fold(u, s);
}

}  // namespace fastrope::inline FASTROPE_TARGET
