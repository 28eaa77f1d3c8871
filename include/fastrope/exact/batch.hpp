// A batch: many sequences of different lengths in one call, each attended exactly, as if it were alone.
//
// Engines that serve many requests mix prompts, chunks of prompts over a cache and single new tokens in one
// step. Each stage of all sequences is one round of tasks, those of the longest sequences first: threads wait
// for each other as often as in one call, and all have work whatever the mix of lengths.
//
//     std::vector<SequenceViews<float>> batch;  // tokens one after the other, sequence s at offsets[s]
//     batch.push_back({rows(q, {offsets[s], offsets[s + 1]}), k_cache[s], v_cache[s],
//                      rows(out, {offsets[s], offsets[s + 1]})});
//     attend_batch(batch, options);
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <numeric>
#include <ranges>
#include <span>
#include <type_traits>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/exact_call.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/exact/stage.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/problem/run_status.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// One sequence's tensors. q: [heads, n_q, d], k: [kv_heads, n_k, d], v: [kv_heads, n_k, d_v], out: [heads,
/// n_q, d_v]; K and V are a TensorView or a PagedView. n_q and n_k may be 0. lse: [heads, n_q], the natural
/// log of each row's sum of exponentials, as merge() wants it, of a polynomial kernel the sum itself; without
/// data where it is not wanted.
template <class Q, class K = TensorView<const Q>, class V = K, class Out = Q>
struct SequenceViews {
  TensorView<const Q> q;
  K k;
  V v;
  TensorView<Out> out;
  MatrixView<ArithmeticOf<Q>> lse = {};
};

namespace detail {

/// f(), whose errors name the sequence.
template <class F>
auto in_sequence(std::size_t s, F&& f) {
  try {
    return f();
  } catch (const Error& error) {
    fail("sequence ", s, ": ", error.what());
  }
}

/// Throws Error where two sequences write to the same place from their first element on. data(s): of
/// sequence s, null where it writes nothing.
template <class Data>
void require_separate(const char* name, std::size_t sequences, Data&& data) {
  std::vector<std::size_t> order;
  for (std::size_t s = 0; s < sequences; ++s)
    if (data(s) != nullptr) order.push_back(s);
  std::ranges::stable_sort(order, std::ranges::less{}, data);
  const auto same = std::ranges::adjacent_find(order, std::ranges::equal_to{}, data);
  if (same != order.end()) fail("sequences ", same[0], " and ", same[1], " have the same ", name);
}

}  // namespace detail

/// A checked batch of given shapes with arithmetic in Real, to be run any number of times: once for each
/// layer of a model, say. One plan may be run by several threads at once, each with its own workspace.
template <class Real = float>
class BatchPlan {
 public:
  /// shapes: of each sequence; n_q and n_k differ, the rest is the same for all. own: of each sequence, or
  /// empty. Masks, biases and the like are those of `options` for every sequence; its tolerance is met by
  /// all, since all are exact. Throws Error for options and shapes that clash, naming the sequence and the
  /// values, and for what belongs to a single call: a path other than exact, and what SequenceOptions has.
  BatchPlan(std::span<const Shapes> shapes, const Options& options,
            std::span<const SequenceOptions> own = {}) {
    require_shared(options);
    if (!own.empty() && own.size() != shapes.size())
      detail::fail("options are given for ", own.size(), " of ", shapes.size(), " sequences");
    if (shapes.empty()) return;
    const Problem shared(with_lengths(shapes.front(), 0, 0), options);
    for (std::size_t s = 0; s < shapes.size(); ++s)
      detail::in_sequence(s, [&] {
        require_same_heads(shapes[s], shared.shapes);
        const SequenceOptions of = own.empty() ? SequenceOptions{} : own[s];
        problems_.push_back(shared.with(shapes[s].n_q, shapes[s].n_k, of));
        problems_.back().set_dense(of.dense_bias, of.dense_mask);
      });
    number_tasks();
    workspace_bytes_ = most_of_operands<Real>([&](auto operand) {
      return Workspace::bytes_of([&](Workspace& w) {
        w.take<ExactTensors<Real>>(std::ssize(problems_));
        make_calls<typename decltype(operand)::type>(w);
      });
    });
  }

  /// Scratch memory that run needs.
  std::size_t workspace_bytes() const { return workspace_bytes_; }

  /// Computes every sequence's out. sequences: a contiguous range of SequenceViews of the plan's shapes.
  /// Allocates nothing and throws nothing. An out must not overlap any input.
  template <std::ranges::contiguous_range Sequences>
  RunStatus run(const Sequences& sequences, std::span<std::byte> workspace) const noexcept {
    const std::span views(sequences);
    if (views.size() != problems_.size()) return RunStatus::shape_mismatch;
    if (workspace.size() < workspace_bytes_) return RunStatus::workspace_too_small;
    if (views.empty()) return RunStatus::ok;
    Workspace memory(workspace);
    const auto tensors = memory.take<ExactTensors<Real>>(std::ssize(views));
    for (std::size_t s = 0; s < views.size(); ++s) {
      const auto& [q, k, v, out, lse] = views[s];
      const ExactTensors<Real>& x = *std::construct_at(&tensors[s], ExactTensors<Real>{q, k, v, out, lse});
      if (!fits(problems_[s].shapes, x.q, x.k, x.v, x.out, x.lse)) return RunStatus::shape_mismatch;
    }
    const auto& x = views.front();
    return run_tensors<OperandOf<Real, decltype(x.q), decltype(x.k), decltype(x.v)>>(tensors, memory);
  }

 private:
  template <class Operand>
  RunStatus run_tensors(std::span<const ExactTensors<Real>> tensors, Workspace& memory) const noexcept {
    try {
      with_operand<Operand>(problems_.front(), true, [&](auto operand) {
        const auto calls = make_calls<typename decltype(operand)::type>(memory);
        for (const Stage stage : kStages) run_stage(stage, calls, tensors);
      });
    } catch (...) {
      return RunStatus::executor_failed;
    }
    return RunStatus::ok;
  }

  static Shapes with_lengths(Shapes s, Index n_q, Index n_k) {
    s.n_q = n_q;
    s.n_k = n_k;
    return s;
  }

  static void require_shared(const Options& options) {
    if (options.path != Path::automatic && options.path != Path::exact)
      detail::fail("path ", options.path, " does not serve batches: their sequences are exact");
    if (options.dense_bias.data != nullptr || options.dense_mask.data != nullptr)
      detail::fail("dense_bias and dense_mask have the shape of one call: a batch cannot share them, each ",
                   "sequence has its own in SequenceOptions");
    if (options.key_ranges.given())
      detail::fail("options.key_ranges are those of one call: each sequence has its own in SequenceOptions");
    if (!options.query_positions.empty() || !options.key_positions.empty() ||
        options.query_section_positions.data != nullptr || options.key_section_positions.data != nullptr)
      detail::fail(
          "options.query_positions and key_positions, also those of sections, are of one call: give ",
          "a batch's beside its shapes");
  }

  static void require_same_heads(const Shapes& s, const Shapes& shared) {
    if (with_lengths(s, 0, 0) != shared)
      detail::fail("heads ", s.heads, ", kv_heads ", s.kv_heads, ", d ", s.d, ", d_v ", s.d_v,
                   "; sequence 0 has heads ", shared.heads, ", kv_heads ", shared.kv_heads, ", d ", shared.d,
                   ", d_v ", shared.d_v);
  }

  /// Finds order_, first_task_ and worker_bytes_.
  void number_tasks() {
    order_.resize(problems_.size());
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    std::stable_sort(order_.begin(), order_.end(), [&](std::size_t a, std::size_t b) {
      return task_size(problems_[a].shapes) > task_size(problems_[b].shapes);
    });
    first_task_.fill({0});
    for (const std::size_t s : order_) {
      Workspace counting;
      const ExactCall<Real> call(problems_[s], WorkerScratch{}, counting);
      worker_bytes_ =
          std::max(worker_bytes_, most_of_operands<Real>([&](auto operand) {
                     using T = typename decltype(operand)::type;
                     return ExactCall<T>(problems_[s], WorkerScratch{}, counting).worker_bytes(problems_[s]);
                   }));
      for (const Stage stage : kStages) {
        std::vector<Index>& first = first_task_[static_cast<std::size_t>(stage)];
        first.push_back(first.back() + call.tasks(problems_[s], stage));
      }
    }
  }

  /// Pairs of a query and a key in one of a sequence's tasks, about.
  static Index task_size(const Shapes& s) { return std::min(s.n_q, QueryBlock<Real>::kRows) * s.n_k; }

  /// The calls in the order of their tasks; all workers' scratch is shared by all of them. Nothing when
  /// counting.
  template <class T>
  std::span<ExactCall<T>> make_calls(Workspace& workspace) const {
    static_assert(std::is_trivially_destructible_v<ExactCall<T>>);
    const WorkerScratch scratch(problems_.front().executor.workers(), worker_bytes_, workspace);
    const auto calls = workspace.take<ExactCall<T>>(static_cast<Index>(order_.size()));
    for (std::size_t m = 0; m < order_.size(); ++m) {
      const ExactCall<T> call(problems_[order_[m]], scratch, workspace);
      if (!workspace.counting()) std::construct_at(&calls[m], call);
    }
    return calls;
  }

  template <class T>
  void run_stage(Stage stage, std::span<ExactCall<T>> calls,
                 std::span<const ExactTensors<Real>> tensors) const {
    const std::vector<Index>& first = first_task_[static_cast<std::size_t>(stage)];
    problems_.front().executor.parallel_for(first.back(), [&](Index task, Index worker) {
      const auto m = std::upper_bound(first.begin(), first.end(), task) - first.begin() - 1;
      const auto s = order_[static_cast<std::size_t>(m)];
      calls[m].run_task(problems_[s], stage, task - first[m], worker, tensors[s]);
    });
  }

  std::vector<Problem> problems_ = {};   // of each sequence
  std::vector<std::size_t> order_ = {};  // the sequences, those of the longest tasks first
  std::array<std::vector<Index>, std::size(kStages)> first_task_ = {};  // of each in order_, and the end
  std::size_t worker_bytes_ = 0;
  std::size_t workspace_bytes_ = 0;
};

/// Attention of every sequence of a batch: a contiguous range of SequenceViews, as BatchPlan has
/// them. Each out is, bit for bit, that of the sequence attended alone on the exact path. Allocates the
/// workspace; engines that must not use BatchPlan. Throws Error as BatchPlan does, before any work.
template <std::ranges::contiguous_range Sequences>
void attend_batch(const Sequences& sequences, const Options& options,
                  std::span<const SequenceOptions> own = {}) {
  const std::span views(sequences);
  using Real = ArithmeticOf<ElementOf<decltype(views.front().q)>>;
  std::vector<Shapes> shapes;
  for (std::size_t s = 0; s < views.size(); ++s)
    detail::in_sequence(s, [&] {
      shapes.push_back(shapes_of(views[s].q, as_rows(views[s].k), as_rows(views[s].v)));
      require_output(shapes.back(), views[s].out);
      if (views[s].lse.data != nullptr) require_lse(shapes.back(), views[s].lse);
    });
  detail::require_separate("out", views.size(),
                           [&](std::size_t s) { return shapes[s].empty() ? nullptr : views[s].out.data; });
  detail::require_separate("lse", views.size(), [&](std::size_t s) {
    return shapes[s].heads * shapes[s].n_q == 0 ? nullptr : views[s].lse.data;
  });
  const BatchPlan<Real> plan(shapes, options, own);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  if (plan.run(views, workspace) != RunStatus::ok) detail::fail("the executor failed while attending");
}

}  // namespace fastrope::inline FASTROPE_TARGET
