// bfloat16 and float16 storage: the oracle sees the same rounded inputs, so what is left is the arithmetic in
// float and one rounding of the output.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"

namespace fastrope_test {
namespace {

using fastrope::bfloat16;
using fastrope::float16;

/// Half a unit in the last place of a number below 1.
template <class T>
constexpr double kUnit = std::is_same_v<T, bfloat16>  ? 0x1p-9
                         : std::is_same_v<T, float16> ? 0x1p-12
                                                      : 0;

template <class Q, class KV>
void expect_storage(Index d_v) {
  AttentionCase c{.shapes = {4, 2, 50, 90, 16, d_v}};
  c.base.mask = fastrope::Mask::causal();
  c.base.rope = fastrope::Rope{};
  AttentionInputs<Q, KV> in(c.shapes, 1);
  const Reference reference = in.reference(c);
  fastrope::attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
  EXPECT_LE(max_abs_difference(in.out.view(), reference.out.view()), 4e-6 + kUnit<Q>);

  Tensor<Q> partial(4, 50, d_v);
  Tensor<float> lse(1, 4, 50);
  fastrope::attend_partial(in.q.view(), in.k.view(), in.v.view(), partial.view(), lse.view().head(0),
                           c.options());
  EXPECT_EQ(max_abs_difference(partial.view(), in.out.view()), 0);
  EXPECT_LE(max_abs_difference(lse.view(), reference.lse.view()), 4e-5);
}

TEST(Storage, Bfloat16) { expect_storage<bfloat16, bfloat16>(17); }
TEST(Storage, Float16) { expect_storage<float16, float16>(17); }
TEST(Storage, KeysAndValuesNarrowerThanQueries) {
  expect_storage<float, bfloat16>(8);
  expect_storage<float, float16>(8);
}

TEST(Storage, OutputOfAnotherType) {
  AttentionCase c{.shapes = {2, 1, 30, 40, 8, 8}};
  AttentionInputs<bfloat16> in(c.shapes, 2);
  Tensor<float> out(2, 30, 8);
  fastrope::attend(in.q.view(), in.k.view(), in.v.view(), out.view(), c.options());
  EXPECT_LE(max_abs_difference(out.view(), in.reference(c).out.view()), 4e-6);
}

}  // namespace
}  // namespace fastrope_test
