// The library against the headers, call by call: under the target that the environment names, as it is to be
// within rounding. Exits with 77 where the processor does not run that.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>

#include "answers.hpp"
#include "fastrope/fastrope.h"

namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::cerr << "error: " << what << '\n';
  ++failures;
}

/// The largest difference, over the largest value; infinity where there is no number on one side alone.
double difference(const std::vector<double>& a, const std::vector<double>& b) {
  double most = 0, size = 1e-30;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double apart = a[i] == b[i] ? 0 : std::abs(a[i] - b[i]);
    most = std::max(most, std::isfinite(apart) ? apart : INFINITY);
    if (std::isfinite(a[i])) size = std::max(size, std::abs(a[i]));
  }
  return most / size;
}

}  // namespace

int main() {
  const char* asked = std::getenv("FASTROPE_TARGET");
  const char* target = fastrope_target();
  if (target == nullptr) {
    std::cerr << fastrope_last_error() << '\n';
    return 77;
  }
  std::cout << "target " << target << '\n';
  expect(asked == nullptr || std::strcmp(asked, target) == 0, "another target than was asked for");

  const Answers expected = answers_of_headers(), answers = answers_of_library();
  expect(expected.size() == answers.size(), "not as many answers");
  for (std::size_t i = 0; i < std::min(expected.size(), answers.size()); ++i) {
    const Answer &e = expected[i], &a = answers[i];
    if (e.values.size() != a.values.size()) {
      expect(false, e.name + ": " + std::to_string(a.values.size()) + " values for " +
                        std::to_string(e.values.size()));
      continue;
    }
    expect(!e.values.empty(), e.name + ": nothing was compared");
    const double apart = difference(e.values, a.values);
    expect(apart <= e.tolerance, e.name + ": " + std::to_string(apart) + " apart");
  }
  expect(library_waits_for_planner_lock(), "FFTW's planner lock is not one in the process");
  const long allocations = allocations_of_runs();
  expect(allocations == 0, std::to_string(allocations) + " allocations in runs and steps (-1: they fail)");
  std::cout << answers.size() << " answers, " << failures << " failures\n";
  return failures == 0 ? 0 : 1;
}
