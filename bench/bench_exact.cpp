// The exact path against its ceilings: the share of the multiply-add peak for prompts, of the read bandwidth
// for decoding.
//
//     build/release/bench/bench_exact [--benchmark_filter=...]
//
// of_peak: flops that attention defines, 2 (d + d_v) for each allowed pair, over the peak of a register-only
// loop of fp32 multiply-adds that is timed before and after every run (the clock of a shared machine
// wanders); bf16, all of q, k, v and out, is above 1 where the hardware multiplies bfloat16 faster.
// of_bandwidth: bytes of K and V, each once, over a read loop's bytes per second, timed likewise. error: max
// |out - reference| / max|V| over 8 rows of every head, the reference in double precision. Runs are planned
// once and allocate nothing; packing and rotation are included.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <fastrope/fastrope.hpp>
#include <string>
#include <vector>

#include "attention.hpp"
#include "ceilings.hpp"
#include "support/stored_cache.hpp"

namespace {

using fastrope::bfloat16;
using fastrope::Index;
using fastrope::Mask;
using fastrope::Q8_0;

struct Case {
  std::string name;
  fastrope::Shapes shapes;
  bool causal = false;
  bool rope = false;
  Index threads = 1;
};

template <class Query, class Key>
void run_exact(benchmark::State& state, const Case& c) {
  using Real = fastrope::ArithmeticOf<Query>;
  const fastrope::Shapes& s = c.shapes;
  bench::AttentionCase a{.shapes = s};
  if (c.causal) a.base.mask = Mask::causal();
  if (c.rope) a.base.rope = fastrope::Rope{};
  if (c.threads > 1) a.base.executor = fastrope::Executor::openmp(c.threads);
  bench::AttentionInputs<Query, float> in(s, 1);
  const fastrope_test::StoredCache<Key> k(in.k), v(in.v);
  in.k = k.numbers();
  in.v = v.numbers();
  const auto plan = fastrope::make_plan<Real>(s, a.options());
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const auto run = [&] { plan.run(in.q.view(), k.view(), v.view(), in.out.view(), workspace); };
  const bool decode = s.n_q == 1;
  const double pairs = fastrope::Problem(s, a.options()).grid.allowed_pairs() * static_cast<double>(s.heads);
  const double flops = 2 * pairs * static_cast<double>(s.d + s.d_v);
  const double bytes = static_cast<double>(k.values.size() + v.values.size()) * sizeof(Key);
  run();
  bench::Median share;
  for (auto _ : state) {
    const bench::Timed timed = bench::beside_ceiling(
        [&] { return decode ? bench::read_bandwidth(/*runs=*/1) : bench::fma_peak<Real>(/*runs=*/1); }, run);
    share.add((decode ? bytes : flops) / timed.seconds / timed.ceiling);
    state.SetIterationTime(timed.seconds);
  }
  state.counters[decode ? "of_bandwidth" : "of_peak"] = share.value();
  state.counters["error"] = bench::sampled_error(a, in, /*count=*/8);
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
  const auto q8_0_kv = [](benchmark::State& state, const Case& c) { run_exact<float, Q8_0>(state, c); };

  for (const Index d : {64, 128})
    for (const bool causal : {false, true})
      for (const Index threads : {1, 2})
        add("fp32", {"prompt", {8, 8, 4096, 4096, d, d}, causal, false, threads}, fp32);
  add("fp64", {"prompt", {2, 2, 4096, 4096, 64, 64}}, fp64);
  add("bf16 kv", {"prompt", {8, 8, 4096, 4096, 64, 64}}, bf16_kv);
  for (const Index d : {64, 128}) add("q8_0 kv", {"prompt", {8, 8, 4096, 4096, d, d}}, q8_0_kv);
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
