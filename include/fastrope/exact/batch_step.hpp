// BatchStep: the calls of one run of a batch, in memory of a workspace.
//
// Each stage of all calls is one round of tasks, those of the longest sequences first: threads wait for each
// other as often as in one call, and all have work whatever the mix of lengths. One thread alone takes call
// after call.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>

#include "fastrope/core/executor.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/exact/exact_call.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/exact/stage.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Exact calls, multiplied as T, whose stages run together. All workers' scratch is shared by all of them.
template <class T>
class BatchStep {
 public:
  using Real = ArithmeticOf<T>;

  /// Of at most `most` calls, none of which needs more than worker_bytes for a task. The workspace may count.
  BatchStep(Index most, std::size_t worker_bytes, const Executor& executor, Workspace& workspace)
      : executor_(executor),
        scratch_(executor.workers(), worker_bytes, workspace),
        calls_(workspace.take<Call>(most)),
        order_(workspace.take<Call*>(most)) {}
  BatchStep(const BatchStep&) = delete;
  BatchStep& operator=(const BatchStep&) = delete;
  ~BatchStep() { std::destroy_n(calls_.begin(), count_); }

  /// problem and x must outlive the step; problem takes x's sizes. Throws Error where positions or key ranges
  /// that it reads are not such as it takes.
  void add(const Problem& problem, const ExactTensors<Real>& x, Workspace& workspace) {
    order_[count_] = std::construct_at(&calls_[count_], problem, x, scratch_, workspace);
    ++count_;
  }

  /// Every task of every stage. Throws what the executor throws.
  void run() {
    const std::span<Call*> calls = order_.first(count_);
    if (executor_.workers() == 1) {
      for (Call* call : calls) call->exact.run(call->problem.get(), call->x);
      return;
    }
    std::ranges::sort(calls, [](const Call* a, const Call* b) {
      const Index size_of_a = a->task_size(), size_of_b = b->task_size();
      return size_of_a != size_of_b ? size_of_a > size_of_b : std::less<>{}(a, b);
    });
    for (const Stage stage : kStages) {
      Index tasks = 0;
      for (Call* call : calls) {
        call->first_task = tasks;
        tasks += call->exact.tasks(call->problem.get(), stage);
      }
      executor_.parallel_for(tasks, [&](Index task, Index worker) {
        Call& call = **std::prev(std::ranges::upper_bound(calls, task, {}, &Call::first_task));
        call.exact.run_task(call.problem.get(), stage, task - call.first_task, worker, call.x);
      });
    }
  }

 private:
  struct Call {
    SizedProblem problem;
    const ExactTensors<Real>& x;
    ExactCall<T> exact;
    Index first_task = 0;  // of the stage that runs, in the order of all

    Call(const Problem& of_plan, const ExactTensors<Real>& tensors, const WorkerScratch& scratch,
         Workspace& workspace)
        : problem(of_plan, tensors.q.rows, tensors.k.rows, workspace),
          x(tensors),
          exact(problem.get(), scratch, workspace) {}

    /// Pairs of a query and a key in one of its tasks, about.
    Index task_size() const { return std::min(x.q.rows, QueryBlock<Real>::kRows) * x.k.rows; }
  };

  const Executor& executor_;
  WorkerScratch scratch_;
  std::span<Call> calls_;  // of which count_ are alive
  std::span<Call*> order_;
  std::size_t count_ = 0;
};

}  // namespace fastrope::inline FASTROPE_TARGET
