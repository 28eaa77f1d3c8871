// Row weights: scores of a row, as Scores::finish leaves them, become attention weights in place.
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/exp2.hpp"
#include "fastrope/exact/polynomial_weights.hpp"

namespace fastrope::inline FASTROPE_TARGET::detail {

/// 1/sum of a polynomial kernel's row; 0 where the row's output is (SoftmaxTotals::write).
template <class Real>
double inverse_of_sum(double sum) {
  return std::abs(sum) < static_cast<double>(std::numeric_limits<Real>::min()) ? 0 : 1 / sum;
}

/// x [count] *= factor, but what is 0 stays 0 even if factor is not finite: keys that are masked, rows
/// without one. Here and below, count is a multiple of the vector length.
template <class Real>
void scale_weights(Real factor, Real* x, Index count) {
  using namespace simd;
  for (Real* end = x + count; x < end; x += kLanes<Real>)
    store<Real>(if_equal(load(x), zero<Real>(), zero<Real>(), mul(load(x), set(factor))), x);
}

/// Scores x [count] become min(2^(x + shift), 1); those of -infinity 0, whatever the shift.
template <class Real>
void exp2_weights(Real shift, Real* x, Index count) {
  using namespace simd;
  const Vec<Real> masked = set(-std::numeric_limits<Real>::infinity());
  for (Real* end = x + count; x < end; x += kLanes<Real>) {
    const Vec<Real> weight = exp2_nonpositive<Real>(at_most(add(load(x), set(shift)), zero<Real>()));
    store<Real>(if_equal(load(x), masked, zero<Real>(), weight), x);
  }
}

/// sums [cols] += the columns of x [rows, cols], row stride `stride`, in the order of the rows.
template <class Real>
void add_columns(Index rows, Index cols, const Real* x, Index stride, double* sums) {
  using namespace simd;
  for (Index c = 0; c < cols; c += kLanes<double>) {
    Vec<double> sum = load(sums + c);
    for (Index r = 0; r < rows; ++r) sum = add(sum, load_as<double>(x + r * stride + c));
    store<double>(sum, sums + c);
  }
}

/// visit(x, n) for pieces of a row x [count] that are whole vectors; the last is a copy, padded with
/// -infinity.
template <class Real, class Visit>
void for_each_piece(Real* x, Index count, Visit&& visit) {
  const Index whole = round_down(count, simd::kLanes<Real>);
  visit(x, whole);
  if (whole == count) return;
  alignas(64) Real last[simd::kLanes<Real>];
  std::fill(std::copy(x + whole, x + count, last), std::end(last), -std::numeric_limits<Real>::infinity());
  visit(last, simd::kLanes<Real>);
  std::copy_n(last, count - whole, x + whole);
}

/// The sum of x [count].
template <class Real>
double sum_of(const Real* x, Index count) {
  using namespace simd;
  Vec<double> sums = zero<double>();
  Index j = 0;
  for (; j + kLanes<double> <= count; j += kLanes<double>) sums = add(sums, load_as<double>(x + j));
  double sum = reduce_add<double>(sums);
  for (; j < count; ++j) sum += static_cast<double>(x[j]);
  return sum;
}

/// x in Real; a finite number stays one.
template <class Real>
Real finite_as(double x) {
  constexpr double kMost = static_cast<double>(std::numeric_limits<Real>::max());
  return static_cast<Real>(std::isfinite(x) ? std::clamp(x, -kMost, kMost) : x);
}

/// Scores x [count] of a row become weights that add up to 1, or with the logit of a sink, base-2, to less.
template <class Real>
void normalise_exp2(double sink, Real* x, Index count) {
  // -infinity without a key and a sink, where all weights are 0.
  const Real top = std::max(simd::largest(x, count), finite_as<Real>(sink));
  for_each_piece(x, count, [&](Real* piece, Index n) { exp2_weights(-top, piece, n); });
  const double sum = sum_of(x, count) + std::exp2(sink - static_cast<double>(top));
  for_each_piece(x, count,
                 [&](Real* piece, Index n) { scale_weights(static_cast<Real>(1 / sum), piece, n); });
}

/// The same with a polynomial kernel.
template <class Real>
void normalise_polynomial(const PolynomialWeights<Real>& weights, Real* x, Index count) {
  for_each_piece(x, count, [&](Real* piece, Index n) { weights.of(piece, n); });
  const auto factor = finite_as<Real>(inverse_of_sum<Real>(sum_of(x, count)));
  for_each_piece(x, count, [&](Real* piece, Index n) { scale_weights(factor, piece, n); });
}

}  // namespace fastrope::inline FASTROPE_TARGET::detail
