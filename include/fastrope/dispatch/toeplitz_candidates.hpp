// Toeplitz candidates: attention with a factor of the lag, by transforms or by a state.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/dispatch/candidates.hpp"
#include "fastrope/dispatch/cost_model.hpp"
#include "fastrope/dispatch/entry_bounds.hpp"
#include "fastrope/dispatch/path_work.hpp"
#include "fastrope/dispatch/report.hpp"
#include "fastrope/dispatch/work.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/polynomial/certificate.hpp"
#include "fastrope/polynomial/exp_polynomial.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/polynomial/low_rank.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/toeplitz/attention.hpp"
#include "fastrope/toeplitz/lag_tails.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The Toeplitz path of one head: by transforms or by a state.
struct ToeplitzRun {
  std::optional<ToeplitzHead> transforms = {};
  std::optional<LowRankUnit> state = {};
};

template <class Real>
class ToeplitzCandidates {
 public:
  ToeplitzCandidates(Planning<Real>& planning, bool positions_separate)
      : planning_(planning),
        problem_(planning.problem),
        positions_separate_(positions_separate),
        refusal_(toeplitz_refusal(problem_)) {}

  /// Why the options rule it out, or empty.
  const std::string& refusal() const { return refusal_; }

  /// One head, by transforms or by a state, whichever is cheaper. Where positions separate it has the
  /// polynomial path's features, and transforms beside: then it is looked at only if it is forced, or with
  /// the positions' part of the logits in the generator.
  Runner<ToeplitzRun> softmax(Index head, GroupLook<Real>& look, Index query) const {
    Runner<ToeplitzRun> run{{.path = Path::toeplitz, .feasible = false, .reason = refusal_}};
    Candidate& c = run.candidate;
    if (!c.reason.empty()) return run;
    // Keeps what is feasible, and of that the cheaper.
    const auto take = [&](Runner<ToeplitzRun>&& other) {
      const Candidate& next = other.candidate;
      if (!next.feasible && (c.feasible || !c.reason.empty())) return;
      if (c.feasible && !(next.seconds < c.seconds)) return;
      run = std::move(other);
    };
    if (positions_separate_ && planning_.forced != Path::toeplitz) {
      c.reason = "positions separate: the polynomial path has the same features without transforms";
    } else {
      // States are cheaper where there are any.
      if (!problem_.weights) take(tails(head, look, query));
      if (!run.runnable || planning_.forced == Path::toeplitz) take(transforms(head, look, query, {}, 0));
    }
    if (const auto part = position_part(look, query)) {
      GroupLook<Real> left({without_position_part(problem_, *part, true, look.queries(query))},
                           without_position_part(problem_, *part, false, look.keys()), look.values());
      take(transforms(head, left, 0, part, part_rounding(look, query, *part)));
    }
    return run;
  }

 private:
  /// By transforms. Rows whose rounding they cannot vouch for will be exact.
  Runner<ToeplitzRun> transforms(Index head, GroupLook<Real>& look, Index query,
                                 const std::optional<PositionPart>& part, double part_error) const {
    Runner<ToeplitzRun> run{{.path = Path::toeplitz, .feasible = false}};
    Candidate& c = run.candidate;
    // The transforms need a share of the tolerance too.
    const double tolerance = 0.75 * planning_.tolerance;
    LowRankUnit unit{
        .heads = {head, head + 1}, .projection = {}, .coefficients = {}, .monomials = {}, .chunks = {}};
    double terms = 0;
    if (problem_.weights) {
      const double spread = look.value_bounds().spread();
      if (c.reason = look.not_finite(query); !c.reason.empty()) return run;
      const WeightedBounds bounds = weighted_bounds(look, query, problem_);
      const auto polynomial = weighted_fit(head, bounds, spread, tolerance, c);
      if (!polynomial) return run;
      if (!features_fit(look, query, bounds, polynomial->degree())) {
        c.reason =
            detail::message("features of degree ", polynomial->degree(),
                            " leave the range of the arithmetic (weights or rows of very unequal size)");
        return run;
      }
      const std::vector<int> limits =
          simplex_limits(static_cast<Index>(problem_.weights->support().size()), polynomial->degree());
      if (!planning_.set_rank(c, limits)) return run;
      terms = amplification(polynomial->coefficients(), bounds.feature_radius);
      unit.projection = Projection::identity(problem_.shapes.d, bounds.balance);
      unit.coefficients = {polynomial->coefficients().begin(), polynomial->coefficients().end()};
      unit.monomials = planning_.monomials(limits);
      c.entry_bound = bounds.radius;
    } else {
      const FarPairs all{{0, problem_.shapes.n_q}, problem_.shapes.n_k};
      const auto fit = planning_.low_rank(
          look, head, {query, query + 1}, tolerance, /*may_weigh_keys=*/false, {&all, 1},
          [&](double rank) { return pays(toeplitz_work<Real>(problem_, rank, 1)); }, c, part_error);
      if (!fit) return run;
      terms = amplification(fit->polynomial.coefficients(), fit->radius);
      // The rows' sums are judged by their transforms.
      c.error_bound -= fit->allowed;
      c.rounding -= fit->allowed;
      const Work work = toeplitz_work<Real>(problem_, fit->rank, 1);
      planning_.count(work, c);
      if (!pays(work)) return run;
      unit = planning_.unit({head, head + 1}, *fit);
    }
    ToeplitzRun found{.transforms = ToeplitzHead(problem_, std::move(unit), part)};
    if (part) say(c, "positions' part of the logits in the generator");
    const std::size_t generators = found.transforms->terms.size();
    say(c, detail::message("transforms of ", generators, " generator", generators > 1 ? "s" : ""));
    const Work work = with_exact_rows(terms, found, c);
    planning_.count(work, c);
    if (c.feasible && pays(work)) run.runnable = std::move(found);
    return run;
  }

  /// By a state, where the bias has tails.
  Runner<ToeplitzRun> tails(Index head, GroupLook<Real>& look, Index query) const {
    Runner<ToeplitzRun> run{{.path = Path::toeplitz, .feasible = false}};
    Candidate& c = run.candidate;
    const LagTails tails = find_lag_tails(problem_, head);
    const auto chunks = [&](Index count) { return tail_chunks<Real>(problem_, tails, count); };
    const std::vector<FarPairs> least = chunks(CostModel::kLeastChunk);
    bool past = false, later = false, removes = false;
    for (const FarPairs& chunk : least) {
      past = past || chunk.far > chunk.first;
      later = later || !chunk.later.empty();
      removes = removes || chunk.first > 0 || (!chunk.later.empty() && chunk.later.end < problem_.shapes.n_k);
    }
    if (!past && !later) return run;
    // Of a factor: its line misses the bias, its exponent is rounded in double in a few parts, and it is
    // rounded to Real and multiplied by the key's weight.
    double factor_error = 0;
    for (const auto& tail : {tails.past, tails.later}) {
      if (!tail) continue;
      const double exponents =
          std::abs(tail->factor.level) +
          std::abs(tail->factor.slope) * static_cast<double>(tails.allowed.last - tails.allowed.first);
      factor_error = std::max(factor_error, tail->miss + 8 * kUnitRoundoff<double> * exponents);
    }
    factor_error += 3 * kUnitRoundoff<Real>;
    const auto best_chunks = [&](double rank) {
      return planning_.cost.template best_chunks<Real>(problem_, rank, 1, chunks);
    };
    // A heavy key that leaves a window would leave its rounding behind: there keys may not be weighed.
    const auto fit = planning_.low_rank(
        look, head, {query, query + 1}, planning_.tolerance,
        /*may_weigh_keys=*/!removes, least,
        [&](double rank) { return pays(polynomial_work<Real>(problem_, rank, 1, best_chunks(rank))); }, c,
        factor_error);
    if (!fit) return run;
    const auto announce = [&](const LagTail& tail, const char* from) {
      say(c, tail.factor.slope == 0 ? detail::message("running sums for lags ", from, tail.inner)
                                    : detail::message("a recurrence with slope ", tail.factor.slope,
                                                      " for lags ", from, tail.inner));
    };
    if (past) announce(*tails.past, ">= ");
    if (later) announce(*tails.later, "<= ");
    std::vector<FarPairs> best = best_chunks(fit->rank);
    say(c, detail::message("near fields exact in ", best.size(), " chunks of rows"));
    const Work work = polynomial_work<Real>(problem_, fit->rank, 1, best);
    planning_.count(work, c);
    if (!pays(work)) return run;
    LowRankUnit unit = planning_.unit({head, head + 1}, *fit);
    if (past) unit.factor = tails.past->factor;
    if (later) unit.later_factor = tails.later->factor;
    unit.chunks = std::move(best);
    run.runnable = ToeplitzRun{.state = std::move(unit)};
    return run;
  }

  /// The means of a head's rows, where rotation hides them from shifts and they are most of the rows, as far
  /// as a sample tells.
  std::optional<PositionPart> position_part(const GroupLook<Real>& look, Index query) const {
    constexpr double kMost = 0.7;  // of the rows' mean square
    constexpr Index kSample = 128;
    if (problem_.rotation.pairs() == 0) return std::nullopt;
    PositionPart part;
    struct Squares {
      double mean, all;
    };
    const auto means = [&](const RowSource<Real>& rows, std::vector<double>& to) {
      const Rows<Real> some = sample(rows, {0, rows.count}, kSample, /*turned=*/false);
      const Point<Real> mean = some.colwise().mean();
      to.assign(mean.begin(), mean.end());
      return Squares{static_cast<double>(mean.squaredNorm()),
                     static_cast<double>(some.squaredNorm()) / static_cast<double>(some.rows())};
    };
    const Squares q = means(look.queries(query), part.query), k = means(look.keys(), part.key);
    if (!(q.mean >= kMost * q.all && k.mean >= kMost * k.all && q.mean > 0 && k.mean > 0))
      return std::nullopt;
    // |q - a| |k - b| / (|a| |k|) is where the two parts of x.y are as large as each other.
    const double left = std::max(1e-6 * q.mean, q.all - q.mean) * std::max(1e-6 * k.mean, k.all - k.mean);
    part.balance = std::pow(left / (q.mean * k.all), 0.25);
    return part;
  }

  /// What taking out the positions' part rounds, beside what columns of their own length do: rows and means
  /// are turned and scaled at their full lengths, |q| + |a| and |k| + |b|, before they are subtracted (at
  /// most 13 roundings of a product on either side), and the generator's logits are of angles rounded in
  /// double.
  double part_rounding(GroupLook<Real>& look, Index query, const PositionPart& part) const {
    const double whole = position_logit_bound(problem_, part);
    const auto length = [](const std::vector<double>& x) {
      double square = 0;
      for (const double element : x) square += element * element;
      return std::sqrt(square);
    };
    const double gain = std::max(1.0, problem_.rotation.frequencies().attention_factor);
    const double lengths = std::abs(problem_.scale) * (look.query_norm(query) + gain * length(part.query)) *
                           (look.key_norm() + gain * length(part.key));
    return kHigherOrder * 26 * kUnitRoundoff<Real> * lengths +
           4 *
               problem_.rotation.phase_error(std::min(2 * problem_.grid.farthest_position(),
                                                      problem_.rotation.frequencies().max_position())) *
               whole;
  }

  bool pays(const Work& work) const { return planning_.pays(Path::toeplitz, work); }

  static void say(Candidate& c, const std::string& what) {
    if (!c.how.empty()) c.how += ", ";
    c.how += what;
  }

  /// Whether powers of the columns of a general family, which do not carry its weights, stay in range.
  bool features_fit(GroupLook<Real>& look, Index query, const WeightedBounds& bounds, int degree) const {
    const double limit =
        std::pow(static_cast<double>(std::numeric_limits<Real>::max()), 0.6 / std::max(1, degree));
    const double q = std::abs(problem_.scale) * bounds.balance * look.query_norm(query);
    return degree == 0 || (q <= limit && look.key_norm() / bounds.balance <= limit &&
                           bounds.largest_weight <= limit && 1 / limit <= bounds.largest_weight);
  }

  /// The polynomial of a general family. Columns are rounded by the scale and their balance, in either
  /// direction, and queries scaled back: 6 u of the features' products.
  std::optional<ExpPolynomial> weighted_fit(Index head, const WeightedBounds& bounds, double value_spread,
                                            double tolerance, Candidate& c) const {
    const ExactRounding exact = planning_.rounding(head, {bounds.feature_radius, bounds.feature_radius});
    const double entry_error = kHigherOrder * 6 * kUnitRoundoff<Real> * bounds.feature_radius;
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
  Work with_exact_rows(double terms, ToeplitzRun& run, Candidate& c) const {
    const std::vector<double> expected = expected_transform_rounding<Real>(problem_, *run.transforms, terms);
    const double left = planning_.tolerance - c.error_bound;
    double exact_pairs = 0, worst = 0;
    constexpr Index kTile = QueryBlock<Real>::kTileRows;
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
    run.transforms->low_rank.allowed = allowed;
    c.error_bound += allowed;
    c.rounding += allowed;
    if (c.exact_rows == problem_.shapes.n_q) {
      c.feasible = false;
      c.reason = "the transforms' rounding would break the tolerance in every row";
    }
    const Work transformed = toeplitz_work<Real>(problem_, static_cast<double>(c.rank),
                                                 static_cast<double>(run.transforms->terms.size()));
    if (c.exact_rows == 0) return transformed;
    return transformed + tile_work<Real>(problem_, exact_pairs, static_cast<double>(c.exact_rows));
  }

  Planning<Real>& planning_;
  const Problem& problem_;
  bool positions_separate_;
  std::string refusal_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
