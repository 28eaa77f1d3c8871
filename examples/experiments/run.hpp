// One run: a scheme learns a task from a seed.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "probe.hpp"
#include "schemes.hpp"

namespace experiments {

/// Its name in the grid.
struct Key {
  std::string scheme, task;
  int seed;

  bool operator==(const Key&) const = default;
};

struct Result {
  Key key;
  Index steps_to_90 = -1;  // to the first evaluation of 90 % and more; -1: it did not come
  Index steps = 0;         // done
  double seconds = 0;
  std::vector<double> accuracy = {};  // at every evaluation, on held-out sequences
  Eigen::MatrixXd drops = {};         // [layers, heads], see ablation()
};

/// How long a run takes at most, and what it sees.
struct Effort {
  training::Schedule schedule = {};
  Index batch = 128, held_out = 1024;
  Index evaluate_every = 100;
};

/// Trains until the schedule ends or three evaluations in a row are of 99.9 % and more. Batches are the same
/// for every scheme of a task and a seed; held-out sequences for every run of a task. Calls
/// progress(step, steps, loss, accuracy, seconds left) after every evaluation.
template <class Progress>
std::pair<Result, std::vector<Probe>> train(const Scheme& scheme, const Task& task, int seed,
                                            const Effort& effort, Progress&& progress) {
  constexpr double kLearned = 0.9, kPerfect = 0.999;
  constexpr int kPerfectInARow = 3;
  constexpr std::size_t kProbed = 4;  // sequences
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  const auto seconds = [begin] { return std::chrono::duration<double>(Clock::now() - begin).count(); };

  training::Trainer<float> trainer(config_of(scheme, task), effort.schedule,
                                   static_cast<std::uint64_t>(seed));
  Random stream(static_cast<std::uint64_t>(seed) + 1000), held_out_stream(7);
  const training::Batch held_out = draw_batch(task, effort.held_out, held_out_stream);
  const std::span<const training::Token> probed =
      std::span(held_out.tokens).first(kProbed * static_cast<std::size_t>(task.n));
  Result result{.key = {scheme.name, task.name, seed}};
  std::vector<Probe> probes = probe(trainer, probed);
  const auto add_probe = [&] {
    for (const Probe& p : probe(trainer, probed)) probes.push_back(p);
  };
  double loss = 0;  // a sum since the last evaluation
  Index since = 0;  // steps
  int perfect = 0;
  for (Index step = 1; step <= effort.schedule.steps && perfect < kPerfectInARow; ++step) {
    loss += trainer.step(draw_batch(task, effort.batch, stream));
    ++since;
    result.steps = step;
    if (step == 100 || step == 400 || step == 1600) add_probe();
    if (step % effort.evaluate_every != 0 && step != effort.schedule.steps) continue;
    const double accuracy = trainer.accuracy(held_out);
    result.accuracy.push_back(accuracy);
    if (accuracy >= kLearned && result.steps_to_90 < 0) result.steps_to_90 = step;
    perfect = accuracy >= kPerfect ? perfect + 1 : 0;
    const double left =
        seconds() * static_cast<double>(effort.schedule.steps - step) / static_cast<double>(step);
    progress(step, effort.schedule.steps, loss / static_cast<double>(since), accuracy, left);
    loss = 0;
    since = 0;
  }
  if (probes.back().step != result.steps) add_probe();
  result.drops = ablation(trainer, held_out, result.accuracy.back());
  result.seconds = seconds();
  return {std::move(result), std::move(probes)};
}

}  // namespace experiments
