// Monomials: the features of a polynomial of a dot product.
//
//     (q.k)^p = sum over |alpha| = p of (p! / alpha!) q^alpha k^alpha
// so P(q.k) of degree g is a sum over the multi-indices |alpha| <= g of d variables, C(d + g, g) of them
// (Alman & Song 2023, 2302.13214: this rank is optimal), and a power alone over those of |alpha| = g,
// C(d + g - 1, g). Where later variables are small, high powers of them
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

/// Which of the multi-indices within limits a set has.
enum class Degrees {
  all,
  highest,  ///< |alpha| = limits[0] alone: a homogeneous set
};

/// How many multi-indices alpha have alpha_l + alpha_(l+1) + ... <= limits[l] for every l: the rank of
/// MonomialSet(limits, degrees), exact below 2^53. Requires limits nonnegative and nonincreasing.
inline double rank_of(std::span<const int> limits, Degrees degrees = Degrees::all) {
  // Of the variables from l on: how many of degree t, for t <= limits[l].
  std::vector<double> count{1};
  for (std::size_t l = limits.size(); l-- > 0;) {
    count.resize(static_cast<std::size_t>(limits[l]) + 1);
    for (std::size_t t = 1; t < count.size(); ++t) count[t] += count[t - 1];
  }
  if (degrees == Degrees::highest) return count.back();
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

/// All multi-indices within limits, depth first; the first is the empty one (its parent is itself). Of a
/// homogeneous set those of lower degrees are no terms, but inner monomials that only lead to them: the
/// parents of terms, and of each other.
class MonomialSet {
 public:
  /// Requires limits nonnegative and nonincreasing, rank_of(limits, degrees) <= kMaxRank.
  explicit MonomialSet(std::span<const int> limits, Degrees degrees = Degrees::all)
      : limits_(limits.begin(), limits.end()), lowest_(degrees == Degrees::highest ? degree() : 0) {
    terms_.reserve(static_cast<std::size_t>(rank_of(limits, degrees)));
    std::vector<int> of_suffix(limits.size());
    append_children(append({0, 0, 0, 1.0}), 0, 0, of_suffix);
  }

  Index rank() const { return static_cast<Index>(terms_.size()); }
  Index variables() const { return static_cast<Index>(limits_.size()); }
  int degree() const { return limits_.empty() ? 0 : limits_.front(); }
  std::span<const int> limits() const& { return limits_; }
  std::span<const Monomial> terms() const& { return terms_; }
  /// Terms of degree 0, which come first: one, or none.
  Index constants() const { return lowest_ == 0 ? 1 : 0; }

  /// None unless the set is homogeneous; the first is the empty one.
  std::span<const Monomial> inner() const& { return inner_; }
  /// The parent of a term or of an inner monomial.
  const Monomial& parent_of(const Monomial& monomial) const& {
    return (inner_.empty() ? terms_ : inner_)[static_cast<std::size_t>(monomial.parent)];
  }
  /// The inner monomials that come between the terms f - 1 and f.
  Range inner_before(Index f) const {
    if (inner_.empty()) return {};
    const auto at = static_cast<std::size_t>(f);
    return {f == 0 ? 1 : terms_[at - 1].parent + 1, terms_[at].parent + 1};
  }

 private:
  /// A monomial and where it is among those of its kind.
  struct Place {
    Monomial monomial;
    std::int32_t index;
  };
  Place append(const Monomial& monomial) {
    std::vector<Monomial>& to = monomial.degree < lowest_ ? inner_ : terms_;
    to.push_back(monomial);
    return {monomial, static_cast<std::int32_t>(to.size()) - 1};
  }

  /// Terms grow in nondecreasing order of variable, so that each multi-index appears once. `first` is the
  /// parent's last variable and `exponent` its power; degrees[l]: its degree in the variables from l on.
  void append_children(const Place& parent, std::size_t first, int exponent, std::vector<int>& degrees) {
    const Monomial& above = parent.monomial;
    for (std::size_t variable = 0; variable < limits_.size(); ++variable) {
      if (degrees[variable] == limits_[variable]) return;  // binds this variable and all later ones
      if (variable < first) continue;
      for (std::size_t l = 0; l <= variable; ++l) ++degrees[l];
      const int degree = above.degree + 1;
      // alpha of `variable` is what the parent has of it, if it is the parent's last one, and one more.
      const int power = variable == first ? exponent + 1 : 1;
      const Place child = append({parent.index, static_cast<std::int16_t>(variable),
                                  static_cast<std::int16_t>(degree), above.multinomial * degree / power});
      append_children(child, variable, power, degrees);
      for (std::size_t l = 0; l <= variable; ++l) --degrees[l];
    }
  }

  std::vector<int> limits_;
  int lowest_;  // degree of a term
  std::vector<Monomial> terms_ = {}, inner_ = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET
