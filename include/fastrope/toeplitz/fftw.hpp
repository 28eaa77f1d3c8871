// RealFft: the discrete Fourier transform of real data, and the only include of fftw3.h.
//
//   forward  X_k = sum_j x_j e^{-2 pi i j k / N},  k = 0 .. N/2  (the rest are conjugates of these)
//   inverse  x_j = sum_k X_k e^{+2 pi i j k / N}   over all N, so inverse(forward(x)) = N x
//
// Powers of two go forward in place, where the spectrum takes the room of two more values: the plans that
// FFTW estimates are faster so (N = 32768, float, Zen 4: 1.7 ns a point, into another array 2.4). In-place
// plans of other lengths call malloc in each execution (FFTW 3.3), so they go into another array, and so do
// all inverses. Plans are made once under a lock and executed on any aligned arrays from any thread. Only
// CirculantEmbedding stands on this; it gives the products that the rest of the library asks for.
#pragma once

#include <fftw3.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"

namespace fastrope {

/// Held while a plan is made or destroyed: FFTW's planner is global and not thread-safe. An application that
/// plans with FFTW on its own, at the same time as fastrope, holds it too. One a process, whatever
/// instruction sets its files are compiled for, so it stands outside of the namespaces named after them; also
/// of programs and libraries whose symbols are hidden.
#if defined(__ELF__)
[[gnu::visibility("default")]]
#endif
inline constinit std::mutex fftw_planner_mutex;

}  // namespace fastrope

namespace fastrope::inline FASTROPE_TARGET {

/// The smallest 2^a 3^b 5^c 7^d >= n that FFTW transforms fast: even, since FFTW 3.3 calls malloc in each
/// execution of an odd real length, and from 512 on a multiple of 32, which takes some 0.7 of the time of
/// other even ones (float, Zen 4, medians over all lengths up to 70000). Requires 1 <= n <= 2^60.
constexpr Index fft_length(Index n) {
  const Index step = n < 512 ? 2 : 32;
  const auto power_of_two = [step](Index k) {
    return std::max<Index>(step, static_cast<Index>(std::bit_ceil(static_cast<std::size_t>(k))));
  };
  Index best = power_of_two(n);
  for (Index sevens = 1; sevens * step < best; sevens *= 7) {
    for (Index fives = sevens; fives * step < best; fives *= 5) {
      for (Index odd = fives; odd * step < best; odd *= 3) {
        best = std::min(best, odd * power_of_two(ceil_div(n, odd)));
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
  static constexpr auto import_wisdom = fftwf_import_wisdom_from_filename;
  static constexpr auto export_wisdom = fftwf_export_wisdom_to_filename;
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
  static constexpr auto import_wisdom = fftw_import_wisdom_from_filename;
  static constexpr auto export_wisdom = fftw_export_wisdom_to_filename;
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

/// How hard FFTW looks for a plan. `estimate` measures nothing, so that the same length gives the same
/// arithmetic in every run (unless wisdom is loaded), and its plans allocate nothing while they run; the
/// others time plans, for seconds a length, may round differently from run to run, and may allocate.
enum class FftEffort : unsigned { estimate = FFTW_ESTIMATE, measure = FFTW_MEASURE, patient = FFTW_PATIENT };

/// Adds the plans of a file to what FFTW knows for transforms of Real: they serve every length that is
/// planned from then on with at most the effort they were found with. Throws Error unless it can be read.
/// Thread-safe.
template <class Real>
void load_fft_wisdom(const std::string& path) {
  const std::lock_guard lock(fftw_planner_mutex);
  if (detail::FftwApi<Real>::import_wisdom(path.c_str()) == 0)
    detail::fail("FFTW wisdom cannot be read from ", path);
}

/// Writes the plans that FFTW has found for transforms of Real. Throws Error unless the file can be written.
/// Thread-safe.
template <class Real>
void save_fft_wisdom(const std::string& path) {
  const std::lock_guard lock(fftw_planner_mutex);
  if (detail::FftwApi<Real>::export_wisdom(path.c_str()) == 0)
    detail::fail("FFTW wisdom cannot be written to ", path);
}

/// Both transforms of one length. Real is float or double. Move-only; see shared_fft for plans that are kept.
template <class Real>
class RealFft {
 public:
  /// Throws Error unless length >= 1. Thread-safe.
  explicit RealFft(Index length, FftEffort effort = FftEffort::estimate) : length_(length) {
    if (length < 1) detail::fail("an FFT needs a length of at least 1, got ", length);

    const auto x = detail::aligned_array<Real>(buffer_size());
    const auto y = detail::aligned_array<Real>(buffer_size());
    auto* const x_data = reinterpret_cast<Real*>(x.get());
    auto* const y_data = reinterpret_cast<Real*>(y.get());
    const auto complex = [](Real* p) { return reinterpret_cast<typename Api::Complex*>(p); };
    const typename Api::Dimension dimension{length, 1, 1};
    const auto flags = static_cast<unsigned>(effort);
    const std::lock_guard lock(fftw_planner_mutex);
    forward_.reset(
        Api::plan_forward(1, &dimension, 0, nullptr, x_data, complex(in_place() ? x_data : y_data), flags));
    inverse_.reset(Api::plan_inverse(1, &dimension, 0, nullptr, complex(y_data), x_data, flags));
    if (!forward_ || !inverse_) detail::fail("FFTW has no plan for a real transform of length ", length);
  }

  Index length() const { return length_; }

  /// Complex values in a spectrum: N/2 + 1.
  Index spectrum_size() const { return length_ / 2 + 1; }

  /// Values in a buffer that is a vector or its spectrum: 2 spectrum_size().
  Index buffer_size() const { return 2 * spectrum_size(); }

  /// The spectrum of x [length], [spectrum_size] complex values: in x or in y, whichever is returned; the
  /// other has no meaning then. Both are buffers [buffer_size] aligned to kAlignment and not overlapping.
  /// Thread-safe, O(N log N).
  Real* forward(Real* x, Real* y) const noexcept {
    assert(detail::is_aligned(x) && detail::is_aligned(y));
    Real* const spectrum = in_place() ? x : y;
    Api::execute_forward(forward_.get(), x, reinterpret_cast<typename Api::Complex*>(spectrum));
    return spectrum;
  }

  /// spectrum: a buffer of [spectrum_size] -> x: [length], unscaled. Destroys the spectrum. Both aligned to
  /// kAlignment and not overlapping. Thread-safe, O(N log N).
  void inverse(Real* spectrum, Real* x) const noexcept {
    assert(detail::is_aligned(x) && detail::is_aligned(spectrum));
    Api::execute_inverse(inverse_.get(), reinterpret_cast<typename Api::Complex*>(spectrum), x);
  }

 private:
  using Api = detail::FftwApi<Real>;

  bool in_place() const { return std::has_single_bit(static_cast<std::size_t>(length_)); }

  Index length_;
  detail::FftwPlan<Real> forward_;
  detail::FftwPlan<Real> inverse_;
};

/// The plans of a length, made at the first call and kept until the program ends: with FFTW's own tables the
/// only global state of the library. Both directions, for arrays aligned to kAlignment. Throws Error unless
/// length >= 1. Thread-safe.
template <class Real>
std::shared_ptr<const RealFft<Real>> shared_fft(Index length, FftEffort effort = FftEffort::estimate) {
  static std::mutex mutex;
  static std::map<std::pair<Index, FftEffort>, std::shared_ptr<const RealFft<Real>>> plans;
  const std::lock_guard lock(mutex);
  auto& plan = plans[{length, effort}];
  if (!plan) plan = std::make_shared<const RealFft<Real>>(length, effort);
  return plan;
}

}  // namespace fastrope::inline FASTROPE_TARGET
