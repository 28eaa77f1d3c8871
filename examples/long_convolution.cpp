// Token mixing by long convolutions, as Toeplitz neural networks and long-convolution models do it: every
// channel of a sequence is multiplied by a causal Toeplitz matrix of its own.
//
//     long_convolution [tokens] [threads]
//
// Prints how long a layer of 64 channels takes as the sequence grows, what the first use costs, and the error
// of some tokens against sums in double precision.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fastrope/fastrope.hpp>
#include <random>
#include <vector>

namespace {

using fastrope::Index;
using fastrope::MatrixView;

constexpr Index kChannels = 64;

/// [channels, 2 n - 1], the value of lag = row - column at [lag + n - 1]: damped waves for lag >= 0, as such
/// models parametrise them, and zeros before, which make it causal.
std::vector<float> random_filters(Index n, std::mt19937& random) {
  std::vector<float> filters(static_cast<std::size_t>(kChannels * (2 * n - 1)));
  std::uniform_real_distribution<double> uniform;
  for (Index c = 0; c < kChannels; ++c) {
    const double memory = std::exp2(2 + uniform(random) * std::log2(static_cast<double>(n)));  // tokens
    const double frequency = 0.1 * uniform(random);
    for (Index lag = 0; lag < n; ++lag) {
      const double t = static_cast<double>(lag);
      filters[static_cast<std::size_t>(c * (2 * n - 1) + lag + n - 1)] =
          static_cast<float>(std::exp(-t / memory) * std::cos(frequency * t));
    }
  }
  return filters;
}

template <class F>
double milliseconds(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

void run(Index n, const fastrope::Executor& executor) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const std::vector<float> filters = random_filters(n, random);
  std::vector<float> x(static_cast<std::size_t>(n * kChannels)), y(x.size());
  for (float& value : x) value = normal(random);

  const MatrixView<const float> generators(filters.data(), kChannels, 2 * n - 1),
      tokens(x.data(), n, kChannels);
  const MatrixView<float> mixed(y.data(), n, kChannels);
  std::vector<fastrope::ToeplitzOperator<float>> layer;
  const double setup = milliseconds(
      [&] { layer.push_back(fastrope::ToeplitzOperator<float>::per_channel(n, n, generators)); });
  layer[0].apply(tokens, mixed, executor);
  const double apply = milliseconds([&] { layer[0].apply(tokens, mixed, executor); });

  double error = 0, size = 0;
  for (const Index i : {Index{0}, n / 3, n - 1})
    for (Index c = 0; c < kChannels; ++c) {
      double sum = 0;
      for (Index j = 0; j <= i; ++j)
        sum += static_cast<double>(generators(c, i - j + n - 1)) * static_cast<double>(tokens(j, c));
      error = std::max(error, std::abs(sum - static_cast<double>(mixed(i, c))));
      size = std::max(size, std::abs(sum));
    }
  std::printf("%8td  %10.2f  %10.2f  %12.1f  %10.1e\n", n, setup, apply,
              1e6 * apply / static_cast<double>(n * kChannels), error / size);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) try {
  const Index longest = argc > 1 ? std::atoll(argv[1]) : 65536, threads = argc > 2 ? std::atoll(argv[2]) : 1;
  std::printf("%td channels, a causal filter each, as long as the sequence\n", kChannels);
  std::printf("%8s  %10s  %10s  %12s  %10s\n", "tokens", "setup, ms", "apply, ms", "ns an entry", "error");
  for (Index n = 256; n <= longest; n *= 4)
    run(n, threads > 1 ? fastrope::Executor::openmp(threads) : fastrope::Executor::serial());
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "long_convolution: %s\n", error.what());
  return EXIT_FAILURE;
}
