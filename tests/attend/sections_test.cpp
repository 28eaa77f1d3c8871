// Multimodal RoPE on every path: sections of the pairs turned by positions of their own, beside the tokens'
// that masks and biases go by.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"
#include "support/error_of.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::HasSubstr;

const std::pair<std::vector<Index>, SectionOrder> kSections[] = {
    {{2, 3, 3}, SectionOrder::consecutive},  // Qwen2-VL's 16/24/24, an eighth of it
    {{4, 2, 2}, SectionOrder::interleaved},
    {{8}, SectionOrder::consecutive},
    {{2, 2, 2, 2}, SectionOrder::interleaved},
};

/// Every position that sections have, set to the token's own.
void set_token_positions(AttentionCase& c) {
  c.query_section_positions.clear();
  c.key_section_positions.clear();
  const Shapes& s = c.shapes;
  for (std::size_t section = 0; section < c.base.rope->sections.size(); ++section) {
    for (Index i = 0; i < s.n_q; ++i)
      c.query_section_positions.push_back(
          c.query_positions.empty() ? s.n_k - s.n_q + i : c.query_positions[static_cast<std::size_t>(i)]);
    for (Index j = 0; j < s.n_k; ++j)
      c.key_section_positions.push_back(
          c.key_positions.empty() ? j : c.key_positions[static_cast<std::size_t>(j)]);
  }
}

template <class Real>
std::vector<Real> out_of(const AttentionCase& c, const AttentionInputs<Real>& in) {
  Tensor<Real> out = in.out;
  attend(in.q.view(), in.k.view(), in.v.view(), out.view(), c.options());
  return out.values;
}

template <class Real>
class Sections : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(Sections, Reals);

TYPED_TEST(Sections, EqualPositionsArePlainRopeBitForBit) {
  Inputs random(1);
  for (const auto& [sections, order] : kSections)
    for (const Index n_q : {2, 70})  // decoded, and in tiles
      for (const bool ring : {false, true})
        for (const Path path : {Path::exact, Path::polynomial, Path::toeplitz}) {
          AttentionCase c{.shapes = {2, 1, n_q, 150, 16, 5}};
          if (path != Path::exact) c.shapes = {2, 1, 150, 150, 4, 5};
          if (path != Path::exact && (ring || n_q == 2)) continue;
          c.base.rope = Rope{.base = 500, .pairing = RopePairing::half_split};
          c.base.mask = Mask::causal();
          c.base.path = path;
          c.base.tolerance = path == Path::exact ? 0 : 1e-2;
          c.base.scale = path == Path::exact ? 0.25 : 0.05;
          if (ring) c.key_positions = shuffled_positions(random, 150, 0);
          const AttentionInputs<TypeParam> in(c.shapes, 2);
          AttentionCase by_section = c;
          by_section.base.rope->sections = path == Path::exact ? sections : std::vector<Index>{1, 1};
          by_section.base.rope->section_order = order;
          EXPECT_EQ(out_of(by_section, in), out_of(c, in)) << c << ", without positions of sections";
          set_token_positions(by_section);
          EXPECT_EQ(out_of(by_section, in), out_of(c, in)) << c << ", " << path;
        }
}

TYPED_TEST(Sections, ExactPathsAgreeWithTheFormula) {
  Inputs random(3);
  constexpr double kTolerance = 300 * static_cast<double>(std::numeric_limits<TypeParam>::epsilon());
  for (const auto& [sections, order] : kSections)
    for (const Index n_q : {1, 3, 70})
      for (const int kind : {0, 1, 2, 3, 4}) {
        AttentionCase c{.shapes = {4, 2, n_q, 300, 20, 7}};
        c.base.rope = Rope{.base = 700, .rotary_dim = 16, .rotary_begin = kind % 2 == 0 ? 4 : 0};
        c.base.rope->pairing = kind < 2 ? RopePairing::half_split : RopePairing::interleaved;
        c.base.mask = kind == 4 ? Mask::sliding_window(40) : Mask::causal();
        set_sections(c, random, sections, order);
        if (kind == 1) set_alibi(c, random);
        if (kind == 2) c.key_positions = shuffled_positions(random, 300, 0);
        if (kind == 3) c.query_section_positions.clear();  // the queries are text
        if (kind == 4) c.key_section_positions.clear();
        AttentionInputs<TypeParam> in(c.shapes, 4);
        const Reference expected = in.reference(c);
        const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), [&] {
          Options options = c.options();
          options.verify = 5;
          return options;
        }());
        EXPECT_LE(max_abs_difference(in.out.view(), expected.out.view()), kTolerance) << c << ", " << kind;
        for (const HeadReport& head : report.heads) EXPECT_LE(head.observed_error, kTolerance) << c;

        Tensor<TypeParam> lse(1, c.shapes.heads, n_q);
        attend_partial(in.q.view(), in.k.view(), in.v.view(), in.out.view(), lse.view().head(0), c.options());
        EXPECT_LE(max_abs_difference(in.out.view(), expected.out.view()), kTolerance) << c << ", partial";
        EXPECT_LE(max_abs_difference(lse.view(), expected.lse.view()), 10 * kTolerance) << c;
      }
}

TYPED_TEST(Sections, ApproximatePathsKeepTheirPromise) {
  Inputs random(5);
  for (const SectionOrder order : {SectionOrder::consecutive, SectionOrder::interleaved})
    for (const Path path : {Path::polynomial, Path::toeplitz, Path::automatic})
      for (const bool biased : {false, true}) {
        AttentionCase c{.shapes = {2, 1, 500, 500, 6, 5}};
        c.base.rope = Rope{.base = 50};
        c.base.mask = Mask::causal();
        c.base.scale = 0.1;
        c.base.path = path;
        c.base.tolerance = 3e-2;
        set_sections(c, random, {1, 1, 1}, order);
        if (biased) set_alibi(c, random);
        AttentionInputs<TypeParam> in(c.shapes, 6);
        const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
        const Tensor<double> expected = in.reference(c).out;
        for (const HeadReport& head : report.heads) {
          if (path != Path::automatic) {
            EXPECT_EQ(head.path, path);
            EXPECT_LE(head.error_bound, c.base.tolerance);
          }
          EXPECT_LE(max_abs_difference(in.out.view(), expected.view()),
                    std::min(head.error_bound, c.base.tolerance))
              << c << ", " << path;
        }
        // Far from what positions of tokens give: the test sees the sections.
        AttentionCase plain = c;
        plain.query_section_positions.clear();
        plain.key_section_positions.clear();
        EXPECT_GT(max_abs_difference(in.reference(plain).out.view(), expected.view()), 3e-2);
      }
}

TYPED_TEST(Sections, KernelsOfPolynomialsTurnBySections) {
  Inputs random(7);
  for (const Path path : {Path::exact, Path::polynomial}) {
    AttentionCase c{.shapes = {2, 1, 200, 200, 4, 5}};
    c.base.rope = Rope{.base = 50};
    c.base.mask = Mask::causal();
    c.base.kernel = Kernel::taylor(2);
    c.base.path = path;
    set_sections(c, random, {1, 1}, SectionOrder::consecutive);
    AttentionInputs<TypeParam> in(c.shapes, 8);
    attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    EXPECT_LE(max_abs_difference(in.out.view(), in.reference(c).out.view()),
              2000 * static_cast<double>(std::numeric_limits<TypeParam>::epsilon()))
        << path;
  }
}

TYPED_TEST(Sections, RowsThatArriveTurnedAreLeft) {
  Inputs random(9);
  AttentionCase c{.shapes = {2, 1, 5, 40, 16, 5}};
  c.base.rope = Rope{};
  set_sections(c, random, {2, 3, 3}, SectionOrder::consecutive);
  c.base.rope_already_applied = true;
  const AttentionInputs<TypeParam> in(c.shapes, 10);
  AttentionCase none = c;
  none.base.rope.reset();
  none.query_section_positions.clear();
  none.key_section_positions.clear();
  EXPECT_EQ(out_of(c, in), out_of(none, in));
}

TEST(SectionsOfABatch, AreEachSequencesOwn) {
  Inputs random(11);
  const Shapes shapes[] = {{2, 1, 60, 90, 16, 5}, {2, 1, 1, 200, 16, 5}, {2, 1, 3, 30, 16, 5}};
  std::vector<AttentionCase> cases;
  std::vector<AttentionInputs<float>> inputs;
  std::vector<SequencePositions> positions;
  std::vector<SequenceViews<float>> views;
  for (const Shapes& s : shapes) {
    AttentionCase& c = cases.emplace_back(AttentionCase{.shapes = s});
    c.base.rope = Rope{};
    c.base.mask = Mask::causal();
    set_sections(c, random, {3, 3, 2}, SectionOrder::interleaved);
    inputs.emplace_back(s, random);
  }
  cases.back().query_section_positions.clear();
  cases.back().key_section_positions.clear();
  for (std::size_t s = 0; s < cases.size(); ++s) {
    const Options options = cases[s].options();
    positions.push_back(
        {.query_sections = options.query_section_positions, .key_sections = options.key_section_positions});
    views.push_back({inputs[s].q.view(), inputs[s].k.view(), inputs[s].v.view(), inputs[s].out.view()});
  }
  attend_batch(views, cases.back().options(), positions);
  for (std::size_t s = 0; s < cases.size(); ++s)
    EXPECT_LE(max_abs_difference(inputs[s].out.view(), inputs[s].reference(cases[s]).out.view()), 3e-5) << s;

  EXPECT_THAT(error_of([&] { attend_batch(views, cases.front().options(), positions); }),
              HasSubstr("sections"));
  std::swap(positions[0], positions[1]);
  EXPECT_THAT(error_of([&] { attend_batch(views, cases.back().options(), positions); }),
              testing::AllOf(HasSubstr("sequence 0"), HasSubstr("n = 60")));
}

TEST(SectionsOfACache, ChunksKeepTheirPromises) {
  Inputs random(12);
  AttentionCase c{.shapes = {2, 1, 3000, 3000, 6, 5}};
  c.base.rope = Rope{.base = 50};
  c.base.mask = Mask::causal();
  c.base.scale = 0.1;
  c.base.tolerance = 1e-2;
  set_sections(c, random, {1, 1, 1}, SectionOrder::consecutive);
  AttentionInputs<float> in(c.shapes, 13);
  CacheBounds<float> bounds;
  const auto rows = [](auto view, Index begin, Index end) {
    view.data += begin * view.row_stride;
    view.rows = end - begin;
    return view;
  };
  const auto chunk = [&](Index begin, Index end) {
    Options options = c.options();
    options.query_section_positions.data += begin;
    options.query_section_positions.cols = end - begin;
    options.key_section_positions.cols = end;
    const auto q = rows(in.q.view(), begin, end), k = rows(in.k.view(), 0, end),
               v = rows(in.v.view(), 0, end);
    const auto plan = make_plan(q, k, v, options, bounds);
    std::vector<std::byte> workspace(plan.workspace_bytes());
    const auto out = rows(in.out.view(), begin, end);
    EXPECT_EQ(plan.run(q, k, v, out, workspace), RunStatus::ok);
    for (const HeadReport& head : plan.verify(q, k, v, out, end - begin).heads)
      EXPECT_LE(head.observed_error, head.error_bound) << begin;
  };
  chunk(0, 1000);
  chunk(1000, 2500);
  chunk(2500, 3000);
  EXPECT_LE(max_abs_difference(in.out.view(), in.reference(c).out.view()), 1e-2);
  // Keys that stand elsewhere in a section are not those that were looked at.
  c.key_section_positions[2 * 3000 + 2999] += 1;
  c.base.path = Path::polynomial;  // one token costs less than a look
  EXPECT_THAT(error_of([&] { chunk(2999, 3000); }), HasSubstr("clear()"));
}

TEST(SectionsOfARecurrence, AreRefused) {
  const std::vector<Position> place = {3, 4};
  Options options{.rope = Rope{.sections = {1, 1}}, .mask = Mask::causal(), .kernel = Kernel::taylor(2)};
  EXPECT_EQ(error_of([&] { RecurrentAttention<float>(1, 1, 4, 4, options); }), "no Error")
      << "tokens' positions";
  options.key_section_positions = {place.data(), 2, 1};
  EXPECT_THAT(error_of([&] { RecurrentAttention<float>(1, 1, 4, 4, options); }),
              HasSubstr("sections 0 and 1"));
}

}  // namespace
}  // namespace fastrope_test
