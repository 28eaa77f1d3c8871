#include "fastrope/toeplitz/segments.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "fastrope/toeplitz/direct.hpp"

namespace fastrope {
namespace {

using Segments = ToeplitzSegments<double>;

double flops_of(double segments, Index length) {
  const double n = static_cast<double>(length);
  return segments * 5 * n * std::log2(n);
}

TEST(ToeplitzSegments, AllLagsAreOneBlock) {
  const Segments s(1000, 700, LagSupport::all(1000, 700));
  EXPECT_EQ(s.product().count(), 1);
  EXPECT_EQ(s.product().output, (Range{0, 1000}));
  EXPECT_EQ(s.product().inputs(0), (Range{0, 700}));
  EXPECT_EQ(s.transposed().output, (Range{0, 700}));
  EXPECT_EQ(s.transposed().inputs(0), (Range{0, 1000}));
  EXPECT_EQ(s.embedding().length(), fft_length(1699));
  EXPECT_DOUBLE_EQ(Segments::flops(1000, 700, LagSupport::all(1000, 700)), flops_of(1, fft_length(1699)));
}

TEST(ToeplitzSegments, NarrowBandsAreBlocksOfAFewTimesTheirWidth) {
  const LagSupport support{-20, 79};
  const Segments s(100000, 100000, support);
  const SegmentedProduct& p = s.product();
  EXPECT_GT(p.count(), 20);
  EXPECT_LE(s.embedding().length(), 4096);
  EXPECT_EQ(p.window, p.block + support.size() - 1);
  // Blocks cover all rows, windows what they meet.
  for (Index i = 0, next = 0; i < p.count(); ++i) {
    EXPECT_EQ(p.outputs(i).begin, next);
    next = p.outputs(i).end;
    EXPECT_EQ(p.inputs(i).begin, p.outputs(i).begin - support.last);
    EXPECT_GE(p.inputs(i).end, p.outputs(i).end - support.first);
  }
  EXPECT_EQ(p.outputs(p.count() - 1).end, 100000);
  const SegmentedProduct& q = s.transposed();
  for (Index i = 0; i < q.count(); ++i) {
    EXPECT_EQ(q.inputs(i).begin, q.outputs(i).begin + support.first);
    EXPECT_GE(q.inputs(i).end, q.outputs(i).end + support.last);
  }
  EXPECT_EQ(q.outputs(q.count() - 1).end, 100000);
  EXPECT_LT(Segments::flops(100000, 100000, support),
            0.4 * Segments::flops(100000, 100000, LagSupport::all(100000, 100000)));
}

TEST(ToeplitzSegments, LeaveOutRowsAndColumnsOfZeros) {
  // The lower left corner: 30 rows and columns.
  const Segments s(1000, 1000, {970, 999});
  EXPECT_EQ(s.product().output, (Range{970, 1000}));
  EXPECT_EQ(s.product().inputs(0), (Range{0, 30}));
  EXPECT_LE(s.embedding().length(), 64);
  // The upper right one.
  const Segments t(1000, 1000, {-999, -970});
  EXPECT_EQ(t.product().output, (Range{0, 30}));
  EXPECT_EQ(t.product().inputs(0), (Range{970, 1000}));
  EXPECT_EQ(t.transposed().output, (Range{970, 1000}));
}

TEST(ToeplitzSegments, NoLagsAreNoProducts) {
  for (const auto& [rows, cols] : {std::pair<Index, Index>{0, 0}, {0, 5}, {5, 0}, {5, 5}}) {
    const Segments s(rows, cols, {});
    EXPECT_EQ(s.product().count(), 0);
    EXPECT_EQ(s.transposed().count(), 0);
    EXPECT_EQ(Segments::flops(rows, cols, {}), 0);
  }
  EXPECT_THAT([] { Segments(-2, 8, {}); }, testing::ThrowsMessage<Error>(testing::HasSubstr("-2 x 8")));
}

TEST(DirectToeplitz, SuitsSmallMatricesAlone) {
  const auto suits = [](Index rows, Index cols, LagSupport support) {
    return DirectToeplitz<float>::suits(rows, cols, support);
  };
  EXPECT_TRUE(suits(100, 100, LagSupport::all(100, 100)));
  EXPECT_FALSE(suits(1000, 1000, LagSupport::all(1000, 1000)));
  EXPECT_FALSE(suits(1, 100000, LagSupport::all(1, 100000))) << "a sum of so many terms has another bound";
}

}  // namespace
}  // namespace fastrope
