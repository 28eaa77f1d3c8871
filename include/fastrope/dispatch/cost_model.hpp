// Cost model: predicted seconds of each path on one core, from few measured rates.
//
// Only ratios between paths matter to the choice. The defaults are of a 2 GHz core with AVX-512 and float;
// double takes twice the time.
#pragma once

#include <cmath>

#include "fastrope/core/index.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/toeplitz/fftw.hpp"

namespace fastrope {

/// Work per second of one core.
struct CostModel {
  double tile = 1.0e11;      ///< flops in the tile kernel
  double weigh = 3.0e9;      ///< scores turned into weights: mask, maximum, exponential, sum
  double feature = 4.0e9;    ///< monomials evaluated, summed and scaled
  double transform = 8.0e9;  ///< flops in Fourier transforms, 2.5 N log2 N each
  double element = 1.0e9;    ///< elements packed, bounded, scaled or accumulated outside of the kernels
  double fit = 2.0e-4;       ///< seconds to find and certify the polynomials of one head

  /// What looking at the data costs for each head, and the least that any approximation of it could:
  /// degree 1.
  template <class Real>
  double least_approximate(const Problem& problem) const {
    const Shapes& s = problem.shapes;
    const double group = static_cast<double>(problem.group());
    const double look = static_cast<double>(s.d) *
                        (2 * static_cast<double>(s.n_q) + 2 * static_cast<double>(s.n_k) / group) / element;
    const Index variables = problem.weights ? static_cast<Index>(problem.weights->support().size()) : s.d;
    const double rank = static_cast<double>(variables + 1);
    return look + fit + std::min(polynomial<Real>(problem, rank), toeplitz<Real>(problem, rank));
  }

  /// Exact attention of rows that attend to `pairs` keys in all.
  template <class Real>
  double exact(const Problem& problem, double pairs, double rows) const {
    const Shapes& s = problem.shapes;
    constexpr double kPanel = static_cast<double>(PackedKeys<Real>::kWidth);
    const double computed = std::min(pairs + rows * kPanel,
                                     rows * static_cast<double>(round_up(s.n_k, PackedKeys<Real>::kWidth)));
    const double d = static_cast<double>(s.d), d_v = static_cast<double>(round_up(s.d_v, simd::kLanes<Real>));
    return slowdown<Real>() * (2 * computed * (d + d_v) / tile + computed / weigh + packing(s));
  }

  /// The polynomial path of one head.
  template <class Real>
  double polynomial(const Problem& problem, double rank) const {
    const Shapes& s = problem.shapes;
    const double rows = static_cast<double>(s.n_q + s.n_k);
    const double d_v = static_cast<double>(round_up(s.d_v, simd::kLanes<Real>));
    // With a full mask there is no near field; else a row's own block and about a panel before it.
    const bool near_field = problem.grid.n_q() > 0 && problem.grid.keys_of(0).end < s.n_k;
    const double near =
        near_field ? static_cast<double>(s.n_q) * static_cast<double>(QueryBlock<Real>::kTileRows) : 0;
    return slowdown<Real>() * (2 * rows * rank * d_v / tile + rows * rank / feature) +
           (near > 0 ? exact<Real>(problem, near, static_cast<double>(s.n_q))
                     : slowdown<Real>() * packing(s));
  }

  /// The Toeplitz path of one head, without the rows that are done exactly.
  template <class Real>
  double toeplitz(const Problem& problem, double rank) const {
    const Shapes& s = problem.shapes;
    const double length = static_cast<double>(fft_length(std::max<Index>(1, s.n_q + s.n_k - 1)));
    const double channels = static_cast<double>(s.d_v + 1);
    const double transforms = (problem.weights ? rank : 1) + 2 * rank * channels;
    const double elements = rank * channels * (length + static_cast<double>(s.n_q + s.n_k));
    return slowdown<Real>() * (transforms * 2.5 * length * std::log2(length) / transform +
                               elements / (4 * element) + packing(s));
  }

 private:
  template <class Real>
  static constexpr double slowdown() {
    return sizeof(Real) / 4.0;
  }
  double packing(const Shapes& s) const {
    return static_cast<double>(s.n_k * (s.d + s.d_v) + s.n_q * s.d) / element;
  }
};

}  // namespace fastrope
