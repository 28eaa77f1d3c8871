#include "fastrope/measure/rows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "support/inputs.hpp"
#include "support/row_matrix.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

template <class Real>
class RowsTest : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(RowsTest, Reals);

/// What a source was asked for.
struct Asked {
  std::vector<Range> rows;
  std::vector<bool> turned;
};

/// Rows (i, -i), which writes down what it is asked for.
template <class Real>
RowSource<Real> numbered(Index count, Asked& asked) {
  return {count, 2, [&asked](Range rows, bool turned, Real* to) {
            asked.rows.push_back(rows);
            asked.turned.push_back(turned);
            for (Index i = rows.begin; i < rows.end; ++i) {
              *to++ = static_cast<Real>(i);
              *to++ = static_cast<Real>(-i);
            }
          }};
}

/// The numbers of the rows of a sample.
std::vector<Index> numbers_of(const Points& some) {
  std::vector<Index> numbers;
  EXPECT_EQ(some.rows, 2);
  for (Index r = 0; r < some.cols; ++r) {
    numbers.push_back(static_cast<Index>(some(0, r)));
    EXPECT_EQ(some(1, r), -some(0, r)) << "row " << r << " is no row of the source";
  }
  return numbers;
}

TYPED_TEST(RowsTest, BlocksAreReadInOrderAndFilledWithTheLastRow) {
  using Real = TypeParam;
  Inputs inputs(2);
  for (const Index n : {0, 1, 63, 64, 65, 200})
    for (const Index first : {Index{0}, std::min<Index>(n, 5), n / 2, n}) {
      const RowMatrix<Real> x = gaussian_rows<Real>(inputs, n, 3);
      Index next = first;
      for_each_block(source_of(x), first, true, [&](Range rows, const Real* read) {
        EXPECT_EQ(rows.begin, next);
        EXPECT_EQ(rows.end, std::min(n, next + kRowBlock));
        for (Index i = 0; i < kRowBlock; ++i)
          for (Index c = 0; c < 3; ++c)
            EXPECT_EQ(read[i * 3 + c], x(std::min(rows.begin + i, rows.end - 1), c))
                << n << " rows, row " << i;
        next = rows.end;
      });
      EXPECT_EQ(next, n);
    }
}

TYPED_TEST(RowsTest, ASampleOfAMatrixHasItsRowsAsColumns) {
  using Real = TypeParam;
  Inputs inputs(1);
  const RowMatrix<Real> x = gaussian_rows<Real>(inputs, 9, 3);
  const Points all = sample(source_of(x), {0, 9}, 9), some = sample(source_of(x), {2, 7}, 9);
  EXPECT_EQ(farthest_apart(all, points_of(x)), 0);
  ASSERT_EQ(some.rows, 3);
  ASSERT_EQ(some.cols, 5);
  for (Index i = 0; i < 5; ++i)
    for (Index c = 0; c < 3; ++c) EXPECT_EQ(some(c, i), static_cast<double>(x(2 + i, c)));
}

TYPED_TEST(RowsTest, ASampleOfFewRowsIsAllOfThem) {
  using Real = TypeParam;
  for (const Range rows :
       {Range{0, 1}, Range{0, 8}, Range{5, 11}, Range{7, 7}, Range{0, 0}, Range{92, 100}}) {
    Asked asked;
    const std::vector<Index> numbers = numbers_of(sample(numbered<Real>(100, asked), rows, 8));
    ASSERT_EQ(static_cast<Index>(numbers.size()), rows.size());
    for (Index r = 0; r < rows.size(); ++r) EXPECT_EQ(numbers[static_cast<std::size_t>(r)], rows.begin + r);
  }
}

TYPED_TEST(RowsTest, ASampleIsEvenlySpread) {
  // In runs of four neighbours, whose distances differ by no more than rounding.
  using Real = TypeParam;
  for (const Index count : {8, 10, 63, 128})
    for (const Index begin : {0, 17})
      for (const Index size : {count + 1, count + 2, 2 * count - 1, 2 * count, 1000 + count, Index{65536}}) {
        const Range rows{begin, begin + size};
        Asked asked;
        const std::vector<Index> numbers =
            numbers_of(sample(numbered<Real>(rows.end + 5, asked), rows, count));
        const auto text = testing::Message() << count << " of " << size << " rows from " << begin;
        ASSERT_EQ(static_cast<Index>(numbers.size()), count / 4 * 4) << text;
        EXPECT_EQ(numbers.front(), rows.begin) << text;
        EXPECT_EQ(numbers.back(), rows.end - 1) << text;
        Index shortest = size, longest = 0;
        for (std::size_t r = 4; r < numbers.size(); r += 4) {
          shortest = std::min(shortest, numbers[r] - numbers[r - 4]);
          longest = std::max(longest, numbers[r] - numbers[r - 4]);
        }
        for (std::size_t r = 0; r < numbers.size(); ++r)
          EXPECT_EQ(numbers[r], numbers[r / 4 * 4] + static_cast<Index>(r % 4)) << text;
        EXPECT_GE(shortest, 4) << text << ": no row twice";
        EXPECT_LE(longest, shortest + 1) << text;
        Index read = 0;
        for (const Range& range : asked.rows) read += range.size();
        EXPECT_EQ(read, static_cast<Index>(numbers.size())) << text << ": nothing else is read";
      }
}

TYPED_TEST(RowsTest, ASampleIsOfTurnedRows) {
  using Real = TypeParam;
  for (const Index count : {8, 200}) {
    Asked asked;
    sample(numbered<Real>(100, asked), {0, 100}, count);
    EXPECT_FALSE(asked.turned.empty());
    for (const bool was : asked.turned) EXPECT_TRUE(was);
  }
}

}  // namespace
}  // namespace fastrope_test
