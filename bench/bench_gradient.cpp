// The backward pass of exact attention against the multiply-add peak, beside the forward pass.
//
//     build/release/bench/bench_gradient [--benchmark_filter=...]
//
// of_peak: the flops of the five products that a gradient defines, 2 (3 d + 2 d_v) for each allowed pair, 10
// n^2 d where d_v = d, over the peak of a register-only loop of multiply-adds that is timed before and after
// every run; the softcap's sixth product is not counted. to_forward: time over that of the exact path. error:
// max |x - reference| / max |reference|, the largest of d_q, d_k and d_v, of one head of 512 rows with the
// same options, the reference in double precision. Allocation of the workspace, packing and rotation are
// included.
//
// features: gradients by features, to_exact: their time over that of exact ones of the same call, without the
// forward pass, which only those need; bound: what is promised; rank: of the features. At the end, from which
// n they were faster, of d = d_v = 8 and rows of one length.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fastrope/core.hpp>
#include <fastrope/gradient.hpp>
#include <map>
#include <string>
#include <utility>

#include "ceilings.hpp"
#include "support/attention_case.hpp"
#include "support/reference_gradient.hpp"

namespace {

using fastrope::Index;
using fastrope_test::AttentionCase;
using fastrope_test::Tensor;

struct Case {
  std::string name;
  fastrope::Shapes shapes;
  fastrope::Options options = {};
  bool of_bias = false;   ///< ALiBi, and the gradient of its slopes
  bool of_gates = false;  ///< log gates and input gates of each head, and their gradients
};

/// A call with its tensors.
template <class Real>
struct Call {
  AttentionCase c;
  fastrope_test::Inputs random{1};
  fastrope_test::AttentionInputs<Real> in;
  Tensor<Real> d_out, lse, d_q, d_k, d_v;
  std::vector<double> bias, log_gates, log_input_gates;

  Call(const Case& of, const fastrope::Shapes& s)
      : c{.shapes = s, .base = of.options},
        in(s, random),
        d_out(random.gaussian<Real>(s.heads, s.n_q, s.d_v)),
        lse(1, s.heads, s.n_q),
        d_q(s.heads, s.n_q, s.d),
        d_k(s.kv_heads, s.n_k, s.d),
        d_v(s.kv_heads, s.n_k, s.d_v) {
    if (of.of_bias) fastrope_test::set_alibi(c, random);
    if (of.of_gates) {
      fastrope_test::set_gates(c, random, s.heads, 10);
      fastrope_test::set_input_gates(c, random, s.heads, 1);
    }
    bias.resize(static_cast<std::size_t>(c.base.bias.parameters()));
    log_gates.resize(c.log_gates.size());
    log_input_gates.resize(c.log_input_gates.size());
  }

  void forward() {
    const fastrope::Problem problem(c.shapes, c.options());
    std::vector<std::byte> memory(fastrope::exact_workspace_bytes<Real>(problem));
    fastrope::run_exact<Real>(
        problem, {in.q.view(), in.k.view(), in.v.view(), in.out.view(), lse.view().head(0)}, memory);
  }
  void backward() {
    fastrope::attend_backward(in.q.view(), in.k.view(), in.v.view(), in.out.view(), lse.view().head(0),
                              d_out.view(), d_q.view(), d_k.view(), d_v.view(), c.options(),
                              {.bias = bias, .log_gates = log_gates, .log_input_gates = log_input_gates});
  }
};

template <class Real>
double error_of(const Case& of) {
  Call<Real> call(of, {1, 1, 512, 512, of.shapes.d, of.shapes.d_v});
  call.forward();
  call.backward();
  const auto exact = [](const auto& x) { return fastrope_test::converted<double>(x.view()); };
  const auto q = exact(call.in.q), k = exact(call.in.k), v = exact(call.in.v), d_out = exact(call.d_out);
  const auto reference = fastrope_test::reference_backward(
      q.view(), k.view(), v.view(), call.in.reference(call.c), d_out.view(), call.c.options(), call.c.bias);
  return std::max({fastrope_test::max_relative_difference(call.d_q.view(), reference.q.view()),
                   fastrope_test::max_relative_difference(call.d_k.view(), reference.k.view()),
                   fastrope_test::max_relative_difference(call.d_v.view(), reference.v.view())});
}

template <class Real>
void run_backward(benchmark::State& state, const Case& of) {
  const fastrope::Shapes& s = of.shapes;
  Call<Real> call(of, s);
  const double pairs =
      fastrope::Problem(s, call.c.options()).grid.allowed_pairs() * static_cast<double>(s.heads);
  const double flops = 2 * pairs * static_cast<double>(3 * s.d + 2 * s.d_v);
  const double threads = static_cast<double>(of.options.executor.workers());
  const double forward = bench::median_seconds(3, [&] { call.forward(); });
  call.backward();
  bench::Median share, ratio;
  for (auto _ : state) {
    const bench::Timed timed =
        bench::beside_ceiling([] { return bench::fma_peak<Real>(/*runs=*/1); }, [&] { call.backward(); });
    share.add(flops / timed.seconds / timed.ceiling / threads);
    ratio.add(timed.seconds / forward);
    state.SetIterationTime(timed.seconds);
  }
  state.counters["of_peak"] = share.value();
  state.counters["to_forward"] = ratio.value();
  state.counters["error"] = error_of<Real>(of);
}

/// The shortest sequences for which features were faster.
std::map<std::string, Index> faster_from;

/// Rows of one length, so that entries reach `radius`.
void run_features(benchmark::State& state, const Case& of, const std::string& name, double radius) {
  Call<float> call(of, of.shapes);
  for (auto* x : {&call.in.q, &call.in.k})
    for (Index i = 0; i < x->rows; ++i) {
      float* row = x->view().head(0).row(i);
      double sum = 0;
      for (Index c = 0; c < x->cols; ++c) sum += static_cast<double>(row[c]) * static_cast<double>(row[c]);
      const double length = std::sqrt(radius * std::sqrt(static_cast<double>(x->cols)));
      for (Index c = 0; c < x->cols; ++c) row[c] *= static_cast<float>(length / std::sqrt(sum));
    }
  call.forward();
  const auto run = [&](fastrope::Path path) {
    fastrope::Options options = of.options;
    options.path = path;
    return fastrope::attend_backward(call.in.q.view(), call.in.k.view(), call.in.v.view(), call.in.out.view(),
                                     call.lse.view().head(0), call.d_out.view(), call.d_q.view(),
                                     call.d_k.view(), call.d_v.view(), options);
  };
  const fastrope::BackwardReport report = run(fastrope::Path::polynomial);
  bench::Median ratio;
  for (auto _ : state) {
    const double exact = bench::median_seconds(1, [&] { run(fastrope::Path::exact); });
    const double features = bench::median_seconds(1, [&] { run(fastrope::Path::polynomial); });
    ratio.add(features / exact);
    state.SetIterationTime(features);
  }
  state.counters["to_exact"] = ratio.value();
  state.counters["bound"] = report.bound;
  state.counters["rank"] = static_cast<double>(report.rank);
  if (ratio.value() < 1 && faster_from.count(name) == 0) faster_from[name] = of.shapes.n_q;
}

}  // namespace

int main(int argc, char** argv) {
  std::printf("%s: multiply-add peak %.1f Gflop/s, one thread\n", fastrope::simd::target_name(),
              bench::fma_peak<float>() * 1e-9);
  const auto add = [](const char* storage, const Case& c, auto run) {
    const fastrope::Shapes& s = c.shapes;
    const std::string name = c.name + "/" + storage + "/h" + std::to_string(s.heads) + ":" +
                             std::to_string(s.kv_heads) + " n" + std::to_string(s.n_q) + " d" +
                             std::to_string(s.d) + " threads" + std::to_string(c.options.executor.workers());
    benchmark::RegisterBenchmark(name.c_str(), [c, run](benchmark::State& state) { run(state, c); })
        ->Unit(benchmark::kMillisecond)
        ->Iterations(7)
        ->UseManualTime();
  };
  const auto fp32 = [](benchmark::State& state, const Case& c) { run_backward<float>(state, c); };
  const auto fp64 = [](benchmark::State& state, const Case& c) { run_backward<double>(state, c); };
  const fastrope::Options full, causal{.mask = fastrope::Mask::causal()};
  for (const Index d : {64, 128}) {
    add("fp32", {"full", {1, 1, 4096, 4096, d, d}, full}, fp32);
    add("fp32", {"causal", {1, 1, 4096, 4096, d, d}, causal}, fp32);
  }
  add("fp32", {"full", {8, 8, 1024, 1024, 64, 64}, full}, fp32);
  add("fp32", {"causal rope", {8, 2, 1024, 1024, 64, 64}, {.rope = fastrope::Rope{}, .mask = causal.mask}},
      fp32);
  add("fp32", {"full", {2, 2, 4096, 4096, 64, 64}, {.executor = fastrope::Executor::openmp(2)}}, fp32);
  add("fp32", {"softcap", {1, 1, 4096, 4096, 64, 64}, {.softcap = 30}}, fp32);
  add("fp32", {"ALiBi and its slopes", {1, 1, 4096, 4096, 64, 64}, full, true}, fp32);
  add("fp32", {"gates and theirs", {1, 1, 4096, 4096, 64, 64}, causal, false, true}, fp32);
  add("fp32", {"Taylor of degree 4", {1, 1, 4096, 4096, 64, 64}, {.kernel = fastrope::Kernel::taylor(4)}},
      fp32);
  add("fp64", {"full", {1, 1, 2048, 2048, 64, 64}, full}, fp64);
  for (const auto& [mask, options] : {std::pair("full", full), std::pair("causal", causal)})
    for (const auto& [radius, tolerance] : {std::pair(0.5, 1e-2), std::pair(0.5, 1e-3), std::pair(1.0, 1e-2)})
      for (const Index n : {1024, 2048, 4096, 8192, 16384}) {
        Case c{mask, {1, 1, n, n, 8, 8}, options};
        c.options.tolerance = tolerance;
        char name[64];
        std::snprintf(name, sizeof name, "features/%s/R%.1f/tolerance%g", mask, radius, tolerance);
        benchmark::RegisterBenchmark((name + std::string("/n") + std::to_string(n)).c_str(),
                                     [c, of = std::string(name), entries = radius](benchmark::State& state) {
                                       run_features(state, c, of, entries);
                                     })
            ->Unit(benchmark::kMillisecond)
            ->Iterations(5)
            ->UseManualTime();
      }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  for (const auto& [name, n] : faster_from)
    std::printf("%s: faster than exact from n = %ld\n", name.c_str(), static_cast<long>(n));
}
