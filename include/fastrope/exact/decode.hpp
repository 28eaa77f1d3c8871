// Decode: few queries against a long cache, bound by memory bandwidth. Nothing is packed.
//
// Groups of query rows meet each key and value once (decode_rows.hpp). Keys are cut into splits of a fixed
// length, whatever the number of threads; each split gives partial softmax states, which are merged in double
// in the order of the keys. Cost: one read of K and V.
#pragma once

#include <algorithm>
#include <cstddef>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/decode_rows.hpp"
#include "fastrope/exact/online_softmax.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/exact/stage.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Attention of few query rows, each key and value read once for all of them.
template <class Real>
class DecodeAttention {
 public:
  using Rows = DecodeRows<Real>;

  /// With worker_bytes(problem) of scratch that nobody else uses while a task runs.
  DecodeAttention(const Problem& problem, const WorkerScratch& scratch, Workspace& workspace)
      : rows_(problem, workspace),
        width_(round_up(problem.shapes.d_v, simd::kLanes<Real>)),
        first_split_(Rows::reach(problem).begin / Rows::kSplit),
        splits_(ceil_div(Rows::reach(problem).end, Rows::kSplit) - first_split_),
        states_(groups().count() * splits_ * rows_.padded_rows(), width_, workspace),
        scratch_(scratch) {}

  std::size_t worker_bytes(const Problem&) const {
    return Workspace::bytes_of([&](Workspace& share) {
      buffers(share);
      SoftmaxTotals(1, width_, share);
    });
  }

  /// As TiledAttention has them.
  static Index parts(const Problem&) { return 1; }
  Index tasks(const Problem& problem, Stage stage) const {
    switch (stage) {
      case Stage::prepare:
        return rows_.prepare_tasks(problem);
      case Stage::attend:
        return splits_ * groups().count();
      case Stage::load:
      case Stage::finish:
        return groups().all_rows();
    }
    return 0;
  }

  void run_task(const Problem& problem, Stage stage, Index task, Index worker, const ExactTensors<Real>& x) {
    Workspace share = scratch_.of(worker);
    switch (stage) {
      case Stage::prepare:
        return rows_.prepare(problem, task);
      case Stage::load:
        return rows_.load(problem, x.q, x.k, task, rows_.buffers(share));
      case Stage::attend: {
        // Heads within a split, so that they share the rotation table's rows in the cache.
        const Index group = task % groups().count(), split = task / groups().count();
        return attend_split(problem, group, split, x.k, x.v, buffers(share));
      }
      case Stage::finish:
        return finish_row(problem, task, share, x.out, x.lse);
    }
  }

 private:
  static constexpr Index kBlock = Rows::kBlock;
  using BlockRows = typename Rows::BlockRows;

  /// One worker's scratch for a block of keys.
  struct Buffers : Rows::Buffers {
    Real* values;  // [kBlock, width], unpacked, zero past d_v
    Real* output;  // [rows, width], where they are few
  };

  Buffers buffers(Workspace& w) const {
    return {rows_.buffers(w), w.take<Real>(kBlock * width_).data(),
            w.take<Real>(rows_.many() ? 0 : rows_.padded_rows() * width_).data()};
  }

  const RowGroups& groups() const { return rows_.groups(); }
  /// The state of row r of group g over the keys of a split.
  Index state_of(Index g, Index split, Index r) const {
    return (g * splits_ + split) * rows_.padded_rows() + r;
  }

  /// The partial states of a split's keys for the rows of a group.
  /// A block's values are fetched while its keys are scored and the next keys while its values are added, so
  /// that the memory never waits for the arithmetic.
  void attend_split(const Problem& problem, Index g, Index split, const KeyRows<Real>& k,
                    const ValueRows<Real>& v, const Buffers& b) const {
    const Index rows = groups().size(g);
    const SoftmaxRows<Real> states = states_.from(state_of(g, split, 0));
    states.clear(rows_.padded_rows());
    rows_.clear_padding(g, b);
    const Range keys = Rows::split_keys(problem, (first_split_ + split) * Rows::kSplit);
    Range seen = rows_.next_seen(problem, g, keys.begin, keys);
    if (seen.empty()) return;
    const StoredHead k_head = k.head(groups().kv_head(g)), v_head = v.head(groups().kv_head(g));
    BlockRows key_rows = Rows::block_rows(problem, k_head, seen);
    while (!seen.empty()) {
      const Range met = seen;
      const BlockRows value_rows = Rows::block_rows(problem, v_head, seen);
      const Index cols = rows_.score(problem, g, k, key_rows, {value_rows.data(), Rows::step_of(v)},
                                     problem.shapes.d_v, seen, b);
      if (problem.kernel.is_softmax())
        states.weigh(rows, b.scores, kBlock, cols);
      else
        states.weigh_polynomial(problem.kernel.coefficients(), rows, b.scores, kBlock, cols, [&](Index r) {
          const Index first = round_down(seen.begin, kBlock);
          return rows_.scores().factors(groups().head(g, r), {first, first + cols}, rows_.reference(g, r),
                                        b.line);
        });
      seen = rows_.next_seen(problem, g, round_down(met.begin, kBlock) + kBlock, keys);
      if (!seen.empty()) key_rows = Rows::block_rows(problem, k_head, seen);
      add_values(problem, g, v, value_rows.data(), {key_rows.data(), Rows::step_of(k)}, met, states, b);
    }
  }

  /// output += weights [rows, block] values [block, d_v] of the block that holds the keys `seen`, while the
  /// next keys are fetched.
  void add_values(const Problem& problem, Index g, const ValueRows<Real>& v, const std::byte* const* values,
                  RowsAhead next_keys, Range seen, const SoftmaxRows<Real>& states, const Buffers& b) const {
    const Index rows = groups().size(g), d_v = problem.shapes.d_v;
    const Index count = seen.end - round_down(seen.begin, kBlock);
    const StoredHead head = v.head(groups().kv_head(g));
    if (rows_.many()) return multiply_values(problem, g, head, next_keys, seen, states, b);
    std::fill_n(b.output, rows * width_, Real{0});
    if (rows_.unpacks(rows, v, false)) {
      unpack_values(problem, head, seen, b);
      BlockRows unpacked;
      for (Index m = 0; m < count; ++m)
        unpacked[static_cast<std::size_t>(m)] = reinterpret_cast<const std::byte*>(b.values + m * width_);
      detail::sum_rows<Real, Real>(rows, d_v, b.scores, unpacked.data(), next_keys, count, b.output, width_);
    } else {
      v.sum(rows, d_v, b.scores, values, next_keys, count, b.output, width_);
    }
    for (Index r = 0; r < rows; ++r) {
      const Real* sum = b.output + r * width_;
      // A masked key's weight is 0, but 0 times an infinite or NaN value is NaN: then masked keys are left
      // out one by one.
      if (simd::all_finite(sum, width_))
        for (Index c = 0; c < width_; ++c) states.row(r)[c] += sum[c];
      else
        add_allowed_values(problem, g, r, head, seen, b.scores + r * kBlock, states.row(r));
    }
  }

  /// b.values: the values of a block up to the last of `seen` as numbers, zeros before the first of them.
  void unpack_values(const Problem& problem, const StoredHead& v, Range seen, const Buffers& b) const {
    const Index first = round_down(seen.begin, kBlock);
    std::fill(b.values, b.values + (seen.begin - first) * width_, Real{0});
    for (Index j = seen.begin; j < seen.end; ++j) {
      Real* x = b.values + (j - first) * width_;
      v.read(problem.grid.source(j), problem.shapes.d_v, x);
      std::fill(x + problem.shapes.d_v, x + width_, Real{0});
    }
  }

  /// add_values for many rows, by a product.
  void multiply_values(const Problem& problem, Index g, const StoredHead& v, RowsAhead next_keys, Range seen,
                       const SoftmaxRows<Real>& states, const Buffers& b) const {
    const Index rows = groups().size(g), count = seen.end - round_down(seen.begin, kBlock);
    unpack_values(problem, v, seen, b);
    if (!simd::all_finite(b.values, count * width_)) {
      for (Index r = 0; r < rows; ++r)
        add_allowed_values(problem, g, r, v, seen, b.scores + r * kBlock, states.row(r));
      return;
    }
    constexpr Index kSome = kRowMultiple;
    const Index parts = rows_.padded_rows() / kSome;
    for (Index part = 0; part < parts; ++part) {
      Rows::fetch(next_keys, problem.shapes.d, {kBlock * part / parts, kBlock * (part + 1) / parts});
      const Index r = part * kSome;
      if (r >= rows) continue;  // the last group of a head may have fewer
      multiply<true, Real>(std::min(kSome, rows - r), width_, count,
                           BroadcastOperand<Real>{b.scores + r * kBlock, kBlock, 1}, b.values, width_,
                           states.row(r), width_);
    }
  }

  void add_allowed_values(const Problem& problem, Index g, Index r, const StoredHead& v, Range seen,
                          const Real* weights, Real* output) const {
    const Index first_key = round_down(seen.begin, kBlock);
    rows_.allowed(g, r).for_each(seen, [&](Range some) {
      for (Index j = some.begin; j < some.end; ++j)
        if (dense_allows(problem, groups().head(g, r), groups().query(g, r), j))
          v.for_each_piece<Real>(problem.grid.source(j), problem.shapes.d_v,
                                 [&](Index first, const Real* x, Index count) {
                                   for (Index c = 0; c < count; ++c)
                                     output[first + c] += weights[j - first_key] * x[c];
                                 });
    });
  }

  /// Merges the splits of one query row in the order of the keys and writes it.
  void finish_row(const Problem& problem, Index task, Workspace& share, const OutputRows& out,
                  MatrixView<Real> lse) const {
    const auto [g, r] = groups().row(task);
    const Index head = groups().head(g, r), i = groups().query(g, r);
    const double taken = rows_.reference(g, r).total();
    const SoftmaxTotals totals(1, width_, share);
    totals.clear(1);
    for (Index s = 0; s < splits_; ++s) totals.add(0, states_, state_of(g, s, r));
    if (!problem.sinks.empty())
      totals.add_sink(0, (problem.sinks[static_cast<std::size_t>(head)] - taken) * kLog2E);
    totals.template write<Real>(0, out, head, i, problem.normaliser, taken);
    if (lse.data != nullptr)
      lse(head, i) =
          static_cast<Real>(problem.kernel.is_softmax() ? totals.lse(0) + taken : totals.whole_sum(0, taken));
  }

  Rows rows_;
  Index width_;        // d_v in whole vectors
  Index first_split_;  // of those that some query reaches
  Index splits_;
  SoftmaxRows<Real> states_;  // state_of
  WorkerScratch scratch_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
