// Spot checks: they see an error where there is one, and recompute what the call defines.
#include "fastrope/attend/verify.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "fastrope/attend/attend.hpp"
#include "support/attention_case.hpp"
#include "support/error_of.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

AttentionCase with_everything(Inputs& random) {
  AttentionCase c{.shapes = {4, 2, 50, 70, 6, 3}};
  c.base.rope = Rope{};
  c.base.mask = Mask::sliding_window(30);
  c.base.softcap = 5;
  set_t5(c, random, true);
  c.sinks = {0.5f, -1, 0, 2};
  c.dense.assign(50 * 70, 0.0f);
  for (float& x : c.dense) x = static_cast<float>(random.uniform(-1, 1));
  c.dense_row_stride = 70;
  c.key_positions = shuffled_positions(random, 70, 0);
  c.query_positions = shuffled_positions(random, 50, 10);
  return c;
}

TEST(Verify, SeesExactlyTheErrorThatIsThere) {
  Inputs random(1);
  const AttentionCase c = with_everything(random);
  AttentionInputs<float> in(c.shapes, random);
  const auto plan = make_plan<float>(c.shapes, c.options());
  std::vector<std::byte> workspace(plan.workspace_bytes());
  ASSERT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace), RunStatus::ok);
  for (const Index rows : {1, 2, 7, 50, 1000}) {
    const Report report = plan.verify(in.q.view(), in.k.view(), in.v.view(), in.out.view(), rows);
    for (const HeadReport& head : report.heads) {
      EXPECT_EQ(head.verified_rows, std::min<Index>(rows, 50));
      EXPECT_LE(head.observed_error, 2e-6) << rows;
    }
  }
  // The first and the last row are always among them.
  in.out(1, 49, 2) += 0.25f;
  in.out(2, 0, 0) = NAN;
  for (const Index rows : {2, 7, 30, 49, 50}) {
    const Report spoilt = plan.verify(in.q.view(), in.k.view(), in.v.view(), in.out.view(), rows);
    EXPECT_LE(spoilt.heads[0].observed_error, 2e-6);
    EXPECT_GT(spoilt.heads[1].observed_error, 0.01) << rows;
    EXPECT_EQ(spoilt.heads[2].observed_error, INFINITY);
  }
  const Report report = plan.verify(in.q.view(), in.k.view(), in.v.view(), in.out.view(), 2);
  double largest = 0;
  for (Index j = 0; j < 70; ++j)
    for (Index m = 0; m < 3; ++m) largest = std::max(largest, std::abs(static_cast<double>(in.v(0, j, m))));
  EXPECT_NEAR(report.heads[1].observed_error, 0.25 / largest, 1e-5);
}

TEST(Verify, WhatIsNotANumberInBothIsNoError) {
  AttentionCase c{.shapes = {1, 1, 20, 20, 4, 2}};
  AttentionInputs<float> in(c.shapes, 2);
  in.k(0, 3, 1) = NAN;
  Options options = c.options();
  options.verify = 20;
  const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), options);
  EXPECT_EQ(report.heads[0].verified_rows, 20);
  EXPECT_EQ(report.heads[0].observed_error, 0);
}

TEST(Verify, OfAnApproximationIsWithinThePromise) {
  AttentionCase c{.shapes = {2, 2, 4096, 4096, 4, 4}};
  c.base.scale = 1.0;
  c.base.tolerance = 1e-2;
  Inputs random(3);
  AttentionInputs<float> in(c.shapes, random);
  in.q = random.sphere<float>(2, 4096, 4, 0.8);
  in.k = random.sphere<float>(2, 4096, 4, 0.8);
  Options options = c.options();
  options.verify = 64;
  for (const HeadReport& head : attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), options).heads) {
    EXPECT_EQ(head.path, Path::polynomial);
    EXPECT_GT(head.observed_error, 1e-7);
    EXPECT_LE(head.observed_error, head.error_bound);
  }
}

TEST(Verify, RefusesOtherTensorsAndNegativeNumbersOfRows) {
  AttentionCase c{.shapes = {1, 1, 20, 20, 4, 2}};
  AttentionInputs<float> in(c.shapes, 2), other({1, 1, 21, 20, 4, 2}, 2);
  const auto plan = make_plan<float>(c.shapes, c.options());
  EXPECT_THROW(plan.verify(other.q.view(), in.k.view(), in.v.view(), in.out.view(), 4), Error);
  EXPECT_NE(
      error_of([&] { plan.verify(in.q.view(), in.k.view(), in.v.view(), in.out.view(), -1); }).find("-1"),
      std::string::npos);
  Options options = c.options();
  options.verify = -1;
  EXPECT_THROW(attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), options), Error);
}

}  // namespace
}  // namespace fastrope_test
