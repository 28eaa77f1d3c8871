// States over ranks: the polynomial path of a sequence that is spread over MPI ranks.
//
//     T_r [rank, d_v + 1]  the state of rank r's keys (polynomial/state.hpp)
//     all rows see all keys:  S = sum of all T                 one reduction
//     causal:                 S = sum of the T of ranks before one scan; rows go on from it with their own
//     keys
// States have a size that does not depend on how many keys they are of, so what is sent does not either:
// r (d_v + 1) numbers for each unit, and a few for its errors.
//
// Rounding. S is a sum of P states in double, in any order: with |T_r(alpha)| <= |c_alpha| sum_j w_j
// |y_j^alpha| |v_j| over rank r's keys, and the sizes M_p of rounding.hpp added up over ranks, a row's terms
// of degree p are off by at most (P - 1) u_d |c_p| M_p |x|^p, first order, in the numerator over max|V| and
// in the denominator each: what a fold adds to `spill`. (kHigherOrder P in the place of P - 1 covers the
// rest.) Keys' errors and spills of the ranks add up, M_p too; B_p is that of S itself. So each row is judged
// by a bound of the same proof as in one process.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/exact/packing.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/mpi/ranks.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/polynomial/state.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// The states of some units: at first of no keys.
template <class Real>
class RankStates {
 public:
  /// largest_values: at least max|V| of each unit's keys.
  RankStates(std::span<const LowRankUnit> units, std::span<const double> largest_values, Index d_v)
      : units_(units),
        channels_(d_v + 1),
        largest_values_(largest_values.begin(), largest_values.end()),
        levels_(units.size()) {
    Index size = 0, rounded = 0;
    for (const LowRankUnit& unit : units) {
      size += state_size(unit) + 3 * degrees(unit);
      rounded += state_size(unit);
    }
    numbers_.resize(static_cast<std::size_t>(size));
    rounded_.resize(static_cast<std::size_t>(rounded));
  }

  /// Views of them, in order.
  std::vector<CarriedState<Real>> carried() {
    std::vector<CarriedState<Real>> all;
    double* numbers = numbers_.data();
    Real* rounded = rounded_.data();
    for (std::size_t u = 0; u < units_.size(); ++u) {
      const Index size = state_size(units_[u]);
      all.push_back({.state = numbers,
                     .rounded = rounded,
                     .errors = numbers + size,
                     .largest_value = &largest_values_[u],
                     .level = &levels_[u]});
      numbers += size + 3 * degrees(units_[u]);
      rounded += size;
    }
    return all;
  }

  /// Each becomes that of the keys of all ranks, or of the ranks before this one; collective.
  void add_up(const Ranks& ranks, bool of_all) {
    if (of_all)
      ranks.sum(numbers_);
    else
      ranks.sum_before(numbers_);
    const std::vector<CarriedState<Real>> all = carried();
    ranks.agree([&] {
      for (std::size_t u = 0; u < units_.size(); ++u) find_errors(units_[u], all[u], ranks.count());
    });
  }

 private:
  Index state_size(const LowRankUnit& unit) const { return unit.monomials->rank() * channels_; }
  static Index degrees(const LowRankUnit& unit) { return unit.monomials->degree() + 1; }

  /// The rounded copy of a state and what sums over it are off by.
  void find_errors(const LowRankUnit& unit, const CarriedState<Real>& of, int ranks) const {
    const Index count = degrees(unit), rank = unit.monomials->rank();
    double *held = of.errors + count, *spill = held + count;
    const auto coefficients = std::span(unit.coefficients).first(static_cast<std::size_t>(count));
    for (Index p = 0; p < count; ++p)
      spill[p] += kHigherOrder * ranks * kUnitRoundoff<double> *
                  std::abs(coefficients[static_cast<std::size_t>(p)]) * held[p];
    std::vector<double> squares(static_cast<std::size_t>(count * channels_));
    round_state(*unit.monomials, channels_, {0, rank}, of.state, of.rounded, squares.data());
    state_errors<Real>(coefficients, rank, channels_, *of.largest_value, unit.entry_error, 0, held,
                       squares.data(), spill, of.errors);
  }

  std::span<const LowRankUnit> units_;
  Index channels_;
  std::vector<double> largest_values_, levels_;
  std::vector<double> numbers_ = {};  // of each unit: its state, then its errors
  std::vector<Real> rounded_ = {};
};

/// The units of a call as one rank runs them, and its rows.
template <class Real>
struct RankUnits {
  std::vector<LowRankUnit> units = {};             ///< with the chunks of this rank's rows
  std::vector<std::vector<Real>> key_shifts = {};  ///< [kv_heads]: taken out when keys are packed
  std::vector<double> largest_values = {};         ///< [units]: max|V| of all ranks
  bool of_all =
      true;  ///< whether all rows see all keys; else those of the ranks before and some of their own
};

/// Runs units over the keys of a problem, from the states of others on.
template <class Real>
void run_units(const Problem& problem, const RankUnits<Real>& all, std::span<const LowRankUnit> units,
               RankStates<Real>& states, bool begun, bool* unvouched, const ExactTensors<Real>& x) {
  const std::vector<CarriedState<Real>> carried = states.carried();
  const auto parts = [&](Workspace& workspace, auto&& use) {
    PackedKeys<Real> packed(problem, workspace, all.key_shifts);
    ExactAttention<Real> exact(problem, packed, workspace);
    const PolynomialAttention<Real> polynomial(problem, units, workspace, carried, begun, unvouched);
    use(packed, exact, polynomial);
  };
  const std::size_t bytes =
      Workspace::bytes_of([&](Workspace& workspace) { parts(workspace, [](auto&...) {}); });
  const auto memory = std::make_unique_for_overwrite<std::byte[]>(bytes);
  Workspace workspace(std::span(memory.get(), bytes));
  parts(workspace, [&](PackedKeys<Real>& packed, ExactAttention<Real>& exact, const auto& polynomial) {
    packed.pack(problem, x.k, x.v);
    exact.prepare(problem);
    polynomial.run(problem, packed, exact, x.q, x.out);
  });
}

/// The units' heads of x.out; collective. keys: the problem of this rank's keys and no queries; rows: of its
/// queries, and of its keys too where rows see but some keys. unvouched: [heads, n_q], becomes whether the
/// sums of a row of these heads cannot be vouched for, whose result is then to be computed in another way.
/// Throws Error, the same on every rank, where it fails on one.
template <class Real>
void attend_by_states(const Ranks& ranks, const Problem& keys, const Problem& rows,
                      const RankUnits<Real>& all, const ExactTensors<Real>& x, bool* unvouched) {
  std::unique_ptr<RankStates<Real>> states;
  ranks.agree([&] {
    states = std::make_unique<RankStates<Real>>(all.units, all.largest_values, keys.shapes.d_v);
    // Nobody waits for the keys of the last rank, if only rows after them do.
    const bool asked_for = all.of_all || ranks.rank() + 1 < ranks.count();
    if (keys.shapes.n_k == 0 || !asked_for) return;
    std::vector<LowRankUnit> units = all.units;
    for (LowRankUnit& unit : units) unit.chunks = {{{0, 0}, keys.shapes.n_k}};
    run_units<Real>(keys, all, units, *states, /*begun=*/false, nullptr, x);
  });
  states->add_up(ranks, all.of_all);
  ranks.agree([&] {
    if (rows.shapes.n_q > 0) run_units<Real>(rows, all, all.units, *states, /*begun=*/true, unvouched, x);
  });
}

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
