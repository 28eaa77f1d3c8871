// The ONNX project's RotaryEmbedding vectors through Rotation::apply. The operator is given its cosines and
// sines, so a Rotation of any frequencies serves: only their number and pairing matter.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iostream>
#include <vector>

#include "fastrope/position/rotation.hpp"
#include "support/onnx_vectors.hpp"

namespace {

using fastrope::RopeFrequencies;
using fastrope::RopePairing;
using fastrope::Rotation;
using fastrope_test::Index;
using fastrope_test::OnnxBatch;
using fastrope_test::OnnxCase;
using fastrope_test::OnnxTensor;

/// The table [batch * rows, 2 * pairs] of each row's cosines and sines. The caches are [positions, pairs]
/// with position_ids [batch, rows], or [batch, rows, pairs].
std::vector<float> tables_of(const OnnxCase& c, Index row_count) {
  const OnnxTensor& cosines = c.inputs.at("cos_cache");
  const OnnxTensor& sines = c.inputs.at("sin_cache");
  const Index pairs = cosines.shape.back();
  std::vector<float> tables;
  for (Index i = 0; i < row_count; ++i) {
    const Index source =
        c.inputs.contains("position_ids") ? c.inputs.at("position_ids").values<std::int64_t>()[i] : i;
    for (const OnnxTensor* cache : {&cosines, &sines}) {
      const float* row = cache->values<float>().data() + source * pairs;
      tables.insert(tables.end(), row, row + pairs);
    }
  }
  return tables;
}

class OnnxRotary : public testing::TestWithParam<OnnxCase> {};

TEST_P(OnnxRotary, GivesTheExpectedOutputs) {
  const OnnxCase& c = GetParam();
  for (const auto& [key, value] : c.attributes)
    ASSERT_THAT(key, testing::AnyOf("interleaved", "num_heads", "rotary_embedding_dim"));
  OnnxBatch<float> x(c.inputs.at("input"), c.integer("num_heads", 0));
  const Index pairs = c.integer("rotary_embedding_dim", x.cols) / 2;
  const bool interleaved = c.integer("interleaved", 0) != 0;
  const Rotation rotation(
      RopeFrequencies{.pairing = interleaved ? RopePairing::interleaved : RopePairing::half_split,
                      .theta = std::vector<double>(pairs)});
  const std::vector<float> tables = tables_of(c, x.count * x.rows);
  ASSERT_EQ(static_cast<Index>(tables.size()), x.count * x.rows * rotation.row_size());
  for (Index b = 0; b < x.count; ++b)
    for (Index h = 0; h < x.heads; ++h)
      for (Index i = 0; i < x.rows; ++i)
        rotation.apply(tables.data() + (b * x.rows + i) * rotation.row_size(), x[b].head(h).row(i));
  EXPECT_TRUE(agrees(x.values, c.outputs.at("output")));
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(OnnxRotary);
INSTANTIATE_TEST_SUITE_P(Vectors, OnnxRotary, testing::ValuesIn(fastrope_test::onnx_cases("RotaryEmbedding")),
                         [](const auto& test) { return test.param.name; });

TEST(OnnxRotaryVectors, AreAllThere) {
  SKIP_WITHOUT_CONFORMANCE();
  const std::size_t count = fastrope_test::onnx_cases("RotaryEmbedding").size();
  std::cout << count << " of the manifest's " << fastrope_test::onnx_cases().size()
            << " cases are RotaryEmbedding\n";
  EXPECT_EQ(count, 6);
}

}  // namespace
