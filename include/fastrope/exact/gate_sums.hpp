// Gate sums: what gates say of pairs of a query and a key, from one number of each.
//
//     log weight of a pair: G_i + level_j,   level_j = b_j - G_j,   G_j = g_0 + .. + g_j
// Sums are compensated, in double: after 10^5 tokens a float sum would be off by 0.04. e^level itself is
// never formed: a reference, the largest level that a row sees, is taken out first, so that every factor is
// at most 1. A reset starts the sums again; rows after it see no key before it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/exp2.hpp"
#include "fastrope/position/key_ranges.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// A row's part of the log weight of its pairs, natural log.
struct GateReference {
  double sum = 0;    ///< G_i
  double level = 0;  ///< the largest level of the keys that it sees; 0 where there is none
};

/// The running sums of one row of gates.
class GateSum {
 public:
  /// Takes the gates of the next token; returns its level. -infinity is a reset.
  double add(double log_gate, double log_input_gate) {
    constexpr double kNone = -std::numeric_limits<double>::infinity();
    resets_ = log_gate == kNone;
    if (resets_) {
      *this = {};
      resets_ = true;
    } else {
      // Knuth's error of a sum.
      const double next = sum_ + log_gate, added = next - sum_;
      carry_ += (sum_ - (next - added)) + (log_gate - added);
      sum_ = next;
    }
    const double level = log_input_gate - sum();
    top_ = std::max(top_, level);
    return level;
  }

  /// G since the last reset.
  double sum() const { return sum_ + carry_; }
  /// The largest level since then.
  double top() const { return top_; }
  /// Whether the token that came last was a reset.
  bool resets() const { return resets_; }

 private:
  double sum_ = 0, carry_ = 0;
  double top_ = -std::numeric_limits<double>::infinity();
  bool resets_ = false;
};

/// e^(from - to), 0 for from = -infinity: how a sum shrinks whose reference rises.
inline double decay(double from, double to) {
  return from == -std::numeric_limits<double>::infinity() ? 0 : std::exp(from - to);
}

/// What rounding adds to the exponent of a pair's factor, for Gates::size = size: that of both sums, of the
/// level and of its difference to the reference, times log2(e).
inline double gate_rounding(double size) { return 10 * 0x1p-53 * size; }

/// Those of a call's keys, in ascending order of position.
class GateSums {
 public:
  /// Beyond the last key, levels of 0: rows are read in whole panels.
  static constexpr Index kPadding = 128;
  static constexpr Index kNoReset = -1;

  GateSums(const Problem& problem, Workspace& workspace)
      : rows_(problem.gates.rows(problem.shapes.heads, problem.shapes.kv_heads)),
        heads_(problem.shapes.heads),
        stride_(round_up(problem.shapes.n_k + 1, kPadding) + kPadding),
        levels_(workspace.take<double>(rows_ * stride_).data()),
        sums_(workspace.take<double>(rows_ * stride_).data()),
        tops_(workspace.take<double>(rows_ * stride_).data()),
        starts_(workspace.take<Index>(rows_ * stride_).data()) {}

  bool empty() const { return rows_ == 0; }
  /// The independent tasks: a row of gates each, O(n_k).
  Index tasks() const { return rows_; }
  void prepare(const Problem& problem, Index row) const {
    const Index n_k = problem.shapes.n_k, at = row * stride_;
    const double slope = problem.gates.slope(row);
    GateSum sum;
    sums_[at] = 0;
    tops_[at] = sum.top();
    starts_[at] = kNoReset;
    for (Index j = 0; j < n_k; ++j) {
      const Index source = problem.grid.source(j);
      double gate = problem.gates.gate(row, rows_, source);
      // One position from what came before the first key, whose gate is between that and all keys.
      if (slope != 0)
        gate -= slope * static_cast<double>(
                            j == 0 ? 1 : problem.grid.key_position(j) - problem.grid.key_position(j - 1));
      levels_[at + j] = sum.add(gate, problem.gates.input_gate(row, rows_, source));
      sums_[at + j + 1] = sum.sum();
      tops_[at + j + 1] = sum.top();
      starts_[at + j + 1] = sum.resets() ? j : starts_[at + j];
    }
    std::fill(levels_ + at + n_k, levels_ + at + stride_, 0.0);
  }

  /// The row of gates of query head h.
  Index row_of(Index h) const { return h * rows_ / heads_; }
  /// [n_k and padding] of a row.
  const double* levels(Index row) const { return levels_ + row * stride_; }
  /// G after the first n keys, the largest level among them, and the first of them that is still seen.
  double sum(Index row, Index n) const { return sums_[row * stride_ + n]; }
  double top(Index row, Index n) const { return tops_[row * stride_ + n]; }
  Index start(Index row, Index n) const { return std::max<Index>(starts_[row * stride_ + n], 0); }
  /// The last of them that is a reset; -1 where there is none.
  Index resets(Index row, Index n) const { return starts_[row * stride_ + n]; }

  /// Of the keys that query i of head h may attend to, those that no reset hides.
  KeySet allowed(const Problem& problem, Index h, Index i) const {
    const KeySet all = problem.grid.keys_of(h, i);
    if (empty()) return all;
    const Range seen =
        intersect(all.hull(), {start(row_of(h), problem.grid.keys_until(i)), problem.shapes.n_k});
    return seen.empty() ? KeySet() : KeySet(seen);
  }
  /// Cost: O(1) for a row that sees all keys before it, else of those that it sees.
  GateReference reference(const Problem& problem, Index h, Index i, const KeySet& allowed) const {
    const Index row = row_of(h), before = problem.grid.keys_until(i);
    GateReference reference{.sum = sum(row, before)};
    if (before > 0)
      reference.sum -= problem.gates.slope(row) * static_cast<double>(problem.grid.lag(i, before - 1));
    if (const Range keys = allowed.hull(); !keys.empty()) {
      const double level = keys.begin <= start(row, keys.end)
                               ? top(row, keys.end)
                               : simd::largest(levels(row) + keys.begin, keys.size());
      if (std::isfinite(level)) reference.level = level;
    }
    return reference;
  }

  /// scores [keys.size()], whole vectors, += log2(e) (level - reference), rounded once.
  template <class Real>
  void add(Index h, Range keys, double reference, Real* scores, Real* scratch) const {
    using namespace simd;
    for_each_vector(h, keys, [&](Index m, Vec<double> level) {
      store_as<Real, double>(mul(sub(level, set(reference)), set(kLog2E)), scratch + m);
    });
    for (Index m = 0; m < keys.size(); m += kLanes<Real>)
      store<Real>(simd::add(load(scores + m), load(scratch + m)), scores + m);
  }
  /// factors [keys.size()], whole vectors, = e^(level - reference), rounded once; at most 1.
  template <class Real>
  void factors(Index h, Range keys, double reference, Real* factors) const {
    using namespace simd;
    for_each_vector(h, keys, [&](Index m, Vec<double> level) {
      const Vec<double> exponent = at_most(mul(sub(level, set(reference)), set(kLog2E)), zero<double>());
      store_as<Real, double>(exp2_nonpositive<double>(exponent), factors + m);
    });
  }

 private:
  template <class Visit>
  void for_each_vector(Index h, Range keys, Visit&& visit) const {
    const double* from = levels(row_of(h)) + keys.begin;
    for (Index m = 0; m < keys.size(); m += simd::kLanes<double>) visit(m, simd::load(from + m));
  }

  Index rows_;
  Index heads_;
  Index stride_;
  double* levels_;  // [rows, stride], of each key
  double* sums_;    // [rows, stride], of the keys before each, as what follows
  double* tops_;
  Index* starts_;  // the last reset, or kNoReset
};

}  // namespace fastrope::inline FASTROPE_TARGET
