// Executor: how the library asks the caller's threads for work. The library owns no threads.
//
// An executor runs f(task, worker) for every task in [0, count), in any order, worker in [0, workers()), no
// two tasks at once with the same worker, and returns when all are done. Results never depend on which worker
// ran which task.
#pragma once

#include <concepts>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// A non-owning reference to a callable f(task, worker); valid while the callable lives.
class TaskRef {
 public:
  template <class F>
  requires(!std::same_as<std::remove_cvref_t<F>, TaskRef> && std::invocable<F&, Index, Index>) TaskRef(F&& f)
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, Index task, Index worker) {
          (*static_cast<std::remove_reference_t<F>*>(object))(task, worker);
        }) {}

  void operator()(Index task, Index worker) const { call_(object_, task, worker); }

 private:
  void* object_;
  void (*call_)(void*, Index, Index);
};

/// Runs independent tasks on the caller's threads.
class Executor {
 public:
  /// Any callable pool(count, task) that runs task(i, worker) for each i in [0, count) and returns when all
  /// are done; worker numbers are below `workers`.
  template <std::invocable<Index, TaskRef> Pool>
  Executor(Index workers, Pool pool) : workers_(workers), run_(std::move(pool)) {
    if (workers < 1) detail::fail("an executor needs at least 1 worker, got ", workers);
  }

  /// The calling thread alone.
  static Executor serial() {
    return {1, [](Index count, TaskRef task) {
              for (Index i = 0; i < count; ++i) task(i, 0);
            }};
  }

  /// `threads` OpenMP threads. Throws Error when the including file is compiled without OpenMP and threads
  /// > 1.
  static Executor openmp(Index threads) {
#ifdef _OPENMP
    return {threads, [threads](Index count, TaskRef task) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast <int>(threads))
              for (Index i = 0; i < count; ++i) task(i, omp_get_thread_num());
            }};
#else
    if (threads != 1) detail::fail("Executor::openmp(", threads, ") needs a compiler flag such as -fopenmp");
    return serial();
#endif
  }

  Index workers() const { return workers_; }
  void parallel_for(Index count, TaskRef task) const {
    if (count > 0) run_(count, task);
  }

 private:
  Index workers_;
  std::function<void(Index, TaskRef)> run_;
};

/// While one lives, what asks for OpenMP's threads without saying how many, as Eigen's products do, gets the
/// calling thread alone: threads are the executor's business.
class OwnThread {
 public:
#ifdef _OPENMP
  OwnThread() : threads_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OwnThread() { omp_set_num_threads(threads_); }
#else
  OwnThread() = default;
  ~OwnThread() = default;
#endif
  OwnThread(const OwnThread&) = delete;
  OwnThread& operator=(const OwnThread&) = delete;

#ifdef _OPENMP
 private:
  int threads_;  // a setting of this thread
#endif
};

}  // namespace fastrope::inline FASTROPE_TARGET
