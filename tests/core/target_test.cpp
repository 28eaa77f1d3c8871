// Names say which vectors they are for: files with other flags do not link to each other.
#include "fastrope/core/target.hpp"

#include <gtest/gtest.h>

#include <string>
#include <typeinfo>

#include "fastrope/core/simd.hpp"

namespace {

using fastrope::kTargetName;

TEST(Target, IsInEveryName) {
  const std::string target = kTargetName;
  EXPECT_NE(target, "FASTROPE_TARGET");
  EXPECT_NE(std::string(typeid(fastrope::MatrixView<float>).name()).find(target), std::string::npos);
}

TEST(Target, HasTheVectorsOfItsName) {
  const std::string target = kTargetName;
  const std::string vectors = fastrope::simd::target_name();
  if (target.starts_with("avx512") || target.starts_with("amx")) {
    EXPECT_EQ(vectors, "AVX3");
  }
  if (target.starts_with("avx2")) {
    EXPECT_EQ(vectors, "AVX2");
  }
  if (target == "avx" || target == "sse4") {
    EXPECT_EQ(vectors, "SSE4");
  }
  if (target.starts_with("neon")) {
    EXPECT_EQ(vectors, "NEON");
  }
  if (target == "ssse3") {
    EXPECT_EQ(vectors, "SSSE3");
  }
}

}  // namespace
