// Softmax without a cache: a million tokens of bounded entries by a state, beside the exact cache.
//
//     build/release/bench/bounded_states [tokens (1000000)]
//
// One head of d = 8, d_v = 8, every |x| <= 2, tolerance 1e-2, in steps. At each power of ten from 10^4 on:
// resident memory, which does not grow; microseconds a step, of the thread's own time; the largest error of
// some rows against softmax in double over all tokens before them, beside what was promised of those and of
// all; and a step of the exact path over a float cache of as many tokens, made when the rest is done.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fastrope/fastrope.hpp>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using fastrope::Index;

constexpr Index kDim = 8;
constexpr double kRadius = 2, kTolerance = 1e-2;

double thread_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Resident megabytes.
double resident() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmRSS:", 0) == 0) return std::stod(line.substr(6)) / 1024;
  return 0;
}

/// Rows of token i, made from its number, so that nothing need be kept: q and k of a length that makes |x| up
/// to the radius, v in [-1, 1].
struct Token {
  float q[kDim], k[kDim], v[kDim];

  explicit Token(Index i) {
    std::uint64_t state = static_cast<std::uint64_t>(i) * 0x9e3779b97f4a7c15u;
    const auto uniform = [&] {  // splitmix64
      std::uint64_t z = state += 0x9e3779b97f4a7c15u;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      return static_cast<float>(static_cast<double>(z ^ (z >> 31)) * 0x1p-63 - 1);
    };
    for (float* x : {q, k, v})
      for (Index c = 0; c < kDim; ++c) x[c] = uniform();
    // At the scale 1.
    for (float* x : {q, k}) {
      float square = 0;
      for (Index c = 0; c < kDim; ++c) square += x[c] * x[c];
      for (Index c = 0; c < kDim; ++c) x[c] *= 0.99999F * std::sqrt(static_cast<float>(kRadius) / square);
    }
  }
  static auto row(const float* x) { return fastrope::contiguous(x, 1, 1, kDim); }
};

/// max |out - softmax over tokens 0 .. i| / max|V|, in double.
double error_of(Index i, const float* out) {
  const Token query(i);
  double sum = 0, sums[kDim] = {};
  for (Index j = 0; j <= i; ++j) {
    const Token key(j);
    double x = 0;
    for (Index c = 0; c < kDim; ++c) x += static_cast<double>(query.q[c]) * static_cast<double>(key.k[c]);
    const double weight = std::exp(x);
    sum += weight;
    for (Index c = 0; c < kDim; ++c) sums[c] += weight * static_cast<double>(key.v[c]);
  }
  double error = 0;
  for (Index c = 0; c < kDim; ++c)
    error = std::max(error, std::abs(static_cast<double>(out[c]) - sums[c] / sum));
  return error;
}

/// Microseconds of a step over a cache of n tokens.
double cached_step(Index n) {
  std::vector<float> k, v;
  for (Index j = 0; j < n; ++j) {
    const Token token(j);
    k.insert(k.end(), token.k, token.k + kDim);
    v.insert(v.end(), token.v, token.v + kDim);
  }
  const Token query(n);
  float out[kDim];
  const auto plan =
      fastrope::make_plan<float>({1, 1, 1, n, kDim, kDim}, {.mask = fastrope::Mask::causal(), .scale = 1.0});
  std::vector<std::byte> workspace(plan.workspace_bytes());
  std::vector<double> seconds;
  for (int run = 0; run < 21; ++run) {
    const double start = thread_seconds();
    plan.run(Token::row(query.q), fastrope::contiguous(std::as_const(k).data(), 1, n, kDim),
             fastrope::contiguous(std::as_const(v).data(), 1, n, kDim), fastrope::contiguous(out, 1, 1, kDim),
             workspace);
    seconds.push_back(thread_seconds() - start);
  }
  std::nth_element(seconds.begin(), seconds.begin() + 10, seconds.end());
  return seconds[10] * 1e6;
}

}  // namespace

int main(int argc, char** argv) try {
  const Index tokens = argc > 1 ? std::stol(argv[1]) : 1000000;
  constexpr Index kChecked = 8;  // rows before each mark
  fastrope::Options options{.mask = fastrope::Mask::causal(), .scale = 1.0, .tolerance = kTolerance};
  fastrope::RecurrentAttention<float> sequence(1, 1, kDim, kDim, options, kRadius);
  std::printf("d %td, radius %g, tolerance %g: rank %td, promised of every row %.2e\n", kDim, kRadius,
              kTolerance, sequence.rank(), sequence.error_bound());
  std::printf("%8s %9s %9s %10s %10s\n", "tokens", "RSS, MB", "step, us", "error", "promised");
  double seconds = 0, error = 0, bound = 0;
  Index mark = 10000, before = 0;
  for (Index i = 0; i < tokens; ++i) {
    const Token token(i);
    float out[kDim];
    const double start = thread_seconds();
    if (sequence.step(Token::row(token.q), Token::row(token.k), Token::row(token.v),
                      fastrope::contiguous(out, 1, 1, kDim)) != fastrope::RunStatus::ok)
      throw std::runtime_error("token " + std::to_string(i) + " was refused");
    seconds += thread_seconds() - start;
    if (i >= mark - kChecked) {
      error = std::max(error, error_of(i, out));
      bound = std::max(bound, sequence.row_bounds()(0, 0));
    }
    if (i + 1 != mark) continue;
    std::printf("%8td %9.1f %9.2f %10.2e %10.2e\n", mark, resident(),
                seconds / static_cast<double>(mark - before) * 1e6, error, bound);
    std::fflush(stdout);
    if (!(error <= bound) || !(bound <= kTolerance)) throw std::runtime_error("a promise is broken");
    seconds = error = bound = 0;
    before = mark;
    mark *= 10;
  }
  for (Index n = 10000; n <= tokens; n *= 10)
    std::printf("%8td tokens in a cache: %9.2f us a step\n", n, cached_step(n));
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "bounded_states: %s\n", error.what());
  return EXIT_FAILURE;
}
