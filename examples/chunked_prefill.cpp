// A long prompt in chunks over a growing cache: every chunk is planned, and runs in the path that is cheapest
// for it.
//
//     chunked_prefill [tokens] [chunk] [threads]
//
// Queries and keys are short, so that scores are bounded, and an error of 1e-2 of max|V| is allowed. Progress
// goes to the standard error, the summary to the standard output: times, the paths of all heads and chunks,
// and the error of some rows against the exact path.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fastrope/fastrope.hpp>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using fastrope::Index;
using fastrope::TensorView;

constexpr Index kHeads = 4, kKvHeads = 2, kDim = 8;
constexpr double kTolerance = 1e-2;

/// Counts of paths, as "exact 4, polynomial 12".
using Paths = std::map<std::string, Index>;
std::string text_of(const Paths& paths) {
  std::string text;
  for (const auto& [path, count] : paths)
    text += (text.empty() ? "" : ", ") + path + ' ' + std::to_string(count);
  return text;
}

Paths paths_of(const fastrope::Report& report) {
  Paths paths;
  for (const fastrope::HeadReport& head : report.heads) ++paths[to_string(head.path)];
  return paths;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void show_progress(Index done, Index tokens, double seconds, const Paths& paths) {
  const double rate = static_cast<double>(done) / seconds;
  std::fprintf(stderr, "\r%3.0f%%  %td of %td tokens, %.0f tokens/s, %.1f s left, %s    ",
               100 * static_cast<double>(done) / static_cast<double>(tokens), done, tokens, rate,
               static_cast<double>(tokens - done) / rate, text_of(paths).c_str());
}

/// [tokens, heads, d], a token's heads side by side.
struct Tensor {
  Index heads;
  std::vector<float> data;

  Tensor(Index tokens, Index h) : heads(h), data(static_cast<std::size_t>(tokens * h * kDim)) {}

  TensorView<float> rows(Index begin, Index end) {
    return {data.data() + begin * heads * kDim, heads, end - begin, kDim, kDim, heads * kDim};
  }
};

void run(Index tokens, Index chunk, Index threads) {
  Tensor q(tokens, kHeads), k(tokens, kKvHeads), v(tokens, kKvHeads), out(tokens, kHeads);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (auto* x : {&q, &k})
    for (float& e : x->data) e = 0.5f * normal(random);
  for (float& e : v.data) e = normal(random);

  fastrope::Options options;
  options.rope = fastrope::Rope{};
  options.mask = fastrope::Mask::causal();
  options.tolerance = kTolerance;
  options.executor = threads > 1 ? fastrope::Executor::openmp(threads) : fastrope::Executor::serial();

  std::vector<std::byte> workspace;
  fastrope::CacheBounds<float> bounds;  // a chunk is planned from its own tokens
  Paths total;
  double planning = 0;
  const double start = now();
  for (Index begin = 0; begin < tokens; begin += chunk) {
    const Index end = std::min(begin + chunk, tokens);
    const auto queries = q.rows(begin, end), keys = k.rows(0, end), values = v.rows(0, end);
    const double before = now();
    const auto plan = fastrope::make_plan(queries, keys, values, options, bounds);
    planning += now() - before;
    if (plan.workspace_bytes() > workspace.size()) workspace.resize(plan.workspace_bytes());
    if (plan.run(queries, keys, values, out.rows(begin, end), workspace) != fastrope::RunStatus::ok)
      throw std::runtime_error("the chunk from token " + std::to_string(begin) + " failed");
    const Paths paths = paths_of(plan.report());
    for (const auto& [path, count] : paths) total[path] += count;
    show_progress(end, tokens, now() - start, paths);
  }
  std::fputc('\n', stderr);
  const double seconds = now() - start;

  double error = 0, largest = 0;
  options.tolerance = 0;
  for (Index sample = 0; sample < 8; ++sample) {
    const Index i = sample * (tokens - 1) / 7;
    Tensor exact(1, kHeads);
    fastrope::attend(q.rows(i, i + 1), k.rows(0, i + 1), v.rows(0, i + 1), exact.rows(0, 1), options);
    for (Index c = 0; c < kHeads * kDim; ++c)
      error = std::max<double>(error, std::abs(exact.data[c] - out.data[i * kHeads * kDim + c]));
  }
  for (float e : v.data) largest = std::max<double>(largest, std::abs(e));
  std::printf("%td tokens in chunks of %td: %.2f s, of which planning %.2f s; %zu MB of workspace\n", tokens,
              chunk, seconds, planning, workspace.size() >> 20);
  std::printf("paths of heads and chunks: %s\n", text_of(total).c_str());
  std::printf("error over max|V| in 8 rows: %.1e, allowed %.0e\n", error / largest, kTolerance);
  if (error > kTolerance * largest) throw std::runtime_error("the error is larger than allowed");
}

}  // namespace

int main(int argc, char** argv) try {
  const auto argument = [&](int i, Index value) {
    return argc > i ? std::max<Index>(1, std::atoll(argv[i])) : value;
  };
  run(argument(1, 65536), argument(2, 2048), argument(3, 1));
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "chunked_prefill: %s\n", error.what());
  return EXIT_FAILURE;
}
