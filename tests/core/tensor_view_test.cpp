// Conversions that must not exist are static_asserts, so this file's checks begin when it compiles.
#include "fastrope/core/tensor_view.hpp"

#include <gtest/gtest.h>

#include <Eigen/Core>
#include <limits>
#include <type_traits>
#include <vector>

#include "fastrope/eigen.hpp"
#include "support/error_of.hpp"

namespace {

using fastrope::contiguous;
using fastrope::Index;
using fastrope::MatrixView;
using fastrope::TensorView;
using fastrope_test::error_of;

template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using RowMajorArray = Eigen::Array<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ColumnMajor = Eigen::MatrixXf;

template <class From, class To>
constexpr bool kConverts = std::is_convertible_v<From, To>;
/// From converts to a view of T, of either kind.
template <class From, class T>
constexpr bool kViews = kConverts<From, MatrixView<T>>&& kConverts<From, TensorView<T>>;
template <class From, class T>
constexpr bool kRefused = !kConverts<From, MatrixView<T>> && !kConverts<From, TensorView<T>>;

// Const may be added to the elements, never taken away, and their type stays.
static_assert(kConverts<MatrixView<float>, MatrixView<const float>>);
static_assert(kConverts<TensorView<float>, TensorView<const float>>);
static_assert(kConverts<MatrixView<float>, TensorView<const float>>);
static_assert(!kConverts<MatrixView<const float>, MatrixView<float>>);
static_assert(!kConverts<TensorView<const float>, TensorView<float>>);
static_assert(!kConverts<MatrixView<const float>, TensorView<float>>);
static_assert(!kConverts<TensorView<float>, MatrixView<float>>);
static_assert(!kConverts<MatrixView<float>, MatrixView<const double>>);
static_assert(!kConverts<TensorView<double>, TensorView<const float>>);

// Row-major Eigen objects that outlive the view.
static_assert(kViews<RowMajor<float>&, float>);
static_assert(kViews<RowMajor<float>&, const float>);
static_assert(kViews<const RowMajor<double>&, const double>);
static_assert(kViews<RowMajorArray<float>&, float>);
static_assert(kViews<RowMajor<fastrope::bfloat16>&, const fastrope::bfloat16>);
static_assert(kViews<RowMajor<fastrope::float16>&, fastrope::float16>);
static_assert(kViews<Eigen::Map<RowMajor<float>>, float>);
static_assert(kViews<Eigen::Map<const RowMajor<float>>, const float>);
static_assert(kViews<Eigen::Map<RowMajor<float>, 0, Eigen::OuterStride<>>, float>);
static_assert(kViews<decltype(std::declval<RowMajor<float>&>().block(0, 0, 1, 1)), float>);
static_assert(kViews<decltype(std::declval<RowMajor<float>&>().middleRows(0, 1)), float>);
static_assert(kViews<decltype(std::declval<ColumnMajor&>().transpose()), float>);
static_assert(kViews<Eigen::RowVectorXf&, float>);

// Elements of another type, or const elements to be written.
static_assert(kRefused<RowMajor<double>&, float>);
static_assert(kRefused<RowMajor<float>&, const double>);
static_assert(kRefused<RowMajor<int>&, float>);
static_assert(kRefused<const RowMajor<float>&, float>);
static_assert(kRefused<Eigen::Map<const RowMajor<float>>, float>);

// Column-major, strided inside a row, or not in memory at all.
static_assert(kRefused<ColumnMajor&, float>);
static_assert(kRefused<const ColumnMajor&, const float>);
static_assert(kRefused<Eigen::VectorXf&, float>);
static_assert(kRefused<Eigen::Map<ColumnMajor>, float>);
static_assert(kRefused<decltype(std::declval<RowMajor<float>&>().transpose()), float>);
static_assert(kRefused<Eigen::Map<RowMajor<float>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>, float>);
static_assert(kRefused<decltype(std::declval<RowMajor<float>&>() + std::declval<RowMajor<float>&>()), float>);
static_assert(kRefused<decltype(2.0F * std::declval<RowMajor<float>&>()), const float>);

// Temporaries that own their memory.
static_assert(kRefused<RowMajor<float>, float>);
static_assert(kRefused<RowMajor<float>, const float>);
static_assert(kRefused<const RowMajor<float>, const float>);
static_assert(kRefused<RowMajorArray<float>, const float>);

static_assert(fastrope::Element<float> && fastrope::Element<double> &&
              fastrope::Element<fastrope::bfloat16> && fastrope::Element<fastrope::float16>);
static_assert(!fastrope::Element<int> && !fastrope::Element<const float>);

// as_tensor deduces the element type, const where the object is.
static_assert(std::is_same_v<decltype(as_tensor(std::declval<TensorView<float>>())), TensorView<float>>);
static_assert(
    std::is_same_v<decltype(as_tensor(std::declval<MatrixView<const float>>())), TensorView<const float>>);
static_assert(
    std::is_same_v<decltype(fastrope::as_tensor(std::declval<RowMajor<float>&>())), TensorView<float>>);
static_assert(std::is_same_v<decltype(fastrope::as_tensor(std::declval<const RowMajor<double>&>())),
                             TensorView<const double>>);
static_assert(std::is_same_v<fastrope::ElementOf<TensorView<const fastrope::bfloat16>>, fastrope::bfloat16>);
static_assert(std::is_same_v<fastrope::ElementOf<const RowMajor<float>&>, float>);
static_assert(fastrope::TensorLike<TensorView<float>&> &&
              fastrope::TensorLike<const MatrixView<const double>&> &&
              fastrope::TensorLike<RowMajor<float>&> &&
              fastrope::TensorLike<Eigen::Map<const RowMajor<float>>>);
static_assert(!fastrope::TensorLike<ColumnMajor&> && !fastrope::TensorLike<RowMajor<int>&> &&
              !fastrope::TensorLike<TensorView<const int>> && !fastrope::TensorLike<std::vector<float>&>);

TEST(MatrixView, ReadsByItsRowStride) {
  std::vector<float> data(20);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i);
  const MatrixView<float> m(data.data(), 3, 4, 6);
  EXPECT_EQ(m(2, 3), 15);
  EXPECT_EQ(m.row(1), data.data() + 6);
  m(0, 1) = -1;
  EXPECT_EQ(data[1], -1);
  const MatrixView<float> dense(data.data(), 3, 4);
  EXPECT_EQ(dense(2, 3), 11);
}

TEST(TensorView, SeesBothMemoryOrders) {
  constexpr Index heads = 3, rows = 4, cols = 5;
  std::vector<double> data(heads * rows * cols);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<double>(i);
  const TensorView<double> by_head = contiguous(data.data(), heads, rows, cols);
  const TensorView<double> by_row{data.data(), heads, rows, cols, cols, heads * cols};
  for (Index h = 0; h < heads; ++h) {
    for (Index i = 0; i < rows; ++i) {
      for (Index c = 0; c < cols; ++c) {
        EXPECT_EQ(by_head.head(h)(i, c), static_cast<double>((h * rows + i) * cols + c));
        EXPECT_EQ(by_row.head(h)(i, c), static_cast<double>((i * heads + h) * cols + c));
      }
    }
  }
  EXPECT_EQ(by_row.head(2).rows, rows);
  EXPECT_EQ(by_row.head(2).cols, cols);
}

TEST(TensorView, RowsAreThoseOfEveryHead) {
  std::vector<float> memory(5 * 2 * 3);  // [rows, heads, cols]
  const TensorView<float> all{memory.data(), 2, 5, 3, 3, 6};
  const TensorView<float> some = rows(all, {1, 4});
  EXPECT_EQ(some.heads, 2);
  EXPECT_EQ(some.rows, 3);
  EXPECT_EQ(some.cols, 3);
  for (Index h = 0; h < 2; ++h)
    for (Index i = 0; i < 3; ++i) EXPECT_EQ(some.head(h).row(i), all.head(h).row(i + 1));
  EXPECT_EQ(rows(all, {5, 5}).rows, 0);
}

TEST(TensorView, RowsThatDoNotExistAreNoShare) {
  const TensorView<float> all(nullptr, 2, 5, 3, 15, 3);
  EXPECT_EQ(rows(all, {7, 2}).rows, 0) << "no rows at all";
  EXPECT_EQ(error_of([&] { rows(all, {2, 6}); }), "rows 2 to 6 of a tensor that has 5");
  EXPECT_EQ(error_of([&] { rows(all, {-1, 2}); }), "rows -1 to 2 of a tensor that has 5");
}

TEST(TensorView, ContiguousStridesDoNotOverflow) {
  constexpr Index kLargest = std::numeric_limits<Index>::max();
  static_assert(fastrope::contiguous(static_cast<float*>(nullptr), 1, kLargest, kLargest).head_stride ==
                kLargest);
  static_assert(fastrope::contiguous(static_cast<float*>(nullptr), 2, 3, 4).head_stride == 12);
}

TEST(TensorView, AStrideOfZeroRepeats) {
  const std::vector<float> row{1, 2, 3};
  const TensorView<const float> repeated{row.data(), 2, 4, 3, 0, 0};
  for (Index h = 0; h < 2; ++h)
    for (Index i = 0; i < 4; ++i) EXPECT_EQ(repeated.head(h)(i, 2), 3);
}

TEST(TensorView, ADefaultOneIsEmpty) {
  constexpr TensorView<float> none;
  static_assert(none.data == nullptr && none.heads == 0 && none.rows == 0 && none.cols == 0);
  constexpr MatrixView<float> no_rows;
  static_assert(no_rows.data == nullptr && no_rows.rows == 0 && no_rows.cols == 0);
}

/// Every element of the view is the matrix's own.
template <class Matrix, class T>
void expect_same(Matrix&& m, const MatrixView<T>& view) {
  ASSERT_EQ(view.rows, m.rows());
  ASSERT_EQ(view.cols, m.cols());
  for (Index i = 0; i < view.rows; ++i)
    for (Index j = 0; j < view.cols; ++j) EXPECT_EQ(&view(i, j), &m.coeffRef(i, j));
}

TEST(MatrixView, SharesTheMemoryOfEigenObjects) {
  RowMajor<float> m = RowMajor<float>::Random(5, 7);
  expect_same(m, MatrixView<float>(m));
  expect_same(m, MatrixView<const float>(m));

  auto block = m.block(1, 2, 3, 4);
  expect_same(block, MatrixView<float>(block));
  expect_same(block, MatrixView<float>(m.block(1, 2, 3, 4)));

  Eigen::Map<RowMajor<float>, 0, Eigen::OuterStride<>> map(m.data(), 2, 3, Eigen::OuterStride<>(14));
  expect_same(map, MatrixView<float>(map));

  ColumnMajor columns = ColumnMajor::Random(4, 6);
  auto transposed = columns.transpose();
  expect_same(transposed, MatrixView<float>(transposed));

  Eigen::RowVectorXf vector = Eigen::RowVectorXf::Random(9);
  expect_same(vector, MatrixView<float>(vector));
}

TEST(TensorView, AMatrixIsOneHead) {
  RowMajor<double> m = RowMajor<double>::Random(3, 4);
  const TensorView<double> tensor = m;
  EXPECT_EQ(tensor.heads, 1);
  expect_same(m, tensor.head(0));
  const TensorView<const double> viewed = MatrixView<double>(m);
  EXPECT_EQ(viewed.heads, 1);
  EXPECT_EQ(&viewed.head(0)(2, 3), &m(2, 3));
}

}  // namespace
