// Gates where calls are planned: promises with a tolerance, bounds of rows, and why other paths lost.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/attend/attend.hpp"
#include "support/attention_case.hpp"
#include "support/error_of.hpp"
#include "support/gated_rows.hpp"
#include "support/kernel_oracle.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::AllOf;
using testing::HasSubstr;

/// Attends, and holds every row of the oracle's against its bound, which is to be at most `most` in a share
/// of the rows.
Report attend_gated_rows(const AttentionCase& c, AttentionInputs<float>& in, const Tensor<double>& expected,
                         double most, double share = 0.99) {
  Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
  const Shapes& s = c.shapes;
  BoundedRows rows;
  for (Index h = 0; h < s.heads; ++h)
    for (Index i = 0; i < s.n_q; ++i)
      rows.add(h, i, in.out.view().head(h).row(i), expected.view().head(h).row(i), s.d_v,
               largest_of(in.v.view().head(h / (s.heads / s.kv_heads))),
               c.base.kernel.is_softmax() ? report.heads[static_cast<std::size_t>(h)].error_bound
                                          : report.row_bounds[static_cast<std::size_t>(h * s.n_q + i)]);
  EXPECT_EQ(rows.violated, 0) << c << ", degree " << c.base.kernel.degree() << ", path "
                              << report.heads[0].path << ": " << rows.worst;
  EXPECT_GE(rows.share_within(most), share)
      << c << ", degree " << c.base.kernel.degree() << ", path " << report.heads[0].path;
  return report;
}

/// By tiles and by features: the oracle, which is slow, is the same.
void attend_by_both_paths(AttentionCase& c, AttentionInputs<float>& in, double most, double share = 0.99) {
  const Tensor<double> expected = in.reference(c).out;
  for (const Path path : {Path::exact, Path::polynomial}) {
    c.base.path = path;
    attend_gated_rows(c, in, expected, most, share);
  }
}

TEST(GatedPlans, SoftmaxKeepsItsPromise) {
  Inputs random(1);
  for (const double weakest : {1.0, 14.0})
    for (const Index resets_of : {0, 50})
      for (const double input : {0.0, 40.0})
        for (const double sigma : {0.3, 3.0}) {
          AttentionCase c{.shapes = {2, 1, 700, 700, 16, 8}};
          c.base.mask = Mask::causal();
          c.base.tolerance = 1e-3;
          c.base.scale = sigma;
          set_gates(c, random, 2, weakest, resets_of);
          if (input > 0) set_input_gates(c, random, 1, input);
          AttentionInputs<float> in(c.shapes, 2);
          const Report report = attend_gated_rows(c, in, in.reference(c).out, 1e-3);
          EXPECT_EQ(report.heads[0].path, Path::exact);
          EXPECT_THAT(report.heads[0].reason, HasSubstr("gates are done by the exact path"));
          EXPECT_LT(report.heads[0].error_bound, 1e-3);
        }
}

TEST(GatedPlans, RowsOfPolynomialKernelsHaveBounds) {
  Inputs random(3);
  for (const Kernel& kernel : {Kernel::power(2), Kernel::taylor(2), Kernel::power(4)})
    for (const double weakest : {1.0, 8.0})
      for (const Index resets_of : {0, 200})
        for (const double input : {0.0, 20.0})
          for (const auto& [heads, kv_heads, rows] : {std::tuple{2, 2, 2}, {3, 1, 1}, {4, 2, 4}}) {
            AttentionCase c{.shapes = {heads, kv_heads, 520, 520, 6, 3}};
            c.base.kernel = kernel;
            c.base.mask = Mask::causal();
            set_gates(c, random, rows, weakest, resets_of);
            if (input > 0) set_input_gates(c, random, kv_heads, input);
            AttentionInputs<float> in(c.shapes, 4);
            // Rows of few keys whose weights are all near 0 are what they are.
            attend_by_both_paths(c, in, kernel.degree() == 4 ? 0.1 : 1e-2);
            if (testing::Test::HasFailure()) return;
          }
}

TEST(GatedPlans, ModelsThatAreNoRecurrences) {
  // TaylorShift: 1 + x + x^2 / 2 of unit rows times tau, not causal. FoX: softmax with gates of query heads.
  for (const Index n : {1, 2, 255, 700}) {
    AttentionCase shift{.shapes = {2, 2, n, n, 16, 8}};
    shift.base.kernel = Kernel::taylor(2);
    shift.base.scale = 4;
    AttentionInputs<float> in(shift.shapes, 13);
    Inputs random(13);
    in.q = random.sphere<float>(2, n, 16, 1);
    in.k = random.sphere<float>(2, n, 16, 1);
    attend_by_both_paths(shift, in, 1e-2, 1);
    for (const double weakest : {1.0, 12.0}) {
      AttentionCase fox{.shapes = {4, 2, n, n, 16, 8}};
      fox.base.mask = Mask::causal();
      set_gates(fox, random, 4, weakest);
      AttentionInputs<float> of_fox(fox.shapes, 14);
      attend(of_fox.q.view(), of_fox.k.view(), of_fox.v.view(), of_fox.out.view(), fox.options());
      expect_gated_rows(fox, of_fox);
    }
  }
}

TEST(GatedPlans, FeaturesNeedNoSecondLook) {
  for (const Index resets_of : {0, 900})
    for (const double input : {0.0, 5.0}) {
      AttentionCase c{.shapes = {4, 2, 3000, 3000, 6, 3}};
      c.base.kernel = Kernel::taylor(2);
      c.base.mask = Mask::causal();
      c.base.path = Path::polynomial;
      Inputs random(11);
      set_gates(c, random, 2, 12, resets_of);
      if (input > 0) set_input_gates(c, random, 2, input);
      AttentionInputs<float> in(c.shapes, 12);
      const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
      for (const HeadReport& head : report.heads) EXPECT_EQ(head.repaired_rows, 0);
      c.base.path = Path::exact;
      const Tensor<float> far = in.out;
      attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
      EXPECT_LE(max_abs_difference(far.view(), in.out.view()), 2e-5);
    }
}

TEST(GatedPlans, NormalisedRowsHaveBounds) {
  Inputs random(5);
  for (const Kernel& kernel : {Kernel::power(2), Kernel::power(1, KernelSign::any)})
    for (const Normaliser& normaliser :
         {Normaliser::row_sum(1e-12), Normaliser::row_sum(1), Normaliser::at_least(1), Normaliser::none()})
      for (const Index n : {70, 300})
        for (const double input : {0.0, 5.0}) {
          AttentionCase c{.shapes = {4, 2, n, n, 8, 5}};
          c.base.kernel = kernel;
          c.base.normaliser = normaliser;
          c.base.mask = Mask::causal();
          AttentionInputs<float> in(c.shapes, 6);
          const bool signs = kernel.degree() == 1 && normaliser.kind() == Normaliser::Kind::row_sum;
          // What a sum does not divide is as large as its weights together.
          const double whole = normaliser.kind() != Normaliser::Kind::row_sum ? 0.1 : 1e-2;
          const double most = signs ? std::numeric_limits<double>::infinity() : whole;
          // Of few rows some meet weights near 0 alone.
          attend_by_both_paths(c, in, most, 0.95);
          set_gates(c, random, 2, 7);
          if (input > 0) set_input_gates(c, random, 2, input);
          attend_by_both_paths(c, in, most, 0.95);
          set_alibi(c, random);
          attend_by_both_paths(c, in, most, 0.95);
          if (testing::Test::HasFailure()) return;
        }
}

TEST(GatedPlans, OtherPathsSayWhyTheyLost) {
  AttentionCase c{.shapes = {1, 1, 64, 64, 8, 8}};
  c.base.mask = Mask::causal();
  c.base.tolerance = 1e-2;
  c.log_gates.assign(64, -0.1F);
  AttentionInputs<float> in(c.shapes, 7);
  for (const Path path : {Path::polynomial, Path::toeplitz}) {
    c.base.path = path;
    EXPECT_THAT(error_of([&] { make_plan(in.q.view(), in.k.view(), in.v.view(), c.options()); }),
                HasSubstr("gates"))
        << path;
  }
  c.base.path = Path::automatic;
  c.log_gates[3] = 1;
  EXPECT_THAT(error_of([&] { make_plan(in.q.view(), in.k.view(), in.v.view(), c.options()); }),
              AllOf(HasSubstr("log_gates(0, 3) is 1"), HasSubstr("at most 0")));
}

TEST(GatedPlans, GatesAreReadWhenAPlanRuns) {
  AttentionCase c{.shapes = {2, 1, 1, 100, 8, 4}};
  c.base.mask = Mask::causal();
  c.log_gates.assign(100, -0.1F);
  AttentionInputs<float> in(c.shapes, 8);
  const auto plan = make_plan<float>(c.shapes, c.options());
  ASSERT_TRUE(plan.has_capacity());
  std::vector<std::byte> memory(plan.workspace_bytes());
  for (const float gate : {-0.1F, -2.0F, 0.0F}) {
    std::fill(c.log_gates.begin(), c.log_gates.end(), gate);
    ASSERT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), memory), RunStatus::ok);
    expect_gated_rows(c, in);
  }
}

TEST(GatedPlans, GatesThatAreNoneAreRefusedWhenAPlanRuns) {
  const Index n = 40;
  Tensor<float> q(2, n, 8), k(1, n, 8), v(1, n, 8), out(2, n, 8);
  std::vector<float> gates(n, -0.1F), inputs(n, 0.5F);
  for (const Kernel& kernel : {Kernel::softmax(), Kernel::power(2)}) {
    Options options{.mask = Mask::causal(), .kernel = kernel};
    options.log_gates = {gates.data(), 1, n, n};
    options.log_input_gates = {inputs.data(), 1, n, n};
    const auto plan = make_plan<float>(Shapes{2, 1, n, n, 8, 8}, options);
    std::vector<std::byte> workspace(plan.workspace_bytes());
    const auto run = [&] { return plan.run(q.view(), k.view(), v.view(), out.view(), workspace); };
    EXPECT_EQ(run(), RunStatus::ok);
    for (const float bad : {1e-3F, NAN}) {
      gates.back() = bad;
      EXPECT_EQ(run(), RunStatus::gates_refused) << bad;
      gates.back() = -0.1F;
    }
    inputs.front() = INFINITY;
    EXPECT_EQ(run(), RunStatus::gates_refused);
    inputs.front() = 0.5F;
  }
}

TEST(GatedPlans, ASpotCheckHasThem) {
  Inputs random(9);
  for (const Kernel& kernel : {Kernel::softmax(), Kernel::power(2)}) {
    AttentionCase c{.shapes = {2, 1, 200, 200, 8, 4}};
    c.base.mask = Mask::causal();
    c.base.kernel = kernel;
    c.base.verify = 20;
    set_gates(c, random, 2, 5, 60);
    if (!kernel.is_softmax()) c.base.normaliser = Normaliser::at_least(0.5);
    AttentionInputs<float> in(c.shapes, 10);
    const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    EXPECT_LT(report.heads[0].observed_error, 1e-4);
  }
}

}  // namespace
}  // namespace fastrope_test
