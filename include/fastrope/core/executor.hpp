// Executor: how the library asks the caller's threads for work. The library owns no threads.
//
// An executor runs f(task, worker) for every task in [0, count), in any order, worker in [0, workers()), no
// two tasks at once with the same worker, and returns when all are done. Results never depend on which worker
// ran which task. Numbers outside these ranges and tasks left out would be read or written out of bounds, or
// leave an output as it was, so they are noticed.
#pragma once

#include <atomic>
#include <concepts>
#include <exception>
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

namespace detail {

/// A task as a pool gets it. A pool's threads need not let exceptions through, so nothing is thrown on them:
/// what goes wrong first is kept for the thread that called, and tasks that have not begun do nothing.
class CheckedTask {
 public:
  CheckedTask(TaskRef task, Index count, Index workers) : task_(task), count_(count), workers_(workers) {}

  void operator()(Index task, Index worker) noexcept {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      if (task < 0 || task >= count_)
        fail("the executor ran task ", task, ", and was given tasks 0 to ", count_ - 1);
      if (worker < 0 || worker >= workers_)
        fail("the executor ran task ", task, " with worker number ", worker, ", and has workers 0 to ",
             workers_ - 1);
      task_(task, worker);
      done_.fetch_add(1, std::memory_order_relaxed);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  /// Throws what went wrong. The pool has returned, so what its threads wrote is seen here.
  void require_done() const {
    if (error_) std::rethrow_exception(error_);
    if (const Index done = done_.load(std::memory_order_relaxed); done != count_)
      fail("the executor returned after ", done, " of ", count_, " tasks: each must run once");
  }

 private:
  TaskRef task_;
  Index count_;
  Index workers_;
  std::atomic<Index> done_ = 0;
  std::atomic<bool> failed_ = false;
  std::exception_ptr error_ = {};  // written once, by the task that sets failed_
};

}  // namespace detail

/// Runs independent tasks on the caller's threads. Copies share the pool.
class Executor {
 public:
  /// More than any machine has; scratch memory is counted for each.
  static constexpr Index kMaxWorkers = Index{1} << 16;

  /// Any callable pool(count, task) that runs task(i, worker) for each i in [0, count) and returns when all
  /// are done; worker numbers are below `workers`. Throws Error for a number of workers that is not in [1,
  /// kMaxWorkers] and for an empty std::function or null pointer.
  template <std::invocable<Index, TaskRef> Pool>
  Executor(Index workers, Pool pool)
      : workers_(workers),
        run_(std::make_shared<const std::function<void(Index, TaskRef)>>(std::move(pool))) {
    if (workers < 1 || workers > kMaxWorkers)
      detail::fail("an executor needs at least 1 worker and at most ", kMaxWorkers, ", got ", workers);
    if (!*run_) detail::fail("an executor of ", workers, " workers was given an empty function to run tasks");
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

  /// Throws what the pool or a task throws, a task's after the pool has returned, and Error, naming the
  /// values, where the pool gives a task a number that does not exist, or has not run all of them.
  void parallel_for(Index count, TaskRef task) const {
    if (count <= 0) return;
    detail::CheckedTask checked(task, count, workers_);
    (*run_)(count, checked);
    checked.require_done();
  }

 private:
  Index workers_;
  std::shared_ptr<const std::function<void(Index, TaskRef)>> run_;
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
