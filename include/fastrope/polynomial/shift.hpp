// Shift: exact transformations that make the entries small before a polynomial replaces the exponential.
//
// For any mu and nu (vectors in the space of rotated queries and keys),
//     s q.k = s q.mu + s nu.(k - mu) + s (q - nu).(k - mu),
// where the first term is common to a row and cancels in the softmax, the second is a positive weight e^(..)
// per key, and only the third has to be small: |x'| <= R = |s| max|q - nu| max|k - mu|. No approximation is
// made here.
#pragma once

#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/exact/exp2.hpp"
#include "fastrope/exact/packing.hpp"

namespace fastrope {

/// The transformations of one query head.
struct Shift {
  std::vector<double> key_shift;    ///< mu, [d]
  std::vector<double> query_shift;  ///< nu, [d]
  double weight_max = 0;  ///< at least max_j s nu.(k_j - mu), taken out of every weight: common to all rows
  double balance = 1;     ///< queries are multiplied and keys divided by it, so that both have norm sqrt(R)
  double radius = 0;      ///< R, with an allowance for the rounding of rotated rows
};

/// x [d, width] = (k - mu) / balance and weight [width] = e^(s nu.(k - mu) - weight_max) for the keys of one
/// panel [d, width], of which the first `count` are keys and the rest padding with weight 0.
template <class Real>
void shift_keys(const Shift& shift, double scale, const Real* panel, Index width, Index count, Real* x,
                Real* weight) {
  using namespace simd;
  constexpr Index kStep = kLanes<Real>;
  const Vec<Real> inverse_balance = set(static_cast<Real>(1 / shift.balance));
  for (Index i = 0; i < width; i += kStep)
    store<Real>(set(static_cast<Real>(-shift.weight_max * kLog2E)), weight + i);
  for (std::size_t c = 0; c < shift.key_shift.size(); ++c) {
    const Index column = static_cast<Index>(c) * width;
    const Vec<Real> mu = set(static_cast<Real>(shift.key_shift[c]));
    const Vec<Real> nu = set(static_cast<Real>(scale * kLog2E * shift.query_shift[c]));
    for (Index i = 0; i < width; i += kStep) {
      const Vec<Real> shifted = sub(load(panel + column + i), mu);
      store<Real>(fma(nu, shifted, load(weight + i)), weight + i);
      store<Real>(mul(shifted, inverse_balance), x + column + i);
    }
  }
  for (Index i = 0; i < width; i += kStep) store<Real>(exp2_nonpositive<Real>(load(weight + i)), weight + i);
  for (Index i = count; i < width; ++i) weight[i] = 0;
}

/// x [d, width] = balance s (q - nu) and row_factor [width] = log2 of e^(s q.mu + weight_max), which the
/// row's sums are to be multiplied by, from a panel [d, width] of s log2(e) q.
template <class Real>
void shift_queries(const Shift& shift, double scale, const Real* panel, Index width, Real* x,
                   Real* row_factor) {
  using namespace simd;
  constexpr Index kStep = kLanes<Real>;
  const Vec<Real> gain = set(static_cast<Real>(shift.balance / kLog2E));
  for (Index i = 0; i < width; i += kStep)
    store<Real>(set(static_cast<Real>(shift.weight_max * kLog2E)), row_factor + i);
  for (std::size_t c = 0; c < shift.key_shift.size(); ++c) {
    const Index column = static_cast<Index>(c) * width;
    const Vec<Real> mu = set(static_cast<Real>(shift.key_shift[c]));
    const Vec<Real> nu = set(static_cast<Real>(-scale * shift.balance * shift.query_shift[c]));
    for (Index i = 0; i < width; i += kStep) {
      const Vec<Real> q = load(panel + column + i);
      store<Real>(fma(q, mu, load(row_factor + i)), row_factor + i);
      store<Real>(fma(q, gain, nu), x + column + i);
    }
  }
}

}  // namespace fastrope
