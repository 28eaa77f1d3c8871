// A table of numbers as a figure: a coloured cell for each, with its value.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "svg.hpp"

namespace figures {

/// How a heat map is labelled and coloured.
struct HeatMapStyle {
  std::string title;
  std::string subtitle;
  std::string rows;     ///< what a row is, with its number beside it
  std::string columns;  ///< what a column is
  const char* format = "%.2f";
  std::vector<std::string> row_names = {};  ///< in the place of `rows` and numbers
  std::vector<std::string> column_names = {};
  ColourScale colours{{255, 255, 229}, {254, 153, 41}, {102, 37, 6}};
};

/// values: [rows, columns]; the darkest cell is the largest value, the lightest the smallest.
inline void draw_heat_map(const Eigen::MatrixXd& values, const HeatMapStyle& style, const std::string& path) {
  constexpr double kTop = 78, kWidth = 58, kHeight = 30, kDark = 0.45, kLetter = 6.5;
  double left_edge = 70;
  for (const std::string& name : style.row_names)
    left_edge = std::max(left_edge, 20 + kLetter * static_cast<double>(name.size()));
  const auto label = [](const std::vector<std::string>& names, const std::string& what, Eigen::Index i) {
    return names.empty() ? what + " " + std::to_string(i) : names[static_cast<std::size_t>(i)];
  };
  const double right = left_edge + kWidth * static_cast<double>(values.cols()),
               bottom = kTop + kHeight * static_cast<double>(values.rows());
  Svg svg(std::max(right + 20, 480.0), bottom + 20);
  svg.words({16, 22}, style.title, {.size = 14, .bold = true});
  svg.words({16, 40}, style.subtitle, {.fill = "#555"});
  const double low = values.minCoeff(), high = values.maxCoeff();
  for (Eigen::Index c = 0; c < values.cols(); ++c)
    svg.words({left_edge + kWidth * (static_cast<double>(c) + 0.5), kTop - 8},
              label(style.column_names, style.columns, c), {.anchor = "middle"});
  for (Eigen::Index r = 0; r < values.rows(); ++r) {
    const double top = kTop + kHeight * static_cast<double>(r);
    svg.words({left_edge - 8, top + kHeight / 2 + 4}, label(style.row_names, style.rows, r),
              {.anchor = "end"});
    for (Eigen::Index c = 0; c < values.cols(); ++c) {
      const double t = high > low ? (values(r, c) - low) / (high - low) : 0;
      const double left = left_edge + kWidth * static_cast<double>(c);
      char text[32];
      std::snprintf(text, sizeof text, style.format, values(r, c));
      svg.rect({left, top}, kWidth - 1, kHeight - 1, style.colours(t).hex());
      svg.words({left + kWidth / 2, top + kHeight / 2 + 4}, text,
                {.anchor = "middle", .fill = t > kDark ? "#fff" : "#222"});
    }
  }
  svg.save(path);
}

}  // namespace figures
