// Cost model: predicted seconds of each path on one core, from few measured rates.
//
// Only ratios between paths matter to the choice. The defaults are of a Zen 4 core (AVX-512, 3.7 GHz) and
// float; double takes twice the time.
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/polynomial/state.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/toeplitz/attention.hpp"
#include "fastrope/toeplitz/segments.hpp"

namespace fastrope {

/// Work per second of one core.
struct CostModel {
  double tile = 1.1e11;       ///< flops in the tile kernel
  double weigh = 5.0e9;       ///< scores turned into weights: mask, maximum, exponential, sum
  double feature = 1.4e10;    ///< monomials evaluated, summed and scaled
  double transform = 2.2e10;  ///< flops in Fourier transforms, 2.5 N log2 N each
  double element = 1.0e9;     ///< elements packed, bounded, scaled or accumulated outside of the kernels
  double round = 5.0e-6;      ///< seconds to start a round of tasks and to wait for its end
  double fit = 2.0e-4;        ///< seconds to find and certify the polynomials of one head

  /// What looking at the data costs for each head, and the least that any approximation of it could:
  /// degree 1.
  template <class Real>
  double least_approximate(const Problem& problem) const {
    const Shapes& s = problem.shapes;
    const double group = static_cast<double>(problem.group());
    const double look = static_cast<double>(s.d) *
                        (2 * static_cast<double>(s.n_q) + 2 * static_cast<double>(s.n_k) / group) / element;
    const Index variables = problem.weights ? static_cast<Index>(problem.weights->support().size()) : s.d;
    const double rank = static_cast<double>(variables + 1);
    double path = toeplitz<Real>(problem, rank, 1);
    if (polynomial_refusal(problem).empty())
      path = std::min(path, polynomial<Real>(problem, rank, 1, best_chunks<Real>(problem, rank, 1)));
    else if (!problem.weights)  // lags may separate in tails, of all rows at best
      path = std::min(path, polynomial<Real>(problem, rank, 1, std::vector<FarPairs>{{{0, s.n_q}, s.n_k}}));
    return look + fit + path;
  }

  /// Exact attention of rows that attend to `pairs` keys in all.
  template <class Real>
  double exact(const Problem& problem, double pairs, double rows) const {
    const Shapes& s = problem.shapes;
    constexpr double kPanel = static_cast<double>(PackedKeys<Real>::kWidth);
    const double computed = std::min(pairs + rows * kPanel,
                                     rows * static_cast<double>(round_up(s.n_k, PackedKeys<Real>::kWidth)));
    // An entry of general weights takes three flops, at half the tile kernel's rate.
    const Index columns = problem.weights ? 3 * std::ssize(problem.weights->support()) : s.d;
    const Index channels = round_up(s.d_v, simd::kLanes<Real>);
    return slowdown<Real>() *
           (2 * computed * static_cast<double>(columns + channels) / tile + computed / weigh + packing(s));
  }

  /// Features and states of `heads` query heads that share them, with exact near fields.
  template <class Real>
  double polynomial(const Problem& problem, double rank, Index heads,
                    std::span<const FarPairs> chunks) const {
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
      for (Index i = forward.rows.begin; i < forward.rows.end; ++i)
        near += static_cast<double>(std::max<Index>(problem.grid.keys_of(i).size() - far, 0));
    }
    // A block of keys fills vectors with values, of one key or several; one of rows needs no padding.
    const ValueLayout<Real> layout(s.d_v);
    const double columns = static_cast<double>(layout.stride) / static_cast<double>(layout.group);
    const double turns = static_cast<double>(ceil_div(s.d_v + 1, kMostChannels));
    const double seconds =
        slowdown<Real>() * (rank * keys * (2 * columns / tile + 1 / feature) +
                            rank * rows * (2 * channels / tile + turns / (4 * feature)) +
                            rank * channels * static_cast<double>(chunks.size()) / element) +
        round * rounds;
    if (near > 0)
      return seconds +
             exact<Real>(problem, near * static_cast<double>(heads), static_cast<double>(heads * s.n_q));
    return seconds + slowdown<Real>() * packing(s);
  }

  /// The chunks for which that is cheapest, of make_chunks(rows): of kLeastChunk rows times a power of two.
  static constexpr Index kLeastChunk = 192;
  template <class Real, class MakeChunks>
  std::vector<FarPairs> best_chunks(const Problem& problem, double rank, Index heads,
                                    MakeChunks&& make_chunks) const {
    std::vector<FarPairs> best = make_chunks(kLeastChunk);
    double least = polynomial<Real>(problem, rank, heads, best);
    for (Index rows = 2 * kLeastChunk; best.size() > 1 && rows < 2 * problem.shapes.n_q; rows *= 2) {
      std::vector<FarPairs> chunks = make_chunks(rows);
      const double seconds = polynomial<Real>(problem, rank, heads, chunks);
      if (!(seconds < least)) break;
      least = seconds;
      best = std::move(chunks);
    }
    return best;
  }
  template <class Real>
  std::vector<FarPairs> best_chunks(const Problem& problem, double rank, Index heads) const {
    return best_chunks<Real>(problem, rank, heads,
                             [&](Index rows) { return far_chunks<Real>(problem, rows); });
  }

  /// The Toeplitz path of one head by transforms, without the rows that are done exactly. generators: of them
  /// that differ.
  template <class Real>
  double toeplitz(const Problem& problem, double rank, double generators) const {
    const Shapes& s = problem.shapes;
    const double channels = static_cast<double>(s.d_v + 1);
    const double flops = ToeplitzSegments<Real>::flops(s.n_q, s.n_k, allowed_support(problem));
    const double products = rank * channels + generators / 2;
    const double elements = rank * channels * 2 * static_cast<double>(s.n_q + s.n_k);
    return slowdown<Real>() * (products * flops / transform + elements / (4 * element) + packing(s));
  }

 private:
  template <class Real>
  static constexpr double slowdown() {
    return sizeof(Real) / 4.0;
  }
  double packing(const Shapes& s) const {
    return static_cast<double>(s.n_k * (s.d + s.d_v) + s.n_q * s.d) / element;
  }
};

}  // namespace fastrope
