// Quantised keys and values: attention of the numbers that are stored, against the double-precision oracle on
// the same numbers, within the bound that the library states for floats.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fastrope/fastrope.hpp>
#include <limits>
#include <utility>
#include <vector>

#include "support/attention_case.hpp"
#include "support/error_of.hpp"
#include "support/executors.hpp"
#include "support/stored_cache.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::AllOf;
using testing::Each;
using testing::HasSubstr;
using testing::Le;

double largest_row_length(const Tensor<float>& x) {
  double largest = 0;
  for (Index h = 0; h < x.heads; ++h)
    for (Index i = 0; i < x.rows; ++i) {
      double square = 0;
      for (Index c = 0; c < x.cols; ++c) square += std::pow(static_cast<double>(x(h, i, c)), 2);
      largest = std::max(largest, std::sqrt(square));
    }
  return largest;
}

/// A call whose keys are stored as K and values as V. `in` has the numbers that are stored.
template <class K, class V>
struct CacheCall {
  AttentionCase c;
  AttentionInputs<float> in;
  StoredCache<K> k;
  StoredCache<V> v;

  explicit CacheCall(AttentionCase c_, std::uint64_t seed = 1)
      : c(std::move(c_)), in(c.shapes, seed), k(in.k), v(in.v) {
    in.k = k.numbers();
    in.v = v.numbers();
  }

  std::vector<float> attend(const Executor& executor = Executor::serial()) {
    std::fill(in.out.values.begin(), in.out.values.end(), NAN);
    Options options = c.options();
    options.executor = executor;
    fastrope::attend(in.q.view(), k.view(), v.view(), in.out.view(), options);
    return in.out.values;
  }
  /// What rounding may do to the output, by the theorem that plans state.
  double bound() const {
    const double length =
        largest_row_length(in.q) * largest_row_length(in.k) / std::sqrt(static_cast<double>(c.shapes.d));
    double most = 0;
    for (Index h = 0; h < c.shapes.heads; ++h)
      most = std::max(most,
                      exact_rounding<float>(Problem(c.shapes, c.options()), h).of({length, length}).error(1));
    return most * max_abs(in.v.view());
  }
  void expect_exact() {
    attend();
    EXPECT_LE(max_abs_difference(in.out.view(), in.reference(c).out.view()), bound())
        << c << ", " << sizeof(K) << " and " << sizeof(V) << " bytes";
  }
};

AttentionCase rotated(const Shapes& shapes) {
  AttentionCase c{.shapes = shapes};
  c.base.mask = Mask::causal();
  c.base.rope = Rope{};
  return c;
}

/// f(T{}) for every type that keys and values may have.
template <class F>
void for_each_type(F&& f) {
  const auto all = [&](auto... types) { (f(types), ...); };
  all(float{}, bfloat16{}, float16{}, float8_e4m3{}, float8_e5m2{}, Q8_0{}, Q4_0{});
}

TEST(Quantised, KeysAndValuesOfEveryPairOfTypes) {
  for_each_type([](auto k) {
    for_each_type([](auto v) {
      for (const Index n_q : {1, 40})
        CacheCall<decltype(k), decltype(v)>(rotated({4, 2, n_q, 150, 64, 96})).expect_exact();
    });
  });
}

TEST(Quantised, AnyShape) {
  for (const Index d : {32, 96, 128, 576})
    for (const Index d_v : {32, 64, 160, 512}) {
      AttentionCase c{.shapes = {4, 2, 3, 130, d, d_v}};
      CacheCall<Q8_0, Q8_0>(c).expect_exact();
      CacheCall<Q4_0, Q8_0>(c).expect_exact();
      CacheCall<Q8_0, Q4_0>(c).expect_exact();
    }
  for (const Index n_k : {1, 2, 63, 64, 65, 129, 1500})
    for (const Index n_q : {1, 2, 3, 5, 9, 40, 200}) {
      AttentionCase c{.shapes = {6, 2, n_q, n_k, 64, 32}};
      c.base.mask = Mask::causal();
      CacheCall<Q8_0, Q4_0>(c).expect_exact();
      c.base.rope = Rope{};
      CacheCall<Q4_0, Q8_0>(c).expect_exact();
    }
}

TEST(Quantised, NumbersOfAnyWidthOfEightBits) {
  for (const Index d : {1, 7, 17, 40}) {
    AttentionCase c{.shapes = {4, 2, 2, 70, d, d + 3}};
    CacheCall<float8_e4m3, float8_e5m2>(c).expect_exact();
    CacheCall<float8_e5m2, float8_e4m3>(c).expect_exact();
  }
}

TEST(Quantised, OfDoubleAndOfNarrowQueries) {
  CacheCall<Q8_0, Q4_0> call(rotated({4, 2, 3, 90, 64, 64}));
  const Reference reference = call.in.reference(call.c);
  const auto q = converted<double>(call.in.q.view());
  Tensor<double> out(4, 3, 64);
  attend(q.view(), call.k.view(), call.v.view(), out.view(), call.c.options());
  EXPECT_LE(max_abs_difference(out.view(), reference.out.view()), 1e-13);
  Tensor<bfloat16> narrow = converted<bfloat16>(call.in.q.view());
  call.in.q = converted<float>(narrow.view());
  const std::vector<float> expected = call.attend();
  attend(narrow.view(), call.k.view(), call.v.view(), narrow.view(), call.c.options());
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(narrow.values[i], bfloat16(expected[i]));
}

template <class T>
class QuantisedCache : public testing::Test {};
using CacheTypes = testing::Types<Q8_0, Q4_0, float8_e4m3>;
TYPED_TEST_SUITE(QuantisedCache, CacheTypes);

TYPED_TEST(QuantisedCache, PackedAreTheSameNumbersAsFloats) {
  // Tiles and everything that looks at rows convert them first: the bits are those of floats.
  CacheCall<TypeParam, TypeParam> call(rotated({4, 2, 100, 100, 64, 64}));
  const std::vector<float> out = call.attend();
  attend(call.in.q.view(), call.in.k.view(), call.in.v.view(), call.in.out.view(), call.c.options());
  EXPECT_EQ(out, call.in.out.values);
}

TYPED_TEST(QuantisedCache, InPagesAndInAnyOrderOfMemory) {
  constexpr Index kHeads = 2, kRows = 75, kPageRows = 16, kBlocks = blocks_of<TypeParam>(64);
  CacheCall<TypeParam, TypeParam> call(rotated({4, kHeads, 2, kRows, 64, 64}));
  const std::vector<float> expected = call.attend();
  const std::vector<std::int32_t> pages = {3, 0, 5, 1, 4};
  const auto paged = [&](const StoredCache<TypeParam>& x, std::vector<TypeParam>& memory) {
    memory.resize(static_cast<std::size_t>(6 * kHeads * kPageRows * kBlocks));
    PagedView<TypeParam> view{
        memory.data(),       kHeads, kRows, 64, kPageRows, pages, kHeads * kPageRows * kBlocks,
        kPageRows * kBlocks, kBlocks};
    for (Index h = 0; h < kHeads; ++h)
      for (Index j = 0; j < kRows; ++j) std::copy_n(x.view().head(h).row(j), kBlocks, view.head(h).row(j));
    return view;
  };
  std::vector<TypeParam> k_memory, v_memory;
  attend(call.in.q.view(), paged(call.k, k_memory), paged(call.v, v_memory), call.in.out.view(),
         call.c.options());
  EXPECT_EQ(call.in.out.values, expected);

  // [rows, heads, cols], and backwards from the last row.
  std::vector<TypeParam> tokens(call.k.values.size());
  for (Index h = 0; h < kHeads; ++h)
    for (Index j = 0; j < kRows; ++j)
      std::copy_n(call.k.view().head(h).row(j), kBlocks,
                  tokens.data() + ((kRows - 1 - j) * kHeads + h) * kBlocks);
  const TensorView<const TypeParam> backwards(tokens.data() + (kRows - 1) * kHeads * kBlocks, kHeads, kRows,
                                              64, kBlocks, -kHeads * kBlocks);
  attend(call.in.q.view(), backwards, call.v.view(), call.in.out.view(), call.c.options());
  EXPECT_EQ(call.in.out.values, expected);
}

TYPED_TEST(QuantisedCache, RingsAndPartsOfKeys) {
  AttentionCase c = rotated({4, 2, 1, 100, 64, 64});
  Inputs random(3);
  c.key_positions = shuffled_positions(random, 100, 500);
  c.query_positions = {599};
  CacheCall<TypeParam, TypeParam> call(c);
  call.expect_exact();

  AttentionCase whole{.shapes = {4, 2, 3, 200, 64, 64}};
  CacheCall<TypeParam, TypeParam> parts(whole);
  Tensor<float> out(4, 3, 64), other(4, 3, 64), lse(1, 4, 3), other_lse(1, 4, 3);
  const auto part = [&](Range keys, Tensor<float>& to, Tensor<float>& to_lse) {
    attend_partial(parts.in.q.view(), rows(parts.k.view(), keys), rows(parts.v.view(), keys), to.view(),
                   to_lse.view().head(0), whole.options());
  };
  part({0, 77}, out, lse);
  part({77, 200}, other, other_lse);
  merge(out.view(), lse.view().head(0), TensorView<const float>(other.view()),
        MatrixView<const float>(other_lse.view().head(0)));
  const Reference reference = parts.in.reference(whole);
  EXPECT_LE(max_abs_difference(out.view(), reference.out.view()), 2 * parts.bound());
  EXPECT_LE(max_abs_difference(lse.view(), reference.lse.view()), 1e-5);
}

TYPED_TEST(QuantisedCache, BatchesThreadsAndPlansWithCapacityGiveTheSameBits) {
  const AttentionCase most = rotated({4, 2, 40, 1200, 64, 64});
  const auto plan = make_plan<float>(most.shapes, most.options());
  std::vector<std::byte> memory(plan.workspace_bytes());
  std::vector<CacheCall<TypeParam, TypeParam>> calls;
  std::vector<SequenceViews<float, TensorView<const TypeParam>>> sequences;
  std::vector<std::vector<float>> expected;
  for (const auto& [n_q, n_k] : {std::pair<Index, Index>{1, 1}, {40, 40}, {1, 1200}, {3, 65}, {20, 1100}}) {
    auto& call = calls.emplace_back(rotated({4, 2, n_q, n_k, 64, 64}));
    expected.push_back(call.attend());
    EXPECT_EQ(call.attend(threads(3)), expected.back());
    ASSERT_EQ(plan.run(call.in.q.view(), call.k.view(), call.v.view(), call.in.out.view(), memory),
              RunStatus::ok);
    EXPECT_EQ(call.in.out.values, expected.back()) << call.c;
  }
  for (auto& call : calls)
    sequences.push_back(
        {call.in.q.view(), std::as_const(call.k).view(), std::as_const(call.v).view(), call.in.out.view()});
  for (auto& call : calls) std::fill(call.in.out.values.begin(), call.in.out.values.end(), NAN);
  Options options = most.options();
  options.executor = threads(2);
  attend_batch(sequences, options);
  for (std::size_t s = 0; s < calls.size(); ++s) EXPECT_EQ(calls[s].in.out.values, expected[s]);
}

TYPED_TEST(QuantisedCache, ApproximatePathsReadThem) {
  AttentionCase c{.shapes = {4, 2, 300, 300, 32, 32}};
  c.base.scale = 0.002;
  c.base.tolerance = 1e-3;
  for (const Path path : {Path::polynomial, Path::toeplitz}) {
    c.base.path = path;
    CacheCall<TypeParam, TypeParam> call(c);
    const auto plan = make_plan(call.in.q.view(), call.k.view(), call.v.view(), c.options());
    std::vector<std::byte> memory(plan.workspace_bytes());
    ASSERT_EQ(plan.run(call.in.q.view(), call.k.view(), call.v.view(), call.in.out.view(), memory),
              RunStatus::ok);
    const Reference reference = call.in.reference(c);
    const Report report = plan.verify(call.in.q.view(), call.k.view(), call.v.view(), call.in.out.view(), 5);
    double promised = 0;
    for (const HeadReport& head : report.heads) {
      EXPECT_EQ(head.path, path) << head.reason;
      EXPECT_LE(head.error_bound, c.base.tolerance);
      EXPECT_LE(head.observed_error, head.error_bound);
      promised = std::max(promised, head.error_bound);
    }
    EXPECT_LE(max_abs_difference(call.in.out.view(), reference.out.view()),
              promised * max_abs(call.in.v.view()));
    // A spot check sees what is not so.
    call.in.out(1, 0, 3) += 1;
    EXPECT_GT(plan.verify(call.in.q.view(), call.k.view(), call.v.view(), call.in.out.view(), 5)
                  .heads[1]
                  .observed_error,
              0.5);
  }
}

TYPED_TEST(QuantisedCache, RecurrencesReadThem) {
  Options options{.mask = Mask::causal()};
  options.kernel = Kernel::taylor(2);
  CacheCall<TypeParam, TypeParam> call({.shapes = {2, 2, 40, 40, 32, 32}});
  RecurrentAttention<float> of_blocks(2, 2, 32, 32, options), of_floats(2, 2, 32, 32, options);
  Tensor<float> out(2, 40, 32), expected(2, 40, 32);
  of_blocks.prefill(call.in.q.view(), call.k.view(), call.v.view(), out.view());
  of_floats.prefill(call.in.q.view(), call.in.k.view(), call.in.v.view(), expected.view());
  EXPECT_EQ(out.values, expected.values);
  const auto token = [](const auto& x) { return rows(x.view(), {7, 8}); };
  ASSERT_EQ(of_blocks.step(token(call.in.q), token(call.k), token(call.v), rows(out.view(), {0, 1})),
            RunStatus::ok);
  ASSERT_EQ(
      of_floats.step(token(call.in.q), token(call.in.k), token(call.in.v), rows(expected.view(), {0, 1})),
      RunStatus::ok);
  EXPECT_EQ(out.values, expected.values);
}

/// Makes a block, or a number, that is NaN.
template <class T>
void spoil(T& x) {
  if constexpr (kElementsOf<T> == 1)
    x = std::numeric_limits<T>::quiet_NaN();
  else
    x.scale = std::numeric_limits<float16>::quiet_NaN();
}

TYPED_TEST(QuantisedCache, AScaleThatIsNaNStaysInTheRowsThatAttendToIt) {
  for (const Index n_q : {4, 90})  // decoded, and in tiles
    for (const bool of_keys : {true, false}) {
      AttentionCase c{.shapes = {2, 1, n_q, 90, 64, 64}};
      c.base.mask = Mask::causal();
      CacheCall<TypeParam, TypeParam> call(c);
      const std::vector<float> clean = call.attend();
      const Index bad = 88, blocks = blocks_of<TypeParam>(64);
      spoil((of_keys ? call.k : call.v).values[static_cast<std::size_t>(bad * blocks)]);
      call.attend();
      // The first block's columns of a value, or all of a row's.
      const Index spoiled = of_keys ? 64 : kElementsOf<TypeParam>;
      for (Index h = 0; h < 2; ++h)
        for (Index i = 0; i < n_q; ++i)
          for (Index m = 0; m < 64; ++m) {
            const float x = call.in.out(h, i, m);
            if (90 - n_q + i >= bad && m < spoiled)
              ASSERT_TRUE(std::isnan(x)) << h << ", " << i << ", " << m;
            else
              ASSERT_NEAR(x, clean[static_cast<std::size_t>((h * n_q + i) * 64 + m)], 1e-5) << h << ", " << i;
          }
    }
}

TEST(Quantised, RefusesRowsThatAreNoWholeBlocks) {
  std::vector<float> q(48), out(48);
  std::vector<Q8_0> blocks(4);
  std::vector<Q4_0> others(4);
  const auto queries = [&](Index d) { return contiguous(q.data(), 1, 1, d); };
  const auto result = [&](Index d_v) { return contiguous(out.data(), 1, 1, d_v); };
  const auto k = [&](Index d) { return contiguous(blocks.data(), 1, 2, d); };
  const auto v = [&](Index d_v) { return contiguous(others.data(), 1, 2, d_v); };
  EXPECT_THAT(error_of([&] { attend(queries(48), k(48), v(32), result(32), {}); }),
              AllOf(HasSubstr("k has rows of 48"), HasSubstr("blocks of 32")));
  EXPECT_THAT(error_of([&] { attend(queries(32), k(32), v(48), result(48), {}); }),
              HasSubstr("v has rows of 48"));
  Tensor<float> lse(1, 1, 1);
  EXPECT_THAT(
      error_of([&] { attend_partial(queries(48), k(48), v(32), result(32), lse.view().head(0), {}); }),
      HasSubstr("k has rows of 48"));
  EXPECT_EQ(error_of([&] { attend(queries(32), k(32), v(32), result(32), {}); }), "no Error");
  const auto plan = make_plan<float>({1, 1, 1, 2, 48, 32}, {});
  std::vector<std::byte> memory(plan.workspace_bytes());
  EXPECT_EQ(plan.run(queries(48), k(48), v(32), result(32), memory), RunStatus::shape_mismatch);
  EXPECT_THAT(error_of([&] {
                attend(queries(32), TensorView<const Q8_0>(nullptr, 1, 2, 32, 2, 1), v(32), result(32), {});
              }),
              HasSubstr("k is a null pointer"));
}

}  // namespace
}  // namespace fastrope_test
