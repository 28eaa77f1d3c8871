// Trains a byte-level language model whose global heads are bounded (bounded_model/config.hpp), or a twin of
// it that is not.
//
//     bounded_model_train TEXTS OUT.bin RUNS.tsv [--kind bounded|free|plain] [--seed 0] [--steps 1500]
//                         [--tokens 8192] [--context 2048] [--size 8] [--radius 2] [--base 1000]
//
// TEXTS is the folder that scripts/texts made. Each step takes `tokens` bytes of both texts, in sequences of
// `context`. OUT.bin gets the weights in 8 bits; RUNS.tsv a line: the loss of held-out text in nats a byte,
// by how far into its context a byte is. Everything is computed with the weights as they are written.
//
//     bounded  half of the heads local, half global with |x| <= radius
//     free     the same, with free scores of size 32 in the global heads
//     plain    all heads see everything, scores are free
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "bounded_model/training_attention.hpp"
#include "bounded_model/weights_file.hpp"
#include "training/trainer.hpp"

namespace {

using bounded_model::Config;
using training::Batch;
using training::Index;
using Trainer = training::Trainer<float, bounded_model::TrainingAttention<float>>;

struct Request {
  std::string texts, weights, runs, kind;
  std::uint64_t seed;
  Index steps, tokens, context, size;
  double radius, base;
};

Request requested(int count, char** argv) {
  examples::Arguments words(count, argv,
                            "TEXTS OUT.bin RUNS.tsv [--kind bounded|free|plain] [--seed N] [--steps N]\n"
                            "       [--tokens N] [--context N] [--size d] [--radius R] [--base B]");
  Request r;
  r.kind = words.text("--kind", "bounded");
  r.seed = words.number<std::uint64_t>("--seed", 0, 0);
  r.steps = words.number<Index>("--steps", 1500, 1);
  r.context = words.number<Index>("--context", 2048, 2);
  r.tokens = words.number<Index>("--tokens", 8192, r.context);
  r.size = words.number<Index>("--size", 8, 2);
  r.radius = words.number<double>("--radius", 2, 1e-3);
  r.base = words.number<double>("--base", 1e3, 1);
  if (r.kind != "bounded" && r.kind != "free" && r.kind != "plain") words.wrong("no kind " + r.kind);
  const std::vector<std::string>& files = words.files(3);
  r.texts = files[0], r.weights = files[1], r.runs = files[2];
  return r;
}

Config config_of(const Request& a) {
  Config c = bounded_model::config_of(a.context);
  c.global_size = a.size;
  c.radius = a.radius;
  c.global_base = a.base;
  if (a.kind != "bounded") {
    c.global_size = c.head_size();
    c.radius = 0;
  }
  if (a.kind == "plain") c.local_heads = 0;
  return c;
}

using Text = std::vector<training::Token>;

Text read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw fastrope::Error("cannot read " + path);
  Text text;
  for (std::istreambuf_iterator<char> c(file), end; c != end; ++c)
    text.push_back(static_cast<unsigned char>(*c));
  return text;
}

/// Adds n tokens from `first` on, and what follows each of them.
void add_sequence(const Text& text, Index first, Index n, Batch& batch) {
  for (Index i = first; i < first + n; ++i) {
    batch.tokens.push_back(text[static_cast<std::size_t>(i)]);
    batch.labels.push_back(text[static_cast<std::size_t>(i + 1)]);
  }
}

/// The mean loss of a text in consecutive contexts, for positions below 64, 256, 1024 and so on by 4, and
/// the last: of all first, [1 + ranges].
std::vector<double> losses(training::Model<float, bounded_model::TrainingAttention<float>>& model,
                           const Text& text) {
  const Index n = model.config().n;
  std::vector<double> sum, count;
  const auto add = [&](std::size_t range, double loss) {
    if (sum.size() <= range) sum.resize(range + 1), count.resize(range + 1);
    sum[range] += loss;
    ++count[range];
  };
  for (Index first = 0; first + n < std::ssize(text); first += n) {
    Batch batch;
    add_sequence(text, first, n, batch);
    const auto& outputs = model.forward(batch.tokens);
    for (Index i = 0; i < n; ++i) {
      const float most = outputs.row(i).maxCoeff();
      const double loss = std::log((outputs.row(i).array() - most).exp().sum()) + most -
                          outputs(i, batch.labels[static_cast<std::size_t>(i)]);
      std::size_t range = 1;
      for (Index end = 64; i >= end && end < n; end *= 4) ++range;
      add(0, loss);
      add(range, loss);
    }
  }
  for (std::size_t r = 0; r < sum.size(); ++r) sum[r] /= count[r];
  return sum;
}

void train(const Request& a) {
  const std::vector<std::string> names{"kjv", "jargon"};
  std::vector<Text> texts;
  std::vector<double> sizes;
  for (const std::string& name : names) {
    texts.push_back(read(a.texts + "/" + name + "_train.txt"));
    sizes.push_back(static_cast<double>(texts.back().size()));
    if (std::ssize(texts.back()) <= a.context) throw fastrope::Error(name + " is shorter than a context");
  }
  const Config config = config_of(a);
  Trainer trainer(config, {.steps = a.steps, .rate = 4e-3}, a.seed);
  std::printf("%s: %td parameters, %td steps of %td tokens in contexts of %td\n", a.kind.c_str(),
              trainer.model().layout().size, a.steps, a.tokens / a.context * a.context, a.context);

  std::mt19937_64 random(a.seed);
  std::discrete_distribution<std::size_t> text_of(sizes.begin(), sizes.end());
  const auto begin = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  double mean = 0;
  for (Index step = 1; step <= a.steps; ++step) {
    Batch batch;
    for (Index s = 0; s < a.tokens / a.context; ++s) {
      const Text& text = texts[text_of(random)];
      add_sequence(text, std::uniform_int_distribution<Index>(0, std::ssize(text) - a.context - 1)(random),
                   a.context, batch);
    }
    const double loss = trainer.step(batch);
    mean = step == 1 ? loss : 0.95 * mean + 0.05 * loss;
    std::printf("\rstep %td of %td: loss %.3f, %.0f min left ", step, a.steps, mean,
                seconds() / 60 * static_cast<double>(a.steps - step) / static_cast<double>(step));
    if (step % 50 == 0) std::printf("\n");
    std::fflush(stdout);
  }
  const double trained = seconds();

  bounded_model::write_weights(a.weights, config, trainer.model().parameters());
  trainer.model().parameters() = bounded_model::read_weights(a.weights).parameters;
  const bool begun = std::filesystem::exists(a.runs);
  std::ofstream runs(a.runs, std::ios::app);
  if (!begun) runs << "kind\tsize\tradius\tseed\tsteps\ttokens\tcontext\tseconds\ttext\tlosses\n";
  for (const std::string& name : names) {
    runs << a.kind << '\t' << a.size << '\t' << a.radius << '\t' << a.seed << '\t' << a.steps << '\t'
         << a.tokens << '\t' << a.context << '\t' << static_cast<int>(trained) << '\t' << name << '\t';
    const char* separator = "";
    for (const double loss : losses(trainer.model(), read(a.texts + "/" + name + "_held_out.txt"))) {
      std::printf(" %s %.4f", name.c_str(), loss);
      runs << separator << loss;
      separator = ",";
    }
    runs << '\n';
  }
  std::printf("\n");
  if (!runs.flush()) throw fastrope::Error("cannot write " + a.runs);
}

}  // namespace

int main(int count, char** words) try {
  const Request asked = requested(count, words);
  Eigen::setNbThreads(1);
  train(asked);
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "bounded_model_train: %s\n", error.what());
  return EXIT_FAILURE;
}
