#include "fastrope/core/row_overlap.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "support/inputs.hpp"

namespace {

using fastrope::Index;
using fastrope::rows_overlap;
using fastrope_test::Inputs;

constexpr Index kMost = std::numeric_limits<Index>::max();
constexpr Index kLeast = std::numeric_limits<Index>::min();

/// Every element of every row, counted.
bool overlap_as_defined(Index heads, Index rows, Index cols, Index head_stride, Index row_stride) {
  std::set<Index> elements;
  for (Index h = 0; h < heads; ++h)
    for (Index i = 0; i < rows; ++i)
      for (Index c = 0; c < cols; ++c)
        if (!elements.insert(h * head_stride + i * row_stride + c).second) return true;
  return false;
}

TEST(RowOverlap, TheUsualLayoutsHaveNone) {
  EXPECT_FALSE(rows_overlap(8, 100, 64, 100 * 64, 64)) << "[heads, n, d]";
  EXPECT_FALSE(rows_overlap(8, 100, 64, 64, 8 * 64)) << "[n, heads, d]";
  EXPECT_FALSE(rows_overlap(8, 100, 64, 128, 3 * 8 * 128)) << "[n, 3, heads, padded d]";
  EXPECT_FALSE(rows_overlap(8, 100, 64, 100 * 64, -64)) << "rows from the last to the first";
  EXPECT_TRUE(rows_overlap(8, 100, 64, 100 * 64, 63));
  EXPECT_TRUE(rows_overlap(8, 100, 64, 100 * 64 - 1, 64));
  EXPECT_TRUE(rows_overlap(8, 100, 64, 64, 8 * 64 - 1));
  EXPECT_TRUE(rows_overlap(8, 100, 64, 63, 8 * 64));
}

TEST(RowOverlap, AgreesWithEveryElementForAllSmallShapesAndStrides) {
  for (Index heads = 0; heads <= 4; ++heads)
    for (Index rows = 0; rows <= 5; ++rows)
      for (Index cols = 0; cols <= 3; ++cols)
        for (Index head_stride = -14; head_stride <= 14; ++head_stride)
          for (Index row_stride = -14; row_stride <= 14; ++row_stride)
            ASSERT_EQ(rows_overlap(heads, rows, cols, head_stride, row_stride),
                      overlap_as_defined(heads, rows, cols, head_stride, row_stride))
                << heads << " x " << rows << " x " << cols << ", strides " << head_stride << ", "
                << row_stride;
}

TEST(RowOverlap, AgreesWithEveryElementForRandomStrides) {
  Inputs random(41);
  int overlapping = 0;
  for (int round = 0; round < 20000; ++round) {
    const Index heads = random.integer(1, 12), rows = random.integer(1, 12), cols = random.integer(1, 8),
                reach = random.integer(1, 200), head_stride = random.integer(-reach, reach),
                row_stride = random.integer(-reach, reach);
    const bool expected = overlap_as_defined(heads, rows, cols, head_stride, row_stride);
    ASSERT_EQ(rows_overlap(heads, rows, cols, head_stride, row_stride), expected)
        << heads << " x " << rows << " x " << cols << ", strides " << head_stride << ", " << row_stride;
    overlapping += expected;
  }
  EXPECT_GT(overlapping, 5000);
  EXPECT_LT(overlapping, 15000);
}

TEST(RowOverlap, HasNoShapeOrStrideThatOverflows) {
  for (const Index stride : {kMost, kLeast, kLeast + 1}) {
    EXPECT_FALSE(rows_overlap(2, 3, 4, stride, 4));
    EXPECT_FALSE(rows_overlap(2, 3, 4, 4, stride));
    EXPECT_TRUE(rows_overlap(2, 3, 4, stride, stride));
  }
  EXPECT_TRUE(rows_overlap(kMost, kMost, 2, kMost / 2, kMost / 3));
  EXPECT_TRUE(rows_overlap(kMost, kMost, 1, 2, 3)) << "(3, 0) and (0, 2) begin at 6";
  EXPECT_TRUE(rows_overlap(kMost, kMost, kMost, 1, kMost));
  // Neighbours of the golden ratio: as many steps as there can be.
  EXPECT_TRUE(rows_overlap(kMost, kMost, 1, 7540113804746346429, 4660046610375530309));
  EXPECT_FALSE(rows_overlap(Index{1} << 30, Index{1} << 30, 1, 7540113804746346429, 4660046610375530309));
}

TEST(RowOverlap, OneRowOrHeadMayHaveAnyStride) {
  for (const Index stride : {Index{0}, Index{1}, kLeast}) {
    EXPECT_FALSE(rows_overlap(1, 9, 4, stride, 4));
    EXPECT_FALSE(rows_overlap(9, 1, 4, 4, stride));
    EXPECT_FALSE(rows_overlap(1, 1, 4, stride, stride));
  }
  EXPECT_TRUE(rows_overlap(1, 9, 4, 0, 3));
  EXPECT_TRUE(rows_overlap(9, 1, 4, 3, 0));
}

}  // namespace
