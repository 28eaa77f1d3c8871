// The promise on heads that were trained, tempered until polynomials serve and beyond, and where radii end
// that a degree can do; for the values that are worst.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iostream>
#include <string>
#include <vector>

#include "support/bounded_heads.hpp"
#include "support/plain_llama.hpp"
#include "support/promise_check.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

const std::string kModelsDir = FASTROPE_MODELS_DIR;
const std::string kHeadsDir = FASTROPE_HEADS_DIR;

class Heads : public testing::TestWithParam<Storage> {
 protected:
  /// Holds a forced polynomial path of one head to its promise, at `tolerance` and for the signs of its
  /// errors.
  void check(PromiseProblem problem, const Tensor<double>& q, const Tensor<double>& k, double tolerance) {
    problem.storage = GetParam();
    problem.call.base.path = Path::polynomial;
    problem.call.shapes = {1, 1, q.rows, k.rows, q.cols, 8};
    problem.q = q;
    problem.k = k;
    problem.v = Tensor<double>(1, k.rows, 8);
    for (Index j = 0; j < k.rows; ++j) problem.v(0, j, j % 8) = 1;
    problem = with_signs_of_errors(std::move(problem), tolerance, make_promise_call);
    const auto call = make_promise_call(problem);
    const bool kept = with_oracle_type(GetParam(), [&](auto real) {
      return detail::PromiseCheck<decltype(real)>(problem, *call).at(tolerance, tally_).has_value();
    });
    ++(kept ? kept_ : refused_);
  }

  void expect(int kept, int refused) {
    tally_.print(std::cout);
    std::cout << kept_ << " kept, " << refused_ << " refused\n";
    EXPECT_GE(kept_, kept);
    EXPECT_GE(refused_, refused) << "problems that are too easy say little";
    for (const std::string& violation : tally_.violations) ADD_FAILURE() << violation;
  }

 private:
  PromiseTally tally_ = {};
  int kept_ = 0, refused_ = 0;
};
INSTANTIATE_TEST_SUITE_P(Promise, Heads, testing::Values(Storage::float32, Storage::float64),
                         [](const auto& test) { return to_string(test.param); });

TEST_P(Heads, OfBoundedModels) {
  if (kHeadsDir.empty()) GTEST_SKIP() << "set the CMake variable FASTROPE_HEADS_DIR to the folder of heads";
  Inputs random(2);
  for (const BoundedHead& head : read_bounded_heads(kHeadsDir + "/bounded_lm_heads.bin"))
    for (const double tolerance : {1e-1, 1e-2})
      for (int repeat = 0; repeat < 2; ++repeat) {
        PromiseProblem problem;
        problem.call.base.scale = 1.0;
        problem.call.base.rope = Rope{};
        const Index n_k = 400, n_q = 100, begin = random.integer(0, head.q.rows - n_k);
        const auto slice = [&](const Tensor<float>& x, Index first, Index n) {
          return converted<double>(
              TensorView<const float>{x.view().head(0).row(first), 1, n, x.cols, 0, x.cols});
        };
        check(problem, slice(head.q, begin + n_k - n_q, n_q), slice(head.k, begin, n_k), tolerance);
      }
  expect(20, 0);
}

TEST_P(Heads, OfATrainedModel) {
  // Its logits reach hundreds.
  if (kModelsDir.empty())
    GTEST_SKIP() << "set the CMake variable FASTROPE_MODELS_DIR to the folder of models";
  PlainLlama model(kModelsDir + "/stories260K.bin");
  model.greedy({1}, 150);
  const auto d = static_cast<Index>(model.head_size());
  const auto rows = [&](const std::vector<PlainLlama::Vector>& tokens, std::size_t head) {
    Tensor<double> x(1, static_cast<Index>(tokens.size()), d);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      std::copy_n(tokens[i].begin() + static_cast<std::ptrdiff_t>(head) * d, d,
                  &x(0, static_cast<Index>(i), 0));
    return x;
  };
  for (std::size_t layer = 0; layer < model.queries().size(); ++layer)
    for (std::size_t head = 0; head < model.heads(); head += 2)
      for (const double temper : {1.0, 0.1, 0.01, 0.003}) {
        PromiseProblem problem;
        problem.seed = layer;
        problem.call.base.scale = temper / std::sqrt(static_cast<double>(d));
        check(problem, rows(model.queries()[layer], head),
              rows(model.keys()[layer], head / (model.heads() / model.kv_heads())), 1e-2);
      }
  expect(40, 10);
}

TEST_P(Heads, WhoseEntriesAreAtTheEndOfTheRange) {
  // Just inside and outside of what a degree can do: the plan says so or keeps it.
  Inputs random(3);
  for (const double tolerance : {1e-1, 1e-2, 1e-3})
    for (double radius = 0.05; radius < 40; radius *= 1.03) {
      PromiseProblem problem;
      problem.call.base.scale = radius;
      Tensor<double> q(1, 8, 1), k(1, 90, 1);
      for (double& x : q.values) x = random.integer(0, 1) == 0 ? -1 : 1;
      for (Index j = 0; j < k.rows; ++j) k(0, j, 0) = 2 * static_cast<double>(j) / 90 - 1;
      check(problem, q, k, tolerance);
    }
  expect(200, 10);
}

}  // namespace
}  // namespace fastrope_test
