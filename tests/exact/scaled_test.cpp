// Keys and values whose scales lie beside them: attention of the numbers that they are, bit for bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fastrope/fastrope.hpp>
#include <limits>
#include <utility>
#include <vector>

#include "support/attention_case.hpp"
#include "support/error_of.hpp"
#include "support/executors.hpp"
#include "support/scaled_cache.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::AllOf;
using testing::HasSubstr;

/// Which scales keys and values have: of rows, of columns.
struct ScalesCase {
  bool key_rows, key_columns, value_rows, value_columns;
};

class Scaled : public testing::TestWithParam<ScalesCase> {
 protected:
  /// A call of scaled keys and values; `in` has the numbers that they are.
  struct Call {
    AttentionCase c;
    AttentionInputs<float> in;
    ScaledCache k, v;

    explicit Call(AttentionCase c_, std::uint64_t seed = 1)
        : c(std::move(c_)),
          in(c.shapes, seed),
          k(in.k, GetParam().key_rows, GetParam().key_columns),
          v(in.v, GetParam().value_rows, GetParam().value_columns) {
      in.k = k.numbers();
      in.v = v.numbers();
    }
    std::vector<float> of_numbers() {
      attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
      return in.out.values;
    }
    std::vector<float> of_scaled() {
      std::fill(in.out.values.begin(), in.out.values.end(), NAN);
      attend(in.q.view(), k.view(), v.view(), in.out.view(), c.options());
      return in.out.values;
    }
  };
};

INSTANTIATE_TEST_SUITE_P(Exact, Scaled,
                         testing::Values(ScalesCase{true, false, true, false},
                                         ScalesCase{false, true, true, false},
                                         ScalesCase{false, true, false, true},
                                         ScalesCase{true, true, true, true}),
                         [](const auto& of) {
                           const auto name = [](bool rows, bool columns) {
                             return std::string(rows ? "Rows" : "") + (columns ? "Columns" : "");
                           };
                           return name(of.param.key_rows, of.param.key_columns) + "And" +
                                  name(of.param.value_rows, of.param.value_columns);
                         });

TEST_P(Scaled, IsAttentionOfTheNumbers) {
  for (const Index n_q : {1, 3, 40, 150})  // decoded by few rows and many, and in tiles
    for (const Index d : {1, 7, 64, 130})
      for (const bool rotated : {false, true}) {
        if (rotated && d % 2 != 0) continue;
        AttentionCase c{.shapes = {6, 2, n_q, 150, d, d + 5}};
        c.base.mask = Mask::causal();
        if (rotated) c.base.rope = Rope{};
        Call call(c);
        const std::vector<float> expected = call.of_numbers();
        EXPECT_EQ(call.of_scaled(), expected) << c;
        call.c.base.executor = threads(3);
        EXPECT_EQ(call.of_scaled(), expected) << c;
      }
}

TEST_P(Scaled, InPagesRingsPartsAndBatches) {
  constexpr Index kHeads = 2, kRows = 75, kCols = 24, kPageRows = 16;
  AttentionCase c{.shapes = {4, kHeads, 2, kRows, kCols, kCols}};
  c.base.mask = Mask::causal();
  Call call(c);
  const std::vector<float> expected = call.of_numbers();

  const std::vector<std::int32_t> pages = {3, 0, 5, 1, 4};
  struct Pool {
    std::vector<std::int8_t> values = std::vector<std::int8_t>(6 * kHeads * kPageRows * kCols, 77);
    std::vector<float> scales = std::vector<float>(kHeads * 6 * kPageRows, NAN);
  };
  const auto paged = [&](const ScaledCache& x, Pool& pool) {
    const PagedView<std::int8_t> view{
        pool.values.data(), kHeads, kRows, kCols, kPageRows, pages, kHeads * kPageRows * kCols,
        kPageRows * kCols,  kCols};
    for (Index h = 0; h < kHeads; ++h)
      for (Index j = 0; j < kRows; ++j) {
        std::copy_n(x.view().values.head(h).row(j), kCols, view.head(h).row(j));
        const Index place = pages[static_cast<std::size_t>(j / kPageRows)] * kPageRows + j % kPageRows;
        if (!x.row_scales.empty())
          pool.scales[static_cast<std::size_t>(h * 6 * kPageRows + place)] = x.row_view()(h, j);
      }
    const MatrixView<const float> scales(x.row_scales.empty() ? nullptr : pool.scales.data(), kHeads,
                                         6 * kPageRows, 6 * kPageRows);
    return ScaledView{view, scales, x.column_view()};
  };
  Pool k_pool, v_pool;
  attend(call.in.q.view(), paged(call.k, k_pool), paged(call.v, v_pool), call.in.out.view(), c.options());
  EXPECT_EQ(call.in.out.values, expected);

  AttentionCase ring = c;
  Inputs random(3);
  ring.key_positions = shuffled_positions(random, kRows, 500);
  ring.query_positions = {598, 599};
  Call turned(ring);
  const std::vector<float> of_ring = turned.of_numbers();
  EXPECT_EQ(turned.of_scaled(), of_ring);

  Tensor<float> part(4, 2, kCols), lse(1, 4, 2), other(4, 2, kCols), other_lse(1, 4, 2);
  AttentionCase all{.shapes = c.shapes};
  const auto q = call.in.q.view();
  attend_partial(q, rows(call.k.view(), {20, 60}), rows(call.v.view(), {20, 60}), part.view(),
                 lse.view().head(0), all.options());
  attend_partial(q, rows(call.in.k.view(), {20, 60}), rows(call.in.v.view(), {20, 60}), other.view(),
                 other_lse.view().head(0), all.options());
  EXPECT_EQ(part.values, other.values);
  EXPECT_EQ(lse.values, other_lse.values);

  using View = ScaledView<TensorView<const std::int8_t>>;
  std::vector<SequenceViews<float, View>> sequences;
  sequences.push_back({call.in.q.view(), call.k.view(), call.v.view(), call.in.out.view()});
  std::fill(call.in.out.values.begin(), call.in.out.values.end(), NAN);
  attend_batch(sequences, c.options());
  EXPECT_EQ(call.in.out.values, expected);
}

TEST_P(Scaled, ApproximatePathsRecurrencesAndChecksReadThem) {
  AttentionCase c{.shapes = {4, 2, 300, 300, 32, 32}};
  c.base.scale = 0.002;
  c.base.tolerance = 1e-3;
  c.base.verify = 5;
  for (const Path path : {Path::polynomial, Path::toeplitz}) {
    c.base.path = path;
    Call call(c);
    const Report report =
        attend(call.in.q.view(), call.k.view(), call.v.view(), call.in.out.view(), c.options());
    const Reference reference = call.in.reference(c);
    for (const HeadReport& head : report.heads) {
      EXPECT_EQ(head.path, path) << head.reason;
      EXPECT_LE(head.observed_error, head.error_bound);
      EXPECT_GT(head.observed_error, 0);
    }
    EXPECT_LE(max_abs_difference(call.in.out.view(), reference.out.view()),
              report.heads[0].error_bound * max_abs(call.in.v.view()) + 1e-6);
  }
  Options options{.mask = Mask::causal()};
  options.kernel = Kernel::taylor(2);
  Call call({.shapes = {2, 2, 40, 40, 32, 32}});
  RecurrentAttention<float> of_scaled(2, 2, 32, 32, options), of_numbers(2, 2, 32, 32, options);
  Tensor<float> out(2, 40, 32), expected(2, 40, 32);
  of_scaled.prefill(call.in.q.view(), call.k.view(), call.v.view(), out.view());
  of_numbers.prefill(call.in.q.view(), call.in.k.view(), call.in.v.view(), expected.view());
  EXPECT_EQ(out.values, expected.values);
  attend(call.in.q.view(), call.k.view(), call.v.view(), out.view(), options);
  attend(call.in.q.view(), call.in.k.view(), call.in.v.view(), expected.view(), options);
  EXPECT_EQ(out.values, expected.values);
}

TEST_P(Scaled, AScaleThatIsNotFiniteStaysInTheRowsThatAttendToIt) {
  for (const Index n_q : {4, 90}) {
    AttentionCase c{.shapes = {2, 1, n_q, 90, 16, 100}};
    c.base.mask = Mask::causal();
    Call call(c);
    const std::vector<float> clean = call.of_scaled();
    if (call.v.row_scales.empty()) continue;
    call.v.row_scales[88] = NAN;
    call.of_scaled();
    for (Index h = 0; h < 2; ++h)
      for (Index i = 0; i < n_q; ++i)
        for (Index m = 0; m < 100; ++m) {
          const float x = call.in.out(h, i, m);
          if (90 - n_q + i >= 88)
            ASSERT_TRUE(std::isnan(x));
          else
            ASSERT_NEAR(x, clean[static_cast<std::size_t>((h * n_q + i) * 100 + m)], 1e-5);
        }
  }
}

TEST(ScaledViews, OfFloatsOfEightBitsAndOfDouble) {
  AttentionCase c{.shapes = {4, 2, 3, 70, 20, 20}};
  AttentionInputs<float> in(c.shapes, 1);
  std::vector<float8_e4m3> keys(in.k.values.begin(), in.k.values.end());
  const std::vector<float> scales(2 * 20, 0.75F);  // one for all, as a checkpoint may have it
  const ScaledView k{contiguous(std::as_const(keys).data(), 2, 70, 20), MatrixView<const float>{},
                     MatrixView<const float>(scales.data(), 2, 20, 20)};
  for (std::size_t i = 0; i < keys.size(); ++i) in.k.values[i] = 0.75F * static_cast<float>(keys[i]);
  attend(in.q.view(), k, in.v.view(), in.out.view(), c.options());
  const std::vector<float> out = in.out.values;
  attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
  EXPECT_EQ(out, in.out.values);
  const ScaledCache rows(in.k, true, false);
  const auto q = converted<double>(in.q.view());
  Tensor<double> result(4, 3, 20);
  attend(q.view(), rows.view(), in.v.view(), result.view(), c.options());
  in.k = rows.numbers();
  EXPECT_LE(max_abs_difference(result.view(), in.reference(c).out.view()), 1e-6);
}

TEST(ScaledViews, RefuseScalesOfOtherSizes) {
  std::vector<float> q(8), out(8), scales(20, 1.0F);
  std::vector<std::int8_t> values(5 * 8);
  const auto all = contiguous(std::as_const(values).data(), 1, 5, 8);
  const auto call = [&](MatrixView<const float> of_rows, MatrixView<const float> of_columns) {
    return error_of([&] {
      attend(contiguous(q.data(), 1, 1, 8), ScaledView{all, of_rows, of_columns}, all,
             contiguous(out.data(), 1, 1, 8), {});
    });
  };
  EXPECT_EQ(call({scales.data(), 1, 5, 5}, {scales.data(), 1, 8, 8}), "no Error");
  EXPECT_THAT(call({scales.data(), 1, 4, 4}, {}),
              AllOf(HasSubstr("k has scales of rows [1, 4]"), HasSubstr("not [1, 5]")));
  EXPECT_THAT(call({scales.data(), 2, 5, 5}, {}), HasSubstr("k has scales of rows [2, 5]"));
  EXPECT_THAT(call({}, {scales.data(), 1, 7, 7}), HasSubstr("k has scales of columns [1, 7]"));
  const std::vector<std::int32_t> pages = {2};
  const PagedView<const std::int8_t> paged{values.data(), 1, 2, 8, 2, pages, 16, 16, 8};
  const ScaledView short_of_rows{paged, MatrixView<const float>(scales.data(), 1, 5, 5)};
  EXPECT_THAT(error_of([&] {
                attend(contiguous(q.data(), 1, 1, 8), short_of_rows, short_of_rows,
                       contiguous(out.data(), 1, 1, 8), {});
              }),
              HasSubstr("k has scales of rows [1, 5], not [1, 6]"));
}

TEST(Quantize, IntegersOfRowsAndColumns) {
  const std::vector<float> x = {1, -2, 0.5F, 4, 0, 3};  // two rows of three
  std::vector<std::int8_t> n(6);
  std::vector<float> scales(2), back(6);
  quantize_rows(x, n, scales);
  EXPECT_THAT(n, testing::ElementsAre(64, -127, 32, 127, 0, 95));
  EXPECT_THAT(scales, testing::ElementsAre(2.0F / 127, 4.0F / 127));
  dequantize_rows(n, scales, back);
  for (std::size_t i = 0; i < 6; ++i) EXPECT_NEAR(back[i], x[i], scales[i / 3] / 2 * 1.001F);
  scales.resize(3);
  quantize_columns(x, n, scales);
  EXPECT_THAT(n, testing::ElementsAre(32, -127, 21, 127, 0, 127));
  EXPECT_THAT(scales, testing::ElementsAre(4.0F / 127, 2.0F / 127, 3.0F / 127));
  dequantize_columns(n, scales, back);
  for (std::size_t i = 0; i < 6; ++i) EXPECT_NEAR(back[i], x[i], scales[i % 3] / 2 * 1.001F);

  std::vector<float> zeros(6);
  quantize_columns(zeros, n, scales);
  EXPECT_THAT(n, testing::Each(0));
  quantize_columns({}, std::span<std::int8_t>{}, scales);
  constexpr float kEndless = std::numeric_limits<float>::infinity();
  for (const float bad : {kEndless, -kEndless, NAN}) {
    std::vector<float> y = x;
    y[4] = bad;
    EXPECT_THAT(error_of([&] { quantize_rows(y, n, std::span(scales).first(2)); }),
                HasSubstr("the largest number of row 1 is "));
    EXPECT_THAT(error_of([&] { quantize_columns(y, n, scales); }),
                HasSubstr("the largest number of column 1 is "));
  }
  EXPECT_THAT(error_of([&] { quantize_rows(x, n, std::span(scales).first(0)); }),
              HasSubstr("6 floats for 6 integers of 0 scales"));
  EXPECT_THAT(error_of([&] { quantize_rows(x, std::span(n).first(5), scales); }),
              HasSubstr("6 floats for 5 integers"));
}

}  // namespace
}  // namespace fastrope_test
