// A file of rates: CostModel for each instruction set that a machine was measured with.
//
// A line for each: the name of the instruction set, then each rate's name and its value, in any order. What
// follows a # is a comment.
//
//     avx2 tile 7.1e+10 weigh 1.2e+09 feature 4e+09 transform 2.2e+10 element 1.9e+08 round 2.5e+05 look
//     8e+03
#pragma once

#include <cmath>
#include <fstream>
#include <iomanip>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/plan/cost_model.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

inline constexpr std::pair<const char*, double CostModel::*> kRates[] = {
    {"tile", &CostModel::tile},           {"weigh", &CostModel::weigh},     {"feature", &CostModel::feature},
    {"transform", &CostModel::transform}, {"element", &CostModel::element}, {"round", &CostModel::round},
    {"look", &CostModel::look},
};

/// The lines of a file, each with the name of the instruction set that it is of, if it is of one; none where
/// there is no such file.
inline std::vector<std::pair<std::string, std::string>> lines_of(const std::string& path) {
  std::vector<std::pair<std::string, std::string>> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::string target;
    std::istringstream(line.substr(0, line.find('#'))) >> target;
    lines.emplace_back(target, line);
  }
  return lines;
}

}  // namespace detail

/// The rates of a file for the instruction set compiled for, kTargetName. Throws Error where there is no such
/// file or no line for it, and for a line that does not give every rate once, finite and positive.
inline CostModel read_cost_model(const std::string& path) {
  std::string others;
  for (const auto& [target, line] : detail::lines_of(path)) {
    if (target != kTargetName) {
      if (!target.empty()) others += (others.empty() ? "" : ", ") + target;
      continue;
    }
    constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
    CostModel model;
    for (const auto& rate : detail::kRates) model.*rate.second = kUnknown;
    std::istringstream words(line.substr(0, line.find('#')));
    std::string name;
    words >> name;
    while (words >> name) {
      double CostModel::*known = nullptr;
      for (const auto& rate : detail::kRates)
        if (name == rate.first) known = rate.second;
      if (known == nullptr) detail::fail(path, ": '", name, "' is no rate");
      double number = kUnknown;
      if (!(words >> number) || !std::isfinite(number) || !(number > 0))
        detail::fail(path, ": ", name, " of ", target, " must be a finite number greater than 0");
      if (!std::isnan(model.*known)) detail::fail(path, ": ", name, " of ", target, " is given twice");
      model.*known = number;
    }
    for (const auto& rate : detail::kRates)
      if (std::isnan(model.*rate.second)) detail::fail(path, ": ", target, " has no rate ", rate.first);
    return model;
  }
  detail::fail(path, ": no rates for ", kTargetName, ", only for ", others.empty() ? "none" : others);
}

/// The line of a file for the instruction set compiled for.
inline std::string rates_line(const CostModel& model) {
  std::ostringstream line;
  line << kTargetName << std::setprecision(3);
  for (const auto& rate : detail::kRates) line << ' ' << rate.first << ' ' << model.*rate.second;
  return line.str();
}

/// Puts the rates in a file, in place of those that it has for the same instruction set, with a comment.
/// Throws Error where it cannot be written.
inline void write_cost_model(const std::string& path, const CostModel& model, const std::string& comment) {
  std::string text;
  for (const auto& [target, line] : detail::lines_of(path))
    if (target != kTargetName) text += line + '\n';
  text += rates_line(model) + "  # " + comment + '\n';
  std::ofstream file(path);
  if (!(file << text << std::flush)) detail::fail("cannot write ", path);
}

}  // namespace fastrope::inline FASTROPE_TARGET
