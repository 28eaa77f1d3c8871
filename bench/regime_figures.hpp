// The figures of regime.cpp: what is in them, and how it is drawn.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "../examples/figures/svg.hpp"
#include "path_times.hpp"

namespace bench {

using figures::ColourScale;
using figures::LogAxis;
using figures::Spot;
using figures::Svg;

inline const std::vector<Index> kLengths = {1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144};
inline const std::vector<double> kRadii = {0.25, 0.5, 1, 2, 4, 8};
inline constexpr double kLeastShown = 1.05;  // smaller speed-ups have no number
inline constexpr double kMostShown = 1000;   // the end of the colours

/// What is predicted for a head, and what was measured, if it was.
struct Cell {
  MadeHead head;
  Path path = Path::exact;
  double speed_up = 1;  ///< exact path's seconds over the chosen one's
  double exact = 0;     ///< seconds
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
  /// The paths that compete with the exact one; without a bias transforms have the same features.
  std::vector<Path> approximate() const {
    if (rows.front().bias == Bias::none) return {Path::polynomial};
    return {Path::polynomial, Path::toeplitz};
  }
};

inline std::string text_of(const char* format, double x) {
  char text[32];
  std::snprintf(text, sizeof text, format, x);
  return text;
}

inline std::string text_of_length(Index n) { return std::to_string(n / 1024) + "k"; }

/// A line of time_by_length.svg.
struct Series {
  std::string label;
  std::string stroke;
  std::string dashes;
  std::vector<std::pair<Index, double>> seconds = {};
};

inline const char* const kExactFill = "#e2e2e2";
inline const ColourScale kPolynomialFill{{222, 235, 247}, {66, 146, 198}, {8, 48, 107}};
inline const ColourScale kToeplitzFill{{254, 230, 206}, {241, 105, 19}, {127, 39, 4}};

inline const ColourScale& fill_of(Path path) {
  return path == Path::polynomial ? kPolynomialFill : kToeplitzFill;
}
inline double shade(double speed_up) { return std::log(speed_up) / std::log(kMostShown); }

inline std::string text_of_speed_up(double x) {
  return x < 9.95 ? text_of("%.1f", x) : x < 999.5 ? text_of("%.0f", x) : text_of("%.0fk", x / 1000);
}

inline void draw_mark(Svg& svg, Spot spot, bool agrees) {
  svg.circle(spot, 2.4, agrees ? "#000" : "#fff", "#000");
}

/// The colours of a path from 1 to 1000 times, with its name; returns where it ends.
inline double draw_scale(Svg& svg, Spot corner, Path path) {
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

inline void draw_regime(const Figure& figure, const std::string& folder) {
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

  std::vector<std::pair<Spot, bool>> marks;  // drawn when no cell can cover them any more
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
          if (cell.measured) marks.push_back({{corner.x + cell_width - 1.5, corner.y + 1.5}, cell.agrees});
        }
      if (r + 1 < figure.rows.size()) continue;
      for (std::size_t i = 0; i < kLengths.size(); i += 2)
        svg.words({left + (static_cast<double>(i) + 0.5) * cell_width, top + panel_height + 12},
                  text_of_length(kLengths[i]), {.size = 10, .anchor = "middle"});
    }
  }
  for (const auto& [at, agrees] : marks) draw_mark(svg, at, agrees);
  svg.words({(kLeft + right) / 2, bottom + 14}, "n, tokens (1k = 1024)", {.anchor = "middle"});
  svg.words({22, (kTop + bottom) / 2}, "radius: the bound on the logits |x|",
            {.anchor = "middle", .turned = -90});

  const double y = bottom + 34;
  svg.rect({kLeft, y}, 16, 10, kExactFill);
  svg.words({kLeft + 21, y + 9}, "exact");
  double x = kLeft + 76;
  for (const Path path : figure.approximate()) x = draw_scale(svg, {x, y}, path);
  if (!marks.empty())
    for (const bool agrees : {true, false}) {
      draw_mark(svg, {x, y + 5}, agrees);
      const std::string words = agrees ? "measured: fastest as predicted" : "measured: another is fastest";
      svg.words({x + 7, y + 9}, words);
      x += 6.0 * static_cast<double>(words.size()) + 20;
    }
  svg.save(folder + "/" + figure.name + ".svg");
}

inline std::string text_of_seconds(double s) {
  return s < 0.9e-3 ? text_of("%g µs", s * 1e6) : s < 0.9 ? text_of("%g ms", s * 1e3) : text_of("%g s", s);
}

inline double decade_below(double x) { return std::pow(10, std::floor(std::log10(x))); }
inline double decade_above(double x) { return std::pow(10, std::ceil(std::log10(x))); }

inline void draw_times(const std::vector<Series>& all, const std::string& folder) {
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
    labels.emplace_back(spots.back().y, &series);
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

inline void draw_errors(const std::vector<Observed>& observed, const std::string& folder) {
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
  svg.words({kLeft, 53}, "double precision, beside the bound that was promised.");
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

}  // namespace bench
