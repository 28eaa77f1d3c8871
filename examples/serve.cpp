// An engine that serves many requests at once: texts join and leave a running batch, their keys and values
// lie in pages of one pool, long prompts come in chunks, and where a text goes on as others did, a tree of
// drafted tokens is checked in one step. Attention of a step is one batch: prompts, single tokens and trees.
//
//     serve [CHECKPOINT TOKENIZER] [--requests N] [--tokens N] [--together N] [--pages N] [--drafts N]
//           [--threads N] [--bf16] [--show]
//
// A checkpoint and a tokenizer are llama2.c's; without them the weights and the prompts are random. The same
// requests are served one at a time, together, and together with drafts; every text is then checked: its
// tokens are those that the model finds likeliest when it reads the text alone.
#include <Eigen/Core>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <fastrope/fastrope.hpp>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "llama2/checkpoint.hpp"
#include "llama2/network.hpp"
#include "llama2/tokenizer.hpp"
#include "serve/cache.hpp"
#include "serve/drafts.hpp"

namespace {

using fastrope::Index;
using fastrope::TensorView;
using llama2::Matrix;
using llama2::Token;

/// The most new tokens of a step: what is left of it by texts that are written goes to prompts.
constexpr Index kStepTokens = 256;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// A request: its prompt, then what was written. All but the last of its tokens may be cached.
struct Request {
  std::vector<Token> text;
  Index prompt = 0;  // tokens
  Index most = 0;    // tokens that the text may have
  serve::CachedText cached = {};

  Index length() const { return static_cast<Index>(text.size()); }
  bool writes() const { return cached.rows + 1 == length(); }
  bool done() const {
    return length() >= most ||
           (length() > prompt && (text.back() == llama2::kEos || text.back() == llama2::kBos));
  }
};

/// What a step takes of a request: a chunk of its prompt, or its last token and drafts.
struct Part {
  Request* request;
  Index count;
  std::optional<serve::Tree> tree = {};
  std::vector<fastrope::Position> query_positions = {}, key_positions = {};  // of a tree
  fastrope::RowRanges ranges = {};                                           // of a tree

  Index cached() const { return request->cached.rows; }
  bool reads_on() const { return !tree && cached() + count < request->length(); }

  /// Its options beside those of the batch: a tree's tokens see the text, their ancestors and themselves, and
  /// stand as far behind the text as they are deep.
  fastrope::SequenceOptions options() {
    if (!tree || count == 1) return {};
    key_positions.resize(static_cast<std::size_t>(cached() + count));
    std::iota(key_positions.begin(), key_positions.end(), fastrope::Position{0});
    for (Index t = 0; t < count; ++t)
      key_positions[static_cast<std::size_t>(cached() + t)] =
          cached() + tree->depths[static_cast<std::size_t>(t)];
    query_positions.assign(key_positions.end() - count, key_positions.end());
    ranges = fastrope::RowRanges::tree(cached(), tree->parents);
    return {.queries = query_positions, .keys = key_positions, .key_ranges = ranges};
  }
};

/// What serving took.
struct Counts {
  Index steps = 0, read = 0, written = 0, drafted = 0, accepted = 0, preempted = 0, most_pages = 0;
  double seconds = 0, attention = 0;
};

struct Limits {
  Index together;  // requests in the batch
  Index pages;     // of the pool
  Index drafts;    // tokens of a tree beside the certain one
};

/// T: what keys and values are stored as.
template <class T>
class Engine {
 public:
  Engine(const llama2::Network& network, const fastrope::Options& options, const Limits& limits)
      : network_(network),
        options_(options),
        limits_(limits),
        cache_(network.config().layers, network.config().kv_heads, network.config().head_size(),
               limits.pages) {}

  /// Writes all texts to their ends.
  Counts serve(std::vector<Request>& requests) {
    const double start = now();
    for (Request& request : requests) {
      if (request.most > cache_.pages() * cache_.kPageRows)
        throw std::runtime_error("a text of " + std::to_string(request.most) +
                                 " tokens needs more than the pool's " + std::to_string(cache_.pages()) +
                                 " pages");
      waiting_.push_back(&request);
    }
    while (!waiting_.empty() || !running_.empty()) {
      admit();
      step();
      if (++counts_.steps % 20 == 0)
        std::fprintf(stderr, "\r%td waiting, %td in the batch, %td tokens written, %td of %td pages  ",
                     std::ssize(waiting_), std::ssize(running_), counts_.written, cache_.used(),
                     cache_.pages());
    }
    std::fprintf(stderr, "\r%70s\r", "");
    counts_.seconds = now() - start;
    return counts_;
  }

 private:
  /// Requests that wait join the batch while there is room, and pages for all that they have by now.
  void admit() {
    while (!waiting_.empty() && std::ssize(running_) < limits_.together) {
      Request& next = *waiting_.front();
      if (!cache_.reserve(next.cached, next.length())) break;
      running_.push_back(&next);
      waiting_.pop_front();
    }
  }

  /// The parts of the next step, texts that are written first. A text that finds no page sends the one that
  /// came last back to wait.
  std::vector<Part> choose() {
    std::vector<Part> parts;
    Index left = kStepTokens;
    for (const bool writing : {true, false})
      for (std::size_t r = 0; r < running_.size() && left > 0; ++r) {
        Request& request = *running_[r];
        if (request.writes() != writing) continue;
        Part part{&request, std::min(left, request.length() - request.cached.rows)};
        if (writing) {
          part.tree = draft(request, std::min(left, 1 + limits_.drafts));
          part.count = part.tree->size();
        }
        while (!cache_.reserve(request.cached, request.cached.rows + part.count))
          if (!preempt(request, parts)) return parts;
        left -= part.count;
        parts.push_back(std::move(part));
      }
    return parts;
  }

  serve::Tree draft(const Request& request, Index most) const {
    const Index n = request.length();
    const Token before = n > 1 ? request.text[static_cast<std::size_t>(n - 2)] : llama2::kBos;
    return drafter_.draft(before, request.text.back(), std::min(most, request.most - n));
  }

  /// Sends the request that came last back to wait, without its pages. False, and the step goes without them,
  /// where it is the one that asks: others are done some time.
  bool preempt(Request& asks, std::vector<Part>& parts) {
    Request* last = running_.back();
    running_.pop_back();
    cache_.release(last->cached);
    waiting_.push_front(last);
    std::erase_if(parts, [&](const Part& part) { return part.request == last; });
    ++counts_.preempted;
    return last != &asks;
  }

  void step() {
    std::vector<Part> parts = choose();
    std::vector<Token> tokens;
    for (const Part& part : parts) {
      const Token* from = part.tree ? part.tree->tokens.data() : part.request->text.data() + part.cached();
      tokens.insert(tokens.end(), from, from + part.count);
    }
    if (tokens.empty()) return;
    counts_.most_pages = std::max(counts_.most_pages, cache_.used());
    const Matrix states = forward(tokens, parts);

    // Only the last token of a prompt and those of a tree are asked what follows.
    std::vector<Index> rows;
    Index begin = 0;
    for (const Part& part : parts) {
      for (Index t = part.tree ? 0 : part.count - 1; t < part.count && !part.reads_on(); ++t)
        rows.push_back(begin + t);
      begin += part.count;
    }
    const Matrix logits = network_.logits(states(rows, Eigen::all));
    begin = 0;
    for (Part& part : parts) {
      if (!part.tree) counts_.read += part.count;
      if (part.reads_on()) {
        part.request->cached.rows += part.count;
        continue;
      }
      const Index asked = part.tree ? part.count : 1;
      accept(part, logits.middleRows(begin, asked));
      begin += asked;
    }
    std::erase_if(running_, [&](Request* request) {
      if (request->done()) cache_.release(request->cached);
      return request->done();
    });
  }

  /// The states of all parts' tokens, whose keys and values are then cached.
  Matrix forward(const std::vector<Token>& tokens, std::vector<Part>& parts) {
    const llama2::Config& c = network_.config();
    const Index d = c.head_size();
    std::vector<fastrope::Shapes> shapes;
    std::vector<fastrope::SequenceOptions> own;
    for (Part& part : parts) {
      shapes.push_back({c.heads, c.kv_heads, part.count, part.cached() + part.count, d, d});
      own.push_back(part.options());
    }
    const fastrope::BatchPlan<float> plan(shapes, options_, own);  // for all layers
    workspace_.resize(std::max(workspace_.size(), plan.workspace_bytes()));

    std::vector<fastrope::SequenceViews<float, typename serve::PagedCache<T>::View>> views;
    return network_.states(
        tokens, [&](std::size_t layer, const Matrix& q, const Matrix& k, const Matrix& v, Matrix& mixed) {
          const double start = now();
          views.clear();
          Index begin = 0;
          for (const Part& part : parts) {
            const serve::CachedText& cached = part.request->cached;
            const Index n_k = part.cached() + part.count;
            for (Index t = 0; t < part.count; ++t)
              cache_.store(layer, cached, part.cached() + t, &k(begin + t, 0), &v(begin + t, 0));
            views.push_back({{&q(begin, 0), c.heads, part.count, d, d, c.dim},
                             cache_.keys(layer, cached, n_k),
                             cache_.values(layer, cached, n_k),
                             {&mixed(begin, 0), c.heads, part.count, d, d, c.dim}});
            begin += part.count;
          }
          if (plan.run(views, workspace_) != fastrope::RunStatus::ok)
            throw std::runtime_error("the batch failed");
          counts_.attention += now() - start;
        });
  }

  /// Appends what follows by logits [asked, vocab]: a token, and as many more as the tree had guessed, whose
  /// keys and values move to where they belong.
  void accept(Part& part, const Eigen::Ref<const Matrix>& logits) {
    Request& request = *part.request;
    const Index first = part.cached();
    if (!part.tree) request.cached.rows += part.count - 1;
    for (Index node = 0; node >= 0 && !request.done();) {
      if (const Index from = first + node; part.tree && from != request.cached.rows)
        cache_.move(request.cached, from, request.cached.rows);
      ++request.cached.rows;
      Index token = 0;
      logits.row(node).maxCoeff(&token);
      write(request, static_cast<Token>(token));
      node = part.tree ? part.tree->child(node, static_cast<Token>(token)) : -1;
      if (node >= 0 && !request.done()) ++counts_.accepted;
    }
    if (part.tree) counts_.drafted += part.count - 1;
  }

  void write(Request& request, Token token) {
    const Index n = request.length();
    if (n > 1) drafter_.learn(request.text[static_cast<std::size_t>(n - 2)], request.text.back(), token);
    request.text.push_back(token);
    ++counts_.written;
  }

  const llama2::Network& network_;
  fastrope::Options options_;
  Limits limits_;
  serve::PagedCache<T> cache_;
  serve::Drafter drafter_;
  std::deque<Request*> waiting_;
  std::vector<Request*> running_;  // in the order in which they came
  std::vector<std::byte> workspace_;
  Counts counts_;
};

/// How far below the likeliest token, at most, one that was written is when the text is read alone. 0 but for
/// rounding.
double shortfall(const llama2::Network& network, const fastrope::Options& options, const Request& request) {
  const llama2::Config& c = network.config();
  const auto rows = [&](const Matrix& x, Index heads) {
    return TensorView<const float>(x.data(), heads, x.rows(), c.head_size(), c.head_size(), x.cols());
  };
  const auto attend = [&](std::size_t, const Matrix& q, const Matrix& k, const Matrix& v, Matrix& mixed) {
    const TensorView<float> out(mixed.data(), c.heads, q.rows(), c.head_size(), c.head_size(), c.dim);
    fastrope::attend(rows(q, c.heads), rows(k, c.kv_heads), rows(v, c.kv_heads), out, options);
  };
  const Matrix logits = network.logits(network.states(request.text, attend));
  double most = 0;
  for (Index i = request.prompt; i < request.length(); ++i) {
    const auto before = logits.row(i - 1);
    most = std::max<double>(most, before.maxCoeff() - before(request.text[static_cast<std::size_t>(i)]));
  }
  return most;
}

llama2::Checkpoint random_checkpoint() {
  llama2::Checkpoint c;
  c.config = {.dim = 256,
              .hidden_dim = 512,
              .layers = 4,
              .heads = 8,
              .kv_heads = 2,
              .vocab_size = 1024,
              .context = 2048};
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto matrix = [&](Index rows, Index cols) -> Matrix {
    const float size = 1 / std::sqrt(static_cast<float>(cols));
    return Matrix::NullaryExpr(rows, cols, [&] { return size * normal(random); });
  };
  const llama2::Config& s = c.config;
  const llama2::RowVector ones = llama2::RowVector::Ones(s.dim);
  c.embedding = matrix(s.vocab_size, s.dim);
  for (Index i = 0; i < s.layers; ++i)
    c.layers.push_back({ones, matrix(s.dim, s.dim), matrix(s.kv_dim(), s.dim), matrix(s.kv_dim(), s.dim),
                        matrix(s.dim, s.dim), ones, matrix(s.hidden_dim, s.dim), matrix(s.dim, s.hidden_dim),
                        matrix(s.hidden_dim, s.dim)});
  c.rms_final = ones;
  c.own_classifier = matrix(s.vocab_size, s.dim);
  return c;
}

/// Prompts of different lengths: openings of stories, or random tokens.
std::vector<Request> make_requests(const llama2::Tokenizer* tokenizer, const llama2::Config& config,
                                   Index count, Index tokens) {
  constexpr const char* kNames[] = {"Lily", "Tom", "Ben", "Sue", "Max", "Anna"};
  constexpr const char* kOpenings[] = {"Once upon a time, there was a little child named ",
                                       "One day, a big dog met ",
                                       "It was a sunny day. All animals of the forest came to see a cat. The "
                                       "cat had a red ball, a blue hat and a "
                                       "friend with a long name, which was "};
  std::mt19937 random(7);
  std::vector<Request> requests;
  for (Index r = 0; r < count; ++r) {
    Request request;
    if (tokenizer != nullptr) {
      request.text = tokenizer->encode(std::string(kOpenings[r % 3]) + kNames[r % 6]);
    } else {
      request.text.assign(static_cast<std::size_t>(10 + random() % 500), llama2::kBos);
      for (Token& token : request.text)
        token = static_cast<Token>(3 + random() % static_cast<unsigned>(config.vocab_size - 3));
    }
    request.prompt = request.length();
    request.most =
        std::min(config.context, request.prompt + tokens / 2 + static_cast<Index>(random()) % tokens);
    requests.push_back(std::move(request));
  }
  return requests;
}

struct Arguments {
  std::vector<std::string> files;
  Index requests = 24, tokens = 160, together = 16, pages = 400, drafts = 7, threads = 1;
  bool bf16 = false, show = false;
};

Arguments parse(int count, char** words) {
  Arguments a;
  for (int i = 1; i < count; ++i) {
    const std::string_view word = words[i];
    const auto number = [&](Index least) {
      const std::string_view text = ++i < count ? words[i] : "";
      Index value = 0;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
      if (error != std::errc{} || end != text.data() + text.size() || value < least)
        throw std::runtime_error(std::string(word) + " needs a number of at least " + std::to_string(least));
      return value;
    };
    if (word == "--requests")
      a.requests = number(1);
    else if (word == "--tokens")
      a.tokens = number(1);
    else if (word == "--together")
      a.together = number(1);
    else if (word == "--pages")
      a.pages = number(1);
    else if (word == "--drafts")
      a.drafts = number(0);
    else if (word == "--threads")
      a.threads = number(1);
    else if (word == "--bf16")
      a.bf16 = true;
    else if (word == "--show")
      a.show = true;
    else if (word.starts_with("-"))
      throw std::runtime_error("unknown option " + std::string(word));
    else
      a.files.emplace_back(word);
  }
  if (!a.files.empty() && a.files.size() != 2)
    throw std::runtime_error("a checkpoint goes with a tokenizer, and nothing else");
  return a;
}

/// Serves the requests in three ways and prints a table. Whether every text is the model's.
template <class T>
bool run(const Arguments& a) {
  std::unique_ptr<llama2::Tokenizer> tokenizer;
  if (!a.files.empty()) tokenizer = std::make_unique<llama2::Tokenizer>(a.files[1]);
  const llama2::Network network(a.files.empty() ? random_checkpoint() : llama2::load_checkpoint(a.files[0]));
  const fastrope::Options options{.rope = fastrope::Rope{.pairing = fastrope::RopePairing::interleaved},
                                  .mask = fastrope::Mask::causal(),
                                  .executor = fastrope::Executor::openmp(a.threads)};
  Eigen::setNbThreads(static_cast<int>(a.threads));
  // Read alone, a text has logits that differ by rounding; cached in bfloat16, by that of its keys and
  // values.
  const double allowed = std::is_same_v<T, float> ? 1e-3 : 0.5;

  std::printf("%-16s %6s %8s %9s %10s %9s %9s %6s %9s\n", "", "steps", "written", "tokens/s", "attention",
              "drafted", "accepted", "pages", "preempted");
  struct Way {
    const char* name;
    Limits limits;
  };
  bool good = true;
  for (const auto& [name, limits] :
       {Way{"one at a time", {1, a.pages, 0}}, Way{"together", {a.together, a.pages, 0}},
        Way{"with drafts", {a.together, a.pages, a.drafts}}}) {
    std::vector<Request> requests = make_requests(tokenizer.get(), network.config(), a.requests, a.tokens);
    const Counts c = Engine<T>(network, options, limits).serve(requests);
    std::printf("%-16s %6td %8td %9.0f %9.0f%% %9td %9td %6td %9td\n", name, c.steps, c.written,
                static_cast<double>(c.written) / c.seconds, 100 * c.attention / c.seconds, c.drafted,
                c.accepted, c.most_pages, c.preempted);
    std::fflush(stdout);
    double most = 0;
    for (const Request& request : requests) most = std::max(most, shortfall(network, options, request));
    if (most > allowed) std::printf("a token is %g below the likeliest\n", most);
    good = good && most <= allowed;
    if (a.show && tokenizer && limits.drafts > 0)
      for (const Request& request : requests) std::printf("\n%s\n", tokenizer->decode(request.text).c_str());
  }
  return good;
}

}  // namespace

int main(int count, char** words) try {
  const Arguments a = parse(count, words);
  return (a.bf16 ? run<fastrope::bfloat16>(a) : run<float>(a)) ? EXIT_SUCCESS : EXIT_FAILURE;
} catch (const std::exception& error) {
  std::fprintf(stderr, "serve: %s\n", error.what());
  return EXIT_FAILURE;
}
