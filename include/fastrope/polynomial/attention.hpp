// The polynomial path: attention of bounded entries in linear time.
//
// With P(x) close to exp(x), the keys enter a row's sums only through the state of their features
// (state.hpp). Rows are taken in chunks: the keys that every row of a chunk may attend to are in the state,
// its far field, and the rest, the near field, is exact: the far sums are a softmax state that the exact path
// continues. Without a mask there is one chunk, and nothing near. Query heads that share a key head may share
// its state.
//
//     for each chunk:  state += its keys' features x [values, 1]      tasks: some features
//                      rows = query features x state, then near keys  tasks: some rows
// Cost 2 (n_q + n_k) r (d_v + 2) flops and the near field's; never n x r in memory: each worker holds a state
// [r, d_v + 1] and the projected keys of its unit, [n_k, d + 1]. No sum depends on how tasks are spread.
//
// Guarantee: certificate.hpp; the near field's error is 0.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/polynomial/projection.hpp"
#include "fastrope/polynomial/state.hpp"

namespace fastrope {

/// Query heads of one key/value head that the approximate paths compute from the same features.
struct LowRankUnit {
  Range heads;
  Projection projection;
  std::vector<double> coefficients;  ///< of P
  std::shared_ptr<const MonomialSet> monomials;
  std::vector<FarPairs> chunks;  ///< all rows in order, far nondecreasing
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
      if (carried_)
        memory.state = carried_ + u * rank_ * (problem.shapes.d_v + 1);
      else
        std::fill_n(memory.state, rank_ * (problem.shapes.d_v + 1), Real{0});
      run_chunks(problem, packed, exact, units_[static_cast<std::size_t>(u)], team, memory, q, out);
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
    Real* y;       // [blocks of keys, variables, kWidth]
    Real* weight;  // [blocks of keys, kWidth]
    Real* values;  // [keys / group, stride] where keys share vectors (ValueLayout)
    Real* state;   // [rank, d_v + 1]
  };

  UnitMemory unit_memory(const Problem& problem, Workspace& share) const {
    const Index keys = round_up(problem.shapes.n_k, kWidth), d_v = problem.shapes.d_v;
    const ValueLayout<Real> layout(d_v);
    return {share.take<Real>(keys * variables_).data(), share.take<Real>(keys).data(),
            share.take<Real>(layout.group > 1 ? keys / layout.group * layout.stride : 0).data(),
            share.take<Real>(carried_ ? 0 : rank_ * (d_v + 1)).data()};
  }

  FeatureScratch<Real> scratch(const Problem& problem, Workspace& share) const {
    return {problem.shapes.d, variables_, degree_, problem.shapes.d_v, share};
  }

  template <class Q, class Out>
  void run_chunks(const Problem& problem, const PackedKeys<Real>& packed, const ExactAttention<Real>& exact,
                  const LowRankUnit& unit, const Team& team, const UnitMemory& memory, TensorView<const Q> q,
                  TensorView<Out> out) const {
    const Index kv = problem.kv_head(unit.heads.begin);
    const Index far = carried_ ? problem.shapes.n_k : unit.chunks.empty() ? 0 : unit.chunks.back().far;
    const KeyBlocks<Real> keys = key_blocks(problem, packed, unit, memory, kv);
    team.parallel_for(ceil_div(far, kWidth), [&](Index b, Index worker) {
      project_block(problem, packed, unit, kv, b, worker, memory);
    });
    Index blocks = 0;  // in the state
    const auto add_until = [&](Index end) {
      const Range fresh{blocks, ceil_div(end, kWidth)};
      blocks = fresh.end;
      if (!fresh.empty()) add_blocks(problem, unit, keys, fresh, team, memory.state);
    };
    for (const FarPairs& chunk : unit.chunks) {
      add_until(chunk.far);
      const Index tiles = ceil_div(chunk.rows.size(), kTile) * unit.heads.size();
      const Index rows =
          kTile * std::clamp<Index>(tiles / (8 * team.size()), 1, QueryBlock<Real>::kRows / kTile);
      const Index tasks = ceil_div(chunk.rows.size(), rows);
      team.parallel_for(unit.heads.size() * tasks, [&](Index t, Index worker) {
        const Index h = unit.heads.begin + t / tasks, begin = chunk.rows.begin + t % tasks * rows;
        attend(problem, packed, exact, unit, memory.state, chunk.far, h,
               {begin, std::min(begin + rows, chunk.rows.end)}, q.head(h), out.head(h), worker);
      });
    }
    add_until(far);
  }

  /// Adds keys to a state, some terms a task.
  void add_blocks(const Problem& problem, const LowRankUnit& unit, const KeyBlocks<Real>& keys, Range blocks,
                  const Team& team, Real* state) const {
    const Index rank = unit.monomials->rank();
    const Index terms = kFeatureBlock * std::max<Index>(1, rank / (kFeatureBlock * 16 * team.size()));
    team.parallel_for(ceil_div(rank, terms), [&](Index t, Index worker) {
      Workspace share = scratch_.of(worker);
      add_keys(*unit.monomials, unit.coefficients, keys, blocks, {t * terms, std::min((t + 1) * terms, rank)},
               scratch(problem, share), state);
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

  /// Rows of one head: their far field from the state, then the near keys.
  template <class Q, class Out>
  void attend(const Problem& problem, const PackedKeys<Real>& packed, const ExactAttention<Real>& exact,
              const LowRankUnit& unit, const Real* state, Index far, Index h, Range rows,
              MatrixView<const Q> q, MatrixView<Out> out, Index worker) const {
    QueryBlock<Real> block = exact.block(problem, packed, worker);
    block.start(problem, packed, h, q, rows);
    if (far > 0 || begun_) {
      Workspace share = scratch_.of(worker);
      const FeatureScratch<Real> s = scratch(problem, share);
      for (Index r = 0; r < rows.size(); r += kQueryBlock<Real>) far_field(problem, unit, state, r, block, s);
    }
    block.attend(problem, packed, exact.scores(), {far, problem.shapes.n_k});
    block.write(problem, out, static_cast<Real*>(nullptr));
  }

  /// The sums over the state of the rows from row r of the block on become their softmax states.
  static void far_field(const Problem& problem, const LowRankUnit& unit, const Real* state, Index r,
                        const QueryBlock<Real>& block, const FeatureScratch<Real>& s) {
    constexpr Index kRows = kQueryBlock<Real>;
    static_assert(kTile % kRows == 0 && kRows % simd::kLanes<Real> == 0);
    const Index d_v = problem.shapes.d_v;
    const SoftmaxRows<Real> rows = block.state().from(r);
    project_queries(unit.projection, problem.scale, problem.kernel.is_softmax() ? kLog2E : 1.0, kRows,
                    block.queries(r), kTile, s.shifted, s.x, rows.maximum);
    apply_state(*unit.monomials, d_v, state, s.x, s.ancestors, s.sums);
    for (Index i = 0; i < kRows; ++i) rows.add_to_sum(i, s.sums[d_v * kRows + i]);
    constexpr Index kBlockRows = simd::kBlockRows<Real>;
    for (Index c = 0; c < d_v; c += kBlockRows)
      for (Index i = 0; i < kRows; i += simd::kLanes<Real>)
        simd::transpose_block(s.sums + c * kRows + i, kRows, rows.row(i) + c, rows.width);
  }

  std::span<const LowRankUnit> units_;
  Real* carried_;
  bool begun_;
  Index rank_ = 0, degree_ = 0, variables_ = 0;  // the largest of any unit
  WorkerScratch scratch_;
  WorkerScratch states_;
};

}  // namespace fastrope
