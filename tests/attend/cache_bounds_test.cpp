// Plans over a cache that grows: what is kept from one to the next, and what is refused.
#include "fastrope/attend/cache_bounds.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "fastrope/attend/make_plan.hpp"
#include "support/attention_case.hpp"
#include "support/error_of.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

/// A sequence of which a call sees the first n_k keys, and the last n_q of their queries.
struct Sequence {
  AttentionCase c;
  AttentionInputs<float> in;

  Sequence(Index n, double size, Index kv_heads = 1)
      : c{.shapes = {2, kv_heads, n, n, 6, 5}}, in(c.shapes, 3) {
    c.base.rope = Rope{};
    c.base.scale = 1.0;
    c.base.mask = Mask::causal();
    c.base.tolerance = 1e-2;
    Inputs random(5);
    for (auto* x : {&in.q, &in.k}) *x = random.sphere<float>(x->heads, n, 6, size);
  }

  template <class T>
  static auto part(Tensor<T>& x, Index begin, Index end) {
    TensorView<T> view = x.view();
    view.data += begin * view.row_stride;
    view.rows = end - begin;
    return view;
  }

  /// Plans and runs a chunk; returns the largest error of its rows over max|V| and what was promised.
  Report chunk(Index begin, Index end, CacheBounds<float>& bounds) {
    const auto q = part(in.q, begin, end), k = part(in.k, 0, end), v = part(in.v, 0, end);
    const auto plan = make_plan(q, k, v, c.options(), bounds);
    std::vector<std::byte> workspace(plan.workspace_bytes());
    const auto out = part(in.out, begin, end);
    EXPECT_EQ(plan.run(q, k, v, out, workspace), RunStatus::ok);
    return plan.verify(q, k, v, out, end - begin);
  }
};

TEST(CacheBounds, ChunksKeepTheirPromises) {
  for (const Index kv_heads : {1, 2}) {
    Sequence s(6000, 0.7, kv_heads);
    // A key and a query that are longer than those before.
    for (Index m = 0; m < 6; ++m) {
      s.in.k(0, 3333, m) *= 1.7f;
      s.in.q(1, 5001, m) *= 1.5f;
    }
    CacheBounds<float> bounds;
    int polynomial = 0, not_looked = 0;
    Index begin = 0;
    for (const Index end : {700, 1500, 1501, 3000, 4400, 6000}) {
      const Index before = bounds.rows();
      const Report report = s.chunk(begin, end, bounds);
      // Where a look cannot pay there is none, or of lengths alone: the next sees what was left out.
      const bool looked = report.heads[0].candidates.size() > 1;
      not_looked += !looked;
      EXPECT_EQ(bounds.rows(), looked ? end : before);
      for (const HeadReport& head : report.heads) {
        polynomial += head.path == Path::polynomial;
        EXPECT_LE(head.observed_error, head.error_bound + 4e-6) << report;
      }
      begin = end;
    }
    EXPECT_GE(polynomial, 4);
    EXPECT_EQ(not_looked, 2) << "700 tokens, and one";
    EXPECT_EQ(bounds.rows(), 6000);
  }
}

TEST(CacheBounds, LongKeysOfThePastAreNotForgotten) {
  Sequence s(6000, 0.5);
  for (Index m = 0; m < 6; ++m) s.in.k(0, 100, m) *= 20;
  CacheBounds<float> bounds;
  s.chunk(0, 3000, bounds);
  const Report report = s.chunk(3000, 6000, bounds);
  for (const HeadReport& head : report.heads) EXPECT_GE(head.entry_bound, 20 * 0.5 * 0.5 * 0.9) << report;
}

// The keys of the choice have no mean; those that follow all point one way, and queries the other, where the
// terms of a row cancel: nearly half of the mean is as far out as any, which counts e^(R / 2) in the
// rounding.
TEST(CacheBounds, NewKeysMayHaveAnotherMean) {
  Sequence s(3800, 1.0);
  s.c.base.rope.reset();
  s.c.base.mask = Mask::full();
  s.c.base.path = Path::polynomial;
  for (Index j = 2000; j < 3800; ++j)
    for (Index m = 0; m < 6; ++m) {
      s.in.k(0, j, m) = m == 0 ? 1.0f : 0.0f;
      for (Index h = 0; h < 2; ++h) s.in.q(h, j, m) = m == 0 ? -1.0f : 0.0f;
    }
  CacheBounds<float> bounds;
  const Report before = s.chunk(0, 2000, bounds), after = s.chunk(2000, 3800, bounds);
  for (std::size_t h = 0; h < 2; ++h) {
    EXPECT_EQ(after.heads[h].degree, before.heads[h].degree);
    EXPECT_GE(after.heads[h].rounding, 1.2 * before.heads[h].rounding) << before << after;
  }
}

TEST(CacheBounds, NotFiniteKeysOfThePastStayKnown) {
  Sequence s(4000, 0.5);
  s.in.k(0, 100, 2) = NAN;
  s.in.v(0, 50, 1) = INFINITY;
  CacheBounds<float> bounds;
  s.chunk(0, 2000, bounds);
  for (const HeadReport& head : s.chunk(2000, 4000, bounds).heads) {
    EXPECT_EQ(head.path, Path::exact);
    EXPECT_NE(head.reason.find("k is not finite"), std::string::npos) << head.reason;
  }
}

TEST(CacheBounds, TheSameCallsGiveTheSamePlans) {
  Sequence s(5000, 0.6);
  CacheBounds<float> first, second;
  for (const Index end : {2000, 3000, 5000}) {
    const auto a = s.chunk(end - 1000, end, first), b = s.chunk(end - 1000, end, second);
    EXPECT_EQ(a.to_json(), b.to_json());
  }
}

TEST(CacheBounds, RefuseWhatTheyDoNotKnow) {
  Sequence s(3000, 0.5);
  CacheBounds<float> bounds;
  s.chunk(0, 2000, bounds);
  EXPECT_NE(error_of([&] { s.chunk(0, 1000, bounds); }).find("1000 keys, 2000 were looked at"),
            std::string::npos);
  Sequence other(3000, 0.5);
  other.c.base.rope = Rope{.base = 500.0};
  EXPECT_NE(error_of([&] { other.chunk(2000, 3000, bounds); }).find("clear()"), std::string::npos);
  EXPECT_EQ(bounds.rows(), 2000) << "a refusal leaves them as they are";
  Sequence shuffled(3000, 0.5);
  for (Index j = 0; j < 3000; ++j) shuffled.c.key_positions.push_back(2999 - j);
  shuffled.c.query_positions = shuffled.c.key_positions;
  EXPECT_NE(error_of([&] { shuffled.chunk(0, 3000, bounds); }).find("ascending"), std::string::npos);
  bounds.clear();
  EXPECT_EQ(bounds.rows(), 0);
  other.chunk(0, 1000, bounds);
}

TEST(CacheBounds, RefuseKeysThatHaveMoved) {
  // A key was dropped from the middle: the first one stands where it did, the last of those that were seen
  // does not.
  Sequence s(3000, 0.5), moved(3000, 0.5);
  for (Index j = 0; j < 3000; ++j) {
    s.c.key_positions.push_back(j);
    moved.c.key_positions.push_back(j < 1000 ? j : j + 1);
  }
  CacheBounds<float> bounds;
  const auto chunk = [&](Sequence& sequence, Index begin, Index end) {
    AttentionCase& c = sequence.c;
    const std::vector<Position> all = c.key_positions;
    c.key_positions.resize(static_cast<std::size_t>(end));
    c.query_positions.assign(c.key_positions.begin() + begin, c.key_positions.end());
    const std::string error = error_of([&] { sequence.chunk(begin, end, bounds); });
    c.key_positions = all;
    return error;
  };
  EXPECT_EQ(chunk(s, 0, 2000), "no Error");
  EXPECT_NE(chunk(moved, 2000, 3000).find("keys at 0 to 2000: clear() the bounds"), std::string::npos);
  EXPECT_EQ(chunk(s, 2000, 3000), "no Error");
}

}  // namespace
}  // namespace fastrope_test
