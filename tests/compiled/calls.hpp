// What the headers and the library are both asked, under the names that they share: included after
// fastrope.hpp in one file and after compiled.hpp in another.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "answers.hpp"

namespace {

using namespace fastrope;

constexpr Index kHeads = 4, kKvHeads = 2, kN = 96, kD = 32;

template <class T>
std::vector<T> random_values(Index count, unsigned seed, float size = 1) {
  std::mt19937 random(seed);
  std::vector<T> values;
  for (Index i = 0; i < count; ++i)
    values.push_back(static_cast<T>(size * (static_cast<float>(random() % 4096) / 2048 - 1)));
  return values;
}
std::vector<std::byte> bytes(std::size_t size) { return std::vector<std::byte>(size); }

/// q, k and v of one call as T, and its results.
template <class T>
struct Tensors {
  std::vector<T> q = random_values<T>(kHeads * kN * kD, 1), k = random_values<T>(kKvHeads * kN * kD, 2),
                 v = random_values<T>(kKvHeads * kN * kD, 3), out = std::vector<T>(q.size());

  TensorView<const T> queries() const { return contiguous(q.data(), kHeads, kN, kD); }
  TensorView<const T> keys() const { return contiguous(k.data(), kKvHeads, kN, kD); }
  TensorView<const T> values() const { return contiguous(v.data(), kKvHeads, kN, kD); }
  TensorView<T> result() { return contiguous(out.data(), kHeads, kN, kD); }
};

constexpr double kRounding = 1e-5;

class Calls {
 public:
  Answers answers;

  void add(const char* name, const auto& values, double tolerance = kRounding) {
    Answer answer{name, {}, tolerance};
    for (const auto x : values) answer.values.push_back(static_cast<double>(x));
    answers.push_back(std::move(answer));
  }

  void option(const char* name, const Options& options, double tolerance = kRounding) {
    Tensors<float> x;
    const Report report = attend(x.queries(), x.keys(), x.values(), x.result(), options);
    add(name, x.out, tolerance);
    if (!report.row_bounds.empty()) add(name, std::vector<double>{double(report.row_bounds.size())}, 0);
  }
  void refused(const char* name, const std::function<void()>& call) {
    std::string message;
    try {
      call();
    } catch (const Error& error) {
      message = error.what();
    }
    add(name, message, 0);
  }
};

void options_one_by_one(Calls& calls) {
  Rope rope{.base = 100};
  calls.option("rope", {.rope = rope});
  rope.pairing = RopePairing::half_split;
  rope.rotary_dim = 16;
  rope.rotary_begin = 8;
  calls.option("a part of the columns", {.rope = rope});
  for (const RopeScaling& scaling :
       {RopeScaling(LinearScaling{2}), RopeScaling(NtkScaling{4}),
        RopeScaling(YarnScaling{.factor = 4, .original_context = 40, .beta_fast = 16}),
        RopeScaling(
            YarnScaling{.factor = 4, .original_context = 40, .attention_factor = 1.5, .truncate = false}),
        RopeScaling(Llama3Scaling{.factor = 4, .high_freq_factor = 3, .original_context = 50}),
        RopeScaling(FactorScaling{{1, 2, 3, 4, 5, 6, 7, INFINITY}, 1.25})}) {
    rope.scaling = scaling;
    calls.option("scaling", {.rope = rope, .mask = Mask::causal()});
  }
  std::vector<Position> turns(2 * kN);
  for (Index i = 0; i < 2 * kN; ++i) turns[static_cast<std::size_t>(i)] = i * 7 % 31;
  for (const SectionOrder order : {SectionOrder::consecutive, SectionOrder::interleaved})
    calls.option("sections", {.rope = Rope{.base = 100, .sections = {10, 6}, .section_order = order},
                              .query_section_positions = {turns.data(), 2, kN},
                              .key_section_positions = {turns.data(), 2, kN}});
  calls.option("turned before",
               {.rope = Rope{.base = 100}, .rope_already_applied = true, .mask = Mask::causal()});
  calls.option("window", {.mask = Mask::lags(-3, 17)});

  calls.option("alibi", {.bias = LagBias::alibi({0.5, 0.25, 0.125, 0.0625})});
  const auto table = random_values<double>(kHeads * (2 * kN - 1), 4);
  calls.option(
      "T5", {.bias = LagBias::t5(std::vector<double>(table.begin(), table.begin() + 32), kHeads, true, 30)});
  calls.option("table", {.bias = LagBias::table(table, kHeads, 1 - kN)});
  const std::vector<double> weights = random_values<double>(3 * (2 * kN - 1), 5);
  calls.option("weights", {.weights = RelativeWeights({{0, 0}, {3, 3}, {5, 1}}, 1 - kN, weights)});

  calls.option("scale and softcap", {.scale = 0.7, .softcap = 1.5});
  const std::vector<float> sinks = {1, -1, 0.5F, 2};
  calls.option("sinks", {.sinks = sinks});
  const auto bias = random_values<float16>(kN * kN, 6, 2);
  calls.option("dense bias", {.dense_bias = {bias.data(), kHeads, kN, kN, 0, kN}});
  const auto bits = random_values<float>(kN * kN, 7);
  const auto allowed = std::make_unique<bool[]>(kN * kN);
  for (std::size_t i = 0; i < bits.size(); ++i) allowed[i] = bits[i] > 0;
  calls.option("dense mask", {.dense_mask = {allowed.get(), kHeads, kN, kN, 0, kN}});
  std::vector<Position> positions(kN);
  for (Index i = 0; i < kN; ++i) positions[static_cast<std::size_t>(i)] = 3 * i - 20;
  calls.option("query positions",
               {.rope = Rope{.base = 100}, .mask = Mask::causal(), .query_positions = positions});
  calls.option("key positions", {.mask = Mask::causal(), .key_positions = positions});
  const auto ranges = RowRanges::documents(std::vector<Index>{20, 40, 36});
  calls.option("key ranges", {.key_ranges = ranges});

  calls.option("kernel", {.mask = Mask::causal(), .kernel = Kernel::taylor(2)});
  calls.option("signed kernel", {.kernel = Kernel::polynomial({4, 1}, KernelSign::any)});
  calls.option("polynomial path", {.scale = 0.02, .tolerance = 1e-2, .path = Path::polynomial}, 2e-2);
  calls.option("toeplitz path",
               {.bias = LagBias::table(table, kHeads, 1 - kN),
                .scale = 0.02,
                .tolerance = 1e-2,
                .path = Path::toeplitz},
               2e-2);
  calls.option("threads", {.executor = Executor(3, [](Index count, TaskRef task) {
                             for (Index i = count; i-- > 0;) task(i, i % 3);
                           })});
}

template <class T>
void stored(Calls& calls, const char* name, double tolerance = kRounding) {
  Tensors<T> x;
  attend(x.queries(), x.keys(), x.values(), x.result(), {.mask = Mask::causal()});
  calls.add(name, x.out, tolerance);
}

template <class T>
void quantised(Calls& calls, const char* name) {
  Tensors<float> x;
  std::vector<T> keys(x.k.size() / kElementsOf<T>), values(keys.size());
  quantize(std::span<const float>(x.k), std::span<T>(keys));
  quantize(std::span<const float>(x.v), std::span<T>(values));
  for (const Index n_q : {Index{1}, kN}) {  // decoded where there are few
    attend(rows(x.queries(), {0, n_q}), contiguous(keys.data(), kKvHeads, kN, kD),
           contiguous(values.data(), kKvHeads, kN, kD), rows(x.result(), {0, n_q}), {});
    calls.add(name, x.out);
  }
  dequantize(std::span<const T>(keys), std::span<float>(x.k));
  calls.add(name, x.k, 0);
}

void storage_types(Calls& calls) {
  stored<double>(calls, "double");
  stored<float16>(calls, "float16", 1e-3);
  stored<bfloat16>(calls, "bfloat16", 2e-2);
  quantised<Q8_0>(calls, "Q8_0");
  quantised<Q4_0>(calls, "Q4_0");
  quantised<float8_e4m3>(calls, "float8_e4m3");
  quantised<float8_e5m2>(calls, "float8_e5m2");

  Tensors<float> x;
  // Integers near a tie are either, as the compiler contracts products.
  const auto scales = random_values<float>(kKvHeads * kN, 13);
  std::vector<std::int8_t> integers(x.k.size());
  std::vector<float> row_scales(kKvHeads * kN), column_scales(kD);
  quantize_rows(x.k, integers, row_scales);
  calls.add("integers of rows", integers, 1.01 / 127);
  calls.add("scales of rows", row_scales);
  quantize_columns(x.v, integers, column_scales);
  calls.add("integers of columns", integers, 1.01 / 127);
  calls.add("scales of columns", column_scales);
  std::vector<std::int8_t> keys, values;
  for (const float number : x.k) keys.push_back(static_cast<std::int8_t>(10 * number));
  for (const float number : x.v) values.push_back(static_cast<std::int8_t>(100 * number));
  const ScaledView scaled_keys{contiguous<const std::int8_t>(keys.data(), kKvHeads, kN, kD),
                               MatrixView<const float>(scales.data(), kKvHeads, kN)};
  const ScaledView scaled_values{contiguous<const std::int8_t>(values.data(), kKvHeads, kN, kD),
                                 MatrixView<const float>(),
                                 MatrixView<const float>(scales.data(), kKvHeads, kD)};
  attend(x.queries(), scaled_keys, scaled_values, x.result(), {});
  calls.add("int8 with scales", x.out);

  const std::vector<std::int32_t> pages = {3, 0, 2, 1};  // of 30 rows
  const PagedView<const float> paged{x.q.data(), kKvHeads,           90,      kD, 30,
                                     pages,      kKvHeads * 30 * kD, 30 * kD, kD};
  attend(x.queries(), paged, paged, x.result(), {});
  calls.add("pages", x.out);
}

void plans_and_parts(Calls& calls) {
  Tensors<float> x;
  std::vector<float> lse(kHeads * kN), other_lse(lse.size()), other(x.out.size());
  const MatrixView<float> sums(lse.data(), kHeads, kN), other_sums(other_lse.data(), kHeads, kN);
  const auto plan = make_plan(Shapes{kHeads, kKvHeads, kN, kN, kD, kD}, {.mask = Mask::causal()});
  auto workspace = bytes(plan.workspace_bytes());
  calls.add("status",
            std::vector<int>{
                int(plan.run(x.queries(), x.keys(), x.values(), x.result(), sums, workspace)),
                int(plan.run(x.queries(), x.keys(), x.values(), x.result(), std::span(workspace).first(8)))});
  calls.add("lse", lse);
  const Range last{kN - 2, kN};
  plan.run(rows(x.queries(), last), x.keys(), x.values(), rows(x.result(), last), workspace);
  calls.add("fewer queries", x.out);

  const auto small = make_plan(x.queries(), x.keys(), x.values(),
                               {.scale = 0.01, .tolerance = 1e-3, .path = Path::polynomial});
  workspace.resize(small.workspace_bytes());
  std::vector<Index> repaired(kHeads, -1);
  std::vector<double> bounds(kHeads * kN, -1);
  small.run(x.queries(), x.keys(), x.values(), x.result(), workspace, {repaired, bounds});
  calls.add("plan of data", x.out, 2e-3);
  // Their part of rounding depends on the length of vectors.
  calls.add("bounds of rows", bounds, 0.2);
  calls.add("error bound", std::vector<double>{small.report().heads.at(0).error_bound}, 0.2);
  calls.add("path", std::vector<int>{int(small.report().heads.at(0).path)}, 0);
  std::ostringstream text;
  text << small;
  calls.add("text", std::vector<int>{text.str().find("head 3: polynomial") != std::string::npos,
                                     small.to_json().find("\"candidates\"") != std::string::npos});

  const Range first_keys{0, 50}, last_keys{50, kN};
  attend_partial(x.queries(), rows(x.keys(), first_keys), rows(x.values(), first_keys), x.result(), sums, {});
  attend_partial(x.queries(), rows(x.keys(), last_keys), rows(x.values(), last_keys),
                 contiguous(other.data(), kHeads, kN, kD), other_sums, {});
  merge(x.result(), sums, contiguous<const float>(other.data(), kHeads, kN, kD), other_sums);
  calls.add("merged", x.out);

  std::vector<SequenceViews<float>> batch;
  for (const Range range : {Range{0, 1}, Range{1, 60}, Range{60, kN}})
    batch.push_back({rows(x.queries(), range), rows(x.keys(), {0, range.end}),
                     rows(x.values(), {0, range.end}), rows(x.result(), range)});
  const std::vector<Position> early(kN);
  const std::vector<SequenceOptions> own = {{}, {.queries = std::span(early).first(59)}, {}};
  std::vector<Shapes> shapes;
  for (const auto& s : batch) shapes.push_back({kHeads, kKvHeads, s.q.rows, s.k.rows, kD, kD});
  const BatchPlan<float> exact(shapes, {.mask = Mask::causal()}, own);
  workspace.resize(exact.workspace_bytes(shapes));
  calls.add("batch status", std::vector<int>{int(exact.run(batch, workspace))});
  calls.add("batch", x.out);
  const auto mixed = make_batch_plan(batch, {.scale = 0.01, .tolerance = 1e-3}, own);
  workspace.resize(mixed.workspace_bytes());
  calls.add("mixed batch status", std::vector<int>{int(mixed.run(batch, workspace))});
  calls.add("mixed batch", x.out, 2e-3);
  calls.add("heads", std::vector<std::size_t>{mixed.report(1).heads.size()}, 0);
}

/// A head for which the exact path pays, as rates have it, unless they say that tiles are slow.
void cost_models(Calls& calls) {
  Tensors<float> x;
  const Options options{.scale = 0.01, .tolerance = 1e-2};
  const auto path = [&](const auto&... cost) {
    return int(make_plan(x.queries(), x.keys(), x.values(), options, cost...).report().heads.at(0).path);
  };
  CostModel slow;
  slow.tile = 1e3;
  const std::string file = "rates_of_all_targets.txt";
  std::ofstream rates(file);
  for (const char* target : {"sse4", "avx2", "avx512", "avx512_vnni", "avx512_bf16_vnni", "amx_bf16_vnni",
                             "avx2_vnni", "neon", "neon_dotprod", "neon_bf16", "neon_sve", "baseline"})
    rates << target << " tile 1e3 weigh 1e9 feature 1e9 transform 1e9 element 1e8 round 1e5 look 1e4\n";
  rates.close();
  const CostModel read = read_cost_model(file);
  calls.add("rates", std::vector<double>{read.tile, read.weigh, read.feature, read.transform, read.element,
                                         read.round, read.look});
  calls.add("paths", std::vector<int>{path(), path(slow), path(read)}, 0);
  const Report report = attend(x.queries(), x.keys(), x.values(), x.result(), options, slow);
  calls.add("path of a call", std::vector<int>{int(report.heads.at(0).path)}, 0);
  const std::vector<SequenceViews<float>> batch = {{x.queries(), x.keys(), x.values(), x.result()}};
  const std::vector<SequenceOptions> own(1);
  calls.add("path in a batch",
            std::vector<int>{int(make_batch_plan(batch, options, own, slow).report(0).heads.at(0).path)}, 0);
}

void recurrences(Calls& calls) {
  Tensors<float> x;
  const Options options{.rope = Rope{.base = 100}, .mask = Mask::causal(), .kernel = Kernel::taylor(2)};
  RecurrentAttention<float> recurrence(kHeads, kKvHeads, kD, kD, options),
      copy(kHeads, kKvHeads, kD, kD, options);
  const Range prompt{0, kN - 1}, token{kN - 1, kN};
  recurrence.prefill(rows(x.queries(), prompt), rows(x.keys(), prompt), rows(x.values(), prompt),
                     rows(x.result(), prompt));
  auto state = bytes(recurrence.state_bytes());
  recurrence.save(state);
  copy.load(state);
  calls.add("tokens", std::vector<Position>{copy.tokens()}, 0);
  copy.step(rows(x.queries(), token), rows(x.keys(), token), rows(x.values(), token),
            rows(x.result(), token));
  calls.add("recurrent", x.out);
  calls.add("its bounds", std::vector<bool>{copy.row_bounds()(3, 0) > 0, copy.row_bounds()(3, 0) < 1}, 0);
  calls.refused("another state", [&] { copy.load(std::span(state).first(40)); });

  auto gates = random_values<float>(kHeads * kN, 20);
  for (float& g : gates) g = -std::abs(g);
  const MatrixView<const float> all(gates.data(), kHeads, kN, kN), most(gates.data(), kHeads, kN - 1, kN);
  std::vector<float> last;
  for (Index h = 0; h < kHeads; ++h) last.push_back(all(h, kN - 1));
  Options gated{.mask = Mask::causal(), .kernel = Kernel::power(2), .normaliser = Normaliser::at_least(2)};
  gated.log_gates = all;
  attend(x.queries(), x.keys(), x.values(), x.result(), gated);
  calls.add("gated", x.out);
  gated.log_gates = {nullptr, kHeads, 0, 0};
  RecurrentAttention<float> forgetful(kHeads, kKvHeads, kD, kD, gated);
  forgetful.prefill(rows(x.queries(), prompt), rows(x.keys(), prompt), rows(x.values(), prompt),
                    rows(x.result(), prompt), most);
  const auto step = [&](RecurrentAttention<float>& r, std::span<const float> gates_of_token) {
    return int(r.step(rows(x.queries(), token), rows(x.keys(), token), rows(x.values(), token),
                      rows(x.result(), token), gates_of_token));
  };
  calls.add("gated step", std::vector<int>{step(forgetful, last)}, 0);
  calls.add("gated recurrent", x.out);
  last[0] = 1;
  calls.add("a gate above 0", std::vector<int>{step(forgetful, last)}, 0);

  const Options bounded{.mask = Mask::causal(), .scale = 0.001, .tolerance = 1e-2};
  RecurrentAttention<float> states(kHeads, kKvHeads, kD, kD, bounded, 1);
  states.prefill(rows(x.queries(), prompt), rows(x.keys(), prompt), rows(x.values(), prompt),
                 rows(x.result(), prompt));
  calls.add("bounded step", std::vector<int>{step(states, {})}, 0);
  calls.add("softmax by states", x.out, 2e-2);
  for (Index h = 0; h < kKvHeads; ++h) x.k[(h * kN + kN - 1) * kD] = 1e6F;
  calls.add("a promise broken", std::vector<int>{step(states, {})}, 0);
  calls.refused("radius", [&] { RecurrentAttention<float>(1, 1, 4, 4, bounded, 0); });
}

void toeplitz_matrices(Calls& calls) {
  const Index n = 700, m = 500, channels = 3;
  const auto generator = random_values<double>(n + m - 1, 8), x = random_values<double>(n * channels, 9),
             u = random_values<double>(n * 2, 10), v = random_values<double>(m * 2, 11);
  std::vector<double> y(n * channels);
  const MatrixView<const double> in(x.data(), m, channels), in_rows(x.data(), n, channels);
  const ToeplitzOperator<double> t(n, m, generator);
  t.apply(in, {y.data(), n, channels});
  calls.add("toeplitz", y, 1e-9);
  t.apply_transpose(in_rows, {y.data(), m, channels});
  calls.add("transposed", y, 1e-9);
  t.apply_hadamard({u.data(), n, 2}, {v.data(), m, 2}, in, {y.data(), n, channels});
  calls.add("hadamard", y, 1e-9);
  const auto generators = random_values<float>(2 * 7, 12);
  std::vector<float> one(8), two(8, 1);
  ToeplitzOperator<float>::per_channel(4, 4, {generators.data(), 2, 7})
      .apply({two.data(), 4, 2}, {one.data(), 4, 2});
  calls.add("a matrix for each channel", one);
}

void refusals(Calls& calls) {
  Tensors<float> x;
  calls.refused("tolerance", [&] { make_plan(x.queries(), x.keys(), x.values(), {.tolerance = -1}); });
  calls.refused("shapes", [&] { attend(x.queries(), x.keys(), rows(x.values(), {0, 5}), x.result(), {}); });
  calls.refused("kernel", [&] { RecurrentAttention<float>(1, 1, 4, 4, {.mask = Mask::causal()}); });
  calls.refused("batch", [&] {
    BatchPlan<float>(std::vector<Shapes>{{2, 2, 1, 1, 4, 4}, {1, 1, 1, 1, 4, 4}}, {});
  });
  calls.refused("sinks", [&] {
    const std::vector<float> sinks = {1};
    make_plan(Shapes{kHeads, kKvHeads, kN, kN, kD, kD}, {.sinks = sinks});
  });
}

Answers all_calls() {
  Calls calls;
  options_one_by_one(calls);
  storage_types(calls);
  plans_and_parts(calls);
  cost_models(calls);
  recurrences(calls);
  toeplitz_matrices(calls);
  refusals(calls);
  return std::move(calls.answers);
}

}  // namespace
