// Tables and figures of the runs that are done.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "../figures/heat_map.hpp"
#include "../figures/svg.hpp"
#include "schemes.hpp"
#include "table.hpp"

namespace experiments {

namespace detail {

inline constexpr const char* kTasks[] = {"distance", "count"};

inline std::vector<Result> of(const std::vector<Result>& runs, const std::string& scheme,
                              const std::string& task) {
  std::vector<Result> some;
  for (const Result& r : runs)
    if (r.key.scheme == scheme && r.key.task == task) some.push_back(r);
  return some;
}

inline double mean(const std::vector<double>& x) {
  return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

/// "mean (least .. most)" of shares, in %; one alone stands for itself.
inline std::string spread(const std::vector<double>& x) {
  const auto [least, most] = std::minmax_element(x.begin(), x.end());
  char text[64];
  int size = std::snprintf(text, sizeof text, "%.1f", 100 * mean(x));
  if (x.size() > 1)
    size += std::snprintf(text + size, sizeof text - static_cast<std::size_t>(size), " (%.1f .. %.1f)",
                          100 * *least, 100 * *most);
  return {text, static_cast<std::size_t>(size)};
}

/// Each run's drops, the largest of a layer first, means over runs: [layers, heads].
inline Eigen::MatrixXd sorted_drops(const std::vector<Result>& runs) {
  Eigen::MatrixXd sum = Eigen::MatrixXd::Zero(runs[0].drops.rows(), runs[0].drops.cols());
  for (const Result& r : runs)
    for (Index layer = 0; layer < sum.rows(); ++layer) {
      Eigen::RowVectorXd drops = r.drops.row(layer);
      std::sort(drops.begin(), drops.end(), std::greater<>());
      sum.row(layer) += drops / static_cast<double>(runs.size());
    }
  return sum;
}

/// How many heads of each layer are worth five points or more: "5 + 3".
inline std::string heads_that_count(const Result& r) {
  constexpr double kPoints = 0.05;
  std::string counts;
  for (Index layer = 0; layer < r.drops.rows(); ++layer)
    counts += (layer > 0 ? " + " : "") + std::to_string((r.drops.row(layer).array() >= kPoints).count());
  return counts;
}

inline void print_accuracies(const std::vector<Result>& runs, const std::string& task) {
  std::printf(
      "\n### %s\n\n| scheme | seeds | accuracy, %% | steps to 90 %% | steps | largest drop, points | second "
      "| heads of layers 0 + 1 worth 5 points |\n"
      "|---|---|---|---|---|---|---|---|\n",
      task.c_str());
  for (const Scheme& scheme : schemes()) {
    const std::vector<Result> some = of(runs, scheme.name, task);
    if (some.empty()) continue;
    std::vector<double> accuracy, top, second;
    std::string to_90, steps, heads;
    for (const Result& r : some) {
      accuracy.push_back(r.accuracy.back());
      const auto [first, next] = two_largest(r.drops);
      top.push_back(first);
      second.push_back(next);
      const std::string separator = to_90.empty() ? "" : ", ";
      to_90 += separator + (r.steps_to_90 < 0 ? "-" : std::to_string(r.steps_to_90));
      steps += separator + std::to_string(r.steps);
      heads += separator + heads_that_count(r);
    }
    std::printf("| %s | %zu | %s | %s | %s | %s | %s | %s |\n", scheme.name.c_str(), some.size(),
                spread(accuracy).c_str(), to_90.c_str(), steps.c_str(), spread(top).c_str(),
                spread(second).c_str(), heads.c_str());
  }
}

/// Means over the runs of a scheme at a step and layer; step < 0: each run's last.
inline Probe mean_probe(const std::vector<std::pair<Key, Probe>>& probes, const std::vector<Result>& runs,
                        Index step, Index layer) {
  Probe mean{step, layer};
  double count = 0;
  for (const Result& r : runs)
    for (const auto& [key, p] : probes) {
      if (!(key == r.key) || p.layer != layer || p.step != (step < 0 ? r.steps : step)) continue;
      mean.sigma_1 += p.sigma_1;
      mean.condition += p.condition;
      mean.entropy_rank += p.entropy_rank;
      mean.lead += p.lead;
      ++count;
    }
  return {step,
          layer,
          mean.sigma_1 / count,
          mean.condition / count,
          mean.entropy_rank / count,
          mean.lead / count};
}

inline void print_probes(const std::vector<Result>& runs, const std::vector<std::pair<Key, Probe>>& probes,
                         const std::string& task) {
  std::printf(
      "\n### Spectra of the logits, %s\n\n"
      "| scheme | layer | sigma_1 at steps 0, 100, 400, last | sigma_1 / sigma_d | entropy rank | "
      "lead of layer 0 over layer 1's, steps 100, 400 |\n|---|---|---|---|---|---|\n",
      task.c_str());
  const auto add = [](std::string& list, const char* format, double x) {
    char text[32];
    std::snprintf(text, sizeof text, format, x);
    list +=
        (list.empty() ? "" : ", ") + std::string(std::isfinite(x) ? text : "-");  // a short run lacks some
  };
  for (const Scheme& scheme : schemes()) {
    const std::vector<Result> some = of(runs, scheme.name, task);
    if (some.empty()) continue;
    for (Index layer = 0; layer < some[0].drops.rows(); ++layer) {
      std::string sigma, condition, rank, lead;
      for (const Index step : {0, 100, 400, -1}) {
        const Probe p = mean_probe(probes, some, step, layer);
        add(sigma, "%.1f", p.sigma_1);
        add(condition, "%.2g", p.condition);
        add(rank, "%.1f", p.entropy_rank);
        if (layer == 0 && step > 0) add(lead, "%.2g", p.lead / mean_probe(probes, some, step, 1).lead);
      }
      std::printf("| %s | %td | %s | %s | %s | %s |\n", scheme.name.c_str(), layer, sigma.c_str(),
                  condition.c_str(), rank.c_str(), lead.c_str());
    }
  }
}

/// Places in the order of size, equal ones sharing their mean.
inline std::vector<double> ranks(const std::vector<double>& x) {
  std::vector<double> places;
  for (const double a : x) {
    double below = 0, equal = 0;
    for (const double b : x) {
      below += b < a;
      equal += b == a;
    }
    places.push_back(below + (equal - 1) / 2);
  }
  return places;
}

/// Spearman's correlation of ranks.
inline double rank_correlation(const std::vector<double>& x, const std::vector<double>& y) {
  const std::vector<double> a = ranks(x), b = ranks(y);
  const double of_a = mean(a), of_b = mean(b);
  double product = 0, square_a = 0, square_b = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    product += (a[i] - of_a) * (b[i] - of_b);
    square_a += (a[i] - of_a) * (a[i] - of_a);
    square_b += (b[i] - of_b) * (b[i] - of_b);
  }
  return product / std::sqrt(square_a * square_b);
}

/// Whether schemes whose logits are worse conditioned need more steps: over schemes, of each one's means.
inline void print_correlation(const std::vector<Result>& runs,
                              const std::vector<std::pair<Key, Probe>>& probes, const std::string& task) {
  constexpr std::size_t kFewest = 5;  // schemes of which a correlation says anything
  for (const Index step : {0, 100, 400}) {
    std::vector<double> sigma, condition, to_90;
    for (const Scheme& scheme : schemes()) {
      const std::vector<Result> some = of(runs, scheme.name, task);
      if (some.empty()) continue;
      std::vector<double> steps;
      steps.reserve(some.size());
      for (const Result& r : some)  // what did not come is later than all that did
        steps.push_back(r.steps_to_90 < 0 ? 2e4 : static_cast<double>(r.steps_to_90));
      to_90.push_back(mean(steps));
      const Probe p = mean_probe(probes, some, step, 0);
      sigma.push_back(p.sigma_1);
      condition.push_back(p.condition);
    }
    if (to_90.size() < kFewest) return;
    std::printf(
        "%s%s: over %zu schemes, rank correlation of steps to 90 %% with layer 0's sigma_1 %.2f, with "
        "sigma_1 / sigma_d %.2f, at step %td\n",
        step == 0 ? "\n" : "", task.c_str(), to_90.size(), rank_correlation(sigma, to_90),
        rank_correlation(condition, to_90), step);
  }
}

/// A spot for every run, a panel for every task.
inline void draw_steps(const std::vector<Result>& runs, const std::string& path) {
  constexpr double kLeft = 120, kTop = 84, kWidth = 330, kRow = 22, kGap = 40;
  Index longest = training::Schedule{}.steps;
  for (const Result& r : runs) longest = std::max(longest, r.steps);
  const std::vector<Scheme> all = schemes();
  const double bottom = kTop + kRow * static_cast<double>(all.size());
  figures::Svg svg(kLeft + 2 * (kWidth + kGap) + 20, bottom + 56);
  svg.words({16, 22}, "Training steps to 90 % of held-out sequences right", {.size = 14, .bold = true});
  svg.words({16, 40}, "a spot for each seed; hollow, at the right: never in all of the schedule's steps",
            {.fill = "#555"});
  for (std::size_t t = 0; t < std::size(kTasks); ++t) {
    const double left = kLeft + (kWidth + kGap) * static_cast<double>(t);
    const figures::LogAxis x{100, static_cast<double>(longest), left, left + kWidth};
    svg.words({left, kTop - 14}, kTasks[t], {.size = 12, .bold = true});
    for (const double tick : {100, 200, 500, 1000, 2000, 4000}) {
      if (tick > x.high) continue;
      svg.line({x(tick), kTop}, {x(tick), bottom}, "#e2e2e2");
      svg.words({x(tick), bottom + 16}, figures::short_number(tick), {.anchor = "middle"});
    }
    for (std::size_t s = 0; s < all.size(); ++s) {
      const double y = kTop + kRow * (static_cast<double>(s) + 0.5);
      if (t == 0) svg.words({kLeft - 12, y + 4}, all[s].name, {.anchor = "end"});
      for (const Result& r : of(runs, all[s].name, kTasks[t])) {
        if (r.steps_to_90 < 0)
          svg.circle({left + kWidth + 14, y}, 4, "#fff", "#d55e00");
        else
          svg.circle({x(static_cast<double>(r.steps_to_90)), y}, 4, "#0072b2");
      }
    }
  }
  svg.words({kLeft + kWidth + kGap / 2, bottom + 40}, "steps", {.anchor = "middle", .fill = "#555"});
  svg.save(path);
}

inline void draw_drops(const std::vector<Result>& runs, const std::string& task, const std::string& path) {
  std::vector<std::string> rows, columns;
  std::vector<Eigen::MatrixXd> drops;  // of each scheme
  for (const Scheme& scheme : schemes()) {
    const std::vector<Result> some = of(runs, scheme.name, task);
    if (some.empty()) continue;
    rows.push_back(scheme.name);
    drops.push_back(sorted_drops(some));
  }
  const Index layers = drops[0].rows(), heads = drops[0].cols();
  Eigen::MatrixXd values(std::ssize(drops), layers * heads);
  for (Index l = 0; l < layers; ++l)
    for (Index h = 0; h < heads; ++h) {
      columns.push_back("L" + std::to_string(l) + ", " + std::to_string(h + 1) + ".");
      for (Index r = 0; r < values.rows(); ++r)
        values(r, l * heads + h) = 100 * drops[static_cast<std::size_t>(r)](l, h);
    }
  figures::draw_heat_map(
      values,
      {.title = "Drop of accuracy with one head's values zero, in points: " + task,
       .subtitle = "a layer's heads, the one that is worth most first; held-out sequences, means over seeds",
       .rows = "",
       .columns = "",
       .format = "%.1f",
       .row_names = rows,
       .column_names = columns},
      path);
}

}  // namespace detail

/// Prints what the tables say as Markdown, and draws steps_to_90.svg and ablation_<task>.svg into the folder.
inline void report(const std::string& runs_path, const std::string& probes_path, const std::string& folder) {
  const training::Config config;
  const std::vector<Result> runs = read_runs(runs_path, config.layers, config.heads);
  const std::vector<std::pair<Key, Probe>> probes = read_probes(probes_path);
  for (const char* task : detail::kTasks) {
    if (std::none_of(runs.begin(), runs.end(), [&](const Result& r) { return r.key.task == task; })) continue;
    detail::print_accuracies(runs, task);
    detail::print_probes(runs, probes, task);
    detail::print_correlation(runs, probes, task);
    detail::draw_drops(runs, task, folder + "/ablation_" + task + ".svg");
  }
  detail::draw_steps(runs, folder + "/steps_to_90.svg");
}

}  // namespace experiments
