// Distances between tensors of any element types, taken in double. A NaN on either side counts as infinitely
// far, so that a bound on the distance also says that there is none.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "support/tensor.hpp"

namespace fastrope_test {

/// max |x|.
template <class T>
double max_abs(const TensorView<T>& x) {
  double largest = 0;
  for (Index h = 0; h < x.heads; ++h)
    for (Index i = 0; i < x.rows; ++i)
      for (Index c = 0; c < x.cols; ++c)
        largest = std::max(largest, std::abs(static_cast<double>(x.head(h)(i, c))));
  return largest;
}

/// |a - b|; equal infinities are 0 apart, NaN is infinitely far from everything.
inline double distance(double a, double b) {
  if (a == b) return 0;
  const double difference = std::abs(a - b);
  return std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
}

/// max |a - b|. Throws where shapes differ.
template <class A, class B>
double max_abs_difference(const TensorView<A>& a, const TensorView<B>& b) {
  if (a.heads != b.heads || a.rows != b.rows || a.cols != b.cols)
    throw std::logic_error("max_abs_difference: shapes differ");
  double largest = 0;
  for (Index h = 0; h < a.heads; ++h)
    for (Index i = 0; i < a.rows; ++i)
      for (Index c = 0; c < a.cols; ++c)
        largest = std::max(
            largest, distance(static_cast<double>(a.head(h)(i, c)), static_cast<double>(b.head(h)(i, c))));
  return largest;
}

/// max |a - b| / max |b|: the library's measure of an output's error when b is v. Requires max |b| > 0.
template <class A, class B>
double max_relative_difference(const TensorView<A>& a, const TensorView<B>& b) {
  return max_abs_difference(a, b) / max_abs(b);
}

}  // namespace fastrope_test
