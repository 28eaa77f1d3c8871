// Numbers: a parameter that takes any list of numbers, std::vector<float>, a span of double or {0.5, 0.25},
// and keeps it in double.
#pragma once

#include <concepts>
#include <initializer_list>
#include <iterator>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

struct Numbers {
  std::vector<double> values;

  Numbers(std::initializer_list<double> list) : values(list) {}
  template <class Range>
  requires requires(const Range& r) {
    { *std::begin(r) } -> std::convertible_to<double>;
    std::end(r);
  }
  Numbers(const Range& range) {
    for (const auto& x : range) values.push_back(static_cast<double>(x));
  }

  Index size() const { return static_cast<Index>(values.size()); }
};

}  // namespace fastrope::inline FASTROPE_TARGET
