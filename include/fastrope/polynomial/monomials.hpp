// Monomials: the features of a polynomial of a dot product.
//
//     (q.k)^p = sum over |alpha| = p of (p! / alpha!) q^alpha k^alpha
// so P(q.k) of degree g is a sum over the multi-indices |alpha| <= g of d variables: rank r = C(d + g, g)
// features
//     phi_alpha(x) = sqrt(p! / alpha!) x^alpha,  P(q.k) = sum_alpha c_|alpha| phi_alpha(q) phi_alpha(k),
// and the features of degree p have |phi_p(x)| = |x|^p. Each is its parent's, one degree lower, times one
// variable and a constant. The order is depth first, so that a parent comes before its children and the
// ancestors of a term form a stack. (Alman & Song 2023, 2302.13214: this rank is optimal.)
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"

namespace fastrope {

/// The largest rank that a plan may have.
inline constexpr Index kMaxRank = Index{1} << 20;

/// C(variables + degree, degree), or nothing where it exceeds kMaxRank.
inline std::optional<Index> simplex_rank(Index variables, int degree) {
  Index rank = 1;
  for (Index p = 1; p <= degree; ++p) {
    rank = rank * (variables + p) /
           p;  // exact: a product of p consecutive numbers; below 2^20 * (variables + p)
    if (rank > kMaxRank) return std::nullopt;
  }
  return rank;
}

/// One multi-index: its parent's with `variable` raised by one.
struct Monomial {
  std::int32_t parent;
  std::int32_t variable;
  std::int32_t degree;
  double ratio;  ///< sqrt(degree / exponent of `variable`): phi = ratio * phi_parent * x_variable
};

/// All multi-indices |alpha| <= degree, depth first; the first is the empty one (its parent is itself).
class MonomialSet {
 public:
  /// Requires simplex_rank(variables, degree).
  MonomialSet(Index variables, int degree) : variables_(variables), degree_(degree) {
    terms_.reserve(static_cast<std::size_t>(*simplex_rank(variables, degree)));
    terms_.push_back({0, 0, 0, 1.0});
    append_children(0, 0, 0);
  }

  Index rank() const { return static_cast<Index>(terms_.size()); }
  Index variables() const { return variables_; }
  int degree() const { return degree_; }
  std::span<const Monomial> terms() const { return terms_; }

 private:
  /// Terms grow in nondecreasing order of variable, so that each multi-index appears once. `exponent` is that
  /// of the parent's last variable, `first`.
  void append_children(std::int32_t parent, std::int32_t first, std::int32_t exponent) {
    const std::int32_t degree = terms_[static_cast<std::size_t>(parent)].degree + 1;
    if (degree > degree_) return;
    for (std::int32_t variable = first; variable < variables_; ++variable) {
      const std::int32_t power = variable == first ? exponent + 1 : 1;
      terms_.push_back(
          {parent, variable, degree, std::sqrt(static_cast<double>(degree) / static_cast<double>(power))});
      append_children(static_cast<std::int32_t>(terms_.size()) - 1, variable, power);
    }
  }

  Index variables_;
  int degree_;
  std::vector<Monomial> terms_;
};

}  // namespace fastrope
