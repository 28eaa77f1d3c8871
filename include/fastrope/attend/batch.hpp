// make_batch_plan: a batch with a tolerance, whose sequences are planned each for itself.
//
// What is exact all through, as single tokens mostly are, runs together as a BatchPlan has it; a sequence of
// which some head is approximated is long, and has all threads for itself.
//
//     const auto plan = make_batch_plan(batch, {.mask = Mask::causal(), .tolerance = 1e-3});
//     std::cout << plan.report(0);
//     workspace.resize(plan.workspace_bytes());
//     plan.run(batch, workspace);
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <ranges>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/attend/make_plan.hpp"
#include "fastrope/attend/plan.hpp"
#include "fastrope/core/error.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/exact/batch.hpp"
#include "fastrope/plan/cost_model.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/problem/run_status.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// A batch of planned sequences with arithmetic in Real. Copies are independent; one plan may be run by
/// several threads at once, each with its own workspace. make_batch_plan makes it.
template <class Real>
class MixedBatchPlan {
 public:
  /// plans: of all sequences, in order, which differ in lengths and SequenceOptions alone.
  explicit MixedBatchPlan(std::vector<Plan<Real>> plans) {
    std::array<std::vector<std::size_t>, 2> exact;  // with products of Real, or of bfloat16
    for (std::size_t s = 0; s < plans.size(); ++s) {
      reports_.push_back(plans[s].report());
      if (plans[s].shapes().n_q == 0) continue;
      if (plans[s].all_exact())
        exact[plans[s].allows_pairs()].push_back(s);
      else
        alone_.push_back({s, std::move(plans[s])});
    }
    for (const bool pairs : {false, true}) {
      if (exact[pairs].empty()) continue;
      std::vector<Problem> problems;
      for (const std::size_t s : exact[pairs]) problems.push_back(plans[s].problem());
      together_.push_back({std::move(exact[pairs]), {std::move(problems), pairs}});
    }
    for (const Alone& one : alone_) workspace_bytes_ = std::max(workspace_bytes_, one.plan.workspace_bytes());
    for (const Together& some : together_) {
      std::vector<Shapes> shapes;
      for (const std::size_t s : some.sequences) shapes.push_back(reports_[s].shapes);
      workspace_bytes_ = std::max(workspace_bytes_, some.plan.workspace_bytes(shapes));
    }
  }

  /// Sequences of the plan.
  std::size_t size() const { return reports_.size(); }
  /// Path, bounds, cost and reason of every head of a sequence.
  const Report& report(std::size_t sequence) const { return reports_[sequence]; }
  /// Scratch memory that run needs: the most that a sequence alone, or those together, take.
  std::size_t workspace_bytes() const { return workspace_bytes_; }

  /// Computes every sequence's out, and lse where it is wanted. sequences: a contiguous range of as many
  /// SequenceViews as were planned, of the planned shapes and, with a tolerance, with the q, k and v that
  /// they were planned for. lse may be wanted of a sequence that is exact; else RunStatus::lse_unavailable.
  /// Allocates nothing and throws nothing. An out must not overlap any input.
  template <std::ranges::contiguous_range Sequences>
  RunStatus run(const Sequences& sequences, std::span<std::byte> workspace) const noexcept {
    const std::span views(sequences);
    using Views = std::ranges::range_value_t<Sequences>;
    return run_as<OperandOf<Real, decltype(Views::q), decltype(Views::k), decltype(Views::v)>>(
        views.size(), [&](std::size_t s) -> const auto& { return views[s]; }, workspace);
  }
  /// The same of sequences of whatever types: views(s) are the SequenceViews or ExactTensors of sequence s.
  /// Operand: of all of them, as OperandOf has it.
  template <class Operand, class Views>
  RunStatus run_as(std::size_t sequences, Views&& views, std::span<std::byte> workspace) const noexcept {
    if (sequences != size()) return RunStatus::shape_mismatch;
    const auto tensors = [&](std::size_t s) {
      const auto& [q, k, v, out, lse] = views(s);
      return ExactTensors<Real>{q, k, v, out, lse};
    };
    for (std::size_t s = 0; s < size(); ++s)
      if (const auto x = tensors(s); !fits(reports_[s].shapes, x.q, x.k, x.v, x.out, x.lse))
        return RunStatus::shape_mismatch;
    for (const Alone& one : alone_)
      if (tensors(one.sequence).lse.data != nullptr) return RunStatus::lse_unavailable;
    if (workspace.size() < workspace_bytes_) return RunStatus::workspace_too_small;
    for (const Alone& one : alone_)
      if (const RunStatus status =
              one.plan.template run_tensors<Operand>(tensors(one.sequence), workspace, RunDetails{});
          status != RunStatus::ok)
        return status;
    for (const Together& some : together_) {
      const auto view = [&](std::size_t i) { return tensors(some.sequences[i]); };
      if (const RunStatus status = some.plan.template run_as<Operand>(some.sequences.size(), view, workspace);
          status != RunStatus::ok)
        return status;
    }
    return RunStatus::ok;
  }

 private:
  struct Alone {
    std::size_t sequence;
    Plan<Real> plan;
  };
  struct Together {
    std::vector<std::size_t> sequences;
    BatchPlan<Real> plan;
  };

  std::vector<Report> reports_ = {};
  std::vector<Alone> alone_ = {};        // with a head that is not exact, or not by the others' products
  std::vector<Together> together_ = {};  // that are multiplied alike
  std::size_t workspace_bytes_ = 0;
};

namespace detail {

/// The options of one sequence's call.
inline Options options_of(const Options& shared, const SequenceOptions& own) {
  Options one = shared;
  one.query_positions = own.queries;
  one.key_positions = own.keys;
  one.query_section_positions = own.query_sections;
  one.key_section_positions = own.key_sections;
  one.key_ranges = own.key_ranges;
  one.dense_bias = own.dense_bias;
  one.dense_mask = own.dense_mask;
  one.log_gates = own.log_gates;
  one.log_input_gates = own.log_input_gates;
  return one;
}

/// make_batch_plan() of sequences of whatever types: tensors(s) are the ExactTensors of sequence s, of which
/// out is not looked at; storage(s) is how they are stored.
template <class Real, class Tensors, class StorageOf>
MixedBatchPlan<Real> plan_batch(std::size_t sequences, Tensors&& tensors, StorageOf&& storage_of_sequence,
                                const Options& options, std::span<const SequenceOptions> own,
                                const CostModel& cost) {
  require_shared(options, sequences, own);
  std::vector<Plan<Real>> plans;
  for (std::size_t s = 0; s < sequences; ++s)
    in_sequence(s, [&] {
      const ExactTensors<Real> x = tensors(s);
      Options of = options_of(options, own.empty() ? SequenceOptions{} : own[s]);
      Storage storage = storage_of_sequence(s);
      if (x.lse.data != nullptr) {
        if (of.path != Path::automatic && of.path != Path::exact)
          fail("lse is wanted, which path ", of.path, " does not give");
        of.path = Path::exact;
        storage.pairs = false;
      }
      plans.push_back(plan_tensors<Real>(x.q, x.k, x.v, storage, of, nullptr, cost));
      require_same_heads(plans.back().shapes(), plans.front().shapes());
    });
  return MixedBatchPlan<Real>(std::move(plans));
}

}  // namespace detail

/// A plan of a batch: a contiguous range of SequenceViews (exact/batch.hpp), of which q, k and v are read and
/// out is not. Each sequence is planned as make_plan(q, k, v, options) does, with its own options where there
/// are any, and runs, bit for bit, as alone. Where lse is wanted, which approximations do not have, the
/// sequence is exact, with products of its arithmetic type. Throws Error, naming the sequence and the values,
/// where make_plan does, for sequences of different heads, and for a forced path that does not give an lse
/// that is wanted. Cost: that of make_plan for each sequence.
template <std::ranges::contiguous_range Sequences>
auto make_batch_plan(const Sequences& sequences, const Options& options,
                     std::span<const SequenceOptions> own = {}, const CostModel& cost = {}) {
  const std::span views(sequences);
  using Views = std::ranges::range_value_t<Sequences>;
  using Q = ElementOf<decltype(Views::q)>;
  using Real = ArithmeticOf<Q>;
  const auto tensors = [&](std::size_t s) {
    const auto& [q, k, v, out, lse] = views[s];
    return ExactTensors<Real>{q, k, v, out, lse};
  };
  const auto storage = [](std::size_t) {
    return storage_of<Real, decltype(Views::q), decltype(Views::k), decltype(Views::v),
                      ElementOf<decltype(Views::out)>>();
  };
  return detail::plan_batch<Real>(views.size(), tensors, storage, options, own, cost);
}

}  // namespace fastrope::inline FASTROPE_TARGET
