// Elementwise products of vectors, which may be one and the same.
#pragma once

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET::detail {

/// to = x o y, [count] each.
template <class Real>
void multiply_elements(const Real* x, const Real* y, Index count, Real* to) {
  using namespace simd;
  Index i = 0;
  for (; i + kLanes<Real> <= count; i += kLanes<Real>) store<Real>(mul(load(x + i), load(y + i)), to + i);
  for (; i < count; ++i) to[i] = x[i] * y[i];
}

/// to += x o y, [count] each: products in Real, sums in Sum, Real or double.
template <class Real, class Sum>
void add_products(const Real* x, const Real* y, Index count, Sum* to) {
  using namespace simd;
  constexpr Index kStep = kLanes<Real>;
  alignas(64) Real product[kStep];
  Index i = 0;
  for (; i + kStep <= count; i += kStep) {
    store<Real>(mul(load(x + i), load(y + i)), product);
    for (Index l = 0; l < kStep; l += kLanes<Sum>)
      store<Sum>(add(load(to + i + l), load_as<Sum>(product + l)), to + i + l);
  }
  for (; i < count; ++i) to[i] += static_cast<Sum>(x[i] * y[i]);
}

}  // namespace fastrope::inline FASTROPE_TARGET::detail
