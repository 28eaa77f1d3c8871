// Figures as SVG text: rectangles, lines, circles and words on a white page, and logarithmic axes.
#pragma once

#include <cmath>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace figures {

/// At most one decimal, so that files stay small.
inline std::string short_number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", x);
  std::string number = text;
  if (number.size() > 2 && number.substr(number.size() - 2) == ".0") number.resize(number.size() - 2);
  return number == "-0" ? "0" : number;
}

/// A place on the page, in px from the upper left corner.
struct Spot {
  double x, y;
};

/// How words stand at their spot, on its line.
struct Type {
  double size = 11;
  const char* anchor = "start";  ///< or middle, end
  std::string fill = "#222";
  bool bold = false;
  double turned = 0;  ///< degrees, clockwise about the spot
};

/// A figure, drawn from back to front.
class Svg {
 public:
  Svg(double width, double height)
      : text_("<svg xmlns=\"http://www.w3.org/2000/svg\"" + number("width", width) +
              number("height", height) + " viewBox=\"0 0 " + short_number(width) + ' ' +
              short_number(height) + "\" font-family=\"Arial, Helvetica, Liberation Sans, sans-serif\">\n") {
    rect({0, 0}, width, height, "#fff");
  }

  void rect(Spot corner, double width, double height, const std::string& fill) {
    text_ += "<rect" + at("x", "y", corner) + number("width", width) + number("height", height) +
             quoted("fill", fill) + "/>\n";
  }
  void line(Spot from, Spot to, const std::string& stroke, double width = 1, const std::string& dashes = "") {
    lines({from, to}, stroke, width, dashes);
  }
  void lines(const std::vector<Spot>& spots, const std::string& stroke, double width = 1,
             const std::string& dashes = "") {
    text_ += "<polyline points=\"";
    for (const Spot& s : spots) text_ += short_number(s.x) + ',' + short_number(s.y) + ' ';
    text_ += "\" fill=\"none\"" + quoted("stroke", stroke) + number("stroke-width", width);
    if (!dashes.empty()) text_ += quoted("stroke-dasharray", dashes);
    text_ += "/>\n";
  }
  void area(const std::vector<Spot>& spots, const std::string& fill) {
    text_ += "<polygon points=\"";
    for (const Spot& s : spots) text_ += short_number(s.x) + ',' + short_number(s.y) + ' ';
    text_ += "\"" + quoted("fill", fill) + "/>\n";
  }
  void circle(Spot centre, double radius, const std::string& fill, const std::string& stroke = "none") {
    text_ += "<circle" + at("cx", "cy", centre) + number("r", radius) + quoted("fill", fill) +
             quoted("stroke", stroke) + "/>\n";
  }
  void words(Spot spot, const std::string& words, const Type& type = {}) {
    text_ += "<text" + at("x", "y", spot) + number("font-size", type.size) + quoted("fill", type.fill);
    if (type.anchor != std::string("start")) text_ += quoted("text-anchor", type.anchor);
    if (type.bold) text_ += quoted("font-weight", "bold");
    if (type.turned != 0)
      text_ += quoted("transform", "rotate(" + short_number(type.turned) + ' ' + short_number(spot.x) + ' ' +
                                       short_number(spot.y) + ')');
    text_ += '>';
    for (const char c : words) text_ += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
    text_ += "</text>\n";
  }

  void save(const std::string& path) const {
    std::ofstream file(path);
    file << text_ << "</svg>\n";
    if (!file.flush()) throw std::runtime_error("cannot write " + path);
  }

 private:
  static std::string quoted(const char* name, const std::string& value) {
    return std::string(" ") + name + "=\"" + value + '"';
  }
  static std::string number(const char* name, double x) { return quoted(name, short_number(x)); }
  static std::string at(const char* x, const char* y, Spot s) { return number(x, s.x) + number(y, s.y); }

  std::string text_;
};

/// Values low..high spread over the px from..to.
struct LogAxis {
  double low, high, from, to;

  double operator()(double value) const {
    return from + (to - from) * std::log(value / low) / std::log(high / low);
  }
  /// low, low factor, .. up to high.
  std::vector<double> ticks(double factor) const {
    std::vector<double> values;
    const auto count = static_cast<int>(std::floor(std::log(high / low) / std::log(factor) + 1e-9));
    for (int i = 0; i <= count; ++i) values.push_back(low * std::pow(factor, i));
    return values;
  }
};

/// A colour of red, green and blue in 0..255.
struct Colour {
  double red, green, blue;

  std::string hex() const {
    char text[8];
    const auto level = [](double x) { return static_cast<unsigned>(std::lround(x)) & 255U; };
    std::snprintf(text, sizeof text, "#%02x%02x%02x", level(red), level(green), level(blue));
    return text;
  }
};

/// Colours from light to dark through three stops, at 0, 1/2 and 1.
struct ColourScale {
  Colour light, middle, dark;

  Colour operator()(double t) const {
    t = t < 0 ? 0 : t > 1 ? 1 : t;
    const Colour &a = t < 0.5 ? light : middle, &b = t < 0.5 ? middle : dark;
    const double s = t < 0.5 ? 2 * t : 2 * t - 1;
    return {a.red + s * (b.red - a.red), a.green + s * (b.green - a.green), a.blue + s * (b.blue - a.blue)};
  }
};

}  // namespace figures
