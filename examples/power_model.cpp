// Power attention in a llama-like model, beside the same shape with softmax and a bfloat16 cache.
//
//     power_model [--tokens 16384] [--layers 1] [--hidden 1024] [--threads 1]
//
// Heads are PowerCoder's, 24 on 2 of 128 columns, whose kernel is the square of the score with a gate for
// each key head; weights are random, so the text would be nonsense, and what is printed is how fast it comes:
// tokens a second of the prompt, chunk by chunk, and of decoding behind so many tokens, with the milliseconds
// that attention has of a token, and the bytes that are kept of the past. A state has the size of a cache of
// some 8000 tokens, and never another.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fastrope/eigen.hpp>
#include <fastrope/fastrope.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "power/layer.hpp"

namespace {

using fastrope::Index;
using fastrope::MatrixView;
using power::heads_of;
using power::Matrix;
using power::Shape;
using power::Tokens;

constexpr Index kChunk = 1024;  // of a prompt
constexpr Index kDecoded = 16;  // tokens, to be timed

void require(fastrope::RunStatus status) {
  if (status != fastrope::RunStatus::ok) throw std::runtime_error("attention was refused");
}

/// The square of the score, by a state.
class PowerAttention {
 public:
  PowerAttention(const Shape& s, Index, const fastrope::Executor& executor)
      : d_(s.d), sequence_(s.heads, s.kv_heads, s.d, s.d, options(executor)) {}

  void operator()(Tokens& t) {
    const auto q = heads_of(std::as_const(t.q), d_), k = heads_of(std::as_const(t.k), d_),
               v = heads_of(std::as_const(t.v), d_);
    if (q.rows > 1)
      sequence_.prefill(q, k, v, heads_of(t.out, d_), t.gates);
    else
      require(sequence_.step(q, k, v, heads_of(t.out, d_),
                             {t.gates.data(), static_cast<std::size_t>(t.gates.size())}));
  }
  std::size_t bytes() const { return sequence_.state_bytes(); }

 private:
  static fastrope::Options options(const fastrope::Executor& executor) {
    fastrope::Options options{.mask = fastrope::Mask::causal(), .executor = executor};
    options.kernel = fastrope::Kernel::power(2);
    return options;
  }

  Index d_;
  fastrope::RecurrentAttention<float> sequence_;
};

/// Softmax, over a cache that grows.
class SoftmaxAttention {
 public:
  SoftmaxAttention(const Shape& s, Index most, const fastrope::Executor& executor)
      : shape_(s),
        most_(most),
        keys_(static_cast<std::size_t>(s.kv_heads * most * s.d)),
        values_(keys_.size()),
        plan_(fastrope::make_plan<float>({s.heads, s.kv_heads, kChunk, most, s.d, s.d},
                                         {.mask = fastrope::Mask::causal(), .executor = executor})),
        workspace_(plan_.workspace_bytes()) {}

  void operator()(Tokens& t) {
    const Index d = shape_.d, n = t.k.rows();
    for (Index h = 0; h < shape_.kv_heads; ++h)
      for (Index i = 0; i < n; ++i)
        for (Index c = 0; c < d; ++c) {
          const auto at = static_cast<std::size_t>((h * most_ + tokens_ + i) * d + c);
          keys_[at] = fastrope::bfloat16(t.k(i, h * d + c));
          values_[at] = fastrope::bfloat16(t.v(i, h * d + c));
        }
    tokens_ += n;
    require(plan_.run(heads_of(std::as_const(t.q), d), cache(keys_), cache(values_), heads_of(t.out, d),
                      workspace_));
  }
  std::size_t bytes() const {
    return static_cast<std::size_t>(2 * shape_.kv_heads * tokens_ * shape_.d) * sizeof(fastrope::bfloat16);
  }

 private:
  fastrope::TensorView<const fastrope::bfloat16> cache(const std::vector<fastrope::bfloat16>& x) const {
    return {x.data(), shape_.kv_heads, tokens_, shape_.d, most_ * shape_.d, shape_.d};
  }

  Shape shape_;
  Index most_;
  std::vector<fastrope::bfloat16> keys_, values_;  // [kv_heads, most, d]
  fastrope::Plan<float> plan_;
  std::vector<std::byte> workspace_;
  Index tokens_ = 0;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// What a number of tokens took.
struct Times {
  double all = 0, attention = 0;
};

template <class Attention>
class Model {
 public:
  Model(const Shape& shape, Index most, const fastrope::Executor& executor) : shape_(shape) {
    std::mt19937 random(1);
    for (Index l = 0; l < shape.layers; ++l) {
      layers_.emplace_back(shape, random);
      attention_.emplace_back(shape, most, executor);
    }
  }

  /// The next n tokens.
  Times run(Index n) {
    Matrix x(n, shape_.hidden);
    std::normal_distribution<float> normal;
    for (Index i = 0; i < x.size(); ++i) x.data()[i] = normal(random_);
    Times times;
    const auto start = std::chrono::steady_clock::now();
    for (std::size_t l = 0; l < layers_.size(); ++l)
      layers_[l].run(x, tokens_, [&](Tokens& t) {
        const auto begin = std::chrono::steady_clock::now();
        attention_[l](t);
        times.attention += seconds_since(begin);
      });
    tokens_ += n;
    times.all = seconds_since(start);
    return times;
  }
  Index tokens() const { return tokens_; }
  double megabytes() const {
    double bytes = 0;
    for (const Attention& a : attention_) bytes += static_cast<double>(a.bytes());
    return bytes * 1e-6;
  }

 private:
  Shape shape_;
  std::vector<power::Layer> layers_ = {};
  std::vector<Attention> attention_ = {};
  std::mt19937 random_{2};
  Index tokens_ = 0;
};

template <class Attention>
void measure(const char* name, const Shape& shape, Index tokens, const fastrope::Executor& executor) {
  Model<Attention> model(shape, tokens + 20 * kDecoded, executor);
  for (Index behind = kChunk; behind <= tokens; behind *= 2) {
    Times prompt, decode;
    const Index before = model.tokens();
    while (model.tokens() < behind) {
      const Times t = model.run(std::min(kChunk, behind - model.tokens()));
      prompt.all += t.all;
      prompt.attention += t.attention;
    }
    const auto taken = static_cast<double>(model.tokens() - before);
    const double megabytes = model.megabytes();
    model.run(1);
    for (Index i = 0; i < kDecoded; ++i) {
      const Times t = model.run(1);
      decode.all += t.all;
      decode.attention += t.attention;
    }
    std::printf("%-8s %7td  %9.1f %9.3f  %9.1f %9.3f  %9.1f\n", name, behind, taken / prompt.all,
                1e3 * prompt.attention / taken, kDecoded / decode.all, 1e3 * decode.attention / kDecoded,
                megabytes);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Shape shape;
    Index tokens = 16384, threads = 1;
    for (int i = 1; i + 1 < argc; i += 2) {
      const std::string option = argv[i];
      const Index value = std::stol(argv[i + 1]);
      if (value < 1) throw std::runtime_error(option + " must be at least 1");
      if (option == "--tokens")
        tokens = value;
      else if (option == "--layers")
        shape.layers = value;
      else if (option == "--hidden")
        shape.hidden = value;
      else if (option == "--threads")
        threads = value;
      else
        throw std::runtime_error("unknown option " + option);
    }
    const auto executor = fastrope::Executor::openmp(static_cast<int>(threads));
    std::printf("%td heads on %td, d %td, %td layers; milliseconds are attention's\n", shape.heads,
                shape.kv_heads, shape.d, shape.layers);
    std::printf("%-8s %7s  %9s %9s  %9s %9s  %9s\n", "", "tokens", "prompt/s", "ms/token", "decode/s",
                "ms/token", "MB kept");
    measure<PowerAttention>("power", shape, tokens, executor);
    measure<SoftmaxAttention>("softmax", shape, tokens, executor);
    return EXIT_SUCCESS;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "power_model: %s\n", error.what());
    return EXIT_FAILURE;
  }
}
