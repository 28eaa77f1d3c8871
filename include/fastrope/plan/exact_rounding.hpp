// Rounding of exact attention: how far the exact path's output is from exact arithmetic, proved from the
// sizes of the rows, before anything runs.
//
// u is the unit roundoff, L = |scale| max|q| max|k| the largest size of a logit's terms (Cauchy-Schwarz), k'
// = k - mu the keys as packed, L' = |scale| max|q| max|k'|. To first order (kHigherOrder covers the rest):
//   Logits. Turning a row rounds it by 4 u of its length: table entries by u, sqrt(2) u for the pair, a
//   product, a
//     multiply-add; the table's own error e (Rotation) moves it by 2 e. The scale is rounded, and multiplied
//     by: 2 u. A conversion from double and the shift of keys: u each. A sum of d products takes k_d
//     roundings of each term (no more by integers: integer_rows.hpp). Taking out the row's maximum rounds by
//     u (2 L' + 1). tanh is taken to be within 4 units in the last place: 8 u of the softcap. A bias is
//     rounded, added and shifted (gates alike): u (3 B + L') where B bounds the biases, without their
//     reference, of keys that matter: the largest of a row is at least -T, and keys whose bias is lower by 2
//     L' + ln n_k + m hold at most e^-m of the row's weight. In all a logit is off by at most Delta.
//   Weights. Each is off by the factor 1 + f, |f| <= delta = (1 + eps_e) e^Delta - 1 (eps_e: exp2.hpp), which
//   moves the
//     output by at most 2 delta / (1 + sqrt(1 - delta^2)) value_spread max|V| (certificate.hpp).
//   Sums. Products of weights and values take k_N roundings: chains of kChain keys, their sums over a
//   stretch, a fold
//     into double; weights k_D: lanes over a run, a stretch, the lanes, a fold. With the division and the
//     result's rounding to Real they move the output by at most (k_N + k_D + 3) u max|V|, whatever n_k; folds
//     into double add their number times 2^-52.
// Products of bfloat16 (u_b = 2^-8) round turned rows to it, which is 2 u_b L more for Delta, and weights
// before they are summed and multiplied: delta grows by u_b. An instruction is taken to round twice for a
// pair. Underflow adds n_k 2^-100 max|V| at most where max|V| is a normal number above 2^-20, rounding to
// nearest assumed.
#pragma once

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/chains.hpp"
#include "fastrope/exact/gate_sums.hpp"
#include "fastrope/plan/certificate.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// T of a head: at least what a row's largest lag bias is below the head's, which is taken out. Cost: O(n_q)
/// for a slope, O(n_q + n_k) for a table; O(n_q n_k) for a table of a wide range with explicit positions.
inline double lowest_row_bias(const Problem& problem, Index head) {
  constexpr double kNarrow = 32;  // a table's whole range does
  const LagGrid& grid = problem.grid;
  const LagGrid::Lags lags = grid.allowed_lags();
  if (problem.bias.empty() || lags.first > lags.last) return 0;
  const double most = problem.bias.largest(head, lags.first, lags.last);
  double least = most;
  if (problem.bias.is_table()) {
    const double range = most - problem.bias.smallest(head, lags.first, lags.last);
    if (range <= kNarrow) return range;
  }
  if (grid.has_ranges() || !problem.bias.is_table() || !grid.consecutive()) {
    // Of a lag between those of a piece's ends some key is known to be there only where they are consecutive.
    for (Index i = 0; i < grid.n_q(); ++i) {
      const KeySet keys = grid.keys_of(head, i);
      double largest = -std::numeric_limits<double>::infinity();
      keys.for_each(keys.hull(), [&](Range piece) {
        const Position first = grid.lag(i, piece.end - 1), last = grid.lag(i, piece.begin);
        largest = std::max(largest, grid.consecutive()
                                        ? problem.bias.largest(head, first, last)
                                        : std::max(problem.bias(head, first), problem.bias(head, last)));
      });
      if (!keys.empty()) least = std::min(least, largest);
    }
    return most - least;
  }
  // Rows see a range of lags whose ends do not decrease: the lags that may still be the largest, in falling
  // order.
  std::deque<Position> candidates;
  Position next = lags.first;
  for (Index i = 0; i < grid.n_q(); ++i) {
    const Range keys = grid.keys_of(i);
    if (keys.empty()) continue;
    for (; next <= grid.lag(i, keys.begin); ++next) {
      while (!candidates.empty() && problem.bias(head, candidates.back()) <= problem.bias(head, next))
        candidates.pop_back();
      candidates.push_back(next);
    }
    while (candidates.front() < grid.lag(i, keys.end - 1)) candidates.pop_front();
    least = std::min(least, problem.bias(head, candidates.front()));
  }
  return most - least;
}

/// What rounding does to a head's exact attention, for logits of any size.
struct ExactRoundingModel {
  double of_packed = 0;  ///< delta grows by it times L',
  double of_plain = 0;   ///< times L
  double of_capped = 0;  ///< and times min(softcap, L')
  double softcap = 0;
  double constant = 0;     ///< of delta, beside that of exponentials,
  double exponential = 0;  ///< which no other rounding multiplies
  double sums = 0;         ///< of the output, over max|V|

  ExactRounding of(const LogitSizes& sizes) const {
    const double delta = of_packed * sizes.packed + of_plain * sizes.plain +
                         of_capped * std::min(softcap, sizes.packed) + constant;
    return {.weights = std::expm1(kHigherOrder * delta + exponential), .sums = sums};
  }
};

/// Of a head with operands of T: float, double, or bfloat16 where hardware multiplies that. Cost: O(1), O(n)
/// for explicit positions or a bias.
template <class T>
ExactRoundingModel exact_rounding(const Problem& problem, Index head) {
  using Real = ArithmeticOf<T>;
  constexpr bool kPairs = std::is_same_v<T, bfloat16>;
  constexpr double u = kUnitRoundoff<Real>;
  const Shapes& s = problem.shapes;
  const auto [products, values, ones] = exact_chains<T>(problem);

  const double turns = problem.rotates() ? 4 : 0;
  ExactRoundingModel model{
      .of_packed = u * (static_cast<double>(products) + turns + 6),
      .of_plain = u * (turns + 1),
      .of_capped = problem.softcap > 0 ? 8 * u : 0,
      .softcap = problem.softcap,
      .constant = u,
      .exponential = (std::is_same_v<Real, float> ? 3.5e-7 : 4e-16) + (kPairs ? 0x1p-8 : 0)};
  if (problem.rotates()) model.of_plain += 4 * problem.rotation.phase_error(problem.farthest_turn());
  if (kPairs && problem.rotates()) model.of_plain += 2 * 0x1p-8;
  double neglected = 0;
  if (!problem.bias.empty() || problem.dense_bias.data != nullptr || problem.gates.given()) {
    const double margin = 4 - std::log(u);
    neglected = 4 * std::exp(-margin);
    // Of a row's dense biases, and of its gates, the largest is taken out.
    const double lowest =
        problem.dense_bias.data != nullptr || problem.gates.given() ? 0 : lowest_row_bias(problem, head);
    if (const Index rows = problem.gates.rows(s.heads, s.kv_heads); rows > 0)
      model.constant += gate_rounding(problem.gates.size(head * rows / s.heads, rows, s.n_k, 0));
    // A slope times a lag is rounded, in double, before anything is taken out of it.
    if (const LagGrid::Lags lags = problem.grid.allowed_lags();
        !problem.bias.empty() && !problem.bias.is_table())
      model.constant +=
          4 * kUnitRoundoff<double> *
          std::max(std::abs(problem.bias(head, lags.first)), std::abs(problem.bias(head, lags.last)));
    model.constant += 3 * u * (lowest + std::log(static_cast<double>(std::max<Index>(s.n_k, 1))) + margin);
    model.of_packed += 7 * u;
  }
  const double folds = static_cast<double>(ceil_div(s.n_k, kStretch) + 1);
  model.sums = kHigherOrder * u * static_cast<double>(values + ones + 3) + folds * 0x1p-51 + neglected +
               static_cast<double>(s.n_k) * 0x1p-100;
  return model;
}

}  // namespace fastrope::inline FASTROPE_TARGET
