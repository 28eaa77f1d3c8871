// DenseBlocks: what a call's dense bias and mask say as a whole, found once for all heads that share them:
// the blocks of rows and keys that are masked throughout, which then cost nothing, and the largest bias of a
// row.
//
// Cost: in the first stage of a call, one read of what the mask of lags and key ranges leave of bias and
// mask, [heads or 1, n_q, n_k]. Workspace: a byte a block.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
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

/// Shared by all workers; asked only after every task of prepare.
class DenseBlocks {
 public:
  DenseBlocks(const Problem& problem, Workspace& workspace)
      : n_q_(problem.shapes.n_q),
        heads_(!problem.is_dense()     ? 0
               : shares_heads(problem) ? 1
                                       : problem.shapes.heads),
        row_blocks_(shares_rows(problem) ? 1 : ceil_div(n_q_, kRows)),
        key_blocks_(ceil_div(problem.shapes.n_k, kKeys)),
        blocks_(workspace.take<Block>(heads_ * row_blocks_ * key_blocks_).data()),
        largest_(workspace.take<double>(problem.dense_bias.data == nullptr ? 0 : heads_ * n_q_).data()) {}

  /// The independent tasks that read bias and mask; none where there are neither.
  Index tasks() const { return heads_ * ceil_div(n_q_, kRows); }

  /// Call for every task, before anything is asked.
  void prepare(const Problem& problem, Index task) const {
    const Index h = task / ceil_div(n_q_, kRows), block = task % ceil_div(n_q_, kRows);
    Block* blocks = block < row_blocks_ ? blocks_ + (h * row_blocks_ + block) * key_blocks_ : nullptr;
    if (blocks != nullptr) std::fill_n(blocks, key_blocks_, Block{});
    // Rows that are alike are looked at once, whatever the mask of lags leaves of each.
    if (blocks != nullptr && shares_rows(problem)) {
      read_row(problem, h, 0, Range{0, problem.shapes.n_k}, blocks);
      blocks = nullptr;
    }
    if (blocks == nullptr && problem.dense_bias.data == nullptr) return;
    for (Index i = block * kRows; i < std::min((block + 1) * kRows, n_q_); ++i) {
      const double most = read_row(problem, h, i, problem.grid.keys_of(h, i), blocks);
      if (problem.dense_bias.data != nullptr) largest_[h * n_q_ + i] = std::isfinite(most) ? most : 0;
    }
  }

  /// Whether a query in `rows` of head h may see a key in `keys`, for all that bias and mask say of whole
  /// blocks.
  bool sees(Index h, Range rows, Range keys) const {
    return heads_ == 0 || any_block(h, rows, keys, [](Block block) { return block.seen; });
  }
  /// The same for a key that is masked.
  bool masks(Index h, Range rows, Range keys) const {
    return heads_ != 0 && any_block(h, rows, keys, [](Block block) { return block.masked; });
  }

  /// The largest finite dense bias among the keys that query i of head h attends to, 0 without one. Requires
  /// a dense bias.
  double largest(Index h, Index i) const { return largest_[(heads_ == 1 ? 0 : h) * n_q_ + i]; }

 private:
  static constexpr Index kRows = 48;  // a tile's
  static constexpr Index kKeys = 64;
  static constexpr float kMasked = -std::numeric_limits<float>::infinity();

  /// Whether some of a block's pairs are seen, and some masked, of those that the mask of lags and key ranges
  /// allow.
  struct Block {
    bool seen = false;
    bool masked = false;
  };

  /// Whether `of` a block that has such rows and keys. Requires rows and keys that are not empty.
  template <class Of>
  bool any_block(Index h, Range rows, Range keys, Of&& of) const {
    const Index first_row = row_blocks_ == 1 ? 0 : rows.begin / kRows;
    const Index last_row = row_blocks_ == 1 ? 0 : (rows.end - 1) / kRows;
    for (Index r = first_row; r <= last_row; ++r) {
      const Block* blocks = blocks_ + ((heads_ == 1 ? 0 : h) * row_blocks_ + r) * key_blocks_;
      if (std::any_of(blocks + keys.begin / kKeys, blocks + ceil_div(keys.end, kKeys), of)) return true;
    }
    return false;
  }

  static bool shares_heads(const Problem& problem) {
    return problem.grid.shares_ranges() &&
           (problem.dense_bias.data == nullptr || problem.dense_bias.head_stride == 0) &&
           (problem.dense_mask.data == nullptr || problem.dense_mask.head_stride == 0);
  }
  static bool shares_rows(const Problem& problem) {
    return (problem.dense_bias.data == nullptr || problem.dense_bias.row_stride == 0) &&
           (problem.dense_mask.data == nullptr || problem.dense_mask.row_stride == 0);
  }

  /// Adds to `blocks`, where not null, what query i sees of `keys`. Returns the largest bias of those keys,
  /// -infinity without one.
  static double read_row(const Problem& problem, Index h, Index i, const KeySet& keys, Block* blocks) {
    const bool biased = problem.dense_bias.data != nullptr;
    float most = kMasked;
    keys.for_each({0, problem.shapes.n_k}, [&](Range piece) {
      for (Index j = piece.begin; j < piece.end; j = round_down(j, kKeys) + kKeys) {
        Block* block = blocks == nullptr ? nullptr : blocks + j / kKeys;
        const bool known = block == nullptr || (block->seen && block->masked);
        if (known && !biased) continue;
        const auto [count, seen, largest] =
            read_keys(problem, h, i, intersect({j, round_down(j, kKeys) + kKeys}, piece));
        most = std::max(most, largest);
        if (block != nullptr) *block = {block->seen || seen > 0, block->masked || seen < count};
      }
    });
    return static_cast<double>(most);
  }

  static Index count_true(const bool* x, Index count) {
    Index sum = 0, m = 0;
    for (; m + 8 <= count; m += 8) {
      std::uint64_t eight;
      std::memcpy(&eight, x + m, sizeof(eight));
      sum += std::popcount(eight);
    }
    return std::count(x + m, x + count, true) + sum;
  }

  struct Keys {
    Index count;
    Index seen;  // of them
    float largest;
  };
  /// What query i sees of at most kKeys keys.
  static Keys read_keys(const Problem& problem, Index h, Index i, Range keys) {
    const bool biased = problem.dense_bias.data != nullptr, in_order = problem.grid.in_order();
    const Index count = keys.size();
    std::array<float, kKeys> bias = {};
    if (biased && in_order) problem.dense_bias.read(h, i, keys, bias.data());
    if (biased && !in_order)
      for (Index m = 0; m < count; ++m)
        bias[static_cast<std::size_t>(m)] = problem.dense_bias(h, i, problem.grid.source(keys.begin + m));
    if (problem.dense_mask.data != nullptr) {
      const bool* mask = problem.dense_mask.head(h).row(i);
      if (!biased && in_order) return {count, count_true(mask + keys.begin, count), kMasked};
      for (Index m = 0; m < count; ++m)
        if (!mask[problem.grid.source(keys.begin + m)]) bias[static_cast<std::size_t>(m)] = kMasked;
    }
    return {count, count - std::count(bias.begin(), bias.begin() + count, kMasked),  // NaN is no mask
            simd::largest(bias.data(), count)};
  }

  Index n_q_;
  Index heads_;       // whose bias or mask differ; 0 without any
  Index row_blocks_;  // that differ
  Index key_blocks_;
  Block* blocks_;    // [heads, row_blocks, key_blocks]
  double* largest_;  // [heads, n_q] with a bias
};

}  // namespace fastrope::inline FASTROPE_TARGET
