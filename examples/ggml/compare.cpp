// llama.cpp with fastrope's backend of ggml and without it, in one process: a context takes the devices that
// are registered when it is made.
//
//     compare check libfastrope_ggml.so model.gguf                  tokens, logits and sequences, which must
//     agree compare bench libfastrope_ggml.so model.gguf [depth ..]       tokens per second
//
// check wants every attention of the contexts with the backend to be counted by it. bench prints a table:
// prompts of `depth` tokens, then single tokens at that depth, by ggml's flash attention, without it, and by
// fastrope, in turns; medians where there are several rounds.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastrope_ggml.h"
#include "ggml-backend.h"
#include "llama.h"

namespace {

enum class Attention { plain, flash, fastrope };
constexpr const char* kNames[] = {"ggml, no flash", "ggml, flash", "fastrope"};

struct Free {
  void operator()(llama_model* model) const { llama_model_free(model); }
  void operator()(llama_context* context) const { llama_free(context); }
};
using Model = std::unique_ptr<llama_model, Free>;
using Tokens = std::vector<llama_token>;

/// fastrope's library. Its device is registered only while a context that is to have it is made.
class Backend {
 public:
  explicit Backend(const char* path) : path_(path) {
    ggml_backend_reg_t reg = load();
    stats_ = reinterpret_cast<fastrope_ggml_stats_t>(
        ggml_backend_reg_get_proc_address(reg, "fastrope_ggml_stats"));
    ggml_backend_unload(reg);
  }
  llama_context* make_context(llama_model* model, const llama_context_params& params) const {
    ggml_backend_reg_t reg = load();
    llama_context* context = llama_init_from_model(model, params);
    ggml_backend_unload(reg);
    return context;
  }
  fastrope_ggml_stats stats() const { return stats_(); }

 private:
  ggml_backend_reg_t load() const {
    ggml_backend_reg_t reg = ggml_backend_load(path_);
    if (reg == nullptr) throw std::runtime_error(std::string("cannot load ") + path_);
    return reg;
  }

  const char* path_;
  fastrope_ggml_stats_t stats_;
};

struct Settings {
  Attention attention = Attention::flash;
  ggml_type cache = GGML_TYPE_F16;
  uint32_t context = 1024;
  uint32_t sequences = 1;
  bool unified = true;
  int threads = 2;
};

/// A context with a batch of its own.
class Session {
 public:
  Session(const Backend& backend, llama_model* model, const Settings& s)
      : vocabulary_(llama_vocab_n_tokens(llama_model_get_vocab(model))),
        batch_(llama_batch_init(kBatch, 0, 1)) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = s.context;
    params.n_batch = kBatch;
    params.n_ubatch = 512;
    params.n_seq_max = s.sequences;
    params.n_threads = params.n_threads_batch = s.threads;
    params.flash_attn_type =
        s.attention == Attention::plain ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k = params.type_v = s.cache;
    params.kv_unified = s.unified;
    params.swa_full = false;
    context_.reset(s.attention == Attention::fastrope ? backend.make_context(model, params)
                                                      : llama_init_from_model(model, params));
    if (!context_) throw std::runtime_error("cannot make a context");
  }
  ~Session() { llama_batch_free(batch_); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void add(llama_token token, llama_pos position, llama_seq_id sequence, bool output) {
    const int i = batch_.n_tokens++;
    batch_.token[i] = token;
    batch_.pos[i] = position;
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = sequence;
    batch_.logits[i] = output;
  }
  /// Computes what was added.
  void decode() {
    if (llama_decode(context_.get(), batch_) != 0) throw std::runtime_error("llama_decode failed");
    batch_.n_tokens = 0;
  }
  /// All of a prompt, the last token's logits only, or those of all.
  void prompt(const Tokens& tokens, llama_seq_id sequence = 0, bool all = false,
              const std::function<void()>& after = {}) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      add(tokens[i], static_cast<llama_pos>(i), sequence, all || i + 1 == tokens.size());
      if (batch_.n_tokens < kBatch && i + 1 < tokens.size()) continue;
      decode();
      if (after) after();
    }
  }
  const float* logits(int i) const { return llama_get_logits_ith(context_.get(), i); }
  llama_token best(int i) const {
    return static_cast<llama_token>(std::max_element(logits(i), logits(i) + vocabulary_) - logits(i));
  }
  int vocabulary() const { return vocabulary_; }
  void clear() { llama_memory_clear(llama_get_memory(context_.get()), false); }
  void forget_after(llama_pos position) {
    llama_memory_seq_rm(llama_get_memory(context_.get()), 0, position, -1);
  }

 private:
  static constexpr int kBatch = 2048;

  int vocabulary_;
  llama_batch batch_;
  std::unique_ptr<llama_context, Free> context_;
};

/// Tokens without the first three, which are special.
Tokens random_tokens(int vocabulary, size_t count) {
  std::mt19937 random(1);
  Tokens tokens;
  while (tokens.size() < count)
    tokens.push_back(std::uniform_int_distribution<llama_token>(3, vocabulary - 1)(random));
  return tokens;
}

/// What the model says, each token drawn from its logits.
Tokens sampled_text(Session& session, size_t count) {
  std::mt19937 random(1);
  Tokens tokens = {1};
  session.clear();
  while (tokens.size() < count) {
    session.add(tokens.back(), static_cast<llama_pos>(tokens.size() - 1), 0, true);
    session.decode();
    std::vector<double> weights(session.logits(0), session.logits(0) + session.vocabulary());
    for (double& x : weights) x = std::exp(x);
    tokens.push_back(std::discrete_distribution<llama_token>(weights.begin(), weights.end())(random));
  }
  return tokens;
}

/// After a prompt, `count` tokens by the largest logit, of several sequences in each batch; sequence s begins
/// with the prompt's tokens from s on.
std::vector<Tokens> greedy(Session& session, const Tokens& prompt, int sequences, int count) {
  session.clear();
  std::vector<Tokens> texts(static_cast<size_t>(sequences));
  std::vector<llama_pos> positions;
  for (int s = 0; s < sequences; ++s) {
    const Tokens own(prompt.begin() + s, prompt.end());
    session.prompt(own, s);
    texts[static_cast<size_t>(s)].push_back(session.best(-1));
    positions.push_back(static_cast<llama_pos>(own.size()));
  }
  for (int i = 1; i < count; ++i) {
    for (int s = 0; s < sequences; ++s)
      session.add(texts[static_cast<size_t>(s)].back(), positions[static_cast<size_t>(s)]++, s, true);
    session.decode();
    for (int s = 0; s < sequences; ++s) texts[static_cast<size_t>(s)].push_back(session.best(s));
  }
  return texts;
}

struct Scored {
  std::vector<float> logits;  // [tokens, vocabulary]
  double perplexity;
};

/// The logits of a prompt and how well each predicts the next of its tokens.
Scored score(Session& session, const Tokens& prompt) {
  session.clear();
  session.prompt(prompt, 0, /*all=*/true);
  Scored result{{}, 0};
  const int vocabulary = session.vocabulary();
  double sum = 0;
  for (size_t i = 0; i < prompt.size(); ++i) {
    const float* x = session.logits(static_cast<int>(i));
    result.logits.insert(result.logits.end(), x, x + vocabulary);
    if (i + 1 == prompt.size()) break;
    double total = 0;
    for (int t = 0; t < vocabulary; ++t) total += std::exp(static_cast<double>(x[t] - x[prompt[i + 1]]));
    sum += std::log(total);
  }
  result.perplexity = std::exp(sum / static_cast<double>(prompt.size() - 1));
  return result;
}

double rms_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(double(a[i]) - double(b[i]), 2);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

/// Comparisons, printed as they are made.
class Checks {
 public:
  Checks(const char* library, const char* path)
      : backend_(library), model_(llama_model_load_from_file(path, llama_model_default_params())) {
    if (!model_) throw std::runtime_error(std::string("cannot load ") + path);
  }

  int run() {
    const int layers = llama_model_n_layer(model_.get());
    const bool trained = llama_vocab_type(llama_model_get_vocab(model_.get())) != LLAMA_VOCAB_TYPE_NONE;
    Session text_session(backend_, model_.get(), {});
    const int vocabulary = text_session.vocabulary();
    // Where the model says nothing, a prompt that leaves a window and makes its ring of keys wrap.
    const Tokens text = trained ? sampled_text(text_session, 512) : random_tokens(vocabulary, 720);
    const Tokens prompt(text.begin(), text.begin() + (trained ? 8 : 720));
    const Tokens scored(text.begin(), text.begin() + 512);
    const int count = trained ? 256 : 64;

    Session plain(backend_, model_.get(), {.attention = Attention::plain, .cache = GGML_TYPE_F32});
    const Scored expected = score(plain, scored);
    for (const ggml_type cache : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16}) {
      const std::string name = std::string(ggml_type_name(cache)) + " cache, ";
      compare_greedy(name + std::to_string(count) + " tokens", {.cache = cache}, prompt, count,
                     layers * count);
      compare_scores(name, cache, scored, expected);
    }
    compare_greedy("4 sequences in one cache, 64 tokens", {.context = 4096, .sequences = 4, .unified = true},
                   prompt, 64, layers * 64);
    compare_greedy("4 sequences in streams, 64 tokens", {.context = 4096, .sequences = 4, .unified = false},
                   prompt, 64, layers * 64);
    compare_contexts(prompt);
    return failed_;
  }

 private:
  static std::string number(double x) {
    char text[32];
    std::snprintf(text, sizeof text, "%.5g", x);
    return text;
  }
  void report(bool passed, const std::string& what) {
    std::printf("%s %s\n", passed ? "  ok    " : "  FAILED", what.c_str());
    failed_ += !passed;
  }

  /// Tokens with and without the backend, which must have run in at least `nodes` operations.
  void compare_greedy(const std::string& what, Settings settings, const Tokens& prompt, int count,
                      int64_t nodes) {
    settings.attention = Attention::flash;
    Session flash(backend_, model_.get(), settings);
    settings.attention = Attention::fastrope;
    Session fast(backend_, model_.get(), settings);
    const auto expected = greedy(flash, prompt, static_cast<int>(settings.sequences), count);
    const fastrope_ggml_stats before = backend_.stats();
    const auto seen = greedy(fast, prompt, static_cast<int>(settings.sequences), count);
    const fastrope_ggml_stats after = backend_.stats();
    int equal = 0, all = 0;
    for (size_t s = 0; s < expected.size(); ++s)
      for (size_t i = 0; i < expected[s].size(); ++i) {
        equal += expected[s][i] == seen[s][i];
        ++all;
      }
    char text[200];
    std::snprintf(
        text, sizeof text,
        ": %d of %d equal; %lld nodes (planes %lld runs, %lld of ranges, %lld dense; %lld plans made)", equal,
        all, static_cast<long long>(after.nodes - before.nodes),
        static_cast<long long>(after.runs - before.runs),
        static_cast<long long>(after.ranges - before.ranges),
        static_cast<long long>(after.dense - before.dense),
        static_cast<long long>(after.plans - before.plans));
    report(equal == all && after.nodes - before.nodes >= nodes, what + text);
  }

  /// Logits and perplexity of a prompt. llama.cpp hands flash attention keys and values of float16 at most,
  /// also where the cache has float, and ggml's rounds queries, or sums of values, to what keys are stored
  /// as. So both are held against ggml's attention without it over a cache of float.
  void compare_scores(const std::string& name, ggml_type cache, const Tokens& prompt,
                      const Scored& expected) {
    Session flash(backend_, model_.get(), {.cache = cache});
    Session fast(backend_, model_.get(), {.attention = Attention::fastrope, .cache = cache});
    const Scored of_flash = score(flash, prompt), of_fast = score(fast, prompt);
    const double off_flash = rms_difference(of_flash.logits, expected.logits);
    const double off_fast = rms_difference(of_fast.logits, expected.logits);
    report(off_fast <= 1.1 * off_flash,
           name + "logits of 512 tokens: off ggml's attention of float by " + number(off_fast) +
               " in the root mean square, ggml's flash attention by " + number(off_flash) +
               ", one off the other by " + number(rms_difference(of_flash.logits, of_fast.logits)));
    const double bound = cache == GGML_TYPE_BF16 ? 1e-3 : 1.5e-4;  // 4 digits, where keys have 11 bits
    report(std::abs(of_fast.perplexity / of_flash.perplexity - 1) < bound,
           name + "perplexity " + number(of_fast.perplexity) + ", by ggml's flash attention " +
               number(of_flash.perplexity) + ", by its attention of float " + number(expected.perplexity));
  }

  /// Two contexts that take turns give what one gives alone.
  void compare_contexts(const Tokens& prompt) {
    const Settings settings{.attention = Attention::fastrope};
    Session one(backend_, model_.get(), settings), other(backend_, model_.get(), settings);
    const Tokens alone = greedy(one, prompt, 1, 32)[0];
    Session* const sessions[] = {&one, &other};
    Tokens texts[2];
    for (int s = 0; s < 2; ++s) {
      sessions[s]->clear();
      sessions[s]->prompt(prompt);
      texts[s].push_back(sessions[s]->best(-1));
    }
    for (int i = 1; i < 32; ++i)
      for (int s = 0; s < 2; ++s) {
        sessions[s]->add(texts[s].back(), static_cast<llama_pos>(prompt.size()) + i - 1, 0, true);
        sessions[s]->decode();
        texts[s].push_back(sessions[s]->best(0));
      }
    report(texts[0] == alone && texts[1] == alone, "two contexts in turns, 32 tokens");
  }

  Backend backend_;
  Model model_;
  int failed_ = 0;
};

double seconds_of(const std::function<void()>& f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + std::ssize(x) / 2, x.end());
  return x[x.size() / 2];
}

/// One line of the table for each depth and number of threads.
void bench(const char* library, const char* path, const std::vector<uint32_t>& depths) {
  const Backend backend(library);
  const Model model(llama_model_load_from_file(path, llama_model_default_params()));
  if (!model) throw std::runtime_error(std::string("cannot load ") + path);
  std::printf("%-8s %-8s", "threads", "depth");
  for (const char* name : kNames) std::printf(" | %14s t/s %9s", name, "ms");
  std::printf(" | fastrope over flash: prompt, token; its own share\n");
  for (const int threads : {1, 2})
    for (const uint32_t depth : depths) {
      const Tokens prompt = random_tokens(llama_vocab_n_tokens(llama_model_get_vocab(model.get())), depth);
      std::array<std::unique_ptr<Session>, 3> sessions;
      std::array<std::vector<double>, 3> prompts, steps;
      double own = 0, all = 0;
      for (int a = 0; a < 3; ++a)
        sessions[static_cast<size_t>(a)] = std::make_unique<Session>(
            backend, model.get(),
            Settings{.attention = Attention(a), .context = depth + 256, .threads = threads});
      const int rounds = depth <= 512 ? 5 : depth <= 4096 ? 3 : 1;
      for (int round = 0; round < rounds; ++round)
        for (size_t a = 0; a < 3; ++a) {
          sessions[a]->clear();
          const double before = backend.stats().seconds;
          prompts[a].push_back(seconds_of([&] {
            sessions[a]->prompt(prompt);
            sessions[a]->best(-1);  // waits
          }));
          if (Attention(a) != Attention::fastrope) continue;
          own += backend.stats().seconds - before;
          all += prompts[a].back();
        }
      for (int step = 0; step < 24; ++step)
        for (size_t a = 0; a < 3; ++a)
          steps[a].push_back(seconds_of([&] {
            sessions[a]->add(prompt[0], static_cast<llama_pos>(depth) + step, 0, true);
            sessions[a]->decode();
            sessions[a]->best(0);
          }));
      std::printf("%-8d %-8u", threads, depth);
      for (size_t a = 0; a < 3; ++a)
        std::printf(" | %18.0f %9.2f", depth / median(prompts[a]), 1e3 * median(steps[a]));
      std::printf(" | %.2f %.2f; %.0f %%\n", median(prompts[1]) / median(prompts[2]),
                  median(steps[1]) / median(steps[2]), 100 * own / all);
    }
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const std::string what = argc > 3 ? argv[1] : "";
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  llama_backend_init();
  try {
    if (what == "check") return Checks(argv[2], argv[3]).run() == 0 ? 0 : 1;
    if (what == "bench") {
      std::vector<uint32_t> depths;
      for (int i = 4; i < argc; ++i) depths.push_back(static_cast<uint32_t>(std::atoi(argv[i])));
      if (depths.empty()) depths = {512, 4096, 16384};
      return bench(argv[2], argv[3], depths), 0;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "compare: %s\n", error.what());
    return 1;
  }
  std::fprintf(stderr, "usage: compare check|bench libfastrope_ggml.so model.gguf [depth ..]\n");
  return 2;
}
