#include "fastrope/core/transpose.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace fastrope {
namespace {

template <class Real>
class Transpose : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(Transpose, Reals);

TYPED_TEST(Transpose, MovesEveryElementAndNoOther) {
  for (const Index rows : {0, 1, 3, 4, 15, 16, 17, 40, 70}) {
    for (const Index cols : {0, 1, 2, 7, 8, 16, 31, 33, 65}) {
      const Index from_stride = cols + 3, to_stride = rows + 5;
      std::vector<TypeParam> from(static_cast<std::size_t>(rows * from_stride + 1));
      for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<TypeParam>(i + 1);
      std::vector<TypeParam> to(static_cast<std::size_t>(cols * to_stride + 1), TypeParam(-1));
      transpose(from.data(), rows, cols, from_stride, to.data(), to_stride);
      for (Index c = 0; c < cols; ++c)
        for (Index r = 0; r < to_stride; ++r)
          ASSERT_EQ(to[static_cast<std::size_t>(c * to_stride + r)],
                    r < rows ? from[static_cast<std::size_t>(r * from_stride + c)] : TypeParam(-1))
              << rows << " x " << cols << ", element " << r << ", " << c;
      EXPECT_EQ(to.back(), TypeParam(-1));
    }
  }
}

// No column, no memory: rows of nothing have no address to step from, which sanitizers hold to.
TYPED_TEST(Transpose, OfNoColumnsTouchesNoPointer) {
  const TypeParam* from = nullptr;
  TypeParam* to = nullptr;
  transpose(from, 40, 0, 16, to, 40);
}

}  // namespace
}  // namespace fastrope
