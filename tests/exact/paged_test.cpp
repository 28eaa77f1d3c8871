// Keys and values in pages give, bit for bit, what the same rows give without gaps: prompts, decoding and
// approximations.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fastrope/fastrope.hpp>
#include <vector>

#include "support/inputs.hpp"

namespace {

using namespace fastrope;
using fastrope_test::Inputs;
using fastrope_test::Tensor;

/// A pool of pages [pages, heads, page_rows, cols] and a sequence whose pages are out of order in it.
template <class T>
struct Pool {
  static constexpr Index kPages = 40, kPageRows = 16;
  std::vector<T> memory;
  std::vector<std::int32_t> pages;
  PagedView<const T> view;
  Tensor<T> rows;  // the sequence without gaps

  Pool(Inputs& random, Index heads, Index n, Index cols, double sigma)
      : memory(random.gaussian<T>(kPages * heads, kPageRows, cols, sigma).values), rows(heads, n, cols) {
    for (Index p = 0; p < ceil_div(n, kPageRows); ++p)
      pages.push_back(static_cast<std::int32_t>((7 * p + 3) % kPages));
    view = {memory.data(),    heads, n, cols, kPageRows, pages, heads * kPageRows * cols,
            kPageRows * cols, cols};
    for (Index h = 0; h < heads; ++h)
      for (Index j = 0; j < n; ++j)
        for (Index c = 0; c < cols; ++c) {
          const Index page = pages[static_cast<std::size_t>(j / kPageRows)];
          const Index element = ((page * heads + h) * kPageRows + j % kPageRows) * cols + c;
          rows(h, j, c) = memory[static_cast<std::size_t>(element)];
        }
  }
};

template <class T>
class Paged : public testing::Test {
 protected:
  static void expect_same(Index n_q, Index n_k, const Options& options, double sigma) {
    Inputs random(static_cast<std::uint64_t>(n_q + n_k));
    const auto q = random.gaussian<float>(4, n_q, 12, sigma);
    const Pool<T> k(random, 2, n_k, 12, sigma), v(random, 2, n_k, 9, 1);
    Tensor<float> out(4, n_q, 9), expected(4, n_q, 9);
    attend(q.view(), k.view, v.view, out.view(), options);
    attend(q.view(), k.rows.view(), v.rows.view(), expected.view(), options);
    EXPECT_EQ(out.values, expected.values) << n_q << " queries, " << n_k << " keys";
  }
};

using Storage = testing::Types<float, bfloat16, float16>;
TYPED_TEST_SUITE(Paged, Storage);

TYPED_TEST(Paged, EqualsTheSameRowsWithoutGaps) {
  Options options;
  options.mask = Mask::causal();
  options.rope = Rope{};
  for (const Index n_q : {1, 3, 70})
    for (const Index n_k : {1, 15, 16, 17, 203}) this->expect_same(n_q, n_k, options, 1);
}

TYPED_TEST(Paged, EqualsThemOnThePolynomialPath) {
  Options options;
  options.tolerance = 1e-2;
  options.path = Path::polynomial;
  this->expect_same(70, 203, options, 0.1);
}

TEST(PagedView, RefusesRowsWithoutAPage) {
  Inputs random(1);
  const auto q = random.gaussian<float>(2, 1, 4);
  Pool<float> k(random, 2, 50, 4, 1), v(random, 2, 50, 4, 1);
  Tensor<float> out(2, 1, 4);
  const auto message = [&] {
    try {
      attend(q.view(), k.view, v.view, out.view(), Options{});
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(message(), "");
  v.view.pages = v.view.pages.first(3);
  EXPECT_THAT(message(), testing::HasSubstr("v names 3 pages of 16 rows, its 50 rows need 4"));
  v.view.pages = k.view.pages;
  k.pages[2] = -1;
  EXPECT_THAT(message(), testing::HasSubstr("k names page -1"));
  k.view.page_rows = 0;
  EXPECT_THAT(message(), testing::HasSubstr("k has pages of 0 rows"));
}

}  // namespace
