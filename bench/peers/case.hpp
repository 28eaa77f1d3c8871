// The work that every peer does, and what a peer is.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace peers {

using Index = std::int64_t;

/// Attention of q [heads, n_q, d] over k and v [kv_heads, n_k, d]: expected [heads, n_q, d]. Causal: the last
/// query sees the last key.
struct Case {
  Index heads = 0, kv_heads = 0, n_q = 0, n_k = 0, d = 0, causal = 0;
  std::vector<float> q = {}, k = {}, v = {}, expected = {};

  std::size_t query_size() const { return static_cast<std::size_t>(heads * n_q * d); }
  std::size_t key_size() const { return static_cast<std::size_t>(kv_heads * n_k * d); }
  float scale() const { return 1 / std::sqrt(static_cast<float>(d)); }
  Index group() const { return heads / kv_heads; }
  /// Keys that query i sees.
  Index seen(Index i) const { return causal != 0 ? n_k - n_q + i + 1 : n_k; }
};

/// Computes the case's result once. What can be made before, is, and is not timed.
using Run = std::function<void()>;

/// A library: its name and version, and its run on one thread, which writes out [heads, n_q, d]. No run where
/// it has no attention of this kind. The case and `out` outlive it.
struct Peer {
  std::string name;
  std::string version;
  std::function<Run(const Case&, std::vector<float>& out)> prepare;
};

std::vector<Peer> fastrope_peers();  // caches of float, and of float16
Peer openblas();
Peer onednn();
Peer libtorch();
Peer ggml();

}  // namespace peers
