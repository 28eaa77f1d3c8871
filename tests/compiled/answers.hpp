// What calls.hpp brings back, and from whom.
#pragma once

#include <string>
#include <vector>

struct Answer {
  std::string name;
  std::vector<double> values;
  double tolerance;
};
using Answers = std::vector<Answer>;

Answers answers_of_headers();
Answers answers_of_library();
/// Holds FFTW's planner lock as the headers know it, while the library plans on another thread; whether it
/// waited.
bool library_waits_for_planner_lock();
/// Of runs and steps through the C interface; -1 where these fail.
long allocations_of_runs();
