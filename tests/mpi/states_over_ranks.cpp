// The polynomial path over ranks, on as many as it is started with, against the double-precision oracle and
// the plan of one process.
#include <fastrope/fastrope.hpp>
#include <fastrope/mpi.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "mpi/ranks_test.hpp"
#include "support/attention_case.hpp"
#include "support/norms.hpp"

namespace {

using namespace fastrope;
using namespace fastrope_test;

/// Inputs with small logits.
template <class T, class KV>
AttentionInputs<T, KV> small_inputs(const Shapes& s, double size = 0.3) {
  AttentionInputs<T, KV> in(s, 11);
  for (T& x : in.q.values) x = static_cast<T>(size * static_cast<double>(x));
  for (KV& x : in.k.values) x = static_cast<KV>(size * static_cast<double>(x));
  return in;
}

template <class T>
double largest_of(const Tensor<T>& x) {
  double largest = 0;
  for (const T& e : x.values) largest = std::max(largest, std::abs(static_cast<double>(e)));
  return largest;
}

/// One case, its rows spread in several ways, all of them as queries and keys alike. Within what is promised,
/// the tolerance, whatever path a head took; and that is `path`.
template <class T, class KV>
void check(const AttentionCase& c, Path path, const std::vector<std::pair<Spread, Spread>>& ways) {
  const AttentionInputs<T, KV> in = small_inputs<T, KV>(c.shapes);
  const Reference reference = in.reference(c);
  const double largest = largest_of(in.v);
  for (std::size_t way = 0; way < ways.size(); ++way) {
    const std::string what = c.text + ", way " + std::to_string(way);
    const Range queries = part_of(c.shapes.n_q, ways[way].first),
                keys = part_of(c.shapes.n_k, ways[way].second);
    Tensor<T> out(c.shapes.heads, queries.size(), c.shapes.d_v);
    const mpi::Report report = mpi::attend(MPI_COMM_WORLD, part(in.q, queries), part(in.k, keys),
                                           part(in.v, keys), out.view(), c.options());
    expect_same_plan(report.heads, what);
    const auto expected = part(reference.out, queries);
    for (Index h = 0; h < c.shapes.heads; ++h) {
      const HeadReport& head = report.heads[static_cast<std::size_t>(h)];
      const double error = error_of(h, out.view(), expected);
      expect(error <= head.error_bound * largest && head.error_bound <= c.base.tolerance,
             what + ": off by " + std::to_string(error) + ", promised " + std::to_string(head.error_bound));
      expect(head.path == path, what + ": " + to_string(head.path) + ": " + head.reason);
    }
  }
}

AttentionCase make_case(const char* text, Shapes shapes, Options base) {
  AttentionCase c{.shapes = shapes, .base = std::move(base)};
  c.text = text;
  return c;
}

/// Queries and keys spread alike; so that rows see those of the ranks before and their own.
std::pair<Spread, Spread> alike(const Spread& spread) { return {spread, spread}; }

void polynomial() {
  const std::vector<std::pair<Spread, Spread>> same = {alike(kEven), alike(kGrowing), alike(kSecond),
                                                       alike(kAlternating)};
  std::vector<std::pair<Spread, Spread>> any = same;
  any.insert(any.end(), {{kGrowing, kAlternating}, {kSecond, kEven}, {kEven, kSecond}});
  const Shapes s{2, 1, 1200, 1200, 4, 5};
  const Options full{.tolerance = 1e-3, .path = Path::polynomial};
  Options causal = full;
  causal.mask = Mask::causal();
  causal.rope = Rope{};
  const AttentionCase of_all = make_case("full", s, full), of_past = make_case("causal", s, causal);
  check<float, float>(of_all, Path::polynomial, any);
  check<double, double>(of_all, Path::polynomial, {any.back()});
  check<float, bfloat16>(of_all, Path::polynomial, {same[1]});
  check<float, float>(of_past, Path::polynomial, same);
  check<double, double>(of_past, Path::polynomial, {same[0]});
  check<float, bfloat16>(of_past, Path::polynomial, {same[1]});
  Options strict = causal;
  strict.mask = Mask::lags(1, Mask::kUnlimited);
  check<float, float>(make_case("the past alone", s, strict), Path::polynomial, {same[3]});
  // The last rank has all queries, which see all keys of the others: a chunk of a prompt, and one token.
  const Spread last = [](int r) { return r == ranks - 1 ? 1.0 : 0.0; };
  if (ranks == 1) {
    check<float, float>(make_case("a chunk", {2, 1, 300, 1200, 4, 5}, causal), Path::polynomial,
                        {alike(last)});
  } else {
    const Spread chunk = [](int r) { return r == ranks - 1 ? 300.0 : 900.0 / (ranks - 1); };
    check<float, float>(make_case("a chunk", {2, 1, 300, 1200, 4, 5}, causal), Path::polynomial,
                        {{last, chunk}});
  }
  check<float, float>(make_case("one query", {2, 2, 1, 1200, 4, 5}, causal), Path::polynomial,
                      {{kSecond, kEven}, {last, kGrowing}});
}

/// Where features do not suit, heads are exact and say why.
void exact_instead() {
  const Shapes s{2, 1, 200, 200, 16, 5};
  const auto reason = [&](Options o, const Spread& of_queries, const Spread& of_keys) {
    const AttentionInputs<float> in = small_inputs<float, float>(s);
    const Range queries = part_of(s.n_q, of_queries), keys = part_of(s.n_k, of_keys);
    Tensor<float> out(s.heads, queries.size(), s.d_v);
    const mpi::Report report =
        mpi::attend(MPI_COMM_WORLD, part(in.q, queries), part(in.k, keys), part(in.v, keys), out.view(), o);
    AttentionCase c{.shapes = s, .base = o};
    expect(max_abs_difference(out.view(), part(in.reference(c).out, queries)) < 6e-6, "an exact head");
    expect(report.heads[0].path == Path::exact, "an exact path");
    return report.heads[0].reason;
  };
  const auto expect_reason = [&](const std::string& text, const std::string& found) {
    expect(found.find(text) != std::string::npos, "'" + text + "' expected: " + found);
  };
  expect_reason("a window", reason({.mask = Mask::sliding_window(40), .tolerance = 1e-3}, kEven, kEven));
  expect_reason("softcap", reason({.tolerance = 1e-3, .softcap = 5}, kEven, kEven));
  expect_reason("forced", reason({.tolerance = 1e-3, .path = Path::exact}, kEven, kEven));
  expect_reason("tolerance 0", reason({}, kEven, kEven));
  expect_reason("exact costs less", reason({.tolerance = 1e-3}, kEven, kEven));
  if (ranks > 1) {
    const Options causal{.mask = Mask::causal(), .tolerance = 1e-3};
    expect_reason("near keys would be other ranks'", reason(causal, kGrowing, kAlternating));
  }
  refused("path polynomial cannot be run: attention sinks", [&] {
    const std::vector<float> sinks = {1, 2};
    Options o{.tolerance = 1e-3, .path = Path::polynomial};
    o.sinks = sinks;
    reason(o, kEven, kEven);
  });
  refused("it cannot meet tolerance 0", [&] { reason({.path = Path::polynomial}, kEven, kEven); });
}

/// What one process decides, all ranks do: the same sample of rows, and bounds of all of them.
void one_plan() {
  const Shapes s{2, 2, 4096, 4096, 8, 8};
  const AttentionInputs<float> in = small_inputs<float, float>(s, 0.25);
  const Range own = part_of(s.n_q, kGrowing);
  for (const Mask& mask : {Mask::full(), Mask::causal()}) {
    const Options options{.mask = mask, .tolerance = 1e-2};
    const auto one = make_plan(in.q.view(), in.k.view(), in.v.view(), options);
    const auto plan =
        mpi::make_plan(MPI_COMM_WORLD, part(in.q, own), part(in.k, own), part(in.v, own), options);
    for (std::size_t h = 0; h < 2; ++h) {
      const HeadReport &a = one.report().heads[h], &b = plan.heads()[h];
      expect(a.path == Path::polynomial && b.path == a.path, "one path: " + b.reason);
      expect(b.rank == a.rank && b.degree == a.degree, "one rank");
      // Bounds of all rows in the place of those of far ones, which may be shorter.
      expect(b.entry_bound >= a.entry_bound * (1 - 1e-12) && b.entry_bound <= 1.2 * a.entry_bound,
             "one entry bound: " + std::to_string(a.entry_bound) + " and " + std::to_string(b.entry_bound));
    }
    // One plan runs many times.
    Tensor<float> first(2, own.size(), 8), second(2, own.size(), 8);
    plan.run(part(in.q, own), part(in.k, own), part(in.v, own), first.view());
    plan.run(part(in.q, own), part(in.k, own), part(in.v, own), second.view());
    expect(first.values == second.values, "two runs of a plan");
  }
}

/// Heads of which some are approximated and some exact, in groups of two.
void mixed_heads() {
  const Shapes s{6, 3, 4096, 4096, 8, 8};
  AttentionInputs<float> in = small_inputs<float, float>(s, 0.25);
  for (Index i = 0; i < s.n_q * s.d; ++i) in.q.values[static_cast<std::size_t>(i + s.n_q * s.d)] *= 60;
  for (Index i = 0; i < 2 * s.n_q * s.d; ++i)
    in.q.values[static_cast<std::size_t>(i + 4 * s.n_q * s.d)] *= 60;
  const AttentionCase c = make_case("mixed", s, {.mask = Mask::causal(), .tolerance = 1e-2});
  const Range own = part_of(s.n_q, kGrowing);
  Tensor<float> out(6, own.size(), 8);
  const mpi::Report report =
      mpi::attend(MPI_COMM_WORLD, part(in.q, own), part(in.k, own), part(in.v, own), out.view(), c.options());
  const Path expected[] = {Path::polynomial, Path::exact, Path::polynomial,
                           Path::polynomial, Path::exact, Path::exact};
  for (std::size_t h = 0; h < 6; ++h)
    expect(
        report.heads[h].path == expected[h],
        "head " + std::to_string(h) + ": " + to_string(report.heads[h].path) + ": " + report.heads[h].reason);
  const Reference reference = in.reference(c);
  for (Index h = 0; h < 6; ++h) {
    const double error = error_of(h, out.view(), part(reference.out, own)),
                 promised = report.heads[static_cast<std::size_t>(h)].error_bound;
    expect(error <= promised * largest_of(in.v), "mixed heads: head " + std::to_string(h) + " is off by " +
                                                     std::to_string(error) + ", promised " +
                                                     std::to_string(promised));
    expect(promised <= (expected[h] == Path::exact ? 1e-3 : 1e-2), "a promise");
  }
}

/// Rows whose sums cannot be vouched for are computed again over all ranks: here rows that are opposite to
/// all keys that they see, so that their denominators are much smaller than keys on average make them.
void repaired_rows() {
  const Shapes s{2, 1, 3000, 3000, 4, 5};
  AttentionInputs<float> in = small_inputs<float, float>(s, 0.02);
  const auto number = [](Index i) { return static_cast<std::size_t>(i); };
  for (Index j = 0; j < s.n_k; ++j) in.k.values[number(j * s.d)] += j < s.n_k / 2 ? -1.5F : 1.5F;
  for (Index i = 0; i < s.n_q; i += 50) in.q.values[number(i * s.d)] = 2;
  const AttentionCase c = make_case(
      "repaired", s, {.mask = Mask::causal(), .scale = 1.0, .tolerance = 1e-3, .path = Path::polynomial});
  const Range own = part_of(s.n_q, kGrowing);
  Tensor<float> out(2, own.size(), 5);
  const mpi::Report report =
      mpi::attend(MPI_COMM_WORLD, part(in.q, own), part(in.k, own), part(in.v, own), out.view(), c.options());
  expect(report.heads[0].repaired_rows > 0 && report.heads[0].repaired_rows < 100 &&
             report.heads[1].repaired_rows == 0,
         "rows computed again: " + std::to_string(report.heads[0].repaired_rows) + " and " +
             std::to_string(report.heads[1].repaired_rows));
  const Reference reference = in.reference(c);
  const double error = max_abs_difference(out.view(), part(reference.out, own));
  expect(error <= report.heads[0].error_bound * largest_of(in.v),
         "repaired: off by " + std::to_string(error));
}

/// What a rank sends by states does not depend on how long the sequence is, nor, but for a few bounds more or
/// less, what it sends for a plan; by pieces it does.
void bytes() {
  const auto sent = [](Index n, const Mask& mask, Path path) {
    const Index own = part_of(n, kEven).size();
    AttentionInputs<float> in = small_inputs<float, float>({2, 1, own, own, 4, 4}, 0.25);
    for (Tensor<float>* x : {&in.q, &in.k})
      for (float& e : x->values) e = std::clamp(e, -0.3F, 0.3F);
    const auto plan = mpi::make_plan(MPI_COMM_WORLD, in.q.view(), in.k.view(), in.v.view(),
                                     {.mask = mask, .tolerance = 1e-2, .path = path});
    const mpi::Report report = plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view());
    return std::pair{report.bytes_sent, plan.bytes_planned()};
  };
  for (const Mask& mask : {Mask::full(), Mask::causal()}) {
    const auto [few, few_planned] = sent(Index{1} << 14, mask, Path::polynomial);
    const auto [many, many_planned] = sent(Index{1} << 17, mask, Path::polynomial);
    expect(few == many && (few > 0 || ranks == 1),
           "bytes of states: " + std::to_string(few) + " and " + std::to_string(many));
    expect(std::abs(few_planned - many_planned) <= 512,
           "bytes of plans: " + std::to_string(few_planned) + " and " + std::to_string(many_planned));
  }
  if (ranks > 1)
    expect(sent(4096, Mask::full(), Path::exact).first > 2 * sent(1024, Mask::full(), Path::exact).first,
           "bytes of pieces");
}

/// Values that are not finite have no bound: the head is exact on all ranks, whoever has them.
void not_finite() {
  const Shapes s{1, 1, 3000, 3000, 4, 4};
  AttentionInputs<float> in = small_inputs<float, float>(s);
  in.k.values[4 * 2990] = std::numeric_limits<float>::infinity();
  const Range own = part_of(s.n_q, kEven);
  Tensor<float> out(1, own.size(), 4);
  const mpi::Report report = mpi::attend(MPI_COMM_WORLD, part(in.q, own), part(in.k, own), part(in.v, own),
                                         out.view(), {.mask = Mask::causal(), .tolerance = 1e-2});
  expect(report.heads[0].path == Path::exact, "keys that are not finite: " + report.heads[0].reason);
  refused("not finite", [&] {
    mpi::attend(MPI_COMM_WORLD, part(in.q, own), part(in.k, own), part(in.v, own), out.view(),
                {.mask = Mask::causal(), .tolerance = 1e-2, .path = Path::polynomial});
  });
  // A pool that fails on one rank fails on all.
  refused("rank " + std::to_string(ranks - 1), [&] {
    Options o{.tolerance = 1e-2, .path = Path::polynomial};
    if (rank == ranks - 1) o.executor = Executor(2, [](Index, TaskRef) {});
    mpi::attend(MPI_COMM_WORLD, part(in.q, own), part(in.q, own), part(in.v, own), out.view(), o);
  });
}

}  // namespace

int main(int argc, char** argv) {
  return run_on_ranks(argc, argv, [] {
    polynomial();
    exact_instead();
    one_plan();
    mixed_heads();
    repaired_rows();
    bytes();
    not_finite();
  });
}
