// A llama2.c checkpoint (version 0): seven int32 sizes, then every weight as float32, one kind after the
// other.
//
// Weights are row-major [outputs, inputs], so that a layer is y = x W^T for rows x.
#pragma once

#include <Eigen/Core>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "file_reader.hpp"

namespace llama2 {

using Eigen::Index;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowVector = Eigen::RowVectorXf;

/// The sizes that a checkpoint opens with.
struct Config {
  Index dim = 0;         // width of the residual stream
  Index hidden_dim = 0;  // width inside the feed-forward network
  Index layers = 0;
  Index heads = 0;     // query heads
  Index kv_heads = 0;  // key and value heads, a divisor of heads
  Index vocab_size = 0;
  Index context = 0;  // most tokens that a text may have

  Index head_size() const { return dim / heads; }          // d
  Index kv_dim() const { return kv_heads * head_size(); }  // width of one token's keys
};

struct Layer {
  RowVector rms_attention;  // [dim]
  Matrix wq;                // [dim, dim]
  Matrix wk, wv;            // [kv_dim, dim]
  Matrix wo;                // [dim, dim]
  RowVector rms_ffn;        // [dim]
  Matrix w1;                // [hidden, dim]
  Matrix w2;                // [dim, hidden]
  Matrix w3;                // [hidden, dim]
};

struct Checkpoint {
  Config config;
  Matrix embedding;  // [vocab, dim]
  std::vector<Layer> layers;
  RowVector rms_final;                   // [dim]
  std::optional<Matrix> own_classifier;  // [vocab, dim]; most models share the embedding

  const Matrix& classifier() const { return own_classifier ? *own_classifier : embedding; }  // [vocab, dim]
};

namespace detail {

inline Matrix read_matrix(FileReader& file, Index rows, Index cols, const char* name) {
  file.require<float>(rows * cols, name);  // before memory is asked for
  Matrix m(rows, cols);
  file.read(m.data(), m.size(), name);
  return m;
}

}  // namespace detail

/// Reads the checkpoint at `path`.
/// Throws Error if the file is missing, its sizes make no sense, or it is shorter or longer than they call
/// for.
inline Checkpoint load_checkpoint(const std::string& path) {
  constexpr std::array names = {"dim", "hidden_dim", "layers", "heads", "kv_heads", "vocab_size", "context"};
  constexpr std::int64_t kLargest = 1 << 18;  // beyond real models; keeps every product within 64 bits

  FileReader file(path);
  std::array<std::int32_t, names.size()> header;
  file.read(header.data(), header.size(), "the header");
  const bool shared_classifier = header[5] > 0;  // the sign of vocab_size is a flag
  std::array<Index, names.size()> sizes;
  for (std::size_t i = 0; i < names.size(); ++i) {
    sizes[i] = i == 5 ? std::abs(Index{header[i]}) : header[i];
    if (sizes[i] < 1 || sizes[i] > kLargest)
      file.fail(std::string("not a llama2.c checkpoint: ") + names[i] + " = " + std::to_string(header[i]));
  }
  const auto [dim, hidden, n_layers, heads, kv_heads, vocab, context] = sizes;
  if (dim % (2 * heads) != 0 || heads % kv_heads != 0)
    file.fail("not a llama2.c checkpoint: dim = " + std::to_string(dim) +
              ", heads = " + std::to_string(heads) + ", kv_heads = " + std::to_string(kv_heads) +
              "; a head needs an even size and a key head equally many query heads");

  Checkpoint c;
  c.config = {dim, hidden, n_layers, heads, kv_heads, vocab, context};
  const Index kv_dim = c.config.kv_dim();
  c.layers.resize(static_cast<std::size_t>(n_layers));
  const auto each_layer = [&](auto Layer::*weight, Index rows, Index cols, const char* name) {
    for (Layer& layer : c.layers) layer.*weight = detail::read_matrix(file, rows, cols, name);
  };

  c.embedding = detail::read_matrix(file, vocab, dim, "the embedding");
  each_layer(&Layer::rms_attention, 1, dim, "rms_attention");
  each_layer(&Layer::wq, dim, dim, "wq");
  each_layer(&Layer::wk, kv_dim, dim, "wk");
  each_layer(&Layer::wv, kv_dim, dim, "wv");
  each_layer(&Layer::wo, dim, dim, "wo");
  each_layer(&Layer::rms_ffn, 1, dim, "rms_ffn");
  each_layer(&Layer::w1, hidden, dim, "w1");
  each_layer(&Layer::w2, dim, hidden, "w2");
  each_layer(&Layer::w3, hidden, dim, "w3");
  c.rms_final = detail::read_matrix(file, 1, dim, "rms_final");
  detail::read_matrix(file, context, c.config.head_size(), "the rotation tables");  // legacy, unused
  if (!shared_classifier) c.own_classifier = detail::read_matrix(file, vocab, dim, "the classifier");
  if (file.left() != 0)
    file.fail("goes on for " + std::to_string(file.left()) + " bytes after its last weight");
  return c;
}

/// Makes a query head of a layer add nothing: its columns of Wo become 0, as if all its values were. Throws
/// Error if there is no such head.
inline void silence_head(Checkpoint& checkpoint, Index layer, Index head) {
  const Config& c = checkpoint.config;
  if (layer < 0 || layer >= c.layers || head < 0 || head >= c.heads)
    throw Error("there is no head " + std::to_string(head) + " in a layer " + std::to_string(layer) +
                ": the model has " + std::to_string(c.layers) + " layers of " + std::to_string(c.heads) +
                " heads");
  checkpoint.layers[static_cast<std::size_t>(layer)]
      .wo.middleCols(head * c.head_size(), c.head_size())
      .setZero();
}

}  // namespace llama2
