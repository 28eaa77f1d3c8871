#include "fastrope/core/executor.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/error_of.hpp"
#include "support/executors.hpp"

namespace {

using fastrope::Error;
using fastrope::Executor;
using fastrope::Index;
using fastrope::OwnThread;
using fastrope::TaskRef;
using fastrope_test::error_of;
using fastrope_test::threads;

struct NamedExecutor {
  std::string name;
  Executor executor;
};

std::vector<NamedExecutor> executors() {
  std::vector<NamedExecutor> all{{"serial", Executor::serial()},
                                 {"1 thread", threads(1)},
                                 {"3 threads", threads(3)},
                                 {"openmp 1", Executor::openmp(1)}};
#ifdef _OPENMP
  all.push_back({"openmp 3", Executor::openmp(3)});
#endif
  return all;
}

TEST(Executor, RunsEachTaskOnceOnAWorkerOfItsOwn) {
  for (const NamedExecutor& each : executors()) {
    SCOPED_TRACE(each.name);
    const Executor& executor = each.executor;
    for (const Index count : {1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
      std::vector<std::atomic<int>> busy(static_cast<std::size_t>(executor.workers()));
      std::atomic<bool> worker_in_range{true}, worker_alone{true};
      executor.parallel_for(count, [&](Index task, Index worker) {
        if (worker < 0 || worker >= executor.workers()) {
          worker_in_range = false;
          return;
        }
        auto& mine = busy[static_cast<std::size_t>(worker)];
        if (mine++ != 0) worker_alone = false;
        ++runs[static_cast<std::size_t>(task)];
        --mine;
      });
      EXPECT_TRUE(worker_in_range);
      EXPECT_TRUE(worker_alone);
      for (const auto& n : runs) EXPECT_EQ(n, 1) << "of " << count << " tasks";
    }
  }
}

TEST(Executor, NoTasksNeverReachThePool) {
  for (const NamedExecutor& each : executors()) {
    int runs = 0;
    each.executor.parallel_for(0, [&](Index, Index) { ++runs; });
    EXPECT_EQ(runs, 0) << each.name;
  }
  int calls = 0;
  const Executor counting(2, [&](Index count, TaskRef task) {
    ++calls;
    for (Index i = 0; i < count; ++i) task(i, 1);
  });
  counting.parallel_for(0, [](Index, Index) {});
  EXPECT_EQ(calls, 0);
  counting.parallel_for(1, [](Index, Index) {});
  EXPECT_EQ(calls, 1);
}

TEST(Executor, WorkersAreWhatWasAskedFor) {
  EXPECT_EQ(Executor::serial().workers(), 1);
  EXPECT_EQ(threads(5).workers(), 5);
  EXPECT_EQ(Executor::openmp(1).workers(), 1);
#ifdef _OPENMP
  EXPECT_EQ(Executor::openmp(4).workers(), 4);
#else
  EXPECT_THROW(Executor::openmp(4), Error);
#endif
}

TEST(Executor, FewerThanOneWorkerIsAnError) {
  EXPECT_THROW(threads(0), Error);
  EXPECT_THROW(threads(-2), Error);
  EXPECT_THROW(Executor::openmp(0), Error);
  try {
    threads(-2);
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("-2"), std::string::npos) << error.what();
  }
}

TEST(Executor, MoreWorkersThanAnyMachineHasAreAnError) {
  EXPECT_EQ(Executor::openmp(1).workers(), 1);
  EXPECT_EQ(threads(Executor::kMaxWorkers).workers(), Executor::kMaxWorkers);
  const Index many = Executor::kMaxWorkers + 1;
  EXPECT_NE(error_of([&] { threads(many); }).find(std::to_string(many)), std::string::npos);
  EXPECT_THROW(threads(std::numeric_limits<Index>::max()), Error);
}

TEST(Executor, AnEmptyFunctionIsAnError) {
  EXPECT_NE(error_of([] {
              Executor(3, std::function<void(Index, TaskRef)>{});
            }).find("executor of 3 workers was given an empty function"),
            std::string::npos);
  EXPECT_THROW(Executor(1, std::function<void(int, TaskRef)>{}), Error) << "of another signature";
  EXPECT_THROW(Executor(1, static_cast<void (*)(Index, TaskRef)>(nullptr)), Error);
}

/// An executor that runs the tasks as these numbers have it, on a thread that lets no exception through.
Executor executor_of(Index workers, const std::vector<std::pair<Index, Index>>& runs) {
  return {workers, [runs](Index, TaskRef task) {
            std::thread([&] {
              for (const auto& [i, worker] : runs) task(i, worker);
            }).join();
          }};
}

TEST(Executor, NumbersThatDoNotExistNeverReachATask) {
  struct Wrong {
    Index task, worker;
    std::string text;
  };
  const std::string workers = ", and has workers 0 to 1", tasks = ", and was given tasks 0 to 2";
  for (const Wrong& wrong :
       {Wrong{1, 2, "the executor ran task 1 with worker number 2" + workers},
        Wrong{1, -1, "the executor ran task 1 with worker number -1" + workers},
        Wrong{3, 0, "the executor ran task 3" + tasks}, Wrong{-1, 0, "the executor ran task -1" + tasks}}) {
    std::vector<Index> done;
    EXPECT_EQ(error_of([&] {
                executor_of(2, {{0, 1}, {wrong.task, wrong.worker}, {2, 0}})
                    .parallel_for(3, [&](Index task, Index worker) {
                      EXPECT_TRUE(0 <= worker && worker < 2);
                      done.push_back(task);
                    });
              }),
              wrong.text);
    EXPECT_EQ(done, std::vector<Index>{0}) << "what comes after the wrong one is left out";
  }
}

TEST(Executor, TasksLeftOutAreAnError) {
  EXPECT_EQ(error_of([] {
              executor_of(1, {{0, 0}, {2, 0}}).parallel_for(3, [](Index, Index) {});
            }),
            "the executor returned after 2 of 3 tasks: each must run once");
  EXPECT_EQ(error_of([] {
              executor_of(1, {{0, 0}, {1, 0}, {1, 0}}).parallel_for(2, [](Index, Index) {});
            }),
            "the executor returned after 3 of 2 tasks: each must run once");
}

TEST(Executor, WhatATaskThrowsArrivesWhereItWasAskedFor) {
  for (const NamedExecutor& each : executors()) {
    SCOPED_TRACE(each.name);
    try {
      each.executor.parallel_for(100, [](Index task, Index) {
        if (task % 10 == 7) throw std::runtime_error("from a task");
      });
      FAIL() << "nothing was thrown";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "from a task");
    }
  }
}

TEST(TaskRef, CallsWhatItRefersTo) {
  Index sum = 0;
  auto add = [&sum](Index task, Index worker) { sum += 10 * task + worker; };
  const TaskRef reference(add);
  const TaskRef copy = reference;
  reference(1, 2);
  copy(3, 4);
  EXPECT_EQ(sum, 46);

  const auto constant = add;
  TaskRef{constant}(1, 0);
  EXPECT_EQ(sum, 56);

  struct Counter {
    Index calls = 0;
    void operator()(Index, Index) { ++calls; }
  } counter;
  TaskRef{counter}(0, 0);
  EXPECT_EQ(counter.calls, 1) << "the callable itself is called, not a copy";
}

#ifdef _OPENMP
/// The threads of a parallel region that does not say how many.
int threads_of_a_region() {
  std::atomic<int> count = 0;
#pragma omp parallel
#pragma omp single
  count = omp_get_num_threads();
  return count;
}

/// Sets this thread's number of OpenMP threads for a while.
class OpenMpThreads {
 public:
  explicit OpenMpThreads(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count); }
  ~OpenMpThreads() { omp_set_num_threads(before_); }

 private:
  int before_;
};

TEST(OwnThread, TakesOpenMpsThreadsAndGivesThemBack) {
  const OpenMpThreads three(3);
  ASSERT_EQ(threads_of_a_region(), 3);
  {
    const OwnThread own;
    EXPECT_EQ(omp_get_max_threads(), 1);
    EXPECT_EQ(threads_of_a_region(), 1);
    {
      const OwnThread again;
      EXPECT_EQ(threads_of_a_region(), 1);
    }
    EXPECT_EQ(threads_of_a_region(), 1) << "one within another";
  }
  EXPECT_EQ(omp_get_max_threads(), 3);
  EXPECT_EQ(threads_of_a_region(), 3);
  EXPECT_THROW(
      {
        const OwnThread own;
        throw Error("leaves by an exception");
      },
      Error);
  EXPECT_EQ(threads_of_a_region(), 3);
}

TEST(OwnThread, ExecutorsKeepTheirThreads) {
  const OwnThread own;
  std::atomic<int> team{0};
  Executor::openmp(3).parallel_for(3, [&](Index, Index) { team = omp_get_num_threads(); });
  EXPECT_EQ(team, 3);
}

TEST(OwnThread, IsOfTheThreadThatItLivesOn) {
  const OpenMpThreads three(3);
  std::thread([] {
    const OpenMpThreads two(2);
    const OwnThread own;
    EXPECT_EQ(threads_of_a_region(), 1);
  }).join();
  EXPECT_EQ(omp_get_max_threads(), 3);
  const OwnThread own;
  std::thread([] {
    const OpenMpThreads two(2);
    EXPECT_EQ(threads_of_a_region(), 2);
  }).join();
  EXPECT_EQ(omp_get_max_threads(), 1);
}
#endif

TEST(OwnThread, IsNotCopied) {
  [[maybe_unused]] const OwnThread own;  // with or without OpenMP
  static_assert(!std::is_copy_constructible_v<OwnThread> && !std::is_copy_assignable_v<OwnThread>);
}

}  // namespace
