// Where the exact path's time goes: each of its steps alone, on the sizes that a block of queries meets them
// in, beside the whole.
//
//     build/release/bench/exact_steps
//
// One head, full attention, float, one thread. Steps: scores (the tile kernel over a run of packed keys),
// weights (maxima, exponentials and sums of a tile's scores), values (the tile kernel over the run's values),
// packing (all of it, for each query block its share), and the folds of stretches into double. A cycle is
// what two multiply-adds of whole vectors take in a loop that stays in registers, timed before and after each
// step; "of peak" is a step's multiply-adds over those of its cycles. The last column is what the step takes
// of the whole call, whose own share of the peak follows.
#include <cstdio>
#include <fastrope/fastrope.hpp>
#include <functional>
#include <utility>
#include <vector>

#include "attention.hpp"
#include "ceilings.hpp"

namespace {

using fastrope::Index;
using fastrope::Range;
using Real = float;
using Keys = fastrope::PackedKeys<Real>;
using Rows = fastrope::QueryRows<Real>;

/// Median of several runs of what `step` does `times` times, in units of what one multiply-add of one element
/// takes at the peak, for one time.
double fma_times(Index times, const std::function<void()>& step) {
  bench::Median median;
  for (int run = 0; run < 15; ++run) {
    const bench::Timed timed = bench::beside_ceiling([] { return bench::fma_peak<Real>(/*runs=*/1); },
                                                     [&] {
                                                       for (Index i = 0; i < times; ++i) step();
                                                     });
    median.add(timed.seconds * timed.ceiling / 2 / static_cast<double>(times));
  }
  return median.value();
}

void print_steps(Index n, Index d) {
  const fastrope::Shapes shapes{.heads = 1, .kv_heads = 1, .n_q = n, .n_k = n, .d = d, .d_v = d};
  const bench::AttentionCase a{.shapes = shapes};
  bench::AttentionInputs<float> in(shapes, 1);
  const fastrope::Problem problem(shapes, a.options());
  const auto plan = fastrope::make_plan<Real>(shapes, a.options());
  std::vector<std::byte> space(plan.workspace_bytes());
  const double whole =
      fma_times(1, [&] { plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), space); });

  std::vector<std::byte> memory(fastrope::Workspace::bytes_of([&](fastrope::Workspace& w) {
    Keys keys(problem, w);
    w.take<Real>(Rows::kTileRows * Rows::kStride);
    w.take<Real>(Rows::kRows * d);
    w.take<Real>(Keys::scratch_size(shapes));
    fastrope::SoftmaxRows<Real>(Rows::kRows, keys.value_stride(), w);
    fastrope::SoftmaxTotals(Rows::kRows, keys.value_stride(), w);
  }));
  fastrope::Workspace w(memory);
  Keys keys(problem, w);
  Real* scores = w.take<Real>(Rows::kTileRows * Rows::kStride).data();
  Real* queries = w.take<Real>(Rows::kRows * d).data();
  Real* scratch = w.take<Real>(Keys::scratch_size(shapes)).data();
  const fastrope::SoftmaxRows<Real> stretch(Rows::kRows, keys.value_stride(), w);
  const fastrope::SoftmaxTotals totals(Rows::kRows, keys.value_stride(), w);
  const fastrope::StoredRows q(in.q.view()), k(in.k.view()), v(in.v.view());

  constexpr Index kTiles = Rows::kRows / Rows::kTileRows, kKeys = Rows::kKeys;
  const auto pack_queries = [&] {
    for (Index r = 0; r < Rows::kRows; r += Rows::kTileRows)
      keys.pack_queries(problem, q.head(0), {r, r + Rows::kTileRows}, Rows::kTileRows, 0.1, queries + r * d,
                        scratch);
  };
  keys.pack(problem, k, v);
  pack_queries();
  // Runs of keys follow each other as they do in a call; the tiles of a block share each.
  Index at = 0;
  const auto next_run = [&] { return Range{at, at = at + 2 * kKeys > n ? 0 : at + kKeys}; };
  const auto over_tiles = [&](auto&& tile) {
    const Index begin = next_run().begin;
    for (Index t = 0; t < kTiles; ++t) tile(t, Range{begin, begin + kKeys});
  };
  const auto score = [&](Index t, Range run) {
    for (Index j = run.begin; j < run.end; j += Keys::kWidth)
      fastrope::multiply<false, Real>(Rows::kTileRows, Keys::kWidth, d,
                                      keys.query_operand(queries + t * Rows::kTileRows * d, Rows::kTileRows),
                                      keys.panel(0, j / Keys::kWidth), Keys::kWidth, scores + (j - run.begin),
                                      Rows::kStride);
  };
  const auto add_values = [&](Index t, Range run) {
    fastrope::multiply<true, Real>(
        Rows::kTileRows, stretch.width, kKeys, fastrope::BroadcastOperand<Real>{scores, Rows::kStride, 1},
        keys.values(0, run.begin), stretch.width, stretch.row(t * Rows::kTileRows), stretch.width);
  };

  const double runs = static_cast<double>(n) / Rows::kRows * static_cast<double>(n) / kKeys;
  const double pairs = static_cast<double>(n) * static_cast<double>(n);
  std::printf("\nn %td, d %td: the whole %.3f of peak\n%-10s %12s %22s %14s\n", n, d,
              2 * pairs * static_cast<double>(d) / whole, "step", "of peak", "cycles a vector pair*",
              "of the whole");
  const auto print = [&](const char* name, double fmas, double seconds, double times) {
    std::printf("%-10s %12s %22.2f %13.1f%%\n", name,
                fmas > 0 ? std::to_string(fmas / seconds).substr(0, 5).c_str() : "-",
                seconds * times / pairs / 2, 100 * seconds * times / whole);
  };
  const double product = static_cast<double>(Rows::kRows * kKeys) * static_cast<double>(d);
  stretch.clear(Rows::kRows);
  totals.clear(Rows::kRows);
  print("scores", product, fma_times(50, [&] { over_tiles(score); }), runs);
  print("values", product, fma_times(50, [&] { over_tiles(add_values); }), runs);
  std::fill_n(scores, Rows::kTileRows * Rows::kStride, Real{-1});
  print("weights", 0,
        fma_times(50,
                  [&] {
                    over_tiles([&](Index t, Range) {
                      stretch.from(t * Rows::kTileRows).weigh(Rows::kTileRows, scores, Rows::kStride, kKeys);
                    });
                  }),
        runs);
  print("folds", 0,
        fma_times(10,
                  [&] {
                    for (Index r = 0; r < Rows::kRows; ++r) totals.add(r, stretch, r);
                    stretch.clear_sums(Rows::kRows);
                  }),
        runs * kKeys / fastrope::kStretch);
  print("keys", 0, fma_times(1, [&] { keys.pack(problem, k, v); }), 1);
  print("queries", 0, fma_times(4, pack_queries), static_cast<double>(n) / Rows::kRows);
}

}  // namespace

int main() {
  std::printf("%s: multiply-add peak %.1f Gflop/s, one thread\n* of 16 scores\n",
              fastrope::simd::target_name(), bench::fma_peak<Real>() * 1e-9);
  for (const Index d : {64, 128})
    for (const Index n : {512, 4096}) print_steps(n, d);
}
