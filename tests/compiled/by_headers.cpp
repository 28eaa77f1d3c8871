#include <fastrope/fastrope.hpp>

#include <chrono>
#include <future>

#include "calls.hpp"
#include "fastrope/fastrope.h"

Answers answers_of_headers() { return all_calls(); }

bool library_waits_for_planner_lock() {
  const auto plan = [] {
    const std::vector<float> generator(20001, 1);
    const fastrope_matrix generators{const_cast<float*>(generator.data()), 1, 20001, 20001};
    fastrope_toeplitz* toeplitz = nullptr;
    const bool made =
        fastrope_toeplitz_create(FASTROPE_F32, 10001, 10001, &generators, &toeplitz) == FASTROPE_OK;
    fastrope_toeplitz_destroy(toeplitz);
    return made;
  };
  std::unique_lock lock(fastrope::fftw_planner_mutex);
  auto made = std::async(std::launch::async, plan);
  const bool waited = made.wait_for(std::chrono::milliseconds(300)) == std::future_status::timeout;
  lock.unlock();
  return made.get() && waited;
}
