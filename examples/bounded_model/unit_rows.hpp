// Rows of length 1, for queries and keys whose scores are bounded.
#pragma once

#include <cmath>

#include "../training/config.hpp"

namespace bounded_model {

using training::Index;

/// x = x / sqrt(|x|^2 + 1e-12) for the rows of a head, any expression of [tokens, d]; inverse: [tokens], what
/// they were multiplied by.
template <class Rows, class Inverse>
void make_unit(Rows&& x, Inverse&& inverse) {
  using Real = typename std::decay_t<Rows>::Scalar;
  for (Index i = 0; i < x.rows(); ++i) {
    inverse(i) = 1 / std::sqrt(x.row(i).squaredNorm() + Real(1e-12));
    x.row(i) *= inverse(i);
  }
}

/// d_x, that of the unit rows u, becomes that of the rows before:  (d_u - u (u . d_u)) / |x|.
template <class Rows, class Inverse, class DRows>
void make_unit_gradient(const Rows& u, const Inverse& inverse, DRows&& d_x) {
  for (Index i = 0; i < u.rows(); ++i)
    d_x.row(i) = inverse(i) * (d_x.row(i) - u.row(i).dot(d_x.row(i)) * u.row(i)).eval();
}

}  // namespace bounded_model
