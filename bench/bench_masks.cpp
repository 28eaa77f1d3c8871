// What key ranges and dense masks cost beside calls that need none: packed documents, chunks and prefixes in
// one call beside a call for each part, a tree of drafted tokens beside a call without a mask, and a batch of
// prompts and such a tree beside a call for each.
//
//     build/release/bench/bench_masks [--benchmark_filter=...]
//
// over_parts: time of the call with key_ranges over that of the separate calls, run side by side, the median
// of the ratios; dense_over_parts: the same of a call with a dense mask, one for all heads, that says the
// same.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <fastrope/fastrope.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ceilings.hpp"
#include "support/attention_case.hpp"

namespace {

using fastrope::Index;
using fastrope::Mask;
using fastrope::Options;
using fastrope::Range;
using fastrope::RowRanges;
using fastrope::Shapes;
using fastrope_test::AttentionInputs;

constexpr Index kHeads = 8, kKvHeads = 2, kTokens = 4096;

/// A call whose rows see what `ranges` says, and separate calls of some rows and keys that compute the same.
struct Case {
  std::string name;
  Shapes shapes;
  RowRanges ranges;
  Mask mask;
  struct Part {
    Range rows;
    Range keys;
    Mask mask;
  };
  std::vector<Part> parts;
};

/// The parents of a binary tree's nodes.
std::vector<Index> binary_tree(Index nodes) {
  std::vector<Index> parents;
  for (Index t = 0; t < nodes; ++t) parents.push_back(t == 0 ? -1 : (t - 1) / 2);
  return parents;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Index d : {64, 128}) {
    const Shapes square{kHeads, kKvHeads, kTokens, kTokens, d, d};
    const auto of_lengths = [&](std::string name, const std::vector<Index>& lengths, Mask mask) {
      Case c{std::move(name), square, RowRanges::documents(lengths), mask, {}};
      Index first = 0;
      for (const Index length : lengths) {
        c.parts.push_back({{first, first + length}, {first, first + length}, mask});
        first += length;
      }
      all.push_back(std::move(c));
    };
    const std::vector<Index> documents = {700, 120, 1300, 37, 411, 900, 250, 378};
    of_lengths("documents", documents, Mask::causal());
    of_lengths("documents, full", documents, Mask::full());
    of_lengths("short documents", std::vector<Index>(kTokens / 128, 128), Mask::causal());
    all.push_back({"chunks of 512", square, RowRanges::chunks(kTokens, 512), Mask::causal(), {}});
    for (Index first = 0; first < kTokens; first += 512)
      all.back().parts.push_back({{first, first + 512}, {first, first + 512}, Mask::causal()});
    all.push_back({"prefix of 1024",
                   square,
                   RowRanges::prefix(kTokens, 1024),
                   Mask::full(),
                   {{{0, 1024}, {0, 1024}, Mask::full()}, {{1024, kTokens}, {0, kTokens}, Mask::causal()}}});
    // A binary tree over a cache: nothing but the last few keys is masked.
    for (const Index drafted : {4, 31}) {
      const std::vector<Index> parents = binary_tree(drafted);
      const Index n_k = 4 * kTokens;
      all.push_back({"tree of " + std::to_string(drafted),
                     {kHeads, kKvHeads, drafted, n_k, d, d},
                     RowRanges::tree(n_k - drafted, parents),
                     Mask::full(),
                     {{{0, drafted}, {0, n_k}, Mask::full()}}});
    }
  }
  return all;
}

/// A plan and its memory.
struct Call {
  fastrope::Plan<float> plan;
  std::vector<std::byte> workspace;

  Call(const Shapes& shapes, const Options& options)
      : plan(fastrope::make_plan<float>(shapes, options)), workspace(plan.workspace_bytes()) {}

  /// Seconds for some rows and keys of a larger call.
  double run(AttentionInputs<float>& in, Range rows, Range keys) {
    const double start = bench::now();
    plan.run(fastrope::rows(in.q.view(), rows), fastrope::rows(in.k.view(), keys),
             fastrope::rows(in.v.view(), keys), fastrope::rows(in.out.view(), rows), workspace);
    return bench::now() - start;
  }
};

void run(benchmark::State& state, const Case& c) {
  const Shapes& s = c.shapes;
  AttentionInputs<float> in(s, 2);
  const auto allowed = std::make_unique<bool[]>(static_cast<std::size_t>(s.n_q * s.n_k));
  for (Index i = 0; i < s.n_q; ++i)
    for (Index r = 0; r < c.ranges.per_row; ++r) {
      const Range range = c.ranges.ranges[static_cast<std::size_t>(i * c.ranges.per_row + r)];
      std::fill_n(allowed.get() + i * s.n_k + range.begin, range.size(), true);
    }
  Call ranged(s, {.mask = c.mask, .key_ranges = c.ranges});
  Call dense(s, {.mask = c.mask, .dense_mask = {allowed.get(), s.heads, s.n_q, s.n_k, 0, s.n_k}});
  std::vector<Call> parts;
  for (const auto& [rows, keys, mask] : c.parts)
    parts.emplace_back(Shapes{s.heads, s.kv_heads, rows.size(), keys.size(), s.d, s.d_v},
                       Options{.mask = mask});
  const auto of_parts = [&] {
    double seconds = 0;
    for (std::size_t m = 0; m < parts.size(); ++m)
      seconds += parts[m].run(in, c.parts[m].rows, c.parts[m].keys);
    return seconds;
  };
  const auto whole = [&](Call& call) { return call.run(in, {0, s.n_q}, {0, s.n_k}); };
  whole(ranged), whole(dense), of_parts();
  bench::Median of_ranges, of_dense;
  for (auto _ : state) {
    const double seconds = whole(ranged), separate = of_parts();
    state.SetIterationTime(seconds);
    of_ranges.add(seconds / separate);
    of_dense.add(whole(dense) / separate);
  }
  state.counters["over_parts"] = of_ranges.value();
  state.counters["dense_over_parts"] = of_dense.value();
}

/// A tree of 64 drafted tokens over 4096 keys and three prompts in one batch, beside a call for each.
/// over_parts: the batch over the calls; tree_over_full: the tree's call over one of the same shapes without
/// a mask.
void run_batch(benchmark::State& state, Index d) {
  const Mask mask = Mask::causal();
  const RowRanges ranges = RowRanges::tree(kTokens - 64, binary_tree(64));
  std::vector<Shapes> shapes = {{kHeads, kKvHeads, 64, kTokens, d, d}};
  for (const Index n : {1000, 512, 37}) shapes.push_back({kHeads, kKvHeads, n, n, d, d});
  std::vector<fastrope::SequenceOptions> own(shapes.size());
  own.front().key_ranges = ranges;
  std::vector<AttentionInputs<float>> in;
  std::vector<Call> calls;
  std::vector<fastrope::SequenceViews<float>> views;
  for (std::size_t s = 0; s < shapes.size(); ++s) {
    in.emplace_back(shapes[s], 3);
    calls.emplace_back(shapes[s], Options{.mask = mask, .key_ranges = own[s].key_ranges});
  }
  for (AttentionInputs<float>& x : in) views.push_back({x.q.view(), x.k.view(), x.v.view(), x.out.view()});
  Call full(shapes.front(), {.mask = Mask::full()});
  const fastrope::BatchPlan<float> plan(shapes, {.mask = mask}, own);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const auto alone = [&](Call& call, std::size_t s) {
    return call.run(in[s], {0, shapes[s].n_q}, {0, shapes[s].n_k});
  };
  bench::Median of_parts, of_full;
  for (auto _ : state) {
    const double start = bench::now();
    plan.run(views, workspace);
    const double seconds = bench::now() - start;
    state.SetIterationTime(seconds);
    const double tree = alone(calls[0], 0);
    double separate = tree;
    for (std::size_t s = 1; s < calls.size(); ++s) separate += alone(calls[s], s);
    of_parts.add(seconds / separate);
    of_full.add(tree / alone(full, 0));
  }
  state.counters["over_parts"] = of_parts.value();
  state.counters["tree_over_full"] = of_full.value();
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  for (const Case& c : cases())
    benchmark::RegisterBenchmark((c.name + "/d " + std::to_string(c.shapes.d)).c_str(),
                                 [c](benchmark::State& state) { run(state, c); })
        ->Unit(benchmark::kMillisecond)
        ->Iterations(11)
        ->UseManualTime();
  for (const Index d : {64, 128})
    benchmark::RegisterBenchmark(("tree of 64 and prompts in a batch/d " + std::to_string(d)).c_str(),
                                 [d](benchmark::State& state) { run_batch(state, d); })
        ->Unit(benchmark::kMillisecond)
        ->Iterations(41)
        ->UseManualTime();
  benchmark::RunSpecifiedBenchmarks();
}
