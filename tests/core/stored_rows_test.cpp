#include "fastrope/core/stored_rows.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "support/error_of.hpp"
#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

template <class T>
class Stored : public testing::Test {
 protected:
  /// Row j of head h, read in either arithmetic and in pieces, holds x [cols].
  static void expect_row(const StoredRows& rows, Index h, Index j, const T* x) {
    std::vector<float> floats(static_cast<std::size_t>(rows.cols + 1), -1);
    std::vector<double> doubles(floats.begin(), floats.end());
    const StoredHead head = rows.head(h);
    head.read(j, rows.cols, floats.data());
    head.read(j, rows.cols, doubles.data());
    Index seen = 0;
    head.for_each_piece<double>(j, rows.cols, [&](Index c, const double* piece, Index count) {
      EXPECT_EQ(c, seen);
      for (Index i = 0; i < count; ++i) ASSERT_EQ(piece[i], static_cast<double>(x[c + i]));
      seen += count;
    });
    EXPECT_EQ(seen, rows.cols);
    for (Index c = 0; c < rows.cols; ++c) {
      ASSERT_EQ(floats[static_cast<std::size_t>(c)], static_cast<float>(x[c])) << h << ", " << j << ", " << c;
      ASSERT_EQ(doubles[static_cast<std::size_t>(c)], static_cast<double>(x[c]));
    }
    EXPECT_EQ(floats.back(), -1);
    EXPECT_EQ(doubles.back(), -1);
  }
};

using Elements = testing::Types<float, double, bfloat16, float16>;
TYPED_TEST_SUITE(Stored, Elements);

TYPED_TEST(Stored, RowsOfAnyLengthAndStride) {
  for (const Index cols : {0, 1, 7, 8, 15, 16, 17, 33, 64, 65, 130}) {
    Inputs random(static_cast<std::uint64_t>(cols));
    const auto x = random.gaussian<TypeParam>(2, 3, cols, 1);
    for (const auto& y : {x, token_major(x)}) {
      const StoredRows rows = y.view();
      EXPECT_EQ(rows.heads, 2);
      EXPECT_EQ(rows.rows, 3);
      EXPECT_EQ(rows.cols, cols);
      for (Index h = 0; h < 2; ++h)
        for (Index j = 0; j < 3; ++j) this->expect_row(rows, h, j, y.view().head(h).row(j));
    }
  }
}

TYPED_TEST(Stored, WhatIsNotFiniteStaysSo) {
  using Limits = std::numeric_limits<TypeParam>;
  std::vector<TypeParam> x(40, Limits::quiet_NaN());
  for (std::size_t i = 0; i < 40; i += 3) x[i] = Limits::infinity();
  const StoredRows rows = fastrope::contiguous(std::as_const(x).data(), 1, 1, 40);
  std::vector<float> read(40);
  rows.head(0).read(0, 40, read.data());
  for (std::size_t i = 0; i < 40; ++i) EXPECT_EQ(std::isnan(read[i]), i % 3 != 0) << i;
  for (std::size_t i = 0; i < 40; i += 3) EXPECT_EQ(read[i], std::numeric_limits<float>::infinity());
}

TYPED_TEST(Stored, BackwardsAndRepeated) {
  const auto x = Inputs(1).gaussian<TypeParam>(1, 4, 5, 1);
  const StoredRows backwards = TensorView<const TypeParam>(x.view().head(0).row(3), 1, 4, 5, 0, -5);
  for (Index j = 0; j < 4; ++j) this->expect_row(backwards, 0, j, x.view().head(0).row(3 - j));
  const StoredRows repeated = TensorView<const TypeParam>(x.values.data(), 3, 4, 5, 0, 0);
  for (Index j = 0; j < 4; ++j) this->expect_row(repeated, 2, j, x.values.data());
}

TYPED_TEST(Stored, StridesThatAreNeverUsedMayBeAnything) {
  constexpr Index kMost = std::numeric_limits<Index>::max();
  const auto x = Inputs(1).gaussian<TypeParam>(1, 1, 5, 1);
  this->expect_row(TensorView<const TypeParam>(x.values.data(), 1, 1, 5, kMost, -kMost), 0, 0,
                   x.values.data());
}

TYPED_TEST(Stored, PagesOfWhichTheLastIsNotFull) {
  constexpr Index kRows = 7, kPageRows = 3, kCols = 6;
  const auto pool = Inputs(1).gaussian<TypeParam>(4 * 2, kPageRows, kCols, 1);  // [pages, heads, rows, cols]
  const std::vector<std::int32_t> pages = {2, 0, 3};
  PagedView<const TypeParam> view{
      pool.values.data(), 2, kRows, kCols, kPageRows, pages, 2 * kPageRows * kCols, kPageRows * kCols, kCols};
  const StoredRows rows = view;
  for (Index h = 0; h < 2; ++h)
    for (Index j = 0; j < kRows; ++j) this->expect_row(rows, h, j, view.head(h).row(j));
  EXPECT_EQ(error_of([&] { rows.require_pages("k"); }), "no Error");
  view.rows = 10;
  EXPECT_EQ(error_of([&] { StoredRows(view).require_pages("k"); }),
            error_of([&] { view.require_pages("k"); }));
  EXPECT_NE(error_of([&] { view.require_pages("k"); }), "no Error");
}

TYPED_TEST(Stored, OutputsAreRoundedOnceToTheArithmeticAndOnceMoreToTheType) {
  for (const Index cols : {1, 8, 17, 70}) {
    const auto x = Inputs(2).gaussian<double>(1, 1, cols, 1);
    Tensor<TypeParam> out(2, 3, cols);
    const OutputRows rows = out.view();
    rows.write<float>(1, 2, x.values.data(), 1.0 / 3, cols);
    rows.write<double>(0, 1, x.values.data() + cols / 2, 1.0 / 3, cols - cols / 2, cols / 2);
    for (Index c = 0; c < cols; ++c) {
      const double value = x(0, 0, c) * (1.0 / 3);
      ASSERT_EQ(out(1, 2, c), static_cast<TypeParam>(static_cast<float>(value)));
      ASSERT_EQ(out(0, 1, c), c < cols / 2 ? TypeParam(0) : static_cast<TypeParam>(value));
      ASSERT_EQ(out(0, 0, c), TypeParam(0));
      const double rounded = static_cast<double>(out(1, 2, c));
      EXPECT_LE(std::abs(rounded - value),
                (rows.type->rounding + 0x1p-24) * std::abs(value) + rows.type->smallest);
    }
  }
}

}  // namespace
}  // namespace fastrope_test
