// Decode: few queries against a long cache, bound by memory bandwidth. Nothing is packed.
//
// The query rows of a key/value head (n_q of each of its query heads) are taken together, in groups of at
// most 256, so that each key and value is read once for all of a group. Keys are cut into splits of a fixed
// length, whatever the number of threads; each split gives partial softmax states, which are merged in double
// in the order of the keys. Cost: one read of K and V.
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
#include "fastrope/exact/row_groups.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/exact/scores.hpp"
#include "fastrope/exact/stage.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Attention of few query rows, each key and value read once for all of them.
template <class Real>
class DecodeAttention {
 public:
  /// The most rows of a group.
  static constexpr Index kMaxRows = 256;
  /// Up to so many rows read keys and values where they lie, by row kernels; more are multiplied with a block
  /// of them at once, the queries side by side.
  static constexpr Index kFewRows = 32;

  /// Every row meets all the keys that some row may attend to: that wastes little only where there are few
  /// rows, or many more keys than queries. And many queries of one head fill the tiles of packed keys.
  static bool suits(const Problem& problem) {
    return must_suit(problem) || (may_suit(problem) && 8 * problem.shapes.n_q <= reach(problem).size());
  }
  /// Whether it does for any number of keys.
  static bool must_suit(const Problem& problem) {
    const Index n_q = problem.shapes.n_q;
    return !problem.weights && (n_q == 1 || n_q * problem.group() <= kFewRows / 2);
  }
  /// Whether it could for some number of keys.
  static bool may_suit(const Problem& problem) {
    const Index n_q = problem.shapes.n_q;
    return !problem.weights && (n_q * problem.group() <= kMaxRows || n_q <= kRowMultiple);
  }

  /// With worker_bytes(problem) of scratch that nobody else uses while a task runs.
  DecodeAttention(const Problem& problem, const WorkerScratch& scratch, Workspace& workspace)
      : tables_(problem, reach(problem), workspace),
        scores_(problem, workspace),
        groups_(problem, kMaxRows),
        lanes_(groups_.rows() > kFewRows ? round_up(groups_.rows(), simd::kLanes<Real>) : 0),
        padded_rows_(lanes_ > 0 ? round_up(groups_.rows(), kRowMultiple) : groups_.rows()),
        key_stride_(round_up(problem.shapes.d, simd::kLanes<Real>)),
        width_(round_up(problem.shapes.d_v, simd::kLanes<Real>)),
        first_split_(reach(problem).begin / kSplit),
        splits_(ceil_div(reach(problem).end, kSplit) - first_split_),
        queries_(workspace.take<Real>(groups_.count() * query_rows() * key_stride_).data()),
        references_(workspace.take<BiasReference>(groups_.all_rows()).data()),
        allowed_(workspace.take<KeySet>(groups_.all_rows()).data()),
        states_(groups_.count() * splits_ * padded_rows_, width_, workspace),
        scratch_(scratch) {}

  std::size_t worker_bytes(const Problem& problem) const {
    return Workspace::bytes_of([&](Workspace& share) {
      buffers(problem, share);
      SoftmaxTotals(1, width_, share);
    });
  }

  Index tasks(const Problem& problem, Stage stage) const {
    switch (stage) {
      case Stage::prepare:
        return tables_.tasks(problem) + scores_.tasks();
      case Stage::attend:
        return splits_ * groups_.count();
      case Stage::load:
      case Stage::finish:
        return groups_.all_rows();
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
        return load_query(problem, x.q, task, worker);
      case Stage::attend: {
        // Heads within a split, so that they share the rotation table's rows in the cache.
        const Index group = task % groups_.count(), split = task / groups_.count();
        Workspace share = scratch_.of(worker);
        return attend_split(problem, group, split, x.k, x.v, buffers(problem, share));
      }
      case Stage::finish:
        return finish_row(problem, task, worker, x.out, x.lse);
    }
  }

 private:
  static constexpr Index kSplit = kStretch;  // keys of a task
  static constexpr Index kBlock = kDecodeBlock;
  static_assert(kSplit % kBlock == 0);
  static constexpr Index kPaddedBlock = round_up(kBlock, kRowMultiple);

  /// One worker's scratch for a block of keys.
  struct Buffers {
    Real* scores;  // [rows, kBlock]
    Real* line;    // [kBlock], a row of a lag function
    Real* keys;    // [kPaddedBlock, key_stride], zero past d
    Real* values;  // [kBlock, width], zero past d_v
    Real* output;  // [rows, width], or scores [kPaddedBlock, lanes]
  };

  Buffers buffers(const Problem& problem, Workspace& w) const {
    const bool many = lanes_ > 0;
    return {.scores = w.take<Real>(padded_rows_ * kBlock).data(),
            .line = w.take<Real>(kBlock).data(),
            .keys = w.take<Real>(many || problem.rotates() ? kPaddedBlock * key_stride_ : 0).data(),
            .values = w.take<Real>(many ? kBlock * width_ : 0).data(),
            .output = w.take<Real>(many ? kPaddedBlock * lanes_ : padded_rows_ * width_).data()};
  }

  /// The smallest range that holds the keys which some query may attend to.
  static Range reach(const Problem& problem) { return problem.grid.reached().hull(); }

  /// Rows of a group's queries, or lanes of their columns.
  Index query_rows() const { return std::max(groups_.rows(), lanes_); }
  /// The queries of a group: [rows, key_stride], or where they are many, side by side, [d, lanes].
  Real* queries_of(Index g) const { return queries_ + g * query_rows() * key_stride_; }
  BiasReference& reference(Index g, Index r) const { return references_[groups_.number(g, r)]; }
  KeySet& allowed(Index g, Index r) const { return allowed_[groups_.number(g, r)]; }

  /// The keys of a block that some row of a group may attend to, as the smallest range; empty too where dense
  /// bias and mask leave nothing of it.
  Range seen_of(const Problem& problem, Index g, Range block) const {
    Range seen = block;
    if (problem.grid.has_ranges()) {
      seen = {};
      for (Index r = 0; r < groups_.size(g); ++r) seen = hull(seen, allowed(g, r).hull(block));
    }
    if (seen.empty() || !problem.is_dense()) return seen;
    for (Index h = groups_.head(g, 0); h <= groups_.head(g, groups_.size(g) - 1); ++h)
      if (scores_.dense_sees(h, {0, problem.shapes.n_q}, block)) return seen;
    return {};
  }
  /// seen_of the first of a split's blocks, from key j on, of which something is seen; empty where none is.
  Range next_seen(const Problem& problem, Index g, Index j, Range keys) const {
    for (; j < keys.end; j = round_down(j, kBlock) + kBlock)
      if (const Range seen = seen_of(problem, g, intersect({j, round_down(j, kBlock) + kBlock}, keys));
          !seen.empty())
        return seen;
    return {};
  }

  void load_query(const Problem& problem, const StoredRows& q, Index task, Index worker) {
    const auto [g, r] = groups_.row(task);
    const Index i = groups_.query(g, r), h = groups_.head(g, r), d = problem.shapes.d;
    Workspace share = scratch_.of(worker);
    Real* x = lanes_ > 0 ? buffers(problem, share).keys : queries_of(g) + r * key_stride_;
    q.head(h).read(i, d, x);
    tables_.turn_query(problem, i, x);
    const auto factor = static_cast<Real>(Scores<Real>::query_factor(problem));
    for (Index c = 0; c < d; ++c) x[c] *= factor;
    std::fill(x + d, x + key_stride_, Real{0});
    if (lanes_ > 0) {
      // The lanes after a group's last query hold what memory held: zeros are multiplied as fast as numbers.
      const Index end = r + 1 == groups_.size(g) ? lanes_ : r + 1;
      for (Index c = 0; c < d; ++c) {
        Real* column = queries_of(g) + c * lanes_;
        column[r] = x[c];
        std::fill(column + r + 1, column + end, Real{0});
      }
    }
    allowed(g, r) = problem.grid.keys_of(h, i);
    reference(g, r) = scores_.reference(problem, h, i, allowed(g, r));
  }

  /// The partial states of a split's keys for the rows of a group.
  /// A block's values are fetched while its keys are scored and the next keys while its values are added, so
  /// that the memory never waits for the arithmetic.
  void attend_split(const Problem& problem, Index g, Index split, const KeyRows<Real>& k,
                    const ValueRows<Real>& v, const Buffers& b) const {
    const Index rows = groups_.size(g);
    const SoftmaxRows<Real> states = states_.from((g * splits_ + split) * padded_rows_);
    states.clear(padded_rows_);
    std::fill(b.scores + rows * kBlock, b.scores + padded_rows_ * kBlock, Real{0});
    const Index key = (first_split_ + split) * kSplit;
    const Range keys = intersect({key, key + kSplit}, reach(problem));
    // Blocks begin at multiples of kBlock whatever is seen of them, so that masks of any kind which say the
    // same give the same bits.
    Range seen = next_seen(problem, g, keys.begin, keys);
    if (seen.empty()) return;
    // The source rows of the block that holds `seen`; beside it, the rows of its first and last key again.
    const auto block_rows = [&](const StoredHead& source, Range some) {
      std::array<const std::byte*, kBlock> at;
      const Index first = round_down(some.begin, kBlock);
      if (some.size() == kBlock && problem.grid.in_order() && !source.is_paged) {
        const std::byte* row = source.row(first);
        for (Index m = 0; m < kBlock; ++m) at[static_cast<std::size_t>(m)] = row + m * source.row_stride;
        return at;
      }
      for (Index m = 0; m < kBlock; ++m)
        at[static_cast<std::size_t>(m)] =
            source.row(problem.grid.source(std::clamp(first + m, some.begin, some.end - 1)));
      return at;
    };
    const StoredHead k_head = k.head(groups_.kv_head(g)), v_head = v.head(groups_.kv_head(g));
    auto key_rows = block_rows(k_head, seen);
    while (!seen.empty()) {
      const Index j = round_down(seen.begin, kBlock), padded = round_up(seen.end - j, simd::kLanes<Real>);
      const Range block{j, seen.end};
      const auto value_rows = block_rows(v_head, seen);
      score_block(problem, g, k, key_rows.data(), {value_rows.data(), step_of(v)}, seen, b);
      Scores<Real>::mark_infinite(problem, rows, padded, b.scores, kBlock);
      for (Index r = 0; r < rows; ++r) {
        const Index h = groups_.head(g, r), i = groups_.query(g, r);
        if (!Scores<Real>::modifies(problem) && !scores_.dense_masks(problem, h, {i, i + 1}, seen) &&
            allowed(g, r).solid(seen).size() == padded)
          continue;
        scores_.finish(problem, h, {i, i + 1}, {j, j + padded}, seen, &allowed(g, r), &reference(g, r), 1,
                       b.scores + r * kBlock, kBlock, b.line);
      }
      if (problem.kernel.is_softmax())
        states.weigh(rows, b.scores, kBlock, padded);
      else
        states.weigh_polynomial(problem.kernel.coefficients(), rows, b.scores, kBlock, padded);
      seen = next_seen(problem, g, j + kBlock, keys);
      if (!seen.empty()) key_rows = block_rows(k_head, seen);
      add_values(problem, g, v, value_rows.data(), {key_rows.data(), step_of(k)}, block, states, b);
    }
  }

  /// Bytes of a row for a vector of columns, rounded up.
  static Index step_of(const StoredRows& x) {
    return ceil_div(simd::kLanes<Real> * x.type->bytes, x.type->elements);
  }

  /// scores [rows, kBlock] of the block that holds the keys `seen`, up to the last of them, for whole groups
  /// of four, while the values are fetched.
  void score_block(const Problem& problem, Index g, const KeyRows<Real>& k, const std::byte* const* keys,
                   RowsAhead values, Range seen, const Buffers& b) const {
    const Index d = problem.shapes.d, first = round_down(seen.begin, kBlock), count = seen.end - first;
    const Real* queries = queries_of(g);
    const Index rows = groups_.size(g);
    if (lanes_ == 0 && !problem.rotates())
      return k.score(rows, d, queries, key_stride_, keys, values, count, b.scores);
    std::array<const std::byte*, kBlock> turned;
    for (Index m = 0; m < kBlock; ++m) {
      const Index j = std::clamp(first + m, seen.begin, seen.end - 1);
      Real* x = b.keys + (j - first) * key_stride_;
      if (j == first + m) {
        k.type->convert(keys[m], d, x);
        tables_.turn_key(problem, j, x);
      }
      turned[static_cast<std::size_t>(m)] = reinterpret_cast<const std::byte*>(x);
    }
    if (lanes_ == 0)
      return detail::score_rows<Real, Real>(rows, d, queries, key_stride_, turned.data(), values, count,
                                            b.scores);
    std::fill(b.keys, b.keys + (seen.begin - first) * key_stride_, Real{0});
    std::fill(b.keys + count * key_stride_, b.keys + kPaddedBlock * key_stride_, Real{0});
    constexpr Index kSome = kRowMultiple;
    for (Index m = 0; m < count; m += kSome) {
      fetch(values, problem.shapes.d_v, {m, std::min(m + kSome, kBlock)});
      multiply<false, Real>(kSome, lanes_, d,
                            BroadcastOperand<Real>{b.keys + m * key_stride_, key_stride_, 1}, queries, lanes_,
                            b.output + m * lanes_, lanes_);
    }
    for (Index m = 0; m < count; m += simd::kBlockRows<Real>)
      simd::transpose_strip(b.output + m * lanes_, lanes_, rows, b.scores + m, kBlock);
  }

  /// Asks for `cols` columns of some of the rows ahead.
  static void fetch(RowsAhead ahead, Index cols, Range rows) {
    const Index bytes = ceil_div(cols, simd::kLanes<Real>) * ahead.step;
    for (Index m = rows.begin; m < rows.end; ++m)
      for (Index at = 0; at < bytes; at += kLine) simd::prefetch(ahead.rows[m], at);
  }

  /// output += weights [rows, block] values [block, d_v], while the next keys are fetched.
  void add_values(const Problem& problem, Index g, const ValueRows<Real>& v, const std::byte* const* values,
                  RowsAhead next_keys, Range block, const SoftmaxRows<Real>& states, const Buffers& b) const {
    constexpr Index kStep = simd::kLanes<Real>;
    const Index rows = groups_.size(g);
    if (lanes_ > 0) return multiply_values(problem, g, v, values, next_keys, block, states, b);
    std::fill_n(b.output, rows * width_, Real{0});
    v.sum(rows, problem.shapes.d_v, b.scores, values, next_keys, block.size(), b.output, width_);
    for (Index r = 0; r < rows; ++r) {
      const Real* sum = b.output + r * width_;
      simd::Vec<Real> zeros = simd::zero<Real>();  // x * 0 is 0 for finite x and NaN otherwise
      for (Index c = 0; c < width_; c += kStep)
        zeros = simd::fma(simd::load(sum + c), simd::zero<Real>(), zeros);
      // A masked key's weight is 0, but 0 times an infinite or NaN value is NaN: then masked keys are left
      // out one by one.
      if (simd::reduce_add<Real>(zeros) == 0)
        for (Index c = 0; c < width_; ++c) states.row(r)[c] += sum[c];
      else
        add_allowed_values(problem, g, r, *v.type, values, block, b.scores + r * kBlock, states.row(r));
    }
  }

  /// The same for many rows, by a product.
  void multiply_values(const Problem& problem, Index g, const ValueRows<Real>& v,
                       const std::byte* const* values, RowsAhead next_keys, Range block,
                       const SoftmaxRows<Real>& states, const Buffers& b) const {
    constexpr Index kStep = simd::kLanes<Real>;
    const Index rows = groups_.size(g);
    simd::Vec<Real> zeros = simd::zero<Real>();  // x * 0 is 0 for finite x and NaN otherwise
    for (Index m = 0; m < block.size(); ++m) {
      Real* x = b.values + m * width_;
      v.type->convert(values[m], problem.shapes.d_v, x);
      std::fill(x + problem.shapes.d_v, x + width_, Real{0});
      for (Index c = 0; c < width_; c += kStep)
        zeros = simd::fma(simd::load(x + c), simd::zero<Real>(), zeros);
    }
    if (simd::reduce_add<Real>(zeros) != 0) {
      for (Index r = 0; r < rows; ++r)
        add_allowed_values(problem, g, r, *v.type, values, block, b.scores + r * kBlock, states.row(r));
      return;
    }
    constexpr Index kSome = kRowMultiple;
    const Index parts = padded_rows_ / kSome;
    for (Index part = 0; part < parts; ++part) {
      fetch(next_keys, problem.shapes.d, {kBlock * part / parts, kBlock * (part + 1) / parts});
      const Index r = part * kSome;
      if (r >= rows) continue;  // the last group of a head may have fewer
      multiply<true, Real>(std::min(kSome, rows - r), width_, block.size(),
                           BroadcastOperand<Real>{b.scores + r * kBlock, kBlock, 1}, b.values, width_,
                           states.row(r), width_);
    }
  }

  void add_allowed_values(const Problem& problem, Index g, Index r, const StoredType& type,
                          const std::byte* const* values, Range block, const Real* weights,
                          Real* output) const {
    allowed(g, r).for_each(block, [&](Range some) {
      for (Index j = some.begin; j < some.end; ++j)
        if (dense_allows(problem, groups_.head(g, r), groups_.query(g, r), j))
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
    const auto [g, r] = groups_.row(task);
    const Index head = groups_.head(g, r), i = groups_.query(g, r);
    const double taken = reference(g, r).total();
    Workspace share = scratch_.of(worker);
    const SoftmaxTotals totals(1, width_, share);
    totals.clear(1);
    for (Index s = 0; s < splits_; ++s) totals.add(0, states_, (g * splits_ + s) * padded_rows_ + r);
    if (!problem.sinks.empty())
      totals.add_sink(0, (problem.sinks[static_cast<std::size_t>(head)] - taken) * kLog2E);
    totals.template write<Real>(0, out, head, i);
    if (lse.data != nullptr)
      lse(head, i) = static_cast<Real>(problem.kernel.is_softmax() ? totals.lse(0) + taken : totals.sum[0]);
  }

  RotationTables<Real> tables_;
  Scores<Real> scores_;
  RowGroups groups_;
  Index lanes_;        // of queries side by side, where rows are many; else 0
  Index padded_rows_;  // in whole tiles, where rows are many
  Index key_stride_;   // d in whole vectors
  Index width_;        // d_v in whole vectors
  Index first_split_;  // of those that some query reaches
  Index splits_;
  Real* queries_;              // of each group: queries_of
  BiasReference* references_;  // of all rows
  KeySet* allowed_;            // of all rows
  SoftmaxRows<Real> states_;   // [groups, splits, padded_rows]
  WorkerScratch scratch_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
