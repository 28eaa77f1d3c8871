// Two tasks on made-up sequences: one needs positions and content together, the other content alone.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "../training/trainer.hpp"

namespace experiments {

using fastrope::Index;
using training::Token;
using Random = std::mt19937_64;

/// Uniform in 0 .. count - 1, the same for a seed with every standard library.
inline Index draw_below(Index count, Random& random) {
  return static_cast<Index>(random() % static_cast<std::uint64_t>(count));
}

struct Task {
  std::string name;
  Index vocabulary, n, classes;
  std::function<Index(Random&, std::span<Token>)> draw;  // fills a sequence of n and returns its label
};

/// Two triggers among 29 kinds of filler: A anywhere in the first half, B after it by 1 .. n / 2. The label
/// is how far, less 1; it cannot be told without positions.
inline Task distance_task(Index n) {
  constexpr Index kFillers = 29;
  return {"distance", kFillers + 2, n, n / 2, [n](Random& random, std::span<Token> tokens) {
            for (Token& token : tokens) token = static_cast<Token>(draw_below(kFillers, random));
            const Index a = draw_below(n / 2, random), label = draw_below(n / 2, random);
            tokens[static_cast<std::size_t>(a)] = kFillers;
            tokens[static_cast<std::size_t>(a + label + 1)] = kFillers + 1;
            return label;
          }};
}

/// 0 .. n / 2 tokens of four trigger kinds at any places among 27 kinds of filler. The label is how many.
inline Task count_task(Index n) {
  constexpr Index kFillers = 27, kTriggers = 4;
  return {"count", kFillers + kTriggers, n, n / 2 + 1, [n](Random& random, std::span<Token> tokens) {
            const Index label = draw_below(n / 2 + 1, random);
            Index wanted = label;
            for (Index i = 0; i < n; ++i) {
              const bool trigger = draw_below(n - i, random) < wanted;  // wanted of the n - i places left
              wanted -= trigger;
              tokens[static_cast<std::size_t>(i)] = static_cast<Token>(
                  trigger ? kFillers + draw_below(kTriggers, random) : draw_below(kFillers, random));
            }
            return label;
          }};
}

/// Whole sequences with a label each.
inline training::Batch draw_batch(const Task& task, Index sequences, Random& random) {
  training::Batch batch{std::vector<Token>(static_cast<std::size_t>(sequences * task.n)), {}};
  for (Index s = 0; s < sequences; ++s)
    batch.labels.push_back(task.draw(
        random, std::span(batch.tokens)
                    .subspan(static_cast<std::size_t>(s * task.n), static_cast<std::size_t>(task.n))));
  return batch;
}

}  // namespace experiments
