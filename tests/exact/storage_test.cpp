// bfloat16 and float16 storage: the oracle sees the same rounded inputs, so what is left is the arithmetic in
// float, or products of bfloat16 pairs where the hardware has them, and one rounding of the output.
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
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

/// Error of the arithmetic: of the logits, absolute, and of the output, relative to max|V|. Products of pairs
/// round q, k (after rotation and scaling) and the weights to 2^-9: scale |q| |k| 2^-8 by Cauchy-Schwarz, and
/// twice that of a weight, and one rounding of it.
struct Errors {
  double logit, out;
};
template <class T>
double largest_row(const Tensor<T>& x) {
  double largest = 0;
  for (Index h = 0; h < x.heads; ++h)
    for (Index i = 0; i < x.rows; ++i) {
      double square = 0;
      for (Index c = 0; c < x.cols; ++c) square += std::pow(static_cast<double>(x.view().head(h)(i, c)), 2);
      largest = std::max(largest, std::sqrt(square));
    }
  return largest;
}
template <class Q, class KV>
Errors pair_errors(const AttentionInputs<Q, KV>& in) {
  const double logit =
      0x1p-8 * largest_row(in.q) * largest_row(in.k) / std::sqrt(static_cast<double>(in.q.cols));
  return {logit + 4e-5, std::expm1(2 * logit) + 0x1p-9 + 4e-6};
}
template <class Q, class KV>
Errors arithmetic_errors(const AttentionInputs<Q, KV>& in) {
  if (!std::is_same_v<Q, bfloat16> || !std::is_same_v<KV, bfloat16> || !fastrope::pairs_pay())
    return {4e-5, 4e-6};
  return pair_errors(in);
}

template <class Q, class KV>
void expect_storage(Index d_v) {
  AttentionCase c{.shapes = {4, 2, 50, 90, 16, d_v}};
  c.base.mask = fastrope::Mask::causal();
  c.base.rope = fastrope::Rope{};
  AttentionInputs<Q, KV> in(c.shapes, 1);
  const Reference reference = in.reference(c);
  fastrope::attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
  const Errors errors = arithmetic_errors(in);
  EXPECT_LE(max_abs_difference(in.out.view(), reference.out.view()), errors.out + kUnit<Q>);

  Tensor<Q> partial(4, 50, d_v);
  Tensor<float> lse(1, 4, 50);
  fastrope::attend_partial(in.q.view(), in.k.view(), in.v.view(), partial.view(), lse.view().head(0),
                           c.options());
  EXPECT_EQ(max_abs_difference(partial.view(), in.out.view()), 0);
  EXPECT_LE(max_abs_difference(lse.view(), reference.lse.view()), errors.logit);
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
  EXPECT_LE(max_abs_difference(out.view(), in.reference(c).out.view()), arithmetic_errors(in).out);
}

TEST(Storage, ProductsOfBfloat16KeepValuesThatAreAllTheSame) {
  // The weights that are summed are those that are multiplied: rounding them to bfloat16 changes no mean of
  // one value.
  AttentionCase c{.shapes = {1, 1, 60, 70, 8, 8}};
  AttentionInputs<bfloat16> in(c.shapes, 4);
  for (bfloat16& x : in.v.values) x = static_cast<bfloat16>(0.7f);
  Tensor<float> out(1, 60, 8);
  fastrope::attend(in.q.view(), in.k.view(), in.v.view(), out.view(), c.options());
  for (const float x : out.values) EXPECT_NEAR(x, static_cast<float>(in.v.values[0]), 1e-6);
}

TEST(Storage, GeneralWeightsOfBfloat16AreFloatArithmetic) {
  AttentionCase c{.shapes = {2, 1, 60, 70, 8, 8}};
  c.base.weights = fastrope::RelativeWeights::rope(fastrope::Rope{}, 8, -100, 100);
  AttentionInputs<bfloat16> in(c.shapes, 3);
  Tensor<float> out(2, 60, 8);
  fastrope::attend(in.q.view(), in.k.view(), in.v.view(), out.view(), c.options());
  EXPECT_LE(max_abs_difference(out.view(), in.reference(c).out.view()), 4e-6);
}

#if FASTROPE_BFLOAT16_PRODUCTS
// Also where calls leave them, since floats are faster.
TEST(Storage, ProductsOfPairs) {
  AttentionCase c{.shapes = {4, 2, 130, 290, 64, 40}};
  c.base.mask = fastrope::Mask::causal();
  c.base.rope = fastrope::Rope{};
  AttentionInputs<bfloat16> in(c.shapes, 4);
  const fastrope::Problem problem(c.shapes, c.options());
  const auto memory_of = [&] {
    return fastrope::Workspace::bytes_of(
        [&](fastrope::Workspace& w) { fastrope::ExactCall<bfloat16>(problem, w); });
  };
  std::vector<std::byte> memory(memory_of());
  fastrope::Workspace workspace(memory);
  fastrope::ExactCall<bfloat16>(problem, workspace)
      .run(problem, {in.q.view(), in.k.view(), in.v.view(), in.out.view(), {}});
  const double error = max_abs_difference(in.out.view(), in.reference(c).out.view());
  EXPECT_LE(error, pair_errors(in).out + kUnit<bfloat16>);
  EXPECT_GT(error, 4e-6);
}
#endif

TEST(Storage, HowBfloat16IsMultiplied) {
  std::cout << "bfloat16 products: "
            << (fastrope::MatrixTiles::allowed()    ? "matrix unit"
                : fastrope::pairs_pay()             ? "vectors"
                : fastrope::simd::kBfloat16Products ? "slower than those of floats, and not used"
                                                    : "none, widened to float")
            << '\n';
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  EXPECT_TRUE(fastrope::simd::kBfloat16Products);
#endif
}

}  // namespace
}  // namespace fastrope_test
