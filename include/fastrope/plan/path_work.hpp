// The work of each path, counted from shapes, masks and ranks.
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <span>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/exact/decode_rows.hpp"
#include "fastrope/plan/work.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/polynomial/state.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/toeplitz/attention.hpp"
#include "fastrope/toeplitz/segments.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Elements that are read as fast as one is packed.
inline constexpr double kStreamed = 8;

/// What a lag bias, or gates, add to the weighing of a score.
inline constexpr double kBiased = 0.4;

/// Rotating and packing the queries of `heads` query heads, and their share of a group's keys and values.
inline Work packing_work(const Problem& problem, Index heads) {
  const Shapes& s = problem.shapes;
  const double share = static_cast<double>(heads) / static_cast<double>(problem.group());
  return {.element =
              share * static_cast<double>(s.n_k * (s.d + s.d_v)) + static_cast<double>(heads * s.n_q * s.d)};
}

/// Rows that attend to `pairs` keys in all, in exact tiles of packed keys.
template <class Real>
Work tile_work(const Problem& problem, double pairs, double rows) {
  const Shapes& s = problem.shapes;
  constexpr Index kPanel = PackedKeys<Real>::kWidth;
  const double computed = std::min(pairs + rows * static_cast<double>(kPanel),
                                   rows * static_cast<double>(round_up(s.n_k, kPanel)));
  // An entry of general weights takes three flops, at half the tile kernel's rate.
  const Index columns = problem.weights ? 3 * std::ssize(problem.weights->support()) : s.d;
  const Index channels = round_up(s.d_v, simd::kLanes<Real>);
  return {.tile = 2 * computed * static_cast<double>(columns + channels),
          .weigh = (problem.bias.empty() && !problem.gates.given() ? 1 : 1 + kBiased) * computed};
}

/// The exact path of one head. A few rows read keys and values in place.
template <class Real>
Work exact_work(const Problem& problem) {
  const Shapes& s = problem.shapes;
  const double pairs = problem.grid.allowed_pairs();
  const Work work = tile_work<Real>(problem, pairs, static_cast<double>(s.n_q));
  if (!DecodeRows<Real>::suits(problem)) return work + packing_work(problem, 1);
  const double read = pairs * static_cast<double>(s.d + s.d_v) / static_cast<double>(problem.group());
  return work + Work{.element = read / kStreamed};
}

/// Features and states of `heads` query heads that share them, with exact near fields.
template <class Real>
Work polynomial_work(const Problem& problem, double rank, Index heads, std::span<const FarPairs> chunks) {
  const Shapes& s = problem.shapes;
  const double channels = static_cast<double>(s.d_v + 1);
  double keys = 0, rows = 0, near = 0, rounds = 0;
  StateWindow window, later;
  const auto move = [&](StateWindow& state, Range far, Range chunk) {
    if (far.empty()) return;
    const StateChange change = state.move_to(far);
    keys += static_cast<double>(change.add.size() + change.remove.size());
    rows += static_cast<double>(heads * chunk.size());
    rounds += change.remove.empty() ? 2 : 3;
  };
  for (std::size_t c = 0; c < chunks.size(); ++c) {
    const FarPairs &forward = chunks[c], &backward = chunks[chunks.size() - 1 - c];
    move(window, {forward.first, forward.far}, forward.rows);
    move(later, backward.later, backward.rows);
    const Index far = forward.far - forward.first + forward.later.size();
    near +=
        std::max(0.0, problem.grid.pairs_of(forward.rows) - static_cast<double>(forward.rows.size() * far));
  }
  // A block of keys fills vectors with values, of one key or several; one of rows needs no padding.
  const ValueLayout<Real> layout(s.d_v);
  const double columns = static_cast<double>(layout.stride) / static_cast<double>(layout.group);
  const double turns = static_cast<double>(ceil_div(s.d_v + 1, kMostChannels));
  const Work far{.tile = 2 * rank * (keys * columns + rows * channels),
                 .feature = rank * (keys + rows * turns / 4),
                 .element = rank * channels * static_cast<double>(chunks.size()),
                 .round = rounds};
  const Work packed = far + packing_work(problem, heads);
  if (near == 0) return packed;
  return packed +
         tile_work<Real>(problem, near * static_cast<double>(heads), static_cast<double>(heads * s.n_q));
}

/// The Toeplitz path of one head by transforms, without the rows that are done exactly. generators: of them
/// that differ.
template <class Real>
Work toeplitz_work(const Problem& problem, double rank, double generators) {
  const Shapes& s = problem.shapes;
  const double channels = static_cast<double>(s.d_v + 1);
  const double flops = ToeplitzSegments<Real>::flops(s.n_q, s.n_k, allowed_support(problem));
  return packing_work(problem, 1) + Work{.transform = (rank * channels + generators / 2) * flops,
                                         .element = rank * channels / 2 * static_cast<double>(s.n_q + s.n_k)};
}

}  // namespace fastrope::inline FASTROPE_TARGET
