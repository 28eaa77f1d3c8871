// llama2.c's tokenizer: byte-pair encoding by score, with single bytes as the fallback.
//
// File: int32 longest token, then for each token float32 score, int32 length, bytes. Pieces named <0xXX>
// stand for one byte. A text is encoded with a space in front, as sentencepiece does; decoding takes it away
// after BOS.
#pragma once

#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "file_reader.hpp"

namespace llama2 {

using Token = std::int32_t;

inline constexpr Token kBos = 1;  // beginning of a text
inline constexpr Token kEos = 2;  // end of a text

/// Text to tokens and back.
class Tokenizer {
 public:
  /// Reads a tokenizer file. Throws Error if it is missing, cut short or malformed.
  explicit Tokenizer(const std::string& path) {
    FileReader file(path);
    file.read<std::int32_t>("the longest length");  // for fixed buffers, not needed here
    while (file.left() > 0) {
      const std::string name = "token " + std::to_string(size());
      const auto score = file.read<float>(name);
      const auto length = file.read<std::int32_t>(name);
      if (length < 0) file.fail("not a tokenizer: " + name + " has length " + std::to_string(length));
      file.require<char>(length, name);
      std::string piece(static_cast<std::size_t>(length), '\0');
      file.read(piece.data(), length, name);
      ids_.emplace(piece, size());  // of equal pieces the first stands
      pieces_.push_back(std::move(piece));
      scores_.push_back(score);
    }
    if (size() <= kEos) file.fail("not a tokenizer: " + std::to_string(size()) + " tokens");
  }

  Token size() const { return static_cast<Token>(pieces_.size()); }

  /// BOS, then the tokens of " " + text; BOS alone for the empty text.
  /// Throws Error if a byte of the text has no token.
  std::vector<Token> encode(std::string_view text) const {
    std::vector<Token> tokens = {kBos};
    if (text.empty()) return tokens;
    const std::vector<Token> merged = merge(characters(" " + std::string(text)));
    tokens.insert(tokens.end(), merged.begin(), merged.end());
    return tokens;
  }

  /// The text that `token` adds after `previous`. Requires: token in [0, size()).
  std::string decode(Token previous, Token token) const {
    const std::string& piece = piece_of(token);
    unsigned byte = 0;
    if (piece.size() == 6 && std::sscanf(piece.c_str(), "<0x%2X>", &byte) == 1)
      return {static_cast<char>(byte)};
    return previous == kBos && piece.starts_with(' ') ? piece.substr(1) : piece;
  }

  /// The text of a sequence that opens with BOS.
  std::string decode(std::span<const Token> tokens) const {
    std::string text;
    for (std::size_t i = 1; i < tokens.size(); ++i) text += decode(tokens[i - 1], tokens[i]);
    return text;
  }

 private:
  /// One token a UTF-8 character, or one a byte where the vocabulary lacks the character.
  std::vector<Token> characters(const std::string& text) const {
    const auto continues = [&](std::size_t i) {
      return (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80;
    };
    std::vector<Token> tokens;
    for (std::size_t begin = 0, end = 0; begin < text.size(); begin = end) {
      end = begin + 1;
      while (end < text.size() && end < begin + 4 && continues(end)) ++end;
      const auto found = ids_.find(text.substr(begin, end - begin));
      if (found != ids_.end())
        tokens.push_back(found->second);
      else
        for (std::size_t i = begin; i < end; ++i) tokens.push_back(byte_token(text[i]));
    }
    return tokens;
  }

  Token byte_token(char c) const {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", unsigned{static_cast<unsigned char>(c)});
    const auto found = ids_.find(name);
    if (found == ids_.end()) throw Error(std::string("the tokenizer has no token for byte ") + name);
    return found->second;
  }

  /// Joins the two neighbours whose union scores best (the first of equals) until no union is a token.
  std::vector<Token> merge(std::vector<Token> tokens) const {
    for (;;) {
      Token best = -1;
      std::size_t place = 0;  // of the left neighbour
      for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
        const auto found = ids_.find(piece_of(tokens[i]) + piece_of(tokens[i + 1]));
        if (found == ids_.end() || (best >= 0 && score_of(found->second) <= score_of(best))) continue;
        best = found->second;
        place = i;
      }
      if (best < 0) return tokens;
      tokens[place] = best;
      tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(place) + 1);
    }
  }

  const std::string& piece_of(Token token) const { return pieces_[static_cast<std::size_t>(token)]; }
  float score_of(Token token) const { return scores_[static_cast<std::size_t>(token)]; }

  std::vector<std::string> pieces_;             // [vocab]
  std::vector<float> scores_;                   // [vocab]
  std::unordered_map<std::string, Token> ids_;  // piece to token
};

}  // namespace llama2
