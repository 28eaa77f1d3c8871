// A trained model as a checkpoint that examples/llama2, and llama2.c, can read.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

#include "model.hpp"

namespace training {

/// Writes the model as a llama2.c checkpoint (version 0), whose context is n. Throws fastrope::Error unless
/// it is a Llama: outputs for each token, of the vocabulary; causal, RoPE of base 10000 on interleaved pairs
/// of all heads and layers, nothing else that is positional.
inline void save_llama(const Model<float>& model, const std::string& path) {
  const Config& c = model.config();
  const fastrope::Options& o = c.attention;
  const fastrope::Rope plain;
  if (c.pooled || c.outputs != c.vocabulary || !o.rope || o.rope->base != plain.base ||
      o.rope->pairing != plain.pairing || o.rope->rotary_dim != 0 || o.rope->scaling.index() != 0 ||
      o.scale || o.softcap > 0 || !o.sinks.empty() || o.mask != fastrope::Mask::causal() || !o.bias.empty() ||
      c.rope_layers || c.rope_heads || c.absolute != Absolute::none || c.trained_bias || c.decoupled > 0 ||
      c.raw_keys)
    throw fastrope::Error("save_llama: " + path + " would not be a Llama");

  std::ofstream file(path, std::ios::binary);
  const auto write = [&file](const auto* data, Index count) {
    file.write(reinterpret_cast<const char*>(data), count * static_cast<Index>(sizeof *data));
  };
  const auto write_block = [&](const Block& b) {
    write(model.parameters().data() + b.begin, b.end() - b.begin);
  };
  // A negative vocabulary: the classifier is another matrix than the embedding.
  for (const Index size : {c.width, c.hidden, c.layers, c.heads, c.heads, -c.vocabulary, c.n}) {
    const auto number = static_cast<std::int32_t>(size);
    write(&number, 1);
  }
  const Layout& layout = model.layout();
  write_block(layout.embedding);
  for (const auto block :
       {&LayerBlocks::rms_attention, &LayerBlocks::wq, &LayerBlocks::wk, &LayerBlocks::wv, &LayerBlocks::wo,
        &LayerBlocks::rms_ffn, &LayerBlocks::w1, &LayerBlocks::w2, &LayerBlocks::w3})
    for (const LayerBlocks& layer : layout.layers) write_block(layer.*block);
  write_block(layout.rms_final);
  const std::vector<float> tables(static_cast<std::size_t>(c.n * c.head_size()));  // which readers skip
  write(tables.data(), static_cast<Index>(tables.size()));
  write_block(layout.classifier);
  if (!file.flush()) throw fastrope::Error("save_llama: cannot write " + path);
}

}  // namespace training
