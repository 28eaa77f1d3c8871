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
// and e^(level - slope (i - anchor)) the rows. Gates do the same with levels of their own (key_factors.hpp);
// a reset empties the state. Keys that leave a window are subtracted. Where keys behind the
// rows have a factor of their own, a first sweep takes them, from the last chunk to the first.
//
// Cost 2 (n_q + n_k) r (d_v + 2) flops and the near field's; never n x r in memory: each worker holds a state
// [r, d_v + 1] and the projected keys of its unit, [n_k, d + 1]. No sum depends on how tasks are spread.
//
// Guarantee: certificate.hpp for the approximation. Rounding is judged when a row is done, from its own sums:
// those come with a bound (rounding.hpp), and a row for which it is more than `allowed` of the denominator is
// computed again by exact tiles, with the other rows of its tile. With a polynomial as the kernel there is no
// approximation, and each row has a bound of its own (kernel_rounding.hpp), by which it is judged: rows for
// which exact tiles have a smaller one are taken from those.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/polynomial/kernel_bounds.hpp"
#include "fastrope/polynomial/key_factors.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/polynomial/projection.hpp"
#include "fastrope/polynomial/rounding.hpp"
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
  /// What the sums of a row may be off by, over its denominator, before it is computed again; with a
  /// polynomial kernel, what its bound may be.
  double allowed = std::numeric_limits<double>::infinity();
  /// With a polynomial kernel, what rounded rows do to an entry, over |x| |y|; else the certificate has it.
  double entry_error = 0;

  bool has_later() const {
    return std::any_of(chunks.begin(), chunks.end(), [](const FarPairs& c) { return !c.later.empty(); });
  }
};

/// What the tokens before these left behind for a unit, to which these are added: a view.
template <class Real>
struct CarriedState {
  double* state;          ///< [rank, d_v + 1], of whole blocks of keys
  Real* rounded;          ///< [rank, d_v + 1], its copy for rows
  double* errors;         ///< [3, degree + 1]: e_p, M_p, spill of rounding.hpp
  double* largest_value;  ///< max|V| of all tokens
  double* level;          ///< of the heaviest of them, by gates that are summed up from here on
};

/// Whose bounds are wanted with a polynomial kernel.
template <class Real>
struct KernelRows {
  const KernelBounds<Real>* of_call = nullptr;  ///< null: of none
  double* bounds = nullptr;                     ///< [heads, n_q], over max|V|; null: they only decide
};

/// Attention by features for some units over packed keys.
template <class Real>
class PolynomialAttention {
 public:
  /// carried: the states of the units, to which these keys are added, as many as fill blocks or are far from
  /// some row; `begun` if there is something in them. None: every state begins with these keys. unvouched:
  /// [heads, n_q] of softmax that carries states, where keys are not at hand to compute a row again: becomes
  /// whether a row's sums cannot be vouched for, for heads of the units.
  PolynomialAttention(const Problem& problem, std::span<const LowRankUnit> units, Workspace& workspace,
                      std::span<const CarriedState<Real>> carried = {}, bool begun = false,
                      bool* unvouched = nullptr)
      : units_(units), carried_(carried), begun_(begun), unvouched_(unvouched) {
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

  /// out: [heads, n_q, d_v]. Writes the heads of all units. repaired: null or [heads], to which the rows are
  /// added that were computed again. kernel: with a polynomial kernel whose rows are to be judged.
  void run(const Problem& problem, const PackedKeys<Real>& packed, const ExactAttention<Real>& exact,
           const StoredRows& q, const OutputRows& out, Index* repaired = nullptr,
           const KernelRows<Real>& kernel = {}) const {
    const Index units = static_cast<Index>(units_.size()), workers = problem.executor.workers();
    const auto run_unit = [&](Index u, const Team& team, Index state) {
      Workspace share = states_.of(state);
      UnitMemory memory = unit_memory(problem, share);
      if (!carried_.empty()) {
        const CarriedState<Real>& carried = carried_[static_cast<std::size_t>(u)];
        memory.state = carried.state;
        memory.rounded = carried.rounded;
        memory.errors = carried.errors;
        memory.largest_before = *carried.largest_value;
        memory.level = carried.level;
      }
      const LowRankUnit& unit = units_[static_cast<std::size_t>(u)];
      project(problem, packed, unit, team, memory);
      if (unit.has_later()) sweep<true>(problem, packed, exact, unit, team, memory, q, out, repaired, kernel);
      sweep<false>(problem, packed, exact, unit, team, memory, q, out, repaired, kernel);
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
    Real* scaled;  // [blocks of keys, kWidth]: weights with the factor of a block's distances to its heaviest
                   // key
    Real* values;  // [keys / group, stride] where keys share vectors (ValueLayout)
    double* sizes;              // [blocks of keys, degree + 1]: sum_j w_j |y_j|^p
    double* largest_value;      // [blocks of keys]
    Index* heaviest;            // [blocks of keys]: KeyFactors::heaviest
    double* state;              // [rank, d_v + 1]
    Real* rounded;              // [rank, d_v + 1]
    double* squares;            // [blocks of terms, degree + 1, d_v + 1]
    double* errors;             // [3, degree + 1]: e_p, M_p, spill
    SoftmaxTotals stored;       // [heads, n_q] where there is a first sweep: its sums
    double largest_before = 0;  // max|V| of tokens before these
    double* level = nullptr;    // theirs
  };

  UnitMemory unit_memory(const Problem& problem, Workspace& share) const {
    const Index keys = round_up(problem.shapes.n_k, kWidth), d_v = problem.shapes.d_v;
    const ValueLayout<Real> layout(d_v);
    return {.y = share.take<Real>(keys * variables_).data(),
            .weight = share.take<Real>(keys).data(),
            .scaled = share.take<Real>(keys).data(),
            .values = share.take<Real>(layout.group > 1 ? keys / layout.group * layout.stride : 0).data(),
            .sizes = share.take<double>(keys / kWidth * (degree_ + 1)).data(),
            .largest_value = share.take<double>(keys / kWidth).data(),
            .heaviest = share.take<Index>(keys / kWidth).data(),
            .state = share.take<double>(carried_.empty() ? rank_ * (d_v + 1) : 0).data(),
            .rounded = share.take<Real>(carried_.empty() ? rank_ * (d_v + 1) : 0).data(),
            .squares = share.take<double>(ceil_div(rank_, kTermBlock) * (degree_ + 1) * (d_v + 1)).data(),
            .errors = share.take<double>(3 * (degree_ + 1)).data(),
            .stored = SoftmaxTotals(stored_rows_, round_up(d_v, simd::kLanes<Real>), share)};
  }

  FeatureScratch<Real> scratch(const Problem& problem, Workspace& share) const {
    return {problem.shapes.d, variables_, degree_, problem.shapes.d_v, share};
  }

  /// Projects all keys that are far from some row.
  void project(const Problem& problem, const PackedKeys<Real>& packed, const LowRankUnit& unit,
               const Team& team, const UnitMemory& memory) const {
    const Index kv = problem.kv_head(unit.heads.begin);
    const Index reach = reach_of(unit, problem.shapes.n_k);
    team.parallel_for(ceil_div(reach, kWidth), [&](Index b, Index worker) {
      project_block(problem, packed, unit, kv, b, worker, memory);
    });
  }

  /// The chunks in order, with the keys [first, far), after which their rows are done; or before that, from
  /// the last to the first, with the later keys, whose sums are stored.
  template <bool kLater>
  void sweep(const Problem& problem, const PackedKeys<Real>& packed, const ExactAttention<Real>& exact,
             const LowRankUnit& unit, const Team& team, const UnitMemory& memory, const StoredRows& q,
             const OutputRows& out, Index* repaired, const KernelRows<Real>& kernel) const {
    const FarFactor factor = kLater ? unit.later_factor : unit.factor;
    const GateSums& gates = exact.scores().gates();
    const double carried =
        memory.level != nullptr && begun_ ? *memory.level : -std::numeric_limits<double>::infinity();
    State state{.factor = factor,
                .factors = gates.empty() ? KeyFactors(factor.slope)
                                         : KeyFactors(gates, gates.row_of(unit.heads.begin), carried),
                .n_k = problem.shapes.n_k,
                .keys = key_blocks(problem, packed, unit, memory, problem.kv_head(unit.heads.begin))};
    if (!gates.empty()) state.gate_rounding = gates_rounding(problem, unit, gates, carried);
    weigh_blocks(unit, team, memory, state);
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
        block.start(problem, packed, exact.scores(), h, q, some);
        if (!far.empty() || begun_)
          far_field(problem, unit, memory, state, exact.scores().lag_reference(h), some, worker,
                    kernel.of_call ? kernel.of_call->largest_value(problem.kv_head(h)) : 0, block);
        const Index stored = t / tasks * problem.shapes.n_q + begin;
        if constexpr (kLater) {
          memory.stored.from(stored).clear(some.size());
          for (Index i = 0; i < some.size(); ++i) memory.stored.absorb(stored + i, block.totals(), i);
        } else {
          if (unit.has_later())
            for (Index i = 0; i < some.size(); ++i) block.totals().absorb(i, memory.stored, stored + i);
          const Index n_k = problem.shapes.n_k;
          const Range later = chunk.later.empty() ? Range{n_k, n_k} : chunk.later;
          for (const Range near :
               {Range{0, chunk.first}, Range{chunk.far, later.begin}, Range{later.end, n_k}})
            block.attend(problem, packed, exact.scores(), near);
          if (kernel.of_call != nullptr)
            finish_kernel_rows(problem, packed, exact, unit, h, some, {chunk.far, n_k}, block, q, out,
                               repaired, kernel);
          else
            finish_rows(problem, packed, exact, unit, h, some, block, q, out, repaired);
        }
      });
    }
    // What tokens after these will need.
    if (carried_.empty()) return;
    const Range all{0, reach_of(unit, problem.shapes.n_k)};
    move_state(problem, unit, team, memory, all, 0, state);
    if (!gates.empty()) *memory.level = state.factors.carried_from(state.anchor, all.end);
  }

  /// Writes the rows of a block; tiles with rows whose sums cannot be vouched for are computed again.
  void finish_rows(const Problem& problem, const PackedKeys<Real>& packed, const ExactAttention<Real>& exact,
                   const LowRankUnit& unit, Index h, Range rows, QueryBlock<Real>& block, const StoredRows& q,
                   const OutputRows& out, Index* repaired) const {
    if (unvouched_ != nullptr) {
      for (Index i = 0; i < rows.size(); ++i)
        unvouched_[h * problem.shapes.n_q + rows.begin + i] = !block.totals().within(i, unit.allowed);
      return block.write(problem, out);
    }
    std::array<bool, QueryBlock<Real>::kRows / kTile> keep = {};
    for (Index r = 0; r < rows.size(); r += kTile) {
      bool& all = keep[static_cast<std::size_t>(r / kTile)];
      all = true;
      for (Index i = r; i < std::min(r + kTile, rows.size()); ++i)
        all = all && block.totals().within(i, unit.allowed);
    }
    block.write(problem, out);
    for (Index r = 0; r < rows.size(); r += kTile) {
      if (keep[static_cast<std::size_t>(r / kTile)]) continue;
      const Range tile{rows.begin + r, std::min(rows.begin + r + kTile, rows.end)};
      block.start(problem, packed, exact.scores(), h, q, tile);
      block.attend(problem, packed, exact.scores(), {0, problem.shapes.n_k});
      block.write(problem, out);
      if (repaired != nullptr) std::atomic_ref(repaired[h]).fetch_add(tile.size(), std::memory_order_relaxed);
    }
  }

  /// The same with a polynomial kernel, for rows whose keys `near` are in no state. Requires that anything is
  /// allowed where there are tokens before these, without which nothing can be computed again.
  void finish_kernel_rows(const Problem& problem, const PackedKeys<Real>& packed,
                          const ExactAttention<Real>& exact, const LowRankUnit& unit, Index h, Range rows,
                          Range near, QueryBlock<Real>& block, const StoredRows& q, const OutputRows& out,
                          Index* repaired, const KernelRows<Real>& kernel) const {
    const Index d_v = problem.shapes.d_v;
    const SoftmaxTotals& totals = block.totals();
    // Of row i, which is row r of the block.
    const auto bound = [&](Index i, Index r, Range keys) {
      double largest = 0;
      for (Index c = 0; c < d_v; ++c) largest = or_larger(largest, std::abs(totals.row(r)[c]));
      const double taken = block.references(r)->total();
      return kernel.of_call->row(problem, h, i, kernel.of_call->query_size(problem, q.head(h), i), keys,
                                 {.sum = totals.sum[r],
                                  .maximum = totals.maximum[r],
                                  .far_error = totals.error[r],
                                  .largest = largest * std::abs(problem.normaliser.template inverse<Real>(
                                                           totals.sum[r], totals.unit(r, taken)))},
                                 *out.type);
    };
    std::array<double, QueryBlock<Real>::kRows> bounds;
    for (Index r = 0; r < rows.size(); ++r)
      bounds[static_cast<std::size_t>(r)] = bound(rows.begin + r, r, near);
    block.write(problem, out);
    for (Index r = 0; r < rows.size(); r += kTile) {
      double* of_tile = bounds.data() + r;
      const Range tile{rows.begin + r, std::min(rows.begin + r + kTile, rows.end)};
      if (std::all_of(of_tile, of_tile + tile.size(), [&](double b) { return b <= unit.allowed; })) continue;
      block.start(problem, packed, exact.scores(), h, q, tile);
      block.attend(problem, packed, exact.scores(), {0, problem.shapes.n_k});
      Index taken = 0;
      for (Index i = 0; i < tile.size(); ++i) {
        const double again = bound(tile.begin + i, i, {0, problem.shapes.n_k});
        if (!(again <= of_tile[i])) continue;
        of_tile[i] = again;
        totals.template write<Real>(i, out, h, tile.begin + i, problem.normaliser,
                                    block.references(i)->total());
        ++taken;
      }
      if (repaired != nullptr) std::atomic_ref(repaired[h]).fetch_add(taken, std::memory_order_relaxed);
    }
    if (kernel.bounds != nullptr)
      std::copy_n(bounds.data(), rows.size(), kernel.bounds + h * problem.shapes.n_q + rows.begin);
  }

  /// The keys that are in a state, and how they are weighed.
  struct State {
    FarFactor factor;
    KeyFactors factors;
    Index n_k;
    KeyBlocks<Real> keys;
    StateWindow window = {};
    Index anchor = KeyFactors::kCarried;
    Index seen = 0;            // keys so far
    double gate_rounding = 0;  // of an exponent by gates
  };

  /// What rounding does to an exponent by the gates of a unit.
  static double gates_rounding(const Problem& problem, const LowRankUnit& unit, const GateSums& gates,
                               double carried) {
    const Index n_k = problem.shapes.n_k;
    const double span =
        n_k > 0 ? static_cast<double>(problem.grid.key_position(n_k - 1) - problem.grid.key_position(0)) : 0;
    const double size = problem.gates.size(gates.row_of(unit.heads.begin), gates.tasks(), n_k, span);
    return gate_rounding(size + (std::isfinite(carried) ? std::abs(carried) : 0));
  }

  /// Weighs the keys of each block by their factor over the heaviest's, those that a reset hides by 0, and
  /// finds their sizes. Begins a new state.
  void weigh_blocks(const LowRankUnit& unit, const Team& team, const UnitMemory& memory, State& state) const {
    const Index blocks = ceil_div(reach_of(unit, state.n_k), kWidth), n_k = state.n_k;
    const int degree = unit.monomials->degree();
    const KeyFactors& factors = state.factors;
    if (factors.weigh()) state.keys.weight = memory.scaled;
    team.parallel_for(blocks, [&](Index b, Index) {
      const Range block{b * kWidth, std::min((b + 1) * kWidth, n_k)};
      memory.heaviest[b] = factors.heaviest(block);
      if (factors.weigh()) {
        const Index first = factors.first_seen(block);
        for (Index j = b * kWidth; j < (b + 1) * kWidth; ++j)
          memory.scaled[j] =
              first <= j && j < n_k
                  ? memory.weight[j] * static_cast<Real>(std::exp(factors.between(j, memory.heaviest[b])))
                  : 0;
      }
      const Real* weight = state.keys.weight_of(b);
      key_sizes(degree, unit.monomials->variables(), state.keys.y_of(b), weight,
                memory.sizes + b * (degree + 1), factors.gates() != nullptr ? kLeastWeight : 0);
    });
    if (!carried_.empty()) return;
    std::fill_n(memory.state, rank_ * (state.keys.d_v + 1), 0.0);
    std::fill_n(memory.errors, 3 * (degree + 1), 0.0);
  }

  /// Makes the state that of the keys `far`, the nearest of which is `nearest`, and finds its errors.
  void move_state(const Problem& problem, const LowRankUnit& unit, const Team& team, const UnitMemory& memory,
                  Range far, Index nearest, State& state) const {
    if (far.empty()) return;
    constexpr double kMostDecay = 8;
    const MonomialSet& set = *unit.monomials;
    const Index rank = set.rank(), channels = problem.shapes.d_v + 1, degrees = set.degree() + 1;
    const KeyFactors& factors = state.factors;
    const StateChange change = state.window.move_to(far);
    const auto blocks_of = [](Range keys) {
      return keys.empty() ? Range{} : Range{keys.begin / kWidth, ceil_div(keys.end, kWidth)};
    };
    const Range remove = blocks_of(change.remove), add = blocks_of(change.add);
    double shrink = change.restart && carried_.empty() ? 0 : 1;
    if (factors.gates() != nullptr) {
      // Keys are added alone: the state stands at the heaviest of those that it had and these.
      Index anchor = factors.keeps(state.seen, far.end) ? state.anchor : memory.heaviest[add.end - 1];
      for (Index b = add.begin; b < add.end; ++b)
        if (factors.keeps(std::min((b + 1) * kWidth, state.n_k), far.end) &&
            factors.level_of(memory.heaviest[b]) > factors.level_of(anchor))
          anchor = memory.heaviest[b];
      shrink *= factors.keeps(state.seen, far.end) ? std::exp(factors.between(state.anchor, anchor)) : 0;
      state.anchor = anchor;
      state.seen = far.end;
    } else if (change.restart) {
      state.anchor = nearest;
    } else if (const double decay = factors.between(nearest, state.anchor); decay > kMostDecay) {
      shrink = std::exp(-decay);
      state.anchor = nearest;
    }
    if (!change.restart && remove.empty() && add.empty() && shrink == 1) return;
    const auto factor_of = [&](Index b) {
      if (!factors.keeps(std::min((b + 1) * kWidth, state.n_k), far.end)) return 0.0;
      return factors.weigh() ? std::exp(factors.between(memory.heaviest[b], state.anchor)) : 1.0;
    };
    const Index term_blocks = ceil_div(rank, kTermBlock);
    team.parallel_for(term_blocks, [&](Index t, Index worker) {
      const Range terms{t * kTermBlock, std::min((t + 1) * kTermBlock, rank)};
      Workspace share = scratch_.of(worker);
      const FeatureScratch<Real> s = scratch(problem, share);
      if (shrink != 1)
        for (Index f = terms.begin * channels; f < terms.end * channels; ++f)
          memory.state[f] = shrink == 0 ? 0 : memory.state[f] * shrink;
      add_keys(
          set, unit.coefficients, state.keys, remove, terms, s, [&](Index b) { return -factor_of(b); },
          memory.state);
      add_keys(set, unit.coefficients, state.keys, add, terms, s, factor_of, memory.state);
      round_state(set, channels, terms, memory.state, memory.rounded,
                  memory.squares + t * degrees * channels);
    });
    for (Index t = 1; t < term_blocks; ++t)
      for (Index i = 0; i < degrees * channels; ++i)
        memory.squares[i] += memory.squares[t * degrees * channels + i];
    find_errors(unit, channels, shrink, remove, add, blocks_of(far), factor_of, state.gate_rounding, memory);
  }

  /// What the sums over the state of some blocks are off by, some of which were just added, after others were
  /// removed.
  template <class FactorOf>
  void find_errors(const LowRankUnit& unit, Index channels, double shrink, Range removed, Range added,
                   Range blocks, FactorOf&& factor_of, double gate_rounding, const UnitMemory& memory) const {
    const Index degrees = unit.monomials->degree() + 1;
    const std::span<const double> coefficients =
        std::span(unit.coefficients).first(static_cast<std::size_t>(degrees));
    double *errors = memory.errors, *held = errors + degrees, *spill = held + degrees;
    double largest_value = memory.largest_before;
    for (Index b = 0; b < blocks.end; ++b) largest_value = std::max(largest_value, memory.largest_value[b]);
    const double folds = static_cast<double>(removed.size() + added.size() + 1);
    for (Index p = 0; p < degrees; ++p) {
      const auto size_of = [&](Range some) {
        double size = 0;
        for (Index b = some.begin; b < some.end; ++b) size += factor_of(b) * memory.sizes[b * degrees + p];
        return size;
      };
      // No state on the way held more than all that it began with and was added.
      const double most = (shrink == 0 ? 0 : held[p] * shrink) + size_of(added);
      spill[p] = (shrink == 0 ? 0 : spill[p] * shrink) +
                 (3 * kUnitRoundoff<double> * folds + gate_rounding) *
                     std::abs(coefficients[static_cast<std::size_t>(p)]) * most;
      held[p] = carried_.empty() ? size_of(blocks) : most;
    }
    // Of a key's factor by gates, of a row's, and of a block's.
    const double weight_error = gate_rounding > 0 ? 2 * kUnitRoundoff<Real> + 3 * gate_rounding : 0;
    state_errors<Real>(coefficients, unit.monomials->rank(), channels, largest_value, unit.entry_error,
                       weight_error, held, memory.squares, spill, errors);
  }

  /// All keys that are far from some row are below it.
  Index reach_of(const LowRankUnit& unit, Index n_k) const {
    Index reach = carried_.empty() ? 0 : round_down(n_k, kWidth);
    for (const FarPairs& chunk : unit.chunks) reach = std::max(reach, chunk.reach());
    return reach;
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
    Real largest = 0;
    for (Index j = b * kWidth; j < std::min((b + 1) * kWidth, n_k); ++j)
      for (Index c = 0; c < d_v; ++c) largest = std::max(largest, std::abs(packed.values(kv, j)[c]));
    memory.largest_value[b] = static_cast<double>(largest);
    const auto [group, stride] = ValueLayout<Real>(d_v);
    if (group == 1) return;
    Real* values = memory.values + b * kWidth / group * stride;
    std::fill_n(values, kWidth / group * stride, Real{0});
    for (Index j = 0; j < std::min(kWidth, n_k - b * kWidth); ++j)
      for (Index c = 0; c < d_v; ++c)
        values[j / group * stride + c * group + j % group] = packed.values(kv, b * kWidth + j)[c];
  }

  /// The sums over a state of some rows become their softmax states.
  void far_field(const Problem& problem, const LowRankUnit& unit, const UnitMemory& memory,
                 const State& state, double lag_reference, Range rows, Index worker, double largest_value,
                 QueryBlock<Real>& block) const {
    constexpr Index kRows = kQueryBlock<Real>;
    static_assert(kTile % kRows == 0 && kRows % simd::kLanes<Real> == 0);
    Workspace share = scratch_.of(worker);
    const FeatureScratch<Real> s = scratch(problem, share);
    const Index blocks = ceil_div(rows.size(), kRows);
    for (Index first = 0; first < blocks; first += kQueryBlocks) {
      const auto some =
          std::span(s.queries).first(static_cast<std::size_t>(std::min(kQueryBlocks, blocks - first)));
      for (Index b = 0; b < std::ssize(some); ++b)
        project_queries(unit.projection, problem.scale, problem.kernel.is_softmax() ? kLog2E : 1.0, kRows,
                        block.queries((first + b) * kRows), kTile, s.shifted, some[b].x, some[b].exponents);
      apply_state<Real>(*unit.monomials, problem.shapes.d_v, memory.rounded, some, s.features);
      for (Index b = 0; b < std::ssize(some); ++b)
        add_far(problem, unit, memory, state, lag_reference, rows, (first + b) * kRows, some[b],
                largest_value, s, block);
    }
  }

  /// Those of the rows from r on, a block whose sums are known.
  void add_far(const Problem& problem, const LowRankUnit& unit, const UnitMemory& memory, const State& state,
               double lag_reference, Range rows, Index r, const StateQueries<Real>& queries,
               double largest_value, const FeatureScratch<Real>& s, QueryBlock<Real>& block) const {
    constexpr Index kRows = kQueryBlock<Real>;
    const Index d_v = problem.shapes.d_v, variables = unit.monomials->variables();
    const auto [level, slope] = state.factor;
    const KeyFactors& factors = state.factors;
    const SoftmaxRows<Real> some = block.stretch().from(r);
    constexpr Index kBlockRows = simd::kBlockRows<Real>;
    for (Index c = 0; c < d_v; c += kBlockRows)
      for (Index i = 0; i < kRows; i += simd::kLanes<Real>)
        simd::transpose_block(queries.sums + c * kRows + i, kRows, some.row(i) + c, some.width);
    row_errors(variables, unit.monomials->degree(), queries.x, memory.errors, s.norms, s.errors);
    for (Index i = 0; i < std::min(kRows, rows.size() - r); ++i) {
      double exponent = static_cast<double>(queries.exponents[i]);
      if (factors.gates() != nullptr) {
        if (!factors.keeps(state.seen, problem.grid.keys_until(rows.begin + r + i))) continue;
        exponent = kLog2E * (factors.level_of(state.anchor) - block.references(r + i)->level);
        if (exponent == -std::numeric_limits<double>::infinity()) continue;
      } else if (level != 0 || slope != 0 || lag_reference != 0)
        exponent +=
            kLog2E * (level - lag_reference -
                      slope * static_cast<double>(rows.begin + r + i + problem.grid.offset() - state.anchor));
      double error = s.errors[i];
      if (!problem.kernel.is_softmax())
        error += underflow_error<Real>(unit.coefficients, unit.monomials->rank(), variables, largest_value,
                                       memory.errors + unit.monomials->degree() + 1,
                                       static_cast<double>(s.norms[i]), factors.gates() != nullptr);
      block.totals().add_far(r + i, exponent, queries.sums[d_v * kRows + i], error, some.row(i));
    }
    some.clear_sums(kRows);
  }

  std::span<const LowRankUnit> units_;
  std::span<const CarriedState<Real>> carried_;
  bool begun_;
  bool* unvouched_;
  Index rank_ = 0, degree_ = 0, variables_ = 0;  // the largest of any unit
  Index stored_rows_ = 0;
  WorkerScratch scratch_;
  WorkerScratch states_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
