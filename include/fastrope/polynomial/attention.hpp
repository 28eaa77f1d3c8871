// The polynomial path: attention of bounded entries in linear time.
//
// With P(x) close to exp(x), the keys enter a row's sums only through the state of their features
// (state.hpp). Rows are taken in chunks: keys whose weights separate for every row of a chunk are in the
// state, its far field, and the rest, the near field, is exact: the far sums are a softmax state that the
// exact path continues. Without a mask there is one chunk, and nothing near. Query heads that share a key
// head may share its state.
//
//     for each chunk:  state += its keys' features x [values, 1]      tasks: some features
//                      rows = query features x state, then near keys  tasks: some rows
// A factor e^(level - slope lag) of far pairs separates too: with a key position `anchor` that follows the
// chunks, e^(-slope (anchor - j)) weighs the keys, whose state shrinks as the anchor moves (a recurrence),
// and e^(level - slope (i - anchor)) the rows. Keys that leave a window are subtracted. Where keys behind the
// rows have a factor of their own, a first sweep takes them, from the last chunk to the first.
//
// Cost 2 (n_q + n_k) r (d_v + 2) flops and the near field's; never n x r in memory: each worker holds a state
// [r, d_v + 1] and the projected keys of its unit, [n_k, d + 1]. No sum depends on how tasks are spread.
//
// Guarantee: certificate.hpp; the near field's error is 0.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/polynomial/projection.hpp"
#include "fastrope/polynomial/state.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Query heads of one key/value head that the approximate paths compute from the same features.
struct LowRankUnit {
  Range heads;
  Projection projection;
  std::vector<double> coefficients;  ///< of P
  std::shared_ptr<const MonomialSet> monomials;
  std::vector<FarPairs> chunks;  ///< all rows in order; first, far and later's ends nondecreasing
  FarFactor factor = {};         ///< of the keys [first, far)
  FarFactor later_factor = {};

  bool has_later() const {
    return std::any_of(chunks.begin(), chunks.end(), [](const FarPairs& c) { return !c.later.empty(); });
  }
};

/// Attention by features for some units over packed keys.
template <class Real>
class PolynomialAttention {
 public:
  /// carried: the states of tokens before these, [units, rank, d_v + 1], to which these are added; `begun` if
  /// there were any. Then all units have one rank. Null: every state begins with these keys.
  PolynomialAttention(const Problem& problem, std::span<const LowRankUnit> units, Workspace& workspace,
                      Real* carried = nullptr, bool begun = false)
      : units_(units), carried_(carried), begun_(begun) {
    if (units.empty()) return;
    for (const LowRankUnit& unit : units) {
      rank_ = std::max(rank_, unit.monomials->rank());
      degree_ = std::max<Index>(degree_, unit.monomials->degree());
      variables_ = std::max(variables_, unit.monomials->variables());
      if (unit.has_later()) stored_rows_ = std::max(stored_rows_, unit.heads.size() * problem.shapes.n_q);
    }
    const Index workers = problem.executor.workers();
    scratch_ = WorkerScratch(workers, workspace, [&](Workspace& share) { scratch(problem, share); });
    const Index states = std::min(workers, static_cast<Index>(units.size()));
    states_ = WorkerScratch(states, workspace, [&](Workspace& share) { unit_memory(problem, share); });
  }

  /// out: [heads, n_q, d_v]. Writes the heads of all units.
  template <class Q, class Out>
  void run(const Problem& problem, const PackedKeys<Real>& packed, const ExactAttention<Real>& exact,
           TensorView<const Q> q, TensorView<Out> out) const {
    const Index units = static_cast<Index>(units_.size()), workers = problem.executor.workers();
    const auto run_unit = [&](Index u, const Team& team, Index state) {
      Workspace share = states_.of(state);
      UnitMemory memory = unit_memory(problem, share);
      if (carried_) memory.state = carried_ + u * rank_ * (problem.shapes.d_v + 1);
      const LowRankUnit& unit = units_[static_cast<std::size_t>(u)];
      project(problem, packed, unit, team, memory);
      if (unit.has_later()) sweep<true>(problem, packed, exact, unit, team, memory, q, out);
      sweep<false>(problem, packed, exact, unit, team, memory, q, out);
    };
    // As long as there is a unit for each worker they need not wait for each other; the last ones are shared.
    const Index whole = round_down(units, workers);
    problem.executor.parallel_for(whole, [&](Index u, Index worker) {
      run_unit(u, {nullptr, worker}, worker);
    });
    for (Index u = whole; u < units; ++u) run_unit(u, {&problem.executor, 0}, 0);
  }

 private:
  static constexpr Index kTile = QueryBlock<Real>::kTileRows;
  static constexpr Index kWidth = kKeyBlock<Real>;

  /// Who runs the tasks of a unit: the executor's workers, or one of them.
  struct Team {
    const Executor* executor;
    Index worker;

    Index size() const { return executor ? executor->workers() : 1; }
    void parallel_for(Index count, TaskRef task) const {
      if (executor) return executor->parallel_for(count, task);
      for (Index t = 0; t < count; ++t) task(t, worker);
    }
  };

  /// What a unit holds from its first chunk to its last.
  struct UnitMemory {
    Real* y;                   // [blocks of keys, variables, kWidth]
    Real* weight;              // [blocks of keys, kWidth]
    Real* scaled;              // [blocks of keys, kWidth]: weights as they enter or leave the state
    Real* values;              // [keys / group, stride] where keys share vectors (ValueLayout)
    Real* state;               // [rank, d_v + 1]
    SoftmaxRows<Real> stored;  // [heads, n_q] where there is a first sweep: its sums
  };

  UnitMemory unit_memory(const Problem& problem, Workspace& share) const {
    const Index keys = round_up(problem.shapes.n_k, kWidth), d_v = problem.shapes.d_v;
    const ValueLayout<Real> layout(d_v);
    return {.y = share.take<Real>(keys * variables_).data(),
            .weight = share.take<Real>(keys).data(),
            .scaled = share.take<Real>(keys).data(),
            .values = share.take<Real>(layout.group > 1 ? keys / layout.group * layout.stride : 0).data(),
            .state = share.take<Real>(carried_ ? 0 : rank_ * (d_v + 1)).data(),
            .stored = SoftmaxRows<Real>(stored_rows_, round_up(d_v, simd::kLanes<Real>), share)};
  }

  FeatureScratch<Real> scratch(const Problem& problem, Workspace& share) const {
    return {problem.shapes.d, variables_, degree_, problem.shapes.d_v, share};
  }

  /// Projects all keys that are far from some row.
  void project(const Problem& problem, const PackedKeys<Real>& packed, const LowRankUnit& unit,
               const Team& team, const UnitMemory& memory) const {
    Index reach = carried_ ? problem.shapes.n_k : 0;
    for (const FarPairs& chunk : unit.chunks) reach = std::max(reach, chunk.reach());
    team.parallel_for(ceil_div(reach, kWidth), [&](Index b, Index worker) {
      project_block(problem, packed, unit, problem.kv_head(unit.heads.begin), b, worker, memory);
    });
  }

  /// The chunks in order, with the keys [first, far), after which their rows are done; or before that, from
  /// the last to the first, with the later keys, whose sums are stored.
  template <bool kLater, class Q, class Out>
  void sweep(const Problem& problem, const PackedKeys<Real>& packed, const ExactAttention<Real>& exact,
             const LowRankUnit& unit, const Team& team, const UnitMemory& memory, TensorView<const Q> q,
             TensorView<Out> out) const {
    State state{.factor = kLater ? unit.later_factor : unit.factor,
                .keys = key_blocks(problem, packed, unit, memory, problem.kv_head(unit.heads.begin))};
    if (!carried_) std::fill_n(memory.state, rank_ * (problem.shapes.d_v + 1), Real{0});
    const Index count = std::ssize(unit.chunks);
    for (Index c = 0; c < count; ++c) {
      const FarPairs& chunk = unit.chunks[static_cast<std::size_t>(kLater ? count - 1 - c : c)];
      const Range far = kLater ? chunk.later : Range{chunk.first, chunk.far};
      move_state(problem, unit, team, memory, far, kLater ? far.begin : far.end - 1, state);
      const Index tiles = ceil_div(chunk.rows.size(), kTile) * unit.heads.size();
      const Index rows =
          kTile * std::clamp<Index>(tiles / (8 * team.size()), 1, QueryBlock<Real>::kRows / kTile);
      const Index tasks = ceil_div(chunk.rows.size(), rows);
      team.parallel_for(unit.heads.size() * tasks, [&](Index t, Index worker) {
        const Index h = unit.heads.begin + t / tasks, begin = chunk.rows.begin + t % tasks * rows;
        const Range some{begin, std::min(begin + rows, chunk.rows.end)};
        QueryBlock<Real> block = exact.block(problem, packed, worker);
        block.start(problem, packed, h, q.head(h), some);
        if (!far.empty() || begun_) far_field(problem, unit, memory.state, state, some, worker, block);
        const Index stored = t / tasks * problem.shapes.n_q + begin;
        if constexpr (kLater) {
          memory.stored.from(stored).clear(some.size());
          for (Index i = 0; i < some.size(); ++i) memory.stored.absorb(stored + i, block.state(), i);
        } else {
          if (unit.has_later())
            for (Index i = 0; i < some.size(); ++i) block.state().absorb(i, memory.stored, stored + i);
          const Index n_k = problem.shapes.n_k;
          const Range later = chunk.later.empty() ? Range{n_k, n_k} : chunk.later;
          for (const Range near :
               {Range{0, chunk.first}, Range{chunk.far, later.begin}, Range{later.end, n_k}})
            block.attend(problem, packed, exact.scores(), near);
          block.write(problem, out.head(h), static_cast<Real*>(nullptr));
        }
      });
    }
    // What tokens after these will need.
    if (carried_) move_state(problem, unit, team, memory, {0, problem.shapes.n_k}, 0, state);
  }

  /// The keys that are in a state, and how they are weighed.
  struct State {
    FarFactor factor;
    KeyBlocks<Real> keys;
    StateWindow window = {};
    Index anchor = 0;
  };

  /// Makes the state that of the keys `far`, the nearest of which is `nearest`.
  void move_state(const Problem& problem, const LowRankUnit& unit, const Team& team, const UnitMemory& memory,
                  Range far, Index nearest, State& state) const {
    if (far.empty()) return;
    constexpr double kMostDecay = 8;
    const Index size = unit.monomials->rank() * (problem.shapes.d_v + 1);
    const StateChange change = state.window.move_to(far);
    if (change.restart) {
      if (!carried_) std::fill_n(memory.state, size, Real{0});
      state.anchor = nearest;
    }
    if (const double decay = state.factor.slope * static_cast<double>(nearest - state.anchor);
        decay > kMostDecay) {
      const Real shrink = static_cast<Real>(std::exp(-decay));
      for (Index f = 0; f < size; ++f) memory.state[f] *= shrink;
      state.anchor = nearest;
    }
    add_blocks(problem, unit, team, memory, change.remove, -1, state);
    add_blocks(problem, unit, team, memory, change.add, 1, state);
  }

  /// Adds `sign` times some keys to a state, some terms a task.
  void add_blocks(const Problem& problem, const LowRankUnit& unit, const Team& team, const UnitMemory& memory,
                  Range far, double sign, const State& state) const {
    if (far.empty()) return;
    const Range blocks{far.begin / kWidth, ceil_div(far.end, kWidth)};
    KeyBlocks<Real> keys = state.keys;
    if (const double slope = state.factor.slope; slope != 0 || sign < 0) {
      keys.weight = memory.scaled;
      // From a block's greatest factor on, as the least may underflow; what is behind the last key weighs 0.
      const double shrink = std::exp(-std::abs(slope));
      for (Index b = blocks.begin * kWidth; b < blocks.end * kWidth; b += kWidth) {
        const Index end = std::min(b + kWidth, far.end), greatest = slope > 0 ? end - 1 : b;
        double factor = sign * std::exp(slope * static_cast<double>(greatest - state.anchor));
        for (Index k = 0; k < end - b; ++k, factor *= shrink) {
          const Index j = slope > 0 ? greatest - k : greatest + k;
          memory.scaled[j] = memory.weight[j] * static_cast<Real>(factor);
        }
        std::fill(memory.scaled + end, memory.scaled + b + kWidth, Real{0});
      }
    }
    const Index rank = unit.monomials->rank();
    const Index terms = kFeatureBlock * std::max<Index>(1, rank / (kFeatureBlock * 16 * team.size()));
    team.parallel_for(ceil_div(rank, terms), [&](Index t, Index worker) {
      Workspace share = scratch_.of(worker);
      add_keys(*unit.monomials, unit.coefficients, keys, blocks, {t * terms, std::min((t + 1) * terms, rank)},
               scratch(problem, share), memory.state);
    });
  }

  KeyBlocks<Real> key_blocks(const Problem& problem, const PackedKeys<Real>& packed, const LowRankUnit& unit,
                             const UnitMemory& memory, Index kv) const {
    const ValueLayout<Real> layout(problem.shapes.d_v);
    return {.count = round_up(problem.shapes.n_k, PackedKeys<Real>::kWidth),
            .variables = unit.monomials->variables(),
            .d_v = problem.shapes.d_v,
            .layout = layout,
            .y = memory.y,
            .weight = memory.weight,
            .values = layout.group > 1 ? memory.values : packed.values(kv)};
  }

  /// Projects a block of keys and lays out its values, if keys share vectors.
  void project_block(const Problem& problem, const PackedKeys<Real>& packed, const LowRankUnit& unit,
                     Index kv, Index b, Index worker, const UnitMemory& memory) const {
    constexpr Index kPanel = PackedKeys<Real>::kWidth;
    const Index d = problem.shapes.d, d_v = problem.shapes.d_v, n_k = problem.shapes.n_k;
    Workspace share = scratch_.of(worker);
    const FeatureScratch<Real> s = scratch(problem, share);
    Real* y = memory.y + b * kWidth * unit.monomials->variables();
    for (Index j = b * kWidth; j < (b + 1) * kWidth; j += kPanel) {
      const Index at = j - b * kWidth;
      const Index count = std::clamp<Index>(n_k - j, 0, kPanel);
      if (count > 0)
        std::copy_n(packed.panel(kv, j / kPanel), d * kPanel, s.shifted);
      else
        std::fill_n(s.shifted, d * kPanel, Real{0});
      project_keys(unit.projection, problem.scale, kPanel, count, s.shifted, y + at, kWidth,
                   memory.weight + b * kWidth + at);
    }
    const auto [group, stride] = ValueLayout<Real>(d_v);
    if (group == 1) return;
    Real* values = memory.values + b * kWidth / group * stride;
    std::fill_n(values, kWidth / group * stride, Real{0});
    for (Index j = 0; j < std::min(kWidth, n_k - b * kWidth); ++j)
      for (Index c = 0; c < d_v; ++c)
        values[j / group * stride + c * group + j % group] = packed.values(kv, b * kWidth + j)[c];
  }

  /// The sums over a state of some rows become their softmax states.
  void far_field(const Problem& problem, const LowRankUnit& unit, const Real* sums, const State& state,
                 Range rows, Index worker, const QueryBlock<Real>& block) const {
    constexpr Index kRows = kQueryBlock<Real>;
    static_assert(kTile % kRows == 0 && kRows % simd::kLanes<Real> == 0);
    Workspace share = scratch_.of(worker);
    const FeatureScratch<Real> s = scratch(problem, share);
    const Index d_v = problem.shapes.d_v;
    for (Index r = 0; r < rows.size(); r += kRows) {
      const SoftmaxRows<Real> some = block.state().from(r);
      project_queries(unit.projection, problem.scale, problem.kernel.is_softmax() ? kLog2E : 1.0, kRows,
                      block.queries(r), kTile, s.shifted, s.x, some.maximum);
      if (const auto [level, slope] = state.factor; level != 0 || slope != 0)
        for (Index i = 0; i < kRows; ++i)
          some.maximum[i] += static_cast<Real>(
              kLog2E * (level - slope * static_cast<double>(rows.begin + r + i + problem.grid.offset() -
                                                            state.anchor)));
      apply_state(*unit.monomials, d_v, sums, s.x, s.ancestors, s.sums);
      for (Index i = 0; i < kRows; ++i) some.add_to_sum(i, s.sums[d_v * kRows + i]);
      constexpr Index kBlockRows = simd::kBlockRows<Real>;
      for (Index c = 0; c < d_v; c += kBlockRows)
        for (Index i = 0; i < kRows; i += simd::kLanes<Real>)
          simd::transpose_block(s.sums + c * kRows + i, kRows, some.row(i) + c, some.width);
    }
  }

  std::span<const LowRankUnit> units_;
  Real* carried_;
  bool begun_;
  Index rank_ = 0, degree_ = 0, variables_ = 0;  // the largest of any unit
  Index stored_rows_ = 0;
  WorkerScratch scratch_;
  WorkerScratch states_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
