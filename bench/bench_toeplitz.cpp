// ToeplitzOperator beside the bare FFTW transforms that it cannot do without, and attention with a lag bias
// beside the exact path.
//
//     build/release/bench/bench_toeplitz [--benchmark_filter=...]
//
// Operator. Bare: a real transform of length >= 2 n - 1 forward and back for each of the 64 columns,
// contiguous, each in memory of its own (columns that share one buffer, which stays in cache, are `hot`); in
// place or not, whichever is faster; planned with the same effort. over_bare: time of apply over that, both
// run in turn, the median; ns: per element of x; faster: of two threads, over one; error: of sampled rows
// against sums in double, relative to |generator|_2 |x|_2, in units of epsilon, and `promised`, the bound.
// Attention, causal, |x| <= 0.5, tolerance 1e-2, d_v = 8: T5's bias, which a state carries, and a table of
// random values, which takes transforms. faster: time of the exact path over this one's, both run in turn,
// the median; error: of 16 rows against double, over max|V|; promised: the error bound; plan_ms: the
// look at the data. crossover: the first n of 128, 192, 256, 384, .. from which this path is the faster one.
#include <benchmark/benchmark.h>
#include <fftw3.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fastrope/fastrope.hpp>
#include <random>
#include <string>
#include <vector>

#include "attention.hpp"
#include "ceilings.hpp"

namespace {

using fastrope::Executor;
using fastrope::FftEffort;
using fastrope::Index;
using fastrope::ToeplitzOperator;

constexpr Index kColumns = 64;

std::vector<float> random_values(Index count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& x : values) x = static_cast<float>(std::normal_distribution()(random));
  return values;
}

template <class F>
double seconds_of(F&& f) {
  const double start = bench::now();
  f();
  return bench::now() - start;
}

/// Transforms of zeros, which take as long as any others, and stay zeros.
class BareTransforms {
 public:
  BareTransforms(Index length, bool in_place, bool hot, FftEffort effort)
      : stride_(hot ? 0 : (length / 2 + 1 + 8) / 8 * 16),
        in_place_(in_place),
        x_(fftwf_alloc_real(static_cast<std::size_t>(stride_ * (kColumns - 1) + length + 2))),
        spectrum_(fftwf_alloc_complex(static_cast<std::size_t>(length / 2 + 1))) {
    auto* const to = in_place ? reinterpret_cast<fftwf_complex*>(x_) : spectrum_;
    const int n = static_cast<int>(length);
    const auto flags = static_cast<unsigned>(effort);
    forward_ = fftwf_plan_dft_r2c_1d(n, x_, to, flags | (in_place ? 0 : FFTW_PRESERVE_INPUT));
    inverse_ = fftwf_plan_dft_c2r_1d(n, to, x_, flags);
    std::fill_n(x_, stride_ * (kColumns - 1) + length + 2, 0.0f);
  }
  BareTransforms(const BareTransforms&) = delete;
  BareTransforms& operator=(const BareTransforms&) = delete;
  ~BareTransforms() {
    fftwf_destroy_plan(forward_);
    fftwf_destroy_plan(inverse_);
    fftwf_free(x_);
    fftwf_free(spectrum_);
  }

  void operator()() const {
    for (Index c = 0; c < kColumns; ++c) {
      float* x = x_ + c * stride_;
      auto* const to = in_place_ ? reinterpret_cast<fftwf_complex*>(x) : spectrum_;
      fftwf_execute_dft_r2c(forward_, x, to);
      fftwf_execute_dft_c2r(inverse_, to, x);
    }
  }

 private:
  Index stride_;
  bool in_place_;
  float* x_;
  fftwf_complex* spectrum_;
  fftwf_plan forward_, inverse_;
};

/// An n x n operator, its columns and the result.
struct Product {
  Index n;
  std::vector<float> generator;  // zero outside [first, last]
  std::vector<float> x, y;
  ToeplitzOperator<float> toeplitz;

  Product(Index size, Index first, Index last, FftEffort effort)
      : n(size),
        generator(values(size, first, last)),
        x(random_values(size * kColumns, 2)),
        y(x.size()),
        toeplitz(size, size, generator, effort) {}

  static std::vector<float> values(Index size, Index first, Index last) {
    std::vector<float> g = random_values(2 * size - 1, 1);
    for (Index lag = 1 - size; lag < size; ++lag)
      if (lag < first || lag > last) g[static_cast<std::size_t>(lag + size - 1)] = 0;
    return g;
  }

  void operator()(const Executor& executor = Executor::serial()) {
    toeplitz.apply({x.data(), n, kColumns, kColumns}, {y.data(), n, kColumns, kColumns}, executor);
  }

  /// The largest error of some rows of the first column, over epsilon |generator|_2 |x|_2.
  double error() const {
    double t2 = 0, x2 = 0, worst = 0;
    for (float t : generator) t2 += static_cast<double>(t) * static_cast<double>(t);
    for (Index j = 0; j < n; ++j) {
      const double x_j = static_cast<double>(x[static_cast<std::size_t>(j * kColumns)]);
      x2 += x_j * x_j;
    }
    for (Index i = 0; i < n; i += std::max<Index>(1, n / 16)) {
      double sum = 0;
      for (Index j = 0; j < n; ++j)
        sum += static_cast<double>(generator[static_cast<std::size_t>(i - j + n - 1)]) *
               static_cast<double>(x[static_cast<std::size_t>(j * kColumns)]);
      worst = std::max(worst, std::abs(sum - static_cast<double>(y[static_cast<std::size_t>(i * kColumns)])));
    }
    return worst / std::sqrt(t2 * x2) / static_cast<double>(std::numeric_limits<float>::epsilon());
  }
};

void run_apply(benchmark::State& state, Index n, FftEffort effort) {
  Product product(n, 1 - n, n - 1, effort);
  const Index length = fastrope::fft_length(2 * n - 1);
  const BareTransforms outside(length, false, false, effort), inside(length, true, false, effort);
  const BareTransforms hot_outside(length, false, true, effort), hot_inside(length, true, true, effort);
  const auto fastest = [](const BareTransforms& a, const BareTransforms& b) {
    return std::min(seconds_of(a), seconds_of(b));
  };
  product();
  bench::Median over_bare, over_hot;
  for (auto _ : state) {
    const double before = fastest(outside, inside), hot = fastest(hot_outside, hot_inside);
    const double seconds = seconds_of([&] { product(); });
    over_bare.add(2 * seconds / (before + fastest(outside, inside)));
    over_hot.add(seconds / hot);
    state.SetIterationTime(seconds);
  }
  state.counters["over_bare"] = over_bare.value();
  state.counters["over_hot"] = over_hot.value();
  state.counters["ns"] =
      benchmark::Counter(static_cast<double>(n * kColumns) * 1e-9,
                         benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  state.counters["error"] = product.error();
  state.counters["promised"] = 10 * (1 + std::log2(static_cast<double>(length)));
}

void run_threads(benchmark::State& state, Index n) {
  Product product(n, 1 - n, n - 1, FftEffort::estimate);
  const Executor two = Executor::openmp(2);
  product();
  product(two);
  bench::Median faster;
  for (auto _ : state) {
    const double seconds = seconds_of([&] { product(two); });
    faster.add(seconds_of([&] { product(); }) / seconds);
    state.SetIterationTime(seconds);
  }
  state.counters["faster"] = faster.value();
}

/// `share`: time over that of an operator with all lags.
void run_support(benchmark::State& state, Index n, Index first, Index last) {
  Product all(n, 1 - n, n - 1, FftEffort::estimate), some(n, first, last, FftEffort::estimate);
  all();
  some();
  bench::Median share;
  for (auto _ : state) {
    const double seconds = seconds_of([&] { some(); });
    share.add(seconds / seconds_of([&] { all(); }));
    state.SetIterationTime(seconds);
  }
  state.counters["share"] = share.value();
  state.counters["error"] = some.error();
}

struct Attention {
  Index n, d;
  bool t5;  // or a table
};

bench::AttentionCase attention_case(const Attention& a, fastrope::Path path) {
  bench::AttentionCase c{.shapes = {1, 1, a.n, a.n, a.d, 8}};
  c.base.rope = fastrope::Rope{};
  c.base.scale = 1.0;
  c.base.mask = fastrope::Mask::causal();
  c.base.path = path;
  c.base.tolerance = path == fastrope::Path::exact ? 0 : 1e-2;
  fastrope_test::Inputs random(4);
  if (a.t5)
    set_t5(c, random, /*bidirectional=*/false);
  else
    set_table(c, random, 1, a.n);
  return c;
}

/// What approximates it: T5's last bucket is level, so far keys are carried by a state; a table has
/// transforms.
fastrope::Path fast_path(const Attention& a) {
  return a.t5 ? fastrope::Path::polynomial : fastrope::Path::toeplitz;
}

/// A planned call over inputs that several may share.
class Call {
 public:
  Call(bench::AttentionInputs<float>& in, const bench::AttentionCase& c)
      : in_(in), plan_(fastrope::make_plan(in.q.view(), in.k.view(), in.v.view(), c.options())) {
    workspace_.resize(plan_.workspace_bytes());
  }
  void operator()() { plan_.run(in_.q.view(), in_.k.view(), in_.v.view(), in_.out.view(), workspace_); }
  const fastrope::HeadReport& head() const { return plan_.report().heads.front(); }

 private:
  bench::AttentionInputs<float>& in_;
  fastrope::Plan<float> plan_;
  std::vector<std::byte> workspace_ = {};
};

void run_attention(benchmark::State& state, const Attention& a) {
  const bench::AttentionCase c = attention_case(a, fast_path(a));
  bench::AttentionInputs<float> in = bench::on_spheres<float>(c, 0.5);
  const double start = bench::now();
  Call fast(in, c);
  state.counters["plan_ms"] = (bench::now() - start) * 1e3;
  Call exact(in, attention_case(a, fastrope::Path::exact));
  fast();
  bench::Median faster;
  for (auto _ : state) {
    const double seconds = seconds_of(fast);
    faster.add(seconds_of(exact) / seconds);
    state.SetIterationTime(seconds);
  }
  fast();  // its output is what `error` is about
  state.counters["faster"] = faster.value();
  state.counters["error"] = bench::sampled_error(c, in);
  state.counters["promised"] = fast.head().error_bound;
  state.counters["rank"] = static_cast<double>(fast.head().rank);
}

void run_crossover(benchmark::State& state, Attention a) {
  Index crossover = 0;
  for (auto _ : state) {
    const double start = bench::now();
    // From above, to where it is slower.
    for (const Index n : {32768, 24576, 16384, 12288, 8192, 6144, 4096, 3072, 2048, 1536, 1024, 768, 512, 384,
                          256, 192, 128}) {
      a.n = n;
      const bench::AttentionCase c = attention_case(a, fast_path(a));
      bench::AttentionInputs<float> in = bench::on_spheres<float>(c, 0.5);
      Call fast(in, c), exact(in, attention_case(a, fastrope::Path::exact));
      const int runs = n > 8192 ? 3 : 21;
      if (bench::median_seconds(runs, fast) > bench::median_seconds(runs, exact)) break;
      crossover = n;
    }
    state.SetIterationTime(bench::now() - start);
  }
  state.counters["crossover"] = static_cast<double>(crossover);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  std::printf("%s, %td columns\n", fastrope::simd::target_name(), kColumns);
  const auto add = [](const std::string& name, int runs, auto run) {
    benchmark::RegisterBenchmark(name.c_str(), run)
        ->Unit(benchmark::kMillisecond)
        ->Iterations(runs)
        ->UseManualTime();
  };
  for (const Index n : {256, 1024, 4096, 16384, 65536, 131072}) {
    const std::string size = "n" + std::to_string(n);
    const int runs = n < 65536 ? 41 : 15;
    add(size + "/apply", runs, [n](benchmark::State& s) { run_apply(s, n, FftEffort::estimate); });
    if (n >= 4096) add(size + "/2 threads over 1", runs, [n](benchmark::State& s) { run_threads(s, n); });
  }
  add("n16384/apply, measured plans", 41,
      [](benchmark::State& s) { run_apply(s, 16384, FftEffort::measure); });
  for (const Index last : {31, 127, 511, 4095})
    add("n16384/lags 0 to " + std::to_string(last), 15,
        [last](benchmark::State& s) { run_support(s, 16384, 0, last); });
  for (const bool t5 : {true, false})
    for (const Index d : {4, 8, 16}) {
      const Attention a{65536, d, t5};
      const std::string name = std::string(t5 ? "t5" : "table") + " causal d" + std::to_string(d);
      add(name + "/n65536", 3, [a](benchmark::State& s) { run_attention(s, a); });
      add(name + "/crossover", 1, [a](benchmark::State& s) { run_crossover(s, a); });
    }
  benchmark::RunSpecifiedBenchmarks();
}
