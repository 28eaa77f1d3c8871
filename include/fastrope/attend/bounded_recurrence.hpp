// Bounded recurrence: softmax whose entries are promised to be bounded, by states in the place of a cache.
//
//     |P(x) - e^x| <= delta e^x for |x| <= radius   makes of weights e^x (1 + f), |f| <= delta, and
//     |out_P - out| <= 2 delta / (1 + sqrt(1 - delta^2)) max|V|    (certificate.hpp)
// for any number of tokens. With P as the kernel the recurrence is exact but for rounding, of which each row
// has a bound: row_bounds() is the sum of both. Gates multiply weights and change nothing of that.
#pragma once

#include <cmath>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/plan/certificate.hpp"
#include "fastrope/plan/exp_polynomial.hpp"
#include "fastrope/polynomial/recurrent.hpp"
#include "fastrope/problem/kernel.hpp"
#include "fastrope/problem/options.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// The polynomial that takes half of the tolerance; rounding has the rest. Throws Error as the recurrence.
inline ExpPolynomial bounded_exp(const Options& options, double radius) {
  if (!options.kernel.is_softmax())
    fail("a radius is of softmax: options.kernel is a polynomial of degree ", options.kernel.degree(),
         ", whose states need none");
  if (!(radius > 0) || !std::isfinite(radius))
    fail("the radius of a recurrence is a positive number, got ", radius);
  if (!(options.tolerance > 0) || !(options.tolerance < 1))
    fail("a recurrence of softmax approximates: options.tolerance must be between 0 and 1, got ",
         options.tolerance);
  return ExpPolynomial::fit(radius, allowed_relative_error(options.tolerance / 2, 1));
}

inline Options with_kernel(Options options, const ExpPolynomial& polynomial) {
  const auto c = polynomial.coefficients();
  options.kernel = Kernel::polynomial(std::vector<double>(c.begin(), c.end()), KernelSign::any);
  return options;
}

}  // namespace detail

template <class Real>
RecurrentAttention<Real>::RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v,
                                             const Options& options, double radius)
    : RecurrentAttention(heads, kv_heads, d, d_v,
                         detail::with_kernel(options, detail::bounded_exp(options, radius))) {
  radius_ = radius;
  approximation_ = output_error(detail::bounded_exp(options, radius).relative_error());
}

}  // namespace fastrope::inline FASTROPE_TARGET
