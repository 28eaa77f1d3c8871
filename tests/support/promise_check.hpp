// Holding the library to its promise: a problem is run at the tightest tolerance that is accepted for it, and
// at a looser one, and every head's observed error is held against the bound that its report states.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/attend/report.hpp"
#include "support/norms.hpp"
#include "support/promise_call.hpp"
#include "support/promise_oracle.hpp"
#include "support/promise_problem.hpp"
#include "support/promise_tally.hpp"

namespace fastrope_test {

/// The whole bound on max |out - exact| / max|V| of a head: approximation, arithmetic and the rounding of the
/// result. Its `rounding` is a part of it.
inline double promised(const fastrope::HeadReport& head) { return head.error_bound; }

/// Rows of a head that were computed again exactly, if its report says.
template <class Report>
long repaired_rows(const Report& head) {
  if constexpr (requires { head.repaired_rows; })
    return static_cast<long>(head.repaired_rows);
  else
    return 0;
}

/// The bound on row i of head h relative to max|V|, infinite where the report has none.
template <class Report>
double row_bound(const Report& report, Index h, Index i) {
  if constexpr (requires { report.row_bounds; }) {
    if (!report.row_bounds.empty())
      return report.row_bounds[static_cast<std::size_t>(h * report.shapes.n_q + i)];
  }
  return std::numeric_limits<double>::infinity();
}

/// Whether the plan takes what the problem is about: any approximation.
inline bool approximates(const fastrope::Report& report) {
  return std::any_of(report.heads.begin(), report.heads.end(),
                     [](const fastrope::HeadReport& head) { return head.path != fastrope::Path::exact; });
}

/// The smallest tolerance in [1e-6, 0.5], within a factor of 2^(19 / 2^steps), at which an approximation is
/// still taken; nothing where none is.
inline std::optional<double> tightest_tolerance(const PromiseProblem& problem, const PromiseCall& call,
                                                int steps) {
  const auto taken = [&](double tolerance) {
    const auto report = call.plan(problem.options(tolerance));
    return report && approximates(*report);
  };
  double tight = 1e-6, loose = 0.5;
  if (!taken(loose)) return {};
  if (taken(tight)) return tight;
  for (int step = 0; step < steps; ++step) {
    const double between = std::sqrt(tight * loose);
    (taken(between) ? loose : tight) = between;
  }
  return loose;
}

namespace detail {

/// The path that a head was given; "state": features of a bias or a window.
inline std::string kind_of(const PromiseProblem& problem, const fastrope::HeadReport& head) {
  std::string kind = to_string(head.path);
  if (!problem.call.base.kernel.is_softmax()) kind += "-kernel";
  if (head.path == fastrope::Path::toeplitz) {
    kind = "transforms";
  } else if (head.path == fastrope::Path::polynomial) {
    const std::string& how = head.candidates[1].how;
    if (how.find("running sums") != std::string::npos || how.find("recurrence") != std::string::npos)
      kind = "state";
    else if (problem.call.base.mask.first == 0)
      kind += "-causal";
  } else if (head.path == fastrope::Path::exact && problem.call.shapes.n_q == 1) {
    kind += "-decode";
  }
  if (!problem.call.log_gates.empty()) kind += "-gated";
  return kind;
}

/// `count` rows of n: the first, the last, and those between, a little off an even spread.
inline std::vector<Index> some_rows(Index n, Index count) {
  std::vector<Index> rows;
  if (n <= count) {
    for (Index i = 0; i < n; ++i) rows.push_back(i);
  } else {
    for (Index r = 0; r < count; ++r) {
      const Index step = (n - 1) / (count - 1), even = r * (n - 1) / (count - 1);
      rows.push_back(r == 0 || r == count - 1 ? even : even + (r * 7919) % step - step / 2);
    }
  }
  return rows;
}

/// As many rows as an oracle may take: all where that is cheap, else 64, fewer of very long ones.
inline std::vector<Index> checked_rows(const PromiseProblem& problem) {
  const fastrope::Shapes& s = problem.call.shapes;
  const double row = static_cast<double>(s.heads * s.n_k * (s.d + s.d_v + 16));
  const double all = row * static_cast<double>(s.n_q);
  const bool quick = problem.storage != Storage::float64;
  return some_rows(s.n_q, all < (quick ? 5e7 : 1e7) ? s.n_q : row > 1e6 ? 8 : quick ? 64 : 32);
}

template <class Real>
class PromiseCheck {
 public:
  /// Computes the exact rows. Views what is given.
  PromiseCheck(const PromiseProblem& problem, const PromiseCall& call)
      : problem_(problem), call_(call), rows_(checked_rows(problem)) {
    const Index heads = problem.call.shapes.heads;
    PromiseOracle<Real> oracle(problem, call);
    exact_.resize(static_cast<std::size_t>(heads) * rows_.size());
    for (Index h = 0; h < heads; ++h)
      for (std::size_t r = 0; r < rows_.size(); ++r) {
        oracle.weights(h, rows_[r]);
        oracle.average(call.v(), h, exact_[static_cast<std::size_t>(h) * rows_.size() + r]);
      }
    const TensorView<const double> v = call.v().view();
    for (Index kv = 0; kv < v.heads; ++kv)
      largest_.push_back(
          max_abs(TensorView<const double>(v.head(kv).data, 1, v.rows, v.cols, 0, v.row_stride)));
  }

  /// Runs at this tolerance; the largest observed error, or nothing where the path is refused.
  std::optional<double> at(double tolerance, PromiseTally& tally) const {
    Tensor<double> out;
    const auto report = call_.run(problem_.options(tolerance), out);
    if (!report) return {};
    double largest = 0;
    const Index group = problem_.call.shapes.heads / problem_.call.shapes.kv_heads;
    for (std::size_t h = 0; h < report->heads.size(); ++h) {
      const fastrope::HeadReport& head = report->heads[h];
      PromiseCounts& counts = tally.kinds[kind_of(problem_, head) + '/' + to_string(problem_.storage)];
      const double size = largest_[h / static_cast<std::size_t>(group)];
      double observed = 0;
      for (std::size_t r = 0; r < rows_.size(); ++r) {
        const double error = row_error(out, h, r) / (size > 0 ? size : 1);
        observed = std::max(observed, error);
        const double bound = row_bound(*report, static_cast<Index>(h), rows_[r]);
        if (!(error <= bound))
          broken(counts, tally, tolerance, h, "row ", rows_[r], " is off by ", error, ", its bound is ",
                 bound);
      }
      const double bound = problem_.call.base.kernel.is_softmax() ? promised(head) : HUGE_VAL;
      counts.add(bound, observed, problem_.seed);
      largest = std::max(largest, observed);
      counts.rows += static_cast<long>(problem_.call.shapes.n_q);
      counts.repaired += repaired_rows(head);
      if (!(observed <= bound))
        broken(counts, tally, tolerance, h, "the error is ", observed, ", promised is ", bound, ", ratio ",
               observed / bound);
      if (tolerance == 0 || !std::isfinite(bound)) continue;
      if (head.path != fastrope::Path::exact) {
        if (!(bound - result_rounding(problem_.storage) * (1 + bound) <= tolerance * (1 + 1e-9)))
          broken(counts, tally, tolerance, h, "promised is ", bound, ", more than the tolerance");
      } else if (bound - result_rounding(problem_.storage) * (1 + bound) > tolerance &&
                 head.reason.find("tolerance") == std::string::npos) {
        broken(counts, tally, tolerance, h, "promised is ", bound,
               ", and the reason does not say so: ", head.reason);
      }
    }
    return largest;
  }

 private:
  double row_error(const Tensor<double>& out, std::size_t h, std::size_t r) const {
    const std::vector<Real>& exact = exact_[h * rows_.size() + r];
    double largest = 0;
    for (Index c = 0; c < out.cols; ++c) {
      const Real difference =
          static_cast<Real>(out(static_cast<Index>(h), rows_[r], c)) - exact[static_cast<std::size_t>(c)];
      const double size = std::abs(static_cast<double>(difference));
      largest = std::max(largest, std::isnan(size) ? HUGE_VAL : size);
    }
    return largest;
  }

  template <class... Parts>
  void broken(PromiseCounts& counts, PromiseTally& tally, double tolerance, std::size_t h,
              const Parts&... parts) const {
    std::ostringstream text;
    text.precision(4);
    text << problem_ << ", tolerance " << tolerance << ", head " << h << ": ";
    (text << ... << parts);
    ++counts.violations;
    tally.violations.push_back(text.str());
  }

  const PromiseProblem& problem_;
  const PromiseCall& call_;
  std::vector<Index> rows_;
  std::vector<std::vector<Real>> exact_ = {};  // [heads, rows_] of d_v
  std::vector<double> largest_ = {};           // max|V| of each key head
};

}  // namespace detail

/// f(Real{}) for a number with enough digits to judge the arithmetic of a storage.
template <class F>
auto with_oracle_type(Storage storage, F&& f) {
  return storage == Storage::float64 ? f(static_cast<long double>(0)) : f(static_cast<double>(0));
}

/// The problem with values in which a row's errors of weights at `tolerance` add up: v(j, c) = sign(w'_j -
/// w_j) of one of the rows where these errors are largest, one for each channel. As it was where the path is
/// refused. make_call: make_promise_call, or the same for the storage at hand.
template <class MakeCall>
PromiseProblem with_signs_of_errors(PromiseProblem problem, double tolerance, MakeCall&& make_call) {
  fastrope::Shapes& s = problem.call.shapes;
  const Index d_v = s.d_v, group = s.heads / s.kv_heads;
  Tensor<double> identity(s.kv_heads, s.n_k, s.n_k);
  for (Index kv = 0; kv < s.kv_heads; ++kv)
    for (Index j = 0; j < s.n_k; ++j) identity(kv, j, j) = 1;
  std::swap(problem.v, identity);
  s.d_v = s.n_k;
  const auto call = make_call(problem);
  Tensor<double> used;
  const bool run = call->run(problem.options(tolerance), used).has_value();
  s.d_v = d_v;
  std::swap(problem.v, identity);
  if (!run) return problem;
  with_oracle_type(problem.storage, [&](auto real) {
    using Real = decltype(real);
    PromiseOracle<Real> oracle(problem, *call);
    for (Index kv = 0; kv < s.kv_heads; ++kv) {
      std::vector<std::pair<double, std::vector<double>>> rows;  // sum_j |w' - w| and the signs
      for (Index h = kv * group; h < (kv + 1) * group; ++h)
        for (Index i = 0; i < s.n_q; ++i) {
          const std::vector<Real>& exact = oracle.weights(h, i);
          auto& [sum, signs] = rows.emplace_back();
          for (Index j = 0; j < s.n_k; ++j) {
            const double error =
                static_cast<double>(static_cast<Real>(used(h, i, j)) - exact[static_cast<std::size_t>(j)]);
            sum += std::abs(error);
            signs.push_back(error < 0 ? -1 : 1);
          }
        }
      const auto kept = std::min<std::ptrdiff_t>(d_v, std::ssize(rows));
      std::partial_sort(rows.begin(), rows.begin() + kept, rows.end(),
                        [](const auto& a, const auto& b) { return a.first > b.first; });
      for (Index c = 0; c < d_v; ++c)
        for (Index j = 0; j < s.n_k; ++j)
          problem.v(kv, j, c) = rows[static_cast<std::size_t>(c % kept)].second[static_cast<std::size_t>(j)];
    }
  });
  return problem;
}

/// The tolerances to run a problem at: the tightest one and a looser one, or where nothing can be refused its
/// loose one; none where every approximation is refused.
inline std::vector<double> tolerances_of(const PromiseProblem& problem, const PromiseCall& call) {
  if (!problem.seeks_approximation()) {
    const bool planned = problem.call.base.path == fastrope::Path::automatic;
    return {planned ? problem.loose_tolerance : 0};
  }
  const fastrope::Shapes& s = problem.call.shapes;
  const int steps = s.d > 100                 ? 3
                    : s.d > 8 || s.n_k > 1000 ? 5
                    : s.d > 4 || s.heads > 1  ? 8
                                              : 12;  // by what plans cost
  const auto tightest = tightest_tolerance(problem, call, steps);
  if (!tightest) return {};
  return {*tightest, std::min(0.5, *tightest * (1 + 1000 * problem.loose_tolerance))};
}

/// Runs a problem at its tolerances and adds what was seen to the tally.
inline void check_promise(PromiseProblem problem, PromiseTally& tally) {
  auto call = make_promise_call(problem);
  std::vector<double> tolerances = tolerances_of(problem, *call);
  if (problem.adversarial_values && !tolerances.empty()) {
    problem = with_signs_of_errors(std::move(problem), tolerances.front(), make_promise_call);
    call = make_promise_call(problem);
    tolerances = tolerances_of(problem, *call);
  }
  const auto refuse = [&] {
    ++tally.kinds[std::string(to_string(problem.call.base.path)) + "-refused/" + to_string(problem.storage)]
          .refused;
  };
  if (tolerances.empty()) return refuse();
  with_oracle_type(problem.storage, [&](auto real) {
    const detail::PromiseCheck<decltype(real)> check(problem, *call);
    for (const double tolerance : tolerances)
      if (!check.at(tolerance, tally)) refuse();
  });
}

/// The problem of a seed, whatever happens.
inline void check_promise(std::uint64_t seed, PromiseSize size, PromiseTally& tally) {
  try {
    check_promise(make_promise_problem(seed, size), tally);
  } catch (const std::exception& error) {
    ++tally.kinds["failed"].violations;
    tally.violations.push_back("seed " + std::to_string(seed) + ": " + error.what());
  }
}

}  // namespace fastrope_test
