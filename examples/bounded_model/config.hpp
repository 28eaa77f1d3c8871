// A model made for the fast path: its architecture.
//
// Llama's (training/config.hpp), but in each layer the heads are of two kinds:
//     local:  softmax over the last `window` tokens, scores q . k / sqrt(d) free, as everywhere else;
//     global: softmax over all tokens so far, scores R q . k with q and k of length 1: |x| <= R, always.
// What needs sharp weights is near, and a window makes it cheap; what is far is averaged with weights that
// differ by at most e^(2 R), which a polynomial of a low degree gives to any number of tokens (theory.md).
//
// So that the model works on texts longer than those it was trained on, every angle between a query and a
// key was seen in training: the base of the global heads' rope makes its slowest pair turn round within the
// trained length, and local heads see lags below `window` alone.
#pragma once

#include <fastrope/fastrope.hpp>
#include <string>

#include "../training/config.hpp"

namespace bounded_model {

using fastrope::Index;

inline constexpr Index kBytes = 256;  // the vocabulary

struct Config : training::Config {
  Index local_heads = 2;     // the first ones; the others are global
  Index window = 64;         // tokens that a local head sees, the query's among them
  Index global_size = 8;     // d of a global head; values have head_size() columns everywhere
  double radius = 2;         // R; 0: free scores q . k / sqrt(d), the twin to compare with
  double global_base = 1e3;  // 2 pi 1e3^(3/4) = 1117 tokens: the slowest of the 4 pairs of d = 8

  Index global_heads() const { return heads - local_heads; }
  Index query_cols() const { return local_heads * head_size() + global_heads() * global_size; }
  Index projected() const { return 2 * query_cols() + width; }
};

/// The shipped one's, or with more layers or other heads; n: tokens of a training sequence.
inline Config config_of(Index n) {
  Config c;
  c.vocabulary = c.outputs = kBytes;
  c.n = n;
  c.pooled = false;
  c.layers = 4;
  c.width = 128;
  c.heads = 4;
  c.hidden = 344;
  return c;
}

/// What attention is called with for local and for global heads.
inline fastrope::Options local_options(const Config& c) {
  return {.rope = fastrope::Rope{}, .mask = fastrope::Mask::sliding_window(c.window)};
}
inline fastrope::Options global_options(const Config& c) {
  fastrope::Options options{.rope = fastrope::Rope{.base = c.global_base}, .mask = fastrope::Mask::causal()};
  if (c.radius > 0) options.scale = c.radius;
  return options;
}

/// Heads that are called together, and the columns of their rows among [q | k | v], [tokens, projected()].
struct Group {
  Index first, heads, d;  // d: of q and k
  Index q, k, v;          // the first column
  bool unit;              // rows of q and k are brought to length 1 before they are used
  fastrope::Options options;
};

inline Group local_group(const Config& c) {
  return {0, c.local_heads, c.head_size(), 0, c.query_cols(), 2 * c.query_cols(), false, local_options(c)};
}
inline Group global_group(const Config& c) {
  const Index q = c.local_heads * c.head_size();
  return {c.local_heads,      c.global_heads(),
          c.global_size,      q,
          c.query_cols() + q, 2 * c.query_cols() + c.local_heads * c.head_size(),
          c.radius > 0,       global_options(c)};
}

}  // namespace bounded_model
