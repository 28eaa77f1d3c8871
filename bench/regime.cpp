// Where each path pays: the dispatcher's predictions over a grid of sizes, as figures.
//
//     build/release/bench/regime [--measure] [docs/figures]
//
// Heads of one query head, d_v = d, at the scale 1, whose rows lie evenly on spheres that make |x| <= radius;
// float, one core, CostModel's default rates for the vectors compiled for; no data (fastrope::predict).
// Writes
//     regime_full.svg, regime_causal.svg   RoPE alone: n, radius, d and the tolerance
//     regime_bias.svg                      causal, RoPE and a lag bias, at the tolerance 1e-2
// and prints what share of the cells each path wins. With --measure some of the cells in which the paths are
// not far apart are run, each path in turn, the median of 3: a table of predicted and measured speed-ups,
// dots in the figures, and
//     time_by_length.svg   seconds of every path and of attention with its n x n scores in memory
//     error.svg            the error of 8 rows against double beside the promise, of all that was measured
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "path_times.hpp"
#include "regime_figures.hpp"

namespace {

using bench::Bias;
using bench::Cell;
using bench::Figure;
using bench::kLengths;
using bench::kRadii;
using bench::MadeHead;
using bench::Observed;
using bench::Row;
using bench::Series;
using fastrope::Candidate;
using fastrope::Index;
using fastrope::Path;

// Predictions.

fastrope::HeadReport prediction(const MadeHead& head, Path path) {
  auto c = head.attention_case();
  c.base.path = path;
  return fastrope::predict(c.shapes, c.options(), head.radius).heads.front();
}

Cell predicted(const MadeHead& head) {
  const fastrope::HeadReport report = prediction(head, Path::automatic);
  const Candidate &exact = report.candidates.front(), &chosen = bench::candidate_of(report);
  return {head, report.path, exact.seconds / chosen.seconds, exact.seconds};
}

/// As above, of a path that may have lost; 0 where it cannot run.
double forced_speed_up(const MadeHead& head, Path path) {
  try {
    const fastrope::HeadReport report = prediction(head, path);
    return report.candidates.front().seconds / bench::candidate_of(report).seconds;
  } catch (const fastrope::Error&) {
    return 0;
  }
}

void sweep(Figure& figure) {
  for (const Row& row : figure.rows)
    for (const Index d : figure.dims) {
      std::fprintf(stderr, "%s: %s, d = %td\n", figure.name.c_str(), row.label.c_str(), d);
      for (const double radius : kRadii)
        for (const Index n : kLengths)
          figure.cells.push_back(predicted({n, d, radius, row.tolerance, figure.causal, row.bias}));
    }
}

/// What share of the cells each path wins, for each bias and d.
void print_shares(const Figure& figure) {
  std::printf("\n%s: share of the cells won, as predicted\n%-11s %4s %6s %7s %11s %11s %9s\n",
              figure.name.c_str(), "positions", "d", "cells", "exact", "polynomial", "toeplitz", "largest");
  const auto print = [&](const char* positions, const std::string& d, auto&& counts) {
    int of[3] = {0, 0, 0}, all = 0;
    double largest = 1;
    for (const Cell& cell : figure.cells) {
      if (!counts(cell.head)) continue;
      ++all;
      ++of[cell.path == Path::exact ? 0 : cell.path == Path::polynomial ? 1 : 2];
      largest = std::max(largest, cell.speed_up);
    }
    std::printf("%-11s %4s %6d %6.1f%% %10.1f%% %10.1f%% %8.0fx\n", positions, d.c_str(), all,
                100.0 * of[0] / all, 100.0 * of[1] / all, 100.0 * of[2] / all, largest);
  };
  std::vector<Bias> biases;
  for (const Row& row : figure.rows)
    if (std::find(biases.begin(), biases.end(), row.bias) == biases.end()) biases.push_back(row.bias);
  for (const Bias bias : biases) {
    for (const Index d : figure.dims)
      print(name_of(bias), std::to_string(d),
            [&](const MadeHead& head) { return head.bias == bias && head.d == d; });
    print(name_of(bias), "all", [&](const MadeHead& head) { return head.bias == bias; });
  }
}

// Measurements.

/// Up to `count` of `list`, evenly spread from the first to the last.
template <class T>
std::vector<T> spread(const std::vector<T>& list, std::size_t count) {
  std::vector<T> some;
  count = std::min(count, list.size());
  for (std::size_t i = 0; i < count; ++i)
    some.push_back(list[count > 1 ? i * (list.size() - 1) / (count - 1) : 0]);
  return some;
}

/// Runs cells in which the paths are not far apart: some that an approximate path wins by at most 50 times,
/// and some at the border that the exact path wins by at most 2 times.
void measure(Figure& figure, std::vector<Observed>& observed) {
  constexpr Index kLongest = 32768;
  constexpr double kLongestRun = 1.0;  // seconds of the exact path
  const std::vector<Path> paths = figure.approximate();
  std::vector<std::pair<Cell*, double>> won, lost;  // with the approximate path's predicted speed-up
  for (std::size_t i = 0; i < figure.cells.size(); ++i) {
    Cell& cell = figure.cells[i];
    if (cell.head.n > kLongest || cell.exact > kLongestRun) continue;
    if (cell.path != Path::exact && cell.speed_up <= 50) won.emplace_back(&cell, cell.speed_up);
    if (cell.path == Path::exact && figure.cells[i + 1].path != Path::exact) {
      double speed_up = 0;
      for (const Path path : paths) speed_up = std::max(speed_up, forced_speed_up(cell.head, path));
      if (speed_up >= 0.5) lost.emplace_back(&cell, speed_up);
    }
  }
  std::printf("\n%s: speed-up over the exact path\n%-11s %6s %4s %7s %9s  %-10s %9s %9s  %-10s %9s %9s\n",
              figure.name.c_str(), "positions", "n", "d", "radius", "tolerance", "path", "predicted",
              "measured", "fastest", "error", "promised");
  std::vector<std::pair<Cell*, double>> chosen = spread(won, 6);
  for (const auto& more : spread(lost, 2)) chosen.push_back(more);
  for (const auto& [cell, speed_up] : chosen) {
    const MadeHead& head = cell->head;
    const auto c = head.attention_case();
    auto in = bench::on_spheres<float>(c, head.radius);
    const auto times = bench::path_times(c, in, 3, 4);
    const bench::PathTime *fastest = &times.front(), *approximate = nullptr;
    for (const bench::PathTime& t : times) {
      if (t.seconds < fastest->seconds) fastest = &t;
      if (t.path != Path::exact && (approximate == nullptr || t.seconds < approximate->seconds))
        approximate = &t;
      if (t.path != Path::exact) observed.push_back({t.path, t.candidate.error_bound, t.error});
    }
    cell->measured = true;
    cell->agrees = fastest->path == cell->path;
    std::printf("%-11s %6td %4td %7.2f %9.0e  %-10s %9.2f", name_of(head.bias), head.n, head.d, head.radius,
                head.tolerance, to_string(approximate ? approximate->path : cell->path), speed_up);
    if (approximate)
      std::printf(" %9.2f  %-10s %9.1e %9.1e\n", times.front().seconds / approximate->seconds,
                  to_string(fastest->path), approximate->error, approximate->candidate.error_bound);
    else
      std::printf(" %9s  %-10s\n", "-", to_string(fastest->path));
    std::fflush(stdout);
  }
}

std::vector<Series> times_by_length(std::vector<Observed>& observed) {
  Series naive{"naive, n x n in memory", "#777", "2 3"}, exact{"exact", "#000", ""},
      exact_bias{"exact, table bias", "#000", "6 3"}, polynomial{"polynomial", "#2171b5", ""},
      toeplitz{"toeplitz, table bias", "#d94801", "6 3"};
  constexpr Index kLongest = 65536, kLongestNaive = 16384;
  std::printf("\ntime_by_length: ms, d = 8, |x| <= 0.5, tolerance 1e-2, causal\n");
  for (const Index n : kLengths) {
    if (n > kLongest) break;
    for (const Bias bias : {Bias::none, Bias::table}) {
      const MadeHead head{n, 8, 0.5, 1e-2, true, bias};
      const auto c = head.attention_case();
      auto in = bench::on_spheres<float>(c, 0.5);
      for (const bench::PathTime& t : bench::path_times(c, in, 3, 100)) {
        Series* series = t.path == Path::exact ? bias == Bias::none ? &exact : &exact_bias
                         : t.path == Path::polynomial && bias == Bias::none ? &polynomial
                         : t.path == Path::toeplitz && bias == Bias::table  ? &toeplitz
                                                                            : nullptr;
        if (!series) continue;
        series->seconds.emplace_back(n, t.seconds);
        if (t.path != Path::exact) observed.push_back({t.path, t.candidate.error_bound, t.error});
      }
      if (bias == Bias::none && n <= kLongestNaive)
        naive.seconds.emplace_back(n, bench::median_seconds(3, [&] { bench::naive(c, in); }));
    }
  }
  std::vector<Series> all = {naive, exact, exact_bias, polynomial, toeplitz};
  for (const Series& series : all) {
    std::printf("%-24s", series.label.c_str());
    for (const auto& point : series.seconds) std::printf(" %10.3f", point.second * 1e3);
    std::printf("\n");
  }
  return all;
}

std::vector<Figure> maps() {
  const std::vector<Index> dims = {4, 8, 16, 32, 64, 128};
  std::vector<Row> rows;
  for (const int exponent : {1, 2, 3, 4})
    rows.push_back({std::pow(10, -exponent), Bias::none, "tolerance 1e-" + std::to_string(exponent)});
  return {{"regime_full", "Path predicted to be the fastest: RoPE, full mask", false, dims, rows},
          {"regime_causal", "Path predicted to be the fastest: RoPE, causal mask", true, dims, rows},
          {"regime_bias",
           "Path predicted to be the fastest: RoPE and a lag bias, causal mask, tolerance 1e-2",
           true,
           {4, 8, 16},
           {{1e-2, Bias::t5, "T5, by a state"}, {1e-2, Bias::table, "table, transforms"}}}};
}

}  // namespace

int main(int argc, char** argv) {
  bool measures = false;
  std::string folder = "docs/figures";
  for (int i = 1; i < argc; ++i)
    if (argv[i] == std::string("--measure"))
      measures = true;
    else
      folder = argv[i];
  std::filesystem::create_directories(folder);
  std::vector<Observed> observed;
  std::vector<Figure> all = maps();
  for (Figure& figure : all) {
    sweep(figure);
    print_shares(figure);
    if (measures) measure(figure, observed);
    bench::draw_regime(figure, folder);
  }
  if (!measures) return EXIT_SUCCESS;
  bench::draw_times(times_by_length(observed), folder);
  bench::draw_errors(observed, folder);
  int broken = 0;
  for (const Observed& o : observed) broken += o.error > o.promised;
  std::printf("\n%zu approximate runs, broken promises: %d\n", observed.size(), broken);
  return broken > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
