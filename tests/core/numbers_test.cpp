#include "fastrope/core/numbers.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <list>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace {

using fastrope::Numbers;

std::vector<double> values_of(const Numbers& numbers) { return numbers.values; }

TEST(Numbers, TakesAnyListOfNumbers) {
  const std::vector<double> expected{0.5, -0.25, 3};
  const std::vector<float> floats{0.5F, -0.25F, 3};
  const std::array<double, 3> doubles{0.5, -0.25, 3};
  const double plain[] = {0.5, -0.25, 3};
  EXPECT_EQ(values_of({0.5, -0.25, 3}), expected);
  EXPECT_EQ(values_of(floats), expected);
  EXPECT_EQ(values_of(doubles), expected);
  EXPECT_EQ(values_of(plain), expected);
  EXPECT_EQ(values_of(std::span<const float>(floats)), expected);
  EXPECT_EQ(values_of(std::list<long double>{0.5L, -0.25L, 3}), expected);
  EXPECT_EQ(values_of(std::vector<int>{1, 2}), (std::vector<double>{1, 2}));
}

TEST(Numbers, MayBeEmpty) {
  EXPECT_EQ(Numbers({}).size(), 0);
  EXPECT_EQ(Numbers(std::vector<float>{}).size(), 0);
  EXPECT_EQ(Numbers({1.0, 2.0}).size(), 2);
}

TEST(Numbers, TakesNothingElse) {
  static_assert(std::is_convertible_v<std::vector<float>, Numbers>);
  static_assert(!std::is_convertible_v<double, Numbers>);
  static_assert(!std::is_convertible_v<std::vector<std::string>, Numbers>);
  static_assert(!std::is_convertible_v<const float*, Numbers>);
}

template <class T>
concept MakesNumbersOfTwo = requires(T x) {
  Numbers({x, x});
};

TEST(Numbers, AreNoCharactersOrTruthValues) {
  static_assert(!std::is_constructible_v<Numbers, std::string>);
  static_assert(!std::is_constructible_v<Numbers, std::u8string>);
  static_assert(!std::is_constructible_v<Numbers, std::wstring_view>);
  static_assert(!std::is_constructible_v<Numbers, const char(&)[4]>);
  static_assert(!std::is_constructible_v<Numbers, std::vector<bool>>);
  static_assert(!std::is_constructible_v<Numbers, std::array<bool, 2>>);
  static_assert(!MakesNumbersOfTwo<char> && !MakesNumbersOfTwo<bool> && !MakesNumbersOfTwo<char32_t>);
  static_assert(MakesNumbersOfTwo<float> && MakesNumbersOfTwo<double>);
  EXPECT_EQ(values_of(std::vector<std::int8_t>{1, -2}), (std::vector<double>{1, -2})) << "numbers of 8 bits";
}

}  // namespace
