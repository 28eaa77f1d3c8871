// Heads that go to ranks whole, on as many as it is started with, against the double-precision oracle and
// what one process computes.
#include <fastrope/fastrope.hpp>
#include <fastrope/mpi.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "mpi/ranks_test.hpp"
#include "support/attention_case.hpp"
#include "support/norms.hpp"

namespace {

using namespace fastrope;
using namespace fastrope_test;

struct SmallInputs {
  AttentionInputs<float> x;
  Reference reference;
  double largest;

  /// Logits of deviation size^2.
  SmallInputs(const AttentionCase& c, double size) : x(c.shapes, 17), reference{}, largest(0) {
    for (Tensor<float>* t : {&x.q, &x.k})
      for (float& e : t->values) e *= static_cast<float>(size);
    reference = x.reference(c);
    for (const float e : x.v.values) largest = std::max(largest, std::abs(static_cast<double>(e)));
    if (largest == 0) largest = 1;  // no values
  }
};

const std::vector<std::pair<Spread, Spread>> kWays = {
    {kEven, kEven}, {kGrowing, kAlternating}, {kSecond, kEven}, {kAlternating, kSecond}};

/// A case, its rows spread in two of these ways, the next two in turn: of `path`, within its bound (of a
/// polynomial kernel, 1e-5), and what a spot check sees is what there is.
void check(AttentionCase c, Path path, double size = 0.25) {
  const SmallInputs in(c, size);
  c.base.verify = 5;
  static std::size_t turn = 0;
  for (int way = 0; way < 2; ++way) {
    const auto& [of_queries, of_keys] = kWays[turn++ % kWays.size()];
    const Range queries = part_of(c.shapes.n_q, of_queries), keys = part_of(c.shapes.n_k, of_keys);
    const OwnOptions own(c, queries, keys);
    Tensor<float> out(c.shapes.heads, queries.size(), c.shapes.d_v);
    const mpi::Report report = mpi::attend(MPI_COMM_WORLD, part(in.x.q, queries), part(in.x.k, keys),
                                           part(in.x.v, keys), out.view(), own.options);
    expect_same_plan(report.heads, c.text);
    for (Index h = 0; h < c.shapes.heads; ++h) {
      const HeadReport& head = report.heads[static_cast<std::size_t>(h)];
      const std::string what = c.text + ", head " + std::to_string(h);
      expect(head.path == path, what + ": " + to_string(head.path) + ": " + head.reason);
      const double error = error_of(h, out.view(), part(in.reference.out, queries)) / in.largest;
      const double promised = c.base.tolerance > 0 && c.base.kernel.is_softmax() ? head.error_bound : 1e-5;
      expect(error <= promised && (c.base.tolerance == 0 || promised <= c.base.tolerance),
             what + ": off by " + std::to_string(error) + ", promised " + std::to_string(promised));
      expect(head.verified_rows == std::min<Index>(5, c.shapes.n_q) && head.observed_error <= promised,
             what + ": a spot check of " + std::to_string(head.verified_rows) + " rows saw " +
                 std::to_string(head.observed_error));
    }
  }
}

AttentionCase make_case(const char* text, Shapes shapes, Options base) {
  AttentionCase c{.shapes = shapes, .base = std::move(base)};
  c.text = text;
  return c;
}

/// All heads in order, each once, and no rank has more of them than it must.
void units() {
  for (const auto& [heads, kv_heads] :
       {std::pair<Index, Index>{1, 1}, {6, 3}, {8, 1}, {9, 3}, {0, 0}, {5, 5}}) {
    const auto all = mpi::detail::head_units({.heads = heads, .kv_heads = kv_heads}, ranks);
    std::vector<Index> of_ranks(static_cast<std::size_t>(ranks));
    Index next = 0, largest = 0;
    for (const mpi::detail::HeadUnit& unit : all) {
      expect(unit.heads.begin == next && unit.heads.size() > 0 &&
                 unit.kv_head == unit.heads.begin / (heads / kv_heads) &&
                 unit.kv_head == (unit.heads.end - 1) / (heads / kv_heads),
             "a unit");
      next = unit.heads.end;
      of_ranks[static_cast<std::size_t>(unit.rank)] += 1;
      largest = std::max(largest, unit.heads.size());
    }
    expect(next == heads, "all heads");
    expect(*std::max_element(of_ranks.begin(), of_ranks.end()) <= ceil_div(std::ssize(all), ranks) &&
               (heads == 0 || largest <= std::max<Index>(1, ceil_div(heads, std::min<Index>(ranks, heads)))),
           "even shares of " + std::to_string(heads) + " heads");
  }
}

/// What cannot be divided by rows.
void whole_heads() {
  Inputs random(23);
  const Shapes s{6, 3, 300, 300, 8, 5}, small{6, 3, 300, 300, 4, 5};
  const Options causal{.mask = Mask::causal()};
  Options features = causal;
  features.path = Path::polynomial;
  const auto with = [](Options o, const Kernel& kernel) {
    o.kernel = kernel;
    return o;
  };
  check(make_case("power", small, with(features, Kernel::power(2))), Path::polynomial);
  check(make_case("Taylor", s, with({.path = Path::exact}, Kernel::taylor(2))), Path::exact);
  AttentionCase retention = make_case("retention", small, with(features, Kernel::power(2)));
  retention.base.normaliser = Normaliser::at_least(1);
  set_gates(retention, random, 6, 6, 40);
  check(retention, Path::polynomial);
  AttentionCase gated = make_case("gates", s, causal);
  set_gates(gated, random, 3, 6);
  set_input_gates(gated, random, 3, 1);
  check(gated, Path::exact);
  AttentionCase sections = make_case("sections", s, {.rope = Rope{}});
  set_sections(sections, random, {2, 1, 1}, SectionOrder::consecutive);
  check(sections, Path::exact);
  AttentionCase documents = make_case("documents", small, with(causal, Kernel::power(2)));
  documents.base.path = Path::exact;
  documents.ranges = RowRanges::documents(std::vector<Index>{120, 37, 143});
  check(documents, Path::exact);
  check(make_case("one query", {6, 3, 1, 300, 4, 5}, with(causal, Kernel::power(2))), Path::exact);
  check(make_case("no keys", {6, 3, 3, 0, 4, 5}, with({.path = Path::exact}, Kernel::power(2))), Path::exact);
  check(make_case("no queries", {6, 3, 0, 0, 4, 5}, with({.path = Path::exact}, Kernel::power(2))),
        Path::exact);
}

/// Paths that states do not have.
void approximated() {
  Inputs random(29);
  const Shapes s{4, 2, 1000, 1000, 4, 5};
  const Options toeplitz{.mask = Mask::causal(), .tolerance = 1e-2, .path = Path::toeplitz};
  Options turned = toeplitz;
  turned.rope = Rope{};
  check(make_case("transforms", s, toeplitz), Path::toeplitz, 0.15);
  check(make_case("transforms, turned", {4, 2, 1000, 1000, 2, 5}, turned), Path::toeplitz, 0.15);
  AttentionCase alibi = make_case("transforms", s, toeplitz);
  set_alibi(alibi, random);
  check(alibi, Path::toeplitz, 0.15);
  AttentionCase table = make_case("transforms", s, toeplitz);
  set_table(table, random, 4, 999);
  check(table, Path::toeplitz, 0.15);
  AttentionCase placed = make_case("features, positions", s,
                                   {.mask = Mask::causal(), .tolerance = 1e-2, .path = Path::polynomial});
  for (Index i = 0; i < 1000; ++i) placed.query_positions.push_back(2 * i + i % 2);
  placed.key_positions = placed.query_positions;
  check(placed, Path::polynomial);
  placed.text = "features, positions of queries alone";
  placed.key_positions.clear();
  for (Index i = 0; i < 1000; ++i) placed.query_positions[static_cast<std::size_t>(i)] = i;
  check(placed, Path::polynomial);
}

/// Where nothing is forced, heads go to ranks whole if that is predicted to pay; those that are exact in one
/// process are computed by all ranks.
void mixed() {
  const Shapes s{4, 4, 6000, 6000, 4, 4};
  AttentionCase c = make_case("mixed", s, {.mask = Mask::causal(), .tolerance = 1e-2, .verify = 3});
  for (Index i = 0; i < s.n_q; ++i) c.query_positions.push_back(3 * i);
  c.key_positions = c.query_positions;
  AttentionInputs<float> in(c.shapes, 31);
  for (float& x : in.q.values) x *= 0.25F;
  for (float& x : in.k.values) x *= 0.25F;
  for (Index i = 0; i < s.n_q * s.d; ++i) in.q.values[static_cast<std::size_t>(s.n_q * s.d + i)] *= 60;
  const Range own = part_of(s.n_q, kGrowing);
  Tensor<float> out(4, own.size(), 4), one(4, s.n_q, 4);
  const OwnOptions options(c, own, own);
  const mpi::Report report = mpi::attend(MPI_COMM_WORLD, part(in.q, own), part(in.k, own), part(in.v, own),
                                         out.view(), options.options);
  expect_same_plan(report.heads, "mixed");
  const Report of_one = attend(in.q.view(), in.k.view(), in.v.view(), one.view(), c.options());
  for (std::size_t h = 0; h < 4; ++h) {
    const HeadReport &a = of_one.heads[h], &b = report.heads[h];
    expect(a.path == (h == 1 ? Path::exact : Path::polynomial), "a path of one process: " + a.reason);
    // More ranks than heads: exact pieces have the ranks that would wait.
    if (ranks <= 4) expect(b.path == a.path, "mixed: " + b.reason);
    expect(b.verified_rows == 3 && b.observed_error < 1e-2, "a spot check of mixed heads");
    if (b.path != Path::polynomial) continue;
    expect(b.error_bound == a.error_bound && b.rank == a.rank && b.candidates.size() == a.candidates.size() &&
               b.candidates[1].how == a.candidates[1].how && b.reason == a.reason,
           "the plan of one process");
    const Index head = static_cast<Index>(h);
    double error = 0;
    for (Index i = 0; i < own.size(); ++i)
      for (Index e = 0; e < 4; ++e)
        error = std::max(error, std::abs(static_cast<double>(out.view().head(head)(i, e)) -
                                         static_cast<double>(one.view().head(head)(own.begin + i, e))));
    expect(error == 0, "bit for bit what one process has");
  }
}

/// A head that features make little cheaper is exact on all ranks, which are faster than one with features.
void what_pays() {
  for (const Index n : {1500, 3000, 6000, 12000}) {
    AttentionCase c = make_case("what pays", {1, 1, n, n, 4, 4}, {.mask = Mask::causal(), .tolerance = 1e-2});
    for (Index i = 0; i < n; ++i) c.query_positions.push_back(3 * i);
    c.key_positions = c.query_positions;
    AttentionInputs<float> in(c.shapes, 37);
    for (Tensor<float>* t : {&in.q, &in.k})
      for (float& x : t->values) x *= 0.25F;
    const HeadReport one = make_plan(in.q.view(), in.k.view(), in.v.view(), c.options()).report().heads[0];
    const Range own = part_of(n, kEven);
    const OwnOptions options(c, own, own);
    const HeadReport head =
        mpi::make_plan(MPI_COMM_WORLD, part(in.q, own), part(in.k, own), part(in.v, own), options.options)
            .heads()[0];
    const bool pays =
        one.path == Path::polynomial && one.candidates[1].seconds < one.candidates[0].seconds / ranks;
    expect((head.path == Path::polynomial) == pays,
           "what pays, n " + std::to_string(n) + ": " + to_string(head.path) + ": " + head.reason);
    if (one.path == Path::polynomial && !pays)
      expect(head.reason.find("by heads one rank would take") != std::string::npos, head.reason);
  }
}

/// Other types: keys of 16 bits, results of 16 bits, arithmetic in double.
void types() {
  const AttentionCase c =
      make_case("types", {4, 2, 200, 200, 4, 6}, {.mask = Mask::causal(), .kernel = Kernel::power(2)});
  const Range own = part_of(200, kAlternating);
  const auto run = [&]<class T, class KV>(AttentionInputs<T, KV> in, double allowed) {
    Tensor<T> out(4, own.size(), 6);
    mpi::attend(MPI_COMM_WORLD, part(in.q, own), part(in.k, own), part(in.v, own), out.view(), c.options());
    const double error = max_abs_difference(out.view(), part(in.reference(c).out, own));
    expect(error <= allowed, "types: off by " + std::to_string(error));
  };
  run(AttentionInputs<double, double>(c.shapes, 3), 1e-12);
  run(AttentionInputs<float, bfloat16>(c.shapes, 3), 1e-4);
  run(AttentionInputs<bfloat16, bfloat16>(c.shapes, 3), 1e-2);
}

/// What a rank refuses, all do.
void refusals() {
  const bool last = rank == ranks - 1;
  const Tensor<float> x(2, 10, 4);
  const auto call = [&](const Options& o) {
    Tensor<float> out(2, 10, 4);
    mpi::attend(MPI_COMM_WORLD, x.view(), x.view(), x.view(), out.view(), o);
  };
  std::vector<float> gates(20, -0.5F);
  const auto gated = [&](Index cols) {
    Options o{.mask = Mask::causal()};
    o.log_gates = {gates.data(), 2, cols, 10};
    return o;
  };
  const std::string name = "rank " + std::to_string(ranks - 1);
  refused(name + ": log_gates is [2, 9] for 10 rows", [&] { call(gated(last ? 9 : 10)); });
  if (last) gates[13] = 0.5F;
  refused("log_gates", [&] { call(gated(10)); });
  gates[13] = -0.5F;
  if (ranks > 1) {
    refused("differ in kernel", [&] { call({.kernel = Kernel::power(last ? 4 : 2)}); });
    refused("differ in normaliser", [&] {
      call({.kernel = Kernel::power(2), .normaliser = Normaliser::row_sum(last ? 1e-9 : 1e-12)});
    });
    // Ranges of all heads together on some ranks, of each head on one.
    const std::vector<Range> ranges(20, Range{0, 1});
    refused("ranks differ in key_ranges", [&] {
      Options o{.kernel = Kernel::power(2), .path = Path::exact};
      o.key_ranges = {std::span(ranges).first(last ? 20 : 10), 1};
      call(o);
    });
  }
  const std::vector<float> dense(static_cast<std::size_t>(10 * 10 * ranks));
  refused("dense", [&] {
    Options o{.kernel = Kernel::power(2)};
    std::vector<char> mask(dense.size(), 1);
    o.dense_mask = {reinterpret_cast<const bool*>(mask.data()), 2, 10, 10 * ranks, 0, 10 * ranks};
    call(o);
  });
  refused("options.verify", [&] {
    Options o{.verify = 2};
    o.dense_bias = {dense.data(), 2, 10, 10 * ranks, 0, 10 * ranks};
    call(o);
  });
  refused("a spot check is of 0 rows or more", [&] { call({.verify = -1}); });
  // Rows that transforms cannot meet the tolerance for: the rank that has the head says so for all.
  refused("path toeplitz", [&] {
    Tensor<float> big(2, 10, 4), out(2, 10, 4);
    for (float& e : big.values) e = 9;
    mpi::attend(MPI_COMM_WORLD, big.view(), big.view(), x.view(), out.view(),
                {.tolerance = 1e-6, .path = Path::toeplitz});
  });
  // A pool that fails on one rank fails on all.
  refused("rank ", [&] {
    Options o{.kernel = Kernel::power(2)};
    o.executor = Executor(2, [](Index, TaskRef) {});
    call(o);
  });
}

}  // namespace

int main(int argc, char** argv) {
  return run_on_ranks(argc, argv, [] {
    units();
    whole_heads();
    approximated();
    mixed();
    what_pays();
    types();
    refusals();
  });
}
