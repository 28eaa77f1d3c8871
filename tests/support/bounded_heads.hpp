// The heads of models trained with bounded scores: a file of int32 count, n, d, d_v, then for each head q [n,
// d], k [n, d] and v [n, d_v], float32, before rotation (interleaved pairs, base 10000), scale 1, causal.
#pragma once

#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/tensor.hpp"

namespace fastrope_test {

struct BoundedHead {
  Tensor<float> q, k, v;  ///< [1, n, d or d_v]
};

inline std::vector<BoundedHead> read_bounded_heads(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::int32_t header[4];  // count, n, d, d_v
  file.read(reinterpret_cast<char*>(header), sizeof header);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<BoundedHead> heads(static_cast<std::size_t>(header[0]));
  for (BoundedHead& head : heads)
    for (auto [x, cols] : {std::pair{&head.q, header[2]}, {&head.k, header[2]}, {&head.v, header[3]}}) {
      *x = Tensor<float>(1, header[1], cols);
      file.read(reinterpret_cast<char*>(x->values.data()),
                static_cast<std::streamsize>(x->values.size() * sizeof(float)));
      if (!file) throw std::runtime_error("too short: " + path);
    }
  return heads;
}

}  // namespace fastrope_test
