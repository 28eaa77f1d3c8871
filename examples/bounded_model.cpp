// A language model whose attention is almost linear: a long text, exactly and within a tolerance; then more
// of it, from states of constant size.
//
//     bounded_model WEIGHTS TEXT [--tokens 65536] [--behind 1024,65536,524288] [--write 400]
//     bounded_model WEIGHTS TEXT --contexts
//     bounded_model WEIGHTS TEXT --figure FILE.svg [--tokens 65536]
//
// Reads the first `tokens` bytes of TEXT with exact attention, and with tolerances 1e-2 and 1e-3: the loss in
// nats a byte, of all and of the last 1024 beside what they cost with the context that the model was trained
// with; the time of the whole model, one thread; which path the global heads took; the error that was
// promised and the one that was seen. Then generates behind prompts of the lengths in `behind` (TEXT again
// and again, where it is shorter): milliseconds a token, and what is kept of the past.
//
// --contexts says what far context is worth: the loss of the same bytes, given so many before them, and given
// all but without the global heads. --figure draws the README's: times and memory for each power of two from
// 1024 to `tokens`.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "bounded_model/figure.hpp"
#include "bounded_model/network.hpp"
#include "bounded_model/prompt.hpp"
#include "bounded_model/stream.hpp"
#include "bounded_model/weights_file.hpp"

namespace {

using bounded_model::Index;
using bounded_model::Network;
using bounded_model::Reading;
using bounded_model::Stream;
using bounded_model::Token;

constexpr Index kLast = 1024;   // tokens whose loss is looked at beside
constexpr Index kChecked = 32;  // rows of each global head that are computed again
constexpr double kTolerance = 1e-2;

struct Request {
  std::string weights, text, figure;
  Index tokens, write;
  bool contexts;
  std::vector<Index> behind;
};

Request requested(int count, char** argv) {
  examples::Arguments words(count, argv,
                            "WEIGHTS TEXT [--tokens N] [--behind A,B,..] [--write N] [--contexts]\n"
                            "       [--figure FILE.svg]",
                            {"--contexts"});
  Request r;
  r.tokens = words.number<Index>("--tokens", 65536, 2 * kLast);
  r.write = words.number<Index>("--write", 400, 1);
  r.figure = words.text("--figure", "");
  r.behind = words.numbers<Index>("--behind", "1024,65536,524288", 1);
  r.contexts = words.flag("--contexts");
  r.weights = words.files(2)[0], r.text = words.files(2)[1];
  return r;
}

std::vector<Token> read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<Token> tokens;
  for (std::istreambuf_iterator<char> c(file), end; c != end; ++c)
    tokens.push_back(static_cast<unsigned char>(*c));
  if (tokens.empty()) throw fastrope::Error("cannot read " + path);
  return tokens;
}

/// n tokens of the file, from its beginning again where it ends.
std::vector<Token> read_tokens(const std::string& path, Index n) {
  const std::vector<Token> all = read_all(path);
  std::vector<Token> tokens(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = all[i % all.size()];
  return tokens;
}

Reading read(const Network& network, std::span<const Token> tokens, double tolerance) {
  return bounded_model::read_text(network, tokens, tolerance, kChecked, [&](Index layer) {
    std::fprintf(stderr, "\r%td tokens, %s: layer %td of %td ", std::ssize(tokens),
                 tolerance == 0 ? "exact" : "fast", layer, network.config().layers);
    if (layer == network.config().layers) std::fprintf(stderr, "\r%60s\r", "");
  });
}

void compare(const Network& network, const std::vector<Token>& tokens) {
  const auto last = tokens.size() - 1 - kLast;
  const Index trained = std::min(network.config().n, std::ssize(tokens));
  const auto end = std::span(tokens).last(static_cast<std::size_t>(trained));
  const Reading before = read(network, end, 0);
  std::printf("%td tokens; their last %td cost %.4f nats a byte with a context of %td, as in training\n\n",
              std::ssize(tokens), kLast, before.mean_loss(end.size() - 1 - kLast), trained);
  std::printf("  tolerance   seconds       loss  last %td   fast heads   promised   observed   workspace\n",
              kLast);
  double exact_seconds = 0;
  for (const double tolerance : {0.0, 1e-2, 1e-3}) {
    const Reading r = read(network, tokens, tolerance);
    if (tolerance == 0) {
      exact_seconds = r.seconds;
      std::printf("      exact  %8.2f  %9.6f  %9.6f  %3s of %3td          -          -  %6.0f MB\n",
                  r.seconds, r.mean_loss(), r.mean_loss(last), "-", r.heads,
                  1e-6 * static_cast<double>(r.workspace_bytes));
    } else {
      std::printf("  %9.0e  %8.2f  %9.6f  %9.6f  %3td of %3td   %8.1e   %8.1e  %6.0f MB  %.1f times faster\n",
                  tolerance, r.seconds, r.mean_loss(), r.mean_loss(last), r.fast_heads, r.heads, r.promised,
                  r.observed, 1e-6 * static_cast<double>(r.workspace_bytes), exact_seconds / r.seconds);
    }
    std::fflush(stdout);
    if (r.observed > r.promised) throw fastrope::Error("an error is beyond its promise");
  }
}

/// Of a cache in float of what n tokens leave to be seen: all keys and values of global heads, a window's of
/// local ones.
double cache_bytes(const Network& network, Index n) {
  const bounded_model::Config& c = network.config();
  const auto numbers = [&](const bounded_model::Group& g, Index tokens) {
    return c.layers * g.heads * (g.d + c.head_size()) * tokens;
  };
  return sizeof(float) *
         static_cast<double>(numbers(network.global(), n) + numbers(network.local(), std::min(n, c.window)));
}

/// The next byte after `logits`, at temperature 0.7.
Token draw(const bounded_model::Matrix& logits, std::mt19937& random) {
  const Eigen::ArrayXf weights = ((logits.row(0).array() - logits.maxCoeff()) / 0.7F).exp().transpose();
  return std::discrete_distribution<Token>(weights.begin(), weights.end())(random);
}

void generate(const Network& network, const std::string& path, const Request& a) {
  std::string written;
  std::printf("\nGeneration from states, within %g of softmax:\n", kTolerance);
  for (const Index n : a.behind) {
    const std::vector<Token> tokens = read_tokens(path, n);
    Stream stream(network, kTolerance);
    bounded_model::Matrix logits;
    for (Index first = 0; first < n; first += 32 * Stream::kChunk) {
      logits = stream.take(
          std::span(tokens).subspan(static_cast<std::size_t>(first),
                                    static_cast<std::size_t>(std::min(32 * Stream::kChunk, n - first))));
      std::fprintf(stderr, "\r%td of %td tokens read ", std::min(first + 32 * Stream::kChunk, n), n);
    }
    std::fprintf(stderr, "\r%60s\r", "");
    std::mt19937 random(1);
    written.clear();
    const auto start = std::chrono::steady_clock::now();
    for (Index i = 0; i < a.write; ++i) {
      const Token token = draw(logits, random);
      written += static_cast<char>(token);
      logits = stream.take(std::span(&token, 1));
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("  behind %7td tokens: %.3f ms a token, %.2f MB kept (with a cache: %.1f MB)\n", n,
                1e3 * seconds / static_cast<double>(a.write), 1e-6 * static_cast<double>(stream.bytes()),
                1e-6 * cache_bytes(network, n));
    std::fflush(stdout);
  }
  std::printf("\nAs it went on:\n%s\n", written.c_str());
}

/// Without what its global heads add.
bounded_model::Weights without_global_heads(bounded_model::Weights w) {
  const Index columns = w.config.global_heads() * w.config.head_size();
  for (const training::LayerBlocks& layer : training::Layout(w.config).layers)
    training::matrix_of(w.parameters, layer.wo).rightCols(columns).setZero();
  return w;
}

/// Of every fourth 256 bytes of the text that have the trained length before them.
void compare_contexts(const bounded_model::Weights& weights, const std::string& path) {
  constexpr Index kBytes = 256, kStride = 1024;
  const std::vector<Token> text = read_all(path);
  const auto loss = [&](const Network& network, Index context) {
    double sum = 0, count = 0;
    for (Index first = weights.config.n; first + kBytes <= std::ssize(text); first += kStride, ++count)
      sum += bounded_model::read_text(network,
                                      std::span(text).subspan(static_cast<std::size_t>(first - context),
                                                              static_cast<std::size_t>(context + kBytes)),
                                      0, 0, [](Index) {})
                 .mean_loss(static_cast<std::size_t>(context - 1));
    return sum / count;
  };
  const Network network(weights);
  for (const Index context : {Index{16}, Index{64}, Index{256}, Index{1024}, weights.config.n})
    std::printf("%5td bytes before: %.4f nats a byte\n", context, loss(network, context));
  std::printf("the same without global heads: %.4f\n",
              loss(Network(without_global_heads(weights)), weights.config.n));
}

void draw_figure(const Network& network, const std::vector<Token>& tokens, const std::string& path) {
  const auto states = static_cast<double>(Stream(network, kTolerance).bytes());
  std::vector<bounded_model::Costs> costs;
  std::printf("   tokens   exact, s  within %g, s\n", kTolerance);
  for (std::size_t n = 1024; n <= tokens.size(); n *= 2) {
    const auto seconds = [&](double tolerance) {
      return read(network, std::span(tokens).first(n), tolerance).seconds;
    };
    const auto count = static_cast<Index>(n);
    costs.push_back(
        {static_cast<double>(n), seconds(0), seconds(kTolerance), cache_bytes(network, count), states});
    std::printf("  %7td %10.3f %14.3f\n", count, costs.back().exact_seconds, costs.back().fast_seconds);
    std::fflush(stdout);
  }
  bounded_model::draw_costs(costs, path);
}

}  // namespace

int main(int count, char** words) try {
  const Request asked = requested(count, words);
  Eigen::setNbThreads(1);
  const bounded_model::Weights weights = bounded_model::read_weights(asked.weights);
  if (asked.contexts) {
    compare_contexts(weights, asked.text);
    return EXIT_SUCCESS;
  }
  const Network network(weights);
  const std::vector<Token> tokens = read_tokens(asked.text, asked.tokens);
  if (!asked.figure.empty()) {
    draw_figure(network, tokens, asked.figure);
    return EXIT_SUCCESS;
  }
  compare(network, tokens);
  generate(network, asked.text, asked);
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "bounded_model: %s\n", error.what());
  return EXIT_FAILURE;
}
