// The calls of other attention operators as fastrope's, each checked against the operator's formula in double
// precision. docs/migration.md explains them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fastrope/fastrope.hpp>
#include <numeric>
#include <random>
#include <span>
#include <vector>

namespace {

using namespace fastrope;

/// What matters of a ggml_tensor: sizes with the columns first, strides in bytes.
struct GgmlTensor {
  void* data;
  std::int64_t ne[4];
  std::size_t nb[4];
};

/// Batch entry b of q, k or v, [d, rows, heads, batch], or, with rows = 2, of the result.
template <class T>
TensorView<T> ggml_view(const GgmlTensor& t, Index b, int rows = 1) {
  const int heads = 3 - rows;
  const auto stride = [&](int axis) { return static_cast<Index>(t.nb[axis] / sizeof(T)); };
  T* data = static_cast<T*>(t.data) + b * stride(3);
  return {data, t.ne[heads], t.ne[rows], t.ne[0], stride(heads), stride(rows)};
}

/// ggml_flash_attn_ext with the causal mask of llama.cpp, which need not be written out.
void flash_attn_ext(const GgmlTensor& q, const GgmlTensor& k, const GgmlTensor& v, const GgmlTensor& result,
                    float scale, float max_bias, float logit_softcap, std::span<const float> sinks) {
  Options options{.mask = Mask::causal(), .scale = scale, .softcap = logit_softcap, .sinks = sinks};
  if (max_bias > 0) options.bias = LagBias::alibi(alibi_slopes(q.ne[2], max_bias));
  for (Index b = 0; b < q.ne[3]; ++b)
    attend(ggml_view<const float>(q, b), ggml_view<const float16>(k, b), ggml_view<const float16>(v, b),
           ggml_view<float>(result, b, /*rows=*/2), options);
}

/// A tensor [batch, heads, rows, cols] without gaps.
template <class T>
struct Batch {
  Index size, heads, rows, cols;
  std::vector<T> data = std::vector<T>(static_cast<std::size_t>(size * heads * rows * cols));

  TensorView<T> operator[](Index b) { return contiguous(&data[b * heads * rows * cols], heads, rows, cols); }
};

/// PyTorch's scaled_dot_product_attention, is_causal=True: query i sees keys up to i, whatever the lengths.
void sdpa_causal(Batch<float>& query, Batch<float>& key, Batch<float>& value, Batch<float>& out) {
  std::vector<Position> positions(static_cast<std::size_t>(query.rows));
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<SequenceViews<float>> batch;
  for (Index b = 0; b < query.size; ++b) batch.push_back({query[b], key[b], value[b], out[b]});
  const std::vector<SequencePositions> at(batch.size(), {.queries = positions});
  attend_batch(batch, {.mask = Mask::causal()}, at);
}

/// The same with an attn_mask of bool, [batch, 1, 1, S].
void sdpa_masked(Batch<float>& query, Batch<float>& key, Batch<float>& value, const bool* attn_mask,
                 Batch<float>& out) {
  Options options;
  for (Index b = 0; b < query.size; ++b) {
    options.dense_mask = {attn_mask + b * key.rows, query.heads, query.rows, key.rows, 0, 0};
    attend(query[b], key[b], value[b], out[b], options);
  }
}

/// Batch entry b of a tensor [batch, rows, heads * d].
TensorView<float> onnx_view(std::vector<float>& x, Index b, Index heads, Index rows, Index d) {
  return {x.data() + b * rows * heads * d, heads, rows, d, /*head_stride=*/d, /*row_stride=*/heads * d};
}

/// ONNX Attention, is_causal=1, with a cache: present_key and present_value hold past_key and past_value and,
/// behind them, the rows of the n queries. Q and Y are [batch, n, q_num_heads * d].
void onnx_attention(std::vector<float>& q, Batch<float>& present_key, Batch<float>& present_value,
                    Index q_num_heads, Index n, float softcap, std::vector<float>& y) {
  for (Index b = 0; b < present_key.size; ++b)
    attend(onnx_view(q, b, q_num_heads, n, present_key.cols), present_key[b], present_value[b],
           onnx_view(y, b, q_num_heads, n, present_value.cols), {.mask = Mask::causal(), .softcap = softcap});
}

/// max |out - expected|, expected: [heads, n_q, d_v], v mixed by exp(logit(h, i, j, q_i.k_j)) over the sum of
/// these weights and `sink`.
template <class K, class Logit>
double difference(TensorView<const float> q, TensorView<K> k, TensorView<K> v, TensorView<const float> out,
                  double sink, Logit&& logit) {
  double most = 0;
  for (Index h = 0; h < q.heads; ++h)
    for (Index i = 0; i < q.rows; ++i) {
      const Index kv = h * k.heads / q.heads;
      std::vector<double> mix(static_cast<std::size_t>(v.cols));
      double sum = sink;
      for (Index j = 0; j < k.rows; ++j) {
        double dot = 0;
        for (Index c = 0; c < q.cols; ++c)
          dot += double{q.head(h)(i, c)} * static_cast<double>(k.head(kv)(j, c));
        const double weight = std::exp(logit(h, i, j, dot));
        sum += weight;
        for (Index c = 0; c < v.cols; ++c) mix[c] += weight * static_cast<double>(v.head(kv)(j, c));
      }
      for (Index c = 0; c < v.cols; ++c)  // where nothing is allowed, 0
        most = std::max(most, std::abs(out.head(h)(i, c) - (sum > 0 ? mix[c] / sum : 0)));
    }
  return most;
}

constexpr Index kBatch = 2, kHeads = 6, kKvHeads = 2, kDim = 8;

template <class T = float>
Batch<T> random_batch(Index heads, Index rows, Index cols = kDim) {
  static std::mt19937 random(1);
  std::normal_distribution<float> normal;
  Batch<T> x{kBatch, heads, rows, cols};
  for (T& e : x.data) e = static_cast<T>(normal(random));
  return x;
}

double masked(bool allowed, double logit) { return allowed ? logit : -INFINITY; }
double capped(double cap, double logit) { return cap * std::tanh(logit / cap); }

double ggml_error() {
  const Index n_q = 5, n_k = 12;
  auto q = random_batch(kHeads, n_q), result = random_batch(n_q, kHeads);
  auto k = random_batch<float16>(kKvHeads, n_k), v = random_batch<float16>(kKvHeads, n_k);
  const auto tensor = [](auto& x) {
    const std::size_t size = sizeof(x.data[0]), row = size * x.cols, head = row * x.rows;
    return GgmlTensor{x.data.data(), {x.cols, x.rows, x.heads, x.size}, {size, row, head, head * x.heads}};
  };
  const std::vector<float> sinks(kHeads, 0.5f);
  flash_attn_ext(tensor(q), tensor(k), tensor(v), tensor(result), 0.3f, /*max_bias=*/8, 5, sinks);
  const double slopes[kHeads] = {0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125};
  const auto logit = [&](Index h, Index i, Index j, double dot) {
    const auto distance = static_cast<double>(i + n_k - n_q - j);
    return masked(distance >= 0, capped(5, 0.3 * dot) - slopes[h] * distance);
  };
  const auto at = [&](Index b) {
    return difference(q[b], k[b], v[b], ggml_view<float>(tensor(result), b, 2), std::exp(0.5), logit);
  };
  return std::max(at(0), at(1));
}

double torch_error() {
  auto q = random_batch(kHeads, 5), k = random_batch(kKvHeads, 9), v = random_batch(kKvHeads, 9);
  auto causal = q, padded = q;
  const bool mask[][9] = {{true, true, false, true}, {}};  // nothing is allowed in the second entry
  sdpa_causal(q, k, v, causal);
  sdpa_masked(q, k, v, mask[0], padded);
  const auto at = [&](Index b) {
    const auto diagonal = [](Index, Index i, Index j, double dot) {
      return masked(j <= i, dot / std::sqrt(kDim));
    };
    const auto given = [&](Index, Index, Index j, double dot) {
      return masked(mask[b][j], dot / std::sqrt(kDim));
    };
    return std::max(difference(q[b], k[b], v[b], causal[b], 0, diagonal),
                    difference(q[b], k[b], v[b], padded[b], 0, given));
  };
  return std::max(at(0), at(1));
}

double onnx_error() {
  const Index n = 4, past = 6;
  auto q = random_batch(1, n, kHeads * kDim), y = q;
  auto k = random_batch(kKvHeads, past + n), v = random_batch(kKvHeads, past + n);
  onnx_attention(q.data, k, v, kHeads, n, /*softcap=*/3, y.data);
  const auto view = [&](auto& x, Index b) { return onnx_view(x.data, b, kHeads, n, kDim); };
  const auto logit = [](Index, Index i, Index j, double dot) {
    return masked(j <= past + i, capped(3, dot / std::sqrt(kDim)));
  };
  const auto at = [&](Index b) { return difference(view(q, b), k[b], v[b], view(y, b), 0, logit); };
  return std::max(at(0), at(1));
}

}  // namespace

int main() try {
  const double error[] = {ggml_error(), torch_error(), onnx_error()};
  std::printf("largest difference: ggml %.1e, torch %.1e, onnx %.1e\n", error[0], error[1], error[2]);
  return *std::max_element(error, error + 3) < 1e-5 ? EXIT_SUCCESS : EXIT_FAILURE;
} catch (const std::exception& error) {
  std::fprintf(stderr, "migration: %s\n", error.what());
  return EXIT_FAILURE;
}
