// Polynomial candidates: heads by features and states.
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
#include "fastrope/plan/head_report.hpp"
#include "fastrope/plan/lag_tails.hpp"
#include "fastrope/plan/look.hpp"
#include "fastrope/plan/planning.hpp"
#include "fastrope/plan/work.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/polynomial/kernel_rounding.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/toeplitz/head.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The bound by features beyond which rows of a polynomial kernel are computed by exact tiles, where no
/// tolerance says.
inline constexpr double kKernelRowBound = 1e-2;

/// How the positions of a head's far pairs separate into a factor of the row and one of the key.
struct Separation {
  std::string refusal = {};            ///< why they do not; else empty
  std::optional<LagTails> tails = {};  ///< of a bias or a window; none where a mask alone is between them
  FarFactor factor = {};               ///< of the keys behind a row,
  FarFactor later_factor = {};         ///< and of those before it
  double factor_error = 0;             ///< relative, of either
  bool may_weigh_keys = true;
  std::string how = {};

  /// Chunks of so many rows, with their far keys.
  std::vector<FarPairs> chunks(const Problem& problem, Arithmetic arithmetic, Index rows) const {
    return with_real(arithmetic, [&](auto real) {
      using Real = typename decltype(real)::type;
      return tails ? tail_chunks<Real>(problem, *tails, rows) : far_chunks<Real>(problem, rows);
    });
  }
};

/// Of one head. refusal: polynomial_refusal(problem).
inline Separation separate(const Problem& problem, Index head, const std::string& refusal,
                           Arithmetic arithmetic) {
  Separation s;
  if (refusal.empty()) return s;
  s.refusal = refusal;
  if (problem.weights || !toeplitz_refusal(problem).empty()) return s;
  s.tails = find_lag_tails(problem, head);
  bool past = false, later = false, removes = false;
  for (const FarPairs& chunk : s.chunks(problem, arithmetic, CostModel::kLeastChunk)) {
    past = past || chunk.far > chunk.first;
    later = later || !chunk.later.empty();
    removes = removes || chunk.first > 0 || (!chunk.later.empty() && chunk.later.end < problem.shapes.n_k);
  }
  if (!past && !later) return s;
  s.refusal.clear();
  // A heavy key that leaves a window would leave its rounding behind.
  s.may_weigh_keys = !removes;
  // Of a factor: its line misses the bias, its exponent is rounded in double in a few parts, and it is
  // rounded and multiplied by the key's weight.
  for (const auto& tail : {s.tails->past, s.tails->later}) {
    if (!tail) continue;
    const LagGrid::Lags lags = s.tails->allowed;
    const double exponents = std::abs(tail->factor.level) +
                             std::abs(tail->factor.slope) * static_cast<double>(lags.last - lags.first);
    s.factor_error = std::max(s.factor_error, tail->miss + 8 * kUnitRoundoff<double> * exponents);
  }
  s.factor_error += 3 * epsilon_of(arithmetic) / 2;
  const auto announce = [&](const LagTail& tail, const char* from) {
    if (!s.how.empty()) s.how += ", ";
    s.how += tail.factor.slope == 0 ? detail::message("running sums for lags ", from, tail.inner)
                                    : detail::message("a recurrence with slope ", tail.factor.slope,
                                                      " for lags ", from, tail.inner);
  };
  if (past) announce(*s.tails->past, ">= ");
  if (later) announce(*s.tails->later, "<= ");
  if (past) s.factor = s.tails->past->factor;
  if (later) s.later_factor = s.tails->later->factor;
  return s;
}

class PolynomialCandidates {
 public:
  explicit PolynomialCandidates(Planning& planning)
      : planning_(planning), refusal_(polynomial_refusal(planning.problem)) {}

  /// Whether positions separate in every head, without a bias or a window.
  bool separates() const { return refusal_.empty(); }

  /// Query heads that share their features, `queries` of the group, all of the cost counted; unit is what
  /// runs, if it costs less than `budget` seconds. Heads share them only where positions separate in every
  /// head.
  Candidate softmax(Range heads, GroupLook& look, Range queries, double budget,
                    std::optional<LowRankUnit>& unit) const {
    const Problem& problem = planning_.problem;
    const PathCosts& costs = planning_.costs;
    const Separation separation = separate(problem, heads.begin, refusal_, costs.arithmetic());
    Candidate c{.path = Path::polynomial, .feasible = false, .reason = separation.refusal};
    if (!c.reason.empty()) return c;
    const auto ways = chunkings(separation);
    constexpr double kLeastRank = 2;  // degree 1 in one variable
    double most = 0;
    for (const std::vector<FarPairs>& chunks : ways) {
      const auto seconds = [&](double rank) {
        return costs.seconds(costs.polynomial(rank, heads.size(), chunks));
      };
      most = std::max(most, most_rank(budget, seconds(0), seconds(1)));
    }
    if (most < kLeastRank) {
      c.reason = "for these shapes features of any rank are more work than the exact path";
      return c;
    }
    const auto fit = planning_.low_rank(look, heads.begin, queries, ways.front(),
                                        {.tolerance = planning_.tolerance,
                                         .may_weigh_keys = separation.may_weigh_keys,
                                         .factor_error = separation.factor_error,
                                         .most_rank = most},
                                        c);
    if (!fit) return c;
    if (!separation.how.empty()) c.how += ", " + separation.how;
    LowRankUnit made = planning_.unit(heads, *fit);
    made.factor = separation.factor;
    made.later_factor = separation.later_factor;
    if (finish(costs.best_chunks(fit->rank, heads.size(), ways), heads.size(), c, made) < budget)
      unit = std::move(made);
    return c;
  }

  /// The features of a polynomial kernel, which approximate nothing, for heads of a key head that have the
  /// same gates.
  Candidate kernel(Range heads, std::optional<LowRankUnit>& unit) const {
    const Problem& problem = planning_.problem;
    const auto kernel = problem.kernel.coefficients();
    Candidate c{.path = Path::polynomial, .feasible = false, .reason = refusal_};
    const std::vector<int> limits = simplex_limits(problem.shapes.d, problem.kernel.degree());
    const Degrees degrees = problem.kernel.is_power() ? Degrees::highest : Degrees::all;
    if (!c.reason.empty() || !planning_.set_rank(c, limits, degrees)) return c;
    c.how = "exact for this kernel";
    c.error_bound = c.rounding = std::numeric_limits<double>::infinity();
    const Position farthest = problem.farthest_turn();
    unit = LowRankUnit{.heads = heads,
                       .projection = Projection::none(problem.shapes.d),
                       .coefficients = {kernel.begin(), kernel.end()},
                       .monomials = planning_.monomials(limits, degrees),
                       .chunks = {},
                       .allowed = planning_.tolerance > 0 ? planning_.tolerance : kKernelRowBound,
                       .entry_error = with_real(planning_.costs.arithmetic(), [&](auto real) {
                         return row_rounding<typename decltype(real)::type>(problem, farthest);
                       })};
    const auto rank = static_cast<double>(c.rank);
    finish(planning_.costs.best_chunks(rank, heads.size(), chunkings({})), heads.size(), c, *unit);
    return c;
  }

 private:
  std::vector<std::vector<FarPairs>> chunkings(const Separation& separation) const {
    return CostModel::chunkings(planning_.problem, [&](Index rows) {
      return separation.chunks(planning_.problem, planning_.costs.arithmetic(), rows);
    });
  }

  /// Gives the unit its chunks, and the candidate their cost, which is returned in seconds.
  double finish(std::vector<FarPairs> chunks, Index heads, Candidate& c, LowRankUnit& unit) const {
    planning_.count(planning_.costs.polynomial(static_cast<double>(c.rank), heads, chunks), c);
    if (chunks.size() > 1)
      c.how += detail::message(", near fields exact in ", chunks.size(), " chunks of rows");
    if (heads > 1) c.how += detail::message(", features shared by ", heads, " heads");
    unit.chunks = std::move(chunks);
    return c.seconds;
  }

  Planning& planning_;
  std::string refusal_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
