// Monomials: the features of a polynomial of a dot product.
//
//     (q.k)^p = sum over |alpha| = p of (p! / alpha!) q^alpha k^alpha
// so P(q.k) of degree g is a sum over the multi-indices |alpha| <= g of d variables, C(d + g, g) of them
// (Alman & Song 2023, 2302.13214: this rank is optimal). Where later variables are small, high powers of them
// may be left out: a set is given by one limit for each variable, on the degree in that variable and all
// later ones together. Each monomial is its parent's, one degree lower, times one variable. The order is
// depth first, so that a parent comes before its children and the ancestors of a term form a stack.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The largest rank that a plan may have.
inline constexpr Index kMaxRank = Index{1} << 20;

/// The limits of all multi-indices |alpha| <= degree.
inline std::vector<int> simplex_limits(Index variables, int degree) {
  return std::vector<int>(static_cast<std::size_t>(variables), degree);
}

/// How many multi-indices alpha have alpha_l + alpha_(l+1) + ... <= limits[l] for every l: the rank of
/// MonomialSet(limits), exact below 2^53. Requires limits nonnegative and nonincreasing.
inline double rank_of(std::span<const int> limits) {
  // Of the variables from l on: how many of degree t, for t <= limits[l].
  std::vector<double> count{1};
  for (std::size_t l = limits.size(); l-- > 0;) {
    count.resize(static_cast<std::size_t>(limits[l]) + 1);
    for (std::size_t t = 1; t < count.size(); ++t) count[t] += count[t - 1];
  }
  double rank = 0;
  for (double c : count) rank += c;
  return rank;
}

/// Why a rank above kMaxRank is not attempted, with the figures. element_size: bytes of an element of the
/// state.
inline std::string rank_refusal(int degree, Index variables, double rank, Index d_v,
                                std::size_t element_size) {
  const double bytes = rank * static_cast<double>(d_v + 1) * static_cast<double>(element_size);
  return detail::message("degree ", degree, " in ", variables, " variables has rank ", rank, ", above ",
                         kMaxRank, ": a state of ", bytes, " bytes");
}

/// One multi-index: its parent's with `variable` raised by one.
struct Monomial {
  std::int32_t parent;
  std::int16_t variable;
  std::int16_t degree;
  double multinomial;  ///< degree! / alpha!
};

/// All multi-indices within limits, depth first; the first is the empty one (its parent is itself).
class MonomialSet {
 public:
  /// Requires limits nonnegative and nonincreasing, rank_of(limits) <= kMaxRank.
  explicit MonomialSet(std::span<const int> limits) : limits_(limits.begin(), limits.end()) {
    terms_.reserve(static_cast<std::size_t>(rank_of(limits)));
    terms_.push_back({0, 0, 0, 1.0});
    std::vector<int> degrees(limits.size());
    append_children(0, 0, 0, degrees);
  }

  Index rank() const { return static_cast<Index>(terms_.size()); }
  Index variables() const { return static_cast<Index>(limits_.size()); }
  int degree() const { return limits_.empty() ? 0 : limits_.front(); }
  std::span<const int> limits() const& { return limits_; }
  std::span<const Monomial> terms() const& { return terms_; }

 private:
  /// Terms grow in nondecreasing order of variable, so that each multi-index appears once. `first` is the
  /// parent's last variable and `exponent` its power; degrees[l]: its degree in the variables from l on.
  void append_children(std::int32_t parent, std::size_t first, int exponent, std::vector<int>& degrees) {
    const Monomial above = terms_[static_cast<std::size_t>(parent)];
    for (std::size_t variable = 0; variable < limits_.size(); ++variable) {
      if (degrees[variable] == limits_[variable]) return;  // binds this variable and all later ones
      if (variable < first) continue;
      for (std::size_t l = 0; l <= variable; ++l) ++degrees[l];
      const int degree = above.degree + 1;
      // alpha of `variable` is what the parent has of it, if it is the parent's last one, and one more.
      const int power = variable == first ? exponent + 1 : 1;
      terms_.push_back({parent, static_cast<std::int16_t>(variable), static_cast<std::int16_t>(degree),
                        above.multinomial * degree / power});
      append_children(static_cast<std::int32_t>(terms_.size()) - 1, variable, power, degrees);
      for (std::size_t l = 0; l <= variable; ++l) --degrees[l];
    }
  }

  std::vector<int> limits_;
  std::vector<Monomial> terms_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
