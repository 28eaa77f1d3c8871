// ggml's flash attention on its CPU backend: keys, values and mask of float16.
#include <ggml-cpu.h>
#include <ggml.h>

#include <cstring>
#include <limits>
#include <memory>

#include "case.hpp"

namespace peers {

namespace {

struct Attention {
  ggml_context* context;
  ggml_cgraph* graph;
  ggml_cplan plan;
  std::vector<std::uint8_t> work;
  ggml_tensor* result;
  std::vector<float>& out;
  const Case& c;

  Attention(const Case& c_, std::vector<float>& out_) : out(out_), c(c_) {
    const auto bytes = 4 * (2 * c.query_size() + c.key_size()) + 2 * static_cast<std::size_t>(c.n_q * c.n_k);
    context = ggml_init({bytes + (std::size_t{64} << 20), nullptr, false});
    const auto tensor = [&](ggml_type type, Index rows, Index heads) {
      return ggml_new_tensor_3d(context, type, c.d, rows, heads);
    };
    ggml_tensor *q = tensor(GGML_TYPE_F32, c.n_q, c.heads), *k = tensor(GGML_TYPE_F16, c.n_k, c.kv_heads),
                *v = tensor(GGML_TYPE_F16, c.n_k, c.kv_heads), *mask = nullptr;
    std::memcpy(q->data, c.q.data(), c.query_size() * sizeof(float));
    ggml_fp32_to_fp16_row(c.k.data(), static_cast<ggml_fp16_t*>(k->data), static_cast<Index>(c.key_size()));
    ggml_fp32_to_fp16_row(c.v.data(), static_cast<ggml_fp16_t*>(v->data), static_cast<Index>(c.key_size()));
    if (c.causal != 0 && c.n_q > 1) {
      mask = ggml_new_tensor_2d(context, GGML_TYPE_F16, c.n_k, c.n_q);
      std::vector<float> row(static_cast<std::size_t>(c.n_k), -std::numeric_limits<float>::infinity());
      for (Index i = 0; i < c.n_q; ++i) {
        std::fill_n(row.data(), c.seen(i), 0.0F);
        ggml_fp32_to_fp16_row(row.data(), static_cast<ggml_fp16_t*>(mask->data) + i * c.n_k, c.n_k);
      }
    }
    result = ggml_flash_attn_ext(context, q, k, v, mask, c.scale(), 0, 0);  // [d, heads, n_q]
    graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, result);
    plan = ggml_graph_plan(graph, 1, nullptr);
    work.resize(plan.work_size);
    plan.work_data = work.data();
  }
  ~Attention() { ggml_free(context); }

  void run() {
    ggml_graph_compute(graph, &plan);
    const float* from = static_cast<const float*>(result->data);
    for (Index h = 0; h < c.heads; ++h)
      for (Index i = 0; i < c.n_q; ++i)
        std::copy_n(from + (i * c.heads + h) * c.d, c.d, out.data() + (h * c.n_q + i) * c.d);
  }
};

}  // namespace

Peer ggml() {
  return {"ggml", PEERS_GGML_VERSION, [](const Case& c, std::vector<float>& out) -> Run {
            return [state = std::make_shared<Attention>(c, out)] { state->run(); };
          }};
}

}  // namespace peers
