// Executors for tests: threads made for each call.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "fastrope/core/executor.hpp"

namespace fastrope_test {

/// `count` std::threads that take tasks one by one, in an order that differs from run to run.
inline fastrope::Executor threads(fastrope::Index count) {
  using fastrope::Index;
  return {count, [count](Index tasks, fastrope::TaskRef task) {
            std::atomic<Index> next = 0;
            std::vector<std::thread> team;
            for (Index worker = 0; worker < count; ++worker)
              team.emplace_back([&, worker] {
                for (Index i = next++; i < tasks; i = next++) task(i, worker);
              });
            for (std::thread& thread : team) thread.join();
          }};
}

}  // namespace fastrope_test
