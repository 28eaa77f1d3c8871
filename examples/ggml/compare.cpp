// llama.cpp with fastrope's backend of ggml and without it, in one process: a context takes the devices that
// are registered when it is made.
//
//     compare check libfastrope_ggml.so model.gguf                  tokens, logits and sequences, which must
//     agree compare bench libfastrope_ggml.so model.gguf [depth ..]       tokens per second
//
// check wants every attention of the contexts with the backend to be counted by it. bench prints a table:
// prompts of `depth` tokens, then single tokens at that depth, by ggml's attention, by its flash attention
// and by fastrope, in turns of 512 tokens of the prompt and of one token; medians of several rounds where the
// prompt is short. A deeper prompt is the continuation of those before.
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
#include <thread>
#include <utility>
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
    summary_ = reinterpret_cast<fastrope_ggml_summary_t>(
        ggml_backend_reg_get_proc_address(reg, "fastrope_ggml_summary"));
    ggml_backend_unload(reg);
  }
  llama_context* make_context(llama_model* model, const llama_context_params& params) const {
    ggml_backend_reg_t reg = load();
    llama_context* context = llama_init_from_model(model, params);
    ggml_backend_unload(reg);
    return context;
  }
  fastrope_ggml_stats stats() const { return stats_(); }
  std::string summary() const {
    std::string text(summary_(nullptr, 0), '\0');
    summary_(text.data(), text.size() + 1);
    return text;
  }

 private:
  ggml_backend_reg_t load() const {
    ggml_backend_reg_t reg = ggml_backend_load(path_);
    if (reg == nullptr) throw std::runtime_error(std::string("cannot load ") + path_);
    return reg;
  }

  const char* path_;
  fastrope_ggml_stats_t stats_;
  fastrope_ggml_summary_t summary_;
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
  void prompt(const Tokens& tokens, llama_seq_id sequence = 0, bool all = false) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      const bool last = i + 1 == tokens.size();
      add(tokens[i], static_cast<llama_pos>(i), sequence, all || last);
      if (batch_.n_tokens == kBatch || last) decode();
    }
  }
  /// All of several sequences' prompts, in as few batches as hold them. Returns the token that follows each.
  Tokens prompts(const std::vector<Tokens>& sequences) {
    Tokens next(sequences.size());
    std::vector<std::pair<size_t, int>> ends;  // sequences whose last tokens are in the batch, and where
    const auto flush = [&] {
      decode();
      for (const auto& [s, i] : ends) next[s] = best(i);
      ends.clear();
    };
    for (size_t s = 0; s < sequences.size(); ++s)
      for (size_t i = 0; i < sequences[s].size(); ++i) {
        const bool last = i + 1 == sequences[s].size();
        if (last) ends.emplace_back(s, batch_.n_tokens);
        add(sequences[s][i], static_cast<llama_pos>(i), static_cast<llama_seq_id>(s), last);
        if (batch_.n_tokens == kBatch || (last && s + 1 == sequences.size())) flush();
      }
    return next;
  }
  const float* logits(int i) const { return llama_get_logits_ith(context_.get(), i); }
  llama_token best(int i) const {
    return static_cast<llama_token>(std::max_element(logits(i), logits(i) + vocabulary_) - logits(i));
  }
  int vocabulary() const { return vocabulary_; }
  void clear() { llama_memory_clear(llama_get_memory(context_.get()), false); }
  /// The first token of sequence 0 that every layer still has.
  llama_pos first_kept() const { return llama_memory_seq_pos_min(llama_get_memory(context_.get()), 0); }
  /// Tokens `begin` to `end` of a prompt whose first ones are in the cache.
  void continue_prompt(const Tokens& tokens, size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) add(tokens[i], static_cast<llama_pos>(i), 0, i + 1 == end);
    decode();
  }
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
Tokens random_tokens(int vocabulary, size_t count, unsigned seed = 1) {
  std::mt19937 random(seed);
  Tokens tokens;
  while (tokens.size() < count)
    tokens.push_back(std::uniform_int_distribution<llama_token>(3, vocabulary - 1)(random));
  return tokens;
}

/// What the model says, each token drawn from its logits.
Tokens sampled_text(Session& session, size_t count, unsigned seed) {
  std::mt19937 random(seed);
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

/// After a prompt, `count` tokens by the largest logit, of several sequences in each batch, prompts too;
/// sequence s begins with the prompt's tokens from s on.
std::vector<Tokens> greedy(Session& session, const Tokens& prompt, int sequences, int count) {
  session.clear();
  std::vector<Tokens> prompts, texts;
  for (int s = 0; s < sequences; ++s) prompts.emplace_back(prompt.begin() + s, prompt.end());
  for (const llama_token token : session.prompts(prompts)) texts.push_back({token});
  for (int i = 1; i < count; ++i) {
    for (int s = 0; s < sequences; ++s)
      session.add(texts[static_cast<size_t>(s)].back(),
                  static_cast<llama_pos>(prompts[static_cast<size_t>(s)].size()) + i - 1, s, true);
    session.decode();
    for (int s = 0; s < sequences; ++s) texts[static_cast<size_t>(s)].push_back(session.best(s));
  }
  return texts;
}

struct Scored {
  std::vector<float> logits;  // [texts, tokens, vocabulary]
  double perplexity;
};

/// The logits of texts and how well each predicts the next token.
Scored score(Session& session, const std::vector<Tokens>& texts) {
  Scored result{{}, 0};
  const int vocabulary = session.vocabulary();
  double sum = 0, count = 0;
  for (const Tokens& text : texts) {
    session.clear();
    session.prompt(text, 0, /*all=*/true);
    for (size_t i = 0; i < text.size(); ++i) {
      const float* x = session.logits(static_cast<int>(i));
      result.logits.insert(result.logits.end(), x, x + vocabulary);
      if (i + 1 == text.size()) break;
      double total = 0;
      for (int t = 0; t < vocabulary; ++t) total += std::exp(static_cast<double>(x[t] - x[text[i + 1]]));
      sum += std::log(total);
      ++count;
    }
  }
  result.perplexity = std::exp(sum / count);
  return result;
}

double rms_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(double(a[i]) - double(b[i]), 2);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(double(a[i]) - double(b[i])));
  return largest;
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
    const int d = llama_model_n_embd(model_.get()) / llama_model_n_head(model_.get());
    const bool trained = llama_vocab_type(llama_model_get_vocab(model_.get())) != LLAMA_VOCAB_TYPE_NONE;
    Session plain(backend_, model_.get(), {.attention = Attention::plain, .cache = GGML_TYPE_F32});
    std::vector<Tokens> texts;  // of 512 tokens
    for (unsigned seed = 1; seed <= 4; ++seed)
      texts.push_back(trained ? sampled_text(plain, 512, seed)
                              : random_tokens(plain.vocabulary(), 512, seed));
    // Where the model says nothing, a prompt that leaves a window and makes its ring of keys wrap.
    const Tokens prompt =
        trained ? Tokens(texts[0].begin(), texts[0].begin() + 8) : random_tokens(plain.vocabulary(), 720);
    const int count = trained ? 256 : 64;

    const Scored expected = score(plain, texts);
    for (const ggml_type cache : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0}) {
      if (d % ggml_blck_size(cache) != 0) continue;
      const std::string name = std::string(ggml_type_name(cache)) + " cache, ";
      compare_greedy(name + std::to_string(count) + " tokens", {.cache = cache}, prompt, count,
                     layers * count);
      compare_scores(name, cache, texts, expected);
    }
    compare_greedy("4 sequences in one cache, 64 tokens", {.context = 4096, .sequences = 4, .unified = true},
                   prompt, 64, layers * 64);
    compare_greedy("4 sequences in streams, 64 tokens", {.context = 4096, .sequences = 4, .unified = false},
                   prompt, 64, layers * 64);
    compare_contexts(prompt);
    compare_tolerance(texts, expected);
    std::printf("%s", backend_.summary().c_str());
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
    if (llama_model_n_swa(model_.get()) > 0)
      report(fast.first_kept() > 0, what + ": the ring of the windows has wrapped, its first token is " +
                                        std::to_string(fast.first_kept()));
  }

  /// Logits and perplexity. ggml's flash attention is handed keys and values of 16 bits at most, also of a
  /// cache of floats, and outside its tiles rounds queries, or sums of values, to what keys are stored as. So
  /// all are held against ggml's attention without it over a cache of floats: fastrope's over such a cache
  /// must be the same but for float's rounding, over others nearly as close as flash attention. gemma2's
  /// GELU, a table of float16 in ggml, makes float's rounding that of float16 here and there.
  void compare_scores(const std::string& name, ggml_type cache, const std::vector<Tokens>& texts,
                      const Scored& expected) {
    Session flash(backend_, model_.get(), {.cache = cache});
    Session fast(backend_, model_.get(), {.attention = Attention::fastrope, .cache = cache});
    const Scored of_flash = score(flash, texts), of_fast = score(fast, texts);
    const double off_flash = rms_difference(of_flash.logits, expected.logits);
    const double off_fast = rms_difference(of_fast.logits, expected.logits);
    const double largest = largest_difference(of_fast.logits, expected.logits);
    const bool same = llama_model_n_swa(model_.get()) > 0 ? off_fast <= 0.2 * off_flash : largest <= 1e-3;
    report(cache == GGML_TYPE_F32 ? same : off_fast <= 1.1 * off_flash,
           name + "logits of " + std::to_string(texts.size()) +
               " x 512 tokens: off ggml's attention of float by " + number(off_fast) +
               " in the root mean square, " + number(largest) + " at most; ggml's flash attention by " +
               number(off_flash) + ", " + number(largest_difference(of_flash.logits, expected.logits)));
    const Scored& by = cache == GGML_TYPE_F32 ? expected : of_flash;
    const double bound = cache == GGML_TYPE_F32 || cache == GGML_TYPE_F16 ? 1e-4 : 1e-3;  // 4 digits, or 3
    report(std::abs(of_fast.perplexity / by.perplexity - 1) < bound,
           name + "perplexity " + number(of_fast.perplexity) + ", by ggml's flash attention " +
               number(of_flash.perplexity) + ", by its attention of float " + number(expected.perplexity));
  }

  /// Two contexts that take turns, or run at once, give what one gives alone.
  void compare_contexts(const Tokens& prompt) {
    const Settings settings{.attention = Attention::fastrope};
    Session one(backend_, model_.get(), settings), other(backend_, model_.get(), settings);
    const Tokens alone = greedy(one, prompt, 1, 32)[0];
    Session* const sessions[] = {&one, &other};
    Tokens texts[2];
    for (int s = 0; s < 2; ++s) {
      sessions[s]->clear();
      texts[s] = sessions[s]->prompts({prompt});
    }
    for (int i = 1; i < 32; ++i)
      for (int s = 0; s < 2; ++s) {
        sessions[s]->add(texts[s].back(), static_cast<llama_pos>(prompt.size()) + i - 1, 0, true);
        sessions[s]->decode();
        texts[s].push_back(sessions[s]->best(0));
      }
    report(texts[0] == alone && texts[1] == alone, "two contexts in turns, 32 tokens");
    std::vector<std::thread> threads;
    for (int s = 0; s < 2; ++s)
      threads.emplace_back([&, s] { texts[s] = greedy(*sessions[s], prompt, 1, 32)[0]; });
    for (std::thread& thread : threads) thread.join();
    report(texts[0] == alone && texts[1] == alone, "two contexts at once, 32 tokens");
  }

  /// With a tolerance every head of the prompts is counted.
  void compare_tolerance(const std::vector<Tokens>& texts, const Scored& expected) {
    setenv("FASTROPE_TOLERANCE", "1e-3", 1);
    Session fast(backend_, model_.get(), {.attention = Attention::fastrope, .cache = GGML_TYPE_F32});
    unsetenv("FASTROPE_TOLERANCE");
    const fastrope_ggml_stats before = backend_.stats();
    const Scored of_fast = score(fast, texts);
    const fastrope_ggml_stats s = backend_.stats();
    const int64_t approximate = s.polynomial - before.polynomial + s.toeplitz - before.toeplitz;
    const int64_t counted = approximate + s.exact - before.exact;
    const int64_t heads = llama_model_n_layer(model_.get()) * llama_model_n_head(model_.get());
    report(
        counted == heads * std::ssize(texts) && std::abs(of_fast.perplexity / expected.perplexity - 1) < 1e-3,
        "tolerance 1e-3, perplexity " + number(of_fast.perplexity) + ", " + std::to_string(approximate) +
            " of " + std::to_string(counted) + " heads approximate");
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

/// Seconds of the three ways, in the order of Attention, and of fastrope's operations alone.
struct Times {
  std::array<double, 3> all = {};
  double own = 0;

  /// The share of a way's time that is attention: all else is the same in each of them.
  double share(size_t way) const { return 1 - (all[2] - own) / all[way]; }
  /// How many times as fast fastrope's operations are as those of a way.
  double operations(size_t way) const { return all[way] * share(way) / own; }
};

/// What was measured at a depth, of several rounds.
struct AtDepth {
  uint32_t depth;
  std::vector<Times> prompts = {}, steps = {};

  void print(int threads) const {
    const auto of = [](const std::vector<Times>& rounds, const std::function<double(const Times&)>& f) {
      std::vector<double> x;
      for (const Times& times : rounds) x.push_back(f(times));
      return median(x);
    };
    std::printf("| %d | %u |", threads, depth);
    for (size_t way = 0; way < 3; ++way)
      std::printf(" %.0f / %.2f |", depth / of(prompts, [&](const Times& t) { return t.all[way]; }),
                  1e3 * of(steps, [&](const Times& t) { return t.all[way]; }));
    for (const std::vector<Times>* rounds : {&prompts, &steps})
      std::printf(" %.2f |", of(*rounds, [](const Times& t) { return t.all[1] / t.all[2]; }));
    std::printf(" ");
    for (size_t way = 0; way < 3; ++way)
      std::printf("%s%.0f", way > 0 ? ", " : "",
                  of(prompts, [&](const Times& t) { return 100 * t.share(way); }));
    std::printf(" %% | %.1f |\n", of(prompts, [](const Times& t) { return t.operations(1); }));
  }
};

/// A line of the table for each depth and number of threads.
void bench(const char* library, const char* path, std::vector<uint32_t> depths) {
  const Backend backend(library);
  const Model model(llama_model_load_from_file(path, llama_model_default_params()));
  if (!model) throw std::runtime_error(std::string("cannot load ") + path);
  std::ranges::sort(depths);
  const Tokens prompt =
      random_tokens(llama_vocab_n_tokens(llama_model_get_vocab(model.get())), depths.back());
  std::printf("| threads | depth |");
  for (const char* name : kNames) std::printf(" %s |", name);
  std::printf(" flash over fastrope: prompt | token | attention's share of prompts | its operations |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|\n");
  for (const int threads : {1, 2}) {
    std::vector<std::unique_ptr<Session>> ways;
    for (const Attention way : {Attention::plain, Attention::flash, Attention::fastrope})
      ways.push_back(std::make_unique<Session>(
          backend, model.get(),
          Settings{.attention = way, .context = depths.back() + 256, .threads = threads}));
    const auto in_turns = [&](Times& times, const std::function<void(Session&)>& f) {
      for (size_t way = 0; way < 3; ++way) {
        const double before = backend.stats().seconds;
        times.all[way] += seconds_of([&] { f(*ways[way]); });
        times.own += backend.stats().seconds - before;  // of fastrope's
      }
    };
    std::vector<AtDepth> table;
    for (const uint32_t depth : depths) table.push_back({depth});
    const auto rounds_of = [](uint32_t depth) { return depth <= 512 ? 7 : depth <= 4096 ? 3 : 1; };
    for (int round = 0; round < rounds_of(depths.front()); ++round) {
      for (const auto& way : ways) way->clear();
      Times times;
      uint32_t done = 0;
      for (AtDepth& at : table) {
        if (round >= rounds_of(at.depth)) break;
        while (done < at.depth) {
          const uint32_t end = std::min(done + 512, at.depth);
          in_turns(times, [&](Session& session) { session.continue_prompt(prompt, done, end); });
          done = end;
        }
        at.prompts.push_back(times);
        for (int step = 0; step < 16; ++step) {
          Times& step_times = at.steps.emplace_back();
          in_turns(step_times, [&](Session& session) {
            session.add(prompt[0], static_cast<llama_pos>(at.depth) + step, 0, true);
            session.decode();
          });
        }
        for (const auto& way : ways) way->forget_after(static_cast<llama_pos>(at.depth));
      }
    }
    for (const AtDepth& at : table) at.print(threads);
  }
  std::printf("%s", backend.summary().c_str());
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
      if (depths.empty()) depths = {512, 4096, 16384, 32768};
      return bench(argv[2], argv[3], depths), 0;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "compare: %s\n", error.what());
    return 1;
  }
  std::fprintf(stderr, "usage: compare check|bench libfastrope_ggml.so model.gguf [depth ..]\n");
  return 2;
}
