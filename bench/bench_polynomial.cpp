// The polynomial path against the multiply-add peak, beside exact and naive attention on the same data.
//
//     build/release/bench/bench_polynomial [--benchmark_filter=...]
//
// of_peak: 4 n rank (d_v + 1) flops for the polynomial path, 2 (d + d_v) for each allowed pair for the
// others, over the peak of a register-only loop of multiply-adds that is timed before and after every run.
// Features, projections, packing, rotation, and the exact near fields of causal calls are in the time and not
// in the flops. error: max |out - reference| / max|V| over 16 rows, the reference in double precision;
// promised: the plan's error bound. plan_ms: the look at the data, once.
// faster: time of the exact path over this one's, both run in turn; of two threads, over one.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <fastrope/fastrope.hpp>
#include <optional>
#include <string>
#include <vector>

#include "attention.hpp"
#include "ceilings.hpp"

namespace {

using bench::AttentionCase;
using bench::AttentionInputs;
using fastrope::Index;
using fastrope::Mask;
using fastrope::Path;

struct Case {
  Index n, d, d_v;
  double radius;  // |x| <= radius
  double tolerance;
  bool causal = false;
};

AttentionCase attention_case(const Case& c, Path path, Index threads) {
  AttentionCase a{.shapes = {1, 1, c.n, c.n, c.d, c.d_v}};
  a.base.rope = fastrope::Rope{};
  a.base.scale = 1.0;
  a.base.tolerance = path == Path::exact ? 0 : c.tolerance;
  a.base.path = path;
  if (c.causal) a.base.mask = Mask::causal();
  if (threads > 1) a.base.executor = fastrope::Executor::openmp(threads);
  return a;
}

/// One planned call over inputs that several may share.
template <class Real>
class Call {
 public:
  Call(AttentionInputs<Real>& in, const AttentionCase& c) : in_(in) {
    const double start = bench::now();
    plan_.emplace(fastrope::make_plan(in.q.view(), in.k.view(), in.v.view(), c.options()));
    plan_seconds_ = bench::now() - start;
    workspace_.resize(plan_->workspace_bytes());
  }
  void operator()() { plan_->run(in_.q.view(), in_.k.view(), in_.v.view(), in_.out.view(), workspace_); }
  double seconds() {
    const double start = bench::now();
    (*this)();
    return bench::now() - start;
  }
  double plan_seconds() const { return plan_seconds_; }
  const fastrope::HeadReport& head() const { return plan_->report().heads.front(); }

 private:
  AttentionInputs<Real>& in_;
  std::optional<fastrope::Plan<Real>> plan_ = {};
  std::vector<std::byte> workspace_ = {};
  double plan_seconds_ = 0;
};

double attention_flops(const Case& c) {
  const double n = static_cast<double>(c.n), pairs = c.causal ? n * (n + 1) / 2 : n * n;
  return 2 * pairs * static_cast<double>(c.d + c.d_v);
}

template <class Real>
void run_polynomial(benchmark::State& state, const Case& c, bool beside_exact) {
  const AttentionCase a = attention_case(c, Path::polynomial, 1);
  AttentionInputs<Real> in = bench::on_spheres<Real>(a, c.radius);
  Call<Real> call(in, a);
  std::optional<Call<Real>> exact;
  if (beside_exact) exact.emplace(in, attention_case(c, Path::exact, 1));
  const double flops = 4 * static_cast<double>(c.n * call.head().rank * (c.d_v + 1));
  call();
  bench::Median share, faster;
  for (auto _ : state) {
    const bench::Timed timed = bench::beside_ceiling([] { return bench::fma_peak<Real>(/*runs=*/1); }, call);
    share.add(flops / timed.seconds / timed.ceiling);
    if (exact) faster.add(exact->seconds() / timed.seconds);
    state.SetIterationTime(timed.seconds);
  }
  if (exact) call();  // its output is what `error` is about
  state.counters["of_peak"] = share.value();
  if (exact) state.counters["faster"] = faster.value();
  state.counters["error"] = bench::sampled_error(a, in);
  state.counters["promised"] = call.head().error_bound;
  state.counters["degree"] = call.head().degree;
  state.counters["rank"] = static_cast<double>(call.head().rank);
  state.counters["plan_ms"] = call.plan_seconds() * 1e3;
}

template <class Real>
void run_exact(benchmark::State& state, const Case& c) {
  const AttentionCase a = attention_case(c, Path::exact, 1);
  AttentionInputs<Real> in = bench::on_spheres<Real>(a, c.radius);
  Call<Real> call(in, a);
  bench::Median share;
  for (auto _ : state) {
    const bench::Timed timed = bench::beside_ceiling([] { return bench::fma_peak<Real>(/*runs=*/1); }, call);
    share.add(attention_flops(c) / timed.seconds / timed.ceiling);
    state.SetIterationTime(timed.seconds);
  }
  state.counters["of_peak"] = share.value();
  state.counters["error"] = bench::sampled_error(a, in);
}

void run_naive(benchmark::State& state, const Case& c) {
  const AttentionCase a = attention_case(c, Path::exact, 1);
  AttentionInputs<float> in = bench::on_spheres<float>(a, c.radius);
  for (auto _ : state) {
    const double start = bench::now();
    bench::naive(a, in);
    state.SetIterationTime(bench::now() - start);
  }
  state.counters["error"] = bench::sampled_error(a, in);
}

void run_threads(benchmark::State& state, const Case& c) {
  AttentionInputs<float> in = bench::on_spheres<float>(attention_case(c, Path::polynomial, 1), c.radius);
  Call<float> one(in, attention_case(c, Path::polynomial, 1)),
      two(in, attention_case(c, Path::polynomial, 2));
  one();
  two();
  bench::Median faster;
  for (auto _ : state) {
    const double seconds = two.seconds();
    faster.add(one.seconds() / seconds);
    state.SetIterationTime(seconds);
  }
  state.counters["faster"] = faster.value();
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  std::printf("%s: multiply-add peak %.1f Gflop/s, one thread\n", fastrope::simd::target_name(),
              bench::fma_peak<float>() * 1e-9);
  const auto add = [](const Case& c, const std::string& what, int runs, auto run) {
    const std::string name = std::string(c.causal ? "causal" : "full") + " n" + std::to_string(c.n) + " d" +
                             std::to_string(c.d) + ":" + std::to_string(c.d_v) + "/" + what;
    benchmark::RegisterBenchmark(name.c_str(), [c, run](benchmark::State& state) { run(state, c); })
        ->Unit(benchmark::kMillisecond)
        ->Iterations(runs)
        ->UseManualTime();
  };
  const auto polynomial = [](benchmark::State& s, const Case& c) { run_polynomial<float>(s, c, true); };
  const auto alone = [](benchmark::State& s, const Case& c) { run_polynomial<float>(s, c, false); };
  const auto alone64 = [](benchmark::State& s, const Case& c) { run_polynomial<double>(s, c, false); };
  // Radius and tolerance are such that the degrees are 2, 4 and 6.
  for (Case c : {Case{16384, 64, 64, 0.5, 1e-2}, {16384, 16, 16, 1, 1e-3}, {16384, 8, 8, 2, 1e-3}})
    for (const bool causal : {false, true}) {
      c.causal = causal;
      add(c, "fp32", 7, polynomial);
      add(c, "fp32, 2 threads over 1", 9, run_threads);
      add(c, "exact fp32", 3, run_exact<float>);
      if (!causal) add(c, "fp64", 5, alone64);
      if (!causal) add(c, "naive fp32", 1, run_naive);
    }
  // Widths of values that fill vectors badly.
  for (const Index d_v : {1, 3, 17, 33, 100}) add(Case{16384, 8, d_v, 1, 1e-3}, "fp32", 7, alone);
  add(Case{131072, 64, 64, 0.25, 1e-3}, "fp32", 1, polynomial);
  benchmark::RunSpecifiedBenchmarks();
}
