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
#include "svg.hpp"

namespace {

using bench::Bias;
using bench::Colour;
using bench::ColourScale;
using bench::LogAxis;
using bench::MadeHead;
using bench::Spot;
using bench::Svg;
using bench::Type;
using fastrope::Candidate;
using fastrope::Index;
using fastrope::Path;

const std::vector<Index> kLengths = {1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144};
const std::vector<double> kRadii = {0.25, 0.5, 1, 2, 4, 8};
constexpr double kLeastShown = 1.05;  // smaller speed-ups have no number
constexpr double kMostShown = 1000;   // the end of the colours

/// What is predicted for a head, and what was measured, if it was.
struct Cell {
  MadeHead head;
  Path path = Path::exact;
  double speed_up = 1;   ///< exact path's seconds over the chosen one's
  double exact = 0;      ///< seconds
  bool by_state = true;  ///< the chosen path does without transforms
  bool measured = false;
  bool agrees = false;  ///< the measured fastest path is the predicted one
};

/// An approximate path that ran: what it promised and how far off it was.
struct Observed {
  Path path;
  double promised, error;
};

/// Panels of the same bias and tolerance.
struct Row {
  double tolerance;
  Bias bias;
  std::string label;
};

struct Figure {
  std::string name;
  std::string title;
  bool causal;
  std::vector<Index> dims;       ///< a column of panels each
  std::vector<Row> rows;         ///< of panels
  std::vector<Cell> cells = {};  ///< [rows, dims, radii, lengths]

  const Cell& cell(std::size_t row, std::size_t dim, std::size_t radius, std::size_t length) const {
    return cells[((row * dims.size() + dim) * kRadii.size() + radius) * kLengths.size() + length];
  }
  /// The path that competes with the exact one.
  Path approximate() const { return rows.front().bias == Bias::none ? Path::polynomial : Path::toeplitz; }
};

std::string text_of(const char* format, double x) {
  char text[32];
  std::snprintf(text, sizeof text, format, x);
  return text;
}

std::string text_of_length(Index n) { return std::to_string(n / 1024) + "k"; }

// Predictions.

fastrope::HeadReport prediction(const MadeHead& head, Path path) {
  auto c = head.attention_case();
  c.base.path = path;
  return fastrope::predict(c.shapes, c.options(), head.radius).heads.front();
}

Cell predicted(const MadeHead& head) {
  const fastrope::HeadReport report = prediction(head, Path::automatic);
  const Candidate &exact = report.candidates.front(), &chosen = bench::candidate_of(report);
  return {head, report.path, exact.seconds / chosen.seconds, exact.seconds, chosen.work.transform == 0};
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
  std::printf("\n%s: share of the cells won, as predicted\n%-11s %4s %6s %7s %11s %16s %20s %9s\n",
              figure.name.c_str(), "positions", "d", "cells", "exact", "polynomial", "toeplitz, state",
              "toeplitz, transforms", "largest");
  const auto print = [&](const char* positions, const std::string& d, auto&& counts) {
    int of[4] = {0, 0, 0, 0}, all = 0;
    double largest = 1;
    for (const Cell& cell : figure.cells) {
      if (!counts(cell.head)) continue;
      ++all;
      ++of[cell.path == Path::exact ? 0 : cell.path == Path::polynomial ? 1 : cell.by_state ? 2 : 3];
      largest = std::max(largest, cell.speed_up);
    }
    std::printf("%-11s %4s %6d %6.1f%% %10.1f%% %15.1f%% %19.1f%% %8.0fx\n", positions, d.c_str(), all,
                100.0 * of[0] / all, 100.0 * of[1] / all, 100.0 * of[2] / all, 100.0 * of[3] / all, largest);
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
  const Path path = figure.approximate();
  std::vector<std::pair<Cell*, double>> won, lost;  // with the approximate path's predicted speed-up
  for (std::size_t i = 0; i < figure.cells.size(); ++i) {
    Cell& cell = figure.cells[i];
    if (cell.head.n > kLongest || cell.exact > kLongestRun) continue;
    if (cell.path != Path::exact && cell.speed_up <= 50) won.push_back({&cell, cell.speed_up});
    if (cell.path == Path::exact && figure.cells[i + 1].path != Path::exact) {
      const double speed_up = forced_speed_up(cell.head, path);
      if (speed_up >= 0.5) lost.push_back({&cell, speed_up});
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
      if (t.path != Path::exact && t.path != path) continue;  // the same features, should it run
      if (t.seconds < fastest->seconds) fastest = &t;
      if (t.path == path) approximate = &t;
      if (t.path != Path::exact)
        observed.push_back({t.path, t.candidate.error_bound + t.candidate.rounding, t.error});
    }
    cell->measured = true;
    cell->agrees = fastest->path == cell->path;
    std::printf("%-11s %6td %4td %7.2f %9.0e  %-10s %9.2f", name_of(head.bias), head.n, head.d, head.radius,
                head.tolerance, to_string(path), speed_up);
    if (approximate)
      std::printf(" %9.2f  %-10s %9.1e %9.1e\n", times.front().seconds / approximate->seconds,
                  to_string(fastest->path), approximate->error,
                  approximate->candidate.error_bound + approximate->candidate.rounding);
    else
      std::printf(" %9s  %-10s\n", "-", to_string(fastest->path));
    std::fflush(stdout);
  }
}

/// A line of time_by_length.svg.
struct Series {
  std::string label;
  std::string stroke;
  std::string dashes;
  std::vector<std::pair<Index, double>> seconds = {};
};

std::vector<Series> times_by_length(std::vector<Observed>& observed) {
  Series naive{"naive, n x n in memory", "#777", "2 3"}, exact{"exact", "#000", ""},
      exact_bias{"exact, table bias", "#000", "6 3"}, polynomial{"polynomial", "#2171b5", ""},
      toeplitz{"toeplitz, table bias", "#d94801", "6 3"};
  constexpr Index kLongest = 65536, kLongestNaive = 16384;
  std::printf("\ntime_by_length: ms, d = 8, |x| <= 0.5, tolerance 1e-2, causal\n");
  for (const Index n : kLengths) {
    if (n > kLongest) break;
    for (const Bias bias : {Bias::none, Bias::table}) {
      const auto c = MadeHead{n, 8, 0.5, 1e-2, true, bias}.attention_case();
      auto in = bench::on_spheres<float>(c, 0.5);
      for (const bench::PathTime& t : bench::path_times(c, in, 3, 100)) {
        Series* series = t.path == Path::exact ? bias == Bias::none ? &exact : &exact_bias
                         : t.path == Path::polynomial && bias == Bias::none ? &polynomial
                         : t.path == Path::toeplitz && bias == Bias::table  ? &toeplitz
                                                                            : nullptr;
        if (!series) continue;
        series->seconds.push_back({n, t.seconds});
        if (t.path != Path::exact)
          observed.push_back({t.path, t.candidate.error_bound + t.candidate.rounding, t.error});
      }
      if (bias == Bias::none && n <= kLongestNaive)
        naive.seconds.push_back({n, bench::median_seconds(3, [&] { bench::naive(c, in); })});
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

// Figures.

const char* const kExactFill = "#e2e2e2";
const ColourScale kPolynomialFill{{222, 235, 247}, {66, 146, 198}, {8, 48, 107}};
const ColourScale kToeplitzFill{{254, 230, 206}, {241, 105, 19}, {127, 39, 4}};

const ColourScale& fill_of(Path path) { return path == Path::polynomial ? kPolynomialFill : kToeplitzFill; }
double shade(double speed_up) { return std::log(speed_up) / std::log(kMostShown); }

std::string text_of_speed_up(double x) {
  return x < 9.95 ? text_of("%.1f", x) : x < 999.5 ? text_of("%.0f", x) : text_of("%.0fk", x / 1000);
}

void draw_mark(Svg& svg, Spot spot, bool agrees) { svg.circle(spot, 2.4, agrees ? "#000" : "#fff", "#000"); }

/// The colours of a path from 1 to 1000 times, with its name; returns where it ends.
double draw_scale(Svg& svg, Spot corner, Path path) {
  constexpr double kWidth = 150, kHeight = 10;
  constexpr int kSteps = 30;
  const std::string name = to_string(path);
  const double left = corner.x + 6.0 * static_cast<double>(name.size()) + 4;
  svg.words({corner.x, corner.y + 9}, name);
  for (int i = 0; i < kSteps; ++i)
    svg.rect({left + kWidth * i / kSteps, corner.y}, kWidth / kSteps + (i + 1 < kSteps ? 0.5 : 0), kHeight,
             fill_of(path)((i + 0.5) / kSteps).hex());
  const LogAxis axis{1, kMostShown, left, left + kWidth};
  for (const double tick : axis.ticks(10)) {
    svg.line({axis(tick), corner.y + kHeight}, {axis(tick), corner.y + kHeight + 3}, "#222");
    svg.words({axis(tick), corner.y + kHeight + 13}, text_of("%.0fx", tick),
              {.size = 10, .anchor = "middle"});
  }
  return left + kWidth + 30;
}

void draw_regime(const Figure& figure, const std::string& folder) {
  constexpr double kLeft = 66, kTop = 76, kGap = 6, kRowHeight = 14, kRowGap = 12, kBelow = 78;
  const double columns = static_cast<double>(figure.dims.size()),
               rows = static_cast<double>(figure.rows.size());
  const double lengths = static_cast<double>(kLengths.size()), radii = static_cast<double>(kRadii.size());
  const double cell_width = figure.dims.size() > 4 ? 17 : 26;
  const double panel_width = cell_width * lengths, panel_height = kRowHeight * radii;
  const double right = kLeft + columns * (panel_width + kGap);
  const double width = right + 16, bottom = kTop + rows * (panel_height + kRowGap);
  Svg svg(width, bottom + kBelow);
  svg.words({kLeft, 20}, figure.title, {.size = 14, .bold = true});
  svg.words({kLeft, 38},
            "One head, d_v = d, entries |x| <= radius that no shift makes smaller. Number and colour: "
            "predicted time of the exact path /");
  svg.words(
      {kLeft, 53},
      std::string("predicted time of the chosen path: float, one core, CostModel's default rates for ") +
          std::to_string(32 * fastrope::simd::kLanes<float>) + "-bit vectors.");

  bool any_measured = false;
  for (std::size_t r = 0; r < figure.rows.size(); ++r) {
    const double top = kTop + static_cast<double>(r) * (panel_height + kRowGap);
    svg.words({right + 4, top + panel_height / 2}, figure.rows[r].label,
              {.size = 10, .anchor = "middle", .turned = 90});
    for (std::size_t j = 0; j < kRadii.size(); ++j)  // large radii on top
      svg.words({kLeft - 5, top + (radii - static_cast<double>(j) - 0.5) * kRowHeight + 3.5},
                text_of("%g", kRadii[j]), {.size = 10, .anchor = "end"});
    for (std::size_t p = 0; p < figure.dims.size(); ++p) {
      const double left = kLeft + static_cast<double>(p) * (panel_width + kGap);
      if (r == 0)
        svg.words({left + panel_width / 2, top - 6}, "d = " + std::to_string(figure.dims[p]),
                  {.anchor = "middle", .bold = true});
      svg.rect({left, top}, panel_width, panel_height, kExactFill);
      for (std::size_t j = 0; j < kRadii.size(); ++j)
        for (std::size_t i = 0; i < kLengths.size(); ++i) {
          const Cell& cell = figure.cell(r, p, j, i);
          const Spot corner{left + static_cast<double>(i) * cell_width,
                            top + (radii - 1 - static_cast<double>(j)) * kRowHeight};
          if (cell.path != Path::exact) {
            const double t = shade(cell.speed_up);
            svg.rect(corner, cell_width - 0.5, kRowHeight - 0.5, fill_of(cell.path)(t).hex());
            if (cell.speed_up >= kLeastShown)
              svg.words({corner.x + cell_width / 2, corner.y + 10.5}, text_of_speed_up(cell.speed_up),
                        {.size = 9, .anchor = "middle", .fill = t > 0.45 ? "#fff" : "#000"});
          }
          if (cell.measured) draw_mark(svg, {corner.x + cell_width - 1.5, corner.y + 1.5}, cell.agrees);
          any_measured |= cell.measured;
        }
      if (r + 1 < figure.rows.size()) continue;
      for (std::size_t i = 0; i < kLengths.size(); i += 2)
        svg.words({left + (static_cast<double>(i) + 0.5) * cell_width, top + panel_height + 12},
                  text_of_length(kLengths[i]), {.size = 10, .anchor = "middle"});
    }
  }
  svg.words({(kLeft + right) / 2, bottom + 14}, "n, tokens (1k = 1024)", {.anchor = "middle"});
  svg.words({22, (kTop + bottom) / 2}, "radius: the bound on the logits |x|",
            {.anchor = "middle", .turned = -90});

  const double y = bottom + 34;
  svg.rect({kLeft, y}, 16, 10, kExactFill);
  svg.words({kLeft + 21, y + 9}, "exact");
  double x = draw_scale(svg, {kLeft + 76, y}, figure.approximate());
  if (any_measured)
    for (const bool agrees : {true, false}) {
      draw_mark(svg, {x, y + 5}, agrees);
      const std::string words = agrees ? "measured: fastest as predicted" : "measured: another is fastest";
      svg.words({x + 7, y + 9}, words);
      x += 6.0 * static_cast<double>(words.size()) + 20;
    }
  svg.save(folder + "/" + figure.name + ".svg");
}

std::string text_of_seconds(double s) {
  return s < 0.9e-3 ? text_of("%g µs", s * 1e6) : s < 0.9 ? text_of("%g ms", s * 1e3) : text_of("%g s", s);
}

double decade_below(double x) { return std::pow(10, std::floor(std::log10(x))); }
double decade_above(double x) { return std::pow(10, std::ceil(std::log10(x))); }

void draw_times(const std::vector<Series>& all, const std::string& folder) {
  double least = 1e9, most = 0;
  for (const Series& series : all)
    for (const auto& point : series.seconds) {
      least = std::min(least, point.second);
      most = std::max(most, point.second);
    }
  Svg svg(760, 470);
  constexpr double kLeft = 76, kRight = 590, kTop = 66, kBottom = 420;
  const LogAxis x{1024, 65536, kLeft, kRight};
  const LogAxis y{decade_below(least), decade_above(most), kBottom, kTop};
  svg.words({kLeft, 20}, "Time of one attention call by length", {.size = 14, .bold = true});
  svg.words({kLeft, 38},
            "Measured: one head, d = d_v = 8, RoPE, causal, |x| <= 0.5, tolerance 1e-2, float, one thread,");
  svg.words({kLeft, 53}, "medians of 3.");
  for (const double tick : x.ticks(2)) {
    svg.line({x(tick), kTop}, {x(tick), kBottom}, "#e6e6e6");
    svg.words({x(tick), kBottom + 15}, text_of_length(static_cast<Index>(tick)), {.anchor = "middle"});
  }
  for (const double tick : y.ticks(10)) {
    svg.line({kLeft, y(tick)}, {kRight, y(tick)}, "#ccc");
    svg.words({kLeft - 6, y(tick) + 4}, text_of_seconds(tick), {.anchor = "end"});
  }
  svg.words({(kLeft + kRight) / 2, kBottom + 34}, "n, tokens (1k = 1024)", {.anchor = "middle"});
  svg.words({18, (kTop + kBottom) / 2}, "time of a call", {.anchor = "middle", .turned = -90});
  std::vector<std::pair<double, const Series*>> labels;  // with their heights
  for (const Series& series : all) {
    if (series.seconds.empty()) continue;
    std::vector<Spot> spots;
    for (const auto& point : series.seconds)
      spots.push_back({x(static_cast<double>(point.first)), y(point.second)});
    svg.lines(spots, series.stroke, 2, series.dashes);
    for (const Spot& spot : spots) svg.circle(spot, 3, series.stroke);
    labels.push_back({spots.back().y, &series});
  }
  std::sort(labels.begin(), labels.end());
  double lowest = 0;
  for (const auto& [height, series] : labels) {
    lowest = std::max(height, lowest + 15);
    const auto& [n, seconds] = series->seconds.back();
    const Spot end{x(static_cast<double>(n)), y(seconds)};
    if (lowest - height > 2 || end.x < kRight - 1)
      svg.line({end.x + 5, end.y}, {kRight + 8, lowest}, series->stroke, 0.5);
    svg.words({kRight + 11, lowest + 4}, series->label, {.fill = series->stroke, .bold = true});
  }
  svg.save(folder + "/time_by_length.svg");
}

void draw_errors(const std::vector<Observed>& observed, const std::string& folder) {
  if (observed.empty()) return;
  constexpr double kLeast = 1e-9;  // smaller errors are drawn there
  double low_x = 1, high_x = kLeast, low_y = 1, high_y = kLeast;
  for (const Observed& o : observed) {
    low_x = std::min(low_x, o.promised);
    high_x = std::max(high_x, o.promised);
    low_y = std::min(low_y, std::max(o.error, kLeast));
    high_y = std::max(high_y, o.error);
  }
  Svg svg(600, 520);
  constexpr double kLeft = 76, kRight = 570, kTop = 86, kBottom = 462;
  const LogAxis x{decade_below(low_x), decade_above(high_x), kLeft, kRight};
  const LogAxis y{std::min(decade_below(low_y), x.low), std::max(decade_above(high_y), x.high), kBottom,
                  kTop};
  svg.words({kLeft, 20}, "Promised and observed error", {.size = 14, .bold = true});
  svg.words({kLeft, 38},
            "Of every approximate run that was measured: max |out - exact| / max|V| of 8 rows against");
  svg.words({kLeft, 53}, "double precision, beside the certified bound with its estimate of rounding.");
  svg.area({{kLeft, kTop}, {kLeft, y(x.low)}, {kRight, y(x.high)}, {kRight, kTop}}, "#f3f3f3");
  for (const double tick : x.ticks(10)) {
    svg.line({x(tick), kTop}, {x(tick), kBottom}, "#ddd");
    svg.words({x(tick), kBottom + 15}, text_of("%.0e", tick), {.anchor = "middle"});
  }
  for (const double tick : y.ticks(10)) {
    svg.line({kLeft, y(tick)}, {kRight, y(tick)}, "#ddd");
    svg.words({kLeft - 6, y(tick) + 4}, text_of("%.0e", tick), {.anchor = "end"});
  }
  svg.line({kLeft, y(x.low)}, {kRight, y(x.high)}, "#444", 1.5);
  svg.words({kLeft + 8, kTop + 16}, "above the line: more than promised", {.fill = "#555"});
  svg.words({(kLeft + kRight) / 2, kBottom + 36}, "promised error, relative to max|V|", {.anchor = "middle"});
  svg.words({18, (kTop + kBottom) / 2}, "observed error, relative to max|V|",
            {.anchor = "middle", .turned = -90});
  const auto mark = [&](Spot s, Path path) {
    if (path == Path::polynomial)
      svg.circle(s, 4, "#2171b5", "#fff");
    else
      svg.area({{s.x, s.y - 5.5}, {s.x + 5.5, s.y}, {s.x, s.y + 5.5}, {s.x - 5.5, s.y}}, "#d94801");
  };
  for (const Observed& o : observed) mark({x(o.promised), y(std::max(o.error, kLeast))}, o.path);
  double left = kLeft + 6;
  for (const Path path : {Path::polynomial, Path::toeplitz}) {
    mark({left, 72}, path);
    svg.words({left + 10, 76}, to_string(path));
    left += 90;
  }
  svg.save(folder + "/error.svg");
}

std::vector<Figure> figures() {
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
  std::vector<Figure> all = figures();
  for (Figure& figure : all) {
    sweep(figure);
    print_shares(figure);
    if (measures) measure(figure, observed);
    draw_regime(figure, folder);
  }
  if (!measures) return EXIT_SUCCESS;
  draw_times(times_by_length(observed), folder);
  draw_errors(observed, folder);
  int broken = 0;
  for (const Observed& o : observed) broken += o.error > o.promised;
  std::printf("\n%zu approximate runs, broken promises: %d\n", observed.size(), broken);
  return broken > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
