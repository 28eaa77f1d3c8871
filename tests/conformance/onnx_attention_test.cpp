// The ONNX project's Attention vectors through attend().
//
// ONNX's operator has a batch, and its caches and causal offsets belong to a batch entry: one call of
// attend() for each. Captured scores (qk_matmul_output) are not compared: nothing n x n exists to capture.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "fastrope/fastrope.hpp"
#include "support/onnx_vectors.hpp"

namespace {

using fastrope::float16;
using fastrope::Mask;
using fastrope::Options;
using fastrope::Position;
using fastrope_test::Index;
using fastrope_test::OnnxBatch;
using fastrope_test::OnnxCase;
using fastrope_test::OnnxTensor;
using fastrope_test::TensorView;

/// The first rows of each head.
template <class T>
TensorView<T> first_rows(TensorView<T> x, Index rows) {
  x.rows = rows;
  return x;
}

/// The present cache: [batch, heads, past.rows + added.rows, cols].
template <class T>
OnnxBatch<T> concatenated(const OnnxBatch<T>& past, const OnnxBatch<T>& added) {
  OnnxBatch<T> present({past.count, past.heads, past.rows + added.rows, past.cols}, past.heads);
  for (Index b = 0; b < present.count; ++b)
    for (Index h = 0; h < present.heads; ++h)
      for (Index j = 0; j < present.rows; ++j) {
        const T* row = j < past.rows ? past[b].head(h).row(j) : added[b].head(h).row(j - past.rows);
        std::copy_n(row, present.cols, present[b].head(h).row(j));
      }
  return present;
}

/// Batch entry b of attn_mask for the first n_k keys. Its sizes, right-aligned with those of the scores,
/// [batch, heads, n_q, keys], are equal or, for batch and heads, 1.
template <class T>
TensorView<const T> attn_mask_of(const OnnxTensor& attn_mask, const std::array<Index, 4>& scores, Index b,
                                 Index n_k) {
  std::array<Index, 4> sizes = {1, 1, 1, 1};
  std::copy_backward(attn_mask.shape.begin(), attn_mask.shape.end(), sizes.end());
  for (int axis = 0; axis < 4; ++axis)
    if (sizes[axis] != scores[axis] && (sizes[axis] != 1 || axis >= 2))
      throw std::logic_error("attn_mask is broadcast in a way that this test does not know");
  const auto [batch, heads, n_q, keys] = sizes;
  const T* data = attn_mask.values<T>().data() + (batch == 1 ? 0 : b * heads * n_q * keys);
  return {data, scores[1], n_q, n_k, /*head_stride=*/heads == 1 ? 0 : n_q * keys, /*row_stride=*/keys};
}

/// Runs the case with q, k, v and out stored as T.
template <class T>
void expect_outputs(const OnnxCase& c) {
  const OnnxBatch<T> q(c.inputs.at("Q"), c.integer("q_num_heads", 0));
  OnnxBatch<T> k(c.inputs.at("K"), c.integer("kv_num_heads", 0));
  OnnxBatch<T> v(c.inputs.at("V"), c.integer("kv_num_heads", 0));
  Index past = 0;
  if (c.inputs.contains("past_key")) {
    const OnnxBatch<T> past_key(c.inputs.at("past_key"), 0), past_value(c.inputs.at("past_value"), 0);
    past = past_key.rows;
    k = concatenated(past_key, k);
    v = concatenated(past_value, v);
    EXPECT_TRUE(agrees(k.values, c.outputs.at("present_key")));
    EXPECT_TRUE(agrees(v.values, c.outputs.at("present_value")));
  }

  const Index left = c.integer("left_window_size", -1);
  const Index right = c.integer("is_causal", 0) != 0 ? 0 : c.integer("right_window_size", -1);
  Options options{
      .mask = Mask::lags(right < 0 ? -Mask::kUnlimited : -right, left < 0 ? Mask::kUnlimited : left),
      .softcap = c.attribute("softcap", 0)};
  if (c.attributes.contains("scale")) options.scale = c.attributes.at("scale");

  OnnxBatch<T> out(c.outputs.at("Y").shape, q.heads);
  for (Index b = 0; b < q.count; ++b) {
    Index n_k = k.rows, first_query = past;
    if (c.inputs.contains("nonpad_kv_seqlen")) {
      n_k = c.inputs.at("nonpad_kv_seqlen").values<std::int64_t>()[b];
      first_query = n_k - q.rows;
    }
    std::vector<Position> positions(q.rows);
    std::iota(positions.begin(), positions.end(), first_query);
    options.query_positions = positions;
    if (c.inputs.contains("attn_mask")) {
      const OnnxTensor& attn_mask = c.inputs.at("attn_mask");
      const std::array<Index, 4> scores = {q.count, q.heads, q.rows, k.rows};
      if (attn_mask.dtype == "bool")
        options.dense_mask = attn_mask_of<bool>(attn_mask, scores, b, n_k);
      else
        options.dense_bias = attn_mask_of<float>(attn_mask, scores, b, n_k);
    }
    fastrope::attend(q[b], first_rows(k[b], n_k), first_rows(v[b], n_k), out[b], options);
  }
  EXPECT_TRUE(agrees(out.values, c.outputs.at("Y")));
}

class OnnxAttention : public testing::TestWithParam<OnnxCase> {};

TEST_P(OnnxAttention, GivesTheExpectedOutputs) {
  const OnnxCase& c = GetParam();
  for (const auto& [key, value] : c.attributes)
    ASSERT_THAT(key, testing::AnyOf("scale", "softcap", "is_causal", "left_window_size", "right_window_size",
                                    "q_num_heads", "kv_num_heads",
                                    "qk_matmul_output_mode",  // how the scores are captured
                                    "softmax_precision"));    // the type the reference takes: ours is float
  if (c.inputs.at("Q").dtype == "float16")
    expect_outputs<float16>(c);
  else
    expect_outputs<float>(c);
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(OnnxAttention);
INSTANTIATE_TEST_SUITE_P(Vectors, OnnxAttention, testing::ValuesIn(fastrope_test::onnx_cases("Attention")),
                         [](const auto& test) { return test.param.name; });

TEST(OnnxAttentionVectors, AreAllThere) {
  SKIP_WITHOUT_CONFORMANCE();
  const std::size_t count = fastrope_test::onnx_cases("Attention").size();
  std::cout << count << " of the manifest's " << fastrope_test::onnx_cases().size()
            << " cases are Attention\n";
  EXPECT_EQ(count, 56);
}

}  // namespace
