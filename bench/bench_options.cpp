// What each option of the exact path costs, and how exact it stays.
//
//     build/release/bench/bench_options [--benchmark_filter=...]
//
// over_plain: time over that of the plain causal call of the same storage, both runs side by side, the median
// of the ratios. error: max |out - reference| / max|V| over every row, the reference in double precision.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <fastrope/fastrope.hpp>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "ceilings.hpp"
#include "support/attention_case.hpp"

namespace {

using fastrope::Index;
using fastrope::Mask;
using fastrope_test::AttentionCase;
using fastrope_test::AttentionInputs;
using fastrope_test::Inputs;

constexpr fastrope::Shapes kShapes{4, 2, 512, 512, 64, 64};

AttentionCase plain() {
  AttentionCase c{.shapes = kShapes};
  c.base.mask = Mask::causal();
  return c;
}

/// The options of a case, by name.
std::vector<std::pair<std::string, AttentionCase>> cases() {
  Inputs random(1);
  std::vector<std::pair<std::string, AttentionCase>> all;
  const auto add = [&](std::string name, const std::function<void(AttentionCase&)>& set) {
    AttentionCase c = plain();
    set(c);
    all.emplace_back(std::move(name), std::move(c));
  };
  const auto everything = [&](AttentionCase& c) {
    c.base.rope = fastrope::Rope{};
    c.base.softcap = 30;
    c.base.mask = Mask::sliding_window(300);
    set_alibi(c, random);
    set_sinks(c, random);
    set_dense(c, random, true, true, 6);
  };
  add("plain", [](AttentionCase&) {});
  add("full", [](AttentionCase& c) { c.base.mask = Mask::full(); });
  add("window 64", [](AttentionCase& c) { c.base.mask = Mask::sliding_window(64); });
  add("rope", [](AttentionCase& c) { c.base.rope = fastrope::Rope{}; });
  add("softcap", [](AttentionCase& c) { c.base.softcap = 30; });
  add("sinks", [&](AttentionCase& c) { set_sinks(c, random); });
  add("alibi", [&](AttentionCase& c) { set_alibi(c, random); });
  add("t5", [&](AttentionCase& c) { set_t5(c, random, false); });
  add("dense bias", [&](AttentionCase& c) { set_dense(c, random, true, true, 6); });
  add("ring cache", [&](AttentionCase& c) {
    c.key_positions = shuffled_positions(random, c.shapes.n_k, 1000);
    for (Index i = 0; i < c.shapes.n_q; ++i) c.query_positions.push_back(1000 + i);
  });
  add("general weights, 9 entries",
      [&](AttentionCase& c) { c.base.weights = random_weights(random, c.shapes.d, 9, 512); });
  add("everything", everything);
  return all;
}

/// One planned call over its own memory.
template <class T>
class Call {
 public:
  explicit Call(const AttentionCase& c)
      : in_(c.shapes, 2),
        plan_(fastrope::make_plan<fastrope::ArithmeticOf<T>>(c.shapes, c.options())),
        workspace_(plan_.workspace_bytes()) {}

  double seconds() {
    const double start = bench::now();
    plan_.run(in_.q.view(), in_.k.view(), in_.v.view(), in_.out.view(), workspace_);
    return bench::now() - start;
  }
  double error(const AttentionCase& c) const {
    return fastrope_test::max_abs_difference(in_.out.view(), in_.reference(c).out.view()) /
           fastrope_test::max_abs(in_.v.view());
  }

 private:
  AttentionInputs<T> in_;
  fastrope::Plan<fastrope::ArithmeticOf<T>> plan_;
  std::vector<std::byte> workspace_;
};

template <class T>
void run(benchmark::State& state, const AttentionCase& c) {
  Call<T> call(c), reference(plain());
  call.seconds();
  reference.seconds();
  std::vector<double> ratios;
  for (auto _ : state) {
    const double seconds = call.seconds();
    state.SetIterationTime(seconds);
    ratios.push_back(seconds / reference.seconds());
  }
  std::nth_element(ratios.begin(), ratios.begin() + static_cast<std::ptrdiff_t>(ratios.size() / 2),
                   ratios.end());
  state.counters["over_plain"] = ratios[ratios.size() / 2];
  state.counters["error"] = call.error(c);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const auto add = [](const char* storage, auto run) {
    for (const auto& [name, c] : cases())
      benchmark::RegisterBenchmark((std::string(storage) + "/" + name).c_str(),
                                   [c = c, run](benchmark::State& state) { run(state, c); })
          ->Unit(benchmark::kMillisecond)
          ->Iterations(15)
          ->UseManualTime();
  };
  add("fp32", run<float>);
  add("fp64", run<double>);
  add("bf16", run<fastrope::bfloat16>);
  benchmark::RunSpecifiedBenchmarks();
}
