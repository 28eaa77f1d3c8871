// LowRankFit: what the polynomial path would do for the query heads that share a key head's features, and how
// well: shifts and axes of the rows, a polynomial, its monomials, and the certificate of it all.
//
//     choice of a projection, bounds of all rows -> polynomial -> index set -> certificate
// Every step is exact or certified, and taken only where it makes the rank smaller.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/row_bounds.hpp"
#include "fastrope/plan/axes.hpp"
#include "fastrope/plan/certificate.hpp"
#include "fastrope/plan/exp_polynomial.hpp"
#include "fastrope/plan/far_field.hpp"
#include "fastrope/plan/index_set.hpp"
#include "fastrope/plan/projection_choice.hpp"
#include "fastrope/plan/shift.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/polynomial/projection.hpp"
#include "fastrope/polynomial/rounding.hpp"

namespace fastrope::inline FASTROPE_TARGET {

struct LowRankFit {
  Projection projection;     ///< with the axes of the variables that are kept
  ExpPolynomial polynomial;  ///< for entries up to radius
  std::vector<int> limits;   ///< [projection.variables()], all > 0
  double radius;             ///< bounds |x| |y| for every pair that is approximated
  double plain_radius;       ///< bounds |s| |q| |k| for all rows, no step taken
  double rank;               ///< of the limits
  double simplex_rank;       ///< of all monomials, in the rows' own axes, at the degree that they need
  Centre key_shift;
  Centre query_shift;
  Certificate certificate;  ///< of the approximation, rounded rows included
  double allowed;           ///< LowRankUnit::allowed
  double error_bound;       ///< of the output, over max|V|: all of it
  double rounding;          ///< the part of it that is rounding
};

/// What one pass over the rows of a projection's choice tells.
struct LowRankBounds {
  std::span<const RowBounds> queries;  ///< of each head, measured as the choice says
  const RowBounds* keys;
};

/// Bounds of each head's queries and, in `keys`, which may know some of them already, of the keys, measured
/// as the choice says. A shift that the whole of its side does not bear out, as a sample may have missed the
/// longest rows, is taken out of the choice, and its side measured again.
inline std::vector<RowBounds> measure_rows(const LowRankRows& rows, double scale, ProjectionChoice& choice,
                                           RowBounds& keys);

/// Of what is left of a tolerance, what is given away: the rest is room for the rounding of the sums by which
/// it is told what is left, and what is promised.
inline constexpr double kBudgetShare = 1 - 1e-6;

/// Fits features to rows with these bounds, of measure_rows, all finite. Ensures error_bound <= tolerance and
/// rank <= kMaxRank; without a fit, `reason` says why, with figures. Cost: a few polynomials.
inline std::optional<LowRankFit> fit_low_rank(const ProjectionChoice& choice, const LowRankBounds& bounds,
                                              std::span<const FarPairs> far, const LowRankRequest& request,
                                              std::string& reason);

namespace detail {

/// At least max |s nu.(k - mu)| of keys that reach so far.
inline double largest_weight(const ProjectionChoice& choice, double scale, double key_reach) {
  return std::abs(scale) * norm(choice.queries.point) * key_reach *
         (1 + 8 * static_cast<double>(std::numeric_limits<float>::epsilon()));
}

/// The search for the fit with the smallest rank, in the chosen axes and in the rows' own.
class LowRankSearch {
 public:
  LowRankSearch(const ProjectionChoice& choice, const LowRankBounds& bounds, std::span<const FarPairs> far,
                const LowRankRequest& request)
      : request_(request),
        scale_(std::abs(request.scale)),
        epsilon_(epsilon_of(request.arithmetic)),
        d_(std::ssize(choice.keys.point)),
        keys_(bounds.keys->rows()),
        choice_(choice),
        far_(far.begin(), far.end()) {
    if (!request.steps.near_field) far_ = {{{0, bounds.queries.front().rows()}, keys_}};
    // Of all query heads: the longest of each block.
    std::vector<double> norms, distances, reaches;
    for (const RowBounds& head : bounds.queries) {
      raise(norms, head.norms());
      raise(distances, head.distances());
      raise(reaches, head.reaches());
    }
    query_norm_ = largest(norms);
    key_norm_ = largest(bounds.keys->norms());
    plain_radius_ = scale_ * query_norm_ * key_norm_ * (1 + 16 * epsilon_);
    query_reach_ = largest(distances);
    key_reach_ = largest(bounds.keys->distances());
    unshifted_ = largest_products(far_, norms, bounds.keys->norms(), 1).front();
    shifted_ = largest_products(far_, distances, bounds.keys->distances(), 1).front();
    if (!choice.own_axes())
      projected_ = largest_products(far_, reaches, bounds.keys->reaches(), bounds.keys->cuts());
  }

  /// Without a fit, reason() says why.
  std::optional<LowRankFit> fit() {
    weight_max_ = largest_weight(choice_, scale_, key_reach_);
    const double radius = with_allowance(shifted_, 1);
    axes_radius_ = radius;
    mean_entry_ = key_reach_ > 0 ? -radius * std::min(1.0, choice_.mean_key / key_reach_) : 0;
    near_ = request_.exact.of({scale_ * query_norm_ * key_norm_, scale_ * query_norm_ * key_reach_});
    if (const double exact = near_.error(request_.value_spread); !(exact <= request_.tolerance)) {
      refuse(message("rounding alone may reach ", exact, " with logits up to ", plain_radius_,
                     ", in exact attention too"));
      return best_;
    }
    try_axes(identity_axes(d_), {});
    if (!projected_.empty()) {
      const double stretch = norm(choice_.axes.queries) * norm(choice_.axes.keys);
      for (double& product : projected_) product = with_allowance(product, stretch);
      try_axes(choice_.axes, projected_);
    }
    return best_;
  }

  const std::string& reason() const { return reason_; }

 private:
  static constexpr double kDouble = std::numeric_limits<double>::epsilon();

  static void raise(std::vector<double>& all, std::span<const double> some) {
    all.resize(some.size());
    for (std::size_t i = 0; i < some.size(); ++i) all[i] = std::max(all[i], some[i]);
  }

  /// |s| times a bound of |x| |y|. Rotation, conversion and the shifts round each row by a few epsilon of its
  /// own length, which axes lengthen: `stretch` times for both sides.
  double with_allowance(double product, double stretch) const {
    if (far_field(far_).empty()) return 0;
    return scale_ * product * (1 + 8 * epsilon_) + 8 * epsilon_ * plain_radius_ * stretch;
  }

  /// The candidates with these axes: degrees from the lowest whose polynomial is good enough on, until two
  /// have been feasible, as a higher degree leaves more of the tolerance to the tail. In the rows' own axes
  /// nothing is known of later variables: no couplings, no tail.
  void try_axes(const Axes& exact, std::span<const double> couplings) {
    const Axes axes = balanced_in_size(exact);
    const Matrix &b = axes.queries, &c = axes.keys;
    Matrix missed = product(transposed(b), c);
    for (Index i = 0; i < d_; ++i) missed(i, i) -= 1;
    const double axes_error =
        axes_radius_ * (norm(missed) + static_cast<double>(d_ + 2) * kDouble * norm(b) * norm(c));
    const double entry_error = axes_error + rows_rounding(axes, couplings.empty()) + request_.factor_error;

    const double tolerance = request_.tolerance - near_.sums,
                 radius = couplings.empty() ? axes_radius_ : couplings.front();
    std::optional<ExpPolynomial> polynomial;
    try {
      polynomial = ExpPolynomial::fit(radius, allowed_relative_error(tolerance, request_.value_spread));
    } catch (const Error& error) {
      refuse(error.what());
      return;
    }
    const int lowest = polynomial->degree(), highest = std::min(lowest + 3, ExpPolynomial::kMaxDegree);
    const int enough = couplings.empty() ? 1 : 2;
    for (int feasible = 0, degree = lowest; degree <= highest && feasible < enough; ++degree) {
      if (degree > lowest) polynomial = ExpPolynomial::minimax(radius, degree);
      const double rounding = expected_sums(*polynomial, kChain, radius);
      if (rounding >= tolerance) {
        refuse(message("rounding alone is about ", rounding, " at degree ", degree, " (entries up to ",
                       radius, ", ", plain_radius_, " before any shift)"));
        return;
      }
      const double allowed = allowed_relative_error(tolerance - rounding, request_.value_spread);
      const double left = (1 + allowed) * std::exp(-entry_error) - 1 - polynomial->relative_error();
      if (!(left > 0)) {
        refuse(message("entries up to ", radius, " are off by ", polynomial->relative_error(), " at degree ",
                       degree, " and by ", entry_error, " from the rounding of rows and axes"));
        continue;
      }
      if (consider(*polynomial, axes, couplings, axes_error, entry_error, left * kBudgetShare)) ++feasible;
    }
  }

  /// What rounding the rows to Real on their way to x and y, and the keys' weights, does to the exponent of a
  /// weight, to first order with unit roundoff u (plan/exact_rounding.hpp: turning a row costs 4 u of its
  /// length):
  ///     x' = s (q - nu): u s [7 |q| + |nu| + |q - nu|]   turned, scaled and scaled back; nu; the difference
  ///     k' = k - mu:     u [5 |k| + 2 |k'|]              turned, converted, shifted, at times back and forth
  ///     x = B x', y = C k': d u (|B|_F |x'|, |C|_F |k'|), nothing in the rows' own axes
  ///     weights: u [(d + 7) s |nu| |k'| + 61] + eps_e    a sum of d products, less the largest of at most
  ///     60; exp
  /// |x.y| moves by the error of either side times the other's length, which B and C stretch by |B| |C| <=
  /// |B|_F |C|_F.
  double rows_rounding(const Axes& axes, bool own) const {
    const double u = epsilon_ / 2;
    const double b = own ? 1 : norm(axes.queries), c = own ? 1 : norm(axes.keys),
                 nu = norm(choice_.queries.point), d = static_cast<double>(d_);
    const double of_queries = 7 * query_norm_ + nu + query_reach_, of_keys = 5 * key_norm_ + 2 * key_reach_;
    const double entries =
        scale_ * b * c *
        (of_queries * key_reach_ + query_reach_ * of_keys + (own ? 0 : 2 * d) * query_reach_ * key_reach_);
    if (nu == 0) return kHigherOrder * u * entries;
    const double exponential = request_.arithmetic == Arithmetic::float64 ? 4e-16 : 3.5e-7;
    return kHigherOrder * (u * (entries + (d + 7) * scale_ * nu * key_reach_ + 61) + exponential);
  }

  /// Scales the axes by a power of two, which rounds nothing, so that x and y are of about the same size: the
  /// sum of |c_p x^alpha y^alpha| stays within the range of the arithmetic as long as each side does.
  Axes balanced_in_size(Axes axes) const {
    const double x = scale_ * query_reach_ * norm(axes.queries), y = key_reach_ * norm(axes.keys);
    const double factor = x > 0 && y > 0 ? std::exp2(std::round(std::log2(y / x) / 2)) : 1;
    for (double& element : axes.queries.values) element *= factor;
    for (double& element : axes.keys.values) element /= factor;
    return axes;
  }

  /// About what rounding does to the sums of features of so many terms.
  double expected_sums(const ExpPolynomial& polynomial, Index rank, double radius) const {
    return with_real(request_.arithmetic, [&](auto real) {
      return expected_rounding<typename decltype(real)::type>(polynomial.coefficients(), rank, keys_, radius,
                                                              mean_entry_);
    });
  }

  /// Keeps the candidate if its rank is the smallest so far and its certificate holds; returns false if it
  /// does not, as rounding of so large a rank leaves too little of the tolerance: a higher degree may leave
  /// enough.
  bool consider(const ExpPolynomial& polynomial, const Axes& axes, std::span<const double> couplings,
                double axes_error, double entry_error, double tail_budget) {
    const std::vector<int> simplex = simplex_limits(d_, polynomial.degree());
    if (simplex_rank_ == 0) simplex_rank_ = rank_of(simplex);
    std::vector<std::vector<double>> losses;
    std::vector<int> limits = simplex;
    if (!couplings.empty()) {
      losses = tail_losses(TailBound(polynomial), couplings, simplex.size());
      limits = choose_limits(losses, tail_budget);
    }
    const double rank = rank_of(limits);
    if (best_ && rank >= best_->rank) return true;
    const Index variables = std::count_if(limits.begin(), limits.end(), [](int limit) { return limit > 0; });
    if (rank > static_cast<double>(kMaxRank)) {
      if (rank >= refused_rank_) return true;
      refused_rank_ = rank;
      reason_ =
          rank_refusal(polynomial.degree(), variables, rank, request_.d_v, size_of(request_.arithmetic));
      return true;
    }
    const std::span<const int> cut = couplings.empty() ? std::span<const int>() : limits;
    const double spread = request_.value_spread;
    const Certificate certificate = certify(polynomial, cut, losses, entry_error, spread);
    // Keys that are near are off by their own rounding, all others by the certificate.
    const double fixed = near_.error(spread, certificate.relative_error), left = request_.tolerance - fixed;
    const double expected = expected_sums(polynomial, static_cast<Index>(rank), polynomial.radius());
    if (!(left >= expected)) {
      refuse(message("the certified error ", fixed, " and the sums' rounding, about ", expected,
                     ", exceed the tolerance at degree ", polynomial.degree()));
      if (!best_) simplex_rank_ = 0;  // they need a higher degree
      return false;
    }
    // Rows beyond twice what is expected are rare enough to be computed again.
    const double allowed = std::min(left, 2 * expected) * kBudgetShare;
    const double bound = fixed + allowed;
    const double without = certify(polynomial, cut, losses, axes_error, spread).error_bound;
    limits.resize(static_cast<std::size_t>(variables));
    best_ = LowRankFit{.projection = projection(axes, variables),
                       .polynomial = polynomial,
                       .limits = std::move(limits),
                       .radius = polynomial.radius(),
                       .plain_radius = plain_radius_,
                       .rank = rank,
                       .simplex_rank = simplex_rank_,
                       .key_shift = choice_.keys.centre,
                       .query_shift = choice_.queries.centre,
                       .certificate = certificate,
                       .allowed = allowed,
                       .error_bound = bound,
                       .rounding = std::max(fixed - without, 0.0) + allowed};
    return true;
  }

  Projection projection(const Axes& axes, Index variables) const {
    const auto first_rows = [variables](const Matrix& m) {
      std::vector<double> list;
      for (Index l = 0; l < variables; ++l) list.insert(list.end(), m.row(l), m.row(l) + m.cols);
      return list;
    };
    return {.key_shift = choice_.keys.point,
            .query_shift = choice_.queries.point,
            .weight_max = weight_max_,
            .key_axes = first_rows(axes.keys),
            .query_axes = first_rows(axes.queries)};
  }

  /// The first reason stands, unless it is that ranks are too large: then the smallest of them.
  void refuse(std::string why) {
    if (reason_.empty()) reason_ = std::move(why);
  }

  const LowRankRequest& request_;
  double scale_;
  double epsilon_;
  Index d_;
  Index keys_;
  ProjectionChoice choice_;
  std::vector<FarPairs> far_;
  double plain_radius_ = 0;
  double query_norm_ = 0;
  double key_norm_ = 0;
  double query_reach_ = 0;
  double key_reach_ = 0;
  double unshifted_ = 0;  // max |q| |k| over the pairs
  double shifted_ = 0;    // max |q - nu| |k - mu|
  std::vector<double> projected_ = {};
  double weight_max_ = 0;
  double axes_radius_ = 0;
  double mean_entry_ = 0;    // about that of a row that the mean key is opposite to; nothing is proved of it
  ExactRounding near_ = {};  // of keys that are not far
  double simplex_rank_ = 0;
  double refused_rank_ = std::numeric_limits<double>::infinity();
  std::string reason_ = {};
  std::optional<LowRankFit> best_ = {};
};

}  // namespace detail

inline std::vector<RowBounds> measure_rows(const LowRankRows& rows, double scale, ProjectionChoice& choice,
                                           RowBounds& keys) {
  bool given_up = false;
  const auto give_up = [&](Shift& shift) {
    shift = Shift::none(rows.keys->d());
    given_up = true;
  };
  rows.keys->extend(keys);
  if (largest(keys.distances()) > largest(keys.norms())) {
    give_up(choice.keys);
    keys = RowBounds(choice.of_keys());
    rows.keys->extend(keys);
  }
  if (!(detail::largest_weight(choice, scale, largest(keys.distances())) <= kMaxWeightExponent))
    give_up(choice.queries);
  std::vector<RowBounds> queries;
  const auto measure_queries = [&] {
    queries.assign(rows.queries.size(), RowBounds(choice.of_queries()));
    for (std::size_t h = 0; h < queries.size(); ++h) rows.queries[h]->extend(queries[h]);
  };
  measure_queries();
  double norm = 0, distance = 0;
  for (const RowBounds& head : queries) {
    norm = std::max(norm, largest(head.norms()));
    distance = std::max(distance, largest(head.distances()));
  }
  if (distance > norm) {
    give_up(choice.queries);
    measure_queries();
  }
  // The mean of these keys, with these weights, is not known.
  if (given_up) choice.mean_key = largest(keys.distances());
  return queries;
}

inline std::optional<LowRankFit> fit_low_rank(const ProjectionChoice& choice, const LowRankBounds& bounds,
                                              std::span<const FarPairs> far, const LowRankRequest& request,
                                              std::string& reason) {
  detail::LowRankSearch search(choice, bounds, far, request);
  std::optional<LowRankFit> fit = search.fit();
  reason = fit ? std::string() : search.reason();
  return fit;
}

}  // namespace fastrope::inline FASTROPE_TARGET
