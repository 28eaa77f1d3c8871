// Which positional scheme learns what, and where it keeps it?
//
//     positional_experiments RUNS PROBES [--seeds 3] [--steps 4000] [--schemes A,B,..] [--tasks A,..]
//     positional_experiments RUNS PROBES --report FOLDER
//
// Trains a small transformer (training/: 2 layers, width 64, 8 heads, mean pooling, no mask, 48 tokens) for
// every scheme, task and seed that the table RUNS has no line of, and adds one: steps to 90 % of held-out
// sequences right, the accuracy at the end, and by how much it drops with each head's values zero. PROBES
// gets spectra of logits and leads of gradients on the way. A grid that is stopped goes on where it was; runs
// are of one thread. --report prints tables (Markdown) and writes figures to the folder.
//
// distance: how far are two triggers apart, 1 .. 24? count: how many triggers are there, 0 .. 24?
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "experiments/report.hpp"
#include "experiments/run.hpp"
#include "experiments/schemes.hpp"
#include "experiments/table.hpp"

namespace {

using experiments::Index;
using experiments::Key;
using experiments::Result;
using experiments::Scheme;

struct Request {
  std::string runs, probes, report;
  int seeds;
  Index steps;
  std::vector<std::string> schemes, tasks;  // all, if empty
};

Request requested(int count, char** argv) {
  examples::Arguments words(count, argv,
                            "RUNS PROBES [--seeds N] [--steps N] [--schemes A,B,..] [--tasks A,..]\n"
                            "       [--report FOLDER]");
  Request r;
  r.seeds = words.number<int>("--seeds", 3, 1);
  r.steps = words.number<Index>("--steps", 4000, 1);
  r.schemes = words.words("--schemes", "");
  r.tasks = words.words("--tasks", "");
  r.report = words.text("--report", "");
  r.runs = words.files(2)[0], r.probes = words.files(2)[1];
  return r;
}

struct Planned {
  Scheme scheme;
  experiments::Task task;
  int seed;
};

bool chosen(const std::vector<std::string>& names, const std::string& name) {
  return names.empty() || std::find(names.begin(), names.end(), name) != names.end();
}

/// What is to be done, the most informative first: every scheme and task of a seed before the next seed.
std::vector<Planned> planned(const Request& a, const std::vector<Result>& done) {
  constexpr Index kTokens = 48;
  std::vector<Planned> runs;
  for (int seed = 0; seed < a.seeds; ++seed)
    for (const experiments::Task& task :
         {experiments::distance_task(kTokens), experiments::count_task(kTokens)})
      for (const Scheme& scheme : experiments::schemes()) {
        const Key key{scheme.name, task.name, seed};
        const bool is_done =
            std::any_of(done.begin(), done.end(), [&](const Result& r) { return r.key == key; });
        if (!is_done && chosen(a.schemes, scheme.name) && chosen(a.tasks, task.name))
          runs.push_back({scheme, task, seed});
      }
  return runs;
}

void run_grid(const Request& a) {
  const training::Config config;
  const std::vector<Planned> runs = planned(a, experiments::read_runs(a.runs, config.layers, config.heads));
  const experiments::Effort effort{.schedule = {.steps = a.steps}};
  double seconds = 0;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const auto& [scheme, task, seed] = runs[i];
    const auto [result, probes] = experiments::train(
        scheme, task, seed, effort, [&](Index step, Index steps, double loss, double accuracy, double left) {
          std::printf(
              "\r%zu of %zu: %s, %s, seed %d: step %td of %td, loss %.3f, accuracy %.3f, %.0f s left at "
              "most ",
              i + 1, runs.size(), runs[i].scheme.name.c_str(), runs[i].task.name.c_str(), runs[i].seed, step,
              steps, loss, accuracy, left);
          std::fflush(stdout);
        });
    experiments::append_probes(a.probes, result.key, probes);
    experiments::append_run(a.runs, result);
    seconds += result.seconds;
    const auto [top, second] = experiments::two_largest(result.drops);
    std::printf("\n  90 %% after %s steps; drops %.3f, %.3f; %.0f s, about %.0f min left for all\n",
                result.steps_to_90 < 0 ? "more" : std::to_string(result.steps_to_90).c_str(), top, second,
                result.seconds,
                seconds / 60 * static_cast<double>(runs.size() - i - 1) / static_cast<double>(i + 1));
    std::fflush(stdout);
  }
}

}  // namespace

int main(int count, char** words) try {
  const Request asked = requested(count, words);
  Eigen::setNbThreads(1);
  if (!asked.report.empty())
    experiments::report(asked.runs, asked.probes, asked.report);
  else
    run_grid(asked);
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "positional_experiments: %s\n", error.what());
  return EXIT_FAILURE;
}
