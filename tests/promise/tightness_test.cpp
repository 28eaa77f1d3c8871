// Bounds that hold are not enough: they also have to be near what can happen. For each path the largest
// observed / promised is looked for: extreme radii, keys at both ends, needles, values that are the signs of
// the weights' own errors, and a tolerance just above what a plan promises.
#include <gtest/gtest.h>

#include <cmath>
#include <iomanip>
#include <iostream>
#include <string>
#include <vector>

#include "support/promise_check.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

/// What a search is about, and what it has to find.
struct Target {
  const char* name;
  const char* kind;  ///< of detail::kind_of
  Storage storage;
  int problems;
  double least;  ///< observed / promised
};
void PrintTo(const Target& target, std::ostream* out) { *out << target.name; }

/// A small problem that the target's path takes, of rows along one direction or a few.
PromiseProblem problem_for(const Target& target, std::uint64_t seed) {
  Inputs random(seed * 7919 + 1);
  const std::string name = target.name;
  const bool exact = name.starts_with("exact") || name == "decode";
  const bool behind =
      name == "causal" || name == "window" || name == "decay";  // far keys come before the queries
  PromiseProblem problem;
  problem.seed = seed;
  problem.storage = target.storage;
  const auto size = [&](double low, double high) {
    return static_cast<Index>(std::exp(random.uniform(std::log(low), std::log(high))));
  };
  const Index d = exact ? size(1, 8) : random.integer(1, 3);
  const Index n_q = name == "decode" ? 1 : random.integer(8, 24);
  const Index n_k = name == "window" ? random.integer(560, 640)
                    : behind         ? random.integer(290, 340)
                                     : size(2, exact ? 12 : 160);
  problem.call.shapes = {1, 1, n_q, n_k, d, std::min<Index>(n_q, 8)};

  Options& options = problem.call.base;
  options.scale = 1.0;
  options.path = exact ? Path::automatic : name == "transforms" ? Path::toeplitz : Path::polynomial;
  if (name == "causal") options.mask = Mask::causal();
  if (name == "window") options.mask = Mask::sliding_window(random.integer(n_k - 20, n_k));
  if (name == "decay") {
    const double slope = random.uniform(-0.02, 0.05);
    options.mask = Mask::causal();
    options.bias = LagBias::alibi({slope});
    problem.bias = alibi_formula({slope});
  }
  if (name == "transforms") {
    const std::vector<double> table = random_numbers(random, 2 * (n_q + n_k) + 1, -0.5, 0.5);
    options.bias = LagBias::table(table, 1, -(n_q + n_k));
    problem.bias = table_formula(table, 1, -(n_q + n_k));
  }

  const double radius = std::exp(exact ? random.uniform(std::log(20.0), std::log(400.0))
                                       : random.uniform(std::log(0.02), std::log(6.0)));
  const Tensor<double> direction = random.sphere<double>(1, 1, d, 1);
  const auto kind = random.integer(0, 3);
  const auto fill = [&](Tensor<double>& x, Index rows, auto&& length) {
    x = kind == 3 ? random.gaussian<double>(1, rows, d, 0.5 / std::sqrt(static_cast<double>(d)))
                  : Tensor<double>(1, rows, d);
    for (Index i = 0; kind != 3 && i < rows; ++i) {
      const double along = length(i);
      for (Index c = 0; c < d; ++c) x(0, i, c) = along * direction(0, 0, c);
    }
    for (double& value : x.values) value *= std::sqrt(radius);
  };
  const auto end = [&](Index) { return random.integer(0, 1) == 0 ? -1.0 : 1.0; };
  const auto anywhere = [&](Index) { return random.uniform(-1, 1); };
  fill(problem.q, n_q, [&](Index i) { return kind == 0 ? end(i) : anywhere(i); });
  fill(problem.k, n_k, [&](Index j) {
    if (exact) return 1 - 2 / radius * random.uniform(0, 1);  // weights of about the same size
    return kind == 0 ? end(j) : kind == 1 ? (j % 16 == 5 ? 0.0 : -1.0) : anywhere(j);
  });
  problem.v = random.gaussian<double>(1, n_k, problem.call.shapes.d_v);
  problem.loose_tolerance = exact ? 0.5 : std::pow(10.0, random.uniform(-4, -0.5));
  return problem;
}

class Tightness : public testing::TestWithParam<Target> {};

TEST_P(Tightness, OfTheBound) {
  const Target target = GetParam();
  if (target.storage == Storage::bfloat16_to_float && !pairs_pay())
    GTEST_SKIP() << "this processor multiplies floats faster";
  PromiseTally tally;
  for (int seed = 0; seed < target.problems; ++seed) {
    PromiseProblem problem = problem_for(target, static_cast<std::uint64_t>(seed));
    auto call = make_promise_call(problem);
    double tolerance = problem.loose_tolerance;
    const auto tighten = [&] {
      const auto report = call->plan(problem.options(tolerance));
      if (!report) return false;
      const double bound = promised(report->heads.front()) * (1 + 1e-6);
      if (problem.call.base.path == Path::automatic || bound >= tolerance) return true;
      if (call->plan(problem.options(bound))) tolerance = bound;
      return true;
    };
    if (!tighten()) continue;
    // Where results are rounded to few digits, that is the largest error, of results near max|V|.
    if (result_rounding(problem.storage) > 1e-3)
      for (double& value : problem.v.values) value = 1 + 0.01 * std::abs(value);
    else
      problem = with_signs_of_errors(std::move(problem), tolerance, make_promise_call);
    call = make_promise_call(problem);
    tolerance = problem.loose_tolerance;
    if (!tighten()) continue;
    with_oracle_type(problem.storage, [&](auto real) {
      detail::PromiseCheck<decltype(real)>(problem, *call).at(tolerance, tally);
    });
  }
  for (const std::string& violation : tally.violations) ADD_FAILURE() << violation;
  const auto found = tally.kinds.find(std::string(target.kind) + '/' + to_string(target.storage));
  ASSERT_NE(found, tally.kinds.end());
  const PromiseCounts& counts = found->second;
  std::cout << std::left << std::setw(24) << target.name << "largest observed / promised " << counts.closest
            << ", seed " << counts.seed << ", of " << counts.heads << " heads\n";
  EXPECT_GE(counts.closest, target.least);
}

// What a bound of each path has to be worth.
INSTANTIATE_TEST_SUITE_P(Promise, Tightness,
                         testing::Values(Target{"exact tiles", "exact", Storage::float32, 12000, 0.1},
                                         Target{"exact in double", "exact", Storage::float64, 12000, 0.1},
                                         Target{"decode", "exact-decode", Storage::float32, 12000, 0.1},
                                         Target{"exact bfloat16 products", "exact",
                                                Storage::bfloat16_to_float, 1500, 0.1},
                                         Target{"exact, bfloat16 out", "exact", Storage::bfloat16, 500, 0.1},
                                         Target{"full", "polynomial", Storage::float32, 300, 0.1},
                                         Target{"full in double", "polynomial", Storage::float64, 200, 0.1},
                                         Target{"causal", "polynomial-causal", Storage::float32, 200, 0.1},
                                         Target{"window", "state", Storage::float32, 200, 0.1},
                                         Target{"decay", "state", Storage::float32, 200, 0.1},
                                         Target{"transforms", "transforms", Storage::float32, 300, 0.1}));

}  // namespace
}  // namespace fastrope_test
