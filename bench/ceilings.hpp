// What the machine can do at best, measured in the same run as what is compared with it.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

#include "fastrope/core/executor.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/toeplitz/fftw.hpp"

namespace bench {

using fastrope::Index;

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The median of some figures.
class Median {
 public:
  void add(double x) { figures_.push_back(x); }
  double value() {
    std::sort(figures_.begin(), figures_.end());
    return figures_[figures_.size() / 2];
  }

 private:
  std::vector<double> figures_;
};

/// Median seconds of `runs` calls, after one that is not counted.
template <class F>
double median_seconds(int runs, F&& f) {
  f();
  Median seconds;
  for (int i = 0; i < runs; ++i) {
    const double start = now();
    f();
    seconds.add(now() - start);
  }
  return seconds.value();
}

/// A run and the ceiling, measured before and after it, since the clock of a shared machine wanders.
struct Timed {
  double seconds;
  double ceiling;
};

template <class Ceiling, class Run>
Timed beside_ceiling(Ceiling&& ceiling, Run&& run) {
  const double before = ceiling(), start = now();
  run();
  const double seconds = now() - start;
  return {seconds, (before + ceiling()) / 2};
}

/// Keeps a value from being optimised away.
template <class T>
void keep(T&& value) {
  asm volatile("" : : "r,m"(value) : "memory");
}

/// Flops per second of one thread in a loop of fused multiply-adds that touches registers only. Clock and
/// neighbours vary, so the best of several short runs is the ceiling.
template <class Real>
double fma_peak(int runs = 9) {
  using namespace fastrope::simd;
  constexpr int kChains = 12;
  constexpr Index kSteps = 1'000'000;
  double best = 0;
  for (int run = 0; run < runs; ++run) {
    Vec<Real> sum[kChains];
    // Different values, or the compiler would compute equal chains once.
    for (int c = 0; c < kChains; ++c) sum[c] = set(static_cast<Real>(c));
    Vec<Real> factor = set(static_cast<Real>(0.999)), term = set(static_cast<Real>(1e-4));
    const double start = now();
    for (Index i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) sum[c] = fma(sum[c], factor, term);
    }
    const double seconds = now() - start;
    Real total = 0;
    for (auto& s : sum) total += reduce_add<Real>(s);
    keep(total);
    best = std::max(best, 2.0 * kChains * kSteps * static_cast<double>(kLanes<Real>) / seconds);
  }
  return best;
}

/// Bytes per second of `threads` threads that sum 512 MiB, the median of some runs.
inline double read_bandwidth(int runs = 5, Index threads = 1) {
  using namespace fastrope::simd;
  constexpr Index kCount = Index{1} << 27;
  static const std::vector<float> data(kCount, 1.0f);
  const auto executor = fastrope::Executor::openmp(threads);
  const Index share = kCount / threads;
  const double seconds = median_seconds(runs, [&] {
    executor.parallel_for(threads, [&](Index t, Index) HWY_ATTR {
      Vec<float> sum[8];
      for (auto& s : sum) s = zero<float>();
      constexpr Index kStep = kLanes<float>;
      for (Index i = t * share; i + 8 * kStep <= (t + 1) * share; i += 8 * kStep) {
#pragma GCC unroll 8
        for (Index c = 0; c < 8; ++c) sum[c] = add(sum[c], load(data.data() + i + c * kStep));
      }
      float total = 0;
      for (auto& s : sum) total += reduce_add<float>(s);
      keep(total);
    });
  });
  return static_cast<double>(kCount) * sizeof(float) / seconds;
}

}  // namespace bench
