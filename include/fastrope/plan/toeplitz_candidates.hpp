// Toeplitz candidates: heads by Fourier transforms, with a factor of the lag between rows and keys.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/plan/certificate.hpp"
#include "fastrope/plan/exp_polynomial.hpp"
#include "fastrope/plan/head_report.hpp"
#include "fastrope/plan/look.hpp"
#include "fastrope/plan/low_rank.hpp"
#include "fastrope/plan/planning.hpp"
#include "fastrope/plan/weighted_bounds.hpp"
#include "fastrope/plan/work.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/toeplitz/head.hpp"

namespace fastrope::inline FASTROPE_TARGET {

class ToeplitzCandidates {
 public:
  explicit ToeplitzCandidates(Planning& planning)
      : planning_(planning), problem_(planning.problem), refusal_(toeplitz_refusal(problem_)) {}

  /// Why the options rule it out, or empty.
  const std::string& refusal() const { return refusal_; }

  /// One head; run is what runs, if it costs less than the path's budget. Rows whose rounding the transforms
  /// cannot vouch for will be exact.
  Candidate softmax(Index head, GroupLook& look, Index query, std::optional<ToeplitzHead>& run) const {
    Candidate c{.path = Path::toeplitz, .feasible = false, .reason = refusal_};
    if (!c.reason.empty()) return c;
    const double budget = planning_.budget(Path::toeplitz);
    // The transforms need a share of the tolerance too.
    const double tolerance = 0.75 * planning_.tolerance;
    LowRankUnit unit{
        .heads = {head, head + 1}, .projection = {}, .coefficients = {}, .monomials = {}, .chunks = {}};
    double terms = 0;
    if (problem_.weights) {
      const double spread = look.value_bounds().spread();
      if (c.reason = look.not_finite(query); !c.reason.empty()) return c;
      const WeightedBounds bounds =
          weighted_bounds(look, query, problem_, epsilon_of(planning_.costs.arithmetic()));
      const auto polynomial = weighted_fit(head, bounds, spread, tolerance, c);
      if (!polynomial) return c;
      if (!features_fit(look, query, bounds, polynomial->degree())) {
        c.reason =
            detail::message("features of degree ", polynomial->degree(),
                            " leave the range of the arithmetic (weights or rows of very unequal size)");
        return c;
      }
      const std::vector<int> limits =
          simplex_limits(static_cast<Index>(problem_.weights->support().size()), polynomial->degree());
      if (!planning_.set_rank(c, limits)) return c;
      terms = amplification(polynomial->coefficients(), bounds.feature_radius);
      unit.projection = Projection::identity(problem_.shapes.d, bounds.balance);
      unit.coefficients = {polynomial->coefficients().begin(), polynomial->coefficients().end()};
      unit.monomials = planning_.monomials(limits);
      c.entry_bound = bounds.radius;
    } else {
      const PathCosts& costs = planning_.costs;
      const auto seconds = [&](double rank) { return costs.seconds(costs.toeplitz(rank, 1)); };
      const double most = most_rank(budget, seconds(0), seconds(1));
      const FarPairs all{{0, problem_.shapes.n_q}, problem_.shapes.n_k};
      const auto fit =
          planning_.low_rank(look, head, {query, query + 1}, {&all, 1},
                             {.tolerance = tolerance, .may_weigh_keys = false, .most_rank = most}, c);
      if (!fit) return c;
      terms = amplification(fit->polynomial.coefficients(), fit->radius);
      // The rows' sums are judged by their transforms.
      c.error_bound -= fit->allowed;
      c.rounding -= fit->allowed;
      planning_.count(costs.toeplitz(fit->rank, 1), c);
      if (!(c.seconds < budget)) return c;
      unit = planning_.unit({head, head + 1}, *fit);
    }
    ToeplitzHead found(problem_, std::move(unit));
    const std::size_t generators = found.terms.size();
    if (!c.how.empty()) c.how += ", ";
    c.how += detail::message("transforms of ", generators, " generator", generators > 1 ? "s" : "");
    planning_.count(with_exact_rows(terms, found, c), c);
    if (c.feasible && c.seconds < budget) run = std::move(found);
    return c;
  }

 private:
  /// Whether powers of the columns of a general family, which do not carry its weights, stay in range.
  bool features_fit(GroupLook& look, Index query, const WeightedBounds& bounds, int degree) const {
    const double largest = planning_.costs.arithmetic() == Arithmetic::float64
                               ? std::numeric_limits<double>::max()
                               : static_cast<double>(std::numeric_limits<float>::max());
    const double limit = std::pow(largest, 0.6 / std::max(1, degree));
    const double q = std::abs(problem_.scale) * bounds.balance * look.query_norm(query);
    return degree == 0 || (q <= limit && look.key_norm() / bounds.balance <= limit &&
                           bounds.largest_weight <= limit && 1 / limit <= bounds.largest_weight);
  }

  /// The polynomial of a general family. Columns are rounded by the scale and their balance, in either
  /// direction, and queries scaled back: 6 u of the features' products.
  std::optional<ExpPolynomial> weighted_fit(Index head, const WeightedBounds& bounds, double value_spread,
                                            double tolerance, Candidate& c) const {
    const ExactRounding exact = planning_.rounding(head).of({bounds.feature_radius, bounds.feature_radius});
    const double entry_error =
        kHigherOrder * 3 * epsilon_of(planning_.costs.arithmetic()) * bounds.feature_radius;
    const double left = tolerance - exact.sums;
    std::optional<ExpPolynomial> p;
    try {
      p = ExpPolynomial::fit(bounds.radius + entry_error,
                             allowed_relative_error(std::max(left, 0.0), value_spread) - 2 * entry_error);
    } catch (const Error& error) {
      c.reason = error.what();
      return std::nullopt;
    }
    c.degree = p->degree();
    const Certificate certificate = certify(*p, {}, std::span<const double>(), entry_error, value_spread);
    c.error_bound = exact.error(value_spread, certificate.relative_error);
    c.rounding = c.error_bound - certify(*p, {}, std::span<const double>(), 0, value_spread).error_bound;
    if (c.error_bound <= tolerance) return p;
    c.reason = detail::message("rounding alone may reach ", exact.error(value_spread),
                               " and the error at degree ", c.degree, " ", c.error_bound, " (entries up to ",
                               bounds.radius, ", features up to ", bounds.feature_radius, ")");
    return std::nullopt;
  }

  /// Lets rows be off by what is left of the tolerance, or by twice what is expected where that is less;
  /// those of which more is expected will be exact. Returns the work of both.
  Work with_exact_rows(double terms, ToeplitzHead& run, Candidate& c) const {
    const PathCosts& costs = planning_.costs;
    const std::vector<double> expected = with_real(costs.arithmetic(), [&](auto real) {
      return expected_transform_rounding<typename decltype(real)::type>(problem_, run, terms);
    });
    const double left = kBudgetShare * (planning_.tolerance - c.error_bound);
    double exact_pairs = 0, worst = 0;
    constexpr Index kTile = QueryBlock<float>::kTileRows;
    for (Index begin = 0; begin < problem_.shapes.n_q; begin += kTile) {
      const Range rows{begin, std::min(begin + kTile, problem_.shapes.n_q)};
      const double largest = *std::max_element(expected.begin() + rows.begin, expected.begin() + rows.end);
      if (largest <= left) {
        worst = std::max(worst, largest);
        continue;
      }
      c.exact_rows += rows.size();
      exact_pairs += problem_.grid.pairs_of(rows);
    }
    const double allowed = std::min(left, 2 * worst);
    run.low_rank.allowed = allowed;
    c.error_bound += allowed;
    c.rounding += allowed;
    if (c.exact_rows == problem_.shapes.n_q) {
      c.feasible = false;
      c.reason = "the transforms' rounding would break the tolerance in every row";
    }
    const Work transformed =
        costs.toeplitz(static_cast<double>(c.rank), static_cast<double>(run.terms.size()));
    if (c.exact_rows == 0) return transformed;
    return transformed + costs.tiles(exact_pairs, static_cast<double>(c.exact_rows));
  }

  Planning& planning_;
  const Problem& problem_;
  std::string refusal_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
