// What does each head of a model do? ("single-head deposit")
//
//     head_ablation CHECKPOINT TOKENIZER [--text FILE] [--figures FOLDER]
//
// For every layer and head of a llama2.c checkpoint: the change in the model's loss on a text when that one
// head's values are zero. Without a file the text is the model's own, likeliest token after likeliest token
// from "Once upon a time" until its context is full, on which its loss is low. Writes
// head_ablation.svg to the folder.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "figures/heat_map.hpp"
#include "llama2/checkpoint.hpp"
#include "llama2/model.hpp"
#include "llama2/tokenizer.hpp"

namespace {

struct Arguments {
  std::string checkpoint, tokenizer;
  std::optional<std::string> text = {}, figures = {};
};

std::optional<Arguments> parsed(int count, char** words) {
  std::vector<std::string> files;
  Arguments a;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if ((word == "--text" || word == "--figures") && i + 1 < count)
      (word == "--text" ? a.text : a.figures) = words[++i];
    else if (word.starts_with("--"))
      return std::nullopt;
    else
      files.push_back(word);
  }
  if (files.size() != 2) return std::nullopt;
  a.checkpoint = files[0];
  a.tokenizer = files[1];
  return a;
}

std::vector<llama2::Token> text_of(const Arguments& a, const llama2::Checkpoint& checkpoint) {
  const llama2::Tokenizer tokenizer(a.tokenizer);
  std::vector<llama2::Token> tokens;
  if (a.text) {
    std::ifstream file(*a.text);
    if (!file) throw llama2::Error("cannot read " + *a.text);
    tokens = tokenizer.encode(std::string(std::istreambuf_iterator<char>(file), {}));
    const auto context = static_cast<std::size_t>(checkpoint.config.context);
    if (tokens.size() > context) {
      std::printf("the first %zu of %zu tokens, the model's context\n", context, tokens.size());
      tokens.resize(context);
    }
  } else {
    llama2::Model model(checkpoint);
    tokens = llama2::written_on(model, tokenizer.encode("Once upon a time"));
  }
  std::printf("%zu tokens: %.70s..\n", tokens.size(), tokenizer.decode(tokens).c_str());
  return tokens;
}

double loss(const llama2::Checkpoint& checkpoint, const std::vector<llama2::Token>& text) {
  llama2::Model model(checkpoint);
  return llama2::mean_loss(model.forward(text), text);
}

void run(const Arguments& a) {
  const llama2::Checkpoint checkpoint = llama2::load_checkpoint(a.checkpoint);
  const llama2::Config& config = checkpoint.config;
  const std::vector<llama2::Token> text = text_of(a, checkpoint);
  const double baseline = loss(checkpoint, text);
  std::printf("baseline loss %.4f nats a token; change with one head silent:\n layer", baseline);
  for (llama2::Index h = 0; h < config.heads; ++h) std::printf("  head %-2td", h);
  std::printf("\n");
  Eigen::MatrixXd change(config.layers, config.heads);
  for (llama2::Index layer = 0; layer < config.layers; ++layer) {
    std::printf("%6td", layer);
    for (llama2::Index head = 0; head < config.heads; ++head) {
      llama2::Checkpoint without = checkpoint;
      llama2::silence_head(without, layer, head);
      change(layer, head) = loss(without, text) - baseline;
      std::printf(" %+8.4f", change(layer, head));
      std::fflush(stdout);
    }
    std::printf("\n");
  }
  Eigen::Index layer = 0, head = 0;
  const double most = change.maxCoeff(&layer, &head);
  std::printf("most: layer %td head %td, %+.4f; the sum over all heads is %+.4f\n", layer, head, most,
              change.sum());
  if (!a.figures) return;
  char subtitle[128];
  std::snprintf(subtitle, sizeof subtitle,
                "change in nats a token over %zu tokens; with all heads the loss is %.3f", text.size(),
                baseline);
  figures::draw_heat_map(change,
                         {.title = "Loss with one head silent",
                          .subtitle = subtitle,
                          .rows = "layer",
                          .columns = "head",
                          .format = "%.3f"},
                         *a.figures + "/head_ablation.svg");
}

}  // namespace

int main(int count, char** words) try {
  const std::optional<Arguments> a = parsed(count, words);
  if (!a) {
    std::fprintf(stderr, "usage: %s CHECKPOINT TOKENIZER [--text FILE] [--figures FOLDER]\n", words[0]);
    return EXIT_FAILURE;
  }
  run(*a);
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "head_ablation: %s\n", error.what());
  return EXIT_FAILURE;
}
