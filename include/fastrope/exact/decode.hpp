// Decode: few queries against a long cache, bound by memory bandwidth. Nothing is packed.
//
// The query rows of a key/value head (n_q of each query head of its group) are taken together, so that each
// key and value is read once for all of them. Keys are cut into splits of a fixed length, whatever the number
// of threads; each split gives partial softmax states, which are merged in double in the order of the keys.
// Cost: one read of K and V.
#pragma once

#include <algorithm>
#include <array>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/online_softmax.hpp"
#include "fastrope/exact/rotation_tables.hpp"
#include "fastrope/exact/scores.hpp"
#include "fastrope/exact/stage.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Keys whose scores decoding holds at once.
inline constexpr Index kDecodeBlock = 64;

namespace detail {

/// scores(r, j) = sum_c queries(r, c) keys[j][c] for kKeys keys and kQueries rows.
/// queries: rows of stride `query_stride`, zero past d up to whole vectors; scores: row stride `stride`.
/// The same columns of `later` are fetched meanwhile.
template <class Real, int kQueries, int kKeys, class T, class Later>
HWY_INLINE void dot_block(Index d, const Real* queries, Index query_stride, const T* const* keys,
                          const Later* const* later, Real* scores, Index stride) {
  using namespace simd;
  constexpr Index kStep = kLanes<Real>;
  Vec<Real> sum[kQueries][kKeys];
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) sum[r][j] = zero<Real>();
  const auto step = [&](Index c, auto&& load_key) HWY_ATTR {
    Vec<Real> key[kKeys];
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) {
      key[j] = load_key(keys[j] + c);
      prefetch(later[j], c);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kQueries; ++r) {
      const Vec<Real> query = load(queries + r * query_stride + c);
#pragma GCC unroll 8
      for (int j = 0; j < kKeys; ++j) sum[r][j] = fma(query, key[j], sum[r][j]);
    }
  };
  Index c = 0;
  for (; c + kStep <= d; c += kStep) step(c, [](const T* p) { return load_as<Real>(p); });
  if (c < d) step(c, [d, c](const T* p) { return load_first_as<Real>(p, d - c); });
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; j += 4)
      reduce_add4<Real>(sum[r][j], sum[r][j + 1], sum[r][j + 2], sum[r][j + 3], scores + r * stride + j);
}

/// output(r, c) += sum_j weights(r, j) values[j][c] for kQueries rows and kVecs vectors of columns from c on,
/// of which the last may be `tail` > 0 elements. The same columns of `later` are fetched meanwhile.
template <class Real, int kQueries, int kVecs, class T, class Later>
HWY_INLINE void add_weighted_rows(const Real* weights, Index weight_stride, const T* const* values,
                                  const Later* const* later, Index count, Index c, Index tail, Real* output,
                                  Index output_stride) {
  using namespace simd;
  constexpr Index kStep = kLanes<Real>;
  Vec<Real> sum[kQueries][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) sum[r][v] = load(output + r * output_stride + c + v * kStep);
  for (Index j = 0; j < count; ++j) {
    Vec<Real> row[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      const T* p = values[j] + c + v * kStep;
      row[v] = v + 1 == kVecs && tail > 0 ? load_first_as<Real>(p, tail) : load_as<Real>(p);
      prefetch(later[j], c + v * kStep);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kQueries; ++r) {
      const Vec<Real> weight = set(weights[r * weight_stride + j]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sum[r][v] = fma(weight, row[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) store<Real>(sum[r][v], output + r * output_stride + c + v * kStep);
}

}  // namespace detail

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

  /// q: [heads, n_q, d], k: [kv_heads, n_k, d], v: [kv_heads, n_k, d_v], out: [heads, n_q, d_v];
  /// lse: [heads, n_q] or without data.
  template <class Q, class K, class V, class Out>
  void run_task(const Problem& problem, Stage stage, Index task, Index worker, TensorView<const Q> q,
                const K& k, const V& v, TensorView<Out> out, MatrixView<Real> lse) {
    switch (stage) {
      case Stage::prepare: {
        const Index table_tasks = tables_.tasks(problem);
        return task < table_tasks ? tables_.fill(problem, task)
                                  : scores_.prepare(problem, task - table_tasks);
      }
      case Stage::load:
        return load_query(problem, q, task);
      case Stage::attend: {
        // Heads within a split, so that they share the rotation table's rows in the cache.
        const Index kv = task % problem.shapes.kv_heads, split = task / problem.shapes.kv_heads;
        Workspace share = scratch_.of(worker);
        return attend_split(problem, kv, split, k.head(kv), v.head(kv), buffers(problem, share));
      }
      case Stage::finish:
        return finish_row(problem, task, worker, out, lse);
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

  /// The keys that some query may attend to.
  static Range reach(const Problem& problem) { return problem.grid.keys_of(Range{0, problem.shapes.n_q}); }

  Index head_of(const Problem& problem, Index kv, Index row) const {
    return kv * problem.group() + row / problem.shapes.n_q;
  }
  Index query_of(const Problem& problem, Index row) const { return row % problem.shapes.n_q; }

  template <class Q>
  void load_query(const Problem& problem, TensorView<const Q> q, Index task) {
    const Index kv = task / rows_, row = task % rows_, d = problem.shapes.d;
    const Index i = query_of(problem, row);
    Real* x = queries_ + task * key_stride_;
    tables_.load_query(problem, q.head(head_of(problem, kv, row)).row(i), i, x);
    const auto factor = static_cast<Real>(Scores<Real>::query_factor(problem));
    for (Index c = 0; c < d; ++c) x[c] *= factor;
    std::fill(x + d, x + key_stride_, Real{0});
    references_[task] = scores_.reference(problem, head_of(problem, kv, row), i, problem.grid.keys_of(i));
  }

  /// The partial states of a split's keys for all query rows of a key/value head.
  /// A block's values are fetched while its keys are scored and the next keys while its values are added, so
  /// that the memory never waits for the arithmetic.
  template <class K, class V>
  void attend_split(const Problem& problem, Index kv, Index split, const K& k, const V& v,
                    const Buffers& b) const {
    const SoftmaxRows<Real> states = states_.from((kv * splits_ + split) * rows_);
    states.clear(rows_);
    const Range keys = intersect({split * kSplit, (split + 1) * kSplit}, reach(problem));
    if (keys.empty()) return;
    // The source rows of a block of keys, past the last key its row again.
    const auto block_rows = [&](const auto& source, Index first) {
      std::array<decltype(source.row(0)), kBlock> rows;
      for (Index m = 0; m < kBlock; ++m)
        rows[static_cast<std::size_t>(m)] =
            source.row(problem.grid.source(std::min(first + m, keys.end - 1)));
      return rows;
    };
    auto key_rows = block_rows(k, keys.begin);
    for (Index j = keys.begin; j < keys.end; j += kBlock) {
      const Range block{j, std::min(j + kBlock, keys.end)};
      const auto value_rows = block_rows(v, j);
      const Index padded = round_up(block.size(), simd::kLanes<Real>);
      score_block(problem, kv, key_rows.data(), value_rows.data(), block, b);
      for (Index r = 0; r < rows_; ++r) {
        const Index i = query_of(problem, r);
        const Range allowed = problem.grid.keys_of(i);
        scores_.finish(problem, head_of(problem, kv, r), {i, i + 1}, {j, j + padded}, block, &allowed,
                       references_ + kv * rows_ + r, 1, b.scores + r * kBlock, kBlock, b.line);
      }
      if (problem.kernel.is_softmax())
        states.weigh(rows_, b.scores, kBlock, padded);
      else
        states.weigh_polynomial(problem.kernel.coefficients(), rows_, b.scores, kBlock, padded);
      if (block.end < keys.end) key_rows = block_rows(k, block.end);
      add_values(problem, kv, value_rows.data(), key_rows.data(), block, states, b);
    }
  }

  /// scores [rows, block], for whole groups of four keys, while the values are fetched.
  template <class K, class V>
  void score_block(const Problem& problem, Index kv, const K* const* keys, const V* const* values,
                   Range block, const Buffers& b) const {
    if (!problem.rotates()) return dot_rows(problem, kv, keys, values, block.size(), b.scores);
    std::array<const Real*, kBlock> rotated;
    for (Index m = 0; m < kBlock; ++m) {
      Real* x = b.rotated + std::min(m, block.size() - 1) * key_stride_;
      if (m < block.size()) tables_.load_key(problem, keys[m], block.begin + m, x);
      rotated[static_cast<std::size_t>(m)] = x;
    }
    dot_rows(problem, kv, rotated.data(), values, block.size(), b.scores);
  }

  template <class K, class V>
  void dot_rows(const Problem& problem, Index kv, const K* const* keys, const V* const* values, Index count,
                Real* scores) const {
    const Real* queries = queries_ + kv * rows_ * key_stride_;
    for (Index j = 0; j < count; j += 4)
      for_query_tiles([&](auto together, Index r) {
        constexpr int kQueries = together;
        detail::dot_block<Real, kQueries, 4>(problem.shapes.d, queries + r * key_stride_, key_stride_,
                                             keys + j, values + j, scores + r * kBlock + j, kBlock);
      });
  }

  /// tile(std::integral_constant<int, n>{}, r) for consecutive tiles of n = 4, 2 or 1 query rows from r on.
  template <class Tile>
  void for_query_tiles(Tile&& tile) const {
    Index r = 0;
    for (; r + 4 <= rows_; r += 4) tile(std::integral_constant<int, 4>{}, r);
    if (r + 2 <= rows_) {
      tile(std::integral_constant<int, 2>{}, r);
      r += 2;
    }
    if (r < rows_) tile(std::integral_constant<int, 1>{}, r);
  }

  /// output += weights [rows, block] values [block, d_v], while the next keys are fetched.
  template <class V, class K>
  void add_values(const Problem& problem, Index kv, const V* const* values, const K* const* next_keys,
                  Range block, const SoftmaxRows<Real>& states, const Buffers& b) const {
    constexpr Index kStep = simd::kLanes<Real>;
    constexpr Index kVecs = simd::kRegisters >= 32 ? 4 : 2;
    const Index d_v = problem.shapes.d_v;
    std::fill_n(b.output, rows_ * width_, Real{0});
    for (Index c = 0; c < d_v;) {
      const bool wide = c + kVecs * kStep <= d_v;
      for_query_tiles([&](auto together, Index r) {
        constexpr int kQueries = together;
        const auto add = [&](auto vectors) {
          constexpr Index kWide = vectors;
          detail::add_weighted_rows<Real, kQueries, kWide>(
              b.scores + r * kBlock, kBlock, values, next_keys, block.size(), c,
              std::max<Index>(0, kWide == 1 && c + kStep > d_v ? d_v - c : 0), b.output + r * width_, width_);
        };
        wide ? add(std::integral_constant<Index, kVecs>{}) : add(std::integral_constant<Index, 1>{});
      });
      c += wide ? kVecs * kStep : kStep;
    }
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
        add_allowed_values(problem, head_of(problem, kv, r), query_of(problem, r), values, block,
                           b.scores + r * kBlock, states.row(r));
    }
  }

  template <class V>
  static void add_allowed_values(const Problem& problem, Index head, Index i, const V* const* values,
                                 Range block, const Real* weights, Real* output) {
    const Range allowed = intersect(block, problem.grid.keys_of(i));
    for (Index j = allowed.begin; j < allowed.end; ++j)
      if (Scores<Real>::dense_allows(problem, head, i, j))
        for (Index c = 0; c < problem.shapes.d_v; ++c)
          output[c] += weights[j - block.begin] * static_cast<Real>(values[j - block.begin][c]);
  }

  /// Merges the splits of one query row in the order of the keys and writes it.
  template <class Out>
  void finish_row(const Problem& problem, Index task, Index worker, TensorView<Out> out,
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
    totals.template write<Real>(0, out.head(head).row(i), problem.shapes.d_v);
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
  SoftmaxRows<Real> states_;   // [kv_heads, splits, rows]
  WorkerScratch scratch_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
