// DirectToeplitz: a Toeplitz matrix times a vector by its definition, which beats transforms when the matrix
// is small or its band narrow.
//
// Outputs are vector lanes: some of them at a time take t(i - j), t(i - j + 1), .., a run of the generator,
// times x_j.
#pragma once

#include <algorithm>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/toeplitz/circulant.hpp"
#include "fastrope/toeplitz/segments.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Matrices of one number of columns and support. Real is float or double.
///
/// Error: |y - T x|_max <= terms eps |t|_2 |x|_2 / 2, that of a sum of min(n_cols, support) products.
template <class Real>
class DirectToeplitz {
 public:
  /// Outputs computed at a time: a result has room for a multiple of it.
  static constexpr Index kOutputs = 4 * simd::kLanes<Real>;

  DirectToeplitz(Index n_cols, LagSupport support) : n_cols_(n_cols), support_(support) {}

  /// Whether it is faster than transforms, and within their bound of the error, both ways. A flop of a
  /// transform takes as long as 3.6 here (Zen 4: 18 and 65 Gflop/s).
  static bool suits(Index n_rows, Index n_cols, LagSupport support) {
    constexpr Index kMostTerms = 160;
    constexpr double kFlopsForOne = 3.6;
    const Index longest = std::max(n_rows, n_cols), terms = std::min(longest, support.size());
    const double flops = 2 * static_cast<double>(round_up(longest, kOutputs)) *
                         static_cast<double>(std::min(longest, terms + kOutputs));
    return terms <= kMostTerms &&
           flops <= kFlopsForOne * ToeplitzSegments<Real>::flops(n_rows, n_cols, support);
  }

  /// Elements of a generator that is laid out for multiply().
  Index generator_size() const { return support_.size() + 2 * kOutputs; }
  /// values: [support.size()], t(first) .. t(last); generator: [generator_size].
  void lay_out(const Real* values, Real* generator) const {
    std::fill_n(generator, kOutputs, Real{0});
    std::copy_n(values, support_.size(), generator + kOutputs);
    std::fill_n(generator + kOutputs + support_.size(), kOutputs, Real{0});
  }

  /// y [n_rows, up to whole kOutputs] = T x. Cost 2 n_rows min(n_cols, support) flops.
  void multiply(const Real* generator, const Real* x, Index n_rows, Real* y) const noexcept {
    using namespace simd;
    constexpr int kVecs = 4;
    for (Index i = 0; i < n_rows; i += kOutputs) {
      const Index begin = std::max<Index>(0, i - support_.last),
                  end = std::min(n_cols_, i + kOutputs - support_.first);
      const Real* t = generator + kOutputs + i - support_.first;
      Vec<Real> sums[kVecs];
      for (auto& sum : sums) sum = zero<Real>();
      for (Index j = begin; j < end; ++j) {
        const Vec<Real> x_j = set(x[j]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) sums[v] = fma(load(t - j + v * kLanes<Real>), x_j, sums[v]);
      }
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) store<Real>(sums[v], y + i + v * kLanes<Real>);
    }
  }

 private:
  Index n_cols_;
  LagSupport support_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
