// Spectra side by side: a panel for each content, a line for each scheme.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "svg.hpp"

namespace figures {

struct SpectrumLine {
  std::string label;
  Eigen::VectorXd values;  ///< the largest first; what is zero is not drawn
};

struct SpectraPanel {
  std::string title;
  std::vector<SpectrumLine> lines;
};

/// Values by number, logarithmic, over the same axes in every panel; lines of a label have the same colour.
inline void draw_spectra(const std::vector<SpectraPanel>& panels, const std::string& title,
                         const std::string& subtitle, const std::string& path) {
  constexpr double kLeft = 62, kTop = 84, kWidth = 270, kHeight = 250, kGap = 26, kDecades = 5;
  static constexpr std::array kStrokes = {"#222222", "#0072b2", "#d55e00", "#009e73",
                                          "#cc79a7", "#e69f00", "#56b4e9"};
  double highest = 0;
  Eigen::Index longest = 2;
  for (const SpectraPanel& panel : panels)
    for (const SpectrumLine& line : panel.lines) {
      highest = std::max(highest, line.values.maxCoeff());
      longest = std::max(longest, line.values.size());
    }
  const double top = std::pow(10, std::ceil(std::log10(highest)));
  const LogAxis y{top * std::pow(10, -kDecades), top, kTop + kHeight, kTop};
  const double right = kLeft + (kWidth + kGap) * static_cast<double>(panels.size());
  Svg svg(right, kTop + kHeight + 66);
  svg.words({16, 22}, title, {.size = 14, .bold = true});
  svg.words({16, 40}, subtitle, {.fill = "#555"});
  for (std::size_t p = 0; p < panels.size(); ++p) {
    const double left = kLeft + (kWidth + kGap) * static_cast<double>(p);
    const LogAxis x{1, static_cast<double>(longest), left, left + kWidth};
    svg.words({left, kTop - 10}, panels[p].title, {.size = 12, .bold = true});
    for (const double tick : y.ticks(10)) {
      svg.line({left, y(tick)}, {left + kWidth, y(tick)}, "#e2e2e2");
      char text[16];
      std::snprintf(text, sizeof text, "%g", tick);
      if (p == 0) svg.words({left - 6, y(tick) + 4}, text, {.anchor = "end"});
    }
    for (const double tick : x.ticks(2))
      svg.words({x(tick), kTop + kHeight + 16}, short_number(tick), {.anchor = "middle"});
    for (std::size_t l = 0; l < panels[p].lines.size(); ++l) {
      std::vector<Spot> spots;
      const Eigen::VectorXd& values = panels[p].lines[l].values;
      for (Eigen::Index i = 0; i < values.size() && values(i) >= y.low; ++i)
        spots.push_back({x(static_cast<double>(i + 1)), y(values(i))});
      svg.lines(spots, kStrokes[l % kStrokes.size()], 1.6, l < kStrokes.size() ? "" : "4 3");
    }
  }
  double at = kLeft;
  for (std::size_t l = 0; l < panels.front().lines.size(); ++l) {
    const std::string& label = panels.front().lines[l].label;
    svg.line({at, kTop + kHeight + 40}, {at + 18, kTop + kHeight + 40}, kStrokes[l % kStrokes.size()], 2.5);
    svg.words({at + 23, kTop + kHeight + 44}, label);
    at += 42 + 6.5 * static_cast<double>(label.size());
  }
  svg.words({(kLeft + right) / 2, kTop + kHeight + 60}, "number of the singular value",
            {.anchor = "middle", .fill = "#555"});
  svg.save(path);
}

}  // namespace figures
