// An engine's decode step against its limits: few query rows for each key head, a long cache.
//
//     build/release/bench/bench_decode [--benchmark_filter=...]
//
// of_limit: the time that the machine cannot do without, over the time taken: the larger of one read of K and
// V at the read bandwidth and of the multiply-adds at 0.7 of their peak, both timed before and after every
// run, with as many threads. of_bandwidth: bytes of K and V, each once, a second over the read bandwidth.
// error: max |out - reference| / max|V| over 8 rows of every head, the reference in double precision. Runs
// are planned once and allocate nothing.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <fastrope/fastrope.hpp>
#include <string>
#include <vector>

#include "attention.hpp"
#include "ceilings.hpp"
#include "support/stored_cache.hpp"

namespace {

using fastrope::bfloat16;
using fastrope::float16;
using fastrope::Index;
using fastrope::Mask;
using fastrope::Q4_0;
using fastrope::Q8_0;

template <class Key>
void run_decode(benchmark::State& state, const fastrope::Shapes& s, Index threads) {
  bench::AttentionCase a{.shapes = s};
  a.base.mask = Mask::causal();
  if (threads > 1) a.base.executor = fastrope::Executor::openmp(threads);
  bench::AttentionInputs<float> in(s, 1);
  const fastrope_test::StoredCache<Key> k(in.k), v(in.v);
  in.k = k.numbers();
  in.v = v.numbers();
  const auto plan = fastrope::make_plan<float>(s, a.options());
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const auto run = [&] { plan.run(in.q.view(), k.view(), v.view(), in.out.view(), workspace); };
  const auto elements = static_cast<double>(s.d + s.d_v);
  const double bytes = static_cast<double>(k.values.size() + v.values.size()) * sizeof(Key);
  const double flops = 2 * static_cast<double>(s.heads * s.n_q * s.n_k) * elements;
  run();
  bench::Median of_bandwidth, of_limit;
  for (auto _ : state) {
    double peak = 0;
    const bench::Timed timed = bench::beside_ceiling(
        [&] {
          peak = std::max(peak, static_cast<double>(threads) * bench::fma_peak<float>(/*runs=*/1));
          return bench::read_bandwidth(/*runs=*/1, threads);
        },
        run);
    const double read = bytes / timed.ceiling, arithmetic = flops / (0.7 * peak);
    of_bandwidth.add(read / timed.seconds);
    of_limit.add(std::max(read, arithmetic) / timed.seconds);
    state.SetIterationTime(timed.seconds);
  }
  state.counters["of_bandwidth"] = of_bandwidth.value();
  state.counters["of_limit"] = of_limit.value();
  state.counters["error"] = bench::sampled_error(a, in, /*count=*/8);
}

/// Steps of a cache that grows from 1 to n_k keys, with rope: one plan with capacity, or one plan a step.
void run_growth(benchmark::State& state, const fastrope::Shapes& s, bool one_plan) {
  bench::AttentionCase a{.shapes = s};
  a.base.mask = Mask::causal();
  a.base.rope = fastrope::Rope{};
  bench::AttentionInputs<float> in(s, 1);
  const auto plan = fastrope::make_plan<float>(s, a.options());
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const auto rows = [](const fastrope_test::Tensor<float>& x, Index n) {
    return fastrope::TensorView<const float>{x.values.data(), x.heads,       n,
                                             x.cols,          x.head_stride, x.row_stride};
  };
  for (auto _ : state) {
    const double start = bench::now();
    for (Index n = 1; n <= s.n_k; ++n) {
      fastrope::Shapes now = s;
      now.n_k = n;
      if (one_plan)
        plan.run(in.q.view(), rows(in.k, n), rows(in.v, n), in.out.view(), workspace);
      else
        fastrope::make_plan<float>(now, a.options())
            .run(in.q.view(), rows(in.k, n), rows(in.v, n), in.out.view(), workspace);
    }
    state.SetIterationTime((bench::now() - start) / static_cast<double>(s.n_k));
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::printf("%s: multiply-add peak %.1f Gflop/s, read bandwidth %.1f GB/s, two threads %.1f GB/s\n",
              fastrope::simd::target_name(), bench::fma_peak<float>() * 1e-9, bench::read_bandwidth() * 1e-9,
              bench::read_bandwidth(5, 2) * 1e-9);
  const auto add = [](const std::string& name, const char* storage, const fastrope::Shapes& s, Index threads,
                      auto run) {
    const std::string full = name + "/" + storage + "/h" + std::to_string(s.heads) + ":" +
                             std::to_string(s.kv_heads) + " n" + std::to_string(s.n_q) + ":" +
                             std::to_string(s.n_k) + " d" + std::to_string(s.d) + ":" +
                             std::to_string(s.d_v) + " threads" + std::to_string(threads);
    benchmark::RegisterBenchmark(full.c_str(),
                                 [s, threads, run](benchmark::State& state) { run(state, s, threads); })
        ->Unit(benchmark::kMillisecond)
        ->Iterations(9)
        ->UseManualTime();
  };
  const auto fp32 = [](benchmark::State& st, const auto& s, Index n) { run_decode<float>(st, s, n); };
  const auto bf16 = [](benchmark::State& st, const auto& s, Index n) { run_decode<bfloat16>(st, s, n); };
  const auto f16 = [](benchmark::State& st, const auto& s, Index n) { run_decode<float16>(st, s, n); };
  const auto q8_0 = [](benchmark::State& st, const auto& s, Index n) { run_decode<Q8_0>(st, s, n); };
  const auto q4_0 = [](benchmark::State& st, const auto& s, Index n) { run_decode<Q4_0>(st, s, n); };

  for (const Index kv_heads : {8, 32})
    for (const Index threads : {1, 2}) {
      const fastrope::Shapes s{32, kv_heads, 1, 16384, 128, 128};
      add("decode", "fp32", s, threads, fp32);
      add("decode", "bf16", s, threads, bf16);
      add("decode", "f16", s, threads, f16);
      add("decode", "q8_0", s, threads, q8_0);
      add("decode", "q4_0", s, threads, q4_0);
    }
  for (const Index drafted : {2, 3, 8}) {
    add("drafted", "fp32", {32, 4, drafted, 16384, 128, 128}, 1, fp32);
    add("drafted", "bf16", {32, 4, drafted, 16384, 128, 128}, 1, bf16);
  }
  for (const Index rows : {1, 2, 4, 6, 8, 12, 16, 17, 24, 32, 48, 64, 96, 128, 192, 256}) {
    add("rows", "fp32", {1, 1, rows, 16384, 128, 128}, 1, fp32);
    add("heads", "fp32", {rows, 1, 1, 16384, 128, 128}, 1, fp32);
    add("heads", "bf16", {rows, 1, 1, 16384, 128, 128}, 1, bf16);
  }
  for (const Index heads : {8, 16, 32, 64, 128})
    add("latent", "fp32", {heads, 1, 1, 8192, 576, 512}, 1, fp32);
  for (const bool one_plan : {true, false})
    benchmark::RegisterBenchmark(one_plan ? "step of a growing cache/one plan/n256 d128"
                                          : "step of a growing cache/a plan each/n256 d128",
                                 [one_plan](benchmark::State& state) {
                                   run_growth(state, {8, 8, 1, 256, 128, 128}, one_plan);
                                 })
        ->Unit(benchmark::kMicrosecond)
        ->Iterations(9)
        ->UseManualTime();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
