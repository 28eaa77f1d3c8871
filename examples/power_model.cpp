// Polynomial attention in a llama-like model, beside the same width with softmax and a bfloat16 cache.
//
//     power_model [--model powercoder|brumby|based] [--tokens 1024,4096,16384] [--layers 2] [--hidden 1024]
//                 [--threads 1]
//
// Heads, kernel, gates and normaliser are the model's (power/models.hpp); Based's layers alternate with
// softmax over a sliding window, whose cache does not grow either. Weights are random, so the text would be
// nonsense, and what is printed is how fast it comes: tokens a second of the last 1024 of a prompt and of
// decoding behind it, with the milliseconds that attention has of a token, and the bytes that are kept of the
// past. The softmax model is given the rest of its past; states take all of it.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fastrope/eigen.hpp>
#include <fastrope/fastrope.hpp>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "power/attention.hpp"
#include "power/layer.hpp"
#include "power/models.hpp"

namespace {

using power::Heads;
using power::Index;
using power::kChunk;
using power::Matrix;
using power::Tokens;

constexpr Index kDecoded = 16;  // tokens, to be timed

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// What a number of tokens took.
struct Times {
  double all = 0, attention = 0;
};

class LanguageModel {
 public:
  explicit LanguageModel(Index hidden) : hidden_(hidden) {}

  void add_layer(const Heads& heads, bool gates, std::unique_ptr<power::Attention> attention) {
    layers_.push_back({heads, gates, power::Layer(heads, gates, hidden_, random_), std::move(attention)});
  }

  /// The next n tokens.
  Times run(Index n) {
    Matrix x = power::normal_matrix(n, hidden_, 1, random_);
    Times times;
    const auto start = std::chrono::steady_clock::now();
    for (const Part& part : layers_)
      part.layer.run(x, tokens_, [&](Tokens& t) {
        const auto begin = std::chrono::steady_clock::now();
        part.attention->run(t);
        times.attention += seconds_since(begin);
      });
    tokens_ += n;
    times.all = seconds_since(start);
    return times;
  }
  /// Tokens up to so many become the past, without the layers around attention.
  void skip_to(Index tokens) {
    while (tokens_ < tokens) {
      const Index n = std::min(kChunk, tokens - tokens_);
      for (const Part& part : layers_) {
        const Heads& h = part.heads;
        Tokens t{.q = power::normal_matrix(n, h.heads * h.d, 1, random_),
                 .k = power::normal_matrix(n, h.kv_heads * h.d, 1, random_),
                 .v = power::normal_matrix(n, h.kv_heads * h.d_v, 1, random_),
                 .gates = Matrix::Constant(part.gates ? h.kv_heads : 0, n, -0.01F),
                 .out = Matrix(n, h.heads * h.d_v)};
        part.attention->skip(t);
      }
      tokens_ += n;
    }
  }
  double megabytes() const {
    double bytes = 0;
    for (const Part& part : layers_) bytes += static_cast<double>(part.attention->bytes());
    return bytes * 1e-6;
  }

 private:
  struct Part {
    Heads heads;
    bool gates;
    power::Layer layer;
    std::unique_ptr<power::Attention> attention;
  };

  Index hidden_;
  std::vector<Part> layers_ = {};
  std::mt19937 random_{1};
  Index tokens_ = 0;
};

void measure(const char* name, LanguageModel model, const std::vector<Index>& marks) {
  for (const Index behind : marks) {
    model.skip_to(behind - kChunk);
    const Times prompt = model.run(kChunk);
    const double megabytes = model.megabytes();
    model.run(1);
    Times decode;
    for (Index i = 0; i < kDecoded; ++i) {
      const Times t = model.run(1);
      decode.all += t.all;
      decode.attention += t.attention;
    }
    std::printf("%-8s %7td  %9.1f %9.3f  %9.1f %9.3f  %9.1f\n", name, behind,
                static_cast<double>(kChunk) / prompt.all,
                1e3 * prompt.attention / static_cast<double>(kChunk),
                static_cast<double>(kDecoded) / decode.all,
                1e3 * decode.attention / static_cast<double>(kDecoded), megabytes);
    std::fflush(stdout);
  }
}

/// Throws unless there is room between the marks for what is timed.
void require_room(const std::vector<Index>& marks) {
  for (std::size_t i = 1; i < marks.size(); ++i)
    if (marks[i] < marks[i - 1] + kChunk + kDecoded + 1)
      throw std::runtime_error("--tokens: more than " + std::to_string(kChunk + kDecoded) +
                               " are needed between two");
  if (marks.empty()) throw std::runtime_error("--tokens gives none");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    examples::Arguments words(argc, argv,
                              "[--model powercoder|brumby|based] [--tokens A,B,..] [--layers N]\n"
                              "       [--hidden N] [--threads N]");
    const std::string name = words.text("--model", "powercoder");
    const std::vector<Index> marks = words.numbers<Index>("--tokens", "1024,4096,16384", kChunk);
    const Index layers = words.number<Index>("--layers", 2, 1),
                hidden = words.number<Index>("--hidden", 1024, 1),
                threads = words.number<Index>("--threads", 1, 1);
    words.files(0);
    const power::Model model = power::model_of(name);
    require_room(marks);
    const Index most = marks.back() + 2 * kDecoded;
    const auto executor = fastrope::Executor::openmp(static_cast<int>(threads));
    LanguageModel polynomial(hidden), softmax(hidden);
    for (Index l = 0; l < layers; ++l) {
      const bool window = model.window > 0 && l % 2 == 1;
      if (window)
        polynomial.add_layer(
            model.softmax, false,
            std::make_unique<power::CacheAttention>(model.softmax, model.window, most, executor));
      else
        polynomial.add_layer(model.polynomial, model.gates,
                             std::make_unique<power::StateAttention>(model, executor));
      softmax.add_layer(model.softmax, false,
                        std::make_unique<power::CacheAttention>(model.softmax, 0, most, executor));
    }
    std::printf("%s: %td layers, hidden %td, %td heads on %td, d %td, d_v %td", model.name, layers, hidden,
                model.polynomial.heads, model.polynomial.kv_heads, model.polynomial.d, model.polynomial.d_v);
    if (model.window > 0) std::printf(", every other layer softmax over %td tokens", model.window);
    std::printf("; milliseconds are attention's\n");
    std::printf("%-8s %7s  %9s %9s  %9s %9s  %9s\n", "", "tokens", "prompt/s", "ms/token", "decode/s",
                "ms/token", "MB kept");
    measure("states", std::move(polynomial), marks);
    measure("softmax", std::move(softmax), marks);
    return EXIT_SUCCESS;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "power_model: %s\n", error.what());
    return EXIT_FAILURE;
  }
}
