// A whole text at once: every layer's heads are planned for what they are given, and run.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "network.hpp"

namespace bounded_model {

/// What reading a text came to.
struct Reading {
  std::vector<float> losses;          // [tokens - 1], of each token but the first, in nats
  double seconds = 0;                 // of all but the spot checks
  Index heads = 0, fast_heads = 0;    // global ones, and those of them that took a sub-quadratic path
  double promised = 0, observed = 0;  // the largest error of a global head over max|V|
  std::size_t workspace_bytes = 0;    // the largest

  /// Mean loss of the tokens from `first` on.
  double mean_loss(std::size_t first = 0) const {
    double sum = 0;
    for (std::size_t i = first; i < losses.size(); ++i) sum += static_cast<double>(losses[i]);
    return sum / static_cast<double>(losses.size() - first);
  }
};

/// Reads the tokens, global heads within `tolerance`; 0: exactly. checked: rows of each global head that are
/// computed again in double and held against the promise. progress(layer) is called after each. Throws Error
/// where the planner does.
template <class Progress>
Reading read_text(const Network& network, std::span<const Token> tokens, double tolerance, Index checked,
                  Progress&& progress) {
  using Clock = std::chrono::steady_clock;
  Reading reading;
  Clock::time_point start = Clock::now();
  const auto run = [&](const Group& g, const Matrix& projected, Matrix& mixed,
                       const fastrope::Options& options) {
    const Index d_v = network.config().head_size();
    const auto q = rows_of(projected, g, g.q, g.d), k = rows_of(projected, g, g.k, g.d),
               v = rows_of(projected, g, g.v, d_v);
    const auto out = rows_of(mixed, g, g.first * d_v, d_v);
    const auto plan = fastrope::make_plan(q, k, v, options);
    std::vector<std::byte> workspace(plan.workspace_bytes());
    reading.workspace_bytes = std::max(reading.workspace_bytes, workspace.size());
    if (plan.run(q, k, v, out, workspace) != fastrope::RunStatus::ok)
      throw fastrope::Error("attention was refused");
    if (options.tolerance == 0) return;
    const Clock::time_point begin = Clock::now();
    for (const fastrope::HeadReport& head : plan.verify(q, k, v, out, checked).heads) {
      reading.fast_heads += head.path != fastrope::Path::exact;
      reading.promised = std::max(reading.promised, head.error_bound);
      reading.observed = std::max(reading.observed, head.observed_error);
    }
    start += Clock::now() - begin;
  };

  Matrix x = network.embed(tokens);
  fastrope::Options options = network.global().options;
  options.tolerance = tolerance;
  for (Index l = 0; l < network.config().layers; ++l) {
    network.run_layer(l, x, [&](const Matrix& projected, Matrix& mixed) {
      if (network.local().heads > 0) run(network.local(), projected, mixed, network.local().options);
      if (network.global().heads > 0) run(network.global(), projected, mixed, options);
    });
    reading.heads += network.global().heads;
    progress(l + 1);
  }
  Matrix rows;
  Network::for_each_part(x.rows() - 1, [&](Index first, Index count) {
    rows = x.middleRows(first, count);
    const Matrix outputs = network.outputs(rows);
    for (Index i = 0; i < count; ++i) {
      const float most = outputs.row(i).maxCoeff();
      reading.losses.push_back(std::log((outputs.row(i).array() - most).exp().sum()) + most -
                               outputs(i, tokens[static_cast<std::size_t>(first + i + 1)]));
    }
  });
  reading.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return reading;
}

}  // namespace bounded_model
