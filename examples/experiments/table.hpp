// The tables of runs and probes: text, a line for each, fields between tabs. A run's line is written when it
// is done, so that a grid that was stopped goes on where it was.
#pragma once

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "run.hpp"

namespace experiments {

inline constexpr const char* kRunHeader =
    "scheme\ttask\tseed\tsteps_to_90\taccuracy\tsteps\tseconds\ttop_drop\tsecond_drop\taccuracies\tdrops";
inline constexpr const char* kProbeHeader =
    "scheme\ttask\tseed\tstep\tlayer\tsigma_1\tcondition\tentropy_rank\tlead";

/// What is between the characters `at`.
inline std::vector<std::string> split(const std::string& line, char at) {
  std::vector<std::string> parts;
  std::istringstream stream(line);
  for (std::string part; std::getline(stream, part, at);) parts.push_back(part);
  return parts;
}

namespace detail {

inline std::string joined(const auto& numbers, const char* format) {
  std::string text;
  for (const double x : numbers) {
    char number[32];
    std::snprintf(number, sizeof number, format, x);
    text += (text.empty() ? "" : ",") + std::string(number);
  }
  return text;
}

inline std::vector<double> numbers(const std::string& list) {
  std::vector<double> values;
  for (const std::string& part : split(list, ',')) values.push_back(std::stod(part));
  return values;
}

[[noreturn]] inline void refuse(const std::string& path, const std::string& line) {
  throw std::runtime_error(path + ": not a line of its table: " + line);
}

/// Lines of a table but for its header; none if there is no file. Throws std::runtime_error for lines of
/// another number of fields.
inline std::vector<std::vector<std::string>> lines_of(const std::string& path, const char* header) {
  std::vector<std::vector<std::string>> lines;
  const std::size_t fields = split(header, '\t').size();
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  while (std::getline(file, line)) {
    lines.push_back(split(line, '\t'));
    if (lines.back().size() != fields) refuse(path, line);
  }
  return lines;
}

inline void append(const std::string& path, const char* header, const std::string& lines) {
  const bool begins = !std::ifstream(path).good();
  std::ofstream file(path, std::ios::app);
  if (begins) file << header << '\n';
  file << lines;
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

inline std::string start_of_line(const Key& key) {
  return key.scheme + '\t' + key.task + '\t' + std::to_string(key.seed) + '\t';
}

}  // namespace detail

/// The largest and second largest of a run's drops.
inline std::pair<double, double> two_largest(const Eigen::MatrixXd& drops) {
  std::vector<double> sorted(drops.data(), drops.data() + drops.size());
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  return {sorted[0], sorted[1]};
}

inline void append_run(const std::string& path, const Result& r) {
  const auto [top, second] = two_largest(r.drops);
  char figures[160];
  std::snprintf(figures, sizeof figures, "%td\t%.4f\t%td\t%.1f\t%.4f\t%.4f\t", r.steps_to_90,
                r.accuracy.back(), r.steps, r.seconds, top, second);
  detail::append(path, kRunHeader,
                 detail::start_of_line(r.key) + figures + detail::joined(r.accuracy, "%.4f") + '\t' +
                     detail::joined(r.drops.reshaped<Eigen::RowMajor>(), "%.4f") + '\n');
}

inline std::vector<Result> read_runs(const std::string& path, Index layers, Index heads) {
  std::vector<Result> runs;
  for (const std::vector<std::string>& f : detail::lines_of(path, kRunHeader)) {
    Result r{.key = {f[0], f[1], std::stoi(f[2])},
             .steps_to_90 = std::stol(f[3]),
             .steps = std::stol(f[5]),
             .seconds = std::stod(f[6]),
             .accuracy = detail::numbers(f[9]),
             .drops = {}};
    const std::vector<double> drops = detail::numbers(f[10]);
    if (std::ssize(drops) != layers * heads) detail::refuse(path, f[10]);
    r.drops = Eigen::Map<const fastrope::RowMatrix>(drops.data(), layers, heads);
    runs.push_back(std::move(r));
  }
  return runs;
}

inline void append_probes(const std::string& path, const Key& key, const std::vector<Probe>& probes) {
  std::string lines;
  for (const Probe& p : probes) {
    char figures[160];
    std::snprintf(figures, sizeof figures, "%td\t%td\t%.4g\t%.4g\t%.4g\t%.4g\n", p.step, p.layer, p.sigma_1,
                  p.condition, p.entropy_rank, p.lead);
    lines += detail::start_of_line(key) + figures;
  }
  detail::append(path, kProbeHeader, lines);
}

inline std::vector<std::pair<Key, Probe>> read_probes(const std::string& path) {
  std::vector<std::pair<Key, Probe>> probes;
  for (const std::vector<std::string>& f : detail::lines_of(path, kProbeHeader))
    probes.push_back({{f[0], f[1], std::stoi(f[2])},
                      {.step = std::stol(f[3]),
                       .layer = std::stol(f[4]),
                       .sigma_1 = std::stod(f[5]),
                       .condition = std::stod(f[6]),
                       .entropy_rank = std::stod(f[7]),
                       .lead = std::stod(f[8])}});
  return probes;
}

}  // namespace experiments
