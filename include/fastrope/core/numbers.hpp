// Numbers: a parameter that takes any list of numbers, std::vector<float>, a span of double or {0.5, 0.25},
// and keeps it in double. Characters and truth values are not numbers: a std::string is not a list of slopes.
#pragma once

#include <concepts>
#include <initializer_list>
#include <iterator>
#include <type_traits>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// One of the Ts.
template <class T, class... Ts>
concept OneOf = (std::same_as<T, Ts> || ...);

/// What converts to double and is meant as a number, as std::int8_t is, and char is not.
template <class T>
concept Number = std::convertible_to<T, double> &&
    !OneOf<std::remove_cvref_t<T>, bool, char, wchar_t, char8_t, char16_t, char32_t>;

}  // namespace detail

struct Numbers {
  std::vector<double> values;

  Numbers(std::initializer_list<double> list) : values(list) {}
  template <class T>
  requires(!detail::Number<T>) Numbers(std::initializer_list<T>)
  = delete;
  template <class Range>
  requires requires(const Range& r) {
    { *std::begin(r) } -> detail::Number;
    std::end(r);
  }
  Numbers(const Range& range) {
    for (const auto& x : range) values.push_back(static_cast<double>(x));
  }

  Index size() const { return static_cast<Index>(values.size()); }
};

}  // namespace fastrope::inline FASTROPE_TARGET
