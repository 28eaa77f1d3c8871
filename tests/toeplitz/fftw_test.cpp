#include "fastrope/toeplitz/fftw.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <limits>
#include <numbers>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

namespace fastrope {
namespace {

template <class Real>
struct Arrays {
  std::unique_ptr<detail::CacheLine[]> x_memory, y_memory;
  std::span<Real> x, y;

  explicit Arrays(const RealFft<Real>& fft)
      : x_memory(detail::aligned_array<Real>(fft.buffer_size())),
        y_memory(detail::aligned_array<Real>(fft.buffer_size())),
        x(reinterpret_cast<Real*>(x_memory.get()), static_cast<std::size_t>(fft.length())),
        y(reinterpret_cast<Real*>(y_memory.get()), static_cast<std::size_t>(fft.length())) {
    std::mt19937 random(7);
    for (Real& value : x) value = static_cast<Real>(std::normal_distribution()(random));
  }
};

/// inverse(forward(x)), wherever it is.
template <class Real>
const Real* round_trip(const RealFft<Real>& fft, const Arrays<Real>& arrays) {
  Real* const spectrum = fft.forward(arrays.x.data(), arrays.y.data());
  Real* const back = spectrum == arrays.x.data() ? arrays.y.data() : arrays.x.data();
  fft.inverse(spectrum, back);
  return back;
}

double norm(const auto& values) {
  double sum = 0;
  for (const auto& value : values) sum += static_cast<double>(std::norm(value));
  return std::sqrt(sum);
}

bool is_7_smooth(Index n) {
  for (Index p : {2, 3, 5, 7}) {
    while (n % p == 0) n /= p;
  }
  return n == 1;
}

TEST(FftLength, IsTheSmallest7SmoothMultiple) {
  for (const Index multiple : {2, 32}) {
    const Index first = multiple == 2 ? 1 : 512, last = multiple == 2 ? 511 : 20000;
    Index expected = round_up(last, multiple);
    while (!is_7_smooth(expected)) expected += multiple;
    for (Index n = last; n >= first; --n) {
      if (n % multiple == 0 && is_7_smooth(n)) expected = n;
      ASSERT_EQ(fft_length(n), expected) << "n = " << n;
    }
  }
  static_assert(fft_length(1) == 2 && fft_length(211) == 216 && fft_length(1025) == 1120);
  EXPECT_EQ(fft_length(Index{1} << 60), Index{1} << 60);
}

template <class Real>
class RealFftTest : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(RealFftTest, Reals);

// Each transform is off by at most 3.4 eps log2 N in the 2-norm (see CirculantEmbedding); 1 + log2 N covers
// N = 1, and radices other than 2, whose butterflies sum more terms, stay below it too.
template <class Real>
double relative_bound(Index n) {
  return 3.4 * std::numeric_limits<Real>::epsilon() * (1 + std::log2(static_cast<double>(n)));
}

TYPED_TEST(RealFftTest, ForwardIsTheDefinition) {
  for (Index n = 1; n <= 130; ++n) {
    const RealFft<TypeParam> fft(n);
    const Arrays<TypeParam> arrays(fft);
    const std::vector<TypeParam> x(arrays.x.begin(), arrays.x.end());
    const auto* spectrum =
        reinterpret_cast<std::complex<TypeParam>*>(fft.forward(arrays.x.data(), arrays.y.data()));
    ASSERT_EQ(fft.spectrum_size(), n / 2 + 1);
    std::vector<std::complex<double>> error;
    for (Index k = 0; k <= n / 2; ++k) {
      std::complex<double> sum = 0;
      for (Index j = 0; j < n; ++j) {
        const double phase = -2 * std::numbers::pi * static_cast<double>(j * k % n) / static_cast<double>(n);
        sum += std::polar(static_cast<double>(x[static_cast<std::size_t>(j)]), 0.0) * std::polar(1.0, phase);
      }
      error.push_back(sum - std::complex<double>(spectrum[k]));
    }
    const double spectrum_norm = std::sqrt(static_cast<double>(n)) * norm(x);
    EXPECT_LE(norm(error), relative_bound<TypeParam>(n) * spectrum_norm) << "n = " << n;
  }
}

TYPED_TEST(RealFftTest, InverseOfForwardIsLengthTimesTheInput) {
  for (Index n : {1, 2, 3, 7, 64, 97, 210, 1024, 4095, 4096, 30870}) {
    const RealFft<TypeParam> fft(n);
    const Arrays<TypeParam> arrays(fft);
    const std::vector<TypeParam> x(arrays.x.begin(), arrays.x.end());
    const TypeParam* y = round_trip(fft, arrays);

    std::vector<double> error;
    for (std::size_t j = 0; j < x.size(); ++j) {
      error.push_back(static_cast<double>(y[j]) / static_cast<double>(n) - static_cast<double>(x[j]));
    }
    EXPECT_LE(norm(error), 2 * relative_bound<TypeParam>(n) * norm(x)) << "n = " << n;
  }
}

TYPED_TEST(RealFftTest, IsMoveOnly) {
  static_assert(!std::is_copy_constructible_v<RealFft<TypeParam>>);
  static_assert(std::is_nothrow_move_constructible_v<RealFft<TypeParam>>);
  RealFft<TypeParam> source(12);
  const RealFft<TypeParam> fft = std::move(source);
  const Arrays<TypeParam> arrays(fft);
  TypeParam sum = 0;
  for (TypeParam x : arrays.x) sum += x;
  const double size = norm(arrays.x);
  EXPECT_NEAR(fft.forward(arrays.x.data(), arrays.y.data())[0], sum,
              12 * std::numeric_limits<TypeParam>::epsilon() * size);
}

TYPED_TEST(RealFftTest, RefusesALengthBelowOne) {
  for (Index n : {0, -5}) {
    const auto names_the_length =
        testing::ThrowsMessage<Error>(testing::HasSubstr("got " + std::to_string(n)));
    EXPECT_THAT([n] { RealFft<TypeParam> fft(n); }, names_the_length);
    EXPECT_THAT([n] { shared_fft<TypeParam>(n); }, names_the_length);
  }
}

TYPED_TEST(RealFftTest, SharesThePlansOfALength) {
  EXPECT_EQ(shared_fft<TypeParam>(360), shared_fft<TypeParam>(360));
  EXPECT_NE(shared_fft<TypeParam>(360), shared_fft<TypeParam>(384));
  EXPECT_EQ(shared_fft<TypeParam>(384)->length(), 384);
  EXPECT_NE(shared_fft<TypeParam>(360), shared_fft<TypeParam>(360, FftEffort::measure));
  EXPECT_EQ(shared_fft<TypeParam>(360, FftEffort::measure), shared_fft<TypeParam>(360, FftEffort::measure));
}

TYPED_TEST(RealFftTest, EveryEffortTransforms) {
  for (const FftEffort effort : {FftEffort::estimate, FftEffort::measure, FftEffort::patient}) {
    const RealFft<TypeParam> fft(96, effort);
    const Arrays<TypeParam> arrays(fft);
    const std::vector<TypeParam> x(arrays.x.begin(), arrays.x.end());
    const TypeParam* y = round_trip(fft, arrays);
    for (std::size_t j = 0; j < x.size(); ++j)
      EXPECT_NEAR(y[j] / 96, x[j], 2 * relative_bound<TypeParam>(96) * norm(x));
  }
}

TYPED_TEST(RealFftTest, WisdomIsSavedAndLoaded) {
  const std::string path = testing::TempDir() + "/fastrope_wisdom_" + std::to_string(sizeof(TypeParam));
  const RealFft<TypeParam> measured(1344, FftEffort::measure);
  save_fft_wisdom<TypeParam>(path);
  std::ifstream file(path);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  EXPECT_THAT(text, testing::HasSubstr(sizeof(TypeParam) == 4 ? "fftwf" : "fftw"));
  EXPECT_NO_THROW(load_fft_wisdom<TypeParam>(path));
  std::remove(path.c_str());
  const auto names_the_file = testing::ThrowsMessage<Error>(testing::HasSubstr(path));
  EXPECT_THAT([&] { load_fft_wisdom<TypeParam>(path); }, names_the_file);
  EXPECT_THAT([&] { save_fft_wisdom<TypeParam>(path + "/no/such/folder"); }, names_the_file);
}

TYPED_TEST(RealFftTest, PlansAreMadeSharedAndDestroyedFromManyThreads) {
  std::vector<std::thread> threads;
  std::vector<std::shared_ptr<const RealFft<TypeParam>>> shared(8);
  for (std::size_t t = 0; t < shared.size(); ++t) {
    threads.emplace_back([t, &shared] {
      for (Index n = 500; n < 540; ++n) const RealFft<TypeParam> temporary(n + static_cast<Index>(t));
      shared[t] = shared_fft<TypeParam>(2 * 541);  // of a length that no other test has planned
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(shared, testing::Each(shared[0]));
}

}  // namespace
}  // namespace fastrope
