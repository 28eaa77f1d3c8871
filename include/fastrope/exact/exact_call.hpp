// ExactCall: every head of a call by the exact path, in the way that suits its shapes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>
#include <variant>

#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/exact/decode.hpp"
#include "fastrope/exact/decode_rows.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/exact/stage.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The tiled way: every key that some query reaches packed, then blocks of query rows, multiplied as T. One
/// worker alone takes key head after key head, so that what it packs is still in its cache when it is met.
template <class T>
class TiledAttention {
 public:
  using Real = ArithmeticOf<T>;

  /// With worker_bytes(problem) of scratch that nobody else uses while a task runs.
  TiledAttention(const Problem& problem, const WorkerScratch& scratch, Workspace& workspace)
      : packed_(problem, problem.grid.reached().hull(), scratch, workspace, parts(problem) > 1),
        attention_(problem, scratch, workspace) {}

  std::size_t worker_bytes(const Problem& problem) const {
    return std::max(PackedKeys<T>::worker_bytes(problem), ExactAttention<T>::worker_bytes(problem, packed_));
  }

  /// Into how many parts, as many tasks in each, the stages load and attend are divided, of which one is to
  /// go through both before the next.
  static Index parts(const Problem& problem) {
    return problem.executor.workers() == 1 ? problem.shapes.kv_heads : 1;
  }
  Index tasks(const Problem& problem, Stage stage) const {
    switch (stage) {
      case Stage::prepare:
        return packed_.tables().tasks(problem) + attention_.scores().tasks();
      case Stage::load:
        return packed_.tasks(problem);
      case Stage::attend:
        return row_tasks(problem).count();
      case Stage::finish:
        return 0;
    }
    return 0;
  }

  void run_task(const Problem& problem, Stage stage, Index task, Index worker, const ExactTensors<Real>& x) {
    switch (stage) {
      case Stage::prepare: {
        const Index table_tasks = packed_.tables().tasks(problem);
        return task < table_tasks ? packed_.tables().fill(problem, task)
                                  : attention_.prepare(problem, task - table_tasks);
      }
      case Stage::load:
        return packed_.pack_task(problem, x.k, x.v, task, worker);
      case Stage::attend:
        return attention_.run_task(problem, packed_, x.q, x.out, x.lse, row_tasks(problem)[task], worker);
      case Stage::finish:
        return;
    }
  }

 private:
  static RowTasks<Real> row_tasks(const Problem& problem) { return {problem, {0, problem.shapes.heads}}; }

  PackedKeys<T> packed_;
  ExactAttention<T> attention_;
};

/// Few query rows for each key head are bound by memory and read the cache in place; more are bound by
/// arithmetic and worth packing.
template <class T>
class ExactCall {
 public:
  using Real = ArithmeticOf<T>;

  ExactCall(const Problem& problem, Workspace& workspace)
      : ExactCall(problem, own_scratch(problem, workspace), workspace) {}
  /// With worker_bytes(problem) of scratch that nobody else uses while a task runs: calls may share it.
  ExactCall(const Problem& problem, const WorkerScratch& scratch, Workspace& workspace)
      : way_(DecodeRows<Real>::suits(problem)
                 ? Way(std::in_place_type<DecodeAttention<Real>>, problem, scratch, workspace)
                 : Way(std::in_place_type<TiledAttention<T>>, problem, scratch, workspace)) {}

  /// What a worker needs for a task.
  std::size_t worker_bytes(const Problem& problem) const {
    return std::visit([&](const auto& way) { return way.worker_bytes(problem); }, way_);
  }

  /// The independent tasks of a stage; those of the stages before must be done. One worker alone takes
  /// them in the order of run().
  Index tasks(const Problem& problem, Stage stage) const {
    if (problem.shapes.heads == 0 || problem.shapes.n_q == 0) return 0;
    return std::visit([&](const auto& way) { return way.tasks(problem, stage); }, way_);
  }

  /// lse: natural log; of a polynomial kernel, the sum itself.
  void run_task(const Problem& problem, Stage stage, Index task, Index worker, const ExactTensors<Real>& x) {
    std::visit([&](auto& way) { way.run_task(problem, stage, task, worker, x); }, way_);
  }

  /// Every task of every stage.
  void run(const Problem& problem, const ExactTensors<Real>& x) {
    const auto run_part = [&](Stage stage, Index part, Index parts) {
      const Index count = tasks(problem, stage) / parts;
      problem.executor.parallel_for(
          count, [&](Index task, Index worker) { run_task(problem, stage, part * count + task, worker, x); });
    };
    const Index parts = std::visit([&](const auto& way) { return way.parts(problem); }, way_);
    run_part(Stage::prepare, 0, 1);
    for (Index part = 0; part < parts; ++part) {
      run_part(Stage::load, part, parts);
      run_part(Stage::attend, part, parts);
    }
    run_part(Stage::finish, 0, 1);
  }

 private:
  using Way = std::variant<DecodeAttention<Real>, TiledAttention<T>>;

  static WorkerScratch own_scratch(const Problem& problem, Workspace& workspace) {
    Workspace counting;
    const ExactCall call(problem, WorkerScratch{}, counting);
    return {problem.executor.workers(), call.worker_bytes(problem), workspace};
  }

  Way way_;
};

/// What q, k and v of these types may be multiplied as in arithmetic of Real: pairs of bfloat16 where all are
/// stored so and hardware multiplies them, else Real. A type, since most files have no such tensors and need
/// not compile what they take.
template <class Real, class... Xs>
using OperandOf =
    std::conditional_t<simd::kBfloat16Products && std::is_same_v<Real, float> &&
                           (std::is_same_v<typename detail::KernelElement<Real, Xs>::type, bfloat16> && ...),
                       bfloat16, Real>;

/// Whether this processor multiplies pairs of bfloat16 faster than floats. Intel's are taken to do so by the
/// matrix unit alone, which a virtual machine may hide: on Emerald Rapids, pairs in vectors run at half of the
/// rate of floats (docs/benchmarks.md).
inline bool pairs_pay() {
#if FASTROPE_BFLOAT16_PRODUCTS
  static const bool pay = [] {
    __builtin_cpu_init();
    return MatrixTiles::allowed() || !__builtin_cpu_is("intel");
  }();
  return pay;
#else
  return false;
#endif
}

/// f(std::type_identity<T>{}) for Operand or, where pairs do not pay, where their rounding is not allowed
/// (plan/exact_rounding.hpp has it) and for polynomial kernels, whose terms may cancel, for Real.
template <class Operand, class F>
void with_operand(const Problem& problem, bool allow_pairs, F&& f) {
  using Real = ArithmeticOf<Operand>;
  if constexpr (!std::is_same_v<Operand, Real>)
    if (allow_pairs && pairs_pay() && !problem.weights && problem.kernel.is_softmax())
      return f(std::type_identity<Operand>{});
  f(std::type_identity<Real>{});
}

/// The most of bytes(std::type_identity<T>{}) over the operand types T that tensors of arithmetic in Real can
/// have.
template <class Real, class Bytes>
std::size_t most_of_operands(Bytes&& bytes) {
  const std::size_t real = bytes(std::type_identity<Real>{});
  if constexpr (std::is_same_v<Real, float> && simd::kBfloat16Products)
    return std::max(real, bytes(std::type_identity<bfloat16>{}));
  return real;
}

/// Workspace for an exact call with tensors of any storage.
template <class Real>
std::size_t exact_workspace_bytes(const Problem& problem) {
  return most_of_operands<Real>([&](auto operand) {
    return Workspace::bytes_of(
        [&](Workspace& w) { ExactCall<typename decltype(operand)::type>(problem, w); });
  });
}

namespace detail {

/// Workspace for a call in one of the two ways.
template <class Way>
std::size_t bytes_of_way(const Problem& problem) {
  Workspace counting;
  const std::size_t worker_bytes = Way(problem, WorkerScratch{}, counting).worker_bytes(problem);
  return Workspace::bytes_of(
      [&](Workspace& w) { Way(problem, WorkerScratch(problem.executor.workers(), worker_bytes, w), w); });
}

}  // namespace detail

/// see(std::type_identity<Way>{}, widest) for the ways in which a call of the sizes of `widest` may run,
/// wherever its queries and keys stand.
template <class Real, class Tiled, class Decode, class See>
void for_possible_ways(const Problem& widest, See&& see) {
  if (!DecodeRows<Real>::must_suit(widest)) see(std::type_identity<Tiled>{}, widest);
  if (DecodeRows<Real>::may_suit(widest)) see(std::type_identity<Decode>{}, widest);
}

/// see(std::type_identity<Way>{}, sized), Way = Tiled or Decode, for calls of at most the problem's queries
/// and keys, of which one takes the most memory of all such calls, and one the most for a worker. Requires
/// problem.takes_any_sizes().
///
/// Either way takes more for more keys, but for where the keys of a window begin in the panels and splits
/// that hold them: they fill the most where the first key is the last of one. And more for more queries, but
/// for how decoding divides its rows into groups, so that each number that it may be given is asked. Rotation
/// tables that a plan keeps are of use where there are as many keys as queries: fewer are asked for too.
/// Where positions are read when run, any may come: it is asked for the widest.
template <class Real, class Tiled, class Decode, class See>
void for_largest_calls(const Problem& problem, See&& see) {
  using Rows = DecodeRows<Real>;
  const Index n_q = problem.shapes.n_q, n_k = problem.shapes.n_k;
  const auto ask = [&](auto way, Index queries) {
    for (const Index keys : {n_k, std::min(n_k, queries - 1)}) {
      const Index begin = problem.widest(queries, keys).grid.keys_of(Range{0, queries}).begin;
      for (const Index unit : {Index{1}, kTileCols<Real>, kStretch})
        see(way, problem.widest(queries, keys - std::min(begin, (begin + 1) % unit)));
    }
  };
  if (n_q > 0 && !Rows::must_suit(problem)) ask(std::type_identity<Tiled>{}, n_q);
  for (Index queries = 1; queries <= n_q; ++queries) {
    if (!Rows::may_suit(problem.widest(queries, n_k))) return;  // neither do more
    ask(std::type_identity<Decode>{}, queries);
  }
}

/// Workspace for an exact call of any numbers of queries and keys up to the problem's, with tensors of any
/// storage. Requires problem.takes_any_sizes().
template <class Real>
std::size_t exact_capacity_bytes(const Problem& problem) {
  return most_of_operands<Real>([&](auto operand) {
    using T = typename decltype(operand)::type;
    std::size_t most = 0;
    for_largest_calls<Real, TiledAttention<T>, DecodeAttention<Real>>(
        problem, [&](auto way, const Problem& sized) {
          most = std::max(most, detail::bytes_of_way<typename decltype(way)::type>(sized));
        });
    return most;
  });
}

/// Attends with exact_workspace_bytes of memory. Operand: of the tensors, as OperandOf has it.
template <class Operand>
void run_exact(const Problem& problem, const ExactTensors<ArithmeticOf<Operand>>& x,
               std::span<std::byte> memory, bool allow_pairs = true) {
  with_operand<Operand>(problem, allow_pairs, [&](auto operand) {
    Workspace workspace(memory);
    ExactCall<typename decltype(operand)::type>(problem, workspace).run(problem, x);
  });
}

}  // namespace fastrope::inline FASTROPE_TARGET
