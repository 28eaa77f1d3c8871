// What the backend of ggml makes of masks: whatever it is, it says for each row and key what the mask says.
#include "../../examples/ggml/mask_plane.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace {

using fastrope::Index;
using fastrope::Range;
using fastrope_ggml::MaskPlane;
using fastrope_ggml::Run;
using Kind = MaskPlane::Kind;

using Sees = std::function<bool(Index i, Index j)>;

constexpr std::uint16_t kMasked = 0xfc00;

std::vector<std::uint16_t> mask_of(Index n_q, Index n_kv, const Sees& sees) {
  std::vector<std::uint16_t> values;
  for (Index i = 0; i < n_q; ++i)
    for (Index j = 0; j < n_kv; ++j) values.push_back(sees(i, j) ? 0 : kMasked);
  return values;
}

/// [n_q, n_kv], from runs or ranges.
std::vector<std::uint16_t> said_by(const MaskPlane& plane, Index n_q, Index n_kv) {
  std::vector<std::uint16_t> values(static_cast<std::size_t>(n_q * n_kv), kMasked);
  const auto see = [&](Index i, Index j) { values[static_cast<std::size_t>(i * n_kv + j)] = 0; };
  if (plane.kind() == Kind::ranges) {
    const fastrope::KeyRanges ranges = plane.ranges();
    for (Index i = 0; i < n_q; ++i)
      for (const Range range : ranges.ranges.subspan(static_cast<std::size_t>(i * ranges.per_row),
                                                     static_cast<std::size_t>(ranges.per_row)))
        for (Index j = range.begin; j < range.end; ++j) see(i, plane.keys().begin + j);
    return values;
  }
  for (const Run& run : plane.runs()) {
    const Index count = run.cells.empty() ? run.keys.size() : std::ssize(run.cells);
    for (Index i = run.rows.begin; i < run.rows.end; ++i) {
      const Index end = count - (run.grows ? run.rows.end - 1 - i : 0);
      for (Index m = run.window > 0 ? std::max<Index>(0, end - run.window) : 0; m < end; ++m)
        see(i, run.cells.empty() ? run.keys.begin + m : run.cells[static_cast<std::size_t>(m)]);
    }
  }
  return values;
}

TEST(MaskPlane, SaysWhatTheMaskSays) {
  struct Case {
    const char* name;
    Index n_q, n_kv;
    Sees sees;
    Kind kind;
    std::size_t runs;
  };
  const Case cases[] = {
      {"a token and padding", 1, 256, [](Index, Index j) { return j < 130; }, Kind::runs, 1},
      {"a ring that has wrapped", 1, 256, [](Index, Index j) { return j < 70 || j >= 200; }, Kind::runs, 1},
      {"a prompt", 100, 256, [](Index i, Index j) { return j <= 60 + i; }, Kind::runs, 1},
      {"no mask", 7, 65, [](Index, Index) { return true; }, Kind::runs, 1},
      {"nothing", 5, 64, [](Index, Index) { return false; }, Kind::runs, 1},
      {"a prompt whose first row sees nothing", 9, 64, [](Index i, Index j) { return j < i; }, Kind::runs, 1},
      {"a token of each of 4", 4, 300, [](Index i, Index j) { return j % 4 == i && j < 290; }, Kind::runs, 4},
      {"the same and then more", 4, 64, [](Index i, Index j) { return j < (i < 2 ? 30 : 31); }, Kind::ranges,
       0},
      {"a window", 64, 256, [](Index i, Index j) { return j <= 90 + i && j > 60 + i; }, Kind::runs, 1},
      {"a window that is full after some rows", 64, 256,
       [](Index i, Index j) { return j <= i && j > i - 30; }, Kind::runs, 1},
      {"windows of two sequences, one after the other", 64, 256,
       [](Index i, Index j) { return j <= 40 + i && j > 20 + i && (i < 32) == (j < 72); }, Kind::runs, 2},
      {"a window that grows again", 3, 64,
       [](Index i, Index j) { return j < 30 + i && j >= (i == 0 ? 4 : 5); }, Kind::ranges, 0},
      {"a window over every other key", 8, 64,
       [](Index i, Index j) { return j % 2 == 0 && j / 2 < 12 + i && j / 2 >= i; }, Kind::dense, 0},
      {"a tree", 4, 128, [](Index i, Index j) { return j < 100 || j == 100 + i; }, Kind::ranges, 0},
      {"many short ranges", 16, 256, [](Index i, Index j) { return (i ^ j) % 3 == 0; }, Kind::dense, 0},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const std::vector<std::uint16_t> mask = mask_of(c.n_q, c.n_kv, c.sees);
    MaskPlane plane;
    EXPECT_TRUE(plane.read(mask.data(), c.n_q, c.n_kv, c.n_kv));
    ASSERT_EQ(plane.kind(), c.kind);
    if (c.kind == Kind::runs) {
      EXPECT_EQ(plane.runs().size(), c.runs);
    }
    if (c.kind != Kind::dense) {
      EXPECT_EQ(said_by(plane, c.n_q, c.n_kv), mask);
    }
  }
}

TEST(MaskPlane, OtherValuesAreDense) {
  std::vector<std::uint16_t> mask = mask_of(3, 100, [](Index, Index) { return true; });
  mask[150] = 0xbc00;  // -1
  MaskPlane plane;
  plane.read(mask.data(), 3, 100, 100);
  EXPECT_EQ(plane.kind(), Kind::dense);
}

TEST(MaskPlane, IsReadAnewWhereAValueChanged) {
  std::vector<std::uint16_t> mask = mask_of(2, 70, [](Index i, Index j) { return j < 50 + i; });
  MaskPlane plane;
  EXPECT_TRUE(plane.read(mask.data(), 2, 60, 70));  // of longer rows
  EXPECT_FALSE(plane.read(mask.data(), 2, 60, 70));
  EXPECT_TRUE(plane.read(mask.data(), 2, 70, 70));
  mask[51] = 0;
  mask[50] = 0;
  mask[70 + 51] = 0;
  mask[70 + 52] = 0;
  EXPECT_TRUE(plane.read(mask.data(), 2, 70, 70));
  ASSERT_EQ(plane.runs().size(), 1u);
  EXPECT_EQ(plane.runs()[0].keys, (Range{0, 53}));
}

}  // namespace
