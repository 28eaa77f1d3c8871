// Cases for attend_backward: every option that it takes, one by one and together.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "support/attention_case.hpp"
#include "support/inputs.hpp"
#include "support/reference_gradient.hpp"

namespace fastrope_test {

/// Named changes to a case without options. Shapes: at least 4 columns, an even number of them.
inline std::vector<std::pair<std::string, std::function<void(AttentionCase&, Inputs&)>>> gradient_options() {
  using fastrope::Kernel;
  using fastrope::KernelSign;
  using fastrope::Mask;
  using fastrope::Normaliser;
  using fastrope::Rope;
  using fastrope::RopePairing;
  const auto ragged = [](AttentionCase& c, Inputs& random) {
    // Two ranges a row, of which one may be empty, and none in some rows.
    c.ranges.per_row = 2;
    for (Index i = 0; i < c.shapes.n_q; ++i) {
      const Index n = c.shapes.n_k, middle = n / 2;
      const Index begin = random.integer(0, middle), end = random.integer(begin, middle);
      const Index next = random.integer(middle, n);
      c.ranges.ranges.push_back({begin, i % 5 == 0 ? begin : end});
      c.ranges.ranges.push_back({next, i % 5 == 0 ? next : random.integer(next, n)});
    }
  };
  return {
      {"plain", [](AttentionCase&, Inputs&) {}},
      {"scale", [](AttentionCase& c, Inputs&) { c.base.scale = -0.3; }},
      {"causal", [](AttentionCase& c, Inputs&) { c.base.mask = Mask::causal(); }},
      {"window", [](AttentionCase& c, Inputs&) { c.base.mask = Mask::sliding_window(9); }},
      {"lags", [](AttentionCase& c, Inputs&) { c.base.mask = Mask::lags(-7, 40); }},
      {"interleaved rope",
       [](AttentionCase& c, Inputs&) {
         c.base.rope = Rope{.base = 100};
         c.base.mask = Mask::causal();
       }},
      {"half-split rope of some columns",
       [](AttentionCase& c, Inputs&) {
         c.base.rope = Rope{.base = 100, .pairing = RopePairing::half_split, .rotary_dim = c.shapes.d - 2};
       }},
      {"rope with YaRN of the last columns",
       [](AttentionCase& c, Inputs&) {
         c.base.rope = Rope{.base = 100,
                            .rotary_dim = 4,
                            .scaling = fastrope::YarnScaling{.factor = 4, .original_context = 64},
                            .rotary_begin = c.shapes.d - 4};
       }},
      {"rope with factors",
       [](AttentionCase& c, Inputs&) {
         std::vector<double> factors(static_cast<std::size_t>(c.shapes.d / 2), 2);
         c.base.rope = Rope{.pairing = RopePairing::half_split,
                            .scaling = fastrope::FactorScaling{std::move(factors), 1.2}};
       }},
      {"rope applied",
       [](AttentionCase& c, Inputs&) {
         c.base.rope = Rope{};
         c.base.rope_already_applied = true;
       }},
      {"rope in sections",
       [](AttentionCase& c, Inputs& random) {
         c.base.rope = Rope{.base = 50};
         set_sections(c, random, {c.shapes.d / 2 - 1, 1}, fastrope::SectionOrder::consecutive);
       }},
      {"positions",
       [](AttentionCase& c, Inputs& random) {
         c.base.rope = Rope{.base = 100};
         c.base.mask = Mask::causal();
         c.query_positions = shuffled_positions(random, c.shapes.n_q, c.shapes.n_k / 2);
         c.key_positions = shuffled_positions(random, c.shapes.n_k, 3);
       }},
      {"key ranges", ragged},
      {"key ranges, causal rope",
       [ragged](AttentionCase& c, Inputs& random) {
         ragged(c, random);
         c.base.rope = Rope{.base = 100};
         c.base.mask = Mask::causal();
       }},
      {"softcap", [](AttentionCase& c, Inputs&) { c.base.softcap = 0.7; }},
      {"sinks", [](AttentionCase& c, Inputs& random) { set_sinks(c, random); }},
      {"ALiBi",
       [](AttentionCase& c, Inputs& random) {
         set_alibi(c, random);
         c.base.mask = Mask::causal();
       }},
      {"T5 both ways", [](AttentionCase& c, Inputs& random) { set_t5(c, random, true); }},
      {"T5 one way",
       [](AttentionCase& c, Inputs& random) {
         set_t5(c, random, false);
         c.base.mask = Mask::causal();
       }},
      {"table of each head",
       [](AttentionCase& c, Inputs& random) {
         set_table(c, random, c.shapes.heads, c.shapes.n_q + c.shapes.n_k);
       }},
      {"table of all heads",
       [](AttentionCase& c, Inputs& random) { set_table(c, random, 1, c.shapes.n_q + c.shapes.n_k); }},
      {"dense bias", [](AttentionCase& c, Inputs& random) { set_dense(c, random, true, true, 3); }},
      {"all together",
       [](AttentionCase& c, Inputs& random) {
         c.base.rope = Rope{.base = 100, .pairing = RopePairing::half_split};
         c.base.mask = Mask::sliding_window(70);
         c.base.softcap = 2;
         c.base.scale = 0.4;
         c.query_positions = shuffled_positions(random, c.shapes.n_q, 5);
         c.key_positions = shuffled_positions(random, c.shapes.n_k, -2);
         set_sinks(c, random);
         set_table(c, random, c.shapes.heads, c.shapes.n_q + c.shapes.n_k + 10);
         set_dense(c, random, false, true, 4);
       }},
      {"gates",
       [](AttentionCase& c, Inputs& random) {
         c.base.mask = Mask::causal();
         set_gates(c, random, c.shapes.kv_heads, 6, 20);
       }},
      {"input gates",
       [](AttentionCase& c, Inputs& random) {
         c.base.mask = Mask::causal();
         set_input_gates(c, random, c.shapes.heads, 2);
       }},
      {"gates of heads, input gates of key heads, softcap, sinks",
       [](AttentionCase& c, Inputs& random) {
         c.base.rope = Rope{.base = 100};
         c.base.mask = Mask::sliding_window(50);
         c.base.softcap = 1.5;
         c.query_positions = shuffled_positions(random, c.shapes.n_q, c.shapes.n_k / 2);
         c.key_positions = shuffled_positions(random, c.shapes.n_k, 3);
         set_sinks(c, random);
         set_gates(c, random, c.shapes.heads, 6, 30);
         set_input_gates(c, random, c.shapes.kv_heads, 1);
       }},
      {"Taylor polynomial", [](AttentionCase& c, Inputs&) { c.base.kernel = Kernel::taylor(4); }},
      {"power and a constant, causal rope",
       [](AttentionCase& c, Inputs&) {
         c.base.kernel = Kernel::power(2);
         c.base.normaliser = Normaliser::row_sum(0.5);
         c.base.rope = Rope{.base = 100};
         c.base.mask = Mask::causal();
       }},
      {"power and ALiBi",
       [](AttentionCase& c, Inputs& random) {
         c.base.kernel = Kernel::power(4);
         c.base.normaliser = Normaliser::row_sum(1);
         c.base.mask = Mask::causal();
         set_alibi(c, random);
       }},
      {"signed sums of at least 2, gates",
       [](AttentionCase& c, Inputs& random) {
         c.base.kernel = Kernel::power(1, KernelSign::any);
         c.base.normaliser = Normaliser::at_least(2);
         c.base.mask = Mask::causal();
         set_gates(c, random, c.shapes.heads, 8, 50);
         set_input_gates(c, random, c.shapes.heads, 1);
       }},
      {"no normaliser, gates in any order",
       [](AttentionCase& c, Inputs& random) {
         c.base.kernel = Kernel::taylor(3, KernelSign::any);
         c.base.normaliser = Normaliser::none();
         c.base.mask = Mask::lags(0, 60);
         c.query_positions = shuffled_positions(random, c.shapes.n_q, c.shapes.n_k / 2);
         c.key_positions = shuffled_positions(random, c.shapes.n_k, 3);
         set_gates(c, random, c.shapes.kv_heads, 5);
         set_input_gates(c, random, c.shapes.kv_heads, 1);
       }},
  };
}

/// sum_hic a b.
template <class A, class B>
double inner_product(const TensorView<A>& a, const TensorView<B>& b) {
  double sum = 0;
  for (Index h = 0; h < a.heads; ++h)
    for (Index i = 0; i < a.rows; ++i)
      for (Index c = 0; c < a.cols; ++c)
        sum += static_cast<double>(a.head(h)(i, c)) * static_cast<double>(b.head(h)(i, c));
  return sum;
}

}  // namespace fastrope_test
