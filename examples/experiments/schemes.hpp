// The positional schemes that are compared, each as a model's Config.
#pragma once

#include <string>
#include <vector>

#include "../training/config.hpp"
#include "tasks.hpp"

namespace experiments {

using fastrope::Index;

struct Scheme {
  std::string name, what;
  training::Config config;  // but for what a task says
};

inline std::vector<Scheme> schemes() {
  using training::Absolute;
  using training::Config;
  const auto of = [](auto&& change) {
    Config config;
    change(config);
    return config;
  };
  const auto turn = [](Config& c) { c.attention.rope = fastrope::Rope{.base = 100}; };
  const auto decouple = [turn](Config& c) {
    turn(c);
    c.decoupled = c.head_size() / 2;
  };
  return {
      {"rope", "RoPE, base 100", of(turn)},
      {"alibi", "ALiBi, the slopes of Press et al.",
       of([](Config& c) { c.attention.bias = fastrope::LagBias::alibi(fastrope::alibi_slopes(c.heads)); })},
      {"mla", "decoupled rotation: 4 columns more, a key's shared by heads", of(decouple)},
      {"learned", "learned positions, added", of([](Config& c) { c.absolute = Absolute::learned; })},
      {"one_head", "RoPE on one head of each layer", of([=](Config& c) {
         turn(c);
         c.rope_heads = 1;
       })},
      {"table", "a trained bias for each head and lag", of([](Config& c) { c.trained_bias = true; })},
      {"sinusoidal", "sinusoids, added", of([](Config& c) { c.absolute = Absolute::sinusoidal; })},
      {"layer_0", "RoPE in the first layer alone", of([=](Config& c) {
         turn(c);
         c.rope_layers = 1;
       })},
      {"rope_sinusoidal", "RoPE and sinusoids", of([=](Config& c) {
         turn(c);
         c.absolute = Absolute::sinusoidal;
       })},
      {"mla_shared", "decoupled rotation, a query's columns shared too", of([=](Config& c) {
         decouple(c);
         c.shared_query = true;
       })},
      {"rope_raw", "RoPE, keys and values of every layer from the embedding", of([=](Config& c) {
         turn(c);
         c.raw_keys = true;
       })},
      {"none", "no positions", Config{}},
  };
}

inline training::Config config_of(const Scheme& scheme, const Task& task) {
  training::Config config = scheme.config;
  config.vocabulary = task.vocabulary;
  config.n = task.n;
  config.outputs = task.classes;
  return config;
}

}  // namespace experiments
