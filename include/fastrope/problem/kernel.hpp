// Kernel: what becomes of a score before its row is normalised, the exponential or a polynomial.
//
//     x_ij = scale q_i^T W(lag) k_j,   A_ij = exp(x_ij)  or  A_ij = P(x_ij) = sum_p c_p x_ij^p,
//     out = D^-1 A V,   D = diag(A 1);   A_ij = 0 where the mask leaves a key out
// Models trained with a polynomial (Taylor, power and (1 + x)^p attention) are computed as they are, without
// any error of approximation. A weight below 0 would let a denominator vanish or turn negative, so a
// polynomial has to be nonnegative on the whole real line, which is proved, unless the caller says that a
// signed one is meant.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/numbers.hpp"
#include "fastrope/core/shared_array.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The values that a polynomial kernel may take.
enum class KernelSign {
  nonnegative,  ///< P(x) >= 0 for every real x, proved
  any,          ///< weights may be negative, and denominators anything
};

/// The weight of a score. Only its shape matters: a constant factor falls out with the denominator. Weights
/// and their sums are taken in the arithmetic of the call (float, or double), whose range they must not
/// leave; a row whose denominator is 0 or subnormal gives zeros, like one without keys. A weight is off by
/// the rounding of its terms, epsilon sum_p |c_p x^p|, and out_i by the sum of these over j in relation to
/// |D_ii|, so that digits are lost where terms, or the weights of a signed kernel, cancel: each row has a
/// bound that says how many (polynomial/kernel_rounding.hpp).
class Kernel {
 public:
  static constexpr int kMaxDegree = 32;

  /// exp(x), the default.
  static Kernel softmax() { return Kernel({}, true); }

  /// P(x) = sum_p coefficients[p] x^p; zeros at the end are dropped. Throws Error for coefficients that are
  /// missing, not finite or all 0, a degree above kMaxDegree, and, unless `sign` is any, a P that is negative
  /// somewhere (naming where) or that detail::prove_sign cannot decide: one that comes as near to 0 as
  /// rounding, except where it touches 0 at a multiple of a power of two. Cost: up to 3 ms.
  static Kernel polynomial(Numbers coefficients, KernelSign sign = KernelSign::nonnegative);

  /// The Taylor polynomial of exp, c_p = 1/p!: positive for even degrees, signed for odd ones.
  static Kernel taylor(int degree, KernelSign sign = KernelSign::nonnegative);

  /// x^p: nonnegative for even p, signed for odd ones.
  static Kernel power(int p, KernelSign sign = KernelSign::nonnegative);

  bool is_softmax() const { return coefficients_.empty(); }
  /// c_p of x^p, p = 0 .. degree(); none for softmax.
  std::span<const double> coefficients() const& { return {coefficients_.data(), coefficients_.size()}; }
  std::span<const double> coefficients() const&& = delete;  // would dangle
  /// Of the polynomial, the last coefficient not being 0; -1 for softmax.
  int degree() const { return static_cast<int>(coefficients_.size()) - 1; }
  /// Whether P(x) = c x^p.
  bool is_power() const {
    const auto c = coefficients();
    return !c.empty() && std::all_of(c.begin(), c.end() - 1, [](double x) { return x == 0; });
  }
  /// Whether no weight is negative: proved, not assumed.
  bool nonnegative() const { return nonnegative_; }

  /// exp(x) or P(x).
  double operator()(double x) const {
    if (is_softmax()) return std::exp(x);
    double value = 0;
    for (std::size_t p = coefficients_.size(); p-- > 0;) value = value * x + coefficients_[p];
    return value;
  }

 private:
  Kernel(std::vector<double> coefficients, bool nonnegative)
      : coefficients_(std::move(coefficients)), nonnegative_(nonnegative) {}

  SharedArray<double> coefficients_;  // none: softmax
  bool nonnegative_;
};

namespace detail {

/// What could be proved of the sign of a polynomial on the real line.
struct SignProof {
  enum class Verdict { nonnegative, negative, unknown };
  Verdict verdict;
  double x = 0;  ///< where it is negative, or where it is too near to 0 to tell
};

/// Divides a by (t - c)^2 and returns true if that leaves no remainder and no operation rounds; otherwise
/// leaves it as it is.
inline bool divide_by_square(std::vector<double>& a, double c) {
  if (a.size() < 3) return false;
  std::vector<double> quotient = a;
  for (std::size_t k = 0; k < 2; ++k) {
    for (std::size_t p = a.size() - 1; p-- > k;) {
      const double x = quotient[p], product = c * quotient[p + 1], sum = x + product;
      if (std::fma(c, quotient[p + 1], -product) != 0) return false;
      // The error of a product this small might be lost to underflow.
      if (std::abs(product) < 0x1p-900 && c != 0 && quotient[p + 1] != 0) return false;
      const double added = sum - x;  // Knuth's error of a sum
      if ((x - (sum - added)) + (product - added) != 0) return false;
      quotient[p] = sum;
    }
    if (quotient[k] != 0) return false;
  }
  quotient.erase(quotient.begin(), quotient.begin() + 2);
  a = std::move(quotient);
  return true;
}

/// Decides whether P(x) = sum_p c_p x^p >= 0 for all real x. Requires finite c, the last one not 0.
///
/// Even powers with coefficients >= 0 are clear. For the rest, let g be the degree and
///     rho = max_(k >= 1) (|c_(g-k)| / |c_g|)^(1/k),   B a power of two > 2 rho.
/// For |x| >= B the other terms are below |c_g x^g| sum_(k >= 1) 2^-k <= |c_g x^g|, so P has the sign of its
/// leading term there. If that is negative at -B or B, P is; otherwise only [-B, B] is left: x = B t with
/// |t| <= 1, where a(t) = sum_p a_p t^p, a_p = c_p B^p / 2^s, has a_g in [1, 2) and |a_(g-k)| <= 2^(1-k).
/// Powers of two make that exact.
///
/// Branch and bound: a(c + u) = sum_k q_k u^k is at least q_0 - sum_(k >= 1) |q_k| h^k for |u| <= h. A cell
/// [c - h, c + h] with a positive bound is done, others are halved, the widest first. Every multiple of a
/// power of two becomes a centre. If a double zero is there, which no bound could ever show, a is divided by
/// (t - c)^2: exactly, so the quotient has the sign of a elsewhere, and the cells already done stay so.
///
/// Rounding, u = epsilon / 2. q_k comes from repeated synthetic division, in which a_p passes at most 2 g + 1
/// roundings on any way to q_k, and these ways add up to binomial(p, k) |c|^(p-k) |a_p|. So the errors of
/// |q_k| h^k together are below (2 g + 2) u S, S = sum_p |a_p| (|c| + h)^p, and adding the terms, which are
/// together at most S, makes up to 2 g + 2 roundings more. (4 g + 16) epsilon S is allowed, twice as much,
/// which covers the rounding of S. Underflow, 2^-1075 in each of less than 2000 operations whose results are
/// multiplied by numbers of at most 1, is covered by the smallest normal number, 2^-1022.
inline SignProof prove_sign(std::span<const double> c) {
  using enum SignProof::Verdict;
  constexpr double kSmallestHalfWidth = 0x1p-50;  // centres are exact
  constexpr std::size_t kMaxCells = 4096;
  const std::size_t degree = c.size() - 1;
  bool clear = true;
  for (std::size_t p = 0; p <= degree; ++p) clear = clear && (c[p] == 0 || (c[p] > 0 && p % 2 == 0));
  if (clear) return {nonnegative};

  double log_rho = -std::numeric_limits<double>::infinity();
  for (std::size_t k = 1; k <= degree; ++k)
    if (c[degree - k] != 0)
      log_rho = std::max(log_rho, (std::log2(std::abs(c[degree - k])) - std::log2(std::abs(c[degree]))) /
                                      static_cast<double>(k));
  const int reach = std::isinf(log_rho) ? 0 : static_cast<int>(std::ceil(log_rho + 1.001));  // B = 2^reach
  const auto x_of = [reach](double t) { return std::ldexp(t, reach); };
  if (c[degree] < 0) return {negative, x_of(1)};
  if (degree % 2 == 1) return {negative, x_of(-1)};

  std::vector<double> a(c.begin(), c.end());
  for (std::size_t p = 0; p <= degree; ++p) {
    const int shift = reach * (static_cast<int>(p) - static_cast<int>(degree)) - std::ilogb(c[degree]);
    a[p] = std::ldexp(c[p], shift);
    if (std::ldexp(a[p], -shift) != c[p]) return {unknown};  // it has underflowed
  }

  struct Cell {
    double centre;
    double half_width;
  };
  std::vector<Cell> cells = {{0, 1}};
  for (std::size_t done = 0; done < cells.size(); ++done) {
    const auto [centre, h] = cells[done];
    while (divide_by_square(a, centre)) {
    }
    const std::size_t n = a.size() - 1;
    std::vector<double> q = a;
    for (std::size_t k = 0; k < n; ++k)
      for (std::size_t p = n; p-- > k;) q[p] += centre * q[p + 1];
    double change = 0, size = a[n];
    for (std::size_t k = n; k > 0; --k) change = (change + std::abs(q[k])) * h;
    for (std::size_t p = n; p-- > 0;) size = size * (std::abs(centre) + h) + std::abs(a[p]);
    const double allowance = static_cast<double>(4 * n + 16) * std::numeric_limits<double>::epsilon() * size +
                             std::numeric_limits<double>::min();
    if (q[0] - change > allowance) continue;
    if (q[0] < -allowance) return {negative, x_of(centre)};
    if (h < kSmallestHalfWidth || cells.size() >= kMaxCells) return {unknown, x_of(centre)};
    cells.push_back({centre - h / 2, h / 2});
    cells.push_back({centre + h / 2, h / 2});
  }
  return {nonnegative};
}

inline void require_kernel_degree(std::ptrdiff_t degree) {
  if (degree < 0 || degree > Kernel::kMaxDegree)
    fail("the degree of a polynomial kernel is 0 to ", Kernel::kMaxDegree, ", got ", degree);
}

}  // namespace detail

inline Kernel Kernel::polynomial(Numbers coefficients, KernelSign sign) {
  std::vector<double>& c = coefficients.values;
  if (c.empty()) detail::fail("a polynomial kernel has no coefficients: give c_p of x^p, p = 0 .. degree");
  for (std::size_t p = 0; p < c.size(); ++p)
    if (!std::isfinite(c[p])) detail::fail("coefficient ", p, " of a polynomial kernel is ", c[p]);
  const std::size_t given = c.size();
  while (!c.empty() && c.back() == 0) c.pop_back();
  if (c.empty()) detail::fail("all coefficients of a polynomial kernel are 0, ", given, " of them");
  detail::require_kernel_degree(static_cast<std::ptrdiff_t>(c.size()) - 1);

  using enum detail::SignProof::Verdict;
  const auto [verdict, x] = detail::prove_sign(c);
  Kernel kernel(std::move(c), verdict == nonnegative);
  if (sign == KernelSign::any || kernel.nonnegative()) return kernel;
  constexpr const char* kAdvice = ": a denominator could be 0 or negative (KernelSign::any allows it)";
  if (verdict == negative)
    detail::fail("the polynomial kernel of degree ", kernel.degree(), " is ", kernel(x), " at x = ", x,
                 kAdvice);
  detail::fail("the polynomial kernel of degree ", kernel.degree(), " is ", kernel(x), " at x = ", x,
               ", too near to 0 to prove that it is not negative nearby", kAdvice);
}

inline Kernel Kernel::taylor(int degree, KernelSign sign) {
  detail::require_kernel_degree(degree);
  std::vector<double> c = {1};
  for (int p = 1; p <= degree; ++p) c.push_back(c.back() / p);
  return polynomial(c, sign);
}

inline Kernel Kernel::power(int p, KernelSign sign) {
  detail::require_kernel_degree(p);
  std::vector<double> c(static_cast<std::size_t>(p) + 1);
  c.back() = 1;
  return polynomial(c, sign);
}

}  // namespace fastrope::inline FASTROPE_TARGET
