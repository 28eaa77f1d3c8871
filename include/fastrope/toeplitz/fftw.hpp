// RealFft: the discrete Fourier transform of real data, and the only include of fftw3.h.
//
//   forward  X_k = sum_j x_j e^{-2 pi i j k / N},  k = 0 .. N/2  (the rest are conjugates of these)
//   inverse  x_j = sum_k X_k e^{+2 pi i j k / N}   over all N, so inverse(forward(x)) = N x
//
// Plans are made once under a lock and executed on any aligned arrays from any thread. Only
// CirculantEmbedding stands on this; it gives the products that the rest of the library asks for.
#pragma once

#include <fftw3.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/workspace.hpp"

namespace fastrope {

/// Held while a plan is made or destroyed: FFTW's planner is global and not thread-safe. An application that
/// plans with FFTW on its own, at the same time as fastrope, holds it too.
inline constinit std::mutex fftw_planner_mutex;

/// The smallest even 2^a 3^b 5^c 7^d >= n: lengths that FFTW transforms by its own codelets alone. Even,
/// since FFTW 3.3 calls malloc in each execution of an odd real length. Requires 1 <= n <= 2^60.
constexpr Index fft_length(Index n) {
  const auto even_power_of_two = [](Index k) {
    return std::max<Index>(2, static_cast<Index>(std::bit_ceil(static_cast<std::size_t>(k))));
  };
  Index best = even_power_of_two(n);
  for (Index sevens = 1; sevens < best; sevens *= 7) {
    for (Index fives = sevens; fives < best; fives *= 5) {
      for (Index odd = fives; odd < best; odd *= 3) {
        best = std::min(best, odd * even_power_of_two(ceil_div(n, odd)));
      }
    }
  }
  return best;
}

namespace detail {

/// FFTW's names for one precision.
template <class Real>
struct FftwApi;

template <>
struct FftwApi<float> {
  using Complex = fftwf_complex;
  using Dimension = fftwf_iodim64;
  using Plan = fftwf_plan;
  static constexpr auto plan_forward = fftwf_plan_guru64_dft_r2c;
  static constexpr auto plan_inverse = fftwf_plan_guru64_dft_c2r;
  static constexpr auto execute_forward = fftwf_execute_dft_r2c;
  static constexpr auto execute_inverse = fftwf_execute_dft_c2r;
  static constexpr auto destroy = fftwf_destroy_plan;
};

template <>
struct FftwApi<double> {
  using Complex = fftw_complex;
  using Dimension = fftw_iodim64;
  using Plan = fftw_plan;
  static constexpr auto plan_forward = fftw_plan_guru64_dft_r2c;
  static constexpr auto plan_inverse = fftw_plan_guru64_dft_c2r;
  static constexpr auto execute_forward = fftw_execute_dft_r2c;
  static constexpr auto execute_inverse = fftw_execute_dft_c2r;
  static constexpr auto destroy = fftw_destroy_plan;
};

template <class Real>
struct FftwPlanDeleter {
  using pointer = typename FftwApi<Real>::Plan;
  void operator()(pointer plan) const {
    const std::lock_guard lock(fftw_planner_mutex);
    FftwApi<Real>::destroy(plan);
  }
};

template <class Real>
using FftwPlan = std::unique_ptr<typename FftwApi<Real>::Plan, FftwPlanDeleter<Real>>;

struct alignas(kAlignment) CacheLine {
  std::byte bytes[kAlignment];
};

/// Uninitialised memory for `count` values of T, aligned to kAlignment.
template <class T>
std::unique_ptr<CacheLine[]> aligned_array(Index count) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
  return std::make_unique_for_overwrite<CacheLine[]>((bytes + kAlignment - 1) / kAlignment);
}

inline bool is_aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % kAlignment == 0; }

}  // namespace detail

/// Both transforms of one length. Real is float or double. Move-only; see shared_fft for plans that are kept.
///
/// Planned with FFTW_ESTIMATE, which measures nothing, so that the same length gives the same arithmetic in
/// every run (unless the application loads FFTW wisdom of its own).
template <class Real>
class RealFft {
 public:
  /// Throws Error unless length >= 1. Thread-safe.
  explicit RealFft(Index length) : length_(length) {
    if (length < 1) detail::fail("an FFT needs a length of at least 1, got ", length);

    // FFTW_ESTIMATE looks at the alignment of the arrays, not into them.
    const auto x = detail::aligned_array<Real>(length_);
    const auto spectrum = detail::aligned_array<std::complex<Real>>(spectrum_size());
    auto* const x_data = reinterpret_cast<Real*>(x.get());
    auto* const spectrum_data = reinterpret_cast<typename Api::Complex*>(spectrum.get());
    const typename Api::Dimension dimension{length, 1, 1};
    const std::lock_guard lock(fftw_planner_mutex);
    forward_.reset(Api::plan_forward(1, &dimension, 0, nullptr, x_data, spectrum_data,
                                     FFTW_ESTIMATE | FFTW_PRESERVE_INPUT));
    inverse_.reset(Api::plan_inverse(1, &dimension, 0, nullptr, spectrum_data, x_data, FFTW_ESTIMATE));
    if (!forward_ || !inverse_) detail::fail("FFTW has no plan for a real transform of length ", length);
  }

  Index length() const { return length_; }

  /// Complex values in a spectrum: N/2 + 1.
  Index spectrum_size() const { return length_ / 2 + 1; }

  /// x: [length] -> spectrum: [spectrum_size]. Keeps x. Both aligned to kAlignment and not overlapping.
  /// Thread-safe, O(N log N).
  void forward(const Real* x, std::complex<Real>* spectrum) const noexcept {
    assert(detail::is_aligned(x) && detail::is_aligned(spectrum));
    Api::execute_forward(forward_.get(), const_cast<Real*>(x), raw(spectrum));
  }

  /// spectrum: [spectrum_size] -> x: [length], unscaled. Destroys spectrum. Both aligned to kAlignment and
  /// not overlapping. Thread-safe, O(N log N).
  void inverse(std::complex<Real>* spectrum, Real* x) const noexcept {
    assert(detail::is_aligned(x) && detail::is_aligned(spectrum));
    Api::execute_inverse(inverse_.get(), raw(spectrum), x);
  }

 private:
  using Api = detail::FftwApi<Real>;

  static typename Api::Complex* raw(std::complex<Real>* z) {
    return reinterpret_cast<typename Api::Complex*>(z);
  }

  Index length_;
  detail::FftwPlan<Real> forward_;
  detail::FftwPlan<Real> inverse_;
};

/// The plans of a length, made at the first call and kept until the program ends: with FFTW's own tables the
/// only global state of the library. Throws Error unless length >= 1. Thread-safe.
template <class Real>
std::shared_ptr<const RealFft<Real>> shared_fft(Index length) {
  static std::mutex mutex;
  static std::map<Index, std::shared_ptr<const RealFft<Real>>> plans;
  const std::lock_guard lock(mutex);
  auto found = plans.find(length);
  if (found == plans.end())
    found = plans.emplace(length, std::make_shared<const RealFft<Real>>(length)).first;
  return found->second;
}

}  // namespace fastrope
