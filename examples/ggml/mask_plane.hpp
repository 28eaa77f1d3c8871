// A mask of attention as llama.cpp fills it, [n_q, n_kv] of float16, read as ranges of keys.
//
// Padding, causal rows, windows and sequences that share a cache are 0 where a row sees a key and -infinity
// elsewhere: a range in each row, or a few. Whatever else there is stays dense. Cost: one comparison with the
// values that were read before, and where they differ, one more pass.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fastrope/core.hpp>
#include <iterator>
#include <span>
#include <vector>

namespace fastrope_ggml {

using fastrope::Index;
using fastrope::Range;

/// A plane [n_q, n_kv] of a mask: the keys that each row sees.
class MaskPlane {
 public:
  enum class Kind { same, causal, ranges, dense };

  /// Reads n_q rows of n_kv values of float16, `stride` apart; false where they are those that it has.
  bool read(const std::uint16_t* rows, Index n_q, Index n_kv, Index stride) {
    const auto bytes = static_cast<std::size_t>(n_kv) * sizeof(*rows);
    const auto is_kept = [&] {
      for (Index i = 0; i < n_q; ++i)
        if (std::memcmp(copy_.data() + i * n_kv, rows + i * stride, bytes) != 0) return false;
      return true;
    };
    if (n_q == n_q_ && n_kv == n_kv_ && is_kept()) return false;
    n_q_ = n_q;
    n_kv_ = n_kv;
    copy_.resize(static_cast<std::size_t>(n_q * n_kv));
    for (Index i = 0; i < n_q; ++i) std::memcpy(copy_.data() + i * n_kv, rows + i * stride, bytes);
    find_kind();
    return true;
  }

  /// `same`: every row sees all of keys(). `causal`: the last row does, and each before it one key less at
  /// the end. `ranges`: ranges(). `dense`: the values themselves have to be added to logits.
  Kind kind() const { return kind_; }
  /// From the first to the last key that some row sees.
  Range keys() const { return keys_; }
  /// The ranges of keys that rows see, where the kind is `ranges`, the first of keys() being key 0.
  fastrope::KeyRanges ranges() const { return {ranges_, per_row_}; }

 private:
  static constexpr std::uint16_t kMasked = 0xfc00;  // -infinity
  /// Ranges of a row that are worth it, for so many keys: beyond, they take as much memory as the mask.
  static constexpr Index kKeysOfRange = 8;

  void find_kind() {
    kind_ = Kind::dense;
    keys_ = {0, n_kv_};
    std::vector<Range> found;      // of all rows
    std::vector<std::size_t> end;  // of a row's
    for (Index i = 0; i < n_q_; ++i) {
      if (!append_ranges(copy_.data() + i * n_kv_, found)) return;
      end.push_back(found.size());
    }
    const auto of_row = [&](std::size_t i) {
      const std::size_t begin = i == 0 ? 0 : end[i - 1];
      return std::span(found).subspan(begin, end[i] - begin);
    };
    per_row_ = 1;
    Range hull;
    for (std::size_t i = 0; i < end.size(); ++i) {
      for (const Range range : of_row(i)) hull = fastrope::hull(hull, range);
      per_row_ = std::max(per_row_, std::ssize(of_row(i)));
    }
    keys_ = hull;
    const Range last = per_row_ == 1 && !found.empty() ? found.back() : Range{};
    bool same = std::ssize(found) == n_q_, causal = same;
    for (std::size_t i = 0; i < end.size() && (same || causal); ++i) {
      const Range range = of_row(i).empty() ? Range{} : of_row(i).front();
      same = same && range == last;
      causal = causal && range == Range{last.begin, last.end - (n_q_ - 1 - static_cast<Index>(i))};
    }
    if (per_row_ > std::max<Index>(1, n_kv_ / kKeysOfRange)) return;
    kind_ = same ? Kind::same : causal ? Kind::causal : Kind::ranges;
    ranges_.clear();
    if (kind_ != Kind::ranges) return;
    for (std::size_t i = 0; i < end.size(); ++i) {
      for (const Range range : of_row(i))
        ranges_.push_back({range.begin - keys_.begin, range.end - keys_.begin});
      ranges_.resize((i + 1) * static_cast<std::size_t>(per_row_));
    }
  }

  /// Appends the ranges of keys that a row sees; false where a value is neither 0 nor -infinity.
  bool append_ranges(const std::uint16_t* row, std::vector<Range>& found) const {
    constexpr Index kBlock = 64;
    std::uint16_t value = kMasked;  // of the run that the last key is of
    for (Index j = 0; j < n_kv_; j += kBlock) {
      const Index end = std::min(j + kBlock, n_kv_);
      std::uint16_t differs = 0;
      for (Index m = j; m < end; ++m) differs |= row[m] ^ value;
      if (differs == 0) continue;
      for (Index m = j; m < end; ++m) {
        if (row[m] == value) continue;
        value = row[m];
        if (value == 0)
          found.push_back({m, n_kv_});
        else if (value == kMasked)
          found.back().end = m;
        else
          return false;
      }
    }
    return true;
  }

  Index n_q_ = 0, n_kv_ = 0;
  std::vector<std::uint16_t> copy_ = {};  // [n_q, n_kv]
  Kind kind_ = Kind::same;
  Range keys_ = {};
  std::vector<Range> ranges_ = {};  // [n_q, per_row]
  Index per_row_ = 1;
};

}  // namespace fastrope_ggml
