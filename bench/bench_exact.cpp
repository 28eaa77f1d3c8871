// The exact path against its ceilings: the share of the multiply-add peak for prompts, of the read bandwidth
// for decoding.
//
//     build/release/bench/bench_exact [--benchmark_filter=...]
//
// of_peak: flops that attention defines, 2 (d + d_v) for each allowed pair, over the peak of a register-only
// loop of fp32 multiply-adds that is timed before and after every run (the clock of a shared machine
// wanders); bf16, all of q, k, v and out, is above 1 where the hardware multiplies bfloat16 faster.
// of_bandwidth: bytes of K and V, each once, over a read loop's bytes per second, timed likewise. error: max
// |out - reference| / max|V| over 8 rows, the reference in double precision. Runs are planned once and
// allocate nothing; packing and rotation are included.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fastrope/fastrope.hpp>
#include <random>
#include <string>
#include <vector>

#include "ceilings.hpp"

namespace {

using fastrope::bfloat16;
using fastrope::contiguous;
using fastrope::Index;
using fastrope::Mask;

struct Case {
  std::string name;
  fastrope::Shapes shapes;
  bool causal = false;
  bool rope = false;
  Index threads = 1;
};

template <class T>
std::vector<T> gaussian(Index count, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& x : values) x = static_cast<T>(normal(random));
  return values;
}

template <class Query, class Key>
struct Inputs {
  fastrope::Shapes s;
  std::vector<Query> q, out;
  std::vector<Key> k, v;

  explicit Inputs(const fastrope::Shapes& shapes)
      : s(shapes),
        q(gaussian<Query>(s.heads * s.n_q * s.d, 1)),
        out(static_cast<std::size_t>(s.heads * s.n_q * s.d_v)),
        k(gaussian<Key>(s.kv_heads * s.n_k * s.d, 2)),
        v(gaussian<Key>(s.kv_heads * s.n_k * s.d_v, 3)) {}

  /// Row x of d values at a position, turned as RoPE with base 10000 and interleaved pairs turns it.
  template <class T>
  std::vector<double> row(const std::vector<T>& x, Index index, Index position, bool rope) const {
    std::vector<double> y(x.begin() + index * s.d, x.begin() + (index + 1) * s.d);
    for (std::size_t m = 0; rope && m + 1 < y.size(); m += 2) {
      const double angle =
          static_cast<double>(position) * std::pow(1e4, -static_cast<double>(m) / static_cast<double>(s.d));
      const double a = y[m], b = y[m + 1];
      y[m] = a * std::cos(angle) - b * std::sin(angle);
      y[m + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
    return y;
  }

  /// max |out - reference| / max|V| over 8 rows of the last head.
  double error(const Case& c) const {
    const Index h = s.heads - 1, kv = s.kv_heads - 1;
    double worst = 0, largest = 0;
    for (const Key& x : v) largest = std::max(largest, std::abs(static_cast<double>(x)));
    for (Index sample = 0; sample < std::min<Index>(8, s.n_q); ++sample) {
      const Index i = s.n_q == 1 ? 0 : sample * (s.n_q - 1) / 7, position = s.n_k - s.n_q + i;
      const std::vector<double> query = row(q, h * s.n_q + i, position, c.rope);
      std::vector<double> x, mean(static_cast<std::size_t>(s.d_v));
      for (Index j = 0; j < (c.causal ? position + 1 : s.n_k); ++j) {
        const std::vector<double> key = row(k, kv * s.n_k + j, j, c.rope);
        double dot = 0;
        for (std::size_t e = 0; e < key.size(); ++e) dot += query[e] * key[e];
        x.push_back(dot / std::sqrt(static_cast<double>(s.d)));
      }
      const double top = *std::max_element(x.begin(), x.end());
      double sum = 0;
      for (std::size_t j = 0; j < x.size(); ++j) {
        const double weight = std::exp(x[j] - top);
        sum += weight;
        for (Index e = 0; e < s.d_v; ++e)
          mean[static_cast<std::size_t>(e)] +=
              weight * static_cast<double>(
                           v[static_cast<std::size_t>((kv * s.n_k + static_cast<Index>(j)) * s.d_v + e)]);
      }
      for (Index e = 0; e < s.d_v; ++e)
        worst = std::max(
            worst, std::abs(mean[static_cast<std::size_t>(e)] / sum -
                            static_cast<double>(out[static_cast<std::size_t>((h * s.n_q + i) * s.d_v + e)])));
    }
    return worst / largest;
  }
};

/// A share of a ceiling that is measured before and after each run; the median over the runs.
class Share {
 public:
  /// Returns the seconds of the run.
  template <class Ceiling, class Run>
  double measure(double work, Ceiling&& ceiling, Run&& run) {
    const double before = ceiling();
    const double start = bench::now();
    run();
    const double seconds = bench::now() - start;
    const double after = ceiling();
    shares_.push_back(work / seconds / ((before + after) / 2));
    return seconds;
  }
  double median() {
    std::sort(shares_.begin(), shares_.end());
    return shares_[shares_.size() / 2];
  }

 private:
  std::vector<double> shares_;
};

template <class Query, class Key>
void run_exact(benchmark::State& state, const Case& c) {
  using Real = fastrope::ArithmeticOf<Query>;
  Inputs<Query, Key> in(c.shapes);
  fastrope::Options options;
  if (c.causal) options.mask = Mask::causal();
  if (c.rope) options.rope = fastrope::Rope{};
  if (c.threads > 1) options.executor = fastrope::Executor::openmp(c.threads);
  const fastrope::Shapes& s = c.shapes;
  const auto plan = fastrope::make_plan<Real>(s, options);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const auto run = [&] {
    plan.run(contiguous(in.q.data(), s.heads, s.n_q, s.d), contiguous(in.k.data(), s.kv_heads, s.n_k, s.d),
             contiguous(in.v.data(), s.kv_heads, s.n_k, s.d_v),
             contiguous(in.out.data(), s.heads, s.n_q, s.d_v), workspace);
  };
  const bool decode = s.n_q == 1;
  const double pairs = fastrope::Problem(s, options).grid.allowed_pairs() * static_cast<double>(s.heads);
  const double flops = 2 * pairs * static_cast<double>(s.d + s.d_v);
  const double bytes = static_cast<double>(s.kv_heads * s.n_k * (s.d + s.d_v)) * sizeof(Key);
  run();
  Share share;
  for (auto _ : state) {
    state.SetIterationTime(decode ? share.measure(
                                        bytes, [] { return bench::read_bandwidth(/*runs=*/1); }, run)
                                  : share.measure(
                                        flops, [] { return bench::fma_peak<Real>(/*runs=*/1); }, run));
  }
  state.counters[decode ? "of_bandwidth" : "of_peak"] = share.median();
  state.counters["error"] = in.error(c);
}

}  // namespace

int main(int argc, char** argv) {
  std::printf("%s: multiply-add peak %.1f Gflop/s, read bandwidth %.1f GB/s, one thread\n",
              fastrope::simd::target_name(), bench::fma_peak<float>() * 1e-9, bench::read_bandwidth() * 1e-9);
  const auto add = [](const char* storage, const Case& c, auto run) {
    const fastrope::Shapes& s = c.shapes;
    const std::string name = c.name + (c.causal ? " causal" : " full") + (c.rope ? " rope" : "") + "/" +
                             storage + "/h" + std::to_string(s.heads) + ":" + std::to_string(s.kv_heads) +
                             " n" + std::to_string(s.n_q) + ":" + std::to_string(s.n_k) + " d" +
                             std::to_string(s.d) + " threads" + std::to_string(c.threads);
    benchmark::RegisterBenchmark(name.c_str(), [c, run](benchmark::State& state) { run(state, c); })
        ->Unit(benchmark::kMillisecond)
        ->Iterations(7)
        ->UseManualTime();
  };
  const auto fp32 = [](benchmark::State& state, const Case& c) { run_exact<float, float>(state, c); };
  const auto fp64 = [](benchmark::State& state, const Case& c) { run_exact<double, double>(state, c); };
  const auto bf16 = [](benchmark::State& state, const Case& c) { run_exact<bfloat16, bfloat16>(state, c); };
  const auto bf16_kv = [](benchmark::State& state, const Case& c) { run_exact<float, bfloat16>(state, c); };

  for (const Index d : {64, 128})
    for (const bool causal : {false, true})
      for (const Index threads : {1, 2})
        add("fp32", {"prompt", {8, 8, 4096, 4096, d, d}, causal, false, threads}, fp32);
  add("fp64", {"prompt", {2, 2, 4096, 4096, 64, 64}}, fp64);
  add("bf16 kv", {"prompt", {8, 8, 4096, 4096, 64, 64}}, bf16_kv);
  for (const Index d : {64, 128})
    for (const bool causal : {false, true}) add("bf16", {"prompt", {8, 8, 4096, 4096, d, d}, causal}, bf16);
  add("fp32", {"short prompt", {8, 8, 1024, 1024, 64, 64}, false, true}, fp32);
  for (const Index d : {36, 52, 80, 96, 256})
    add("fp32", {"head sizes", {8, 8, 1024, 1024, d, d}, false, true}, fp32);
  for (const Index kv_heads : {32, 8})
    for (const Index threads : {1, 2})
      add("fp32", {"decode", {32, kv_heads, 1, 16384, 128, 128}, false, false, threads}, fp32);
  add("bf16 kv", {"decode", {32, 8, 1, 16384, 128, 128}}, bf16_kv);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
