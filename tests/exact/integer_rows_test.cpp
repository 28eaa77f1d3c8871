// Scores by products of integers: as near to those of exact arithmetic as floats are.
#include "fastrope/exact/integer_rows.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fastrope/fastrope.hpp>
#include <limits>
#include <vector>

#include "support/inputs.hpp"
#include "support/stored_cache.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

constexpr double kU = 0x1p-24;

template <class T>
class IntegerRows : public testing::Test {
 protected:
  void SetUp() override {
    if (!simd::kIntegerProducts) GTEST_SKIP() << "no products of integers for " << simd::target_name();
  }

  /// Queries and keys, and pointers to the rows of these.
  struct Call {
    Tensor<float> q, numbers;
    StoredCache<T> k;
    std::vector<const std::byte*> keys = {};
    std::vector<IntegerQuery> integers = {};

    Call(Tensor<float> queries, const Tensor<float>& rows) : q(std::move(queries)), numbers(rows), k(rows) {
      refresh();
    }
    void refresh() {
      numbers = k.numbers();
      keys.clear();
      for (Index j = 0; j < kDecodeBlock; ++j)
        keys.push_back(reinterpret_cast<const std::byte*>(k.values.data() + j * blocks()));
      integers.resize(static_cast<std::size_t>(q.rows * blocks()));
      for (std::size_t i = 0; i < integers.size(); ++i) integers[i].assign(q.values.data() + 32 * i);
    }
    Index blocks() const { return q.cols / 32; }
    std::vector<float> scores(bool by_integers) {
      std::vector<float> to(static_cast<std::size_t>(q.rows * kDecodeBlock), NAN);
      detail::score_rows<float, T>(
          {q.rows, q.cols, q.values.data(), q.cols, by_integers ? integers.data() : nullptr}, keys.data(),
          {keys.data(), static_cast<Index>(sizeof(T)) / 2}, kDecodeBlock, to.data());
      return to;
    }
    /// The largest error over what it may be; what a score of [row, key] is off by.
    double share_of_bound() {
      const std::vector<float> out = scores(true);
      double share = 0;
      for (Index r = 0; r < q.rows; ++r)
        for (Index j = 0; j < kDecodeBlock; ++j) {
          double exact = 0, q_square = 0, k_square = 0;
          for (Index c = 0; c < q.cols; ++c) {
            const double x = q(0, r, c), y = numbers(0, j, c);
            exact += x * y;
            q_square += x * x;
            k_square += y * y;
          }
          const auto roundings = static_cast<double>(detail::integer_chain(q.cols));
          const double error =
              std::abs(static_cast<double>(out[static_cast<std::size_t>(r * kDecodeBlock + j)]) - exact);
          share = std::max(share, error / (kU * roundings * std::sqrt(q_square * k_square)));
        }
      return share;
    }
  };
};

using Blocks = testing::Types<Q8_0, Q4_0>;
TYPED_TEST_SUITE(IntegerRows, Blocks);

TYPED_TEST(IntegerRows, AreAsNearAsTheBoundSays) {
  Inputs random(1);
  double share = 0;
  for (const Index d : {32, 96, 128, 576})
    for (const Index rows : {1, 3, 8, 32}) {
      Tensor<float> q(1, rows, d), k(1, kDecodeBlock, d);
      for (float& x : q.values) x = static_cast<float>(random.normal());
      for (float& x : k.values) x = static_cast<float>(random.normal());
      share = std::max(share, typename TestFixture::Call(q, k).share_of_bound());
      // One column of a block so large that the others, which the keys are like, are lost.
      for (std::size_t i = 0; i < q.values.size(); ++i) q.values[i] = i % 32 == 0 ? 1.0F : 0.499F / 8355711;
      for (std::size_t i = 0; i < k.values.size(); ++i) k.values[i] = i % 32 == 0 ? 1e-3F : 1.0F;
      share = std::max(share, typename TestFixture::Call(q, k).share_of_bound());
      // All of one sign and size.
      std::fill(q.values.begin(), q.values.end(), 0.7F);
      std::fill(k.values.begin(), k.values.end(), 0.9F);
      share = std::max(share, typename TestFixture::Call(q, k).share_of_bound());
    }
  EXPECT_LE(share, 1);
  EXPECT_GT(share, 0.2) << "a bound that loose says nothing";
}

TYPED_TEST(IntegerRows, OfEndsOfTheRange) {
  // Integers of most size, where sums of bytes are largest.
  Tensor<float> q(1, 4, 64), k(1, kDecodeBlock, 64);
  for (const float sign : {1.0F, -1.0F}) {
    std::fill(q.values.begin(), q.values.end(), sign);
    std::fill(k.values.begin(), k.values.end(), -127.0F);
    EXPECT_LE(typename TestFixture::Call(q, k).share_of_bound(), 1);
  }
  for (const float size : {1e-30F, 1e-15F, 1e15F}) {
    Inputs random(2);
    for (float& x : q.values) x = size * static_cast<float>(random.normal());
    for (float& x : k.values) x = static_cast<float>(random.normal());
    typename TestFixture::Call call(q, k);
    EXPECT_EQ(call.integers[0].has_value(), size > 1e-18F);
    if (call.integers[0].has_value()) {
      EXPECT_LE(call.share_of_bound(), 1);
    }
  }
}

TYPED_TEST(IntegerRows, ZerosAreExact) {
  Tensor<float> q(1, 2, 32), k(1, kDecodeBlock, 32);
  std::fill(k.values.begin(), k.values.end(), 3.0F);
  typename TestFixture::Call call(q, k);
  EXPECT_THAT(call.scores(true), testing::Each(0.0F));
}

TYPED_TEST(IntegerRows, WhatIsNotFiniteIsLeftToFloats) {
  Inputs random(3);
  Tensor<float> q(1, 2, 64), k(1, kDecodeBlock, 64);
  for (float& x : q.values) x = static_cast<float>(random.normal());
  for (float& x : k.values) x = static_cast<float>(random.normal());
  constexpr float kEndless = std::numeric_limits<float>::infinity();
  for (const float scale : {kEndless, -kEndless, NAN}) {
    typename TestFixture::Call call(q, k);
    call.k.values[5].scale = scale;  // of key 2
    const std::vector<float> by_floats = call.scores(false), by_integers = call.scores(true);
    for (Index j = 0; j < kDecodeBlock; ++j) {
      const float a = by_floats[static_cast<std::size_t>(j)], b = by_integers[static_cast<std::size_t>(j)];
      EXPECT_EQ(std::isnan(a), std::isnan(b)) << j;
      if (!std::isnan(a)) {
        EXPECT_NEAR(a, b, 1e-4) << j;
      }
    }
  }
  for (const float x : {kEndless, -kEndless, NAN, 0x1p100F, 0x1p-100F}) {
    Tensor<float> wild = q;
    std::fill_n(wild.values.begin() + 32, 32, x);
    EXPECT_TRUE(typename TestFixture::Call(wild, k).integers[0].has_value());
    EXPECT_FALSE(typename TestFixture::Call(wild, k).integers[1].has_value()) << x;
  }
}

}  // namespace
}  // namespace fastrope_test
