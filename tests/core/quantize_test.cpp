#include "fastrope/core/quantize.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "fastrope/core/stored_rows.hpp"
#include "support/error_of.hpp"

namespace fastrope {
namespace {

using fastrope_test::error_of;

constexpr std::size_t kBlockCount = 32;

float block_number(const Q8_0& block, std::size_t j) {
  return static_cast<float>(block.values[j]) * static_cast<float>(block.scale);
}
float block_number(const Q4_0& block, std::size_t j) {
  const int n = j < 16 ? block.nibbles[j] & 15 : block.nibbles[j - 16] >> 4;
  return static_cast<float>(n - 8) * static_cast<float>(block.scale);
}

/// A block as its format has it, in double: exact where the scale is a float16.
Q8_0 by_definition(Q8_0, const std::vector<float>& x) {
  double most = 0;
  for (const float y : x) most = std::max(most, std::abs(static_cast<double>(y)));
  const double scale = most / 127;
  Q8_0 block;
  block.scale = static_cast<float>(scale);
  for (std::size_t j = 0; j < kBlockCount; ++j)
    block.values[j] = static_cast<std::int8_t>(scale == 0 ? 0 : std::round(x[j] / scale));
  return block;
}
Q4_0 by_definition(Q4_0, const std::vector<float>& x) {
  double most = 0;
  for (const float y : x)
    if (std::abs(static_cast<double>(y)) > std::abs(most)) most = y;
  const double scale = most / -8;
  Q4_0 block;
  block.scale = static_cast<float>(scale);
  for (std::size_t j = 0; j < kBlockCount; ++j) {
    const int n = std::min(15, static_cast<int>((scale == 0 ? 0 : x[j] / scale) + 8.5));
    block.nibbles[j % 16] = static_cast<std::uint8_t>(block.nibbles[j % 16] | (j < 16 ? n : n << 4));
  }
  return block;
}

template <class T>
T quantized(const std::vector<float>& x) {
  std::vector<T> block(1);
  quantize(x, block);
  return block.front();
}
template <class T>
void expect_same_bytes(const T& a, const T& b) {
  EXPECT_EQ(std::memcmp(&a, &b, sizeof(T)), 0);
}

template <class T>
class Blocks : public testing::Test {
 protected:
  static constexpr int kMost = std::is_same_v<T, Q8_0> ? 127 : 8;
};
using BlockTypes = testing::Types<Q8_0, Q4_0>;
TYPED_TEST_SUITE(Blocks, BlockTypes);

TYPED_TEST(Blocks, AreThoseOfTheFormatWhereScalesAreExact) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    // Quarters of a power of two: also halves between two numbers that are stored.
    const float scale = std::ldexp(1.0F, static_cast<int>(random() % 24) - 14);
    std::vector<float> x;
    for (std::size_t j = 0; j < kBlockCount; ++j)
      x.push_back(scale / 4 *
                  static_cast<float>(static_cast<int>(random() % (8 * this->kMost + 1)) - 4 * this->kMost));
    // Not a half, but with a half it would round to 1.
    if (std::is_same_v<TypeParam, Q8_0> && i % 3 == 1) x[5] = scale * 0x1.fffffep-2F;
    x[random() % kBlockCount] = (i % 2 == 0 ? scale : -scale) * this->kMost;
    if (i % 3 == 0) x[random() % kBlockCount] = scale * this->kMost;
    expect_same_bytes(quantized<TypeParam>(x), by_definition(TypeParam{}, x));
  }
}

TYPED_TEST(Blocks, OfZerosAndOfNumbersThatNoScaleIsSmallEnoughFor) {
  const std::vector<float> zeros(kBlockCount);
  expect_same_bytes(quantized<TypeParam>(zeros), by_definition(TypeParam{}, zeros));
  for (const float tiny : {1e-7F, 1e-38F, 1e-45F}) {
    std::vector<float> x(kBlockCount, -tiny);
    const TypeParam block = quantized<TypeParam>(x);
    for (std::size_t j = 0; j < kBlockCount; ++j) EXPECT_EQ(block_number(block, j), 0) << tiny;
  }
}

TYPED_TEST(Blocks, NumbersAreNear) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (const float size : {1e-2F, 1.0F, 300.0F})
    for (int i = 0; i < 200; ++i) {
      std::vector<float> x(kBlockCount);
      for (float& y : x) y = size * normal(random);
      const TypeParam block = quantized<TypeParam>(x);
      // Half a scale, a whole one at the end that Q4_0 lacks, and 2^-11 of the number where the scale was
      // rounded.
      const float scale = std::abs(static_cast<float>(block.scale));
      const float most =
          *std::max_element(x.begin(), x.end(), [](float a, float b) { return std::abs(a) < std::abs(b); });
      for (std::size_t j = 0; j < kBlockCount; ++j) {
        const bool beyond =
            std::is_same_v<TypeParam, Q4_0> && (x[j] < 0) != (most < 0) && std::abs(x[j]) > 7 * scale;
        EXPECT_LE(std::abs(block_number(block, j) - x[j]),
                  scale * (beyond ? 1.01F : 0.5F) + 0x1.1p-11F * this->kMost * scale);
      }
    }
}

TYPED_TEST(Blocks, BeyondTheRangeNumbersBecomeTheLargest) {
  std::vector<float> x(kBlockCount, 1.0F);
  x[3] = -3e38F;
  x[20] = 3e38F;
  const TypeParam block = quantized<TypeParam>(x);
  EXPECT_EQ(block_number(block, 3), -65504.0F * this->kMost);
  EXPECT_EQ(block_number(block, 20), 65504.0F * (std::is_same_v<TypeParam, Q4_0> ? 7 : 127));
  EXPECT_EQ(block_number(block, 0), 0);
}

TYPED_TEST(Blocks, RefuseWhatIsNotFinite) {
  for (const float bad : {NAN, INFINITY, -INFINITY})
    for (const std::size_t at : {0U, 31U, 40U}) {
      std::vector<float> x(2 * kBlockCount, 1.0F);
      x[at] = bad;
      std::vector<TypeParam> blocks(2);
      const std::string error = error_of([&] { quantize(x, blocks); });
      EXPECT_NE(error.find("number " + std::to_string(at) + " is "), std::string::npos) << error;
    }
}

TYPED_TEST(Blocks, RefuseOtherLengths) {
  std::vector<float> x(kBlockCount + 1);
  std::vector<TypeParam> block(1);
  EXPECT_EQ(error_of([&] { quantize(x, block); }), "there are 33 floats for 1 elements of 32");
  EXPECT_EQ(error_of([&] { dequantize(block, x); }), "there are 33 floats for 1 elements of 32");
  EXPECT_EQ(error_of([&] { quantize({}, std::span<TypeParam>()); }), "no Error");
}

/// Any bytes, read in both arithmetics, as rows and from any block on.
TYPED_TEST(Blocks, AnyBytesAreNumbers) {
  std::mt19937 random(3);
  constexpr std::size_t kBlocks = 5;
  for (int i = 0; i < 300; ++i) {
    std::vector<TypeParam> blocks(kBlocks);
    std::vector<std::uint8_t> bytes(sizeof(TypeParam) * kBlocks);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
    std::memcpy(blocks.data(), bytes.data(), bytes.size());
    std::vector<float> floats(kBlocks * kBlockCount);
    std::vector<double> doubles(floats.size());
    dequantize(blocks, floats);
    const StoredRows rows = contiguous(std::as_const(blocks).data(), 1, 1, std::ssize(floats));
    rows.head(0).read(0, rows.cols, doubles.data());
    for (std::size_t j = 0; j < floats.size(); ++j) {
      const float expected = block_number(blocks[j / kBlockCount], j % kBlockCount);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(floats[j]) && std::isnan(doubles[j]));
      } else {
        ASSERT_EQ(floats[j], expected);
        ASSERT_EQ(doubles[j], static_cast<double>(expected));
      }
    }
    Index seen = 0;
    rows.head(0).for_each_piece<double>(0, rows.cols, [&](Index c, const double* x, Index count) {
      EXPECT_EQ(c, seen);
      for (Index m = 0; m < count; ++m)
        ASSERT_EQ(std::bit_cast<std::uint64_t>(x[m]),
                  std::bit_cast<std::uint64_t>(doubles[static_cast<std::size_t>(c + m)]));
      seen += count;
    });
    EXPECT_EQ(seen, rows.cols);
  }
}

TYPED_TEST(Blocks, StridesCountBlocks) {
  std::vector<TypeParam> blocks(2 * 3 * 2);
  for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i].scale = static_cast<float>(i);
  const auto view = contiguous(blocks.data(), 2, 3, 64);
  EXPECT_EQ(view.row_stride, 2);
  EXPECT_EQ(view.head_stride, 6);
  EXPECT_EQ(view.head(1).row(2), &blocks[10]);
  EXPECT_EQ(MatrixView<TypeParam>(blocks.data(), 3, 64).row(2), &blocks[4]);
  const StoredRows rows(view);
  EXPECT_EQ(rows.head(1).row(2), reinterpret_cast<const std::byte*>(&blocks[10]));
  EXPECT_EQ(rows.type->bytes_of(64), 2 * Index{sizeof(TypeParam)});
  EXPECT_EQ(error_of([&] { rows.require_blocks("k"); }), "no Error");
  EXPECT_EQ(error_of([&] { StoredRows(contiguous(blocks.data(), 2, 3, 48)).require_blocks("k"); }),
            "k has rows of 48 numbers, which are not whole blocks of 32");
}

}  // namespace
}  // namespace fastrope
