// Decode: few queries against a long cache, bound by memory bandwidth. Nothing is packed.
//
// The query rows of a key/value head (n_q of each query head of its group) are taken together, so that each
// key and value is read once for all of them. Keys are cut into splits of a fixed length, whatever the number
// of threads; each split gives partial softmax states, which are merged in double in the order of the keys.
// Cost: one read of K and V.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/online_softmax.hpp"
#include "fastrope/exact/rotation_tables.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/exact/scores.hpp"
#include "fastrope/exact/stage.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Attention of few query rows, each key and value read once for all of them.
template <class Real>
class DecodeAttention {
 public:
  /// More query rows than this for each key/value head are better packed into tiles.
  static constexpr Index kMaxRows = 16;

  static bool suits(const Problem& problem) {
    return problem.shapes.n_q * problem.group() <= kMaxRows && !problem.weights;
  }

  /// With worker_bytes(problem) of scratch that nobody else uses while a task runs.
  DecodeAttention(const Problem& problem, const WorkerScratch& scratch, Workspace& workspace)
      : tables_(problem, reach(problem), workspace),
        scores_(problem, workspace),
        rows_(problem.shapes.n_q * problem.group()),
        key_stride_(round_up(problem.shapes.d, simd::kLanes<Real>)),
        width_(round_up(problem.shapes.d_v, simd::kLanes<Real>)),
        splits_(std::max<Index>(1, ceil_div(problem.shapes.n_k, kSplit))),
        queries_(workspace.take<Real>(problem.shapes.kv_heads * rows_ * key_stride_).data()),
        references_(workspace.take<BiasReference>(problem.shapes.kv_heads * rows_).data()),
        allowed_(workspace.take<KeySet>(problem.shapes.kv_heads * rows_).data()),
        states_(problem.shapes.kv_heads * splits_ * rows_, width_, workspace),
        scratch_(scratch) {}

  std::size_t worker_bytes(const Problem& problem) const {
    return Workspace::bytes_of([&](Workspace& share) {
      buffers(problem, share);
      SoftmaxTotals(1, width_, share);
    });
  }

  Index tasks(const Problem& problem, Stage stage) const {
    const Index kv_heads = problem.shapes.kv_heads;
    switch (stage) {
      case Stage::prepare:
        return tables_.tasks(problem) + scores_.tasks();
      case Stage::attend:
        return splits_ * kv_heads;
      case Stage::load:
      case Stage::finish:
        return kv_heads * rows_;
    }
    return 0;
  }

  void run_task(const Problem& problem, Stage stage, Index task, Index worker, const ExactTensors<Real>& x) {
    switch (stage) {
      case Stage::prepare: {
        const Index table_tasks = tables_.tasks(problem);
        return task < table_tasks ? tables_.fill(problem, task)
                                  : scores_.prepare(problem, task - table_tasks);
      }
      case Stage::load:
        return load_query(problem, x.q, task);
      case Stage::attend: {
        // Heads within a split, so that they share the rotation table's rows in the cache.
        const Index kv = task % problem.shapes.kv_heads, split = task / problem.shapes.kv_heads;
        Workspace share = scratch_.of(worker);
        return attend_split(problem, kv, split, x.k, x.v, buffers(problem, share));
      }
      case Stage::finish:
        return finish_row(problem, task, worker, x.out, x.lse);
    }
  }

 private:
  static constexpr Index kSplit = kStretch;  // keys of a task
  static constexpr Index kBlock = kDecodeBlock;
  static_assert(kSplit % kBlock == 0);

  /// One worker's scratch for a block of keys.
  struct Buffers {
    Real* scores;   // [rows, kBlock]
    Real* line;     // [kBlock], a row of a lag function
    Real* rotated;  // [kBlock, key_stride], zero past d
    Real* output;   // [rows, width]
  };

  Buffers buffers(const Problem& problem, Workspace& w) const {
    return {.scores = w.take<Real>(rows_ * kBlock).data(),
            .line = w.take<Real>(kBlock).data(),
            .rotated = w.take<Real>(problem.rotates() ? kBlock * key_stride_ : 0).data(),
            .output = w.take<Real>(rows_ * width_).data()};
  }

  /// The smallest range that holds the keys which some query may attend to.
  static Range reach(const Problem& problem) { return problem.grid.reached().hull(); }

  /// The keys of a block that some row of a key/value head may attend to, as the smallest range; empty too
  /// where dense bias and mask leave nothing of it.
  Range seen_of(const Problem& problem, Index kv, Range block) const {
    Range seen = block;
    if (problem.grid.has_ranges()) {
      seen = {};
      for (Index r = 0; r < rows_; ++r) seen = hull(seen, allowed_[kv * rows_ + r].hull(block));
    }
    if (seen.empty() || !problem.is_dense()) return seen;
    for (Index h = kv * problem.group(); h < (kv + 1) * problem.group(); ++h)
      if (scores_.dense_sees(h, {0, problem.shapes.n_q}, block)) return seen;
    return {};
  }
  /// seen_of the first of a split's blocks, from key j on, of which something is seen; empty where none is.
  Range next_seen(const Problem& problem, Index kv, Index j, Range keys) const {
    for (; j < keys.end; j = round_down(j, kBlock) + kBlock)
      if (const Range seen = seen_of(problem, kv, intersect({j, round_down(j, kBlock) + kBlock}, keys));
          !seen.empty())
        return seen;
    return {};
  }

  Index head_of(const Problem& problem, Index kv, Index row) const {
    return kv * problem.group() + row / problem.shapes.n_q;
  }
  Index query_of(const Problem& problem, Index row) const { return row % problem.shapes.n_q; }

  void load_query(const Problem& problem, const StoredRows& q, Index task) {
    const Index kv = task / rows_, row = task % rows_, d = problem.shapes.d;
    const Index i = query_of(problem, row);
    Real* x = queries_ + task * key_stride_;
    q.head(head_of(problem, kv, row)).read(i, d, x);
    tables_.turn_query(problem, i, x);
    const auto factor = static_cast<Real>(Scores<Real>::query_factor(problem));
    for (Index c = 0; c < d; ++c) x[c] *= factor;
    std::fill(x + d, x + key_stride_, Real{0});
    allowed_[task] = problem.grid.keys_of(head_of(problem, kv, row), i);
    references_[task] = scores_.reference(problem, head_of(problem, kv, row), i, allowed_[task]);
  }

  /// The partial states of a split's keys for all query rows of a key/value head.
  /// A block's values are fetched while its keys are scored and the next keys while its values are added, so
  /// that the memory never waits for the arithmetic.
  void attend_split(const Problem& problem, Index kv, Index split, const KeyRows<Real>& k,
                    const ValueRows<Real>& v, const Buffers& b) const {
    const SoftmaxRows<Real> states = states_.from((kv * splits_ + split) * rows_);
    states.clear(rows_);
    const Range keys = intersect({split * kSplit, (split + 1) * kSplit}, reach(problem));
    // Blocks begin at multiples of kBlock whatever is seen of them, so that masks of any kind which say the
    // same give the same bits.
    Range seen = next_seen(problem, kv, keys.begin, keys);
    if (seen.empty()) return;
    // The source rows of the block that holds `seen`; beside it, the rows of its first and last key again.
    const auto block_rows = [&](const StoredHead& source, Range some) {
      std::array<const std::byte*, kBlock> rows;
      const Index first = round_down(some.begin, kBlock);
      if (some.size() == kBlock && problem.grid.in_order() && !source.is_paged) {
        const std::byte* row = source.row(first);
        for (Index m = 0; m < kBlock; ++m) rows[static_cast<std::size_t>(m)] = row + m * source.row_stride;
        return rows;
      }
      for (Index m = 0; m < kBlock; ++m)
        rows[static_cast<std::size_t>(m)] =
            source.row(problem.grid.source(std::clamp(first + m, some.begin, some.end - 1)));
      return rows;
    };
    const StoredHead k_head = k.head(kv), v_head = v.head(kv);
    auto key_rows = block_rows(k_head, seen);
    while (!seen.empty()) {
      const Index j = round_down(seen.begin, kBlock), padded = round_up(seen.end - j, simd::kLanes<Real>);
      const auto value_rows = block_rows(v_head, seen);
      score_block(problem, kv, k, key_rows.data(), {value_rows.data(), step_of(v)}, seen, b);
      for (Index r = 0; r < rows_; ++r) {
        const Index i = query_of(problem, r);
        scores_.finish(problem, head_of(problem, kv, r), {i, i + 1}, {j, j + padded}, seen,
                       allowed_ + kv * rows_ + r, references_ + kv * rows_ + r, 1, b.scores + r * kBlock,
                       kBlock, b.line);
      }
      if (problem.kernel.is_softmax())
        states.weigh(rows_, b.scores, kBlock, padded);
      else
        states.weigh_polynomial(problem.kernel.coefficients(), rows_, b.scores, kBlock, padded);
      const Range block{j, seen.end};
      seen = next_seen(problem, kv, j + kBlock, keys);
      if (!seen.empty()) key_rows = block_rows(k_head, seen);
      add_values(problem, kv, v, value_rows.data(), {key_rows.data(), step_of(k)}, block, states, b);
    }
  }

  /// Bytes of a row for a vector of columns.
  static Index step_of(const StoredRows& x) { return x.type->bytes_of(simd::kLanes<Real>); }

  /// scores [rows, kBlock] of the block that holds the keys `seen`, up to the last of them, for whole groups
  /// of four, while the values are fetched.
  void score_block(const Problem& problem, Index kv, const KeyRows<Real>& k, const std::byte* const* keys,
                   RowsAhead values, Range seen, const Buffers& b) const {
    const Index d = problem.shapes.d, first = round_down(seen.begin, kBlock), count = seen.end - first;
    const Real* queries = queries_ + kv * rows_ * key_stride_;
    if (!problem.rotates()) return k.score(rows_, d, queries, key_stride_, keys, values, count, b.scores);
    std::array<const std::byte*, kBlock> rotated;
    for (Index m = 0; m < kBlock; ++m) {
      const Index j = std::clamp(first + m, seen.begin, seen.end - 1);
      Real* x = b.rotated + (j - first) * key_stride_;
      if (j == first + m) {
        k.type->convert(keys[m], d, x);
        tables_.turn_key(problem, j, x);
      }
      rotated[static_cast<std::size_t>(m)] = reinterpret_cast<const std::byte*>(x);
    }
    detail::score_rows<Real, Real>(rows_, d, queries, key_stride_, rotated.data(), values, count, b.scores);
  }

  /// output += weights [rows, block] values [block, d_v], while the next keys are fetched.
  void add_values(const Problem& problem, Index kv, const ValueRows<Real>& v, const std::byte* const* values,
                  RowsAhead next_keys, Range block, const SoftmaxRows<Real>& states, const Buffers& b) const {
    constexpr Index kStep = simd::kLanes<Real>;
    std::fill_n(b.output, rows_ * width_, Real{0});
    v.sum(rows_, problem.shapes.d_v, b.scores, values, next_keys, block.size(), b.output, width_);
    for (Index r = 0; r < rows_; ++r) {
      const Real* sum = b.output + r * width_;
      simd::Vec<Real> zeros = simd::zero<Real>();  // x * 0 is 0 for finite x and NaN otherwise
      for (Index c = 0; c < width_; c += kStep)
        zeros = simd::fma(simd::load(sum + c), simd::zero<Real>(), zeros);
      // A masked key's weight is 0, but 0 times an infinite or NaN value is NaN: then masked keys are left
      // out one by one.
      if (simd::reduce_add<Real>(zeros) == 0)
        for (Index c = 0; c < width_; ++c) states.row(r)[c] += sum[c];
      else
        add_allowed_values(problem, kv, r, *v.type, values, block, b.scores + r * kBlock, states.row(r));
    }
  }

  void add_allowed_values(const Problem& problem, Index kv, Index row, const StoredType& type,
                          const std::byte* const* values, Range block, const Real* weights,
                          Real* output) const {
    allowed_[kv * rows_ + row].for_each(block, [&](Range allowed) {
      for (Index j = allowed.begin; j < allowed.end; ++j)
        if (dense_allows(problem, head_of(problem, kv, row), query_of(problem, row), j))
          type.for_each_piece<Real>(values[j - block.begin], problem.shapes.d_v,
                                    [&](Index first, const Real* x, Index count) {
                                      for (Index c = 0; c < count; ++c)
                                        output[first + c] += weights[j - block.begin] * x[c];
                                    });
    });
  }

  /// Merges the splits of one query row in the order of the keys and writes it.
  void finish_row(const Problem& problem, Index task, Index worker, const OutputRows& out,
                  MatrixView<Real> lse) const {
    const Index kv = task / rows_, row = task % rows_;
    const Index head = head_of(problem, kv, row), i = query_of(problem, row);
    Workspace share = scratch_.of(worker);
    const SoftmaxTotals totals(1, width_, share);
    totals.clear(1);
    for (Index s = 0; s < splits_; ++s) totals.add(0, states_, (kv * splits_ + s) * rows_ + row);
    if (!problem.sinks.empty())
      totals.add_sink(0,
                      (problem.sinks[static_cast<std::size_t>(head)] - references_[task].total()) * kLog2E);
    totals.template write<Real>(0, out, head, i);
    if (lse.data != nullptr)
      lse(head, i) = static_cast<Real>(problem.kernel.is_softmax() ? totals.lse(0) + references_[task].total()
                                                                   : totals.sum[0]);
  }

  RotationTables<Real> tables_;
  Scores<Real> scores_;
  Index rows_;        // query rows of a key/value head
  Index key_stride_;  // d in whole vectors
  Index width_;       // d_v in whole vectors
  Index splits_;
  Real* queries_;              // [kv_heads, rows, key_stride], zero past d
  BiasReference* references_;  // [kv_heads, rows]
  KeySet* allowed_;            // [kv_heads, rows]
  SoftmaxRows<Real> states_;   // [kv_heads, splits, rows]
  WorkerScratch scratch_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
