// The register-tiled product against the same product in double.
#include "fastrope/exact/tile_kernel.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/inputs.hpp"

namespace {

using fastrope::BroadcastOperand;
using fastrope::Index;
using fastrope::kRowMultiple;
using fastrope::multiply;
using fastrope::simd::kLanes;
using fastrope_test::Inputs;

template <class Real>
class TileKernel : public testing::Test {
 protected:
  /// C [rows, vectors] = A [rows, depth] B [depth, vectors], checked element by element; A is stored by rows
  /// or by columns, and the rows of B and C are `gap` elements longer than they need.
  template <bool kAccumulate>
  void check(Index rows, Index vectors, Index depth, bool a_by_rows, Index gap) {
    SCOPED_TRACE(testing::Message() << rows << " rows, " << vectors << " vectors, depth " << depth
                                    << (a_by_rows ? ", A by rows" : ", A by columns") << ", gap " << gap
                                    << (kAccumulate ? ", accumulating" : ""));
    const Index cols = vectors * kLanes<Real>, stride = cols + gap;
    const auto a = inputs_.gaussian<Real>(1, rows, depth).values;
    const auto b = inputs_.gaussian<Real>(1, depth, stride).values;
    const auto before = inputs_.gaussian<Real>(1, rows, stride).values;
    auto c = before;
    const BroadcastOperand<Real> operand =
        a_by_rows ? BroadcastOperand<Real>{a.data(), depth, 1} : BroadcastOperand<Real>{a.data(), 1, rows};
    multiply<kAccumulate>(rows, cols, depth, operand, b.data(), stride, c.data(), stride);

    constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < stride; ++j) {
        const auto at = static_cast<std::size_t>(i * stride + j);
        if (j >= cols) {
          ASSERT_EQ(c[at], before[at]) << "the gap after row " << i << " was written";
          continue;
        }
        double sum = kAccumulate ? static_cast<double>(before[at]) : 0, size = std::abs(sum);
        for (Index k = 0; k < depth; ++k) {
          const double product =
              static_cast<double>(operand.data[i * operand.row_stride + k * operand.depth_stride]) *
              static_cast<double>(b[static_cast<std::size_t>(k * stride + j)]);
          sum += product;
          size += std::abs(product);
        }
        ASSERT_NEAR(c[at], sum, kEpsilon * static_cast<double>(depth + 1) * size) << "at " << i << ", " << j;
      }
    }
  }

  Inputs inputs_{41};
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(TileKernel, Reals);

TYPED_TEST(TileKernel, EqualsTheProductInDouble) {
  for (const Index rows : {kRowMultiple, 3 * kRowMultiple}) {
    for (Index vectors = 1; vectors <= 9; ++vectors) {
      for (const Index depth : {0, 1, 2, 7, 64}) {
        for (const bool a_by_rows : {true, false}) {
          this->template check<false>(rows, vectors, depth, a_by_rows, 0);
          this->template check<true>(rows, vectors, depth, a_by_rows, 5);
        }
        if (this->HasFatalFailure()) return;
      }
    }
  }
}

TYPED_TEST(TileKernel, NoRowsOrColumnsWriteNothing) {
  this->template check<false>(0, 3, 4, true, 2);
  this->template check<false>(kRowMultiple, 0, 4, true, 7);
}

TYPED_TEST(TileKernel, WithoutAccumulationTheOldContentsDoNotMatter) {
  using Real = TypeParam;
  constexpr Index kCols = kLanes<Real>;
  const std::vector<Real> a(static_cast<std::size_t>(kRowMultiple), Real{2});
  const std::vector<Real> b(static_cast<std::size_t>(kCols), Real{3});
  std::vector<Real> c(a.size() * b.size(), std::numeric_limits<Real>::quiet_NaN());
  multiply<false>(kRowMultiple, kCols, 1, BroadcastOperand<Real>{a.data(), 1, kRowMultiple}, b.data(), kCols,
                  c.data(), kCols);
  for (const Real x : c) EXPECT_EQ(x, 6);
}

TEST(TileShapes, EveryTileHeightDividesTheRowMultiple) {
  for (int vecs = 1; vecs <= fastrope::kTileVecs; ++vecs) {
    const int rows = fastrope::tile_rows(vecs);
    EXPECT_EQ(kRowMultiple % rows, 0) << vecs << " vectors";
    // The accumulators, a row of B and an element of A.
    EXPECT_LE(rows * vecs + vecs + 1, fastrope::simd::kRegisters) << vecs << " vectors";
  }
  EXPECT_EQ(fastrope::kTileCols<float>, fastrope::kTileVecs * kLanes<float>);
}

TEST(BroadcastOperand, RowsFromSkipsRows) {
  const std::vector<double> data{0, 1, 2, 3, 4, 5};
  const BroadcastOperand<double> a{data.data(), 2, 1};
  EXPECT_EQ(*a.rows_from(2).data, 4);
  EXPECT_EQ(a.rows_from(1).row_stride, 2);
  EXPECT_EQ(a.rows_from(1).depth_stride, 1);
}

}  // namespace
