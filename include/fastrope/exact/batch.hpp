// A batch: many sequences of different lengths in one call, each attended exactly, as if it were alone.
//
// Engines that serve many requests mix prompts, chunks of prompts over a cache and single new tokens in one
// step; a plan of the most that each may have takes every step (BatchStep runs it). Batches with a tolerance,
// in which sequences may be approximated, are in attend/batch.hpp.
//
//     std::vector<SequenceViews<float>> batch;  // tokens one after the other, sequence s at offsets[s]
//     batch.push_back({rows(q, {offsets[s], offsets[s + 1]}), k_cache[s], v_cache[s],
//                      rows(out, {offsets[s], offsets[s + 1]})});
//     attend_batch(batch, options);
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <ranges>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/batch_step.hpp"
#include "fastrope/exact/exact_call.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/exact/sequence_views.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/problem/run_status.hpp"

namespace fastrope::inline FASTROPE_TARGET {

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

/// Throws Error where options have rows of one call, or own are not of so many sequences.
inline void require_shared(const Options& options, std::size_t sequences,
                           std::span<const SequenceOptions> own) {
  if (options.dense_bias.data != nullptr || options.dense_mask.data != nullptr)
    fail("dense_bias and dense_mask have the shape of one call: a batch cannot share them, each ",
         "sequence has its own in SequenceOptions");
  if (options.key_ranges.given())
    fail("options.key_ranges are those of one call: each sequence has its own in SequenceOptions");
  if (options.log_gates.rows > 0 || options.log_input_gates.rows > 0)
    fail("options.log_gates and log_input_gates are those of one call: each sequence has its own in ",
         "SequenceOptions");
  if (!options.query_positions.empty() || !options.key_positions.empty() ||
      options.query_section_positions.data != nullptr || options.key_section_positions.data != nullptr)
    fail("options.query_positions and key_positions, also those of sections, are of one call: give ",
         "a batch's beside its shapes");
  if (!own.empty() && own.size() != sequences)
    fail("options are given for ", own.size(), " of ", sequences, " sequences");
}

/// Throws Error unless shapes differ in lengths alone from those of sequence 0.
inline void require_same_heads(const Shapes& s, const Shapes& first) {
  if (s.heads != first.heads || s.kv_heads != first.kv_heads || s.d != first.d || s.d_v != first.d_v)
    fail("heads ", s.heads, ", kv_heads ", s.kv_heads, ", d ", s.d, ", d_v ", s.d_v,
         "; sequence 0 has heads ", first.heads, ", kv_heads ", first.kv_heads, ", d ", first.d, ", d_v ",
         first.d_v);
}

/// The problems of a batch's sequences. Throws Error as BatchPlan does.
inline std::vector<Problem> batch_problems(std::span<const Shapes> shapes, const Options& options,
                                           std::span<const SequenceOptions> own) {
  if (options.path != Path::automatic && options.path != Path::exact)
    fail("path ", options.path, " does not serve batches: their sequences are exact");
  require_shared(options, shapes.size(), own);
  std::vector<Problem> problems;
  if (shapes.empty()) return problems;
  Shapes heads = shapes.front();
  heads.n_q = heads.n_k = 0;
  const Problem shared(heads, options);
  problems.reserve(shapes.size());
  for (std::size_t s = 0; s < shapes.size(); ++s)
    in_sequence(s, [&] {
      require_same_heads(shapes[s], heads);
      const SequenceOptions of = own.empty() ? SequenceOptions{} : own[s];
      problems.push_back(shared.with(shapes[s].n_q, shapes[s].n_k, of));
      problems.back().set_dense(of.dense_bias, of.dense_mask);
    });
  return problems;
}

}  // namespace detail

/// A checked batch with arithmetic in Real, to be run any number of times: for each layer of a model, and for
/// each step. One plan may be run by several threads at once, each with its own workspace.
///
/// A sequence without dense bias and dense mask has capacity: run takes any n_q and n_k up to the plan's, and
/// gives, bit for bit, what a plan for these sizes would. So its cache may grow, and one that is not there
/// has n_q = 0. Positions and key ranges of its own are read when run is called, from the memory that they
/// are given in, which must outlive the plan: of queries the first n_q, of keys the first n_k. They may be
/// rewritten between runs.
template <class Real = float>
class BatchPlan {
 public:
  /// shapes: of each sequence, the most that it may have; n_q and n_k differ, the rest is the same for all.
  /// own: of each sequence, or empty. Masks, biases and the like are those of `options` for every sequence.
  /// All are exact; with a tolerance, which products of bfloat16 might exceed, these are of float. Throws
  /// Error for options and shapes that clash, naming the sequence and the values, and for what belongs to a
  /// single call: a path other than exact, and what SequenceOptions has. Positions and key ranges are checked
  /// as they are, of all queries and keys, and again in each run.
  BatchPlan(std::span<const Shapes> shapes, const Options& options, std::span<const SequenceOptions> own = {})
      : problems_(detail::batch_problems(shapes, options, own)), allow_pairs_(options.tolerance == 0) {
    for (std::size_t s = 0; s < shapes.size(); ++s)
      if (!own.empty()) problems_[s].read_when_run(own[s]);
    keep_rotations();
  }
  /// The same of calls that were checked before and differ in no more than that, of which positions and key
  /// ranges are not read again: those that have some take just their sizes.
  BatchPlan(std::vector<Problem> problems, bool allow_pairs)
      : problems_(std::move(problems)), allow_pairs_(allow_pairs) {
    keep_rotations();
  }

  /// Sequences of the plan.
  std::size_t size() const { return problems_.size(); }
  /// Whether run takes fewer queries and keys of a sequence than its shapes have.
  bool has_capacity(std::size_t sequence) const { return problems_[sequence].takes_any_sizes(); }

  /// Scratch memory that is enough for every run. It is computed, not kept: O(256 / group) for a sequence,
  /// once for those next to each other that are alike.
  std::size_t workspace_bytes() const {
    if (problems_.empty()) return 0;
    return most_of_operands<Real>(
        [&](auto operand) { return capacity_bytes<typename decltype(operand)::type>(); });
  }
  /// Scratch memory that is enough for a run of sequences with n_q and n_k of `step`: engines whose sequences
  /// are rarely all as long as they may be need not have more. Allocates nothing.
  std::size_t workspace_bytes(std::span<const Shapes> step) const noexcept {
    if (problems_.empty()) return 0;
    return most_of_operands<Real>([&](auto operand) {
      return needs<typename decltype(operand)::type>(std::min(step.size(), problems_.size()),
                                                     [&](std::size_t s) { return step[s]; })
          .bytes;
    });
  }

  /// Computes every sequence's out, and lse where it is wanted. sequences: a contiguous range of
  /// SequenceViews, of shapes that the plan takes, in its order; those that are left out at the end are idle.
  /// Takes any workspace of workspace_bytes() or, for just these shapes, workspace_bytes(step). Allocates
  /// nothing and throws nothing. An out must not overlap any input. Cost beside attention: O(1) for a
  /// sequence, O(n_q + n_k) to read positions and key ranges of its own (O(n_k log n_k) where keys are
  /// neither in order nor a ring), nothing for one without queries.
  template <std::ranges::contiguous_range Sequences>
  RunStatus run(const Sequences& sequences, std::span<std::byte> workspace) const noexcept {
    const std::span views(sequences);
    using Views = std::ranges::range_value_t<Sequences>;
    return run_as<OperandOf<Real, decltype(Views::q), decltype(Views::k), decltype(Views::v)>>(
        views.size(), [&](std::size_t s) -> const auto& { return views[s]; }, workspace);
  }
  /// The same of so many sequences wherever they are, of whatever types: views(s) are the SequenceViews or
  /// ExactTensors of sequence s. Operand: of all of them, as OperandOf has it.
  template <class Operand, class Views>
  RunStatus run_as(std::size_t sequences, Views&& views, std::span<std::byte> workspace) const noexcept {
    if (sequences > problems_.size()) return RunStatus::shape_mismatch;
    if (sequences == 0) return RunStatus::ok;
    if (workspace.size() < Workspace::bytes_of([&](Workspace& w) { take_tensors(sequences, w); }))
      return RunStatus::workspace_too_small;
    Workspace memory(workspace);
    const auto tensors = take_tensors(sequences, memory);
    for (std::size_t s = 0; s < sequences; ++s) {
      const auto& [q, k, v, out, lse] = views(s);
      const ExactTensors<Real>& x = *std::construct_at(&tensors[s], ExactTensors<Real>{q, k, v, out, lse});
      const Shapes shapes = problems_[s].sized_shapes(x.q.rows, x.k.rows);
      if (!fits(shapes, x.q, x.k, x.v, x.out, x.lse)) return RunStatus::shape_mismatch;
      if (!problems_[s].gates.are_valid(shapes.n_k)) return RunStatus::gates_refused;
    }
    return run_tensors<Operand>(tensors, memory, workspace.size());
  }

 private:
  /// What the calls of a step take.
  struct Needs {
    Index calls = 0;  // of sequences with queries
    std::size_t worker_bytes = 0;
    std::size_t bytes = 0;  // of all
  };

  /// The most that calls seen take.
  struct MostOfCalls {
    std::size_t& worker_bytes;
    std::size_t call_bytes = 0;

    template <class Way>
    void operator()(std::type_identity<Way>, const Problem& problem) {
      Workspace of_call;
      const Way call(problem, WorkerScratch{}, of_call);
      call_bytes = std::max(call_bytes, of_call.bytes());
      worker_bytes = std::max(worker_bytes, call.worker_bytes(problem));
    }
  };

  static std::span<ExactTensors<Real>> take_tensors(std::size_t sequences, Workspace& workspace) {
    return workspace.take<ExactTensors<Real>>(static_cast<Index>(sequences));
  }
  const Executor& executor() const { return problems_.front().executor; }

  /// Of a step of the first `sequences` sequences, multiplied as T. sizes(s): Shapes with n_q and n_k of
  /// sequence s.
  template <class T, class Sizes>
  Needs needs(std::size_t sequences, Sizes&& sizes) const {
    Needs needs;
    Workspace counting;
    take_tensors(sequences, counting);
    for (std::size_t s = 0; s < sequences; ++s) {
      const Shapes of_step = sizes(s);
      const Shapes shapes = problems_[s].sized_shapes(of_step.n_q, of_step.n_k);
      if (shapes.n_q == 0) continue;
      ++needs.calls;
      if (problems_[s].reads_places()) {
        problems_[s].take_places(shapes.n_q, shapes.n_k, counting);
        MostOfCalls most{needs.worker_bytes};
        for_possible_ways<Real, TiledAttention<T>, DecodeAttention<Real>>(
            problems_[s].widest(shapes.n_q, shapes.n_k), most);
        counting.take<std::byte>(static_cast<Index>(most.call_bytes));
        continue;
      }
      const SizedProblem problem(problems_[s], shapes.n_q, shapes.n_k, counting);
      const ExactCall<T> call(problem.get(), WorkerScratch{}, counting);
      needs.worker_bytes = std::max(needs.worker_bytes, call.worker_bytes(problem.get()));
    }
    BatchStep<T>(needs.calls, needs.worker_bytes, executor(), counting);
    needs.bytes = counting.bytes();
    return needs;
  }

  /// The most that needs<T> may come to.
  template <class T>
  std::size_t capacity_bytes() const {
    std::size_t worker_bytes = 0;
    MostOfCalls most{worker_bytes};
    Workspace counting;
    take_tensors(problems_.size(), counting);
    const Problem* before = nullptr;
    for (const Problem& problem : problems_) {
      const bool any = problem.takes_any_sizes();
      if (before == nullptr || !any || !before->takes_any_sizes() ||
          before->reads_places() != problem.reads_places() || before->shapes != problem.shapes) {
        most.call_bytes = 0;
        any ? for_largest_calls<Real, TiledAttention<T>, DecodeAttention<Real>>(problem, most)
            : most(std::type_identity<ExactCall<T>>{}, problem);
      }
      problem.take_places(problem.shapes.n_q, problem.shapes.n_k, counting);
      counting.take<std::byte>(static_cast<Index>(most.call_bytes));
      before = &problem;
    }
    BatchStep<T>(std::ssize(problems_), worker_bytes, executor(), counting);
    return counting.bytes();
  }

  template <class Operand>
  RunStatus run_tensors(std::span<const ExactTensors<Real>> tensors, Workspace& memory,
                        std::size_t bytes) const noexcept {
    RunStatus status = RunStatus::ok;
    try {
      with_operand<Operand>(problems_.front(), allow_pairs_, [&](auto operand) {
        using T = typename decltype(operand)::type;
        const Needs of_step = needs<T>(tensors.size(), [&](std::size_t s) {
          return Shapes{.n_q = tensors[s].q.rows, .n_k = tensors[s].k.rows};
        });
        if (bytes < of_step.bytes) {
          status = RunStatus::workspace_too_small;
          return;
        }
        BatchStep<T> step(of_step.calls, of_step.worker_bytes, executor(), memory);
        try {
          for (std::size_t s = 0; s < tensors.size(); ++s)
            if (tensors[s].q.rows > 0) step.add(problems_[s], tensors[s], memory);
        } catch (const Error&) {
          status = RunStatus::places_refused;
          return;
        }
        step.run();
      });
    } catch (...) {
      return RunStatus::executor_failed;
    }
    return status;
  }

  /// One table for all sequences.
  void keep_rotations() {
    if (problems_.empty()) return;
    Index rows = 0;
    for (const Problem& problem : problems_) rows = std::max(rows, kept_rotations(problem));
    Rotation rotation = problems_.front().rotation;
    rotation.template keep<Real>(rows);
    for (Problem& problem : problems_) problem.rotation = rotation;
  }

  std::vector<Problem> problems_ = {};  // of each sequence, of the most that it may have
  bool allow_pairs_ = true;             // of bfloat16, where tensors are stored so
};

/// Attention of every sequence of a batch: a contiguous range of SequenceViews, as BatchPlan has them. Each
/// out and lse is, bit for bit, that of the sequence alone by a plan with tolerance 0; with a tolerance, by
/// one for q of float. Allocates the workspace; engines that must not use BatchPlan. Throws Error as
/// BatchPlan does, before any work.
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
  const BatchPlan<Real> plan(detail::batch_problems(shapes, options, own), options.tolerance == 0);
  std::vector<std::byte> workspace(plan.workspace_bytes(shapes));
  if (plan.run(views, workspace) != RunStatus::ok) detail::fail("the executor failed while attending");
}

}  // namespace fastrope::inline FASTROPE_TARGET
