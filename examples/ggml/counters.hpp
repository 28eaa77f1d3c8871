// What fastrope's backend of ggml has done, of all contexts, as numbers and as text.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fastrope/fastrope.hpp>
#include <functional>
#include <iostream>
#include <map>
#include <mutex>
#include <regex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "fastrope_ggml.h"

namespace fastrope_ggml {

/// What heads of prompts took, where there is a tolerance, and why. Their reasons' figures differ, so each is
/// kept without.
class Choices {
 public:
  void add(const fastrope::Report& report) {
    for (const fastrope::HeadReport& head : report.heads) add(head.path, head.reason, 1);
  }
  void add(fastrope::Path path, const std::string& reason, int64_t heads) {
    static const std::regex figures(R"(\b\d+(\.\d+)?(e[-+]?\d+)?\b)");
    const std::string kept = std::string(to_string(path)) + ": " + std::regex_replace(reason, figures, "#");
    const std::lock_guard lock(mutex_);
    counts_[path] += heads;
    reasons_[kept] += heads;
  }
  int64_t heads(fastrope::Path path) const {
    const std::lock_guard lock(mutex_);
    const auto found = counts_.find(path);
    return found == counts_.end() ? 0 : found->second;
  }
  /// The commonest reasons, a line each.
  std::string reasons() const {
    constexpr std::size_t kMost = 5;
    const std::lock_guard lock(mutex_);
    std::vector<std::pair<int64_t, std::string>> sorted;
    for (const auto& [reason, heads] : reasons_) sorted.emplace_back(heads, reason);
    std::ranges::sort(sorted, std::greater<>{});
    std::string text;
    for (std::size_t i = 0; i < std::min(kMost, sorted.size()); ++i)
      text += "  " + std::to_string(sorted[i].first) + " heads " + sorted[i].second + '\n';
    return text;
  }

 private:
  mutable std::mutex mutex_ = {};
  std::map<fastrope::Path, int64_t> counts_ = {};
  std::map<std::string, int64_t> reasons_ = {};
};

/// Zero where it is of static storage. Printed at the end of its life where FASTROPE_GGML_STATS=1.
struct Counters {
  std::atomic<int64_t> nodes, runs, ranges, dense, plans, masks, refused, failed, nanoseconds;
  Choices choices;

  fastrope_ggml_stats stats() const {
    return {.nodes = nodes,
            .runs = runs,
            .ranges = ranges,
            .dense = dense,
            .plans = plans,
            .masks = masks,
            .refused = refused,
            .failed = failed,
            .exact = choices.heads(fastrope::Path::exact),
            .polynomial = choices.heads(fastrope::Path::polynomial),
            .toeplitz = choices.heads(fastrope::Path::toeplitz),
            .seconds = 1e-9 * static_cast<double>(nanoseconds)};
  }
  std::string summary() const {
    const fastrope_ggml_stats s = stats();
    std::ostringstream text;
    text << "fastrope: " << s.nodes << " nodes in " << s.seconds << " s; masks of " << s.runs << " runs, "
         << s.ranges << " ranges, " << s.dense << " dense; " << s.plans << " plans made, " << s.masks
         << " masks read, " << s.refused << " times refused, " << s.failed << " nodes failed\n";
    if (const int64_t heads = s.exact + s.polynomial + s.toeplitz; heads > 0)
      text << "fastrope: " << heads << " heads of prompts: " << s.polynomial << " polynomial, " << s.toeplitz
           << " toeplitz, " << s.exact << " exact\n"
           << choices.reasons();
    return text.str();
  }
  ~Counters() {
    const char* wanted = std::getenv("FASTROPE_GGML_STATS");
    if (wanted != nullptr && std::strcmp(wanted, "1") == 0) std::cerr << summary();
  }
};

}  // namespace fastrope_ggml
