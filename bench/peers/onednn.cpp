// oneDNN of before its graphs of attention: a product of all heads, softmax, a product. Causal: a mask is
// added to the first.
#include <dnnl.hpp>

#include <limits>

#include "case.hpp"

namespace peers {

namespace {

using dnnl::memory;
using Dims = memory::dims;

memory::desc tensor(const Dims& dims, const Dims& strides) { return {dims, memory::data_type::f32, strides}; }

/// Of one key head each: [kv_heads, group n_q, d] queries, as those of a group lie next to each other.
struct Attention {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::vector<float> scores, mask;
  dnnl::matmul first, second;
  dnnl::binary add;
  dnnl::softmax_forward softmax;
  memory q, k, v, s, m, out;

  Attention(const Case& c, std::vector<float>& to)
      : scores(static_cast<std::size_t>(c.heads * c.n_q * c.n_k)) {
    const Index rows = c.group() * c.n_q;
    const auto keys = tensor({c.kv_heads, c.d, c.n_k}, {c.n_k * c.d, 1, c.d});
    const auto values = tensor({c.kv_heads, c.n_k, c.d}, {c.n_k * c.d, c.d, 1});
    const auto queries = tensor({c.kv_heads, rows, c.d}, {rows * c.d, c.d, 1});
    const auto all = tensor({c.kv_heads, rows, c.n_k}, {rows * c.n_k, c.n_k, 1});
    const auto masks = tensor({1, rows, c.n_k}, {rows * c.n_k, c.n_k, 1});
    const auto at = [&](const memory::desc& desc, const float* data) {
      return memory(desc, engine, const_cast<float*>(data));
    };
    dnnl::post_ops scaled;
    scaled.append_eltwise(1, dnnl::algorithm::eltwise_linear, c.scale(), 0);
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(scaled);
    first = dnnl::matmul({{queries, keys, all}, attributes, engine});
    if (c.causal != 0) {
      mask.resize(static_cast<std::size_t>(rows * c.n_k), -std::numeric_limits<float>::infinity());
      for (Index r = 0; r < rows; ++r) std::fill_n(mask.data() + r * c.n_k, c.seen(r % c.n_q), 0.0F);
      add = dnnl::binary({{dnnl::algorithm::binary_add, all, masks, all}, engine});
    }
    softmax = dnnl::softmax_forward({{dnnl::prop_kind::forward_inference, all, 2}, engine});
    second = dnnl::matmul({{all, values, queries}, engine});
    q = at(queries, c.q.data());
    k = at(keys, c.k.data());
    v = at(values, c.v.data());
    s = at(all, scores.data());
    out = at(queries, to.data());
    if (c.causal != 0) m = at(masks, mask.data());
  }

  void run() {
    first.execute(stream, {{DNNL_ARG_SRC, q}, {DNNL_ARG_WEIGHTS, k}, {DNNL_ARG_DST, s}});
    if (!mask.empty()) add.execute(stream, {{DNNL_ARG_SRC_0, s}, {DNNL_ARG_SRC_1, m}, {DNNL_ARG_DST, s}});
    softmax.execute(stream, {{DNNL_ARG_SRC, s}, {DNNL_ARG_DST, s}});
    second.execute(stream, {{DNNL_ARG_SRC, s}, {DNNL_ARG_WEIGHTS, v}, {DNNL_ARG_DST, out}});
    stream.wait();
  }
};

}  // namespace

Peer onednn() {
  const auto* v = dnnl::version();
  return {"onednn",
          std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch),
          [](const Case& c, std::vector<float>& out) -> Run {
            // All scores at once are what it does; beyond some gigabytes it is not asked.
            if (c.heads * c.n_q * c.n_k > (Index{1} << 29)) return nullptr;
            return [state = std::make_shared<Attention>(c, out)] { state->run(); };
          }};
}

}  // namespace peers
