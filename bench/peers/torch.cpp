// libtorch of before its own kernel of attention: a product of all heads, softmax, a product. Causal: a mask
// is added to the first.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/version.h>

#include <limits>
#include <memory>

#include "case.hpp"

namespace peers {

namespace {

/// Of one key head each: [kv_heads, group n_q, d] queries, as those of a group lie next to each other.
struct Attention {
  at::Tensor q, k, v, mask, out;
  double scale;

  Attention(const Case& c, std::vector<float>& to)
      : q(tensor(c.q, c.group() * c.n_q, c)),
        k(tensor(c.k, c.n_k, c)),
        v(tensor(c.v, c.n_k, c)),
        out(tensor(to, c.group() * c.n_q, c)),
        scale(c.scale()) {
    if (c.causal == 0) return;
    mask = at::zeros({1, c.group() * c.n_q, c.n_k});
    for (Index r = 0; r < c.group() * c.n_q; ++r)
      mask.select(1, r)
          .narrow(1, c.seen(r % c.n_q), c.n_k - c.seen(r % c.n_q))
          .fill_(-std::numeric_limits<float>::infinity());
  }

  static at::Tensor tensor(const std::vector<float>& x, Index rows, const Case& c) {
    return at::from_blob(const_cast<float*>(x.data()), {c.kv_heads, rows, c.d});
  }

  void run() {
    const c10::InferenceMode guard;
    at::Tensor scores = at::bmm(q, k.transpose(1, 2)).mul_(scale);
    if (mask.defined()) scores.add_(mask);
    at::bmm_out(out, at::softmax(scores, -1), v);
  }
};

}  // namespace

Peer libtorch() {
  return {"libtorch", TORCH_VERSION, [](const Case& c, std::vector<float>& out) -> Run {
            // All scores at once are what it does; beyond some gigabytes it is not asked.
            if (c.heads * c.n_q * c.n_k > (Index{1} << 29)) return nullptr;
            at::set_num_threads(1);
            return [state = std::make_shared<Attention>(c, out)] { state->run(); };
          }};
}

}  // namespace peers
