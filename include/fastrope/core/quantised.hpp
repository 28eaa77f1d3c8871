// Quantised storage: what keys and values may be kept in beside the elements of storage.hpp and float8.hpp,
// blocks of 32 numbers with one scale. Their layouts are those of ggml's block_q8_0 and block_q4_0, so that
// its caches may be read as these.
//
// Products of a value and a scale are exact in float: attention sees the numbers that are stored.
// core/quantize.hpp makes them.
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include "fastrope/core/float8.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/storage.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// 32 numbers in 34 bytes: number j is values[j] scale.
struct Q8_0 {
  static constexpr Index kElements = 32;
  float16 scale;
  std::int8_t values[kElements] = {};
};

/// 32 numbers in 18 bytes: number j is (n - 8) scale, n the low half of nibbles[j] for j < 16, else the high
/// half of nibbles[j - 16].
struct Q4_0 {
  static constexpr Index kElements = 32;
  float16 scale;
  std::uint8_t nibbles[kElements / 2] = {};
};

static_assert(sizeof(Q8_0) == 34 && sizeof(Q4_0) == 18 && alignof(Q8_0) == 2 && alignof(Q4_0) == 2);

/// Numbers that a T in memory stands for.
template <class T>
inline constexpr Index kElementsOf = 1;
template <class T>
requires requires { T::kElements; }
inline constexpr Index kElementsOf<T> = T::kElements;

/// Ts that hold `count` numbers of a row; the last may be a part of one.
template <class T>
constexpr Index blocks_of(Index count) {
  return count / kElementsOf<T> + (count % kElementsOf<T> != 0 ? 1 : 0);
}

/// Storage types of k and v.
template <class T>
concept CacheElement = Element<T> || std::same_as<T, std::int8_t> || std::same_as<T, float8_e4m3> ||
    std::same_as<T, float8_e5m2> || std::same_as<T, Q8_0> || std::same_as<T, Q4_0>;

}  // namespace fastrope::inline FASTROPE_TARGET
