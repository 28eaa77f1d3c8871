// The figure of the bounded model: time of the whole model and memory, by the length of a text.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "../figures/svg.hpp"

namespace bounded_model {

/// A text of so many tokens: seconds that reading it took, and bytes that generation keeps of it.
struct Costs {
  double tokens, exact_seconds, fast_seconds, cache_bytes, state_bytes;
};

namespace detail {

struct Line {
  std::string name, colour;
  std::vector<double> values;  // of each of Costs
};

/// Both axes logarithmic, in a frame of 330 x 220 px; a line's name stands at its end.
inline void draw_panel(figures::Svg& svg, figures::Spot corner, const std::string& title,
                       const std::vector<Costs>& costs, const std::vector<Line>& lines) {
  double low = lines.front().values.front(), high = low;
  for (const Line& line : lines)
    for (const double y : line.values) low = std::min(low, y), high = std::max(high, y);
  const auto power = [](double y, bool up) {
    return std::pow(10, up ? std::ceil(std::log10(y)) : std::floor(std::log10(y)));
  };
  const figures::LogAxis x{costs.front().tokens, costs.back().tokens, corner.x, corner.x + 330};
  const figures::LogAxis y{power(low, false), power(high, true), corner.y + 220, corner.y};
  svg.words({corner.x, corner.y - 12}, title, {.size = 12, .bold = true});
  for (const double tick : y.ticks(10)) {
    svg.line({corner.x, y(tick)}, {corner.x + 330, y(tick)}, "#ddd");
    char number[16];
    std::snprintf(number, sizeof number, "%g", tick);
    svg.words({corner.x - 6, y(tick) + 4}, number, {.anchor = "end"});
  }
  for (const double tick : x.ticks(4)) {
    svg.line({x(tick), corner.y}, {x(tick), corner.y + 220}, "#eee");
    svg.words({x(tick), corner.y + 236}, std::to_string(std::lround(tick / 1024)) + "k",
              {.anchor = "middle"});
  }
  for (const Line& line : lines) {
    std::vector<figures::Spot> spots;
    for (std::size_t i = 0; i < costs.size(); ++i) spots.push_back({x(costs[i].tokens), y(line.values[i])});
    svg.lines(spots, line.colour, 2);
    for (const figures::Spot& s : spots) svg.circle(s, 2.5, line.colour);
    svg.words({spots.back().x + 8, spots.back().y + 4}, line.name, {.fill = line.colour, .bold = true});
  }
}

}  // namespace detail

/// Costs by rising tokens, two at least. Throws if the file cannot be written.
inline void draw_costs(const std::vector<Costs>& costs, const std::string& path) {
  const auto line = [&](const std::string& name, const std::string& colour, auto&& value) {
    detail::Line l{name, colour, {}};
    for (const Costs& c : costs) l.values.push_back(value(c));
    return l;
  };
  const std::string grey = "#777", blue = "#1c5fa8";
  figures::Svg svg(1000, 290);
  detail::draw_panel(svg, {50, 35}, "seconds to read a text, whole model, one thread", costs,
                     {line("exact", grey, [](const Costs& c) { return c.exact_seconds; }),
                      line("within 0.01", blue, [](const Costs& c) { return c.fast_seconds; })});
  detail::draw_panel(svg, {540, 35}, "MB kept of it while generating", costs,
                     {line("cache", grey, [](const Costs& c) { return 1e-6 * c.cache_bytes; }),
                      line("states", blue, [](const Costs& c) { return 1e-6 * c.state_bytes; })});
  svg.words({50 + 165, 283}, "tokens", {.anchor = "middle"});
  svg.words({540 + 165, 283}, "tokens", {.anchor = "middle"});
  svg.save(path);
}

}  // namespace bounded_model
