// A mask of attention as llama.cpp fills it, [n_q, n_kv] of float16, in as few words as it can be said.
//
// Values are 0 where a row sees a key and -infinity elsewhere. Rows of one sequence, one after the other, see
// the same keys, or each one key more than the row before, and from some row on one less at the front: such a
// run is causal attention over its keys, wherever they lie, or that of a window. A graph's mask is a run, or
// one for each sequence in a cache that several share:
//
//     runs     a prompt, its windows, one token, padding, a window's ring that has wrapped, sequences in one
//              cache
//     ranges   what many rows see differently, a few ranges each: trees of drafted tokens, prompts in a ring
//     dense    other values (ALiBi), and more ranges than are worth it
//
// Cost: one comparison with the values that were read before and, where they differ, a few more passes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fastrope/core.hpp>
#include <span>
#include <utility>
#include <vector>

namespace fastrope_ggml {

using fastrope::Index;
using fastrope::Range;

/// Rows that see the same keys or, where they grow, each one more at the end than the row before, or the last
/// `window` of those. The last row sees all, but for a window.
struct Run {
  Range rows;
  bool grows = false;
  Index window = 0;                      ///< the most keys that a row of a range sees; 0: any number
  Range keys = {};                       ///< the smallest range that holds them
  std::vector<std::int32_t> cells = {};  ///< them, ascending, where keys between are not among them
};

class MaskPlane {
 public:
  enum class Kind { runs, ranges, dense };

  /// Reads n_q rows of n_kv values, `stride` apart; false where they are those that it has.
  bool read(const std::uint16_t* rows, Index n_q, Index n_kv, Index stride) {
    const auto bytes = static_cast<std::size_t>(n_kv) * sizeof(*rows);
    const auto is_kept = [&] {
      for (Index i = 0; i < n_q; ++i)
        if (std::memcmp(values_.data() + i * n_kv, rows + i * stride, bytes) != 0) return false;
      return true;
    };
    if (n_q == n_q_ && n_kv == n_kv_ && is_kept()) return false;
    n_q_ = n_q;
    n_kv_ = n_kv;
    values_.resize(static_cast<std::size_t>(n_q * n_kv));
    for (Index i = 0; i < n_q; ++i) std::memcpy(values_.data() + i * n_kv, rows + i * stride, bytes);
    kind_ = find_kind();
    return true;
  }

  Kind kind() const { return kind_; }
  std::span<const Run> runs() const { return runs_; }
  /// From the first to the last key that some row sees; the first is key 0 of ranges().
  Range keys() const { return keys_; }
  std::size_t bytes() const { return values_.size() * sizeof(std::uint16_t); }
  fastrope::KeyRanges ranges() const { return {ranges_, per_row_}; }

 private:
  static constexpr std::uint16_t kMasked = 0xfc00;  // -infinity

  Kind find_kind() {
    found_.clear();
    ends_.clear();
    for (Index i = 0; i < n_q_; ++i) {
      if (!append_ranges(values_.data() + i * n_kv_)) return Kind::dense;
      ends_.push_back(found_.size());
    }
    keys_ = {};
    per_row_ = 1;
    for (Index i = 0; i < n_q_; ++i) {
      const auto seen = ranges_of(i);
      if (!seen.empty()) keys_ = fastrope::hull(keys_, {seen.front().begin, seen.back().end});
      per_row_ = std::max<Index>(per_row_, std::ssize(seen));
    }
    find_runs();
    // Runs read their keys one after the other; ranges read once what some row sees, for all rows.
    Index read = 0;
    for (Run& run : runs_) read += find_keys(run);
    if (2 * read <= 3 * keys_.size() || runs_.size() <= 1) {
      for (Run& run : runs_) find_cells(run);
      return Kind::runs;
    }
    // Short ranges, among keys that others see, cost more than the values themselves.
    if (per_row_ > std::max<Index>(2, n_kv_ / 8)) return Kind::dense;
    ranges_.clear();
    for (Index i = 0; i < n_q_; ++i) {
      for (const Range range : ranges_of(i))
        ranges_.push_back({range.begin - keys_.begin, range.end - keys_.begin});
      ranges_.resize(static_cast<std::size_t>((i + 1) * per_row_));
    }
    return Kind::ranges;
  }

  /// Appends the ranges of keys that a row sees to found_; false where a value is neither 0 nor -infinity.
  bool append_ranges(const std::uint16_t* row) {
    constexpr Index kBlock = 64;
    std::uint16_t value = kMasked;  // of the key before
    for (Index j = 0; j < n_kv_; j += kBlock) {
      const Index end = std::min(j + kBlock, n_kv_);
      std::uint16_t differs = 0;
      for (Index m = j; m < end; ++m) differs |= row[m] ^ value;
      if (differs == 0) continue;
      for (Index m = j; m < end; ++m) {
        if (row[m] == value) continue;
        value = row[m];
        if (value == 0)
          found_.push_back({m, n_kv_});
        else if (value == kMasked)
          found_.back().end = m;
        else
          return false;
      }
    }
    return true;
  }

  std::span<const Range> ranges_of(Index i) const {
    const std::size_t begin = i == 0 ? 0 : ends_[static_cast<std::size_t>(i - 1)];
    return std::span(found_).subspan(begin, ends_[static_cast<std::size_t>(i)] - begin);
  }

  /// Whether `more` is `seen` with one key more, after all others.
  static bool is_next(std::span<const Range> seen, std::span<const Range> more) {
    const auto same = [&](std::size_t count) {
      return std::equal(more.begin(), more.begin() + static_cast<Index>(count), seen.begin());
    };
    if (more.size() == seen.size() + 1) return more.back().size() == 1 && same(seen.size());
    return more.size() == seen.size() && !more.empty() && same(seen.size() - 1) &&
           more.back() == Range{seen.back().begin, seen.back().end + 1};
  }

  /// Whether both are a range, and `more` the one after `seen`.
  static bool is_moved(std::span<const Range> seen, std::span<const Range> more) {
    return seen.size() == 1 && more.size() == 1 &&
           more.front() == Range{seen.front().begin + 1, seen.front().end + 1};
  }

  void find_runs() {
    runs_.clear();
    for (Index i = 0; i < n_q_; ++i)
      if (i == 0 || !continues(runs_.back(), ranges_of(i - 1), ranges_of(i))) runs_.push_back({{i, i + 1}});
  }

  /// Whether the row after a run, which sees `now` where the run's last sees `before`, is another of it.
  static bool continues(Run& run, std::span<const Range> before, std::span<const Range> now) {
    const bool may_grow = run.grows || run.rows.size() == 1;
    const bool moved = is_moved(before, now);
    if (may_grow && (moved || (run.window == 0 && is_next(before, now)))) {
      run.grows = true;
      if (moved) run.window = now.front().size();
    } else if (run.grows || !std::ranges::equal(before, now)) {
      return false;
    }
    ++run.rows.end;
    return true;
  }

  /// Returns how many keys a run reads.
  Index find_keys(Run& run) const {
    for (Index i = run.rows.begin; i < run.rows.end; ++i)
      if (const auto seen = ranges_of(i); !seen.empty())
        run.keys = fastrope::hull(run.keys, {seen.front().begin, seen.back().end});
    if (run.window > 0) return run.keys.size();
    Index count = 0;
    for (const Range range : ranges_of(run.rows.end - 1)) count += range.size();
    return count;
  }

  void find_cells(Run& run) const {
    const auto seen = ranges_of(run.rows.end - 1);
    if (seen.size() <= 1) return;
    for (const Range range : seen)
      for (Index j = range.begin; j < range.end; ++j) run.cells.push_back(static_cast<std::int32_t>(j));
  }

  Index n_q_ = 0, n_kv_ = 0;
  std::vector<std::uint16_t> values_ = {};  // [n_q, n_kv]
  std::vector<Range> found_ = {};           // of all rows
  std::vector<std::size_t> ends_ = {};      // [n_q], of each row's in found_
  Kind kind_ = Kind::runs;
  std::vector<Run> runs_ = {};
  Range keys_ = {};
  std::vector<Range> ranges_ = {};  // [n_q, per_row]
  Index per_row_ = 1;
};

}  // namespace fastrope_ggml
