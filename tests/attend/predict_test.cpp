// What is predicted of heads that do not exist, beside plans for some that do.
#include "fastrope/attend/predict.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "support/attention_case.hpp"
#include "support/error_of.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

TEST(Predict, IsWhatAPlanSaysOfRowsOnASphere) {
  for (const bool causal : {false, true})
    for (const bool t5 : {false, true})
      for (const double radius : {0.25, 1.0, 6.0}) {
        AttentionCase c{.shapes = {2, 1, 4096, 4096, 8, 8}};
        c.base.rope = Rope{};
        c.base.tolerance = 1e-2;
        c.base.scale = 0.5;
        if (causal) c.base.mask = Mask::causal();
        Inputs random(1);
        if (t5) set_t5(c, random, true);
        AttentionInputs<float> in(c.shapes, random);
        in.q = random.sphere<float>(2, 4096, 8, std::sqrt(2 * radius));
        in.k = random.sphere<float>(1, 4096, 8, std::sqrt(2 * radius));
        const Report plan = make_plan(in.q.view(), in.k.view(), in.v.view(), c.options()).report();
        const Report predicted = predict(c.shapes, c.options(), radius);
        ASSERT_EQ(predicted.heads.size(), 2u);
        for (std::size_t h = 0; h < 2; ++h) {
          EXPECT_EQ(predicted.heads[h].path, plan.heads[h].path) << plan << predicted;
          EXPECT_EQ(predicted.heads[h].rank, plan.heads[h].rank) << plan << predicted;
          EXPECT_NEAR(predicted.heads[h].entry_bound, plan.heads[h].entry_bound, 1e-3 * radius);
        }
      }
}

TEST(Predict, FollowsTheRates) {
  Options options{.mask = Mask::causal(), .tolerance = 1e-2};
  const Shapes shapes{1, 1, 8192, 8192, 16, 16};
  EXPECT_EQ(predict(shapes, options, 0.5).heads[0].path, Path::polynomial);
  CostModel slow;
  slow.feature = 1e7;
  EXPECT_EQ(predict(shapes, options, 0.5, slow).heads[0].path, Path::exact);
}

TEST(Predict, RefusesWhatHasNoAnswer) {
  const Shapes shapes{1, 1, 100, 100, 4, 4};
  EXPECT_NE(error_of([&] { predict(shapes, {.tolerance = 1e-2}, -1); }).find("-1"), std::string::npos);
  EXPECT_NE(error_of([&] { predict(shapes, {.tolerance = 1e-2}, NAN); }).find("nan"), std::string::npos);
  EXPECT_EQ(predict(shapes, {}, 1).heads[0].path, Path::exact);
  EXPECT_TRUE(predict({0, 0, 100, 100, 4, 4}, {.tolerance = 1e-2}, 1).heads.empty());
}

}  // namespace
}  // namespace fastrope_test
