// One head made to measure, and how long each path takes for it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <fastrope/fastrope.hpp>
#include <optional>
#include <string>
#include <vector>

#include "attention.hpp"
#include "ceilings.hpp"

namespace bench {

using fastrope::Path;

/// Positions beside RoPE.
enum class Bias { none, t5, table };

inline const char* name_of(Bias bias) {
  return bias == Bias::none ? "rope" : bias == Bias::t5 ? "rope+t5" : "rope+table";
}

/// A head of n queries and keys, uniform on spheres that make |x| <= radius.
struct MadeHead {
  Index n = 0;
  Index d = 0;  ///< = d_v
  double radius = 0;
  double tolerance = 0;
  bool causal = false;
  Bias bias = Bias::none;

  AttentionCase attention_case() const {
    AttentionCase c{.shapes = {1, 1, n, n, d, d}};
    c.base.rope = fastrope::Rope{};
    c.base.scale = 1.0;
    c.base.tolerance = tolerance;
    if (causal) c.base.mask = fastrope::Mask::causal();
    fastrope_test::Inputs random(4);
    if (bias == Bias::t5) set_t5(c, random, /*bidirectional=*/!causal);
    if (bias == Bias::table) {
      std::vector<double> table;
      for (Index lag = 1 - n; lag < n; ++lag) table.push_back(random.uniform(-1, 1));
      c.base.bias = fastrope::LagBias::table(table, 1, 1 - n);
      c.bias = [table, n = n](Index, Index lag) { return table[static_cast<std::size_t>(lag + n - 1)]; };
    }
    return c;
  }
};

/// A path that can run, and what it takes.
struct PathTime {
  Path path;
  fastrope::Candidate candidate;  ///< as forced
  double seconds = 0;             ///< median
  double error = 0;               ///< max |out - reference| / max|V| of some rows
};

/// The forced plan of a path, unless it cannot be run.
inline std::optional<fastrope::Plan<float>> forced_plan(AttentionCase c, const AttentionInputs<float>& in,
                                                        Path path, const fastrope::CostModel& cost) {
  c.base.path = path;
  try {
    return fastrope::make_plan(in.q.view(), in.k.view(), in.v.view(), c.options(), cost);
  } catch (const fastrope::Error&) {
    return std::nullopt;
  }
}

inline const fastrope::Candidate& candidate_of(const fastrope::HeadReport& head) {
  return *std::find_if(head.candidates.begin(), head.candidates.end(),
                       [&](const fastrope::Candidate& c) { return c.path == head.path; });
}

/// Every path that can run, but for those predicted to take more than `most` times the exact path, and the
/// Toeplitz path without a lag bias, where it has the polynomial path's features. All run in turn, `rounds`
/// times. The machine's clock wanders, so only times of one call compare.
inline std::vector<PathTime> path_times(const AttentionCase& c, AttentionInputs<float>& in, int rounds,
                                        double most, const fastrope::CostModel& cost = {}) {
  std::vector<fastrope::Plan<float>> plans;
  std::vector<PathTime> times;
  for (const Path path : {Path::exact, Path::polynomial, Path::toeplitz}) {
    if (path == Path::toeplitz && c.base.bias.empty()) continue;
    auto plan = forced_plan(c, in, path, cost);
    if (!plan) continue;
    const fastrope::Candidate& candidate = candidate_of(plan->report().heads.front());
    if (!times.empty() && candidate.seconds > most * times.front().candidate.seconds) continue;
    times.push_back({path, candidate});
    plans.push_back(std::move(*plan));
  }
  std::size_t bytes = 0;
  for (const auto& plan : plans) bytes = std::max(bytes, plan.workspace_bytes());
  std::vector<std::byte> workspace(bytes);
  std::vector<Median> medians(plans.size());
  for (int round = 0; round <= rounds; ++round)  // the first is not counted
    for (std::size_t p = 0; p < plans.size(); ++p) {
      const double start = now();
      plans[p].run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace);
      if (round > 0) medians[p].add(now() - start);
      if (round == rounds) times[p].error = sampled_error(c, in, 8);
    }
  for (std::size_t p = 0; p < plans.size(); ++p) times[p].seconds = medians[p].value();
  return times;
}

}  // namespace bench
