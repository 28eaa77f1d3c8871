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
    multiply<kAccumulate, Real>(rows, cols, depth, operand, b.data(), stride, c.data(), stride);

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

  /// C [rows, vectors] += A [rows, depth] B, where element (k, c) of B is b[k / kGroup][c kGroup + k %
  /// kGroup]: lane c kGroup + g adds up the products of every kGroup'th element along the depth, from g on.
  template <int kGroup>
  void check_groups(Index rows, Index depth, Index vectors) {
    SCOPED_TRACE(testing::Message() << rows << " rows, depth " << depth << ", " << vectors
                                    << " vectors, groups of " << kGroup);
    const Index cols = vectors * kLanes<Real>;
    const Index stride = depth + kGroup;  // aligned to a group
    const auto a = inputs_.gaussian<Real>(1, rows, stride).values;
    const auto b = inputs_.gaussian<Real>(1, depth / kGroup, cols).values;
    const auto before = inputs_.gaussian<Real>(1, rows + 1, cols).values;
    auto c = before;
    multiply<true, Real, kGroup>(rows, cols, depth / kGroup, BroadcastOperand<Real>{a.data(), stride, kGroup},
                                 b.data(), cols, c.data(), cols);

    constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
    for (Index i = 0; i < rows; ++i)
      for (Index lane = 0; lane < cols; ++lane) {
        const auto at = static_cast<std::size_t>(i * cols + lane);
        double sum = static_cast<double>(before[at]), size = std::abs(sum);
        for (Index k = lane % kGroup; k < depth; k += kGroup) {
          const double product = static_cast<double>(a[static_cast<std::size_t>(i * stride + k)]) *
                                 static_cast<double>(b[static_cast<std::size_t>(k / kGroup * cols + lane)]);
          sum += product;
          size += std::abs(product);
        }
        ASSERT_NEAR(c[at], sum, kEpsilon * static_cast<double>(depth / kGroup + 1) * size)
            << "row " << i << ", lane " << lane;
      }
    for (std::size_t at = static_cast<std::size_t>(rows * cols); at < c.size(); ++at)
      ASSERT_EQ(c[at], before[at]) << "written past the last row";
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

TYPED_TEST(TileKernel, GroupsAlongTheDepthShareVectors) {
  using Real = TypeParam;
  for (const Index rows : {Index{0}, kRowMultiple, 3 * kRowMultiple})
    for (const Index depth : {0, 4, 8, 20, 64, 128})
      for (const Index vectors : {1, 2, 3, 4, 5, 9}) {
        this->template check_groups<1>(rows, depth, vectors);
        if constexpr (kLanes<Real> >= 2) this->template check_groups<2>(rows, depth, vectors);
        if constexpr (kLanes<Real> >= 4 && sizeof(Real) == 4)
          this->template check_groups<4>(rows, depth, vectors);
        if (this->HasFatalFailure()) return;
      }
}

TYPED_TEST(TileKernel, NoRowsOrColumnsWriteNothing) {
  this->template check<false>(0, 3, 4, true, 2);
  this->template check<false>(kRowMultiple, 0, 4, true, 7);
}

TYPED_TEST(TileKernel, WithoutAccumulationTheOldContentsDoNotMatter) {
  using Real = TypeParam;
  constexpr Index cols = kLanes<Real>;
  const std::vector<Real> a(static_cast<std::size_t>(kRowMultiple), Real{2});
  const std::vector<Real> b(static_cast<std::size_t>(cols), Real{3});
  std::vector<Real> c(a.size() * b.size(), std::numeric_limits<Real>::quiet_NaN());
  multiply<false, Real>(kRowMultiple, cols, 1, BroadcastOperand<Real>{a.data(), 1, kRowMultiple}, b.data(),
                        cols, c.data(), cols);
  for (const Real x : c) EXPECT_EQ(x, 6);
}

#if FASTROPE_BFLOAT16_PRODUCTS
/// Words of pairs of bfloat16 by vectors, and by the matrix unit where there is one.
TEST(Bfloat16Kernel, EqualsTheProductInDouble) {
  using fastrope::bfloat16;
  using fastrope::element_of;
  Inputs inputs(42);
  constexpr Index kRows = fastrope::kRowMultipleOf<bfloat16>;
  [[maybe_unused]] const fastrope::MatrixTiles tiles;
  for (const Index depth : {0, 16, 32, 80}) {
    for (Index vectors = 1; vectors <= 6; ++vectors) {
      SCOPED_TRACE(testing::Message() << "depth " << depth << ", " << vectors << " vectors");
      const Index cols = vectors * kLanes<float>, a_stride = depth + 3, stride = cols + 5;
      const auto words = [&](Index rows, Index row_words) {
        std::vector<float> x = inputs.gaussian<float>(1, rows, 2 * row_words + 64).values;
        std::vector<float> packed;
        for (Index i = 0; i < rows; ++i) {
          float* row = x.data() + i * (2 * row_words + 64);
          fastrope::make_words<bfloat16>(2 * row_words, row);
          packed.insert(packed.end(), row, row + row_words);
        }
        return packed;
      };
      const auto a = words(kRows, a_stride), b = words(std::max<Index>(depth, 1), stride);
      const auto before = inputs.gaussian<float>(1, kRows, stride).values;
      const auto expect = [&](const std::vector<float>& c) {
        for (Index i = 0; i < kRows; ++i) {
          for (Index j = 0; j < stride; ++j) {
            const auto at = static_cast<std::size_t>(i * stride + j);
            double sum = before[at], size = std::abs(sum);
            for (Index k = 0; k < (j < cols ? depth : 0); ++k)
              for (const Index half : {0, 1}) {
                const double product = static_cast<double>(element_of<bfloat16>(
                                           a[static_cast<std::size_t>(i * a_stride + k)], half)) *
                                       static_cast<double>(element_of<bfloat16>(
                                           b[static_cast<std::size_t>(k * stride + j)], half));
                sum += product;
                size += std::abs(product);
              }
            ASSERT_NEAR(c[at], sum, 0x1p-23 * static_cast<double>(2 * depth + 1) * size) << i << ", " << j;
          }
        }
      };
      const BroadcastOperand<float> operand{a.data(), a_stride, 1};
      auto c = before;
      multiply<true, bfloat16>(kRows, cols, depth, operand, b.data(), stride, c.data(), stride);
      expect(c);
      if (this->HasFatalFailure()) return;
      c = before;
      for (Index v = 0; v < vectors; ++v)
        for (Index i = 0; i < kRows; i += fastrope::tile_rows(1))
          fastrope::detail::tile<bfloat16, fastrope::tile_rows(1), 1, 1>(
              depth, operand.rows_from(i), b.data() + v * kLanes<float>, stride,
              /*accumulate=*/true, c.data() + i * stride + v * kLanes<float>, stride);
      expect(c);
      if (this->HasFatalFailure()) return;
    }
  }
}

TEST(Bfloat16Kernel, WordsHoldTheNearestNumbersAndZerosAfterThem) {
  using fastrope::bfloat16;
  Inputs inputs(43);
  for (const Index d : {1, 2, 31, 32, 33, 70}) {
    const Index words = fastrope::words_of<bfloat16>(d);
    EXPECT_EQ(words, fastrope::round_up(d, 32) / 2);
    std::vector<float> x = inputs.gaussian<float>(1, 1, 2 * words).values;
    const std::vector<float> row = x;
    fastrope::make_words<bfloat16>(d, x.data());
    for (Index c = 0; c < 2 * words; ++c) {
      const auto nearest = static_cast<bfloat16>(c < d ? row[static_cast<std::size_t>(c)] : 0.0f);
      EXPECT_EQ(fastrope::element_of<bfloat16>(x[static_cast<std::size_t>(c / 2)], c % 2),
                static_cast<float>(nearest))
          << "element " << c << " of " << d;
    }
  }
}
#endif

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
