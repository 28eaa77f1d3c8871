// What is refused before a call is anybody's: sizes, strides, null pointers and positions.
#include "fastrope/problem/problem.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "fastrope/core/paged_view.hpp"
#include "support/error_of.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::AllOf;
using testing::HasSubstr;

constexpr Index kMost = std::numeric_limits<Index>::max();

TEST(ShapesOf, SizesWhoseProductOverflowsAreNotEmpty) {
  const TensorView<const float> ok{nullptr, 1, 0, 8, 0, 8};
  const auto error = [&](const TensorView<const float>& q) {
    return error_of([&] { shapes_of(q, ok, ok); });
  };
  EXPECT_EQ(error({nullptr, 1, 0, 8, 0, 8}), "no Error");
  // 2^64 elements, which is 0 where it wraps.
  EXPECT_EQ(error({nullptr, Index{1} << 22, Index{1} << 22, Index{1} << 20, 0, 0}),
            "q is [4194304, 4194304, 1048576], more than the 2^48 elements that a tensor may have");
  EXPECT_THAT(error({nullptr, kMost, kMost, kMost, 0, 0}), HasSubstr("more than the 2^48"));
  EXPECT_THAT(error({nullptr, 0, kMost, 8, 0, 0}), HasSubstr("more than the 2^48")) << "a size on its own";
  EXPECT_THAT(error({nullptr, Index{1} << 16, Index{1} << 16, Index{1} << 16, 0, 0}),
              HasSubstr("is a null pointer"));
  EXPECT_THAT(error({nullptr, -1, 0, 8, 0, 8}), HasSubstr("negative"));
}

TEST(Problem, ShapesBeyondEveryMemoryAreRefused) {
  const auto error = [](const Shapes& s) { return error_of([&] { Problem(s, Options{}); }); };
  EXPECT_EQ(error({1, 1, 1, 1, 1, 1}), "no Error");
  EXPECT_THAT(error({4, 4, Index{1} << 32, 8, Index{1} << 15, 8}), HasSubstr("q is [4, 4294967296, 32768]"));
  EXPECT_THAT(error({4, 4, 8, Index{1} << 32, Index{1} << 15, 8}), HasSubstr("k is [4, 4294967296, 32768]"));
  EXPECT_THAT(error({4, 4, 8, Index{1} << 32, 8, Index{1} << 15}), HasSubstr("v is [4, 4294967296, 32768]"));
  EXPECT_THAT(error({4, 4, Index{1} << 32, 8, 8, Index{1} << 15}),
              HasSubstr("out is [4, 4294967296, 32768]"));
  EXPECT_THAT(error({-4, 4, 1, 1, 1, 1}), HasSubstr("negative size: [-4, 1, 1]"));
  EXPECT_THAT(error({1, 1, std::numeric_limits<Index>::min(), 1, 1, 1}), HasSubstr("negative"));
  const Problem problem({1, 1, 1, 1, 64, 1}, Options{});
  EXPECT_THAT(error_of([&] { problem.with(1, -3, {}); }), HasSubstr("k has a negative size: [1, -3, 64]"));
  EXPECT_THAT(error_of([&] { problem.with(Index{1} << 45, 1, {}); }),
              HasSubstr("q is [1, 35184372088832, 64]"));
}

/// require_output for an out of these strides.
std::string output_error(const Shapes& s, Index head_stride, Index row_stride) {
  float x = 0;
  return error_of([&] {
    require_output(s, TensorView<float>{&x, s.heads, s.n_q, s.d_v, head_stride, row_stride});
  });
}

TEST(RequireOutput, RowsShareNoMemory) {
  const Shapes s{4, 2, 10, 20, 8, 5};
  for (const auto& [head_stride, row_stride] :
       {std::pair<Index, Index>{50, 5}, {5, 20}, {64, 6}, {-50, 5}, {50, -5}, {7, 100}, {1000, -5}})
    EXPECT_EQ(output_error(s, head_stride, row_stride), "no Error") << head_stride << ", " << row_stride;
  for (const auto& [head_stride, row_stride] : {std::pair<Index, Index>{50, 4},
                                                {49, 5},
                                                {4, 20},
                                                {5, 19},
                                                {50, 0},
                                                {0, 5},
                                                {-49, 5},
                                                {50, -4},
                                                {5, 5}})
    EXPECT_EQ(output_error(s, head_stride, row_stride),
              detail::message("out is [4, 10, 5] with head_stride ", head_stride, " and row_stride ",
                              row_stride, ": rows would overwrite each other"));
  EXPECT_EQ(output_error({4, 2, 1, 20, 8, 5}, 5, 0), "no Error") << "one row";
  EXPECT_EQ(output_error({1, 1, 10, 20, 8, 5}, 0, 5), "no Error") << "one head";
}

TEST(Problem, RopeHoldsPhasesUpToItsLastPosition) {
  constexpr Position kLast = Position{1} << 31;
  const Shapes s{1, 1, 1, 2, 4, 1};
  const auto error = [&](Position query, Position key, bool rope, bool applied = false) {
    const std::vector<Position> queries = {query}, keys = {0, key};
    Options options{.rope_already_applied = applied, .query_positions = queries, .key_positions = keys};
    if (rope) options.rope = Rope{};
    return error_of([&] { Problem(s, options); });
  };
  EXPECT_EQ(error(kLast, -kLast, true), "no Error");
  EXPECT_THAT(error(kLast + 1, 3, true), AllOf(HasSubstr("2147483649"), HasSubstr("up to 2147483648")));
  EXPECT_THAT(error(3, -kLast - 1, true), HasSubstr("2147483649"));
  EXPECT_EQ(error(kLast + 1, 3, false), "no Error") << "masks and biases need no phases";
  EXPECT_EQ(error(kLast + 1, 3, true, /*applied=*/true), "no Error") << "phases are somebody else's";

  const std::vector<Position> far = {kLast + 5};
  const Problem problem({1, 1, 1, 1, 4, 1}, Options{.rope = Rope{}});
  EXPECT_THAT(error_of([&] { problem.with(1, 1, {far, far}); }), HasSubstr("2147483653"));
}

TEST(Problem, SectionPositionsAreThoseOfTheRope) {
  const Shapes s{1, 1, 2, 3, 8, 1};
  const Rope rope{.sections = {2, 1, 1}};
  std::vector<Position> places(9, 5);
  const auto error = [&](const std::optional<Rope>& of, Index rows, Index cols, bool applied = false) {
    return error_of([&] {
      Problem(s, Options{.rope = of,
                         .rope_already_applied = applied,
                         .key_section_positions = {places.data(), rows, cols}});
    });
  };
  EXPECT_EQ(error(rope, 3, 3), "no Error");
  EXPECT_THAT(error(rope, 3, 2), AllOf(HasSubstr("key_section_positions is [3, 2]"), HasSubstr("n = 3")));
  EXPECT_THAT(error(rope, 2, 3), HasSubstr("sections = 3"));
  EXPECT_THAT(error(Rope{}, 3, 3), HasSubstr("sections = 0"));
  EXPECT_THAT(error({}, 3, 3), HasSubstr("sections = 0"));
  EXPECT_THAT(error(rope, 3, 2, /*applied=*/true), HasSubstr("[3, 2]")) << "described all the same";
  EXPECT_THAT(error_of([&] {
                Problem(s, Options{.rope = rope, .query_section_positions = {nullptr, 3, 2}});
              }),
              HasSubstr("query_section_positions is null and [3, 2]"));

  places[7] = -(Position{1} << 31) - 2;
  EXPECT_THAT(error(rope, 3, 3), HasSubstr("2147483650"));
  EXPECT_EQ(error(rope, 3, 3, /*applied=*/true), "no Error") << "phases are somebody else's";
  places[7] = std::numeric_limits<Position>::min();
  EXPECT_THAT(error(rope, 3, 3, /*applied=*/true), HasSubstr("beyond +-2^40"));
}

TEST(Problem, SectionPositionsTakeThePlaceOfTokens) {
  const Shapes s{1, 1, 2, 3, 8, 1};
  const std::vector<Position> far = {Position{1} << 35, 7}, ring = {2, 0, 1}, queries = {1, 2, 3, 4, 5, 6},
                              keys = {10, 20, 30, 40, 50, 60, 70, 80, 90};
  Options options{.rope = Rope{.sections = {2, 1, 1}}, .query_positions = far, .key_positions = ring};
  EXPECT_THAT(error_of([&] { Problem(s, options); }), HasSubstr("34359738368"));
  options.query_section_positions = {queries.data(), 3, 2};
  EXPECT_THAT(error_of([&] { Problem(s, options); }), HasSubstr("34359738368")) << "the keys turn by tokens";
  options.key_section_positions = {keys.data(), 3, 3};
  const Problem problem(s, options);
  EXPECT_EQ(problem.farthest_turn(), 90);
  EXPECT_FALSE(problem.turns_by_lag());
  EXPECT_EQ(problem.query_turn(1, 2), 6);
  EXPECT_EQ(problem.key_turn(0, 1), 50) << "the key at 0 is row 1";
  EXPECT_EQ(problem.grid.query_position(0), far[0]) << "what masks and biases go by";
  const Problem other = problem.with(1, 1, {});
  EXPECT_TRUE(other.turns_by_lag());
  EXPECT_EQ(other.key_turn(0, 2), 0);
}

TEST(Problem, DenseOptionsWithoutDataHaveNoSize) {
  const Shapes s{1, 1, 2, 3, 4, 1};
  const auto error = [&](const Options& options) { return error_of([&] { Problem(s, options); }); };
  EXPECT_EQ(error({.dense_bias = {nullptr, 1, 2, 3, 6, 3}}),
            "dense_bias is a null pointer with size [1, 2, 3]: without one, it has none");
  EXPECT_THAT(error({.dense_mask = {nullptr, 1, 2, 3, 6, 3}}), HasSubstr("dense_mask is a null pointer"));
  EXPECT_EQ(error({.dense_mask = {nullptr, 1, 2, 0, 6, 3}}), "no Error");
}

TEST(Problem, AnEmptyMaskIsRefusedHoweverItWasMade) {
  EXPECT_THAT(error_of([] {
                Problem({1, 1, 2, 3, 4, 1}, Options{.mask = {2, -3}});
              }),
              HasSubstr("the lags 2 to -3"));
}

TEST(PagedView, PagesMayBeAsLargeAsNumbersAre) {
  const std::vector<std::int32_t> pages = {0};
  PagedView<const float> view{.heads = 1, .rows = 5, .cols = 4, .page_rows = kMost, .pages = pages};
  EXPECT_EQ(error_of([&] { view.require_pages("k"); }), "no Error");
  view.pages = {};
  EXPECT_THAT(error_of([&] { view.require_pages("k"); }), HasSubstr("need 1"));
  view.pages = pages;
  view.page_rows = 4;
  EXPECT_THAT(error_of([&] { view.require_pages("k"); }), HasSubstr("need 2"));
}

}  // namespace
}  // namespace fastrope_test
