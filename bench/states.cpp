// Recurrences of public models' shapes against the machine, on one thread: a prompt, a step, and from how
// many tokens on a state is cheaper than a cache.
//
//     build/release/bench/states [runs (7)]
//
// of_peak: the flops that the algorithm needs over the multiply-add peak, which is measured before and after
// every run: 2 rank (d_v + 1) for each query head and token, as many for each key head and token, and of a
// prompt 2 (d + d_v) for each pair of a chunk, which are done as such. of_bandwidth: the bytes of the copy of
// the state that a step reads, over the read bandwidth. Time is the thread's own, since others may run
// beside. Figures are medians.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fastrope/fastrope.hpp>
#include <vector>

#include "ceilings.hpp"
#include "support/inputs.hpp"
#include "support/stored_cache.hpp"

namespace {

using fastrope::Index;
using fastrope::Kernel;
using fastrope_test::Tensor;

double thread_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// A key head of a model, with the query heads that share it.
struct Shape {
  const char* name;
  Kernel kernel;
  Index heads, d, d_v;
};

struct Tokens {
  Tensor<float> q, k, v, out;
  std::vector<float> gates;

  Tokens(const Shape& s, Index n, fastrope_test::Inputs& random)
      : q(random.gaussian<float>(s.heads, n, s.d)),
        k(random.gaussian<float>(1, n, s.d)),
        v(random.gaussian<float>(1, n, s.d_v)),
        out(s.heads, n, s.d_v),
        gates(static_cast<std::size_t>(n), -0.001F) {}
};

struct Figures {
  double seconds, of_peak, of_bandwidth;
};

class Sequence {
 public:
  explicit Sequence(const Shape& s) : shape_(s), sequence_(s.heads, 1, s.d, s.d_v, options(s)) {}

  Index rank() const { return sequence_.rank(); }
  double copy_bytes() const { return static_cast<double>(sequence_.state().size() * sizeof(float)); }

  Figures prompt(int runs) {
    Tokens t(shape_, kPrompt, random_);
    const auto n = static_cast<double>(kPrompt),
               chunk = rank() < 1024 ? 256.0 : 768.0;  // of a recurrence in float
    const auto heads = static_cast<double>(shape_.heads);
    const double pairs = n * (chunk + 1) / 2 * 2 * static_cast<double>(shape_.d + shape_.d_v);
    Figures f = measure(runs, (heads + 1) * n * features() + heads * pairs, [&] {
      sequence_.prefill(t.q.view(), t.k.view(), t.v.view(), t.out.view(), {t.gates.data(), 1, kPrompt});
    });
    f.seconds /= n;
    return f;
  }
  Figures step(int runs) {
    constexpr Index kSteps = 256;  // a block: one fold among them
    const auto n = static_cast<double>(kSteps);
    Tokens t(shape_, 1, random_);
    Figures f = measure(runs, n * (static_cast<double>(shape_.heads) + 1) * features(), [&] {
      for (Index i = 0; i < kSteps; ++i)
        if (sequence_.step(t.q.view(), t.k.view(), t.v.view(), t.out.view(), t.gates) !=
            fastrope::RunStatus::ok)
          std::abort();
    });
    f.seconds /= n;
    f.of_bandwidth = copy_bytes() / f.seconds / bench::read_bandwidth();
    return f;
  }

 private:
  static constexpr Index kPrompt = 3 * 768;

  static fastrope::Options options(const Shape& s) {
    fastrope::Options options{.mask = fastrope::Mask::causal()};
    options.kernel = s.kernel;
    options.normaliser =
        s.kernel.nonnegative() ? fastrope::Normaliser::row_sum() : fastrope::Normaliser::none();
    return options;
  }
  double features() const { return 2 * static_cast<double>(rank() * (shape_.d_v + 1)); }

  template <class Run>
  static Figures measure(int runs, double flops, Run&& run) {
    run();
    bench::Median seconds, share;
    for (int r = 0; r < runs; ++r) {
      const double before = bench::fma_peak<float>(3), start = thread_seconds();
      run();
      const double taken = thread_seconds() - start;
      seconds.add(taken);
      share.add(flops / taken / ((before + bench::fma_peak<float>(3)) / 2));
    }
    return {seconds.value(), share.value(), 0};
  }

  Shape shape_;
  fastrope_test::Inputs random_{1};
  fastrope::RecurrentAttention<float> sequence_;
};

/// Seconds of a step over a cache of n tokens in bfloat16.
double cached_step(const Shape& s, Index n, int runs) {
  fastrope_test::Inputs random(2);
  const Tokens t(s, n, random);
  const fastrope_test::StoredCache<fastrope::bfloat16> k(t.k), v(t.v);
  Tensor<float> q = random.gaussian<float>(s.heads, 1, s.d), out(s.heads, 1, s.d_v);
  const auto plan =
      fastrope::make_plan<float>({s.heads, 1, 1, n, s.d, s.d_v}, {.mask = fastrope::Mask::causal()});
  std::vector<std::byte> workspace(plan.workspace_bytes());
  bench::Median seconds;
  for (int r = -1; r < 4 * runs; ++r) {
    const double start = thread_seconds();
    plan.run(q.view(), k.view(), v.view(), out.view(), workspace);
    if (r >= 0) seconds.add(thread_seconds() - start);
  }
  return seconds.value();
}

}  // namespace

int main(int argc, char** argv) {
  const int runs = argc > 1 ? std::max(1, std::atoi(argv[1])) : 7;
  const Shape power{"power(2), 12 query heads", Kernel::power(2), 12, 128, 128};
  std::printf("multiply-add peak %.1f Gflop/s, read bandwidth %.1f GB/s, one thread\n",
              bench::fma_peak<float>() * 1e-9, bench::read_bandwidth() * 1e-9);
  std::printf("%-26s %4s %4s %6s  %12s %8s  %10s %8s %13s\n", "", "d", "d_v", "rank", "prompt us/tok",
              "of_peak", "step us", "of_peak", "of_bandwidth");
  double step_seconds = 0;
  for (const Shape& s :
       {power, Shape{"taylor(2), 1 query head", Kernel::taylor(2), 1, 16, 64},
        Shape{"power(1), 1 query head", Kernel::power(1, fastrope::KernelSign::any), 1, 128, 128},
        Shape{"power(4), 4 query heads", Kernel::power(4), 4, 16, 64}}) {
    Sequence sequence(s);
    const Figures prompt = sequence.prompt(runs), step = sequence.step(runs);
    if (step_seconds == 0) step_seconds = step.seconds;
    std::printf("%-26s %4td %4td %6td  %12.2f %8.2f  %10.1f %8.2f %13.2f\n", s.name, s.d, s.d_v,
                sequence.rank(), prompt.seconds * 1e6, prompt.of_peak, step.seconds * 1e6, step.of_peak,
                step.of_bandwidth);
    std::fflush(stdout);
  }
  std::printf("\n%s: a step of %.0f us against softmax over a bfloat16 cache\n", power.name,
              step_seconds * 1e6);
  double before = 0, even = 0;
  Index last = 0;
  for (Index n = 1024; n <= 65536; n *= 2) {
    const double cached = cached_step(power, n, runs);
    std::printf("  %6td tokens: %8.1f us\n", n, cached * 1e6);
    if (before <= step_seconds && step_seconds < cached)
      even = static_cast<double>(last) +
             static_cast<double>(n - last) * (step_seconds - before) / (cached - before);
    before = cached;
    last = n;
  }
  const Index rank = 128 * 129 / 2;
  std::printf("  even at about %.0f tokens; a state of float has the bytes of a cache of %td\n", even,
              rank * 129 * 4 / (2 * 128 * 2));
  return EXIT_SUCCESS;
}
