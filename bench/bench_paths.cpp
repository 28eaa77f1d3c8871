// Naive quadratic attention, the exact, polynomial and Toeplitz paths side by side, with the error against
// double precision beside each time and the machine's ceiling measured first.
//
//     build/release/bench/bench_paths [--benchmark_filter=...]
//
// Columns: time; gflops, on the flops that attention defines (4 n^2 d, halved when causal) for naive and
// exact, 4 n r (d_v+1) for polynomial; of_peak, their share of the measured peak; error, max |out -
// reference| / max|V| over 16 rows; bound, what the plan promised.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <fastrope/fastrope.hpp>
#include <string>

#include "attention.hpp"
#include "ceilings.hpp"

namespace {

using bench::AttentionCase;
using bench::AttentionInputs;
using fastrope::Index;
using fastrope::Path;

double peak_flops = 0;

struct Case {
  const char* name;
  Index n, d, d_v;
  double radius;  // |x| <= radius
  double tolerance;
  bool causal;
  bool t5;
};

constexpr Case kCases[] = {
    {"rope", 4096, 64, 64, 8, 1e-3, false, false},    {"rope", 4096, 64, 64, 8, 1e-3, true, false},
    {"rope", 8192, 8, 8, 1, 1e-3, false, false},      {"rope", 8192, 8, 8, 1, 1e-3, true, false},
    {"rope", 16384, 16, 64, 0.5, 1e-3, false, false}, {"rope+t5", 16384, 4, 8, 0.5, 1e-2, true, true},
};

AttentionCase attention_case(const Case& c, Path path) {
  AttentionCase a{.shapes = {1, 1, c.n, c.n, c.d, c.d_v}};
  a.base.rope = fastrope::Rope{};
  a.base.scale = 1.0;
  if (c.causal) a.base.mask = fastrope::Mask::causal();
  a.base.tolerance = c.tolerance;
  a.base.path = path;
  fastrope_test::Inputs random(4);
  if (c.t5) set_t5(a, random, /*bidirectional=*/false);
  return a;
}

double flops(const Case& c) {
  return 2.0 * static_cast<double>(c.n * c.n * (c.d + c.d_v)) * (c.causal ? 0.5 : 1.0);
}

void run_naive(benchmark::State& state, const Case& c) {
  const AttentionCase a = attention_case(c, Path::exact);
  AttentionInputs<float> in = bench::on_spheres<float>(a, c.radius);
  for (auto _ : state) bench::naive(a, in);
  state.counters["gflops"] =
      benchmark::Counter(flops(c) * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["error"] = bench::sampled_error(a, in);
}

void run_path(benchmark::State& state, const Case& c, Path path) {
  const AttentionCase a = attention_case(c, path);
  AttentionInputs<float> in = bench::on_spheres<float>(a, c.radius);
  fastrope::Report report;
  try {
    for (auto _ : state)
      report = fastrope::attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), a.options());
  } catch (const fastrope::Error& error) {
    state.SkipWithError(error.what());
    return;
  }
  const fastrope::HeadReport& head = report.heads[0];
  const double work =
      path == Path::polynomial ? 4.0 * static_cast<double>(c.n * head.rank * (c.d_v + 1)) : flops(c);
  if (path != Path::toeplitz) {
    state.counters["gflops"] = benchmark::Counter(work * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
    state.counters["of_peak"] =
        benchmark::Counter(work / peak_flops, benchmark::Counter::kIsIterationInvariantRate);
  }
  state.counters["error"] = bench::sampled_error(a, in);
  if (path != Path::exact) {
    state.counters["bound"] = head.error_bound;
    state.counters["degree"] = head.degree;
    state.counters["rank"] = static_cast<double>(head.rank);
  }
}

}  // namespace

int main(int argc, char** argv) {
  peak_flops = bench::fma_peak<float>();
  std::printf("%s: fused multiply-add peak %.1f Gflop/s, read bandwidth %.1f GB/s, one thread\n",
              fastrope::simd::target_name(), peak_flops * 1e-9, bench::read_bandwidth() * 1e-9);
  for (const Case& c : kCases) {
    const std::string name = std::string(c.name) + (c.causal ? " causal" : " full") +
                             " n=" + std::to_string(c.n) + " d=" + std::to_string(c.d) +
                             " d_v=" + std::to_string(c.d_v);
    const auto add = [&](const char* what, auto&& run) {
      benchmark::RegisterBenchmark((name + "/" + what).c_str(), run)
          ->Unit(benchmark::kMillisecond)
          ->UseRealTime();
    };
    add("naive", [c](benchmark::State& s) { run_naive(s, c); });
    for (Path path : {Path::exact, Path::polynomial, Path::toeplitz})
      add(to_string(path), [c, path](benchmark::State& s) { run_path(s, c, path); });
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
