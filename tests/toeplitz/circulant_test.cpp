#include "fastrope/toeplitz/circulant.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/core/workspace.hpp"

namespace fastrope {
namespace {

/// The caller's memory for one product, aligned, and random operands.
template <class Real>
struct Product {
  CirculantEmbedding<Real> embedding;
  std::vector<std::byte> memory;
  std::vector<Real> generator;     // [support]
  std::span<Real> x, y, spectrum;  // [N + 2], [N], [N + 2]

  Product(Index n_rows, Index n_cols, LagSupport support) : embedding(n_rows, n_cols, support) {
    Workspace counted;
    take(counted);
    memory.resize(counted.bytes());
    Workspace workspace(memory);
    take(workspace);
    generator.resize(static_cast<std::size_t>(support.size()));
    for (Real& value : generator) value = random_value();
    embedding.transform_generator(generator.data(), spectrum.data(), y.data());
  }
  Product(Index n_rows, Index n_cols) : Product(n_rows, n_cols, LagSupport::all(n_rows, n_cols)) {}

  void take(Workspace& workspace) {
    x = workspace.take<Real>(embedding.buffer_size());
    y = workspace.take<Real>(embedding.buffer_size());
    spectrum = workspace.take<Real>(embedding.buffer_size());
  }

  /// Random values in front, zeros behind.
  std::vector<Real> set_x(Index size) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<Index>(i) < size ? random_value() : Real(0);
    return {x.begin(), x.end()};
  }

  Real random_value() { return static_cast<Real>(std::normal_distribution()(random_)); }

  double entry(Index row, Index col) const {
    const Index lag = row - col, first = embedding.support().first;
    if (lag < first || lag > embedding.support().last) return 0;
    return static_cast<double>(generator[static_cast<std::size_t>(lag - first)]);
  }

  /// The bound that CirculantEmbedding promises.
  double bound(std::span<const Real> operand) const {
    double t = 0, x2 = 0;
    for (Real value : generator) t += static_cast<double>(value * value);
    for (Real value : operand) x2 += static_cast<double>(value * value);
    return 10 * std::numeric_limits<Real>::epsilon() *
           (1 + std::log2(static_cast<double>(embedding.length()))) * std::sqrt(t * x2);
  }

 private:
  std::mt19937 random_{11};
};

template <class Real>
class Circulant : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(Circulant, Reals);

TYPED_TEST(Circulant, SizesAreThoseOfTheShape) {
  const CirculantEmbedding<TypeParam> embedding(100, 30);
  EXPECT_EQ(embedding.n_rows(), 100);
  EXPECT_EQ(embedding.n_cols(), 30);
  EXPECT_EQ(embedding.support(), (LagSupport{-29, 99}));
  EXPECT_EQ(embedding.length(), 140);  // 129 at least
  EXPECT_EQ(embedding.buffer_size(), 142);
  // Fewer lags need less room: a lower triangle of few diagonals, two diagonals, the corners.
  EXPECT_EQ(CirculantEmbedding<TypeParam>(100, 100, {0, 7}).length(), 108);
  EXPECT_EQ(CirculantEmbedding<TypeParam>(100, 30, {0, 1}).length(), 100);
  EXPECT_EQ(CirculantEmbedding<TypeParam>(100, 100, {-99, -98}).length(), 200);
  EXPECT_THAT([] { CirculantEmbedding<TypeParam>(-1, 3); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("-1 x 3")));
}

/// Both products against their sums.
template <class Real>
void expect_sums(Product<Real>& p) {
  const Index rows = p.embedding.n_rows(), cols = p.embedding.n_cols();
  SCOPED_TRACE(testing::Message() << rows << " x " << cols << ", lags " << p.embedding.support().first
                                  << " to " << p.embedding.support().last);
  std::vector<Real> x = p.set_x(cols);
  const Real* y = p.embedding.multiply(p.spectrum.data(), p.x.data(), p.y.data());
  for (Index i = 0; i < rows; ++i) {
    double sum = 0;
    for (Index j = 0; j < cols; ++j)
      sum += p.entry(i, j) * static_cast<double>(x[static_cast<std::size_t>(j)]);
    ASSERT_NEAR(y[i], sum, p.bound(x)) << "row " << i;
  }
  x = p.set_x(rows);
  y = p.embedding.multiply_transpose(p.spectrum.data(), p.x.data(), p.y.data());
  for (Index j = 0; j < cols; ++j) {
    double sum = 0;
    for (Index i = 0; i < rows; ++i)
      sum += p.entry(i, j) * static_cast<double>(x[static_cast<std::size_t>(i)]);
    ASSERT_NEAR(y[j], sum, p.bound(x)) << "col " << j;
  }
}

TYPED_TEST(Circulant, BothProductsEqualTheSums) {
  for (const auto& [rows, cols] :
       {std::pair<Index, Index>{1, 1}, {1, 9}, {9, 1}, {8, 8}, {37, 90}, {90, 37}}) {
    Product<TypeParam> p(rows, cols);
    expect_sums(p);
  }
}

TYPED_TEST(Circulant, EverySupportOfASmallMatrixHasItsLength) {
  for (const auto& [rows, cols] : {std::pair<Index, Index>{1, 1}, {5, 5}, {4, 7}, {7, 4}})
    for (Index first = 1 - cols; first < rows; ++first)
      for (Index last = first; last < rows; ++last) {
        Product<TypeParam> p(rows, cols, {first, last});
        expect_sums(p);
      }
}

TYPED_TEST(Circulant, GeneratorSpectrumMayHaveAnyAlignment) {
  Product<TypeParam> p(50, 21);
  const std::vector<TypeParam> x = p.set_x(21);
  const TypeParam* aligned = p.embedding.multiply(p.spectrum.data(), p.x.data(), p.y.data());
  const std::vector<TypeParam> y(aligned, aligned + 50);
  std::vector<TypeParam> shifted(p.spectrum.size() + 1);
  std::copy(p.spectrum.begin(), p.spectrum.end(), shifted.begin() + 1);
  std::copy(x.begin(), x.end(), p.x.begin());
  const TypeParam* unaligned = p.embedding.multiply(shifted.data() + 1, p.x.data(), p.y.data());
  EXPECT_THAT(std::vector<TypeParam>(unaligned, unaligned + 50), testing::ElementsAreArray(y));
}

TYPED_TEST(Circulant, EmptyShapesHaveAUsableTransform) {
  for (const auto& [rows, cols] : {std::pair<Index, Index>{0, 0}, {0, 6}, {6, 0}}) {
    Product<TypeParam> p(rows, cols, {});
    p.set_x(0);
    const TypeParam* y = p.embedding.multiply(p.spectrum.data(), p.x.data(), p.y.data());
    EXPECT_THAT(std::vector<TypeParam>(y, y + p.embedding.length()), testing::Each(TypeParam(0)))
        << rows << " x " << cols;
  }
}

}  // namespace
}  // namespace fastrope
