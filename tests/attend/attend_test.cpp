// The one call: refusals that name the values before any work, and the two regimes of the papers, where the
// fast paths must be chosen, keep their promise and be faster than exact attention.
#include "fastrope/attend/attend.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <initializer_list>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/eigen.hpp"
#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"
#include "support/measurable.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::HasSubstr;

/// A valid call that each test spoils in one way.
class AttendRefusesTest : public testing::Test {
 protected:
  AttentionCase c_{.shapes = {4, 2, 10, 20, 8, 5}};
  AttentionInputs<float> in_{c_.shapes, 1};
  TensorView<const float> q_ = in_.q.view(), k_ = in_.k.view(), v_ = in_.v.view();
  TensorView<float> out_ = in_.out.view();

  /// attend throws an Error that contains every text, and leaves the output alone.
  void expect_error(std::initializer_list<const char*> texts) {
    try {
      attend(q_, k_, v_, out_, c_.options());
      ADD_FAILURE() << "no Error with " << *texts.begin();
    } catch (const Error& error) {
      for (const char* text : texts) EXPECT_THAT(error.what(), HasSubstr(text));
    }
    for (float x : in_.out.values) EXPECT_TRUE(std::isnan(x)) << "written before the refusal";
  }
};

TEST_F(AttendRefusesTest, TheCallThatTheseTestsSpoilIsValid) {
  attend(q_, k_, v_, out_, c_.options());
  EXPECT_LE(max_abs_difference(out_, in_.reference(c_).out.view()), 4e-6);
}

TEST_F(AttendRefusesTest, HeadsThatDoNotDivide) {
  const Tensor<float> k(3, 20, 8), v(3, 20, 5);
  k_ = k.view();
  v_ = v.view();
  expect_error({"4 heads", "3", "multiple"});
}

TEST_F(AttendRefusesTest, NoKeyHeads) {
  k_.heads = v_.heads = 0;
  expect_error({"4 heads", "0"});
}

TEST_F(AttendRefusesTest, OddWidthWithRope) {
  const Tensor<float> q(4, 10, 7), k(2, 20, 7);
  q_ = q.view();
  k_ = k.view();
  c_.base.rope = Rope{};
  expect_error({"rope", "even", "7"});
}

TEST_F(AttendRefusesTest, RotaryDimBeyondTheWidth) {
  c_.base.rope = Rope{.rotary_dim = 10};
  expect_error({"rotary_dim 10", "d = 8"});
}

TEST_F(AttendRefusesTest, OddRotaryDim) {
  c_.base.rope = Rope{.rotary_dim = 5};
  expect_error({"rotary_dim", "even", "5"});
}

TEST_F(AttendRefusesTest, RopeThatIsOnlyDescribedIsCheckedToo) {
  c_.base.rope = Rope{.rotary_dim = 10};
  c_.base.rope_already_applied = true;
  expect_error({"rotary_dim 10", "d = 8"});
}

TEST_F(AttendRefusesTest, KeysOfAnotherWidth) {
  const Tensor<float> k(2, 20, 6);
  k_ = k.view();
  expect_error({"k has d = 6", "q has d = 8"});
}

TEST_F(AttendRefusesTest, ValuesOfAnotherLengthOrHeads) {
  v_.rows = 19;
  expect_error({"v has n_k = 19", "k has n_k = 20"});
  v_.rows = 20;
  v_.heads = 1;
  expect_error({"v has 1 heads", "k has 2"});
}

TEST_F(AttendRefusesTest, OutputOfAnotherShape) {
  out_.cols = 4;
  expect_error({"out is [4, 10, 4]", "n_q = 10", "d_v = 5"});
  out_ = in_.out.view();
  out_.rows = 9;
  expect_error({"out is [4, 9, 5]"});
  out_ = in_.out.view();
  out_.row_stride = 0;
  expect_error({"row_stride 0", "overwrite each other"});
  out_ = in_.out.view();
  out_.row_stride = 4;
  expect_error({"out is [4, 10, 5]", "row_stride 4", "overwrite each other"});
  out_ = in_.out.view();
  out_.head_stride = 48;
  expect_error({"head_stride 48"});
}

TEST_F(AttendRefusesTest, NullPointersWithASize) {
  q_.data = nullptr;
  expect_error({"q is a null pointer", "[4, 10, 8]"});
  q_ = in_.q.view();
  k_.data = nullptr;
  expect_error({"k is a null pointer", "[2, 20, 8]"});
  k_ = in_.k.view();
  v_.data = nullptr;
  expect_error({"v is a null pointer", "[2, 20, 5]"});
  v_ = in_.v.view();
  out_.data = nullptr;
  expect_error({"out is a null pointer", "[4, 10, 5]"});
}

TEST_F(AttendRefusesTest, NegativeSizes) {
  q_.rows = -1;
  expect_error({"q has a negative size", "-1"});
}

TEST_F(AttendRefusesTest, Tolerances) {
  c_.base.tolerance = -0.25;
  expect_error({"tolerance", "-0.25"});
  c_.base.tolerance = NAN;
  expect_error({"tolerance", "nan"});
  c_.base.tolerance = INFINITY;
  expect_error({"tolerance", "inf"});
}

TEST_F(AttendRefusesTest, AForcedPathThatCannotMeetTheTolerance) {
  c_.base.scale = 1000.0;
  for (const Path path : {Path::polynomial, Path::toeplitz}) {
    c_.base.path = path;
    c_.base.tolerance = 0.125;
    expect_error({to_string(path), "0.125", "entry bound"});
    c_.base.tolerance = 0;
    expect_error({to_string(path), "tolerance 0"});
  }
}

TEST_F(AttendRefusesTest, AForcedPathThatTheOptionsRuleOut) {
  c_.base.tolerance = 0.5;
  c_.base.softcap = 5;
  for (const Path path : {Path::polynomial, Path::toeplitz}) {
    c_.base.path = path;
    expect_error({to_string(path), "softcap"});
  }
}

TEST_F(AttendRefusesTest, ABiasTableTooShortForTheLags) {
  // Lags of 10 queries at 10..19 and keys at 0..19: -9..19.
  c_.base.bias = LagBias::table(std::vector<double>(28), 1, -9);
  expect_error({"-9..18", "-9..19"});
  c_.base.bias = LagBias::table(std::vector<double>(28), 1, -8);
  expect_error({"-8..19", "-9..19"});
  c_.base.bias = LagBias::table(std::vector<double>(3 * 29), 3, -9);
  expect_error({"3 heads", "4"});
}

TEST_F(AttendRefusesTest, RelativeWeightsThatDoNotFit) {
  Inputs random(2);
  c_.base.weights = random_weights(random, 8, 3, 18);
  expect_error({"-18..18", "-9..19"});
  c_.base.weights = RelativeWeights({{0, 8}}, -30, std::vector<double>(61));
  expect_error({"(0, 8)", "d = 8"});
  c_.base.weights = random_weights(random, 8, 3, 30);
  c_.base.rope = Rope{};
  expect_error({"weights", "rope"});
}

TEST_F(AttendRefusesTest, PositionsOfAnotherLength) {
  c_.query_positions = {1, 2, 3};
  expect_error({"query_positions", "3", "10"});
  c_.query_positions.clear();
  c_.key_positions.assign(21, 0);
  expect_error({"key_positions", "21", "20"});
  c_.key_positions.assign(20, Position{1} << 41);
  expect_error({"key_positions", std::to_string(Position{1} << 41).c_str()});
}

TEST_F(AttendRefusesTest, SinksSoftcapScaleAndDenseBias) {
  c_.sinks = {1, 2, 3};
  expect_error({"sinks", "3", "4"});
  c_.sinks = {1, 2, 3, INFINITY};
  expect_error({"sink", "inf"});
  c_.sinks.clear();
  c_.base.softcap = -2.5;
  expect_error({"softcap", "-2.5"});
  for (const double softcap :
       {1e-280, 1e300}) {  // found by fuzzing: infinite, or zero times infinity, in float
    c_.base.softcap = softcap;
    expect_error({"softcap", "1e"});
  }
  c_.base.softcap = 0;
  for (const double scale : {double{NAN}, 1e31, -1e300}) {
    c_.base.scale = scale;
    expect_error({"scale"});
  }
  c_.base.scale.reset();
  std::vector<float> dense(200);
  c_.base.dense_bias = {dense.data(), 1, 10, 20, 200, 20};
  expect_error({"dense_bias is [1, 10, 20]", "[4, 10, 20]"});
}

TEST_F(AttendRefusesTest, AnExecutorThatThrows) {
  c_.base.executor = Executor(1, [](Index, TaskRef) { throw 1; });
  expect_error({"executor"});
}

TEST(Attend, TakesEigenMatricesAndMaps) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Matrix q = Matrix::Random(20, 8), k = Matrix::Random(30, 8), v = Matrix::Random(30, 5);
  Matrix out(20, 5);
  std::vector<float> memory(20 * 5);
  Eigen::Map<Matrix> map(memory.data(), 20, 5);
  attend(q, k, v, out, {});
  attend(q, k, v, map, {});
  EXPECT_EQ(out, map);
  const Reference reference = reference_attention(as_tensor(q), as_tensor(k), as_tensor(v), {});
  EXPECT_LE(max_abs_difference(as_tensor(out), reference.out.view()), 4e-6);
}

/// Median seconds of some runs of each plan, taken in turns so that a busy machine slows both.
template <class Real>
std::pair<double, double> race(const Plan<Real>& a, const Plan<Real>& b, AttentionInputs<Real>& in) {
  constexpr std::size_t kRuns = 5;
  std::vector<std::byte> workspace(std::max(a.workspace_bytes(), b.workspace_bytes()));
  std::vector<double> seconds[2];
  for (std::size_t turn = 0; turn < 2 * kRuns; ++turn) {
    const Plan<Real>& plan = turn % 2 == 0 ? a : b;
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok);
    seconds[turn % 2].push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  for (std::vector<double>& runs : seconds) std::sort(runs.begin(), runs.end());
  return {seconds[0][kRuns / 2], seconds[1][kRuns / 2]};
}

/// Checks choice, certificate and time of a case of one head, against the oracle on every `stride`-th row and
/// the first 64 ones.
void expect_regime(const AttentionCase& c, AttentionInputs<float>& in, Path path, Index stride) {
  const auto plan = make_plan(in.q.view(), in.k.view(), in.v.view(), c.options());
  AttentionCase exact_case = c;
  exact_case.base.path = Path::exact;
  const auto exact = make_plan(in.q.view(), in.k.view(), in.v.view(), exact_case.options());
  const HeadReport& head = plan.report().heads[0];
  ASSERT_EQ(head.path, path) << plan;
  EXPECT_LE(head.error_bound, c.base.tolerance);

  const auto [exact_time, time] = race(exact, plan, in);  // the last output is the plan's

  AttentionCase sample = c;
  Tensor<float> q(1, 0, c.shapes.d), out(1, 0, c.shapes.d_v);
  for (Index i = 0; i < c.shapes.n_q; i += i < 64 ? 1 : stride) {
    sample.query_positions.push_back(i);
    q.values.insert(q.values.end(), &in.q(0, i, 0), &in.q(0, i, 0) + c.shapes.d);
    out.values.insert(out.values.end(), &in.out(0, i, 0), &in.out(0, i, 0) + c.shapes.d_v);
  }
  q.rows = out.rows = sample.shapes.n_q = static_cast<Index>(sample.query_positions.size());
  const Reference reference =
      reference_attention(q.view(), in.k.view(), in.v.view(), sample.options(), sample.bias);
  const double measured =
      max_abs_difference(std::as_const(out).view(), reference.out.view()) / max_abs(in.v.view());
  EXPECT_LE(measured, head.error_bound);
  EXPECT_GT(measured, 0);

  std::cout << path << ": entries " << head.entry_bound << ", degree " << head.degree << ", rank "
            << head.rank << ", measured " << measured << " <= certified " << head.error_bound
            << " + rounding " << head.rounding << " <= " << c.base.tolerance << "; " << time * 1e3
            << " ms, exact " << exact_time * 1e3 << " ms\n";
  if (kMeasurable) {
    EXPECT_LT(time, exact_time) << plan;
  }
}

TEST(PaperRegime, RopeTakesThePolynomialPath) {
  AttentionCase c{.shapes = {1, 1, 8192, 8192, 8, 8}};
  c.base.rope = Rope{};
  c.base.scale = 1.0;
  c.base.tolerance = 1e-3;
  for (const Mask mask : {Mask::full(), Mask::causal()}) {
    c.base.mask = mask;
    Inputs random(3);
    AttentionInputs<float> in(c.shapes, random);
    in.q = random.sphere<float>(1, 8192, 8, 0.999);  // |x| <= 1
    in.k = random.sphere<float>(1, 8192, 8, 1.0);
    expect_regime(c, in, Path::polynomial, 31);
  }
}

TEST(PaperRegime, RopeAndT5BiasTakeStatesForTheFarBucket) {
  AttentionCase c{.shapes = {1, 1, 16384, 16384, 4, 8}};
  c.base.rope = Rope{};
  c.base.scale = 1.0;
  c.base.tolerance = 1e-2;
  c.base.mask = Mask::causal();
  Inputs random(4);
  const std::vector<double> table = random_numbers(random, 32, -1, 1);
  c.base.bias = LagBias::t5(table, 1, /*bidirectional=*/false);
  c.bias = t5_formula(table, 1, false, 128);
  AttentionInputs<float> in(c.shapes, random);
  in.q = random.sphere<float>(1, 16384, 4, 0.4995);  // |x| <= 0.5
  in.k = random.sphere<float>(1, 16384, 4, 1.0);
  expect_regime(c, in, Path::polynomial, 61);
}

}  // namespace
}  // namespace fastrope_test
