// PromiseTally: how promises were kept, by kind of path and storage; adds up, and goes through a line of
// text.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iomanip>
#include <map>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

namespace fastrope_test {

/// Heads of one kind.
struct PromiseCounts {
  long heads = 0;       ///< that were run
  long bounded = 0;     ///< of these, with a finite promise
  long refused = 0;     ///< problems
  long violations = 0;  ///< of any kind
  long rows = 0;
  long repaired = 0;            ///< rows that were computed again exactly
  double closest = 0;           ///< the largest observed / promised
  std::uint64_t seed = 0;       ///< of that
  std::map<int, long> of = {};  ///< heads by floor(kBins log2(promised / observed))

  static constexpr int kBins = 8;  ///< an octave

  void add(double promised, double observed, std::uint64_t from) {
    ++heads;
    if (!std::isfinite(promised)) return;
    ++bounded;
    if (observed <= 0) return;
    const double ratio = promised > 0 ? observed / promised : HUGE_VAL;
    if (ratio > closest) {
      closest = ratio;
      seed = from;
    }
    ++of[static_cast<int>(std::floor(std::clamp(-kBins * std::log2(ratio), -400.0, 400.0)))];
  }

  PromiseCounts& operator+=(const PromiseCounts& other) {
    heads += other.heads;
    bounded += other.bounded;
    refused += other.refused;
    violations += other.violations;
    rows += other.rows;
    repaired += other.repaired;
    if (other.closest > closest) {
      closest = other.closest;
      seed = other.seed;
    }
    for (const auto& [bin, count] : other.of) of[bin] += count;
    return *this;
  }

  /// promised / observed below which `share` of the heads are.
  double quantile(double share) const {
    long all = 0;
    for (const auto& [bin, count] : of) all += count;
    double below = share * static_cast<double>(all);
    for (const auto& [bin, count] : of)
      if ((below -= static_cast<double>(count)) < 0) return std::exp2((bin + 0.5) / kBins);
    return HUGE_VAL;
  }
};

struct PromiseTally {
  std::map<std::string, PromiseCounts> kinds = {};  ///< names without blanks
  std::vector<std::string> violations = {};         ///< what was broken, with the seed

  PromiseTally& operator+=(const PromiseTally& other) {
    for (const auto& [name, counts] : other.kinds) kinds[name] += counts;
    violations.insert(violations.end(), other.violations.begin(), other.violations.end());
    return *this;
  }

  PromiseCounts all() const {
    PromiseCounts sum;
    for (const auto& [name, counts] : kinds) sum += counts;
    return sum;
  }

  /// The counts, without the violations' texts.
  std::string to_line() const {
    std::ostringstream line;
    line << std::setprecision(17);
    for (const auto& [name, c] : kinds) {
      line << ' ' << name << ' ' << c.heads << ' ' << c.bounded << ' ' << c.refused << ' ' << c.violations
           << ' ' << c.rows << ' ' << c.repaired << ' ' << c.closest << ' ' << c.seed << ' ' << c.of.size();
      for (const auto& [bin, count] : c.of) line << ' ' << bin << ' ' << count;
    }
    return line.str();
  }
  static PromiseTally of_line(std::istream& line) {
    PromiseTally tally;
    for (std::string name; line >> name;) {
      PromiseCounts c;
      std::string closest;  // streams do not read "inf"
      std::size_t bins = 0;
      line >> c.heads >> c.bounded >> c.refused >> c.violations >> c.rows >> c.repaired >> closest >>
          c.seed >> bins;
      c.closest = std::stod(closest);
      for (std::size_t b = 0; b < bins; ++b) {
        int bin = 0;
        line >> bin >> c.of[bin];
      }
      tally.kinds[name] += c;
    }
    return tally;
  }

  void print(std::ostream& out) const {
    std::ostringstream text;
    const auto row = [&](const std::string& name, const PromiseCounts& c) {
      text << std::left << std::setw(36) << name << std::right << std::setprecision(3);
      for (const long number : {c.heads, c.bounded, c.refused, c.repaired, c.violations})
        text << std::setw(10) << number;
      text << std::setw(11) << 1 / c.closest;
      for (const double share : {0.01, 0.1, 0.5}) text << std::setw(10) << c.quantile(share);
      text << std::setw(11) << c.closest << "  " << c.seed << '\n';
    };
    text << std::left << std::setw(36) << "promised / observed" << std::right;
    for (const char* title : {"heads", "bounded", "refused", "repaired", "broken"})
      text << std::setw(10) << title;
    text << std::setw(11) << "least";
    for (const char* title : {"1 %", "10 %", "median"}) text << std::setw(10) << title;
    text << std::setw(11) << "tightest"
         << "  seed\n";
    for (const auto& [name, counts] : kinds) row(name, counts);
    row("all", all());
    out << text.str();
  }
};

}  // namespace fastrope_test
