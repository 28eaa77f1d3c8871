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
  using Complex = std::complex<Real>;

  CirculantEmbedding<Real> embedding;
  std::vector<std::byte> memory;
  std::vector<Real> generator;           // [n_rows + n_cols - 1]
  std::span<Real> x, y;                  // [N]
  std::span<Complex> spectrum, scratch;  // [N/2 + 1]

  Product(Index n_rows, Index n_cols) : embedding(n_rows, n_cols) {
    Workspace counted;
    take(counted);
    memory.resize(counted.bytes());
    Workspace workspace(memory);
    take(workspace);
    generator.resize(static_cast<std::size_t>(embedding.generator_size(n_rows, n_cols)));
    for (Real& value : generator) value = random_value();
    embedding.transform_generator(generator.data(), x.data(), spectrum.data());
  }

  void take(Workspace& workspace) {
    x = workspace.take<Real>(embedding.length());
    y = workspace.take<Real>(embedding.length());
    spectrum = workspace.take<Complex>(embedding.spectrum_size());
    scratch = workspace.take<Complex>(embedding.spectrum_size());
  }

  /// Random values in front, zeros behind.
  void set_x(Index size) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<Index>(i) < size ? random_value() : Real(0);
  }

  Real random_value() { return static_cast<Real>(std::normal_distribution()(random_)); }

  double entry(Index row, Index col) const {
    return static_cast<double>(generator[static_cast<std::size_t>(row - col + embedding.n_cols() - 1)]);
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
  EXPECT_EQ(embedding.generator_size(100, 30), 129);
  EXPECT_EQ(embedding.length(), 140);
  EXPECT_EQ(embedding.spectrum_size(), 71);
  EXPECT_EQ(embedding.generator_size(0, 0), 0);
  EXPECT_THAT([] { CirculantEmbedding<TypeParam>(-1, 3); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("-1 x 3")));
}

TYPED_TEST(Circulant, BothProductsEqualTheSumsAndKeepX) {
  for (const auto& [rows, cols] :
       {std::pair<Index, Index>{1, 1}, {1, 9}, {9, 1}, {8, 8}, {37, 90}, {90, 37}}) {
    Product<TypeParam> p(rows, cols);

    p.set_x(cols);
    const std::vector<TypeParam> x(p.x.begin(), p.x.end());
    p.embedding.multiply(p.spectrum.data(), p.x.data(), p.y.data(), p.scratch.data());
    EXPECT_THAT(p.x, testing::ElementsAreArray(x));
    for (Index i = 0; i < rows; ++i) {
      double sum = 0;
      for (Index j = 0; j < cols; ++j)
        sum += p.entry(i, j) * static_cast<double>(x[static_cast<std::size_t>(j)]);
      EXPECT_NEAR(p.y[static_cast<std::size_t>(i)], sum, p.bound(x))
          << rows << " x " << cols << ", row " << i;
    }

    p.set_x(rows);
    p.embedding.multiply_transpose(p.spectrum.data(), p.x.data(), p.y.data(), p.scratch.data());
    for (Index j = 0; j < cols; ++j) {
      double sum = 0;
      for (Index i = 0; i < rows; ++i) {
        sum += p.entry(i, j) * static_cast<double>(p.x[static_cast<std::size_t>(i)]);
      }
      EXPECT_NEAR(p.y[static_cast<std::size_t>(j)], sum, p.bound(p.x))
          << rows << " x " << cols << ", col " << j;
    }
  }
}

TYPED_TEST(Circulant, ResultMayOverwriteX) {
  Product<TypeParam> p(50, 21);
  p.set_x(21);
  p.embedding.multiply(p.spectrum.data(), p.x.data(), p.y.data(), p.scratch.data());
  p.embedding.multiply(p.spectrum.data(), p.x.data(), p.x.data(), p.scratch.data());
  EXPECT_THAT(p.x, testing::ElementsAreArray(p.y));
}

TYPED_TEST(Circulant, GeneratorSpectrumMayHaveAnyAlignment) {
  Product<TypeParam> p(50, 21);
  p.set_x(21);
  p.embedding.multiply(p.spectrum.data(), p.x.data(), p.y.data(), p.scratch.data());
  std::vector<std::complex<TypeParam>> shifted(p.spectrum.size() + 1);
  std::copy(p.spectrum.begin(), p.spectrum.end(), shifted.begin() + 1);
  p.embedding.multiply(shifted.data() + 1, p.x.data(), p.x.data(), p.scratch.data());
  EXPECT_THAT(p.x, testing::Pointwise(testing::DoubleNear(p.bound(p.y)), p.y));
}

TYPED_TEST(Circulant, EmptyShapesHaveAUsableTransform) {
  for (const auto& [rows, cols] : {std::pair<Index, Index>{0, 0}, {0, 6}, {6, 0}}) {
    Product<TypeParam> p(rows, cols);
    p.set_x(0);
    p.embedding.multiply(p.spectrum.data(), p.x.data(), p.y.data(), p.scratch.data());
    EXPECT_THAT(p.y, testing::Each(TypeParam(0))) << rows << " x " << cols;
  }
}

}  // namespace
}  // namespace fastrope
