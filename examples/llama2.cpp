// A small Llama 2 that reads llama2.c's files and whose attention is fastrope's.
//
//     llama2 CHECKPOINT TOKENIZER [--prompt TEXT] [--tokens N] [--threads N] [--tolerance T] [--plan]
//
// The prompt goes through the model in one call, then one token at a time, always the likeliest. The text
// goes to the standard output; rates and messages go to the standard error.
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <fastrope/fastrope.hpp>
#include <iostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "llama2/checkpoint.hpp"
#include "llama2/model.hpp"
#include "llama2/tokenizer.hpp"

namespace {

constexpr const char* kUsage =
    "usage: llama2 CHECKPOINT TOKENIZER [options]\n"
    "  --prompt TEXT    text to continue (Once upon a time)\n"
    "  --tokens N       most tokens to add (256)\n"
    "  --threads N      threads (1)\n"
    "  --tolerance T    error allowed in attention, over max|V|; 0: none (1e-3)\n"
    "  --plan           show what was chosen for the prompt, one line per layer and head";

struct Arguments {
  std::vector<std::string> files;
  std::string prompt = "Once upon a time";
  fastrope::Index tokens = 256;
  fastrope::Index threads = 1;
  double tolerance = 1e-3;
  bool plan = false;
};

template <class Number>
Number parse_number(std::string_view option, std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size() || number < 0)
    throw llama2::Error(std::string(option) + " needs a number that is not negative, got '" +
                        std::string(text) + "'");
  return number;
}

Arguments parse_arguments(std::span<char*> words) {
  Arguments arguments;
  for (std::size_t i = 1; i < words.size(); ++i) {
    const std::string_view word = words[i];
    const auto value = [&]() -> std::string_view {
      if (++i == words.size()) throw llama2::Error(std::string(word) + " needs a value");
      return words[i];
    };
    if (word == "--prompt")
      arguments.prompt = value();
    else if (word == "--tokens")
      arguments.tokens = parse_number<fastrope::Index>(word, value());
    else if (word == "--threads")
      arguments.threads = parse_number<fastrope::Index>(word, value());
    else if (word == "--tolerance")
      arguments.tolerance = parse_number<double>(word, value());
    else if (word == "--plan")
      arguments.plan = true;
    else if (word.starts_with("-"))
      throw llama2::Error("unknown option " + std::string(word) + "\n" + kUsage);
    else
      arguments.files.emplace_back(word);
  }
  if (arguments.files.size() != 2)
    throw llama2::Error("a checkpoint and a tokenizer are needed, got " +
                        std::to_string(arguments.files.size()) + " files\n" + kUsage);
  return arguments;
}

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

void print_rate(const char* phase, fastrope::Index tokens, double seconds) {
  std::cerr << phase << ": " << tokens << " tokens, " << static_cast<double>(tokens) / seconds
            << " tokens/s\n";
}

void print_plan(std::size_t layer, const fastrope::Report& report) {
  for (std::size_t head = 0; head < report.heads.size(); ++head) {
    const fastrope::HeadReport& h = report.heads[head];
    std::cout << "layer " << layer << " head " << head << ": " << h.path << ", entry bound " << h.entry_bound
              << ", " << h.reason << '\n';
  }
}

void run(const Arguments& arguments) {
  llama2::Checkpoint checkpoint = llama2::load_checkpoint(arguments.files[0]);
  const llama2::Tokenizer tokenizer(arguments.files[1]);
  if (tokenizer.size() != checkpoint.config.vocab_size)
    throw llama2::Error("the tokenizer has " + std::to_string(tokenizer.size()) + " tokens, the checkpoint " +
                        std::to_string(checkpoint.config.vocab_size));

  fastrope::Options options;
  options.tolerance = arguments.tolerance;
  options.executor = fastrope::Executor::openmp(arguments.threads);
  Eigen::setNbThreads(static_cast<int>(arguments.threads));
  llama2::Model model(std::move(checkpoint), options);

  const std::vector<llama2::Token> prompt = tokenizer.encode(arguments.prompt);
  const Stopwatch prefill;
  llama2::Model::Observer observe;
  if (arguments.plan)
    observe = [&](std::size_t layer, const auto& q, const auto& k, const auto& v) {
      print_plan(layer, fastrope::make_plan(q, k, v, model.options()).report());
    };
  llama2::Matrix logits = model.forward(prompt, observe);  // [prompt, vocab], then [1, vocab]
  const double prefill_seconds = prefill.seconds();

  std::cout << tokenizer.decode(prompt) << std::flush;
  const Stopwatch decode;
  fastrope::Index added = 0;
  for (llama2::Token previous = prompt.back(); added < arguments.tokens; ++added) {
    const llama2::Token token = llama2::likeliest(logits);
    if (token == llama2::kBos || token == llama2::kEos) break;
    std::cout << tokenizer.decode(previous, token) << std::flush;
    if (model.length() == model.config().context) {
      std::cerr << "\n[stopped: the model's context of " << model.config().context << " tokens is full]";
      break;
    }
    logits = model.forward({&token, 1});
    previous = token;
  }
  const double decode_seconds = decode.seconds();

  std::cout << std::endl;
  print_rate("prefill", static_cast<fastrope::Index>(prompt.size()), prefill_seconds);
  print_rate("decode", added, decode_seconds);
}

}  // namespace

int main(int count, char** words) try {
  run(parse_arguments({words, static_cast<std::size_t>(count)}));
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::cerr << "llama2: " << error.what() << '\n';
  return EXIT_FAILURE;
}
