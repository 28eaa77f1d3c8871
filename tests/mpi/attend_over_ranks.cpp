// mpi::attend on as many ranks as it is started with, against the double-precision oracle of the whole
// sequence: every rank makes the same inputs and has its own rows of them.
#include <unistd.h>
#include <fastrope/core.hpp>
#include <fastrope/mpi.hpp>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "mpi/ranks_test.hpp"
#include "support/attention_case.hpp"
#include "support/norms.hpp"
#include "support/stored_cache.hpp"

namespace {

using namespace fastrope;
using namespace fastrope_test;

/// One case, its rows spread in several ways.
template <class T, class KV>
void check(const AttentionCase& c, const std::vector<std::pair<Spread, Spread>>& ways) {
  AttentionInputs<T, KV> in(c.shapes, 5);
  const Reference reference = in.reference(c);
  for (std::size_t way = 0; way < ways.size(); ++way) {
    const Range queries = part_of(c.shapes.n_q, ways[way].first),
                keys = part_of(c.shapes.n_k, ways[way].second);
    Tensor<T> out(c.shapes.heads, queries.size(), c.shapes.d_v);
    const mpi::Report report =
        mpi::attend(MPI_COMM_WORLD, part(in.q, queries), part(in.k, keys), part(in.v, keys), out.view(),
                    OwnOptions(c, queries, keys).options);
    const double error = max_abs_difference(out.view(), part(reference.out, queries));
    expect(error <= (std::is_same_v<T, double> ? 1e-13 : 6e-6),
           c.text + ", way " + std::to_string(way) + ": off by " + std::to_string(error));
    expect(report.ranks == ranks && report.share >= 0 && report.share <= 1, "a report");
  }
}

std::vector<AttentionCase> cases() {
  std::vector<AttentionCase> list;
  const auto add = [&](const char* text, Shapes shapes, Options base) -> AttentionCase& {
    AttentionCase c{.shapes = shapes, .base = std::move(base)};
    c.text = text;
    list.push_back(c);
    return list.back();
  };
  const Shapes s{4, 2, 300, 300, 16, 12};
  add("full", s, {});
  add("causal", s, {.rope = Rope{}, .mask = Mask::causal()});
  add("window", s, {.rope = Rope{.pairing = RopePairing::half_split}, .mask = Mask::sliding_window(40)});
  add("lags", s, {.mask = Mask::lags(-20, 70)});
  add("one query", {4, 2, 1, 300, 16, 12}, {.rope = Rope{}, .mask = Mask::causal()});
  add("fewer queries", {4, 4, 70, 300, 16, 12}, {.rope = Rope{}, .mask = Mask::causal(), .softcap = 5});
  add("few rows", {2, 1, 3, 5, 8, 4}, {.mask = Mask::causal()});
  add("no keys", {2, 1, 3, 0, 8, 4}, {});
  add("nothing", {2, 1, 0, 0, 8, 4}, {.mask = Mask::causal()});
  add("long enough to move queries, and for slices of them", {2, 1, 2600, 2600, 8, 8},
      {.rope = Rope{}, .mask = Mask::causal()});
  AttentionCase& alibi = add("alibi", s, {.mask = Mask::causal()});
  alibi.base.bias = LagBias::alibi({0.5, 0.25, 0.1, 0.05});
  alibi.bias = alibi_formula({0.5, 0.25, 0.1, 0.05});
  add("sinks", s, {.mask = Mask::causal()}).sinks = {1, -1, 0.5F, 2};
  AttentionCase& placed = add("positions", s, {.rope = Rope{}, .mask = Mask::causal()});
  for (Index i = 0; i < 300; ++i) {
    placed.query_positions.push_back(2 * i + 7);
    placed.key_positions.push_back(i * 2 + i % 3);
  }
  std::sort(placed.key_positions.begin(), placed.key_positions.end());
  add("documents", s, {.mask = Mask::causal()}).ranges =
      RowRanges::documents(std::vector<Index>{120, 37, 143});
  AttentionCase& dense = add("dense bias", s, {.mask = Mask::causal()});
  dense.dense_row_stride = 300;
  for (Index i = 0; i < 300 * 300; ++i)
    dense.dense.push_back(i % 7 == 0 ? -std::numeric_limits<float>::infinity()
                                     : static_cast<float>(i % 11) / 4);
  return list;
}

/// Keys in blocks and values of 16 bits in pages, rows of odd sizes, at positions of their own, so that what
/// a message holds begins anywhere.
void other_rows() {
  AttentionCase c{.shapes = {3, 3, 70, 70, 32, 7}};
  c.base.mask = Mask::causal();
  c.base.rope = Rope{};
  for (Index i = 0; i < 70; ++i) c.key_positions.push_back(3 * i);
  c.query_positions = c.key_positions;
  AttentionInputs<float> in(c.shapes, 8);
  const Range own = part_of(70, kGrowing);
  std::vector<Q8_0> blocks(static_cast<std::size_t>(3 * 70));
  quantize(std::span<const float>(in.k.values), std::span<Q8_0>(blocks));
  dequantize(std::span<const Q8_0>(blocks), std::span<float>(in.k.values));
  std::vector<bfloat16> values;
  for (float& x : in.v.values) {
    values.push_back(static_cast<bfloat16>(x));
    x = static_cast<float>(values.back());
  }
  std::vector<std::int32_t> pages;  // of a row
  for (Index j = own.begin; j < own.end; ++j) pages.push_back(static_cast<std::int32_t>(j));
  const PagedView<const bfloat16> paged{values.data(), 3, own.size(), 7, 1, pages, 7, 70 * 7, 7};
  Tensor<float> out(3, own.size(), 7);
  mpi::attend(MPI_COMM_WORLD, part(in.q, own), rows(contiguous<const Q8_0>(blocks.data(), 3, 70, 32), own),
              paged, out.view(), OwnOptions(c, own, own).options);
  const double error = max_abs_difference(out.view(), part(in.reference(c).out, own));
  expect(error < 6e-6, "keys in blocks, values in pages: off by " + std::to_string(error));
}

/// Ranks have equal shares, and send what they must: their keys once to every other, and nothing where the
/// mask keeps ranks apart.
void shares_and_bytes() {
  const Index each = 960, n = each * ranks;
  const AttentionCase c{.shapes = {4, 2, n, n, 8, 12}};
  const AttentionInputs<float> in(c.shapes, 6);
  const Range own = part_of(n, kEven);
  Tensor<float> out(4, each, 12);
  const auto run = [&](const Mask& mask) {
    return mpi::attend(MPI_COMM_WORLD, part(in.q, own), part(in.k, own), part(in.v, own), out.view(),
                       {.mask = mask});
  };
  const Index keys = 2 * each * (8 + 12) * static_cast<Index>(sizeof(float));
  const mpi::Report full = run(Mask::full());
  expect(full.bytes_sent == (ranks - 1) * keys && full.bytes_received == full.bytes_sent,
         "bytes of a full mask");
  expect(std::abs(full.share * ranks - 1) < 1e-9, "share of a full mask");
  const mpi::Report causal = run(Mask::causal());
  expect(std::abs(causal.share * ranks - 1) < 0.1, "share of a causal mask: " + std::to_string(causal.share));
  const mpi::Report window = run(Mask::sliding_window(1));
  expect(window.bytes_sent == 0 && window.bytes_received == 0, "bytes of ranks that do not meet");
}

/// Sequences of several lengths, spread in several ways or on one rank, call after call.
void batch() {
  const std::vector<std::pair<Index, Spread>> sequences = {
      {50, kEven}, {7, kSecond}, {1, kEven}, {120, kGrowing}};
  for (const auto& [n, spread] : sequences) {
    const AttentionCase c{.shapes = {2, 1, n, n, 8, 8}, .base = {.mask = Mask::causal()}};
    const AttentionInputs<float> in(c.shapes, 9);
    const Range own = part_of(n, spread);
    Tensor<float> out(2, own.size(), 8);
    const mpi::Report report = mpi::attend(MPI_COMM_WORLD, part(in.q, own), part(in.k, own), part(in.v, own),
                                           out.view(), c.options());
    expect(max_abs_difference(out.view(), part(in.reference(c).out, own)) < 6e-6, "a batch");
    if (&spread == &sequences[1].second) expect(report.bytes_sent == 0, "a sequence of one rank");
  }
}

/// A rank that comes late keeps the others waiting, no more.
void delayed() {
  const AttentionCase c{.shapes = {2, 1, 40, 40, 8, 8}};
  const AttentionInputs<float> in(c.shapes, 7);
  const Range own = part_of(40, kEven);
  Tensor<float> out(2, own.size(), 8);
  if (rank == ranks - 1) usleep(300000);
  mpi::attend(MPI_COMM_WORLD, part(in.q, own), part(in.k, own), part(in.v, own), out.view(), {});
  expect(max_abs_difference(out.view(), part(in.reference(c).out, own)) < 6e-6, "a delayed rank");
}

void refusals() {
  const Tensor<float> x(2, 10, 4);
  const auto call = [&](const Options& o, const Tensor<float>& q, const Tensor<float>& k) {
    Tensor<float> out(q.heads, q.rows, 4);
    mpi::attend(MPI_COMM_WORLD, q.view(), k.view(), k.view(), out.view(), o);
  };
  const bool last = rank == ranks - 1;
  if (ranks > 1) {
    refused("differ in mask", [&] { call({.mask = last ? Mask::causal() : Mask::full()}, x, x); });
    refused("differ in scale", [&] { call({.scale = last ? 0.5 : 0.25}, x, x); });
    const std::vector<double> table(19, 0.5);
    refused("differ in bias's first lag",
            [&] { call({.bias = LagBias::clamped_table(table, 1, last ? -9 : -8)}, x, x); });
    const std::vector<double> one(200, 1.0), two(200, 2.0);
    refused("differ in weights", [&] {
      call({.weights = RelativeWeights({{0, 0}}, -100, last ? two : one)}, x, x);
    });
    refused("differ in rope", [&] { call(last ? Options{} : Options{.rope = Rope{}}, x, x); });
    refused("differ in d", [&] {
      const Tensor<float> wide(2, 10, 8);
      Tensor<float> out(2, 10, 8);
      const Tensor<float>& mine = last ? wide : x;
      Tensor<float> result(2, 10, mine.cols);
      mpi::attend(MPI_COMM_WORLD, mine.view(), mine.view(), mine.view(), result.view(), {});
    });
  }
  // One rank's rows alone are wrong.
  const std::vector<Position> positions(3);
  refused("rank " + std::to_string(ranks - 1) + ": query_positions has 3 positions for 10 rows", [&] {
    Options o;
    if (last) o.query_positions = positions;
    call(o, x, x);
  });
  refused("rank 0: softcap", [&] { call({.mask = Mask::causal(), .softcap = -1}, x, x); });
  refused("path toeplitz approximates", [&] { call({.path = Path::toeplitz}, x, x); });
  // A pool that fails on one rank fails on all.
  refused("rank " + std::to_string(ranks - 1), [&] {
    Options o;
    if (last) o.executor = Executor(2, [](Index, TaskRef) {});
    call(o, x, x);
  });
}

}  // namespace

int main(int argc, char** argv) {
  return run_on_ranks(argc, argv, [] {
    const std::vector<std::pair<Spread, Spread>> ways = {{kEven, kEven},
                                                         {kGrowing, kAlternating},
                                                         {kSecond, kEven},
                                                         {kAlternating, kSecond},
                                                         {kEven, kGrowing}};
    for (const AttentionCase& c : cases()) {
      check<float, float>(c, ways);
      check<double, double>(c, {ways[0], ways[3]});
      check<float, bfloat16>(c, {ways[1]});
    }
    other_rows();
    shares_and_bytes();
    batch();
    delayed();
    refusals();
  });
}
