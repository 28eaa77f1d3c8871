// DenseBlocks: what a call's dense bias and mask say as a whole, found once for all heads that share them:
// the blocks of rows and keys that are masked throughout, which then cost nothing, and the largest bias of a
// row.
//
// Cost: in the first stage of a call, one read of what the mask of lags and key ranges leave of bias and
// mask, [heads or 1, n_q, n_k]. Workspace: a byte a block.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Whether dense mask and bias let query i of head h attend to key j.
inline bool dense_allows(const Problem& problem, Index h, Index i, Index j) {
  const Index column = problem.grid.source(j);
  if (problem.dense_mask.data != nullptr && !problem.dense_mask.head(h)(i, column)) return false;
  return problem.dense_bias.data == nullptr ||
         problem.dense_bias(h, i, column) != -std::numeric_limits<float>::infinity();
}

class DenseBlocks {
 public:
  DenseBlocks(const Problem& problem, Workspace& workspace)
      : n_q_(problem.shapes.n_q),
        heads_(!problem.is_dense()     ? 0
               : shares_heads(problem) ? 1
                                       : problem.shapes.heads),
        row_blocks_(shares_rows(problem) ? 1 : ceil_div(n_q_, kRows)),
        key_blocks_(ceil_div(problem.shapes.n_k, kKeys)),
        seen_(workspace.take<bool>(heads_ * row_blocks_ * key_blocks_).data()),
        largest_(workspace.take<double>(problem.dense_bias.data == nullptr ? 0 : heads_ * n_q_).data()) {}

  /// The independent tasks that read bias and mask; none where there are neither.
  Index tasks() const { return heads_ * ceil_div(n_q_, kRows); }

  /// Call for every task, before anything is asked.
  void prepare(const Problem& problem, Index task) const {
    const Index h = task / ceil_div(n_q_, kRows), block = task % ceil_div(n_q_, kRows);
    bool* seen = block < row_blocks_ ? seen_ + (h * row_blocks_ + block) * key_blocks_ : nullptr;
    if (seen != nullptr) std::fill_n(seen, key_blocks_, false);
    // Rows that are alike are looked at once, whatever the mask of lags leaves of each.
    if (seen != nullptr && shares_rows(problem)) {
      read_row(problem, h, 0, Range{0, problem.shapes.n_k}, seen);
      seen = nullptr;
    }
    if (seen == nullptr && problem.dense_bias.data == nullptr) return;
    for (Index i = block * kRows; i < std::min((block + 1) * kRows, n_q_); ++i) {
      const double most = read_row(problem, h, i, problem.grid.keys_of(h, i), seen);
      if (problem.dense_bias.data != nullptr) largest_[h * n_q_ + i] = std::isfinite(most) ? most : 0;
    }
  }

  /// Whether a query in `rows` of head h may see a key in `keys`, for all that bias and mask say of whole
  /// blocks.
  bool sees(Index h, Range rows, Range keys) const {
    if (heads_ == 0) return true;
    const Index first_row = row_blocks_ == 1 ? 0 : rows.begin / kRows;
    const Index last_row = row_blocks_ == 1 ? 0 : (rows.end - 1) / kRows;
    const Index end = std::min(ceil_div(keys.end, kKeys), key_blocks_);
    for (Index r = first_row; r <= last_row; ++r) {
      const bool* seen = seen_ + ((heads_ == 1 ? 0 : h) * row_blocks_ + r) * key_blocks_;
      if (std::find(seen + keys.begin / kKeys, seen + end, true) != seen + end) return true;
    }
    return false;
  }

  /// The largest finite dense bias among the keys that query i of head h attends to, 0 without one. Requires
  /// a dense bias.
  double largest(Index h, Index i) const { return largest_[(heads_ == 1 ? 0 : h) * n_q_ + i]; }

 private:
  static constexpr Index kRows = 48;  // a tile's
  static constexpr Index kKeys = 64;
  static constexpr float kMasked = -std::numeric_limits<float>::infinity();

  static bool shares_heads(const Problem& problem) {
    return problem.grid.shares_ranges() &&
           (problem.dense_bias.data == nullptr || problem.dense_bias.head_stride == 0) &&
           (problem.dense_mask.data == nullptr || problem.dense_mask.head_stride == 0);
  }
  static bool shares_rows(const Problem& problem) {
    return (problem.dense_bias.data == nullptr || problem.dense_bias.row_stride == 0) &&
           (problem.dense_mask.data == nullptr || problem.dense_mask.row_stride == 0);
  }

  /// Marks the blocks of `keys` that query i sees something of, where `seen` is not null. Returns the largest
  /// bias of those keys, -infinity without one.
  static double read_row(const Problem& problem, Index h, Index i, const KeySet& keys, bool* seen) {
    const bool biased = problem.dense_bias.data != nullptr;
    float most = kMasked;
    keys.for_each({0, problem.shapes.n_k}, [&](Range piece) {
      for (Index j = piece.begin; j < piece.end; j = round_down(j, kKeys) + kKeys) {
        const Range block = intersect({j, round_down(j, kKeys) + kKeys}, piece);
        if (!biased && (seen == nullptr || seen[j / kKeys])) continue;
        const auto [visible, largest] = read_block(problem, h, i, block);
        if (seen != nullptr) seen[j / kKeys] |= visible;
        most = std::max(most, largest);
      }
    });
    return static_cast<double>(most);
  }

  struct Block {
    bool visible;
    float largest;
  };
  /// Of query i and at most kKeys keys.
  static Block read_block(const Problem& problem, Index h, Index i, Range keys) {
    std::array<float, kKeys> bias = {};
    const auto count = static_cast<std::size_t>(keys.size());
    if (!problem.grid.in_order()) {
      Block block{false, kMasked};
      for (Index j = keys.begin; j < keys.end; ++j)
        if (dense_allows(problem, h, i, j)) {
          block.visible = true;
          if (problem.dense_bias.data != nullptr)
            block.largest = std::max(block.largest, problem.dense_bias(h, i, problem.grid.source(j)));
        }
      return block;
    }
    if (problem.dense_bias.data != nullptr) problem.dense_bias.read(h, i, keys, bias.data());
    if (problem.dense_mask.data != nullptr) {
      const bool* mask = problem.dense_mask.head(h).row(i) + keys.begin;
      for (std::size_t m = 0; m < count; ++m) bias[m] = mask[m] ? bias[m] : kMasked;
    }
    const float largest = simd::largest(bias.data(), keys.size());
    // NaN is no mask, and not always larger than one.
    const bool visible = largest != kMasked || std::any_of(bias.begin(), bias.begin() + count,
                                                           [](float x) { return x != kMasked; });
    return {visible, largest};
  }

  Index n_q_;
  Index heads_;       // whose bias or mask differ; 0 without any
  Index row_blocks_;  // that differ
  Index key_blocks_;
  bool* seen_;       // [heads, row_blocks, key_blocks]
  double* largest_;  // [heads, n_q] with a bias
};

}  // namespace fastrope::inline FASTROPE_TARGET
