// Drafted tokens: guesses at how a text goes on, taken from what all texts so far went on with after the same
// two tokens. They form a tree, whose nodes one step of the model checks all at once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <fastrope/fastrope.hpp>
#include <unordered_map>
#include <vector>

#include "../llama2/tokenizer.hpp"

namespace serve {

using fastrope::Index;
using llama2::Token;

/// Tokens of which node 0 is certain and the others are guesses: parents[t] < t, -1 for node 0.
struct Tree {
  std::vector<Token> tokens;
  std::vector<Index> parents;
  std::vector<Index> depths;

  void add(Token token, Index parent) {
    tokens.push_back(token);
    parents.push_back(parent);
    depths.push_back(parent < 0 ? 0 : depths[static_cast<std::size_t>(parent)] + 1);
  }
  Index size() const { return static_cast<Index>(tokens.size()); }
  /// The child of a node that guesses `token`; -1 where none does.
  Index child(Index node, Token token) const {
    for (Index t = node + 1; t < size(); ++t)
      if (parents[static_cast<std::size_t>(t)] == node && tokens[static_cast<std::size_t>(t)] == token)
        return t;
    return -1;
  }
};

class Drafter {
 public:
  /// After a, b came c.
  void learn(Token a, Token b, Token c) {
    std::vector<Token>& next = next_[key(a, b)];
    std::erase(next, c);
    next.insert(next.begin(), c);
    if (next.size() > kBranches) next.pop_back();
  }

  /// A tree of at most `most` nodes for a text whose last tokens are a, b: b and guesses, nearest first.
  Tree draft(Token a, Token b, Index most) const {
    Tree tree;
    tree.add(b, -1);
    for (Index node = 0; node < tree.size(); ++node) {
      const auto at = static_cast<std::size_t>(node);
      const Token before = node == 0 ? a : tree.tokens[static_cast<std::size_t>(tree.parents[at])];
      const auto found = next_.find(key(before, tree.tokens[at]));
      if (found == next_.end()) continue;
      for (const Token token : found->second)
        if (tree.size() < most) tree.add(token, node);
    }
    return tree;
  }

 private:
  static constexpr std::size_t kBranches = 2;  // guesses after the same two tokens, the latest first

  static std::uint64_t key(Token a, Token b) {
    return std::uint64_t{static_cast<std::uint32_t>(a)} << 32 | static_cast<std::uint32_t>(b);
  }

  std::unordered_map<std::uint64_t, std::vector<Token>> next_;
};

}  // namespace serve
