// fastrope itself, and the oracle: its exact path in double precision.
#include <fastrope/fastrope.hpp>

#include "case.hpp"
#include "oracle.hpp"

namespace peers {

namespace {

fastrope::Options options_of(const Case& c) {
  return {.mask = c.causal != 0 ? fastrope::Mask::causal() : fastrope::Mask::full()};
}

template <class K>
Run prepare(const Case& c, std::vector<float>& out) {
  const auto plan = fastrope::make_plan<float>({c.heads, c.kv_heads, c.n_q, c.n_k, c.d, c.d}, options_of(c));
  return [&c, &out, plan, memory = std::vector<std::byte>(plan.workspace_bytes()),
          k = std::vector<K>(c.k.begin(), c.k.end()), v = std::vector<K>(c.v.begin(), c.v.end())]() mutable {
    plan.run(fastrope::contiguous(c.q.data(), c.heads, c.n_q, c.d),
             fastrope::contiguous(k.data(), c.kv_heads, c.n_k, c.d),
             fastrope::contiguous(v.data(), c.kv_heads, c.n_k, c.d),
             fastrope::contiguous(out.data(), c.heads, c.n_q, c.d), memory);
  };
}

}  // namespace

std::vector<Peer> fastrope_peers() {
  const std::string target = fastrope::simd::target_name();
  return {{"fastrope", target, prepare<float>}, {"fastrope-f16", target, prepare<fastrope::float16>}};
}

void compute_expected(Case& c) {
  const std::vector<double> q(c.q.begin(), c.q.end()), k(c.k.begin(), c.k.end()), v(c.v.begin(), c.v.end());
  std::vector<double> out(c.query_size());
  fastrope::attend(fastrope::contiguous(q.data(), c.heads, c.n_q, c.d),
                   fastrope::contiguous(k.data(), c.kv_heads, c.n_k, c.d),
                   fastrope::contiguous(v.data(), c.kv_heads, c.n_k, c.d),
                   fastrope::contiguous(out.data(), c.heads, c.n_q, c.d), options_of(c));
  c.expected.assign(out.begin(), out.end());
}

float as_float16(float x) { return static_cast<float>(fastrope::float16(x)); }

}  // namespace peers
