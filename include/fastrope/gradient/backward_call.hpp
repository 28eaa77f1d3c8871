// BackwardCall: the schedule of attend_backward, and the sums over blocks.
//
// A key head's pairs are cut into blocks of rows of its query heads times splits of keys. Each pair of a
// block and a split adds to the block's d_q and to the split's d_k and d_v, so in round r split s meets block
// s + r modulo the number of rounds: no two tasks of a round share a block or a split, and every sum has one
// order, whatever the number of threads. So scores are made once for all gradients, five products, not seven
// in two passes. Sums over blocks and splits are of double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/transpose.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/scores.hpp"
#include "fastrope/gradient/gradient_block.hpp"
#include "fastrope/gradient/packed_rows.hpp"
#include "fastrope/gradient/parameter_gradients.hpp"
#include "fastrope/gradient/parameter_sums.hpp"
#include "fastrope/position/lag_bias.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The tensors of attend_backward.
template <class Real>
struct BackwardTensors {
  StoredRows q, k, v, out;
  MatrixView<const Real> lse;
  StoredRows d_out;
  TensorView<Real> d_q, d_k, d_v;
};

/// One call of checked tensors. The problem is that of the scores alone, without values: its d_v is 0.
template <class Real>
class BackwardCall {
 public:
  /// bias: that of the call's options, which must outlive it.
  BackwardCall(const Problem& problem, Index d_v, const LagBias& bias, const ParameterGradients& parameters,
               Workspace& workspace)
      : d_v_(d_v),
        query_stride_(round_up(problem.shapes.d, simd::kLanes<Real>)),
        blocks_(ceil_div(problem.shapes.n_q, kRows)),
        splits_(splits_of(problem.grid.reached().hull())),
        split_keys_(std::min(kKeys, round_up(problem.shapes.n_k, kWidth))),
        scratch_(problem.executor.workers(), worker_bytes(problem, d_v), workspace),
        packed_(problem, d_v, scratch_, workspace),
        scores_(problem, workspace),
        sums_(problem, bias, parameters, workspace) {
    const Shapes& s = problem.shapes;
    const Index splits = s.kv_heads * splits_.size();
    delta_ = workspace.take<double>(s.heads * s.n_q).data();
    d_q_ = workspace.take<double>(s.heads * s.n_q * query_stride_).data();
    d_k_ = workspace.take<double>(splits * s.d * split_keys_).data();
    d_v_sums_ = workspace.take<double>(splits * d_v * split_keys_).data();
  }

  void run(const Problem& problem, const BackwardTensors<Real>& x, const ParameterGradients& parameters) {
    const Shapes& s = problem.shapes;
    const Executor& executor = problem.executor;
    const auto& tables = packed_.keys().tables();
    executor.parallel_for(tables.tasks(problem), [&](Index task, Index) { tables.fill(problem, task); });
    executor.parallel_for(scores_.tasks(), [&](Index task, Index) { scores_.prepare(problem, task); });
    executor.parallel_for(packed_.tasks(problem), [&](Index task, Index worker) {
      packed_.pack_task(problem, x.k, x.v, task, worker);
    });
    executor.parallel_for(s.heads * blocks_,
                          [&](Index task, Index worker) { start_rows(problem, x, task, worker); });
    executor.parallel_for(s.kv_heads * splits_.size(), [&](Index task, Index) {
      std::fill_n(d_k_ + task * s.d * split_keys_, s.d * split_keys_, 0.0);
      std::fill_n(d_v_sums_ + task * d_v_ * split_keys_, d_v_ * split_keys_, 0.0);
    });
    sums_.clear();
    add_pairs(problem, x);
    executor.parallel_for(s.heads * blocks_,
                          [&](Index task, Index worker) { write_rows(problem, x.d_q, task, worker); });
    executor.parallel_for(s.kv_heads * ceil_div(s.n_k, kKeys),
                          [&](Index task, Index worker) { write_keys(problem, x, task, worker); });
    sums_.write(problem, parameters);
    for (Index h = 0; h < std::ssize(parameters.sinks); ++h)
      parameters.sinks[static_cast<std::size_t>(h)] = of_sink(problem, x.lse, h);
  }

 private:
  /// Of a block: enough that what is done once for a split's gradients weighs little.
  static constexpr Index kRows = 2 * GradientBlock<Real>::kRows;
  static constexpr Index kKeys = GradientBlock<Real>::kKeys;
  static constexpr Index kWidth = PackedRows<Real>::kWidth;

  static Range splits_of(Range keys) {
    return keys.empty() ? Range{} : Range{keys.begin / kKeys, ceil_div(keys.end, kKeys)};
  }
  Range rows_of(const Problem& problem, Index block) const {
    return intersect({block * kRows, (block + 1) * kRows}, {0, problem.shapes.n_q});
  }

  /// What a worker has for results on their way: the columns of a panel of keys as rows, [kWidth, stride],
  /// and two rows.
  struct Rows {
    Index stride;
    double* sums;
    Real* rows;

    Rows(const Problem& problem, Index d_v, Workspace& share)
        : stride(round_up(std::max(problem.shapes.d, d_v), simd::kLanes<Real>) + simd::kLanes<Real>),
          sums(share.take<double>(kWidth * stride).data()),
          rows(share.take<Real>(2 * stride).data()) {}
  };

  static std::size_t worker_bytes(const Problem& problem, Index d_v) {
    return std::max({PackedRows<Real>::worker_bytes(problem, d_v),
                     Workspace::bytes_of([&](Workspace& w) { GradientBlock<Real>(problem, d_v, w); }),
                     Workspace::bytes_of([&](Workspace& w) { Rows(problem, d_v, w); })});
  }

  /// delta of a block of rows of a head, and sums of 0.
  void start_rows(const Problem& problem, const BackwardTensors<Real>& x, Index task, Index worker) const {
    const Index h = task / blocks_, n_q = problem.shapes.n_q;
    const Range rows = rows_of(problem, task % blocks_);
    Workspace share = scratch_.of(worker);
    const Rows scratch(problem, d_v_, share);
    Real *const d_out = scratch.rows, *const out = scratch.rows + scratch.stride;
    for (Index i = rows.begin; i < rows.end; ++i) {
      x.d_out.head(h).read(i, d_v_, d_out);
      x.out.head(h).read(i, d_v_, out);
      double sum = 0;
      for (Index c = 0; c < d_v_; ++c) sum += static_cast<double>(d_out[c]) * static_cast<double>(out[c]);
      delta_[h * n_q + i] = sum;
    }
    std::fill_n(d_q_ + (h * n_q + rows.begin) * query_stride_, rows.size() * query_stride_, 0.0);
  }

  void add_pairs(const Problem& problem, const BackwardTensors<Real>& x) const {
    const Index kv_heads = problem.shapes.kv_heads, splits = splits_.size();
    const Index rounds = std::max(splits, problem.group() * blocks_);
    const auto meet = [&](Index kv, Index split, Index round, Index worker) {
      const Index block = (split + round) % rounds;
      if (block < problem.group() * blocks_)
        add_pair(problem, x, kv * problem.group() + block / blocks_, block % blocks_, split, worker);
    };
    for (Index round = 0; round < rounds; ++round) {
      if (sums_.bias.wanted())  // splits of a head add to the same sums, one after the other
        problem.executor.parallel_for(kv_heads, [&](Index kv, Index worker) {
          for (Index split = 0; split < splits; ++split) meet(kv, split, round, worker);
        });
      else
        problem.executor.parallel_for(kv_heads * splits, [&](Index task, Index worker) {
          meet(task / splits, task % splits, round, worker);
        });
    }
  }

  /// The pairs of a block of rows of a query head and a split of the keys.
  void add_pair(const Problem& problem, const BackwardTensors<Real>& x, Index h, Index block, Index split,
                Index worker) const {
    const Shapes& s = problem.shapes;
    const Index first_key = (splits_.begin + split) * kKeys;
    const Range rows = rows_of(problem, block), keys = intersect({first_key, first_key + kKeys}, {0, s.n_k});
    bool meet = false;
    for (Index i = rows.begin; i < rows.end && !meet; ++i)
      meet = !problem.grid.keys_of(h, i).hull(keys).empty();
    if (!meet) return;

    Workspace share = scratch_.of(worker);
    GradientBlock<Real> gradients(problem, d_v_, share);
    const MatrixView<const double> delta(delta_, s.heads, s.n_q);
    gradients.start_keys({first_key, first_key + split_keys_});
    for (Index first = rows.begin; first < rows.end; first += gradients.kRows) {
      const Range some = intersect({first, first + gradients.kRows}, rows);
      gradients.start_rows(problem, packed_, scores_, h, {x.q, x.d_out, x.lse, delta}, some);
      gradients.add_pairs(problem, packed_, scores_, keys, sums_);
      for (Index i = some.begin; i < some.end; ++i)
        add_to(gradients.d_q(i - first), query_stride_, d_q_ + (h * s.n_q + i) * query_stride_);
    }
    const Index place = problem.kv_head(h) * splits_.size() + split;
    for (Index c = 0; c < s.d; ++c)
      add_to(gradients.d_k(c), split_keys_, d_k_ + (place * s.d + c) * split_keys_);
    for (Index c = 0; c < d_v_; ++c)
      add_to(gradients.d_v(c), split_keys_, d_v_sums_ + (place * d_v_ + c) * split_keys_);
  }

  /// sums [count] += x. Requires count a multiple of the vector length.
  static void add_to(const Real* x, Index count, double* sums) {
    using namespace simd;
    for (Index c = 0; c < count; c += kLanes<double>)
      store<double>(add(load(sums + c), load_as<double>(x + c)), sums + c);
  }

  /// row [count] = factor sums, rounded.
  static void round(const double* sums, double factor, Index count, Real* row) {
    for (Index c = 0; c < count; ++c) row[c] = static_cast<Real>(factor * sums[c]);
  }

  void write_rows(const Problem& problem, const TensorView<Real>& d_q, Index task, Index worker) const {
    const Index h = task / blocks_, n_q = problem.shapes.n_q, d = problem.shapes.d;
    const Range rows = rows_of(problem, task % blocks_);
    Workspace share = scratch_.of(worker);
    Real* const row = Rows(problem, d_v_, share).rows;
    for (Index i = rows.begin; i < rows.end; ++i) {
      round(d_q_ + (h * n_q + i) * query_stride_, problem.scale, d, row);
      packed_.keys().tables().turn_query_back(problem, i, row);
      std::copy_n(row, d, d_q.head(h).row(i));
    }
  }

  /// The rows of d_k and d_v of a split's keys, reached or not.
  void write_keys(const Problem& problem, const BackwardTensors<Real>& x, Index task, Index worker) const {
    const Index parts = ceil_div(problem.shapes.n_k, kKeys), kv = task / parts, split = task % parts;
    const Index d = problem.shapes.d, place = kv * splits_.size() + split - splits_.begin;
    const bool some = splits_.begin <= split && split < splits_.end;
    Workspace share = scratch_.of(worker);
    const Rows scratch(problem, d_v_, share);
    const auto write = [&](Index width, double factor, const double* sums, const TensorView<Real>& to,
                           bool turned) {
      for (Index first = 0; first < split_keys_; first += kWidth) {
        const Range keys =
            intersect({split * kKeys + first, split * kKeys + first + kWidth}, {0, problem.shapes.n_k});
        if (some)
          transpose(sums + place * width * split_keys_ + first, width, kWidth, split_keys_, scratch.sums,
                    scratch.stride);
        for (Index j = keys.begin; j < keys.end; ++j) {
          Real* const row = to.head(kv).row(problem.grid.source(j));
          std::fill_n(row, width, Real{0});
          if (!some || problem.grid.reached().hull({j, j + 1}).empty()) continue;
          round(scratch.sums + (j - keys.begin) * scratch.stride, factor, width, scratch.rows);
          if (turned) packed_.keys().tables().turn_key_back(problem, j, scratch.rows);
          std::copy_n(scratch.rows, width, row);
        }
      }
    };
    write(d, problem.scale, d_k_, x.d_k, /*turned=*/true);
    write(d_v_, 1, d_v_sums_, x.d_v, /*turned=*/false);
  }

  /// -sum_i p_i delta_i, p the weights of a head's sink.
  double of_sink(const Problem& problem, const MatrixView<const Real>& lse, Index h) const {
    const double sink = problem.sinks[static_cast<std::size_t>(h)];
    double sum = 0;
    if (sink == -std::numeric_limits<double>::infinity()) return sum;
    for (Index i = 0; i < problem.shapes.n_q; ++i)
      sum -= std::exp(sink - static_cast<double>(lse(h, i))) * delta_[h * problem.shapes.n_q + i];
    return sum;
  }

  Index d_v_;
  Index query_stride_;
  Index blocks_;      // of rows of a head
  Range splits_;      // of keys that are reached
  Index split_keys_;  // room of a split: kKeys, or all keys where those are fewer
  WorkerScratch scratch_;
  PackedRows<Real> packed_;
  Scores<Real> scores_;
  ParameterSums<Real> sums_;
  double* delta_;     // [heads, n_q]
  double* d_q_;       // [heads, n_q, query_stride], of turned rows and without the scale, here and below
  double* d_k_;       // [kv_heads, splits, d, split_keys]
  double* d_v_sums_;  // [kv_heads, splits, d_v, split_keys]
};

}  // namespace fastrope::inline FASTROPE_TARGET
